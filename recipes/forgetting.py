# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Forgets each task whose vector `quickstart.py` left, with the others as control: three ways in one table.

python recipes/forgetting.py --folder out/quickstart --tasks mnist eurosat gtsrb --data_dir <folder>

`forget` chooses the strength of the negated vector, `ascent` that of the gradient at the base (one full-batch step
uphill, brought to the length of the vector), both as far as the control tasks allow; `negation` takes the whole vector
away whatever it costs. Every receipt is kept, with what it depends on beside it; a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import interrupts  # noqa: F401
from editing.page import WAYS, Receipts, page
from paper.seeds import seed_folders

from hf_taskvec import Task, TaskVector, get_tasks, gradient_vector, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.editing import forget
from hf_taskvec.editing.forgetting import STRENGTHS
from hf_taskvec.errors import ArgumentsError, ControlLostError
from hf_taskvec.models.base import Base
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.folders import read_json, write_json, write_text
from hf_taskvec.weights.resume import compute_or_read


@dataclass
class ForgettingArguments:
    folder: str = arg("Output folder of quickstart.py, with one folder of vectors per seed.")
    tasks: list[str] = arg("Tasks or suites whose vectors are forgotten, each with the others as control.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    budget: float = arg("How much of the control tasks' accuracy may go, as a fraction.", default=0.05)
    strengths: list[float] = arg("Strengths that are tried.", default=list(STRENGTHS))
    relearning_steps: int = arg("The most steps of fine-tuning to bring a task back; 0 leaves it out.", default=64)
    results_dir: str = arg("Where each receipt is kept.", default="out/forgetting")
    table: str = arg("Markdown file for the page.", default="out/forgetting/report.md")


def main(args: ForgettingArguments) -> str:
    base, tasks = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir)
    if len(tasks) < 2:
        raise ArgumentsError("each task is forgotten with the others as control, so --tasks must name two or more")
    receipts: Receipts = {}
    seeds = seed_folders(args.folder)
    for seed in seeds:
        for task in tasks:
            vector = TaskVector.from_pretrained(seed / task.name / "vector")
            plan = {
                "base": base.name,
                "tasks": args.tasks,
                "data_dir": args.data_dir,
                "vector": vector_fingerprint(vector.deltas),
                "budget": args.budget,
                "strengths": args.strengths,
                "relearning_steps": args.relearning_steps,
            }
            for way in WAYS:
                measure = partial(write_receipt, base, tasks, task, vector, way, args)
                target = Path(args.results_dir) / f"{seed.name}-{task.name}-{way}.json"
                receipt = compute_or_read(target, plan, compute=measure, read=read_json)
                receipts.setdefault((way, task.name), []).append(receipt)
                print(f"{seed.name} {task.name} {way}: {receipt.get('refused') or receipt['target']}", flush=True)
    text = page(receipts, [task.name for task in tasks], budget=args.budget, seeds=len(seeds))
    write_text(args.table, text)
    print(text)
    return text


def write_receipt(
    base: Base,
    tasks: Sequence[Task],
    task: Task,
    vector: TaskVector,
    way: str,
    args: ForgettingArguments,
    path: Path,
) -> None:
    """Forgets one task in one way, and writes the receipt, or why there is none."""
    if way == "ascent":
        uphill = gradient_vector(base, task, learning_rate=1.0, trainable_parameters=list(vector.deltas))
        vector = uphill * (vector.norm() / uphill.norm())
    whole = way == "negation"
    try:
        gone = forget(
            base,
            vector,
            control=[other for other in tasks if other is not task],
            target=task,
            budget=0.99 if whole else args.budget,
            strengths=[1.0] if whole else args.strengths,
            relearning_steps=0 if way == "ascent" else args.relearning_steps,
        )
    except ControlLostError as error:
        write_json(path, {"refused": str(error)})
    else:
        write_json(path, gone.receipt)


if __name__ == "__main__":
    run_recipe(
        main,
        ForgettingArguments,
        stopped="Every finished receipt is in --results_dir; the same command goes on with the next.",
    )
