"""`merge`: one door to every merge method, in memory or parameter by parameter into a folder."""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError, NonFiniteError, check_known
from hf_taskvec.merging.engine import AheadDeltas, thread_pool
from hf_taskvec.merging.journal import Journal, journal_key, open_journal
from hf_taskvec.merging.needs import StatisticsSource, as_statistics, check_statistics, open_statistics
from hf_taskvec.merging.registry import METHODS, TRANSDUCTIVE, MergeMethod, get_method
from hf_taskvec.merging.sources import (
    Missing,
    Source,
    as_sources,
    check_changes,
    check_factors,
    covering_alike,
    known_base,
    multiplied,
    open_source,
)
from hf_taskvec.statistics.value import Statistics
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import check_compatible
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.sharing import share_of, write_vector_together
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import check_scaling, is_finite
from hf_taskvec.weights.deltas import LazyDeltas
from hf_taskvec.weights.dtypes import as_device, as_dtype
from hf_taskvec.weights.folders import check_output_folder, check_space
from hf_taskvec.weights.kept import kept_bytes
from hf_taskvec.weights.lowrank import LowRankDeltas
from hf_taskvec.weights.processes import check_alike, from_first, processes

if TYPE_CHECKING:
    from accelerate import PartialState

MAX_SCALING = 2.0**63  # what provenance can hold


def merge(
    vectors: Sequence[Source],
    method: str = "task_arithmetic",
    *,
    output_dir: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | str | None = None,
    scaling: float = 1.0,
    device: str | torch.device | None = None,
    recipe: Mapping[str, Any] | None = None,
    missing: Missing = "refuse",
    allow_zero: bool = False,
    factors: Sequence[float] | None = None,
    statistics: Sequence[StatisticsSource] | None = None,
    over_processes: bool = False,
    resume: bool | None = None,
    **settings: Any,
) -> TaskVector:
    """Merges vectors of one base into one.

    Everything that can be refused without reading a vector is refused before one is opened. A progress bar shows up
    after two seconds; `huggingface_hub.utils.disable_progress_bars("hf_taskvec")` hides it.

    Args:
        vectors: The vectors; folders and Hub ids, with `@revision` if wanted, are opened.
        method: Name of a merge method; `list_methods` tells them.
        output_dir: Where to write the result, parameter by parameter; it is returned memory-mapped. The folder appears
            whole or not at all. Without it the result is in memory.
        dtype: Dtype of the result, also by name; float32, or float64 if the vectors are.
        scaling: Factor of the result; methods return it unscaled.
        device: Where to compute, and where a result in memory lies; by default where the vectors are. What is written
            to `output_dir` is returned on the CPU. Many methods need float64, which Apple's MPS lacks.
        recipe: What to keep in the provenance for the merge to be repeated. By default it is kept if all vectors are
            given by folder or Hub id; see `MergeRecipe`.
        missing: What a vector that lacks parameters of another gets there: "zero", or "refuse" for none.
        allow_zero: Whether a trained vector may be all zero, as after a run whose only step had learning rate 0.
        factors: A factor for each vector before it is merged, whatever the method; a negative one forgets.
        statistics: For a method that looks at data, what `collect_statistics` measured with each vector, in their
            order: values, folders or Hub ids, those of vectors if they lie beside them. Statistics of test images are
            refused unless the setting `transductive` is true.
        over_processes: Whether all processes of a launcher (`accelerate launch`, `torchrun`) call it to merge together
            into `output_dir`, which they all see: parameters are dealt by size, each process writes its shards, and the
            result is that of one process, bit for bit. Thresholds over whole vectors are taken by each of them.
        resume: Whether a merge into `output_dir` that is killed goes on where it stopped when it is called again. The
            journal beside the folder takes as much room as the result in float32, and its key a pass over all vectors,
            so only slow methods keep one unless this says otherwise.
        **settings: Settings of the method; numbers and arrays of NumPy and PyTorch become Python's.

    Returns:
        The merged vector, with the vectors' provenance as its parents.

    Raises:
        UnknownNameError: If there is no such method or setting.
        ValueError: If the method cannot take that many vectors, a setting is of another type or out of range, or
            statistics are needed and lack, lack a kind, or are of test images.
        IncompatibleVectorsError, BaseMismatchError: If names, shapes, dtypes, devices or bases differ, all are listed;
            or if statistics are of another vector.
        NonFiniteError: If a vector holds NaN or Inf, or the result would.
        OutputExistsError: If `output_dir` holds something else.
        NoSpaceError: If the disk has less room than the result needs; nothing is written then.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([1.0, 2.0])}), TaskVector({"w": torch.tensor([3.0, -2.0])})]
        >>> merge(pair, "ties", density=1.0).deltas["w"]
        tensor([2., 0.])
    """
    group = processes() if over_processes and output_dir is not None else None
    if output_dir is not None:
        check_output_folder(output_dir, marker=CONFIG_NAME)
    plan = plan_merge(
        vectors,
        method,
        dtype=dtype,
        scaling=scaling,
        device=device,
        recipe=recipe,
        missing=missing,
        allow_zero=allow_zero,
        factors=factors,
        statistics=statistics,
        settings=settings,
    )
    merged, kind = plan.vector, plan.dtype or plan.vector.dtype
    if output_dir is None:
        return _in_memory(finished(merged, plan.scaling, kind))
    kept = plan.method.resumable if resume is None else resume
    room = merged.num_entries * (kind.itemsize + kept * merged.dtype.itemsize)
    there = kept_bytes(output_dir) if kept else 0
    check_space(output_dir, room - there, "result and its journal" if kept else "result")
    if group is not None:
        check_alike(plan.facts() | {"the dtype": kind}, "a merge")
    with ExitStack() as stack:
        if kept:
            merged = stack.enter_context(_journal(output_dir, plan.key, group)).keep(merged)
        _write(finished(merged, plan.scaling), output_dir, kind, group)
    return TaskVector.from_pretrained(output_dir)


