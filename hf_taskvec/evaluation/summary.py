"""Summaries of reports over seeds: means with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hf_taskvec.evaluation.report import Report, percent
from hf_taskvec.evaluation.result import TaskResult
from hf_taskvec.text import table


@dataclass(frozen=True)
class Mean:
    """A mean with the half-width of its 95 % Student-t confidence interval, NaN for a single value."""

    value: float
    half_width: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of some values.

        Example:
            >>> str(Mean.of([0.5, 0.5]))
            '50.0 ± 0.0'
        """
        array = np.asarray(values, dtype=float)
        if len(array) < 2:
            return cls(float(array.mean()), math.nan, len(array))
        width = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
        return cls(float(array.mean()), float(width), len(array))

    def __str__(self) -> str:
        """In percent, with the half-width if there is one."""
        return percent(self.value) + ("" if math.isnan(self.half_width) else f" ± {percent(self.half_width)}")


def summary_table(reports: Mapping[str, Sequence[Report]]) -> str:
    """A Markdown table in percent: per task zero-shot, individual, and each model's accuracy and normalised accuracy.

    Args:
        reports: For each model, one report per seed, all on the same tasks and with references.

    Example:
        >>> from hf_taskvec import TaskResult
        >>> report = Report("merged", "test", (TaskResult("digits", 0.5, 100, zero_shot=0.2, individual=0.8),))
        >>> print(summary_table({"ties": [report, report]}))
        | task | zero-shot | individual | ties | normalised |
        | --- | ---: | ---: | ---: | ---: |
        | digits | 20.0 | 80.0 ± 0.0 | 50.0 ± 0.0 | 62.5 ± 0.0 |
        | **mean** | 20.0 | 80.0 ± 0.0 | 50.0 ± 0.0 | 62.5 ± 0.0 |
    """
    first = next(iter(reports.values()))
    headers = ["task", "zero-shot", "individual", *(title for name in reports for title in (name, "normalised"))]
    cells = []
    for index, result in enumerate(first[0].results):
        rows = {name: [report.results[index] for report in runs] for name, runs in reports.items()}
        cells.append(_row(result.task, rows))
    return table(headers, [*cells, _row("**mean**", reports)])


def _row(label: str, runs: Mapping[str, Sequence[Report | TaskResult]]) -> list[str]:
    def cell(rows: Sequence[Report | TaskResult], name: str) -> str:
        values = [getattr(row, name) for row in rows]
        return "–" if None in values else str(Mean.of(values))

    first = next(iter(runs.values()))
    cells = [percent(first[0].zero_shot), cell(first, "individual")]
    for rows in runs.values():
        cells += [cell(rows, "accuracy"), cell(rows, "normalized")]
    return [label, *cells]
