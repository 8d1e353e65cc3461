"""Pixels: those of the model's own processor with all its switches, made once, and never taken from a damaged cache."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from copy import copy as copied
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from transformers import CLIPImageProcessorPil

from hf_taskvec import Base, evaluate, get_task, load_base
from hf_taskvec.errors import CheckpointError, DataError
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.tasks import Task, pixels
from hf_taskvec.tasks.cache import cache_folder
from hf_taskvec.tasks.pixels import load_pixels

RANDOM = np.random.RandomState(0)


@pytest.fixture
def base() -> Base:
    return load_base()


def encoded(image: PILImage.Image, kind: str = "png", **options: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def task_of(images: list[Any], **settings: Any) -> Task:
    """A task in memory whose test split holds the images."""
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    rows = {"image": images, "label": [row % 2 for row in range(len(images))]}
    train = {"image": [PLAIN] * 4, "label": [0, 1] * 2}
    splits = DatasetDict(
        train=Dataset.from_dict(train, features=features), test=Dataset.from_dict(rows, features=features)
    )
    return Task.from_dataset(splits, name="pets", **settings)


def with_processor(base: Base, **settings: Any) -> Base:
    """The base with other switches of its image processor."""
    fields = json.loads(base.processor.image_processor.to_json_string()) | settings
    processor = type(base.processor)(
        image_processor=CLIPImageProcessorPil(**fields), tokenizer=base.processor.tokenizer
    )
    return dataclasses.replace(base, processor=processor)


def ours(base: Base, task: Task) -> torch.Tensor:
    data = load_pixels(task, "test", base.processor.image_processor)
    return Normalize(base)(data.__getitems__(range(len(data)))["pixel_values"])


def noise(*shape: int, high: int = 256) -> np.ndarray:
    return RANDOM.randint(0, high, shape).astype(np.uint8)


PLAIN = encoded(PILImage.new("RGB", (40, 40), "red"))
PALETTE = PILImage.fromarray(noise(40, 40, 3)).convert("P")
MODES = {
    "RGB": encoded(PILImage.fromarray(noise(40, 50, 3))),
    "grey": encoded(PILImage.fromarray(noise(50, 40))),
    "one bit": encoded(PILImage.fromarray(noise(40, 40)).convert("1")),
    "RGBA": encoded(PILImage.fromarray(noise(45, 40, 4))),
    "grey with alpha": encoded(PILImage.fromarray(noise(40, 40, 2))),
    "palette": encoded(PALETTE),
    "palette with a clear colour": encoded(PALETTE, transparency=3),
    "palette with alphas": encoded(PALETTE, transparency=bytes(range(256))),
    "RGB with a clear colour": encoded(PILImage.new("RGB", (40, 40), (1, 2, 3)), transparency=(1, 2, 3)),
    "CMYK": encoded(PILImage.fromarray(noise(40, 40, 3)).convert("CMYK"), "jpeg"),
    "GIF": encoded(PALETTE, "gif"),
    "WebP with alpha": encoded(PILImage.fromarray(noise(40, 40, 4)), "webp", lossless=True),
    "one pixel": encoded(PILImage.new("RGB", (1, 1), "blue")),
    "a thin line": encoded(PILImage.fromarray(noise(3, 200, 3))),
}


def test_pixels_of_every_mode_are_the_processors_own(base: Base) -> None:
    task = task_of(list(MODES.values()))
    pixels = ours(base, task)
    for row, mode in enumerate(MODES):
        image = task.load("test")[row]["image"]
        expected = base.processor(images=[image], return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(pixels[row], expected, rtol=0, atol=1e-6, msg=mode)


@pytest.mark.parametrize(
    "switches",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
        {"do_center_crop": False},
        {"do_center_crop": False, "size": {"height": 24, "width": 32}},
        {"do_resize": False},
        {"do_resize": False, "do_center_crop": False},
        {"resample": 0},
        {"crop_size": {"height": 24, "width": 28}},
    ],
)
def test_pixels_follow_every_switch_of_the_processor(base: Base, switches: dict[str, Any]) -> None:
    changed = with_processor(base, **switches)
    images = [PILImage.fromarray(noise(40, 40, 3)) for _ in range(3)]
    expected = changed.processor(images=images, return_tensors="pt")["pixel_values"]
    pixels = ours(changed, task_of([encoded(image) for image in images]))
    torch.testing.assert_close(pixels, expected.float(), rtol=1e-6, atol=2e-6)


def test_a_processor_that_does_more_than_pixels_can_hold_is_refused(base: Base) -> None:
    padding = with_processor(base, do_pad=True, pad_size={"height": 48, "width": 48})  # with 0 after the mean is taken
    with pytest.raises(CheckpointError, match=r"do_pad.*changes images beyond"):
        Normalize(padding)
    Normalize(with_processor(base, do_pad=True, pad_size={"height": 32, "width": 32}))  # where nothing is left to pad


@pytest.mark.parametrize("mean", [[0.5], None, ["a", "b", "c"], "0.5"])
def test_a_processor_without_three_means_is_refused(base: Base, mean: Any) -> None:
    with pytest.raises(CheckpointError, match="image_mean of the image processor must be three numbers"):
        Normalize(with_processor(base, image_mean=mean))


def test_images_that_do_not_come_out_in_one_size_are_refused(base: Base) -> None:
    changed = with_processor(base, do_center_crop=False)
    with pytest.raises(DataError, match=r"row 1 of test of 'pets' comes out .*do_center_crop=False"):
        ours(changed, task_of([PLAIN, encoded(PILImage.new("RGB", (40, 60)))]))
    changed = with_processor(base, do_convert_rgb=False)
    with pytest.raises(DataError, match=r"row 2 of test of 'pets'.*do_convert_rgb=False"):
        ours(changed, task_of([PLAIN, PLAIN, encoded(PILImage.new("L", (40, 40)))]))


def test_16_bit_and_float_images_are_scaled_and_told(base: Base, caplog: pytest.LogCaptureFixture) -> None:
    ramp = np.linspace(0, 1, 1600).reshape(40, 40)
    eight = encoded(PILImage.fromarray(np.rint(ramp * 255).astype(np.uint8)))
    wide = [
        encoded(PILImage.fromarray(np.rint(ramp * 65535).astype(np.uint16))),
        encoded(PILImage.fromarray(ramp.astype(np.float32)), "tiff"),
        encoded(PILImage.fromarray(np.rint(ramp * 65535).astype(np.int32)), "tiff"),
    ]
    with caplog.at_level(logging.WARNING):
        pixels = load_pixels(task_of([eight, *wide]), "test", base.processor.image_processor).pixels.astype(int)
    assert len(np.unique(pixels[0])) > 100
    for row in (1, 2, 3):
        assert abs(pixels[row] - pixels[0]).max() <= 1
    assert "16-bit integers, scaled so that 65535 is white (first row 1)" in caplog.text
    assert "floats, scaled so that 1.0 is white (first row 2)" in caplog.text


def test_a_clear_grey_of_16_bits_is_white(base: Base) -> None:
    image = PILImage.fromarray(np.full((40, 40), 700, dtype=np.uint16))
    dataset = load_pixels(task_of([encoded(image, transparency=700)]), "test", base.processor.image_processor)
    assert dataset.pixels.min() == 255


@pytest.mark.parametrize(
    "values",
    [
        np.full((8, 8), 200, dtype=np.int32),
        np.full((8, 8), 70000, dtype=np.int32),
        np.full((8, 8), -1, dtype=np.int32),
        np.full((8, 8), 200, dtype=np.float32),
        np.full((8, 8), -0.5, dtype=np.float32),
        np.full((8, 8), np.nan, dtype=np.float32),
    ],
)
def test_values_whose_white_is_not_known_are_refused(base: Base, values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"row 1 of test of 'pets' holds .* white is not known"):
        ours(base, task_of([PLAIN, encoded(PILImage.fromarray(values), "tiff")]))


def huge() -> dict[str, Any]:
    """A file of a few kB with 100 million pixels."""
    return encoded(PILImage.new("1", (10_000, 10_000)), "png", compress_level=9)


BROKEN = {
    "missing": None,
    "truncated": {"bytes": encoded(PILImage.fromarray(noise(32, 32, 3)))["bytes"][:900], "path": None},
    "no image": {"bytes": b"not an image", "path": None},
    "empty": {"bytes": b"", "path": None},
    "no file": {"bytes": None, "path": "/nowhere/1.png"},
    "bomb": huge(),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_named_or_left_out_and_counted(
    base: Base, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    images = [PLAIN, PLAIN, BROKEN[kind], PLAIN]
    with pytest.raises(DataError, match=r"row 2 of test of 'pets'.*skip_broken=True") as error:
        ours(base, task_of(images))
    assert len(str(error.value)) < 600
    with caplog.at_level(logging.WARNING):
        dataset = load_pixels(task_of(images, skip_broken=True), "test", base.processor.image_processor)
    assert (len(dataset), dataset.skipped, dataset.labels.tolist()) == (3, (2,), [0, 1, 1])
    assert "1 of 4 rows of test of 'pets' are left out" in caplog.text


def test_nothing_left_is_no_task(base: Base) -> None:
    with pytest.raises(DataError, match="no image of test of 'pets' decodes"):
        ours(base, task_of([None, None], skip_broken=True))


def test_photos_go_to_the_processor_one_by_one_and_small_images_together(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    made = pixels._Work._pixels

    def counted(self: Any, rows: list[int], images: list[Any], shape: Any) -> Any:
        sizes.append(len(images))
        return made(self, rows, images, shape)

    monkeypatch.setattr(pixels._Work, "_pixels", counted)
    photo = encoded(PILImage.new("L", (3000, 2000)))
    dataset = load_pixels(task_of([photo, photo, photo, *[PLAIN] * 300]), "test", base.processor.image_processor)
    assert sizes == [1, 1, 256, 45] or sizes[:2] == [1, 1]
    assert len(dataset) == 303
    assert max(sizes) <= 256


# The cache


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Task]:
    """A task on a folder, whose pixels are kept."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for copy in range(3):
                PILImage.fromarray(noise(40, 40, 3)).save(tmp_path / "own" / split / name / f"{copy}.png")
    pixels._open_pixels.cache_clear()
    yield Task.from_dataset(tmp_path / "own")
    pixels._open_pixels.cache_clear()


