"""What is measured of a base: its features, its experts, and how their vectors merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from paper.along import SCALINGS, bend_of, course
from paper.runs import train_run
from paper.settings import CONVERGED, Reproduction
from pretraining.probe import linear_probe

from hf_taskvec.evaluation.accuracy import evaluate, evaluate_individually, predict
from hf_taskvec.evaluation.scalings import best_scaling, scaling_curve
from hf_taskvec.merging import merge
from hf_taskvec.merging.geometry import cosines, inner_products, mean_over_pairs
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.theory.expansion import leading_error
from hf_taskvec.theory.losses import clip_losses
from hf_taskvec.vectors.vector import TaskVector

Values = dict[str, Any]
MERGE_SCALINGS = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.5]


@dataclass(frozen=True)
class Judging:
    """How bases are judged.

    Args:
        split: The part whose accuracies are told; scalings are chosen on validation images in any case.
        methods: Merge methods; the first one is that of disentanglement and of one epoch against convergence.
        scalings: Scalings that are tried for each merge.
    """

    split: Split = "validation"
    methods: Sequence[str] = ("task_arithmetic", "tsv_m")
    scalings: Sequence[float] = tuple(MERGE_SCALINGS)


def measure_base(base: Base, settings: Reproduction, judging: Judging, *, seed: int, folder: Path) -> Values:
    """All measures of one base and one seed of fine-tuning, accuracies in [0, 1].

    Args:
        base: The base.
        settings: Tasks and fine-tuning; the first optimiser counts.
        judging: How it is judged.
        seed: The seed.
        folder: Where the runs are kept, so that one that was stopped goes on.
    """
    tasks = settings.load_tasks(seed)
    runs = {
        task.name: train_run(
            settings, base, [task], optimizer=settings.optimizers[0], seed=seed, folder=folder / task.name
        )
        for task in tasks
    }
    vectors = {name: run.vector(CONVERGED) for name, run in runs.items()}
    zero_shot = evaluate(base, tasks, split=judging.split, progress=False).accuracy
    own = evaluate_individually(base, vectors, tasks, split=judging.split, progress=False)
    merges = {method: best_merge(base, vectors, tasks, method, judging) for method in judging.methods}
    first, individual = judging.methods[0], fmean(own.values())
    early = best_merge(base, {name: run.vector("1") for name, run in runs.items()}, tasks, first, judging)
    at_mean = merge(list(vectors.values()), "average", device=base.device).apply_to(base)
    courses = [course(base, [vectors[task.name]], task, scalings=SCALINGS, split=judging.split) for task in tasks]
    bend = bend_of(courses)
    return {
        "parameters": sum(parameter.numel() for parameter in base.model.vision_model.parameters()),
        "probe": fmean(linear_probe(base, task, split=judging.split) for task in tasks),
        "zero_shot": zero_shot,
        "individual": individual,
        "epochs": fmean(run.converged_epoch for run in runs.values()),
        "merges": merges,
        "gain": merges[first]["accuracy"] - zero_shot,
        "gain_at_mean": evaluate(at_mean, tasks, split=judging.split, progress=False).accuracy - zero_shot,
        "kept": kept_share(merges[first]["accuracy"], individual, zero_shot),
        "cosine": mean_cosine(list(vectors.values())),
        "bend": bend.to_dict(),
        "curvature": bend.bend.mean,
        "disentanglement": disentanglement_error(
            base, vectors, tasks, scaling=merges[first]["scaling"], split=judging.split
        ),
        "second_order": second_order(base, [subset(task, max_train=settings.theory_images) for task in tasks]),
        "early": early["accuracy"] - merges[first]["accuracy"],
    }


def best_merge(
    base: Base, vectors: Mapping[str, TaskVector], tasks: Sequence[Task], method: str, judging: Judging
) -> Values:
    """The accuracy of a merge at its best scaling on validation images."""
    merged = merge(list(vectors.values()), method, allow_zero=True, device=base.device)
    curve = scaling_curve(base, merged, tasks, scalings=judging.scalings, progress=False)
    scaling = best_scaling(curve)
    if judging.split == "validation":
        return {"scaling": scaling, "accuracy": curve[scaling].accuracy}
    model = merged.apply_to(base, scaling=scaling)
    return {"scaling": scaling, "accuracy": evaluate(model, tasks, split=judging.split, progress=False).accuracy}


def kept_share(merged: float, individual: float, zero_shot: float) -> float | None:
    """The share of what the experts gain over zero-shot that the merge keeps; `None` where they gain nothing."""
    return (merged - zero_shot) / (individual - zero_shot) if individual > zero_shot else None


def mean_cosine(vectors: Sequence[TaskVector]) -> float:
    """The mean cosine between the vectors of different tasks."""
    products = inner_products([TaskVector(vector.deltas) for vector in vectors])
    return mean_over_pairs(cosines(torch.stack(list(products.values())).sum(dim=0)))


def disentanglement_error(
    base: Base, vectors: Mapping[str, TaskVector], tasks: Sequence[Task], *, scaling: float, split: Split
) -> float:
    """How often the sum of all vectors says something else than a task's own one, on its images and at one scaling.

    That is ξ of arXiv 2305.12827 at one point, with T vectors in place of two: 0 where tasks do not disturb each other.
    """
    merged = merge(list(vectors.values()), "task_arithmetic", allow_zero=True, device=base.device)
    together = merged.apply_to(base, scaling=scaling)
    errors = []
    for task in tasks:
        alone = vectors[task.name].apply_to(base, scaling=scaling)
        said = [predict(model, task, split, progress=False)[0].argmax(dim=-1) for model in (together, alone)]
        errors.append(float((said[0] != said[1]).float().mean()))
    return fmean(errors)


def second_order(base: Base, tasks: Sequence[Task]) -> float:
    """‖(1/T) Σ_t (H_t − H̄)(g_t − ḡ)‖ / ‖ḡ‖ at the base, in float64.

    After two full-batch epochs at learning rate η, task arithmetic is η/2 of this away from joint training, relative to
    the way that both have gone.
    """
    problem = clip_losses(base, tasks)
    mean = torch.stack([loss.gradient(problem.start) for loss in problem.losses]).mean(dim=0)
    return float(leading_error(problem.losses, problem.start, learning_rate=1.0, epochs=2).norm() / mean.norm())
