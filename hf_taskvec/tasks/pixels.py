"""Pixels: each image of a task is decoded and resized once and kept as uint8, memory-mapped."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import numpy as np
import torch
import xxhash
from datasets.utils import tqdm
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from hf_taskvec.errors import DataError
from hf_taskvec.tasks.cache import cache_folder
from hf_taskvec.tasks.images import decode_image
from hf_taskvec.tasks.source import source_stamp
from hf_taskvec.tasks.task import Split, Task
from hf_taskvec.weights.folders import write_bytes
from hf_taskvec.weights.temporary import clear_stale, new_temporary

logger = logging.getLogger(__name__)

PADDING = -1  # a dataset index that stands for no image: its label is IGNORED
IGNORED = -100  # the label that cross_entropy and Trainer's image count skip
FORMAT = 2  # of the files in the cache; to be raised with any change to what they hold
MAX_TOLD_BYTES = 1 << 30  # a larger cache entry is worth a warning
MAX_NOTES_BYTES = 1 << 28  # of what is noted of an entry, a few bytes an image
MAX_MEMORY_BYTES = 1 << 28  # what is held in memory where no file is to be had
_BATCH_IMAGES, _BATCH_PIXELS = 256, 1 << 23  # small images go to the processor together, photos one by one

Shape = tuple[int, int, int]


class PixelDataset(Dataset[dict[str, Tensor]]):
    """Images (N, 3, H, W) in uint8 with labels (N,); `__getitems__` gathers a whole batch at once.

    Args:
        pixels: Images (N, 3, H, W), uint8.
        labels: Class numbers (N,).
        skipped: The rows of the split that were left out because they do not decode (`Task.skip_broken`).
    """

    def __init__(self, pixels: NDArray[np.uint8], labels: Sequence[int], *, skipped: Sequence[int] = ()) -> None:
        self.pixels = pixels
        self.shape: Shape = tuple(pixels.shape[1:])
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.skipped = tuple(skipped)

    def __len__(self) -> int:
        return len(self.pixels)

    @cached_property
    def digest(self) -> str:
        """A hash of images and labels."""
        return _digest(self.pixels, self.labels.tolist(), self.skipped)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of `indices`: `pixel_values` (N, 3, H, W) in uint8, `labels` (N,)."""
        wanted = np.asarray(indices, dtype=np.int64)
        real = wanted != PADDING
        pixels = np.zeros((len(wanted), *self.shape), dtype=np.uint8)
        pixels[real] = self.pixels[wanted[real]]
        chosen = torch.from_numpy(wanted)
        labels = torch.where(chosen == PADDING, IGNORED, self.labels[chosen.clamp(min=0)])
        return {"pixel_values": torch.from_numpy(pixels), "labels": labels}

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.pixels, np.memmap):  # a worker that is spawned opens the file instead of receiving it
            state["pixels"] = (str(self.pixels.filename), self.pixels.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state["pixels"], tuple):
            name, shape = state["pixels"]
            state = {**state, "pixels": np.memmap(name, np.uint8, "r", shape=shape)}
        self.__dict__.update(state)


