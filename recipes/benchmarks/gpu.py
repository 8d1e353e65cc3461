"""Everything a GPU is needed for, each part in its own time: merging, then pretraining the base, then training.

python recipes/benchmarks/gpu.py --pretrain_command="--config recipes/configs/feature_clip_gpu.yaml --packed <folder>"
python recipes/benchmarks/gpu.py --device cpu --models tiny

The parts stand in the order of their worth, and the table is written after every one; the second command tries all of
it without a GPU. `--pretrain_command` is what `pretrain_tiny_clip.py` gets: on a machine that nothing can be fetched
from, `--packed` with a folder that `--pack_to` wrote, and `--bundle_to` for a state that comes back in small files.
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
SPARE = 40.0  # seconds in which a pretraining reads its pairs and saves its model
HEADERS = ["method", "CPU s", "device s", "device GiB", "largest difference", "remark"]


@dataclass
class GpuArguments:
    device: str = arg("Device to measure.", default="cuda")
    minutes: float = arg("Time for everything; what a part leaves, the next may use.", default=9.0)
    merge_minutes: float = arg("Time for merging.", default=3.0)
    pretrain_minutes: float = arg("Time for pretraining, its start and its end included.", default=4.0)
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
    methods = args.methods or sorted(method.name for method in list_methods())
    vectors = random_vectors(random_base(args.models[0]), args.vectors)
    rows = merge_rows(vectors, methods, device, deadline.at_most(60 * args.merge_minutes))
    del vectors
    title = f"## Merging {args.vectors} random vectors of {args.models[0]}\n\n"
    findings.add(title + table(HEADERS, rows, align="lrrrrl"))
    if args.pretrain_command:
        findings.add("## Pretraining\n\n" + pretrain(args, deadline.at_most(60 * args.pretrain_minutes).left))
    findings.add("## Training, images a second\n\n" + training_table(args, device, deadline))
    return "\n\n".join(findings.parts)


def open_device(args: GpuArguments) -> torch.device:
    """The device, after the arguments have been found to make sense.

    Raises:
        ValueError: If there is no such device, or a number is out of range.
        UnknownNameError: If an architecture is unknown.
    """
    for name in ("minutes", "merge_minutes", "pretrain_minutes", "vectors", "batch_size", "steps", "images"):
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
        base, task = random_base(name), subset(get_task("digits"), max_train=args.images)
        for bf16 in (True, False):
            precision = "bf16" if bf16 else "float32"
            if deadline.left == 0:
                rows.append([name, precision, "no time left", "", "", ""])
                continue
            options: dict[str, Any] = {
                "bf16": bf16,
                "batch_size": args.batch_size,
                "steps": args.steps,
                "device": device,
            }
            bare, ours = (rate(base, task, **options) for rate in (bare_rate, trainer_rate))
            gradient = f"{gradient_rate(base, task, batch_size=args.batch_size):.0f}" if bf16 else ""
            rows.append([name, precision, f"{bare:.0f}", f"{ours:.0f}", f"{ours / bare:.2f}", gradient])
    return table(["model", "precision", "bare loop", "trainer", "ratio", "gradient_vector"], rows, align="llrrrr")


def pretrain(args: GpuArguments, seconds: float) -> str:
    """Pretrains for some seconds in a process of its own; the same command goes on from its state."""
    if seconds <= SPARE:
        return f"No time left: {seconds:.0f} s, of which reading and saving take {SPARE:.0f}."
    minutes = (seconds - SPARE) / 60
    command = [sys.executable, str(RECIPE), *shlex.split(args.pretrain_command), "--minutes", f"{minutes:.2f}"]
    shown = f"`{shlex.join(['python', f'recipes/{RECIPE.name}', *command[2:]])}`"
    try:
        done = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, timeout=seconds + SPARE)
    except subprocess.TimeoutExpired:
        return f"{shown} did not end in time; its last saved state stays"
    if done.returncode:
        return f"{shown} ended with {done.returncode}"
    return f"{shown}\n\n```\n{done.stdout.strip()}\n```"


if __name__ == "__main__":
    run_recipe(main, GpuArguments)
