"""Singular vectors and polar factors by the cheapest route that stays exact, in float64.

The Gram matrix of the shorter side squares the condition: in float64 its route is good to 1e-7 as long as the singular
values span less than `GRAM_SPAN`. Where they span more, a full SVD is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_taskvec.merging.lapack import largest_eigenpairs

GRAM_SPAN = 3e5  # largest over smallest singular value for which the Gram route is taken
_SMALL = 32  # up to this side, an SVD costs nothing
_FEW = 4  # from this fraction of the spectrum on, all of it costs less than a part


@dataclass(frozen=True)
class Singular:
    """Leading singular triplets: left (m, k), values (k,) descending, right (n, k), all float64.

    Values below the rounding of the input are exactly 0, and so are their vectors.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def above(self, bound: float) -> Singular:
        """With values up to the bound, and their vectors, set to 0."""
        alive = self.values > bound
        return Singular(self.left * alive, self.values * alive, self.right * alive)


def leading(matrix: Tensor, rank: int | None = None) -> Singular:
    """The `rank` largest singular values of a matrix (m, n) with their vectors; all of them if left out."""
    rows, columns = matrix.shape
    if rows < columns:
        turned = leading(matrix.T, rank)
        return Singular(turned.right, turned.values, turned.left)
    rank = columns if rank is None else min(rank, columns)
    tolerance = torch.finfo(matrix.dtype).eps * rows
    wide = matrix.double()
    if (found := _by_gram(wide, rank)) is not None:
        values, right = found
        return Singular(wide @ right / values, values, right)
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    alive = (values > tolerance * values[0])[:rank]
    return Singular(left[:, :rank] * alive, values[:rank] * alive, right[:rank].T * alive)


def leading_and_rest(matrix: Tensor, rank: int) -> tuple[Singular, Tensor]:
    """The `rank` largest singular values of a matrix (m, n), m <= n, with their vectors, and what those leave out.

    The second is an orthonormal basis (m, m - rank, or more where singular values are 0) of the left space outside.
    """
    wide = matrix.double()
    if (found := _by_gram(wide.T, rank, whole=True)) is not None:
        values, left = found
        chosen = left[:, :rank]
        return Singular(chosen, values, wide.T @ chosen / values), left[:, rank:]
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    alive = values > torch.finfo(matrix.dtype).eps * matrix.shape[1] * values[0]
    alive[rank:] = False
    shared = Singular((left * alive)[:, :rank], (values * alive)[:rank], (right.T * alive)[:, :rank])
    return shared, left[:, ~alive]


def polar(matrix: Tensor) -> tuple[Tensor, float]:
    """The factor `U Vᵀ` of a matrix `U S Vᵀ`, (m, n) in float64, and the mean of all its singular values.

    Directions whose singular value is below the rounding of the input are left out.
    """
    if matrix.shape[0] < matrix.shape[1]:
        factor, mean = polar(matrix.T)
        return factor.T, mean
    wide = matrix.double()
    if (found := _by_gram(wide, matrix.shape[1])) is not None:
        values, right = found
        return wide @ _gram((right / values.sqrt()).T), float(values.mean())  # M V S⁻¹ Vᵀ without the left vectors
    parts = leading(matrix)
    return parts.left @ parts.right.T, float(parts.values.mean())


def _by_gram(matrix: Tensor, rank: int, *, whole: bool = False) -> tuple[Tensor, Tensor] | None:
    """The largest singular values of a float64 matrix (m, n), m >= n, and their right vectors (n, rank).

    All right vectors (n, n) come where the `whole` basis is wanted. `None` where the Gram matrix would lose digits, or
    a full SVD costs nothing.
    """
    if matrix.shape[1] <= _SMALL:
        return None
    squares, right = _top_eigen(_gram(matrix), matrix.shape[1] if whole else rank)
    squares = squares[:rank]
    return (squares.sqrt(), right) if squares[-1] * GRAM_SPAN**2 > squares[0] else None


def _gram(matrix: Tensor) -> Tensor:
    """`matrixᵀ matrix`; NumPy sees that it is symmetric and computes half of it, torch all."""
    if matrix.device.type == "cpu":
        array = matrix.numpy()
        return torch.from_numpy(array.T @ array)
    return matrix.T @ matrix


def _top_eigen(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues, descending, and their vectors (n, rank)."""
    if gram.device.type != "cpu":
        values, vectors = torch.linalg.eigh(gram)
    elif rank * _FEW <= len(gram):
        values, vectors = map(torch.from_numpy, largest_eigenpairs(gram.numpy(), rank))
    else:  # NumPy lets other threads go on meanwhile, SciPy does not
        values, vectors = map(torch.from_numpy, np.linalg.eigh(gram.numpy()))
    return values[-rank:].flip(0).clamp(min=0), vectors[:, -rank:].flip(1)
