"""Evaluation: accuracies of a model on tasks by its zero-shot head, or its linear ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hf_taskvec.errors import NonFiniteError, check_count, check_known
from hf_taskvec.evaluation.metrics import Accuracy, MetricLike, as_metrics, compute_metrics
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.evaluation.report import Report, check_reference
from hf_taskvec.evaluation.result import TaskResult, finite
from hf_taskvec.evaluation.sharing import summed
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import classify, head_of
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.models.per_task import TaskModels
from hf_taskvec.tasks import Split, Task, as_tasks
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes
from hf_taskvec.weights.names import parameters_of
from hf_taskvec.weights.processes import check_alike, processes

Tasks = Task | str | Iterable[Task | str]


def predict(
    model: Base, task: Task, split: Split = "test", *, batch_size: int = 256, progress: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of a model on a task's split.

    Pixels and the head come from their caches, whatever the model. Under `torchrun` or `accelerate launch`
    the batches are dealt to the processes, and each of them gets the logits of all: call it on every one.

    Args:
        model: A base, or what `TaskVector.apply_to` made of it.
        task: The task.
        split: Which part of it.
        batch_size: Images per forward pass.
        progress: Whether a bar shows up after two seconds.

    Raises:
        NonFiniteError: If the model's logits are not finite.
        ValueError: If processes that work together have other models, tasks or batches.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> logits, labels = predict(load_base(), get_task("digits"), "validation")
        >>> logits.shape, labels.shape
        (torch.Size([139, 10]), torch.Size([139]))
    """
    batch_size = check_count("batch_size", batch_size)
    group = processes()
    with nullcontext() if group is None else group.local_main_process_first():
        pixels = load_pixels(task, split, model.processor.image_processor)
        head = head_of(model, task)
    starts = range(0, len(pixels), batch_size)
    if group is not None:
        check_alike(_facts(model, task, split, batch_size=batch_size, num_images=len(pixels)), "an evaluation")
        starts, progress = starts[group.process_index :: group.num_processes], progress and group.is_main_process
    normalize, logits = Normalize(model), torch.zeros(len(pixels), len(task.class_names))
    with torch.inference_mode():
        for start in progress_bar(starts, f"{task.name} {split}", total=len(starts), shown=progress):
            rows = range(start, min(start + batch_size, len(pixels)))
            images = normalize(pixels.__getitems__(rows)["pixel_values"].to(model.device))
            logits[start : rows.stop] = classify(model.model, head, images).float().cpu()
            if group is None:
                _check_logits(logits[start : rows.stop], model, task)
    if group is not None:
        logits = summed(logits, group)
        _check_logits(logits, model, task)
    return logits, pixels.labels


def evaluate(
    model: Base | TaskModels,
    tasks: Tasks,
    *,
    split: Split = "test",
    batch_size: int = 256,
    metrics: MetricLike | Sequence[MetricLike] = (),
    label: str | None = None,
    scaling: float | None = None,
    zero_shot: Base | Report | Mapping[str, float] | None = None,
    individual: Report | Iterable[Report] | Mapping[str, float] | None = None,
    progress: bool = True,
) -> Report:
    """The accuracy of a model on each task by its zero-shot head; that of a ViT or DINOv2 by its linear ones.

    Of vectors packed as one artefact, `packed.apply_to(base)`, each task gets its own weights.

    Under `torchrun` or `accelerate launch` the images are dealt to the processes, and each of them gets the report of
    all; every one must call it, and the first prints it.

    Args:
        model: A base, or what `TaskVector.apply_to` or `MultiTaskVector.apply_to` made of it.
        tasks: One task or several, or their names.
        split: Which part of them.
        batch_size: Images per forward pass.
        metrics: Further metrics, computed from the same forward pass: names such as "f1" and "per_class_accuracy",
            `evaluate.Metric` objects, or functions of predictions and references; see `as_metrics`.
        label: What to call the model in the report; its name if left out, "edited" if that is the base's too.
        scaling: The scaling the model was made with, for the report.
        zero_shot: To be shown beside the model's accuracies: the base, which is then evaluated too, its report, or
            its accuracies by task.
        individual: Likewise the accuracy of each task's own model, or the reports of these models.
        progress: Whether a bar per task shows up after two seconds;
            `huggingface_hub.utils.disable_progress_bars("hf_taskvec")` hides all.

    Raises:
        ValueError: If there are no tasks.
        DataError: If two tasks have one name, or a task's data do not fit it.
        UnknownNameError: If there is no task or metric of a name, or the model has no weights for a task.
        TypeError: If the model is no `Base`, or a metric or task is of no known kind.
        NonFiniteError: If the model holds or computes NaN or Inf.

    Example:
        >>> from hf_taskvec import load_base
        >>> base = load_base()
        >>> report = evaluate(base, "digits", split="validation", metrics="f1", individual={"digits": 0.9})
        >>> report.results[0].num_images, list(report.results[0].metrics)
        (139, ['f1'])
    """
    tasks, chosen = as_tasks(tasks, needed_by="evaluate"), as_metrics(metrics)
    if isinstance(model, TaskModels):
        for task in tasks:
            model.check(task.name)
    else:
        check_base(model)
    check_reference(individual, "individual")
    if scaling is not None:
        scaling = finite(scaling, "scaling")
    if not isinstance(zero_shot, Base):
        check_reference(zero_shot, "zero_shot")
    else:
        zero_shot = evaluate(zero_shot, tasks, split=split, batch_size=batch_size, progress=progress)
    results = []
    for task in tasks:
        own = model.for_task(task.name) if isinstance(model, TaskModels) else model
        own.model.eval()
        results.append(_measure(own, task, split, batch_size=batch_size, metrics=chosen, progress=progress))
    name = label or _label(model, zero_shot)
    report = Report(name, split, tuple(results), scaling, transductive=model.transductive)
    return report.with_references(zero_shot=zero_shot, individual=individual)


