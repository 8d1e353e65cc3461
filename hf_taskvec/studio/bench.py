"""Test images under the sliders: held once as pixels, measured at any setting, some at once and the others later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.random import RandomState  # its streams are frozen: the same images first on every machine
from torch import Tensor

from hf_taskvec.models.base import Base
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.studio.bank import Bank
from hf_taskvec.studio.kept import Kept
from hf_taskvec.studio.setting import Setting
from hf_taskvec.studio.stages import Tower
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.pixels import load_pixels

MOST_STATE_BYTES = 1 << 28  # of the states before the first stage that changes, which are kept for the first images
KEPT_LOGITS = 512


@dataclass(frozen=True)
class Exam:
    """A task's test images, in a random order.

    Attributes:
        task: The task.
        pixels: Images (N, 3, H, W) in uint8.
        labels: Class numbers (N,).
        head: The zero-shot head (C, F).
    """

    task: Task
    pixels: Tensor
    labels: Tensor
    head: Tensor

    @classmethod
    def of(cls, base: Base, task: Task, *, most: int) -> Exam:
        """The first `most` of the task's test images in a random order that is always the same."""
        data = load_pixels(task, "test", base.processor.image_processor)
        rows = RandomState([len(data), 0]).permutation(len(data))[:most]
        batch = data.__getitems__(np.sort(rows).tolist())
        order = torch.from_numpy(np.argsort(np.argsort(rows)))
        pixels, labels = batch["pixel_values"][order], batch["labels"][order]
        return cls(task, pixels, labels, zero_shot_head(base, task.class_names, task.templates))


@dataclass(frozen=True)
class Measured:
    """The logits of the images that were looked at so far.

    Attributes:
        logits: Logits (n, C) of each task.
        correct: Whether each of its n images is classified correctly.
    """

    logits: tuple[Tensor, ...]
    correct: tuple[Tensor, ...]

    @property
    def accuracies(self) -> list[float]:
        """The accuracy of each task, in [0, 1]."""
        return [float(hits.float().mean()) for hits in self.correct]


