"""What a vector's provenance records of its task, and how it is read again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from hf_taskvec.errors import DataError
from hf_taskvec.tasks.own import MEMORY_PREFIX

logger = logging.getLogger(__name__)

# What `data_settings` records where it is not the default, and its types in JSON.
RECORDED: dict[str, tuple[type, ...]] = {
    "train_split": (str,),
    "test_split": (str,),
    "validation_split": (str,),
    "test_size": (float, int),
    "split_seed": (int,),
    "image_column": (str,),
    "label_column": (str,),
    "labels": (list, tuple),
    "skip_broken": (bool,),
}


class DataInfo(Protocol):
    """What a `VectorInfo` knows about its task."""

    @property
    def task(self) -> str | None:
        """As `VectorInfo` has it."""

    @property
    def dataset(self) -> str | None:
        """As `VectorInfo` has it."""

    @property
    def dataset_config(self) -> str | None:
        """As `VectorInfo` has it."""

    @property
    def dataset_revision(self) -> str | None:
        """As `VectorInfo` has it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """As `VectorInfo` has it."""

    @property
    def templates(self) -> tuple[str, ...]:
        """As `VectorInfo` has it."""

    @property
    def data_settings(self) -> Mapping[str, Any]:
        """As `VectorInfo` has it."""


def read_settings(info: DataInfo) -> dict[str, Any]:
    """The fields of a task in `data_settings`; what else is recorded there is for the reader."""
    if kind := info.data_settings.get("corruption"):
        told = (
            "the images of task %r were corrupted (%s at strength %s); here they are clean, `corrupt` does that again"
        )
        logger.warning(told, info.task, kind, info.data_settings.get("corruption_strength"))
    known = {key: value for key, value in info.data_settings.items() if key in RECORDED}
    for key, value in known.items():
        if type(value) not in RECORDED[key] or (key == "labels" and not all(isinstance(item, str) for item in value)):
            raise DataError(f"the provenance of task {info.task!r} has {key}={value!r:.80}, which makes no task")
    return known


def is_elsewhere(dataset: str) -> bool:
    """Whether a dataset is no Hub id, so that others cannot reach it."""
    return dataset.startswith((MEMORY_PREFIX, "/", ".", "~")) or "\\" in dataset
