# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Makes the vectors that come with the studio: one per task of its suite, some with the moments of their training.

python recipes/studio_vectors.py --output_dir out/studio                                 # looks at them first
python recipes/studio_vectors.py --output_dir out/studio --packed_dir hf_taskvec/studio/vectors

Run again from start to end on 26 November 2026, the first command gave the very weights that are committed, bit for
bit; only the seconds in their provenance differ.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import interrupts  # noqa: F401

from hf_taskvec import Task, TaskVector, TaskVectorConfig, evaluate, get_tasks, gradient_vector, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.models.base import Base
from hf_taskvec.text import table
from hf_taskvec.training.run import train_vector

SETTINGS = Path(__file__).parent / "configs" / "studio.yaml"


@dataclass
class StudioVectorsArguments:
    tasks: list[str] = arg(
        "Tasks or suites.",
        default=["digits", "shapes", "patterns", "counts", "arrows", "faces", "places", "sizes"],
    )
    series: list[str] = arg("Tasks whose vectors keep the moments of their training.", default=["faces", "places"])
    moments: list[str] = arg(
        "Moments that are kept of them.", default=["fraction-0.25", "fraction-0.5", "epoch-1", "epoch-2", "epoch-4"]
    )
    rank: float = arg("Fraction of the singular values that is kept of each matrix.", default=0.04)
    packed_dir: str | None = arg("Where the packed vectors go; beside the runs if left out.", default=None)


def settings_file(args: argparse.Namespace) -> Path:
    """The settings of the vectors that come with the package."""
    return SETTINGS


def main(args: StudioVectorsArguments, config: TaskVectorConfig) -> str:
    base, runs = load_base(), Path(str(config.output_dir))
    packed = Path(args.packed_dir) if args.packed_dir else runs / "packed"
    rows = []
    for task in get_tasks(args.tasks):
        print(f"fine-tuning on {task.name}")
        settings = copy.copy(config)
        if task.name not in args.series:
            settings.record_epochs, settings.record_fractions = False, []
        vector = train_vector(base, task, settings, output_dir=runs / task.name)
        small = vector.compress("svd", rank=args.rank)
        small.save_pretrained(packed / task.name / "vector")
        if task.name in args.series:
            for name, moment in moments(base, task, runs / task.name / "run" / "vectors", config, args.moments):
                moment.compress("svd", rank=args.rank).save_pretrained(packed / task.name / "vectors" / name)
        models = [base, vector.apply_to(base), small.apply_to(base)]
        rows.append([task.name, *(f"{100 * evaluate(model, task, progress=False).accuracy:.1f}" for model in models)])
    size = sum(path.stat().st_size for path in packed.rglob("*") if path.is_file())
    text = table(["test accuracy", "base", "expert", "packed"], rows)
    print(f"{text}\n\n{size / 1e6:.2f} MB in {packed}")
    return text


def moments(
    base: Base, task: Task, recorded: Path, config: TaskVectorConfig, names: list[str]
) -> Iterator[tuple[str, TaskVector]]:
    """The moments that are kept, under the names of their folders; first the gradient, as long as the first of them."""
    chosen = [(name, TaskVector.from_pretrained(recorded / name)) for name in names]
    patterns = config.trainable_parameters or ["*"]
    rate = chosen[0][1].norm() / gradient_vector(base, task, learning_rate=1.0, trainable_parameters=patterns).norm()
    yield "gradient", gradient_vector(base, task, learning_rate=rate, trainable_parameters=patterns)
    yield from chosen


if __name__ == "__main__":
    run_recipe(
        main,
        StudioVectorsArguments,
        TaskVectorConfig,
        defaults=settings_file,
        stopped="Vectors stay in --output_dir, and the same command goes on with the run that was stopped.",
    )
