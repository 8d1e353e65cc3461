"""Vectors merged one after another in many orders: what is measured of one order, and the page of all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from numpy.random import RandomState

from hf_taskvec import Task, TaskVector, choose_scaling, evaluate, merge
from hf_taskvec.arguments import command_line
from hf_taskvec.evaluation.scalings import edit, touched
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.merging.continual import ContinualMerge
from hf_taskvec.merging.sequential import RULES
from hf_taskvec.models.base import Base
from hf_taskvec.text import table
from hf_taskvec.vectors.info import library_versions

BATCH = ("task_arithmetic", "ties", "tsv_m", "iso_c")
SCALINGS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5)
UNORDERED = ("magmax", "average", "task_arithmetic")  # of the ways to merge one after another
AIM = 0.5  # points between the best and the worst order

PAGE = """# One after another

The vectors of {tasks} tasks merged one after another, in memory that does not grow with them, in {orders} orders drawn
by chance, the same for every method and seed. Mean test accuracy in percent over the tasks, mean ± 95 % interval over
{seeds} seed(s) of fine-tuning; `all at once` are merges that have all vectors before them. The scaling of each method
was chosen on validation images with the first order, once a seed. Spread: the standard deviation over the orders, and
the best order minus the worst, in points. Backward transfer, over {mid} order(s): the accuracy of a task at the end
minus that right after its vector was added, mean over all tasks but the last, in points. {images} test images a task.
{versions}.

    {command}

{accuracies}

{aim}
"""


@dataclass(frozen=True)
class Bench:
    """What one seed's vectors are measured with: one copy of the base that is edited in place."""

    base: Base
    tasks: Sequence[Task]
    vectors: Mapping[str, TaskVector]

    def measured(self, vector: TaskVector, scaling: float, tasks: Sequence[Task], edited: Base) -> list[float]:
        """Test accuracies with a vector, on some tasks."""
        edit(edited, touched(self.base, vector), vector, scaling=scaling)
        return [result.accuracy for result in evaluate(edited, tasks, progress=False).results]

    def copy(self) -> Base:
        """A copy of the base to edit."""
        return next(iter(self.vectors.values())).apply_to(self.base, scaling=0)


def drawn_orders(names: Sequence[str], count: int) -> list[list[str]]:
    """So many orders of the tasks, drawn by chance."""
    return [[str(name) for name in RandomState([number]).permutation(np.array(names))] for number in range(count)]


def measure_batch(bench: Bench, method: str) -> dict[str, Any]:
    """Scaling and accuracies of a merge of all vectors at once."""
    merged = merge([bench.vectors[task.name] for task in bench.tasks], method)
    scaling = choose_scaling(bench.base, merged, bench.tasks, scalings=SCALINGS, progress=False)
    return {"scaling": float(scaling), "accuracies": bench.measured(merged, scaling, bench.tasks, bench.copy())}


def sequence_scaling(bench: Bench, method: str, order: Sequence[str]) -> dict[str, Any]:
    """The scaling that validation images want of a sequence in one order."""
    merged = merged_in_order(bench, method, order).vector()
    return {"scaling": float(choose_scaling(bench.base, merged, bench.tasks, scalings=SCALINGS, progress=False))}


def merged_in_order(bench: Bench, method: str, order: Sequence[str]) -> ContinualMerge:
    sequence = ContinualMerge(method)
    for name in order:
        sequence = sequence.add(bench.vectors[name])
    return sequence


def measure_order(bench: Bench, method: str, order: Sequence[str], *, scaling: float, between: bool) -> dict[str, Any]:
    """Accuracies at the end of one order, and if wanted that of each task right after its vector was added."""
    sequence, edited, after = ContinualMerge(method), bench.copy(), list[float]()
    by_name = {task.name: task for task in bench.tasks}
    for name in order:
        sequence = sequence.add(bench.vectors[name])
        if between:
            after += bench.measured(sequence.vector(), scaling, [by_name[name]], edited)
    last = bench.measured(sequence.vector(), scaling, bench.tasks, edited)
    return {"order": list(order), "after": after, "accuracies": last}


