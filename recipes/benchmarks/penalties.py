"""What penalties of fine-tuning do to a merge: vectors trained with each, alone and as a sum.

PYTHONPATH=recipes python recipes/benchmarks/penalties.py
PYTHONPATH=recipes python recipes/benchmarks/penalties.py --tasks mnist eurosat gtsrb --data_dir <folder> \
    --num_train_epochs 5 --seeds 0 1 2

`orthogonality` is OrthoReg's (arXiv 2604.17078), `pull_to_base` the squared distance from the base. Scalings are chosen
on validation data, accuracies are of test data. Trained vectors stay in --output_dir: the same command goes on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from merging_runs import header, line

from hf_taskvec import TaskVectorConfig, choose_scaling, evaluate, get_tasks, load_base, merge
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.training.run import train_vector

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


@dataclass
class PenaltyArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    tasks: list[str] = arg("Tasks or suites.", default=["mini"])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    orthogonalities: list[float] = arg("Strengths of the one penalty.", default=[0.1, 1.0, 10.0])
    pulls: list[float] = arg("Strengths of the other.", default=[0.1, 1.0, 10.0])
    method: str = arg("How the vectors are merged.", default="task_arithmetic")
    seeds: list[int] = arg("Seeds of the fine-tuning runs.", default=[0])


def main(args: PenaltyArguments, config: TaskVectorConfig) -> None:
    base, tasks = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    strengths = [("none", 0.0), *(("orthogonality", value) for value in args.orthogonalities)]
    strengths += [("pull_to_base", value) for value in args.pulls]
    header("penalty", "strength", "norm of a vector", "individual", "merged", "normalised", "scalings")
    for penalty, strength in strengths:
        settings, reports, norms = copy.copy(config), [], []
        if strength:
            setattr(settings, penalty, strength)
        for seed in args.seeds:
            folder = Path(str(config.output_dir)) / f"{penalty}-{strength:g}" / f"seed-{seed}"
            vectors = {t.name: train_vector(base, t, settings, output_dir=folder / t.name, seed=seed) for t in tasks}
            merged = merge(list(vectors.values()), args.method)
            scaling = choose_scaling(base, merged, tasks)
            report = evaluate(merged.apply_to(base, scaling=scaling), tasks, scaling=scaling)
            reports.append(report.with_references(individual=evaluate_individually(base, vectors, tasks)))
            norms.append(fmean(vector.norm() for vector in vectors.values()))
        columns = [[getattr(report, name) for report in reports] for name in ("individual", "accuracy", "normalized")]
        scalings = ", ".join(f"{report.scaling:g}" for report in reports)
        line(penalty, f"{strength:g}", f"{fmean(norms):.2f}", *(str(Mean.of(column)) for column in columns), scalings)


if __name__ == "__main__":
    run_recipe(main, PenaltyArguments, TaskVectorConfig, defaults=lambda args: CONFIG)
