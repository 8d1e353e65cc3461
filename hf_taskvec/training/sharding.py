"""A tower that is sharded over processes while it trains (FSDP2), its checkpoints, and its vector by shard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_taskvec.errors import CheckpointError
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.feeding import ObjectiveTrainer
from hf_taskvec.training.output import SHARDS, VECTORS, RunFolder, epoch_name, shard_facts, shard_name
from hf_taskvec.vectors.gathering import write_gathered
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.folders import write_json
from hf_taskvec.weights.names import PROJECTION, parameters_of
from hf_taskvec.weights.processes import together
from hf_taskvec.weights.resume import plain
from hf_taskvec.weights.safetensors import open_safetensors, write_safetensors


class ShardingTrainer(ObjectiveTrainer):
    """With `shard=True` each process holds its share of every trained weight, its gradient and its optimiser's state.

    Whole is one layer at a time, while it computes, and the base, where `load_base` put it. A checkpoint has a file for
    each process, in safetensors, without a pickle; a vector is gathered parameter by parameter. Without `shard`
    everything is as in `Trainer`.
    """

    folder: RunFolder
    vector_info: Callable[[], VectorInfo]
    recorded_vector: Callable[[str], TaskVector]

    def __init__(self, model: ImageClassifier, args: TaskVectorConfig, **kwargs: Any) -> None:
        if args.shard:
            shard_tower(model, args)
        super().__init__(model=model, args=args, **kwargs)
        self._written: tuple[int, str] | None = None  # step and name of the last vector
        if args.shard:
            self.accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)  # bf16 and no more
            model._is_accelerate_prepared = True  # type: ignore[assignment]  # else it would be wrapped in DDP

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        """As `Trainer.train`; a sharded run ends with its vector written."""
        if resume_from_checkpoint:
            self._check_processes(Path(resume_from_checkpoint))
        result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        if self.args.shard:
            self.gathered_vector()
        return result

    def gathered_vector(self) -> TaskVector:
        """The vector of this moment, memory-mapped; called on all processes where it is not written yet."""
        if not self.state.global_step:
            raise ValueError("a sharded run has no vector before its first step: call train() first")
        step, name = self._written or (None, "")
        if step != self.state.global_step:
            self.write_vector(name := epoch_name(self.state.epoch or 0))
        return self.recorded_vector(name)

    def write_vector(self, name: str) -> None:
        """Writes the vector of this moment under `output_dir/vectors/<name>`, each process its share."""
        group, path = PartialState(), self.folder.path / VECTORS / name
        with together():
            if group.is_main_process:
                self.folder.claim(f"{VECTORS}/{name}")
        weights, base = self.model.weights(), parameters_of(self.base.model)
        hashes = tensor_hashes({name: base[name] for name in weights}) if group.is_main_process else {}
        info = dataclasses.replace(self.vector_info(), base_hashes=hashes, include_projection=PROJECTION in weights)
        write_gathered(path, base, weights, info, group)
        self._written = (self.state.global_step, name)

    # -- hooks of Trainer ---------------------------------------------------------------------------------------------

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if not self.args.shard:  # else `shard_tower` has moved it
            super()._move_model_to_device(model, device)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.shard:
            super()._save(output_dir, state_dict)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.args.shard:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        folder, group = Path(output_dir), PartialState()
        tensors, numbers = _state_of(self.optimizer)
        tensors |= {f"weight.{name}": _local(weight) for name, weight in self.model.weights().items()}
        tensors |= _chance(self.args.device)
        group.wait_for_everyone()  # by now the first has made the folder, and taken an earlier run's state out of it
        with together():
            write_safetensors(
                folder / shard_name(group.process_index, group.num_processes),
                tensors.items(),
                shapes={name: tensor.shape for name, tensor in tensors.items()},
                dtype={name: tensor.dtype for name, tensor in tensors.items()},
            )
            if group.is_main_process:
                groups = self.optimizer.state_dict()["param_groups"]
                facts = {"processes": group.num_processes, "optimizer": groups, "numbers": numbers}
                write_json(folder / SHARDS, plain({**facts, "scheduler": self.lr_scheduler.state_dict()}))

    def _save_rng_state(self, output_dir: str) -> None:
        if not self.args.shard:  # else it is in the shard
            super()._save_rng_state(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self.args.shard:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        stored = _of_kind(self._shard(resume_from_checkpoint), "weight")
        weights = {name: _local(weight) for name, weight in self.model.weights().items()}
        if {name: w.shape for name, w in stored.items()} != {name: w.shape for name, w in weights.items()}:
            raise CheckpointError(f"{resume_from_checkpoint} does not hold this process's share of the tower")
        for name, weight in weights.items():
            weight.copy_(stored[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.args.shard or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        facts = shard_facts(Path(checkpoint)) or {}
        state = _state_from(self._shard(checkpoint), facts["numbers"], self.optimizer)
        self.optimizer.load_state_dict({"state": state, "param_groups": facts["optimizer"]})
        self.lr_scheduler.load_state_dict(facts["scheduler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if not self.args.shard or checkpoint is None:
            super()._load_rng_state(checkpoint)
            return
        chance = _of_kind(self._shard(checkpoint), "chance")
        torch.set_rng_state(chance["cpu"])
        if (device := self.args.device).type != "cpu":
            torch.get_device_module(device).set_rng_state(chance["device"], device)

    def _shard(self, checkpoint: str) -> dict[str, Tensor]:
        group = PartialState()
        return open_safetensors([Path(checkpoint) / shard_name(group.process_index, group.num_processes)])

    def _check_processes(self, checkpoint: Path) -> None:
        theirs = (shard_facts(checkpoint) or {}).get("processes")
        ours = PartialState().num_processes if self.args.shard else None
        if theirs != ours:
            said = {count: f"shard=True and {count} processes" for count in (theirs, ours)} | {None: "shard=False"}
            raise CheckpointError(
                f"{checkpoint} was written with {said[theirs]}, this run has {said[ours]}: resume it as it was "
                "started, or train into another output_dir"
            )


def shard_tower(model: nn.Module, args: TaskVectorConfig) -> None:
    """Shards a model over the processes of a run, in place, layer by layer, and moves it to their devices."""
    mesh = init_device_mesh(args.device.type, (args.world_size,))
    for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # the root too, so that its weights are always shards


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _state_of(optimizer: Any) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """An optimiser's state: this process's tensors by kind, parameter and name, and the numbers."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                kind = "sharded" if isinstance(value, DTensor) else "alike"
                tensors[f"{kind}.{index}.{name}"] = _local(value)
            else:
                numbers.setdefault(str(index), {})[name] = value
    return tensors, numbers


def _state_from(
    stored: Mapping[str, Tensor], numbers: Mapping[str, Mapping[str, Any]], optimizer: Any
) -> dict[int, dict[str, Any]]:
    """The state of an optimiser from what `_state_of` gave."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in numbers.items()}
    for kind in ("sharded", "alike"):
        for key, value in _of_kind(stored, kind).items():
            index, name = key.split(".", 1)
            weight = weights[int(index)]
            entry = value.to(weight.device, copy=True)
            if kind == "sharded":
                size = {"shape": weight.shape, "stride": weight.stride()}
                entry = DTensor.from_local(entry, weight.device_mesh, weight.placements, run_check=False, **size)
            state.setdefault(int(index), {})[name] = entry
    return state


def _chance(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's random numbers, of which dropout takes."""
    states = {"chance.cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states["chance.device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def _of_kind(stored: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """The tensors of a shard whose names begin with a kind, under what follows it."""
    return {name[len(kind) + 1 :]: tensor for name, tensor in stored.items() if name.startswith(f"{kind}.")}
