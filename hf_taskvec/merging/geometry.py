"""How T vectors lie to each other, in one streaming pass: inner products of all pairs, per parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_taskvec.merging.engine import chunks, parallel
from hf_taskvec.vectors.vector import TaskVector

_CHUNK = 1 << 14  # T rows of float64 stay in the second-level cache


def inner_products(vectors: Sequence[TaskVector]) -> dict[str, Tensor]:
    """The inner products of all pairs, for each parameter.

    Returns:
        For each parameter, (T, T) in float64 on the CPU.

    Raises:
        NonFiniteError: If a delta holds NaN or Inf.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([-1.0, 1.0])})]
        >>> inner_products(pair)["w"].tolist()
        [[10.0, -2.0], [-2.0, 2.0]]
    """
    return _over_pairs(lambda deltas: deltas @ deltas.T, vectors, torch.float64, description="inner products")


def sign_conflicts(vectors: Sequence[TaskVector]) -> dict[str, Tensor]:
    """For each parameter and pair, how many entries have opposite signs.

    Returns:
        For each parameter, (T, T) counts, int64 on the CPU.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([-1.0, 1.0])})]
        >>> sign_conflicts(pair)["w"].tolist()
        [[0, 1], [1, 0]]
    """

    def conflicts(deltas: Tensor) -> Tensor:
        positive, negative = (deltas > 0).float(), (deltas < 0).float()
        opposed = positive @ negative.T  # exact: counts below 2^24
        return opposed + opposed.T

    counts = _over_pairs(conflicts, vectors, torch.float32, description="sign conflicts")
    return {name: count.long() for name, count in counts.items()}


def _over_pairs(
    table: Callable[[Tensor], Tensor], vectors: Sequence[TaskVector], dtype: torch.dtype, *, description: str
) -> dict[str, Tensor]:
    """For each parameter the sum over its chunks of `table`, which maps deltas (T, n) to (T, T)."""

    def total(name: str) -> Tensor:
        result = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
        for _, deltas in chunks(vectors, name, dtype, size=_CHUNK):
            result += table(deltas).cpu()
        return result

    names = list(vectors[0].deltas.shapes)
    return dict(zip(names, parallel(total, names, description=description, device=vectors[0].device), strict=True))


def mean_over_pairs(values: Tensor) -> float:
    """The mean of a table (T, T) over the pairs of different vectors.

    Example:
        >>> mean_over_pairs(torch.tensor([[9.0, 1.0], [3.0, 9.0]]))
        2.0
    """
    return float((values.sum() - values.diagonal().sum()) / (len(values) * (len(values) - 1)))


def cosines(products: Tensor) -> Tensor:
    """Cosines from inner products, in [-1, 1]; 0 where a vector is zero.

    Example:
        >>> cosines(torch.tensor([[4.0, 2.0], [2.0, 4.0]])).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    norms = products.diagonal().clamp(min=0).sqrt()
    scale = torch.outer(norms, norms)
    return torch.where(scale > 0, products / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0).clamp(-1, 1)
