"""One call from a base and a task to a saved task vector, as the recipes need it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers import ProgressCallback, Trainer
from transformers.trainer_callback import PrinterCallback

from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.trainer import TaskVectorTrainer
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import check_output_folder


class ProgressBar(ProgressCallback):
    """The training progress bar without the printed log lines."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Prints nothing; the logs are in the trainer's state."""


def keeping_nothing(args: TaskVectorConfig, output_dir: str | Path) -> TaskVectorConfig:
    """A copy of the settings with which a run in `output_dir` neither evaluates nor leaves anything."""
    if args.shard:
        raise ValueError("shard must be False here: a sharded run keeps its vector in its own output_dir")
    args = copy.copy(args)
    args.output_dir = str(output_dir)
    args.record_epochs, args.record_steps, args.record_fractions = False, [], []
    args.track_gradients = args.record_gradients = False
    for name in ("save_strategy", "eval_strategy"):
        setattr(args, name, "no")
    return args


def quiet(trainer: Trainer) -> None:
    """Takes the printed log lines and the progress bar from a trainer."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)


def train_vector(
    base: Base, task: Task | str, config: TaskVectorConfig, *, output_dir: str | Path, seed: int | None = None
) -> TaskVector:
    """Fine-tunes the base on a task and saves the vector; goes on with the same run if that was stopped.

    Args:
        base: The model to start from.
        task: The task, or a registered task's name.
        config: The settings; its `output_dir` is not used.
        output_dir: Where the vector goes; checkpoints and the vectors of epochs go to `<output_dir>/run`.
        seed: Seed of the shuffling, instead of the config's.

    Returns:
        The vector, opened from `<output_dir>/vector`; every process of a run gets it.

    Raises:
        OutputExistsError: If `<output_dir>/vector` holds something else, or another run is at work there.
        SettingsDifferError: If `<output_dir>/run` belongs to another task or base.

    Example:
        >>> import tempfile
        >>> from hf_taskvec import get_task, load_base
        >>> from hf_taskvec.tasks.subsets import subset
        >>> task, config = subset(get_task("digits"), max_train=8), TaskVectorConfig(disable_tqdm=True)
        >>> train_vector(load_base(), task, config, output_dir=tempfile.mkdtemp()).info.task
        'digits'
    """
    output_dir = Path(output_dir)
    check_output_folder(output_dir / "vector", marker=CONFIG_NAME)
    args = copy.copy(config)
    args.output_dir = str(output_dir / "run")
    args.seed = config.seed if seed is None else seed
    trainer = TaskVectorTrainer(base, args, task=task)
    quiet(trainer)
    if not args.disable_tqdm:
        trainer.add_callback(ProgressBar)
    trainer.train(resume_from_checkpoint=trainer.unfinished())
    if args.should_save:
        trainer.task_vector().save_pretrained(output_dir / "vector")
    trainer.accelerator.wait_for_everyone()
    return TaskVector.from_pretrained(output_dir / "vector")
