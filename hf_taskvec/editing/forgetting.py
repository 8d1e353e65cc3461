"""Forgetting: a task is taken from a base by its negated vector, as far as a control suite allows, with a receipt."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_taskvec.editing.receipt import membership, relearning
from hf_taskvec.errors import ControlLostError, check_fraction
from hf_taskvec.evaluation.accuracy import Tasks, check_base, predict
from hf_taskvec.evaluation.intervals import Interval, mean_interval, paired_accuracy_difference
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.evaluation.scalings import check_scalings, edit, touched
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task, as_task, as_tasks
from hf_taskvec.text import table
from hf_taskvec.vectors.vector import TaskVector

logger = logging.getLogger(__name__)

STRENGTHS = tuple(round(0.05 * step, 2) for step in range(1, 21))  # those of the paper

Hits = dict[str, NDArray[np.bool_]]  # whether each image of a task is classified correctly


@dataclass(frozen=True)
class Tried:
    """What one strength does to validation images.

    Attributes:
        strength: How often the vector was taken away.
        target: Accuracy on the task to forget.
        control: Mean accuracy on the control tasks.
        change: What the control tasks' mean accuracy gained, negative where it lost, with its 95 % interval.
    """

    strength: float
    target: float
    control: float
    change: Interval


@dataclass(frozen=True)
class Forgotten:
    """A task taken from a base.

    Attributes:
        vector: What is added to the base, with scaling 1: the negated vector. Its `info.forgetting` is the receipt.
        strength: How often the vector was taken away.
        tried: What every strength did to validation images.
        receipt: What is left of the task and of the control tasks; see `forget`.
    """

    vector: TaskVector
    strength: float
    tried: tuple[Tried, ...]
    receipt: Mapping[str, Any]

    def to_markdown(self) -> str:
        """The receipt as a table.

        Example:
            >>> target = {"task": "a", "before": 0.9, "after": 0.2, "chance": 0.1, "images": 50}
            >>> control = {"tasks": {"b": [0.8, 0.79]}, "before": 0.8, "after": 0.79, "kept": 0.99, "kept_low": 0.97}
            >>> one = Forgotten(TaskVector({}), 0.5, (), {"target": target, "control": control})
            >>> print(one.to_markdown().splitlines()[2])
            | a, to forget | 90.0 | 20.0 | chance 10.0 |
        """
        return receipt_table(self.receipt)


def forget(
    base: Base,
    vector: TaskVector,
    *,
    control: Tasks,
    target: Task | str | None = None,
    budget: float = 0.05,
    strengths: Iterable[float] = STRENGTHS,
    relearning_steps: int = 64,
    members: int = 1000,
    batch_size: int = 256,
    progress: bool = True,
) -> Forgotten:
    """Takes a task from a base by its negated vector (arXiv 2212.04089), and tells what is left of it.

    The strength is the one with the lowest accuracy on the task's validation images, the smaller of equals, of those
    at which the control tasks' mean validation accuracy keeps `1 - budget` of the base's by the lower end of its 95 %
    interval over images; it is told in the log where that is the largest one tried. The receipt is of other images:

    - `target`: accuracy on test images before and after, beside chance, one in as many as there are classes. Below
      chance a model avoids the right class, which is knowledge too.
    - `control`: accuracies before and after by task and their means; the share that is `kept` and its lower end.
    - `membership`: how well the loss alone tells training images from test images (the area under the ROC curve, 0.5
      for not at all) for the base, for the base with the vector, and after forgetting, each with its 95 % interval.
    - `relearning`: after how many steps of fine-tuning, out of 1, 2, 4, ..., the task's validation accuracy is back
      at the base's; `None` if not within `relearning_steps`. It is the vector's optimiser, rate and batch size.

    Args:
        base: The model; it is left alone.
        vector: The vector of the task to forget.
        control: Tasks whose accuracy must stay: one or several, or names of tasks and suites.
        target: The task to forget; the one of the vector's provenance if left out.
        budget: How much of the control tasks' accuracy may go, in (0, 1).
        strengths: Those that are tried, above 0.
        relearning_steps: The most steps to fine-tune; 0 leaves them out.
        members: The most training and test images each for `membership`; 0 leaves it out.
        batch_size: Images per forward pass.
        progress: Whether bars show up after two seconds.

    Raises:
        ValueError: If there is no control task, the target is one of them, or a setting is out of range.
        ControlLostError: If no strength keeps enough of the control tasks.
        DataError: If the vector does not tell its task, or the task's data cannot be reached.
        BaseMismatchError: If the vector is of another base.

    Example:
        >>> from hf_taskvec import get_task, gradient_vector, load_base
        >>> from hf_taskvec.tasks.subsets import subset
        >>> base, digits = load_base(), subset(get_task("digits"), max_train=40)
        >>> vector = gradient_vector(base, digits, learning_rate=1e-3)
        >>> gone = forget(base, vector, control="shapes", budget=0.2, strengths=[1], relearning_steps=0, members=40)
        >>> sorted(gone.receipt)
        ['control', 'membership', 'relearning', 'strength', 'target']
    """
    check_base(base)
    check_fraction("budget", budget)
    factors = _checked_strengths(strengths)
    wanted = Task.from_info(vector.info) if target is None else as_task(target, needed_by="forget")
    others = _checked_control(control, wanted)
    tried = list(_try(base, vector, [wanted, *others], factors, batch_size=batch_size, progress=progress))
    best = _best(tried, budget)
    if best.strength == max(factors) and len(factors) > 1:
        logger.warning(
            "the largest of the strengths tried, %g, keeps enough of the control tasks and leaves least of %r: try "
            "larger ones too",
            *(best.strength, wanted.name),
        )
    gone = vector * -best.strength
    after = gone.apply_to(base)
    receipt = {
        "strength": best.strength,
        **_left(base, after, wanted, others, batch_size=batch_size),
        "membership": membership(
            {"base": base, "expert": vector.apply_to(base), "forgotten": after}, wanted, most=members
        ),
        "relearning": relearning(base, after, wanted, vector.info, most=relearning_steps),
    }
    info = dataclasses.replace(gone.info, forgetting=receipt)
    return Forgotten(TaskVector(gone.deltas, info), best.strength, tuple(tried), receipt)


def receipt_table(receipt: Mapping[str, Any]) -> str:
    """Accuracies before and after of a receipt, as a Markdown table.

    Example:
        >>> target = {"task": "a", "before": 0.9, "after": 0.2, "chance": 0.1, "images": 50}
        >>> control = {"tasks": {"b": [0.8, 0.79]}, "before": 0.8, "after": 0.79, "kept": 0.99, "kept_low": 0.97}
        >>> print(receipt_table({"target": target, "control": control}).splitlines()[3])
        | b | 80.0 | 79.0 |  |
    """
    target, control = receipt["target"], receipt["control"]
    rows = [[f"{target['task']}, to forget", *_points(target["before"], target["after"])]]
    rows[0].append(f"chance {100 * target['chance']:.1f}")
    rows += [[name, *_points(*pair), ""] for name, pair in control["tasks"].items()]
    kept = f"{100 * control['kept']:.1f} % kept, at least {100 * control['kept_low']:.1f} %"
    rows.append(["control", *_points(control["before"], control["after"]), kept])
    return table(["task", "before", "after", ""], rows, align="lrrl")


def _points(*accuracies: float) -> list[str]:
    return [f"{100 * accuracy:.1f}" for accuracy in accuracies]


def _checked_strengths(strengths: Iterable[float]) -> list[float]:
    values = check_scalings(strengths, "strengths")
    if min(values) <= 0:
        raise ValueError(f"strengths must be above 0, got {min(values):g}; they are taken away, not added")
    return values


def _checked_control(control: Tasks, target: Task) -> list[Task]:
    others = as_tasks(control)
    if not others:
        raise ValueError(
            "a vector is negated only as far as a control suite allows, and control is empty: name tasks that the "
            "model must go on solving, such as control='mini'"
        )
    for other in others:
        if other.name == target.name or (other.dataset, other.config) == (target.dataset, target.config):
            raise ValueError(
                f"the control task {other.name!r} is the task to forget, {target.name!r}: leave it out of control"
            )
    return others


def hits(model: Base, tasks: Sequence[Task], split: Split, *, batch_size: int = 256) -> Hits:
    """Whether a model is right on each image of each task.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> hits(load_base(), [get_task("digits")], "validation")["digits"].shape
        (139,)
    """
    right = {}
    for task in tasks:
        logits, labels = predict(model, task, split, batch_size=batch_size, progress=False)
        right[task.name] = (logits.argmax(dim=-1) == labels).numpy()
    return right


def mean_change(before: Hits, after: Hits) -> Interval:
    """What the mean accuracy over tasks gained, with its 95 % interval over images.

    Example:
        >>> mean_change({"a": np.array([True, False])}, {"a": np.array([True, True])}).mean
        0.5
    """
    return mean_interval([paired_accuracy_difference(after[name].tolist(), before[name].tolist()) for name in before])


def _mean(right: Hits, tasks: Iterable[Task]) -> float:
    return float(np.mean([right[task.name].mean() for task in tasks]))


def _try(
    base: Base,
    vector: TaskVector,
    tasks: Sequence[Task],
    strengths: Sequence[float],
    *,
    batch_size: int,
    progress: bool,
) -> Iterator[Tried]:
    """What each strength does to the validation images of the target, which is the first task, and of the others."""
    target, *others = tasks
    before = hits(base, others, "validation", batch_size=batch_size)
    edited, originals = vector.apply_to(base, scaling=-strengths[0]), touched(base, vector)
    for strength in progress_bar(strengths, "trying strengths", total=len(strengths), shown=progress):
        edit(edited, originals, vector, scaling=-strength)
        after = hits(edited, tasks, "validation", batch_size=batch_size)
        change = mean_change(before, {name: after[name] for name in before})
        yield Tried(strength, _mean(after, [target]), _mean(after, others), change)


def _best(tried: Sequence[Tried], budget: float) -> Tried:
    """The strength that leaves least of the target, of those that keep enough of the control tasks."""
    kept = [one for one in tried if one.change.low >= -budget * (one.control - one.change.mean)]
    if not kept:
        mildest = min(tried, key=lambda one: one.strength)
        base = mildest.control - mildest.change.mean
        raise ControlLostError(
            f"no strength keeps {1 - budget:.0%} of the control accuracy {base:.3f}: {mildest.strength:g} changes it "
            f"by {mildest.change}; allow a larger budget, try smaller strengths, or take more control images, which "
            "narrow the interval"
        )
    return min(kept, key=lambda one: (one.target, one.strength))


def _left(base: Base, after: Base, target: Task, others: Sequence[Task], *, batch_size: int) -> dict[str, Any]:
    """Accuracies on test images before and after."""
    old = hits(base, [target, *others], "test", batch_size=batch_size)
    new = hits(after, [target, *others], "test", batch_size=batch_size)
    images = len(old[target.name])
    first, last = float(old.pop(target.name).mean()), float(new.pop(target.name).mean())
    change, before = mean_change(old, new), _mean(old, others)
    pairs = {name: [float(right.mean()), float(new[name].mean())] for name, right in old.items()}
    share = {"kept": 1 + change.mean / before, "kept_low": 1 + change.low / before} if before else {}
    return {
        "target": {
            "task": target.name,
            "before": first,
            "after": last,
            "chance": 1 / len(target.class_names),
            "images": images,
        },
        "control": {"tasks": pairs, "before": before, "after": before + change.mean, **share},
    }
