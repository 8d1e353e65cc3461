# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""The doctor's evidence: which findings cost a merge something, which remedies helped, and a predictor, each tested.

python recipes/doctor.py --config recipes/configs/doctor.yaml --data_dir <folder> \
    --evidence hf_taskvec/doctor/evidence.json --page recipes/results/doctor.md

Trains an expert per task and seed, merges them by two and three, plainly and with each remedy, and writes what
`diagnose` reads and a page. Every expert and every merge is kept, so that the same command goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import interrupts  # noqa: F401
from mergeability.cases import Case, check_remedies, measure_cases
from mergeability.evidence import Study, everywhere_table, evidence_values, predictor_table, study, symptom_table
from mergeability.series import expert_series

from hf_taskvec import TaskVectorConfig, get_tasks, load_base
from hf_taskvec.arguments import arg, command_line, run_recipe
from hf_taskvec.doctor import find_leaks
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.weights.folders import write_json, write_text

PAGE = """# The doctor's evidence

{told}. Experts: {epochs:g} epochs, learning rate {rate:g}.
Plain merge: the mean of the vectors. Kept: test accuracy of the merge over that of the task's own model, on at most
{max_test} test images a task; the doctor itself sees validation and training images. Points are hundredths; intervals
are 95 % bootstrap intervals over tasks, whose merges overlap, so that they are somewhat too narrow.

    {command}

## What the plain merge keeps, predicted

Each task is held out in turn, with every merge that holds it. Features and penalty are chosen in the merges without
it, by further tasks held out. "within a task" is the mean correlation over the merges of one held-out task: what is
left when tasks need not be told apart. The base's share is the baseline: the base's accuracy over the own model's, and
nothing of the other vectors; a predictor that does not beat it is not used in its stead. Asked for: a correlation of
.6, and intervals that cover 85 to 95 %. The smaller sets of features, and the choice, were added after a first fit of
all features at one penalty had failed on these merges; the baseline is as it was.

{predictors}

## Findings and remedies

Limits of the findings were set beforehand. "Helped" is the share of the merges with the finding whose mean over tasks
rose; a remedy is offered where that is four of five or more and the interval of the gain lies above 0. Held out: the
remedy is chosen in merges without a task and tried in those that hold it, so that a merge counts once for each of its
tasks.

{symptoms}

The same remedies in all merges, whether something was found or not:

{everywhere}

## Training images in the test parts of other tasks

{leaks}
"""


REMEDIES = ["shrink", "drop", "epoch-1", "epoch-2", "task_arithmetic@1", "ties@1", "tsv_m@1"]


@dataclass
class DoctorArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    tasks: list[str] = arg("Tasks or suites.", default=["mini"])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    seeds: list[int] = arg("Seeds of the fine-tuning runs.", default=[0, 1])
    triples: int = arg("How many triples of tasks are merged for each seed, besides all pairs.", default=24)
    remedies: list[str] = arg("What is tried: shrink, drop (the longest), epoch-N, method@scaling.", default=REMEDIES)
    num_images: int = arg("Validation and training images of each task that the doctor sees.", default=256)
    max_train: int | None = arg("Most training images of each task.", default=None)
    max_test: int = arg("Most test images of each task.", default=200)
    evidence: str = arg("Where the evidence goes; evidence.json in the output folder if left out.", default="")
    page: str = arg("Where the page goes; report.md in the output folder if left out.", default="")


def main(args: DoctorArguments, config: TaskVectorConfig) -> Study:
    check_remedies(args.remedies, int(config.num_train_epochs))
    if not args.seeds or len(args.tasks) < 1:
        raise ValueError(f"the doctor learns from merges: name tasks and seeds, got {args.tasks} and {args.seeds}")
    base, out, tasks = load_base(args.base), Path(str(config.output_dir)), get_tasks(args.tasks, data_dir=args.data_dir)
    if args.max_train is not None:
        tasks = [subset(task, max_train=args.max_train) for task in tasks]
    tested = [subset(task, max_train=args.max_train, max_test=args.max_test) for task in tasks]
    cases: list[Case] = []
    for seed in args.seeds:
        series = {}
        for task in tasks:
            folder = out / f"seed-{seed}" / task.name
            series[task.name] = expert_series(base, task, config, seed=seed, folder=folder)
            print(f"seed {seed}: {task.name} is trained", flush=True)
        covered = list(series[tasks[0].name][-1].deltas)
        place, sizes = out / f"seed-{seed}", {"triples": args.triples, "num_images": args.num_images}
        cases += measure_cases(base, tested, series, args.remedies, seed=seed, folder=place, **sizes)
        print(f"seed {seed}: {len(cases)} merges so far", flush=True)
    told = f"{base.name}, {len(tasks)} tasks, {len(args.seeds)} seed(s), {len(cases)} merges of two and three vectors"
    outcome = study(base, covered, cases, args.remedies, told)
    leaks = "\n".join(f"- {leak}" for leak in find_leaks(tasks, base)) or "None."
    tables = {"symptoms": symptom_table(outcome), "everywhere": everywhere_table(outcome), "leaks": leaks}
    settings = {"epochs": config.num_train_epochs, "rate": config.learning_rate, "max_test": args.max_test}
    page = PAGE.format(told=told, command=command_line(), predictors=predictor_table(outcome), **tables, **settings)
    write_json(args.evidence or out / "evidence.json", evidence_values(outcome.evidence))
    write_text(args.page or out / "report.md", page)
    print(page)
    return outcome


if __name__ == "__main__":
    run_recipe(
        main,
        DoctorArguments,
        TaskVectorConfig,
        stopped="Finished experts and merges are in --output_dir; the same command goes on with the next.",
    )
