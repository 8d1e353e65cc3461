"""How large published statistics must be: bytes against the accuracy of the merges by them.

PYTHONPATH=recipes python recipes/benchmarks/statistics_size.py --folder out/quickstart/seed-0 --tasks mnist eurosat \
    --data_dir <folder>

Statistics of some training images of each task are collected in every rank and dtype; the vectors are merged by them at
one scaling for all, the best on validation data with those of full rank in float32, and evaluated on test images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging_runs import header, line

from hf_taskvec import TaskVector, choose_scaling, evaluate, get_tasks, load_base, merge
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.evaluation.report import percent
from hf_taskvec.merging import get_method
from hf_taskvec.statistics import Statistics, collect_statistics


@dataclass
class SizeArguments:
    folder: str = arg("Folder with one folder of a vector per task, as quickstart.py leaves it for a seed.")
    tasks: list[str] = arg("Tasks whose vectors are merged.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    method: str = arg("Merge method that looks at data.", default="regmean")
    num_images: int = arg("Training images of each task.", default=64)
    ranks: list[int] = arg("Ranks of the factors.", default=[16, 32, 64, 128, 256])
    dtypes: list[str] = arg("Dtypes of the factors.", default=["float16"])
    scalings: list[float] = arg("Scalings tried on validation data.", default=[0.8, 1.0, 1.2])


def main(args: SizeArguments) -> None:
    base, tasks = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    vectors = [TaskVector.from_pretrained(Path(args.folder) / task.name / "vector") for task in tasks]
    kinds = get_method(args.method).statistics
    full = base.model.config.vision_config.intermediate_size
    vector_bytes = sum(4 * delta.numel() for delta in vectors[0].deltas.values())

    def statistics(rank: int, dtype: str) -> list[Statistics]:
        options: dict[str, Any] = {"kinds": kinds, "num_images": args.num_images, "rank": rank, "dtype": dtype}
        pairs = zip(tasks, vectors, strict=True)
        return [collect_statistics(base, task, vector=vector, **options) for task, vector in pairs]

    def accuracy(made: Sequence[Statistics]) -> float:
        merged = merge(vectors, args.method, statistics=made)
        return evaluate(merged.apply_to(base, scaling=scaling), tasks).accuracy

    whole = statistics(full, "float32")
    scaling = choose_scaling(base, merge(vectors, args.method, statistics=whole), tasks, scalings=args.scalings)
    best = accuracy(whole)
    print(f"{args.method} at scaling {scaling:g}, {args.num_images} images\n")
    header("rank", "dtype", "of the float32 vector", "largest error", "accuracy", "lost")
    for rank, dtype in [(full, "float32"), *((rank, dtype) for dtype in args.dtypes for rank in args.ranks)]:
        made = whole if (rank, dtype) == (full, "float32") else statistics(rank, dtype)
        stored = sum(tensor.numel() * tensor.itemsize for tensor in made[0].tensors.values())
        reached = accuracy(made)
        error = max(own.info.error for own in made)
        line(
            str(rank), dtype, f"{stored / vector_bytes:.1%}", f"{error:.1%}", percent(reached), percent(best - reached)
        )


if __name__ == "__main__":
    run_recipe(main, SizeArguments)
