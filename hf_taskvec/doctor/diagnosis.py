"""The doctor: what stands against a merge before it is made, and what helped against it elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_taskvec.doctor.evidence import Evidence, Predictor, Remedy, features_of, shipped
from hf_taskvec.doctor.facts import Facts, match_tasks, vector_facts, with_tasks
from hf_taskvec.doctor.leaks import Leak, find_leaks
from hf_taskvec.doctor.symptoms import SYMPTOMS, Place, Symptom
from hf_taskvec.errors import DataError
from hf_taskvec.evaluation.intervals import Interval
from hf_taskvec.merging.conditioning import factor_of
from hf_taskvec.merging.sources import as_sources, open_source
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.registry import as_tasks
from hf_taskvec.vectors.vector import TaskVector


@dataclass(frozen=True)
class Finding:
    """One thing that stands against a merge.

    Attributes:
        symptom: Its kind.
        labels: The vectors it is of, the worst case first.
        text: What it is, in words and figures.
        value, limit: The worst figure, and the one above which it is found.
        harm: Normalised accuracy of measured merges with it minus that of those without; `None` if none was measured.
        remedy: What helped most in measured merges that had it; `None` if nothing that was tried did.
        advice: How to apply the remedy here.
    """

    symptom: str
    labels: tuple[str, ...]
    text: str
    value: float
    limit: float
    harm: Interval | None = None
    remedy: Remedy | None = None
    advice: str | None = None


@dataclass(frozen=True)
class Prediction:
    """What the plain merge is thought to keep on one task.

    Attributes:
        label: The task.
        kept: Accuracy of the merge over that of the task's own model.
        low, high: Its interval.
    """

    label: str
    kept: float
    low: float
    high: float


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` tells.

    Attributes:
        facts: What was measured.
        findings: What stands against the merge, the worst first.
        dismissed: Symptoms that are there, but measured merges with them kept more than those without.
        predictions: What the mean of the vectors is thought to keep on each task; empty if nothing can be said.
        silence: Why nothing is predicted; empty if something is.
        leaks: Training images of one task in the test part of another; `None` if nobody looked.
        told: What remedies and predictions rest on; empty if they say nothing of these vectors.
    """

    facts: Facts
    findings: tuple[Finding, ...]
    dismissed: tuple[str, ...]
    predictions: tuple[Prediction, ...]
    silence: str
    leaks: tuple[Leak, ...] | None
    told: str

    def __str__(self) -> str:
        """The text for people, within a screen."""
        leaks = [f"- leak: {leak}" for leak in self.leaks or ()]
        findings = ["\n".join(_told(finding)) for finding in self.findings]
        lines = [_headline(self.facts), *_first(leaks, 2, "leaks"), *_first(findings, 5, "findings")]
        if not leaks and not findings:
            lines.append("Nothing was found.")
        if self.dismissed:
            lines.append(f"Seen too, but measured merges with it kept more than others: {', '.join(self.dismissed)}.")
        if self.silence:
            lines.append(f"No prediction: {self.silence}.")
        if self.predictions:
            lines.append("The mean of the vectors is thought to keep, of each own model's accuracy:")
            lines += [f"  {one.label}: {_range(one)}" for one in self.predictions]
        if self.told:
            lines.append(f"Measured on {self.told}; points are hundredths of what tasks keep of their own accuracy.")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "facts": self.facts.to_dict(),
            "findings": [asdict(finding) for finding in self.findings],
            "dismissed": list(self.dismissed),
            "predictions": [asdict(one) for one in self.predictions],
            "silence": self.silence,
            "leaks": None if self.leaks is None else [asdict(leak) for leak in self.leaks],
            "told": self.told,
        }


def diagnose(
    vectors: Sequence[TaskVector | str | os.PathLike[str]],
    base: Base | None = None,
    tasks: Task | str | Iterable[Task | str] | None = None,
    *,
    gradients: bool = True,
    leaks: bool = True,
    num_images: int = 256,
    evidence: Evidence | str | os.PathLike[str] | None = None,
) -> Diagnosis:
    """Looks at vectors before they are merged: what stands against it, what helped elsewhere, what to expect.

    Without base and tasks it reads norms, cosines, sign conflicts, spectra and shared directions. With them it also
    looks at validation images (accuracies, confidence), at training images (gradients at the base, learned from nothing
    else) and, for leaks, at all training and test images. A remedy is offered only if it was measured to help on the
    vectors' own base; see `recipes/results/doctor.md`.

    Args:
        vectors: Two or more vectors of one base; folders and Hub ids are opened.
        base: Their base.
        tasks: The tasks that they were trained on.
        gradients: Whether to compute the gradients at the base.
        leaks: Whether to look for training images in the test parts of other tasks.
        num_images: Most images of each task for accuracies and gradients.
        evidence: Other evidence than the package's, as `recipes/doctor.py` writes it.

    Raises:
        DataError: If there are fewer than two vectors, a task has none, or one of base and tasks is missing.
        IncompatibleVectorsError: If vectors differ in names or shapes, or one is zero.
        BaseMismatchError: If they are of different bases, or of another than the given one.
        UnknownNameError: If the task of a vector is none of the given ones.
        NonFiniteError: If a vector holds NaN or Inf.

    Example:
        >>> import torch
        >>> pair = [TaskVector({"w": torch.tensor(values)}) for values in ([3.0, 4.0], [0.5, 0.0])]
        >>> for finding in diagnose(pair).findings:
        ...     print(finding.text)
        'difference (0)' is 10.00 times as long as the others, and outweighs them in a sum
    """
    opened = [source if isinstance(source, TaskVector) else open_source(source)[1] for source in as_sources(vectors)]
    if (base is None) != (tasks is None):
        raise DataError("base and tasks go together: give both, or neither for the vectors alone")
    known = evidence if isinstance(evidence, Evidence) else shipped() if evidence is None else Evidence.load(evidence)
    matched = None if tasks is None else match_tasks(opened, as_tasks(tasks))
    facts, leaked = vector_facts(opened), None
    if base is not None and matched is not None:
        facts = with_tasks(facts, opened, base, matched, num_images=num_images, gradients=gradients)
        leaked = tuple(find_leaks(matched, base)) if leaks else None
    if reason := known.speaks_of([vector.info for vector in opened]):
        return Diagnosis(facts, findings_of(facts, None), (), (), reason, leaked, "")
    findings = findings_of(facts, known)
    harmful = tuple(finding for finding in findings if finding.harm is None or finding.harm.low <= 0)
    dismissed = tuple(finding.symptom for finding in findings if finding not in harmful)
    predictions, silence = predict_kept(known, facts)
    return Diagnosis(facts, harmful, dismissed, predictions, silence, leaked, known.told)


