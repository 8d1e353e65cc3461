# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""From a base to a merged model: fine-tune on each task, merge the vectors, choose the scaling, evaluate.

python recipes/quickstart.py                                   # embedded tiny CLIP, suite mini, no network
python recipes/quickstart.py --tasks mnist eurosat gtsrb --data_dir <folder> --seeds 0 1 2
python recipes/quickstart.py --tasks vision8 --base openai/clip-vit-base-patch32
python recipes/quickstart.py --tasks mnist --data_dir <folder> --base hf-taskvec/feature-clip   # embedded too
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401

from hf_taskvec import Report, TaskVectorConfig, choose_weights, evaluate, get_tasks, load_base, merge
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.criteria import Criterion
from hf_taskvec.evaluation.plots import plot_merge, save_figure
from hf_taskvec.evaluation.scalings import best_scaling, scaling_curve
from hf_taskvec.evaluation.summary import summary_table
from hf_taskvec.merging.registry import get_method
from hf_taskvec.models.base import EMBEDDED, FEATURE_CLIP
from hf_taskvec.training.run import train_vector

CONFIGS = Path(__file__).parent / "configs"
TUNED = {  # the embedded bases are small and need larger steps than the literature's
    None: CONFIGS / "quickstart.yaml",
    EMBEDDED: CONFIGS / "quickstart.yaml",
    FEATURE_CLIP: CONFIGS / "quickstart_feature.yaml",
}


@dataclass
class QuickstartArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    attn_implementation: str | None = arg(
        "Attention, as Transformers names it; eager is the fastest on a CPU with --bf16.", default=None
    )
    tasks: list[str] = arg("Tasks or suites.", default=["mini"])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    methods: list[str] = arg("Merge methods.", default=["task_arithmetic"])
    choose_weights: bool = arg("Also merge with one weight per vector, chosen on validation data.", default=False)
    criterion: Criterion = arg("What the scalings and weights maximise on validation data.", default="accuracy")
    seeds: list[int] = arg("Seeds of the fine-tuning runs.", default=[0])


def tuned_settings(args: argparse.Namespace) -> Path | None:
    """The file of settings for an embedded base."""
    return TUNED.get(args.base)


def main(args: QuickstartArguments, config: TaskVectorConfig) -> dict[str, list[Report]]:
    base = load_base(args.base, attn_implementation=args.attn_implementation)
    tasks = get_tasks(args.tasks, data_dir=args.data_dir)
    for method in args.methods:
        get_method(method)  # a name that is none is refused here, not after the fine-tuning
    output_dir = Path(str(config.output_dir))
    zero_shot = evaluate(base, tasks, progress=True)
    reports: dict[str, list[Report]] = defaultdict(list)
    curves = {}
    for seed in args.seeds:
        folder = output_dir / f"seed-{seed}"
        vectors = {}
        for task in tasks:
            print(f"seed {seed}: fine-tuning on {task.name}")
            vectors[task.name] = train_vector(base, task, config, output_dir=folder / task.name, seed=seed)
        individual = evaluate_individually(base, vectors, tasks)
        own = None
        if args.criterion == "normalised":
            own = evaluate_individually(base, vectors, tasks, split="validation")
        merges: dict[str, tuple[str, dict[str, Any]]] = {method: (method, {}) for method in args.methods}
        if args.choose_weights:
            weights = choose_weights(base, list(vectors.values()), tasks, criterion=args.criterion)
            merges["task_arithmetic, weights"] = ("task_arithmetic", {"weights": weights})
        for label, (method, settings) in merges.items():
            name = label.replace(", ", "-")
            merged = merge(list(vectors.values()), method, output_dir=folder / f"merged-{name}", **settings)
            curves[label] = scaling_curve(base, merged, tasks, individual=own)
            scaling = best_scaling(curves[label], criterion=args.criterion)
            model = merged.apply_to(base, scaling=scaling)
            report = evaluate(model, tasks, label=f"{label} ({scaling:g})", scaling=scaling, progress=True)
            report = report.with_references(zero_shot=zero_shot, individual=individual)
            report.save(folder / f"report-{name}.json")
            reports[label].append(report)
    best = max(reports, key=lambda method: sum(report.accuracy for report in reports[method]))
    reports[best][-1].save(output_dir / "report.json")
    reference = evaluate(base, tasks, split="validation").accuracy
    figure = plot_merge(reports[best][-1], curves, zero_shot=reference, merged=best)
    save_figure(figure, output_dir / "report.png")
    print_summary(reports)
    print(f"\nVectors, report.json and report.png are in {output_dir}")
    return reports


def print_summary(reports: dict[str, list[Report]]) -> None:
    """Prints the table of accuracies in percent and the scalings chosen."""
    seeds = len(next(iter(reports.values())))
    print(f"\nTest accuracy in percent{', mean over seeds ± 95 % interval' if seeds > 1 else ''}.")
    print("normalised: divided by the individual model's accuracy.\n")
    print(summary_table(reports))
    for method, runs in reports.items():
        print(f"\n{method}: scaling {', '.join(f'{run.scaling:g}' for run in runs)}, chosen on validation data")


if __name__ == "__main__":
    run_recipe(
        main,
        QuickstartArguments,
        TaskVectorConfig,
        defaults=tuned_settings,
        stopped="Vectors stay in --output_dir, and the same command goes on with the run that was stopped.",
    )
