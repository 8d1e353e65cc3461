"""What a training run leaves behind: the vectors of its epochs and steps, and how its gradients turned."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import HubStrategy

from hf_taskvec.training.output import GRADIENT_VECTORS, VECTORS, RunFolder, epoch_name
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import write_bytes

logger = logging.getLogger(__name__)

GRADIENTS = "epoch_gradients.safetensors"
FEW_STEPS = 100  # in a shorter run one step counts


class Recorded(Protocol):
    """A run as its recorder sees it."""

    args: Any
    folder: RunFolder

    def planned_steps(self) -> tuple[int, int]:
        """Optimiser steps of an epoch, and of the whole run."""

    def record(self, name: str) -> None:
        """Saves the vector of this moment under a name."""

    def task_vector(self) -> TaskVector:
        """The vector of this moment."""

    def vector_info(self) -> VectorInfo:
        """Provenance of the vector of this moment."""

    def log(self, logs: dict[str, float]) -> None:
        """Adds numbers to the run's log."""

    def push_to_hub(self, commit_message: str | None = None) -> str | None:
        """Publishes what there is."""


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
        """The sum of the epoch's gradients so far, the mean of their norms in its provenance."""
        mean, settings = self.norms / max(self.steps, 1), {**info.settings, "steps": self.steps}
        info = dataclasses.replace(info, kind="gradient", settings=settings, mean_gradient_norm=mean)
        return TaskVector(self.running, info)

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

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> GradientTracker:
        """Reads the state from a checkpoint folder; without it, or if it is damaged, starts afresh and says so."""
        try:
            return cls()._read(load_file(folder / GRADIENTS, device=str(device)))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            reason = "is damaged" if (folder / GRADIENTS).exists() else "is not there"
            logger.warning(
                "track_gradients: %s %s, so the gradients' course starts afresh: cosine_to_first_epoch is that to the "
                "first epoch from here on (%s)",
                folder / GRADIENTS,
                reason,
                type(error).__name__,
            )
            return cls()

    def _read(self, state: dict[str, Tensor]) -> GradientTracker:
        steps, self.norms = state.pop("counts").tolist()
        self.steps = int(steps)
        for name, tensor in state.items():
            group, parameter = name.split(".", 1)
            {"first": self.first, "running": self.running}[group][parameter] = tensor
        return self


class Recorder(TrainerCallback):
    """Saves the vector at epoch ends and chosen steps, logs the gradients' course, and resumes with the run."""

    warned: ClassVar[bool] = False  # of a first step that moves nothing; in a recipe with many runs once is enough

    def __init__(self, run: Recorded) -> None:
        self.run = run
        self.tracker = GradientTracker()
        self.resumed_from: Path | None = None
        self.pushed_step: int | None = None
        self.steps: dict[str, int] = {}  # name of a vector -> its optimiser step

    def prepare(self) -> None:
        """Finds the steps whose vectors are wanted.

        Raises:
            ValueError: If one lies beyond the end of the run.
        """
        args, self.steps = self.run.args, {}
        if not args.record_steps and not args.record_fractions:
            return
        per_epoch, last = self.run.planned_steps()
        fractions = {f"fraction-{each:g}": max(1, round(each * per_epoch)) for each in args.record_fractions}
        self.steps = fractions | {f"step-{step}": step for step in args.record_steps}
        if late := [name for name, step in self.steps.items() if step > last]:
            raise ValueError(
                f"{', '.join(late)} would never be recorded: the run has {last} optimiser steps, {per_epoch} an epoch; "
                "leave them out of record_steps and record_fractions, or train longer"
            )

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Starts afresh, or where the checkpoint stopped."""
        done = [name for name, step in self.steps.items() if step <= state.global_step]
        if missing := [name for name in done if not (self.run.folder.path / VECTORS / name).is_dir()]:
            told = "%s cannot be recorded any more: the run goes on after step %d"
            logger.warning(told, ", ".join(missing), state.global_step)
        self.tracker = GradientTracker()
        if self.resumed_from is None:
            return
        if args.track_gradients:
            self.tracker = GradientTracker.load(self.resumed_from, args.device)
        epoch = state.epoch or 0.0
        if epoch >= 1 and math.isclose(epoch, round(epoch), abs_tol=1e-6):  # saved by its last step, before its end
            recorded = not args.record_epochs or (self.run.folder.path / VECTORS / epoch_name(epoch)).is_dir()
            if not recorded or self.tracker.steps:
                self._keep_epoch(args, state)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Chooses the epoch's permutation where Transformers does not reach the sampler.

        After a resume in the middle of an epoch with several processes the data loader is wrapped once more than it
        looks for; the one that callbacks get is not, and has the same sampler.
        """
        if (loader := kwargs.get("train_dataloader")) is not None and hasattr(loader, "set_epoch"):
            loader.set_epoch(math.floor((state.epoch or 0.0) + 1e-6))

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tells a first step that moves nothing, of a short run as a warning, once in a process."""
        optimizer = kwargs.get("optimizer")
        if not state.is_world_process_zero or state.global_step > 0 or optimizer is None:
            return
        if not any(group["lr"] for group in optimizer.param_groups):
            warn = state.max_steps < FEW_STEPS and not Recorder.warned
            Recorder.warned |= warn
            logger.log(
                logging.WARNING if warn else logging.INFO,
                "the learning rate is 0 in the first of %d steps, where the warm-up starts: it moves nothing; "
                "warmup_steps=0 does without",
                state.max_steps,
            )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves the vector of a chosen step."""
        for name, step in self.steps.items():
            if step == state.global_step:
                self.run.record(name)

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Saves the epoch's vector and logs its gradient."""
        self._keep_epoch(args, state)
        if args.hub_strategy != HubStrategy.END:
            self._push(args, state)

    def _keep_epoch(self, args: Any, state: TrainerState) -> None:
        name = epoch_name(state.epoch or 0)
        if args.record_epochs:
            self.run.record(name)
        if args.track_gradients and self.tracker.running:
            if args.record_gradients and args.should_save:
                path = self.run.folder.claim(f"{GRADIENT_VECTORS}/{name}")
                self.tracker.vector(self.run.vector_info()).save_pretrained(path)
            self.run.log(self.tracker.end_epoch(self.run.task_vector()))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Publishes the final vector if asked."""
        self._push(args, state)

    def save(self, checkpoint: Path) -> None:
        """Adds the gradients' course to a checkpoint."""
        if self.tracker.running:
            self.tracker.save(checkpoint)

    def _push(self, args: Any, state: TrainerState) -> None:
        if args.push_to_hub and state.global_step != self.pushed_step:
            self.run.push_to_hub(f"Epoch {state.epoch:g}")
            self.pushed_step = state.global_step
