"""Comparable is what an equivalence test says, and one epoch is judged only where merging gains something."""

from __future__ import annotations

import numpy as np
import pytest
from paper.analysis import Comparison, compare_budgets
from paper.claims import judge_one_epoch
from paper.comparison import INDIVIDUAL, Cell, Score
from paper.settings import CONVERGED
from scipy import stats

from hf_taskvec.evaluation.intervals import equivalence_test

ZERO_SHOT = 0.5


def comparison(one: list[float], last: list[float], *, optimizer: str = "adam") -> Comparison:
    """One epoch against convergence with one pair of mean accuracies per seed."""
    cells = []
    for seed, values in enumerate(zip(one, last, strict=True)):
        scores = [
            Score(optimizer, seed, budget, "ties@1", {"a": value})
            for budget, value in zip(("1", CONVERGED), values, strict=True)
        ]
        individual = Score(optimizer, seed, CONVERGED, INDIVIDUAL, {"a": 0.9})
        cells.append(Cell([*scores, individual], [], {"a": 2}, {}, {}, {}, {}))
    return compare_budgets(cells, optimizer, "ties@1")


def test_equivalence_is_the_larger_of_two_one_sided_tests() -> None:
    random = np.random.default_rng(0)
    left, right = random.normal(0.7, 0.01, 6), random.normal(0.705, 0.01, 6)
    result = equivalence_test(left.tolist(), right.tolist(), margin=0.02)
    above = stats.ttest_1samp(left - right, -0.02, alternative="greater").pvalue
    below = stats.ttest_1samp(left - right, 0.02, alternative="less").pvalue
    assert result.p_value == pytest.approx(max(above, below))
    low, high = stats.ttest_1samp(left - right, 0).confidence_interval(0.9)
    assert (result.low, result.high) == pytest.approx((low, high))


@pytest.mark.parametrize("shift", [-0.03, -0.005, 0.0, 0.005, 0.03])
def test_equivalence_holds_just_where_the_interval_lies_within_the_margin(shift: float) -> None:
    left = [0.70 + shift, 0.72 + shift, 0.71 + shift, 0.705 + shift]
    result = equivalence_test(left, [0.71, 0.715, 0.70, 0.71], margin=0.02)
    assert result.equivalent == (result.low > -0.02 and result.high < 0.02)
    assert result.equivalent == (abs(shift) < 0.02)


def test_a_noisy_difference_of_nothing_is_not_equivalent() -> None:
    assert not equivalence_test([0.6, 0.8, 0.7], [0.7, 0.7, 0.7], margin=0.02).equivalent


def test_without_spread_the_mean_alone_decides() -> None:
    assert equivalence_test([0.25, 0.5], [0.25, 0.5], margin=0.02).equivalent
    assert not equivalence_test([0.5, 0.75], [0.25, 0.5], margin=0.02).equivalent


@pytest.mark.parametrize(
    ("left", "right", "changes", "message"),
    [
        ([0.1], [0.1], {}, "at least two pairs, got 1"),
        ([0.1, 0.2], [0.1], {}, "one length, got 2 and 1"),
        ([0.1, 0.2], [0.1, 0.2], {"margin": 0.0}, "margin must be positive"),
        ([0.1, 0.2], [0.1, 0.2], {"significance": 0.5}, r"significance must be in \(0, 0.5\)"),
    ],
)
def test_equivalence_test_refuses(
    left: list[float], right: list[float], changes: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        equivalence_test(left, right, **{"margin": 0.02, **changes})


def test_one_epoch_is_not_testable_where_the_merge_gains_less_than_five_points() -> None:
    claim = judge_one_epoch([comparison([0.53, 0.54, 0.53], [0.53, 0.53, 0.54])], ZERO_SHOT, "ties@1")
    assert claim.verdict == "not testable here"
    assert "gains 5 points for 0 of 1 pairs" in claim.figure


def test_the_interval_of_the_gain_counts_not_its_mean() -> None:
    assert not comparison([0.50, 0.56, 0.62], [0.5, 0.5, 0.5]).testable(ZERO_SHOT)
    assert comparison([0.555, 0.56, 0.565], [0.5, 0.5, 0.5]).testable(ZERO_SHOT)
    assert comparison([0.5, 0.5, 0.5], [0.555, 0.56, 0.565]).testable(ZERO_SHOT)  # one epoch can be worse


@pytest.mark.parametrize(
    ("one", "finding", "verdict"),
    [
        ([0.70, 0.71, 0.69], "comparable", "holds"),
        ([0.75, 0.76, 0.74], "better", "holds"),
        ([0.65, 0.66, 0.64], "worse", "does not hold here"),
        ([0.66, 0.78, 0.70], "undecided", "does not hold here"),  # an interval above -0.02 of noise is no evidence
    ],
)
def test_one_epoch_is_judged_by_the_equivalence_test(one: list[float], finding: str, verdict: str) -> None:
    judged = comparison(one, [0.70, 0.705, 0.695])
    assert judged.finding == finding
    claim = judge_one_epoch([judged], ZERO_SHOT, "ties@1")
    assert claim.verdict == verdict
    assert f"one epoch is {finding} for 1" in claim.figure


def test_pairs_that_are_not_testable_have_no_say() -> None:
    flat = comparison([0.5, 0.5, 0.5], [0.52, 0.53, 0.52], optimizer="sgd")
    good, bad = comparison([0.7, 0.71, 0.69], [0.7, 0.705, 0.695]), comparison([0.6, 0.6, 0.61], [0.7, 0.7, 0.7])
    assert judge_one_epoch([flat, good], ZERO_SHOT, "ties@1").verdict == "holds"
    assert judge_one_epoch([flat, good, bad], ZERO_SHOT, "ties@1").verdict == "holds partly"


def test_one_seed_decides_nothing() -> None:
    assert comparison([0.7], [0.7]).finding == "undecided"
