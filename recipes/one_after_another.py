# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Merges the vectors that `quickstart.py` left one after another, in many orders, beside merges of all at once.

python recipes/one_after_another.py --folder out/quickstart --tasks mnist eurosat gtsrb --data_dir <folder>

Every order is kept, with what it depends on beside it; a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from editing.orders import (
    BATCH,
    METHODS,
    SCALINGS,
    UNORDERED,
    Bench,
    drawn_orders,
    measure_batch,
    measure_order,
    page,
    sequence_scaling,
)
from paper.seeds import seed_folders

from hf_taskvec import TaskVector, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.errors import ArgumentsError
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.folders import read_json, write_json, write_text
from hf_taskvec.weights.resume import compute_or_read


@dataclass
class OrdersArguments:
    folder: str = arg("Output folder of quickstart.py, with one folder of vectors per seed.")
    tasks: list[str] = arg("Tasks or suites whose vectors are merged.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    methods: list[str] = arg("Ways to merge one after another.", default=list(METHODS))
    batch: list[str] = arg("Merge methods beside them, of all vectors at once.", default=list(BATCH))
    orders: int = arg("How many orders of the tasks.", default=20)
    between: int = arg("In how many of them each task is measured also right after its vector was added.", default=5)
    max_test: int | None = arg("At most so many test images of a task.", default=None)
    max_validation: int | None = arg("At most so many validation images of a task.", default=None)
    results_dir: str = arg("Where what was measured is kept.", default="out/one_after_another/orders")
    table: str = arg("Markdown file for the page.", default="out/one_after_another/report.md")


@dataclass(frozen=True)
class Kept:
    """Work of one seed that is done once, in a folder, with what it depends on."""

    folder: Path
    plan: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, measure: Callable[[], dict[str, Any]], **plan: Any) -> dict[str, Any]:
        """What `measure` gives, read if it was measured before."""

        def compute(path: Path) -> None:
            write_json(path, measure())

        result = compute_or_read(self.folder / f"{name}.json", {**self.plan, **plan}, compute=compute, read=read_json)
        print(f"{self.folder.name} {name}", flush=True)
        return result


def main(args: OrdersArguments) -> str:
    if args.orders < 1 or args.between < 1:
        raise ArgumentsError(f"--orders and --between must be at least 1, got {args.orders} and {args.between}")
    base, whole = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    seeds = seed_folders(args.folder)
    tasks = [subset(task, max_test=args.max_test, max_validation=args.max_validation) for task in whole]
    names = [task.name for task in tasks]
    orders = drawn_orders(names, args.orders)
    batch: dict[str, list[dict[str, Any]]] = {method: [] for method in args.batch}
    sequences: dict[str, list[dict[str, Any]]] = {method: [] for method in args.methods}
    for seed in seeds:
        vectors = {name: TaskVector.from_pretrained(seed / name / "vector") for name in names}
        bench = Bench(base, tasks, vectors)
        plan: dict[str, Any] = {key: getattr(args, key) for key in ("base", "tasks", "max_test", "max_validation")}
        prints = [vector_fingerprint(vector.deltas) for vector in vectors.values()]
        plan |= {"vectors": prints, "scalings": list(SCALINGS)}
        kept = Kept(Path(args.results_dir) / seed.name, plan)
        for method, results in batch.items():
            results.append(kept.once(f"batch-{method}", partial(measure_batch, bench, method)))
        for method, results in sequences.items():
            results.append(measured_orders(bench, method, orders, kept, between=args.between))
    between = min(args.between, args.orders)
    text = page(batch, sequences, names, orders=args.orders, between=between, images=args.max_test)
    write_text(args.table, text)
    print(text)
    return text


def measured_orders(bench: Bench, method: str, orders: list[list[str]], kept: Kept, *, between: int) -> dict[str, Any]:
    """The scaling of a way to merge one after another, and what each order gave."""
    first = kept.once(f"{method}-scaling", partial(sequence_scaling, bench, method, orders[0]))
    runs = []
    for number, order in enumerate(orders[:between] if method in UNORDERED else orders):
        wanted: dict[str, Any] = {"scaling": first["scaling"], "between": number < between}
        name = f"{method}-{number}"
        runs.append(kept.once(name, partial(measure_order, bench, method, order, **wanted), order=order, **wanted))
    return {**first, "runs": runs}


if __name__ == "__main__":
    run_recipe(
        main,
        OrdersArguments,
        stopped="Every finished order is in --results_dir; the same command goes on with the next.",
    )
