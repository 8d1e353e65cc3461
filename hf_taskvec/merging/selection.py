"""Exact order statistics of a stream of numbers: the k-th largest by a radix select on the float bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from hf_taskvec.artifact import shapes_of
from hf_taskvec.merging.engine import Scope, check_scope, chunks, parallel, wide_dtype
from hf_taskvec.vector import TaskVector

Stream = Callable[[], Iterable[Tensor]]  # each call starts the same stream of 1-D tensors again
Ranks = Callable[[int], Sequence[int]]  # number of entries -> ranks wanted, 1 for the largest
_DIGIT = 16
_BINS = 1 << _DIGIT
_SMALL = 1 << 15  # up to this size, sorting is cheaper than histograms


def kept(density: float, size: int) -> int:
    """How many of `size` entries a density keeps: at least one."""
    return max(1, round(density * size))


def largest(stream: Stream, ranks: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The values at the given ranks from the top, bit for bit those of a full sort.

    Each pass over the stream fixes 16 more bits: a histogram of the next digit tells in which bin a rank lies, and the
    next pass looks at that bin only. Memory is that of the histograms, whatever the ties.

    Args:
        stream: Finite numbers of any sign.
        ranks: From 1 (the largest) to the number of entries.
        dtype: float32 or float64, that of the stream.

    Returns:
        (len(ranks),) values.
    """
    integer = torch.int32 if dtype == torch.float32 else torch.int64
    bits = torch.iinfo(integer).bits
    targets = [(0, rank) for rank in ranks]  # leading bits fixed so far, and the rank among entries that share them
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        counts = {prefix: torch.zeros(_BINS, dtype=torch.int64) for prefix, _ in targets}
        for values in stream():
            keys = _ordered(values, integer)
            for prefix, count in counts.items():
                if shift == bits - _DIGIT:
                    digits = (keys >> shift) + (_BINS >> 1)  # the sign is in the first digit
                else:
                    digits = (keys[(keys >> (shift + _DIGIT)) == prefix] >> shift) & (_BINS - 1)
                count += torch.bincount(digits, minlength=_BINS).cpu()
        offset = _BINS >> 1 if shift == bits - _DIGIT else 0
        targets = [_descend(counts[prefix], prefix, rank, offset) for prefix, rank in targets]
    keys = torch.tensor([prefix for prefix, _ in targets], dtype=integer)
    return _unordered(keys, dtype)


def magnitude_thresholds(vectors: Sequence[TaskVector], ranks: Ranks, scope: Scope) -> dict[str, Tensor]:
    """Magnitudes at the given ranks, of each vector as a whole or of each of its parameters, in one exact pass.

    Returns:
        For each parameter, (R, T, 1) magnitudes, R being the number of ranks.

    Raises:
        UnknownNameError: If `scope` is unknown.
        NonFiniteError: If a delta holds NaN or Inf.
    """
    check_scope(scope)
    dtype = wide_dtype(vectors)
    shapes = shapes_of(vectors[0])
    groups = [list(shapes)] if scope == "vector" else [[name] for name in shapes]

    def thresholds(item: tuple[int, list[str]]) -> Tensor:
        index, names = item

        def magnitudes() -> Iterable[Tensor]:
            for name in names:
                for _, part in chunks(vectors, name, dtype, rows=[index]):
                    yield part[0].abs_()

        size = sum(shapes[name].numel() for name in names)
        if size <= _SMALL:
            values = torch.cat([part.cpu() for part in magnitudes()]).sort(descending=True).values
            return values[[rank - 1 for rank in ranks(size)]]
        return largest(magnitudes, ranks(size), dtype)

    items = [(index, names) for names in groups for index in range(len(vectors))]
    found = iter(parallel(thresholds, items, description="thresholds"))
    result = {}
    for names in groups:
        values = torch.stack([next(found) for _ in vectors], dim=1).unsqueeze(-1)
        result.update(dict.fromkeys(names, values.to(vectors[0].deltas[names[0]].device)))
    return result


def _descend(counts: Tensor, prefix: int, rank: int, offset: int) -> tuple[int, int]:
    """The bin in which a rank from the top lies, appended to the prefix, and the rank inside that bin."""
    above = counts.flip(0).cumsum(0)
    index = int(torch.searchsorted(above, rank))
    inside = rank - (int(above[index - 1]) if index else 0)
    return (prefix << _DIGIT) + (_BINS - 1 - index - offset), inside


def _ordered(values: Tensor, integer: torch.dtype) -> Tensor:
    """Integers in the order of the floats."""
    keys = values.view(integer)
    return keys ^ ((keys >> (torch.iinfo(integer).bits - 1)) & torch.iinfo(integer).max)


def _unordered(keys: Tensor, dtype: torch.dtype) -> Tensor:
    """The floats of `_ordered` integers; the map is its own inverse."""
    return _ordered(keys.view(dtype), keys.dtype).view(dtype)
