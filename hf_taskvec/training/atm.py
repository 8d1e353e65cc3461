"""Alternating tuning and merging (arXiv 2411.03055): rounds of fine-tuning from the merged model and merging again."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from accelerate import PartialState

from hf_taskvec.errors import check_known, check_positive
from hf_taskvec.merging import get_method, merge
from hf_taskvec.merging.registry import natural
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.registry import as_tasks
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.plan import base_plan, run_plan, task_plan, vector_of
from hf_taskvec.training.run import keeping_nothing, quiet
from hf_taskvec.training.trainer import TaskVectorTrainer
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import scaled_sum
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes
from hf_taskvec.weights.names import parameters_of
from hf_taskvec.weights.resume import claim_folder

SETTINGS = "atm_settings.json"


@dataclass(frozen=True)
class AlternatingRun:
    """The rounds of alternating tuning and merging.

    Attributes:
        rounds: For each round, the vector from the base to the model merged in it, memory-mapped.
    """

    rounds: tuple[TaskVector, ...]

    @property
    def vector(self) -> TaskVector:
        """The vector of the last round."""
        return self.rounds[-1]


def alternating_tuning_and_merging(
    base: Base,
    tasks: Sequence[Task | str],
    *,
    args: TaskVectorConfig,
    rounds: int,
    output_dir: str | os.PathLike[str],
    method: str = "average",
    scaling: float = 1.0,
    start: TaskVector | None = None,
    train_on: Split = "train",
    **settings: Any,
) -> AlternatingRun:
    """Fine-tunes each task from the merged model and merges, round after round, each with a fresh optimiser.

    PA-ATM: the budget `args.num_train_epochs` per task is split evenly over the rounds, down to a fraction of an
    epoch's batches. With `average` and scaling 1 it is FedAvg (1602.05629); one round is one-shot merging. PH-ATM:
    start from a merged vector and train on `validation`.

    A call with the same arguments goes on after the last finished fine-tuning in `output_dir`.

    Args:
        base: The model to start from.
        tasks: The tasks.
        args: Settings of each fine-tuning; `num_train_epochs` is the budget over all rounds.
        rounds: Number of rounds K.
        output_dir: Where each round's vectors go: `round-N/<task>` from that round's start, `round-N/merged` from the
            base.
        method: Merge method.
        scaling: The factor of each round's merged vector.
        start: A vector of the base to start from, such as a merge of converged ones.
        train_on: The part of the tasks to train on.
        **settings: Settings of the merge method.

    Raises:
        DataError: If there is no task.
        ValueError: If `rounds` is below 1, `scaling` not positive, or the method cannot take that many vectors.
        SettingsDifferError: If `output_dir` holds a run with other settings.
        OutputExistsError: If it holds something else.
        UnknownNameError: If there is no such merge method, setting of it, or part of the tasks.

    Example:
        >>> import tempfile
        >>> from hf_taskvec import get_task, load_base
        >>> tasks = [subset(get_task(name), max_train=8) for name in ("digits", "shapes")]
        >>> folder = Path(tempfile.mkdtemp()) / "atm"
        >>> args = TaskVectorConfig(disable_tqdm=True, warmup_steps=0, learning_rate=1e-4)
        >>> run = alternating_tuning_and_merging(load_base(), tasks, args=args, rounds=2, output_dir=folder)
        >>> len(run.rounds), run.vector.info.method
        (2, 'alternating_tuning_and_merging')
    """
    tasks = as_tasks(tasks, needed_by="alternating tuning and merging")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if args.tangent:
        raise ValueError("tangent must be False: each round starts elsewhere, and a tangent space has one point")
    if args.curvature:
        raise ValueError("curvature must be 0: each round starts elsewhere, and statistics are of one base")
    check_positive("scaling", scaling)
    get_method(method).check(tasks, settings)
    check_known("part of the tasks", train_on, get_args(Split))
    folder = Path(output_dir)
    args = keeping_nothing(args, folder)
    plan = {
        "tasks": [task_plan(task.provenance()) for task in tasks],
        "rounds": rounds,
        "method": method,
        "scaling": scaling,
        "settings": natural(settings),
        "train_on": train_on,
        "start": None if start is None else fingerprint(tensor_hashes(start.deltas)),
        **base_plan(base),
        **run_plan(args),
    }
    with PartialState().main_process_first():
        claim_folder(folder, plan, name=SETTINGS)
    total, kept = start, []
    for number in range(1, rounds + 1):
        total = _round(base, tasks, args, plan, number=number, folder=folder / f"round-{number}", start=total)
        kept.append(total)
    return AlternatingRun(tuple(kept))


def _round(
    base: Base,
    tasks: Sequence[Task],
    args: TaskVectorConfig,
    plan: dict[str, Any],
    *,
    number: int,
    folder: Path,
    start: TaskVector | None,
) -> TaskVector:
    """The vector from the base to the model merged in one round; read if it is there."""
    stamp = {key: plan[key] for key in ("rounds", "method", "scaling", "settings", "train_on")} | {"round": number}

    def make() -> TaskVector:
        current = base if start is None else start.apply_to(base)
        vectors = [_tune(current, task, args, plan, number=number, folder=folder) for task in tasks]
        return _advance(base, start, merge(vectors, plan["method"], **plan["settings"]), plan["scaling"], stamp)

    return vector_of(folder / "merged", plan | {"round": number}, make)


def _tune(
    current: Base, task: Task, args: TaskVectorConfig, plan: dict[str, Any], *, number: int, folder: Path
) -> TaskVector:
    """The vector of one task from one round's start; read if it is there."""
    args = keeping_nothing(args, folder / "run")
    args.num_train_epochs = args.num_train_epochs / plan["rounds"]
    # other batches in each round: with one seed every round would see the same fraction of an epoch
    args.data_seed = (args.data_seed if args.data_seed is not None else args.seed) + 7919 * number

    def make() -> TaskVector:
        trainer = TaskVectorTrainer(current, args, task=_training_on(plan["train_on"], task))
        quiet(trainer)
        trainer.train()
        return trainer.task_vector()

    return vector_of(folder / task.name, plan | {"round": number}, make)


def _training_on(train_on: Split, task: Task) -> Task:
    """The task, training on that part of it."""
    return task if train_on == "train" else subset(task, train_on=train_on)


def _advance(
    base: Base, total: TaskVector | None, merged: TaskVector, scaling: float, settings: dict[str, Any]
) -> TaskVector:
    """The vector from the base to the model that is `merged` away from where the round started."""
    deltas = {}
    for name in merged.deltas:
        before = torch.zeros_like(merged.deltas[name]) if total is None else total.deltas[name]
        deltas[name] = scaled_sum(before, merged.deltas[name], scaling)
    weights = parameters_of(base.model)
    info = dataclasses.replace(
        VectorInfo.merged(merged.info.parents, method="alternating_tuning_and_merging", settings=settings),
        base=base.name,
        base_revision=base.revision,
        base_hashes=tensor_hashes({name: weights[name] for name in deltas}),
    )
    return TaskVector(deltas, info)
