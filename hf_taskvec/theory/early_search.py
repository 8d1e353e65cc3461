"""The search for the epochs whose merge has the best validation accuracy, and what the found ones gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_taskvec.errors import DataError
from hf_taskvec.evaluation.accuracy import predict
from hf_taskvec.evaluation.intervals import RESAMPLES, Interval
from hf_taskvec.evaluation.scalings import edit, touched
from hf_taskvec.merging import merge
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.vectors.vector import TaskVector

Picks = tuple[int, ...]  # the number of the chosen vector in each series
CHOOSING, JUDGING = slice(0, None, 2), slice(1, None, 2)  # two halves of every validation part
EQUAL = 1e-9  # accuracies are sums of fractions


class EpochSearch:
    """Merges of one vector per series, each tried at most once on a copy of the base that is edited in place.

    Args:
        base: The model the vectors are added to.
        series: The vectors of each task, by epochs, in the order of the tasks.
        tasks: The tasks.
        method: The merge method.
        scaling: The factor of its result.
        settings: Its settings.
        batch_size: Images per pass.
        progress: Whether to show a bar.

    Raises:
        DataError: If a validation part has fewer than two images.
    """

    def __init__(
        self,
        base: Base,
        series: Mapping[str, Sequence[TaskVector]],
        tasks: Sequence[Task],
        *,
        method: str,
        scaling: float,
        settings: Mapping[str, Any],
        batch_size: int,
        progress: bool,
    ) -> None:
        for task in tasks:
            images = len(load_pixels(task, "validation", base.processor.image_processor))
            if images < 2:
                raise DataError(
                    f"the validation part of {task.name!r} holds {images} images: one half is to choose, the other to "
                    "judge; choose by='growth' or by='gradient' without them"
                )
        self.series, self.tasks = series, tasks
        self.method, self.scaling, self.settings = method, scaling, dict(settings)
        self.batch_size, self.progress = batch_size, progress
        self.tried: dict[Picks, list[np.ndarray]] = {}
        first = next(iter(series.values()))[0]
        self.model, self.originals = first.apply_to(base, scaling=0.0), touched(base, first)

    @property
    def last(self) -> Picks:
        """The last vector of every series."""
        return tuple(len(run) - 1 for run in self.series.values())

    def run(self, *, rounds: int, slack: float) -> Picks:
        """The cheapest of all merges tried that are within `slack` of the best."""
        limits = sorted({vector.info.epochs or 0.0 for run in self.series.values() for vector in run})
        for limit in tqdm(limits, desc="common epochs", disable=not self.progress, leave=False):
            self.accuracy(self._up_to(limit))
        names = list(self.series)
        turns = [index for _ in range(rounds) for index in range(len(names))]
        for index in tqdm(turns, desc="epochs of each task", disable=not self.progress, leave=False):
            picks = self._best(0.0)
            for other in range(len(self.series[names[index]])):
                self.accuracy((*picks[:index], other, *picks[index + 1 :]))
        return self._best(slack)

    def accuracy(self, picks: Picks) -> float:
        """Mean accuracy over the tasks of a merge, on the images that the choice goes by."""
        return math.fsum(float(correct[CHOOSING].mean()) for correct in self._correct(picks)) / len(self.tasks)

    def evidence(self) -> dict[str, tuple[float, ...]]:
        """For each recorded epoch of each series the best accuracy of a merge with it."""
        scores = {picks: self.accuracy(picks) for picks in self.tried}
        return {
            name: tuple(
                max((value for picks, value in scores.items() if picks[index] == epoch), default=math.nan)
                for epoch in range(len(run))
            )
            for index, (name, run) in enumerate(self.series.items())
        }

    def gain(self, picks: Picks) -> Interval:
        """Accuracy over the merge of all last epochs on the other images, bootstrapped within each task."""
        differences = [
            (mine[JUDGING].astype(int) - last[JUDGING]).astype(int)
            for mine, last in zip(self._correct(picks), self._correct(self.last), strict=True)
        ]
        random = np.random.default_rng(0)
        draws = np.zeros(RESAMPLES)
        for changes in differences:  # each is -1, 0 or 1: a resample is three counts
            counts = random.multinomial(
                len(changes), [float((changes == value).mean()) for value in (-1, 0, 1)], RESAMPLES
            )
            draws += (counts[:, 2] - counts[:, 0]) / len(changes) / len(differences)
        mean = math.fsum(float(changes.mean()) for changes in differences) / len(differences)
        low, high = np.quantile(draws, [0.025, 0.975])
        return Interval(mean, float(low), float(high), sum(map(len, differences)))

    def _best(self, slack: float) -> Picks:
        scores = {picks: self.accuracy(picks) for picks in self.tried}
        enough = max(scores.values()) - slack - EQUAL
        return min((picks for picks, value in scores.items() if value >= enough), key=self._steps)

    def _steps(self, picks: Picks) -> int:
        return sum(run[pick].info.steps or 0 for run, pick in zip(self.series.values(), picks, strict=True))

    def _up_to(self, epochs: float) -> Picks:
        """Of each series the last vector of at most so many epochs, or the first."""
        counts = [sum((v.info.epochs or 0.0) <= epochs for v in run) for run in self.series.values()]
        return tuple(max(count, 1) - 1 for count in counts)

    def _correct(self, picks: Picks) -> list[np.ndarray]:
        """Which validation images of each task a merge gets right."""
        if picks not in self.tried:
            vectors = [run[pick] for run, pick in zip(self.series.values(), picks, strict=True)]
            edit(self.model, self.originals, merge(vectors, self.method, scaling=self.scaling, **self.settings))
            predictions = (predict(self.model, task, "validation", batch_size=self.batch_size) for task in self.tasks)
            self.tried[picks] = [(logits.argmax(dim=-1) == labels).numpy() for logits, labels in predictions]
        return self.tried[picks]
