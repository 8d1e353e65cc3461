"""Synthetic vision towers for the merging benchmarks: a base, fine-tuned checkpoints and their task vectors.

The deltas are heavy-tailed and partly shared, so that thresholds, sign conflicts and spectra are not those of noise:
Gaussian entries times log-normal scales, plus a common matrix of low rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from hf_taskvec import TaskVector, VectorInfo
from hf_taskvec.names import canonical_name
from hf_taskvec.storage import write_safetensors

SIZES = {
    "tiny": CLIPVisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    ),
    "b32": CLIPVisionConfig(),
    "l14": CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    ),
}


def make_towers(folder: Path, *, size: str, count: int, checkpoints: bool) -> None:
    """Writes `vector-0 …` and, if asked, `base` and `task-0 …` as checkpoint folders; what exists is kept."""
    config = SIZES[size]
    config.architectures = ["CLIPVisionModel"]
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    shapes = {canonical_name(name): parameter.shape for name, parameter in model.named_parameters()}
    if checkpoints:
        _write_checkpoint(folder / "base", config, _weights(shapes, None), shapes)
    for index in range(count):
        if not (folder / f"vector-{index}").exists():
            info = VectorInfo(task=f"task-{index}", base="synthetic")
            TaskVector(dict(_deltas(shapes, index)), info).save_pretrained(folder / f"vector-{index}")
        if checkpoints:
            _write_checkpoint(folder / f"task-{index}", config, _weights(shapes, index), shapes)


def _write_checkpoint(
    folder: Path, config: CLIPVisionConfig, weights: Iterator[tuple[str, Tensor]], shapes: dict[str, torch.Size]
) -> None:
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", weights, shapes=shapes, dtype=torch.float32)
    config.save_pretrained(folder)


def _weights(shapes: dict[str, torch.Size], index: int | None) -> Iterator[tuple[str, Tensor]]:
    deltas = None if index is None else _deltas(shapes, index)
    for position, (name, shape) in enumerate(shapes.items()):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(position)) * 0.02
        yield name, weight if deltas is None else weight + next(deltas)[1]


def _deltas(shapes: dict[str, torch.Size], index: int) -> Iterator[tuple[str, Tensor]]:
    for position, (name, shape) in enumerate(shapes.items()):
        own = torch.Generator().manual_seed((index + 1) * 10_000 + position)
        delta = torch.randn(shape, generator=own) * (torch.randn(shape, generator=own) * 0.7).exp_() * 3e-4
        if len(shape) == 2:
            shared = torch.Generator().manual_seed(position + 5_000)
            left, right = torch.randn(shape[0], 8, generator=shared), torch.randn(8, shape[1], generator=shared)
            delta += (left * torch.rand(8, generator=own)) @ right * 1e-4
        yield name, delta
