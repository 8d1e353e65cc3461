"""Gradient task vectors: −η∇L of the exact full-batch loss, taken directly and never by subtracting weights."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_taskvec.errors import NonFiniteError, check_count, check_finite_number, check_positive
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.pixels import PixelDataset, keep_batch, load_pixels
from hf_taskvec.tasks.registry import as_tasks
from hf_taskvec.training.full_batch import check_deterministic, check_dtype
from hf_taskvec.training.plan import base_plan, task_plan, vector_of
from hf_taskvec.vectors.info import VectorInfo, library_versions
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import scaled_sum
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.names import canonical, parameters_of


def gradient_vector(
    base: Base,
    task: Task | str | Sequence[Task | str],
    *,
    learning_rate: float,
    epochs: int = 1,
    weights: Sequence[float] | None = None,
    include_projection: bool = False,
    trainable_parameters: Sequence[str] = ("*",),
    batch_size: int = 256,
    progress: bool = False,
) -> TaskVector:
    """The task vector −η∇L of full-batch gradient descent, exact and without an optimiser (arXiv 2508.16082).

    ∇L is the gradient of the mean loss over the training images; the ragged last batch and several processes change
    nothing. Batches are added in float64, so a step far below the weights' own rounding keeps its precision. Beside the
    model there is one gradient in memory.

    Args:
        base: The model, in float32 or float64.
        task: A task or a registered task's name, or several: then the loss is the sum of theirs, each times its weight.
        learning_rate: The step size η.
        epochs: Full-batch steps k: the result is −η times the sum of the gradients along the way. For several tasks
            with weights 1/T these are k epochs of joint training on the mean loss.
        weights: One factor per task; 1 each if left out.
        include_projection: Whether the vector covers `visual_projection`.
        trainable_parameters: Patterns of the parameters the vector covers, as in `TaskVectorConfig`.
        batch_size: Images per pass and process; it changes time and memory only.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If a setting is out of range, the loss is no deterministic function of the weights, or the model has
            no text tower.
        DataError: If there is no task.
        NonFiniteError: If a loss or gradient is NaN or Inf; the batch is named.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> from hf_taskvec.tasks.subsets import subset
        >>> vector = gradient_vector(load_base(), subset(get_task("digits"), max_train=8), learning_rate=0.1)
        >>> vector.info.kind, vector.info.num_images
        ('gradient', 8)
    """
    tasks = as_tasks(task, needed_by="gradient_vector")
    factors = [1.0] * len(tasks) if weights is None else [float(weight) for weight in weights]
    _check_settings(tasks, factors, learning_rate)
    epochs, batch_size = check_count("epochs", epochs), check_count("batch_size", batch_size)
    base.check_zero_shot("gradient_vector")
    check_deterministic(base.tower)
    check_dtype(base)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), dataloader_config=DataLoaderConfiguration(even_batches=False)
    )
    data = [load_pixels(each, "train", base.processor.image_processor) for each in tasks]
    classifier = ImageClassifier(base, tasks[0], include_projection=include_projection).eval()
    classifier.freeze_except(trainable_parameters)
    if epochs == 1:  # no weight moves, so none is copied
        _share_weights(classifier, base)
    classifier.to(accelerator.device)
    total = GradientSum(classifier)
    for epoch in range(epochs):
        for each, pixels, factor in zip(tasks, data, factors, strict=True):
            classifier.head = zero_shot_head(base, each.class_names, each.templates).to(classifier.head)
            total.add_task(
                classifier,
                pixels,
                factor=factor,
                where=each.name,
                batch_size=batch_size,
                accelerator=accelerator,
                progress=progress,
            )
        if epoch + 1 < epochs:
            _move(classifier, base, total, learning_rate=learning_rate, accelerator=accelerator)
    place, dtype = base.device, next(base.model.parameters()).dtype
    deltas = {name: sums.mul_(-learning_rate).to(place, dtype) for name, sums in total.reduced(accelerator)}
    info = _info(base, tasks, data, factors, learning_rate, epochs, sorted(deltas), include_projection)
    return TaskVector(deltas, info)


def gradient_stack(
    base: Base,
    tasks: Task | str | Iterable[Task | str],
    *,
    learning_rate: float = 1.0,
    output_dir: str | os.PathLike[str],
    include_projection: bool = False,
    trainable_parameters: Sequence[str] = ("*",),
    batch_size: int = 256,
    progress: bool = False,
) -> dict[str, TaskVector]:
    """The gradient vector of each task, written to `output_dir/<task>` and memory-mapped.

    A vector that is there is read if base, task and settings are those it was made with. See `gradient_vector`; the
    stack is what `hf_taskvec.theory.dynamics` reads geometry from.

    Raises:
        SettingsDifferError: If a vector there was made with other settings, or from another base or other data.

    Example:
        >>> import tempfile
        >>> from hf_taskvec import get_task, load_base
        >>> from hf_taskvec.tasks.subsets import subset
        >>> tasks = [subset(get_task(name), max_train=8) for name in ("digits", "shapes")]
        >>> sorted(gradient_stack(load_base(), tasks, output_dir=tempfile.mkdtemp()))
        ['digits', 'shapes']
    """
    settings: dict[str, Any] = {
        "learning_rate": learning_rate,
        "include_projection": include_projection,
        "trainable_parameters": list(trainable_parameters),
    }
    origin, stack = base_plan(base), {}
    for task in as_tasks(tasks):
        make = partial(gradient_vector, base, task, **settings, batch_size=batch_size, progress=progress)
        plan = settings | origin | task_plan(task.provenance())
        stack[task.name] = vector_of(Path(output_dir) / task.name, plan, make)
    return stack


def descent_of(
    vector: TaskVector, base: Base, task: Task, *, batch_size: int = 256, progress: bool = False
) -> TaskVector:
    """−∇L of a task at a base, for the parameters that a vector covers."""
    return gradient_vector(
        base,
        task,
        learning_rate=1.0,
        include_projection=vector.info.include_projection,
        trainable_parameters=list(vector.deltas),
        batch_size=batch_size,
        progress=progress,
    )


class GradientSum:
    """Adds up gradients in float64 as the backward pass produces them; no gradient is held in the model's own dtype.

    Args:
        model: The model whose trainable parameters are differentiated.
    """

    def __init__(self, model: nn.Module) -> None:
        trained = canonical((name, p) for name, p in model.named_parameters() if p.requires_grad)
        self.sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in trained.items()}
        self.factor = 1.0
        self.probe: Tensor | float = 0.0  # finite as long as every gradient is
        self.hooks = [p.register_post_accumulate_grad_hook(partial(self._take, name)) for name, p in trained.items()]

    def _take(self, name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            self.sums[name].add_(gradient, alpha=self.factor)
            self.probe = self.probe + gradient.sum()

    def add_task(
        self,
        classifier: nn.Module,
        pixels: PixelDataset,
        *,
        factor: float,
        where: str,
        batch_size: int,
        accelerator: Accelerator,
        progress: bool = False,
    ) -> None:
        """Adds `factor` times the gradient of the mean loss over `pixels`, this process's share of the batches."""
        loader = accelerator.prepare(DataLoader(pixels, batch_size=batch_size, collate_fn=keep_batch))  # type: ignore[arg-type]
        self.factor = factor / len(pixels)
        bar = tqdm(loader, desc=f"gradient of {where}", disable=not progress, leave=False)
        for number, batch in enumerate(bar):
            logits = classifier(batch["pixel_values"])["logits"]
            functional.cross_entropy(logits, batch["labels"], reduction="sum").backward()
            if not math.isfinite(float(self.probe)):
                place = number * accelerator.num_processes + accelerator.process_index
                images = f"images {place * batch_size} to {min((place + 1) * batch_size, len(pixels)) - 1}"
                raise NonFiniteError(f"the gradient of {where!r} is NaN or Inf in batch {place} ({images})")

    def reduced(self, accelerator: Accelerator) -> Iterable[tuple[str, Tensor]]:
        """Each parameter's sum over all processes; the gradients that are still to come stay where they are."""
        for name, local in self.sums.items():
            yield name, accelerator.reduce(local, reduction="sum") if accelerator.num_processes > 1 else local


