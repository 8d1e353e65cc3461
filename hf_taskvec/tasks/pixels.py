"""Pixels: each image of a task is decoded and resized once and kept as uint8, memory-mapped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
import xxhash
from torch import Tensor
from torch.utils.data import Dataset

from hf_taskvec.errors import DataError
from hf_taskvec.tasks import Split, Task

PADDING = -1  # a dataset index that stands for no image: its label is IGNORED
IGNORED = -100  # the label that cross_entropy and Trainer's image count skip


class PixelDataset(Dataset[dict[str, Tensor]]):
    """Images (N, 3, H, W) in uint8 with labels (N,); `__getitems__` gathers a whole batch at once.

    Args:
        table: Columns `pixels` (fixed-size lists of uint8) and `label`.
        shape: Channels, height and width of an image.
    """

    def __init__(self, table: pa.Table, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        chunks = table.column("pixels").chunks
        self.chunks = [chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, *shape) for chunk in chunks]
        self.starts = np.cumsum([0, *map(len, self.chunks)])
        self.labels = torch.from_numpy(table.column("label").to_numpy().astype(np.int64))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of `indices`: `pixel_values` (N, 3, H, W) in uint8, `labels` (N,)."""
        wanted = np.asarray(indices, dtype=np.int64)
        pixels = np.zeros((len(wanted), *self.shape), dtype=np.uint8)
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        for number, chunk in enumerate(self.chunks):
            rows = np.flatnonzero((owners == number) & (wanted != PADDING))
            pixels[rows] = chunk[wanted[rows] - self.starts[number]]
        chosen = torch.from_numpy(wanted)
        labels = torch.where(chosen == PADDING, IGNORED, self.labels[chosen.clamp(min=0)])
        return {"pixel_values": torch.from_numpy(pixels), "labels": labels}


def keep_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The collate function for `PixelDataset`, whose `__getitems__` gives whole batches."""
    return batch


def load_pixels(task: Task, split: Split, image_processor: Any) -> PixelDataset:
    """The images of a task's split, resized and cropped by the image processor, not yet normalised.

    They lie in the cache of `datasets`, keyed by the data and the processor's settings; a process opens them once.

    Raises:
        DataError: If an image does not decode; the row is named.
    """
    kind: Any = type(image_processor)
    return _open_pixels(task, split, kind, image_processor.to_json_string())


@lru_cache(maxsize=64)
def _open_pixels(task: Task, split: Split, kind: Any, settings: str) -> PixelDataset:
    image_processor = kind(**json.loads(settings))
    data = task.load(split)
    height, width = output_size(image_processor)
    key = xxhash.xxh3_128_hexdigest(f"{data._fingerprint} {settings} 1".encode())
    features = datasets.Features(
        {"pixels": datasets.List(datasets.Value("uint8"), length=3 * height * width), "label": datasets.Value("int64")}
    )
    mapped = data.cast_column("image", datasets.Image(decode=False)).map(
        _to_pixels, batched=True, batch_size=256, with_indices=True, remove_columns=data.column_names,
        features=features, new_fingerprint=key, desc=f"{task.name} {split}: images to pixels",
        fn_kwargs={"image_processor": image_processor, "where": f"{split} of {task.name!r}"},
    )  # fmt: skip
    if mapped._indices is not None:
        mapped = mapped.flatten_indices()
    return PixelDataset(mapped.data.table, (3, height, width))


def _to_pixels(batch: dict[str, list[Any]], rows: list[int], *, image_processor: Any, where: str) -> dict[str, Any]:
    images, decoder = [], datasets.Image()
    for row, value in zip(rows, batch["image"], strict=True):
        try:
            images.append(decoder.decode_example(value).convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"row {row} of {where} does not decode as an image: {error}") from error
    result = image_processor(images, do_rescale=False, do_normalize=False, return_tensors="np")
    pixels = np.asarray(result["pixel_values"]).astype(np.uint8).reshape(len(images), -1)
    return {"pixels": list(pixels), "label": batch["label"]}


def output_size(image_processor: Any) -> tuple[int, int]:
    """Height and width of the images that a CLIP image processor makes."""
    size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    return size["height"], size["width"]
