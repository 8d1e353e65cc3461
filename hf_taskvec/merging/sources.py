"""What `merge` takes: vectors, folders and Hub ids, of one coverage or, on request, of several."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch

from hf_taskvec.errors import IncompatibleVectorsError, check_finite_number
from hf_taskvec.hub.access import split_revision
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import check_named_alike, check_not_zero, is_zero
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.info import Kind, VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import check_scaling
from hf_taskvec.weights.deltas import LazyDeltas
from hf_taskvec.weights.lowrank import LowRankDeltas, filled

logger = logging.getLogger(__name__)
Source = TaskVector | str | os.PathLike[str]
Missing = Literal["refuse", "zero"]
TRAINED: tuple[Kind, ...] = ("fine-tuned", "gradient", "lora")  # kinds of vectors that are zero only by mistake


def as_sources(vectors: object) -> list[Source]:
    """The vectors, folders and Hub ids as a list, nothing opened yet.

    Raises:
        ValueError: If there is none, or one is something else.

    Example:
        >>> as_sources(["out/mnist", "user/gtsrb"])
        ['out/mnist', 'user/gtsrb']
    """
    if isinstance(vectors, (str, os.PathLike, TaskVector)):
        raise ValueError(f"merge takes a list of vectors, got one {type(vectors).__name__}: put it in brackets")
    if isinstance(vectors, Mapping) or not isinstance(vectors, Iterable):
        raise ValueError(f"merge takes a list of vectors, got a {type(vectors).__name__}; of a dict pass its values()")
    sources = list(vectors)
    if not sources:
        raise ValueError("merge needs at least one vector, got none")
    for index, source in enumerate(sources):
        if not isinstance(source, (str, os.PathLike, TaskVector)):
            raise ValueError(f"vector {index} is a {type(source).__name__}; merge takes vectors, folders and Hub ids")
    return sources


def open_source(source: str | os.PathLike[str]) -> tuple[str, TaskVector]:
    """The vector of a folder or Hub id (with `@revision` if wanted), and its source with the commit it came from.

    Raises:
        CheckpointError, NotCachedError, HubError: As `TaskVector.from_pretrained`.
    """
    repo, revision = split_revision(source)
    if os.path.exists(repo):
        return os.fspath(repo), TaskVector.from_pretrained(repo)
    commit = fetch_folder(repo, Wanted([CONFIG_NAME]), revision=revision).commit
    exact = f"{repo}@{commit}" if commit else os.fspath(source)
    return exact, TaskVector.from_pretrained(repo, revision=commit or revision)


def covering_alike(vectors: Sequence[TaskVector]) -> list[TaskVector]:
    """The vectors over all parameters that any of them covers; what one lacks is zero in it.

    Raises:
        IncompatibleVectorsError: If a parameter has several shapes, or two names.

    Example:
        >>> parts = [TaskVector({"a": torch.ones(2)}), TaskVector({"b": torch.ones(1)})]
        >>> [list(vector) for vector in covering_alike(parts)]
        [['a', 'b'], ['a', 'b']]
    """
    check_named_alike(vectors)
    shapes: dict[str, torch.Size] = {}
    lines = []
    for index, vector in enumerate(vectors):
        for name, shape in vector.deltas.shapes.items():
            if shapes.setdefault(name, shape) != shape:
                lines.append(f"{name!r} has shape {tuple(shapes[name])} and, in vector {index}, {tuple(shape)}")
    if lines:
        raise IncompatibleVectorsError(f"the vectors differ: {listed(lines, separator='; ')}", details=lines)
    return [
        vector if list(vector.deltas.shapes) == list(shapes) else TaskVector(filled(vector.deltas, shapes), vector.info)
        for vector in vectors
    ]


def check_factors(factors: Iterable[float] | None, count: int) -> list[float] | None:
    """One finite factor for each of `count` vectors, none of them 0.

    Raises:
        ValueError: If there are more or fewer, or one is no number or 0: that vector would count without a say.

    Example:
        >>> check_factors([0.5, -1], 2)
        [0.5, -1.0]
    """
    if factors is None:
        return None
    values = list(factors)
    if len(values) != count:
        raise ValueError(f"factors must hold one number for each of {count} vectors, got {len(values)}")
    for value in values:
        check_finite_number("factors", value)
        if value == 0:
            raise ValueError("factors must not be 0: leave out the vector that is not to count")
    return [float(value) for value in values]


def multiplied(vector: TaskVector, factor: float) -> TaskVector:
    """The vector times a factor, computed when it is used; low-rank deltas stay factors.

    Example:
        >>> multiplied(TaskVector({"w": torch.ones(2)}), -0.5)["w"]
        tensor([-0.5000, -0.5000])
    """
    if factor == 1:
        return vector
    deltas = vector.deltas
    info = dataclasses.replace(vector.info, scaling=check_scaling(vector.info.scaling * factor))
    if isinstance(deltas, LowRankDeltas):
        parts = {
            name: dataclasses.replace(item, scaling=item.scaling * factor) for name, item in deltas.factors.items()
        }
        return TaskVector(LowRankDeltas(parts, deltas.shapes), info)
    return TaskVector(LazyDeltas(deltas.shapes, lambda name: deltas[name] * factor, vector.dtype, vector.device), info)


def known_base(info: VectorInfo, names: Iterable[str]) -> VectorInfo:
    """The provenance without the base's hashes if some parameters have none: such a file could not be checked."""
    if not info.base_hashes or set(info.base_hashes) == set(names):
        return info
    logger.warning("The base of %s is known for some of its parameters only, so none is checked", info.label)
    return dataclasses.replace(info, base_hashes={})


def check_changes(vectors: Sequence[TaskVector]) -> None:
    """Raises if a trained vector is zero; tells of others that are.

    Raises:
        IncompatibleVectorsError: If one was trained and is zero, as after a first step at learning rate 0.
    """
    check_not_zero(vectors, kinds=TRAINED)
    for index, vector in enumerate(vectors):
        if vector.info.kind not in TRAINED and is_zero(vector.deltas):
            logger.warning("Vector %d (%r) is zero: it adds nothing, but counts", index, vector.info.label)
