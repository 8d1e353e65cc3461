"""Exact order statistics over whole vectors: the k-th largest score by a radix select on the float bits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_taskvec.artifact import shapes_of
from hf_taskvec.merging.engine import Scope, check_scope, chunks, parallel, wide_dtype
from hf_taskvec.vector import TaskVector

Score = Callable[[Tensor, str], Tensor]  # deltas (T, n) of a parameter, which it may overwrite -> scores (S, n)
Ranks = Callable[[int], Sequence[int]]  # number of entries -> ranks wanted, 1 for the largest
_DIGIT = 16
_BINS = 1 << _DIGIT
_CHUNK = 1 << 18  # long enough for the histogram of a chunk not to outweigh the chunk
_SMALL = 1 << 16  # up to this size, sorting is cheaper than histograms


def kept(density: float, size: int) -> int:
    """How many of `size` entries a density keeps: at least one."""
    return max(1, round(density * size))


def magnitude_thresholds(vectors: Sequence[TaskVector], density: float, scope: Scope) -> dict[str, Tensor]:
    """For each parameter, the smallest magnitude that each vector keeps, (T, 1); see `thresholds`."""
    found = thresholds(lambda deltas, name: deltas.abs_(), vectors, lambda size: [kept(density, size)], scope)
    return {name: values[0] for name, values in found.items()}


def thresholds(score: Score, vectors: Sequence[TaskVector], ranks: Ranks, scope: Scope) -> dict[str, Tensor]:
    """Scores at the given ranks from the top, bit for bit those of a full sort, over whole vectors or per parameter.

    Each pass over the files fixes 16 more bits: a histogram of the next digit tells in which bin a rank lies, and the
    next pass looks at that bin only. Memory is that of the histograms, whatever the ties.

    Args:
        score: Maps the deltas of the T vectors to S rows of finite scores of any sign.
        vectors: The vectors.
        ranks: The R ranks wanted among so many entries, from 1 to that number.
        scope: Whether ranks count over the whole vector or over each parameter.

    Returns:
        For each parameter, (R, S, 1) scores, in the dtype of the computation.

    Raises:
        UnknownNameError: If `scope` is unknown.
        NonFiniteError: If a delta holds NaN or Inf.
    """
    check_scope(scope)
    shapes = shapes_of(vectors[0])
    names = list(shapes)
    search = _Search(score, vectors)
    if scope == "parameter":
        found = parallel(lambda name: search.one(name, ranks(shapes[name].numel())), names, description="thresholds")
        return dict(zip(names, found, strict=True))
    total = sum(shape.numel() for shape in shapes.values())
    return dict.fromkeys(names, search.all(names, ranks(total)))


class _Search:
    """The search for one score over one set of vectors."""

    def __init__(self, score: Score, vectors: Sequence[TaskVector]) -> None:
        self.score, self.vectors, self.dtype = score, vectors, wide_dtype(vectors)
        self.integer = torch.int32 if self.dtype == torch.float32 else torch.int64
        self.bits = torch.iinfo(self.integer).bits
        self.device = next(iter(vectors[0].deltas.values())).device

    def one(self, name: str, ranks: Sequence[int]) -> Tensor:
        """The thresholds of one parameter, (R, S, 1)."""
        size = shapes_of(self.vectors[0])[name].numel()
        if size > _SMALL:
            return self._descend(lambda targets, shift: self._count(name, targets, shift), ranks)
        rows = torch.cat([self.score(part, name).clone() for _, part in chunks(self.vectors, name, self.dtype)], dim=1)
        return rows.sort(dim=1, descending=True).values[:, [rank - 1 for rank in ranks]].T.unsqueeze(-1)

    def all(self, names: Sequence[str], ranks: Sequence[int]) -> Tensor:
        """The thresholds over all parameters together, (R, S, 1)."""

        def count(prefixes: Tensor | None, shift: int) -> Tensor:
            parts = parallel(lambda name: self._count(name, prefixes, shift), names, description="thresholds")
            return functools.reduce(torch.add, parts)

        return self._descend(count, ranks)

    def _descend(self, count: Callable[[Tensor | None, int], Tensor], ranks: Sequence[int]) -> Tensor:
        """Narrows each rank down, digit by digit."""
        prefixes: Tensor | None = None
        inside = torch.tensor(ranks)  # ranks among the entries that share the leading bits fixed so far, `prefixes`
        for shift in range(self.bits - _DIGIT, -1, -_DIGIT):
            above = count(prefixes, shift).flip(-1).cumsum(-1)  # (S, R or 1, bins)
            above = above.expand(-1, len(ranks), -1).contiguous()
            inside = inside.expand(above.shape[:2]).contiguous()
            index = torch.searchsorted(above, inside.unsqueeze(-1)).squeeze(-1)
            before = torch.where(index > 0, above.gather(-1, (index - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1), 0)
            inside = inside - before
            digit = _BINS - 1 - index
            prefixes = digit - (_BINS >> 1) if prefixes is None else (prefixes << _DIGIT) + digit
        keys = torch.empty(0) if prefixes is None else prefixes.to(self.integer)
        return _from_ordered(keys, self.dtype).T.unsqueeze(-1).to(self.device)

    def _count(self, name: str, prefixes: Tensor | None, shift: int) -> Tensor:
        """Histograms of the next digit, (S, R, bins), over the entries whose leading bits are `prefixes` (S, R)."""
        totals: list[list[Tensor]] = []
        for _, part in chunks(self.vectors, name, self.dtype, size=_CHUNK):
            for row, values in enumerate(self.score(part, name)):
                keys = _ordered(values, self.integer)
                if prefixes is None:  # the sign is in the first digit
                    found = [torch.bincount((keys >> shift) + (_BINS >> 1), minlength=_BINS)]
                else:
                    leading = keys >> (shift + _DIGIT)
                    chosen = [keys[leading == int(prefix)] for prefix in prefixes[row]]
                    found = [torch.bincount((some >> shift) & (_BINS - 1), minlength=_BINS) for some in chosen]
                if row == len(totals):
                    totals.append([count.cpu() for count in found])
                else:
                    for total, count in zip(totals[row], found, strict=True):
                        total += count.cpu()
        return torch.stack([torch.stack(total) for total in totals])


def _ordered(values: Tensor, integer: torch.dtype) -> Tensor:
    """Integers in the order of the floats."""
    keys = values.view(integer)
    return keys ^ ((keys >> (torch.iinfo(integer).bits - 1)) & torch.iinfo(integer).max)


def _from_ordered(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """The floats of `_ordered` integers; the map is its own inverse."""
    return _ordered(keys.view(dtype), keys.dtype).view(dtype)
