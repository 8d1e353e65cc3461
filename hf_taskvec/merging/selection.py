"""Exact order statistics over whole vectors: the k-th largest score, bit for bit that of a full sort."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from hf_taskvec.errors import check_known
from hf_taskvec.merging.engine import Scope, chunks, parallel, wide_dtype
from hf_taskvec.merging.radix import Histograms
from hf_taskvec.vectors.vector import TaskVector

Score = Callable[[Tensor, str], Tensor]  # deltas (T, n) of a parameter, which it may overwrite -> scores (S, n)
Ranks = Callable[[int], Sequence[int]]  # number of entries -> ranks wanted, 1 for the largest
_SMALL = 1 << 15  # up to this size, sorting is cheapest
_RUN = 16  # entries per run of a sample: a cache line
_SAMPLE = 1 << 18  # entries of a sample at most; it is a thirty-second of few entries
_MARGIN = 8.0  # standard deviations of a sample's rank between a bracket and its middle


def kept(density: float, size: int) -> int:
    """How many of `size` entries a density keeps: at least one.

    Example:
        >>> kept(0.2, 10), kept(0.01, 3)
        (2, 1)
    """
    return max(1, round(density * size))


def magnitude_thresholds(vectors: Sequence[TaskVector], density: float, scope: Scope) -> dict[str, Tensor]:
    """For each parameter, the smallest magnitude that each vector keeps, (T, 1); see `thresholds`."""
    ranked = thresholds(lambda deltas, name: deltas.abs_(), vectors, lambda size: [kept(density, size)], scope)
    return {name: values[0] for name, values in ranked.items()}


def thresholds(score: Score, vectors: Sequence[TaskVector], ranks: Ranks, scope: Scope) -> dict[str, Tensor]:
    """Scores at the given ranks from the top, over whole vectors or per parameter.

    A sample brackets each rank; one pass then counts what lies above and keeps the few entries inside, which hold the
    exact answer. Should a bracket miss, histograms of the float bits find it, whatever the data.

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
    check_known("scope", scope, get_args(Scope))
    sizes = {name: shape.numel() for name, shape in vectors[0].deltas.shapes.items()}
    search = _Search(score, vectors, sizes)
    together = functools.partial(parallel, description="thresholds", device=search.device)
    if scope == "parameter":
        each = together(lambda name: search.over([name], ranks(sizes[name]), map), sizes)
        return dict(zip(sizes, each, strict=True))
    return dict.fromkeys(sizes, search.over(list(sizes), ranks(sum(sizes.values())), together))


@dataclass(frozen=True)
class _Bracket:
    """One rank of one row: bounds that should hold it, and what a pass over some entries found of it."""

    low: float
    high: float
    tied: bool  # whether to count the entries that equal a bound
    counts: tuple[int, ...] = (0, 0, 0, 0)  # entries > high, >= high, > low, >= low; if not tied, > and >= are alike
    inside: tuple[np.ndarray, ...] = ()  # entries between the bounds

    def count(self, values: np.ndarray) -> _Bracket:
        """The bracket after these entries too."""
        from_high, above_low = values >= self.high, values > self.low
        between = values[np.flatnonzero(above_low > from_high)]
        high = int(np.count_nonzero(from_high))
        low = high + len(between)
        # where the sample saw no bound twice, no entry but the sampled one is likely to equal it
        above = int(np.count_nonzero(values > self.high)) if self.tied else high
        from_low = int(np.count_nonzero(values >= self.low)) if self.tied else low
        return self + dataclasses.replace(self, counts=(above, high, low, from_low), inside=(between,))

    def __add__(self, other: _Bracket) -> _Bracket:
        counts = tuple(map(operator.add, self.counts, other.counts))
        return dataclasses.replace(self, counts=counts, inside=self.inside + other.inside)

    def value(self, rank: int) -> float | None:
        """The entry at a rank from the top; `None` if the bracket misses it."""
        above, from_high, above_low, from_low = self.counts
        if not above < rank <= from_low:
            return None
        if rank <= from_high:
            return self.high
        if rank > above_low:
            return self.low
        inside = np.concatenate(self.inside)
        place = len(inside) - (rank - from_high)
        return float(np.partition(inside, place)[place])


