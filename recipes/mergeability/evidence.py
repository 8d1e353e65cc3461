"""From measured merges to the doctor's evidence: harms, remedies and predictors, each tested on tasks held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from hf_taskvec.doctor import Evidence, Remedy
from hf_taskvec.doctor.evidence import TASK_FEATURES, VECTOR_FEATURES, features_of
from hf_taskvec.doctor.symptoms import SYMPTOMS
from hf_taskvec.evaluation.intervals import Interval, bootstrap_interval
from hf_taskvec.models.base import Base
from hf_taskvec.text import listed, table
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.names import parameters_of
from mergeability.cases import PLAIN, Case
from mergeability.predictor import LEAST_TASKS, PENALTIES, Choice, HeldOut, Row, calibrated, held_out

SHARE = "base's share"  # the baseline: it knows what the base keeps, and nothing of the other vectors
TRIVIAL = ("kept by the base",)
FEW = ("ratio", "count", "cosine")
SETS = {"vectors": (VECTOR_FEATURES, FEW), "tasks": (TASK_FEATURES, TRIVIAL, (*TRIVIAL, *FEW, "undone"))}
WAYS = {kind: [Choice(names, penalty) for names in sets for penalty in PENALTIES] for kind, sets in SETS.items()}
Groups = Mapping[str, Sequence[Case]]


def flagged(cases: Sequence[Case]) -> dict[str, list[Case]]:
    """The cases that have each symptom."""
    return {one.name: [case for case in cases if one.places(case.facts)] for one in SYMPTOMS}


def over_tasks(cases: Sequence[Case], value: Any) -> Interval | None:
    """The mean over tasks of the mean over each task's cases, with its interval; `None` of fewer than three tasks."""
    tasks = sorted({name for case in cases for name in case.members})
    means = [fmean(value(case) for case in cases if name in case.members) for name in tasks]
    return bootstrap_interval(means) if len(means) > 2 else None


def harm_of(cases: Sequence[Case], sick: Sequence[Case]) -> Interval | None:
    """What the plain merge keeps in the cases with a symptom, less what it keeps in those without, task by task."""
    well = [case for case in cases if case not in sick]
    names = {name for case in sick for name in case.members} & {name for case in well for name in case.members}
    differences = [
        fmean(case.mean(PLAIN) for case in sick if name in case.members)
        - fmean(case.mean(PLAIN) for case in well if name in case.members)
        for name in sorted(names)
    ]
    return bootstrap_interval(differences) if len(differences) > 2 else None


def remedies_of(cases: Sequence[Case], remedies: Sequence[str]) -> tuple[Remedy, ...]:
    """What each remedy brought in some cases, the best first; none of fewer than three tasks."""
    tried = []
    for name in remedies:
        gain = over_tasks(cases, lambda case, name=name: case.gain(name))
        if gain is not None:
            tried.append(Remedy(name, gain, fmean(case.gain(name) > 0 for case in cases), len(cases)))
    return tuple(sorted(tried, key=lambda one: -one.gain.mean))


@dataclass(frozen=True)
class RemedyTest:
    """Remedies that were chosen without a task, tried in the merges that hold it.

    Attributes:
        helped: Share of these in which the remedy of a finding helped; of all findings together under `all`.
        gains: What it brought.
        merges: How many pairs of a held-out task and a merge.
    """

    helped: Mapping[str, float]
    gains: Mapping[str, Interval]
    merges: Mapping[str, int]


def held_out_remedies(cases: Sequence[Case], remedies: Sequence[str]) -> RemedyTest:
    """Holds each task out in turn: what its merges gain by the remedies that the others' merges recommend."""
    gains: dict[str, dict[str, list[float]]] = {}
    for task in sorted({name for case in cases for name in case.members}):
        rest, own = (
            [case for case in cases if task not in case.members],
            flagged([c for c in cases if task in c.members]),
        )
        for symptom, sick in flagged(rest).items():
            tried = [one for one in remedies_of(sick, remedies) if one.helps]
            for case in own[symptom] if tried else ():
                for key in (symptom, "all"):
                    gains.setdefault(key, {}).setdefault(task, []).append(case.gain(tried[0].name))
    flat = {key: [gain for values in by_task.values() for gain in values] for key, by_task in gains.items()}
    return RemedyTest(
        {key: fmean(gain > 0 for gain in values) for key, values in flat.items()},
        {key: bootstrap_interval([fmean(values) for values in by_task.values()]) for key, by_task in gains.items()},
        {key: len(values) for key, values in flat.items()},
    )


def rows_of(cases: Sequence[Case]) -> list[Row]:
    """One row for each task of each case, with the plain merge."""
    return [
        Row(name, case.members, case.seed, features_of(case.facts, place), case.kept[PLAIN][place])
        for case in cases
        for place, name in enumerate(case.members)
    ]


