"""The search over coefficients for several goals."""

from __future__ import annotations

import sys

import pytest

from hf_taskvec import evaluate
from hf_taskvec.errors import UnknownNameError
from hf_taskvec.tuning import CoefficientSearch, Trial, search_coefficients
from tests.test_tuning import toys


def trial(mean: float, worst: float) -> Trial:
    return Trial((mean,), {"mean": mean, "worst": worst})


def test_the_front_holds_what_nothing_dominates() -> None:
    trials = (trial(0.5, 0.3), trial(0.6, 0.2), trial(0.55, 0.3), trial(0.4, 0.1), trial(0.6, 0.2))
    searched = CoefficientSearch(trials, (), {"goals": ["mean", "worst"]})
    assert [each.coefficients for each in searched.front] == [(0.55,), (0.6,), (0.6,)]
    assert searched.best("worst") is trials[0]
    assert searched.best() is trials[1]
    with pytest.raises(UnknownNameError, match="no goal 'control'"):
        searched.best("control")


def test_the_search_starts_at_the_start_and_keeps_what_it_measured() -> None:
    pytest.importorskip("optuna")
    base, vectors, tasks = toys()
    options = {"goals": ["worst", "mean", "control"], "control": tasks[:1], "trials": 4, "bounds": (0.0, 2.0)}
    searched = search_coefficients(base, vectors, tasks, **{**options, "trials": 4.0})
    assert searched.trials[0].coefficients == (0.3, 0.3)
    assert all(0 <= value <= 2 for each in searched.trials for value in each.coefficients)
    best = searched.best("worst")
    merged = searched.merge()
    report = evaluate(merged.apply_to(base), tasks, split="validation")
    assert best.reached["worst"] == min(result.accuracy for result in report.results)
    assert best.reached["mean"] == report.accuracy
    assert best.reached["control"] == report.results[0].accuracy
    assert merged.info.settings["learned"]["reached"] == best.reached
    assert search_coefficients(base, vectors, tasks, **options).trials == searched.trials


def test_a_search_without_optuna_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    base, vectors, tasks = toys()
    with pytest.raises(ImportError, match=r"pip install 'hf-taskvec\[search\]'"):
        search_coefficients(base, vectors, tasks, trials=1)


def test_bad_input_of_a_search_is_refused() -> None:
    base, vectors, tasks = toys()
    for options, message in (
        ({"goals": ["median"]}, "no goal 'median'"),
        ({"goals": []}, "goals must be a list"),
        ({"goals": ["control"]}, "needs tasks that merging should not harm"),
        ({"trials": 0}, "trials must be a whole number"),
        ({"start": 2.0}, "start must lie within bounds"),
    ):
        with pytest.raises(ValueError, match=message):
            search_coefficients(base, vectors, tasks, **options)


def test_the_figure_joins_the_front() -> None:
    trials = (trial(0.5, 0.3), trial(0.4, 0.1), trial(0.6, 0.2))
    axes = CoefficientSearch(trials, (), {"goals": ["mean", "worst"]}).plot().axes[0]
    (line,) = axes.lines
    assert [list(line.get_xdata()), list(line.get_ydata())] == [[50.0, 60.0], [30.0, 20.0]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("mean accuracy (%)", "worst accuracy (%)")
    assert len(axes.collections[0].get_offsets()) == 3
    with pytest.raises(ValueError, match="had 'mean' alone"):
        CoefficientSearch(trials, (), {"goals": ["mean"]}).plot()
