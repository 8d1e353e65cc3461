"""Statistics out of thin air, for tests of the methods that need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from hf_taskvec.merging import get_method
from hf_taskvec.statistics import Statistics, StatisticsInfo
from hf_taskvec.statistics.maps import inputs_of
from hf_taskvec.vectors.vector import TaskVector


def made_up(
    shapes: Mapping[str, torch.Size], *, seed: int = 0, rank: int = 8, rest: float = 0.1, task: str | None = None
) -> Statistics:
    """Random statistics of every kind for parameters of these shapes."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in sorted(shapes.items()):  # a file has another order than memory
        if len(shape) > 1:
            factor = torch.randn(rank, shape[1:].numel(), generator=generator)
            for kind in ("gram", "prefix"):
                tensors[f"{kind}/{inputs_of(name)}"] = factor
                tensors[f"rest/{kind}/{inputs_of(name)}"] = torch.full(factor.shape[1:], rest**0.5)
        tensors[f"fisher/{name}"] = torch.rand(shape, generator=generator)
        if len(shape) == 1 and name.endswith(".weight"):
            tensors[f"diagonal/{name}"] = torch.rand(shape, generator=generator)
    return Statistics(tensors, StatisticsInfo(("gram", "diagonal", "fisher"), task=task, split="train"))


def needs(method: str, vectors: Sequence[TaskVector]) -> dict[str, Any]:
    """What `merge` wants besides vectors and settings: made-up statistics of each vector, if the method needs any."""
    if not get_method(method).statistics:
        return {}
    return {"statistics": [made_up(vector.deltas.shapes, seed=_seed(vector)) for vector in vectors]}


def _seed(vector: TaskVector) -> int:
    """The same for one task wherever it stands in a list."""
    return sum(map(ord, vector.info.task or ""))
