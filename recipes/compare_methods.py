# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""One table of merges of the vectors that `quickstart.py` left: scaling from validation, accuracy on test data.

python recipes/compare_methods.py --folder out/quickstart --tasks mnist eurosat gtsrb --data_dir <folder>
python recipes/compare_methods.py --folder out/feature --base hf-taskvec/feature-clip --tasks mnist eurosat gtsrb \
    --data_dir <folder> --learned expert entropy --learned_splits validation test --results_dir out/methods-feature

Methods that look at data get statistics of a few unlabelled training images of each task, collected once. `--learned`
adds sums with learned coefficients; learned from test images they are marked as transductive.
Every result is kept in a file; a run that was stopped goes on, one with other vectors, tasks or scalings is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import interrupts  # noqa: F401
from paper.merges import Run, measure_individual, measure_learned, measure_merge, methods_page, tuned
from paper.needs import Needs
from paper.seeds import seed_folders

from hf_taskvec import Report, TaskVector, evaluate, get_tasks, list_methods, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.errors import check_known
from hf_taskvec.evaluation.report import percent
from hf_taskvec.merging import get_method
from hf_taskvec.tasks import Split
from hf_taskvec.tuning import Descent
from hf_taskvec.tuning.mixture import Per
from hf_taskvec.tuning.objectives import Objective
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.folders import read_json, write_text
from hf_taskvec.weights.resume import compute_or_read

METHODS = [method.name for method in list_methods() if method.max_vectors is None]
SCALINGS = [0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7, 4.0]


@dataclass
class ComparisonArguments:
    folder: str = arg("Output folder of quickstart.py, with one folder of vectors per seed.")
    tasks: list[str] = arg("Tasks or suites whose vectors are merged.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    methods: list[str] = arg("Merge methods.", default=METHODS)
    tuned: list[str] = arg("Also methods with a setting chosen on validation data: bmm:ridge=0.1,1.", default=[])
    scalings: list[float] = arg("Scalings tried on validation data.", default=SCALINGS)
    num_images: int = arg("Training images of each task that methods which look at data see, unlabelled.", default=64)
    learned: list[str] = arg("Also sums whose coefficients minimise this: expert, entropy, labels.", default=[])
    learned_splits: list[str] = arg("What they learn from; test makes them transductive.", default=["validation"])
    learned_per: Per = arg("What has a coefficient of its own: task, layer or parameter.", default="parameter")
    learned_images: int | None = arg("At most so many images of each task to learn from.", default=None)
    learned_steps: int = arg("Steps of Adam.", default=500)
    learned_rate: float = arg("Learning rate of Adam.", default=1e-3)
    results_dir: str = arg("Where each result is kept.", default="out/methods")
    table: str = arg("Markdown file for the table.", default="out/methods/table.md")


def main(args: ComparisonArguments) -> str:
    base, tasks = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    seeds = seed_folders(args.folder)
    check_names(args)
    kept, setup = Path(args.results_dir), {"base": base.name, "tasks": args.tasks, "data_dir": args.data_dir}
    results: dict[str, list[Run]] = {}
    zero_shot = compute_or_read(
        kept / "zero-shot.json", setup, compute=lambda path: evaluate(base, tasks).save(path), read=Report.load
    )
    for seed in seeds:
        vectors = {task.name: TaskVector.from_pretrained(seed / task.name / "vector") for task in tasks}
        plan = {**setup, "vectors": {name: vector_fingerprint(vector.deltas) for name, vector in vectors.items()}}
        needs = Needs(base, tasks, kept / f"{seed.name}-statistics", args.num_images)
        own = partial(measure_individual, needs, vectors)
        individual = compute_or_read(kept / f"{seed.name}-individual.json", plan, compute=own, read=read_json)
        for label, settings, measure in jobs(args):
            target, compute = kept / f"{seed.name}-{label}.json", partial(measure, needs, vectors)
            run = compute_or_read(target, {**plan, **settings}, compute=compute, read=Run.load)
            report = run.report.with_references(zero_shot=zero_shot, individual=individual)
            results.setdefault(label, []).append(replace(run, report=report))
            print(f"{seed.name} {label}: {percent(report.accuracy)} % in {run.seconds:.1f} s", flush=True)
    text = methods_page(results)
    write_text(args.table, text)
    print(text)
    return text


def check_names(args: ComparisonArguments) -> None:
    """Refuses names that are none before hours of work."""
    [get_method(method) for method in args.methods]
    [tuned(text) for text in args.tuned]
    for objective in args.learned:
        check_known("objective", objective, get_args(Objective))
    for split in args.learned_splits:
        check_known("split", split, get_args(Split))


def jobs(args: ComparisonArguments) -> Iterator[tuple[str, dict[str, Any], Callable[..., None]]]:
    """What is measured: its name, what it depends on beside the vectors, and the function that writes the run."""
    for method, grid in [*((method, {}) for method in args.methods), *map(tuned, args.tuned)]:
        measure = partial(measure_merge, method=method, grid=grid, scalings=args.scalings)
        plan: dict[str, Any] = {"method": method, "scalings": args.scalings} | ({"grid": grid} if grid else {})
        images = {"images": args.num_images} if get_method(method).statistics else {}
        yield "-".join([method, *grid]), {**plan, **images}, measure
    for objective, split in product(args.learned, args.learned_splits):
        if (objective, split) != ("labels", "test"):  # nothing is learned from labels of test images
            how = {"objective": objective, "split": split, "per": args.learned_per, "images": args.learned_images}
            descent = Descent(steps=args.learned_steps, learning_rate=args.learned_rate)
            measure = partial(measure_learned, settings=how, descent=descent)
            yield f"learned-{objective}-{split}", {**how, **descent.provenance()}, measure


if __name__ == "__main__":
    run_recipe(
        main,
        ComparisonArguments,
        stopped="Every finished result is in --results_dir; the same command goes on with the next.",
    )
