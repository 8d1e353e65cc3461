"""The k-th largest of a stream of numbers by histograms of their bits: exact whatever the data, in bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

_DIGIT = 16
_BINS = 1 << _DIGIT


class Histograms:
    """A radix select on the float bits.

    Each pass over the stream fixes 16 more bits of the answer: a histogram of the next digit tells in which bin a rank
    lies, and the next pass looks at that bin only. Memory is that of the histograms, whatever the ties.

    Args:
        dtype: float32 or float64.
        stream: The chunks (S, n) of finite numbers under a name; each call starts again.
    """

    def __init__(self, dtype: torch.dtype, stream: Callable[[str], Iterable[Tensor]]) -> None:
        self.dtype, self.stream = dtype, stream
        self.integer = torch.int32 if dtype == torch.float32 else torch.int64
        self.bits = torch.iinfo(self.integer).bits

    def descend(
        self, names: Sequence[str], ranks: Sequence[int] | Callable[[int], Sequence[int]], run: Callable[..., Any]
    ) -> Tensor:
        """The numbers (S, R) at the given ranks from the top, over the streams of all names together.

        Args:
            names: The streams.
            ranks: From 1 to the number of entries, or what they are of that number, for a stream of unknown length.
            run: Maps a function over the names.
        """
        prefixes: Tensor | None = None
        inside = torch.empty(0)  # ranks among the entries that share the leading bits fixed so far, `prefixes`
        for shift in range(self.bits - _DIGIT, -1, -_DIGIT):
            counts = functools.reduce(
                torch.add, run(functools.partial(self._count, prefixes=prefixes, shift=shift), names)
            )
            if prefixes is None:
                ranks = ranks(int(counts[0].sum())) if callable(ranks) else ranks
                inside = torch.tensor(ranks)
            above = counts.flip(-1).cumsum(-1).expand(-1, inside.shape[-1], -1).contiguous()  # (S, R, bins)
            inside = inside.expand(above.shape[:2]).contiguous()
            index = torch.searchsorted(above, inside.unsqueeze(-1)).squeeze(-1)
            before = above.gather(-1, (index - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
            inside = inside - torch.where(index > 0, before, 0)
            digit = _BINS - 1 - index
            prefixes = digit - (_BINS >> 1) if prefixes is None else (prefixes << _DIGIT) + digit
        keys = torch.empty(0) if prefixes is None else prefixes.to(self.integer)
        return _ordered(keys.view(self.dtype), self.integer).view(self.dtype)  # the map is its own inverse

    def _count(self, name: str, *, prefixes: Tensor | None, shift: int) -> Tensor:
        """Histograms (S, R or 1, bins) of the next digit, over entries whose leading bits are `prefixes` (S, R)."""
        totals: list[list[Tensor]] = []
        for chunk in self.stream(name):
            for row, values in enumerate(chunk):
                keys = _ordered(values, self.integer)
                if prefixes is None:  # the sign is in the first digit
                    digits = [torch.bincount((keys >> shift) + (_BINS >> 1), minlength=_BINS)]
                else:
                    leading = keys >> (shift + _DIGIT)
                    chosen = [keys[leading == int(prefix)] for prefix in prefixes[row]]
                    digits = [torch.bincount((some >> shift) & (_BINS - 1), minlength=_BINS) for some in chosen]
                if row == len(totals):
                    totals.append(digits)
                else:
                    for total, count in zip(totals[row], digits, strict=True):
                        total += count
        return torch.stack([torch.stack(total) for total in totals]).cpu()


def _ordered(values: Tensor, integer: torch.dtype) -> Tensor:
    """Integers in the order of the floats."""
    keys = values.view(integer)
    return keys ^ ((keys >> (torch.iinfo(integer).bits - 1)) & torch.iinfo(integer).max)
