"""Experts to convergence and the measured adviser: what their recipes keep, tell apart and refuse."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paper.early import (
    ARMS,
    CONSTANT,
    LONG,
    OWN,
    budget_table,
    choice_table,
    draw_choices,
    separation,
    series_of,
    study_epochs,
)
from paper.results import claim_folder
from paper.runs import CUT, Run
from paper.settings import CONVERGED, Reproduction

from hf_taskvec.arguments import parse_recipe
from hf_taskvec.errors import UnknownNameError
from recipes import early_epochs, experts
from tests.toys import toy_base

CONFIGS = Path(__file__).parents[1] / "recipes" / "configs"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="hf_taskvec")  # every choice here rests on a handful of images


def small(folder: Path, **changes: object) -> Reproduction:
    toy_base().model.save_pretrained(folder / "base")
    toy_base().processor.save_pretrained(folder / "base")
    values: dict[str, Any] = {
        "base": str(folder / "base"),
        "tasks": ["digits", "shapes"],
        "output_dir": str(folder / "out"),
        "seeds": [0],
        "optimizers": ["adamw_cosine", "adamw"],
        "learning_rates": [1e-2, 1e-3],
        "max_epochs": [2, 2],
        "patience": 2,
        "budgets": [1, 2],
        "merges": ["task_arithmetic@1/T"],
        "batch_size": 8,
        "max_train": 24,
        "max_validation": 8,
        "max_test": 12,
        "dynamics_optimizer": "adamw",
        "atm_optimizer": "adamw",
    }
    return Reproduction(**{**values, **changes})


def entry(seed: int, first: dict[str, float], *, last: float = 0.5, saved: float = 0.8) -> dict[str, Any]:
    """One seed's result in which every arm has its accuracy after one epoch."""
    arms = {
        arm: {
            "average@1/T": {
                "budgets": {"1": first[arm] + 0.001 * seed},
                CONVERGED: last + 0.001 * seed,
                "choices": {
                    by: {"accuracy": first[arm] + 0.001 * seed, "saved": saved, "epochs": {}}
                    for by in ("validation", "gradient", "growth")
                },
            }
        }
        for arm in ARMS
    }
    return {"seed": seed, "arms": arms}


@pytest.fixture(scope="module")  # of slow tests: thirty short runs
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Reproduction, list[dict[str, Any]]]:
    """The smallest study of the adviser, and what it found."""
    settings = small(tmp_path_factory.mktemp("adviser"))
    claim_folder(settings)
    return settings, study_epochs(settings, toy_base())


