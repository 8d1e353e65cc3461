"""Training images of one task that stand in the test part of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.pixels import load_pixels

BITS = 6  # of 64 that may differ in the hashes of one picture
DISTANCE = 0.25  # of two thumbnails of one picture, as a share of how far its fields lie from their mean
LEAST = 1 / 255  # of that share's base, for pictures of one colour
SIDE = 16  # of a thumbnail


@dataclass(frozen=True)
class Leak:
    """Images of one task's training part in another's test part.

    Attributes:
        source: The task that trains on them.
        target: The task that is tested on them.
        images: How many test images have a partner.
        tested: How many test images there are.
        example: Row of the first in the training part and in the test part.
    """

    source: str
    target: str
    images: int
    tested: int
    example: tuple[int, int]

    def __str__(self) -> str:
        """What it is, in words."""
        return (
            f"{self.images} of {self.tested} test images of {self.target!r} are training images of {self.source!r}, "
            f"first row {self.example[1]} and {self.example[0]}: its accuracy is not that of unseen images"
        )


@dataclass(frozen=True)
class _Marks:
    """Hashes, (N, 64) of -1 and 1, and thumbnails, (N, 3 · SIDE²) in [0, 1]."""

    hashes: Tensor
    thumbnails: Tensor


def find_leaks(tasks: Sequence[Task], base: Base) -> Iterator[Leak]:
    """The leaks between tasks, by two looks at each pair of images as the base sees them.

    A difference hash (64 bits, whether each of 8 × 8 grey fields is brighter than its right neighbour) finds
    candidates; since drawings on an even ground often share it, thumbnails must be alike too, by their contrast.

    Args:
        tasks: The tasks.
        base: The base, whose processor crops the images.

    Example:
        >>> from hf_taskvec import get_tasks, load_base
        >>> from hf_taskvec.tasks.subsets import subset
        >>> small = [subset(task, max_train=20, max_test=20) for task in get_tasks(["digits", "shapes"])]
        >>> list(find_leaks(small, load_base()))
        []
    """
    trained = {task.name: _marks(task, "train", base) for task in tasks}
    for target in tasks:
        tested = _marks(target, "test", base)
        for source in tasks:
            if source.name != target.name and (rows := _equal(trained[source.name], tested)):
                first = min(rows)
                yield Leak(source.name, target.name, len(rows), len(tested.hashes), (rows[first], first))


def _marks(task: Task, split: Split, base: Base) -> _Marks:
    pixels = load_pixels(task, split, base.processor.image_processor)
    hashes, thumbnails = [torch.empty(0, 64)], [torch.empty(0, 3 * SIDE**2)]
    for start in range(0, len(pixels), 256):
        images = pixels.__getitems__(range(start, min(start + 256, len(pixels))))["pixel_values"].float() / 255
        grey = adaptive_avg_pool2d(images.mean(dim=1), (8, 9))
        hashes.append((grey[:, :, 1:] > grey[:, :, :-1]).flatten(1).float() * 2 - 1)
        thumbnails.append(adaptive_avg_pool2d(images, SIDE).flatten(1))
    return _Marks(torch.cat(hashes), torch.cat(thumbnails))


def _equal(trained: _Marks, tested: _Marks) -> dict[int, int]:
    """For each test row that has a partner, the first training row that is one."""
    partners: dict[int, int] = {}
    for start in range(0, len(trained.hashes), 1024):
        alike = trained.hashes[start : start + 1024] @ tested.hashes.T >= 64 - 2 * BITS
        train_rows, test_rows = alike.nonzero(as_tuple=True)
        for rows in zip(train_rows.split(4096), test_rows.split(4096), strict=True):
            seen, tested_on = trained.thumbnails[rows[0] + start], tested.thumbnails[rows[1]]
            contrast = _size(tested_on - tested_on.mean(dim=1, keepdim=True)).clamp(min=LEAST)
            near = _size(seen - tested_on) <= DISTANCE * contrast
            for train_row, test_row in zip(rows[0][near].tolist(), rows[1][near].tolist(), strict=True):
                partners.setdefault(test_row, train_row + start)
    return partners


def _size(rows: Tensor) -> Tensor:
    """The root of the mean square of each row."""
    return rows.square().mean(dim=1).sqrt()
