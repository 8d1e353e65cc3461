"""The scaling of a vector: tried on validation data, and chosen."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hf_taskvec.evaluation.accuracy import Tasks, check_base, evaluate
from hf_taskvec.evaluation.criteria import (
    Criterion,
    Individual,
    check_criterion,
    individual_accuracies,
    score,
    warn_of_few_images,
)
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.result import finite
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, as_tasks
from hf_taskvec.vectors.application import named_as
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import added

logger = logging.getLogger(__name__)

# Vectors of full fine-tuning want 0.2 to 2, merges of LoRA adapters 3.5 to 4.5 (iso-merging's authors).
SCALINGS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)


class ChosenScaling(float):
    """A scaling that was chosen on validation data: a number that also tells how.

    Args:
        value: The scaling.
        score: What it reached, of what the criterion maximises.
        criterion: What was maximised.
        at_end: Whether it is the "smallest" or the "largest" that was tried, beyond which a better one may lie.

    Example:
        >>> chosen = ChosenScaling(5.0, score=0.61, at_end="largest")
        >>> chosen, 2 * chosen, chosen.at_end
        (5.0, 10.0, 'largest')
    """

    score: float | None
    criterion: Criterion
    at_end: Literal["smallest", "largest"] | None

    def __new__(
        cls,
        value: float,
        *,
        score: float | None = None,
        criterion: Criterion = "accuracy",
        at_end: Literal["smallest", "largest"] | None = None,
    ) -> ChosenScaling:
        """The number, with what is known of the choice."""
        chosen = super().__new__(cls, value)
        chosen.score, chosen.criterion, chosen.at_end = score, criterion, at_end
        return chosen


def scaling_curve(
    base: Base,
    vector: TaskVector,
    tasks: Tasks,
    *,
    scalings: Iterable[float] = SCALINGS,
    split: Split = "validation",
    individual: Individual | None = None,
    batch_size: int = 256,
    progress: bool = True,
) -> dict[float, Report]:
    """A report for each scaling of a vector; one copy of the base is edited in place for all of them.

    Args:
        base: The model the vector is added to; it is left alone.
        vector: A vector of that base.
        tasks: One task or several, or their names.
        scalings: The scalings, in any iterable or array of numbers.
        split: Which part of the tasks.
        individual: As in `choose_scaling`, for the reports' normalised accuracies.
        batch_size: Images per forward pass.
        progress: Whether bars show up after two seconds.

    Raises:
        ValueError: If there is no scaling, or one is not finite.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> base = load_base()
        >>> vector = TaskVector.from_models(base.model, base.model)
        >>> list(scaling_curve(base, vector, "digits", scalings=[0.5, 1]))
        [0.5, 1.0]
    """
    tasks, factors = as_tasks(tasks), check_scalings(scalings)
    check_base(base)
    own = individual_accuracies(base, individual, tasks, split=split, batch_size=batch_size, progress=progress)
    edited = vector.apply_to(base, scaling=factors[0])
    originals = touched(base, vector)
    options: dict[str, Any] = {
        "split": split,
        "batch_size": batch_size,
        "label": vector.info.label,
        "individual": own,
        "progress": progress,
    }
    reports = {}
    for scaling in progress_bar(factors, "trying scalings", total=len(factors), shown=progress):
        edit(edited, originals, vector, scaling=scaling)
        reports[scaling] = evaluate(edited, tasks, scaling=scaling, **options)
    return reports


def choose_scaling(
    base: Base,
    vector: TaskVector,
    tasks: Tasks,
    *,
    scalings: Iterable[float] = SCALINGS,
    criterion: Criterion = "accuracy",
    individual: Individual | None = None,
    batch_size: int = 256,
    progress: bool = True,
) -> ChosenScaling:
    """The scaling that is best on the tasks' validation parts; the smallest of equals.

    Best is the highest mean accuracy, or the highest mean of accuracies that are each divided by the individual
    model's: much of the literature (TALL masks, TSV-M, Iso-C, LiNeS) maximises the second.
    It is told in the log, and by `at_end` of the result, when the best is the end of the grid; in the log also when
    validation parts are tiny.

    Args:
        base: The model the vector is added to; it is left alone.
        vector: A vector of that base.
        tasks: One task or several, or their names.
        scalings: The scalings to try, in any iterable or array of numbers; by default up to 5, which merges of LoRA
            adapters need.
        criterion: What is maximised, "accuracy" or "normalised".
        individual: For "normalised": the validation accuracy of each task's own model, by task or in reports; or the
            tasks' own vectors, which are then measured here.
        batch_size: Images per forward pass.
        progress: Whether bars show up after two seconds.

    Raises:
        ValueError: If there is no scaling, one is not finite, or "normalised" lacks an individual accuracy.
        UnknownNameError: If there is no such criterion.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> base = load_base()
        >>> vector = TaskVector.from_models(base.model, base.model)
        >>> choose_scaling(base, vector, "digits", scalings=[0.5, 1.0])
        0.5
    """
    tasks, scalings = as_tasks(tasks), check_scalings(scalings)
    check_base(base)
    check_criterion(criterion, individual)
    options: dict[str, Any] = {"individual": individual, "batch_size": batch_size, "progress": progress}
    curve = scaling_curve(base, vector, tasks, scalings=scalings, **options)
    return best_scaling(curve, criterion=criterion)


def best_scaling(curve: Mapping[float, Report], *, criterion: Criterion = "accuracy") -> ChosenScaling:
    """The scaling of a curve with the highest mean accuracy; the smallest of equals.

    Args:
        curve: Reports by scaling.
        criterion: What is maximised; "normalised" needs reports with individual accuracies.

    Raises:
        ValueError: If the curve is empty, or a report lacks what the criterion needs.

    Example:
        >>> from hf_taskvec import Report, TaskResult
        >>> def report(*accuracies):
        ...     pairs = zip("ab", accuracies, (0.98, 0.40))
        ...     results = [TaskResult(task, value, 100, individual=own) for task, value, own in pairs]
        ...     return Report("m", "validation", results)
        >>> curve = {0.2: report(0.90, 0.28), 0.3: report(0.80, 0.20), 0.4: report(0.85, 0.32), 0.5: report(0.1, 0.1)}
        >>> best_scaling(curve), best_scaling(curve, criterion="normalised")
        (0.2, 0.4)
    """
    if not curve:
        raise ValueError("a curve must hold at least one scaling, got none")
    scores = {scaling: score(report, criterion) for scaling, report in curve.items()}
    best = min(scores, key=lambda scaling: (-scores[scaling], scaling))
    at_end: Literal["smallest", "largest"] | None = None
    if len(curve) > 1 and best in (min(curve), max(curve)):
        at_end, other = ("smallest", "smaller") if best == min(curve) else ("largest", "larger")
        logger.warning("the best scaling, %g, is the %s that was tried; a %s one may be better", best, at_end, other)
    warn_of_few_images(curve[best])
    return ChosenScaling(best, score=scores[best], criterion=criterion, at_end=at_end)


def check_scalings(scalings: Iterable[float], what: str = "scalings") -> list[float]:
    """The scalings as floats, each once.

    Raises:
        TypeError: If they are no numbers.
        ValueError: If there is none, or one is not finite.

    Example:
        >>> check_scalings(range(1, 3))
        [1.0, 2.0]
    """
    values = scalings.tolist() if isinstance(scalings, (np.ndarray, Tensor)) else scalings
    values = list(values) if isinstance(values, Iterable) else [None]
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        raise TypeError(f"{what} must be numbers, such as [0.1, 0.2] or np.arange(0.1, 1, 0.1), got {scalings!r:.80}")
    if not values:
        raise ValueError(f"{what} must hold at least one value")
    return list(dict.fromkeys(finite(value, what) for value in values))


@torch.no_grad()
def edit(model: Base, originals: Mapping[str, Tensor], vector: TaskVector, *, scaling: float = 1.0) -> None:
    """Sets a model's parameters, in place, to the originals plus a scaled vector, whatever they were before.

    Args:
        model: The model that is edited.
        originals: The base's parameters that the vector changes, under canonical names; see `touched`.
        vector: The vector.
        scaling: Its factor.

    Example:
        >>> from hf_taskvec import load_base
        >>> base = load_base()
        >>> vector = TaskVector({"logit_scale": torch.ones(())})
        >>> edited = vector.apply_to(base, scaling=0)
        >>> edit(edited, touched(base, vector), vector, scaling=0.5)
        >>> round((edited.model.logit_scale - base.model.logit_scale).item(), 3)
        0.5
    """
    for name, parameter in touched(model, vector).items():
        parameter.copy_(added(name, originals[name], vector.deltas[name], scaling))


def touched(model: Base, vector: TaskVector) -> dict[str, Tensor]:
    """The parameters of a model that a vector changes, under canonical names.

    Example:
        >>> from hf_taskvec import load_base
        >>> list(touched(load_base(), TaskVector({"logit_scale": torch.ones(())})))
        ['logit_scale']
    """
    named = named_as(vector, model.model)
    return {name: parameter for name, parameter in named.items() if name in vector.deltas}
