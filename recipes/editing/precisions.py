"""What is left of vectors whose base and experts were rounded, and the table of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from hf_taskvec import Task, TaskVector, evaluate, merge
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.models.base import Base
from hf_taskvec.text import table
from hf_taskvec.vectors.info import library_versions
from hf_taskvec.weights.dtypes import as_dtype
from hf_taskvec.weights.folders import write_json
from hf_taskvec.weights.names import parameters_of

WHOLE = "float32"
SHARES = ("below", "error", "told")  # of a vector; then accuracies
ACCURACIES = ("individual", "merged")


@dataclass(frozen=True)
class Case:
    """The dtypes that base and expert are rounded to, that of their difference, and how long the vector is."""

    base: str
    expert: str
    delta: str
    length: float = 1.0


def cases(dtypes: Sequence[str], lengths: Sequence[float]) -> list[Case]:
    """All triples of the dtypes and float32; of shorter vectors base and expert alike or one of them in float32.

    Raises:
        ValueError: If a dtype or a length is none.
    """
    for name in dtypes:
        as_dtype(name)
    if odd := [length for length in lengths if not 0 < length <= 1]:
        raise ValueError(f"lengths must be in (0, 1], got {odd[0]}")
    kinds = [WHOLE, *dtypes]
    pairs = [pair for pair in product(kinds, kinds) if WHOLE in pair or len(set(pair)) == 1]
    whole = [Case(*names) for names in product(kinds, kinds, kinds)]
    return whole + [Case(*pair, WHOLE, length) for length in lengths for pair in pairs]


def measure(
    base: Base, vectors: Mapping[str, TaskVector], tasks: Sequence[Task], case: Case, scaling: float, path: Path
) -> None:
    """Writes what is lost of the vectors, on average, and accuracies of the float32 base with what is left."""
    weights, taken, shares = parameters_of(base.model), {}, []
    for task, vector in vectors.items():
        ours = {name: weights[name].to(as_dtype(case.base)) for name in vector}
        moved = {name: weights[name] + case.length * delta for name, delta in vector.deltas.items()}
        theirs = {name: weight.to(as_dtype(case.expert)) for name, weight in moved.items()}
        with quietly("hf_taskvec.vectors.rounding"):  # what it warns of is what is measured
            difference = TaskVector.from_weights(ours, theirs, allow_rounding=True)
        taken[task] = TaskVector(difference.to(case.delta).deltas, vector.info) * (1 / case.length)
        error = (taken[task].to("float32") - vector).norm() / vector.norm()
        below = [is_below(weights[name], case.length * vector[name], case) for name in vector]
        told = difference.info.rounding_error or 0.0
        shares.append((float(torch.cat(below).double().mean()), error, told))
    values = {name: fmean(column) for name, column in zip(SHARES, zip(*shares, strict=True), strict=True)}
    values["individual"] = fmean(evaluate_individually(base, taken, tasks).values())
    merged = merge(list(taken.values()), "task_arithmetic")
    write_json(path, {**values, "merged": evaluate(merged.apply_to(base, scaling=scaling), tasks).accuracy})


@contextmanager
def quietly(name: str) -> Iterator[None]:
    """Keeps the warnings of a logger back for a while."""
    told = logging.getLogger(name)
    level = told.level
    told.setLevel(logging.ERROR)
    try:
        yield
    finally:
        told.setLevel(level)


def is_below(weight: Tensor, delta: Tensor, case: Case) -> Tensor:
    """Which entries change by less than half the spacing of numbers around the base's, in the coarser dtype."""
    eps = max(torch.finfo(as_dtype(name)).eps for name in (case.base, case.expert))
    return (delta.abs() < torch.ldexp(torch.full_like(weight, eps / 4), torch.frexp(weight).exponent)).flatten()


def precision_table(results: Mapping[Case, Sequence[Mapping[str, float]]]) -> str:
    """Each case's shares and accuracies in percent over seeds, and what it loses of float32's, paired."""
    whole, rows = results[Case(WHOLE, WHOLE, WHOLE)], []
    for case, runs in results.items():
        cells = [f"{case.length:g}", *(f"`{name}`" for name in (case.base, case.expert, case.delta))]
        cells += [f"{100 * fmean(run[share] for run in runs):.2f}" for share in SHARES]
        for key in ACCURACIES:
            lost = [run[key] - best[key] for run, best in zip(runs, whole, strict=True)]
            cells += [str(Mean.of([run[key] for run in runs])), str(Mean.of(lost))]
        rows.append(cells)
    accuracies = (text for key in ACCURACIES for text in (key, "difference"))
    headers = ["length", "base", "expert", "delta", *SHARES, *accuracies]
    versions = ", ".join(f"{name} {version}" for name, version in library_versions().items())
    return f"{table(headers, rows, align='rlll' + 'r' * (len(headers) - 4))}\n\n{versions}\n"
