"""Merge methods whose costly part no slider changes: it is done once for the vectors that count, and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hf_taskvec.merging import get_method
from hf_taskvec.merging.engine import stacked, wide_dtype
from hf_taskvec.merging.selection import magnitude_thresholds
from hf_taskvec.merging.sparse import agreeing_mean, trim_
from hf_taskvec.merging.spectral import tsv_parts
from hf_taskvec.vectors.vector import TaskVector

Finish = Callable[[Sequence[float]], Tensor]  # factors -> merged entries (n,)
MOST_BYTES = 1 << 28  # of what is kept for the vectors at hand; larger ones are merged anew at each move
_CHUNK = 1 << 16  # entries of a row at a time: they stay in the cache


def weighted_sum(rows: Tensor, factors: Mapping[int, float]) -> Tensor:
    """The sum (n,) of some rows of a tensor (T, n) times their factors; the others are not read.

    Example:
        >>> weighted_sum(torch.tensor([[1.0, 2.0], [9.0, 9.0], [0.0, 1.0]]), {0: 1.0, 2: -1.0})
        tensor([1., 1.])
    """
    total = torch.zeros(rows.shape[1])
    for begin in range(0, len(total), _CHUNK):
        chunk = total[begin : begin + _CHUNK]
        for row, factor in factors.items():
            chunk.add_(rows[row, begin : begin + _CHUNK], alpha=factor)
    return total


def prepared(method: str, vectors: Sequence[TaskVector]) -> Finish | None:
    """What finishes a merge for any factors other than 0, or `None` if the method has no part to do beforehand.

    Example:
        >>> finish = prepared("ties", [TaskVector({"w": torch.tensor([4.0, 1.0, 0.0, 0.0, 0.0])})])
        >>> finish([0.5])
        tensor([2., 0., 0., 0., 0.])
    """
    entries = sum(shape.numel() for shape in vectors[0].deltas.shapes.values())
    if method not in _METHODS or 4 * entries * len(vectors) > MOST_BYTES:
        return None
    return _METHODS[method](vectors)


def _tsv_m(vectors: Sequence[TaskVector]) -> Finish:
    """A scaled matrix has the same singular vectors, and the whitening looks at nothing else."""
    parts = _flat(tsv_parts(vectors))
    return lambda factors: weighted_sum(parts, dict(enumerate(factors)))


def _ties(vectors: Sequence[TaskVector]) -> Finish:
    """A scaled vector keeps the same entries."""
    smallest = magnitude_thresholds(vectors, **get_method("ties").defaults)
    shapes, wide = vectors[0].deltas.shapes, wide_dtype(vectors)
    trimmed = _flat({name: trim_(stacked(vectors, name, wide).flatten(1), smallest[name]) for name in shapes})

    def finish(factors: Sequence[float]) -> Tensor:
        scales = torch.tensor(list(factors))[:, None]
        return torch.cat([agreeing_mean(chunk * scales) for chunk in trimmed.split(_CHUNK, dim=1)])

    return finish


def _flat(parts: Mapping[str, Tensor]) -> Tensor:
    """All entries of T vectors, a row each, of those by parameter (T, ...)."""
    return torch.cat([values.flatten(1) for values in parts.values()], dim=1)


_METHODS: Mapping[str, Callable[[Sequence[TaskVector]], Finish]] = {"tsv_m": _tsv_m, "ties": _ties}
