"""How rich a base's features are: a linear probe on them, and zero-shot accuracy, on validation parts only.

PYTHONPATH=recipes python recipes/benchmarks/probe.py --variants embedded out/feature-clip --data_dir <folder>

A folder of an unfinished pretraining run is judged by its averaged weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from pretraining.run import running_base
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from tiny_clip_study import TASKS
from transformers import CLIPProcessor

from hf_taskvec import Task, evaluate, get_tasks, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.evaluation.report import percent
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import Normalize
from hf_taskvec.tasks import Split
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.text import table, table_row

INVERSE_PENALTY = 0.03


@dataclass
class ProbeArguments:
    variants: list[str] = arg("Folders or Hub ids of CLIP models, or unfinished runs; `embedded` is the shipped one.")
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    tasks: list[str] = arg("Tasks to judge them on.", default=TASKS)


@dataclass(frozen=True)
class Probe:
    """Validation accuracies of one base by task."""

    variant: str
    linear: dict[str, float]
    zero_shot: dict[str, float]

    def row(self) -> str:
        """The figures in percent as two rows of a table: linear probe and zero-shot, the mean last."""
        rows = []
        for name, scores in (("linear probe", self.linear), ("zero-shot", self.zero_shot)):
            values = [*scores.values(), fmean(scores.values())]
            rows.append(table_row([self.variant, name, *map(percent, values)]))
        return "\n".join(rows)


def open_variant(variant: str) -> Base:
    """A finished base, or the averaged weights of a run under way."""
    if variant == "embedded":
        return load_base()
    folder = Path(variant)
    if (folder / "state").is_dir() and not (folder / "model.safetensors").is_file():
        return Base(running_base(variant), CLIPProcessor.from_pretrained(variant), folder.name)
    return load_base(variant)


@torch.inference_mode()
def pooled_features(base: Base, task: Task, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Pooled image features before the projection, (N, W), and labels (N,)."""
    pixels, normalize = load_pixels(task, split, base.processor.image_processor), Normalize(base)
    batches = [range(start, min(start + 256, len(pixels))) for start in range(0, len(pixels), 256)]
    images = (normalize(pixels.__getitems__(batch)["pixel_values"]) for batch in batches)
    features = torch.cat([base.model.vision_model(pixel_values=batch).pooler_output for batch in images])
    return features.float().numpy(), pixels.labels.numpy()


def linear_probe(base: Base, task: Task) -> float:
    """Validation accuracy of a logistic regression on standardised features of the training part."""
    features, labels = pooled_features(base, task, "train")
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=INVERSE_PENALTY, max_iter=1000).fit(scaler.transform(features), labels)
    held, truth = pooled_features(base, task, "validation")
    return float(model.score(scaler.transform(held), truth))


def probe(variant: str, tasks: Sequence[Task]) -> Probe:
    """Linear probe and zero-shot accuracy of one base on each task."""
    base = open_variant(variant)
    report = evaluate(base, tasks, split="validation")
    zero_shot = {result.task: result.accuracy for result in report.results}
    return Probe(base.name, {task.name: linear_probe(base, task) for task in tasks}, zero_shot)


def main(args: ProbeArguments) -> list[Probe]:
    """Prints the table and returns its rows."""
    tasks = get_tasks(args.tasks, data_dir=args.data_dir)
    print(table(["base", "", *(task.name for task in tasks), "mean"], [], align="ll" + "r" * (len(tasks) + 1)))
    probes = []
    for variant in args.variants:
        probes.append(probe(variant, tasks))
        print(probes[-1].row(), flush=True)
    return probes


if __name__ == "__main__":
    run_recipe(main, ProbeArguments)
