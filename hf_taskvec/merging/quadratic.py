"""Merge methods that look at data: each matrix is regressed on what the vectors' own models compute from images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import check_finite_number, check_fraction
from hf_taskvec.merging.engine import map_parameters, map_sum, parallel, stacked, wide_dtype
from hf_taskvec.merging.modifiers import inner_merge
from hf_taskvec.merging.needs import check_prefix, is_map
from hf_taskvec.merging.quadratic_engine import Others, Quadratic, delta_terms, gram_terms
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


@merge_method("regmean_pp", paper="2508.03121", statistics=("prefix",))
def regmean_pp(
    vectors: Sequence[TaskVector],
    statistics: Sequence[Statistics],
    *,
    shrink: float = 0.95,
    ridge: float = 0.0,
    weights: Sequence[float] | None = None,
    others: Others = "average",
) -> TaskVector:
    """RegMean++: as `regmean` with what reaches each layer in the merged model, not in the vectors' own models.

    The statistics are of all vectors at once: `hf_taskvec.tuning.collect_prefix_statistics` makes them in one pass over
    the network, and merging by them repeats what was merged there. The scaling is 1.

    Args:
        vectors: Vectors of one base, all those that the statistics were made with.
        statistics: Those of each vector, with `prefix`.
        shrink: As in `regmean`; this and the others must be those of the collection.
        ridge: λ, the pull to the base; see `regmean`.
        weights: One factor per vector and its images; 1 each if left out.
        others: What parameters get that are no matrix; see `regmean`. "diagonal" is "average" here.

    Raises:
        ValueError: If a number is out of range, or is not that of the collection.
        IncompatibleVectorsError: If the statistics were made with other vectors.

    Example:
        >>> pair = [TaskVector({"w.weight": torch.tensor([row])}) for row in ([1.0, 0.0], [0.0, 2.0])]
        >>> seen = [Statistics({"prefix/w": torch.tensor([row])}) for row in ([1.0, 0.0], [0.0, 1.0])]
        >>> regmean_pp(pair, seen).deltas["w.weight"]
        tensor([[1., 2.]])
    """
    check_fraction("shrink", shrink)
    check_prefix(vectors, statistics, {"shrink": shrink, "ridge": ridge, "weights": weights, "others": others})
    engine = Quadratic(ridge, weights, others)
    return engine.merge(vectors, (), gram_terms(statistics, shrink=shrink, prefix=True))


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


@merge_method("lot", paper="2505.23859", statistics=("gram", "diagonal"))
def lot(
    vectors: Sequence[TaskVector],
    statistics: Sequence[Statistics],
    *,
    ridge: float = 0.0,
    weights: Sequence[float] | None = None,
    others: Others = "diagonal",
) -> TaskVector:
    """Layer-wise optimal task vectors: as `regmean` with whole Gram matrices, and each norm's scale by its own inputs.

    Without a ridge the pseudo-inverse is taken, as in the paper: what the images have not seen stays at the base. The
    paper's scaling is 1.2 (ViT-B/32) or 1.5 (L/14).

    Args:
        vectors: Vectors of one base.
        statistics: Those of each vector, with `gram` and `diagonal`; 16 to 64 images in the paper.
        ridge: λ, the pull to the base; see `regmean`.
        weights: One factor per vector and its images; 1 each if left out.
        others: What parameters get that are no matrix; see `regmean`.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> pair = [TaskVector({"norm.weight": torch.tensor([value])}) for value in (1.0, 4.0)]
        >>> seen = [Statistics({"diagonal/norm.weight": torch.tensor([square])}) for square in (1.0, 0.5)]
        >>> lot(pair, seen).deltas["norm.weight"]
        tensor([2.])
    """
    return Quadratic(ridge, weights, others, pseudo=True).merge(vectors, statistics, gram_terms(statistics))


@merge_method("bmm", paper="2605.12843", statistics=("gram",))
def bmm(
    vectors: Sequence[TaskVector],
    statistics: Sequence[Statistics],
    *,
    of: str = "tsv_m",
    of_settings: Mapping[str, Any] | None = None,
    inner_scaling: float = 1.0,
    ridge: float = 0.1,
    weights: Sequence[float] | None = None,
) -> TaskVector:
    """Regresses each matrix as `regmean` does, with another method's result for the anchor that the ridge pulls to.

    In Bayesian terms that result is the mean of the prior and λ its precision. Parameters that are no matrix are the
    other method's. The paper finds λ for each matrix on validation data; here there is one, which `choose_settings`
    finds there, and the anchor is scaled before it is used, since what is merged then needs a scaling near 1. The paper
    prints no code: this is its formula.

    Args:
        vectors: Vectors of one base.
        statistics: Those of each vector, with `gram`.
        of: The method whose result is the anchor.
        of_settings: Its settings.
        inner_scaling: Factor of that result.
        ridge: λ, the pull to the anchor, as a fraction of the mean eigenvalue of the summed Gram matrices.
        weights: One factor per vector and its images; 1 each if left out.

    Raises:
        UnknownNameError: If there is no such method or setting.
        ValueError: If a number is out of range, or the other method needs statistics too.

    Example:
        >>> pair = [TaskVector({"w.weight": torch.tensor([row])}) for row in ([1.0, 0.0], [3.0, 2.0])]
        >>> seen = [Statistics({"gram/w": torch.eye(2)})] * 2
        >>> bmm(pair, seen, of="average", ridge=1.0).deltas["w.weight"]
        tensor([[2., 1.]])
    """
    check_finite_number("inner_scaling", inner_scaling)
    anchor = inner_merge(of, of_settings, vectors)
    anchor = map_sum(lambda name: [inner_scaling], [anchor])
    return Quadratic(ridge, weights, anchor=anchor).merge(vectors, statistics, gram_terms(statistics))


@merge_method("actmat", paper="2604.01329")
def actmat(
    vectors: Sequence[TaskVector],
    *,
    ridge: float = 0.0,
    weights: Sequence[float] | None = None,
    others: Others = "average",
) -> TaskVector:
    """As `regmean` without data: the Gram matrix of a vector's inputs is taken to be `DᵀD` of its delta D.

    With D divided by its norm this is what `wudi(solver="exact")` minimises.

    Args:
        vectors: Vectors of one base.
        ridge: λ, the pull to the base; see `regmean`. Without it the pseudo-inverse is taken.
        weights: One factor per vector; 1 each if left out.
        others: What parameters get that are no matrix; see `regmean`. There are no norms' inputs here, so "diagonal" is
            "average".

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> pair = [TaskVector({"w": torch.eye(2)}), TaskVector({"w": 3 * torch.eye(2)})]
        >>> actmat(pair).deltas["w"].diagonal()
        tensor([2.8000, 2.8000])
    """
    engine = Quadratic(ridge, weights, others, pseudo=True)
    return engine.merge(vectors, (), delta_terms(lambda delta: delta))


@merge_method("ace", paper="2603.02945")
def ace(
    vectors: Sequence[TaskVector],
    *,
    weights: Sequence[float] | None = None,
    others: Others = "average",
) -> TaskVector:
    """As `actmat` with each delta's rows taken around their mean, and half of the mean of each merged row taken off.

    The paper adds to the sum S of the Gram matrices a collective prior whose rows are all the mean row of S. As S is
    symmetric, that leaves of each merged row all but half of its mean (Sherman and Morrison); so no matrix without
    symmetry has to be solved. Here deltas are regressed instead of weights. Left out is what the paper does to vectors
    whose norms differ by orders of magnitude, which those of a ViT do not.

    Args:
        vectors: Vectors of one base.
        weights: One factor per vector; 1 each if left out.
        others: What parameters get that are no matrix; see `actmat`.

    Raises:
        ValueError: If a weight is out of range.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([[1.0, 0.0], [0.0, 2.0]])})] * 2
        >>> ace(pair).deltas["w"].shape
        torch.Size([2, 2])
    """
    engine = Quadratic(0.0, weights, others, pseudo=True)
    merged = engine.merge(vectors, (), delta_terms(lambda delta: delta - delta.mean(dim=0)))

    def compute(name: str) -> Tensor:
        delta = merged.deltas[name]
        return delta - delta.mean(dim=1, keepdim=True) / 2 if is_map(name, delta.ndim) and delta.numel() else delta

    return map_parameters(compute, vectors)
