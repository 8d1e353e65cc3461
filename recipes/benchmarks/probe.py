"""How rich a base's features are: a linear probe on them, and zero-shot accuracy, on validation parts only.

PYTHONPATH=recipes python recipes/benchmarks/probe.py --variants embedded out/feature-clip --data_dir <folder>

A folder of an unfinished pretraining run is judged by its averaged weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from pretraining.probe import linear_probe, open_variant
from tiny_clip_study import TASKS

from hf_taskvec import Task, evaluate, get_tasks
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.evaluation.report import percent
from hf_taskvec.text import table, table_row


@dataclass
class ProbeArguments:
    variants: list[str] = arg("Folders or Hub ids of CLIP models, or unfinished runs; `embedded` is the shipped one.")
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    tasks: list[str] = arg("Tasks to judge them on.", default=TASKS)


@dataclass(frozen=True)
class Probe:
    """Validation accuracies of one base by task."""

    variant: str
    linear: dict[str, float]
    zero_shot: dict[str, float]

    def row(self) -> str:
        """The figures in percent as two rows of a table: linear probe and zero-shot, the mean last."""
        rows = []
        for name, scores in (("linear probe", self.linear), ("zero-shot", self.zero_shot)):
            values = [*scores.values(), fmean(scores.values())]
            rows.append(table_row([self.variant, name, *map(percent, values)]))
        return "\n".join(rows)


def probe(variant: str, tasks: Sequence[Task]) -> Probe:
    """Linear probe and zero-shot accuracy of one base on each task."""
    base = open_variant(variant)
    report = evaluate(base, tasks, split="validation")
    zero_shot = {result.task: result.accuracy for result in report.results}
    return Probe(base.name, {task.name: linear_probe(base, task) for task in tasks}, zero_shot)


def main(args: ProbeArguments) -> list[Probe]:
    """Prints the table and returns its rows."""
    tasks = get_tasks(args.tasks, data_dir=args.data_dir)
    print(table(["base", "", *(task.name for task in tasks), "mean"], [], align="ll" + "r" * (len(tasks) + 1)))
    probes = []
    for variant in args.variants:
        probes.append(probe(variant, tasks))
        print(probes[-1].row(), flush=True)
    return probes


if __name__ == "__main__":
    run_recipe(main, ProbeArguments)
