"""Experts with the vectors of all their epochs, each trained once."""

from __future__ import annotations

import copy
from pathlib import Path

from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.theory import recorded_series
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.plan import base_plan, run_plan, task_plan, tokenizer_plan
from hf_taskvec.training.run import quiet
from hf_taskvec.training.trainer import TaskVectorTrainer
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import write_json
from hf_taskvec.weights.resume import compute_or_read


def expert_series(base: Base, task: Task, config: TaskVectorConfig, *, seed: int, folder: Path) -> list[TaskVector]:
    """The vectors after each epoch of one expert, memory-mapped; trained if it is not in the folder yet.

    Raises:
        SettingsDifferError: If the expert there is of another base, task or settings.
    """
    args = copy.copy(config)
    args.output_dir, args.seed, args.record_epochs = str(folder / "run"), seed, True
    plan = base_plan(base) | tokenizer_plan(base) | task_plan(task.provenance()) | run_plan(args)

    def train(path: Path) -> None:
        trainer = TaskVectorTrainer(base, args, task=task)
        quiet(trainer)
        trainer.train(resume_from_checkpoint=trainer.unfinished())
        write_json(path, {"epochs": args.num_train_epochs})

    return compute_or_read(
        folder / "trained.json", plan, compute=train, read=lambda path: recorded_series(path.parent / "run")
    )
