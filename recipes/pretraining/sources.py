"""What a base is pretrained on: pair sets, generated pairs, images of tasks without labels; never a test image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor
from transformers import CLIPImageProcessorPil

from hf_taskvec import Task
from hf_taskvec.errors import DataError
from hf_taskvec.tasks import Split
from hf_taskvec.tasks.pixels import load_pixels
from pretraining.captions import coarse_caption, source_of, subject
from pretraining.config import PretrainingConfig
from pretraining.drawn import generated_pairs
from pretraining.pairs import Pairs, balance, decode_pairs, image_processor, join, load_pairs


@dataclass(frozen=True)
class Sources:
    """Where the images of a base come from.

    Args:
        pairs: Hub ids or folders of datasets with the columns `image` and `text`.
        generated: How many generated pairs to add.
        unlabelled: Tasks whose training parts are added without their labels, under a coarse caption each.
        held_out: Tasks of which no validation or test image may be among the others; `unlabelled` ones always are.
    """

    pairs: Sequence[str] = ()
    generated: int = 0
    unlabelled: Sequence[Task] = ()
    held_out: Sequence[Task] = ()

    def facts(self) -> dict[str, Any]:
        """What a base's card tells of them."""
        return {
            "sources": [Path(name).name for name in self.pairs],
            "generated_pairs": self.generated,
            "unlabelled_tasks": [task.name for task in self.unlabelled],
            "held_out_tasks": [task.name for task in self.held_out],
        }


@dataclass(frozen=True)
class Gathered:
    """The pairs of all sources, how many equal images were left out, and what the sources are."""

    pairs: Pairs
    duplicates: int
    facts: Mapping[str, Any] = field(default_factory=dict)


def pixel_hash(pixels: Tensor) -> str:
    """A hash of one decoded image, (3, H, W) in uint8: the same for the same picture in another file."""
    return xxhash.xxh3_128_hexdigest(pixels.contiguous().numpy().tobytes())


def gather_pairs(sources: Sources, config: PretrainingConfig) -> Gathered:
    """All training pairs, equal images once, captions capped and made coarse as the settings ask.

    Raises:
        DataError: If an image is a validation or test image of a task, or there is nothing to train on.
    """
    processor = image_processor(config.image_size)
    parts = {source: load_pairs(source, "train", processor) for source in sources.pairs}
    if sources.generated:
        parts["generated pairs"] = decode_pairs(generated_pairs(sources.generated, seed=config.seed), processor)
    parts |= {f"train of {task.name}": unlabelled_pairs(task, processor) for task in sources.unlabelled}
    if not parts:
        raise DataError("there is nothing to pretrain on: name pair sets, generated pairs or unlabelled tasks")
    tasks = {task.name: task for task in (*sources.unlabelled, *sources.held_out)}
    refuse_held_out(parts, list(tasks.values()), processor)
    named = {name: describe(pairs, config) for name, pairs in parts.items()}
    pairs = join(list(named.values()))
    unique = without_duplicates(pairs)
    balanced = balance(unique, config.max_pairs_per_text, seed=config.seed)
    return Gathered(balanced, len(pairs) - len(unique), sources.facts())


def unlabelled_pairs(task: Task, processor: CLIPImageProcessorPil) -> Pairs:
    """The training part of a task, without its validation part, under a caption that tells no class."""
    pixels = task_pixels(task, "train", processor)
    return Pairs(pixels, [coarse_caption(task.name)] * len(pixels))


def task_pixels(task: Task, split: Split, processor: CLIPImageProcessorPil) -> Tensor:
    """The images of a task's part, uint8 (N, 3, H, W)."""
    images = load_pixels(task, split, processor)
    return images.__getitems__(range(len(images)))["pixel_values"]


def refuse_held_out(parts: dict[str, Pairs], tasks: Sequence[Task], processor: CLIPImageProcessorPil) -> None:
    """Raises a `DataError` that names the first training image that is a validation or test image of a task."""
    held: dict[str, str] = {}
    for task in tasks:
        for split in ("validation", "test"):
            for row, image in enumerate(task_pixels(task, split, processor)):
                held.setdefault(pixel_hash(image), f"row {row} of {split} of {task.name!r}")
    for name, pairs in parts.items() if held else ():
        for row, image in enumerate(pairs.pixels):
            if (mark := pixel_hash(image)) in held:
                raise DataError(
                    f"row {row} of {name} (pixel hash {mark}) is {held[mark]}: a base that has seen it cannot be "
                    "judged on that task; leave the row out of the pretraining set"
                )


def without_duplicates(pairs: Pairs) -> Pairs:
    """The first pair of each picture."""
    first: dict[str, int] = {}
    for row, image in enumerate(pairs.pixels):
        first.setdefault(pixel_hash(image), row)
    return pairs if len(first) == len(pairs) else pairs.select(list(first.values()))


def describe(pairs: Pairs, config: PretrainingConfig) -> Pairs:
    """The pairs with their subjects, and coarse captions for all but `fine_captions` of each labelled set's images."""
    if pairs.files is None:  # a task's images: what they show is not known
        return replace(pairs, subjects=[""] * len(pairs))
    generator = torch.Generator().manual_seed(config.seed)
    keeps = (torch.rand(len(pairs), generator=generator) < config.fine_captions).tolist()
    labelled = map(source_of, pairs.files)
    texts = [
        text if keep or not source else coarse_caption(source)
        for text, keep, source in zip(pairs.texts, keeps, labelled, strict=True)
    ]
    return replace(pairs, texts=texts, subjects=[subject(text) for text in pairs.texts])
