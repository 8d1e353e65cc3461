"""`Report`: the accuracies of one model, with the zero-shot and individual ones beside them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_taskvec.errors import CheckpointError
from hf_taskvec.evaluation.metrics import standard_error
from hf_taskvec.weights.folders import read_json, write_json


@dataclass(frozen=True)
class TaskResult:
    """Accuracy of one model on one task's split, in [0, 1].

    Attributes:
        task: Name of the task.
        accuracy: Fraction of images classified correctly.
        num_images: Number of images.
        zero_shot: The base's accuracy on the same images, if known.
        individual: The accuracy of the model fine-tuned on this task alone, on the same images, if known.
        metrics: Further metrics by name.
    """

    task: str
    accuracy: float
    num_images: int
    zero_shot: float | None = None
    individual: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)

    @property
    def standard_error(self) -> float:
        """The binomial standard error of `accuracy`."""
        return standard_error(self.accuracy, self.num_images)

    @property
    def normalized(self) -> float | None:
        """`accuracy` divided by the individual model's."""
        return self.accuracy / self.individual if self.individual else None


@dataclass(frozen=True)
class Report:
    """What `evaluate` found.

    Attributes:
        model: What was evaluated, in a few words.
        split: The part of the tasks it was evaluated on.
        results: One result per task.
        scaling: The factor of the vector in the model, if there is one.
    """

    model: str
    split: str
    results: tuple[TaskResult, ...]
    scaling: float | None = None

    @property
    def accuracy(self) -> float:
        """Mean accuracy over the tasks."""
        return sum(result.accuracy for result in self.results) / len(self.results)

    @property
    def zero_shot(self) -> float | None:
        """Mean accuracy of the base, if known for every task."""
        return self._mean(lambda result: result.zero_shot)

    @property
    def individual(self) -> float | None:
        """Mean accuracy of the individual models, if known for every task."""
        return self._mean(lambda result: result.individual)

    @property
    def normalized(self) -> float | None:
        """Mean over the tasks of accuracy divided by the individual model's."""
        return self._mean(lambda result: result.normalized)

    def with_references(
        self, *, zero_shot: Report | None = None, individual: Mapping[str, float] | None = None
    ) -> Report:
        """The report with the base's and the individual models' accuracies beside its own."""
        base = {result.task: result.accuracy for result in zero_shot.results} if zero_shot else {}
        results = tuple(
            dataclasses.replace(
                result,
                zero_shot=base.get(result.task, result.zero_shot),
                individual=(individual or {}).get(result.task, result.individual),
            )
            for result in self.results
        )
        return dataclasses.replace(self, results=results)

    def to_markdown(self) -> str:
        """A table in percent, one row per task and one for the mean."""
        lines = [
            f"| task | zero-shot | individual | {self.model} | normalised | images |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for result in self.results:
            own = f"{percent(result.accuracy)} ± {percent(result.standard_error)}"
            cells = [percent(result.zero_shot), percent(result.individual), own, percent(result.normalized)]
            lines.append(f"| {result.task} | {' | '.join(cells)} | {result.num_images:,} |")
        cells = [percent(value) for value in (self.zero_shot, self.individual, self.accuracy, self.normalized)]
        lines.append(f"| **mean** | {' | '.join(cells)} | {sum(r.num_images for r in self.results):,} |")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what can be computed from the rest is there for readers and not read back."""
        results = [
            {**dataclasses.asdict(result), "standard_error": result.standard_error, "normalized": result.normalized}
            for result in self.results
        ]
        means = {name: getattr(self, name) for name in ("accuracy", "zero_shot", "individual", "normalized")}
        return {"model": self.model, "split": self.split, "scaling": self.scaling, "mean": means, "results": results}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Reads what `to_dict` wrote."""
        names = [field.name for field in dataclasses.fields(TaskResult)]
        try:
            results = tuple(TaskResult(**{name: entry[name] for name in names}) for entry in values["results"])
            return cls(values["model"], values["split"], results, values["scaling"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"no valid report: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Reads a saved report."""
        return cls.from_dict(read_json(Path(path)))

    def _mean(self, pick: Callable[[TaskResult], float | None]) -> float | None:
        values = [value for result in self.results if (value := pick(result)) is not None]
        return sum(values) / len(values) if len(values) == len(self.results) else None


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal; a dash if unknown."""
    return "–" if value is None else f"{100 * value:.1f}"
