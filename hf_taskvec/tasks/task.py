"""A classification task: a dataset's splits, its class names and the prompts that turn them into a zero-shot head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from numpy.random import RandomState  # its streams are frozen: every version of NumPy holds out the same images

from hf_taskvec.errors import DataError, UnknownNameError
from hf_taskvec.tasks.source import load_source, source_revision
from hf_taskvec.text import listed

Split = Literal["train", "validation", "test"]

DEFAULT_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "{}")
VALIDATION_FRACTION = 0.1
VALIDATION_MAXIMUM = 5000
VALIDATION_SEED = 2212  # the same for everyone: scores chosen on validation are comparable


@dataclass(frozen=True)
class Task:
    """A named image-classification task. Nothing is loaded before `load`.

    Args:
        name: Short name, used in tables and file names.
        dataset: Hub id, local folder, or `builtin:<name>`.
        config: Configuration of the dataset.
        revision: Branch, tag or commit on the Hub.
        train_split: The dataset's split for `train` and `validation`.
        test_split: The dataset's split for `test`.
        image_column: The column of images.
        label_column: The column of class numbers.
        class_names: One name per class, in the order of the class numbers.
        templates: Prompts with one `{}` for the class name.
        epochs: Epochs to convergence.

    Raises:
        DataError: If class names, templates or splits cannot make a task.
    """

    name: str
    dataset: str
    config: str | None = None
    revision: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    image_column: str = "image"
    label_column: str = "label"
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    epochs: int = 10

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise DataError(f"task {self.name!r} needs at least two class names, got {list(self.class_names)}")
        if repeated := sorted({name for name in self.class_names if self.class_names.count(name) > 1}):
            raise DataError(f"task {self.name!r} has repeated class names: {listed(repeated)}", details=repeated)
        for template in self.templates:
            if template.count("{}") != 1:
                raise DataError(f"a template of task {self.name!r} must hold '{{}}' exactly once, got {template!r}")
        if not self.templates:
            raise DataError(f"task {self.name!r} has no templates")
        if self.train_split == self.test_split:
            raise DataError(f"task {self.name!r} would train on its test split {self.test_split!r}")

    @classmethod
    def from_dataset(
        cls,
        id_or_folder: str | Path,
        *,
        name: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        train_split: str = "train",
        test_split: str = "test",
        image_column: str | None = None,
        label_column: str | None = None,
        class_names: Sequence[str] | None = None,
        templates: Sequence[str] | None = None,
        epochs: int = 10,
    ) -> Task:
        """A task on your own data; loads the dataset to read its columns and class names.

        Args:
            id_or_folder: Hub id or local folder, anything `datasets.load_dataset` takes.
            name: The task's name, the last part of `id_or_folder` if left out.
            config: Configuration of the dataset.
            revision: Branch, tag or commit on the Hub.
            train_split: The dataset's split for `train` and `validation`.
            test_split: The dataset's split for `test`.
            image_column: The column of images, the only `Image` column if left out.
            label_column: The column of class numbers, the only `ClassLabel` column if left out.
            class_names: The names of the `ClassLabel` column if left out.
            templates: Prompts with one `{}`, general ones if left out.
            epochs: Epochs to convergence.

        Raises:
            DataError: If a column is ambiguous or the labels carry no names.
            UnknownNameError: If a split, column or configuration does not exist.
        """
        dataset = str(id_or_folder)
        source = load_source(dataset, config, revision)
        _split(source, test_split, dataset)
        features = _split(source, train_split, dataset).features
        image_column = image_column or _only_column(features, Image, "image_column", dataset)
        label_column = label_column or _only_column(features, ClassLabel, "label_column", dataset)
        own_names = _label_names(features, label_column, dataset)
        class_names = class_names or own_names
        if class_names is None:
            raise DataError(f"column {label_column!r} of {dataset} carries no class names; pass class_names=[...]")
        _check_names(class_names, own_names, dataset)
        return cls(
            name=name or Path(dataset).resolve().name,
            dataset=dataset,
            config=config,
            revision=revision,
            train_split=train_split,
            test_split=test_split,
            image_column=image_column,
            label_column=label_column,
            class_names=tuple(class_names),
            templates=tuple(templates or DEFAULT_TEMPLATES),
            epochs=epochs,
        )

    def load(self, split: Split) -> Dataset:
        """Loads one part of the task, downloading what is not cached.

        Args:
            split: `validation` is a fixed tenth of the training split, at most 5,000 images; `train` is the rest of
                it; `test` is the whole test split.

        Returns:
            A dataset with the columns `image` (decoded on access) and `label`, in a fixed order.

        Raises:
            UnknownNameError: If a split, column or configuration does not exist.
            DataError: If the split is empty or its labels do not match the class names.
            NotCachedError: If the Hub is out of reach and the cache has no copy.
        """
        if split not in get_args(Split):
            raise UnknownNameError("split", split, get_args(Split))
        source = load_source(self.dataset, self.config, self.revision)
        name = self.test_split if split == "test" else self.train_split
        data = self._standard(_split(source, name, self.dataset), name)
        if split == "test":
            return data
        train, validation = _hold_out(len(data), self.name)
        return data.select(train if split == "train" else validation)

    @property
    def dataset_name(self) -> str:
        """The dataset's Hub id, or the name of its folder without the path: what provenance may tell others."""
        path = Path(self.dataset)
        return path.resolve().name if path.is_dir() else self.dataset

    def dataset_revision(self) -> str | None:
        """The commit of the data actually used; for a local folder a hash of its data files."""
        return source_revision(self.dataset, self.config, self.revision)

    def _standard(self, data: Dataset, split: str) -> Dataset:
        """The same rows with the columns `image` and `label`, checked against the class names."""
        where = f"split {split!r} of task {self.name!r}"
        for column in (self.image_column, self.label_column):
            if column not in data.features:
                raise UnknownNameError(f"column of {self.dataset}", column, data.features)
        if not isinstance(data.features[self.image_column], Image):
            raise DataError(f"column {self.image_column!r} in {where} holds no images: {data.features}")
        _check_names(self.class_names, _label_names(data.features, self.label_column, self.dataset), where)
        labels = _class_numbers(data, self.label_column, len(self.class_names), where)
        images = data.select_columns(self.image_column)
        if self.image_column != "image":
            images = images.rename_column(self.image_column, "image")
        return images.add_column("label", labels, feature=ClassLabel(names=list(self.class_names)))


