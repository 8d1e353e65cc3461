"""The choice of a merge method's settings, with the scaling of what it merges, on validation data."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from hf_taskvec.errors import is_finite_number
from hf_taskvec.evaluation.accuracy import Tasks, check_base
from hf_taskvec.evaluation.criteria import Criterion, Individual, check_criterion, individual_accuracies, score
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.evaluation.scalings import SCALINGS, ChosenScaling, best_scaling, check_scalings, scaling_curve
from hf_taskvec.merging import get_method, merge
from hf_taskvec.merging.ranges import check_ranges
from hf_taskvec.merging.registry import natural
from hf_taskvec.models.base import Base
from hf_taskvec.statistics.value import Statistics
from hf_taskvec.tasks import as_tasks
from hf_taskvec.vectors.vector import TaskVector

logger = logging.getLogger(__name__)
MOST_MERGES = 1000


@dataclass(frozen=True)
class ChosenSettings:
    """Settings of a merge that were chosen on validation data.

    Attributes:
        method: The method.
        settings: Its settings: those that were given, with the chosen value of each that had several.
        scaling: The scaling of the merged vector that was chosen with them.
        at_end: The settings whose chosen number is the smallest or largest that was tried: a better one may lie beyond.
        scores: What each choice of settings reached at its best scaling, in the order in which they were tried.
    """

    method: str
    settings: Mapping[str, Any]
    scaling: ChosenScaling
    at_end: tuple[str, ...] = ()
    scores: tuple[tuple[Mapping[str, Any], float], ...] = field(default=(), repr=False)

    def merge(self, vectors: Sequence[TaskVector], **options: Any) -> TaskVector:
        """The merge by these settings at this scaling; `options` are others of `merge`, as `statistics`."""
        return merge(vectors, self.method, scaling=self.scaling, **self.settings, **options)


def choose_settings(
    base: Base,
    vectors: Sequence[TaskVector],
    tasks: Tasks,
    method: str,
    grid: Mapping[str, Iterable[Any]],
    *,
    scalings: Iterable[float] = SCALINGS,
    criterion: Criterion = "accuracy",
    individual: Individual | None = None,
    statistics: Sequence[Statistics] | None = None,
    batch_size: int = 256,
    progress: bool = True,
    **settings: Any,
) -> ChosenSettings:
    """The settings of a method that are best on the tasks' validation parts, each tried at every scaling.

    All combinations are merged; the first of equals is taken, so put what you prefer first. It is told in the log when
    the best value of a setting is the smallest or the largest number that was tried. λ of `bmm` and its kin is `ridge`;
    what these merge needs a scaling near 1.

    Args:
        base: The model the vectors are added to.
        vectors: Vectors of that base.
        tasks: The tasks whose accuracies count, or their names.
        method: The merge method.
        grid: The values to try, by setting.
        scalings: The scalings to try.
        criterion: What is maximised, "accuracy" or "normalised"; see `choose_scaling`.
        individual: For "normalised", as in `choose_scaling`; by default the vectors' own accuracies.
        statistics: What a method that looks at data needs, as `merge` takes it.
        batch_size: Images per forward pass.
        progress: Whether bars show up after two seconds.
        **settings: The method's other settings.

    Raises:
        UnknownNameError: If there is no such method, setting or criterion.
        ValueError: If a setting has no value to try or one out of range, or there are more than 1000 combinations.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> base = load_base()
        >>> vector = TaskVector.from_models(base.model, base.model)
        >>> chosen = choose_settings(base, [vector], "digits", "ties", {"density": [0.2, 0.5]}, scalings=[1.0])
        >>> chosen.settings, float(chosen.scaling)
        ({'density': 0.2}, 1.0)
    """
    vectors, tasks, factors = list(vectors), as_tasks(tasks), check_scalings(scalings)
    tried = _combinations(method, vectors, grid, settings)
    check_base(base)
    check_criterion(criterion, individual or vectors)
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    own = individual_accuracies(base, individual or vectors, tasks, **options) if criterion == "normalised" else None
    reached, best = list[float](), 0
    for index, combination in enumerate(progress_bar(tried, f"settings of {method}", total=len(tried), shown=progress)):
        merged = merge(vectors, method, statistics=statistics, **combination)
        curve = scaling_curve(base, merged, tasks, scalings=factors, individual=own, **options)
        reached.append(max(score(report, criterion) for report in curve.values()))
        if index == 0 or reached[index] > reached[best]:
            best, best_curve = index, curve
    scaling = best_scaling(best_curve, criterion=criterion)
    scores = tuple(zip(tried, reached, strict=True))
    return ChosenSettings(method, tried[best], scaling, _at_end(tried, tried[best], grid), scores)


def _combinations(
    method: str, vectors: Sequence[TaskVector], grid: Mapping[str, Iterable[Any]], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Every choice of settings, once each is known to be one of the method."""
    chosen, values = get_method(method), {name: list(natural(list(tried))) for name, tried in grid.items()}
    for name, tried in values.items():
        if not tried:
            raise ValueError(f"the setting {name!r} has no value to try")
        if name in settings:
            raise ValueError(f"the setting {name!r} is given and to be chosen; leave one out")
    combinations = [{**settings, **dict(zip(values, choice, strict=True))} for choice in product(*values.values())]
    if len(combinations) > MOST_MERGES:
        raise ValueError(f"the grid has {len(combinations)} combinations, more than {MOST_MERGES}; take fewer values")
    for combination in combinations:
        check_ranges(chosen, len(vectors), chosen.settled(vectors, combination))
    return combinations


def _at_end(tried: Sequence[Mapping[str, Any]], best: Mapping[str, Any], names: Iterable[str]) -> tuple[str, ...]:
    """The settings whose best number is an end of those tried, which is told."""
    ends = []
    for name in names:
        values = {combination[name] for combination in tried if is_finite_number(combination[name])}
        if len(values) > 1 and best[name] in (min(values), max(values)):
            ends.append(name)
            which, other = ("smallest", "smaller") if best[name] == min(values) else ("largest", "larger")
            logger.warning(
                "the best %s, %g, is the %s that was tried; a %s may be better", name, best[name], which, other
            )
    return tuple(ends)
