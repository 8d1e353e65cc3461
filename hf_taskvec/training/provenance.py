"""What a run writes into the provenance of its vectors."""

from __future__ import annotations

from typing import Any

from transformers import TrainerState

from hf_taskvec.models.base import Base
from hf_taskvec.training.config import PENALTIES, TaskVectorConfig
from hf_taskvec.training.curvature import shown_as
from hf_taskvec.vectors.info import VectorInfo, library_versions


def fine_tuned_info(
    base: Base,
    args: TaskVectorConfig,
    state: TrainerState,
    *,
    num_images: int,
    seconds: float | None,
    optimizer: Any = None,
) -> VectorInfo:
    """Provenance of the vector of this moment, but for the task.

    Args:
        base: The base of the run.
        args: Its settings.
        state: Where the run stands.
        num_images: Training images per epoch.
        seconds: How long it has taken.
        optimizer: The optimiser, if it is not the one that `args` names.
    """
    return VectorInfo(
        kind="fine-tuned",
        base=base.name,
        base_revision=base.revision,
        architecture=base.architecture,
        epochs=float(state.epoch or 0),
        steps=state.global_step,
        optimizer=args.optim if optimizer is None else type(optimizer).__name__,
        learning_rate=float(args.learning_rate),
        weight_decay=float(args.weight_decay),
        batch_size=args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        num_images=num_images,
        seed=args.seed,
        settings=_settings(args),
        versions=library_versions(),
        seconds=seconds,
    )


def _settings(args: TaskVectorConfig) -> dict[str, Any]:
    """The settings beside those with a field of their own; what is at rest (0, off) is left out."""
    always = {
        "lr_scheduler_type": args.lr_scheduler_type,
        "warmup_steps": args.warmup_steps,
        "max_grad_norm": args.max_grad_norm,
        "num_train_epochs": args.num_train_epochs,
        "trainable_parameters": list(args.trainable_parameters),
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
    }
    if "adam" in args.optim:
        always |= {"betas": [args.adam_beta1, args.adam_beta2], "epsilon": args.adam_epsilon}
    optional = {
        "bf16": args.bf16,
        "fp16": args.fp16,
        "label_smoothing_factor": args.label_smoothing_factor,
        "full_batch": args.full_batch,
        "shard": args.shard,
        "tangent": args.tangent,
        "curvature_of": shown_as(args.curvature_of),
        **{name: getattr(args, name) for name in PENALTIES},
        "optim_args": args.optim_args,
        "max_steps": max(args.max_steps, 0),
        "processes": args.world_size if args.world_size > 1 else None,
    }
    if args.data_seed is not None:
        always["data_seed"] = args.data_seed
    if args.train_sampling_strategy != "random":
        always["train_sampling_strategy"] = args.train_sampling_strategy
    return always | {name: value for name, value in optional.items() if value}
