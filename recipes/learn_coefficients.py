# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Learns the coefficients of a sum of task vectors from images, merges by them and evaluates on test images.

python recipes/learn_coefficients.py --config recipes/configs/learn_coefficients.yaml
python recipes/learn_coefficients.py --tasks mnist eurosat --data_dir <folder> --vectors out/mnist/vector \
    out/eurosat/vector --objective entropy --per parameter --density 0.2
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import interrupts  # noqa: F401
from accelerate import PartialState

from hf_taskvec import Report, TaskVector, evaluate, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.tasks import Split
from hf_taskvec.tuning import Descent, learn_coefficients
from hf_taskvec.tuning.mixture import Per
from hf_taskvec.tuning.objectives import Objective


@dataclass
class LearnArguments:
    vectors: list[str] = arg("Hub ids or folders of the tasks' vectors, in the order of --tasks.")
    tasks: list[str] = arg("Tasks or suites.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    objective: Objective = arg("What is minimised: expert, entropy or labels.", default="expert")
    per: Per = arg("What has its own coefficient in each vector: task, layer or parameter.", default="task")
    split: Split = arg("The part of the tasks that is learned from.", default="validation")
    transductive: bool = arg("Whether that may be the test part; provenance and reports will tell.", default=False)
    images: int | None = arg("At most so many images of each task.", default=None)
    density: float | None = arg("What TIES leaves of each vector before the sum; AdaMerging++ takes 0.2.", default=None)
    start: float = arg("First value of every coefficient.", default=0.3)
    largest: float = arg("Largest coefficient; the smallest is 0.", default=1.0)
    steps: int = arg("Steps of Adam.", default=500)
    batch_size: int = arg("Images of each task in a step, over all processes.", default=16)
    learning_rate: float = arg("Learning rate of Adam.", default=1e-3)
    seed: int = arg("Of the order of the images.", default=0)
    output_dir: str = arg("Where the merged vector and, beside it, its report go.", default="out/learned")


def main(args: LearnArguments) -> Report | None:
    base, tasks = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    opened = [TaskVector.from_pretrained(source) for source in args.vectors]
    vectors = {task.name: vector for task, vector in zip(tasks, opened, strict=True)}
    descent = Descent(
        start=args.start,
        bounds=(0.0, args.largest),
        steps=args.steps,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        seed=args.seed,
    )
    learned = learn_coefficients(
        base,
        vectors,
        tasks,
        objective=args.objective,
        per=args.per,
        split=args.split,
        images=args.images,
        density=args.density,
        descent=descent,
        transductive=args.transductive,
    )
    if not PartialState().is_main_process:
        return None
    merged = learned.merge(output_dir=args.output_dir)
    individual = evaluate_individually(base, vectors, tasks)
    report = evaluate(merged.apply_to(base), tasks, label="learned", zero_shot=base)
    report = report.with_references(individual=individual)
    report.save(Path(args.output_dir) / "report.json")
    print(report.to_markdown())
    for group, values in learned.coefficients.items():
        print(f"{group}: {', '.join(f'{task.name} {value:.2f}' for task, value in zip(tasks, values, strict=True))}")
    print(f"loss {learned.curve[0]:.4f} to {learned.curve[-1]:.4f}; the merged vector is in {args.output_dir}")
    return report


if __name__ == "__main__":
    run_recipe(main, LearnArguments, stopped="Nothing was written; the same command begins anew.")