def backward_transfer(run: Mapping[str, Any], names: Sequence[str]) -> float:
    """How much the tasks before the last gained at the end over when they were added."""
    last = dict(zip(names, run["accuracies"], strict=True))
    return fmean(last[name] - after for name, after in zip(run["order"][:-1], run["after"], strict=False))


def page(
    batch: Mapping[str, Sequence[Mapping[str, Any]]],
    sequences: Mapping[str, Sequence[Mapping[str, Any]]],
    names: Sequence[str],
    *,
    orders: int,
    between: int,
    images: int | None,
) -> str:
    """The page: of each method, a list of what was measured with each seed."""
    rows = []
    for method, seeds in batch.items():
        row = [f"`{method}`, all at once", str(Mean.of([fmean(seed["accuracies"]) for seed in seeds]))]
        rows.append([*row, "", "", "", ", ".join(f"{seed['scaling']:g}" for seed in seeds)])
    for method, seeds in sequences.items():
        finals = final_accuracies(seeds)
        ranges = [max(final) - min(final) for final in finals]
        transfers = [fmean(backward_transfer(run, names) for run in seed["runs"] if run["after"]) for seed in seeds]
        row = [f"`{method}`", str(Mean.of([fmean(final) for final in finals]))]
        row += [str(Mean.of([pstdev(final) for final in finals])), str(Mean.of(ranges)), str(Mean.of(transfers))]
        rows.append([*row, ", ".join(f"{seed['scaling']:g}" for seed in seeds)])
    heads = ["method", "accuracy", "spread (sd)", "best minus worst", "backward transfer", "scaling"]
    return PAGE.format(
        tasks=len(names),
        orders=orders,
        mid=between,
        seeds=max(len(seeds) for seeds in sequences.values()),
        images="All" if images is None else f"At most {images}",
        versions=", ".join(f"{name} {version}" for name, version in library_versions().items()),
        command=command_line(),
        accuracies=table(heads, rows, align="lrrrrr"),
        aim="\n".join(sentences(batch, sequences)),
    )


def final_accuracies(seeds: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Of each seed, the mean accuracy over the tasks at the end of each order."""
    return [[fmean(run["accuracies"]) for run in seed["runs"]] for seed in seeds]


def sentences(
    batch: Mapping[str, Sequence[Mapping[str, Any]]], sequences: Mapping[str, Sequence[Mapping[str, Any]]]
) -> Iterator[str]:
    """Whether the ways that know an order stay within the aim, and the best of them beside the best of all at once."""
    same = ", ".join(f"`{name}`" for name in sequences if name in UNORDERED)
    if same:
        yield f"- No order changes {same} but by rounding."
    finals = {name: final_accuracies(seeds) for name, seeds in sequences.items() if name not in UNORDERED}
    for name, seeds in finals.items():
        deviation, between = fmean(map(pstdev, seeds)), fmean(max(final) - min(final) for final in seeds)
        verdicts = ["reached" if 100 * value <= AIM else "missed" for value in (deviation, between)]
        yield (
            f"- Aim, a spread of at most {AIM} points over the orders, mean over the seeds: `{name}` {verdicts[0]} as "
            f"standard deviation ({100 * deviation:.2f}), {verdicts[1]} as best minus worst ({100 * between:.2f})."
        )
    if finals and batch:
        best = max(finals, key=lambda name: fmean(map(fmean, finals[name])))
        other = max(batch, key=lambda name: fmean(fmean(seed["accuracies"]) for seed in batch[name]))
        pairs = zip(finals[best], batch[other], strict=True)
        difference = Mean.of([fmean(final) - fmean(seed["accuracies"]) for final, seed in pairs])
        yield f"- `{best}`, mean over the orders, minus `{other}` all at once, seed by seed: {difference} points."


METHODS = tuple(RULES)