@dataclass(frozen=True)
class PlannedMerge:
    """A merge that nothing speaks against, computed when the deltas of its result are taken.

    Attributes:
        vector: The result, lazy and unscaled, with its provenance.
        scaling: The factor that it is to get.
        dtype: The dtype that it is to get, if one was named.
        method: The method.
        settings: All its settings.
        vectors: The vectors, before they are moved to a device.
        names: The exact source of each; empty if it was a vector already.
        statistics: Those that the method looks at.
    """

    vector: TaskVector
    scaling: float
    dtype: torch.dtype | None
    method: MergeMethod
    settings: Mapping[str, Any]
    vectors: Sequence[TaskVector]
    names: Sequence[str]
    statistics: Sequence[Statistics]

    def key(self, prints: Sequence[object] | None = None) -> str:
        """One hash over everything that the unscaled deltas depend on.

        Args:
            prints: What tells each vector from others; by default its fingerprint, for which all of it is read.
        """
        codes, seen = _codes(self.method, self.settings), [value.fingerprint for value in self.statistics]
        source = (codes, str(self.vector.device), seen)
        return journal_key(self.vectors, self.method.name, self.settings, source=source, prints=prints)

    def facts(self) -> dict[str, object]:
        """What processes that merge together must have in common."""
        sources = [self.names, [vector.info for vector in self.vectors]]
        facts = {"the method": self.method.name, "its settings": self.settings, "the scaling": self.scaling}
        return {**facts, "the list of vectors": sources}


def _codes(method: MergeMethod, settings: Mapping[str, Any]) -> list[str]:
    """The text of a method, and of those whose result it takes: its `of`, and theirs."""
    inner = METHODS.get(str(settings.get("of")))
    if inner is None:
        return [method.code]
    return [method.code, *_codes(inner, inner.defaults | dict(settings.get("of_settings") or {}))]