class Bench:
    """A base and the images of some tasks.

    Args:
        base: The base.
        tasks: The tasks.
        quick: Images per task that every move of a slider is measured on.
        most: Images per task at most, for the refinement.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> from hf_taskvec.studio.opening import open_bank
        >>> base = load_base()
        >>> bench, bank = Bench(base, [get_task("faces")], quick=8, most=20), open_bank(base)
        >>> bench.measure(bank, bank.start).logits[0].shape, bench.blocks
        (torch.Size([8, 3]), [(0, 8), (8, 16), (16, 20)])
    """

    def __init__(self, base: Base, tasks: Sequence[Task], *, quick: int = 64, most: int = 400) -> None:
        self.base, self.tower = base, Tower(base)
        self.exams = [Exam.of(base, task, most=most) for task in tasks]
        longest = max(len(exam.labels) for exam in self.exams)
        edges = [0, min(quick, longest)]
        while edges[-1] < longest:  # each refinement doubles what is known
            edges.append(min(2 * edges[-1], longest))
        self.blocks = list(pairwise(edges))
        self._states: dict[tuple[int, int], Tensor] = {}
        self._logits: Kept[tuple[int, Setting, int], tuple[Tensor, ...]] = Kept(KEPT_LOGITS)

    @cached_property
    def tasks(self) -> list[Task]:
        """The tasks."""
        return [exam.task for exam in self.exams]

    def measure(self, bank: Bank, setting: Setting, *, blocks: int = 1) -> Measured:
        """The logits of a setting on the first blocks of images.

        Args:
            bank: The vectors.
            setting: Where the sliders stand.
            blocks: How many blocks of images; one is quick.

        Raises:
            ValueError, TaskVecError: What the merge method refuses.
        """
        rows = [self._kept(bank, setting, block) for block in range(blocks)]
        logits = tuple(torch.cat(one) for one in zip(*rows, strict=True))
        pairs = zip(logits, self.exams, strict=True)
        return Measured(logits, tuple(one.argmax(dim=-1) == exam.labels[: len(one)] for one, exam in pairs))

    def expert(self, bank: Bank, lever: int, exam: int, *, blocks: int = 1) -> float:
        """The accuracy of the base plus one vector alone on a task."""
        setting = _only(bank, {lever: 1.0}, bank.start.moments)
        hits = []
        for block in range(blocks):
            begin, end = self.blocks[block]
            hits.append(self._predicted(bank, setting, exam, block) == self.exams[exam].labels[begin:end])
        return float(torch.cat(hits).float().mean())

    def entanglement(self, bank: Bank, setting: Setting, exams: Sequence[int | None]) -> Tensor:
        """How often each vector changes what is predicted for the tasks of the others, (levers, levers).

        By row the task's own vector, by column the one that is added to it, both as the sliders stand: the share of the
        task's first images for which the sum of the two predicts another class than the own one alone. A pair's two
        shares sum up to its disentanglement error (arXiv 2305.12827).

        Args:
            bank: The vectors.
            setting: Where the sliders stand; the method does not count.
            exams: The task of each vector, `None` where no task here is its own; its row is NaN.
        """
        count = len(bank.levers)
        changed = torch.full((count, count), float("nan"))
        for own, exam in enumerate(exams):
            if exam is None:
                continue
            pairs = [{other: setting.factors[other], own: setting.factors[own]} for other in range(count)]
            told = [self._predicted(bank, _only(bank, pair, setting.moments), exam, 0) for pair in pairs]
            changed[own] = torch.stack([(one != told[own]).float().mean() for one in told])
        return changed

    def _predicted(self, bank: Bank, setting: Setting, exam: int, block: int) -> Tensor:
        """The classes that a setting predicts for the images of one task in a block."""
        deltas = bank.delta(setting)
        start = self.tower.first_changed(deltas)
        states = self._before(block, start)
        if states is None:
            start, states = 0, self._pixels(block)
        begin, end = self.blocks[block]
        counts = [len(one.labels[begin:end]) for one in self.exams]
        features = self.tower.run(states.split(counts)[exam], deltas, start=start)
        return (features @ self.exams[exam].head.T).argmax(dim=-1)

    def _kept(self, bank: Bank, setting: Setting, block: int) -> tuple[Tensor, ...]:
        unmoved = not any(setting.factors)  # the base is the base by any method and moments
        known = Setting((0.0,) * len(setting.factors), (0,) * len(setting.moments)) if unmoved else setting
        return self._logits.get((bank.key, known, block), lambda: self._block(bank.delta(known), block))

    def _block(self, deltas: Mapping[str, Tensor], block: int) -> tuple[Tensor, ...]:
        """The logits of each task's images in a block."""
        begin, end = self.blocks[block]
        counts = [len(exam.labels[begin:end]) for exam in self.exams]
        start = self.tower.first_changed(deltas)
        states = self._before(block, start)
        if states is None:
            start, states = 0, self._pixels(block)
        features = self.tower.run(states, deltas, start=start)
        split = features.split(counts)
        return tuple(own @ exam.head.T for own, exam in zip(split, self.exams, strict=True))

    def _pixels(self, block: int) -> Tensor:
        begin, end = self.blocks[block]
        return torch.cat([exam.pixels[begin:end] for exam in self.exams])

    def _before(self, block: int, stage: int) -> Tensor | None:
        """The states of a block before a stage, which no setting changes; `None` if they are too large to be kept."""
        if stage == 0 or (block, stage) in self._states:
            return self._states.get((block, stage))
        pixels = self._pixels(block)
        first = self.tower.run(pixels[:1], {}, end=stage)
        held = sum(states.nbytes for states in tuple(self._states.values()))  # another visitor may add to them
        if held + first.nbytes * len(pixels) > MOST_STATE_BYTES:
            return None
        return self._states.setdefault((block, stage), self.tower.run(pixels, {}, end=stage))


def _only(bank: Bank, factors: Mapping[int, float], moments: tuple[int, ...]) -> Setting:
    """The sum of some vectors and none of the others."""
    return Setting(tuple(factors.get(number, 0.0) for number in range(len(bank.levers))), moments)
