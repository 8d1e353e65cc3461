"""The page of receipts of forgetting: three ways, several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from hf_taskvec.arguments import command_line
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.text import table

WAYS = {
    "forget": "strength of the negated vector chosen",
    "ascent": "strength of the gradient chosen",
    "negation": "the whole vector taken away",
}
Receipts = dict[tuple[str, str], list[dict[str, Any]]]  # by way and task, one a seed

PAGE = """# Forgetting

Each of {tasks} tasks taken from the base, the others being the control suite. Test accuracy in percent, mean ± 95 %
interval over {seeds} seed(s) of fine-tuning; of the control tasks the share of their mean accuracy that is kept and,
in brackets, the mean lower end of its 95 % interval over images. Strengths are chosen on validation images, so that
{keep} % are kept by the lower end there.

    {command}

{accuracies}

{sentences}

## What is left

How well the loss tells training images from test images (area under the ROC curve, 0.5 for not at all), and the steps
of fine-tuning, of 1, 2, 4, ..., after which the task is as good as with the base.

{traces}
"""


def page(receipts: Receipts, tasks: Sequence[str], *, budget: float, seeds: int) -> str:
    """The page of all receipts."""
    return PAGE.format(
        tasks=len(tasks),
        seeds=seeds,
        keep=f"{100 * (1 - budget):g}",
        command=command_line(),
        accuracies=accuracy_table(receipts, tasks),
        sentences="\n".join(sentences(receipts, tasks)),
        traces=trace_table(receipts, tasks),
    )


def accuracy_table(receipts: Receipts, tasks: Sequence[str]) -> str:
    """Accuracies of each task, and what its control tasks keep, by way."""
    heads = ["task", "chance", "base"]
    for way in WAYS:
        heads += [way, "strength", "control kept"]
    rows = []
    for task in tasks:
        first = next(iter(made(receipts, "negation", task)))
        row = [task, f"{100 * first['target']['chance']:.1f}", f"{100 * first['target']['before']:.1f}"]
        for way in WAYS:
            each = made(receipts, way, task)
            if not each:
                row += ["none", "", ""]
                continue
            low = 100 * sum(one["control"]["kept_low"] for one in each) / len(each)
            strengths = ", ".join(f"{one['strength']:g}" for one in each)
            after = percent([one["target"]["after"] for one in each])
            row += [after, strengths, f"{percent([one['control']['kept'] for one in each])} [{low:.1f}]"]
        rows.append(row)
    return table(heads, rows, align="l" + "r" * (len(heads) - 1))


def trace_table(receipts: Receipts, tasks: Sequence[str]) -> str:
    """Membership and relearning of each task."""
    rows = []
    for task in tasks:
        each = made(receipts, "forget", task)
        areas = [mean_area(each, model) for model in ("base", "expert", "forgotten")]
        steps = ", ".join(str(one["relearning"]["steps"]) for one in each if one["relearning"])
        rows.append([task, *areas, steps])
    return table(["task", "base", "base and vector", "forgotten", "steps to relearn"], rows, align="lrrrr")


def mean_area(receipts: Sequence[dict[str, Any]], model: str) -> str:
    areas = [one["membership"][model]["auc"] for one in receipts if one["membership"]]
    return f"{fmean(areas):.3f}" if areas else ""


def sentences(receipts: Receipts, tasks: Sequence[str]) -> Iterator[str]:
    """How many tasks reach the aims."""
    first = {task: made(receipts, "negation", task)[0]["target"] for task in tasks}
    known = [task for task, target in first.items() if target["before"] > 1.5 * target["chance"]]
    for way, words in WAYS.items():
        reached = []
        for task in known:
            each = made(receipts, way, task)
            low = all(one["target"]["after"] <= 1.5 * one["target"]["chance"] for one in each)
            kept = all(one["control"]["kept_low"] >= 0.94 for one in each)
            reached.append((bool(each) and low, bool(each) and kept))
        gone, both = sum(low for low, _ in reached), sum(low and kept for low, kept in reached)
        yield (
            f"- `{way}` ({words}): at most 1.5 times chance with every seed on {gone} of {len(known)} tasks that the "
            f"base knows better; of these the control tasks keep 94 % by the lower end on {both}."
        )


def made(receipts: Receipts, way: str, task: str) -> list[dict[str, Any]]:
    """The receipts of seeds where there was a strength that kept enough."""
    return [receipt for receipt in receipts[way, task] if "refused" not in receipt]


def percent(shares: Sequence[float]) -> str:
    return str(Mean.of(shares))
