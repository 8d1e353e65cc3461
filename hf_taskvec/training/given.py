"""What a trainer is given: arguments of the right kind, or a sentence that says what to pass instead."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from hf_taskvec.errors import nearest
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task, get_task
from hf_taskvec.training.config import PENALTIES, TaskVectorConfig
from hf_taskvec.training.objective import Objective, SingleTask

_REPLACED = {
    "model": "the base is the first argument",
    "model_init": "every run starts from the base",
    "train_dataset": "pass task=, whose train part is trained on",
    "eval_dataset": "pass task=, whose validation part is evaluated with eval_strategy",
    "data_collator": "batches come ready-made from the task's images",
    "processing_class": "the base brings its processor",
    "tokenizer": "the base brings its processor",
    "compute_loss_func": "the loss is the cross-entropy against the frozen head",
    "optimizer_cls_and_kwargs": "name the optimiser in args.optim, or pass optimizers=",
}


def refuse(arguments: Iterable[str], known: Sequence[str]) -> None:
    """Raises a `TypeError` that names an argument of `Trainer` which has no place here, and the known ones."""
    for name in arguments:
        if name in _REPLACED:
            raise TypeError(f"TaskVectorTrainer takes no {name}: {_REPLACED[name]}")
        close = nearest(name, known)
        hint = f" Did you mean {close}?" if close else ""
        raise TypeError(f"TaskVectorTrainer takes no argument {name!r}.{hint} It takes {', '.join(known)}")


def checked_args(
    base: Any, args: Any, *, tangent: bool = False, adapted: bool = False, optimizers: Sequence[Any] = ()
) -> TaskVectorConfig:
    """The settings, or the default ones; raises a `TypeError` if they or the base are of another kind."""
    if not isinstance(base, Base):
        raise TypeError(
            f"base must be a Base (a model with its processor), got {type(base).__name__}; load_base() gives "
            "one, and Base(model, processor, name) makes one"
        )
    if args is not None and not isinstance(args, TaskVectorConfig):
        raise TypeError(f"args must be a TaskVectorConfig, got {type(args).__name__}")
    base.check_not_linearized("training")
    chosen: TaskVectorConfig = args or TaskVectorConfig()
    chosen = dataclasses.replace(chosen, tangent=True) if tangent else chosen
    if chosen.shard:
        _check_sharded(chosen, adapted=adapted, own_optimizer=any(optimizers))
    if not base.zero_shot:
        _check_linear(base, chosen, adapted=adapted)
    if not base.zero_shot and base.architecture != "vit":
        chosen = copy.copy(chosen)
        chosen.ddp_find_unused_parameters = True  # DINOv2's token for hidden patches is in the vector and is not read
    return chosen


def _check_sharded(args: TaskVectorConfig, *, adapted: bool, own_optimizer: bool) -> None:
    """Raises a `ValueError` if a run cannot be sharded, or there is no other process to share with."""
    for name, given in (("peft_config", adapted), ("optimizers", own_optimizer)):
        if given:
            raise ValueError(f"{name} must be left out with shard=True, which puts shards in the place of the weights")
    if args.device and not torch.distributed.is_initialized():  # asking for the device connects the processes
        raise ValueError(
            "shard=True deals the tower to the processes of a launcher, and this one is alone: start it by `accelerate "
            "launch` or `torchrun`, or leave shard out"
        )


def _check_linear(base: Base, args: TaskVectorConfig, *, adapted: bool) -> None:
    """Raises a `ValueError` that names what training against a linear head has no place for."""
    settings = ("include_projection", "tangent", *PENALTIES)
    given = [*(name for name in settings if getattr(args, name)), *(["peft_config"] if adapted else [])]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be set for {base.name!r}, a {base.architecture} with linear heads")


def objective_of(task: Any) -> Objective:
    """What to learn, of a task, its name or an objective; raises a `TypeError` for anything else."""
    if isinstance(task, str):
        return SingleTask(get_task(task))
    if isinstance(task, Task):
        return SingleTask(task)
    if isinstance(task, Objective):
        return task
    raise TypeError(
        f"task must be a Task or a registered task's name, got {type(task).__name__}; Task.from_dataset makes one of "
        "other data, JointTrainer(tasks=[...]) takes several"
    )