@pytest.mark.slow
def test_the_adviser_is_measured_on_every_arm_and_read_the_second_time(
    measured: tuple[Reproduction, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, entries = measured
    for arm in ARMS:
        merged = entries[0]["arms"][arm]["task_arithmetic@1/T"]
        assert set(merged["budgets"]) == {"1", "2"}
        assert set(merged["choices"]) == {"validation", "gradient", "growth"}
        assert all(0 <= choice["saved"] < 1 for choice in merged["choices"].values())
    assert early_epochs.main(settings) == entries
    assert (
        "| one long schedule, cut short | task_arithmetic@1/T |" in Path(settings.output_dir, "report.md").read_text()
    )
    capsys.readouterr()


@pytest.mark.slow
def test_a_budget_is_a_run_of_its_own_or_a_cut_and_a_series_ends_converged(
    measured: tuple[Reproduction, list[dict[str, Any]]],
) -> None:
    folder = Path(measured[0].output_dir) / "runs"
    for optimizer, prefix in ARMS.values():
        run = Run(**json.loads((folder / optimizer / "seed-0" / "shapes" / "run.json").read_text()))
        epochs = [vector.info.epochs for vector in series_of(run, prefix)]
        assert epochs == sorted(set(epochs))
        assert epochs[-1] == run.vector(CONVERGED).info.epochs
        if prefix:
            own, cut = run.vector("1"), run.vector(f"{CUT}1")
            assert own.info.steps == cut.info.steps  # the same steps, another schedule
            assert own.cosine(cut) < 1 - 1e-6


def test_the_figure_shows_every_choice_at_the_steps_it_saves_and_the_points_it_gains() -> None:
    early = {OWN: 0.6, LONG: 0.5, CONSTANT: 0.45}
    (axes,) = draw_choices([entry(seed, early, saved=0.8) for seed in range(2)]).axes
    shown = [(bars.lines[0].get_xdata()[0], bars.lines[0].get_ydata()[0]) for bars in axes.containers]
    assert np.allclose(shown, [(80, gain) for gain in (10, 0, -5) for _ in range(3)])


def test_schedule_and_stopping_point_are_told_apart() -> None:
    better_schedule = [entry(seed, {OWN: 0.6, LONG: 0.5, CONSTANT: 0.5}) for seed in range(3)]
    (sentence,) = separation(better_schedule)
    assert "with a schedule of its own is better than converged (+10.0" in sentence
    assert "the stopping point alone, on the long schedule, neither better nor worse (+0.0" in sentence
    assert "the schedule alone, at one epoch, better (+10.0" in sentence
    (alone,) = separation(better_schedule[:1])
    assert "not known to be better or worse" in alone


def test_the_target_is_met_by_no_loss_and_three_quarters_of_the_steps() -> None:
    def verdicts(entries: list[dict[str, Any]]) -> list[str]:
        return [line.rstrip(" |").rpartition("| ")[2] for line in choice_table(entries).splitlines()[2:5]]

    same = {OWN: 0.5, LONG: 0.5, CONSTANT: 0.5}
    assert verdicts([entry(0, same), entry(1, same)]) == ["yes"] * 3
    assert verdicts([entry(0, same, saved=0.7)]) == ["no"] * 3
    assert verdicts([entry(0, {**same, OWN: 0.49})]) == ["no"] * 3
    assert "+0.0 [+0.0, +0.0]" in budget_table([entry(0, same), entry(1, same)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizers": ["adamw"], "learning_rates": [1e-3], "max_epochs": [3]}, r"optimizers lack \['adamw_cosine'\]"),
        ({"budgets": [0.5, 1]}, r"whole epochs, got \[0.5, 1\]"),
    ],
)
def test_arms_that_cannot_be_told_apart_are_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        study_epochs(small(tmp_path, **changes), toy_base())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_experts_of_both_kinds_are_told_with_their_epochs_and_their_course(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = replace(small(tmp_path), optimizers=["adamw"], learning_rates=[1e-3], max_epochs=[2], budgets=[1])
    data = experts.main(experts.ExpertArguments(), settings)
    assert list(data["kinds"]) == ["tower", "mlp"]
    for outcome in data["kinds"].values():
        for task in ("digits", "shapes"):
            (epochs,), (validation,) = outcome["epochs"][task], outcome["validation"][task]
            assert validation[epochs - 1] == max(validation)
            place = outcome["along"]["scalings"].index(1.0)
            assert outcome["along"]["accuracies"][task][place] == pytest.approx(outcome["accuracy"][task][0])
    assert {"report.md", "along-tower.png", "along-mlp.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert experts.main(experts.ExpertArguments(), settings) == data
    assert "whole tower (epochs)" in capsys.readouterr().out


def test_experts_need_known_kinds_a_rate_each_and_a_constant_rate(tmp_path: Path) -> None:
    settings = small(tmp_path)
    with pytest.raises(ValueError, match="early stopping needs a constant rate"):
        experts.main(experts.ExpertArguments(), settings)
    with pytest.raises(UnknownNameError, match="'head'"):
        experts.main(experts.ExpertArguments(kinds=["head"], rates=[1e-3]), settings)
    with pytest.raises(ValueError, match="one value per kind"):
        experts.main(experts.ExpertArguments(rates=[1e-3]), settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["early_epochs.yaml", "early_epochs_smoke.yaml"])
def test_published_settings_tell_the_schedules_apart(name: str) -> None:
    (settings,) = parse_recipe(Reproduction, argv=["--config", str(CONFIGS / name)])
    assert {optimizer for optimizer, _ in ARMS.values()} <= set(settings.optimizers)
    assert all(budget == int(budget) >= 1 for budget in settings.budgets)
