"""Times `gradient_vector` against a bare forward and backward pass over the same tensors.

python recipes/benchmarks/gradients.py
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch.nn import functional

from hf_taskvec import Base, Task, get_task, gradient_vector, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.tasks.subsets import subset


@dataclass
class BenchmarkArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    task: str = arg("The task whose gradient is taken.", default="digits")
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    max_train: int | None = arg("Most training images.", default=None)
    batch_size: int = arg("Images per pass.", default=256)
    repeats: int = arg("How often both are timed, in turns; the medians are compared.", default=5)


def main(args: BenchmarkArguments) -> float:
    """Prints both times and returns their ratio; at most 1.15 is the aim."""
    base = load_base(args.base)
    task = subset(get_task(args.task, data_dir=args.data_dir), max_train=args.max_train)
    timings: dict[str, list[float]] = {"bare pass": [], "gradient_vector": []}
    for _ in range(args.repeats + 1):  # the first warms up
        timings["bare pass"].append(_bare(base, task, args.batch_size))
        started = time.perf_counter()
        gradient_vector(base, task, learning_rate=1e-3, batch_size=args.batch_size)
        timings["gradient_vector"].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[1:]) for name, values in timings.items()}
    ratios = [ours / bare for bare, ours in zip(*(values[1:] for values in timings.values()), strict=True)]
    for name, seconds in medians.items():
        print(f"{name:16} {seconds:8.3f} s")
    ratio: float = statistics.median(ratios)
    print(f"median ratio     {ratio:8.3f}   ({args.repeats} repeats, {min(ratios):.3f} to {max(ratios):.3f})")
    return ratio


def _bare(base: Base, task: Task, batch_size: int) -> float:
    """Seconds of a plain loop with a summed loss and PyTorch's own accumulation, the pixels already in memory."""
    model = ImageClassifier(base, task).eval()
    pixels = load_pixels(task, "train", base.processor.image_processor)
    rows = [range(i, min(i + batch_size, len(pixels))) for i in range(0, len(pixels), batch_size)]
    batches = [pixels.__getitems__(numbers) for numbers in rows]
    started = time.perf_counter()
    for batch in batches:
        logits = model(batch["pixel_values"])["logits"]
        (functional.cross_entropy(logits, batch["labels"], reduction="sum") / len(pixels)).backward()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    run_recipe(main, BenchmarkArguments)
