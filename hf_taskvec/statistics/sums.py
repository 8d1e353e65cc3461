"""Gram matrices of activations that are summed as the images pass, whole or through a sketch, and factorised once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXTRA = 16  # columns of a sketch beyond the rank that is wanted
_NOTHING = 1e-6  # the share of the trace below which what is left out is rounding


@dataclass(frozen=True)
class Factorised:
    """A factor (r, n) whose Gram matrix is nearly the one that was summed.

    Attributes:
        factor: Rows in descending order of their length, at right angles to each other.
        rest: The root of the diagonal (n,) of what is left out; `None` where that is rounding.
        error: The share of the trace that is left out or rounded away.
    """

    factor: Tensor
    rest: Tensor | None
    error: float


class GramSum:
    """The sum of `x xᵀ` over the rows x that are added, in float64 over batches whose products are in float32 at least.

    With a rank far below the width the sum is kept as its product with fixed random columns, which costs less than the
    matrix and gives its leading part back (Nyström; Tropp et al., arXiv 1706.05736). Both kinds of sums are linear in
    the rows: those of several processes add up.

    Args:
        width: Entries of a row.
        rank: Rank of the factor that is wanted.
        device: Where to sum.
        dtype: Dtype of the rows.
    """

    def __init__(self, width: int, rank: int, *, device: torch.device, dtype: torch.dtype) -> None:
        columns = min(rank, width) + EXTRA
        self.probe: Tensor | None = None
        self.dtype = torch.promote_types(dtype, torch.float32)
        if width > 2 * columns:
            generator = torch.Generator().manual_seed(width)
            drawn = torch.randn(width, columns, generator=generator, dtype=torch.float64)
            self.probe = torch.linalg.qr(drawn).Q.to(device, self.dtype)
        self.rank, self.width = min(rank, width), width
        shape = (width, width if self.probe is None else columns)
        self.total = torch.zeros(shape, dtype=torch.float64, device=device)
        self.squares = torch.zeros(width, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> float:
        """Adds rows (N, n) and returns the sum of their squares, which tells whether all are finite."""
        rows = rows.to(self.dtype)
        squares = rows.square().sum(dim=0)
        self.total += rows.T @ (rows if self.probe is None else rows @ self.probe)
        self.squares += squares
        self.count += len(rows)
        return float(squares.sum())

    def tensors(self) -> list[Tensor]:
        """What the sums of several processes are added up from."""
        return [self.total, self.squares, self.count]

    def factorised(self, dtype: torch.dtype, *, count: float | None = None) -> Factorised:
        """The factor of the mean, by the number of rows or by another count, rounded to a dtype."""
        rows = float(self.count) if count is None else count
        mean = self.total / rows
        diagonal = mean.diagonal() if self.probe is None else self.squares / rows
        trace = float(diagonal.sum())
        values, vectors = _eigenpairs(mean) if self.probe is None else _sketched_eigenpairs(mean, self.probe.double())
        values, vectors = values[: self.rank], vectors[:, : self.rank]
        kept = values > values[:1].sum() * torch.finfo(torch.float32).eps
        wide = (vectors[:, kept] * values[kept].sqrt()).T.contiguous()
        left = max(trace - float(values[kept].sum()), 0.0)
        factor, rest = wide.to(dtype).cpu(), None
        if left > _NOTHING * trace:
            rest = (diagonal - wide.square().sum(dim=0)).clamp(min=0).sqrt().to(dtype).cpu()
        lost = float(torch.linalg.vector_norm(wide - factor.to(wide))) * trace**0.5
        error = ((0.0 if rest is None else left) + 2 * lost) / trace if trace > 0 else 0.0
        return Factorised(factor, rest, error)


def _eigenpairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, descending, and their vectors (n, n)."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def _sketched_eigenpairs(sketch: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """The leading eigenpairs of a Gram matrix of which `sketch = gram @ probe` (n, k) is known.

    By the stable Nyström formula: what rounding could make negative is lifted by a shift, which is taken off again.
    """
    shift = torch.finfo(torch.float32).eps * float(torch.linalg.vector_norm(sketch))
    lifted = sketch + shift * probe
    values, vectors = _eigenpairs(probe.T @ lifted)
    alive = values > shift / 2
    root = (lifted @ vectors[:, alive]) / values[alive].sqrt()
    left, lengths, _ = torch.linalg.svd(root, full_matrices=False)
    return (lengths.square() - shift).clamp(min=0), left
