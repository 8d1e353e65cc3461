"""Evaluates a base, alone or with a task vector, on tasks.

python recipes/evaluate_model.py --tasks mini --vector out/quickstart/seed-0/merged-task_arithmetic --scaling 0.3
python recipes/evaluate_model.py --tasks digits shapes --vector out/merged --individual out/digits/vector \
    out/shapes/vector --criterion normalised
python recipes/evaluate_model.py --tasks vision8 --base openai/clip-vit-base-patch32 --output out/report.json
"""

from __future__ import annotations

from dataclasses import dataclass

import interrupts  # noqa: F401

from hf_taskvec import Report, TaskVector, choose_scaling, evaluate, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.criteria import Criterion
from hf_taskvec.tasks import Split


@dataclass
class EvaluateArguments:
    """What is evaluated, on what, and what stands beside it."""

    tasks: list[str] = arg("Tasks or suites.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    vector: str | None = arg("Hub id or folder of a task vector to add.", default=None)
    scaling: float | None = arg("Factor of the vector; chosen on validation data if left out.", default=None)
    criterion: Criterion = arg("What the chosen scaling maximises; normalised needs --individual.", default="accuracy")
    individual: list[str] = arg("Hub ids or folders of the tasks' own vectors, to compare with.", default=[])
    metrics: list[str] = arg("Further metrics, such as f1 and per_class_accuracy.", default=[])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    split: Split = arg("Which part of the tasks.", default="test")
    output: str | None = arg("File for the report in JSON.", default=None)


def main(args: EvaluateArguments) -> Report:
    """Evaluates, prints the table and returns the report."""
    base, tasks = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    experts = [TaskVector.from_pretrained(source) for source in args.individual]
    report = evaluate(base, tasks, split=args.split, metrics=args.metrics)
    if args.vector is not None:
        vector = TaskVector.from_pretrained(args.vector)
        scaling = args.scaling
        if scaling is None:
            scaling = choose_scaling(base, vector, tasks, criterion=args.criterion, individual=experts or None)
        model, label = vector.apply_to(base, scaling=scaling), f"{vector.info.label} ({scaling:g})"
        report = evaluate(
            model, tasks, split=args.split, metrics=args.metrics, label=label, scaling=scaling, zero_shot=report
        )
    if experts:
        report = report.with_references(individual=evaluate_individually(base, experts, tasks, split=args.split))
    print(report.to_markdown())
    if args.output is not None:
        report.save(args.output)
    return report


if __name__ == "__main__":
    run_recipe(main, EvaluateArguments, stopped="No report was written; the same command begins anew.")
