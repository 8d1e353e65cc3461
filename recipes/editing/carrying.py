"""Ways to use a vector of one base on another, and the page of what they give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from editing.choosing import few_shot, scaled
from hf_taskvec import Task, TaskVector, evaluate, gradient_vector
from hf_taskvec.arguments import command_line
from hf_taskvec.editing import transport
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.models.base import Base
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.text import table

WAYS = {
    "base": "the new base as it is",
    "plain": "the vector of the old base added as it is",
    "orthogonal_shift": "",
    "rebasin": "",
    "theseus": "shown the few images without their labels",
    "gradfix": "",
    "gradfix, force": "`force=True`",
    "rebasin, gradfix": "the vector brought by rebasin, then masked by gradfix",
    "theseus, gradfix": "likewise",
    "gradient": "no vector: one step of gradient descent on the few images",
    "few-shot": "no vector: fine-tuning on the few images",
}
CHAINS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "gradfix, force": [("gradfix", {"force": True})],
    "rebasin, gradfix": [("rebasin", {}), ("gradfix", {})],
    "theseus, gradfix": [("theseus", {}), ("gradfix", {})],
}
RATES = (1e-4, 3e-4, 1e-3)
SCALINGS = (0.1, 0.2, 0.5, 1.0, 2.0)  # of a vector as long as the old base's
Results = dict[tuple[str, str], list[dict[str, Any]]]  # by way and task, one a seed


def measure(
    old: Base, new: Base, task: Task, vector: TaskVector, way: str, *, images: int, seed: int
) -> dict[str, Any]:
    """The accuracy of one way on a task's test images, and what was chosen on validation images."""
    if way == "base":
        return {"accuracy": evaluate(new, task, progress=False).accuracy, "chosen": ""}
    few = subset(task, max_train_per_class=images, train_seed=seed)
    if way == "few-shot":
        return few_shot(new, few, task, vector.info, RATES)
    brought = _brought(old, new, few, vector, way)
    length = brought.norm()
    unit = brought * (vector.norm() / length) if length else brought
    result = scaled(new, unit, task, SCALINGS)
    return {**result, "kept": length / vector.norm()}


def _brought(old: Base, new: Base, few: Task, vector: TaskVector, way: str) -> TaskVector:
    """What is added to the new base, before it is scaled."""
    if way == "plain":
        return TaskVector(vector.deltas)  # without provenance it fits any base
    if way == "gradient":
        return gradient_vector(new, few, learning_rate=1.0, trainable_parameters=list(vector.deltas))
    for method, settings in CHAINS.get(way, [(way, {})]):
        source = None if method == "gradfix" else old
        vector = transport(vector, to=new, tasks=few, method=method, source=source, images_per_class=None, **settings)
    return vector


PAGE = """# Transport to another base

The vectors of {tasks} tasks, made on the embedded tiny-clip by `quickstart.py`, brought to {base}, of the same
architecture. {images} labelled training images a class are shown. Test accuracy in percent, mean ± 95 % interval over
{seeds} seeds (of fine-tuning and of which images are shown). Every vector is brought to the length of the old base's
and scaled by 0, 0.1, 0.2, 0.5, 1 or 2; every fine-tuning run, of the same parameters, is stopped after 0, 1, 2, 4, ...,
32 steps at a rate of 1e-4, 3e-4 or 1e-3: what is best on validation images (at most {validation} a task; {test} test
images) is taken.

    {command}

{accuracies}

{meanings}

## Against the new base, and against few-shot fine-tuning

Points over the new base, and over fine-tuning on the same images: paired by seed, mean ± 95 % interval.

{differences}

{sentences}
"""


def page(
    results: Results, tasks: Sequence[str], *, base: str, images: int, seeds: int, validation: int, test: int
) -> str:
    """The page of all results."""
    return PAGE.format(
        tasks=len(tasks),
        base=base,
        images=images,
        seeds=seeds,
        validation=validation,
        test=test,
        command=command_line(),
        accuracies=accuracy_table(results, tasks),
        meanings="\n".join(f"- `{way}`: {words}." for way, words in WAYS.items() if words and way in tried(results)),
        differences=difference_table(results, tasks),
        sentences="\n".join(sentences(results, tasks)),
    )


def tried(results: Results) -> list[str]:
    """The ways that were tried, in their order."""
    return list(dict.fromkeys(way for way, _ in results))


def values(results: Results, way: str, task: str) -> list[float]:
    return [float(one["accuracy"]) for one in results[way, task]]


def differences(results: Results, way: str, other: str, task: str) -> list[float]:
    pairs = zip(values(results, way, task), values(results, other, task), strict=True)
    return [one - two for one, two in pairs]


def accuracy_table(results: Results, tasks: Sequence[str]) -> str:
    """Accuracies by task and way, and their means over the tasks."""
    ways = tried(results)
    rows = [[task, *(str(Mean.of(values(results, way, task))) for way in ways)] for task in tasks]
    means = []
    for way in ways:
        each = zip(*(values(results, way, task) for task in tasks), strict=True)
        means.append(str(Mean.of([sum(one) / len(tasks) for one in each])))
    return table(["task", *ways], [*rows, ["**mean**", *means]], align="l" + "r" * len(ways))


def difference_table(results: Results, tasks: Sequence[str]) -> str:
    """Points of the ways that look at images over the base and over few-shot fine-tuning."""
    looking = ("gradfix", "gradfix, force", "theseus", "theseus, gradfix")
    ways = [way for way in tried(results) if way in looking]
    heads = ["task", *(f"{way} − {other}" for way in ways for other in ("base", "few-shot"))]
    rows = []
    for task in tasks:
        cells = [Mean.of(differences(results, way, other, task)) for way in ways for other in ("base", "few-shot")]
        rows.append([task, *map(str, cells)])
    return table(heads, rows, align="l" + "r" * (len(heads) - 1))


def sentences(results: Results, tasks: Sequence[str]) -> Iterator[str]:
    """How many tasks reach the aims, for each way."""
    for way in tried(results):
        if way in ("base", "few-shot"):
            continue
        over = [Mean.of(differences(results, way, "base", task)).value >= 0.15 for task in tasks]
        above = [Mean.of(differences(results, way, "few-shot", task)).value > 0 for task in tasks]
        both = sum(a and b for a, b in zip(over, above, strict=True))
        yield (
            f"- `{way}`: at least 15 points over the new base on {sum(over)} of {len(tasks)} tasks, above few-shot "
            f"fine-tuning on {sum(above)}, both on {both} (aim: both on six)."
        )