def findings_of(facts: Facts, evidence: Evidence | None) -> tuple[Finding, ...]:
    """The findings of some figures, those first that cost measured merges most."""
    findings = [_finding(facts, symptom, places, evidence) for symptom in SYMPTOMS if (places := symptom.places(facts))]
    return tuple(sorted(findings, key=lambda one: one.harm.mean if one.harm else 0.0))


def predict_kept(evidence: Evidence, facts: Facts) -> tuple[tuple[Prediction, ...], str]:
    """A prediction for each task, or none with the reason."""
    kind = "vectors" if facts.base_accuracies is None else "tasks"
    rows = [features_of(facts, index) for index in range(len(facts.labels))]
    predictor = evidence.predictors.get(kind)
    if predictor is None:
        return (), evidence.refused.get(kind, "none was fitted")
    if unknown := [name for name in predictor.features if any(name not in row for row in rows)]:
        return (), f"{unknown[0]} is not known of every vector"
    if outside := [name for row in rows for name in predictor.outside(row)]:
        return (), f"{outside[0]} lies outside the range on which the predictor was fitted"
    return tuple(_prediction(predictor, label, row) for label, row in zip(facts.labels, rows, strict=True)), ""


def _prediction(predictor: Predictor, label: str, row: dict[str, float]) -> Prediction:
    value = predictor.value(row)
    return Prediction(label, value, value - predictor.radius, value + predictor.radius)


def _finding(
    facts: Facts, symptom: Symptom, places: Sequence[tuple[float, Place]], evidence: Evidence | None
) -> Finding:
    value, worst = places[0]
    names = [repr(facts.labels[index]) for index in worst]
    labels = dict.fromkeys(facts.labels[index] for _, place in places for index in place)
    text = symptom.sentence(facts, worst, names)
    if more := len(places) - 1:
        text += f"; so it is of {more} more {'pair' if symptom.pairs else 'vector'}{'s' * (more > 1)}"
    epochs = all(number is not None and number > 1 for number in facts.epochs)
    remedy = evidence.remedy(symptom.name, epochs=epochs) if evidence else None
    return Finding(
        symptom.name,
        tuple(labels),
        text,
        value,
        symptom.limit,
        evidence.harms.get(symptom.name) if evidence else None,
        remedy,
        advice_of(remedy.name, facts) if remedy else None,
    )


def advice_of(remedy: str, facts: Facts) -> str:
    """How to apply a remedy to some vectors.

    Example:
        >>> table = ((1.0, 0.5), (0.5, 1.0))
        >>> advice_of("shrink", Facts(("a", "b"), (1.0, 2.0), table, table, None, None, (None, None)))
        "shrink 'b' to 0.50 of its length: average(condition(vectors))"
    """
    if remedy == "shrink":
        factors = [(label, factor_of(facts.norms, index)) for index, label in enumerate(facts.labels)]
        shrunk = ", ".join(f"{label!r} to {factor:.2f} of its length" for label, factor in factors if factor < 1)
        return f"shrink {shrunk or 'nothing'}: average(condition(vectors))"
    if remedy == "drop":
        longest = max(range(len(facts.norms)), key=lambda index: facts.norms[index])
        return f"leave out {facts.labels[longest]!r}, the longest"
    if remedy.startswith("epoch-"):
        return f"merge the vectors of epoch {remedy.removeprefix('epoch-')} (recorded_series)"
    method, _, scaling = remedy.partition("@")
    return f'merge(vectors, "{method}") with scaling {scaling}'


def _headline(facts: Facts) -> str:
    with_data = "" if facts.base_accuracies is None else ", with base and tasks"
    return f"{len(facts.labels)} vectors{with_data}"


def _told(finding: Finding) -> list[str]:
    """A finding in one or two lines."""
    cost = f" (merges with it: {_points(finding.harm)})" if finding.harm else ""
    lines = [f"- {finding.symptom}: {finding.text}{cost}"]
    if remedy := finding.remedy:
        share = f"{100 * remedy.helped:.0f} % of {remedy.merges} merges"
        lines.append(f"  helped in {share} ({_points(remedy.gain)}): {finding.advice}")
    return lines


def _first(lines: Sequence[str], shown: int, what: str) -> list[str]:
    more = [f"  and {len(lines) - shown} more {what}: --json shows all"] if len(lines) > shown else []
    return [*lines[:shown], *more]


def _points(change: Interval) -> str:
    return f"{100 * change.mean:+.1f} points [{100 * change.low:+.1f}, {100 * change.high:+.1f}]"


def _range(one: Prediction) -> str:
    return f"{100 * one.kept:.0f} % [{100 * one.low:.0f}, {100 * one.high:.0f}]"
