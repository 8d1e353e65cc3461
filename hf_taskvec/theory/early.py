"""Which epoch of each recorded run to merge: the early-epoch adviser.

Merging models after one epoch is often as good as merging converged ones (arXiv 2508.16082), and experts that train
less can merge better (arXiv 2506.14126). Which epoch is best depends on the runs: here it is chosen, on validation
images or from the vectors' own course.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from hf_taskvec.errors import DataError, check_fraction, check_known
from hf_taskvec.evaluation.intervals import Interval
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.registry import as_tasks
from hf_taskvec.text import listed
from hf_taskvec.theory.early_search import EpochSearch
from hf_taskvec.theory.gradients import descent_of
from hf_taskvec.training.output import VECTORS
from hf_taskvec.vectors.vector import TaskVector

Criterion = Literal["validation", "gradient", "growth"]
REMEDY = "train with record_epochs=True and read the run with recorded_series"


@dataclass(frozen=True)
class EpochChoice:
    """The epoch to merge of each series.

    Attributes:
        vectors: The chosen vector of each series.
        epochs: Its epochs.
        saved: Share of the optimiser steps of all runs that need not be taken, in [0, 1).
        by: What the choice goes by.
        evidence: For each series one figure per recorded epoch: by `validation` the best accuracy of a merge with it;
            by `gradient` the cosine of that epoch's step with the negative gradient at the base, by `growth` the growth
            of the norm per optimiser step, each as a share of the first epoch's.
        gain: Mean accuracy of the merge minus that of the merge of all last epochs, on validation images that the
            choice has not seen, with its interval; `None` without labels.
        gradient_norms: By `gradient`, the norm of each task's gradient at the base.
    """

    vectors: Mapping[str, TaskVector]
    epochs: Mapping[str, float]
    saved: float
    by: Criterion
    evidence: Mapping[str, tuple[float, ...]]
    gain: Interval | None = None
    gradient_norms: Mapping[str, float] | None = None


def choose_epochs(
    base: Base,
    series: Mapping[str, Sequence[TaskVector]],
    tasks: Task | str | Iterable[Task | str],
    *,
    by: Criterion = "validation",
    method: str = "average",
    scaling: float = 1.0,
    settings: Mapping[str, Any] | None = None,
    rounds: int = 1,
    slack: float = 0.0,
    threshold: float = 0.5,
    batch_size: int = 256,
    progress: bool = False,
) -> EpochChoice:
    """Chooses, for each recorded series of vectors, the epoch to merge; the cheapest of equals.

    By `validation`, merges of common epochs are tried first, then every series on its own for `rounds` rounds, on every
    second validation image of each task; the others give the interval of what the choice gains. The other two look at
    no validation image: the first epochs are kept as long as what an epoch adds is like what the first one added.
    By `gradient` that is the cosine of its step with −∇L at the base, which full-batch descent has at 1 in its first
    epoch; by `growth` it is the growth of the vector's norm per optimiser step. A walk that has lost its direction
    grows with the root of the steps, so that its second epoch adds .41 of the first: `threshold` lies above.

    Args:
        base: The model the vectors are added to; `growth` does not read it.
        series: For each task by name the vectors of its run; their order is that of their epochs.
        tasks: The tasks; `growth` reads only their names.
        by: What the choice goes by.
        method: By `validation`, the merge method; `average` is task arithmetic with 1/T.
        scaling: By `validation`, the factor of the merged vector.
        settings: By `validation`, settings of the method.
        rounds: By `validation`, how often each series is tried on its own; 0 for one common number of epochs.
        slack: By `validation`, the accuracy given up for fewer steps.
        threshold: Without labels, the share of the first epoch's figure that an epoch must keep, in (0, 1].
        batch_size: Images per pass.
        progress: Whether to show progress bars.

    Returns:
        The chosen vectors with the saved share of steps and the evidence.

    Raises:
        DataError: If a series has no recorded epochs, or a validation part too few images to choose and to judge.
        UnknownNameError: If a series belongs to none of the tasks, or `by` is unknown.
        NonFiniteError: If a vector holds NaN or Inf.
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> from hf_taskvec import VectorInfo, load_base
        >>> def after(epochs: int, size: float) -> TaskVector:
        ...     info = VectorInfo("fine-tuned", task="digits", epochs=epochs, steps=40 * epochs)
        ...     return TaskVector({"weight": torch.tensor([size])}, info)
        >>> run = [after(1, 1.0), after(2, 1.8), after(3, 2.0), after(4, 2.1)]
        >>> choice = choose_epochs(load_base(), {"digits": run}, "digits", by="growth")
        >>> choice.epochs["digits"], choice.saved
        (2.0, 0.5)
    """
    check_known("criterion", by, get_args(Criterion))
    check_fraction("threshold", threshold)
    if rounds < 0 or slack < 0 or not math.isfinite(slack):
        raise ValueError(f"rounds and slack must be at least 0, got {rounds} and {slack}")
    chosen_tasks = as_tasks(tasks)
    ordered = check_series(series, chosen_tasks)
    if by == "validation":
        search = EpochSearch(
            base,
            ordered,
            chosen_tasks,
            method=method,
            scaling=scaling,
            settings=settings or {},
            batch_size=batch_size,
            progress=progress,
        )
        picks = search.run(rounds=rounds, slack=slack)
        return _choice(ordered, picks, by, search.evidence(), gain=search.gain(picks))
    figures = {name: growth_rates(run) for name, run in ordered.items()}
    norms: dict[str, float] = {}
    if by == "gradient":
        for task in chosen_tasks:
            descent = descent_of(ordered[task.name][0], base, task, batch_size=batch_size, progress=progress)
            figures[task.name] = step_cosines(ordered[task.name], descent)
            norms[task.name] = descent.norm()
    picks = tuple(_last_like_the_first(figures[name], threshold) for name in ordered)
    return _choice(ordered, picks, by, figures, norms=norms or None)


def recorded_series(run: str | os.PathLike[str]) -> list[TaskVector]:
    """The vectors of the epochs that a run recorded, memory-mapped, in their order.

    Args:
        run: The `output_dir` of a `TaskVectorTrainer` with `record_epochs`.

    Raises:
        DataError: If there are none.

    Example:
        >>> recorded_series("runs/none")
        Traceback (most recent call last):
        hf_taskvec.errors.DataError: runs/none holds no recorded epochs; train with record_epochs=True
    """
    folders = [path for path in (Path(run) / VECTORS).glob("epoch-*") if path.is_dir()]
    if not folders:
        raise DataError(f"{run} holds no recorded epochs; train with record_epochs=True")
    return sorted((TaskVector.from_pretrained(path) for path in folders), key=lambda vector: vector.info.epochs or 0.0)


def check_series(series: Mapping[str, Sequence[TaskVector]], tasks: Sequence[Task]) -> dict[str, list[TaskVector]]:
    """The series in the order of the tasks, each by its epochs.

    Raises:
        DataError: If a task has no series, or a series no recorded epochs, two of the same number or of another task.
        UnknownNameError: If a series belongs to none of the tasks.
    """
    names = [task.name for task in tasks]
    for name in series:
        check_known("task of a series:", name, names)
    if missing := [name for name in names if name not in series] or (["any task"] if not names else []):
        raise DataError(f"there is no series of {listed(missing)}; {REMEDY}")
    ordered = {name: _ordered(name, list(series[name])) for name in names}
    if all(len(run) == 1 for run in ordered.values()):
        raise DataError(f"every series holds one vector, so that there is nothing to choose; {REMEDY}")
    return ordered


def growth_rates(run: Sequence[TaskVector]) -> tuple[float, ...]:
    """How much the norm of a run's vector grew per optimiser step between recorded epochs, as a share of the first.

    Example:
        >>> import torch
        >>> from hf_taskvec import VectorInfo
        >>> run = [TaskVector({"w": torch.tensor([n])}, VectorInfo(epochs=k, steps=k)) for k, n in ((1, 2.0), (2, 3.0))]
        >>> growth_rates(run)
        (1.0, 0.5)
    """
    norms = [0.0, *(vector.norm() for vector in run)]
    steps = [0, *(vector.info.steps or 0 for vector in run)]
    rates = [(norms[k] - norms[k - 1]) / (steps[k] - steps[k - 1]) for k in range(1, len(norms))]
    return _shares(rates)


def step_cosines(run: Sequence[TaskVector], descent: TaskVector) -> tuple[float, ...]:
    """Cosine of each recorded epoch's step with a direction, as a share of the first epoch's.

    Example:
        >>> import torch
        >>> run = [TaskVector({"w": torch.tensor(step)}) for step in ([1.0, 0.0], [1.0, 1.0])]
        >>> step_cosines(run, run[0])
        (1.0, 0.0)
    """
    steps = [run[0], *(later - earlier for earlier, later in pairwise(run))]
    return _shares([step.cosine(descent) for step in steps])


def _shares(values: Sequence[float]) -> tuple[float, ...]:
    """The values as shares of the first; all after it are 0 where the first is not positive."""
    first = values[0]
    return tuple(value / first for value in values) if first > 0 else (1.0, *[0.0] * (len(values) - 1))


def _ordered(name: str, run: list[TaskVector]) -> list[TaskVector]:
    """A series by its epochs, after it has been found to be one run of its task."""
    if not run or any(vector.info.epochs is None or not vector.info.steps for vector in run):
        lack = "has no vectors" if not run else "holds vectors that tell no epochs or steps"
        raise DataError(f"the series of {name!r} {lack}, so it has no recorded epochs; {REMEDY}")
    if other := sorted({str(vector.info.task) for vector in run if vector.info.task not in (None, name)}):
        raise DataError(f"the series of {name!r} holds vectors of {listed(other)}")
    run = sorted(run, key=lambda vector: vector.info.epochs or 0.0)
    for vector in run:
        vector.check_finite()
    for earlier, later in pairwise(run):
        if earlier.info.epochs == later.info.epochs or (earlier.info.steps or 0) >= (later.info.steps or 0):
            raise DataError(
                f"the series of {name!r} is not one run: {earlier.info.epochs:g} epochs are {earlier.info.steps} "
                f"steps, {later.info.epochs:g} epochs {later.info.steps}"
            )
    return run


def _last_like_the_first(figures: Sequence[float], threshold: float) -> int:
    """The last epoch before the first whose figure falls below the threshold."""
    below = (index for index, figure in enumerate(figures) if figure < threshold)
    return next(below, len(figures)) - 1


def _choice(
    series: Mapping[str, Sequence[TaskVector]],
    picks: Sequence[int],
    by: Criterion,
    evidence: Mapping[str, tuple[float, ...]],
    *,
    gain: Interval | None = None,
    norms: Mapping[str, float] | None = None,
) -> EpochChoice:
    vectors = {name: run[pick] for (name, run), pick in zip(series.items(), picks, strict=True)}
    taken = sum(vector.info.steps or 0 for vector in vectors.values())
    whole = sum(run[-1].info.steps or 0 for run in series.values())
    epochs = {name: float(vector.info.epochs or 0.0) for name, vector in vectors.items()}
    return EpochChoice(vectors, epochs, 1 - taken / whole, by, evidence, gain, norms)
