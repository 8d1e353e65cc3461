"""Summaries of reports over seeds: means with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hf_taskvec.report import Report, percent


@dataclass(frozen=True)
class Mean:
    """A mean with the half-width of its 95 % Student-t confidence interval, NaN for a single value."""

    value: float
    half_width: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """The mean of some values."""
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
    """
    first = next(iter(reports.values()))
    names = list(reports)
    lines = [
        "| task | zero-shot | individual | " + " | ".join(f"{name} | normalised" for name in names) + " |",
        "| --- |" + " ---: |" * (2 + 2 * len(names)),
    ]
    for index, result in enumerate(first[0].results):
        lines.append(_row(result.task, reports, lambda report, name, i=index: getattr(report.results[i], name)))
    lines.append(_row("**mean**", reports, lambda report, name: getattr(report, name)))
    return "\n".join(lines)


def _row(label: str, reports: Mapping[str, Sequence[Report]], pick: Callable[[Report, str], float | None]) -> str:
    def cell(runs: Sequence[Report], name: str) -> str:
        values = [value for report in runs if (value := pick(report, name)) is not None]
        return str(Mean.of(values)) if len(values) == len(runs) else "–"

    first = next(iter(reports.values()))
    cells = [percent(pick(first[0], "zero_shot")), cell(first, "individual")]
    for runs in reports.values():
        cells += [cell(runs, "accuracy"), cell(runs, "normalized")]
    return f"| {label} | {' | '.join(cells)} |"
