"""Steps of Adam on few numbers that decide a tower's weights, on images of several tasks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_taskvec.errors import NonFiniteError, check_count, check_finite_number, check_positive
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.tuning.images import Choice
from hf_taskvec.tuning.objectives import Objective
from hf_taskvec.tuning.tower import Tower


@dataclass(frozen=True)
class Descent:
    """Settings of the steps: Adam with its usual constants, as in AdaMerging (arXiv 2310.02575).

    Attributes:
        start: First value of every coefficient.
        bounds: Smallest and largest coefficient; `None` for none. LoRA merges need more than 1.
        steps: How many steps.
        batch_size: Images of each task in a step, over all processes.
        learning_rate: Adam's.
        seed: Of the order of the images.

    Raises:
        ValueError: If one is out of range.

    Example:
        >>> Descent(steps=100).learning_rate
        0.001
    """

    start: float = 0.3
    bounds: tuple[float, float] | None = (0.0, 1.0)
    steps: int = 500
    batch_size: int = 16
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_finite_number("start", self.start)
        check_positive("learning_rate", self.learning_rate)
        for name, least in (("steps", 1), ("batch_size", 1), ("seed", 0)):
            object.__setattr__(self, name, check_count(name, getattr(self, name), least=least))
        if self.bounds is not None and not self.bounds[0] <= self.start <= self.bounds[1]:
            raise ValueError(f"start must lie within bounds, got {self.start} and {tuple(self.bounds)}")

    def provenance(self) -> dict[str, Any]:
        """Every setting, as provenance keeps it."""
        return dataclasses.asdict(self)


DEFAULTS = Descent()


class Adjustable(Protocol):
    """Weights that depend on a tensor of few values."""

    def set(self, values: Tensor) -> None:
        """Sets the tower's weights by the values."""

    def gradient(self) -> Tensor:
        """The gradient with respect to the values, from that of the tower's weights; float64, on the CPU."""


class Loop:
    """The steps on one set of images: batches by a seed, of which each process takes its share.

    Args:
        tower: The model.
        chosen: The images.
        targets: What each task's images are compared with, (N, …); none for the entropy.
        objective: What is minimised.
        settings: Of the steps.
    """

    def __init__(
        self,
        tower: Tower,
        chosen: Choice,
        targets: Mapping[str, Tensor],
        objective: Objective,
        *,
        settings: Descent,
    ) -> None:
        self.tower, self.samples, self.targets, self.objective = tower, chosen.samples, targets, objective
        self.settings, self.accelerator = settings, tower.accelerator
        self.orders = [
            order(len(sample), settings.batch_size, seed=settings.seed + number)
            for number, sample in enumerate(self.samples)
        ]

    def descend(
        self,
        adjustable: Adjustable,
        values: Tensor,
        *,
        bounds: tuple[float, float] | tuple[Tensor, Tensor] | None,
        progress: bool,
    ) -> tuple[Tensor, list[float]]:
        """The values after the steps, put back into the bounds after each, and the mean loss before each."""
        values = values.detach().double().requires_grad_()
        adam, curve = torch.optim.Adam([values], lr=self.settings.learning_rate), list[float]()
        steps = self.settings.steps
        for step in progress_bar(range(steps), "learning from images", total=steps, shown=progress):
            adjustable.set(values.detach())
            losses, values.grad = self.gradient(adjustable, step)
            curve.append(float(losses.mean()))
            adam.step()
            if bounds is not None:
                values.data.clamp_(*bounds)
        return values.detach(), curve

    def gradient(self, adjustable: Adjustable, step: int) -> tuple[Tensor, Tensor]:
        """The mean losses of the tasks on the step's images, and the gradient of their sum; over all processes."""
        losses = torch.zeros(len(self.samples), dtype=torch.float64)
        for number, sample in enumerate(self.samples):
            rows = next(self.orders[number])
            mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
            if len(mine):
                target = self.targets[sample.task.name][mine] if self.targets else None
                pixels = sample.batch(mine)["pixel_values"]
                losses[number] = self.tower.add_gradient(self.objective, sample.task, pixels, target, size=len(rows))
        gradient = adjustable.gradient()
        self.tower.clear()
        losses, gradient = _summed(losses, gradient, self.accelerator)
        for sample, loss in zip(self.samples, losses.tolist(), strict=True):
            if not math.isfinite(loss):
                raise NonFiniteError(f"the loss of task {sample.task.name!r} is {loss} in step {step}")
        if not gradient.isfinite().all():
            raise NonFiniteError(f"the gradient holds NaN or Inf in step {step}")
        return losses, gradient


def _summed(losses: Tensor, gradient: Tensor, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Losses and gradient added over all processes."""
    if accelerator.num_processes == 1:
        return losses, gradient
    both = torch.cat([losses, gradient.flatten()]).to(accelerator.device)
    both = accelerator.reduce(both, reduction="sum").cpu()
    return both[: len(losses)], both[len(losses) :].view_as(gradient)


def order(count: int, size: int, *, seed: int) -> Iterator[Tensor]:
    """Rows of batch after batch, in a new random order each time all were seen; a ragged rest is left to the next.

    Example:
        >>> batches = order(5, 2, seed=0)
        >>> [len(next(batches)) for _ in range(4)]
        [2, 2, 2, 2]
    """
    generator, size = torch.Generator().manual_seed(seed), min(size, count)
    while True:
        rows = torch.randperm(count, generator=generator)
        yield from rows[: count - count % size].split(size)
