"""Merging: `merge(vectors, method)`; a method is one decorated function in a family file of this package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_taskvec.artifact import CONFIG_NAME, load_vector, save_vector
from hf_taskvec.compatibility import check_compatible, merged_info
from hf_taskvec.merging import arithmetic  # noqa: F401 (registers its methods)
from hf_taskvec.merging.registry import METHODS, MergeMethod, get_method, list_methods, merge_method
from hf_taskvec.storage import check_output_folder
from hf_taskvec.vector import TaskVector

__all__ = ["METHODS", "MergeMethod", "get_method", "list_methods", "merge", "merge_method"]


def merge(
    vectors: Sequence[TaskVector],
    method: str = "task_arithmetic",
    *,
    output_dir: str | os.PathLike[str] | None = None,
    dtype: torch.dtype | None = None,
    **settings: Any,
) -> TaskVector:
    """Merges vectors of one base into one, unscaled.

    Args:
        vectors: The vectors.
        method: Name of a merge method; `list_methods` tells them.
        output_dir: Where to write the result, parameter by parameter; it is returned memory-mapped. Without it the
            result is in memory.
        dtype: Dtype of the result; float32, or float64 if a vector is.
        **settings: Settings of the method.

    Raises:
        UnknownNameError: If there is no such method or setting.
        ValueError: If the method cannot take that many vectors, or a setting is out of range.
        IncompatibleVectorsError, BaseMismatchError: If names, shapes or bases differ; all are listed.
        NonFiniteError: If a vector holds NaN or Inf.
        OutputExistsError: If `output_dir` holds something else.
    """
    vectors = list(vectors)
    if not vectors:
        raise ValueError("merge needs at least one vector, got none")
    chosen = get_method(method)
    chosen.check(vectors, settings)
    check_compatible(vectors)
    if output_dir is not None:
        check_output_folder(output_dir, marker=CONFIG_NAME)
    info = merged_info(vectors, method, {**chosen.defaults, **settings})
    merged = TaskVector(chosen.merge(vectors, **settings).deltas, info)
    dtype = dtype or max((torch.promote_types(v.dtype, torch.float32) for v in vectors), key=lambda d: d.itemsize)
    if output_dir is None:
        return TaskVector({name: merged.deltas[name].to(dtype) for name in merged.deltas}, info)
    save_vector(merged, output_dir, dtype=dtype)
    return load_vector(Path(output_dir))
