"""The state of an unfinished pretraining run: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from hf_taskvec.weights.folders import atomic_folder, read_json, write_json

MODEL, AVERAGE, OPTIMIZER, FACTS = "model.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True)
class State:
    """Everything a run needs to go on.

    Args:
        model: Weights, with the heads.
        average: Averaged weights.
        optimizer: The optimiser's tensors by parameter number and name.
        facts: Step, settings, schedule and log.
    """

    model: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[int, dict[str, Tensor]]
    facts: dict[str, Any]


def save_state(folder: Path, state: State) -> None:
    """Writes the state into `folder/state`; a kill in between leaves the former one."""
    flat = {f"{index}.{key}": value for index, entry in state.optimizer.items() for key, value in entry.items()}
    with atomic_folder(folder / "state", marker=FACTS) as new:
        save_file(_contiguous(state.model), new / MODEL)
        save_file(_contiguous(state.average), new / AVERAGE)
        save_file(_contiguous(flat), new / OPTIMIZER)
        write_json(new / FACTS, state.facts)


def load_state(folder: Path) -> State | None:
    """The state in `folder/state`, if there is one."""
    state = folder / "state"
    if not (state / FACTS).is_file():
        return None
    optimizer: dict[int, dict[str, Tensor]] = {}
    for key, value in _load(state / OPTIMIZER).items():
        index, name = key.split(".", 1)
        optimizer.setdefault(int(index), {})[name] = value
    return State(_load(state / MODEL), _load(state / AVERAGE), optimizer, read_json(state / FACTS))


def load_average(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of an unfinished run."""
    return _load(folder / "state" / AVERAGE)


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in float32: a bundle holds some of them in less."""
    return {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}


def averaged_clip(config: CLIPConfig, average: Mapping[str, Tensor]) -> CLIPModel:
    """The CLIP of averaged weights, without the heads, in float32 on the CPU."""
    model = CLIPModel(config)
    clip = {name.removeprefix("clip."): value for name, value in average.items() if name.startswith("clip.")}
    model.load_state_dict(clip)
    return model.eval()


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in tensors.items()}
