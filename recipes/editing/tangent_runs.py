"""Vectors trained in and outside the tangent space, and what they do to a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_taskvec import TaskVector, TaskVectorConfig, choose_scaling, evaluate, merge
from hf_taskvec.editing import disentanglement
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.models.base import Base
from hf_taskvec.statistics import Statistics, collect_statistics
from hf_taskvec.tasks import Task
from hf_taskvec.training.plan import run_plan
from hf_taskvec.training.run import train_vector
from hf_taskvec.weights.folders import write_json
from hf_taskvec.weights.resume import compute_or_read


def keep_statistics(base: Base, tasks: Sequence[Task], folder: Path, *, images: int) -> None:
    """Keeps the K-FAC factors of each task at the base, of so many training images."""
    for task in tasks:

        def collect(target: Path, task: Task = task) -> None:
            collect_statistics(base, task, kinds=["gram", "kfac"], num_images=images).save_pretrained(target)

        plan = {"base": base.name, "task": task.name, "images": images}
        compute_or_read(folder / task.name, plan, compute=collect, read=Statistics.from_pretrained)


def vectors_of(
    base: Base, tasks: Sequence[Task], config: TaskVectorConfig, plan: Mapping[str, Any], folder: Path
) -> dict[str, TaskVector]:
    """The vectors of one seed, trained as a plan says or opened."""
    settings = copy.copy(config)
    settings.tangent, settings.curvature = plan["tangent"], plan.get("curvature", 0.0)
    kind = "held" if settings.curvature else "tangent" if settings.tangent else "ordinary"
    vectors = {}
    for task in tasks:
        if settings.curvature:
            settings.curvature_of = [str(folder.parent / "statistics" / one.name) for one in tasks if one is not task]
        needed = {**run_plan(settings), **{name: plan[name] for name in ("base", "data_dir", "max_train", "tangent")}}

        def train(target: Path, task: Task = task) -> None:
            train_vector(base, task, settings, output_dir=target.parent, seed=plan["seed"])

        vectors[task.name] = compute_or_read(
            folder / kind / task.name / "vector",
            {**needed, "seed": plan["seed"], "task": task.name},
            compute=train,
            read=TaskVector.from_pretrained,
        )
    return vectors


def write_measured(
    model: Base,
    vectors: Mapping[str, TaskVector],
    tasks: Sequence[Task],
    pairs: Sequence[Sequence[Task]],
    args: Any,
    path: Path,
) -> None:
    """Writes what the vectors do to a model, alone, summed up, and in pairs."""
    total = merge(list(vectors.values()), "task_arithmetic")
    scaling = choose_scaling(model, total, tasks, scalings=args.scalings)
    report = evaluate(total.apply_to(model, scaling=scaling), tasks)
    options: dict[str, Any] = {"factors": args.factors, "images": args.map_images}
    maps = []
    for pair in pairs:
        pair_map = disentanglement(model, vectors, pair, **options)
        maps.append({**pair_map.to_dict(), "at_one": pair_map.at(1, 1).mean if 1 in args.factors else None})
    measured = {
        "individual": evaluate_individually(model, vectors, tasks),
        "merged": {result.task: result.accuracy for result in report.results},
        "scaling": scaling,
        "maps": maps,
    }
    write_json(path, measured)
