"""Synthetic vision towers for the merging benchmarks: a base, fine-tuned checkpoints and their task vectors.

The deltas are heavy-tailed and partly shared, so that thresholds, sign conflicts and spectra are not those of noise:
Gaussian entries times log-normal scales, plus a common matrix of low rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from hf_taskvec import TaskVector, VectorInfo
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.weights.names import VISION_PREFIX, canonical_name
from hf_taskvec.weights.safetensors import write_safetensors

SIZES = {
    "tiny": CLIPVisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    ),
    "b32": CLIPVisionConfig(),
    "l14": CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
    ),
}


def make_vectors(folder: Path, *, size: str, count: int) -> None:
    """Writes `vector-0 …`; what exists is kept."""
    shapes = _shapes(_config(size))
    for index in range(count):
        if not (folder / f"vector-{index}").exists():
            info = VectorInfo(task=f"task-{index}", base="synthetic")
            TaskVector(dict(_deltas(shapes, index)), info).save_pretrained(folder / f"vector-{index}")


def make_checkpoints(folder: Path, *, size: str, count: int) -> None:
    """Writes `base` and `task-0 …` beside the vectors, and in `flat/` the same once more; what exists is kept.

    Transformers 4 names a tower's parameters `vision_model.…`. Transformers 5 drops the prefix, and mergekit, which
    takes the names from there, merges nothing of a file that has it.
    """
    make_vectors(folder, size=size, count=count)
    config = _config(size)
    shapes = _shapes(config)
    _write_checkpoint(folder / "base", config, _base_weights(shapes), shapes)
    base = open_checkpoint(folder / "base").tensors
    for index in range(count):
        deltas = TaskVector.from_pretrained(folder / f"vector-{index}").deltas
        tuned = ((name, base[name] + deltas[name]) for name in shapes)
        _write_checkpoint(folder / f"task-{index}", config, tuned, shapes)
    for name in ["base", *(f"task-{index}" for index in range(count))]:
        tensors = open_checkpoint(folder / name).tensors
        flat = ((key.removeprefix(VISION_PREFIX), tensors[key]) for key in shapes)
        short = {key.removeprefix(VISION_PREFIX): shape for key, shape in shapes.items()}
        _write_checkpoint(folder / "flat" / name, config, flat, short)


def _config(size: str) -> CLIPVisionConfig:
    config = SIZES[size]
    config.architectures = ["CLIPVisionModel"]
    return config


def _shapes(config: CLIPVisionConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    return {canonical_name(name): parameter.shape for name, parameter in model.named_parameters()}


def _write_checkpoint(
    folder: Path, config: CLIPVisionConfig, weights: Iterable[tuple[str, Tensor]], shapes: Mapping[str, torch.Size]
) -> None:
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", weights, shapes=shapes, dtype=torch.float32)
    config.save_pretrained(folder)


def _base_weights(shapes: Mapping[str, torch.Size]) -> Iterator[tuple[str, Tensor]]:
    for position, (name, shape) in enumerate(shapes.items()):
        yield name, torch.randn(shape, generator=torch.Generator().manual_seed(position)) * 0.02


def _deltas(shapes: Mapping[str, torch.Size], index: int) -> Iterator[tuple[str, Tensor]]:
    for position, (name, shape) in enumerate(shapes.items()):
        yield name, heavy_tailed(shape, index, position)


def heavy_tailed(shape: torch.Size, index: int, position: int) -> Tensor:
    """The delta of vector `index` for the parameter at `position`."""
    own = torch.Generator().manual_seed((index + 1) * 10_000 + position)
    delta = torch.randn(shape, generator=own) * (torch.randn(shape, generator=own) * 0.7).exp_() * 3e-4
    if len(shape) == 2:
        shared = torch.Generator().manual_seed(position + 5_000)
        left, right = torch.randn(shape[0], 8, generator=shared), torch.randn(8, shape[1], generator=shared)
        delta += (left * torch.rand(8, generator=own)) @ right * 1e-4
    return delta
