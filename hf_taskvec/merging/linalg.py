"""Singular vectors and polar factors by the cheapest route that stays exact, in float64.

The Gram matrix of the shorter side squares the condition: in float64 its route is good to 1e-7 as long as the singular
values span less than `GRAM_SPAN`. Where they span more, a full SVD is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_taskvec.merging.lapack import largest_eigenpairs

GRAM_SPAN = 3e5  # largest over smallest singular value for which the Gram route is taken
_ROUNDED = 0.22  # root of the mean square of (x - rounded x) / (eps x), with mantissas spread as logarithms are
_GAP = 4  # smallest value above the noise over the largest one below it, where a spectrum ends
_UNEVEN = 4  # the most that rounding adds to a direction, over what it adds where all entries are of one size
_SMALL = 32  # up to this side, an SVD costs nothing
_FEW = 4  # from this fraction of the spectrum on, all of it costs less than a part


@dataclass(frozen=True)
class Singular:
    """Leading singular triplets: left (m, k), values (k,) descending, right (n, k), all float64.

    Values that are nothing but the noise of the input are exactly 0, and so are their vectors.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def where(self, alive: Tensor) -> Singular:
        """With values that are not `alive` (k,), and their vectors, set to 0."""
        return Singular(self.left * alive, self.values * alive, self.right * alive)


def leading(matrix: Tensor, rank: int | None = None, *, rounding: float | None = None) -> Singular:
    """The `rank` largest singular values of a matrix (m, n) with their vectors; all of them if left out.

    Args:
        matrix: The matrix.
        rank: How many are wanted.
        rounding: Relative rounding of the matrix's entries, that of its dtype if left out. Singular values that are
            not `above_noise` are set to 0, whatever the route and the size of the matrix.

    Example:
        >>> leading(torch.diag(torch.tensor([3.0, 1.0])), 1).values
        tensor([3.], dtype=torch.float64)
    """
    rows, columns = matrix.shape
    if rows < columns:
        turned = leading(matrix.T, rank, rounding=rounding)
        return Singular(turned.right, turned.values, turned.left)
    rank = columns if rank is None else min(rank, columns)
    wide, rounding = matrix.double(), _rounding(matrix, rounding)
    if (pairs := _by_gram(wide, rank)) is not None:
        values, right = pairs
        return Singular(wide @ right / values, values, right).where(above_noise(values, wide, rounding))
    return _by_svd(wide, rank, rounding)


def leading_and_rest(matrix: Tensor, rank: int, *, rounding: float | None = None) -> tuple[Singular, Tensor]:
    """The `rank` largest singular values of a matrix (m, n), m <= n, with their vectors, and what those leave out.

    The second is an orthonormal basis (m, m - rank, or more where singular values are 0) of the left space outside.
    """
    wide, rounding = matrix.double(), _rounding(matrix, rounding)
    if (pairs := _by_gram(wide.T, rank, whole=True)) is not None:
        values, left = pairs
        right = wide.T @ left[:, :rank] / values
    else:
        left, values, rows = torch.linalg.svd(wide, full_matrices=False)
        values, right = values[:rank], rows[:rank].T
    shared = Singular(left[:, :rank], values, right).where(above_noise(values, wide, rounding))
    alive = torch.zeros(left.shape[1], dtype=torch.bool, device=left.device)
    alive[:rank] = shared.values > 0
    return shared, left[:, ~alive]


