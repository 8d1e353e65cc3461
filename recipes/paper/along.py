"""Accuracy along task vectors: on a concave base small steps bring more than their share, on a convex one less.

In a merge of T tasks each vector counts 1/T or a little more, so what a base gives at small scalings is what its merges
can gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_taskvec.errors import DataError
from hf_taskvec.evaluation.accuracy import predict
from hf_taskvec.evaluation.intervals import RESAMPLES, Interval
from hf_taskvec.evaluation.scalings import check_scalings, edit, touched
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task
from hf_taskvec.text import table
from hf_taskvec.vectors.vector import TaskVector

SCALINGS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0, 1.25, 1.5)
SHOWN = (0.0, 0.125, 0.25, 0.5, 1.0)  # in tables
HALF = 0.5
MEAN = "**mean**"
Shares = NDArray[np.float64]


@dataclass(frozen=True)
class Course:
    """Accuracy of one task along its own vector.

    Attributes:
        task: Its name.
        scalings: The scalings, 0, ½ and 1 among them.
        correct: For each scaling and image the share of vectors (seeds) with which it is right, (S, N).
    """

    task: str
    scalings: tuple[float, ...]
    correct: Shares

    @property
    def accuracies(self) -> list[float]:
        """The accuracy at each scaling."""
        return [float(value) for value in self.correct.mean(axis=1)]

    def rows(self) -> Shares:
        """What each image gains at half the vector and at the whole one, (2, N)."""
        start, half, whole = (self.correct[self.scalings.index(scaling)] for scaling in (0.0, HALF, 1.0))
        return np.stack([half - start, whole - start])


@dataclass(frozen=True)
class Bend:
    """Whether accuracy along vectors is concave.

    Attributes:
        half: Accuracy gained at half the vector.
        whole: Accuracy gained with the whole one.
        bend: The first minus half the second: above 0 concave, below 0 convex.
        share: The first over the second, ½ on a straight way; `None` where the whole vector gains nothing for sure.
    """

    half: Interval
    whole: Interval
    bend: Interval
    share: Interval | None

    @property
    def verdict(self) -> str:
        """`concave`, `convex`, or `undecided` where the interval of the bend holds 0."""
        return "concave" if self.bend.low > 0 else "convex" if self.bend.high < 0 else "undecided"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "verdict": self.verdict}


def course(
    base: Base,
    vectors: Sequence[TaskVector],
    task: Task,
    *,
    scalings: Sequence[float] = SCALINGS,
    split: Split = "test",
    batch_size: int = 256,
) -> Course:
    """Follows a task's vectors, one per seed, on its images.

    Raises:
        DataError: If there is no vector, or the part has no image.
        ValueError: If 0, ½ or 1 is not among the scalings.
    """
    factors = check_scalings(scalings)
    if missing := {0.0, HALF, 1.0} - set(factors):
        raise ValueError(f"the scalings along a vector must hold 0, 0.5 and 1; {sorted(missing)} are missing")
    if not vectors:
        raise DataError(f"there is no vector of {task.name!r} to follow")
    edited, originals = vectors[0].apply_to(base, scaling=0.0), touched(base, vectors[0])
    counts: list[Shares] = []
    for scaling in factors:
        hits = []
        for vector in vectors if scaling else vectors[:1]:
            edit(edited, originals, vector, scaling=scaling)
            logits, labels = predict(edited, task, split, batch_size=batch_size, progress=False)
            hits.append((logits.argmax(dim=-1) == labels).numpy())
        counts.append(np.mean(hits, axis=0, dtype=np.float64))
    return Course(task.name, tuple(factors), np.stack(counts))


def bend_of(courses: Sequence[Course], *, seed: int = 0) -> Bend:
    """The bend of the mean over tasks; images are drawn anew within each task, seeds are averaged before.

    Raises:
        DataError: If there is no course.
    """
    if not courses:
        raise DataError("a bend needs the course of at least one task, got none")
    random = np.random.default_rng(seed)
    rows = [one.rows() for one in courses]
    draws = np.mean([_resampled(gains, random) for gains in rows], axis=0)  # (2, RESAMPLES)
    means = np.mean([gains.mean(axis=1) for gains in rows], axis=0)
    count = sum(gains.shape[1] for gains in rows)

    def interval(value: float, sample: Shares) -> Interval:
        low, high = np.quantile(sample, [0.025, 0.975])
        return Interval(float(value), float(low), float(high), count)

    half, whole = (interval(means[index], draws[index]) for index in (0, 1))
    bend = interval(means[0] - means[1] / 2, draws[0] - draws[1] / 2)
    share = interval(means[0] / means[1], draws[0] / draws[1]) if draws[1].min() > 0 else None
    return Bend(half, whole, bend, share)


def _resampled(gains: Shares, random: np.random.Generator, *, chunk: int = 500) -> Shares:
    """Means of resampled images, (2, RESAMPLES), a chunk at a time."""
    size = gains.shape[1]
    parts = [gains[:, random.integers(size, size=(chunk, size))].mean(axis=2) for _ in range(RESAMPLES // chunk)]
    return np.concatenate(parts, axis=1)


def along_data(courses: Sequence[Course], *, split: Split) -> dict[str, Any]:
    """What figure and table of some courses show, as JSON values."""
    return {
        "split": split,
        "scalings": list(courses[0].scalings),
        "accuracies": {one.task: one.accuracies for one in courses},
        "images": {one.task: one.correct.shape[1] for one in courses},
        "bends": {one.task: bend_of([one]).to_dict() for one in courses},
        "mean": bend_of(courses).to_dict(),
    }


def along_table(data: Mapping[str, Any]) -> str:
    """One row per task and one for the mean: accuracies in percent at `SHOWN`, bend in points, share and verdict."""
    shown = [scaling for scaling in SHOWN if scaling in data["scalings"]]
    places = [data["scalings"].index(scaling) for scaling in shown]
    accuracies = {**data["accuracies"], MEAN: np.mean(list(data["accuracies"].values()), axis=0).tolist()}
    rows = []
    for name, values in accuracies.items():
        bend = data["mean"] if name == MEAN else data["bends"][name]
        figures = [f"{100 * values[place]:.1f}" for place in places]
        share = "–" if bend["share"] is None else _with_ends(bend["share"], digits=2)
        rows.append([name, *figures, _with_ends(bend["bend"], factor=100, digits=1, sign="+"), share, bend["verdict"]])
    headers = ["task", *(f"at {scaling:g}" for scaling in shown), "bend (points)", "share at half", "verdict"]
    return table(headers, rows, align="l" + "r" * (len(shown) + 2) + "l")


def _with_ends(interval: Mapping[str, float], *, factor: float = 1, digits: int, sign: str = "") -> str:
    mean, low, high = (f"{factor * interval[name]:{sign}.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
