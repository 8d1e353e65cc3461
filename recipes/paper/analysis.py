"""What the experiments say: means over seeds, paired differences and how often one epoch ties or wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from hf_taskvec.evaluation.intervals import (
    Equivalence,
    Interval,
    bootstrap_interval,
    equivalence_test,
    paired_difference,
)
from paper.comparison import INDIVIDUAL, Cell, Score
from paper.settings import CONVERGED

TIE = 0.02  # accuracies closer than two points count as comparable
TESTABLE_GAIN = 0.05  # a merge that gains less over zero-shot cannot be hurt by another budget

Finding = Literal["comparable", "better", "worse", "undecided"]


@dataclass(frozen=True)
class Comparison:
    """One epoch against convergence for one optimiser and method.

    Attributes:
        optimizer, method: Which runs and merge.
        one_epoch, converged: Mean accuracy.
        difference: One epoch minus converged, paired over seeds.
        normalized_difference: The same of normalised accuracy.
        wins: Fraction of seeds and random subsets of tasks in which one epoch ties or wins.
        trials: How many seeds and subsets.
        equivalence: Whether the difference lies within ±`TIE`; `None` of a single seed.
    """

    optimizer: str
    method: str
    one_epoch: Interval
    converged: Interval
    difference: Interval
    normalized_difference: Interval
    wins: float
    trials: int
    equivalence: Equivalence | None = None

    @property
    def finding(self) -> Finding:
        """What one epoch is beside convergence: comparable by the equivalence test, better, worse or none of these."""
        test = self.equivalence
        if test is None:
            return "undecided"
        if test.equivalent:
            return "comparable"
        return "better" if test.low > 0 else "worse" if test.high < 0 else "undecided"

    def gain(self, zero_shot: float) -> Interval:
        """What the merge gains over zero-shot at the better of the two budgets."""
        best = max(self.one_epoch, self.converged, key=lambda interval: interval.mean)
        return Interval(best.mean - zero_shot, best.low - zero_shot, best.high - zero_shot, best.count)

    def testable(self, zero_shot: float) -> bool:
        """Whether the merge gains enough for one epoch to be worse."""
        return self.gain(zero_shot).low >= TESTABLE_GAIN


def compare_budgets(cells: Sequence[Cell], optimizer: str, method: str) -> Comparison:
    """One epoch against convergence over the seeds of an optimiser."""
    first, last = (scores(cells, optimizer, method, budget) for budget in ("1", CONVERGED))
    reference = [score.accuracy for score in scores(cells, optimizer, INDIVIDUAL, CONVERGED)]
    on_subsets = [score for cell in cells for score in cell.subsets]
    subsets_first, subsets_last = (
        [score for score in on_subsets if _is(score, optimizer, method, budget)] for budget in ("1", CONVERGED)
    )
    trials = list(zip([*first, *subsets_first], [*last, *subsets_last], strict=True))
    means = [score.mean for score in first], [score.mean for score in last]
    return Comparison(
        optimizer=optimizer,
        method=method,
        one_epoch=bootstrap_interval(means[0]),
        converged=bootstrap_interval(means[1]),
        difference=paired_difference(*means),
        normalized_difference=paired_difference(
            [score.normalized(own) for score, own in zip(first, reference, strict=True)],
            [score.normalized(own) for score, own in zip(last, reference, strict=True)],
        ),
        wins=fmean(one.mean >= other.mean for one, other in trials),
        trials=len(trials),
        equivalence=equivalence_test(*means, margin=TIE) if len(first) > 1 else None,
    )


def scores(cells: Sequence[Cell], optimizer: str, method: str, budget: str) -> list[Score]:
    """The scores on all tasks, one per seed, by seed."""
    matching = [score for cell in cells for score in cell.scores if _is(score, optimizer, method, budget)]
    return sorted(matching, key=lambda score: score.seed)


def budgets_of(cells: Sequence[Cell], optimizer: str) -> list[str]:
    """The budgets of an optimiser, in order, convergence last."""
    return list(dict.fromkeys(s.budget for cell in cells for s in cell.scores if s.optimizer == optimizer))


def over_seeds(items: Sequence[Mapping[str, Any]], values: Sequence[float]) -> Interval:
    """The interval over seeds of one value per item; the items of one seed are averaged first."""
    by_seed: dict[int, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        by_seed.setdefault(item["seed"], []).append(value)
    return bootstrap_interval([fmean(of_seed) for of_seed in by_seed.values()])


def _is(score: Score, optimizer: str, method: str, budget: str) -> bool:
    return (score.optimizer, score.method, score.budget) == (optimizer, method, budget)
