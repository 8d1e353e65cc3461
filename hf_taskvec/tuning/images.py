"""Which images a merge learns from: the part of each task that is declared, or images of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import ClassLabel, Dataset
from torch import Tensor

from hf_taskvec.errors import DataError, check_count, check_known
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.pixels import IGNORED, PixelDataset, load_pixels, pixels_of
from hf_taskvec.text import listed

Images = int | Mapping[str, Dataset] | None
OWN = "own images"


@dataclass(frozen=True)
class TaskImages:
    """The images that are taken of one task.

    Attributes:
        task: The task.
        pixels: All images of the part they are of.
        rows: Which of them are taken, (N,).
    """

    task: Task
    pixels: PixelDataset
    rows: Tensor

    def batch(self, rows: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """`pixel_values` (N, 3, H, W) in uint8 and `labels` (N,) of some of the taken images, by their number."""
        return self.pixels.__getitems__(self.rows[torch.as_tensor(rows)].tolist())

    def batches(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All taken images in order, `size` at a time."""
        for rows in torch.arange(len(self)).split(size):
            yield self.batch(rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def has_labels(self) -> bool:
        """Whether every taken image has a label."""
        return bool(self.pixels.labels[self.rows].ne(IGNORED).all())


@dataclass(frozen=True)
class Choice:
    """The images of all tasks, and where they are from.

    Attributes:
        samples: The images of each task.
        split: The tasks' part that they are of; "own images" for the user's own.
        transductive: Whether test images are among them.
    """

    samples: tuple[TaskImages, ...]
    split: str
    transductive: bool

    def provenance(self) -> dict[str, Any]:
        """What can be told of them: split, counts, and one hash of their pixels."""
        digest = xxhash.xxh3_128()
        for sample in self.samples:
            for batch in sample.batches(256):
                digest.update(batch["pixel_values"].numpy().data)
        counts = {sample.task.name: len(sample) for sample in self.samples}
        return {"split": self.split, "images": counts, "images_hash": digest.hexdigest()}


def choose_images(
    base: Base,
    tasks: Sequence[Task],
    *,
    split: Split = "validation",
    images: Images = None,
    transductive: bool = False,
    seed: int = 0,
) -> Choice:
    """The images to learn from.

    Args:
        base: The model, whose image processor prepares them.
        tasks: The tasks.
        split: The part of each task.
        images: At most so many of each task, drawn at random; or the user's own for each task by its name: a `Dataset`
            with the column `image` and, where the objective needs it, `label` in the class numbers of the task.
        transductive: Whether test images may be used.
        seed: Of the draw.

    Raises:
        ValueError: If `split` is "test", or own images are test images, without `transductive=True`, or if the
            model has no text tower.
        UnknownNameError: If own images are of no task, or a task has none.
        DataError: If own images lack a column, or their labels are no classes of the task.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> chosen = choose_images(load_base(), [get_task("digits")], images=16)
        >>> chosen.split, len(chosen.samples[0]), chosen.samples[0].has_labels
        ('validation', 16, True)
    """
    base.check_zero_shot("learning from images")
    if isinstance(images, Mapping):
        return _own(base, tasks, images, transductive=transductive)
    check_split(split, transductive=transductive)
    if images is not None:
        check_count("images", images)
    samples = []
    for number, task in enumerate(tasks):
        pixels = load_pixels(task, split, base.processor.image_processor)
        samples.append(TaskImages(task, pixels, _drawn(len(pixels), images, seed=seed + number)))
    return Choice(tuple(samples), split, split == "test")


def check_split(split: str, *, transductive: bool) -> None:
    """Raises a `ValueError` if a part is the test part and that was not declared.

    Example:
        >>> check_split("validation", transductive=False)
    """
    check_known("split", split, ("train", "validation", "test"))
    if split == "test" and not transductive:
        raise ValueError(
            "split 'test' would make the accuracies on these very images too good; use split='validation', or pass "
            "transductive=True, which the vector's provenance, its reports and its card will tell"
        )


def _drawn(count: int, most: int | None, *, seed: int) -> Tensor:
    if most is None or count <= most:
        return torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[: int(most)].sort().values


def _own(base: Base, tasks: Sequence[Task], images: Mapping[str, Dataset], *, transductive: bool) -> Choice:
    names = [task.name for task in tasks]
    for name in images:
        check_known("task for the images of", name, names)
    for name in names:
        check_known("images of task", name, images)
    samples, seen = [], False
    for task in tasks:
        data = images[task.name]
        _check_own(data, task)
        pixels = pixels_of(data, base.processor.image_processor, f"the images given for {task.name!r}")
        seen = _tell_test_images(base, task, pixels, transductive=transductive) or seen
        samples.append(TaskImages(task, pixels, torch.arange(len(pixels))))
    return Choice(tuple(samples), OWN, seen)


def _check_own(data: object, task: Task) -> None:
    where = f"the images given for {task.name!r}"
    if not isinstance(data, Dataset):
        raise TypeError(f"{where} must be a datasets.Dataset with the column 'image', got {type(data).__name__}")
    if "image" not in data.column_names:
        raise DataError(f"{where} have no column 'image', only {listed(data.column_names)}; rename_column renames one")
    feature = data.features.get("label")
    if isinstance(feature, ClassLabel) and list(feature.names) != list(task.class_names):
        raise DataError(f"the labels of {where} are {listed(feature.names)}, not the task's {listed(task.class_names)}")
    if feature is None:
        return
    labels = np.asarray(data["label"][:])
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= len(task.class_names):
        raise DataError(f"the labels of {where} must be class numbers from 0 to {len(task.class_names) - 1}")


def _tell_test_images(base: Base, task: Task, pixels: PixelDataset, *, transductive: bool) -> bool:
    """Whether own images are among the task's test images, which is refused unless it was declared."""
    given = _hashes(pixels)
    shared = len(given & _hashes(load_pixels(task, "test", base.processor.image_processor)))
    if shared and not transductive:
        raise ValueError(
            f"{shared} of the {len(pixels)} images given for {task.name!r} are test images of that task: accuracies on "
            "them would be too good; leave them out, or pass transductive=True, which provenance and reports will tell"
        )
    return bool(shared)


def _hashes(pixels: PixelDataset) -> set[int]:
    return {xxhash.xxh3_64_intdigest(np.ascontiguousarray(image).data) for image in pixels.pixels}
