# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""What the dtypes of base, expert and delta cost: the vectors that `quickstart.py` left, taken from rounded weights.

python recipes/precision.py --folder out/quickstart --tasks mnist eurosat gtsrb --data_dir <folder>

A vector is added to the float32 base; both are rounded, and the difference is taken. `--lengths` does the same with
shorter vectors, brought to their length again before accuracies are measured. Every result is kept; a run goes on.
"""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path

import interrupts  # noqa: F401
from editing.precisions import Case, cases, measure, precision_table
from paper.seeds import seed_folders

from hf_taskvec import TaskVector, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.folders import read_json, write_text
from hf_taskvec.weights.resume import compute_or_read


@dataclass
class PrecisionArguments:
    folder: str = arg("Output folder of quickstart.py, with one folder of vectors per seed.")
    tasks: list[str] = arg("Tasks or suites whose vectors are taken.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    dtypes: list[str] = arg("Dtypes besides float32.", default=["float16", "bfloat16"])
    lengths: list[float] = arg("Parts of the vectors tried too; powers of two.", default=[1 / 8, 1 / 64, 1 / 256])
    max_test: int | None = arg("At most so many test images of a task.", default=None)
    results_dir: str = arg("Where each result is kept.", default="out/precision")
    table: str = arg("Markdown file for the table.", default="out/precision/table.md")


def main(args: PrecisionArguments) -> str:
    base, whole = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    seeds = seed_folders(args.folder)
    tasks = [subset(task, max_test=args.max_test) for task in whole]
    results: dict[Case, list[dict[str, float]]] = {case: [] for case in cases(args.dtypes, args.lengths)}
    for seed in seeds:
        vectors = {task.name: TaskVector.from_pretrained(seed / task.name / "vector") for task in tasks}
        scaling = read_json(seed / "report-task_arithmetic.json")["scaling"]
        plan = {"tasks": args.tasks, "max_test": args.max_test, "base": base.name, "scaling": scaling}
        plan["vectors"] = [vector_fingerprint(vector.deltas) for vector in vectors.values()]
        for case, measured in results.items():
            name = "-".join(map(str, (seed.name, *astuple(case))))
            compute = partial(measure, base, vectors, tasks, case, scaling)
            path = Path(args.results_dir) / f"{name}.json"
            measured.append(compute_or_read(path, {**plan, **asdict(case)}, compute=compute, read=read_json))
            print(name, measured[-1], flush=True)
    text = precision_table(results)
    write_text(args.table, text)
    print(text)
    return text


if __name__ == "__main__":
    run_recipe(
        main,
        PrecisionArguments,
        stopped="Every finished result is in --results_dir; the same command goes on with the next.",
    )
