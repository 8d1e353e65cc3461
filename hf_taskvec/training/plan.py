"""The plan of a run: task, data, base and settings, by which its results are known again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash
from accelerate import PartialState

from hf_taskvec.models.base import Base
from hf_taskvec.models.linear import base_facts
from hf_taskvec.training.config import NUMBERS, PENALTIES, TaskVectorConfig
from hf_taskvec.training.curvature import shown_as
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.resume import compute_or_read

_DECISIVE = (
    *NUMBERS,
    "optim",
    "optim_args",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "train_sampling_strategy",
    "bf16",
    "fp16",
    "full_batch",
    "include_projection",
    "trainable_parameters",
)


def vector_of(path: Path, plan: Mapping[str, Any], make: Callable[[], TaskVector]) -> TaskVector:
    """The vector in a folder, memory-mapped; made if it is not there yet. All processes of a run make and read it.

    Args:
        path: The folder.
        plan: Everything the vector depends on, as JSON values.
        make: Makes it; the first process writes what comes out.

    Raises:
        SettingsDifferError: If the vector there was made by another plan.
    """

    def compute(target: Path) -> None:
        vector = make()
        if PartialState().is_main_process:
            vector.save_pretrained(target)

    def read(folder: Path) -> TaskVector:
        PartialState().wait_for_everyone()
        return TaskVector.from_pretrained(folder)

    return compute_or_read(path, plan, compute=compute, read=read)


def base_plan(base: Base) -> dict[str, Any]:
    """What tells a base from every other: a fingerprint of its weights and one of its image processor."""
    return dict(zip(("base_fingerprint", "image_processor"), base_facts(base), strict=True))


def tokenizer_plan(base: Base) -> dict[str, str]:
    """What tells a base's tokenizer from every other: through it prompts become the head that a run trains against."""
    tokenizer = base.processor.tokenizer
    tokenizer.backend_tokenizer.no_truncation()  # what the last call left there is set again by the next one
    tokenizer.backend_tokenizer.no_padding()
    facts = f"{tokenizer.backend_tokenizer.to_str()} {tokenizer.model_max_length}"
    return {"tokenizer": xxhash.xxh3_64_hexdigest(facts.encode())}


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
    values = {name: getattr(args, name) for name in _DECISIVE}
    later = (*PENALTIES, "tangent")  # which plans of older runs do not tell
    values |= {name: value for name in later if (value := getattr(args, name))}
    if args.curvature_of:
        values["curvature_of"] = shown_as(args.curvature_of)
    values["data_seed"] = args.data_seed if args.data_seed is not None else args.seed
    values["batch_size"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return values
