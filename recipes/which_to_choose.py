# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""Which to choose, from one merged model to one model a task: accuracy against bytes, passes and the task's name.

python recipes/which_to_choose.py --folder out/quickstart/seed-0 --output_dir out/which_to_choose \
    --tasks mnist fashion-mnist cifar10 eurosat gtsrb flowers5 quickdraw5 plantvillage-apple --data_dir <folder>

Writes one file a way, so that a run that was stopped goes on, the figure which_to_choose.png and the page
which_to_choose.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import interrupts  # noqa: F401
from multitask.choice import choice_table, merges_table, plot_choice
from multitask.ways import EXPERTS, WAYS, make_way, right_answers

from hf_taskvec import Task, TaskVector, get_tasks, load_base
from hf_taskvec.arguments import arg, command_line, run_recipe
from hf_taskvec.evaluation.plots import save_figure
from hf_taskvec.models.base import Base
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.vectors.info import library_versions
from hf_taskvec.weights.folders import read_json, write_json, write_text
from hf_taskvec.weights.resume import compute_or_read

PAGE = """# Which to choose

Test accuracy in percent on {count} tasks with the vectors of one run, and 95 % intervals, images drawn anew. Stored:
what a way keeps beside the base, over one vector in float32. Accuracy: among the classes of the image's own task.
Normalised: over that of the task's own model. Among all classes: nobody tells the task, for the weights or for the
classes; where weights are chosen by the task's name, it is known. Scalings, strengths and gates come from validation
images.
{versions}.

    {command}

{table}
![accuracy against what is stored](which_to_choose.png)

{merges}"""


@dataclass
class ChoiceArguments:
    folder: str = arg("Folder of one seed of quickstart.py, with a folder of a vector for each task.")
    tasks: list[str] = arg("Tasks or suites.")
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    ways: list[str] = arg("Which ways; the tasks' own vectors are always among them.", default=list(WAYS))
    steps: int = arg("Steps of the gates of we_moe.", default=200)
    max_images: int | None = arg("At most so many test, and half as many validation images of a task.", default=None)
    results_dir: str = arg("Where what was measured is kept.", default="out/which_to_choose/ways")
    output_dir: str = arg("Where figure and page go.", default="out/which_to_choose")


def main(args: ChoiceArguments) -> dict[str, dict[str, Any]]:
    base, tasks, out = load_base(args.base), get_tasks(args.tasks, data_dir=args.data_dir), Path(args.output_dir)
    if args.max_images is not None:
        tasks = [subset(task, max_validation=args.max_images // 2, max_test=args.max_images) for task in tasks]
    vectors = {task.name: TaskVector.from_pretrained(Path(args.folder) / task.name / "vector") for task in tasks}
    setup = {"base": base.name, "tasks": args.tasks, "steps": args.steps, "max_images": args.max_images}
    prints = {name: vector_fingerprint(vector.deltas) for name, vector in vectors.items()}
    results = {}
    for name in dict.fromkeys([*args.ways, EXPERTS]):
        results[name] = compute_or_read(
            Path(args.results_dir) / f"{name}.json",
            {**setup, "vectors": prints, "way": name},
            compute=partial(measure, name, base, vectors, tasks, args.steps),
            read=read_json,
        )
        print(f"{name}: {results[name]['size']:.2f} vectors stored", flush=True)
    save_figure(plot_choice(results), out / "which_to_choose.png")
    text, versions = choice_table(results), ", ".join(f"{k} {v}" for k, v in library_versions().items())
    page = PAGE.format(
        count=len(tasks), versions=versions, command=command_line(), table=text, merges=merges_table(results)
    )
    write_text(out / "which_to_choose.md", page)
    print(text)
    return results


def measure(
    name: str, base: Base, vectors: Mapping[str, TaskVector], tasks: list[Task], steps: int, path: Path
) -> None:
    """Writes what one way stores, takes and gets right."""
    way = make_way(name, base, vectors, tasks, steps=steps)
    told = {"size": way.size, "passes": way.passes, "told": dict(way.told)}
    write_json(path, {**told, **right_answers(way, base, tasks)})


if __name__ == "__main__":
    run_recipe(
        main,
        ChoiceArguments,
        stopped="Every finished way is in --results_dir; the same command goes on with the next.",
    )
