"""Merge methods that trim, elect signs or select among the vectors, entry by entry."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_taskvec.errors import check_fraction
from hf_taskvec.merging.engine import Scope, map_chunks, map_rows, wide_dtype
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.merging.selection import kept, magnitude_thresholds, thresholds
from hf_taskvec.vectors.vector import TaskVector


@merge_method("ties", paper="2306.01708")
def ties(vectors: Sequence[TaskVector], *, density: float = 0.2, scope: Scope = "vector") -> TaskVector:
    """Trims each vector, elects a sign per entry and averages the deltas that agree with it.

    An entry whose kept deltas sum to exactly 0 stays 0, as in the paper; the authors' code takes the sign that most
    entries of the vector have. It keeps `int(density * n) + 1` of n entries, this `round(density * n)`.

    Args:
        vectors: Vectors of one base.
        density: Fraction of entries kept, in (0, 1]; entries tied with the smallest kept one are kept too.
        scope: Whether the fraction counts over the whole vector, as in the paper, or over each parameter. Norms and
            biases are entries like any other.

    Raises:
        ValueError: If `density` is outside (0, 1].

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([-1.0, 1.0])})]
        >>> ties(pair, density=1.0).deltas["w"]
        tensor([3., 1.])
    """
    check_fraction("density", density)
    smallest = magnitude_thresholds(vectors, density, scope)

    def merge_chunk(deltas: Tensor, name: str) -> Tensor:
        return agreeing_mean(trim_(deltas, smallest[name]))

    return map_chunks(merge_chunk, vectors)


@merge_method("breadcrumbs", paper="2312.06795")
def breadcrumbs(
    vectors: Sequence[TaskVector], *, density: float = 0.143, outliers: float = 0.007, scope: Scope = "parameter"
) -> TaskVector:
    """Drops the largest and the many small entries of each vector and sums the rest.

    Fractions count over each parameter, as in the paper. The authors' code counts along the last dimension, so over
    each row of a matrix; a convolution's kernel is so narrow there that it drops it altogether.

    Args:
        vectors: Vectors of one base.
        density: Fraction of entries kept, in (0, 1]: the paper's gamma - beta, with gamma .993 and beta .85.
        outliers: Fraction of the largest entries dropped, in [0, 1): the paper's 1 - gamma. A parameter keeps at least
            one entry, and entries tied at a bound are kept.
        scope: Whether the fractions count over the whole vector or over each parameter, as in the paper.

    Raises:
        ValueError: If a fraction is out of range or both exceed 1 together.

    Example:
        >>> one = TaskVector({"w": torch.arange(1.0, 11.0)})
        >>> breadcrumbs([one], density=0.2, outliers=0.1).deltas["w"]
        tensor([0., 0., 0., 0., 0., 0., 0., 8., 9., 0.])
    """
    check_fraction("density", density)
    if not 0 <= outliers < 1 or density + outliers > 1 + 1e-9:
        raise ValueError(f"outliers must be in [0, 1) and at most 1 - density, got {outliers} with density {density}")

    def ranks(size: int) -> list[int]:
        top = min(round(outliers * size), size - 1)
        return [top + 1, min(top + kept(density, size), size)]

    bounds = thresholds(lambda deltas, name: deltas.abs_(), vectors, ranks, scope)

    def merge_chunk(deltas: Tensor, name: str) -> Tensor:
        upper, lower = bounds[name]
        for row, bound in zip(trim_(deltas, lower), upper, strict=True):
            row.mul_(row.abs().le_(bound))  # le_ leaves 0.0 and 1.0: far cheaper than a boolean mask
        return deltas.sum(dim=0)

    return map_chunks(merge_chunk, vectors)


@merge_method("magmax", paper="2407.06322")
def magmax(vectors: Sequence[TaskVector]) -> TaskVector:
    """Takes each entry from the vector in which its magnitude is largest; of two opposite ones, the positive.

    The paper applies a scaling of 0.5.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([-1.0, 1.0])})]
        >>> magmax(pair).deltas["w"]
        tensor([3., 1.])
    """
    wide = wide_dtype(vectors)

    def merge_rows(rows: Sequence[Tensor], name: str) -> Tensor:
        highest, lowest = rows[0].to(wide, copy=True), rows[0].to(wide, copy=True)
        for row in rows[1:]:
            torch.maximum(highest, row, out=highest)
            torch.minimum(lowest, row, out=lowest)
        return torch.maximum(highest, -lowest).copysign_(highest + lowest)

    return map_rows(merge_rows, vectors)


@merge_method("consensus_ta", paper="2405.07813")
def consensus_ta(vectors: Sequence[TaskVector], *, agreement: int = 2, strength: float = 0.4) -> TaskVector:
    """Sums the vectors where at least `agreement` of them need the entry.

    A vector needs an entry (its TALL mask) where its delta is at least `strength` times as large as what separates it
    from the merged delta. The paper chooses `strength` per task on validation data from 0.2 to 0.6; here one value
    serves all.

    Args:
        vectors: Vectors of one base.
        agreement: How many vectors must need an entry, the paper's k; all of them if there are fewer.
        strength: The paper's lambda, positive.

    Raises:
        ValueError: If `agreement` or `strength` is not positive.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.5])}), TaskVector({"w": torch.tensor([1.0, 1.5])})]
        >>> consensus_ta(pair).deltas["w"]
        tensor([0., 3.])
    """
    check_consensus(agreement, strength)

    wide = wide_dtype(vectors)

    def merge_rows(rows: Sequence[Tensor], name: str) -> Tensor:
        total = rows[0].to(wide, copy=True)
        for row in rows[1:]:
            total += row
        return consensus(total, rows, agreement, strength)

    return map_rows(merge_rows, vectors)


@merge_method("consensus_ties", paper="2405.07813")
def consensus_ties(
    vectors: Sequence[TaskVector],
    *,
    density: float = 0.2,
    scope: Scope = "vector",
    agreement: int = 2,
    strength: float = 0.4,
) -> TaskVector:
    """As `consensus_ta`, with TIES in place of the sum; its agreeing deltas are summed, as in the paper.

    Counts and signs are those of `ties`, which tells how they differ from the authors' code.

    Args:
        vectors: Vectors of one base.
        density: As in `ties`. The masks compare with the untrimmed vectors.
        scope: As in `ties`.
        agreement: As in `consensus_ta`.
        strength: As in `consensus_ta`.

    Raises:
        ValueError: If `density` is outside (0, 1], or `agreement` or `strength` is not positive.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.5])}), TaskVector({"w": torch.tensor([1.0, 1.5])})]
        >>> consensus_ties(pair, density=1.0).deltas["w"]
        tensor([0., 3.])
    """
    check_fraction("density", density)
    check_consensus(agreement, strength)
    smallest = magnitude_thresholds(vectors, density, scope)

    def merge_chunk(deltas: Tensor, name: str) -> Tensor:
        merged = agreeing_mean(trim_(deltas.clone(), smallest[name]), total=True)
        return consensus(merged, deltas, agreement, strength)

    return map_chunks(merge_chunk, vectors)


def trim_(deltas: Tensor, smallest: Tensor) -> Tensor:
    """Zeroes, in place, each row's entries (T, n) below the smallest magnitude (T, 1) it keeps."""
    below = torch.nextafter(smallest, smallest.new_tensor(-torch.inf))  # hardshrink keeps what is above its bound
    for row, bound in zip(deltas, below.flatten().tolist(), strict=True):
        torch.ops.aten.hardshrink.out(row, bound, out=row)
    return deltas


