# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""One table of packings on the vectors that `quickstart.py` left: bytes and error against accuracy, alone and merged.

python recipes/compare_compressions.py --folder out/quickstart --tasks mnist eurosat gtsrb --data_dir <folder>

Scalings are those that the whole vectors choose on validation data; accuracies are of test data. Every result is kept
in a file of its own, with what it depends on beside it, so that a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import interrupts  # noqa: F401
from paper.seeds import seed_folders

from hf_taskvec import Task, TaskVector, evaluate, get_tasks, load_base, merge
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.scalings import best_scaling, scaling_curve
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.models.base import Base
from hf_taskvec.text import table
from hf_taskvec.vectors.compression import PACKINGS
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.folders import read_json, write_json, write_text
from hf_taskvec.weights.resume import compute_or_read

WHOLE = "float32"
METHODS = ["task_arithmetic", "ties", "tsv_m"]
SCALINGS = [0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7]
Values = Mapping[str, float]


@dataclass
class CompressionArguments:
    folder: str = arg("Output folder of quickstart.py, with one folder of vectors per seed.")
    tasks: list[str] = arg("Tasks or suites whose vectors are packed.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    packings: list[str] = arg("How vectors are compressed.", default=list(PACKINGS))
    methods: list[str] = arg("Merge methods of the packed vectors.", default=METHODS)
    scalings: list[float] = arg("Scalings tried on validation data.", default=SCALINGS)
    results_dir: str = arg("Where each result is kept.", default="out/compressions")
    table: str = arg("Markdown file for the table.", default="out/compressions/table.md")


def main(args: CompressionArguments) -> str:
    base, tasks = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    seeds = seed_folders(args.folder)
    setup = {"base": base.name, "tasks": args.tasks, "data_dir": args.data_dir, "scalings": args.scalings}
    results: dict[str, list[Values]] = {packing: [] for packing in (WHOLE, *args.packings)}
    for seed in seeds:
        vectors = {task.name: TaskVector.from_pretrained(seed / task.name / "vector") for task in tasks}
        prints = {name: vector_fingerprint(vector.deltas) for name, vector in vectors.items()}
        chosen: Values = {}
        for packing in results:
            values = compute_or_read(
                Path(args.results_dir) / f"{seed.name}-{packing}.json",
                {**setup, "vectors": prints, "packing": packing, "methods": args.methods},
                compute=partial(measure, base, vectors, tasks, packing, args, chosen),
                read=read_json,
            )
            chosen = values["scalings"] if packing == WHOLE else chosen
            results[packing].append(values)
            print(f"{seed.name} {packing}: {values['individual']:.3f} alone", flush=True)
    text = packings_table(results, args.methods)
    write_text(args.table, text)
    print(text)
    return text


def measure(
    base: Base,
    vectors: Mapping[str, TaskVector],
    tasks: Sequence[Task],
    packing: str,
    args: CompressionArguments,
    chosen: Values,
    path: Path,
) -> None:
    """Writes bytes, error and accuracies of vectors in one packing; of whole ones also the scalings they choose."""
    few = vectors if packing == WHOLE else {name: vector.compress(packing) for name, vector in vectors.items()}
    told = [vector.info.compression or {"share": 1.0, "error": 0.0} for vector in few.values()]
    accuracies, scalings = {}, dict(chosen)
    for method in args.methods:
        merged = merge(list(few.values()), method)
        if packing == WHOLE:
            curve = scaling_curve(base, merged, tasks, scalings=args.scalings, progress=True)
            scalings[method] = float(best_scaling(curve))
        accuracies[method] = evaluate(merged.apply_to(base, scaling=scalings[method]), tasks).accuracy
    values = {key: fmean(float(one[key]) for one in told) for key in ("share", "error")}
    values["individual"] = fmean(evaluate_individually(base, few, tasks).values())
    write_json(path, {**values, "scalings": scalings, **accuracies})


def packings_table(results: Mapping[str, Sequence[Values]], methods: Sequence[str]) -> str:
    """The packings by their bytes, in percent, and what each loses of the whole vectors' accuracy, over seeds."""
    columns = ["individual", *methods]
    rows = []
    for packing, runs in sorted(results.items(), key=lambda item: -fmean(run["share"] for run in item[1])):
        cells = [f"{fmean(run[key] for run in runs):.1%}" for key in ("share", "error")]
        for column in columns:
            lost = [one[column] - whole[column] for one, whole in zip(runs, results[WHOLE], strict=True)]
            cells += [str(Mean.of([run[column] for run in runs])), str(Mean.of(lost)) if packing != WHOLE else ""]
        rows.append([f"`{packing}`", *cells])
    headers = ["packing", "bytes", "error", *(text for column in columns for text in (column, "difference"))]
    return table(headers, rows, align="l" + "r" * (len(headers) - 1)) + "\n"


if __name__ == "__main__":
    run_recipe(
        main,
        CompressionArguments,
        stopped="Every finished result is in --results_dir; the same command goes on with the next.",
    )
