"""Everything a GPU is needed for, in a given time: merging, training, the full gradient, then pretraining the base.

python recipes/benchmarks/gpu.py
python recipes/benchmarks/gpu.py --device cpu --models tiny

The table is written after every part; the second command tries all of it without a GPU. `--pretrain_command` is what
`pretrain_tiny_clip.py` gets for the time that is left, such as "--config recipes/configs/feature_clip.yaml".
"""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpu_parts import (
    ARCHITECTURES,
    Deadline,
    bare_rate,
    gradient_rate,
    merge_rows,
    random_base,
    random_vectors,
    trainer_rate,
)

from hf_taskvec import get_task, list_methods
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.errors import UnknownNameError, check_positive
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.text import table
from hf_taskvec.weights.folders import write_text

RECIPE = Path(__file__).parents[1] / "pretrain_tiny_clip.py"
SPARE = 20.0  # seconds that saving the pretrained model takes


@dataclass
class GpuArguments:
    device: str = arg("Device to measure.", default="cuda")
    minutes: float = arg("Time for everything.", default=10.0)
    merge_share: float = arg("Share of the time that merging may take.", default=0.25)
    models: list[str] = arg("Architectures, with random weights.", default=["ViT-B/32", "ViT-B/16", "ViT-L/14"])
    methods: list[str] = arg("Merge methods; all of them if left out.", default=[])
    vectors: int = arg("How many vectors are merged; they are of the first model.", default=8)
    batch_size: int = arg("Images per step.", default=128)
    steps: int = arg("Steps of each training run, a quarter of them to warm up.", default=24)
    images: int = arg("Training images of the builtin task.", default=512)
    pretrain_command: str = arg("Arguments of recipes/pretrain_tiny_clip.py; without them it is left out.", default="")
    results: str = arg("Markdown file of the results.", default="out/gpu.md")


@dataclass
class Findings:
    """The results so far, written after every part."""

    path: Path
    parts: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Prints a part and writes all of them."""
        print(text + "\n", flush=True)
        self.parts.append(text)
        write_text(self.path, "\n\n".join(self.parts) + "\n")


def main(args: GpuArguments) -> str:
    device, deadline = open_device(args), Deadline(60 * args.minutes)
    findings = Findings(Path(args.results))
    findings.add(f"# On a GPU\n\n{device_name(device)}; torch {torch.__version__}, Python {platform.python_version()}.")
    first = random_base(args.models[0])
    methods = args.methods or sorted(method.name for method in list_methods())
    vectors, time_for_merging = random_vectors(first, args.vectors), Deadline(args.merge_share * deadline.left)
    rows = merge_rows(vectors, methods, device, time_for_merging)
    headers = ["method", "CPU s", "device s", "device GiB", "largest difference", "remark"]
    title = f"## Merging {args.vectors} random vectors of {args.models[0]}\n\n"
    findings.add(title + table(headers, rows, align="lrrrrl"))
    findings.add("## Training, images a second\n\n" + training_table(args, device, deadline))
    if args.pretrain_command and deadline.left > SPARE:
        findings.add("## Pretraining\n\n" + pretrain(args, deadline.left - SPARE))
    return "\n\n".join(findings.parts)


def open_device(args: GpuArguments) -> torch.device:
    """The device, after the arguments have been found to make sense.

    Raises:
        ValueError: If there is no such device, or a number is out of range.
        UnknownNameError: If an architecture is unknown.
    """
    for name in ("minutes", "merge_share", "vectors", "batch_size", "steps", "images"):
        check_positive(name, getattr(args, name))
    if args.images < args.batch_size or args.steps < 2:
        raise ValueError(f"a run needs a batch of images and two steps, got {args.images} images, {args.steps} steps")
    for name in args.models:
        if name not in ARCHITECTURES:
            raise UnknownNameError("model", name, ARCHITECTURES)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is at hand; --device cpu --models tiny tries the parts without one")
    return device


def device_name(device: torch.device) -> str:
    """The card, or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def training_table(args: GpuArguments, device: torch.device, deadline: Deadline) -> str:
    """The trainer against a bare loop in both precisions, and the full gradient, for each model while time is left."""
    rows = []
    for name in args.models:
        if deadline.left == 0:
            rows.append([name, "no time left", "", "", "", ""])
            continue
        base, task = random_base(name), subset(get_task("digits"), max_train=args.images)
        for bf16 in (False, True):
            options: dict[str, Any] = {
                "bf16": bf16,
                "batch_size": args.batch_size,
                "steps": args.steps,
                "device": device,
            }
            bare, ours = (rate(base, task, **options) for rate in (bare_rate, trainer_rate))
            gradient = "" if bf16 else f"{gradient_rate(base, task, batch_size=args.batch_size):.0f}"
            figures = [f"{bare:.0f}", f"{ours:.0f}", f"{ours / bare:.2f}", gradient]
            rows.append([name, "bf16" if bf16 else "float32", *figures])
    return table(["model", "precision", "bare loop", "trainer", "ratio", "gradient_vector"], rows, align="llrrrr")


def pretrain(args: GpuArguments, seconds: float) -> str:
    """Pretrains for some seconds in a process of its own; the same command goes on from its state."""
    command = [sys.executable, str(RECIPE), *shlex.split(args.pretrain_command), "--minutes", f"{seconds / 60:.2f}"]
    done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE)
    if done.returncode:
        return f"`{shlex.join(command[1:])}` ended with {done.returncode}"
    return f"`{shlex.join(command[1:])}`\n\n```\n{done.stdout.strip()}\n```"


if __name__ == "__main__":
    run_recipe(main, GpuArguments)
