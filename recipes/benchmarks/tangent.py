"""What a step of training costs in the tangent space, against an ordinary one, and what a forward pass does.

PYTHONPATH=recipes python recipes/benchmarks/tangent.py
PYTHONPATH=recipes python recipes/benchmarks/tangent.py --base openai/clip-vit-base-patch32 --batch_size 16

A step is forward, backward and AdamW on the same noise, ordinary with the base's own attention and in its tangent
space, in turn; the median of each counts. The aim is at most 2.2 times an ordinary step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from hf_taskvec import get_task, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.editing import linearize
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.text import table

PARTS = {"whole tower": ["*"], "MLP weights": ["*.mlp.*.weight"]}


@dataclass
class CostArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    batch_size: int = arg("Images per step.", default=64)
    steps: int = arg("Steps of each, in turn, after one that warms up.", default=15)


def main(args: CostArguments) -> str:
    base, rows = load_base(args.base), []
    for name, patterns in PARTS.items():
        pairs = zip(*(calls(model, patterns, args) for model in (base, linearize(base))), strict=True)
        for kind, both in zip(("training step", "forward pass"), pairs, strict=True):
            usual, tangent = medians(both, args.steps)
            rows.append([name, kind, f"{1000 * usual:.1f}", f"{1000 * tangent:.1f}", f"{tangent / usual:.2f}"])
    text = table(["trained", "", "ordinary, ms", "tangent, ms", "ratio"], rows, align="llrrr")
    threads = f"{torch.get_num_threads()} thread(s)" if base.device.type == "cpu" else str(base.device)
    print(f"{base.name}, {args.batch_size} images, {threads}, torch {torch.__version__}\n\n{text}")
    return text


def calls(base: Base, patterns: list[str], args: CostArguments) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step and a forward pass of a model."""
    model, size = ImageClassifier(base, get_task("digits")).train(), base.model.config.vision_config.image_size
    model.freeze_except(patterns)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    pixels = torch.randint(256, (args.batch_size, 3, size, size), dtype=torch.uint8)
    labels = torch.randint(len(model.head), (args.batch_size,))

    def step() -> None:
        functional.cross_entropy(model(pixels)["logits"], labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    def forward() -> None:
        with torch.inference_mode():
            model(pixels)

    return step, forward


def medians(both: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """The median seconds of each of some calls, made in turn."""
    times: list[list[float]] = [[] for _ in both]
    for _ in range(repeats + 1):
        for call, mine in zip(both, times, strict=True):
            start = time.perf_counter()
            call()
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine[1:]) for mine in times]


if __name__ == "__main__":
    run_recipe(main, CostArguments)
