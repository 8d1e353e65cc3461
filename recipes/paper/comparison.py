"""One epoch against convergence: every budget, merge method and optimiser, beside joint training of the same budget."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from numpy.random import RandomState
from tqdm.auto import tqdm

from hf_taskvec.evaluation.accuracy import evaluate, evaluate_individually
from hf_taskvec.merging import merge
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.theory.dynamics import task_geometry
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.resume import compute_or_read, share_out
from paper.projection import project_trajectories
from paper.runs import Run, run_budgets, train_run
from paper.settings import CONVERGED, Reproduction, ScaledMethod

JOINT = "joint"
INDIVIDUAL = "individual"


@dataclass(frozen=True)
class Score:
    """Test accuracies of one model.

    Attributes:
        optimizer, seed: The runs it comes from.
        budget: Epochs per task, as text, or `converged`.
        method: A merge with its scaling, `joint`, or `individual` (each task by its own vector).
        accuracy: Accuracy on each task the model was made for.
    """

    optimizer: str
    seed: int
    budget: str
    method: str
    accuracy: dict[str, float]

    @property
    def mean(self) -> float:
        """Mean accuracy over the tasks."""
        return fmean(self.accuracy.values())

    def normalized(self, individual: Mapping[str, float]) -> float:
        """Mean of accuracy divided by the converged individual model's, over the tasks where that is not 0."""
        ratios = [value / individual[task] for task, value in self.accuracy.items() if individual[task] > 0]
        return fmean(ratios) if ratios else math.nan


@dataclass(frozen=True)
class Cell:
    """All scores of one optimiser and seed, and how its vectors lie.

    Attributes:
        scores: On all tasks.
        subsets: On random subsets of the tasks, for one epoch and convergence.
        converged_epochs: Epochs each task, and joint training, took to converge.
        gradient_norms: Mean norm of the minibatch gradients of each epoch, per task.
        first_to_converged: Cosine of each task's one-epoch vector with its converged one.
        geometry: Pairwise geometry of the tasks' vectors after one epoch and converged.
        trajectory: The tasks', their mean's and joint training's vectors on two principal components.
    """

    scores: list[Score]
    subsets: list[Score]
    converged_epochs: dict[str, int]
    gradient_norms: dict[str, list[float]]
    first_to_converged: dict[str, float]
    geometry: dict[str, Any]
    trajectory: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Cell:
        """Reads what `compare` wrote."""
        values = read_json(path)
        for name in ("scores", "subsets"):
            values[name] = [Score(**score) for score in values[name]]
        return cls(**values)


def compare(settings: Reproduction, base: Base, *, progress: bool = True) -> list[Cell]:
    """Trains, merges and evaluates every optimiser and seed; finished cells are read, others dealt over processes.

    Full-batch descent on all images does not depend on the seed and is run once.
    """
    pairs = [
        (optimizer, seed)
        for seed in settings.seeds
        for optimizer in settings.optimizers
        if optimizer != "full_batch" or settings.max_train is not None or seed == settings.seeds[0]
    ]
    with tqdm(pairs, desc="cells", disable=not progress) as bar:

        def measure(pair: tuple[str, int]) -> Cell:
            optimizer, seed = pair
            bar.set_postfix_str(f"{optimizer}, seed {seed}")

            def compute(path: Path) -> None:
                write_json(path, asdict(_measure(settings, base, settings.load_tasks(seed), optimizer, seed)))
                shutil.rmtree(_folder(settings, optimizer, seed))

            plan = settings.plan() | {"optimizer": optimizer, "seed": seed}
            cell = compute_or_read(cell_path(settings, optimizer, seed), plan, compute=compute, read=Cell.load)
            bar.update()
            return cell

        return share_out(pairs, lambda pair: cell_path(settings, *pair), measure)


def cell_path(settings: Reproduction, optimizer: str, seed: int) -> Path:
    """The JSON of one optimiser and seed."""
    return Path(settings.output_dir) / "cells" / f"{optimizer}-{seed}.json"


def converged_merge(settings: Reproduction, optimizer: str, seed: int) -> Path:
    """Folder of the mean of one optimiser's and seed's converged vectors, which post-hoc tuning starts from."""
    return Path(settings.output_dir) / "converged" / f"{optimizer}-{seed}"


