"""What models are worth on corrupted images and between the base and themselves, and the page of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from hf_taskvec import Task, TaskVector, choose_scaling, evaluate, merge
from hf_taskvec.arguments import command_line
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.evaluation.wise_ft import Interpolation, wise_ft
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import corruption_suite
from hf_taskvec.tasks.distortions import KINDS
from hf_taskvec.text import table
from hf_taskvec.vectors.info import library_versions

SCALINGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
EXPERTS = "individual"
Accuracies = dict[str, dict[str, float]]  # by task, then by kind and strength, "clean" among them
Seeds = dict[str, list[Accuracies]]  # by model, one a seed

PAGE = """# Robustness

Base, {tasks} tasks' own models and merges of them on test images with the seven corruptions at strengths {strengths}
(`hf_taskvec.tasks.corrupt`). Accuracy in percent, mean over the tasks ± 95 % interval over {seeds} seed(s) of
fine-tuning; the base has none. Relative: the mean over all corruptions over the accuracy on clean images. Scalings of
merges were chosen on clean validation images. {images} test images a task.
{versions}.

    {command}

{accuracies}

By corruption, mean over the strengths:

{kinds}

## Between base and expert

WiSE-FT: base plus α times a task's own vector, mean over tasks and seeds, accuracy in percent. Control: the other
tasks; or the task's own images with the seven corruptions at strength {middle}.

{curve}

![target against control](robustness.png)

{best}
"""


def measure(model: Base, tasks: Sequence[Task], strengths: Sequence[int]) -> Accuracies:
    """Accuracies on clean and corrupted test images of each task."""
    result = {}
    for task in tasks:
        suite = corruption_suite(task, strengths=strengths)
        names = ["clean", *(f"{one.kind} {one.strength}" for one in suite)]
        accuracies = [one.accuracy for one in evaluate(model, [task, *suite], progress=False).results]
        result[task.name] = dict(zip(names, accuracies, strict=True))
    return result


def measure_merge(
    base: Base, vectors: Mapping[str, TaskVector], tasks: Sequence[Task], method: str, strengths: Sequence[int]
) -> Accuracies:
    """The same of a merge."""
    merged = merge([vectors[task.name] for task in tasks], method)
    scaling = choose_scaling(base, merged, tasks, scalings=SCALINGS, progress=False)
    return measure(merged.apply_to(base, scaling=scaling), tasks, strengths)


def measure_way(
    base: Base, vector: TaskVector, task: Task, others: Sequence[Task], *, strength: int, alphas: Sequence[float]
) -> dict[str, Any]:
    """Accuracies between the base and a task's own model: on it, on other tasks, on its own corrupted images."""
    suite = corruption_suite(task, strengths=[strength])
    way = wise_ft(base, vector, task, [*others, *suite], alphas=alphas, progress=False)
    names = {one.name for one in others}
    control = [
        [fmean(one.accuracy for one in report.results[1:] if (one.task in names) is wanted) for wanted in (True, False)]
        for report in way.reports.values()
    ]
    return {"alphas": way.alphas, "target": way.target, "control": control}


def curves(ways: Sequence[Mapping[str, Any]]) -> dict[str, Interpolation]:
    """The mean curves of all tasks and seeds, by control."""
    return {
        name: Interpolation.mean(
            [
                Interpolation(tuple(way["alphas"]), tuple(way["target"]), tuple(both[place] for both in way["control"]))
                for way in ways
            ]
        )
        for place, name in enumerate(("other tasks", "own task, corrupted"))
    }


def page(
    results: Seeds, ways: Mapping[str, Interpolation], *, strengths: Sequence[int], middle: int, images: int | None
) -> str:
    """The page of all models."""
    first = results["base"][0]
    return PAGE.format(
        tasks=len(first),
        strengths=", ".join(map(str, strengths)),
        seeds=max(map(len, results.values())),
        images="All" if images is None else f"At most {images}",
        versions=", ".join(f"{name} {version}" for name, version in library_versions().items()),
        command=command_line(),
        accuracies=accuracy_table(results, strengths),
        kinds=kind_table(results),
        middle=middle,
        curve=curve_table(ways),
        best="\n".join(sentences(ways)),
    )


def mean_of(accuracies: Accuracies, word: str | None = None) -> float:
    """The mean over the tasks, on what has the word in its name, or on all corruptions."""
    return fmean(
        value
        for one in accuracies.values()
        for name, value in one.items()
        if (name != "clean" if word is None else word in name.split())
    )


def accuracy_table(results: Seeds, strengths: Sequence[int]) -> str:
    """Accuracies of each model by strength."""
    rows = []
    for model, seeds in results.items():
        clean, corrupted = [mean_of(one, "clean") for one in seeds], [mean_of(one) for one in seeds]
        relative = [left / whole for left, whole in zip(corrupted, clean, strict=True)]
        each = [str(Mean.of([mean_of(one, str(strength)) for one in seeds])) for strength in strengths]
        rows.append([model, str(Mean.of(clean)), *each, str(Mean.of(corrupted)), str(Mean.of(relative))])
    heads = ["model", "clean", *(f"strength {strength}" for strength in strengths), "all corruptions", "relative"]
    return table(heads, rows, align="l" + "r" * (len(heads) - 1))


def kind_table(results: Seeds) -> str:
    """Accuracies of each model by corruption."""
    rows = [
        [kind, *(str(Mean.of([mean_of(one, kind) for one in seeds])) for seeds in results.values())] for kind in KINDS
    ]
    return table(["corruption", *results], rows, align="l" + "r" * len(results))


def curve_table(ways: Mapping[str, Interpolation]) -> str:
    """Accuracies along the way."""
    first = next(iter(ways.values()))
    columns = [first.target, *(way.control for way in ways.values())]
    rows = [
        [f"{alpha:g}", *(f"{100 * value:.1f}" for value in values)]
        for alpha, *values in zip(first.alphas, *columns, strict=True)
    ]
    return table(["α", "target", *(f"control: {name}" for name in ways)], rows, align="r" * (2 + len(ways)))


def sentences(ways: Mapping[str, Interpolation]) -> list[str]:
    """Where each control is best, beside the expert."""
    lines = []
    for name, way in ways.items():
        best = max(range(len(way.alphas)), key=way.control.__getitem__)
        target, control = 100 * (way.target[best] - way.target[-1]), 100 * (way.control[best] - way.control[-1])
        lines.append(
            f"- Control {name}: highest at α = {way.alphas[best]:g}, {control:+.1f} points beside the expert, with "
            f"{target:+.1f} points of target accuracy."
        )
    return lines
