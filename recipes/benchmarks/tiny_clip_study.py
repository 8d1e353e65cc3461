"""Judges pretrained CLIP variants as bases for task arithmetic, on validation parts only.

python recipes/benchmarks/tiny_clip_study.py --variants out/a out/b --data_dir <folder> --learning_rate 5e-4 \\
    --per_device_train_batch_size 64 --output_dir out/study
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from hf_taskvec import Task, TaskVector, TaskVectorConfig, evaluate, get_tasks, load_base, merge, scaling_curve
from hf_taskvec.base import Base
from hf_taskvec.evaluation import best_scaling, evaluate_individually
from hf_taskvec.recipe import arg, parse_recipe
from hf_taskvec.training import train_vector

TASKS = ["mnist", "fashion-mnist", "cifar10", "eurosat", "gtsrb", "flowers5", "quickdraw5", "plantvillage-apple"]


@dataclass
class StudyArguments:
    variants: list[str] = arg("Folders or Hub ids of the CLIP models to compare.")
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    tasks: list[str] = arg("Tasks to judge them on.", default=TASKS)
    methods: list[str] = arg("Merge methods.", default=["task_arithmetic", "tsv_m", "iso_c"])
    scalings: list[float] = arg("Scalings tried for each merge.", default=[0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0])
    table: str = arg("Markdown file the table is written to.", default="recipes/results/tiny_clip_study.md")


@dataclass(frozen=True)
class Merge:
    """A merge at its best scaling: mean accuracy over the tasks, and each task's."""

    scaling: float
    accuracy: float
    per_task: dict[str, float]


@dataclass(frozen=True)
class Judgement:
    """Validation accuracies of one variant, means over the tasks."""

    variant: str
    recall: float | None
    zero_shot: float
    individual: float
    merges: dict[str, Merge]


def judge(variant: str, args: StudyArguments, config: TaskVectorConfig) -> Judgement:
    """Fine-tunes one variant on every task and merges the vectors by every method."""
    base, tasks = load_base(variant), get_tasks(args.tasks, data_dir=args.data_dir)
    folder = Path(str(config.output_dir)) / Path(variant).name
    vectors = {task.name: train_vector(base, task, config, output_dir=folder / task.name) for task in tasks}
    zero_shot = evaluate(base, tasks, split="validation").accuracy
    individual = fmean(evaluate_individually(base, vectors, tasks, split="validation").values())
    merges = {method: best_merge(base, vectors, tasks, method, args.scalings) for method in args.methods}
    return Judgement(Path(variant).name, mean_recall(Path(variant)), zero_shot, individual, merges)


def best_merge(
    base: Base, vectors: Mapping[str, TaskVector], tasks: Sequence[Task], method: str, scalings: Sequence[float]
) -> Merge:
    """The scaling of a method with the best mean validation accuracy."""
    curve = scaling_curve(base, merge(list(vectors.values()), method), tasks, scalings=scalings, progress=True)
    scaling = best_scaling(curve)
    return Merge(scaling, curve[scaling].accuracy, {result.task: result.accuracy for result in curve[scaling].results})


def mean_recall(folder: Path) -> float | None:
    """The mean retrieval figure in a variant's training log, if it has one."""
    log = folder / "training_log.json"
    if not log.is_file():
        return None
    figures = json.loads(log.read_text(encoding="utf-8"))["recall_at_5"].values()
    return sum(figures) / len(figures)


def table(judgements: Sequence[Judgement]) -> str:
    """The comparison in Markdown, in percent; gains are points above zero-shot."""
    methods = list(judgements[0].merges)
    titles = ["variant", "recall at 5", "zero-shot", "individual", *methods]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for one in judgements:
        recall = "-" if one.recall is None else f"{100 * one.recall:.1f}"
        cells = [one.variant, recall, f"{100 * one.zero_shot:.1f}", against(one.individual, one.zero_shot)]
        cells += [f"{against(best.accuracy, one.zero_shot)} at {best.scaling:g}" for best in one.merges.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def against(accuracy: float, zero_shot: float) -> str:
    """An accuracy in percent with its points above zero-shot."""
    return f"{100 * accuracy:.1f} ({100 * (accuracy - zero_shot):+.1f})"


def main(args: StudyArguments, config: TaskVectorConfig) -> list[Judgement]:
    judgements = [judge(variant, args, config) for variant in args.variants]
    Path(args.table).parent.mkdir(parents=True, exist_ok=True)
    Path(args.table).write_text(table(judgements), encoding="utf-8")
    print(table(judgements))
    return judgements


if __name__ == "__main__":
    main(*parse_recipe(StudyArguments, TaskVectorConfig))
