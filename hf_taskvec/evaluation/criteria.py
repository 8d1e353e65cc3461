"""What a choice on validation data maximises, and what it rests on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Literal, TypeGuard, get_args

from hf_taskvec.errors import check_known
from hf_taskvec.evaluation.accuracy import Tasks, evaluate_individually
from hf_taskvec.evaluation.report import Report
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split
from hf_taskvec.text import listed
from hf_taskvec.vectors.vector import TaskVector

logger = logging.getLogger(__name__)

FEW_IMAGES = 30  # of fewer, an accuracy's standard error is up to 9 points and more

Criterion = Literal["accuracy", "normalised"]
Accuracies = Mapping[str, float] | Report | Iterable[Report]
Vectors = Mapping[str, TaskVector] | Iterable[TaskVector]
Individual = Accuracies | Vectors


def score(report: Report, criterion: Criterion) -> float:
    """What a criterion maximises: the mean accuracy, or the mean of accuracies divided by the individual models'.

    Args:
        report: The report, with individual accuracies for "normalised".
        criterion: The criterion.

    Raises:
        ValueError: If the report lacks an individual accuracy, or one is 0.
        UnknownNameError: If there is no such criterion.

    Example:
        >>> from hf_taskvec import TaskResult
        >>> score(Report("m", "validation", [TaskResult("a", 0.5, 100, individual=0.8)]), "normalised")
        0.625
    """
    check_known("criterion", criterion, get_args(Criterion))
    if criterion == "accuracy":
        return report.accuracy
    if report.normalized is None:
        lacking = [result.task for result in report.results if not result.individual]
        raise ValueError(
            f"criterion 'normalised' needs each task's individual accuracy above 0; it lacks that of {listed(lacking)}"
        )
    return report.normalized


def check_criterion(criterion: Criterion, individual: Individual | None) -> None:
    """Checks, before any work, that the criterion exists and has what it needs.

    Raises:
        ValueError: If "normalised" comes without individual accuracies.
        UnknownNameError: If there is no such criterion.

    Example:
        >>> check_criterion("normalised", {"digits": 0.9})
    """
    check_known("criterion", criterion, get_args(Criterion))
    if criterion == "normalised" and individual is None:
        raise ValueError(
            "criterion 'normalised' divides by the accuracy of each task's own model; pass individual= the tasks' "
            "vectors by name, or evaluate_individually(base, vectors, tasks, split='validation')"
        )


def individual_accuracies(
    base: Base,
    individual: Individual | None,
    tasks: Tasks,
    *,
    split: Split = "validation",
    batch_size: int = 256,
    progress: bool = True,
) -> Accuracies | None:
    """The accuracies of the tasks' own models: measured on the split if vectors are given, else as given.

    Args:
        base: The model the vectors are added to.
        individual: Accuracies, reports, or the tasks' own vectors.
        tasks: The tasks.
        split: Which part of them.
        batch_size: Images per forward pass.
        progress: Whether bars show up after two seconds.

    Example:
        >>> from hf_taskvec import load_base
        >>> individual_accuracies(load_base(), {"digits": 0.9}, "digits")
        {'digits': 0.9}
    """
    if individual is None or isinstance(individual, (Report, Mapping)):
        given: Individual | None = individual
    else:
        given = list(individual)  # type: ignore[assignment]  # read more than once; a list of either kind
    if not _are_vectors(given):
        return given  # type: ignore[return-value]  # whatever else it is, a report checks
    return evaluate_individually(base, given, tasks, split=split, batch_size=batch_size, progress=progress)


def warn_of_few_images(report: Report) -> None:
    """Tells in the log which tasks have too few images for a choice between close accuracies.

    Example:
        >>> from hf_taskvec import TaskResult
        >>> warn_of_few_images(Report("m", "validation", [TaskResult("a", 0.5, 1000)]))
    """
    few = [f"{result.task!r} ({result.num_images})" for result in report.results if result.num_images < FEW_IMAGES]
    if few:
        logger.warning(
            "the choice rests on few %s images, of %s: differences of some points are chance", report.split, listed(few)
        )


def _are_vectors(individual: Individual | None) -> TypeGuard[Vectors]:
    if individual is None or isinstance(individual, Report):
        return False
    values = list(individual.values() if isinstance(individual, Mapping) else individual)
    return bool(values) and all(isinstance(value, TaskVector) for value in values)
