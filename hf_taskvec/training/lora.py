"""Low-rank training (LoRA, arXiv 2106.09685): factors beside frozen weights, whose products are the task vector."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor

from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.training.config import PENALTIES, TaskVectorConfig

ADAPTER = "default"  # the name that `peft` gives to the one adapter
# Settings of peft under which the vector is not the product of the factors.
_UNSUPPORTED = {"bias": "none", "modules_to_save": None, "use_dora": False, "lora_bias": False}


def add_adapter(model: ImageClassifier, peft_config: Any, args: TaskVectorConfig) -> None:
    """Puts trainable factors beside weights of the vision tower and freezes everything else.

    The factors' start depends on `args.seed` alone.

    Args:
        model: The classifier, changed in place.
        peft_config: A `peft.LoraConfig`; its `target_modules` are looked for in the vision tower.
        args: The settings of the run.

    Raises:
        TypeError: If it is another kind of configuration.
        ValueError: If a setting does not fit low-rank training, or no module of the tower is a target.
    """
    if not isinstance(peft_config, LoraConfig):
        raise TypeError(f"peft_config must be a peft.LoraConfig, got {type(peft_config).__name__}")
    for name, needed in _UNSUPPORTED.items():
        if (getattr(peft_config, name, None) or needed) != needed:
            raise ValueError(
                f"peft_config.{name} must be {needed!r}: the vector is the product of the factors and no more"
            )
    unfit = {
        "include_projection": args.include_projection,
        "track_gradients": args.track_gradients,
        "full_batch": args.full_batch,
        "tangent": args.tangent,
        **{name: getattr(args, name) for name in PENALTIES},
        "trainable_parameters": args.trainable_parameters != ["*"],
    }
    if given := [name for name, is_set in unfit.items() if is_set]:
        raise ValueError(f"{', '.join(given)} cannot be set beside peft_config, which says what is trained")
    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        inject_adapter_in_model(peft_config, model.vision_model)


def adapter_deltas(model: ImageClassifier) -> dict[str, Tensor]:
    """The weight changes under canonical names: each product of factors, exact rather than a difference of weights."""
    return {
        f"vision_model.{name}.weight": module.get_delta_weight(ADAPTER).detach()
        for name, module in model.vision_model.named_modules()
        if isinstance(module, LoraLayer)
    }


def adapter_settings(peft_config: Any) -> dict[str, Any]:
    """What provenance and plan hold of a `LoraConfig`."""
    targets = peft_config.target_modules
    return {
        "r": peft_config.r,
        "lora_alpha": peft_config.lora_alpha,
        "use_rslora": peft_config.use_rslora,
        "lora_dropout": peft_config.lora_dropout,
        "target_modules": targets if isinstance(targets, str) else sorted(targets or []),
    }