class _Search:
    """The search for one score over one set of vectors."""

    def __init__(self, score: Score, vectors: Sequence[TaskVector], sizes: dict[str, int]) -> None:
        self.score, self.vectors, self.sizes, self.dtype = score, vectors, sizes, wide_dtype(vectors)
        self.device = vectors[0].device

    def over(self, names: Sequence[str], ranks: Sequence[int], run: Callable[..., Any]) -> Tensor:
        """The thresholds over some parameters together, (R, S, 1); `run` maps a function over names."""
        names = [name for name in names if self.sizes[name]]
        total = sum(self.sizes[name] for name in names)
        if total == 0:
            return torch.zeros(len(ranks), len(self.vectors), 1, dtype=self.dtype, device=self.device)
        if total <= _SMALL:
            parts = [self.score(chunk, name).clone() for name in names for _, chunk in self._chunks(name)]
            rows = torch.cat(parts, dim=1).sort(dim=1, descending=True).values
            return rows[:, [rank - 1 for rank in ranks]].T.unsqueeze(-1)
        values = self._by_brackets(names, ranks, total, run) if self.device.type == "cpu" else None
        if values is None:
            histograms = Histograms(
                self.dtype, lambda name: (self.score(chunk, name) for _, chunk in self._chunks(name))
            )
            values = histograms.descend(names, ranks, run)
        return values.T.unsqueeze(-1).to(self.device)

    def _by_brackets(
        self, names: Sequence[str], ranks: Sequence[int], total: int, run: Callable[..., Any]
    ) -> Tensor | None:
        """The thresholds (S, R), or `None` if the sample misled."""
        sample = torch.cat([self._sample(name, total) for name in names], dim=1)
        start = [[_bracket(row, rank / total) for rank in ranks] for row in sample.numpy()]

        def count(name: str) -> list[list[_Bracket]]:
            brackets = [list(line) for line in start]
            for _, chunk in self._chunks(name):
                for line, values in zip(brackets, self.score(chunk, name).numpy(), strict=True):
                    line[:] = [bracket.count(values) for bracket in line]
            return brackets

        counted = list(run(count, names))
        values = [
            [
                functools.reduce(_Bracket.__add__, [chunk[row][index] for chunk in counted]).value(rank)
                for index, rank in enumerate(ranks)
            ]
            for row in range(len(start))
        ]
        if any(value is None for line in values for value in line):
            return None
        return torch.tensor(values, dtype=self.dtype)

    def _sample(self, name: str, total: int) -> Tensor:
        """Scores of evenly spread runs of a parameter, as many as its share of the whole.

        Entries of one row of a matrix are alike, so many short runs say more than few long ones.
        """
        size = self.sizes[name]
        wanted = min(_SAMPLE, total // 32) * size / total
        runs = min(max(1, round(wanted / _RUN)), -(-size // _RUN))
        starts = torch.linspace(0, max(0, size - _RUN), runs, dtype=torch.float64).long()
        index = (starts.unsqueeze(1) + torch.arange(min(_RUN, size))).flatten()
        rows = [vector.deltas[name].reshape(-1)[index.to(self.device)].to(self.dtype) for vector in self.vectors]
        return self.score(torch.stack(rows), name)

    def _chunks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        return chunks(self.vectors, name, self.dtype)


def _bracket(sample: np.ndarray, share: float) -> _Bracket:
    """Bounds that hold the entry at `share` from the top, judged by a sample."""
    size = len(sample)
    margin = _MARGIN * math.sqrt(share * (1 - share) * size) + _MARGIN
    first, last = math.floor(share * size - margin), math.ceil(share * size + margin)  # places from the top
    high = float(np.partition(sample, size - 1 - first)[size - 1 - first]) if first >= 0 else math.inf
    low = float(np.partition(sample, size - 1 - last)[size - 1 - last]) if last < size else -math.inf
    tied = low == high or any(np.count_nonzero(sample == bound) > 1 for bound in (low, high))
    return _Bracket(low, high, tied)
