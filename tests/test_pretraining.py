"""Pretraining: the loss against its definition, exact resuming, balance, augmentation, the saved folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from pretraining import state
from pretraining.build import build_model, train_tokenizer
from pretraining.config import PretrainingConfig
from pretraining.losses import contrastive_loss
from pretraining.pairs import augment, balance, decode_pairs, image_processor
from pretraining.run import pretrain, running_base
from pretraining.sources import Sources
from transformers import CLIPModel, CLIPProcessor

from hf_taskvec.errors import CheckpointError, DataError, UnknownNameError
from tests.pairs import COLOURS, FEATURES, TINY, toy_folder, toy_pairs, toy_trainer


def test_loss_is_clip_when_no_caption_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 5, 8, generator=generator), dim=-1)
    logits = 10 * image @ text.T
    labels = torch.arange(5)
    expected = (
        torch.nn.functional.cross_entropy(logits, labels) + torch.nn.functional.cross_entropy(logits.T, labels)
    ) / 2
    torch.testing.assert_close(contrastive_loss(image, text, labels, torch.tensor(10.0)), expected)


def test_loss_on_unique_captions_equals_repeated_captions_as_positives() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(6, 8, generator=generator), dim=-1)
    text = torch.nn.functional.normalize(torch.randn(3, 8, generator=generator), dim=-1)
    caption = torch.tensor([0, 0, 1, 2, 2, 2])
    logits = 10 * image @ text[caption].T  # the whole batch, (6, 6)
    positive = caption[:, None] == caption[None, :]
    to_text = -logits.log_softmax(dim=1).masked_fill(~positive, -torch.inf).logsumexp(dim=1).mean()
    soft = positive / positive.sum(dim=1, keepdim=True)
    to_image = -(soft * logits.T.log_softmax(dim=1)).sum(dim=1).mean()
    loss = contrastive_loss(image, text, caption, torch.tensor(10.0))
    torch.testing.assert_close(loss, (to_text + to_image) / 2)


@pytest.mark.parametrize("config", [TINY, FEATURES], ids=["captions", "features"])
def test_resumed_run_equals_the_uninterrupted_one(config: PretrainingConfig, tmp_path: Path) -> None:
    whole = toy_trainer(tmp_path / "whole", config)
    whole.train()
    killed = toy_trainer(tmp_path / "killed", config)
    killed.train(stop_at=4)
    resumed = toy_trainer(tmp_path / "killed", config)
    assert resumed.resume()
    assert resumed.step == 4
    resumed.train()
    for name, value in whole.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name
        assert torch.equal(whole.average[name], resumed.average[name]), name
    assert resumed.log == whole.log


@pytest.mark.parametrize("when", ["save_file", "write_json"])
def test_a_kill_while_a_state_is_written_leaves_the_former(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    trainer = toy_trainer(tmp_path)
    trainer.train(stop_at=3)
    monkeypatch.setattr(state, when, die)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    monkeypatch.undo()
    resumed = toy_trainer(tmp_path)
    assert resumed.resume()
    assert resumed.step == 3


def test_a_constant_schedule_can_be_lengthened_before_its_decay(tmp_path: Path) -> None:
    toy_trainer(tmp_path, FEATURES).train(stop_at=3)
    assert toy_trainer(tmp_path, replace(FEATURES, steps=12)).resume()
    with pytest.raises(CheckpointError, match=r"other settings: \{'steps': 6\}"):
        toy_trainer(tmp_path, replace(FEATURES, steps=3)).resume()


def test_constant_schedule_warms_up_stays_and_falls_to_nothing() -> None:
    config = replace(TINY, steps=10, warmup_steps=4, decay_share=0.2)
    assert [config.learning_rate_factor(step) for step in range(11)] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.5, 0]


def test_fewer_images_than_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="24 pairs are fewer than a batch of 25"):
        toy_trainer(tmp_path, replace(TINY, batch_size=25))


def test_an_unfinished_run_opens_as_its_average(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, FEATURES)
    trainer.module.clip.config.save_pretrained(tmp_path)
    trainer.train(stop_at=3)
    for name, value in running_base(str(tmp_path)).state_dict().items():
        assert torch.equal(value, trainer.average[f"clip.{name}"]), name


def test_patch_dropout_keeps_the_class_token_and_whole_patches(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, replace(TINY, patch_dropout=0.5))
    tokens = torch.arange(2 * 5, dtype=torch.float32).view(2, 5, 1).expand(-1, -1, 7)
    kept = trainer.module._drop_patches(None, None, tokens)
    assert kept.shape == (2, 3, 7)
    assert kept[:, 0, 0].tolist() == [0, 5]
    for row, image in zip(kept, tokens, strict=True):
        values = row[:, 0].tolist()
        assert len(set(values)) == 3
        assert set(values) <= set(image[:, 0].tolist())


def test_resuming_refuses_other_settings(tmp_path: Path) -> None:
    toy_trainer(tmp_path).train(stop_at=3)
    other = replace(TINY, learning_rate=0.5)
    with pytest.raises(CheckpointError, match="other settings"):
        toy_trainer(tmp_path, other).resume()


def test_pretrained_folder_loads_offline_and_knows_its_captions(tmp_path: Path) -> None:
    source = toy_folder(tmp_path / "pairs")
    config = replace(TINY, steps=60, template_probability=0.2, ema_decay=0.9)
    figures = pretrain(Sources([source]), config=config, output_dir=str(tmp_path / "out"))
    model = CLIPModel.from_pretrained(tmp_path / "out")
    processor = CLIPProcessor.from_pretrained(tmp_path / "out")
    inputs = processor(
        text=list(COLOURS),
        images=[PILImage.new("RGB", (50, 50), c) for c in COLOURS.values()],
        return_tensors="pt",
        padding=True,
    )
    assert inputs["pixel_values"].shape == (3, 3, 32, 32)
    with torch.no_grad():
        logits = model.float()(**inputs).logits_per_image
    assert logits.argmax(dim=1).tolist() == [0, 1, 2]
    assert figures == {"pairs": 1.0}
    assert json.loads((tmp_path / "out" / "training_log.json").read_text())["recall_at_5"] == figures


def test_text_is_pooled_at_its_end(tmp_path: Path) -> None:  # eos id 2 would select CLIP's legacy argmax rule
    tokenizer = train_tokenizer(list(COLOURS), TINY)
    model = build_model(TINY, tokenizer).eval()
    alone = tokenizer(["a red square"], return_tensors="pt")
    padded = tokenizer(["a red square", "a very long photo of a blue square"], padding=True, return_tensors="pt")
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id != 2
    with torch.no_grad():
        expected = model.get_text_features(**alone).pooler_output[0]
        torch.testing.assert_close(model.get_text_features(**padded).pooler_output[0], expected)


def test_balance_caps_each_caption() -> None:
    pairs = balance(toy_pairs(24), 5, seed=0)
    assert {text: pairs.texts.count(text) for text in COLOURS} == dict.fromkeys(COLOURS, 5)
    for pixel, text in zip(pairs.pixels[:, :, 0, 0].tolist(), pairs.texts, strict=True):
        assert tuple(pixel) == COLOURS[text]


def test_augmentation_keeps_range_and_repeats_by_seed() -> None:
    pixels = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    first, second = (augment(pixels, 1.0, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.min() >= 0
    assert first.max() <= 1
    assert not torch.allclose(first, pixels, atol=0.05)


def test_augmentation_of_strength_zero_changes_nothing() -> None:
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(augment(pixels, 0.0, torch.Generator().manual_seed(0)), pixels, atol=1e-4, rtol=0)


def test_missing_column_is_named() -> None:
    dataset = Dataset.from_dict({"image": [PILImage.new("RGB", (4, 4))], "caption": ["x"]})
    with pytest.raises(UnknownNameError, match="text"):
        decode_pairs(dataset, image_processor(32))


def test_broken_image_is_an_error() -> None:
    features = Features({"image": Image(), "text": Value("string")})
    dataset = Dataset.from_dict({"image": [{"bytes": b"no image", "path": None}], "text": ["x"]}, features=features)
    with pytest.raises(DataError, match="does not decode"):
        decode_pairs(dataset, image_processor(32))


def test_images_are_resized_and_cropped_once_to_uint8() -> None:
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, 40:] = 255
    pairs = decode_pairs(Dataset.from_dict({"image": [PILImage.fromarray(image)], "text": ["x"]}), image_processor(32))
    assert pairs.pixels.shape == (1, 3, 32, 32)
    assert pairs.pixels.dtype == torch.uint8
    assert pairs.pixels[0, 0, :, 2].max() == 0
    assert pairs.pixels[0, 0, :, -2].min() == 255


def test_a_run_stops_when_its_time_is_over_and_goes_on(tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path)
    trainer.train(minutes=0.0)
    assert trainer.step == 0
    assert not (tmp_path / "state").exists()
    trainer.train(stop_at=2)
    resumed = toy_trainer(tmp_path)
    assert resumed.resume()
    assert resumed.step == 2
