# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Measures two analogies on real images: a domain shift and a subpopulation, beside zero-shot and few-shot fine-tuning.

python recipes/analogies.py --data_dir <folder>
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from editing.likening import EXAMPLES, WAYS, Results, measure, page

from hf_taskvec import Task, TaskVector, TaskVectorConfig, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.models.base import Base
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.training.run import train_vector
from hf_taskvec.weights.folders import read_json, write_json, write_text
from hf_taskvec.weights.resume import compute_or_read

TASKS = ("mnist", "digits", "gtsrb")


@dataclass
class AnalogiesArguments:
    data_dir: str = arg("Folder with the datasets mnist and gtsrb.")
    examples: list[str] = arg("Which analogies.", default=list(EXAMPLES))
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    seeds: list[int] = arg("Seeds of fine-tuning.", default=[0, 1, 2])
    images_per_class: int = arg("Labelled images of each class for few-shot fine-tuning.", default=2)
    epochs: int = arg("Epochs of the vectors.", default=4)
    max_train: int = arg("Most training images of a vector.", default=1000)
    max_validation: int = arg("Most validation images of a task.", default=200)
    max_test: int = arg("Most test images of a task.", default=500)
    results_dir: str = arg("Where vectors and results are kept.", default="out/analogies")
    table: str = arg("Markdown file for the page.", default="out/analogies/report.md")


def main(args: AnalogiesArguments) -> str:
    base = load_base(args.base)
    whole = {task.name: task for task in get_tasks(TASKS, data_dir=args.data_dir)}
    sizes: dict[str, Any] = {
        "max_train": args.max_train,
        "max_validation": args.max_validation,
        "max_test": args.max_test,
    }
    plan = {"base": base.name, "epochs": args.epochs, "images_per_class": args.images_per_class, **sizes}
    results: Results = {}
    for example in args.examples:
        *known, fourth = (subset(task, **sizes) for task in EXAMPLES[example].make(whole))
        for seed in args.seeds:
            folder = Path(args.results_dir) / f"seed-{seed}"
            vectors = [made(base, task, args, seed, folder / task.name, plan) for task in known]
            for way in WAYS:
                work = partial(measure, base, vectors, fourth, way, images=args.images_per_class, seed=seed)
                target = folder / f"{example}-{list(WAYS).index(way)}.json"
                result = compute_or_read(target, plan, compute=partial(write, work), read=read_json)
                results.setdefault((example, way), []).append(result)
                print(f"{example} seed {seed} {way}: {result}", flush=True)
    text = page(
        results,
        seeds=len(args.seeds),
        images=args.images_per_class,
        train=args.max_train,
        epochs=args.epochs,
        validation=args.max_validation,
        test=args.max_test,
    )
    write_text(args.table, text)
    print(text)
    return text


def made(
    base: Base, task: Task, args: AnalogiesArguments, seed: int, folder: Path, plan: Mapping[str, Any]
) -> TaskVector:
    """The vector of a task, trained with the settings of quickstart.py or read."""
    config = TaskVectorConfig(
        learning_rate=3e-4,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=64,
        trainable_parameters=["*.mlp.*.weight"],
        record_epochs=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )

    def train(_: Path) -> None:
        train_vector(base, task, config, output_dir=folder, seed=seed)

    return compute_or_read(folder / "vector", plan, compute=train, read=TaskVector.from_pretrained)


def write(work: Callable[[], Mapping[str, Any]], path: Path) -> None:
    """Writes what is measured."""
    write_json(path, work())


if __name__ == "__main__":
    run_recipe(
        main,
        AnalogiesArguments,
        stopped="Every finished vector and result is in --results_dir; the same command goes on with the next.",
    )
