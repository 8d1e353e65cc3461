"""What gives a base features: losses on images alone, coarse captions, images without labels, never a test image."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretraining.captions import coarse_caption, source_of, subject
from pretraining.descriptors import CELLS, ORIENTATIONS, descriptors
from pretraining.losses import view_loss
from pretraining.pairs import Pairs, image_processor
from pretraining.run import pretrain
from pretraining.sources import Sources, describe, gather_pairs, pixel_hash, refuse_held_out, task_pixels
from torch.nn.functional import cross_entropy, normalize
from transformers import CLIPModel

from hf_taskvec import get_task
from hf_taskvec.errors import DataError
from tests.pairs import FEATURES

SHAPES, PATTERNS = get_task("shapes"), get_task("patterns")


def test_loss_of_two_views_is_simclr() -> None:
    views = normalize(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    logits = (views @ views.T / 0.5).fill_diagonal_(-torch.inf)
    expected = cross_entropy(logits, torch.arange(8).roll(4))  # each view's other view is its only positive
    torch.testing.assert_close(view_loss(views, torch.arange(4).repeat(2), temperature=0.5), expected)


def test_every_view_of_a_group_is_a_positive_and_a_lone_view_has_no_say() -> None:
    views = normalize(torch.randn(4, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    logits = (views @ views.T / 0.2).fill_diagonal_(-torch.inf).log_softmax(dim=1)
    expected = -((logits[0, 1] + logits[0, 2]) + (logits[1, 0] + logits[1, 2]) + (logits[2, 0] + logits[2, 1])) / 2 / 3
    torch.testing.assert_close(view_loss(views, torch.tensor([7, 7, 7, 3]), temperature=0.2), expected)


def test_descriptor_tells_the_direction_of_an_edge_whatever_its_sign_and_contrast() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[..., 15:] = 0.8  # the gradient points across
    edges = CELLS * CELLS * ORIENTATIONS
    across, negative, faint = (descriptors(pixels)[0, :edges] for pixels in (image, 0.8 - image, 0.5 + image / 4))
    by_bin = across.view(ORIENTATIONS, CELLS, CELLS)
    assert by_bin[0].sum() > 0
    assert by_bin[1:].sum() == pytest.approx(0, abs=1e-4)
    assert by_bin[0, :, [0, 1, 6, 7]].sum() == 0
    torch.testing.assert_close(negative, across, atol=1e-4, rtol=0)
    torch.testing.assert_close(faint, across, atol=0.05, rtol=0)
    turned = descriptors(image.transpose(2, 3))[0, :edges].view(ORIENTATIONS, CELLS, CELLS)
    torch.testing.assert_close(turned[ORIENTATIONS // 2], by_bin[0].T)


def test_descriptor_is_finite_on_a_flat_image_and_holds_its_colour() -> None:
    values = descriptors(torch.full((1, 3, 32, 32), 0.25))[0]
    assert values.isfinite().all()
    assert values[: CELLS * CELLS * ORIENTATIONS].abs().max() == 0
    torch.testing.assert_close(values[CELLS * CELLS * ORIENTATIONS :], torch.full((48,), 0.25))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a doodle of a rainbow", "rainbow"),
        ("a rainbow drawn by hand", "rainbow"),
        ("a rainbow", "rainbow"),
        ("the number two written by hand", "two"),
        ("the handwritten digit two", "two"),
        ("a white handwritten two on black", "two"),
        ("a handwritten two", "two"),
        ("sea or lake seen from space", "sea or lake"),
        ("a satellite photo showing sea or lake", "sea or lake"),
        ("a pullover, a piece of clothing", "pullover"),
        ("a grey picture of a pullover", "pullover"),
        ("a small catalogue photo of an ankle boot", "ankle boot"),
        ("a close photo of a crab", "crab"),
        ("a German traffic sign, stop sign", "stop sign"),
        ("a stop sign on the road", "stop sign"),
        ("a close up of a traffic sign: stop sign", "stop sign"),
        ("a blurry picture of a ship", "ship"),
        ("an emoji of the flag of Zambia", "flag of Zambia"),
        ("the flag of Zambia", "flag of Zambia"),
    ],
)
def test_subject_is_the_same_in_every_sentence(caption: str, expected: str) -> None:
    assert subject(caption) == expected


def test_coarse_captions_tell_no_class_and_leave_the_subject_known() -> None:
    texts = ["a handwritten two", "the handwritten digit nine", "an emoji of a ship"]
    pairs = Pairs(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), texts, ["mnist_1.png", "mnist_2.png", "noto_1F.jpg"])
    coarse = describe(pairs, replace(FEATURES, fine_captions=0.0))
    assert coarse.texts == ["a handwritten digit", "a handwritten digit", "an emoji of a ship"]
    assert coarse.subjects == ["two", "nine", "ship"]
    assert describe(pairs, FEATURES).texts == texts


def test_sources_and_coarse_captions_go_by_name() -> None:
    assert source_of("fashion_mnist_3_8795.png") == "fashion_mnist"
    assert source_of("mnist_1.png") == "mnist"
    assert source_of("noto_1F986.jpg") == ""
    assert coarse_caption("fashion-mnist") == "a grey picture of a piece of clothing"
    assert coarse_caption("quickdraw5") == "a quick drawing"
    assert coarse_caption("dsprites") == "an image"


def test_a_test_image_is_refused_by_its_row_and_hash() -> None:
    processor = image_processor(32)
    image = task_pixels(SHAPES, "test", processor)[5]
    pairs = Pairs(torch.stack([torch.zeros_like(image), image]), ["a", "b"])
    with pytest.raises(DataError, match=rf"row 1 of my pairs .*{pixel_hash(image)}.* row 5 of test of 'shapes'"):
        refuse_held_out({"my pairs": pairs}, [PATTERNS, SHAPES], processor)


def test_a_validation_image_is_refused_too() -> None:
    processor = image_processor(32)
    pairs = Pairs(task_pixels(SHAPES, "validation", processor)[:1], ["a"])
    with pytest.raises(DataError, match="row 0 of validation of 'shapes'"):
        refuse_held_out({"my pairs": pairs}, [SHAPES], processor)


def test_unlabelled_images_are_the_training_part_and_equal_ones_count_once() -> None:
    once = gather_pairs(Sources(unlabelled=[SHAPES]), FEATURES)
    assert len(once.pairs) + once.duplicates == len(SHAPES.load("train"))
    assert set(once.pairs.texts) == {"an image"}
    assert set(once.pairs.subjects or []) == {""}
    twice = gather_pairs(Sources(generated=20), FEATURES)
    assert (len(twice.pairs), twice.duplicates) == (20, 0)


def test_equal_images_are_left_out_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 3, 32, 32)[[0, 1, 0, 2, 1]].contiguous()
    monkeypatch.setattr("pretraining.sources.load_pairs", lambda *_: Pairs(pixels, list("abcde"), [""] * 5))
    gathered = gather_pairs(Sources(["folder"]), FEATURES)
    assert gathered.duplicates == 2
    assert gathered.pairs.texts == ["a", "b", "d"]


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to pretrain on"):
        gather_pairs(Sources(), FEATURES)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_features_run_saves_a_clip_without_its_heads(precision: str, tmp_path: Path) -> None:
    config = replace(FEATURES, precision=precision, attention="eager", patch_dropout=0.25)
    pretrain(Sources(generated=16, unlabelled=[SHAPES], held_out=[PATTERNS]), config=config, output_dir=str(tmp_path))
    _, loading = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading.values())
    log = json.loads((tmp_path / "training_log.json").read_text())
    assert (log["unlabelled_tasks"], log["held_out_tasks"]) == (["shapes"], ["patterns"])
    assert log["pairs"] + log["duplicates_left_out"] == 16 + len(SHAPES.load("train"))
    assert math.isfinite(log["stages"][0]["config"]["view_weight"])
    assert "attn" not in (tmp_path / "config.json").read_text()
