"""ViT and DINOv2 as bases: one frozen linear head per task, for training, merging, evaluation and scalings alike."""

from __future__ import annotations

import dataclasses
import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor

from hf_taskvec import (
    Base,
    Task,
    TaskVector,
    TaskVectorConfig,
    TaskVectorTrainer,
    choose_scaling,
    evaluate,
    get_task,
    gradient_vector,
    load_base,
    merge,
)
from hf_taskvec.command.evaluation import EvaluateSettings, run_evaluation
from hf_taskvec.errors import BaseMismatchError, CheckpointError, DataError, IncompatibleVectorsError
from hf_taskvec.evaluation.accuracy import predict
from hf_taskvec.evaluation.scalings import edit, touched
from hf_taskvec.models import linear
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.models.linear import CONFIG_FILE, STRENGTHS, WEIGHTS_FILE, LinearHead, fit_head, linear_head
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.statistics import collect_statistics
from hf_taskvec.tasks import pixels, registry
from hf_taskvec.tasks.corruptions import corrupt
from hf_taskvec.tasks.pixels import PixelDataset, load_pixels
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.theory.equivalence import verify_equivalence
from hf_taskvec.training.joint import JointTrainer
from hf_taskvec.training.run import quiet
from hf_taskvec.tuning import surgery
from hf_taskvec.vectors.info import VectorInfo
from tests.architectures import moved
from tests.backbones import KINDS, save_backbone
from tests.bases import colours_task, save_colour_dataset
from tests.helpers import in_processes, rewrite_weights

PATTERNS = subset(get_task("patterns"), max_train=300)
COUNTS = subset(get_task("counts"), max_train=60, max_validation=20, max_test=20)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("backbones")
    return {kind: save_backbone(root / kind, kind) for kind in KINDS}


@cache
def loaded(folder: Path) -> Base:
    """The base in a folder; never changed by a test."""
    return load_base(folder)


LIGHT = {"save_strategy": "no", "record_epochs": False, "per_device_train_batch_size": 32}


def settings(folder: Path, **changes: Any) -> TaskVectorConfig:
    quick = {"num_train_epochs": 1, "learning_rate": 1e-3, "warmup_steps": 0, "report_to": "none"}
    return TaskVectorConfig(output_dir=str(folder), **{**quick, **changes})


def trained(base: Base, folder: Path, task: Task | None = None, **changes: Any) -> TaskVectorTrainer:
    trainer = TaskVectorTrainer(base, settings(folder, **changes), task=task or colours_task())
    quiet(trainer)
    trainer.train()
    return trainer


def pixels_of_test(base: Base, task: Task) -> Tensor:
    images = load_pixels(task, "test", base.processor.image_processor)
    return Normalize(base)(images.__getitems__(range(len(images)))["pixel_values"])


