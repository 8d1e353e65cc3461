"""Merges of two and three experts, plain and with every remedy, each measured once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from hf_taskvec.doctor.facts import Facts, vector_facts, with_tasks
from hf_taskvec.evaluation.accuracy import evaluate, evaluate_individually
from hf_taskvec.merging import get_method, merge
from hf_taskvec.merging.conditioning import condition
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.training.plan import base_plan
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.resume import compute_or_read

PLAIN = "plain"  # the mean of the vectors
Series = Mapping[str, Sequence[TaskVector]]


@dataclass(frozen=True)
class Case:
    """One merge, measured.

    Attributes:
        seed: Seed of the vectors.
        members: The tasks.
        facts: What was known before.
        kept: For `plain` and each remedy, what each task keeps of its own model's accuracy.
    """

    seed: int
    members: tuple[str, ...]
    facts: Facts
    kept: Mapping[str, Sequence[float]]

    def mean(self, remedy: str) -> float:
        """The mean over the tasks."""
        return float(np.mean(self.kept[remedy]))

    def gain(self, remedy: str) -> float:
        """What a remedy brings over the plain merge."""
        return self.mean(remedy) - self.mean(PLAIN)


def check_remedies(remedies: Sequence[str], epochs: int) -> None:
    """Raises a `ValueError`, or an `UnknownNameError` for a method, if a remedy cannot be tried."""
    for remedy in remedies:
        kind, _, number = remedy.partition("-")
        if remedy in ("shrink", "drop") or (kind == "epoch" and number.isdigit() and 0 < int(number) < epochs):
            continue
        method, at, scaling = remedy.partition("@")
        if not at:
            raise ValueError(f"a remedy is shrink, drop, epoch-N below {epochs} or method@scaling, got {remedy!r}")
        get_method(method)
        float(scaling)


def remedied(series: Series, members: Sequence[str], remedy: str) -> TaskVector:
    """The merge of some experts with a remedy."""
    vectors = [series[name][-1] for name in members]
    if remedy == PLAIN:
        return merge(vectors, "average")
    if remedy == "shrink":
        return merge(condition(vectors), "average")
    if remedy == "drop":
        vectors.remove(max(vectors, key=lambda vector: vector.norm()))
        return merge(vectors, "average")
    if remedy.startswith("epoch-"):
        return merge([series[name][int(remedy.removeprefix("epoch-")) - 1] for name in members], "average")
    method, _, scaling = remedy.partition("@")
    return merge(vectors, method, scaling=float(scaling))


def member_lists(names: Sequence[str], *, triples: int, seed: int) -> list[tuple[str, ...]]:
    """All pairs of tasks, and so many triples drawn at random."""
    pairs, threes = list(combinations(names, 2)), list(combinations(names, 3))
    drawn = np.random.RandomState(seed).permutation(len(threes))[:triples]  # its streams are frozen
    return [*pairs, *(threes[index] for index in sorted(drawn.tolist()))]


def measure_cases(
    base: Base,
    tasks: Sequence[Task],
    series: Series,
    remedies: Sequence[str],
    *,
    seed: int,
    triples: int,
    num_images: int,
    folder: Path,
) -> Iterator[Case]:
    """The cases of one seed; what is in the folder is read.

    Args:
        base: The base.
        tasks: The tasks, their test parts cut to what accuracies are measured on.
        series: The vectors of each task's epochs.
        remedies: What is tried besides the plain merge.
        seed: Seed of the vectors, and of the draw of triples.
        triples: How many triples.
        num_images: Images of each task for the facts.
        folder: Where results are kept.
    """
    names = [task.name for task in tasks]
    vectors = {name: series[name][-1] for name in names}
    prints = {name: vector_fingerprint(vector.deltas) for name, vector in vectors.items()}
    plan: dict[str, Any] = base_plan(base) | {"vectors": prints, "num_images": num_images}

    def look(path: Path) -> None:
        facts = with_tasks(
            vector_facts(list(vectors.values())), list(vectors.values()), base, tasks, num_images=num_images
        )
        write_json(path, facts.to_dict())

    def judge(path: Path) -> None:
        write_json(path, evaluate_individually(base, vectors, tasks, progress=False))

    told = compute_or_read(folder / "facts.json", plan, compute=look, read=read_json)
    own = compute_or_read(folder / "own.json", plan, compute=judge, read=read_json)
    facts = facts_of(told)
    for members in member_lists(names, triples=triples, seed=seed):
        chosen = [task for task in tasks if task.name in members]
        measure = partial(measure_merge, base, chosen, series, members, remedies)
        path = folder / "merges" / f"{'+'.join(members)}.json"
        values = compute_or_read(path, plan | {"remedies": list(remedies)}, compute=measure, read=read_json)
        kept = {
            remedy: [accuracies[name] / own[name] if own[name] else 0.0 for name in members]
            for remedy, accuracies in values.items()
        }
        yield Case(seed, members, facts.among([names.index(name) for name in members]), kept)


def measure_merge(
    base: Base, tasks: Sequence[Task], series: Series, members: Sequence[str], remedies: Sequence[str], path: Path
) -> None:
    """Writes the accuracy of each task in a merge, plain and with every remedy."""
    outcomes = {}
    for remedy in (PLAIN, *remedies):
        report = evaluate(remedied(series, members, remedy).apply_to(base), tasks, progress=False)
        outcomes[remedy] = {result.task: result.accuracy for result in report.results}
    write_json(path, outcomes)


def facts_of(values: Mapping[str, Any]) -> Facts:
    """Facts from the JSON values of `Facts.to_dict`."""

    def frozen(value: Any) -> Any:
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    absent: dict[str, Any] = {"overlaps": None, "stable_ranks": None}
    return Facts(**{**absent, **{name: frozen(value) for name, value in values.items()}})