@dataclass(frozen=True)
class Study:
    """What the doctor's evidence rests on.

    Attributes:
        evidence: What is shipped.
        tests: The predictors on tasks held out, `trivial` among them; none of too few tasks.
        remedy_test: The remedies on tasks held out.
        everywhere: What each remedy brought in all cases.
        sick: How many cases have each symptom.
    """

    evidence: Evidence
    tests: Mapping[str, HeldOut]
    remedy_test: RemedyTest
    everywhere: tuple[Remedy, ...]
    sick: Mapping[str, int]


def study(base: Base, names: Sequence[str], cases: Sequence[Case], remedies: Sequence[str], told: str) -> Study:
    """All of it.

    Args:
        base: The base.
        names: The parameters that the vectors cover.
        cases: The measured merges.
        remedies: What was tried.
        told: What it rests on, in words.
    """
    rows, groups = rows_of(cases), flagged(cases)
    enough = len({row.task for row in rows}) >= LEAST_TASKS
    tried = {**WAYS, SHARE: [Choice(TRIVIAL)]} if enough else {}
    tests = {kind: held_out(rows, ways) for kind, ways in tried.items()}
    predictors, refused = {}, {}
    for kind, ways in WAYS.items():
        fault = tests[kind].fault if enough else f"it takes merges of {LEAST_TASKS} tasks to fit one"
        if enough and kind == "tasks" and no_better(tests[kind], tests[SHARE]):
            ways, fault = [Choice(TRIVIAL)], tests[SHARE].fault
        if fault:
            refused[kind] = fault
        else:
            predictors[kind] = calibrated(rows, ways)
    harms = {symptom: harm for symptom, sick in groups.items() if (harm := harm_of(cases, sick))}
    weights = parameters_of(base.model)
    evidence = Evidence(
        base.name,
        tensor_hashes({name: weights[name] for name in names}),
        tuple(sorted({len(case.members) for case in cases})),
        told,
        harms,
        {symptom: remedies_of(sick, remedies) for symptom, sick in groups.items()},
        predictors,
        refused,
    )
    sizes = {name: len(sick) for name, sick in groups.items()}
    return Study(evidence, tests, held_out_remedies(cases, remedies), remedies_of(cases, remedies), sizes)


def no_better(test: HeldOut, baseline: HeldOut) -> bool:
    """Whether a predictor does not do what was asked for, or does not beat one that knows less."""
    return test.fault is not None or test.correlation <= baseline.correlation


def evidence_values(evidence: Evidence) -> dict[str, Any]:
    """JSON values that `Evidence.from_dict` reads."""
    return asdict(evidence)


def points(change: Interval | None) -> str:
    """An interval in points."""
    if change is None:
        return "–"
    return f"{100 * change.mean:+.1f} [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def predictor_table(outcome: Study) -> str:
    """One row per predictor, on tasks held out."""
    headers = [
        "knows",
        "correlation",
        "within a task",
        "mean error",
        "coverage",
        "width",
        "verdict",
    ]
    rows = []
    for kind, test in outcome.tests.items():
        figures = [f"{test.correlation:.2f}", f"{test.within:.2f}", f"{100 * test.error:.1f}"]
        figures += [f"{100 * test.coverage:.1f} %", f"{100 * test.width:.0f}"]
        rows.append([kind, *figures, test.fault or "as asked for"])
    if not rows:
        return f"Too few tasks: it takes {LEAST_TASKS}."
    predictors = outcome.evidence.predictors
    shipped = [f"from {kind}: {listed(predictors[kind].features)}" for kind in WAYS if kind in predictors]
    return f"{table(headers, rows, align='lrrrrrl')}\n\nIn use: {'; '.join(shipped) or 'none'}."


def symptom_table(outcome: Study) -> str:
    """One row per symptom: its merges, its harm, and the best remedy on all tasks and on tasks held out."""
    headers = ["finding", "merges", "kept, with it minus without", "best remedy", "helped", "gain"]
    headers += ["held out: helped", "gain"]
    test, rows = outcome.remedy_test, []
    for symptom, merges in outcome.sick.items():
        remedy = outcome.evidence.remedy(symptom)
        cells = ["none", "–", "–"]
        if remedy:
            cells = [f"`{remedy.name}`", f"{100 * remedy.helped:.0f} %", points(remedy.gain)]
        seen = symptom in test.helped
        cells += [f"{100 * test.helped[symptom]:.0f} % of {test.merges[symptom]}" if seen else "–"]
        cells += [points(test.gains[symptom]) if seen else "–"]
        rows.append([symptom, merges, points(outcome.evidence.harms.get(symptom)), *cells])
    if "all" in test.helped:
        share = f"{100 * test.helped['all']:.0f} % of {test.merges['all']}"
        rows.append(["**all**", "", "", "", "", "", share, points(test.gains["all"])])
    return table(headers, rows, align="lrllrlrl")


def everywhere_table(outcome: Study) -> str:
    """One row per remedy, in all merges, with a finding or not."""
    rows = [[f"`{one.name}`", points(one.gain), f"{100 * one.helped:.0f} %", one.merges] for one in outcome.everywhere]
    return table(["remedy", "gain over the plain merge", "helped", "merges"], rows, align="llrr")
