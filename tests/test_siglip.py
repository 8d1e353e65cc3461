"""SigLIP as a base: its own pooling, prompts and bias, evaluated, trained and merged like a CLIP."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import Siglip2Model, SiglipModel, SiglipProcessor, SiglipVisionModel

from hf_taskvec import (
    Base,
    TaskVector,
    TaskVectorConfig,
    TaskVectorTrainer,
    evaluate,
    gradient_vector,
    load_base,
    merge,
)
from hf_taskvec.errors import CheckpointError, DataError
from hf_taskvec.evaluation.accuracy import predict
from hf_taskvec.models.heads import check_context
from tests.architectures import model_of
from tests.bases import colours_task
from tests.siglip import save_tiny_siglip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_siglip(tmp_path_factory.mktemp("siglip") / "siglip")


@cache
def loaded(folder: Path) -> Base:
    return load_base(folder)


def test_its_logits_are_those_of_the_model_itself(folder: Path) -> None:
    base, task = loaded(folder), colours_task()
    images = task.load("test")["image"]
    texts = [f"this is a photo of {name}." for name in task.class_names]
    processor = SiglipProcessor.from_pretrained(folder)
    inputs = processor(text=texts, images=list(images), padding="max_length", return_tensors="pt")
    inputs.pop("attention_mask", None)
    with torch.no_grad():
        expected = SiglipModel.from_pretrained(folder).eval()(**inputs).logits_per_image
    prompted = dataclasses.replace(task, templates=("This is a photo of {}.",))
    logits, _ = predict(base, prompted, "test")
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert (logits < 0).any()  # the bias is in them


def test_it_is_trained_merged_and_evaluated_like_a_clip(folder: Path, tmp_path: Path) -> None:
    base, task = loaded(folder), colours_task()
    settings = TaskVectorConfig(
        output_dir=str(tmp_path / "run"), num_train_epochs=1, learning_rate=1e-3, warmup_steps=0, report_to="none"
    )
    trainer = TaskVectorTrainer(base, settings, task=task)
    trainer.train()
    vector = trainer.task_vector()
    names = {name for name, _ in base.model.named_parameters() if name.startswith("vision_model.")}
    assert set(vector) == names
    assert vector.info.architecture == "siglip"
    trainer.save_model(str(tmp_path / "tower"))
    saved = TaskVector.from_checkpoints(folder, tmp_path / "tower", include="vision_model.*")
    assert all(torch.equal(saved[name], vector[name]) for name in vector)
    loaded_tower, loading = SiglipVisionModel.from_pretrained(tmp_path / "tower", output_loading_info=True)
    assert not any(loading.values()), loaded_tower
    merged = merge([vector, gradient_vector(base, task, learning_rate=1e-3)], "task_arithmetic")
    report = evaluate(merged.apply_to(base), [task], zero_shot=base)
    assert report.results[0].num_images == 30
    merged.save_checkpoint(folder, tmp_path / "out")
    again = evaluate(load_base(tmp_path / "out"), [task])
    assert again.results[0].accuracy == report.results[0].accuracy
    assert TaskVector.from_checkpoints(folder, tmp_path / "out", include="vision_model.*").norm() == pytest.approx(
        merged.norm(), rel=1e-4
    )


def test_it_is_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    loaded(folder).save_pretrained(tmp_path / "out")
    again = load_base(tmp_path / "out", dtype="bfloat16")
    assert isinstance(again.model, SiglipModel)
    assert again.model.dtype == torch.bfloat16
    assert again.architecture == "siglip"
    assert set(again.model.state_dict()) == set(SiglipModel.from_pretrained(folder).state_dict())


def test_a_class_name_that_its_context_would_cut_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="more than the 48 that the text tower"):
        check_context(loaded(folder), ["a" * 60], ["{}"])


def test_patches_of_native_resolution_are_refused_by_name(tmp_path: Path) -> None:
    assert isinstance(model_of("siglip2"), Siglip2Model)
    model_of("siglip2").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is SigLIP 2 of native resolution"):
        load_base(tmp_path)
