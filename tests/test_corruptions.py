"""Corrupted tasks: the same images every time, stronger with the strength, labels and sizes as they were."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from numpy.random import RandomState
from PIL import Image as PILImage

from hf_taskvec import Task, VectorInfo, evaluate, get_task, load_base
from hf_taskvec.errors import DataError, UnknownNameError
from hf_taskvec.tasks import corrupt, corruption_suite
from hf_taskvec.tasks.distortions import KINDS, STRENGTHS, distort
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.tasks.subsets import subset

NOISES = ("impulse_noise", "gaussian_noise")


def picture(side: int, *, other: int | None = None) -> PILImage.Image:
    """Smooth colours with an edge."""
    rows, columns = np.mgrid[: other or side, :side] / side
    colours = [127 + 90 * np.sin(7 * rows), 255 * columns, 200 * (rows + columns > 1)]
    return PILImage.fromarray(np.stack(colours, axis=-1).clip(0, 255).astype(np.uint8))


def distance(image: PILImage.Image, kind: str, strength: int, *, seed: int = 0) -> float:
    changed = np.asarray(distort(image, kind, strength, random=RandomState(seed)), float)
    return float(np.sqrt(np.mean((changed - np.asarray(image, float)) ** 2)))


@pytest.mark.parametrize("side", [28, 64, 224])
@pytest.mark.parametrize("kind", KINDS)
def test_a_higher_strength_is_farther_from_the_clean_image(kind: str, side: int) -> None:
    image = picture(side)
    far = [np.mean([distance(image, kind, strength, seed=seed) for seed in range(3)]) for strength in STRENGTHS]
    assert far[-1] > far[0] > 0
    if kind in (*NOISES, "contrast"):  # of the others the authors' constants trade one length for another
        assert far == sorted(far)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "LA", "RGBA", "1"])
def test_size_and_dtype_stay_whatever_the_image(kind: str, mode: str) -> None:
    image = picture(33, other=20).convert(mode)
    for strength in STRENGTHS:
        changed = distort(image, kind, strength, random=RandomState(0))
        assert (changed.mode, changed.size) == ("RGB", (33, 20))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (300, 3)])
def test_tiny_and_long_images_are_corrupted_too(kind: str, size: tuple[int, int]) -> None:
    for colour in (0, 255):
        assert distort(PILImage.new("RGB", size, (colour,) * 3), kind, 5, random=RandomState(1)).size == size


@pytest.mark.parametrize("side", [32, 224])
def test_noises_have_the_authors_amounts(side: int) -> None:
    grey = PILImage.new("RGB", (side, side), (127, 127, 127))
    deviations = {32: (0.04, 0.10), 224: (0.08, 0.38)}[side]
    shares = {32: (0.01, 0.07), 224: (0.03, 0.27)}[side]
    for strength, deviation, share in zip((1, 5), deviations, shares, strict=True):
        noisy = np.asarray(distort(grey, "gaussian_noise", strength, random=RandomState(0)), float) / 255
        assert noisy.std() == pytest.approx(deviation, rel=0.2)  # what leaves the range is cut off
        salted = np.asarray(distort(grey, "impulse_noise", strength, random=RandomState(0)))
        assert np.mean(salted != 127) == pytest.approx(share, rel=0.25)
        assert set(np.unique(salted)) <= {0, 127, 255}


def test_contrast_pixels_and_blur_are_those_of_the_definition() -> None:
    image = picture(224)
    pixels = np.asarray(image, float)
    changed = np.asarray(distort(image, "contrast", 2, random=RandomState(0)), float)
    mean = pixels.mean(axis=(0, 1))
    np.testing.assert_allclose(changed, (pixels - mean) * 0.3 + mean, atol=1.01)
    blocks = np.asarray(distort(image, "pixelate", 2, random=RandomState(0)))
    assert np.array_equal(blocks[::2, ::2], blocks[1::2, 1::2])  # half the side is left
    point = PILImage.new("L", (224, 224))
    point.putpixel((112, 112), 255)
    tail = np.asarray(distort(point, "motion_blur", 1, random=RandomState(0)))[..., 0]
    rows, columns = np.nonzero(tail)
    assert len(columns) <= 21  # twice the radius and one
    assert tail[112, 112] == tail.max()
    assert np.ptp(rows) <= np.ptp(columns) > 5  # within 45 degrees of the horizontal
    flat = PILImage.new("RGB", (40, 40), (10, 20, 30))
    assert np.ptp(np.asarray(distort(flat, "motion_blur", 5, random=RandomState(0))).reshape(-1, 3), axis=0).max() <= 1


def test_water_lightens_and_mud_browns() -> None:
    grey = PILImage.new("RGB", (224, 224), (100, 100, 100))
    water = np.asarray(distort(grey, "spatter", 1, random=RandomState(0)), int)
    assert (water >= 99).all()
    assert (water[..., 2] >= water[..., 0]).all()
    assert 0.005 < np.mean(water[..., 2] > 102) < 0.5
    mud = np.asarray(distort(grey, "spatter", 5, random=RandomState(0)), int)
    assert (mud <= 100).all()
    assert mud.min(axis=(0, 1)).tolist() == pytest.approx([63, 42, 20], abs=6)


# -- tasks ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> Task:
    return subset(get_task("digits"), max_test=12, max_validation=6, max_train=5)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_stay_and_images_change_the_same_way_every_time(digits: Task, kind: str) -> None:
    clean, first, again = (task.load("test") for task in (digits, corrupt(digits, kind, 5), corrupt(digits, kind, 5)))
    assert first["label"][:] == clean["label"][:]
    assert first.features == clean.features
    pairs = list(zip(clean["image"], first["image"], again["image"], strict=True))
    assert all(np.array_equal(np.asarray(one), np.asarray(two)) for _, one, two in pairs)
    assert all(one.size == before.size for before, one, _ in pairs)
    assert any(not np.array_equal(np.asarray(before.convert("RGB")), np.asarray(one)) for before, one, _ in pairs)


def test_an_image_meets_the_same_chance_in_every_subset(digits: Task) -> None:
    whole = corrupt(digits, "gaussian_noise", 4)
    few = subset(whole, max_test=4)
    assert few.name == "digits-gaussian_noise-4"
    by_hand = corrupt(subset(digits, max_test=4), "gaussian_noise", 4).load("test")
    images = {np.asarray(image).tobytes() for image in whole.load("test")["image"]}
    assert len(few.load("test")) == 4
    for one, two in zip(few.load("test")["image"], by_hand["image"], strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(two))
        assert np.asarray(one).tobytes() in images
    other = corrupt(digits, "gaussian_noise", 4, seed=1).load("test")
    assert not {np.asarray(image).tobytes() for image in other["image"]} & images


def test_a_corrupted_task_is_evaluated_and_told(digits: Task, caplog: pytest.LogCaptureFixture) -> None:
    base, task = load_base(), corrupt(digits, "contrast", 5)
    report = evaluate(base, [digits, task], progress=False)
    assert [result.task for result in report.results] == ["digits", "digits-contrast-5"]
    clean, grey = (load_pixels(one, "test", base.processor.image_processor).pixels for one in (digits, task))
    assert grey.std() < 0.5 * clean.std()
    info = VectorInfo(**task.provenance())
    assert info.task == "digits-contrast-5"
    told = {"corruption": "contrast", "corruption_strength": 5, "corruption_seed": 0}
    assert info.data_settings == {**digits.data_settings(), **told}
    with caplog.at_level(logging.WARNING):
        assert type(Task.from_info(info)) is Task
    assert "were corrupted (contrast at strength 5)" in caplog.text


def test_a_suite_has_every_corruption_at_every_strength() -> None:
    suite = corruption_suite("digits")
    assert len({task.name for task in suite}) == len(KINDS) * len(STRENGTHS) == 35
    assert {(task.kind, task.strength) for task in suite} == {(kind, s) for kind in KINDS for s in STRENGTHS}


def test_bad_input_is_refused(digits: Task) -> None:
    with pytest.raises(UnknownNameError, match="gaussian_noise"):
        corrupt(digits, "gausian_noise")
    for strength in (0, 6, 2.5, True, "3"):
        with pytest.raises(ValueError, match="strength must be a whole number from 1 to 5"):
            corrupt(digits, "contrast", strength)  # type: ignore[arg-type]
    for seed in (-1, 0.5, True, 1 << 64):
        with pytest.raises(ValueError, match="seed"):
            corrupt(digits, "contrast", seed=seed)  # type: ignore[arg-type]
    assert corrupt(digits, "contrast", seed=np.int64(1)).seed == 1
    with pytest.raises(ValueError, match="train_seed must be a whole number"):
        subset(digits, train_seed=-1)
    with pytest.raises(UnknownNameError, match="digits"):
        corrupt("digit", "contrast")
    with pytest.raises(ValueError, match="several tasks"):
        corrupt("mini", "contrast")
    with pytest.raises(ValueError, match="at least"):
        corruption_suite(digits, strengths=[])


def test_images_that_do_not_decode_are_left_out_or_named(tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    picture(32).save(good)
    (tmp_path / "bad.png").write_bytes(b"no image")
    paths = [str(good), str(tmp_path / "bad.png")] * 4
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    data = Dataset.from_dict({"image": paths, "label": [0, 0, 1, 1] * 2}, features=features)
    processor = load_base().processor.image_processor
    for skip in (True, False):
        task = Task.from_dataset({"train": data, "test": data}, name="own", skip_broken=skip)
        corrupted = corrupt(task, "contrast")
        if skip:
            assert load_pixels(corrupted, "test", processor).skipped == (1, 3, 5, 7)
        else:
            with pytest.raises(DataError, match="row 1 of own-contrast-3"):
                load_pixels(corrupted, "test", processor)
