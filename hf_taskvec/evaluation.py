"""Evaluation: accuracies of a model on tasks, and the choice of a scaling on validation data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from evaluate import Metric
from torch import Tensor
from tqdm.auto import tqdm

from hf_taskvec.base import Base
from hf_taskvec.classifier import Normalize, classify, zero_shot_head
from hf_taskvec.metrics import Accuracy
from hf_taskvec.names import canonical_name
from hf_taskvec.pixels import load_pixels
from hf_taskvec.report import Report, TaskResult
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tensors import scaled_sum
from hf_taskvec.vector import TaskVector

SCALINGS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)


def predict(model: Base, task: Task, split: Split = "test", *, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of a model on a task's split.

    Pixels and the zero-shot head come from their caches, whatever the model.
    """
    pixels = load_pixels(task, split, model.processor.image_processor)
    head = zero_shot_head(model, task.class_names, task.templates)
    normalize, logits = Normalize(model), []
    with torch.inference_mode():
        for start in range(0, len(pixels), batch_size):
            batch = pixels.__getitems__(range(start, min(start + batch_size, len(pixels))))
            images = normalize(batch["pixel_values"].to(model.device))
            logits.append(classify(model.model, head, images).float().cpu())
    return torch.cat(logits), pixels.labels


def evaluate(
    model: Base,
    tasks: Iterable[Task],
    *,
    split: Split = "test",
    batch_size: int = 256,
    metrics: Sequence[Metric] = (),
    label: str | None = None,
    scaling: float | None = None,
    progress: bool = False,
) -> Report:
    """The accuracy of a model on each task by its zero-shot head.

    Args:
        model: A base, or what `TaskVector.apply_to` made of it.
        tasks: The tasks.
        split: Which part of them.
        batch_size: Images per forward pass.
        metrics: Further metrics of class numbers, computed from the same forward pass.
        label: What to call the model in the report, its name if left out.
        scaling: The scaling the model was made with, for the report.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: If there are no tasks.
    """
    tasks = list(tasks)
    if not tasks:
        raise ValueError("evaluate needs at least one task, got none")
    model.model.eval()
    results = []
    for task in tqdm(tasks, desc=f"evaluating on {split}", disable=not progress, leave=False):
        logits, labels = predict(model, task, split, batch_size=batch_size)
        predictions = logits.argmax(dim=-1)
        scores = Accuracy().compute(predictions=predictions, references=labels)
        further: dict[str, Any] = {}
        for metric in metrics:
            further |= metric.compute(predictions=predictions, references=labels)
        results.append(TaskResult(task.name, scores["accuracy"], scores["num_images"], metrics=further))
    return Report(label or model.name, split, tuple(results), scaling)


def scaling_curve(
    base: Base,
    vector: TaskVector,
    tasks: Iterable[Task],
    *,
    scalings: Sequence[float] = SCALINGS,
    split: Split = "validation",
    batch_size: int = 256,
    progress: bool = False,
) -> dict[float, Report]:
    """A report for each scaling of a vector; one copy of the base is edited in place for all of them."""
    tasks = list(tasks)
    if not scalings:
        raise ValueError("scalings must hold at least one value")
    edited = vector.apply_to(base, scaling=scalings[0])
    originals = touched(base, vector)
    reports = {}
    for scaling in tqdm(scalings, desc="trying scalings", disable=not progress, leave=False):
        edit(edited, originals, vector, scaling=scaling)
        reports[scaling] = evaluate(
            edited, tasks, split=split, batch_size=batch_size, label=vector.info.label, scaling=scaling
        )
    return reports


def choose_scaling(
    base: Base,
    vector: TaskVector,
    tasks: Iterable[Task],
    *,
    scalings: Sequence[float] = SCALINGS,
    batch_size: int = 256,
    progress: bool = False,
) -> float:
    """The scaling with the best mean accuracy on the tasks' validation parts; the smallest of equals."""
    curve = scaling_curve(base, vector, tasks, scalings=scalings, batch_size=batch_size, progress=progress)
    return best_scaling(curve)


def best_scaling(curve: Mapping[float, Report]) -> float:
    """The scaling of a curve with the highest mean accuracy; the smallest of equals."""
    return min(curve, key=lambda scaling: (-curve[scaling].accuracy, scaling))


def evaluate_individually(
    base: Base, vectors: Mapping[str, TaskVector], tasks: Iterable[Task], *, split: Split = "test"
) -> dict[str, float]:
    """The accuracy of base plus each task's own vector on that task."""
    return {task.name: evaluate(vectors[task.name].apply_to(base), [task], split=split).accuracy for task in tasks}


@torch.no_grad()
def edit(model: Base, originals: Mapping[str, Tensor], vector: TaskVector, *, scaling: float = 1.0) -> None:
    """Sets a model's parameters, in place, to the originals plus a scaled vector."""
    for name, parameter in touched(model, vector).items():
        parameter.copy_(scaled_sum(originals[name], vector.deltas[name], scaling))


def touched(model: Base, vector: TaskVector) -> dict[str, Tensor]:
    """The parameters of a model that a vector changes, under canonical names."""
    named = model.model.named_parameters()
    return {canonical_name(name): parameter for name, parameter in named if canonical_name(name) in vector.deltas}
