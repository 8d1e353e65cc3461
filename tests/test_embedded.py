"""The embedded bases, alone and on real data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPProcessor

from hf_taskvec import TaskVectorConfig, TaskVectorTrainer, evaluate, get_task, get_tasks, load_base
from hf_taskvec.models.base import EMBEDDED_BASES
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.training.run import train_vector

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "datasets"
EIGHT = ["mnist", "fashion-mnist", "cifar10", "eurosat", "gtsrb", "flowers5", "quickdraw5", "plantvillage-apple"]
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real datasets are not on this machine")


def test_it_is_small_and_no_file_of_it_can_run_code() -> None:  # as a pickle could, when it is loaded
    files = [path for folder in EMBEDDED_BASES.values() for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}


@pytest.mark.parametrize("name", EMBEDDED_BASES)
def test_it_loads_like_any_other_clip(name: str) -> None:
    folder = EMBEDDED_BASES[name]
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    image = torch.zeros(3, 40, 32, dtype=torch.uint8)
    inputs = processor(text=["a photo of a cat.", "a red circle"], images=image, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs.to(model.dtype)).logits_per_image
    assert logits.shape == (1, 2)
    assert logits.isfinite().all()


def test_it_tells_the_embedded_tasks_apart_better_than_chance() -> None:
    report = evaluate(load_base(), get_tasks("mini"))
    chance = sum(1 / len(task.class_names) for task in get_tasks("mini")) / 4
    assert report.accuracy > chance + 0.1


def test_one_epoch_on_digits_beats_zero_shot_clearly(tmp_path: Path) -> None:
    base, task = load_base(), get_task("digits")
    config = TaskVectorConfig(
        learning_rate=3e-4,
        per_device_train_batch_size=64,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        track_gradients=False,
        record_epochs=False,
    )
    vector = train_vector(base, task, config, output_dir=tmp_path / "digits", seed=0)
    assert evaluate(vector.apply_to(base), [task]).accuracy > evaluate(base, [task]).accuracy + 0.1


@pytest.mark.parametrize("name", EMBEDDED_BASES)
def test_its_card_comes_with_it_and_tells_the_terms_of_its_data(name: str) -> None:
    card = (ROOT / "hub_cards" / name.split("/")[1] / "README.md").read_text(encoding="utf-8")
    assert (EMBEDDED_BASES[name] / "README.md").read_text(encoding="utf-8") == card
    assert "| licence |" in card


@real_data
@pytest.mark.parametrize("name", EMBEDDED_BASES)
def test_its_card_tells_its_zero_shot_accuracy(name: str) -> None:
    card = json.loads((ROOT / "hub_cards" / name.split("/")[1] / "report.json").read_text())
    told = {result["task"]: result["accuracy"] for result in card["results"]}
    names = ["plantvillage-apple", "quickdraw5", "flowers5"]
    report = evaluate(load_base(name), get_tasks(names, data_dir=DATA))
    for result in report.results:
        assert result.accuracy == pytest.approx(told[result.task], abs=0.005)


@real_data
@pytest.mark.parametrize("name", EIGHT)
def test_every_real_task_splits_into_train_validation_and_test(name: str) -> None:
    task = get_task(name, data_dir=DATA)
    train, validation, test = (task.load(split) for split in ("train", "validation", "test"))
    assert len(validation) == round(0.1 * (len(train) + len(validation)))
    assert len(test) > 0
    assert len(task.class_names) == train.features["label"].num_classes


@real_data
def test_on_real_images_scaling_one_gives_the_fine_tuned_models_logits(tmp_path: Path) -> None:
    base, task = load_base(), get_task("plantvillage-apple", data_dir=DATA)
    config = TaskVectorConfig(output_dir=str(tmp_path), learning_rate=3e-4, disable_tqdm=True, save_strategy="no")
    trainer = TaskVectorTrainer(base, config, task=task)
    trainer.train()
    edited = trainer.task_vector().apply_to(base)
    batch = load_pixels(task, "test", base.processor.image_processor).__getitems__(range(64))
    with torch.no_grad():
        expected = trainer.model(batch["pixel_values"])["logits"]
        logits = ImageClassifier(edited, task)(batch["pixel_values"])["logits"]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert evaluate(edited, [task]).accuracy > evaluate(base, [task]).accuracy + 0.05