def polar(matrix: Tensor, *, rounding: float | None = None) -> tuple[Tensor, float]:
    """The factor `U Vᵀ` of a matrix `U S Vᵀ`, (m, n) in float64, and the mean of all its singular values.

    Directions that are nothing but the rounding of the input are left out; see `above_noise`.

    Example:
        >>> factor, mean = polar(torch.diag(torch.tensor([3.0, 1.0])))
        >>> factor.round(decimals=3).abs().tolist(), round(mean, 3)
        ([[1.0, 0.0], [0.0, 1.0]], 2.0)
    """
    if matrix.shape[0] < matrix.shape[1]:
        factor, mean = polar(matrix.T, rounding=rounding)
        return factor.T, mean
    wide, rounding = matrix.double(), _rounding(matrix, rounding)
    if (pairs := _by_gram(wide, matrix.shape[1])) is not None:
        values, right = pairs
        alive = above_noise(values, wide, rounding)
        weighted = right / values.sqrt() * alive
        return wide @ _gram(weighted.T), float((values * alive).mean())  # M V S⁻¹ Vᵀ without the left vectors
    kept = _by_svd(wide, matrix.shape[1], rounding)
    return kept.left @ kept.right.T, float(kept.values.mean())


def above_noise(values: Tensor, matrix: Tensor, rounding: float) -> Tensor:
    """Which singular values (k,), the largest of a matrix in descending order, are more than its noise.

    A matrix of low rank that was rounded has a spectrum that ends: below its last value come, after a gap, those of the
    rounding, no larger than rounding makes them in so many directions; those are left out. Where values fall through
    the `noise` in another way, as those of plain descent do, all are kept, as the definitions of the methods have it.

    Args:
        values: The singular values.
        matrix: The matrix.
        rounding: Relative rounding of its entries.

    Example:
        >>> matrix, last = torch.diag(torch.tensor([1.0, 1e-3, 1e-9])), torch.tensor([1.0, 1e-3, 1e-9])
        >>> above_noise(last, matrix, 1e-7), above_noise(torch.tensor([1.0, 3e-8, 1e-8]), matrix, 1e-7)
        (tensor([ True,  True, False]), tensor([True, True, True]))
    """
    largest = float(values[0])
    bound = noise(matrix, largest, rounding)
    alive = values > bound
    count = int(alive.sum())
    if 0 < count < len(values):
        spread = sum(math.sqrt(size - count) for size in matrix.shape) / math.sqrt(matrix.numel())
        if values[count] > min(float(values[count - 1]) / _GAP, _UNEVEN * spread * bound):
            return values > noise(matrix, largest, 0)
    return alive


def noise(matrix: Tensor, largest: float, rounding: float) -> float:
    """What the rounding of a matrix's entries can add in any direction: singular values up to it may tell nothing.

    Entries rounded to nearest err by `_ROUNDED` of `rounding` in the mean square, and no singular value of those errors
    exceeds their norm. Never above `rounding` times the largest singular value, nor below what float64 rounds.

    Args:
        matrix: The matrix.
        largest: Its largest singular value.
        rounding: Relative rounding of its entries: eps of the dtype in which they are stored.
    """
    bound = rounding * min(largest, _ROUNDED * float(torch.linalg.vector_norm(matrix)))
    return max(bound, torch.finfo(torch.float64).eps * max(matrix.shape) * largest)


def spectral_norm(matrix: Tensor, *, steps: int = 8) -> float:
    """The largest singular value of a matrix (m, n) by power iteration: from below, within a fifth or far closer.

    It serves where a bound is wanted, and costs next to nothing.
    """
    direction = torch.ones(matrix.shape[1], dtype=matrix.dtype, device=matrix.device) + matrix[0].sign() / 2
    value = 0.0
    for _ in range(steps):
        image = matrix @ direction
        length = float(torch.linalg.vector_norm(direction))
        value = max(value, float(torch.linalg.vector_norm(image)) / length if length > 0 else 0.0)
        direction = matrix.T @ (image / torch.linalg.vector_norm(image).clamp(min=torch.finfo(image.dtype).tiny))
    return value


def _rounding(matrix: Tensor, rounding: float | None) -> float:
    return torch.finfo(matrix.dtype).eps if rounding is None else rounding


def _by_svd(matrix: Tensor, rank: int, rounding: float) -> Singular:
    """The largest singular values of a float64 matrix (m, n), m >= n, that are `above_noise`."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    alive = above_noise(values, matrix, rounding)[:rank]
    return Singular(left[:, :rank], values[:rank], right[:rank].T).where(alive)


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