def _split(source: DatasetDict, name: str, dataset: str) -> Dataset:
    if name not in source:
        raise UnknownNameError(f"split of {dataset}", name, source)
    return source[name]


def _only_column(features: Features, kind: type, argument: str, dataset: str) -> str:
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        raise DataError(
            f"{dataset} has {len(found)} columns of type {kind.__name__}; choose one with {argument}. "
            f"Columns: {listed(features)}"
        )
    return str(found[0])


def _label_names(features: Features, column: str, dataset: str) -> list[str] | None:
    """The names that a column of labels carries itself."""
    if column not in features:
        raise UnknownNameError(f"column of {dataset}", column, features)
    return features[column].names if isinstance(features[column], ClassLabel) else None


def _check_names(class_names: Sequence[str], own_names: Sequence[str] | None, where: str) -> None:
    """Refuses another number of classes, or the dataset's own names in another order."""
    if own_names is None:
        return
    if len(own_names) != len(class_names):
        raise DataError(f"{where} has {len(own_names)} classes in its data, but {len(class_names)} class names")
    ours, theirs = _plain(class_names), _plain(own_names)
    if ours != theirs and sorted(ours) == sorted(theirs):
        row = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        raise DataError(
            f"the class names of {where} are in another order than its labels: "
            f"label {row} is {own_names[row]!r}, not {class_names[row]!r}"
        )


def _plain(names: Iterable[str]) -> list[str]:
    return [re.sub(r"[\W_]+", " ", name).strip().lower() for name in names]


def _class_numbers(data: Dataset, column: str, num_classes: int, where: str) -> np.ndarray:
    """The labels as int64, all of them in [0, num_classes)."""
    values = data.with_format("arrow", columns=[column])[:][column]
    if not (pa.types.is_integer(values.type) or pa.types.is_boolean(values.type)):
        raise DataError(f"column {column!r} in {where} holds {values.type}, not class numbers")
    if values.null_count:
        raise DataError(f"{values.null_count} labels are missing in {where}")
    labels: np.ndarray = values.cast(pa.int64()).to_numpy()
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise DataError(
            f"row {wrong[0]} in {where} has label {labels[wrong[0]]}, but there are {num_classes} class names"
        )
    return labels


def _hold_out(count: int, task: str) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of the training and the validation part, both ascending."""
    if count < 2:
        raise DataError(f"task {task!r} has {count} training image, so none can be held out for validation")
    size = min(max(int(count * VALIDATION_FRACTION), 1), VALIDATION_MAXIMUM)
    order = RandomState(VALIDATION_SEED).permutation(count)
    return np.sort(order[size:]), np.sort(order[:size])
