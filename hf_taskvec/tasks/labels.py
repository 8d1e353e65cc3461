"""Classes by name: what a dataset calls them, what the prompts call them, and which is which."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset
from numpy.typing import NDArray

from hf_taskvec.errors import DataError
from hf_taskvec.tasks.columns import is_text, values_of
from hf_taskvec.text import listed, shortened

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"(\D*)(\d+)(\D*)")
_DECIMAL = re.compile(r"[-+]?\d+(\.\d+)?", re.ASCII)


def read_class_names(value: Any, where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names as people hold them.

    Args:
        value: A sequence in the order of the class numbers; `id2label` (number to name), `label2id` (name to number);
            or a mapping from what the dataset calls a class to what the prompts call it.
        where: What the names belong to, for errors.

    Returns:
        The class names by class number, and what the dataset calls those classes (empty: the same, or numbers from 0).

    Raises:
        DataError: If the names have no order, are no text or their numbers repeat.

    Example:
        >>> read_class_names({"dog": 1, "cat": 0}, "pets")
        (('cat', 'dog'), ())
        >>> read_class_names({"n01": "a cat", "n02": "a dog"}, "pets")
        (('a cat', 'a dog'), ('n01', 'n02'))
    """
    if isinstance(value, (str, bytes)):
        raise DataError(f"the class names of {where} must be several, got the text {value!r}")
    if isinstance(value, (set, frozenset)):
        raise DataError(f"the class names of {where} come as a set, which has no order; pass a list")
    if isinstance(value, Mapping):
        return _from_mapping(value, where)
    try:
        names = tuple(value)
    except TypeError:
        raise DataError(f"the class names of {where} must be a list of names, got {type(value).__name__}") from None
    return _texts(names, where), ()


