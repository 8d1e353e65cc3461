"""Merge methods that look at data: each matrix is regressed on what the vectors' own models compute from images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_taskvec.errors import check_finite_number, check_fraction
from hf_taskvec.merging.engine import map_parameters, parallel, stacked, wide_dtype
from hf_taskvec.merging.quadratic_engine import Others, Quadratic, gram_terms
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.statistics.value import Statistics
from hf_taskvec.vectors.vector import TaskVector


@merge_method("regmean", paper="2212.09849", statistics=("gram",))
def regmean(
    vectors: Sequence[TaskVector],
    statistics: Sequence[Statistics],
    *,
    shrink: float = 0.95,
    ridge: float = 0.0,
    weights: Sequence[float] | None = None,
    others: Others = "average",
) -> TaskVector:
    """The matrix whose outputs are nearest, in the mean square over the images of all tasks, to each own model's.

    The deltas are regressed instead of the weights: where the images have seen every direction that is the same, and
    what they have not seen stays at the base instead of going to zero. The patch embedding counts as a matrix; the
    authors' code averages it.

    Args:
        vectors: Vectors of one base.
        statistics: Those of each vector, with `gram`.
        shrink: Factor of the entries of the Gram matrices beside the diagonal, in (0, 1]; .9 in the paper.
        ridge: λ, the pull to the base, as a fraction of the mean eigenvalue of the summed Gram matrices.
        weights: One factor per vector and its images; 1 each if left out.
        others: What parameters get that are no matrix: "average", "sum", "base" (nothing), or "diagonal", which weighs
            scales of norms by what they multiply.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> pair = [TaskVector({"w.weight": torch.tensor([row])}) for row in ([1.0, 0.0], [0.0, 2.0])]
        >>> seen = [Statistics({"gram/w": torch.tensor([row])}) for row in ([1.0, 0.0], [0.0, 1.0])]
        >>> regmean(pair, seen).deltas["w.weight"]
        tensor([[1., 2.]])
    """
    check_fraction("shrink", shrink)
    engine = Quadratic(ridge, weights, others)
    return engine.merge(vectors, statistics, gram_terms(statistics, shrink=shrink))


@merge_method("fisher", paper="2111.09832", statistics=("fisher",))
def fisher(
    vectors: Sequence[TaskVector],
    statistics: Sequence[Statistics],
    *,
    floor: float = 1e-6,
    normalize: bool = True,
    weights: Sequence[float] | None = None,
) -> TaskVector:
    """The mean of the deltas, each entry weighted by its diagonal Fisher information.

    Args:
        vectors: Vectors of one base.
        statistics: Those of each vector, with `fisher`.
        floor: What is added to every entry of the Fisher information, so that entries nobody needs are averaged.
        normalize: Whether each vector's information is divided by its norm, as in fusion-bench, so that the tasks count
            alike whatever their likelihood.
        weights: One factor per vector; 1 each if left out.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor(delta)}) for delta in ([1.0, 1.0], [3.0, 3.0])]
        >>> seen = [Statistics({"fisher/w": torch.tensor(values)}) for values in ([3.0, 0.0], [1.0, 0.0])]
        >>> fisher(pair, seen, normalize=False).deltas["w"]
        tensor([1.5000, 2.0000])
    """
    check_finite_number("floor", floor)
    if floor < 0:
        raise ValueError(f"floor must be at least 0, got {floor}")
    factors = Quadratic(weights=weights).checked_weights(vectors)
    if normalize:
        norms = parallel(lambda own: _norm(own, vectors[0]), statistics, description="norms of Fisher information")
        factors = [
            factor / (norm + floor) if norm + floor > 0 else 0.0 for factor, norm in zip(factors, norms, strict=True)
        ]
    wide = wide_dtype(vectors)

    def compute(name: str) -> Tensor:
        deltas = stacked(vectors, name, torch.float64)
        shares = torch.zeros_like(deltas)
        for share, own, factor in zip(shares, statistics, factors, strict=True):
            known = own.fisher(name)
            share.fill_(floor * factor).add_(0.0 if known is None else known.to(deltas) * factor)
        total = shares.sum(dim=0)
        mean = (deltas * shares).sum(dim=0) / total
        return torch.where(total > 0, mean, deltas.mean(dim=0)).to(wide)

    return map_parameters(compute, vectors)


def _norm(own: Statistics, vector: TaskVector) -> float:
    """The norm of the Fisher information over a vector's parameters."""
    known = (own.fisher(name) for name in vector.deltas.shapes)
    return math.hypot(*(float(torch.linalg.vector_norm(each.double())) for each in known if each is not None))
