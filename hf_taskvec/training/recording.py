"""What a training run leaves behind: the vectors of its epochs and steps, and how its gradients turned."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy

from hf_taskvec.vectors.files import save_vector
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import write_bytes

if TYPE_CHECKING:
    from hf_taskvec.training.trainer import TaskVectorTrainer

VECTORS = "vectors"
GRADIENT_VECTORS = "gradients"
FULL_GRADIENTS = "full_gradients"  # which `measure_dynamics` adds
GRADIENTS = "epoch_gradients.safetensors"


class GradientTracker:
    """The gradient summed over the steps of an epoch, before clipping, and that of the first epoch."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}
        self.running: dict[str, Tensor] = {}
        self.steps = 0
        self.norms = 0.0

    def add(self, gradients: dict[str, Tensor], *, norm: float, factor: float) -> None:
        """Adds one step's gradients times `factor`, whose norm is `norm`."""
        if not self.running:
            self.running = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
        torch._foreach_add_([self.running[name] for name in gradients], list(gradients.values()), alpha=factor)
        self.steps += 1
        self.norms += norm

    def vector(self, info: VectorInfo) -> TaskVector:
        """The sum of the epoch's gradients so far, the mean of their norms among its settings."""
        settings = {**info.settings, "mean_gradient_norm": self.norms / max(self.steps, 1), "steps": self.steps}
        return TaskVector(dict(self.running), dataclasses.replace(info, kind="gradient", settings=settings))

    def end_epoch(self, vector: TaskVector) -> dict[str, float]:
        """The mean norm of the steps' gradients, the norm of their sum and its cosines; starts the next epoch.

        `cosine_to_vector` is that of the descent direction, the negative gradient.
        """
        gradient = TaskVector(self.running)
        self.first = self.first or {name: tensor.clone() for name, tensor in self.running.items()}
        logs = {
            "mean_gradient_norm": self.norms / max(self.steps, 1),
            "epoch_gradient_norm": gradient.norm(),
            "cosine_to_first_epoch": gradient.cosine(TaskVector(self.first)),
            "cosine_to_vector": -gradient.cosine(vector),
        }
        for tensor in self.running.values():
            tensor.zero_()
        self.steps, self.norms = 0, 0.0
        return logs

    def save(self, folder: Path) -> None:
        """Writes the state into a checkpoint folder."""
        state = {f"first.{name}": tensor for name, tensor in self.first.items()}
        state |= {f"running.{name}": tensor for name, tensor in self.running.items()}
        state["counts"] = torch.tensor([self.steps, self.norms], dtype=torch.float64)
        write_bytes(folder / GRADIENTS, save({name: tensor.cpu().contiguous() for name, tensor in state.items()}))

    def load(self, folder: Path, device: torch.device) -> None:
        """Reads the state from a checkpoint folder."""
        state = load_file(folder / GRADIENTS, device=str(device))
        steps, self.norms = state.pop("counts").tolist()
        self.steps = int(steps)
        for name, tensor in state.items():
            group, parameter = name.split(".", 1)
            (self.first if group == "first" else self.running)[parameter] = tensor


class Recorder(TrainerCallback):
    """Saves the vector at epoch ends and chosen steps, logs the gradients' course, and resumes with the run."""

    def __init__(self, trainer: TaskVectorTrainer) -> None:
        self.trainer = trainer
        self.pushed_step: int | None = None
        self.steps: dict[int, str] = {}  # optimiser step -> name of its vector

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts afresh, or where the checkpoint stopped."""
        trainer = self.trainer
        trainer.gradients = GradientTracker()
        per_epoch = math.ceil(state.max_steps / max(state.num_train_epochs, 1))
        fractions = {
            max(1, round(fraction * per_epoch)): f"fraction-{fraction:g}" for fraction in args.record_fractions
        }
        self.steps = fractions | {step: f"step-{step}" for step in args.record_steps}
        if trainer.resumed_from is not None:
            if args.track_gradients:
                trainer.gradients.load(trainer.resumed_from, args.device)
        elif args.should_save:
            for name in (VECTORS, GRADIENT_VECTORS, FULL_GRADIENTS):
                shutil.rmtree(Path(str(args.output_dir)) / name, ignore_errors=True)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Chooses the epoch's shuffling."""
        self.trainer.sampler.epoch = math.floor((state.epoch or 0.0) + 1e-6)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves the vector of a chosen step."""
        if state.global_step in self.steps:
            self.trainer.record(self.steps[state.global_step])

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves the epoch's vector and logs its gradient."""
        trainer = self.trainer
        if args.record_epochs:
            trainer.record(epoch_name(round(state.epoch or 0)))
        if args.track_gradients and trainer.gradients.running:
            if args.record_gradients and args.should_save:
                gradient = trainer.gradients.vector(trainer.vector_info())
                save_vector(
                    gradient, Path(str(args.output_dir)) / GRADIENT_VECTORS / epoch_name(round(state.epoch or 0))
                )
            trainer.log(trainer.gradients.end_epoch(trainer.task_vector()))
        if args.hub_strategy != HubStrategy.END:
            self._push(args, state)

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Publishes the final vector if asked."""
        self._push(args, state)

    def _push(self, args: Any, state: TrainerState) -> None:
        if args.push_to_hub and state.global_step != self.pushed_step:
            self.trainer.push_to_hub(f"Epoch {state.epoch:g}")
            self.pushed_step = state.global_step

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Adds the gradients' course to the checkpoint."""
        if args.should_save and self.trainer.args.track_gradients:
            self.trainer.gradients.save(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def epoch_name(epoch: int) -> str:
    """Folder name of an epoch's vector."""
    return f"epoch-{epoch}"
