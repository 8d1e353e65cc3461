"""`merge`: one door to every merge method, in memory or parameter by parameter into a folder."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from hf_taskvec.errors import IncompatibleVectorsError, NonFiniteError
from hf_taskvec.merging.engine import AheadDeltas, LazyDeltas, thread_pool, wide_dtype
from hf_taskvec.merging.journal import journal_key, open_journal
from hf_taskvec.merging.registry import (
    get_method,
)
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import check_compatible
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import check_output_folder
from hf_taskvec.weights.lowrank import LowRankDeltas


def merge(
    vectors: Sequence[TaskVector],
    method: str = "task_arithmetic",
    *,
    output_dir: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    scaling: float = 1.0,
    device: str | torch.device | None = None,
    recipe: Mapping[str, Any] | None = None,
    **settings: Any,
) -> TaskVector:
    """Merges vectors of one base into one.

    A progress bar shows up after two seconds; `huggingface_hub.utils.disable_progress_bars("hf_taskvec")` hides it.

    Args:
        vectors: The vectors.
        method: Name of a merge method; `list_methods` tells them.
        output_dir: Where to write the result, parameter by parameter; it is returned memory-mapped. The folder appears
            whole or not at all; a slow method that is killed goes on where it stopped when it is called again. Without
            it the result is in memory.
        dtype: Dtype of the result; float32, or float64 if the vectors are.
        scaling: Factor of the result; methods return it unscaled.
        device: Where to compute, and where a result in memory lies; by default where the vectors are. What is written
            to `output_dir` is returned on the CPU. Many methods need float64, which Apple's MPS lacks.
        recipe: What to keep in the provenance, beside the settings, for the merge to be repeated; see `MergeRecipe`.
        **settings: Settings of the method.

    Raises:
        UnknownNameError: If there is no such method or setting.
        ValueError: If the method cannot take that many vectors, or a setting is out of range.
        IncompatibleVectorsError, BaseMismatchError: If names, shapes, dtypes, devices or bases differ; all are listed.
        NonFiniteError: If a vector holds NaN or Inf.
        OutputExistsError: If `output_dir` holds something else.
    """
    vectors = list(vectors)
    if not vectors:
        raise ValueError("merge needs at least one vector, got none")
    if not math.isfinite(scaling):
        raise NonFiniteError(f"scaling must be finite, got {scaling}")
    chosen = get_method(method)
    chosen.check(vectors, settings)
    check_compatible(vectors)
    _check_alike(vectors, "dtype", "Convert them first: vector.to(torch.float32)")
    if output_dir is not None:
        check_output_folder(output_dir, marker=CONFIG_NAME)
    settings = {**chosen.defaults, **settings}
    originals = vectors
    if device is not None:
        device = torch.empty(0, device=device).device  # with its index: each thread has a current device of its own
        vectors = [_on_device(vector, device) for vector in vectors]
    _check_alike(vectors, "device", "Pass device= to move them where they are needed")
    merged = chosen.merge(vectors, **settings)
    info = VectorInfo.merged([vector.info for vector in vectors], method=method, settings=settings, recipe=recipe)
    merged = TaskVector(merged.deltas, info)
    dtype = dtype or wide_dtype(vectors)
    if output_dir is None:
        return _in_memory(_scaled(merged, scaling), dtype)
    with ExitStack() as stack:
        if chosen.resumable:
            key = journal_key(originals, method, settings, source=chosen.merge.__module__)
            merged = stack.enter_context(open_journal(output_dir, key)).keep(merged)
        pool = stack.enter_context(thread_pool(vectors[0].device))
        AheadDeltas.of(_scaled(merged, scaling), pool).save_pretrained(output_dir, dtype=dtype)
    return TaskVector.from_pretrained(output_dir)


def _in_memory(vector: TaskVector, dtype: torch.dtype) -> TaskVector:
    with thread_pool(vector.device) as pool:
        deltas = AheadDeltas.of(vector, pool).deltas
        return TaskVector({name: deltas[name].to(dtype) for name in deltas}, vector.info)


def _on_device(vector: TaskVector, device: torch.device) -> TaskVector:
    """The vector with each delta moved when it is used; low-rank deltas stay factors."""
    if isinstance(vector.deltas, LowRankDeltas):
        return TaskVector(vector.deltas.to(device), vector.info)
    lazy = LazyDeltas(vector.deltas.shapes, lambda name: vector.deltas[name].to(device), vector.dtype, device)
    return TaskVector(lazy, vector.info)


def _scaled(vector: TaskVector, factor: float) -> TaskVector:
    """The lazy vector with each delta multiplied when it is used."""
    if factor == 1:
        return vector
    lazy = LazyDeltas(vector.deltas.shapes, lambda name: vector.deltas[name] * factor, vector.dtype, vector.device)
    return TaskVector(lazy, dataclasses.replace(vector.info, scaling=factor))


def _check_alike(vectors: Sequence[TaskVector], what: str, remedy: str) -> None:
    found = [getattr(vector, what) for vector in vectors]
    if len(set(found)) > 1:
        lines = [f"vector {i} ({v.info.label!r}) is {d}" for i, (v, d) in enumerate(zip(vectors, found, strict=True))]
        raise IncompatibleVectorsError(f"{what}s differ: {listed(lines, separator='; ')}. {remedy}", details=lines)
