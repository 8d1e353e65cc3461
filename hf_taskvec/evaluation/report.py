"""`Report`: the accuracies of one model, with the zero-shot and individual ones beside them."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from hf_taskvec.errors import CheckpointError, UnknownNameError, is_finite_number
from hf_taskvec.evaluation.metrics import METRICS, PER_CLASS
from hf_taskvec.evaluation.result import TaskResult, check_metrics, finite, fraction
from hf_taskvec.tasks import Split
from hf_taskvec.text import listed, table
from hf_taskvec.weights.folders import check_text, read_json, write_json

MOST_RESULTS = 10_000
_REQUIRED = ("task", "accuracy", "num_images")


@dataclass(frozen=True, repr=False)
class Report:
    """What `evaluate` found.

    Attributes:
        model: What was evaluated, in a few words.
        split: The part of the tasks it was evaluated on.
        results: One result per task.
        scaling: The factor of the vector in the model, if there is one.
        transductive: Whether test images were used in the making of the model.

    Raises:
        ValueError: If there is no result, or the scaling is no finite number.

    Example:
        >>> Report("merged", "test", (TaskResult("digits", 0.5, 100), TaskResult("shapes", 1.0, 50)))
        Report('merged', test: 75.0 % over 2 tasks: digits 50.0, shapes 100.0)
    """

    model: str
    split: str
    results: tuple[TaskResult, ...]
    scaling: float | None = None
    transductive: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "results", tuple(self.results))
        if not self.results:
            raise ValueError("a report needs at least one result, got none")
        if self.scaling is not None:
            object.__setattr__(self, "scaling", finite(self.scaling, "scaling of a report"))

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
        self,
        *,
        zero_shot: Report | Mapping[str, float] | None = None,
        individual: Report | Iterable[Report] | Mapping[str, float] | None = None,
    ) -> Report:
        """The report with the base's and the individual models' accuracies beside its own.

        Args:
            zero_shot: The base's report on the same split, or its accuracies by task.
            individual: The accuracy of each task's own model by task, or the reports of these models.

        Raises:
            ValueError: If a report is of another split or of other images, or two results here are of one task.
            UnknownNameError: If accuracies are given, but of none of the report's tasks.

        Example:
            >>> report = Report("merged", "test", (TaskResult("digits", 0.5, 100),))
            >>> report.with_references(zero_shot={"digits": 0.2}, individual={"digits": 0.8}).normalized
            0.625
        """
        self._check_distinct()
        base, own = self._accuracies(zero_shot, "zero_shot"), self._accuracies(individual, "individual")
        results = tuple(
            dataclasses.replace(
                result,
                zero_shot=base.get(result.task, result.zero_shot),
                individual=own.get(result.task, result.individual),
            )
            for result in self.results
        )
        return dataclasses.replace(self, results=results)

    def to_markdown(self) -> str:
        """A table in percent, one row per task and one for the mean; a second one of the classes if they were measured.

        Example:
            >>> print(Report("merged", "test", (TaskResult("digits", 0.5, 100),)).to_markdown())
            | task | zero-shot | individual | merged | normalised | images |
            | --- | ---: | ---: | ---: | ---: | ---: |
            | digits | – | – | 50.0 ± 5.0 | – | 100 |
            | **mean** | – | – | 50.0 | – | 100 |
        """
        names = _number_names(self.results)
        headers = ["task", "zero-shot", "individual", self.model, "normalised", *names, "images"]
        skipped = any(result.num_skipped for result in self.results)
        rows = []
        for result in self.results:
            own = f"{percent(result.accuracy)} ± {percent(result.standard_error)}"
            cells = [percent(result.zero_shot), percent(result.individual), own, percent(result.normalized)]
            cells += [_number(name, result.metrics.get(name)) for name in names]
            rows.append([result.task, *cells, f"{result.num_images:,}", f"{result.num_skipped:,}"])
        cells = [percent(value) for value in (self.zero_shot, self.individual, self.accuracy, self.normalized)]
        totals = [sum(result.num_images for result in self.results), sum(result.num_skipped for result in self.results)]
        rows.append(["**mean**", *cells, *[""] * len(names), *(f"{total:,}" for total in totals)])
        if skipped:
            headers.append("skipped")
        told = ["Transductive: test images were used in the making of this model."] if self.transductive else []
        return "\n\n".join([table(headers, [row[: len(headers)] for row in rows]), *told, *self._class_tables()])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what can be computed from the rest is there for readers and not read back."""
        results = [
            {**dataclasses.asdict(result), "standard_error": result.standard_error, "normalized": result.normalized}
            for result in self.results
        ]
        means = {name: getattr(self, name) for name in ("accuracy", "zero_shot", "individual", "normalized")}
        told = {"transductive": True} if self.transductive else {}
        facts = {"model": self.model, "split": self.split, "scaling": self.scaling, **told}
        return {**facts, "mean": means, "results": results}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Reads what `to_dict` wrote.

        Raises:
            CheckpointError: If something is missing, of another type, or out of range.

        Example:
            >>> Report.from_dict(Report("merged", "test", (TaskResult("digits", 0.5, 100),)).to_dict()).accuracy
            0.5
        """
        try:
            entries, model, split = values["results"], values["model"], values["split"]
            if not isinstance(entries, list) or len(entries) > MOST_RESULTS:
                raise ValueError(f"results must be a list of at most {MOST_RESULTS}")
            if not isinstance(model, str) or split not in get_args(Split):
                raise ValueError(f"model must be a string and split one of {', '.join(get_args(Split))}")
            check_text(model, "the model's name in a report")
            transductive = values.get("transductive", False)
            if not isinstance(transductive, bool):
                raise ValueError("transductive must be true or false")
            results = tuple(_read_result(entry) for entry in entries)
            report = cls(model, split, results, values["scaling"], transductive)
            report._check_distinct()
            return report
        except KeyError as error:
            raise CheckpointError(f"no valid report: it lacks {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"no valid report: {error}") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON, atomically."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Reads a saved report.

        Raises:
            CheckpointError: If the file is too large, or holds no report.

        Example:
            >>> from tempfile import mkdtemp
            >>> Report("merged", "test", (TaskResult("digits", 0.5, 100),)).save(path := f"{mkdtemp()}/report.json")
            >>> Report.load(path).accuracy
            0.5
        """
        return cls.from_dict(read_json(Path(path)))

    def __repr__(self) -> str:
        """One line that fits a screen."""
        each = listed((f"{result.task} {percent(result.accuracy)}" for result in self.results), room=160)
        count = f"{len(self.results)} task{'s' if len(self.results) > 1 else ''}"
        return f"Report({self.model[:80]!r}, {self.split}: {percent(self.accuracy)} % over {count}: {each})"

    def _repr_markdown_(self) -> str:
        """The table, for notebooks."""
        return self.to_markdown()

    def _check_distinct(self) -> None:
        """Refuses two results of one name, which the name could not tell apart."""
        counts = Counter(result.task for result in self.results)
        if repeated := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"a report holds one result per task, got several of {listed(map(repr, repeated))}")

    def _mean(self, pick: Callable[[TaskResult], float | None]) -> float | None:
        values = [value for result in self.results if (value := pick(result)) is not None]
        return sum(values) / len(values) if len(values) == len(self.results) else None

    def _class_tables(self) -> list[str]:
        tables = []
        for result in self.results:
            if isinstance(values := result.metrics.get(PER_CLASS), Mapping):
                rows = [[name, percent(value)] for name, value in values.items()]
                tables.append(table([f"class of {result.task}", "accuracy"], rows))
        return tables

    def _accuracies(self, given: object, argument: str) -> dict[str, float]:
        """The accuracies of other models on this report's tasks."""
        if given is None:
            return {}
        if isinstance(given, Report):
            given = [given]
        if isinstance(given, Mapping):
            accuracies = {task: fraction(value, f"{argument} accuracy of {task!r}") for task, value in given.items()}
            names = [result.task for result in self.results]
            if accuracies and not accuracies.keys() & set(names):
                raise UnknownNameError("task of the report", next(iter(accuracies)), names)
            return accuracies
        check_reference(given, argument)
        reports = list(given)  # type: ignore[call-overload]  # as just checked
        if not all(isinstance(report, Report) for report in reports):
            raise TypeError(f"{argument} must hold Reports, got {listed(type(report).__name__ for report in reports)}")
        return self._accuracies_of(reports, argument)

    def _accuracies_of(self, reports: Sequence[Report], argument: str) -> dict[str, float]:
        images = {result.task: result.num_images for result in self.results}
        accuracies: dict[str, float] = {}
        for report in reports:
            if report.split != self.split:
                raise ValueError(f"the {argument} report is of split {report.split!r}, this one of {self.split!r}")
            for result in report.results:
                if result.num_images != images.get(result.task, result.num_images):
                    counts = f"{result.num_images} images in the {argument} report and {images[result.task]} here"
                    raise ValueError(f"{result.task!r} has {counts}: they are not the same images")
                if result.task in accuracies:
                    raise ValueError(f"two {argument} reports hold {result.task!r}")
                accuracies[result.task] = result.accuracy
        return accuracies


