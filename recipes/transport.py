# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Brings the vectors that quickstart.py left to another base of the same architecture, in several ways.

python recipes/transport.py --folder out/quickstart --to out/tiny-clip-second --data_dir <folder> --tasks mnist eurosat
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from editing.carrying import SCALINGS, WAYS, Results, measure, page
from paper.seeds import seed_folders, seed_of

from hf_taskvec import TaskVector, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes
from hf_taskvec.weights.folders import read_json, write_json, write_text
from hf_taskvec.weights.names import parameters_of
from hf_taskvec.weights.resume import compute_or_read


@dataclass
class TransportArguments:
    folder: str = arg("Output folder of quickstart.py, with one folder of vectors per seed.")
    to: str = arg("Hub id or folder of the new base.")
    tasks: list[str] = arg("Tasks or suites whose vectors are brought over.")
    base: str | None = arg("The vectors' own base; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    images_per_class: int = arg("Labelled training images of each class that are shown.", default=2)
    ways: list[str] = arg("What is tried.", default=list(WAYS))
    max_validation: int = arg("Most validation images of a task.", default=200)
    max_test: int = arg("Most test images of a task.", default=500)
    results_dir: str = arg("Where each result is kept.", default="out/transport")
    table: str = arg("Markdown file for the page.", default="out/transport/report.md")


def main(args: TransportArguments) -> str:
    old, new = load_base(args.base), load_base(args.to)
    whole = get_tasks(args.tasks, data_dir=args.data_dir)
    tasks = [subset(task, max_validation=args.max_validation, max_test=args.max_test) for task in whole]
    seeds = seed_folders(args.folder)
    results: Results = {}
    for seed in seeds:
        for task in tasks:
            vector = TaskVector.from_pretrained(seed / task.name / "vector")
            plan = {
                "to": fingerprint(tensor_hashes(parameters_of(new.model))),
                "vector": vector_fingerprint(vector.deltas),
                "scalings": list(SCALINGS),
                "images_per_class": args.images_per_class,
                "max_validation": args.max_validation,
                "max_test": args.max_test,
            }
            for way in args.ways:
                work = partial(measure, old, new, task, vector, way, images=args.images_per_class, seed=seed_of(seed))
                target = Path(args.results_dir) / f"{seed.name}-{task.name}-{way.replace(', ', '-')}.json"
                result = compute_or_read(target, plan, compute=partial(write, work), read=read_json)
                results.setdefault((way, task.name), []).append(result)
                print(f"{seed.name} {task.name} {way}: {result}", flush=True)
    text = page(
        results,
        [task.name for task in tasks],
        base=new.name,
        images=args.images_per_class,
        seeds=len(seeds),
        validation=args.max_validation,
        test=args.max_test,
    )
    write_text(args.table, text)
    print(text)
    return text


def write(work: Callable[[], Mapping[str, Any]], path: Path) -> None:
    """Writes what is measured."""
    write_json(path, work())


if __name__ == "__main__":
    run_recipe(
        main,
        TransportArguments,
        stopped="Every finished result is in --results_dir; the same command goes on with the next.",
    )
