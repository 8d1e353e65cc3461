"""The choice of one weight per vector of a sum, on validation data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tqdm.auto import tqdm

from hf_taskvec.errors import check_positive
from hf_taskvec.evaluation.accuracy import evaluate
from hf_taskvec.evaluation.scalings import choose_scaling, edit, touched
from hf_taskvec.merging import merge
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.vectors.vector import TaskVector


def choose_weights(
    base: Base,
    vectors: Sequence[TaskVector],
    tasks: Iterable[Task],
    *,
    start: float | None = None,
    steps: Sequence[float] = (0.2, 0.1),
    batch_size: int = 256,
    progress: bool = False,
) -> list[float]:
    """One weight per vector of their sum: coordinate ascent on the mean accuracy of the tasks' validation parts.

    A vector that harms other tasks more than it helps its own gets less weight than the others, which one scaling for
    all cannot do. AdaMerging (arXiv 2310.02575) learns such task-wise coefficients without labels.
    Pass the result to `merge(vectors, "task_arithmetic", weights=…)`, whose scaling is then 1.

    Args:
        base: The model the vectors are added to.
        vectors: Vectors of that base.
        tasks: The tasks whose accuracies are averaged.
        start: Every vector's first weight; by default the best scaling of the plain sum.
        steps: In each round, every weight in turn goes up by the round's step, or else down, as long as that is better.
        batch_size: Images per forward pass.
        progress: Whether to show a bar.
    """
    vectors, tasks = list(vectors), list(tasks)
    for step in steps:
        check_positive("steps", step)
    total = merge(vectors, "task_arithmetic")
    if start is None:
        start = choose_scaling(base, total, tasks, batch_size=batch_size, progress=progress)
    search = _Search(base, total, vectors, tasks, batch_size=batch_size)
    weights, best = [start] * len(vectors), search.accuracy([start] * len(vectors))
    rounds = [(step, index) for step in steps for index in range(len(vectors))]
    for step, index in tqdm(rounds, desc="choosing weights", disable=not progress, leave=False):
        up, best = search.climb(weights, best, index=index, change=step)
        weights, best = (up, best) if up != weights else search.climb(weights, best, index=index, change=-step)
    return weights


class _Search:
    """A copy of the base that is edited in place for every choice of weights."""

    def __init__(
        self, base: Base, total: TaskVector, vectors: Sequence[TaskVector], tasks: Sequence[Task], *, batch_size: int
    ) -> None:
        self.vectors, self.tasks, self.batch_size = vectors, tasks, batch_size
        self.model = total.apply_to(base, scaling=0.0)
        self.originals = touched(base, total)

    def climb(self, weights: list[float], best: float, *, index: int, change: float) -> tuple[list[float], float]:
        """Changes one weight, not below 0, as long as the accuracy grows; the weights and their accuracy."""
        while True:
            tried = [*weights]
            tried[index] = round(max(0.0, tried[index] + change), 6)
            if tried == weights or (accuracy := self.accuracy(tried)) <= best:
                return weights, best
            weights, best = tried, accuracy

    def accuracy(self, weights: Sequence[float]) -> float:
        """The mean validation accuracy of the base plus the weighted sum."""
        edit(self.model, self.originals, merge(self.vectors, "task_arithmetic", weights=weights))
        return evaluate(self.model, self.tasks, split="validation", batch_size=self.batch_size).accuracy
