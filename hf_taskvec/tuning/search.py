"""A black-box search over coefficients for several goals at once, by Optuna (the extra `search`)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from hf_taskvec.errors import check_count, check_known
from hf_taskvec.evaluation.accuracy import Tasks, check_base, evaluate
from hf_taskvec.evaluation.plots import plot_front
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.scalings import edit, touched
from hf_taskvec.merging import merge
from hf_taskvec.merging.weighted import EVERYWHERE
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import as_tasks
from hf_taskvec.tuning.preparation import Vectors
from hf_taskvec.vectors.vector import TaskVector

GOALS = ("mean", "worst", "control")


@dataclass(frozen=True)
class Trial:
    """One choice of coefficients and what it reached.

    Attributes:
        coefficients: One number per vector.
        reached: The value of each goal, in [0, 1].
    """

    coefficients: tuple[float, ...]
    reached: Mapping[str, float]

    def dominates(self, other: Trial) -> bool:
        """Whether it is no worse in any goal and better in one."""
        pairs = [(value, other.reached[goal]) for goal, value in self.reached.items()]
        return all(ours >= theirs for ours, theirs in pairs) and any(ours > theirs for ours, theirs in pairs)


@dataclass(frozen=True)
class CoefficientSearch:
    """What `search_coefficients` tried.

    Attributes:
        trials: Every choice, in the order in which it was tried.
        vectors: The vectors, in the order of the coefficients.
        provenance: Goals, tasks, split, counts and settings.
    """

    trials: tuple[Trial, ...] = field(repr=False)
    vectors: tuple[TaskVector, ...] = field(repr=False, compare=False)
    provenance: Mapping[str, Any]

    def plot(self) -> Figure:
        """All trials by the first two goals, with the front; `save_figure` writes it.

        Raises:
            ValueError: If there was one goal only.
        """
        goals = list(self.provenance["goals"])
        if len(goals) < 2:
            raise ValueError(f"a figure needs two goals, and the search had {goals[0]!r} alone")
        points = [(trial.reached[goals[0]], trial.reached[goals[1]]) for trial in self.trials]
        front = [number for number, trial in enumerate(self.trials) if trial in self.front]
        return plot_front(points, front=front, names=(goals[0], goals[1]))

    @property
    def front(self) -> list[Trial]:
        """The trials that no other dominates, by their first goal."""
        best = [one for one in self.trials if not any(other.dominates(one) for other in self.trials)]
        return sorted(best, key=lambda trial: list(trial.reached.values()))

    def best(self, goal: str = "mean") -> Trial:
        """The trial that is best in one goal; of equals the first.

        Raises:
            UnknownNameError: If that was no goal.
        """
        check_known("goal", goal, self.provenance["goals"])
        return max(self.trials, key=lambda trial: trial.reached[goal])

    def merge(self, trial: Trial | None = None, *, output_dir: str | os.PathLike[str] | None = None) -> TaskVector:
        """The sum of the vectors with a trial's coefficients, whose provenance says how they were found.

        Args:
            trial: One of `trials`; the best in the first goal if left out.
            output_dir: Where to write it, parameter by parameter; without it the result is in memory.
        """
        chosen = trial or self.best(self.provenance["goals"][0])
        learned = {**self.provenance, "reached": dict(chosen.reached)}
        coefficients = {EVERYWHERE: chosen.coefficients}
        return merge(self.vectors, "weighted", output_dir=output_dir, coefficients=coefficients, learned=learned)


def search_coefficients(
    base: Base,
    vectors: Vectors,
    tasks: Tasks,
    *,
    goals: Sequence[str] = ("mean", "worst"),
    control: Tasks = (),
    trials: int = 100,
    start: float = 0.3,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = True,
) -> CoefficientSearch:
    """Tries coefficients of the vectors' sum, one each, that are good for several goals on validation images.

    The tree-structured Parzen estimator of Optuna proposes them, first all at `start`. No gradient is needed, so a goal
    may be what has none: the accuracy itself, and that of the worst task.

    Args:
        base: The model the vectors are added to; it is left alone.
        vectors: Vectors of that base.
        tasks: The tasks, or their names.
        goals: What is maximised on the validation parts: "mean" and "worst" accuracy over the tasks, and "control", the
            mean accuracy over `control`, which merging should not harm.
        control: Further tasks, for that goal.
        trials: How many choices are tried.
        start: The first choice, for every coefficient.
        bounds: Smallest and largest coefficient.
        seed: Of the proposals.
        batch_size: Images per forward pass.
        progress: Whether a bar shows up after two seconds.

    Raises:
        ImportError: If Optuna is not installed.
        UnknownNameError: If there is no such goal.
        ValueError: If a number is out of range, or "control" lacks its tasks.

    Example:
        >>> from hf_taskvec import load_base
        >>> CoefficientSearch((Trial((0.1,), {"mean": 0.5, "worst": 0.2}), Trial((0.2,), {"mean": 0.4, "worst": 0.1})),
        ...     (), {"goals": ["mean", "worst"]}).front[0].coefficients
        (0.1,)
    """
    tasks, others = as_tasks(tasks), as_tasks(control)
    check_base(base)
    given = list(vectors.values() if isinstance(vectors, Mapping) else vectors)
    _check(goals, others, start, bounds)
    trials = check_count("trials", trials)
    total = merge(given, "task_arithmetic")
    model, originals = total.apply_to(base, scaling=0.0), touched(base, total)

    def measure(weights: Sequence[float]) -> dict[str, float]:
        edit(model, originals, merge(given, "task_arithmetic", weights=weights))
        options: dict[str, Any] = {"split": "validation", "batch_size": batch_size, "progress": False}
        report = evaluate(model, tasks, **options)
        kept = evaluate(model, others, **options) if "control" in goals else None
        return {goal: _reached(goal, report, kept) for goal in goals}

    made = list[Trial]()
    with _study(len(goals), seed) as study:
        study.enqueue_trial({str(index): start for index in range(len(given))})
        for _ in progress_bar(range(trials), "searching coefficients", total=trials, shown=progress):
            asked = study.ask()
            weights = [asked.suggest_float(str(index), *bounds) for index in range(len(given))]
            made.append(Trial(tuple(weights), measure(weights)))
            study.tell(asked, list(made[-1].reached.values()))
    how = {
        "objective": "search",
        "goals": list(goals),
        "split": "validation",
        "tasks": [task.name for task in tasks],
        "control": [task.name for task in others],
        "trials": trials,
        "start": start,
        "bounds": list(bounds),
        "seed": seed,
    }
    return CoefficientSearch(tuple(made), tuple(given), how)


def _reached(goal: str, report: Report, control: Report | None) -> float:
    if goal == "worst":
        return min(result.accuracy for result in report.results)
    return control.accuracy if goal == "control" and control is not None else report.accuracy


def _check(goals: Sequence[str], control: Sequence[object], start: float, bounds: tuple[float, float]) -> None:
    if isinstance(goals, str) or not goals:
        raise ValueError(f"goals must be a list of {', '.join(GOALS)}, got {goals!r:.80}")
    for goal in goals:
        check_known("goal", goal, GOALS)
    if "control" in goals and not control:
        raise ValueError("goal 'control' needs tasks that merging should not harm: control=[...]")
    if not bounds[0] <= start <= bounds[1]:
        raise ValueError(f"start must lie within bounds, got {start} and {tuple(bounds)}")


@contextmanager
def _study(goals: int, seed: int) -> Iterator[Any]:
    """A study of Optuna, which is quiet meanwhile."""
    try:
        import optuna  # an extra, and not quick to import
    except ImportError as error:
        raise ImportError("a search over coefficients needs Optuna: pip install 'hf-taskvec[search]'") from error
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield optuna.create_study(directions=["maximize"] * goals, sampler=optuna.samplers.TPESampler(seed=seed))
    finally:
        optuna.logging.set_verbosity(verbosity)