def kept(before: set[Path] | None = None) -> set[Path]:
    return set((cache_folder() / "pixels").glob("*.u8")) - (before or set())


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "gone", "notes", "no json", "labels", "shape"])
def test_a_damaged_entry_is_made_anew(base: Base, own: Task, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    before, processor = kept(), base.processor.image_processor
    right = np.array(load_pixels(own, "test", processor).pixels)
    (path,) = kept(before)
    notes = path.with_suffix(".json")
    content, entry = path.read_bytes(), json.loads(notes.read_text())
    pixels._open_pixels.cache_clear()
    wrong = {
        "flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "cut": content[:-1],
        "longer": content + b"0",
        "gone": None,
    }
    if damage in wrong:
        path.unlink()
        if (value := wrong[damage]) is not None:
            path.write_bytes(value)
    else:
        changed = {
            "notes": {},
            "labels": entry | {"labels": entry["labels"][::-1]},
            "shape": entry | {"shape": [6, 3, 16, 64]},
        }
        notes.write_text("{" if damage == "no json" else json.dumps(changed[damage]))
    with caplog.at_level(logging.WARNING):
        dataset = load_pixels(own, "test", processor)
    assert np.array_equal(dataset.pixels, right)
    assert dataset.labels.tolist() == entry["labels"]
    assert json.loads(notes.read_text()) == entry
    assert damage == "gone" or "anew" in caplog.text


def test_the_key_holds_data_processor_and_its_class(base: Base, own: Task) -> None:
    class Other(CLIPImageProcessorPil):
        """Another backend with the same settings."""

    processor = base.processor.image_processor
    settings = json.loads(processor.to_json_string())
    data = own.load("test")
    keys = [
        pixels._key(data, type(processor), processor.to_json_string(), skip_broken=False),
        pixels._key(data, Other, processor.to_json_string(), skip_broken=False),
        pixels._key(data, type(processor), json.dumps(settings | {"resample": 0}), skip_broken=False),
        pixels._key(own.load("train"), type(processor), processor.to_json_string(), skip_broken=False),
        pixels._key(data, type(processor), processor.to_json_string(), skip_broken=True),
    ]
    assert len(set(keys)) == len(keys)
    smaller = with_processor(base, size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    assert load_pixels(own, "test", processor).shape == (3, 32, 32)
    assert load_pixels(own, "test", smaller.processor.image_processor).shape == (3, 24, 24)


def test_an_entry_is_used_again_and_its_place_told(
    base: Base, own: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        first = np.array(load_pixels(own, "test", base.processor.image_processor).pixels)
    assert f"GB in {cache_folder() / 'pixels'}" in caplog.text
    pixels._open_pixels.cache_clear()
    monkeypatch.setattr(pixels, "decode_image", None)
    assert np.array_equal(load_pixels(own, "test", base.processor.image_processor).pixels, first)


def test_a_folder_that_changes_while_the_process_runs_is_read_again(base: Base, own: Task) -> None:
    processor = base.processor.image_processor
    assert len(load_pixels(own, "test", processor)) == 6
    shutil.copy(Path(own.dataset) / "test" / "cat" / "0.png", Path(own.dataset) / "test" / "dog" / "9.png")
    assert load_pixels(own, "test", processor).labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    base: Base, own: Task, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any, **settings: Any) -> Any:
        raise OSError(28, "No space left on device")

    right = np.array(load_pixels(own, "test", base.processor.image_processor).pixels)
    shutil.rmtree(cache_folder() / "pixels")
    monkeypatch.setattr(pixels, "new_temporary", full)
    for limit in (1 << 28, 1):  # in memory, and in a file without a name
        monkeypatch.setattr(pixels, "MAX_MEMORY_BYTES", limit)
        pixels._open_pixels.cache_clear()
        dataset = load_pixels(own, "test", base.processor.image_processor)
        assert np.array_equal(dataset.pixels, right)
    assert "No space left" in caplog.text
    assert dataset.__getitems__([5, -1])["labels"].tolist() == [1, -100]


def test_evaluation_needs_no_place_to_write(own: Task) -> None:
    code = (
        "import sys; from hf_taskvec import evaluate, get_task, load_base\n"
        "from hf_taskvec.tasks.subsets import subset\n"
        "tasks = [subset(get_task('counts'), max_test=20), get_task(sys.argv[1])]\n"
        "print([result.num_images for result in evaluate(load_base(), tasks).results])"
    )
    environment = {**os.environ, "HF_HOME": "/proc/no-place-to-write", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, own.dataset], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "[20, 6]", done.stderr
    assert "cannot be written" in done.stderr


def test_a_dataset_of_pixels_goes_to_workers_by_its_file(base: Base, own: Task) -> None:
    dataset = load_pixels(own, "test", base.processor.image_processor)
    assert isinstance(dataset.pixels, np.memmap)
    state = dataset.__getstate__()  # what a worker that is spawned is sent
    assert state["pixels"] == (str(dataset.pixels.filename), dataset.pixels.shape)
    again = copied(dataset)  # goes by the same two methods
    assert isinstance(again.pixels, np.memmap)
    assert torch.equal(again[4]["pixel_values"], dataset[4]["pixel_values"])
    assert torch.equal(again.labels, dataset.labels)


def test_skipped_rows_do_not_change_what_is_measured(base: Base) -> None:
    images = [encoded(PILImage.fromarray(noise(40, 40, 3))) for _ in range(6)]
    whole = evaluate(base, [task_of(images)]).results[0]
    assert evaluate(base, [task_of([*images, None], skip_broken=True)]).results[0].accuracy == whole.accuracy
    assert get_task("digits").skip_broken is False
