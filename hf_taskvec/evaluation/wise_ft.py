"""WiSE-FT: the weights between a base and a fine-tuned model, and what they are worth on target and control."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from hf_taskvec.evaluation.accuracy import Tasks
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.scalings import check_scalings, scaling_curve
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, as_tasks
from hf_taskvec.vectors.vector import TaskVector

ALPHAS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class Interpolation:
    """Mean accuracies on target and control along the straight way from the base to the fine-tuned model.

    Attributes:
        alphas: Where it was measured; 0 is the base, 1 the fine-tuned model.
        target, control: Accuracies there.
        reports: Each task's accuracy, by α.

    Example:
        >>> halves = [Interpolation((0.0, 1.0), (0.2, end), (0.5, 0.4)) for end in (0.6, 0.8)]
        >>> Interpolation.mean(halves).target
        (0.2, 0.7)
    """

    alphas: tuple[float, ...]
    target: tuple[float, ...]
    control: tuple[float, ...]
    reports: Mapping[float, Report] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, reports: Mapping[float, Report], targets: Collection[str]) -> Interpolation:
        """The curve of some reports by α, in which some tasks are the target and all others control."""
        means = [
            [
                fmean(one.accuracy for one in report.results if (one.task in targets) is wanted)
                for wanted in (True, False)
            ]
            for report in reports.values()
        ]
        return cls(tuple(reports), tuple(mean[0] for mean in means), tuple(mean[1] for mean in means), reports)

    @classmethod
    def mean(cls, curves: Sequence[Interpolation]) -> Interpolation:
        """The mean of curves that were measured at the same α, as of several seeds or tasks.

        Raises:
            ValueError: If there is none, or they were measured elsewhere.
        """
        if len({curve.alphas for curve in curves}) != 1:
            raise ValueError("curves of the same alphas have a mean, one at least")
        target, control = (
            tuple(map(fmean, zip(*values, strict=True)))
            for values in ([curve.target for curve in curves], [curve.control for curve in curves])
        )
        return cls(curves[0].alphas, target, control)


def wise_ft(
    base: Base,
    vector: TaskVector,
    target: Tasks,
    control: Tasks,
    *,
    alphas: Iterable[float] = ALPHAS,
    split: Split = "test",
    batch_size: int = 256,
    progress: bool = True,
) -> Interpolation:
    """Measures the base plus α times a vector on target and control (WiSE-FT, arXiv 2109.01903); see `plot_wise_ft`.

    The weights are those of (1 - α) base + α fine-tuned model. Choose α with `split="validation"`; the model is
    `vector.apply_to(base, scaling=alpha)`.

    Args:
        base: The base.
        vector: The vector of the fine-tuning, or of a merge.
        target: What the vector was made for: a task or several.
        control: What is to be kept: other tasks, or the target's own images corrupted, as by `corrupt`.
        alphas: Where to measure, in [0, 1].
        split: Which part of the tasks.
        batch_size: Images per forward pass.
        progress: Whether bars show up after two seconds.

    Raises:
        ValueError: If an α is outside [0, 1], or target and control share a task.

    Example:
        >>> from hf_taskvec import load_base
        >>> base = load_base()
        >>> vector = TaskVector.from_models(base.model, base.model)
        >>> curve = wise_ft(base, vector, "digits", "shapes", alphas=[0, 1], split="validation")
        >>> curve.alphas, curve.control[0] == curve.control[1]
        ((0.0, 1.0), True)
    """
    targets, controls = as_tasks(target, needed_by="wise_ft"), as_tasks(control, needed_by="wise_ft")
    factors = check_scalings(alphas, "alphas")
    if not all(0 <= alpha <= 1 for alpha in factors):
        raise ValueError(f"alphas must be in [0, 1], got {factors}; scaling_curve goes beyond the fine-tuned model")
    names = {task.name for task in targets}
    if shared := sorted(names & {task.name for task in controls}):
        raise ValueError(f"target and control share {shared[0]!r}; measure it as one of them")
    options: dict[str, Any] = {"split": split, "batch_size": batch_size, "progress": progress}
    return Interpolation.of(scaling_curve(base, vector, [*targets, *controls], scalings=factors, **options), names)