def evaluate_individually(
    base: Base,
    vectors: Mapping[str, TaskVector] | Iterable[TaskVector],
    tasks: Tasks,
    *,
    split: Split = "test",
    batch_size: int = 256,
    progress: bool = True,
) -> dict[str, float]:
    """The accuracy of base plus each task's own vector on that task.

    Args:
        base: The model the vectors are added to.
        vectors: Vectors by the names of their tasks, or vectors whose provenance tells their tasks.
        tasks: One task or several, or their names.
        split: Which part of them.
        batch_size: Images per forward pass.
        progress: Whether a bar per task shows up after two seconds.

    Raises:
        UnknownNameError: If a task has no vector.
        ValueError: If two vectors are of one task.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> base = load_base()
        >>> vector = TaskVector.from_models(base.model, base.model)
        >>> list(evaluate_individually(base, {"digits": vector}, "digits", split="validation"))
        ['digits']
    """
    tasks = as_tasks(tasks)
    by_task = vectors_by_task(vectors, tasks)
    options: dict[str, Any] = {"split": split, "batch_size": batch_size, "progress": progress}
    return {task.name: evaluate(by_task[task.name].apply_to(base), [task], **options).accuracy for task in tasks}


def vectors_by_task(
    vectors: Mapping[str, TaskVector] | Iterable[TaskVector], tasks: Iterable[Task]
) -> dict[str, TaskVector]:
    """The vector of each task, by its name, or by its provenance where vectors come without names.

    Raises:
        UnknownNameError: If a task has no vector.
        ValueError: If two vectors are of one task.

    Example:
        >>> import torch
        >>> from hf_taskvec import VectorInfo, get_task
        >>> vector = TaskVector({"w": torch.ones(2)}, VectorInfo(task="digits"))
        >>> list(vectors_by_task([vector], [get_task("digits")]))
        ['digits']
    """
    if isinstance(vectors, Mapping):
        by_task = dict(vectors)
    else:
        by_task = {}
        for vector in vectors:
            if vector.info.task in by_task:
                raise ValueError(f"two vectors are of task {vector.info.task!r}; pass them by name: {{task: vector}}")
            if vector.info.task is not None:
                by_task[vector.info.task] = vector
    for task in tasks:
        check_known("vector of task", task.name, by_task)
    return by_task


def check_base(model: object) -> None:
    """Raises a `TypeError` that names the remedy unless the model is a `Base`.

    Example:
        >>> from hf_taskvec import load_base
        >>> check_base(load_base())
    """
    if isinstance(model, Base):
        return
    kind = type(model).__name__
    if isinstance(model, TaskVector) or (hasattr(model, "apply_to") and hasattr(model, "for_task")):
        remedy = "add it to its base first: vector.apply_to(base)"
    elif isinstance(model, nn.Module):
        remedy = "it has no processor: wrap it as Base(model, processor, name), or load it by load_base(folder_or_id)"
    else:
        remedy = "load one by load_base(folder_or_id)"
    raise TypeError(f"what is evaluated must be a Base, a model with its processor, got a {kind}; {remedy}")


def _measure(
    model: Base, task: Task, split: Split, *, batch_size: int, metrics: Sequence[MetricLike], progress: bool
) -> TaskResult:
    logits, labels = predict(model, task, split, batch_size=batch_size, progress=progress)
    predictions = logits.argmax(dim=-1)
    scores = Accuracy().compute(predictions=predictions, references=labels)
    further = compute_metrics(metrics, predictions, labels, class_names=task.class_names)
    skipped = len(load_pixels(task, split, model.processor.image_processor).skipped)
    return TaskResult(task.name, scores["accuracy"], scores["num_images"], metrics=further, num_skipped=skipped)


def _facts(model: Base, task: Task, split: Split, *, batch_size: int, num_images: int) -> dict[str, object]:
    """What processes must have in common to evaluate together."""
    weights = fingerprint(tensor_hashes(parameters_of(model.model)))[:16]
    named = {"the task": task.name, "its part": split, "its number of images": num_images}
    texts = {"the classes": task.class_names, "the prompts": task.templates}
    return named | texts | {"batch_size": batch_size, "the model": model.name, "its weights' hash": weights}


def _label(model: Base | TaskModels, zero_shot: object) -> str:
    """The model's name, unless that is its base's or the name of what stands beside it."""
    if isinstance(model, TaskModels):
        return model.name
    beside = isinstance(zero_shot, Report) and zero_shot.model == model.name
    return "edited" if model.edited or beside else model.name


def _check_logits(logits: Tensor, model: Base, task: Task) -> None:
    if logits.isfinite().all():
        return
    broken = [name for name, value in model.model.named_parameters() if not value.isfinite().all()]
    cause = f"its parameter {broken[0]!r} does" if broken else f"it overflows in {model.model.dtype}"
    raise NonFiniteError(f"the logits of {model.name!r} on {task.name!r} hold NaN or Inf: {cause}", details=broken)
