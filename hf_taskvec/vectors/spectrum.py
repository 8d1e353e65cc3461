"""The singular values of deltas: how much of a change lies in few directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_taskvec.weights.arithmetic import check_finite


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one matrix, in a few numbers.

    Attributes:
        rank: The most that its rank can be: its smaller side.
        largest: Its largest singular value.
        stable_rank: Its squared norm over the square of the largest singular value; 0.0 if it is zero.
        directions: How many singular directions hold nine tenths of its squared norm.
    """

    rank: int
    largest: float
    stable_rank: float
    directions: int


def spectrum(matrix: Tensor) -> Spectrum:
    """The spectrum of a matrix, from the eigenvalues of its smaller Gram matrix in float64.

    Singular values below 1e-8 of the largest are lost in that; none of the numbers depends on them.

    Example:
        >>> spectrum(torch.diag(torch.tensor([3.0, 4.0, 0.0])))
        Spectrum(rank=3, largest=4.0, stable_rank=1.5625, directions=2)
    """
    wide = matrix.double()
    gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
    squares = torch.linalg.eigvalsh(gram).clamp_(min=0).flip(0)
    total = float(squares.sum())
    if total == 0:
        return Spectrum(len(squares), 0.0, 0.0, 0)
    directions = int((squares.cumsum(0) < 0.9 * total).sum()) + 1
    return Spectrum(len(squares), float(squares[0].sqrt()), total / float(squares[0]), directions)


def spectra(tensors: Mapping[str, Tensor]) -> dict[str, Spectrum]:
    """The spectrum of each matrix among named tensors; other shapes have none.

    Raises:
        NonFiniteError: If a matrix holds NaN or Inf.

    Example:
        >>> list(spectra({"weight": torch.ones(2, 3), "bias": torch.ones(2)}))
        ['weight']
    """
    result = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2 and tensor.numel():
            check_finite(name, tensor)
            result[name] = spectrum(tensor)
    return result
