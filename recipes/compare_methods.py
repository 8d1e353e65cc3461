# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""One table of merge methods on the vectors that `quickstart.py` left: scaling from validation, accuracy on test data.

python recipes/compare_methods.py --folder out/quickstart --tasks mnist eurosat gtsrb --data_dir <folder>

Every result is kept in a file of its own, with what it depends on beside it; a run that was stopped goes on where it
was, and one with other vectors, tasks or scalings is refused.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import interrupts  # noqa: F401
from paper.needs import Needs

from hf_taskvec import Report, Task, TaskVector, evaluate, get_tasks, list_methods, load_base, merge
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.report import percent
from hf_taskvec.evaluation.scalings import best_scaling, scaling_curve
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.merging import get_method
from hf_taskvec.models.base import Base
from hf_taskvec.text import table
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.folders import read_json, write_json, write_text
from hf_taskvec.weights.resume import compute_or_read

METHODS = [method.name for method in list_methods() if method.max_vectors is None]
SCALINGS = [0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7]


@dataclass
class ComparisonArguments:
    folder: str = arg("Output folder of quickstart.py, with one folder of vectors per seed.")
    tasks: list[str] = arg("Tasks or suites whose vectors are merged.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    methods: list[str] = arg("Merge methods.", default=METHODS)
    scalings: list[float] = arg("Scalings tried on validation data.", default=SCALINGS)
    num_images: int = arg("Training images of each task that methods which look at data see, unlabelled.", default=64)
    results_dir: str = arg("Where each result is kept.", default="out/methods")
    table: str = arg("Markdown file for the table.", default="out/methods/table.md")


def main(args: ComparisonArguments) -> str:
    base, tasks = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    kept, setup = Path(args.results_dir), {"base": base.name, "tasks": args.tasks, "data_dir": args.data_dir}
    results: dict[str, list[tuple[Report, float]]] = {method: [] for method in args.methods}
    zero_shot = compute_or_read(
        kept / "zero-shot.json", setup, compute=lambda path: evaluate(base, tasks).save(path), read=Report.load
    )
    for seed in sorted(Path(args.folder).glob("seed-*")):
        vectors = {task.name: TaskVector.from_pretrained(seed / task.name / "vector") for task in tasks}
        prints = {name: vector_fingerprint(vector.deltas) for name, vector in vectors.items()}
        individual = compute_or_read(
            kept / f"{seed.name}-individual.json",
            {**setup, "vectors": prints},
            compute=partial(write_individual, base, vectors, tasks),
            read=read_json,
        )
        needs = Needs(base, tasks, kept / f"{seed.name}-statistics", args.num_images)
        for method in args.methods:
            values = compute_or_read(
                kept / f"{seed.name}-{method}.json",
                {**setup, "vectors": prints, "method": method, "scalings": args.scalings, "images": needs.num_images},
                compute=partial(measure, needs, list(vectors.values()), method, args.scalings),
                read=read_json,
            )
            report = Report.from_dict(values).with_references(zero_shot=zero_shot, individual=individual)
            results[method].append((report, values["seconds"]))
            print(f"{seed.name} {method}: {percent(report.accuracy)} % at {report.scaling:g}", flush=True)
    text = methods_table(results)
    write_text(args.table, text)
    print(text)
    return text


def write_individual(base: Base, vectors: Mapping[str, TaskVector], tasks: Sequence[Task], path: Path) -> None:
    """Writes each task's accuracy with its own vector."""
    write_json(path, evaluate_individually(base, vectors, tasks))


def measure(needs: Needs, vectors: Sequence[TaskVector], method: str, scalings: Sequence[float], path: Path) -> None:
    """Writes the test report of a merge at its best scaling on validation data, and the seconds the merge took."""
    base, tasks, given = needs.base, needs.tasks, needs.of(method, vectors)
    start = time.perf_counter()
    merged = merge(vectors, method, **given)
    seconds = time.perf_counter() - start
    scaling = best_scaling(scaling_curve(base, merged, tasks, scalings=scalings, progress=True))
    report = evaluate(merged.apply_to(base, scaling=scaling), tasks, label=method, scaling=scaling)
    write_json(path, {"seconds": seconds, **report.to_dict()})


def methods_table(results: Mapping[str, Sequence[tuple[Report, float]]]) -> str:
    """The methods by accuracy, in percent, with 95 % intervals over seeds."""
    headers = ["method", "accuracy", "above zero-shot", "normalised", "looks at", "scalings", "seconds to merge"]
    rows = []
    for method, runs in sorted(results.items(), key=lambda item: -sum(report.accuracy for report, _ in item[1])):
        reports = [report for report, _ in runs]
        gains = [report.accuracy - (report.zero_shot or 0.0) for report in reports]
        cells = [Mean.of([report.accuracy for report in reports]), Mean.of(gains)]
        cells.append(Mean.of([report.normalized or 0.0 for report in reports]))
        scalings = ", ".join(f"{report.scaling:g}" for report in reports)
        seconds = sum(seconds for _, seconds in runs) / len(runs)
        looks_at = ", ".join(get_method(method).statistics) or "-"
        rows.append([f"`{method}`", *cells, looks_at, scalings, f"{seconds:.2f}"])
    return table(headers, rows, align="lrrrllr") + "\n"


if __name__ == "__main__":
    run_recipe(
        main,
        ComparisonArguments,
        stopped="Every finished result is in --results_dir; the same command goes on with the next.",
    )