def keep_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The collate function for `PixelDataset`, whose `__getitems__` gives whole batches."""
    return batch


def load_pixels(task: Task, split: Split, image_processor: Any) -> PixelDataset:
    """The images of a task's split as the image processor makes them, but neither rescaled nor normalised.

    They lie beside the cache of `datasets` (3 HW bytes an image, 150 kB at 224 px), under a key of everything they
    depend on: the data, the processor's class and settings and the libraries that decode and resize. A damaged entry
    is made anew; where nothing can be written they stay in memory. A process opens them once.

    Args:
        task: The task.
        split: Which part of it.
        image_processor: The base's image processor.

    Raises:
        DataError: If an image is missing, does not decode or has too many pixels, and the task does not skip such
            rows, or if the processor does not bring all images to one size; the row is named.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> pixels = load_pixels(get_task("digits"), "test", load_base().processor.image_processor)
        >>> pixels.shape, len(pixels), pixels[0]["pixel_values"].dtype
        ((3, 32, 32), 400, torch.uint8)
    """
    kind: Any = type(image_processor)
    return _open_pixels(task, split, kind, image_processor.to_json_string(), source_stamp(task.dataset))


def pixels_of(data: datasets.Dataset, image_processor: Any, where: str) -> PixelDataset:
    """The images of a dataset as `load_pixels` makes them, in memory.

    Args:
        data: A dataset with the column `image`; without a column `label`, all labels are `IGNORED`.
        image_processor: The base's image processor.
        where: What the images are, for messages.

    Raises:
        DataError: As `load_pixels`.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> data = get_task("digits").load("test").select(range(3)).remove_columns("label")
        >>> pixels_of(data, load_base().processor.image_processor, "three digits").labels
        tensor([-100, -100, -100])
    """
    if "label" not in data.column_names:
        data = data.add_column("label", [IGNORED] * len(data))
    return _Work(data, image_processor, where, skip_broken=False).in_memory()


@lru_cache(maxsize=64)
def _open_pixels(task: Task, split: Split, kind: Any, settings: str, stamp: str) -> PixelDataset:
    """The pixels as long as the files of a local dataset, which `stamp` stands for, are the same."""
    data = task.load(split)
    work = _Work(data, kind(**json.loads(settings)), f"{split} of {task.name!r}", task.skip_broken)
    if task.is_builtin:  # small, drawn in memory, and to be had without any file
        return work.in_memory()
    path = cache_folder() / "pixels" / f"{_key(data, kind, settings, skip_broken=task.skip_broken)}.u8"
    kept = _read(path)
    if kept is None:
        try:
            work.into(path)
            kept = _read(path)
        except OSError as error:
            logger.warning("the pixels of %s cannot be kept in %s (%s)", work.where, path.parent, error)
    return kept if kept is not None else work.in_memory()


def _key(data: datasets.Dataset, kind: Any, settings: str, *, skip_broken: bool) -> str:
    libraries = [f"{name} {_version(name)}" for name in ("pillow", "transformers", "torchvision")]
    parts = [data._fingerprint, kind.__module__, kind.__qualname__, settings, *libraries, str(skip_broken), str(FORMAT)]
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "-"


def _read(path: Path) -> PixelDataset | None:
    """What lies under `path`; `None` if there is nothing or if it is not, byte for byte, what was written."""
    notes = path.with_suffix(".json")
    try:
        if notes.stat().st_size > MAX_NOTES_BYTES:
            raise ValueError("too large")
        entry = json.loads(notes.read_bytes())
        shape, labels, skipped = tuple(entry["shape"]), entry["labels"], entry["skipped"]
        pixels = np.memmap(path, np.uint8, "r", shape=shape)
        if path.stat().st_size != pixels.nbytes or _digest(pixels, labels, skipped) != entry["digest"]:
            raise ValueError("not what was written")
        return PixelDataset(pixels, labels, skipped=skipped)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        logger.warning("%s is damaged (%s) and made anew", path, error)
        return None


def _digest(pixels: NDArray[np.uint8], labels: Sequence[int], skipped: Sequence[int]) -> str:
    digest = xxhash.xxh3_128(json.dumps([pixels.shape, list(labels), list(skipped)]).encode())
    view: Any = pixels
    digest.update(view)
    return digest.hexdigest()


@dataclass
class _Work:
    """Making the pixels of one split."""

    data: datasets.Dataset
    image_processor: Any
    where: str
    skip_broken: bool

    def into(self, path: Path) -> None:
        """Writes pixels and, after them, what is needed to read them."""
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_stale(path)
        with new_temporary(path, folder=False) as temporary:
            with temporary.open("wb") as file:
                shape, labels, skipped = self._stream(file, place=path.parent)
            os.replace(temporary, path)
        pixels = np.memmap(path, np.uint8, "r", shape=shape)
        entry = {"shape": shape, "labels": labels, "skipped": skipped, "digest": _digest(pixels, labels, skipped)}
        write_bytes(path.with_suffix(".json"), json.dumps(entry).encode())

    def in_memory(self) -> PixelDataset:
        """The pixels in memory, or in a file without a name if they are many."""
        with tempfile.SpooledTemporaryFile(max_size=MAX_MEMORY_BYTES) as spool:
            file: Any = spool
            shape, labels, skipped = self._stream(file, place=None)
            spool.seek(0)
            spilled = getattr(spool, "_rolled", False)
            if spilled:
                pixels: NDArray[np.uint8] = np.memmap(file, np.uint8, "r", shape=shape)
            else:
                pixels = np.frombuffer(spool.read(), np.uint8).reshape(shape)
        return PixelDataset(pixels, labels, skipped=skipped)

    def _stream(self, file: BinaryIO, *, place: Path | None) -> tuple[tuple[int, ...], list[int], list[int]]:
        """Writes the pixels of all rows; returns their shape (N, 3, H, W), the labels and the rows left out."""
        labels, skipped, shape = self.data["label"][:], list[int](), None
        with tqdm(total=len(self.data), desc=f"{self.where}: images to pixels", delay=1, leave=False) as progress:
            for rows, images in self._batches(skipped):
                pixels = self._pixels(rows, images, shape)
                if shape is None:
                    shape = pixels.shape[1:]
                    self._tell_size(len(self.data) * pixels[0].nbytes, place)
                file.write(pixels.tobytes())
                progress.update(len(rows))
        if shape is None:
            raise DataError(f"no image of {self.where} decodes")
        if skipped:
            told = "%d of %d rows of %s are left out: they do not decode (first row %d)"
            logger.warning(told, len(skipped), len(self.data), self.where, skipped[0])
        left_out = set(skipped)
        kept = [label for row, label in enumerate(labels) if row not in left_out]
        return (len(kept), *shape), kept, skipped

    def _tell_size(self, size: int, place: Path | None) -> None:
        if place is not None:
            level = logging.WARNING if size > MAX_TOLD_BYTES else logging.INFO
            told = "the pixels of %s take %.2f GB in %s (HF_DATASETS_CACHE moves them; they may be deleted at any time)"
            logger.log(level, told, self.where, size / 1e9, place)

    def _batches(self, skipped: list[int]) -> Iterator[tuple[list[int], list[Image.Image]]]:
        """Rows and their images, few at a time; adds the rows that do not decode to `skipped`."""
        rows, images, area, told = list[int](), list[Image.Image](), 0, set[str]()
        for row, value in enumerate(self.data.cast_column("image", datasets.Image(decode=False))):
            try:
                image, note = decode_image(value["image"], f"row {row} of {self.where}")
            except DataError:
                if not self.skip_broken:
                    raise
                skipped.append(row)
                continue
            if note and note not in told:
                logger.warning("images of %s hold %s (first row %d)", self.where, note, row)
                told.add(note)
            size = image.width * image.height
            if images and (area + size > _BATCH_PIXELS or len(images) == _BATCH_IMAGES):
                yield rows, images
                rows, images, area = [], [], 0
            rows.append(row)
            images.append(image)
            area += size
        if images:
            yield rows, images

    def _pixels(self, rows: list[int], images: list[Image.Image], shape: tuple[int, ...] | None) -> NDArray[np.uint8]:
        """What the processor makes of a batch, (N, 3, H, W), each image of `shape` if that is known."""
        try:
            result = self.image_processor(images, do_rescale=False, do_normalize=False, return_tensors="np")
            pixels = np.asarray(result["pixel_values"]).astype(np.uint8)
            made: tuple[int, ...] = pixels.shape[1:]
        except (ValueError, TypeError, LookupError, OSError, RuntimeError) as error:
            if len(images) > 1:
                parts = []
                for row, image in zip(rows, images, strict=True):
                    parts.append(self._pixels([row], [image], shape))
                    shape = parts[-1].shape[1:]
                return np.concatenate(parts)
            raise DataError(f"row {rows[0]} of {self.where}: the image processor refuses it: {error}") from error
        if len(made) != 3 or made[0] != 3 or (shape is not None and made != shape):
            raise DataError(
                f"row {rows[0]} of {self.where} comes out of the image processor as {made}, not as "
                f"{shape or '(3, height, width)'}: its settings {self._switches()} do not bring all images to one size"
            )
        return pixels

    def _switches(self) -> str:
        names = ("do_resize", "do_center_crop", "do_convert_rgb", "size", "crop_size")
        return ", ".join(f"{name}={getattr(self.image_processor, name, None)}" for name in names)