def agreeing_mean(deltas: Tensor, *, total: bool = False) -> Tensor:
    """The mean over the T deltas (T, n) that have the sign of their sum, zeros left out; or their total."""
    elected = deltas.sum(dim=0).sign_()
    magnitude, count, scratch = torch.zeros_like(elected), torch.zeros_like(elected), torch.empty_like(elected)
    for row in deltas:
        torch.mul(row, elected, out=scratch)
        magnitude += scratch.clamp_(min=0)
        if not total:
            count += scratch.sign_()
    return magnitude.mul_(elected) if total else magnitude.mul_(elected).div_(count.clamp_(min=1))


def consensus(merged: Tensor, rows: Sequence[Tensor] | Tensor, agreement: int, strength: float) -> Tensor:
    """The merged deltas (n,) where enough of the vectors' T deltas (n,) need them; see `consensus_ta`."""
    needed, apart, size = torch.zeros_like(merged), torch.empty_like(merged), torch.empty_like(merged)
    for row in rows:
        torch.sub(merged, row, out=apart)
        needed += torch.abs(row.to(merged.dtype), out=size).ge_(apart.abs_().mul_(strength))
    return merged * needed.ge_(min(agreement, len(rows)))


def check_consensus(agreement: int, strength: float) -> None:
    """Raises a `ValueError` unless both settings are positive."""
    if agreement < 1 or not (strength > 0 and math.isfinite(strength)):
        raise ValueError(f"agreement and strength must be positive, got {agreement} and {strength}")
