"""The plan of a run: task, data, base and settings, by which its results are known again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import xxhash

from hf_taskvec.models.base import Base
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes
from hf_taskvec.weights.names import parameters_of

_DECISIVE = {
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "optim",
    "optim_args",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "num_train_epochs",
    "max_steps",
    "max_grad_norm",
    "label_smoothing_factor",
    "train_sampling_strategy",
    "seed",
    "bf16",
    "fp16",
    "full_batch",
    "include_projection",
    "trainable_parameters",
}


def base_plan(base: Base) -> dict[str, Any]:
    """What tells a base from every other: a fingerprint of its weights and one of its image processor."""
    images = json.dumps(base.processor.image_processor.to_dict(), sort_keys=True, default=str)
    return {
        "base_fingerprint": fingerprint(tensor_hashes(parameters_of(base.model)))[:32],
        "image_processor": xxhash.xxh3_64_hexdigest(images.encode()),
    }


def task_plan(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What tells a task from every other, of `Task.provenance()`: its data, classes, prompts and parts.

    The folder that a dataset lies in is not part of it: a copy elsewhere has the same revision.
    """
    facts = dict(facts)
    settings = dict(facts.pop("data_settings"))
    settings.pop("local", None)
    return facts | settings


def run_plan(args: TaskVectorConfig) -> dict[str, Any]:
    """The settings of a run that decide its vector, whatever is recorded, logged or kept of it.

    A batch counts over all processes and accumulated passes: how it is shared out changes nothing.
    """
    names = [spec.name for spec in dataclasses.fields(args) if spec.name in _DECISIVE]
    values = {name: _plain(getattr(args, name)) for name in names}
    values["data_seed"] = args.data_seed if args.data_seed is not None else args.seed
    values["batch_size"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return values


def _plain(value: Any) -> Any:
    """The string of an enumeration's member; anything else as it is."""
    return getattr(value, "value", value)
