"""Experts to convergence: tasks trained while validation accuracy rises, the whole tower and the MLP weights alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pretraining.probe import linear_probe

from hf_taskvec.evaluation.accuracy import evaluate
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.text import table
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.resume import compute_or_read
from paper.along import along_data, course
from paper.runs import Run, train_run
from paper.settings import CONVERGED, Reproduction

Values = dict[str, Any]
PARAMETERS = {"tower": ["*"], "mlp": ["*.mlp.*.weight"]}
TITLES = {"tower": "whole tower", "mlp": "MLP weights"}


def study_experts(settings: Reproduction, base: Base, kinds: Mapping[str, float]) -> Values:
    """Trains the experts of every seed and follows their vectors; what is finished is read.

    Args:
        settings: Tasks, seeds and fine-tuning; the first optimiser counts, which must have no schedule.
        base: The base.
        kinds: `tower` and `mlp`, or one of them, each with its learning rate.

    Returns:
        For each kind epochs and test accuracies by task, and the accuracy along the vectors; zero-shot, linear probe.
    """
    folder, tasks = Path(settings.output_dir), settings.load_tasks()
    plan = settings.plan() | {"kinds": dict(kinds)}

    def compute(path: Path) -> None:
        zero_shot = {result.task: result.accuracy for result in evaluate(base, tasks, progress=False).results}
        probe = {task.name: linear_probe(base, task, split="test") for task in tasks}
        parts = {kind: _experts(settings, base, tasks, kind, rate, folder / kind) for kind, rate in kinds.items()}
        write_json(path, {"zero_shot": zero_shot, "probe": probe, "kinds": parts})

    return compute_or_read(folder / "experts.json", plan, compute=compute, read=read_json)


def _experts(settings: Reproduction, base: Base, tasks: Sequence[Task], kind: str, rate: float, folder: Path) -> Values:
    """The experts of one kind."""
    optimizer = settings.optimizers[0]
    runs: dict[str, list[Run]] = {task.name: [] for task in tasks}
    for seed in settings.seeds:
        only = dataclasses.replace(
            settings,
            seeds=[seed],
            trainable_parameters=PARAMETERS[kind],
            learning_rates=[rate] * len(settings.optimizers),
        )
        for task in only.load_tasks(seed):
            place = folder / f"seed-{seed}" / task.name
            runs[task.name].append(train_run(only, base, [task], optimizer=optimizer, seed=seed, folder=place))
    courses = [course(base, [run.vector(CONVERGED) for run in runs[task.name]], task) for task in tasks]
    singles = {
        task.name: [course(base, [run.vector(CONVERGED)], task, scalings=[0, 0.5, 1]) for run in runs[task.name]]
        for task in tasks
    }
    return {
        "learning_rate": rate,
        "epochs": {name: [run.converged_epoch for run in each] for name, each in runs.items()},
        "validation": {name: [run.validation for run in each] for name, each in runs.items()},
        "accuracy": {name: [one.accuracies[-1] for one in each] for name, each in singles.items()},
        "along": along_data(courses, split="test"),
    }


def expert_table(data: Mapping[str, Any]) -> str:
    """One row per task and their mean, in percent with the interval over seeds; epochs in brackets."""
    kinds = data["kinds"]
    headers = ["task", "zero-shot", "linear probe", *(f"{TITLES[kind]} (epochs)" for kind in kinds)]
    rows = []
    for task, zero_shot in data["zero_shot"].items():
        cells = [
            f"{Mean.of(outcome['accuracy'][task])} ({fmean(outcome['epochs'][task]):.1f})" for outcome in kinds.values()
        ]
        rows.append([task, f"{100 * zero_shot:.1f}", f"{100 * data['probe'][task]:.1f}", *cells])
    means = [f"{100 * fmean(data[name].values()):.1f}" for name in ("zero_shot", "probe")]
    for outcome in kinds.values():
        by_seed = [fmean(values) for values in zip(*outcome["accuracy"].values(), strict=True)]
        epochs = fmean(value for values in outcome["epochs"].values() for value in values)
        means.append(f"{Mean.of(by_seed)} ({epochs:.1f})")
    return table(headers, [*rows, ["**mean**", *means]])
