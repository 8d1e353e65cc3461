"""The statistics that a merge method needs: one per vector, opened, and checked to be that vector's."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_taskvec.errors import BaseMismatchError, IncompatibleVectorsError
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.merging.registry import MergeMethod
from hf_taskvec.statistics.value import CONFIG_NAME, Statistics
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.vectors.vector import TaskVector

logger = logging.getLogger(__name__)
StatisticsSource = Statistics | str | os.PathLike[str]


def as_statistics(statistics: object, vectors: Sequence[object], method: MergeMethod) -> list[StatisticsSource]:
    """The statistics, folders and Hub ids as a list, one per vector, nothing opened yet.

    Raises:
        ValueError: If the method needs some and they lack, or takes none.

    Example:
        >>> from hf_taskvec.merging import get_method
        >>> as_statistics(None, ["out/mnist"], get_method("ties"))
        []
    """
    if statistics is None and not method.statistics:
        return []
    if not method.statistics:
        raise ValueError(f"{method.name} does not look at data; leave out statistics=")
    needed = ", ".join(method.statistics)
    remedy = f"collect_statistics(base, task, vector=vector, kinds={list(method.statistics)}) makes them"
    if "prefix" in method.statistics:
        remedy = "tuning.collect_prefix_statistics(base, vectors, tasks) makes them"
    if statistics is None:
        raise ValueError(f"{method.name} needs statistics ({needed}), one per vector; {remedy}: pass statistics=[…]")
    if isinstance(statistics, (str, os.PathLike, Statistics, Mapping)) or not isinstance(statistics, Sequence):
        raise ValueError(f"statistics must be a list, one per vector, got one {type(statistics).__name__}")
    for index, source in enumerate(statistics):
        if not isinstance(source, (str, os.PathLike, Statistics)):
            kind = type(source).__name__
            raise ValueError(f"statistics {index} is a {kind}; merge takes Statistics, folders and Hub ids")
    if len(statistics) != len(vectors):
        raise ValueError(f"{method.name} needs statistics of {len(vectors)} vectors, got {len(statistics)}; {remedy}")
    return list(statistics)


def open_statistics(source: StatisticsSource) -> tuple[str, Statistics]:
    """Statistics, and their source with the commit they came from; none for those that are open already.

    Raises:
        CheckpointError, NotCachedError, HubError: As `Statistics.from_pretrained`.
    """
    if isinstance(source, Statistics):
        return "", source
    if isinstance(source, os.PathLike) or Path(source).exists():
        return os.fspath(source), Statistics.from_pretrained(source)
    repo, _, revision = source.partition("@")
    commit = fetch_folder(repo, Wanted([CONFIG_NAME]), revision=revision or None).commit
    exact = f"{repo}@{commit}" if commit else source
    return exact, Statistics.from_pretrained(repo, revision=commit or revision or None)


def check_statistics(
    vectors: Sequence[TaskVector], statistics: Sequence[Statistics], method: MergeMethod, *, transductive: bool
) -> None:
    """Refuses statistics that are not those of their vectors.

    Raises:
        ValueError: If they lack a kind, or are of test images and that is not allowed.
        BaseMismatchError: If they are of another base.
        IncompatibleVectorsError: If they are of another task, shape or preprocessing.
    """
    for index, (vector, own) in enumerate(zip(vectors, statistics, strict=True)):
        where = f"the statistics {index} ({own.info.label!r})"
        _check_content(vector, own, method, where, transductive=transductive)
        _check_origin(vector, own, where)
    prints = {own.info.preprocessing for own in statistics} - {None}
    if len(prints) > 1:
        details = [f"{own.info.label}: {own.info.preprocessing}" for own in statistics]
        raise IncompatibleVectorsError(
            "the statistics were collected with different preprocessing of the images; collect them with one base",
            details=details,
        )


def _check_content(vector: TaskVector, own: Statistics, method: MergeMethod, where: str, *, transductive: bool) -> None:
    present = {name.partition("/")[0] for name in own.tensors} | set(own.info.kinds)
    if lacking := [kind for kind in method.statistics if kind not in present]:
        again = "" if "prefix" in lacking else f"; collect them again with kinds={list(method.statistics)}"
        again = again or "; tuning.collect_prefix_statistics(base, vectors, tasks) makes them"
        raise ValueError(f"{where} have no {' and no '.join(lacking)}, which {method.name} needs{again}")
    if own.info.split == "test" and not transductive:
        raise ValueError(
            f"{where} are of test images, so accuracies on these tell nothing about others; collect them from "
            "split='train', or pass transductive=True, which the provenance tells"
        )
    for name, shape in vector.deltas.shapes.items():
        gram = own.prefix(name) if "prefix" in method.statistics else own.gram(name)
        fisher = own.fisher(name)
        width = shape[1:].numel() if len(shape) > 1 else 0
        if {"gram", "prefix"} & set(method.statistics) and gram is None and is_map(name, len(shape)):
            raise IncompatibleVectorsError(f"{where} hold no Gram matrix of the inputs of {name!r}")
        if gram is not None and is_map(name, len(shape)):
            for tensor in (gram.factor, gram.rest):
                if tensor is not None and tensor.shape[-1] != width:
                    raise IncompatibleVectorsError(
                        f"{where} tell of {tensor.shape[-1]} inputs of {name!r}, the vector of {width}"
                    )
        if fisher is not None and fisher.shape != shape:
            raise IncompatibleVectorsError(
                f"{where} have {name!r} of shape {tuple(fisher.shape)}, the vector {tuple(shape)}"
            )


def check_prefix(
    vectors: Sequence[TaskVector], statistics: Sequence[Statistics], settings: Mapping[str, object]
) -> None:
    """Refuses `prefix` statistics that another merge was made for; those that tell nothing of theirs pass.

    Raises:
        IncompatibleVectorsError: If its vectors were others.
        ValueError: If its settings were others.

    Example:
        >>> check_prefix([], [], {"shrink": 0.95})
    """
    for index, own in enumerate(statistics):
        made = dict(own.info.prefix)
        if not made:
            continue
        if sorted(made.pop("vectors", ())) != sorted(vector_fingerprint(vector.deltas) for vector in vectors):
            raise IncompatibleVectorsError(
                f"the statistics {index} ({own.info.label!r}) were measured in a merge of other vectors, so they tell "
                "nothing of this one; tuning.collect_prefix_statistics(base, vectors, tasks) makes those of these"
            )
        if lines := [f"{name}={made.get(name)}" for name, value in settings.items() if made.get(name) != value]:
            raise ValueError(
                f"the statistics {index} ({own.info.label!r}) were measured in a merge with {', '.join(lines)}; pass "
                "the same, or collect them again with yours"
            )


def is_map(name: str, dimensions: int) -> bool:
    """Whether a parameter is the matrix of a linear map, by its name and how many dimensions it has."""
    return dimensions == 2 and "embedding" not in name


def _check_origin(vector: TaskVector, own: Statistics, where: str) -> None:
    theirs, known, info = own.info.base_hashes, vector.info.base_hashes, own.info
    if other := [name for name in known if name in theirs and theirs[name] != known[name]]:
        raise BaseMismatchError(
            f"{where} were collected with {info.base or 'another base'}, the vector {vector.info.label!r} was made "
            f"from {vector.info.base or 'another'}: {len(other)} parameters differ, first {other[0]!r}. Collect them "
            "with the vector's base and vector=",
            details=other,
        )
    if info.task is not None and vector.info.task is not None and info.task != vector.info.task:
        raise IncompatibleVectorsError(
            f"{where} are those of the task {info.task!r}, but stand in the place of the vector of "
            f"{vector.info.task!r}: give them in the order of the vectors"
        )
    if info.base_hashes and info.vector is None:
        logger.warning("%s were collected at the base, not with the vector", where.capitalize())
    elif info.vector is not None and info.vector != vector_fingerprint(vector.deltas):
        logger.warning("%s were collected with other weights of the vector %r", where.capitalize(), vector.info.label)
