"""Merge methods that are linear in the vectors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_taskvec.merging.engine import map_chunks
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.vector import TaskVector


@merge_method("average", paper="2203.05482")
def average(vectors: Sequence[TaskVector]) -> TaskVector:
    """The mean of the vectors: with scaling 1, the average of the fine-tuned models' weights (model soup)."""
    return map_chunks(lambda deltas, name: deltas.mean(dim=0), vectors)


@merge_method("task_arithmetic", paper="2212.04089")
def task_arithmetic(vectors: Sequence[TaskVector], *, weights: Sequence[float] | None = None) -> TaskVector:
    """The sum of the vectors, each times its weight.

    Args:
        vectors: Vectors of one base.
        weights: One factor per vector; 1 each if left out, as in the paper, whose one scaling is applied afterwards.

    Raises:
        ValueError: If `weights` has another length than `vectors`.
    """
    if weights is None:
        return map_chunks(lambda deltas, name: deltas.sum(dim=0), vectors)
    if len(weights) != len(vectors):
        raise ValueError(f"weights must have one factor per vector ({len(vectors)}), got {len(weights)}")
    factors = torch.tensor(weights)

    def merge_chunk(deltas: Tensor, name: str) -> Tensor:
        return factors.to(deltas) @ deltas

    return map_chunks(merge_chunk, vectors)
