"""ViT and DINOv2 in miniature: random weights and an image processor in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as hf

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
SPREAD = 0.2  # of the random weights: at the usual 0.02 all images have nearly the same features
KINDS = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}


def make_backbone(kind: str, *, head: bool = False, seed: int = 0) -> Any:
    """A random model of a kind, with a classifier of three classes or without."""
    stem = KINDS[kind]
    config = getattr(hf, f"{stem}Config")(**SIZE, intermediate_size=64, num_labels=3, initializer_range=SPREAD)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(hf, f"{stem}{'ForImageClassification' if head else 'Model'}")(config).eval()


def save_backbone(folder: Path, kind: str, *, head: bool = False, seed: int = 0) -> Path:
    """Writes such a model with its image processor."""
    make_backbone(kind, head=head, seed=seed).save_pretrained(folder)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder
