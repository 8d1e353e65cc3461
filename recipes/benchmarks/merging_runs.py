"""What the merging benchmark has measured so far, and lines of its tables."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hf_taskvec.text import table, table_row

_BEFORE = ("import", "load")


@dataclass(frozen=True)
class Run:
    """One merge in a process of its own.

    Attributes:
        seconds: Of the whole.
        parts: Seconds of its parts.
        peak: Peak anonymous memory in bytes.
        processor: Of each part, seconds of processor time of all threads outside the kernel and in it.
    """

    seconds: float
    parts: dict[str, float]
    peak: int
    processor: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def merging(self) -> float:
        """Seconds without imports and loading: some merge while they write, so that saving belongs to it."""
        return sum(value for name, value in self.parts.items() if name not in _BEFORE)

    @property
    def processor_merging(self) -> float:
        """Seconds of processor time of all threads for the same, in and outside of the kernel."""
        return sum(sum(value) for name, value in self.processor.items() if name not in _BEFORE)


@dataclass(frozen=True)
class Runs:
    """Every run ever measured into one file: a benchmark that was stopped goes on from there.

    Attributes:
        path: JSON lines.
    """

    path: Path

    def median(self, key: Sequence[object], run: Callable[[], Run], count: int) -> Run:
        """The median of each figure over the runs of `key`, after as many more as `count` asks for."""
        runs = self.all(key, run, count)
        parts = {name: median(one.parts[name] for one in runs) for name in runs[0].parts}
        return Run(median(one.seconds for one in runs), parts, int(median(one.peak for one in runs)))

    def all(self, key: Sequence[object], run: Callable[[], Run], count: int) -> list[Run]:
        """The runs of `key`, after as many more as `count` asks for."""
        runs = self.kept(key)
        while len(runs) < count:
            runs.append(run())
            with self.path.open("a") as file:
                file.write(json.dumps({"key": list(key), "run": dataclasses.asdict(runs[-1])}) + "\n")
        return runs

    def kept(self, key: Sequence[object]) -> list[Run]:
        """The runs of `key` so far."""
        return [Run(**line["run"]) for line in self._lines() if line["key"] == list(key)]

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def per_step(low: Run, high: Run, steps: int) -> Run:
    """What one of the `steps` costs by which two runs differ."""
    step = (high.merging - low.merging) / steps
    return Run(step, {"step": step}, high.peak)


def copy_bandwidth() -> float:
    """Bytes per second that a copy of 1 GB moves, reads and writes together, by all threads."""
    source, target = torch.ones(1 << 27), torch.empty(1 << 27)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def line(*cells: object) -> None:
    """Prints one line of a Markdown table."""
    print(table_row(cells), flush=True)


def header(*cells: str) -> None:
    """Prints the head of a Markdown table."""
    print(f"\n{table(cells, [], align='l' * len(cells))}", flush=True)
