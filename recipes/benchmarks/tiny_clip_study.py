r"""Judges pretrained CLIP variants, and ways to fine-tune them, as bases for task arithmetic: on validation parts only.

Each variant's figures are kept in a file of their own, so that calls with other settings add rows to one table:

python recipes/benchmarks/tiny_clip_study.py --config recipes/configs/quickstart.yaml --data_dir <folder> \
    --variants out/a out/b --settings "MLP weights, 3e-4, 2 epochs" --num_train_epochs 2 --output_dir out/study
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_taskvec import Task, TaskVector, TaskVectorConfig, evaluate, get_tasks, load_base, merge
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.report import percent
from hf_taskvec.evaluation.scalings import best_scaling, scaling_curve
from hf_taskvec.models.base import TINY_CLIP, Base
from hf_taskvec.text import table
from hf_taskvec.training.run import train_vector
from hf_taskvec.weights.folders import read_json, write_json, write_text
from hf_taskvec.weights.resume import compute_or_read

TASKS = ["mnist", "fashion-mnist", "cifar10", "eurosat", "gtsrb", "flowers5", "quickdraw5", "plantvillage-apple"]


@dataclass
class StudyArguments:
    variants: list[str] = arg("Folders or Hub ids of the CLIP models to compare; `embedded` is the one shipped.")
    settings: str = arg("How the fine-tuning settings are called in the table.", default="")
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    tasks: list[str] = arg("Tasks to judge them on.", default=TASKS)
    methods: list[str] = arg("Merge methods.", default=["task_arithmetic", "tsv_m"])
    scalings: list[float] = arg("Scalings tried for each merge.", default=[0.1, 0.2, 0.3, 0.4, 0.6, 1.0, 1.5])
    table: str = arg("Markdown file the table is written to.", default="out/study/table.md")


def judge(variant: str, args: StudyArguments, config: TaskVectorConfig) -> dict[str, Any]:
    """Validation accuracies of one variant, means over the tasks; kept in a file that a second call reads."""
    name = "embedded" if variant == "embedded" else Path(variant).name
    folder = Path(str(config.output_dir)) / f"{name} {args.settings}".strip().replace(" ", "-")
    plan = {
        "variant": variant,
        **{key: value for key, value in asdict(args).items() if key not in ("variants", "table", "data_dir")},
        "learning_rate": config.learning_rate,
        "num_train_epochs": config.num_train_epochs,
        "trainable_parameters": config.trainable_parameters,
        "seed": config.seed,
    }
    return compute_or_read(
        folder / "judgement.json",
        plan,
        compute=lambda path: write_json(path, judgement(variant, name, folder, args, config)),
        read=read_json,
    )


def judgement(variant: str, name: str, folder: Path, args: StudyArguments, config: TaskVectorConfig) -> dict[str, Any]:
    """Trains and merges on one variant."""
    base = load_base(None if variant == "embedded" else variant)
    tasks = get_tasks(args.tasks, data_dir=args.data_dir)
    vectors = {task.name: train_vector(base, task, config, output_dir=folder / task.name) for task in tasks}
    return {
        "variant": name,
        "settings": args.settings,
        "recall": mean_recall(TINY_CLIP if variant == "embedded" else Path(variant)),
        "zero_shot": evaluate(base, tasks, split="validation").accuracy,
        "individual": fmean(evaluate_individually(base, vectors, tasks, split="validation").values()),
        "merges": {method: asdict(best_merge(base, vectors, tasks, method, args.scalings)) for method in args.methods},
    }


@dataclass(frozen=True)
class ScaledMerge:
    """A merge at its best scaling: mean accuracy over the tasks, and each task's."""

    scaling: float
    accuracy: float
    per_task: dict[str, float]


def best_merge(
    base: Base, vectors: Mapping[str, TaskVector], tasks: Sequence[Task], method: str, scalings: Sequence[float]
) -> ScaledMerge:
    """The scaling of a method with the best mean validation accuracy."""
    curve = scaling_curve(base, merge(list(vectors.values()), method), tasks, scalings=scalings, progress=True)
    scaling = best_scaling(curve)
    return ScaledMerge(
        scaling, curve[scaling].accuracy, {result.task: result.accuracy for result in curve[scaling].results}
    )


def mean_recall(folder: Path) -> float | None:
    """The mean retrieval figure in a variant's training log, if it has one."""
    log = folder / "training_log.json"
    return fmean(read_json(log)["recall_at_5"].values()) if log.is_file() else None


def comparison(judgements: Sequence[Mapping[str, Any]]) -> str:
    """The comparison in Markdown, in percent; gains are points above zero-shot."""
    methods = list(judgements[0]["merges"])
    titles = ["variant", "fine-tuning", "recall at 5", "zero-shot", "individual", *methods]
    rows = []
    for one in sorted(judgements, key=lambda one: (one["zero_shot"], one["individual"])):
        cells = [one["variant"], one["settings"], percent(one["recall"]), percent(one["zero_shot"])]
        cells.append(against(one["individual"], one["zero_shot"]))
        for method in methods:
            best = one["merges"][method]
            cells.append(f"{against(best['accuracy'], one['zero_shot'])} at {best['scaling']:g}")
        rows.append(cells)
    return table(titles, rows, align="l" * len(titles)) + "\n"


def against(accuracy: float, zero_shot: float) -> str:
    """An accuracy in percent with its points above zero-shot."""
    return f"{percent(accuracy)} ({100 * (accuracy - zero_shot):+.1f})"


def main(args: StudyArguments, config: TaskVectorConfig) -> list[dict[str, Any]]:
    for variant in args.variants:
        judge(variant, args, config)
    judgements = [read_json(path) for path in sorted(Path(str(config.output_dir)).glob("*/judgement.json"))]
    write_text(args.table, comparison(judgements))
    print(comparison(judgements))
    return judgements


if __name__ == "__main__":
    run_recipe(main, StudyArguments, TaskVectorConfig, stopped="What is finished is kept; the same command goes on.")
