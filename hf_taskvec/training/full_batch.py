"""What must hold for a task vector to be exactly −η∇L: settings of the run and properties of the model."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from transformers import TrainingArguments

from hf_taskvec.models.base import Base

logger = logging.getLogger(__name__)

FULL_BATCH_SETTINGS: dict[str, Any] = {
    "optim": "sgd",
    "optim_args": None,
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "label_smoothing_factor": 0.0,
    "fp16": False,
    "bf16": False,
}


@dataclass(frozen=True)
class Violation:
    """A setting under which one epoch is not a gradient step."""

    name: str
    value: Any
    needed: Any

    def __str__(self) -> str:
        return f"{self.name}={self.value} (needs {self.needed})"


def apply_full_batch(args: TrainingArguments) -> None:
    """Gives every setting that still has its default the value that full-batch gradient descent needs."""
    defaults = {spec.name: spec.default for spec in dataclasses.fields(args)}
    for name, needed in FULL_BATCH_SETTINGS.items():
        if getattr(args, name) == defaults[name]:
            setattr(args, name, needed)


def violated_preconditions(args: TrainingArguments) -> tuple[Violation, ...]:
    """Every setting of a run under which its first epoch's vector is not −η∇L."""
    needed = {"full_batch": True, **FULL_BATCH_SETTINGS}
    if args.lr_scheduler_type == "constant":
        needed.pop("warmup_steps")  # a constant schedule has no warm-up
    if args.max_grad_norm is None:
        needed.pop("max_grad_norm")  # no clipping either
    violations = [
        Violation(name, getattr(value, "value", value), wanted)  # of an enumeration's member, its string
        for name, wanted in needed.items()
        if (value := getattr(args, name)) != wanted
    ]
    if args.num_train_epochs != 1 or args.max_steps > 0:
        violations.append(Violation("num_train_epochs", args.num_train_epochs, 1))
    return tuple(violations)


def prepare_full_batch(args: TrainingArguments, num_images: int, base: Base) -> None:
    """Makes an epoch of `num_images` one accumulated step and logs, by name, what keeps it from being −η∇L.

    Raises:
        ValueError: If the base's loss is no deterministic function of its weights.
    """
    check_deterministic(base.tower)
    args.gradient_accumulation_steps = math.ceil(num_images / (args.train_batch_size * args.world_size))
    if violations := [each for each in violated_preconditions(args) if each.name != "num_train_epochs"]:
        logger.warning("full_batch: an epoch is not exactly a gradient step: %s", "; ".join(map(str, violations)))


def check_deterministic(model: nn.Module) -> None:
    """Raises a `ValueError` unless a model's loss is a fixed function of its weights that sums over the images."""
    for name, module in model.named_modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            raise ValueError(f"{name!r} has dropout {module.p}; the theory needs a deterministic loss: set it to 0")
        if isinstance(module, _NormBase) and (module.track_running_stats or isinstance(module, nn.BatchNorm1d)):
            raise ValueError(
                f"{name!r} ({type(module).__name__}) depends on the batch; a full-batch gradient needs none"
            )
    config = getattr(model, "config", None)
    for key in ("attention_dropout", "dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"):
        if (value := getattr(config, key, 0.0) or 0.0) > 0:
            raise ValueError(f"the config has {key}={value}; the theory needs a deterministic loss: set it to 0")


def check_dtype(base: Base) -> None:
    """Raises a `ValueError` unless the base is in float32 or float64 throughout, on one real device."""
    tower = base.tower
    dtypes = {parameter.dtype for parameter in tower.parameters()}
    if len(dtypes) > 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ValueError(
            f"gradients need a base in float32 or float64, this one is in {', '.join(sorted(map(str, dtypes)))}; "
            "load_base(..., dtype=torch.float32) widens it"
        )
    devices = {parameter.device for parameter in base.model.parameters()}
    if len(devices) > 1 or devices == {torch.device("meta")}:
        raise ValueError(
            f"the base must be on one device, its parameters are on {', '.join(sorted(map(str, devices)))}"
        )
