"""Evaluation: accuracies of a model on tasks, and the choice of a scaling on validation data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from evaluate import Metric
from torch import Tensor
from tqdm.auto import tqdm

from hf_taskvec.evaluation.metrics import Accuracy
from hf_taskvec.evaluation.report import Report, TaskResult
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import Normalize, classify, zero_shot_head
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.vectors.vector import TaskVector


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


def evaluate_individually(
    base: Base, vectors: Mapping[str, TaskVector], tasks: Iterable[Task], *, split: Split = "test"
) -> dict[str, float]:
    """The accuracy of base plus each task's own vector on that task."""
    return {task.name: evaluate(vectors[task.name].apply_to(base), [task], split=split).accuracy for task in tasks}
