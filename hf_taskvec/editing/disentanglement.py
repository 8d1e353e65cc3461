"""How far two vectors leave each other's task alone: the disentanglement error, and what only curvature gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize

from hf_taskvec.errors import check_count
from hf_taskvec.evaluation.accuracy import Tasks, check_base, predict, vectors_by_task
from hf_taskvec.evaluation.intervals import Interval, bootstrap_interval, paired_accuracy_difference
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.evaluation.scalings import check_scalings, edit, touched
from hf_taskvec.models.base import Base
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.models.tangent import linearize
from hf_taskvec.tasks import Split, Task, as_task, as_tasks
from hf_taskvec.text import listed
from hf_taskvec.tuning.images import TaskImages, choose_images
from hf_taskvec.tuning.tower import features_of
from hf_taskvec.vectors.vector import TaskVector

FACTORS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)

Point = tuple[float, float]  # the factors of the two vectors
Pair = tuple[TaskVector, TaskVector]
Features = Callable[[Point], list[Tensor]]  # of each task's images, (N, F)


@dataclass(frozen=True)
class Disentanglement:
    """How often two vectors together predict otherwise than the own one alone, for pairs of factors.

    Attributes:
        tasks: The names of the two tasks.
        factors: The factors α₁ and α₂ that were tried, A of them.
        differs: For each task whether the prediction of each image differs, (A, A, N): by α₁, α₂ and image.

    Example:
        >>> differs = np.zeros((1, 1, 8), dtype=bool), np.arange(4).reshape(1, 1, 4) == 0
        >>> one = Disentanglement(("a", "b"), (1.0,), differs)
        >>> one.errors, str(one.error)
        (array([[0.25]]), '0.250 [0.000, 0.750]')
    """

    tasks: tuple[str, str]
    factors: tuple[float, ...]
    differs: tuple[NDArray[np.bool_], NDArray[np.bool_]]

    @property
    def errors(self) -> NDArray[np.float64]:
        """ξ(α₁, α₂), in [0, 2], as a matrix (A, A): α₁ by row, α₂ by column."""
        first, second = (differs.mean(axis=-1) for differs in self.differs)
        return np.asarray(first + second, dtype=np.float64)

    def at(self, first: float, second: float) -> Interval:
        """ξ at two factors that were tried, with its 95 % interval over images (Wilson's, of both tasks).

        Raises:
            ValueError: If one was not tried.
        """
        for factor in (first, second):
            if factor not in self.factors:
                raise ValueError(f"factor {factor} was not tried; of {listed(self.factors)} the error is known")
        row, column = self.factors.index(first), self.factors.index(second)
        return _sum(*(_share(differs[row, column]) for differs in self.differs))

    @property
    def error(self) -> Interval:
        """The mean of ξ over all pairs of factors, with its 95 % interval over images (bootstrap)."""
        return _sum(*(bootstrap_interval(differs.mean(axis=(0, 1)).tolist()) for differs in self.differs))

    def to_dict(self) -> dict[str, Any]:
        """Tasks, factors, ξ of every pair and its mean as plain values.

        Example:
            >>> differs = np.zeros((1, 1, 8), dtype=bool)
            >>> list(Disentanglement(("a", "b"), (1.0,), (differs, differs)).to_dict())
            ['tasks', 'factors', 'errors', 'mean', 'low', 'high', 'images']
        """
        mean = self.error
        told = {"mean": mean.mean, "low": mean.low, "high": mean.high, "images": mean.count}
        return {"tasks": list(self.tasks), "factors": list(self.factors), "errors": self.errors.tolist(), **told}


def disentanglement(
    base: Base,
    vectors: Mapping[str, TaskVector] | Iterable[TaskVector],
    tasks: Tasks,
    *,
    factors: Iterable[float] = FACTORS,
    split: Split = "test",
    images: int | None = 500,
    batch_size: int = 256,
    progress: bool = True,
) -> Disentanglement:
    """The disentanglement error map of two vectors (arXiv 2305.12827).

    ξ(α₁, α₂) is the sum over both tasks of how often, on its images and against its head, base plus α₁ times the first
    plus α₂ times the second vector predicts another class than base plus the task's own part of that alone. It is 0
    where each vector leaves the other's task alone, at most 2, and looks at no label.

    Of a linearised base the map costs three passes over the images, of any other one for each pair of factors.

    Args:
        base: The model, ordinary or linearised; it is left alone.
        vectors: The two vectors, by the names of their tasks or with provenance that tells them.
        tasks: The two tasks, in the order of α₁ and α₂.
        factors: The values of both.
        split: Which part of the tasks.
        images: At most so many images of each task, drawn at random; all if `None`.
        batch_size: Images per forward pass.
        progress: Whether a bar shows up after two seconds.

    Raises:
        ValueError: If there are not two different tasks, or a factor is not finite.
        UnknownNameError: If a task has no vector.
        IncompatibleVectorsError, BaseMismatchError: If the vectors do not fit each other or the base.

    Example:
        >>> from hf_taskvec import load_base
        >>> still = TaskVector.from_models(load_base().model, load_base().model)
        >>> pair = {"digits": still, "shapes": still}
        >>> disentanglement(load_base(), pair, ["digits", "shapes"], factors=[0, 1], images=8).errors.max()
        np.float64(0.0)
    """
    check_base(base)
    batch_size = check_count("batch_size", batch_size)
    chosen, values = as_tasks(tasks, needed_by="disentanglement"), check_scalings(factors, "factors")
    if len(chosen) != 2:
        raise ValueError(f"the disentanglement error is of two tasks, got {len(chosen)}: name a pair")
    by_task = vectors_by_task(vectors, chosen)
    pair = by_task[chosen[0].name], by_task[chosen[1].name]
    samples = choose_images(base, chosen, split=split, images=images, transductive=split == "test").samples
    heads = [zero_shot_head(base, task.class_names, task.templates).cpu().float() for task in chosen]
    features = (_along if base.linearized else _edited)(base, pair, samples, batch_size)
    grid = [(one, other) for one in values for other in values]
    points = list(dict.fromkeys([*grid, *((one, 0.0) for one in values), *((0.0, other) for other in values)]))
    told: dict[Point, list[NDArray[np.int64]]] = {}
    for point in progress_bar(points, "trying factors", total=len(points), shown=progress):
        logits = (normalize(value, dim=-1) @ head.T for value, head in zip(features(point), heads, strict=True))
        told[point] = [one.argmax(dim=-1).numpy() for one in logits]
    shape = (len(values), len(values), -1)
    first = np.stack([told[one, other][0] != told[one, 0.0][0] for one, other in grid]).reshape(shape)
    second = np.stack([told[one, other][1] != told[0.0, other][1] for one, other in grid]).reshape(shape)
    return Disentanglement((chosen[0].name, chosen[1].name), tuple(values), (first, second))


def nonlinear_advantage(
    base: Base,
    vector: TaskVector,
    task: Task | str,
    *,
    tangent: TaskVector | None = None,
    split: Split = "test",
    batch_size: int = 256,
    progress: bool = True,
) -> Interval:
    """What a vector gains by being added to the ordinary model and not in its tangent space, with its 95 % interval.

    (accuracy of the ordinary model − accuracy of the linearised one) / (1 − 1/C) on the same images, C being the number
    of classes (arXiv 2305.12827): 0 where the change is as good as linear.

    Args:
        base: The ordinary base; it is left alone.
        vector: The vector for the ordinary model.
        task: The task.
        tangent: A vector for the linearised model, trained there; by default the same one, linearised post hoc.
        split: Which part of the task.
        batch_size: Images per forward pass.
        progress: Whether bars show up after two seconds.

    Raises:
        CheckpointError: If the base's attention has no forward derivative.
        ValueError: If the base is linearised already.
        BaseMismatchError: If a vector is of another base.

    Example:
        >>> from hf_taskvec import load_base
        >>> still = TaskVector.from_models(load_base().model, load_base().model)
        >>> nonlinear_advantage(load_base(), still, "digits", split="validation").mean
        0.0
    """
    check_base(base)
    wanted = as_task(task, needed_by="nonlinear_advantage")
    models = vector.apply_to(base), (vector if tangent is None else tangent).apply_to(linearize(base))
    right = []
    for model in models:
        logits, labels = predict(model, wanted, split, batch_size=batch_size, progress=progress)
        right.append((logits.argmax(dim=-1) == labels).tolist())
    gain, share = paired_accuracy_difference(*right), 1 - 1 / len(wanted.class_names)
    return Interval(gain.mean / share, gain.low / share, gain.high / share, gain.count)


def _edited(base: Base, pair: Pair, samples: Sequence[TaskImages], batch_size: int) -> Features:
    """The features at two factors of a model that is edited in place."""
    both = pair[0] + pair[1]
    edited, originals = both.apply_to(base, scaling=0.0), touched(base, both)

    def features(point: Point) -> list[Tensor]:
        edit(edited, originals, point[0] * pair[0] + point[1] * pair[1])
        return [features_of(edited, sample, batch_size=batch_size) for sample in samples]

    return features


def _along(base: Base, pair: Pair, samples: Sequence[TaskImages], batch_size: int) -> Features:
    """The features at two factors of a model that is linear in its weights."""
    models = base, *(vector.apply_to(base) for vector in pair)
    start, *ends = ([features_of(model, sample, batch_size=batch_size) for sample in samples] for model in models)

    def features(point: Point) -> list[Tensor]:
        rows = zip(start, *ends, strict=True)
        return [here + point[0] * (one - here) + point[1] * (other - here) for here, one, other in rows]

    return features


def _share(differs: NDArray[np.bool_]) -> Interval:
    """A share of images with Wilson's interval."""
    ends = stats.binomtest(int(differs.sum()), differs.size).proportion_ci(method="wilson")
    return Interval(float(differs.mean()), float(ends.low), float(ends.high), differs.size)


def _sum(one: Interval, other: Interval) -> Interval:
    """The sum of two independent means; distances to the ends add up in squares (Zou and Donner 2008)."""
    mean = one.mean + other.mean
    below = math.hypot(one.mean - one.low, other.mean - other.low)
    above = math.hypot(one.high - one.mean, other.high - other.mean)
    return Interval(mean, mean - below, mean + above, one.count + other.count)
