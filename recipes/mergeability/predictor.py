"""A ridge regression of what merges keep, tested on tasks that it was not fitted on, with conformal intervals.

A row is one task in one merge. Where a task is held out, every merge that holds it is left out of the fit: neither its
vector nor its accuracy has been seen.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from hf_taskvec.doctor import Predictor

Array = NDArray[np.float64]
PENALTIES = (0.01, 0.1, 1.0)  # of standardised features, per row
GUARANTEE = 0.85  # coverage that split intervals would promise for a new task; what is expected is some .92
LEAST_TASKS = 5


@dataclass(frozen=True)
class Row:
    """One task in one merge.

    Attributes:
        task: The task.
        members: All tasks of the merge.
        seed: Seed of the vectors.
        features: See `hf_taskvec.doctor.evidence.features_of`.
        kept: Accuracy of the merge on the task over that of the task's own model.
    """

    task: str
    members: tuple[str, ...]
    seed: int
    features: Mapping[str, float]
    kept: float


@dataclass(frozen=True)
class Choice:
    """One way to fit a predictor."""

    features: tuple[str, ...]
    penalty: float = PENALTIES[0]


@dataclass(frozen=True)
class HeldOut:
    """What a predictor does on tasks that it was not fitted on.

    Attributes:
        correlation: Pearson's, over all rows.
        within: Its mean over the tasks, of the rows of each: what is left when tasks are not told apart.
        error: Mean absolute error.
        coverage: Share of the rows within their intervals.
        width: Mean width of the intervals.
        points: For each row its task, what was predicted and what it was.
    """

    correlation: float
    within: float
    error: float
    coverage: float
    width: float
    points: tuple[tuple[str, float, float], ...]

    @property
    def fault(self) -> str | None:
        """Why it is not good enough to be shown to anybody; `None` if it is."""
        if not self.correlation >= 0.6:
            return f"the correlation on tasks held out of the fit is {self.correlation:.2f}, and .6 was asked for"
        if not 0.85 <= self.coverage <= 0.95:
            return f"the intervals cover {100 * self.coverage:.0f} % on tasks held out, and 85 to 95 was asked for"
        return None


def fit(rows: Sequence[Row], choice: Choice, *, radius: float = 0.0) -> Predictor:
    """The ridge regression of what is kept on standardised features."""
    table = np.array([[row.features[name] for name in choice.features] for row in rows])
    kept = np.array([row.kept for row in rows])
    centres, scales = table.mean(axis=0), table.std(axis=0)
    scales[scales == 0] = 1.0
    standard = (table - centres) / scales
    gram = standard.T @ standard + choice.penalty * len(rows) * np.eye(len(choice.features))
    factors = np.linalg.solve(gram, standard.T @ (kept - kept.mean()))
    return Predictor(
        choice.features,
        tuple(centres.tolist()),
        tuple(scales.tolist()),
        tuple(factors.tolist()),
        float(kept.mean()),
        radius,
        tuple(table.min(axis=0).tolist()),
        tuple(table.max(axis=0).tolist()),
    )


def without(rows: Sequence[Row], tasks: Collection[str]) -> list[Row]:
    """The rows of merges that hold none of the tasks."""
    return [row for row in rows if not set(row.members) & set(tasks)]


def misses(rows: Sequence[Row], choice: Choice) -> dict[str, list[float]]:
    """For each task, held out in turn, how far its rows lie from what the others' merges predict."""
    result = {}
    for task in sorted({row.task for row in rows}):
        predictor = fit(without(rows, [task]), choice)
        result[task] = [abs(row.kept - predictor.value(row.features)) for row in rows if row.task == task]
    return result


def calibrated(rows: Sequence[Row], choices: Sequence[Choice]) -> Predictor:
    """The way to fit that misses held-out tasks of these rows least, with the half width of its intervals.

    The tasks are what is exchangeable, not the rows: the quantile has each task weigh the same and one more that is
    infinitely far off (hierarchical conformal prediction, arXiv 2306.06342, here with tasks held out in turn instead of
    a split, for which nothing is promised strictly). That one way was chosen out of a few by the same misses makes the
    intervals slightly too narrow; `held_out` measures what they cover.
    """
    tried = [misses(rows, choice) for choice in choices]
    best = min(range(len(choices)), key=lambda index: fmean(fmean(values) for values in tried[index].values()))
    by_task = tried[best].values()
    weights = [1 / (len(by_task) + 1) / len(values) for values in by_task for _ in values]
    distances = [value for values in by_task for value in values]
    return fit(rows, choices[best], radius=weighted_quantile(distances, weights, GUARANTEE))


def weighted_quantile(values: Sequence[float], weights: Sequence[float], level: float) -> float:
    """The smallest value up to which the weights sum to the level; infinite if they never do.

    Example:
        >>> weighted_quantile([3.0, 1.0, 2.0], [0.25, 0.25, 0.25], 0.5), weighted_quantile([1.0], [0.5], 0.8)
        (2.0, inf)
    """
    total = 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        total += weight
        if total >= level - 1e-9:
            return value
    return math.inf


def held_out(rows: Sequence[Row], choices: Sequence[Choice]) -> HeldOut:
    """The predictor's test: each task is held out in turn with every merge that holds it, also from the choice."""
    points: list[tuple[str, float, float]] = []
    inside, widths, within = [], [], []
    for task in sorted({row.task for row in rows}):
        predictor = calibrated(without(rows, [task]), choices)
        own = [row for row in rows if row.task == task]
        values = [predictor.value(row.features) for row in own]
        points += [(task, value, row.kept) for value, row in zip(values, own, strict=True)]
        inside += [abs(value - row.kept) <= predictor.radius for value, row in zip(values, own, strict=True)]
        widths.append(2 * predictor.radius)
        within.append(correlation(values, [row.kept for row in own]))
    predicted, kept = [point[1] for point in points], [point[2] for point in points]
    error = fmean(abs(a - b) for a, b in zip(predicted, kept, strict=True))
    return HeldOut(correlation(predicted, kept), fmean(within), error, fmean(inside), fmean(widths), tuple(points))


def correlation(left: Sequence[float], right: Sequence[float]) -> float:
    """Pearson's; 0 where one side does not vary."""
    if min(np.std(left), np.std(right)) < 1e-12:
        return 0.0
    return float(np.corrcoef(left, right)[0, 1])
