"""Fine-tuning runs, single-task and joint, with the vectors of every budget; convergence is decided on validation."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.training.joint import JointTrainer
from hf_taskvec.training.output import epoch_name
from hf_taskvec.training.run import quiet
from hf_taskvec.training.trainer import TaskVectorTrainer
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.resume import compute_or_read
from paper.settings import CONVERGED, Reproduction

RUN = "run.json"
CUT = "cut-"  # a budget of the longest run, whose schedule goes on beyond it


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where its vectors are.
        vectors: Path of each budget's vector inside the folder; `converged` is a budget too. With a schedule a budget
            is a run of its own, and `cut-1` is what the longest run had after one epoch.
        converged_epoch: The epoch with the best validation accuracy, the first of equals.
        validation: Validation accuracy after each epoch of the longest run.
        gradient_norms: Mean norm of its minibatch gradients in each epoch.
        seconds: How long it took.
    """

    folder: str
    vectors: dict[str, str]
    converged_epoch: int
    validation: list[float]
    gradient_norms: list[float]
    seconds: float

    def vector(self, budget: str) -> TaskVector:
        """The vector of a budget, memory-mapped."""
        return TaskVector.from_pretrained(Path(self.folder) / self.vectors[budget])


def train_run(
    settings: Reproduction, base: Base, tasks: Sequence[Task], *, optimizer: str, seed: int, folder: Path
) -> Run:
    """Trains one task, or several jointly, up to convergence; a finished run is read.

    A constant learning rate needs one run, whose epochs are the budgets: it stops `patience` epochs after its best
    validation accuracy. With a schedule each budget is a run of its own, and the longest goes through its schedule.
    """
    plan = settings.plan() | {"tasks": [task.name for task in tasks], "optimizer": optimizer, "seed": seed}

    def train(path: Path) -> None:
        write_json(path, asdict(_train(settings, base, tasks, optimizer=optimizer, seed=seed, folder=path.parent)))

    return compute_or_read(folder / RUN, plan, compute=train, read=lambda path: Run(**read_json(path)))


def _train(
    settings: Reproduction, base: Base, tasks: Sequence[Task], *, optimizer: str, seed: int, folder: Path
) -> Run:
    for scratch in ("long", "budget", "kept"):  # of an unfinished run
        shutil.rmtree(folder / scratch, ignore_errors=True)
    started, budgets = time.perf_counter(), run_budgets(settings, optimizer)
    scheduled = optimizer == "adamw_cosine"
    vectors: dict[str, str] = {}
    if scheduled:
        for budget in budgets:
            trainer = _trainer(settings, base, tasks, optimizer, seed, budget, folder / "budget", long=False)
            trainer.train()
            vectors[f"{budget:g}"] = f"kept/{budget:g}"
            trainer.task_vector().save_pretrained(folder / "kept" / f"{budget:g}")
    most = max(settings.most_epochs(optimizer, tasks), *budgets)
    trainer = _trainer(settings, base, tasks, optimizer, seed, most, folder / "long", long=True)
    if not scheduled:
        trainer.add_callback(StopWhenConverged(patience=settings.patience, at_least=max(budgets)))
    trainer.train()
    log = trainer.state.log_history
    validation = [entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry]
    best = validation.index(max(validation)) + 1
    wanted = {CONVERGED: epoch_name(best)}
    prefix = CUT if scheduled else ""
    wanted |= {f"{prefix}{b:g}": epoch_name(int(b)) if b >= 1 else f"fraction-{b:g}" for b in budgets}
    for budget_name, name in wanted.items():
        vectors[budget_name] = f"kept/{budget_name}"
        shutil.copytree(folder / "long" / "vectors" / name, folder / "kept" / budget_name)
    for scratch in ("long", "budget"):
        shutil.rmtree(folder / scratch, ignore_errors=True)
    norms = [entry["mean_gradient_norm"] for entry in log if "mean_gradient_norm" in entry]
    return Run(str(folder), vectors, best, validation, norms, time.perf_counter() - started)


def run_budgets(settings: Reproduction, optimizer: str) -> list[float]:
    """The budgets of an optimiser, ascending: in full-batch descent no fraction of an epoch exists."""
    return sorted(budget for budget in settings.budgets if budget >= 1 or optimizer != "full_batch")


class StopWhenConverged(TrainerCallback):
    """Stops a run when its validation accuracy has not risen for `patience` epochs, but not before `at_least`."""

    def __init__(self, *, patience: int, at_least: float) -> None:
        self.patience, self.at_least = patience, at_least
        self.best, self.best_epoch = -1.0, 0.0

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Looks at one epoch's validation accuracy."""
        epoch = float(state.epoch or 0)
        if metrics["eval_accuracy"] > self.best:
            self.best, self.best_epoch = metrics["eval_accuracy"], epoch
        if epoch - self.best_epoch >= self.patience and epoch >= self.at_least:
            control.should_training_stop = True


def _trainer(
    settings: Reproduction,
    base: Base,
    tasks: Sequence[Task],
    optimizer: str,
    seed: int,
    epochs: float,
    folder: Path,
    *,
    long: bool,
) -> TaskVectorTrainer:
    fractions = [budget for budget in run_budgets(settings, optimizer) if budget < 1]
    args = settings.config(
        optimizer,
        seed=seed,
        epochs=epochs,
        folder=folder,
        eval_strategy="epoch" if long else "no",
        record_epochs=long,
        track_gradients=long,
        record_fractions=fractions if long else [],
    )
    joint = len(tasks) > 1
    trainer = JointTrainer(base, args, tasks=tasks) if joint else TaskVectorTrainer(base, args, task=tasks[0])
    quiet(trainer)
    return trainer
