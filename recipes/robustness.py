# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Base, experts and merges of the vectors that `quickstart.py` left, on corrupted test images; WiSE-FT between them.

python recipes/robustness.py --folder out/quickstart --tasks mnist eurosat gtsrb --data_dir <folder>

Everything measured is kept, with what it depends on beside it; a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from editing.corrupted import EXPERTS, Accuracies, Seeds, curves, measure, measure_merge, measure_way, page
from paper.seeds import seed_folders

from hf_taskvec import Task, TaskVector, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.errors import ArgumentsError
from hf_taskvec.evaluation.plots import plot_wise_ft, save_figure
from hf_taskvec.evaluation.wise_ft import ALPHAS
from hf_taskvec.models.base import Base
from hf_taskvec.tasks.distortions import STRENGTHS
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.folders import read_json, write_json, write_text
from hf_taskvec.weights.resume import compute_or_read

SETTINGS = ("base", "tasks", "data_dir", "strengths", "alphas", "max_test", "max_validation")  # of what is measured


@dataclass
class RobustnessArguments:
    folder: str = arg("Output folder of quickstart.py, with one folder of vectors per seed.")
    tasks: list[str] = arg("Tasks or suites.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    methods: list[str] = arg("Merge methods.", default=["tsv_m", "nufilt"])
    strengths: list[int] = arg("Strengths of the corruptions.", default=list(STRENGTHS))
    alphas: list[float] = arg("Where between base and expert is measured.", default=list(ALPHAS))
    max_test: int | None = arg("At most so many test images of a task.", default=None)
    max_validation: int | None = arg("At most so many validation images of a task.", default=None)
    results_dir: str = arg("Where what was measured is kept.", default="out/robustness/models")
    output_dir: str = arg("Where figure and page go.", default="out/robustness")


def main(args: RobustnessArguments) -> str:
    base, whole = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    seeds = seed_folders(args.folder)
    if len(whole) < 2:
        raise ArgumentsError("each task's control are the others, so --tasks must name two or more")
    tasks = [subset(task, max_test=args.max_test, max_validation=args.max_validation) for task in whole]
    once = partial(measured_once, args)
    results: Seeds = {"base": [once("base", partial(measure, base, tasks, args.strengths), [])], EXPERTS: []}
    ways: list[dict[str, Any]] = []
    for seed in seeds:
        vectors = {task.name: TaskVector.from_pretrained(seed / task.name / "vector") for task in tasks}
        own: Accuracies = {}
        for task in tasks:
            others = [other for other in tasks if other is not task]
            vector = vectors[task.name]
            own |= once(f"{seed.name}-{task.name}", partial(measured_expert, base, vector, task, args), [vector])
            way = partial(measure_way, base, vector, task, others, strength=middle(args), alphas=args.alphas)
            ways.append(once(f"{seed.name}-{task.name}-way", way, [vector]))
        results[EXPERTS].append(own)
        for method in args.methods:
            merged = partial(measure_merge, base, vectors, tasks, method, args.strengths)
            results.setdefault(method, []).append(once(f"{seed.name}-{method}", merged, list(vectors.values())))
    text = page(results, mean := curves(ways), strengths=args.strengths, middle=middle(args), images=args.max_test)
    save_figure(plot_wise_ft(mean), Path(args.output_dir) / "robustness.png")
    write_text(Path(args.output_dir) / "robustness.md", text)
    print(text)
    return text


def middle(args: RobustnessArguments) -> int:
    """The strength in the middle."""
    return sorted(args.strengths)[len(args.strengths) // 2]


def measured_expert(base: Base, vector: TaskVector, task: Task, args: RobustnessArguments) -> dict[str, Any]:
    """A task's own model on that task."""
    return measure(vector.apply_to(base), [task], args.strengths)


def measured_once(
    args: RobustnessArguments, name: str, compute: Callable[[], dict[str, Any]], vectors: list[TaskVector]
) -> dict[str, Any]:
    """What `compute` gives, read if it was measured before."""
    plan = {key: getattr(args, key) for key in SETTINGS}
    plan["vectors"] = [vector_fingerprint(vector.deltas) for vector in vectors]

    def write(path: Path) -> None:
        write_json(path, compute())
        print(name, flush=True)

    return compute_or_read(Path(args.results_dir) / f"{name}.json", plan, compute=write, read=read_json)


if __name__ == "__main__":
    run_recipe(
        main,
        RobustnessArguments,
        stopped="Every finished model is in --results_dir; the same command goes on with the next.",
    )
