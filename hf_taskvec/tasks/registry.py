"""The registered tasks and suites by name. A task is one JSON file in `data/`: the fields of `Task` and a `note`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hf_taskvec.errors import DataError, UnknownNameError
from hf_taskvec.tasks.source import BUILTIN_PREFIX, config_names, load_source
from hf_taskvec.tasks.task import DEFAULT_TEMPLATES, Task

DATA_DIR_VARIABLE = "HF_TASKVEC_DATA_DIR"

_VISION8 = ("sun397", "stanford_cars", "resisc45", "eurosat", "svhn", "gtsrb", "mnist", "dtd")
_VISION14 = (*_VISION8, "oxford_flowers102", "pcam", "fer2013", "oxford_iiit_pet", "stl10", "cifar100")
_VISION20 = (*_VISION14, "cifar10", "food101", "fashion_mnist", "emnist", "kmnist", "rendered_sst2")

SUITES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vision8": _VISION8,
        "vision14": _VISION14,
        "vision20": _VISION20,
        "paper7": ("cifar100", "dtd", "eurosat", "gtsrb", "mnist", "resisc45", "svhn"),
        "mini": ("digits", "shapes", "patterns", "counts"),
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
    class names are used with general templates; where it has none, or only numbers, the registered class names and
    templates are. Builtin tasks are never replaced.

    Args:
        name: A registered name, or a folder in `data_dir`.
        data_dir: A folder of datasets.

    Raises:
        UnknownNameError: If there is no such task.
        DataError: If the folder's dataset does not fit the task.
    """
    folders = _folders(data_dir)
    key = _key(name)
    registered = TASKS.get(key)
    if registered is not None and (key not in folders or registered.dataset.startswith(BUILTIN_PREFIX)):
        return registered
    if key not in folders:
        raise UnknownNameError("task or suite", name, [*TASKS, *(folder.name for folder in folders.values()), *SUITES])
    return Task.from_dataset(folders[key]) if registered is None else _local(registered, folders[key])


def get_tasks(names: str | Iterable[str], *, data_dir: str | Path | None = None) -> list[Task]:
    """The tasks of all `names`, where a suite's name stands for its tasks.

    Args:
        names: Names of tasks and suites.
        data_dir: A folder of datasets, as for `get_task`.

    Raises:
        UnknownNameError: If there is no such task or suite.
        DataError: If a task comes twice.
    """
    names = [names] if isinstance(names, str) else list(names)
    tasks = [get_task(task, data_dir=data_dir) for name in names for task in SUITES.get(name, (name,))]
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise DataError(f"task {task.name!r} comes twice in {', '.join(names)}")
        seen.add(task.name)
    return tasks


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
    """The registered task on the dataset in `folder`, whose columns and splits may have other names."""
    config = task.config if task.config in config_names(folder) else None
    source = load_source(str(folder), config)
    features = source[task.train_split].features if task.train_split in source else {}
    image_column = task.image_column if task.image_column in features else None
    label_column = task.label_column if task.label_column in features else None
    own_names = getattr(features.get(label_column), "names", None)
    if own_names is None or all(name.strip().isdigit() for name in own_names):
        own_names = task.class_names
    local = Task.from_dataset(
        folder,
        name=task.name,
        config=config,
        train_split=task.train_split,
        test_split=task.test_split if task.test_split in source else "test",
        image_column=image_column,
        label_column=label_column,
        class_names=own_names,
        epochs=task.epochs,
    )
    same_names = local.class_names == task.class_names
    return replace(local, templates=task.templates if same_names else DEFAULT_TEMPLATES)
