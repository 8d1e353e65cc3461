"""What the doctor's evidence is made of: measured merges, remedies tried, and a predictor tested on tasks held out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from mergeability.cases import Case, check_remedies, facts_of, member_lists, remedied
from mergeability.evidence import harm_of, held_out_remedies, over_tasks, points, remedies_of
from mergeability.predictor import Choice, HeldOut, Row, calibrated, fit, held_out, weighted_quantile, without

from hf_taskvec import TaskVector, TaskVectorConfig
from hf_taskvec.doctor import Evidence, Facts, diagnose
from hf_taskvec.errors import SettingsDifferError, UnknownNameError
from recipes import doctor
from tests.bases import save_colour_dataset, save_tiny_base

NAMES = "abcdefgh"
WAYS = [Choice(("idle",)), Choice(("x",)), Choice(("x",), 100.0)]


def rows(*, noise: float, effect: float = 0.0, seed: int = 0) -> list[Row]:
    """All pairs of eight tasks, what is kept linear in one of two features; `effect` is how far tasks differ."""
    rng = np.random.default_rng(seed)
    secret = dict(zip(NAMES, rng.normal(size=len(NAMES)) * effect, strict=True))
    result = []
    for members in combinations(NAMES, 2):
        for task in members:
            x, idle = rng.normal(size=2)
            kept = 0.8 + 0.1 * x + secret[task] + noise * rng.normal()
            result.append(Row(task, members, 0, {"x": x, "idle": idle}, kept))
    return result


def case(members: str, kept: dict[str, float], *, sick: bool) -> Case:
    count = len(members)
    table = tuple((0.0,) * count for _ in range(count))
    norms = (2.0, *(1.0,) * (count - 1)) if sick else (1.0,) * count
    facts = Facts(tuple(members), norms, table, table, None, None, (None,) * count)
    return Case(0, tuple(members), facts, {name: [value] * count for name, value in kept.items()})


# -- the predictor ----------------------------------------------------------------------------------------------------


def test_a_planted_relation_is_recovered_and_holds_on_tasks_held_out() -> None:
    planted = rows(noise=0.01)
    predictor = fit(planted, Choice(("x", "idle")))
    change = predictor.value({"x": 1.0, "idle": 0.0}) - predictor.value({"x": 0.0, "idle": 0.0})
    assert change == pytest.approx(0.1, abs=0.01)
    assert calibrated(planted, WAYS).features == ("x",)
    assert calibrated(planted, WAYS).coefficients[0] > 0.05  # not with the penalty that leaves nothing of it
    assert predictor.coefficients[1] == pytest.approx(0.0, abs=0.01)
    test = held_out(planted, [Choice(("x", "idle"))])
    assert test.correlation > 0.95
    assert test.within > 0.9
    assert test.width < 0.1


def test_noise_is_not_predicted_and_the_test_says_so() -> None:
    test = held_out(rows(noise=1.0), [Choice(("idle",))])
    assert test.correlation < 0.4
    assert test.fault is not None
    assert "correlation" in test.fault


def test_intervals_cover_new_tasks_also_where_each_task_is_off_by_something_of_its_own() -> None:
    tests = [held_out(rows(noise=0.02, effect=0.1, seed=seed), [Choice(("x",))]) for seed in range(6)]
    assert 0.8 <= sum(test.coverage for test in tests) / len(tests) <= 0.97
    assert min(test.width for test in tests) > 0.1  # the noise alone would have less


@pytest.mark.parametrize(
    ("correlation", "coverage", "fault"),
    [
        (0.61, 0.9, None),
        (0.59, 0.9, "is 0.59, and .6"),
        (0.9, 0.8, "intervals cover 80 %"),
        (math.nan, 0.9, "correlation"),
    ],
)
def test_a_predictor_is_shown_only_if_it_does_what_was_asked_for(
    correlation: float, coverage: float, fault: str | None
) -> None:
    said = HeldOut(correlation, 0.0, 0.1, coverage, 0.3, ()).fault
    assert (said is None) == (fault is None)
    assert (fault or "") in (said or "")


def test_nothing_of_a_held_out_task_is_seen() -> None:
    planted = rows(noise=0.1)
    assert {name for row in without(planted, "ab") for name in row.members} == set("cdefgh")
    spoilt = [replace(row, kept=9.0) if "a" in row.members and row.task != "a" else row for row in planted]
    values = [[p for p in held_out(some, WAYS).points if p[0] == "a"] for some in (planted, spoilt)]
    assert values[0] == values[1]


def test_a_quantile_lets_every_task_weigh_the_same() -> None:
    many = [(0.1, 0.25 / 100)] * 100 + [(0.5, 0.25), (0.7, 0.25)]
    values, weights = zip(*many, strict=True)
    assert weighted_quantile(values, weights, 0.5) == pytest.approx(0.5)
    assert weighted_quantile(values, weights, 0.9) == math.inf  # one task in four is unknown
    assert calibrated(rows(noise=0.1), WAYS).radius > 0


# -- remedies and harms -----------------------------------------------------------------------------------------------


def test_harms_and_gains_are_means_over_tasks() -> None:
    sick = [case("ab", {"plain": 0.5, "shrink": 0.7}, sick=True), case("ac", {"plain": 0.7, "shrink": 0.6}, sick=True)]
    well = [case(pair, {"plain": 0.9, "shrink": 0.9}, sick=False) for pair in ("bc", "ad", "bd", "cd")]
    harm = harm_of([*sick, *well], sick)
    assert harm is not None
    assert harm.mean == pytest.approx(((0.6 - 0.9) + (0.5 - 0.9) + (0.7 - 0.9)) / 3)  # of a, b and c
    gain = over_tasks(sick, lambda one: one.gain("shrink"))
    assert gain is not None
    assert gain.mean == pytest.approx((0.05 + 0.2 - 0.1) / 3)
    (remedy,) = remedies_of(sick, ["shrink"])
    assert (remedy.helped, remedy.merges, remedy.helps) == (0.5, 2, False)
    assert remedies_of(sick[:1], ["shrink"]) == ()  # two tasks are too few


def test_a_remedy_is_chosen_without_the_task_that_it_is_tried_on() -> None:
    def measured(members: Sequence[str]) -> Case:
        helps = "a" not in members  # with a, the other remedy does
        kept = {"plain": 0.5, "shrink": 0.7 if helps else 0.4, "drop": 0.4 if helps else 0.7}
        return case("".join(members), kept, sick=True)

    test = held_out_remedies([measured(pair) for pair in combinations("abcde", 2)], ["shrink", "drop"])
    assert test.merges == {"outweighs": 4, "all": 4}  # only without a does any remedy help in four of five merges
    assert test.helped["outweighs"] == 0.0
    assert test.gains["all"].mean == pytest.approx(-0.1)


@pytest.mark.parametrize("remedy", ["shrnk", "epoch-2", "epoch-0", "epoch-x", "tsv_m", "tsvm@1", "ties@much"])
def test_a_remedy_that_cannot_be_tried_is_refused(remedy: str) -> None:
    check_remedies(["shrink", "drop", "epoch-1", "ties@0.5"], 2)
    with pytest.raises((ValueError, UnknownNameError)):
        check_remedies([remedy], 2)


def test_every_remedy_merges_what_it_says() -> None:
    def epochs(*sizes: float) -> list[TaskVector]:
        return [TaskVector({"w": torch.tensor([size, 1.0])}) for size in sizes]

    series = {"a": epochs(1.0, 3.0), "b": epochs(2.0, 30.0)}
    for remedy, wanted in {
        "plain": [16.5, 1.0],
        "drop": [3.0, 1.0],
        "epoch-1": [1.5, 1.0],
        "task_arithmetic@1": [33.0, 2.0],
        "task_arithmetic@0.1": [3.3, 0.2],
    }.items():
        assert remedied(series, "ab", remedy)["w"].tolist() == pytest.approx(wanted), remedy
    assert remedied(series, "ab", "shrink").norm() == pytest.approx(math.hypot(3.0, 1.0), rel=0.1)


def test_all_pairs_and_the_same_few_triples_are_merged() -> None:
    lists = member_lists(NAMES, triples=5, seed=1)
    assert len(lists) == 28 + 5
    assert lists == member_lists(NAMES, triples=5, seed=1)
    assert lists[28:] != member_lists(NAMES, triples=5, seed=2)[28:]
    assert len(member_lists("abc", triples=9, seed=0)) == 4


def test_facts_survive_json() -> None:
    facts = case("abc", {"plain": 1.0}, sick=True).facts
    assert facts_of(facts.to_dict()) == facts


def test_the_page_tells_what_the_package_ships() -> None:
    shipped = Evidence.load()
    page = (Path(__file__).parents[1] / "recipes" / "results" / "doctor.md").read_text("utf-8")
    assert f"{shipped.told}. Experts:" in page
    rows = {line.split(" | ")[0].lstrip("| "): line for line in page.splitlines() if line.startswith("| ")}
    for symptom, harm in shipped.harms.items():
        remedy = shipped.remedy(symptom)
        assert points(harm) in rows[symptom]
        assert remedy is None or f"| `{remedy.name}` | {100 * remedy.helped:.0f} % | {points(remedy.gain)} |" in page
    used = "; ".join(f"from {kind}: {', '.join(one.features)}" for kind, one in shipped.predictors.items())
    assert f"In use: {used or 'none'}." in page


# -- the recipe -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="hf_taskvec")  # every figure here rests on a handful of images


def config(folder: Path, **changes: object) -> TaskVectorConfig:
    values = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "trainable_parameters": ["*.mlp.*.weight"],
        "save_strategy": "no",
        "logging_strategy": "no",
        "track_gradients": False,
        "disable_tqdm": True,
    }
    return TaskVectorConfig(**{**values, **changes})


@pytest.mark.usefixtures("quiet")
def test_the_recipe_measures_once_and_writes_what_the_doctor_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["colours", "shades", "tints"]
    for seed, name in enumerate(names):
        save_colour_dataset(tmp_path / "data" / name, train=40, test=12, seed=seed)
    args = doctor.DoctorArguments(
        base=str(save_tiny_base(tmp_path / "base")),
        tasks=names,
        data_dir=str(tmp_path / "data"),
        seeds=[0],
        triples=1,
        remedies=["shrink", "epoch-1", "ties@1"],
        num_images=8,
        evidence=str(tmp_path / "evidence.json"),
    )
    outcome = doctor.main(args, config(tmp_path / "out"))
    page = (tmp_path / "out" / "report.md").read_text()
    assert "3 tasks, 1 seed(s), 4 merges of two and three vectors" in page
    assert "it takes 5" in page
    assert {one.name for one in outcome.everywhere} == {"shrink", "epoch-1", "ties@1"}
    vectors = [tmp_path / "out" / "seed-0" / name / "run" / "vectors" / "epoch-2" for name in names]
    told = diagnose(vectors, evidence=tmp_path / "evidence.json")
    assert Evidence.load(tmp_path / "evidence.json") == outcome.evidence
    assert told.silence == "it takes merges of 5 tasks to fit one"
    assert told.told.startswith("base, 3 tasks")
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "seed-0").rglob("*.json")}
    assert len([path for path in stamps if "merges" in path.parts]) == 8  # four results, four plans
    next(path for path in stamps if path.name == "shades+tints.json").unlink()
    assert doctor.main(args, config(tmp_path / "out")).evidence == outcome.evidence
    again = {path for path in stamps if path.stat().st_mtime_ns != stamps[path]}
    assert {path.name for path in again} == {"shades+tints.json", "shades+tints.json.plan.json"}
    with pytest.raises(SettingsDifferError, match=r"learning_rate=0\.001 there, 0\.002 here"):
        doctor.main(args, config(tmp_path / "out", learning_rate=2e-3))
    assert "Findings and remedies" in capsys.readouterr().out
