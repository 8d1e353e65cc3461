# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Writes the cards of task vectors into `hub_cards/<name>` and what `recipes/publish.py` needs beside them.

python recipes/make_card.py --vectors out/eight/seed-0/*/vector out/eight/seed-0/merged-tsv_m --data_dir <folder>

Each vector is measured on its tasks: a fine-tuned one as it is, others with the scaling that is best on validation
data. The accuracies of the fine-tuned vectors in the list stand beside those of the others as the individual ones.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import interrupts  # noqa: F401

from hf_taskvec import Report, TaskVector, evaluate, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.cards import CARD_NAME, PICTURE_NAME, REPORT_NAME, render_folder_card
from hf_taskvec.cards.metadata import task_names
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.plots import plot_gains, save_figure
from hf_taskvec.evaluation.scalings import best_scaling, scaling_curve
from hf_taskvec.vectors.files import write_vector
from hf_taskvec.weights.folders import write_text


@dataclass
class CardArguments:
    vectors: list[str] = arg("Hub ids or folders of the vectors.")
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    report: str | None = arg("Saved report of the base with the one vector, instead of measuring it.", default=None)
    name: str | None = arg("Name of the one repository; by default from base, task and method.", default=None)
    namespace: str = arg("User or organisation of the repositories.", default="hf-taskvec")
    license: str | None = arg("Licence of the vectors, by the Hub's name for it.", default=None)
    command: str | None = arg("The command that made the vectors whose provenance lacks it.", default=None)
    output_dir: str = arg("Folder of the cards.", default="hub_cards")
    weights_dir: str = arg("Where to put the vectors for recipes/publish.py.", default="out/published")


def main(args: CardArguments) -> list[Path]:
    if len(args.vectors) != 1 and (args.name or args.report):
        raise ValueError("--name and --report are those of one vector; pass one, or neither of them")
    vectors = [TaskVector.from_pretrained(source) for source in args.vectors]
    experts = {vector.info.task: vector for vector in vectors if vector.info.task and vector.info.kind == "fine-tuned"}
    return [write_card(vector, experts, args) for vector in vectors]


def write_card(vector: TaskVector, experts: dict[str, TaskVector], args: CardArguments) -> Path:
    """Writes configuration, report, picture and README of one vector."""
    info = vector.info
    info = dataclasses.replace(info, license=args.license or info.license, command=info.command or args.command)
    name = args.name or name_of(vector)
    folder, weights = Path(args.output_dir) / name, Path(args.weights_dir) / name
    write_vector(weights, vector.deltas, info, layer_norms=True)
    folder.mkdir(parents=True, exist_ok=True)
    for path in weights.glob("*config.json"):
        shutil.copyfile(path, folder / path.name)
    if args.report:
        shutil.copyfile(args.report, folder / REPORT_NAME)
    else:
        measure(vector, experts, folder, data_dir=args.data_dir)
    write_text(folder / CARD_NAME, render_folder_card(folder, repo_id=f"{args.namespace}/{name}"))
    print(f"The card is in {folder}")
    return folder


def name_of(vector: TaskVector) -> str:
    """Base, task and method, as in tiny-clip-mnist, tiny-clip-tsv_m and tiny-clip-mnist-gradient."""
    base = (vector.info.base or "clip").split("/")[-1]
    return f"{base}-{vector.info.label}{'-gradient' if vector.info.kind == 'gradient' else ''}"


def measure(vector: TaskVector, experts: dict[str, TaskVector], folder: Path, *, data_dir: str | None) -> Report:
    """Evaluates the vector on its tasks and saves report and picture."""
    info = vector.info
    base = load_base(info.base)
    tasks = get_tasks(task_names(info), data_dir=data_dir)
    curve = scaling_curve(base, vector, tasks, progress=True)
    scaling = best_scaling(curve) if info.kind == "merged" else 1.0
    report = evaluate(
        vector.apply_to(base, scaling=scaling), tasks, label=f"{info.label} ({scaling:g})", scaling=scaling
    )
    known = [task for task in tasks if task.name in experts]
    report = report.with_references(
        zero_shot=evaluate(base, tasks), individual=evaluate_individually(base, experts, known)
    )
    report.save(folder / REPORT_NAME)
    save_figure(plot_gains(curve, evaluate(base, tasks, split="validation")), folder / PICTURE_NAME)
    return report


if __name__ == "__main__":
    run_recipe(main, CardArguments, stopped="Finished cards stay; the same command makes all of them again.")
