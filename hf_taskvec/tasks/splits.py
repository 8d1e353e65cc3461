"""Parts of a dataset: splits and slices by name, and test and validation parts that are drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from datasets import Dataset, ReadInstruction, concatenate_datasets
from numpy.random import RandomState  # its streams are frozen: every version of NumPy holds out the same images
from numpy.typing import NDArray

from hf_taskvec.errors import DataError, UnknownNameError, is_finite_number
from hf_taskvec.text import listed

logger = logging.getLogger(__name__)

VALIDATION_FRACTION = 0.1
VALIDATION_MAXIMUM = 5000
VALIDATION_SEED = 2212  # the same for everyone: scores chosen on validation are comparable
SMALL_VALIDATION = 50
SPLIT_WORDS = {  # what people call the splits
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
}

Rows = NDArray[np.int64]


def read_split(source: Mapping[str, Dataset], split: str, dataset: str) -> Dataset:
    """A split by name, or slices of splits as `datasets` writes them: `train[:80%]`, `train+extra`.

    Raises:
        UnknownNameError: If there is no such split.
        DataError: If it cannot be read as a slice, or is empty.

    Example:
        >>> rows = Dataset.from_dict({"label": list(range(10))})
        >>> read_split({"train": rows}, "train[80%:]", "numbers")["label"][:]
        [8, 9]
    """
    parts = [source[name].select(range(*rows)) for name, rows in _pieces(source, split, dataset)]
    if split in source:
        parts = [source[split]]
    data = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    if len(data) == 0:
        raise DataError(f"split {split!r} of {dataset} is empty")
    return data


def check_apart(source: Mapping[str, Dataset], splits: Mapping[str, str], dataset: str) -> None:
    """Raises a `DataError` if two of the named parts share rows.

    Example:
        >>> rows = Dataset.from_dict({"label": list(range(10))})
        >>> check_apart({"train": rows}, {"train": "train[:80%]", "test": "train[80%:]"}, "numbers")
    """
    if len(set(splits.values())) == len(splits) and all(split in source for split in splits.values()):
        return  # whole splits of several names, none of which need be opened
    seen: list[tuple[str, str, range]] = []
    for use, split in splits.items():
        if split not in source and not _is_slice(split):
            continue  # told by who reads it
        for name, rows in _pieces(source, split, dataset):
            span = range(*rows)
            for other, theirs, taken in seen:
                if other != use and theirs == name and max(span.start, taken.start) < min(span.stop, taken.stop):
                    raise DataError(
                        f"{use}_split={split!r} and {other}_split={splits[other]!r} of {dataset} share rows: "
                        f"{max(span.start, taken.start)} of {name!r} is in both"
                    )
            seen.append((use, name, span))


def _pieces(source: Mapping[str, Dataset], split: str, dataset: str) -> list[tuple[str, tuple[int, int]]]:
    """The splits and their rows, from and to, that a name or a slice stands for."""
    if split in source:
        return [(split, (0, len(source[split])))]
    if not _is_slice(split):
        hint = ""
        if split == "test":
            hint = (
                "Hold a part out by test_size=0.2, or by slices: train_split='train[:80%]', test_split='train[80%:]'."
            )
        raise UnknownNameError(f"split of {dataset}", split, source, hint=hint)
    try:
        instructions = ReadInstruction.from_spec(split).to_absolute({name: len(data) for name, data in source.items()})
    except (ValueError, AssertionError, TypeError) as error:
        known = ", ".join(source)
        raise DataError(f"{split!r} is no slice of {dataset}, whose splits are {known}: {error}") from error
    return [(piece.splitname, (piece.from_ or 0, piece.to)) for piece in instructions]


def _is_slice(split: str) -> bool:
    return any(sign in split for sign in "[+")


def hold_out_validation(count: int, task: str) -> tuple[Rows, Rows]:
    """Row numbers of the training and the validation part, both ascending.

    Example:
        >>> train, validation = hold_out_validation(30, "numbers")
        >>> validation.tolist()
        [8, 22, 26]
    """
    if count < 2:
        raise DataError(f"task {task!r} has {count} training image, so none can be held out for validation")
    size = min(max(int(count * VALIDATION_FRACTION), 1), VALIDATION_MAXIMUM)
    order = RandomState(VALIDATION_SEED).permutation(count)
    return np.sort(order[size:]), np.sort(order[:size])


def hold_out_test(labels: Rows, test_size: float, *, seed: int, task: str) -> tuple[Rows, Rows]:
    """Row numbers of what is left and of the test part, both ascending; each class gives its share.

    Args:
        labels: Class numbers, (N,).
        test_size: A fraction of the rows, in (0, 1), or how many, from 1 on.
        seed: Another seed draws other rows.
        task: The task, for errors.

    Raises:
        DataError: If nothing is left to train on.

    Example:
        >>> rest, test = hold_out_test(np.array([0] * 4 + [1] * 4), 0.5, seed=0, task="numbers")
        >>> len(rest), int((test < 4).sum())
        (4, 2)
    """
    count = len(labels)
    size = round(test_size * count) if test_size < 1 else int(test_size)
    if not 0 < size < count - 1:
        raise DataError(f"test_size={test_size} of task {task!r} takes {size} of {count} images")
    order = RandomState(seed).permutation(count)
    # Rows by their place within their class, as a fraction of it: the smallest are an equal share of every class.
    places = np.empty(count)
    for number in np.unique(labels):
        mine = order[labels[order] == number]
        places[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
    ranked = order[np.argsort(places[order], kind="stable")]
    return np.sort(ranked[size:]), np.sort(ranked[:size])


def is_size(value: object) -> bool:
    """Whether a value says how much to hold out: a fraction in (0, 1), or a whole number from 1 on.

    Example:
        >>> is_size(0.2), is_size(30), is_size(1.5), is_size("0.2")
        (True, True, False, False)
    """
    return is_finite_number(value) and (0 < value < 1 or (value >= 1 and float(value).is_integer()))


@lru_cache(maxsize=256)
def tell_small_validation(task: str, count: int) -> None:
    """Says once that a choice made on so few images is hardly one."""
    if count < SMALL_VALIDATION:
        error = 50 / count**0.5
        logger.warning(
            "the validation part of task %r has %d images: accuracies on it are right to some %.0f points, and so is a "
            "scaling chosen on it",
            task,
            count,
            error,
        )


@lru_cache(maxsize=256)
def tell_absent_classes(task: str, split: str, absent: tuple[str, ...]) -> None:
    """Says once that a part has no image of some classes."""
    if absent:
        logger.warning("the %s part of task %r has no image of %s", split, task, listed(map(repr, absent), room=150))


@lru_cache(maxsize=256)
def tell_unread_validation(task: str, train_split: str, unread: tuple[str, ...]) -> None:
    """Says once that a dataset has a validation split of its own, which the task does not read."""
    if unread:
        logger.warning(
            "task %r holds out a tenth of %r for validation and does not read the dataset's own split %s; "
            "validation_split=%r takes it",
            task,
            train_split,
            listed(map(repr, unread)),
            unread[0],
        )
