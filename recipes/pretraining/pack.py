"""Pairs that were gathered once, as sheets of images and one JSON: small enough to travel to another machine."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from hf_taskvec.errors import CheckpointError, DataError
from hf_taskvec.weights.folders import atomic_folder, read_json, write_bytes, write_text
from pretraining.config import PretrainingConfig
from pretraining.pairs import Pairs
from pretraining.sources import Gathered

PAIRS = "pairs.json"
SIDE = 64  # images along each side of a sheet: one header for 4,096 of them
LOSSLESS = 100
DEPENDS_ON = ("image_size", "fine_captions", "max_pairs_per_text", "seed")


def pack(gathered: Gathered, config: PretrainingConfig, folder: Path, *, quality: int = 85) -> int:
    """Writes gathered pairs, and returns the bytes they take.

    Args:
        gathered: The pairs of all sources, after held-out images were refused and equal ones left out.
        config: The settings that they were gathered with.
        folder: Where they go; an earlier pack there is replaced.
        quality: Of the WebP sheets, 1 to 100; 100 loses nothing.

    Raises:
        ValueError: If the quality is out of range.
    """
    if not 1 <= quality <= LOSSLESS:
        raise ValueError(f"pack_quality must be in [1, {LOSSLESS}], got {quality}")
    pairs = gathered.pairs
    captions = list(dict.fromkeys(pairs.texts))
    subjects = list(dict.fromkeys(pairs.subjects or []))
    rank, place = ({text: index for index, text in enumerate(texts)} for texts in (captions, subjects))
    with atomic_folder(folder, marker=PAIRS) as new, ThreadPoolExecutor() as pool:
        sheets = range(0, len(pairs), SIDE * SIDE)
        parts = (pairs.pixels[start : start + SIDE * SIDE] for start in sheets)
        for index, content in enumerate(pool.map(lambda images: _sheet(images, quality), parts)):
            write_bytes(new / _name(index), content)
        notes = {
            "captions": captions,
            "caption": [rank[text] for text in pairs.texts],
            "subjects": subjects,
            "subject": [place[text] for text in pairs.subjects or []],
            "duplicates": gathered.duplicates,
            "facts": {**gathered.facts, "packed_at_quality": quality},
            "settings": {name: getattr(config, name) for name in DEPENDS_ON},
        }
        write_text(new / PAIRS, json.dumps(notes, ensure_ascii=False))  # not a line for each number
    return sum(path.stat().st_size for path in folder.iterdir())


def unpack(folder: Path, config: PretrainingConfig) -> Gathered:
    """Reads what `pack` wrote, the sheets on all cores.

    Raises:
        DataError: If there is nothing, or a sheet is missing or damaged.
        CheckpointError: If it was gathered with other settings.
    """
    if not (folder / PAIRS).is_file():
        raise DataError(f"{folder} holds no packed pairs (no {PAIRS}); write them with --pack_to")
    notes = read_json(folder / PAIRS, max_bytes=1 << 28)
    wanted = {name: getattr(config, name) for name in DEPENDS_ON}
    if changed := {name: value for name, value in notes["settings"].items() if value != wanted[name]}:
        raise CheckpointError(f"{folder} was packed with other settings: {changed}; pack the pairs again")
    rows, size = notes["caption"], config.image_size
    counts = [min(SIDE * SIDE, len(rows) - start) for start in range(0, len(rows), SIDE * SIDE)]
    with ThreadPoolExecutor() as pool:
        work = [pool.submit(_images, folder / _name(index), count, size) for index, count in enumerate(counts)]
        pixels = torch.cat([one.result() for one in work])
    subjects = [notes["subjects"][row] for row in notes["subject"]] or None
    pairs = Pairs(pixels, [notes["captions"][row] for row in rows], None, subjects)
    return Gathered(pairs, notes["duplicates"], notes["facts"])


def _name(index: int) -> str:
    return f"sheet-{index:04d}.webp"


def _sheet(pixels: Tensor, quality: int) -> bytes:
    """Up to `SIDE` x `SIDE` images (N, 3, S, S) as one picture, the rest of it black."""
    size = pixels.shape[-1]
    grid: NDArray[np.uint8] = np.zeros((SIDE * SIDE, 3, size, size), np.uint8)
    grid[: len(pixels)] = pixels.numpy()
    picture = grid.reshape(SIDE, SIDE, 3, size, size).transpose(0, 3, 1, 4, 2).reshape(SIDE * size, SIDE * size, 3)
    options: dict[str, Any] = {"lossless": True} if quality == LOSSLESS else {"quality": quality}
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", **options)
    return buffer.getvalue()


def _images(path: Path, count: int, size: int) -> Tensor:
    """The first images of a sheet, (N, 3, S, S)."""
    try:
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path} is missing or damaged: {error}") from error
    if picture.shape != (SIDE * size, SIDE * size, 3):
        raise DataError(f"{path} holds a picture of {picture.shape}, not a sheet of images of {size} pixels")
    cells = picture.reshape(SIDE, size, SIDE, size, 3).transpose(0, 2, 4, 1, 3).reshape(SIDE * SIDE, 3, size, size)
    return torch.from_numpy(np.ascontiguousarray(cells[:count]))
