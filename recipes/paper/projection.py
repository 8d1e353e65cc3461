"""Trajectories of runs on their common principal components, as the paper draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.merging.geometry import inner_products
from hf_taskvec.vectors.vector import TaskVector


@dataclass(frozen=True)
class Projection:
    """Trajectories on their first principal components.

    Attributes:
        points: For each trajectory, (K + 1, components): the base first, then each vector.
        explained: Each component's share of the variance.
    """

    points: Mapping[str, Tensor]
    explained: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"points": {name: p.tolist() for name, p in self.points.items()}, "explained": list(self.explained)}


def project_trajectories(trajectories: Mapping[str, Sequence[TaskVector]], *, components: int = 2) -> Projection:
    """Projects the vectors of several runs from one base on their common first principal components.

    The components come from the inner products alone, so no vector is held in memory.

    Args:
        trajectories: The vectors of each run, in order.
        components: How many components.
    """
    # without provenance: those of a run start from different weights and are compared all the same
    vectors = [TaskVector(vector.deltas) for run in trajectories.values() for vector in run]
    products = torch.zeros(len(vectors) + 1, len(vectors) + 1, dtype=torch.float64)  # row 0 is the base, a zero vector
    products[1:, 1:] = torch.stack(list(inner_products(vectors).values())).sum(dim=0)
    centred = products - products.mean(dim=0) - products.mean(dim=1, keepdim=True) + products.mean()
    values, basis = torch.linalg.eigh(centred)
    order = values.argsort(descending=True)[:components]
    scores = basis[:, order] * values[order].clamp(min=0).sqrt()
    scores = scores - scores[0]  # the base is the origin
    points, start = {}, 1
    for name, run in trajectories.items():
        points[name] = torch.cat([scores[:1], scores[start : start + len(run)]])
        start += len(run)
    return Projection(points, tuple((values[order] / values.clamp(min=0).sum()).tolist()))
