"""A classification task: a dataset's splits, its class names and the prompts that turn them into a zero-shot head."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Image
from numpy.typing import NDArray

from hf_taskvec.errors import DataError, check_known
from hf_taskvec.tasks.columns import is_image
from hf_taskvec.tasks.labels import class_numbers, read_class_names
from hf_taskvec.tasks.own import (
    MEMORY_PREFIX,
    ClassNames,
    classes_of,
    default_name,
    image_column_of,
    label_column_of,
    located,
)
from hf_taskvec.tasks.recorded import RECORDED, DataInfo, is_elsewhere, read_settings
from hf_taskvec.tasks.source import BUILTIN_PREFIX, is_local, load_source, source_revision
from hf_taskvec.tasks.splits import (
    SPLIT_WORDS,
    check_apart,
    hold_out_test,
    hold_out_validation,
    is_size,
    read_split,
    tell_absent_classes,
    tell_small_validation,
    tell_unread_validation,
)
from hf_taskvec.text import listed

Split = Literal["train", "validation", "test"]

DEFAULT_TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.", "{}")


@dataclass(frozen=True)
class Task:
    """A named image-classification task. Nothing is loaded before `load`.

    Args:
        name: Short name, used in tables and file names.
        dataset: Hub id, local folder or table, or `builtin:<name>`.
        config: Configuration of the dataset.
        revision: Branch, tag or commit on the Hub.
        train_split: The dataset's split for `train` and `validation`, or a slice: `train[:80%]`.
        test_split: The dataset's split for `test`, or a slice.
        image_column: The column of images.
        label_column: The column of class numbers or words.
        class_names: One name per class, in the order of the class numbers; mappings are read as in `from_dataset`.
        templates: Prompts with one `{}` for the class name.
        epochs: Epochs to convergence. A run trains one unless told `num_train_epochs=task.epochs`.
        validation_split: The dataset's split for `validation`; a tenth of the training split if left out.
        test_size: Holds out a test part of the training split, where the dataset has none: a fraction, or how many.
        split_seed: Which rows `test_size` draws.
        labels: What the dataset calls each class, where that is not the class name.
        skip_broken: Leaves out rows whose image is missing or does not decode, and counts them, instead of stopping.
        source: The dataset itself, if it is in memory.

    Raises:
        DataError: If class names, templates or splits cannot make a task.

    Example:
        >>> from hf_taskvec import get_task
        >>> task = get_task("digits")
        >>> len(task.load("train")), len(task.load("validation")), len(task.load("test"))
        (1258, 139, 400)
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
    validation_split: str | None = None
    test_size: float | None = None
    split_seed: int = 0
    labels: tuple[str, ...] = ()
    skip_broken: bool = False
    source: DatasetDict | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        names, labels = read_class_names(self.class_names, f"task {self.name!r}")
        labels = tuple(self.labels) or labels
        templates = _several(self.templates)
        for key, value in (("class_names", names), ("labels", labels), ("templates", templates)):
            object.__setattr__(self, key, value)
        self._check_names()
        for template in templates:
            if not isinstance(template, str) or template.count("{}") != 1 or not _formats(template):
                raise DataError(
                    f"a template of task {self.name!r} must hold '{{}}' exactly once and no other braces, "
                    f"got {template!r}"
                )
        if not templates:
            raise DataError(f"task {self.name!r} has no templates")
        if self.train_split == self.test_split and self.test_size is None:
            raise DataError(f"task {self.name!r} would train on its test split {self.test_split!r}")
        if self.test_size is not None and not is_size(self.test_size):
            raise DataError(f"test_size must be a fraction in (0, 1) or a number of images, got {self.test_size!r:.80}")

    def _check_names(self) -> None:
        if len(self.class_names) < 2:
            raise DataError(f"task {self.name!r} needs at least two class names, got {list(self.class_names)}")
        if repeated := _repeated(self.class_names):
            raise DataError(f"task {self.name!r} has repeated class names: {listed(repeated)}", details=repeated)
        if repeated := _repeated(self.labels):
            raise DataError(f"task {self.name!r} has repeated labels: {listed(repeated)}", details=repeated)
        if self.labels and len(self.labels) != len(self.class_names):
            raise DataError(
                f"task {self.name!r} has {len(self.labels)} labels, but {len(self.class_names)} class names"
            )

    @classmethod
    def from_dataset(
        cls,
        id_or_folder: str | Path | Dataset | Mapping[str, Dataset],
        *,
        name: str | None = None,
        config: str | None = None,
        revision: str | None = None,
        train_split: str = "train",
        test_split: str = "test",
        validation_split: str | None = None,
        test_size: float | None = None,
        split_seed: int = 0,
        image_column: str | None = None,
        label_column: str | None = None,
        names_column: str | None = None,
        class_names: ClassNames | None = None,
        templates: str | Iterable[str] | None = None,
        epochs: int = 10,
        skip_broken: bool = False,
    ) -> Task:
        """A task on your own data; loads the dataset to read its columns and class names.

        Folders may hold class folders (`train/cat/1.png`), with or without a split above them, parquet, or a CSV or
        JSON that names image files; labels may be numbers or words. The splits are the folders on top, or what the
        names of tables say, and never words deeper in a path. Labels are matched to class names by name, or by number
        where they are numbers; what no name proves is told.

        Args:
            id_or_folder: Hub id, local folder, table (`labels.csv`), or a `Dataset` or `DatasetDict` in memory.
            name: The task's name, the last part of `id_or_folder` if left out.
            config: Configuration of the dataset.
            revision: Branch, tag or commit on the Hub.
            train_split: The dataset's split for `train` and `validation`, or a slice: `train[:80%]`.
            test_split: The dataset's split for `test`, or a slice: `train[80%:]`.
            validation_split: The dataset's split for `validation`; a tenth of the training split if left out.
            test_size: Holds out a test part of the training split: a fraction, or how many images. Each class gives
                its share.
            split_seed: Which rows `test_size` draws.
            image_column: The column of images, the only one if left out.
            label_column: The column of labels, the only `ClassLabel` or the only one of repeated words if left out.
            names_column: The column that holds the name of each row's class.
            class_names: The names in the order of the class numbers; or `id2label`, `label2id`, or a mapping from what
                the dataset calls a class to what the prompts shall call it. The dataset's own names if left out.
            templates: Prompts with one `{}`, general ones if left out.
            epochs: Epochs to convergence, which a run trains only if it is told to.
            skip_broken: Leaves out and counts rows whose image is missing or does not decode.

        Raises:
            DataError: If a column is ambiguous, if the labels carry no names or do not fit them, or if parts overlap.
            UnknownNameError: If a split, column or configuration does not exist.

        Example:
            >>> from hf_taskvec.tasks.mini import builtin_splits
            >>> flat = builtin_splits("shapes")["train"]  # a dataset without a test split
            >>> task = Task.from_dataset(flat, name="my-shapes", test_size=0.25)
            >>> len(task.load("train")), len(task.load("validation")), len(task.load("test"))
            (810, 90, 300)
        """
        dataset, in_memory = located(id_or_folder)
        source = in_memory if in_memory is not None else load_source(dataset, config, revision)
        train = read_split(source, train_split, dataset)
        label_column = label_column_of(train, label_column or names_column, dataset)
        names, labels = classes_of(train, label_column, class_names, names_column, dataset)
        task = cls(
            name=name or default_name(dataset, source),
            dataset=dataset,
            config=config,
            revision=revision,
            train_split=train_split,
            test_split=test_split,
            validation_split=validation_split,
            test_size=test_size,
            split_seed=split_seed,
            image_column=image_column_of(train.features, image_column, dataset),
            label_column=label_column,
            class_names=names,
            labels=labels,
            epochs=epochs,
            templates=DEFAULT_TEMPLATES if templates is None else _several(templates),
            skip_broken=skip_broken,
            source=in_memory,
        )
        check_apart(source, task._parts(), dataset)
        task._check_labels(source)
        if validation_split is None:
            unread = {name for name in source if SPLIT_WORDS.get(name.lower()) == "validation"}
            tell_unread_validation(task.name, train_split, tuple(sorted(unread - {train_split, test_split})))
        return task

    @classmethod
    def from_info(cls, info: DataInfo, *, dataset: str | Path | Dataset | Mapping[str, Dataset] | None = None) -> Task:
        """The task that a vector was trained on, by its provenance (`vector.info`): to measure it, or for its prompts.

        Args:
            info: The provenance.
            dataset: Where the data are, if they were a local folder or in memory; else they come from the Hub at the
                revision that the vector was trained on.

        Raises:
            DataError: If the provenance holds no class names, or names no dataset that others can reach.

        Example:
            >>> from hf_taskvec import VectorInfo, get_task
            >>> Task.from_info(VectorInfo(**get_task("digits").provenance())) == get_task("digits")
            True
        """
        if not info.task or not info.class_names or not info.templates:
            raise DataError("the provenance holds no class names and prompts, so no task can be made of it")
        if dataset is None and (info.data_settings.get("local") or not info.dataset or is_elsewhere(info.dataset)):
            raise DataError(
                f"the data of task {info.task!r} were {info.dataset!r} on another machine; pass dataset= to say where "
                "they are here"
            )
        place, in_memory = located(info.dataset if dataset is None else dataset)
        on_hub = dataset is None and not place.startswith(BUILTIN_PREFIX)
        return cls(
            name=info.task,
            dataset=place,
            config=info.dataset_config if dataset is None else None,
            source=in_memory,
            revision=info.dataset_revision if on_hub else None,
            class_names=info.class_names,
            templates=info.templates,
            **read_settings(info),
        )

    def provenance(self) -> dict[str, Any]:
        """What a `VectorInfo` stores about the task, by its fields' names; hashes the files of a local dataset."""
        return {
            "task": self.name,
            "dataset": self.dataset_name,
            "dataset_config": self.config,
            "dataset_revision": self.dataset_revision(),
            "class_names": self.class_names,
            "templates": self.templates,
            "data_settings": self.data_settings(),
        }

    def data_settings(self) -> dict[str, Any]:
        """How the task reads its dataset, where that is not the default."""
        settings: dict[str, Any] = {}
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if (spec.name in RECORDED or spec.name not in _TASK_FIELDS) and value != spec.default:
                settings[spec.name] = list(value) if isinstance(value, tuple) else value
        if self.source is not None or is_local(self.dataset):
            settings["local"] = True
        return settings

    def load(self, split: Split) -> Dataset:
        """Loads one part of the task, downloading what is not cached.

        Args:
            split: `test` is the whole test split, or what `test_size` drew. `validation` is the validation split, or a
                fixed tenth of the training split, at most 5,000 images; `train` is the rest of it.

        Returns:
            A dataset with the columns `image` (decoded on access) and `label`, in a fixed order.

        Raises:
            UnknownNameError: If a split, column or configuration does not exist.
            DataError: If the split is empty or its labels do not match the class names.
            NotCachedError: If the Hub is out of reach and the cache has no copy.
        """
        check_known("split", split, get_args(Split))
        source = self._source()
        check_apart(source, self._parts(), self.dataset)
        data = self._part(source, split)
        if split == "validation":
            tell_small_validation(self.name, len(data))
        if split == "train":
            absent = sorted(set(range(len(self.class_names))) - set(data["label"][:]))
            tell_absent_classes(self.name, split, tuple(self.class_names[number] for number in absent))
        return data

    def _part(self, source: Mapping[str, Dataset], split: Split) -> Dataset:
        own = {"test": self.test_split if self.test_size is None else None, "validation": self.validation_split}
        if (name := own.get(split)) is not None:
            return self._standard(read_split(source, name, self.dataset), name)
        data = self._standard(read_split(source, self.train_split, self.dataset), self.train_split)
        if self.test_size is not None:
            labels = np.asarray(data["label"][:])
            rest, test = hold_out_test(labels, self.test_size, seed=self.split_seed, task=self.name)
            data = data.select(test if split == "test" else rest)
        if split == "test" or self.validation_split is not None:
            return data
        train, validation = hold_out_validation(len(data), self.name)
        return data.select(train if split == "train" else validation)

    @property
    def dataset_name(self) -> str:
        """The dataset's Hub id, or the name of its folder without the path: what provenance may tell others."""
        if self.source is not None:
            return "in memory"
        return Path(self.dataset).resolve().name if is_local(self.dataset) else self.dataset

    @property
    def is_builtin(self) -> bool:
        """Whether the images are made by the package itself, in memory."""
        return self.dataset.startswith(BUILTIN_PREFIX)

    def dataset_revision(self) -> str | None:
        """The commit of the data actually used; for a local folder a hash of its data files."""
        if self.source is not None:
            return self.dataset.removeprefix(MEMORY_PREFIX)
        return source_revision(self.dataset, self.config, self.revision)

    def _source(self) -> Mapping[str, Dataset]:
        own: Mapping[str, Dataset] | None = self.source
        if own is not None:
            return own
        if self.dataset.startswith(MEMORY_PREFIX):
            raise DataError(f"the data of task {self.name!r} were in memory; make it anew by Task.from_dataset")
        return load_source(self.dataset, self.config, self.revision)

    def _parts(self) -> dict[str, str]:
        """The dataset's splits that the task reads."""
        names = {"train": self.train_split, "validation": self.validation_split}
        if self.test_size is None:
            names["test"] = self.test_split
        return {use: name for use, name in names.items() if name is not None}

    def _check_labels(self, source: Mapping[str, Dataset]) -> None:
        """Matches the labels of every split that the task reads, so that what does not fit is refused before work."""
        for name in self._parts().values():
            self._numbers(read_split(source, name, self.dataset), self._where(name))

    def _numbers(self, data: Dataset, where: str) -> NDArray[np.int64]:
        check_known(f"column of {self.dataset}", self.label_column, data.features)
        on_hub = not (self.is_builtin or self.source is not None or is_local(self.dataset))
        return class_numbers(data, self.label_column, self.class_names, self.labels, where, trusted=on_hub)

    def _where(self, split: str) -> str:
        return f"split {split!r} of task {self.name!r}"

    def _standard(self, data: Dataset, split: str) -> Dataset:
        """The same rows with the columns `image` and `label`, checked against the class names."""
        where = self._where(split)
        check_known(f"column of {self.dataset}", self.image_column, data.features)
        feature = data.features[self.image_column]
        if not is_image(feature):
            raise DataError(f"column {self.image_column!r} in {where} holds no images: {listed(data.features.items())}")
        labels = self._numbers(data, where)
        images = data.with_format(None).select_columns(self.image_column)
        if not isinstance(feature, Image):
            images = images.cast_column(self.image_column, Image())
        if self.image_column != "image":
            images = images.rename_column(self.image_column, "image")
        return images.add_column("label", labels, feature=ClassLabel(names=list(self.class_names)))


_TASK_FIELDS = frozenset(spec.name for spec in dataclasses.fields(Task))


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _formats(template: str) -> bool:
    try:
        return template.format("name") == template.replace("{}", "name")
    except (ValueError, LookupError):
        return False


def _several(templates: str | Iterable[str]) -> tuple[str, ...]:
    """One prompt is a tuple of one."""
    return (templates,) if isinstance(templates, str) else tuple(templates)
