"""Own data: which column holds the images, which the labels, and what the classes are called."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from hf_taskvec.errors import DataError, check_known
from hf_taskvec.tasks.columns import is_image, is_number, is_text
from hf_taskvec.tasks.labels import aliases, in_order, numbered, plain, read_class_names
from hf_taskvec.text import listed

logger = logging.getLogger(__name__)

MEMORY_PREFIX = "memory:"
_LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category")
_COMMON_FOLDERS = frozenset({"data", "dataset", "datasets", "images", "imagefolder", "img", "files", "default"})

ClassNames = Sequence[str] | Mapping[Any, Any]


def splits_of(data: Any) -> DatasetDict | None:
    """The splits of a dataset in memory; `None` if `data` is a name or a path.

    Raises:
        DataError: If it is something else, or a dataset that can only be read as a stream.

    Example:
        >>> list(splits_of(Dataset.from_dict({"label": [0]}))), splits_of("user/pets")
        (['train'], None)
    """
    if isinstance(data, (str, os.PathLike)):
        return None
    if isinstance(data, Dataset):
        return DatasetDict(train=data)
    if isinstance(data, Mapping) and data and all(isinstance(split, Dataset) for split in data.values()):
        return DatasetDict({str(name): split for name, split in data.items()})
    raise DataError(
        "a dataset must be a Hub id, a folder, a table, a datasets.Dataset or a DatasetDict of them, got "
        f"{type(data).__name__}" + (" (load it without streaming=True)" if "Iterable" in type(data).__name__ else "")
    )


def located(data: Any) -> tuple[str, DatasetDict | None]:
    """The Hub id, path or name in memory of a dataset, and its splits if they are in memory.

    Example:
        >>> located("user/pets"), located("~/pets")[0] == os.path.expanduser("~/pets")
        (('user/pets', None), True)
    """
    in_memory = splits_of(data)
    if data == "":
        raise DataError("a dataset must be a Hub id, a folder or a table, got an empty name ('.' is this folder)")
    return (os.path.expanduser(os.fspath(data)), None) if in_memory is None else (memory_id(in_memory), in_memory)


def memory_id(source: Mapping[str, Dataset]) -> str:
    """A name for a dataset in memory that changes with its content."""
    prints = [f"{name} {data._fingerprint}" for name, data in sorted(source.items())]
    return f"{MEMORY_PREFIX}{xxhash.xxh3_64_hexdigest(repr(prints).encode())}"


def default_name(dataset: str, source: Mapping[str, Dataset]) -> str:
    """The last part of a path or Hub id, with the one before where that says nothing; that of memory by its origin.

    Example:
        >>> default_name("user/pets", {}), default_name("pets/data", {})
        ('pets', 'pets-data')
    """
    if dataset.startswith(MEMORY_PREFIX):
        info = next(iter(source.values())).info
        return _tidy(info.dataset_name or info.builder_name or "own")
    path = Path(dataset).resolve() if Path(dataset).exists() else Path(dataset)
    last = path.stem if path.is_file() else path.name
    common = last.lower() in _COMMON_FOLDERS or (path.is_file() and last.lower() in _LABEL_COLUMNS)
    return _tidy(f"{path.parent.name}-{last}" if common and path.parent.name else last)


def _tidy(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name).strip("-") or "own"


def image_column_of(features: Features, column: str | None, dataset: str) -> str:
    """The column of images: the named one, else the only one.

    Example:
        >>> image_column_of(Features({"picture": Image()}), None, "pets")
        'picture'
    """
    if column is not None:
        check_known(f"column of {dataset}", column, features)
        return column
    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    columns = columns or [name for name, feature in features.items() if is_image(feature)]
    return _only(columns, "Image", "image_column", features, dataset)


def label_column_of(data: Dataset, column: str | None, dataset: str) -> str:
    """The column of labels: the named one, else the only `ClassLabel`, the only column of words that repeat.

    Else it is the column of numbers that is called `label`, `labels`, `class`, `class_name` or `category`.

    Example:
        >>> label_column_of(Dataset.from_dict({"kind": ["cat", "dog"] * 2}), None, "pets")
        'kind'
    """
    features = data.features
    if column is not None:
        check_known(f"column of {dataset}", column, features)
        return column
    columns = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    if not columns:
        words = [name for name, feature in features.items() if is_text(feature)]
        called = [name for name in words if name.lower() in _LABEL_COLUMNS]
        columns = [name for name in called or words if _repeats(data, name)]
        if not columns:
            columns = [name for name in features if name.lower() in _LABEL_COLUMNS and is_number(features[name])]
        if len(columns) == 1:
            logger.info("the labels of %s are the values in its column %r", dataset, columns[0])
            return str(columns[0])
        columns = []
    return _only(columns, "ClassLabel", "label_column", features, dataset)


def _repeats(data: Dataset, column: str) -> bool:
    """Whether a column's words are classes rather than captions: fewer than half as many as rows."""
    return len(data.unique(column)) <= max(len(data) // 2, 1)


def _only(columns: list[str], kind: str, argument: str, features: Features, dataset: str) -> str:
    if len(columns) != 1:
        alone = kind == "ClassLabel" and all(is_image(feature) for feature in features.values())
        advice = (
            "Images have labels by the folder of their class, train/cat/1.png, or by a table with one row an image"
            if alone
            else f"choose one with {argument}"
        )
        raise DataError(f"{dataset} has {len(columns)} columns of type {kind}; {advice}. Columns: {listed(features)}")
    return columns[0]


def classes_of(
    data: Dataset, column: str, class_names: ClassNames | None, names_column: str | None, dataset: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The class names by class number, and what the dataset calls those classes where that is something else.

    Args:
        data: The training split.
        column: The column of labels.
        class_names: As people hold them; see `labels.read_class_names`.
        names_column: A column with the name of each row's class.
        dataset: For errors.

    Raises:
        DataError: If there are no names, or if they do not fit the labels.

    Example:
        >>> classes_of(Dataset.from_dict({"kind": ["dog", "cat"] * 2}), "kind", None, None, "pets")
        (('cat', 'dog'), ())
    """
    own = label_names(data, column)
    if class_names is not None:
        if names_column is not None:
            raise DataError(f"class names of {dataset} come from class_names or from names_column, not from both")
        names, labels = read_class_names(class_names, dataset)
        if own is not None and not labels:
            labels = _labels_of_words(own, names, dataset) if is_text(data.features[column]) else ()
        return names, labels
    if names_column is not None:
        check_known(f"column of {dataset}", names_column, data.features)
        return read_class_names(_pairs(data, column, names_column, own, dataset), dataset)
    if own is None:
        raise DataError(
            f"column {column!r} of {dataset} carries no class names; pass class_names=[...] or, if a column holds "
            "them, names_column="
        )
    return tuple(own), ()


def label_names(data: Dataset, column: str) -> list[str] | None:
    """The names that a column of labels carries itself.

    Example:
        >>> label_names(Dataset.from_dict({"kind": ["10", "9"]}), "kind")
        ['9', '10']
    """
    feature = data.features[column]
    if isinstance(feature, ClassLabel):
        return list(feature.names)
    if is_text(feature):
        return in_order(word for word in data.unique(column) if word is not None)
    return None


def _labels_of_words(own: Sequence[str], names: Sequence[str], dataset: str) -> tuple[str, ...]:
    """What words in a column stand for which class name; none where they are the names."""
    if {plain(word) for word in own} <= {plain(name) for name in names}:
        return ()
    if numbered(own) is not None and len(own) == len(names):
        return tuple(in_order(own))
    pairs = aliases(own, names)
    if pairs is None:
        stranger = next(word for word in own if plain(word) not in {plain(name) for name in names})
        raise DataError(
            f"{dataset} has the label {stranger!r}, which is none of the class names {listed(names, room=150)}; "
            "pass class_names={label: name}"
        )
    logger.info("the labels of %s stand for class names by their words", dataset)
    by_class = {number: word for word, number in zip(own, pairs, strict=True)}
    return tuple(by_class[number] for number in range(len(names)))


def _pairs(data: Dataset, column: str, names_column: str, own: list[str] | None, dataset: str) -> dict[Any, Any]:
    """Each label with its name; every pair must be the only one of its label and of its name."""
    table = data.with_format("arrow", columns=list({column, names_column}))[:]
    if column == names_column:
        return {name: name for name in own or ()}
    pairs = pa.table({"label": table[column], "name": table[names_column]}).group_by(["label", "name"]).aggregate([])
    names: dict[Any, Any] = {}
    for label, name in zip(pairs["label"].to_pylist(), pairs["name"].to_pylist(), strict=True):
        key = own[label] if own is not None and isinstance(label, int) else label
        if names.setdefault(key, name) != name:
            raise DataError(
                f"label {key!r} of {dataset} has two names in {names_column!r}: {names[key]!r} and {name!r}"
            )
    if len(set(names.values())) < len(names):
        raise DataError(f"two labels of {dataset} have one name in {names_column!r}")
    return names if own is not None else dict(sorted(names.items()))
