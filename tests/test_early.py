"""The early-epoch adviser: which epoch of each recorded run to merge, on validation images or without labels."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from hf_taskvec import Base, TaskVector, TaskVectorConfig, TaskVectorTrainer, VectorInfo, evaluate, load_base, merge
from hf_taskvec.errors import BaseMismatchError, DataError, NonFiniteError, UnknownNameError
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.theory.early import EpochChoice, choose_epochs, growth_rates, recorded_series, step_cosines
from hf_taskvec.theory.early_search import EpochSearch
from hf_taskvec.theory.gradients import gradient_vector
from tests.toys import toy_task

DIGITS, SHAPES = toy_task("digits"), toy_task("shapes")


@cache
def base() -> Base:
    """The embedded base, whose accuracies are above chance; never changed by a test."""
    return load_base()


def line(*sizes: float, task: str = "digits", steps: int = 10) -> list[TaskVector]:
    """A run whose vectors have these sizes along one direction."""
    return [
        TaskVector({"w": torch.tensor([size, 0.0])}, VectorInfo(task=task, epochs=epoch, steps=steps * epoch))
        for epoch, size in enumerate(sizes, start=1)
    ]


@cache
def spoilt_series() -> dict[str, list[TaskVector]]:
    """Runs along the descent direction whose last vector is mostly noise."""
    result = {}
    for number, task in enumerate((DIGITS, SHAPES)):
        descent = gradient_vector(base(), task, learning_rate=0.5)
        generator = torch.Generator().manual_seed(number)
        noise = {n: 0.3 * torch.randn(d.shape, generator=generator) for n, d in descent.deltas.items()}
        runs = [descent.deltas, (descent * 2.0).deltas, noise]
        result[task.name] = [
            TaskVector(dict(deltas), replace(descent.info, kind="fine-tuned", epochs=float(epoch), steps=5 * epoch))
            for epoch, deltas in enumerate(runs, start=1)
        ]
    return result


@cache
def choice() -> EpochChoice:
    return choose_epochs(base(), spoilt_series(), [DIGITS, SHAPES])


def test_validation_leaves_out_the_epochs_that_spoil_the_merge() -> None:
    assert all(epochs < 3 for epochs in choice().epochs.values())
    last = merge([run[-1] for run in spoilt_series().values()], "average")
    chosen = merge(list(choice().vectors.values()), "average")
    scores = [
        evaluate(vector.apply_to(base()), [DIGITS, SHAPES], split="validation").accuracy for vector in (chosen, last)
    ]
    assert scores[0] > scores[1]
    assert choice().gain is not None


def test_the_saved_share_counts_the_steps_of_all_runs() -> None:
    taken = sum(vector.info.steps or 0 for vector in choice().vectors.values())
    assert choice().saved == pytest.approx(1 - taken / 30)


def test_the_gain_is_that_over_the_last_epochs_on_images_the_choice_has_not_seen() -> None:
    search = EpochSearch(
        base(),
        spoilt_series(),
        [DIGITS, SHAPES],
        method="average",
        scaling=1.0,
        settings={},
        batch_size=64,
        progress=False,
    )
    picks = tuple(int(epochs) - 1 for epochs in choice().epochs.values())
    mine, last = (
        torch.stack([torch.tensor(correct[1::2].mean()) for correct in search._correct(each)]).mean()
        for each in (picks, search.last)
    )
    gain = choice().gain
    assert gain is not None
    assert gain.mean == pytest.approx(float(mine - last))
    assert gain.low <= gain.mean <= gain.high
    assert gain.low < gain.high
    assert gain.count == 15 + 15
    same = search.gain(search.last)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_of_equal_merges_the_cheapest_is_chosen() -> None:
    runs = {name: [replace_epoch(run[0], epoch) for epoch in (1, 2, 3)] for name, run in spoilt_series().items()}
    assert set(choose_epochs(base(), runs, [DIGITS, SHAPES]).epochs.values()) == {1}


def replace_epoch(vector: TaskVector, epoch: int) -> TaskVector:
    return TaskVector(dict(vector.deltas), replace(vector.info, epochs=float(epoch), steps=5 * epoch))


def test_slack_gives_accuracy_up_for_fewer_steps() -> None:
    chosen = choose_epochs(base(), spoilt_series(), [DIGITS, SHAPES], slack=1.0)
    assert set(chosen.epochs.values()) == {1}
    assert chosen.saved == pytest.approx(2 / 3)


def test_without_rounds_all_series_have_one_number_of_epochs_and_short_ones_their_last() -> None:
    series = {"digits": spoilt_series()["digits"], "shapes": spoilt_series()["shapes"][:1]}
    chosen = choose_epochs(base(), series, [DIGITS, SHAPES], rounds=0)
    assert chosen.epochs["shapes"] == 1
    assert len(chosen.evidence["digits"]) == 3


def test_growth_keeps_a_straight_run_and_cuts_a_random_walk_after_its_first_epoch() -> None:
    series = {"digits": line(1, 2, 3, 4), "shapes": line(*(epoch**0.5 for epoch in range(1, 5)), task="shapes")}
    chosen = choose_epochs(base(), series, [DIGITS, SHAPES], by="growth")
    assert chosen.epochs == {"digits": 4, "shapes": 1}
    assert chosen.saved == pytest.approx(3 / 8)
    assert chosen.evidence["shapes"][1] == pytest.approx(2**0.5 - 1)
    assert chosen.gain is None


def test_growth_counts_per_step_where_epochs_are_not_recorded_evenly() -> None:
    run = line(1, 2, 3, 4)
    assert growth_rates([run[0], run[3]]) == pytest.approx((1.0, 1.0))


def test_gradient_keeps_the_epochs_that_go_on_downhill() -> None:
    descent = gradient_vector(base(), DIGITS, learning_rate=1.0)
    generator = torch.Generator().manual_seed(0)
    size = descent.norm() / descent.num_entries**0.5
    noise = {n: size * torch.randn(d.shape, generator=generator) for n, d in descent.deltas.items()}
    courses = [descent.deltas, {n: d * 2 for n, d in descent.deltas.items()}]
    courses.append({n: d * 2 + noise[n] for n, d in descent.deltas.items()})
    run = [
        TaskVector(dict(deltas), replace(descent.info, epochs=float(epoch), steps=epoch))
        for epoch, deltas in enumerate(courses, start=1)
    ]
    chosen = choose_epochs(base(), {"digits": run}, DIGITS, by="gradient")
    assert chosen.epochs == {"digits": 2}
    assert chosen.evidence["digits"] == pytest.approx((1.0, 1.0, 0.0), abs=0.05)
    assert chosen.gradient_norms == {"digits": pytest.approx(descent.norm())}


def test_a_first_step_uphill_leaves_the_first_epoch() -> None:
    run = line(-1, 1, 2)
    assert step_cosines(run, run[1]) == (1.0, 0.0, 0.0)


def test_a_trained_run_is_read_in_the_order_of_its_epochs(tmp_path: Path) -> None:
    config = TaskVectorConfig(
        output_dir=str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=25,
        record_epochs=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    TaskVectorTrainer(base(), config, task=DIGITS).train()
    run = recorded_series(tmp_path)
    assert [(vector.info.epochs, vector.info.steps) for vector in run] == [(1, 2), (2, 4)]
    choices = [choose_epochs(base(), {"digits": each}, DIGITS) for each in (run, run[::-1])]
    assert choices[0].epochs == choices[1].epochs
    assert choices[0].evidence == choices[1].evidence


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ({}, "no series of digits; train with record_epochs=True"),
        ({"digits": []}, "'digits' has no vectors, so it has no recorded epochs"),
        ({"digits": [TaskVector({"w": torch.ones(2)})]}, "tell no epochs or steps"),
        ({"digits": line(1.0)}, "every series holds one vector"),
        ({"digits": line(1.0, 2.0, task="shapes")}, "'digits' holds vectors of shapes"),
        ({"digits": [*line(1.0), *line(2.0)]}, "not one run: 1 epochs are 10 steps, 1 epochs 10"),
    ],
)
def test_a_series_without_recorded_epochs_is_refused(series: dict[str, list[TaskVector]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_epochs(base(), series, DIGITS, by="growth")


def test_a_run_folder_without_recorded_epochs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no recorded epochs; train with record_epochs=True"):
        recorded_series(tmp_path)


def test_what_is_unknown_out_of_range_or_not_finite_is_refused() -> None:
    series = {"digits": line(1, 2)}
    with pytest.raises(UnknownNameError, match=r"task of a series: 'digit'\. Did you mean 'digits'"):
        choose_epochs(base(), {"digit": line(1, 2)}, DIGITS)
    with pytest.raises(UnknownNameError, match="criterion"):
        choose_epochs(base(), series, DIGITS, by="loss")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threshold must be in"):
        choose_epochs(base(), series, DIGITS, by="growth", threshold=0.0)
    with pytest.raises(ValueError, match="at least 0"):
        choose_epochs(base(), series, DIGITS, slack=-0.1)
    with pytest.raises(NonFiniteError):
        choose_epochs(base(), {"digits": line(1, float("nan"))}, DIGITS, by="growth")
    with pytest.raises(DataError, match="no series of any task"):
        choose_epochs(base(), {}, [])


def test_a_validation_part_too_small_to_choose_and_to_judge_is_refused() -> None:
    few = subset(DIGITS, max_validation=1)
    with pytest.raises(DataError, match=r"validation part of 'digits' holds 1 images.*by='growth'"):
        choose_epochs(base(), {"digits": spoilt_series()["digits"]}, few)


def test_vectors_of_another_base_are_refused() -> None:
    vector = spoilt_series()["digits"][0]
    other = {name: "0" * 32 for name in vector.deltas}
    run = [replace_epoch(TaskVector(dict(vector.deltas), replace(vector.info, base_hashes=other)), k) for k in (1, 2)]
    with pytest.raises(BaseMismatchError):
        choose_epochs(base(), {"digits": run}, DIGITS)


def test_tasks_may_be_named() -> None:
    assert isinstance(DIGITS, Task)
    assert choose_epochs(base(), {"digits": line(1, 2)}, "digits", by="growth").epochs == {"digits": 2}
