"""Tasks on fewer images, and tasks that train on their validation part."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.random import RandomState  # its streams are frozen, as for the validation parts
from numpy.typing import NDArray

from hf_taskvec.errors import check_count
from hf_taskvec.tasks.corruptions import CorruptedTask
from hf_taskvec.tasks.task import Split, Task


@dataclass(frozen=True)
class SubsetTask(Task):
    """A task on at most so many images of each part, chosen at random; made by `subset`.

    Args:
        max_train: Most images of the training part; all if `None`.
        max_validation: Most images of the validation part.
        max_test: Most images of the test part.
        max_train_per_class: Most images of each class of the training part.
        train_seed: Which images of the training part; those of the other parts are always the same.
        train_on: The part that stands in for `train`: `validation` for methods that must not see training data.
    """

    max_train: int | None = None
    max_validation: int | None = None
    max_test: int | None = None
    max_train_per_class: int | None = None
    train_seed: int = 0
    train_on: Split = "train"

    def load(self, split: Split) -> Dataset:
        """Loads one part of the task, cut to its size; see `Task.load`."""
        source = self.train_on if split == "train" else split
        data = super().load(source)
        if split == "train" and self.max_train_per_class is not None:
            data = data.select(_of_each_class(data["label"][:], self.max_train_per_class, self.train_seed))
        limit = {"train": self.max_train, "validation": self.max_validation, "test": self.max_test}[source]
        if limit is None or len(data) <= limit:
            return data
        seed = [len(data), self.train_seed if source == "train" else 0]
        return data.select(np.sort(RandomState(seed).permutation(len(data))[:limit]))


def _of_each_class(labels: Sequence[int], most: int, seed: int) -> NDArray[np.int64]:
    """At most so many rows of each class, in their order."""
    order = RandomState([len(labels), seed]).permutation(len(labels))
    numbers = np.asarray(labels)[order]
    return np.sort(np.concatenate([order[numbers == number][:most] for number in np.unique(numbers)]))


def subset(
    task: Task,
    *,
    max_train: int | None = None,
    max_validation: int | None = None,
    max_test: int | None = None,
    max_train_per_class: int | None = None,
    train_seed: int | None = None,
    train_on: Split | None = None,
) -> Task:
    """The task with at most so many images of each part; see `SubsetTask`.

    A task that was cut before stays so: the smaller number counts, and what is left out here is as it was. Of a
    corrupted task the one beneath is cut.

    Raises:
        ValueError: If a number is not positive, or the seed negative.

    Example:
        >>> from hf_taskvec.tasks import get_task
        >>> len(subset(get_task("counts"), max_test=20).load("test"))
        20
        >>> len(subset(subset(get_task("counts"), max_test=20), max_train=8).load("test"))
        20
        >>> sorted(subset(get_task("counts"), max_train_per_class=2).load("train")["label"])
        [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    """
    limits: dict[str, int | None] = {
        "max_train": max_train,
        "max_validation": max_validation,
        "max_test": max_test,
        "max_train_per_class": max_train_per_class,
    }
    if isinstance(task, CorruptedTask) and task.clean is not None:
        clean = subset(task.clean, **limits, train_seed=train_seed, train_on=train_on)
        return dataclasses.replace(task, clean=clean)
    for name, limit in limits.items():
        if limit is not None:
            limits[name] = limit = check_count(name, limit)
        if (before := getattr(task, name, None)) is not None:
            limits[name] = before if limit is None else min(before, limit)
    seed = None if train_seed is None else check_count("train_seed", train_seed, least=0)
    given = {"train_seed": seed, "train_on": train_on}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    known = dataclasses.fields(type(task) if isinstance(task, SubsetTask) else Task)
    return SubsetTask(**{**{spec.name: getattr(task, spec.name) for spec in known}, **limits, **chosen})
