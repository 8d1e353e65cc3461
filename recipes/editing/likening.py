"""Worked analogies: four tasks each, what is measured on the fourth, and the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import DatasetDict

from editing.choosing import few_shot
from hf_taskvec import Task, TaskVector, evaluate
from hf_taskvec.arguments import command_line
from hf_taskvec.editing import analogy, choose_analogy
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.models.base import Base
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.text import table

WAYS = {
    "zero-shot": "the base as it is",
    "c": "the third vector alone",
    "c + (b − a)": "the analogy with factor 1",
    "analogy": "the analogy with the factor that `choose_analogy` chooses on validation images, without labels",
    "few-shot": "fine-tuning on labelled images of the fourth task itself, with rate and steps chosen on labelled "
    "validation images",
}
RATES = (1e-4, 3e-4, 1e-3)
Results = dict[tuple[str, str], list[dict[str, Any]]]  # by example and way, one a seed
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """An analogy: a is to b as c is to d, of which there is no vector.

    Attributes:
        words: What it is, for the page.
        make: The four tasks, of whole ones by name.
    """

    words: str
    make: Callable[[Mapping[str, Task]], tuple[Task, Task, Task, Task]]


def chosen(task: Task, name: str, keep: Callable[[Row], bool]) -> Task:
    """The task on some of its rows."""
    parts = DatasetDict({split: task.load(split).filter(keep) for split in ("train", "validation", "test")})
    return Task.from_dataset(
        parts, name=name, validation_split="validation", class_names=task.class_names, templates=task.templates
    )


def scans(tasks: Mapping[str, Task]) -> tuple[Task, Task, Task, Task]:
    """The digits 0 to 4 and 5 to 9, of two sources."""
    mnist, other = tasks["mnist"], tasks["digits"]
    return (
        chosen(mnist, "mnist-low", is_low),
        chosen(other, "digits-low", is_low),
        chosen(mnist, "mnist-high", lambda row: not is_low(row)),
        chosen(other, "digits-high", lambda row: not is_low(row)),
    )


def is_low(row: Row) -> bool:
    """Whether it is a digit below 5."""
    return bool(row["label"] < 5)


def light(tasks: Mapping[str, Task]) -> tuple[Task, Task, Task, Task]:
    """Traffic signs of even and of odd class numbers, each lighter and darker than the median image."""
    signs = tasks["gtsrb"]
    middle = float(np.median([brightness(row) for row in signs.load("train")]))
    return (
        chosen(signs, "gtsrb-even-light", lambda row: row["label"] % 2 == 0 and brightness(row) >= middle),
        chosen(signs, "gtsrb-even-dark", lambda row: row["label"] % 2 == 0 and brightness(row) < middle),
        chosen(signs, "gtsrb-odd-light", lambda row: row["label"] % 2 == 1 and brightness(row) >= middle),
        chosen(signs, "gtsrb-odd-dark", lambda row: row["label"] % 2 == 1 and brightness(row) < middle),
    )


def brightness(row: Row) -> float:
    """The mean grey value of an image."""
    return float(np.asarray(row["image"].convert("L")).mean())


EXAMPLES = {
    "scans": Example(
        "a domain shift: digits 0 to 4 of MNIST (a) and of another source, UCI's optical digits of 8 by 8 pixels, as "
        "the embedded task `digits` has them (b), digits 5 to 9 of MNIST (c) and of the other source (d); all ten "
        "classes are told apart",
        scans,
    ),
    "light": Example(
        "a subpopulation: traffic signs (gtsrb) of even class numbers, the lighter half of all images (a) and the "
        "darker (b), signs of odd class numbers, the lighter (c) and the darker (d); all 43 classes are told apart",
        light,
    ),
}


def measure(
    base: Base, vectors: Sequence[TaskVector], fourth: Task, way: str, *, images: int, seed: int
) -> dict[str, Any]:
    """The accuracy of one way on the fourth task's test images."""
    a, b, c = vectors
    if way == "few-shot":
        few = subset(fourth, max_train_per_class=images, train_seed=seed)
        return few_shot(base, few, fourth, c.info, RATES)
    if way == "zero-shot":
        return {"accuracy": evaluate(base, fourth, progress=False).accuracy}
    factor = {"c": 0.0, "c + (b − a)": 1.0}.get(way)
    if factor is None:
        factor = choose_analogy(base, a, b, c, fourth, progress=False).factor
    model = analogy(a, b, c, factor=factor).apply_to(base)
    return {"accuracy": evaluate(model, fourth, progress=False).accuracy, "factor": factor}


PAGE = """# Analogies

A vector of a task that nobody trained on, c + α(b − a), on the embedded tiny-clip. Test accuracy on the fourth task in
percent, mean ± 95 % interval over {seeds} seeds of fine-tuning (and of which {images} images a class few-shot
fine-tuning sees); vectors of at most {train} images and {epochs} epochs; at most {validation} validation and {test}
test images.

    {command}

{examples}

{accuracies}

{meanings}

Points, paired by seed:

{differences}

{sentences}
"""


def page(results: Results, *, seeds: int, images: int, train: int, epochs: int, validation: int, test: int) -> str:
    """The page of all results."""
    examples = list(dict.fromkeys(example for example, _ in results))
    return PAGE.format(
        seeds=seeds,
        images=images,
        train=train,
        epochs=epochs,
        validation=validation,
        test=test,
        command=command_line(),
        examples="\n".join(f"- `{example}`: {EXAMPLES[example].words}." for example in examples),
        accuracies=accuracy_table(results, examples),
        meanings="\n".join(f"- `{way}`: {words}." for way, words in WAYS.items()),
        differences=difference_table(results, examples),
        sentences="\n".join(sentences(results, examples)),
    )


def values(results: Results, example: str, way: str) -> list[float]:
    return [float(one["accuracy"]) for one in results[example, way]]


def accuracy_table(results: Results, examples: Sequence[str]) -> str:
    """Accuracies by example and way, and the factors that were chosen."""
    rows = []
    for example in examples:
        factors = ", ".join(f"{one['factor']:g}" for one in results[example, "analogy"])
        rows.append([example, *(str(Mean.of(values(results, example, way))) for way in WAYS), factors])
    return table(["example", *WAYS, "factors"], rows, align="l" + "r" * (len(WAYS) + 1))


def gain(results: Results, example: str, other: str) -> Mean:
    """What the analogy brings over another way, paired by seed."""
    pairs = zip(values(results, example, "analogy"), values(results, example, other), strict=True)
    return Mean.of([one - two for one, two in pairs])


def difference_table(results: Results, examples: Sequence[str]) -> str:
    """The analogy against the others."""
    others = ["zero-shot", "c", "few-shot"]
    rows = [[example, *(str(gain(results, example, other)) for other in others)] for example in examples]
    return table(["example", *(f"analogy − {other}" for other in others)], rows, align="lrrr")


def sentences(results: Results, examples: Sequence[str]) -> Iterator[str]:
    """Where the analogy is ahead."""
    for example in examples:
        told = []
        for other in ("zero-shot", "c", "few-shot"):
            value = 100 * gain(results, example, other).value
            told.append(f"{abs(value):.1f} points {'above' if value > 0 else 'below'} {other}")
        yield f"- `{example}`: the analogy is {', '.join(told)}."
