"""The choice of one weight per vector of a sum, on validation data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from hf_taskvec.errors import check_positive
from hf_taskvec.evaluation.accuracy import Tasks, check_base, evaluate
from hf_taskvec.evaluation.criteria import (
    Accuracies,
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
from hf_taskvec.evaluation.scalings import check_scalings, choose_scaling, edit, touched
from hf_taskvec.merging import merge
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task, as_tasks
from hf_taskvec.vectors.vector import TaskVector


def choose_weights(
    base: Base,
    vectors: Sequence[TaskVector],
    tasks: Tasks,
    *,
    start: float | None = None,
    steps: Iterable[float] = (0.2, 0.1),
    criterion: Criterion = "accuracy",
    individual: Individual | None = None,
    batch_size: int = 256,
    progress: bool = True,
) -> list[float]:
    """One weight per vector of their sum: coordinate ascent on the criterion over the tasks' validation parts.

    A vector that harms other tasks more than it helps its own gets less weight than the others, which one scaling for
    all cannot do. AdaMerging (arXiv 2310.02575) learns such task-wise coefficients without labels.
    Pass the result to `merge(vectors, "task_arithmetic", weights=…)`, whose scaling is then 1.

    Args:
        base: The model the vectors are added to.
        vectors: Vectors of that base.
        tasks: The tasks whose accuracies are averaged, or their names.
        start: Every vector's first weight; by default the best scaling of the plain sum.
        steps: In each round, every weight in turn goes up by the round's step, or else down, as long as that is better.
        criterion: What is maximised, "accuracy" or "normalised"; see `choose_scaling`.
        individual: For "normalised", as in `choose_scaling`; by default the accuracies of `vectors` on their own
            tasks, which their provenance must tell.
        batch_size: Images per forward pass.
        progress: Whether bars show up after two seconds.

    Raises:
        ValueError: If a step is not positive.
        UnknownNameError: If there is no such criterion, or it needs the vector of a task that has none.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> base = load_base()
        >>> vector = TaskVector.from_models(base.model, base.model)
        >>> choose_weights(base, [vector, vector], "digits", start=0.3, steps=[0.2])
        [0.3, 0.3]
    """
    vectors, tasks, steps = list(vectors), as_tasks(tasks), check_scalings(steps, "steps")
    for step in steps:
        check_positive("steps", step)
    start = None if start is None else finite(start, "start")
    check_base(base)
    check_criterion(criterion, individual or vectors)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    accuracies = (
        individual_accuracies(base, individual or vectors, tasks, **options) if criterion == "normalised" else None
    )
    total = merge(vectors, "task_arithmetic")
    if start is None:
        start = choose_scaling(base, total, tasks, criterion=criterion, individual=accuracies, **options)
    search = _Search(base, total, vectors, criterion, lambda model: _report(model, tasks, accuracies, batch_size))
    weights = [start] * len(vectors)
    first = search.report(weights)
    warn_of_few_images(first)
    best = score(first, criterion)
    rounds = [(step, index) for step in steps for index in range(len(vectors))]
    for step, index in progress_bar(rounds, "choosing weights", total=len(rounds), shown=progress):
        up, best = search.climb(weights, best, index=index, change=step)
        weights, best = (up, best) if up != weights else search.climb(weights, best, index=index, change=-step)
    return weights


class _Search:
    """A copy of the base that is edited in place for every choice of weights.

    Args:
        base: The model, which is left alone.
        total: The sum of the vectors.
        vectors: The vectors.
        criterion: What is maximised.
        measure: Gives the report of the edited model.
    """

    def __init__(
        self,
        base: Base,
        total: TaskVector,
        vectors: Sequence[TaskVector],
        criterion: Criterion,
        measure: Callable[[Base], Report],
    ) -> None:
        self.vectors, self.criterion, self.measure = vectors, criterion, measure
        self.model = total.apply_to(base, scaling=0.0)
        self.originals = touched(base, total)

    def climb(self, weights: list[float], best: float, *, index: int, change: float) -> tuple[list[float], float]:
        """Changes one weight, not below 0, as long as the score grows; the weights and their score."""
        while True:
            tried = [*weights]
            tried[index] = round(max(0.0, tried[index] + change), 6)
            if tried == weights or (reached := score(self.report(tried), self.criterion)) <= best:
                return weights, best
            weights, best = tried, reached

    def report(self, weights: Sequence[float]) -> Report:
        """The report of the base plus the weighted sum."""
        edit(self.model, self.originals, merge(self.vectors, "task_arithmetic", weights=weights))
        return self.measure(self.model)


def _report(model: Base, tasks: Sequence[Task], individual: Accuracies | None, batch_size: int) -> Report:
    return evaluate(model, tasks, split="validation", batch_size=batch_size, individual=individual, progress=False)