def _check_settings(tasks: Sequence[Task], factors: Sequence[float], learning_rate: float) -> None:
    if len(factors) != len(tasks):
        raise ValueError(f"weights must have one factor per task ({len(tasks)}), got {len(factors)}")
    for factor in factors:
        check_finite_number("weights", factor)
    check_positive("learning_rate", learning_rate)


def _share_weights(classifier: ImageClassifier, base: Base) -> None:
    """Lets a classifier use the base's weights instead of its own copies."""
    weights = parameters_of(base.model)
    for name, parameter in canonical(classifier.named_parameters()).items():
        parameter.data = weights[name]


@torch.no_grad()
def _move(
    classifier: ImageClassifier, base: Base, total: GradientSum, *, learning_rate: float, accelerator: Accelerator
) -> None:
    """Sets the weights to the base's minus η times the sum of the gradients so far."""
    before, now = parameters_of(base.model), canonical(classifier.named_parameters())
    for name, gradient in total.reduced(accelerator):
        now[name].copy_(scaled_sum(before[name].to(gradient.device), gradient, -learning_rate))


def _info(
    base: Base,
    tasks: Sequence[Task],
    data: Sequence[PixelDataset],
    factors: Sequence[float],
    learning_rate: float,
    epochs: int,
    names: Sequence[str],
    include_projection: bool,
) -> VectorInfo:
    """Provenance of a gradient vector; several tasks are its parents."""
    weights = parameters_of(base.model)
    hashes = tensor_hashes({name: weights[name] for name in names})

    def info(task: Task | None, num_images: int, factors: Sequence[float]) -> VectorInfo:
        return VectorInfo(
            kind="gradient",
            base=base.name,
            base_revision=base.revision,
            architecture=base.architecture,
            base_hashes=hashes,
            include_projection=include_projection,
            epochs=float(epochs),
            steps=epochs,
            optimizer="sgd",
            learning_rate=learning_rate,
            weight_decay=0.0,
            batch_size=num_images,
            num_images=num_images,
            settings={"full_batch": True, "weights": list(factors)},
            versions=library_versions(),
            **(task.provenance() if task else {}),
        )

    parts = [info(*values) for values in zip(tasks, map(len, data), [[factor] for factor in factors], strict=True)]
    if len(parts) == 1:
        return parts[0]
    return dataclasses.replace(info(None, sum(map(len, data)), factors), parents=tuple(parts))
