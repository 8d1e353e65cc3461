"""A method's own checks of its settings, asked before a vector is fetched or opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_taskvec.errors import TaskVecError, UnknownNameError
from hf_taskvec.merging.engine import CPU
from hf_taskvec.merging.registry import MergeMethod
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import LazyDeltas

_SHAPES = {
    "vision_model.embeddings.class_embedding": torch.Size([4]),
    "vision_model.encoder.layers.0.mlp.fc1.weight": torch.Size([8, 4]),
    "vision_model.encoder.layers.1.mlp.fc1.weight": torch.Size([8, 4]),
    "vision_model.encoder.layers.1.mlp.fc1.bias": torch.Size([8]),
}  # of vectors whose entries nobody reads


class _EntriesAsked(Exception):  # noqa: N818 (it ends a rehearsal, and is no error)
    """A method wants to read entries: its settings have passed."""


def check_ranges(method: MergeMethod, count: int, settled: Mapping[str, Any]) -> None:
    """Raises what a method says of its settings before it reads an entry, so that nothing is fetched in vain.

    It is called on vectors whose entries cannot be read. What it says of these vectors, and what it would say of its
    own defaults too, does not count. A method that needs statistics, or a file that a setting names, is not called.
    """
    defaults = method.defaults
    names_a_file = any(defaults[name] is None and isinstance(value, str) for name, value in settled.items())
    if settled == defaults or method.statistics or names_a_file:
        return
    error = _refusal(method, count, settled)
    if error is not None and _refusal(method, count, defaults) is None:
        raise error


def _refusal(method: MergeMethod, count: int, settings: Mapping[str, Any]) -> ValueError | None:
    def compute(name: str) -> torch.Tensor:
        raise _EntriesAsked

    vectors = [TaskVector(LazyDeltas(_SHAPES, compute, torch.float32, CPU)) for _ in range(count)]
    try:
        method.run(vectors, settings)
    except _EntriesAsked:
        return None
    except ValueError as error:
        about_vectors = isinstance(error, TaskVecError) and not isinstance(error, UnknownNameError)
        return None if about_vectors else error
    return None