def plan_merge(
    vectors: Sequence[Source],
    method: str,
    *,
    dtype: torch.dtype | str | None = None,
    scaling: float = 1.0,
    device: str | torch.device | None = None,
    recipe: Mapping[str, Any] | None = None,
    missing: Missing = "refuse",
    allow_zero: bool = False,
    factors: Sequence[float] | None = None,
    statistics: Sequence[StatisticsSource] | None = None,
    settings: Mapping[str, Any],
) -> PlannedMerge:
    """Opens and checks what is merged; arguments and errors are those of `merge`.

    Example:
        >>> plan = plan_merge([TaskVector({"w": torch.ones(2)})] * 2, "average", settings={})
        >>> plan.vector["w"]
        tensor([1., 1.])
    """
    sources, chosen = as_sources(vectors), get_method(method)
    each, factor = check_factors(factors, len(sources)), as_scaling(scaling)
    settled, looked_at = chosen.settled(sources, settings), as_statistics(statistics, sources, chosen)
    check_known("treatment of missing parameters", missing, get_args(Missing))
    place, narrow = None if device is None else as_device(device), None if dtype is None else as_dtype(dtype)
    names, opened = _opened(sources, missing=missing)
    measured = [open_statistics(source) for source in looked_at]
    values = [value for _, value in measured]
    if measured:
        check_statistics(opened, values, chosen, transductive=settled[TRANSDUCTIVE])
    told = {"method": method, "settings": settled, "scaling": factor, "missing": missing, "allow_zero": allow_zero}
    recipe = _repeatable(names, [name for name, _ in measured], told, each, narrow) if recipe is None else recipe
    opened = opened if each is None else [multiplied(*pair) for pair in zip(opened, each, strict=True)]
    placed = opened if place is None else [_on_device(vector, place) for vector in opened]
    _check_alike("devices", placed, [v.device for v in placed], "Pass device= to move them where they are needed")
    if not allow_zero:
        check_changes(opened)
    merged = _merged(placed, chosen, settled, recipe, values)
    return PlannedMerge(merged, factor, narrow, chosen, settled, opened, names, values)


def _repeatable(
    names: Sequence[str],
    statistics: Sequence[str],
    told: Mapping[str, Any],
    factors: Sequence[float] | None,
    dtype: torch.dtype | None,
) -> dict[str, Any] | None:
    """The recipe of a merge, if everything in it was given by folder or Hub id."""
    if not all(names) or not all(statistics):
        return None
    extra = {"factors": factors, "statistics": list(statistics)}
    narrow = None if dtype is None else str(dtype).removeprefix("torch.")
    return {"vectors": list(names), **told, **{key: value for key, value in extra.items() if value}, "dtype": narrow}


def _write(
    vector: TaskVector, output_dir: str | os.PathLike[str], dtype: torch.dtype, group: PartialState | None
) -> None:
    """Computes a lazy vector into a folder, by one process or by all together."""
    with thread_pool(vector.device) as pool:
        if group is None:
            AheadDeltas.of(vector, pool).save_pretrained(output_dir, dtype=dtype)
        else:
            own = AheadDeltas.of(TaskVector(share_of(vector.deltas, group), vector.info), pool).deltas
            write_vector_together(output_dir, vector.deltas, own, vector.info, dtype=dtype, group=group)


@contextmanager
def _journal(
    output_dir: str | os.PathLike[str], key: Callable[[], str], group: PartialState | None
) -> Iterator[Journal]:
    """The journal of a merge into a folder: the first process opens it, and the others write beside it."""
    if group is None or group.is_main_process:
        with open_journal(output_dir, key()) as journal:
            if group is not None:
                from_first(journal.folder and str(journal.folder))
            yield journal
    else:
        folder = from_first(None)
        yield Journal(folder and Path(folder))


