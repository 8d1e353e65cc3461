"""The state of an unfinished pretraining run: safetensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_taskvec.weights.folders import read_json

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
    new, final = folder / "state.new", folder / "state"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(_contiguous(state.model), new / MODEL)
    save_file(_contiguous(state.average), new / AVERAGE)
    flat = {f"{index}.{key}": value for index, entry in state.optimizer.items() for key, value in entry.items()}
    save_file(_contiguous(flat), new / OPTIMIZER)
    (new / FACTS).write_text(json.dumps(state.facts), encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    os.replace(new, final)


def load_state(folder: Path) -> State | None:
    """The state in `folder/state`, if there is one."""
    state, new = folder / "state", folder / "state.new"
    if not state.exists() and (new / FACTS).is_file():  # written last: killed just before the renaming
        os.replace(new, state)
    if not (state / FACTS).is_file():
        return None
    optimizer: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(state / OPTIMIZER).items():
        index, name = key.split(".", 1)
        optimizer.setdefault(int(index), {})[name] = value
    return State(load_file(state / MODEL), load_file(state / AVERAGE), optimizer, read_json(state / FACTS))


def load_average(folder: Path) -> dict[str, Tensor]:
    """The averaged weights of the CLIP of an unfinished run."""
    average = load_file(folder / "state" / AVERAGE)
    return {name.removeprefix("clip."): value for name, value in average.items() if name.startswith("clip.")}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.as_tensor(value).detach().cpu().contiguous() for name, value in tensors.items()}
