"""Backbones without a text tower, ViT and DINOv2: how they are loaded, and the features that a classifier reads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from hf_taskvec.errors import CheckpointError
from hf_taskvec.models.layouts import BACKBONES
from hf_taskvec.text import listed, shortened


@dataclass(frozen=True)
class ImagesOnly:
    """The processor of a base that reads no text.

    Attributes:
        image_processor: Its image processor.
    """

    image_processor: Any

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Saves the image processor."""
        self.image_processor.save_pretrained(folder)


def backbone_class(config: Mapping[str, Any], where: str) -> Any:
    """The class of a backbone, whose file may hold a classifier on it.

    Args:
        config: The checkpoint's configuration.
        where: The checkpoint, for the message.

    Raises:
        CheckpointError: If the configuration names another kind of model, whose weights mean something else.

    Example:
        >>> backbone_class({"model_type": "vit", "architectures": ["ViTForImageClassification"]}, "it").__name__
        'ViTModel'
    """
    stem, named = BACKBONES[config["model_type"]], config.get("architectures") or []
    known = [f"{stem}Model", f"{stem}ForImageClassification"]
    if not isinstance(named, list) or len(named) != 1 or named[0] not in known:
        raise CheckpointError(
            f"{where} must be a {' or '.join(known)}, its configuration names {shortened(str(named), 100)}"
        )
    return getattr(transformers, known[0])


def backbone_features(backbone: Any, pixels: Tensor) -> Tensor:
    """Features (N, F) of normalised images (N, 3, H, W), as the `ForImageClassification` of a backbone reads them.

    Those of a ViT are its class token; those of a DINOv2 the class token and the mean of the patches.

    Example:
        >>> from transformers import Dinov2Config, Dinov2Model
        >>> backbone = Dinov2Model(Dinov2Config(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
        >>> backbone_features(backbone, torch.zeros(2, 3, 28, 28)).shape
        torch.Size([2, 16])
    """
    states = backbone(pixels).last_hidden_state
    token: Tensor = states[:, 0]
    if backbone.config.model_type == "vit":
        return token
    patches = states[:, 1 + getattr(backbone.config, "num_register_tokens", 0) :]
    return torch.cat([token, patches.mean(dim=1)], dim=-1)


def check_loading(loading: Mapping[str, Any], kind: Any, where: str) -> None:
    """Raises a `CheckpointError` if a file's parameters are not a model's, but for a classifier on a backbone.

    Args:
        loading: What `from_pretrained` tells of missing, unexpected and mismatched parameters.
        kind: The model's class.
        where: The checkpoint, for the message.
    """
    left = {key: [n for n in names if not _is_classifier(n, kind)] for key, names in loading.items()}
    lines = [f"{key.replace('_', ' ')}: {listed(sorted(names), room=100)}" for key, names in left.items() if names]
    if lines:
        details = [f"{key}: {name}" for key, names in left.items() for name in sorted(names)]
        raise CheckpointError(f"{where} does not fit {kind.__name__}; {'; '.join(lines)}", details=details)


def _is_classifier(name: Any, kind: Any) -> bool:
    return str(name).startswith("classifier.") and kind.config_class.model_type in BACKBONES