def as_scaling(value: Any) -> float:
    """A finite number, also one of NumPy or PyTorch, as a float.

    Raises:
        ValueError: If it is none.
        NonFiniteError: If it is not finite.

    Example:
        >>> as_scaling(np.float32(0.5))
        0.5
    """
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"scaling must be a number, got {type(value).__name__} {str(value)[:80]!r}")
    number = check_scaling(value)
    if abs(number) >= MAX_SCALING:
        raise NonFiniteError(f"scaling must be below 2**63, or the result overflows, got {number:g}")
    return number


def _opened(sources: Sequence[Source], *, missing: Missing) -> tuple[list[str], list[TaskVector]]:
    """The exact source of each vector, empty if it was a vector already, and vectors that fit together."""
    opened = [("", source) if isinstance(source, TaskVector) else open_source(source) for source in sources]
    vectors = [vector for _, vector in opened]
    if missing == "zero":
        vectors = covering_alike(vectors)
    check_compatible(vectors)
    _check_alike("dtypes", vectors, [v.dtype for v in vectors], "Convert them first: vector.to(torch.float32)")
    return [name for name, _ in opened], vectors


def _merged(
    vectors: Sequence[TaskVector],
    method: MergeMethod,
    settings: Mapping[str, Any],
    recipe: Mapping[str, Any] | None,
    statistics: Sequence[Statistics],
) -> TaskVector:
    """The lazy result in float32 or wider, with its provenance."""
    result = method.run(vectors, settings, statistics)
    infos, looked_at = [vector.info for vector in vectors], [own.info.summary() for own in statistics]
    info = VectorInfo.merged(infos, method=method.name, settings=settings, recipe=recipe, statistics=looked_at)
    return TaskVector(result.deltas, known_base(info, vectors[0].deltas.shapes))


def _in_memory(vector: TaskVector) -> TaskVector:
    with thread_pool(vector.device) as pool:
        deltas = AheadDeltas.of(vector, pool).deltas
        return TaskVector({name: deltas[name] for name in deltas}, vector.info)


def _on_device(vector: TaskVector, device: torch.device) -> TaskVector:
    """The vector with each delta moved when it is used; low-rank deltas stay factors."""
    if isinstance(vector.deltas, LowRankDeltas):
        return TaskVector(vector.deltas.to(device), vector.info)
    lazy = LazyDeltas(vector.deltas.shapes, lambda name: vector.deltas[name].to(device), vector.dtype, device)
    return TaskVector(lazy, vector.info)


def finished(vector: TaskVector, factor: float, dtype: torch.dtype | None = None) -> TaskVector:
    """The lazy vector with each delta scaled, rounded to a dtype if one is given, and refused if it overflows.

    Example:
        >>> finished(TaskVector({"w": torch.ones(2)}), 0.5)["w"]
        tensor([0.5000, 0.5000])
    """

    def compute(name: str) -> Tensor:
        delta = vector.deltas[name]
        result = delta if factor == 1 else delta * factor
        result = result if dtype is None else result.to(dtype)
        if not is_finite(result):
            if not is_finite(delta):
                raise NonFiniteError(
                    f"{name!r} overflows {delta.dtype} while it is merged: smaller weights or vectors do"
                )
            times = "" if factor == 1 else f" times the scaling {factor:g}"
            raise NonFiniteError(f"{name!r}{times} overflows {result.dtype}; use float32 or bfloat16, or scale less")
        return result

    if factor == 1 and dtype is None:
        return vector
    lazy = LazyDeltas(vector.deltas.shapes, compute, dtype or vector.dtype, vector.device)
    return TaskVector(lazy, dataclasses.replace(vector.info, scaling=factor))


def _check_alike(what: str, vectors: Sequence[TaskVector], values: Sequence[object], remedy: str) -> None:
    if len(set(values)) > 1:
        labels = (f"vector {index} ({vector.info.label!r})" for index, vector in enumerate(vectors))
        lines = [f"{label} is {value}" for label, value in zip(labels, values, strict=True)]
        raise IncompatibleVectorsError(f"{what} differ: {listed(lines, separator='; ')}. {remedy}", details=lines)
