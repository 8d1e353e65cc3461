# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Fine-tunes on each task as usual and in the tangent space of the base, and compares what the vectors are worth.

python recipes/tangent_space.py --tasks mini --max_train 448                        # embedded tiny CLIP, no network
python recipes/tangent_space.py --tasks mnist eurosat gtsrb --data_dir <folder> --seeds 0 1 2

Three ways: `ordinary` vectors on the ordinary model, the same on the linearised one (`post hoc`), and `tangent`
vectors, trained there; with --tak also `held` ones, trained there with that penalty. Of each: own accuracies, the sum
at the best validation scaling, and for every pair of neighbours in --pairs the disentanglement error. Finished vectors
and seeds are kept, and the same command goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from editing.tangent import figure_of, page
from editing.tangent_runs import keep_statistics, vectors_of, write_measured

from hf_taskvec import TaskVectorConfig, evaluate, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.editing import linearize
from hf_taskvec.editing.disentanglement import FACTORS
from hf_taskvec.errors import ArgumentsError, check_known
from hf_taskvec.evaluation.plots import save_figure
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.training.plan import run_plan
from hf_taskvec.weights.folders import read_json, write_text
from hf_taskvec.weights.resume import compute_or_read

SIZES = ("max_train", "max_validation", "max_test")
SETTINGS = (*SIZES, "tasks", "data_dir", "scalings", "pairs", "factors", "map_images")  # that decide what is measured
IMAGES = 64  # of each task, whose factors hold the others
CONFIG = Path(__file__).parent / "configs" / "quickstart.yaml"


@dataclass
class TangentArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    tasks: list[str] = arg("Tasks or suites.", default=["mini"])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    seeds: list[int] = arg("Seeds of the fine-tuning runs.", default=[0])
    max_train: int | None = arg("The most training images of a task.", default=None)
    max_validation: int | None = arg("The most validation images of a task.", default=None)
    max_test: int | None = arg("The most test images of a task.", default=None)
    scalings: list[float] = arg("Scalings of the sum that are tried.", default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0])
    pairs: list[str] = arg("Tasks whose maps are made, two by two; the first two if left out.", default=[])
    factors: list[float] = arg("Factors of the maps.", default=list(FACTORS))
    map_images: int = arg("Images of each task for the maps.", default=250)
    tak: float = arg("Factor of TAK, for a fourth way; 0 leaves it out.", default=0.0)
    table: str = arg("Markdown file for the page; the figure goes beside it.", default="out/tangent/report.md")


def main(args: TangentArguments, config: TaskVectorConfig) -> str:
    base, out = load_base(args.base), Path(str(config.output_dir))
    sizes = {name: getattr(args, name) for name in SIZES}
    tasks = [subset(task, **sizes) for task in get_tasks(args.tasks, data_dir=args.data_dir)]
    pairs = pairs_of(tasks, args)
    models = {"ordinary": base, "post hoc": linearize(base), "tangent": linearize(base)}
    if args.tak:
        models["held"] = models["tangent"]
        keep_statistics(base, tasks, out / "statistics", images=min(IMAGES, args.max_train or IMAGES))
    plan = {**run_plan(config), **{name: getattr(args, name) for name in SETTINGS}, "base": base.name}
    zero_shot = evaluate(base, tasks)
    seeds: list[dict[str, Any]] = []
    for seed in args.seeds:
        seeds.append({})
        for way, model in models.items():
            own = {**plan, "seed": seed, "way": way, "tangent": way in ("tangent", "held")}
            if way == "held":
                own["curvature"] = args.tak
            vectors = vectors_of(base, tasks, config, own, out / f"seed-{seed}")
            measure = partial(write_measured, model, vectors, tasks, pairs, args)
            path = out / f"seed-{seed}" / f"{way.replace(' ', '-')}.json"
            seeds[-1][way] = compute_or_read(path, own, compute=measure, read=read_json)
            print(f"seed {seed}, {way}: done", flush=True)
    figure = Path(args.table).with_suffix(".png")
    save_figure(figure_of(seeds[0]), figure)
    text = page(zero_shot, seeds, [len(task.class_names) for task in tasks], settings=plan, figure=figure.name)
    write_text(args.table, text)
    print(text)
    return text


def pairs_of(tasks: Sequence[Task], args: TangentArguments) -> list[list[Task]]:
    """The pairs whose maps are made."""
    known = {task.name: task for task in tasks}
    names = [task.name for task in get_tasks(args.pairs, data_dir=args.data_dir)] if args.pairs else list(known)[:2]
    for name in names:
        check_known("task for --pairs among --tasks", name, known)
    if len(names) % 2 or not names:
        raise ArgumentsError(f"--pairs names tasks two by two, got {len(names)}")
    return [[known[name], known[other]] for name, other in zip(names[::2], names[1::2], strict=True)]


if __name__ == "__main__":
    run_recipe(
        main,
        TangentArguments,
        TaskVectorConfig,
        defaults=lambda args: CONFIG,
        stopped="Finished vectors and seeds are kept in --output_dir; the same command goes on.",
    )
