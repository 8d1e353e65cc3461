"""`TaskVectorConfig`: the settings of a run that makes a task vector."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from hf_taskvec.errors import is_finite_number
from hf_taskvec.training.full_batch import apply_full_batch


@dataclass
class TaskVectorConfig(TrainingArguments):
    """`TrainingArguments` with the defaults of the task-vector literature for CLIP, and what is recorded.

    AdamW at 1e-5 with weight decay 0.1, a cosine schedule with warm-up, batches of 128 and clipping at 1.0
    (Ilharco et al., arXiv 2212.04089). The literature warms up for 500 of some 4,000 steps; here that is a tenth of the
    run, so that short runs reach their learning rate too.

    Settings of `TrainingArguments` that would do nothing or something else here are refused by name.

    Raises:
        ValueError: If a setting cannot work.

    Example:
        >>> config = TaskVectorConfig(num_train_epochs=3, full_batch=True)
        >>> config.optim.value, config.weight_decay
        ('sgd', 0.0)
    """

    output_dir: str | None = field(
        default="task_vector_output", metadata={"help": "Folder of checkpoints and vectors."}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay, not applied to biases and norms."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: a number of steps, or below 1 a fraction."})
    num_train_epochs: float = field(
        default=1.0,
        metadata={
            "help": "Epochs to train. One unless told, whatever the task: that it suffices for merging is the paper's "
            "claim. A task's `epochs` tells how many converge."
        },
    )
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Images per step and process."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Images per evaluation step and process."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Clipping norm; 0 switches clipping off."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write checkpoints to resume from."})
    save_total_limit: int | None = field(default=1, metadata={"help": "How many checkpoints to keep."})
    logging_steps: float = field(
        default=10, metadata={"help": "Steps from one log line to the next, or below 1 a fraction of the run's."}
    )
    logging_first_step: bool = field(default=True, metadata={"help": "Whether to log the first step too."})
    report_to: str = field(default="none", metadata={"help": "Experiment trackers."})
    include_projection: bool = field(
        default=False, metadata={"help": "Train visual_projection too and make it part of the vector."}
    )
    trainable_parameters: list[str] = field(
        default_factory=lambda: ["*"],
        metadata={
            "help": "Patterns of the parameters to train, such as '*.mlp.*.weight'; the vector covers these alone. "
            "Fewer parameters can mean less interference between tasks (arXiv 2407.07089)."
        },
    )
    full_batch: bool = field(
        default=False,
        metadata={
            "help": "Full-batch gradient descent: one step per epoch on the mean loss over all images. Settings left "
            "at their default become plain SGD without decay, clipping or schedule; others are kept and named."
        },
    )
    orthogonality: float = field(
        default=0.0,
        metadata={
            "help": "Factor of OrthoReg (arXiv 2604.17078): the squared distance of D'D from the identity, D being the "
            "change of a linear layer's weight. The paper takes 0.1 to 100; 0 is off."
        },
    )
    pull_to_base: float = field(
        default=0.0, metadata={"help": "Factor of the squared distance from the base's weights, added to the loss."}
    )
    tangent: bool = field(
        default=False,
        metadata={
            "help": "Train in the tangent space of the base (arXiv 2305.12827): the model is linear in its weights, "
            "and vectors add up with less interference. The vector is for linearize(base)."
        },
    )
    curvature: float = field(
        default=0.0,
        metadata={
            "help": "Factor of TAK (arXiv 2602.17385): what the change does to other tasks, by the K-FAC factors in "
            "curvature_of. It is meant for the tangent space."
        },
    )
    curvature_of: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders or Hub ids of other tasks' statistics of kinds gram and kfac, of the base."},
    )
    shard: bool = field(
        default=False,
        metadata={
            "help": "Shard the tower over the processes of a launcher (FSDP2): each holds its share of weights, "
            "gradients and optimiser state."
        },
    )
    record_epochs: bool = field(default=True, metadata={"help": "Keep the vector of each epoch's end."})
    record_steps: list[int] = field(default_factory=list, metadata={"help": "Optimiser steps whose vectors to keep."})
    record_fractions: list[float] = field(
        default_factory=list, metadata={"help": "Fractions of the first epoch, in (0, 1), whose vectors to keep."}
    )
    track_gradients: bool = field(
        default=False, metadata={"help": "Log each epoch's gradient norm and cosines; costs two copies of the tower."}
    )
    record_gradients: bool = field(
        default=False, metadata={"help": "Keep each epoch's accumulated gradient too; includes track_gradients."}
    )
    # Values, not factories: HfArgumentParser takes a bool without a value for False.
    dataloader_pin_memory: bool = field(
        default=torch.cuda.is_available(), metadata={"help": "Pin memory; pointless without a GPU."}
    )
    use_cpu: bool = field(  # without it, torchrun on a machine without accelerator starts unconnected copies of the run
        default=not torch.accelerator.is_available(), metadata={"help": "Train on the CPU."}
    )
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every parameter is used."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Not used: batches come ready-made."})

    def __post_init__(self) -> None:
        for fraction in self.record_fractions:
            if not 0 < fraction < 1:
                raise ValueError(f"record_fractions must lie in (0, 1), got {fraction}")
        for step in self.record_steps:
            if step < 1:
                raise ValueError(f"record_steps must be positive, got {step}")
        if not self.trainable_parameters:
            raise ValueError("trainable_parameters is empty, so nothing would be trained; ['*'] trains all of them")
        _check_numbers(self)
        _check_inherited(self)
        _check_tangent(self)
        _check_launcher()
        _check_shard(self)
        self.track_gradients = self.track_gradients or self.record_gradients
        if self.full_batch:
            apply_full_batch(self)
        super().__post_init__()


# Inherited settings that this trainer does not follow: the values it works with, and why with no others.
_SHARDED = "its checkpoints are read by pickle, which runs what stands in them; shard=True shards the tower without"
_WHOLE_COPY = "each process trains a whole copy of the tower, or with shard=True its share, which make the vector"
_ROUNDS = "it rounds the very weights that the vector is a difference of; fp16 or bf16 evaluates in half precision too"
_UNSUPPORTED: dict[str, tuple[tuple[Any, ...], str]] = {
    "remove_unused_columns": ((False,), "batches come ready-made"),
    "train_sampling_strategy": (("random", "sequential"), "images have no lengths to group by"),
    "neftune_noise_alpha": ((None,), "its noise is for the embeddings of texts"),
    "use_liger_kernel": ((False,), "it has no kernel for this tower"),
    "fsdp": ((None, False, "", []), _SHARDED),
    "deepspeed": ((None,), _SHARDED),
    "parallelism_config": ((None,), _WHOLE_COPY),
    "fp16_full_eval": ((False,), _ROUNDS),
    "bf16_full_eval": ((False,), _ROUNDS),
    "eval_do_concat_batches": ((True,), "accuracy counts over all batches"),
    "average_tokens_across_devices": ((True,), "several processes would take other steps than one"),
    "include_num_input_tokens_seen": (("no", False), "images have no tokens"),
    "label_names": ((None, ["labels"]), "batches hold 'labels'"),
}
_LAUNCHED = ("fsdp", "deepspeed", "megatron_lm")  # what a launcher turns on by an environment variable
NUMBERS = (
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "warmup_steps",
    "seed",
    "label_smoothing_factor",
)  # that decide a run's vector

PENALTIES = ("orthogonality", "pull_to_base", "curvature")  # likewise, where they are not 0

# What a sharded run cannot be told.
_WHOLE = (
    *PENALTIES,
    "tangent",
    "track_gradients",
    "record_gradients",
    "fp16",
    "torch_compile",
    "load_best_model_at_end",
    "save_only_model",
    "auto_find_batch_size",
)
_ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd")  # optimisers whose step of a weight's shard needs no other


def _check_numbers(args: TaskVectorConfig) -> None:
    """Raises a `ValueError` that names a setting that is no finite number, such as the text `1e-5` of a YAML file."""
    for name in (*NUMBERS, *PENALTIES):
        value = getattr(args, name)
        if not is_finite_number(value):
            raise ValueError(f"{name} must be a finite number, got {type(value).__name__} {value!r:.80}")
    if args.num_train_epochs <= 0 and args.max_steps <= 0:
        raise ValueError(f"num_train_epochs must be above 0, got {args.num_train_epochs}")
    if args.max_steps == 0:
        raise ValueError("max_steps must be above 0, or -1 for as many as num_train_epochs gives, got 0")


def _check_tangent(args: TaskVectorConfig) -> None:
    """Raises a `ValueError` that names a setting that has no place in the tangent space, or a half of TAK's pair."""
    if isinstance(args.curvature_of, str):
        raise ValueError(f"curvature_of must be a list of folders or Hub ids, got {args.curvature_of!r:.200}")
    if bool(args.curvature) != bool(args.curvature_of):
        raise ValueError(
            "curvature and curvature_of belong together: a factor, and the statistics of the other tasks, "
            "collect_statistics(base, task, kinds=['gram', 'kfac']), saved"
        )
    for name in ("gradient_checkpointing", "activation_checkpointing", "torch_compile"):
        if args.tangent and getattr(args, name):
            raise ValueError(f"{name} must be False in the tangent space, where one pass gives value and derivative")


