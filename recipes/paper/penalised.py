"""Vectors trained with penalties or with one too long among them, their merges, and the table of these."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_taskvec import Report, Task, TaskVector, TaskVectorConfig, choose_scaling, evaluate, merge
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.models.base import Base
from hf_taskvec.text import table
from hf_taskvec.training.run import train_vector
from hf_taskvec.weights.folders import write_json

PLAIN, LONG = "plain", "one long"
HEADERS = ["vectors", "merge", "norm", "individual", "merged", "normalised", "gain", "scalings"]
Results = Mapping[tuple[str, str], Sequence[tuple[Report, list[float]]]]  # by kind of vectors and way to merge


@dataclass(frozen=True)
class Runs:
    """The fine-tuning runs of one seed.

    Attributes:
        base: The base.
        tasks: The tasks.
        config: The settings.
        folder: Where the vectors are kept.
        seed: The seed.
    """

    base: Base
    tasks: Sequence[Task]
    config: TaskVectorConfig
    folder: Path
    seed: int

    def vectors(
        self, penalties: Sequence[tuple[str, float]], *, long: Task, rate: float
    ) -> Iterator[tuple[str, dict[str, TaskVector]]]:
        """The vectors by kind: plain ones, with one long among them, and those of each penalty."""
        plain = {task.name: self._train(task, self.config, task.name) for task in self.tasks}
        yield PLAIN, plain
        faster = copy.copy(self.config)
        faster.learning_rate *= rate
        yield LONG, {**plain, long.name: self._train(long, faster, f"{long.name}-{rate:g}")}
        for penalty, strength in penalties:
            settings, kind = copy.copy(self.config), f"{penalty} {strength:g}"
            setattr(settings, penalty, strength)
            yield kind, {t.name: self._train(t, settings, f"{kind.replace(' ', '-')}/{t.name}") for t in self.tasks}

    def _train(self, task: Task, config: TaskVectorConfig, name: str) -> TaskVector:
        return train_vector(self.base, task, config, output_dir=self.folder / name, seed=self.seed)


def write_own(base: Base, tasks: Sequence[Task], vectors: Mapping[str, TaskVector], path: Path) -> None:
    """Writes each task's accuracy with its own vector."""
    write_json(path, evaluate_individually(base, vectors, tasks))


def write_merged(
    base: Base,
    tasks: Sequence[Task],
    vectors: Mapping[str, TaskVector],
    path: Path,
    *,
    way: str,
    scalings: Sequence[float],
) -> None:
    """Writes the report of a merge ("distac of ties" is `distac` with `of="ties"`) at its best scaling."""
    method, _, inner = way.partition(" of ")
    settings: dict[str, Any] = {"of": inner} if inner else {}
    merged = merge(list(vectors.values()), method, **settings)
    scaling = choose_scaling(base, merged, tasks, scalings=scalings)
    evaluate(merged.apply_to(base, scaling=scaling), tasks, label=way, scaling=scaling).save(path)


def penalties_table(results: Results) -> str:
    """One line for each kind of vectors and way to merge them, with 95 % intervals over seeds."""
    rows = []
    for (kind, way), runs in results.items():
        method, _, inner = way.partition(" of ")
        reference = (kind, inner) if inner else (PLAIN, method)
        norm = f"{fmean(fmean(norms) for _, norms in runs):.2f} ({fmean(max(norms) for _, norms in runs):.2f})"
        columns = [[getattr(report, name) for report, _ in runs] for name in ("individual", "accuracy", "normalized")]
        pairs = zip(runs, results[reference], strict=True)
        gain = Mean.of([one.accuracy - other.accuracy for (one, _), (other, _) in pairs])
        shown = [str(Mean.of(column)) for column in columns] + ["-" if reference == (kind, way) else str(gain)]
        rows.append([kind, f"`{way}`", norm, *shown, ", ".join(f"{report.scaling:g}" for report, _ in runs)])
    return table(HEADERS, rows, align="llrrrrrr")
