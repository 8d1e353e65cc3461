# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-taskvec"]
# ///
"""What penalties of fine-tuning do to a merge, and what shrinking a long vector does: both trained for it, and merged.

python recipes/penalties.py
python recipes/penalties.py --tasks mnist eurosat gtsrb --data_dir <folder> --max_train 1000 --max_validation 200 \
    --max_test 500 --num_train_epochs 4 --seeds 0 1 2

`orthogonality` is OrthoReg's (arXiv 2604.17078), `pull_to_base` the squared distance from the base. "one long" has one
vector that was trained at a larger learning rate, whose task changes with the seed; `distac` shrinks it to the mean
norm of the others before it is merged (the rule of arXiv 2508.01148 without its distillation). Scalings are chosen on
validation data, accuracies are of test data. Vectors and results stay in --output_dir: the same command goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import interrupts  # noqa: F401
from paper.penalised import LONG, PLAIN, Runs, penalties_table, write_merged, write_own

from hf_taskvec import Report, TaskVectorConfig, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.merging import get_method
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.folders import read_json, write_text
from hf_taskvec.weights.resume import compute_or_read

CONFIG = Path(__file__).parent / "configs" / "quickstart.yaml"
SIZES = ("max_train", "max_validation", "max_test")
SETTINGS = ("tasks", "data_dir", "scalings", *SIZES)  # that decide what is measured of given vectors
NOTE = (
    "Test accuracy in percent, mean over {seeds} seed(s) ± 95 % interval. Norm: the mean of the vectors' norms, in "
    "brackets the longest. Gain: over the same merge of plain vectors, or for `distac` over the same vectors merged as "
    "they are, paired over seeds."
)


@dataclass
class PenaltyArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    tasks: list[str] = arg("Tasks or suites.", default=["mini"])
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    max_train: int | None = arg("Most training images of each task.", default=None)
    max_validation: int | None = arg("Most validation images of each task.", default=None)
    max_test: int | None = arg("Most test images of each task.", default=None)
    orthogonalities: list[float] = arg("Strengths of the one penalty.", default=[1e-4, 1e-3, 1e-2])
    pulls: list[float] = arg("Strengths of the other.", default=[0.01, 0.03, 0.1])
    long_rate: float = arg("How many times the learning rate of the long vector is the others'.", default=10.0)
    methods: list[str] = arg("How the vectors are merged.", default=["task_arithmetic", "tsv_m"])
    scalings: list[float] = arg("Scalings to try.", default=[0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 1.8, 2.7, 4.0])
    seeds: list[int] = arg("Seeds of the fine-tuning runs.", default=[0])
    table: str = arg("Markdown file for the table; table.md in the output folder if left out.", default="")


def main(args: PenaltyArguments, config: TaskVectorConfig) -> str:
    base, out = load_base(args.base), Path(str(config.output_dir))
    for method in args.methods:
        get_method(method)  # a name that is none is refused here, not after the fine-tuning
    sizes = {name: getattr(args, name) for name in SIZES}
    tasks = [subset(task, **sizes) for task in get_tasks(args.tasks, data_dir=args.data_dir)]
    penalties = [("orthogonality", value) for value in args.orthogonalities]
    penalties += [("pull_to_base", value) for value in args.pulls]
    settings = {**{name: getattr(args, name) for name in SETTINGS}, "base": base.name}
    results: dict[tuple[str, str], list[tuple[Report, list[float]]]] = {}
    for seed in args.seeds:
        folder = out / f"seed-{seed}"
        runs = Runs(base, tasks, config, folder / "vectors", seed)
        for kind, vectors in runs.vectors(penalties, long=tasks[seed % len(tasks)], rate=args.long_rate):
            name = f"{kind}-{args.long_rate:g}" if kind == LONG else kind
            prints = {task: vector_fingerprint(vector.deltas) for task, vector in vectors.items()}
            plan, own = {**settings, "vectors": prints}, partial(write_own, base, tasks, vectors)
            kept = folder / name.replace(" ", "-")
            individual = compute_or_read(kept / "individual.json", plan, compute=own, read=read_json)
            norms = [vector.norm() for vector in vectors.values()]
            shrunk = [f"distac of {method}" for method in args.methods] if kind in (PLAIN, LONG) else []
            for way in [*args.methods, *shrunk]:
                measure = partial(write_merged, base, tasks, vectors, way=way, scalings=args.scalings)
                target = kept / f"{way.replace(' ', '-')}.json"
                report = compute_or_read(target, plan, compute=measure, read=Report.load)
                results.setdefault((kind, way), []).append((report.with_references(individual=individual), norms))
                print(f"seed {seed}, {kind}, {way}: {report.accuracy:.1%}", flush=True)
    text = f"{NOTE.format(seeds=len(args.seeds))}\n\n{penalties_table(results)}\n"
    write_text(args.table or out / "table.md", text)
    print(text)
    return text


if __name__ == "__main__":
    run_recipe(
        main,
        PenaltyArguments,
        TaskVectorConfig,
        defaults=lambda args: CONFIG,
        stopped="Finished vectors and results are in --output_dir; the same command goes on.",
    )
