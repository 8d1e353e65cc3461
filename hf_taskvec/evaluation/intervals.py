"""Bootstrap intervals of means and paired differences, and a test that two means are the same up to a margin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hf_taskvec.errors import check_positive

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

    Example:
        >>> bootstrap_interval([0.5, 0.5, 0.5])
        Interval(mean=0.5, low=0.5, high=0.5, count=3)
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

    Example:
        >>> str(paired_difference([0.75, 0.5], [0.5, 0.25]))
        '0.250 [0.250, 0.250]'
    """
    if len(left) != len(right):
        raise ValueError(f"pairs need two sequences of one length, got {len(left)} and {len(right)}")
    return bootstrap_interval([a - b for a, b in zip(left, right, strict=True)], confidence=confidence)


def paired_accuracy_difference(left: Sequence[bool], right: Sequence[bool], *, confidence: float = 0.95) -> Interval:
    """The difference of two models' accuracies on the same images, and its interval (Agresti and Min 2005).

    The interval is Wald's after half an image is added to each kind of disagreement, which holds its coverage also
    where the models hardly differ.

    Args:
        left: Whether the first model is right, for each image.
        right: Whether the second is.
        confidence: Coverage, in (0, 1).

    Raises:
        ValueError: If the lengths differ, there is no image, or `confidence` is out of range.

    Example:
        >>> interval = paired_accuracy_difference([True] * 9 + [False], [True] * 8 + [False, True])
        >>> interval.mean, round(interval.low, 2), round(interval.high, 2)
        (0.0, -0.28, 0.28)
    """
    if len(left) != len(right) or not len(left):
        raise ValueError(f"pairs need two sequences of one length of at least 1, got {len(left)} and {len(right)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    gained = sum(a and not b for a, b in zip(left, right, strict=True))
    lost = sum(b and not a for a, b in zip(left, right, strict=True))
    count = len(left) + 2
    middle = (gained - lost) / count
    error = math.sqrt(gained + lost + 1 - count * middle**2) / count
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
    return Interval((gained - lost) / len(left), middle - reach, middle + reach, len(left))


@dataclass(frozen=True)
class Equivalence:
    """What two one-sided tests say about a mean paired difference.

    Attributes:
        mean: The mean difference.
        low, high: Student's interval that lies within the margin just when the difference is equivalent to 0.
        margin: Differences smaller than this count as none.
        p_value: The larger of the two tests' p-values.
        significance: The level of each test.
        count: Number of pairs.
    """

    mean: float
    low: float
    high: float
    margin: float
    p_value: float
    significance: float
    count: int

    @property
    def equivalent(self) -> bool:
        """Whether a difference of the margin or more is ruled out in both directions."""
        return self.p_value < self.significance


def equivalence_test(
    left: Sequence[float], right: Sequence[float], *, margin: float, significance: float = 0.05
) -> Equivalence:
    """Tests that the mean of `left - right` lies within ±`margin`: two one-sided paired t-tests (Schuirmann 1987).

    A confidence interval above -`margin` shows only that `left` is not worse; equivalence needs both sides, and the
    lack of a significant difference shows nothing.

    Args:
        left: One value per seed or other independent unit.
        right: Its partners.
        margin: Differences smaller than this count as none, in the values' unit.
        significance: The level of each test, in (0, 0.5).

    Raises:
        ValueError: If the lengths differ, there are fewer than two pairs, or a number is out of range.

    Example:
        >>> equivalence_test([0.71, 0.72, 0.70], [0.715, 0.715, 0.705], margin=0.02).equivalent
        True
        >>> equivalence_test([0.71, 0.76, 0.66], [0.72, 0.71, 0.70], margin=0.02).equivalent
        False
    """
    if len(left) != len(right):
        raise ValueError(f"pairs need two sequences of one length, got {len(left)} and {len(right)}")
    if len(left) < 2:
        raise ValueError(f"an equivalence test needs at least two pairs, got {len(left)}")
    if not 0 < significance < 0.5:
        raise ValueError(f"significance must be in (0, 0.5), got {significance}")
    check_positive("margin", margin)
    differences = np.asarray(left, dtype=float) - np.asarray(right, dtype=float)
    mean, degrees = float(differences.mean()), len(differences) - 1
    error = float(differences.std(ddof=1)) / math.sqrt(len(differences))
    reach = float(stats.t.ppf(1 - significance, degrees)) * error
    slack = margin - abs(mean)  # to the nearer bound, whose test is the one that can fail
    p_value = float(stats.t.sf(slack / error, degrees)) if error > 0 else float(slack <= 0)
    return Equivalence(mean, mean - reach, mean + reach, margin, p_value, significance, len(differences))


def mean_interval(intervals: Sequence[Interval]) -> Interval:
    """The mean of independent means, such as those of several tasks' images, with its interval.

    The half widths add up in squares, around the middle of the intervals' middles.

    Raises:
        ValueError: If there is none.

    Example:
        >>> print(mean_interval([Interval(0.1, 0.0, 0.2, 50), Interval(0.3, 0.2, 0.4, 50)]))
        0.200 [0.129, 0.271]
    """
    if not intervals:
        raise ValueError("a mean needs at least one interval, got none")
    count = len(intervals)
    middle = sum((one.low + one.high) / 2 for one in intervals) / count
    reach = math.sqrt(sum(((one.high - one.low) / 2) ** 2 for one in intervals)) / count
    mean = sum(one.mean for one in intervals) / count
    return Interval(mean, middle - reach, middle + reach, sum(one.count for one in intervals))
