# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Accuracy along each task's own vector, from the base to beyond it, of the vectors that `quickstart.py` left.

python recipes/along_vector.py --folder out/quickstart --output_dir out/along \
    --tasks mnist fashion-mnist cifar10 eurosat gtsrb flowers5 quickdraw5 plantvillage-apple --data_dir <folder>

Writes along.json, the figure along.png and the page report.md; says whether the base is concave or convex.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from paper.along import SCALINGS, along_data, along_table, course
from paper.seeds import seed_folders

from hf_taskvec import TaskVector, get_tasks, load_base
from hf_taskvec.arguments import arg, command_line, run_recipe
from hf_taskvec.errors import DataError
from hf_taskvec.evaluation.plots import plot_along, save_figure
from hf_taskvec.tasks import Split, Task
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.vectors.info import library_versions
from hf_taskvec.weights.folders import read_json, write_json, write_text
from hf_taskvec.weights.resume import compute_or_read

PAGE = """# Along the vectors

Accuracy in percent on the {split} part of each task with the base plus a part of the task's own vector, mean over
{seeds} seed(s) of fine-tuning.
Bend: the gain at half the vector minus half the gain of the whole one, above 0 concave, below 0 convex. Share: the
first gain over the second, 0.5 on a straight way. Intervals: 95 %, images drawn anew.
{versions}.

    {command}

{table}

![accuracy along the vectors](along.png)

Data: `along.json`.
"""


@dataclass
class AlongArguments:
    folder: str = arg("Output folder of quickstart.py, with one folder of vectors per seed.")
    tasks: list[str] = arg("Tasks or suites whose vectors are followed.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    seeds: list[int] = arg("Seeds whose vectors are followed; all that are there if left out.", default=[])
    scalings: list[float] = arg("Scalings; 0, 0.5 and 1 are among them.", default=list(SCALINGS))
    split: Split = arg("Part of the tasks.", default="test")
    output_dir: str = arg("Where figures, data and page go.", default="out/along")


def vectors_of(folder: Path, tasks: list[Task], seeds: list[int]) -> dict[str, list[TaskVector]]:
    """The vectors of each task, one per seed.

    Raises:
        DataError: If there is no seed, or a vector of one is missing.
    """
    names = [f"seed-{seed}" for seed in seeds] or [path.name for path in seed_folders(folder)]
    places = {task.name: [folder / name / task.name / "vector" for name in names] for task in tasks}
    missing = [str(path) for paths in places.values() for path in paths if not path.is_dir()]
    if missing:
        raise DataError(f"{missing[0]} is missing; run quickstart.py to its end, or name the --seeds that are finished")
    return {name: [TaskVector.from_pretrained(path) for path in paths] for name, paths in places.items()}


def main(args: AlongArguments) -> dict[str, Any]:
    base, tasks, out = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir), Path(args.output_dir)
    vectors = vectors_of(Path(args.folder), tasks, args.seeds)
    prints = {name: [vector_fingerprint(one.deltas) for one in each] for name, each in vectors.items()}
    plan = {"base": base.name, "split": args.split, "scalings": args.scalings, "vectors": prints}

    def measure(path: Path) -> None:
        courses = [course(base, vectors[task.name], task, scalings=args.scalings, split=args.split) for task in tasks]
        write_json(path, {**along_data(courses, split=args.split), "versions": library_versions()})

    data = compute_or_read(out / "along.json", plan, compute=measure, read=read_json)
    save_figure(plot_along(data["scalings"], data["accuracies"], split=args.split), out / "along.png")
    text = along_table(data)
    seeds, versions = len(next(iter(vectors.values()))), ", ".join(f"{k} {v}" for k, v in data["versions"].items())
    page = PAGE.format(split=args.split, seeds=seeds, versions=versions, command=command_line(), table=text)
    write_text(out / "report.md", page)
    print(text)
    return data


if __name__ == "__main__":
    run_recipe(main, AlongArguments, stopped="Nothing is kept before the end; the same command begins anew.")
