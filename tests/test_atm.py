"""Alternating tuning and merging: FedAvg with the average, task arithmetic with one round, and resumable."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_taskvec import TaskVector, TaskVectorConfig, TaskVectorTrainer, merge
from hf_taskvec.errors import DataError, OutputExistsError, SettingsDifferError, UnknownNameError
from hf_taskvec.theory import clip_losses
from hf_taskvec.theory.equivalence import relative_error
from hf_taskvec.theory.expansion import task_path
from hf_taskvec.training.atm import alternating_tuning_and_merging
from hf_taskvec.weights.names import parameters_of
from tests.toys import toy_base, toy_task, wide_base

TASKS = [toy_task("digits", images=20), toy_task("shapes", images=20)]


def settings(**changes: object) -> TaskVectorConfig:
    values = {"learning_rate": 1e-3, "per_device_train_batch_size": 10, "disable_tqdm": True, "num_train_epochs": 2}
    values |= {"lr_scheduler_type": "constant", "warmup_steps": 0}
    return TaskVectorConfig(output_dir="unused", **{**values, **changes})


def test_with_the_average_it_is_federated_averaging(tmp_path: Path) -> None:
    args = settings(full_batch=True, learning_rate=0.05, num_train_epochs=4)
    run = alternating_tuning_and_merging(wide_base(), TASKS, args=args, rounds=2, output_dir=tmp_path / "atm")
    problem = clip_losses(toy_base(), TASKS)
    server = problem.start
    for _ in range(2):  # McMahan et al., 1602.05629: two local epochs on each client, then the mean of their weights
        clients = [task_path(loss, server, learning_rate=0.05, epochs=2)[-1] for loss in problem.losses]
        server = torch.stack(clients).mean(dim=0)
    assert relative_error(run.vector, problem.vector(server - problem.start)) <= 1e-9


def test_one_round_is_one_shot_merging(tmp_path: Path) -> None:
    run = alternating_tuning_and_merging(
        toy_base(), TASKS, args=settings(), rounds=1, output_dir=tmp_path / "atm", method="task_arithmetic", scaling=0.3
    )
    vectors = []
    for task in TASKS:
        args = settings(data_seed=42 + 7919, save_strategy="no")
        args.output_dir = str(tmp_path / task.name)
        trainer = TaskVectorTrainer(toy_base(), args, task=task)
        trainer.train()
        vectors.append(trainer.task_vector())
    assert relative_error(run.vector, merge(vectors, "task_arithmetic") * 0.3) <= 1e-6


def test_the_rounds_share_the_budget_down_to_fractions_of_an_epoch(tmp_path: Path) -> None:
    weights = np.array([0.5, 0.5])  # numbers of NumPy are numbers
    args, folder = settings(num_train_epochs=1), tmp_path / "atm"
    run = alternating_tuning_and_merging(
        toy_base(), TASKS, args=args, rounds=2, output_dir=folder, method="task_arithmetic", weights=weights
    )
    parts = [TaskVector.from_pretrained(tmp_path / "atm" / f"round-{n}" / "digits") for n in (1, 2)]
    assert [parent.info.epochs for parent in parts] == [0.5, 0.5]
    assert [parent.info.steps for parent in parts] == [1, 1]
    assert parts[0].info.base_hashes != parts[1].info.base_hashes  # the second starts from the merged model
    run.vector.apply_to(toy_base())  # and the result is a vector of the base
    assert len(run.rounds) == 2


def test_it_resumes_after_the_last_finished_fine_tuning(tmp_path: Path) -> None:
    def run(folder: Path) -> TaskVector:
        return alternating_tuning_and_merging(toy_base(), TASKS, args=settings(), rounds=2, output_dir=folder).vector

    whole = run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for folder in ("merged", "shapes"):  # as if it had been killed during the last fine-tuning
        shutil.rmtree(tmp_path / "b" / "round-2" / folder)
    kept = tmp_path / "b" / "round-2" / "digits" / "task_vector.safetensors"
    stamp = kept.stat().st_mtime_ns
    again = run(tmp_path / "b")
    assert kept.stat().st_mtime_ns == stamp
    assert all(torch.equal(again.deltas[name], whole.deltas[name]) for name in whole.deltas)


def test_post_hoc_it_starts_from_a_merge_and_trains_on_validation_images(tmp_path: Path) -> None:
    names = [name for name in parameters_of(toy_base().model) if name.startswith("vision_model.")]
    start = TaskVector({name: torch.full_like(parameters_of(toy_base().model)[name], 1e-3) for name in names})
    run = alternating_tuning_and_merging(
        toy_base(),
        TASKS,
        args=settings(learning_rate=1e-6),
        rounds=1,
        output_dir=tmp_path / "atm",
        start=start,
        train_on="validation",
    )
    assert relative_error(run.vector, start) < 0.05
    assert run.vector.info.parents[0].num_images == 30  # the validation part of the toy


def test_another_run_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    alternating_tuning_and_merging(toy_base(), TASKS[:1], args=settings(), rounds=1, output_dir=tmp_path / "atm")
    with pytest.raises(OutputExistsError, match="rounds=1 there, 2 here"):
        alternating_tuning_and_merging(toy_base(), TASKS[:1], args=settings(), rounds=2, output_dir=tmp_path / "atm")
    args = settings(weight_decay=0.0)
    with pytest.raises(SettingsDifferError, match=r"weight_decay=0\.1 there, 0\.0 here"):
        alternating_tuning_and_merging(toy_base(), TASKS[:1], args=args, rounds=1, output_dir=tmp_path / "atm")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match="something else"):
        alternating_tuning_and_merging(toy_base(), TASKS, args=settings(), rounds=1, output_dir=tmp_path / "other")


def test_bad_settings_are_refused_before_work(tmp_path: Path) -> None:
    def run(tasks: list, **changes: object) -> None:
        values = {"rounds": 1, "output_dir": tmp_path / "atm", "args": settings(), **changes}
        alternating_tuning_and_merging(toy_base(), tasks, **values)

    with pytest.raises(DataError, match="at least one task"):
        run([])
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        run(TASKS, rounds=0)
    with pytest.raises(ValueError, match="scaling must be positive"):
        run(TASKS, scaling=0.0)
    with pytest.raises(UnknownNameError, match="average"):
        run(TASKS, method="avrage")
    with pytest.raises(UnknownNameError, match="density"):
        run(TASKS, method="ties", densty=0.1)
    with pytest.raises(ValueError, match="slerp merges 2 to 2 vectors, got 1"):
        run(TASKS[:1], method="slerp")
    with pytest.raises(UnknownNameError, match="validation"):
        run(TASKS, train_on="valid")
    assert not (tmp_path / "atm").exists()
