"""Bootstrap intervals of means and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap interval.

    Attributes:
        mean: The mean.
        low, high: Ends of the percentile interval.
        count: Number of values.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """As `0.123 [0.101, 0.140]`."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_interval(values: Sequence[float], *, confidence: float = 0.95, seed: int = 0) -> Interval:
    """The mean of some values and its percentile bootstrap interval; with few values it is too narrow.

    Args:
        values: One value per seed or other independent unit.
        confidence: Coverage, in (0, 1).
        seed: Seed of the resampling.

    Raises:
        ValueError: If there is no value, or `confidence` is out of range.
    """
    if not len(values):
        raise ValueError("an interval needs at least one value, got none")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    array = np.asarray(values, dtype=float)
    rows = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.quantile(array[rows].mean(axis=1), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def paired_difference(left: Sequence[float], right: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """The mean of `left - right` over pairs, such as seeds, and its bootstrap interval.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(left) != len(right):
        raise ValueError(f"pairs need two sequences of one length, got {len(left)} and {len(right)}")
    return bootstrap_interval([a - b for a, b in zip(left, right, strict=True)], confidence=confidence)
