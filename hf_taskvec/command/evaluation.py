"""`evaluate` and `tune`: accuracies on tasks, and the scaling or weights that validation data choose."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hf_taskvec.command.outcome import Outcome
from hf_taskvec.command.packing import open_packed
from hf_taskvec.command.verbs import Verb
from hf_taskvec.fields import arg
from hf_taskvec.text import columns

if TYPE_CHECKING:
    from hf_taskvec.evaluation.report import Report
    from hf_taskvec.models.base import Base
    from hf_taskvec.multitask import MultiTaskVector
    from hf_taskvec.tasks import Task
    from hf_taskvec.vectors.vector import TaskVector


@dataclass
class EvaluateSettings:
    """What is evaluated, on what, and what stands beside it."""

    tasks: list[str] = arg("Tasks or suites.")
    base: str | None = arg("Hub id or folder of a CLIP, SigLIP, ViT or DINOv2; the tiny CLIP by default.", default=None)
    vector: str | None = arg(
        "Hub id or folder of a task vector to add, or of several tasks' vectors packed together.", default=None
    )
    scaling: float | None = arg("Factor of the vector; chosen on validation data if left out.", default=None)
    criterion: Literal["accuracy", "normalised"] = arg(
        "What the chosen scaling maximises; normalised needs the tasks' own vectors.", default="accuracy"
    )
    individual: list[str] = arg("Hub ids or folders of the tasks' own vectors, to compare with.", default=[])
    metrics: list[str] = arg("Further metrics, such as f1 and per_class_accuracy.", default=[])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    split: Literal["train", "validation", "test"] = arg("Which part of the tasks.", default="test")
    output: str | None = arg("File for the report in JSON.", default=None)


def run_evaluation(settings: EvaluateSettings) -> Report:
    """Evaluates, and saves the report where it is to go."""
    from hf_taskvec.evaluation.beside import evaluate_beside
    from hf_taskvec.merging.sources import open_source
    from hf_taskvec.models.base import load_base
    from hf_taskvec.tasks.registry import get_tasks

    vector: TaskVector | MultiTaskVector | None = None
    if settings.vector is not None:
        packed = open_packed(settings.vector)
        vector = open_source(settings.vector)[1] if packed is None else packed
    report = evaluate_beside(
        load_base(settings.base),
        vector,
        get_tasks(settings.tasks, data_dir=settings.data_dir),
        scaling=settings.scaling,
        criterion=settings.criterion,
        individual=[open_source(source)[1] for source in settings.individual],
        metrics=settings.metrics,
        split=settings.split,
    )
    if settings.output is not None:
        report.save(settings.output)
    return report


def evaluate(settings: EvaluateSettings) -> Outcome:
    """Evaluates, and shows the report."""
    report = run_evaluation(settings)
    return Outcome(report.to_dict(), report.to_markdown(), [f"{report.accuracy:.6g}"])


@dataclass
class TuneSettings:
    """What is chosen, of what, on what."""

    vectors: list[str] = arg("Hub ids or folders: one vector for its scaling, several for weights of their sum.")
    tasks: list[str] = arg("Tasks or suites whose validation parts decide; the vectors' own if left out.", default=[])
    base: str | None = arg("Hub id or folder of a CLIP, SigLIP, ViT or DINOv2; the tiny CLIP by default.", default=None)
    criterion: Literal["accuracy", "normalised"] = arg("What is maximised.", default="accuracy")
    individual: list[str] = arg("Hub ids or folders of the tasks' own vectors, for normalised.", default=[])
    tried: list[float] = arg("Scalings to try, or steps of weights; a good grid if left out.", default=[])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    output: str | None = arg("File for the choice in JSON.", default=None)


def tune(settings: TuneSettings) -> Outcome:
    """Chooses the scaling of one vector, or one weight for each of several."""
    from hf_taskvec.cards.metadata import task_names
    from hf_taskvec.merging.sources import open_source
    from hf_taskvec.models.base import load_base
    from hf_taskvec.tasks.registry import get_tasks
    from hf_taskvec.weights.folders import write_json

    vectors = [open_source(source)[1] for source in settings.vectors]
    names = settings.tasks or list(dict.fromkeys(name for vector in vectors for name in task_names(vector.info)))
    if not names:
        raise ValueError("the vectors do not tell their tasks; name them with --tasks")
    options: dict[str, Any] = {"criterion": settings.criterion}
    if settings.individual:
        options["individual"] = [open_source(source)[1] for source in settings.individual]
    base, tasks = load_base(settings.base), get_tasks(names, data_dir=settings.data_dir)
    if len(vectors) == 1:
        outcome = _scaling(base, vectors[0], tasks, settings.tried, options)
    else:
        outcome = _weights(base, vectors, tasks, settings, options)
    if settings.output is not None:
        write_json(settings.output, outcome.data)
    return outcome


def _scaling(
    base: Base, vector: TaskVector, tasks: Sequence[Task], tried: Sequence[float], options: Mapping[str, Any]
) -> Outcome:
    """The best scaling of a vector, with the score of each that was tried."""
    from hf_taskvec.evaluation.criteria import check_criterion, score
    from hf_taskvec.evaluation.scalings import SCALINGS, best_scaling, scaling_curve

    criterion, individual = options["criterion"], options.get("individual")
    check_criterion(criterion, individual)
    curve = scaling_curve(base, vector, tasks, scalings=tried or SCALINGS, individual=individual)
    best = best_scaling(curve, criterion=criterion)
    rows = [{"scaling": scaling, criterion: score(report, criterion)} for scaling, report in curve.items()]
    data = {"scaling": float(best), criterion: best.score, "at_end": best.at_end, "curve": rows}
    text = f"{columns(list(rows[0]), [list(row.values()) for row in rows])}\n\nscaling {best:g}"
    return Outcome(data, text, [f"{best:g}"])


def _weights(
    base: Base, vectors: Sequence[TaskVector], tasks: Sequence[Task], settings: TuneSettings, options: Mapping[str, Any]
) -> Outcome:
    """The best weight of each vector in a sum."""
    from hf_taskvec.evaluation.coefficients import choose_weights

    steps: dict[str, Any] = {"steps": settings.tried} if settings.tried else {}
    weights = choose_weights(base, vectors, tasks, **steps, **options)
    rows = [
        {"vector": source, "task": vector.info.label, "weight": weight}
        for source, vector, weight in zip(settings.vectors, vectors, weights, strict=True)
    ]
    setting = f"weights={json.dumps(weights, separators=(',', ':'))}"
    merging = f"hf-taskvec merge {' '.join(settings.vectors)} --method task_arithmetic -s '{setting}'"
    text = f"{columns(list(rows[0]), [list(row.values()) for row in rows])}\n\n{merging}"
    return Outcome({"weights": weights, "vectors": rows}, text, [f"{weight:g}" for weight in weights])


VERBS = [
    Verb(
        "evaluate",
        "Measures a base, alone or with a vector, on tasks.",
        EvaluateSettings,
        evaluate,
        [
            "hf-taskvec evaluate mini --vector out/merged --scaling 0.3",
            "hf-taskvec evaluate vision8 --base openai/clip-vit-base-patch32 --output out/report.json",
        ],
        positional=["tasks"],
        file="option",
        stopped="No report was written; the same command begins anew.",
    ),
    Verb(
        "tune",
        "Chooses a scaling or weights on validation data.\n\n"
        "The scaling of one vector; of several, one weight for each in their sum.",
        TuneSettings,
        tune,
        ["hf-taskvec tune out/merged --tasks mini", "hf-taskvec tune out/mnist/vector out/svhn/vector --json"],
        positional=["vectors"],
        file="option",
    ),
]
