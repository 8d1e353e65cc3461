"""Forgetting and analogies: the strength, its receipt, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

from hf_taskvec import TaskVector, VectorInfo, evaluate, get_task, gradient_vector, load_base
from hf_taskvec.cards.render import forgetting_words, render_vector_card
from hf_taskvec.command.app import app
from hf_taskvec.editing import Forgotten, analogy, choose_analogy, forget
from hf_taskvec.editing.analogy import information
from hf_taskvec.editing.receipt import image_losses, membership, relearning, roc_area
from hf_taskvec.errors import DataError, IncompatibleVectorsError
from hf_taskvec.evaluation.intervals import Interval, mean_interval, paired_accuracy_difference
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.subsets import subset
from tests.helpers import equal_vectors


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base()


@pytest.fixture(scope="module")
def digits() -> Task:
    return subset(get_task("digits"), max_train=120, max_validation=60, max_test=80)


@pytest.fixture(scope="module")
def control() -> list[Task]:
    return [subset(get_task(name), max_train=8, max_validation=60, max_test=60) for name in ("shapes", "patterns")]


@pytest.fixture(scope="module")
def vector(base: Base, digits: Task) -> TaskVector:
    """Half a dozen full-batch steps: enough to be missed."""
    return gradient_vector(base, digits, learning_rate=0.02, epochs=4)


@pytest.fixture(scope="module")
def gone(base: Base, digits: Task, control: list[Task], vector: TaskVector) -> Forgotten:
    strengths = [0.5, 1, 2, 4, 8]
    return forget(
        base,
        vector,
        control=control,
        target=digits,
        strengths=strengths,
        budget=0.2,
        relearning_steps=2,
        progress=False,
    )


def test_the_strength_leaves_least_of_the_target_where_the_control_keeps_enough(
    gone: Forgotten, base: Base, digits: Task, control: list[Task], vector: TaskVector
) -> None:
    before = np.mean([evaluate(base, [task], split="validation").accuracy for task in control])
    allowed = {}
    for one in gone.tried:
        model = vector.apply_to(base, scaling=-one.strength)
        assert one.target == evaluate(model, [digits], split="validation").accuracy
        assert one.control == pytest.approx(evaluate(model, control, split="validation").accuracy)
        assert one.change.mean == pytest.approx(one.control - before)
        if before + one.change.low >= 0.8 * before:
            allowed[one.strength] = one.target
    assert gone.strength == min(allowed, key=lambda strength: (allowed[strength], strength))
    assert min(allowed.values()) < evaluate(base, [digits], split="validation").accuracy
    assert equal_vectors(gone.vector, vector * -gone.strength)


def test_the_largest_strength_tried_is_told_as_the_end(
    base: Base, digits: Task, control: list[Task], vector: TaskVector, caplog: pytest.LogCaptureFixture
) -> None:
    quick: dict[str, Any] = {"relearning_steps": 0, "members": 0, "progress": False}
    for strengths, told in (([0.5, 1], True), ([1], False)):
        caplog.clear()
        forget(base, vector, control=control, target=digits, strengths=strengths, budget=0.5, **quick)
        assert any("try larger ones" in record.getMessage() for record in caplog.records) == told


def test_the_receipt_is_of_test_images_and_survives_file_and_card(
    gone: Forgotten, base: Base, digits: Task, control: list[Task], tmp_path: Path
) -> None:
    after = gone.vector.apply_to(base)
    target, kept = gone.receipt["target"], gone.receipt["control"]
    assert (target["before"], target["after"]) == (
        evaluate(base, [digits]).accuracy,
        evaluate(after, [digits]).accuracy,
    )
    assert target["chance"] == 0.1
    assert kept["after"] == pytest.approx(evaluate(after, control).accuracy)
    assert kept["kept"] == pytest.approx(kept["after"] / kept["before"])
    assert kept["kept_low"] < kept["kept"]
    assert list(gone.receipt["membership"]) == ["base", "expert", "forgotten"]
    assert gone.receipt["relearning"]["wanted"] == evaluate(base, [digits], split="validation").accuracy
    gone.vector.save_pretrained(tmp_path / "gone")
    reread = TaskVector.from_pretrained(tmp_path / "gone")
    assert reread.info.forgetting == gone.receipt
    card = render_vector_card(reread.info, repo_id="user/no-digits")
    assert "A negated task vector" in card
    assert "forgets:digits" in card
    assert "task:digits" not in card  # it would be found as a vector of digits
    assert (gone.vector * 2.0).info.forgetting is None
    assert f"{100 * target['after']:.1f} % after, chance 10.0 %; control tasks keep {100 * kept['kept']:.1f} %" in card
    assert "| shapes |" in gone.to_markdown()


def test_a_strangers_receipt_breaks_no_card() -> None:
    for receipt in ({}, {"target": 3, "control": {}}, {"target": {"before": "x"}, "control": {"kept": None}}):
        assert forgetting_words(receipt) is None
        render_vector_card(VectorInfo(forgetting=receipt), repo_id="user/x")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"control": []}, "control is empty: name tasks that the model must go on solving"),
        ({"control": "digits"}, "'digits' is the task to forget"),
        ({"budget": 0}, "budget"),
        ({"strengths": [0.5, -1]}, "strengths must be above 0, got -1"),
        ({"target": "mini"}, "forget takes one task, and these are several tasks: digits"),
        ({"strengths": []}, "strengths must hold at least one value"),
        ({"strengths": [500.0]}, "no strength keeps 95% of the control accuracy"),
    ],
)
def test_bad_input_is_refused(
    base: Base, digits: Task, control: list[Task], vector: TaskVector, changed: dict[str, object], message: str
) -> None:
    settings = {"control": control, "target": digits, "relearning_steps": 0, "members": 0, "progress": False}
    with pytest.raises(ValueError, match=message):
        forget(base, vector, **{**settings, **changed})  # type: ignore[arg-type]


def test_a_vector_that_tells_no_task_needs_a_target(base: Base, control: list[Task], vector: TaskVector) -> None:
    with pytest.raises(DataError, match="no class names"):
        forget(base, TaskVector(vector.deltas), control=control)


# -- the receipt's figures --------------------------------------------------------------------------------------------


def test_the_area_under_the_curve_is_scikit_learns_and_its_interval_holds_the_truth() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        positive, negative = random.normal(0.5, 1, 60).round(1), random.normal(0, 1, 90).round(1)
        area = roc_area(positive, negative)
        covered += area.low <= 0.638 <= area.high  # Φ(0.5 / √2)
        labels = np.r_[np.ones(60), np.zeros(90)]
        assert area.mean == pytest.approx(roc_auc_score(labels, np.r_[positive, negative]))
    assert 180 <= covered <= 198
    with pytest.raises(ValueError, match="both kinds"):
        roc_area(positive, negative[:0])


def test_a_model_that_learnt_the_images_by_heart_gives_them_away(base: Base, digits: Task) -> None:
    few = subset(digits, max_train=16)
    learnt = gradient_vector(base, few, learning_rate=0.02, epochs=12).apply_to(base)
    areas = membership({"base": base, "learnt": learnt}, few, most=60)
    assert areas is not None
    assert areas["learnt"]["auc"] > areas["base"]["auc"]
    assert membership({"base": base}, few, most=0) is None
    assert image_losses(learnt, few, "train").mean() < image_losses(base, few, "train").mean()


def test_relearning_counts_the_steps_until_the_accuracy_is_back(gone: Forgotten, base: Base, digits: Task) -> None:
    after, info = gone.vector.apply_to(base), VectorInfo(learning_rate=3e-4, batch_size=40, optimizer="adamw_torch")
    told = relearning(base, after, digits, info, most=16)
    assert told is not None
    assert told["steps"] in (1, 2, 4, 8, 16)
    assert list(told["reached"]) == ["0", *(str(2**power) for power in range(len(told["reached"]) - 1))]
    assert told["reached"][str(told["steps"])] >= told["wanted"]
    assert all(value < told["wanted"] for value in list(told["reached"].values())[:-1])
    hopeless = VectorInfo(learning_rate=1e-9, batch_size=40, optimizer="Lion of somebody's")
    assert (relearning(base, after, digits, hopeless, most=1) or {})["steps"] is None


def test_the_interval_of_a_mean_of_tasks_is_that_of_their_images() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        parts = []
        for chance, count in ((0.1, 80), (0.3, 40)):
            right = random.random(count) < 0.5
            parts.append(paired_accuracy_difference((right ^ (random.random(count) < chance)).tolist(), right.tolist()))
        interval = mean_interval(parts)
        covered += interval.low <= 0 <= interval.high
    assert covered >= 184
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])
    assert mean_interval([Interval(0.1, 0.0, 0.2, 9)]) == Interval(0.1, 0.0, 0.2, 9)


# -- analogies --------------------------------------------------------------------------------------------------------


def test_an_analogy_is_the_parallelogram() -> None:
    a, b, c = (TaskVector({"w": torch.randn(3, 2)}, VectorInfo(task=task)) for task in "abc")
    whole = analogy(a, b, c)
    torch.testing.assert_close(whole["w"], c["w"] + b["w"] - a["w"])
    assert analogy(a, b, c, factor=0) == c
    assert [parent.task for parent in whole.info.parents] == ["a", "b", "c"]
    assert whole.info.settings["weights"] == [-1.0, 1.0, 1.0]
    with pytest.raises(IncompatibleVectorsError):
        analogy(a, TaskVector({"v": torch.ones(1)}), c)


def test_the_factor_of_an_analogy_is_the_one_with_most_information(base: Base, digits: Task) -> None:
    right = gradient_vector(base, digits, learning_rate=0.02, epochs=2)
    still, far = right * 0.0, right * -30.0  # b - a leads away
    chosen = choose_analogy(base, still, far, right, digits, factors=[1.0, 0.0, 0.5], progress=False)
    assert chosen.factor == max(chosen.information, key=lambda factor: chosen.information[factor])
    assert set(chosen.information) == {0.0, 0.5, 1.0}
    assert equal_vectors(chosen.vector, analogy(still, far, right, factor=chosen.factor))


def test_predictions_that_all_fall_into_one_class_tell_nothing() -> None:
    assert information(torch.tensor([[50.0, 0.0]] * 4)) == pytest.approx(0, abs=1e-9)
    assert information(torch.zeros(4, 3)) == pytest.approx(0, abs=1e-9)
    spread = 50 * torch.eye(3)
    assert information(spread) == pytest.approx(np.log(3), abs=1e-9)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_verb_saves_the_vector_with_its_receipt(
    base: Base, digits: Task, vector: TaskVector, tmp_path: Path
) -> None:
    vector.save_pretrained(tmp_path / "digits")
    words = ["forget", str(tmp_path / "digits"), "--control", "shapes", "--budget", "0.3", "--relearning-steps", "0"]
    words += ["--tried", "0.1", "--tried", "0.2", "--output-dir", str(tmp_path / "gone")]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    saved = TaskVector.from_pretrained(tmp_path / "gone")
    assert saved.info.forgetting == told["receipt"]
    assert saved.info.scaling == -told["receipt"]["strength"]
    again = CliRunner().invoke(app, words)
    assert (again.exit_code, "holds a vector already" in again.stderr) == (1, True)
