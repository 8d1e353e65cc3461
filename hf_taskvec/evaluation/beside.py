"""A base with a vector, evaluated beside the base alone and the tasks' own models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from hf_taskvec.evaluation.accuracy import Tasks, evaluate, evaluate_individually
from hf_taskvec.evaluation.criteria import Criterion, check_criterion
from hf_taskvec.evaluation.metrics import MetricLike
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.scalings import choose_scaling
from hf_taskvec.models.base import Base
from hf_taskvec.models.per_task import TaskModels
from hf_taskvec.tasks import Split, as_tasks
from hf_taskvec.vectors.vector import TaskVector


@runtime_checkable
class PerTask(Protocol):
    """Vectors of several tasks, of which each task gets its own: a `MultiTaskVector`."""

    def for_task(self, task: str) -> TaskVector:
        """The vector of one task."""

    def apply_to(self, base: Base) -> TaskModels:
        """A model for each task."""


def evaluate_beside(
    base: Base,
    vector: TaskVector | PerTask | None,
    tasks: Tasks,
    *,
    scaling: float | None = None,
    criterion: Criterion = "accuracy",
    individual: Sequence[TaskVector] = (),
    metrics: Sequence[MetricLike] = (),
    split: Split = "test",
) -> Report:
    """The report of a base with a vector, with the base's and the tasks' own accuracies beside it.

    Args:
        base: The base.
        vector: A vector of it, or vectors of several tasks packed together; without one the base itself is evaluated.
        tasks: One task or several, or their names.
        scaling: The factor of the vector; chosen on validation data if left out. Packed vectors take none.
        criterion: What the chosen scaling maximises; "normalised" needs `individual`.
        individual: The tasks' own vectors.
        metrics: Further metrics, as for `evaluate`.
        split: Which part of the tasks.

    Raises:
        ValueError: If "normalised" comes without the tasks' own vectors, or packed vectors with a scaling.
        BaseMismatchError: If a vector is of another base.
        UnknownNameError: If a task has no vector of its own among `individual`.

    Example:
        >>> from hf_taskvec import load_base
        >>> base = load_base()
        >>> vector = TaskVector.from_models(base.model, base.model)
        >>> report = evaluate_beside(base, vector, "digits", scaling=1.0, split="validation")
        >>> report.accuracy == report.zero_shot
        True
    """
    tasks, own = as_tasks(tasks), list(individual)
    check_criterion(criterion, own or None)
    report = evaluate(base, tasks, split=split, metrics=metrics)
    if isinstance(vector, PerTask):
        if scaling is not None:
            raise ValueError("vectors of several tasks that were packed together take no scaling")
        report = evaluate(vector.apply_to(base), tasks, split=split, metrics=metrics, zero_shot=report)
    elif vector is not None:
        if scaling is None:
            scaling = choose_scaling(base, vector, tasks, criterion=criterion, individual=own or None)
        model, label = vector.apply_to(base, scaling=scaling), f"{vector.info.label} ({scaling:g})"
        report = evaluate(model, tasks, split=split, metrics=metrics, label=label, scaling=scaling, zero_shot=report)
    if own:
        report = report.with_references(individual=evaluate_individually(base, own, tasks, split=split))
    return report