def check_reference(given: object, argument: str) -> None:
    """Raises a `TypeError` unless a value can be what `Report.with_references` takes.

    Example:
        >>> check_reference({"digits": 0.9}, "individual")
    """
    if (
        given is not None
        and not isinstance(given, Report)
        and (isinstance(given, str) or not isinstance(given, Iterable))
    ):
        raise TypeError(f"{argument} must be a Report or accuracies by task, got a {type(given).__name__}")


def percent(value: float | None) -> str:
    """A fraction in percent with one decimal; a dash if unknown.

    Example:
        >>> percent(0.5), percent(None)
        ('50.0', '–')
    """
    return "–" if value is None else f"{100 * value:.1f}"


def _number_names(results: Iterable[TaskResult]) -> list[str]:
    """The metrics that are single numbers, in the order in which they come."""
    pairs = (pair for result in results for pair in result.metrics.items())
    return list(dict.fromkeys(name for name, value in pairs if is_finite_number(value)))


def _number(name: str, value: object) -> str:
    if not is_finite_number(value):
        return "–"
    return percent(value) if name in METRICS else f"{value:.4g}"


def _read_result(entry: Mapping[str, Any]) -> TaskResult:
    known = {field.name for field in dataclasses.fields(TaskResult)}
    values = {name: entry[name] for name in _REQUIRED} | {key: entry[key] for key in entry if key in known}
    result = TaskResult(**values)
    check_text(result.task, "a task's name in a report")
    check_metrics(result.metrics, repr(result.task))
    return result