def _check_launcher() -> None:
    """Raises a `ValueError` that names what a launcher turned on and this trainer does not follow."""
    for name in _LAUNCHED:
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "").lower() in ("1", "true"):
            raise ValueError(
                f"{name} must be off, but `accelerate launch` or its configuration turns it on: {_SHARDED}. Or train "
                "by any other trainer, and make the vector by TaskVector.from_checkpoints"
            )


def _check_shard(args: TaskVectorConfig) -> None:
    """Raises a `ValueError` that names a setting that has no place in a sharded run."""
    if not args.shard:
        return
    for name in _WHOLE:
        if getattr(args, name):
            raise ValueError(f"{name} must be off with shard=True, which leaves no process a whole tower")
    if args.optim not in _ELEMENTWISE:
        raise ValueError(
            f"optim must be {' or '.join(_ELEMENTWISE)} with shard=True, got {args.optim!r:.80}: of others it is not "
            "known that a shard of a weight is enough for its step"
        )


def _check_inherited(args: TaskVectorConfig) -> None:
    """Raises a `ValueError` that names an inherited setting with which the run would not do what it says."""
    for name, (allowed, reason) in _UNSUPPORTED.items():
        value = getattr(args, name)
        if value not in allowed:
            raise ValueError(f"{name} must be {' or '.join(map(repr, allowed[:2]))}, got {value!r:.200}: {reason}")
    for name in ("learning_rate", *PENALTIES):
        if getattr(args, name) < 0:
            raise ValueError(f"{name} must be a number of at least 0, got {getattr(args, name)}")
    for name in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    if args.fp16 and args.use_cpu:
        raise ValueError("fp16 must be False on the CPU, where it changes nothing; bf16 has an effect there")
    if not 0 <= args.label_smoothing_factor < 1:
        raise ValueError(f"label_smoothing_factor must be in [0, 1), got {args.label_smoothing_factor}")
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        settings = getattr(args, name)
        if isinstance(settings, dict) and settings.get("use_reentrant") and args.trainable_parameters != ["*"]:
            raise ValueError(
                f"{name} must not hold use_reentrant=True while trainable_parameters leaves some out: frozen ones "
                "before the trained would cut off the gradients"
            )
    if args.full_batch and args.auto_find_batch_size:
        raise ValueError("full_batch fixes the size of a step, so auto_find_batch_size must be False")