# -- the way from a base to a report ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_merged_applied_and_saved_and_the_file_gives_the_same_logits(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    base, task = loaded(folders[kind]), colours_task()
    vectors = [TaskVector.from_models(base, moved(base.model, seed=seed)) for seed in (1, 2)]
    merged = merge(vectors, "task_arithmetic", scaling=0.5)
    applied = merged.apply_to(base)
    merged.save_checkpoint(folders[kind], tmp_path / "out")
    again: Any = getattr(hf, f"{KINDS[kind]}ForImageClassification").from_pretrained(tmp_path / "out").eval()
    head = linear_head(base, task)
    with torch.no_grad():
        again.classifier = torch.nn.Linear(*reversed(head.weight.shape))
        again.classifier.weight.copy_(head.weight)
        again.classifier.bias.copy_(head.bias)
        expected = again(pixels_of_test(base, task)).logits
    logits, _ = predict(applied, task)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-3)
    assert not torch.allclose(logits, predict(base, task)[0], rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_training_changes_the_backbone_alone_and_gains_over_the_linear_probe(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    base = loaded(folders[kind])
    trainer = trained(base, tmp_path / "run", PATTERNS, learning_rate=2e-3, num_train_epochs=5, **LIGHT)
    vector = trainer.task_vector()
    report = evaluate(vector.apply_to(base), [PATTERNS], zero_shot=base)
    assert report.accuracy > (report.zero_shot or 0) + 0.08
    trainer.save_model(str(tmp_path / "saved"))
    classifier: Any = hf.AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    assert type(classifier).__name__ == f"{KINDS[kind]}ForImageClassification"
    assert classifier.config.id2label[1] == PATTERNS.class_names[1]
    assert torch.equal(classifier.classifier.weight, linear_head(base, PATTERNS).weight)  # what evaluate reads
    with torch.no_grad():
        expected = classifier(pixels_of_test(base, PATTERNS)).logits
    torch.testing.assert_close(predict(vector.apply_to(base), PATTERNS)[0], expected, rtol=1e-3, atol=1e-2)
    left_out = ["classifier.*", *(["pooler.*"] if kind == "vit" else [])]
    saved = TaskVector.from_checkpoints(folders[kind], tmp_path / "saved", exclude=left_out)
    assert saved == vector
    assert saved.info.architecture == vector.info.architecture == kind


def test_the_vector_has_the_names_of_the_base_s_file(folders: dict[str, Path], tmp_path: Path) -> None:
    base = loaded(folders["vit"])
    vector = trained(base, tmp_path / "run", **LIGHT).task_vector()
    tuned = moved(base.model)
    whole = TaskVector.from_models(base.model, tuned, exclude="pooler.*")  # the pooler is not read
    assert set(vector) == set(whole)
    assert merge([vector, whole], "ties").info.base_hashes == vector.info.base_hashes
    told = vector.info.settings["linear_head"]
    head = linear_head(base, colours_task())
    assert told["digest"] == head.facts()["digest"]
    assert told["num_images"] == head.num_images == 81


def test_scalings_and_the_command_use_the_same_head(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, task = loaded(folders["dinov2"]), COUNTS
    vector = TaskVector.from_models(base, moved(base.model))
    linear_head(base, task)
    monkeypatch.setattr(linear, "fit_head", None)  # from here on the kept one is read
    scaling = choose_scaling(base, vector, [task], scalings=[0.5, 1.0])
    vector.save_pretrained(tmp_path / "vector")
    monkeypatch.setattr(registry, "get_tasks", lambda names, data_dir: [task])
    report = run_evaluation(
        EvaluateSettings(["counts"], base=str(folders["dinov2"]), vector=str(tmp_path / "vector"), scaling=scaling)
    )
    measured = evaluate(vector.apply_to(base, scaling=scaling), [task], zero_shot=base)
    assert (report.accuracy, report.zero_shot) == (measured.accuracy, measured.zero_shot)


def test_a_vector_of_classifiers_fits_the_backbone_and_every_scaling_of_it(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "base", "vit", head=True)
    tuned = moved(hf.ViTForImageClassification.from_pretrained(folder))
    tuned.save_pretrained(tmp_path / "tuned")
    vector = TaskVector.from_checkpoints(folder, tmp_path / "tuned", exclude="classifier.*")
    base, task = load_base(folder), colours_task()
    assert all(name.startswith("vit.") for name in vector)
    curve = linear_curve(base, vector, task)
    for scaling, logits in curve.items():
        torch.testing.assert_close(logits, predict(vector.apply_to(base, scaling=scaling), task)[0])
    assert not torch.equal(curve[0.5], curve[1.0])


def test_a_vector_of_classifiers_is_not_merged_with_one_of_the_backbone_under_other_names(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "base", "vit", head=True)
    tuned = hf.ViTForImageClassification.from_pretrained(folder)
    moved(tuned).save_pretrained(save_backbone(tmp_path / "tuned", "vit", head=True))
    whole = TaskVector.from_checkpoints(folder, tmp_path / "tuned", exclude="classifier.*")
    own = trained(load_base(folder), tmp_path / "run", **LIGHT).task_vector()
    for vectors in ([own, whole], [whole, own]):
        for missing in ("refuse", "zero"):
            with pytest.raises(IncompatibleVectorsError, match=r"but behind 'vit\.'.*load_base\(finetuned\)"):
                merge(vectors, "task_arithmetic", missing=missing)
    named_alike = TaskVector.from_models(load_base(folder), load_base(tmp_path / "tuned"))  # the remedy
    merged = merge([own, named_alike], "task_arithmetic")
    for name in merged:
        torch.testing.assert_close(merged[name], own[name] + whole[f"vit.{name}"])


def linear_curve(base: Base, vector: TaskVector, task: Task) -> dict[float, Tensor]:
    """The logits at two scalings, as `scaling_curve` edits one model for them."""
    edited, originals = vector.apply_to(base, scaling=0.1), touched(base, vector)
    curve = {}
    for scaling in (0.5, 1.0):
        edit(edited, originals, vector, scaling=scaling)
        curve[scaling] = predict(edited, task)[0]
    return curve


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_a_run_is_resumed_to_the_same_vector_and_leaves_checkpoints_of_it(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    base, steady = loaded(folders[kind]), {"lr_scheduler_type": "constant", "record_epochs": False}
    whole = trained(base, tmp_path / "whole", num_train_epochs=2, **steady).task_vector()
    trained(base, tmp_path / "run", num_train_epochs=1, **steady)
    again = TaskVectorTrainer(base, settings(tmp_path / "run", num_train_epochs=2, **steady), task=colours_task())
    quiet(again)
    again.train(resume_from_checkpoint=True)
    assert again.task_vector() == whole
    last = max((tmp_path / "run").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    left_out = ["classifier.*", *(["pooler.*"] if kind == "vit" else [])]
    assert TaskVector.from_checkpoints(folders[kind], last, exclude=left_out) == whole


def test_processes_do_not_wait_for_the_gradient_of_a_token_that_is_not_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for kind, expected in (("vit", False), ("dinov2", True)):
        args = settings(tmp_path / kind)
        trainer = TaskVectorTrainer(loaded(folders[kind]), args, task=colours_task())
        images = load_pixels(colours_task(), "train", trainer.base.processor.image_processor)
        trainer.model(**images.__getitems__([0, 1]))["logits"].sum().backward()
        unread = [name for name, parameter in trainer.model.trained().items() if parameter.grad is None]
        assert unread == (["embeddings.mask_token"] if expected else [])
        assert trainer.args.ddp_find_unused_parameters is expected
        assert args.ddp_find_unused_parameters is False  # what was given stays


def test_the_gradients_of_a_run_have_the_names_of_its_vector(folders: dict[str, Path], tmp_path: Path) -> None:
    settled = {**LIGHT, "record_epochs": True, "record_gradients": True}
    trainer = trained(loaded(folders["dinov2"]), tmp_path, **settled)
    gradient = TaskVector.from_pretrained(tmp_path / "gradients" / "epoch-1")
    assert set(gradient) == set(trainer.task_vector())
    assert gradient.norm() > 0
    assert not gradient["embeddings.mask_token"].any()  # which is not read
    (entry,) = (entry for entry in trainer.state.log_history if "cosine_to_vector" in entry)
    assert entry["cosine_to_vector"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_take_the_steps_of_one(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    script, data = Path(__file__).parent / "scripts" / "train_colours.py", save_colour_dataset(tmp_path / "colours")
    for count in (1, 2):  # by plain descent: AdamW makes steps of the rounding of a key's bias, whose gradient is 0
        words = [str(tmp_path / str(count)), "--optim", "sgd", "--batch", str(16 // count)]
        in_processes(script, folders[kind], data, *words, count=count)
    one, two = (TaskVector.from_pretrained(tmp_path / str(count) / "final") for count in (1, 2))
    assert float((one - two).norm()) < 1e-5 * float(one.norm())


# -- the head ---------------------------------------------------------------------------------------------------------


def separable(labels: list[int]) -> PixelDataset:
    """Images whose three channels tell the class, with a little noise."""
    pixels = np.random.default_rng(0).integers(0, 60, (len(labels), 3, 32, 32), dtype=np.uint8)
    for row, label in enumerate(labels):
        pixels[row, label] += 150
    return PixelDataset(pixels, labels)


@pytest.mark.parametrize("present", [[0, 1, 2], [0, 2]])
def test_a_head_is_fitted_to_the_classes_that_there_are(folders: dict[str, Path], present: list[int]) -> None:
    base, images = loaded(folders["vit"]), separable([present[row % len(present)] for row in range(60)])
    head = fit_head(base, colours_task(), images)
    assert head.weight.shape == (3, 32)
    assert head.train_accuracy == head.held_out_accuracy == 1.0
    assert head.regularisation in STRENGTHS
    features = base.model(Normalize(base)(torch.from_numpy(images.pixels))).last_hidden_state[:, 0]
    assert torch.equal(head.logits(features).argmax(dim=-1), images.labels)
    assert set(head.logits(features).softmax(dim=-1)[:, present].sum(dim=-1).gt(0.99).tolist()) == {True}


def test_two_fits_are_equal_and_each_is_told(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    base, images = loaded(folders["vit"]), separable([row % 3 for row in range(30)])
    with caplog.at_level(logging.INFO, logger="hf_taskvec.models.linear"):
        first, second = (fit_head(base, colours_task(), images).facts() for _ in range(2))
    assert first == second
    assert "30 images, regularisation 1, accuracy 100.0 % on them, 100.0 % on a fifth held out" in caplog.text


def test_the_probability_of_a_head_is_that_of_a_logistic_regression(folders: dict[str, Path]) -> None:
    base, images = loaded(folders["vit"]), separable([row % 3 for row in range(60)])
    head = fit_head(base, colours_task(), images)
    with torch.no_grad():
        features = base.model(Normalize(base)(torch.from_numpy(images.pixels))).last_hidden_state[:, 0].double()
    deviation = features.std(dim=0, correction=0)
    weight = (head.weight.double() * deviation).requires_grad_()  # on standardised features
    loss = torch.nn.functional.cross_entropy(
        (features - features.mean(dim=0)) / deviation @ weight.T
        + head.bias
        + head.weight.double() @ features.mean(dim=0),
        images.labels,
    )
    (loss + head.regularisation / 2 * weight.square().sum()).backward()
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-3  # it is where the penalised loss is least


def test_heads_lie_where_they_are_wanted_and_are_read_from_there(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, task = load_base(folders["vit"], heads=tmp_path / "heads"), colours_task()
    before = evaluate(base, [task])
    assert sorted(path.name for path in (tmp_path / "heads" / "colours").iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    told = json.loads((tmp_path / "heads" / "colours" / CONFIG_FILE).read_text())
    assert (told["class_names"], told["num_images"], told["base"]) == (["red", "green", "blue"], 81, "vit")
    monkeypatch.setattr(linear, "fit_head", None)
    edited = TaskVector.from_models(base, moved(base.model)).apply_to(load_base(folders["vit"], heads=base.heads))
    assert evaluate(base, [task]).accuracy == before.accuracy
    assert evaluate(edited, [task]).results[0].num_images == 30


def test_a_corrupted_task_has_the_head_of_the_task_as_it_was(folders: dict[str, Path]) -> None:
    base, task = loaded(folders["vit"]), COUNTS
    clean, corrupted = linear_head(base, task), corrupt(task, "contrast", 5)
    assert linear_head(base, corrupted).facts() == clean.facts()
    assert linear_head(base, corrupt(corrupted, "pixelate", 5)).facts() == clean.facts()


def test_a_task_that_trains_on_its_validation_part_has_the_head_that_it_is_judged_by(folders: dict[str, Path]) -> None:
    base = loaded(folders["vit"])
    assert linear_head(base, subset(COUNTS, train_on="validation")).facts() == linear_head(base, COUNTS).facts()


def test_fewer_test_images_leave_the_head_as_it_is(folders: dict[str, Path]) -> None:
    base, task = loaded(folders["vit"]), COUNTS
    assert linear_head(base, subset(task, max_test=5)).facts() == linear_head(base, task).facts()
    assert linear_head(base, subset(task, max_train=50)).num_images == 50


def test_a_damaged_head_in_the_cache_is_fitted_anew_and_told(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(linear, "cache_folder", lambda: tmp_path)
    base, task = loaded(folders["vit"]), colours_task()
    right = linear_head(base, task).facts()
    (weights,) = tmp_path.rglob(WEIGHTS_FILE)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert linear_head(base, task).facts() == right
    assert "holds no linear head that can be read: not what was written; it is fitted anew" in caplog.text


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(folders: dict[str, Path], tmp_path: Path) -> tuple[Base, LinearHead]:
    base = load_base(folders["vit"], heads=tmp_path / "heads")
    return base, linear_head(base, colours_task())


def test_a_head_of_other_classes_is_refused_by_name(kept: tuple[Base, LinearHead]) -> None:
    base, _ = kept
    more = dataclasses.replace(colours_task(), class_names=("red", "green", "blue", "grey"))
    with pytest.raises(DataError, match="has 3 classes, task 'colours' has 4"):
        linear_head(base, more)
    other = dataclasses.replace(colours_task(), class_names=("red", "grass", "blue"))
    with pytest.raises(DataError, match=r"class 1 of the head in .* is 'green', that of task 'colours' is 'grass'"):
        linear_head(base, other)


def test_a_head_of_another_base_is_refused_by_name(
    kept: tuple[Base, LinearHead], folders: dict[str, Path], tmp_path: Path
) -> None:
    base, _ = kept
    for other in (load_base(save_backbone(tmp_path / "b", "vit", seed=1)), loaded(folders["dinov2"])):
        with pytest.raises(BaseMismatchError, match=r"fitted on the features of 'vit' \(.*other weights"):
            evaluate(dataclasses.replace(other, heads=base.heads), [colours_task()])


def test_a_damaged_head_in_a_folder_of_the_user_is_refused(kept: tuple[Base, LinearHead]) -> None:
    base, _ = kept
    (Path(base.heads or "") / "colours" / WEIGHTS_FILE).unlink()
    with pytest.raises(CheckpointError, match="holds no linear head that can be read"):
        evaluate(base, [colours_task()])


@pytest.mark.parametrize("way", ["save_checkpoint", "save_pretrained", "save_model"])
def test_a_base_plus_a_vector_gets_no_head_of_its_own(folders: dict[str, Path], tmp_path: Path, way: str) -> None:
    base, out = loaded(folders["vit"]), tmp_path / "out"
    vector = TaskVector.from_models(base, moved(base.model))
    if way == "save_checkpoint":
        vector.save_checkpoint(folders["vit"], out)
    elif way == "save_pretrained":
        vector.apply_to(base).save_pretrained(out)
    else:
        trained(base, tmp_path / "run").save_model(str(out))
    with pytest.raises(CheckpointError, match=r"'out' is a base plus a vector.*load that base and add the vector"):
        evaluate(load_base(out), [colours_task()])


def test_a_saved_base_is_a_base(folders: dict[str, Path], tmp_path: Path) -> None:
    base = loaded(folders["vit"])
    base.save_pretrained(tmp_path / "out")
    again = load_base(tmp_path / "out")
    assert evaluate(again, [colours_task()]).accuracy == evaluate(base, [colours_task()]).accuracy


def test_training_images_of_one_class_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="the training part of 'colours' holds images of one class"):
        fit_head(loaded(folders["vit"]), colours_task(), separable([1] * 10))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"include_projection": True}, "include_projection cannot be set for 'vit', a vit with linear heads"),
        ({"tangent": True, "pull_to_base": 0.1}, "tangent, pull_to_base cannot"),
        ({"peft_config": object()}, "peft_config cannot"),
    ],
)
def test_settings_without_a_place_are_named(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    more = {"peft_config": changes.pop("peft_config")} if "peft_config" in changes else {}
    with pytest.raises(ValueError, match=named):
        TaskVectorTrainer(loaded(folders["vit"]), settings(tmp_path, **changes), task=colours_task(), **more)


def test_what_needs_a_text_tower_says_so_before_an_image_is_read(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "_open_pixels", None)
    base, task = loaded(folders["vit"]), colours_task()
    vector = TaskVector.from_models(base, moved(base.model), info=VectorInfo(task="colours"))
    calls = {
        "zero-shot": lambda: ImageClassifier(base, task),
        "encode_text": lambda: base.encode_text(["a photo"]),
        "joint training": lambda: JointTrainer(base, settings(tmp_path), tasks=[task]),
        "gradient_vector": lambda: gradient_vector(base, task, learning_rate=0.1),
        "verify_equivalence": lambda: verify_equivalence(base, task),
        "collect_statistics": lambda: collect_statistics(base, task),
        "surgery": lambda: surgery(base, base, [vector], [task]),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"needs a CLIP or SigLIP, and 'vit' \(vit\) has no text tower") as refused:
            call()
        assert str(refused.value).startswith("learning from images" if name == "surgery" else name)
    with pytest.raises(ValueError, match="heads is for a ViT or DINOv2"):
        load_base(heads=tmp_path)


def test_another_model_on_the_backbone_is_refused(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "vit", "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["ViTForMaskedImageModeling"]}))
    with pytest.raises(CheckpointError, match="must be a ViTModel or ViTForImageClassification, its configuration"):
        load_base(folder)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "vit", "vit")
    rewrite_weights(folder, {"layernorm.weight": None})
    with pytest.raises(CheckpointError, match=r"does not fit ViTModel; missing keys: layernorm\.weight"):
        load_base(folder)
    rewrite_weights(folder, {"layernorm.weight": torch.ones(32), "surplus": torch.ones(1)})
    with pytest.raises(CheckpointError, match="unexpected keys: surplus"):
        load_base(folder)
