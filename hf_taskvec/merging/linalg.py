"""Singular vectors and polar factors by the cheapest route that stays exact, in float64.

The Gram matrix of the shorter side squares the condition: in float64 its route is good to 1e-7 as long as the singular
values span less than `GRAM_SPAN`. Where they span more, a full SVD is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.linalg import eigh
from torch import Tensor

GRAM_SPAN = 3e5  # largest over smallest singular value for which the Gram route is taken
_SMALL = 32  # up to this side, an SVD costs nothing


@dataclass(frozen=True)
class Singular:
    """Leading singular triplets: left (m, k), values (k,) descending, right (n, k), all float64.

    Values below the rounding of the input are exactly 0, and so are their vectors.
    """

    left: Tensor
    values: Tensor
    right: Tensor


def leading(matrix: Tensor, rank: int | None = None) -> Singular:
    """The `rank` largest singular values of a matrix (m, n) with their vectors; all of them if left out."""
    rows, columns = matrix.shape
    if rows < columns:
        turned = leading(matrix.T, rank)
        return Singular(turned.right, turned.values, turned.left)
    rank = columns if rank is None else min(rank, columns)
    tolerance = torch.finfo(matrix.dtype).eps * rows
    wide = matrix.double()
    if columns > _SMALL:
        squares, right = _top_eigen(wide.T @ wide, rank)
        if squares[-1] * GRAM_SPAN**2 > squares[0]:
            values = squares.sqrt()
            return Singular(wide @ right / values, values, right)
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    alive = (values > tolerance * values[0])[:rank]
    return Singular(left[:, :rank] * alive, values[:rank] * alive, right[:rank].T * alive)


def polar(matrix: Tensor) -> tuple[Tensor, float]:
    """The factor `U Vᵀ` of a matrix `U S Vᵀ`, (m, n) in float64, and the mean of all its singular values.

    Directions whose singular value is below the rounding of the input are left out.
    """
    found = leading(matrix)
    return found.left @ found.right.T, float(found.values.mean())


def _top_eigen(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, descending, and their vectors (n, rank)."""
    size = len(gram)
    if rank * 2 < size and gram.device.type == "cpu":  # a partial spectrum is worth it up to about half
        values, vectors = eigh(gram.numpy(), subset_by_index=(size - rank, size - 1), driver="evr", check_finite=False)
        values, vectors = torch.from_numpy(values.copy()), torch.from_numpy(vectors.copy())
    else:
        values, vectors = torch.linalg.eigh(gram)
        values, vectors = values[-rank:], vectors[:, -rank:]
    return values.flip(0).clamp(min=0), vectors.flip(1)
