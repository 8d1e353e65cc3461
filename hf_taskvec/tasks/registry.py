"""The registered tasks and suites by name. A task is one JSON file in `data/`: the fields of `Task` and a `note`."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hf_taskvec.errors import DataError, UnknownNameError
from hf_taskvec.tasks.labels import aliases, plain
from hf_taskvec.tasks.own import ClassNames, label_column_of, label_names
from hf_taskvec.tasks.source import config_names, is_local, load_source
from hf_taskvec.tasks.task import Task
from hf_taskvec.text import listed

logger = logging.getLogger(__name__)

_NUMBER = re.compile(r"(?i)\s*(class|label|category|cls|c|id)?[\s_-]*\d+\s*")
_IDENTIFIER = re.compile(r"\w_\w|[a-z][A-Z]")
DATA_DIR_VARIABLE = "HF_TASKVEC_DATA_DIR"

_VISION8 = ("sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
_VISION14 = (*_VISION8, "oxford_flowers102", "pcam", "fer2013", "oxford_iiit_pet", "stl10", "cifar100")
_MINI = ("digits", "shapes", "patterns", "counts")
_VISION20 = (*_VISION14, "cifar10", "food101", "fashion_mnist", "emnist", "kmnist", "rendered_sst2")

SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vision8": _VISION8,
        "vision14": _VISION14,
        "vision20": _VISION20,
        "paper7": ("cifar100", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "svhn"),
        "mini": _MINI,
        "studio": (*_MINI, "arrows", "faces", "places", "sizes", "hues"),
    }
)


def _read_tasks() -> dict[str, Task]:
    tasks = {}
    for file in files("hf_taskvec.tasks").joinpath("data").iterdir():
        fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        fields.pop("note", None)  # for the reader of the file
        fields |= {key: tuple(fields[key]) for key in ("class_names", "templates")}
        name = file.name.removesuffix(".json")
        tasks[name] = Task(name=name, **fields)
    order = [*_VISION20, *sorted(tasks.keys() - set(_VISION20))]
    return {name: tasks[name] for name in order}


TASKS: Mapping[str, Task] = MappingProxyType(_read_tasks())


def get_task(name: str, *, data_dir: str | Path | None = None) -> Task:
    """The task called `name`; `-` and `_` are the same in a name.

    With a data folder, from the argument or the environment variable `HF_TASKVEC_DATA_DIR`, the dataset in
    `<folder>/<name>` replaces the one on the Hub, and a folder there that is not registered is a task too. Its own
    labels stand for the registered class names by name, or by number; where they do not pair off, its own names are
    used with general templates, and a warning says so. Builtin tasks are never replaced.

    Args:
        name: A registered name, a folder in `data_dir`, or the path of a folder of your own; see `Task.from_dataset`.
        data_dir: A folder of datasets.

    Raises:
        UnknownNameError: If there is no such task.
        DataError: If the folder's dataset does not fit the task.

    Example:
        >>> get_task("counts").class_names[:2]
        ('one dot', 'two dots')
    """
    if not isinstance(name, str):
        raise TypeError(f"a task's name must be text, got {_kind(name)}; see Task.from_dataset for own data")
    folders = _folders(data_dir)
    key = _key(name)
    registered = TASKS.get(key)
    if registered is not None and (key not in folders or registered.is_builtin):
        if key in folders:
            told = "%s is not read: %r is an embedded task; pass the folder's path to Task.from_dataset, or rename it"
            logger.warning(told, folders[key], key)
        return registered
    if key not in folders:
        is_path = os.sep in name or "/" in name
        if is_path and is_local(str(Path(name).expanduser())):
            return Task.from_dataset(Path(name).expanduser())
        known = [*TASKS, *(folder.name for folder in folders.values()), *SUITES]
        hint = "For own data pass the path of a folder that exists, data_dir=, or Task.from_dataset(...)."
        raise UnknownNameError("task or suite", name, known, hint=hint)
    return Task.from_dataset(folders[key]) if registered is None else _local(registered, folders[key])


def get_tasks(names: str | Iterable[str], *, data_dir: str | Path | None = None) -> list[Task]:
    """The tasks of all `names`, where a suite's name stands for its tasks.

    Args:
        names: Names of tasks and suites.
        data_dir: A folder of datasets, as for `get_task`.

    Raises:
        UnknownNameError: If there is no such task or suite.
        DataError: If a task comes twice.

    Example:
        >>> [task.name for task in get_tasks("mini")]
        ['digits', 'shapes', 'patterns', 'counts']
    """
    return as_tasks(names, data_dir=data_dir)


def as_tasks(
    tasks: Task | str | Iterable[Task | str], *, data_dir: str | Path | None = None, needed_by: str | None = None
) -> list[Task]:
    """The tasks that a caller means: one or many, each a `Task` or the name of a task or suite.

    Args:
        tasks: The tasks.
        data_dir: A folder of datasets for the names, as for `get_task`.
        needed_by: What cannot do without any task; if left out, none is no error.

    Raises:
        UnknownNameError: If there is no such task or suite.
        DataError: If two tasks have one name, by which results are told apart, or if there is none and one is needed.
        TypeError: If something is neither a task nor a name.

    Example:
        >>> [task.name for task in as_tasks([get_task("digits"), "counts"])]
        ['digits', 'counts']
    """
    if isinstance(tasks, (Task, str)):
        tasks = [tasks]
    if isinstance(tasks, Mapping) or not isinstance(tasks, Iterable):
        raise TypeError(f"tasks must be a Task, a name, or a list of them, got {_kind(tasks)}")
    chosen: list[Task] = []
    for task in tasks:
        if isinstance(task, str):
            chosen += [get_task(name, data_dir=data_dir) for name in SUITES.get(task, (task,))]
        elif isinstance(task, Task):
            chosen.append(task)
        else:
            raise TypeError(f"tasks must hold Tasks and names, got {_kind(task)}; see Task.from_dataset for own data")
    _check_distinct(chosen)
    if needed_by is not None and not chosen:
        raise DataError(f"{needed_by} needs at least one task, got none")
    return chosen


def as_task(task: Task | str, *, data_dir: str | Path | None = None, needed_by: str) -> Task:
    """The one task that a caller means; see `as_tasks`.

    Raises:
        ValueError: If it is several, as a suite is.

    Example:
        >>> as_task("counts", needed_by="forget").name
        'counts'
    """
    first, *further = as_tasks(task, data_dir=data_dir, needed_by=needed_by)
    if further:
        names = listed([first.name, *(one.name for one in further)])
        raise ValueError(f"{needed_by} takes one task, and these are several tasks: {names}")
    return first


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"


def _check_distinct(tasks: Iterable[Task]) -> None:
    datasets: dict[str, str] = {}
    for task in tasks:
        if task.name in datasets:
            raise DataError(
                f"task {task.name!r} comes twice, on {datasets[task.name]} and on {task.dataset}: results are told "
                "apart by a task's name. If they are two tasks, give one a name: Task.from_dataset(..., name=...)"
            )
        datasets[task.name] = task.dataset


def _key(name: str) -> str:
    return name.replace("-", "_")


def _folders(data_dir: str | Path | None) -> dict[str, Path]:
    """The dataset folders by name, none without a data folder."""
    chosen = data_dir or os.environ.get(DATA_DIR_VARIABLE)
    if not chosen:
        return {}
    root = Path(chosen).expanduser()
    if not root.is_dir():
        raise DataError(f"the data folder {str(root)!r} is not a folder")
    return {_key(folder.name): folder for folder in sorted(root.iterdir()) if folder.is_dir()}


def _local(task: Task, folder: Path) -> Task:
    """The registered task on the dataset in `folder`, whose columns, splits and labels may have other names."""
    config = task.config if task.config in config_names(folder) else None
    source = load_source(str(folder), config)
    train = source.get(task.train_split)
    features = train.features if train is not None else {}
    label_column = task.label_column if task.label_column in features else None
    own_names = None if train is None else label_names(train, label_column_of(train, label_column, str(folder)))
    names = _registered_names(task, own_names, folder)
    local = Task.from_dataset(
        folder,
        name=task.name,
        config=config,
        train_split=task.train_split,
        test_split=task.test_split if task.test_split in source else "test",
        image_column=task.image_column if task.image_column in features else None,
        label_column=label_column,
        class_names=names,
        epochs=task.epochs,
    )
    return replace(local, templates=task.templates) if names is not None else local


def _registered_names(task: Task, own_names: Sequence[str] | None, folder: Path) -> ClassNames | None:
    """The registered class names as far as they fit a folder's labels; `None` if its own names must do, which is told.

    Labels that are numbers, or nothing but the word class and a number, stand for classes by their value.
    """
    if own_names is None or all(_NUMBER.fullmatch(name) for name in own_names):
        return task.class_names
    ours, theirs = sorted(map(plain, task.class_names)), sorted(map(plain, own_names))
    # Names in words of its own are the folder's prompts; identifiers are none.
    pairs = aliases(own_names, task.class_names) if ours == theirs or any(map(_IDENTIFIER.search, own_names)) else None
    if pairs is None:
        logger.warning(
            "task %r on %s has the folder's own class names (%s) and general prompts: its labels do not pair off with "
            "the registered names, so its accuracies do not compare with those of the registered task",
            task.name,
            folder,
            listed(map(repr, own_names), room=100),
        )
        return None
    by_class = {number: own for own, number in zip(own_names, pairs, strict=True)}
    ordered = [by_class[number] for number in range(len(own_names))]
    for own, name in zip(ordered, task.class_names, strict=True):
        if not set(plain(own).split()) & set(plain(name).split()):
            logger.warning(
                "task %r on %s: the label %r is taken for %r, which is left over", task.name, folder, own, name
            )
    return dict(zip(ordered, task.class_names, strict=True))
