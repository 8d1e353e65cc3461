"""Evaluates a base, alone or with a task vector, on tasks.

python recipes/evaluate.py --tasks mini --vector out/quickstart/seed-0/merged-task_arithmetic --scaling 0.3
python recipes/evaluate.py --tasks vision8 --base openai/clip-vit-base-patch32 --output out/report.json
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from hf_taskvec.recipe import arg, parse_recipe

if __name__ == "evaluate":
    # Running a recipe puts this folder first on sys.path, where this file would hide the library of the same name.
    # Whoever imports `evaluate` means the library: hand it over.
    spec = PathFinder.find_spec(
        "evaluate", [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]
    )
    if spec is None or spec.loader is None:
        raise ImportError("the library `evaluate` is not installed; run: pip install evaluate")
    sys.modules["evaluate"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["evaluate"])
else:
    from hf_taskvec import Report, TaskVector, choose_scaling, evaluate, get_tasks, load_base
    from hf_taskvec.tasks import Split


@dataclass
class EvaluateArguments:
    tasks: list[str] = arg("Tasks or suites.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    vector: str | None = arg("Hub id or folder of a task vector to add.", default=None)
    scaling: float | None = arg("Factor of the vector; chosen on validation data if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    split: Split = arg("Which part of the tasks.", default="test")
    output: str | None = arg("File for the report in JSON.", default=None)


def main(args: EvaluateArguments) -> Report:
    base, tasks = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    report = zero_shot = evaluate(base, tasks, split=args.split, progress=True)
    if args.vector is not None:
        vector = TaskVector.from_pretrained(args.vector)
        scaling = args.scaling if args.scaling is not None else choose_scaling(base, vector, tasks, progress=True)
        model = vector.apply_to(base, scaling=scaling)
        label = f"{vector.info.label} ({scaling:g})"
        report = evaluate(model, tasks, split=args.split, label=label, scaling=scaling, progress=True)
        report = report.with_references(zero_shot=zero_shot)
    print(report.to_markdown())
    if args.output is not None:
        report.save(args.output)
    return report


if __name__ == "__main__":
    main(*parse_recipe(EvaluateArguments))