def _folder(settings: Reproduction, optimizer: str, seed: int) -> Path:
    return Path(settings.output_dir) / "work" / f"{optimizer}-{seed}"


def _measure(settings: Reproduction, base: Base, tasks: Sequence[Task], optimizer: str, seed: int) -> Cell:
    folder = _folder(settings, optimizer, seed)
    train = partial(train_run, settings, base, optimizer=optimizer, seed=seed)
    runs = {task.name: train([task], folder=folder / task.name) for task in tasks}
    joint = train(tasks, folder=folder / JOINT)
    budgets = [*(f"{budget:g}" for budget in run_budgets(settings, optimizer)), CONVERGED]
    scores = [
        Score(optimizer, seed, budget, method, accuracy)
        for budget in budgets
        for method, accuracy in _score_budget(settings, base, tasks, runs, joint, budget, seed).items()
    ]
    first, last = ({name: run.vector(budget) for name, run in runs.items()} for budget in ("1", CONVERGED))
    mean = merge(list(last.values()), "average")
    mean.save_pretrained(converged_merge(settings, optimizer, seed))
    courses = {name: [run.vector(budget) for budget in budgets[:-1]] for name, run in runs.items()}
    steps = zip(*courses.values(), strict=True)
    courses["task arithmetic"] = [merge(list(step), "average", allow_zero=True) for step in steps]
    courses[JOINT] = [joint.vector(budget) for budget in budgets[:-1]]
    return Cell(
        scores=scores,
        subsets=_score_subsets(settings, base, tasks, {"1": first, CONVERGED: last}, optimizer, seed),
        converged_epochs={name: run.converged_epoch for name, run in {**runs, JOINT: joint}.items()},
        gradient_norms={name: run.gradient_norms for name, run in runs.items()},
        first_to_converged={name: first[name].cosine(last[name]) for name in runs},
        geometry={"1": task_geometry(first).to_dict(), CONVERGED: task_geometry(last).to_dict()},
        trajectory={"budgets": budgets[:-1], **project_trajectories(courses).to_dict()},
    )


def _score_budget(
    settings: Reproduction,
    base: Base,
    tasks: Sequence[Task],
    runs: Mapping[str, Run],
    joint: Run,
    budget: str,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Accuracies of every merge, of joint training and of the individual models at one budget."""
    vectors = {name: run.vector(budget) for name, run in runs.items()}
    scores = {
        text: accuracies(merged_model(base, list(vectors.values()), method, seed=seed), tasks)
        for text, method in settings.scaled_methods().items()
    }
    scores[JOINT] = accuracies(joint.vector(budget).apply_to(base), tasks)
    scores[INDIVIDUAL] = evaluate_individually(base, vectors, tasks)
    return scores


def _score_subsets(
    settings: Reproduction,
    base: Base,
    tasks: Sequence[Task],
    vectors: Mapping[str, Mapping[str, TaskVector]],
    optimizer: str,
    seed: int,
) -> list[Score]:
    """Scores of every merge on random subsets of the tasks, the same for every optimiser."""
    random, scores = RandomState(1000 + seed), []
    if settings.subset_size >= len(tasks):
        return []
    for _ in range(settings.num_subsets):
        chosen = [tasks[k] for k in sorted(random.permutation(len(tasks))[: settings.subset_size])]
        for budget, stack in vectors.items():
            for text, method in settings.scaled_methods().items():
                model = merged_model(base, [stack[task.name] for task in chosen], method, seed=seed)
                scores.append(Score(optimizer, seed, budget, text, accuracies(model, chosen)))
    return scores


def merged_model(base: Base, vectors: list[TaskVector], method: ScaledMethod, *, seed: int) -> Base:
    """The base plus the merged vectors; methods that draw at random draw by `seed`.

    Vectors may be zero: of a budget whose one step is a warm-up's first.
    """
    settings: dict[str, Any] = {"seed": seed} if "seed" in method.settings else {}
    return merge(vectors, method.method, allow_zero=True, **settings).apply_to(
        base, scaling=method.factor(len(vectors))
    )


def accuracies(model: Base, tasks: Sequence[Task]) -> dict[str, float]:
    """The test accuracy on each task."""
    return {result.task: result.accuracy for result in evaluate(model, tasks).results}
