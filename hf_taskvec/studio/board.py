"""What a setting does: an accuracy per task beside base and expert, the change, and the images that flip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_taskvec.evaluation.intervals import RESAMPLES, Interval
from hf_taskvec.studio.bench import Bench, Measured

MOST_FLIPS = 12  # of each kind in the strip of all tasks


@dataclass(frozen=True)
class Bar:
    """One task at a setting; accuracies are in [0, 1].

    Attributes:
        task: Its name.
        base: The base's accuracy.
        now: The merged model's.
        expert: The accuracy of the base plus the task's own vector, if there is one.
        images: How many images they are of.
        control: Whether no vector is of this task: what merging should not harm.
    """

    task: str
    base: float
    now: float
    expert: float | None
    images: int
    control: bool


@dataclass(frozen=True)
class Board:
    """All tasks at a setting.

    Attributes:
        bars: The tasks.
        change: Mean accuracy now minus that at the last setting, over the tasks that are no controls, with its paired
            bootstrap interval; `None` if there was none before.
    """

    bars: tuple[Bar, ...]
    change: Interval | None = None

    def mean(self, which: str, *, control: bool = False) -> float | None:
        """The mean of an accuracy over the tasks that are controls or over those that are none."""
        values = [getattr(bar, which) for bar in self.bars if bar.control is control]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None


def board(
    bench: Bench, base: Measured, now: Measured, before: Measured | None, experts: Sequence[float | None]
) -> Board:
    """The board of a setting.

    Args:
        bench: The images.
        base: The base on them.
        now: The merged model on them.
        before: The merged model of the last setting on them.
        experts: The accuracy of each task's own vector, `None` for a control.
    """
    rows = zip(bench.tasks, base.accuracies, now.accuracies, experts, now.correct, strict=True)
    bars = tuple(Bar(task.name, zero, own, best, len(hits), best is None) for task, zero, own, best, hits in rows)
    counted = [number for number, bar in enumerate(bars) if not bar.control] or list(range(len(bars)))
    if before is None:
        return Board(bars)
    pairs = [(now.correct[number], before.correct[number]) for number in counted]
    return Board(bars, paired_change(pairs))


def paired_change(pairs: Sequence[tuple[Tensor, Tensor]], *, seed: int = 0) -> Interval:
    """The change of the mean accuracy over tasks, with a bootstrap interval over the images of each task.

    A resample of n images holds so many that got better and so many that got worse: one draw of three counts stands for
    n draws of images, so the interval is that of `paired_difference` within each task at a thousandth of its time.

    Args:
        pairs: For each task, which images are right now and which were before.
        seed: Seed of the resampling.

    Example:
        >>> right, wrong = torch.ones(50, dtype=torch.bool), torch.zeros(50, dtype=torch.bool)
        >>> str(paired_change([(right, wrong)]))
        '1.000 [1.000, 1.000]'
    """
    random, total, mean = np.random.default_rng(seed), np.zeros(RESAMPLES), 0.0
    for now, before in pairs:
        count = len(now)
        better, worse = int((now & ~before).sum()), int((before & ~now).sum())
        drawn = random.multinomial(count, [better / count, worse / count, 1 - (better + worse) / count], RESAMPLES)
        total += (drawn[:, 0] - drawn[:, 1]) / count
        mean += (better - worse) / count
    low, high = np.quantile(total / len(pairs), [0.025, 0.975])
    return Interval(mean / len(pairs), float(low), float(high), sum(len(now) for now, _ in pairs))


@dataclass(frozen=True)
class Flip:
    """An image that the merged model classifies otherwise right or wrong than the base.

    Attributes:
        exam: The number of its task.
        image: Its number among the task's images.
        mended: Whether the base was wrong and the merged model is right; else it is the other way round.
        label, before, now: The true class, the base's and the merged model's.
    """

    exam: int
    image: int
    mended: bool
    label: str
    before: str
    now: str


def flips(bench: Bench, base: Measured, now: Measured, *, exam: int | None = None) -> list[Flip]:
    """The images that flip, mended and broken in turn, from all tasks in turn or from one.

    Args:
        bench: The images.
        base: The base on them.
        now: The merged model on them.
        exam: The number of a task; all if left out.
    """
    chosen = range(len(bench.exams)) if exam is None else [exam]
    queues = []
    for number in chosen:
        for mended in (True, False):
            hits, were = now.correct[number], base.correct[number]
            images = torch.nonzero(hits & ~were if mended else were & ~hits).flatten().tolist()
            queues.append([_flip(bench, base, now, number, image, mended=mended) for image in images])
    return [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)][
        : 2 * MOST_FLIPS
    ]


def _flip(bench: Bench, base: Measured, now: Measured, exam: int, image: int, *, mended: bool) -> Flip:
    task, label = bench.tasks[exam], int(bench.exams[exam].labels[image])
    classes = [int(one.logits[exam][image].argmax()) for one in (base, now)]
    return Flip(exam, image, mended, *(task.class_names[number] for number in (label, *classes)))


@dataclass(frozen=True)
class ClassLogits:
    """What base and merged model give one class of an image.

    Attributes:
        name: The class.
        before: The base's logit.
        now: The merged model's.
        true: Whether it is the image's class.
    """

    name: str
    before: float
    now: float
    true: bool


def logits_of(bench: Bench, base: Measured, now: Measured, flip: Flip, *, most: int = 8) -> list[ClassLogits]:
    """The classes of an image with the highest logits in either model, and the true one; the highest now first."""
    ours, theirs = now.logits[flip.exam][flip.image], base.logits[flip.exam][flip.image]
    label = int(bench.exams[flip.exam].labels[flip.image])
    ranked = torch.maximum(ours, theirs).argsort(descending=True).tolist()
    ranked.remove(label)
    shown = sorted([label, *ranked[: most - 1]], key=lambda number: -float(ours[number]))
    names = bench.tasks[flip.exam].class_names
    return [ClassLogits(names[number], float(theirs[number]), float(ours[number]), number == label) for number in shown]