def _from_mapping(value: Mapping[Any, Any], where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    keys, values = [_number(key) for key in value], [_number(item, text=False) for item in value.values()]
    if keys and all(number is not None for number in keys):
        pairs = list(zip(keys, value.values(), strict=True))
    elif values and all(number is not None for number in values):
        pairs = list(zip(values, value, strict=True))
    else:
        return _texts(tuple(value.values()), where), _texts(tuple(value), where)
    by_number = {number: name for number, name in pairs if number is not None}
    if len(by_number) != len(pairs):
        raise DataError(f"the class names of {where} give two classes one number: {dict(value)!r:.200}")
    numbers = sorted(by_number)
    names = _texts(tuple(by_number[number] for number in numbers), where)
    return names, () if numbers == list(range(len(numbers))) else tuple(map(str, numbers))


def _number(value: Any, *, text: bool = True) -> int | None:
    """A class number, as JSON keys also in digits."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    return int(value) if text and isinstance(value, str) and re.fullmatch(r"\d{1,9}", value) else None


def _texts(values: tuple[Any, ...], where: str) -> tuple[str, ...]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(f"class name {row} of {where} must be text, got {type(value).__name__} {value!r:.80}")
        if not value.strip() or not value.isprintable():
            raise DataError(f"class name {row} of {where} is empty or holds control characters: {value!r:.80}")
    return tuple(str(value) for value in values)


def numbered(names: Sequence[str]) -> list[float] | None:
    """The numbers in names that differ by a number alone (`7`, `class_07`, `-1`, `0.5`); `None` if some do not.

    Example:
        >>> numbered(["class_10", "class_2"]), numbered(["cat", "dog"])
        ([10, 2], None)
    """
    if names and all(_DECIMAL.fullmatch(name.strip()) for name in names):
        return [int(name) if name.strip().lstrip("+-").isdigit() else float(name) for name in names]
    matches = [_NUMBERED.fullmatch(name.strip()) for name in names]
    affixes = {(match[1], match[3]) for match in matches if match is not None}
    if not names or None in matches or len(affixes) != 1:
        return None
    return [int(match[2]) for match in matches if match is not None]


def in_order(names: Iterable[str]) -> list[str]:
    """Names in the order of their numbers, where they are numbered, else of the alphabet.

    Example:
        >>> in_order(["10", "9", "1"])
        ['1', '9', '10']
    """
    names = sorted(names)
    numbers = numbered(names)
    if numbers is None:
        return names
    return [name for _, name in sorted(zip(numbers, names, strict=True))]


def plain(name: str) -> str:
    """A name without case, punctuation and `CamelCase`.

    Example:
        >>> plain("AnnualCrop"), plain("T-shirt / top")
        ('annual crop', 't shirt top')
    """
    if re.fullmatch(r"\s*[-+]?[\d.,]+\s*", name):
        return name.strip()
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return re.sub(r"[\W_]+", " ", apart).strip().lower()


def _comparable(names: Sequence[str]) -> list[str]:
    """Plain names, or the names as they are if being plain makes them one (`+` and `-`)."""
    result = [plain(name) for name in names]
    return result if all(result) and len(set(result)) == len(result) else [name.strip() for name in names]


def match_classes(
    own: Sequence[str], class_names: Sequence[str], labels: Sequence[str], where: str, *, trusted: bool = False
) -> list[int]:
    """The class number of each of a dataset's own labels.

    The names decide: `labels` if given, else equal names, else numbers by their value. What no name proves is taken by
    position and told.

    Args:
        own: What the dataset calls its classes, in the order of its own numbers.
        class_names: The task's class names.
        labels: What the dataset calls those classes, if that is known.
        where: The split, for errors.
        trusted: Whether the order is known to be right where no name proves it, as for a registered task on the Hub.

    Raises:
        DataError: If a label is no class, or if names contradict the order.

    Example:
        >>> match_classes(["0", "10", "2"], ["zero", "two", "ten"], ["0", "2", "10"], "a split")
        [0, 2, 1]
    """
    if labels:
        return _by_name(own, labels, where)
    ours, theirs = _comparable(class_names), _comparable(own)
    _check_count(own, class_names, where)
    if ours == theirs:
        return list(range(len(own)))
    if sorted(ours) == sorted(theirs):
        row = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise DataError(
            f"the class names of {where} are in another order than its labels: "
            f"label {row} is {own[row]!r}, not {class_names[row]!r}"
        )
    numbers = numbered(own)
    if numbers is not None:
        return _by_value(own, numbers, class_names, where)
    return _by_position(own, class_names, where, trusted=trusted)


def _check_count(own: Sequence[str], class_names: Sequence[str], where: str) -> None:
    if len(own) != len(class_names):
        raise DataError(f"{where} has {len(own)} classes in its data, but {len(class_names)} class names")


def _by_name(
    own: Sequence[str], labels: Sequence[str], where: str, *, rows: NDArray[np.int64] | None = None
) -> list[int]:
    """The class number of each own name; where the data's rows hold indices of `own`, an error names the first row."""
    exact = {label: number for number, label in enumerate(labels)}
    loose = {plain(label): number for number, label in enumerate(labels)}
    unique = len(loose) == len(labels)
    numbers = [exact.get(name, loose.get(plain(name)) if unique else None) for name in own]
    if None in numbers:
        stranger = numbers.index(None)
        place = "" if rows is None else f"row {np.flatnonzero(rows == stranger)[0]} in "
        raise DataError(
            f"{place}{where} has the label {own[stranger]!r}, which is none of the classes: {_listed(labels)}; "
            "pass class_names={label: name}"
        )
    return [number for number in numbers if number is not None]


def _by_value(own: Sequence[str], numbers: list[float], class_names: Sequence[str], where: str) -> list[int]:
    if len(set(numbers)) != len(numbers):
        raise DataError(f"{where} has labels of one number: {_listed(own)}; pass class_names={{label: name}}")
    ranks = {number: rank for rank, number in enumerate(sorted(numbers))}
    if sorted(numbers) != list(range(len(own))):
        first = min(range(len(own)), key=numbers.__getitem__)
        _tell_once(
            f"the labels of {where} are numbers from {min(numbers)} to {max(numbers)}, taken in their order: "
            f"{own[first]!r} is {class_names[0]!r}"
        )
    return [ranks[number] for number in numbers]


def _by_position(own: Sequence[str], class_names: Sequence[str], where: str, *, trusted: bool) -> list[int]:
    theirs, ours = [_words(name) for name in own], [_words(name) for name in class_names]
    unproven = [row for row, words in enumerate(theirs) if not _alike(words, ours[row])]
    for row in unproven if not trusted else ():
        elsewhere = [number for number, words in enumerate(ours) if number != row and _alike(theirs[row], words)]
        if elsewhere:
            raise DataError(
                f"the class names of {where} are in another order than its labels: label {row} is {own[row]!r}, not "
                f"{class_names[row]!r}, and {class_names[elsewhere[0]]!r} is class {elsewhere[0]}; "
                "pass class_names={label: name}"
            )
    if unproven and not trusted:
        _tell_once(
            f"the class names of {where} are taken by position: its label {own[unproven[0]]!r} is "
            f"{class_names[unproven[0]]!r}; pass class_names={{label: name}} to be sure"
        )
    return list(range(len(own)))


def _words(name: str) -> frozenset[str]:
    return frozenset(plain(name).split())


def _alike(left: frozenset[str], right: frozenset[str]) -> bool:
    """Whether the words of one name are all in the other."""
    return bool(left and right) and (left <= right or right <= left)


def aliases(own: Sequence[str], class_names: Sequence[str]) -> list[int] | None:
    """The class number of each own name, if the words of the names pair them off one to one; else `None`.

    A single pair that is left over belongs together.

    Example:
        >>> aliases(["SeaLake", "Forest"], ["forest", "lake or sea"])
        [1, 0]
    """
    if len(own) != len(class_names):
        return None
    ours, theirs = _comparable(class_names), _comparable(own)
    pairs: dict[int, int] = {row: ours.index(name) for row, name in enumerate(theirs) if name in ours}
    words = [_words(name) for name in class_names]
    for row, name in enumerate(own):
        free = [number for number in range(len(ours)) if number not in pairs.values()]
        fitting = [number for number in free if _alike(_words(name), words[number])]
        if row not in pairs and len(fitting) == 1:
            pairs[row] = fitting[0]
    left = set(range(len(own))) - pairs.keys()
    if len(left) == 1 and len(own) > 2:
        pairs[left.pop()] = (set(range(len(ours))) - set(pairs.values())).pop()
    if len(pairs) < len(own) or len(set(pairs.values())) < len(own):
        return None
    return [pairs[row] for row in range(len(own))]


def class_numbers(
    data: Dataset, column: str, class_names: Sequence[str], labels: Sequence[str], where: str, *, trusted: bool = False
) -> NDArray[np.int64]:
    """The class number of each row, (N,): from numbers, `ClassLabel` or words.

    Raises:
        DataError: If a label is missing, of another type or none of the classes; the row is named.

    Example:
        >>> rows = Dataset.from_dict({"label": ["dog", "cat", "dog"]})
        >>> class_numbers(rows, "label", ["cat", "dog"], [], "a split").tolist()
        [1, 0, 1]
    """
    values, feature = values_of(data, column), data.features[column]
    if values.null_count:
        row = values.is_null().index(True).as_py()
        raise DataError(f"{values.null_count} labels are missing in {where}, the first in row {row}")
    if is_text(feature):
        return _from_words(values, class_names, labels, where)
    if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        raise DataError(f"column {column!r} in {where} holds {values.type}, not class numbers or names")
    numbers = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    if pa.types.is_boolean(values.type) and (labels or {plain(name) for name in class_names} == {"false", "true"}):
        mapping = _by_name(["false", "true"], labels or class_names, where)
    elif isinstance(feature, ClassLabel) and feature.names:
        mapping = match_classes(feature.names, class_names, labels, where, trusted=trusted)
    elif labels:
        return _from_words(values.cast(pa.string()), class_names, labels, where)
    else:
        mapping = list(range(len(class_names)))
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(mapping)))
    if wrong.size:
        raise DataError(
            f"row {wrong[0]} in {where} has label {numbers[wrong[0]]}, but there are {len(mapping)} class names "
            "(numbered from 0; pass class_names={number: name} where the data count otherwise)"
        )
    classes: NDArray[np.int64] = np.asarray(mapping, dtype=np.int64)[numbers]
    return classes


def _from_words(values: pa.Array, class_names: Sequence[str], labels: Sequence[str], where: str) -> NDArray[np.int64]:
    encoded = values.dictionary_encode()
    words, rows = encoded.dictionary.to_pylist(), encoded.indices.to_numpy(zero_copy_only=False)
    numbers = numbered(words) if not labels else None
    if numbers is not None and not set(map(plain, words)) <= set(map(plain, class_names)):
        _check_count(words, class_names, where)
        mapping = _by_value(words, numbers, class_names, where)
    else:
        mapping = _by_name(words, labels or class_names, where, rows=rows)
    classes: NDArray[np.int64] = np.asarray(mapping, dtype=np.int64)[rows]
    return classes


@lru_cache(maxsize=1024)
def _tell_once(message: str) -> None:
    logger.warning("%s", shortened(message))


def _listed(names: Sequence[str]) -> str:
    return listed(map(repr, names), room=150)
