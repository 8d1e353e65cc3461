"""Seconds and memory of merging checkpoints of language models of any size on disk, beside mergekit.

python recipes/benchmarks/large.py --folder /scratch/large --parameters 1.5e9 --count 8
python recipes/benchmarks/large.py --folder /scratch/large --parameters 1.5e9 --peer_limit 1200
python recipes/benchmarks/large.py --folder /scratch/large --parameters 5e7 --count 4 --runs 1 --peer false
python recipes/benchmarks/large.py --folder /scratch/large --parameters 1.5e9 --runs 1 --peer false --estimate 7e10

It writes `count` fine-tuned checkpoints and their base in bfloat16, in the shapes and names of Llama, with heavy-tailed
deltas: 2 bytes a parameter each, and as much once more for what a merge writes. What is there is kept. Ours is
`merge_checkpoints`; mergekit runs in an environment of its own. Each merge is a process of its own. Peak memory is
anonymous: mapped files do not count. `--estimate` says what a size that is not tried would take, from all that was
measured in the folder: `large_estimate.py` has the formula.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from large_estimate import Bandwidths, disk_bandwidths, estimate_text
from merging_data import heavy_tailed
from merging_peers import MERGEKIT, environment, run_peer, run_script
from merging_runs import Run, Runs, copy_bandwidth, header, line
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.weights.safetensors import write_sharded

METHODS = {"task_arithmetic": {}, "ties": {"density": 0.2}, "dare_ties": {"density": 0.1}}
TRIMMED = {"each": {"weight": 1.0, "density": 0.1}, "all": {"normalize": True}, "base": "base"}
PEER = dataclasses.replace(MERGEKIT, calls={**MERGEKIT.calls, "dare_ties": ("dare_ties", TRIMMED)}, towers=".")


@dataclass
class LargeArguments:
    folder: str = arg("Where checkpoints, the peer's environment and results go.", default="out/benchmark-large")
    parameters: float = arg("Parameters of a checkpoint, about.", default=1.5e9)
    count: int = arg("Number of fine-tuned checkpoints.", default=8)
    methods: list[str] = arg("Methods to run.", default=list(METHODS))
    runs: int = arg("Runs of ours; the median counts.", default=3)
    peer_runs: int = arg("Runs of the peer; the median counts.", default=1)
    peer: bool = arg("Run mergekit too.", default=True)
    peer_limit: float = arg("Seconds after which a run of mergekit is stopped.", default=7200.0)
    estimate: float | None = arg("Parameters for which the time is estimated from what was measured.", default=None)


def config_of(parameters: float) -> LlamaConfig:
    """A Llama of about that many parameters: as many layers as its width has times 64."""
    return config_of_width(max(128, 64 * round((64 * parameters / 15) ** (1 / 3) / 64)))


def config_of_width(width: int) -> LlamaConfig:
    """The Llama of that width."""
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=64 * round(2.7 * width / 64),
        num_hidden_layers=max(2, width // 64),
        num_attention_heads=width // 64,
        vocab_size=16 * width,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )


def shapes_of(config: LlamaConfig) -> dict[str, torch.Size]:
    """The shapes of the parameters of a model that is not built."""
    with torch.device("meta"):
        return {name: value.shape for name, value in LlamaForCausalLM(config).named_parameters()}


def entries_of(config: LlamaConfig) -> int:
    """How many parameters a model has."""
    return sum(shape.numel() for shape in shapes_of(config).values())


def write(folder: Path, config: LlamaConfig, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Writes a checkpoint parameter by parameter, unless it is there."""
    if (folder / "config.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_sharded(folder, "model", weights, shapes=shapes_of(config), dtype=torch.bfloat16)
    config.save_pretrained(folder)  # last: it tells that the folder is whole


def make(folder: Path, config: LlamaConfig, count: int) -> None:
    """Writes the base and the fine-tuned checkpoints, those that are not there."""
    shapes = shapes_of(config)

    def random() -> Iterator[tuple[str, Tensor]]:
        for position, (name, shape) in enumerate(shapes.items()):
            yield name, torch.randn(shape, generator=torch.Generator().manual_seed(position)) * 0.02

    write(folder / "base", config, random())
    base = open_checkpoint(folder / "base").tensors
    for index in range(count):
        moved = ((name, base[name] + heavy_tailed(shape, index, at)) for at, (name, shape) in enumerate(shapes.items()))
        write(folder / f"task-{index}", config, moved)


def middle(runs: list[Run]) -> tuple[float, float, float]:
    """Medians: seconds, seconds of processor time of all threads after the imports, and peak memory in MB."""
    working = [sum(map(sum, (used for stage, used in run.processor.items() if stage != "import"))) for run in runs]
    return median(run.seconds for run in runs), median(working), median(run.peak for run in runs) / 1e6


def processor_seconds(top: Path, count: int, methods: list[str]) -> dict[str, dict[int, float]]:
    """Of each method and each number of parameters that ours was measured at, seconds of processor time."""
    measured: dict[str, dict[int, float]] = {}
    for path in sorted(top.glob("*x*/runs.jsonl"), key=lambda path: int(path.parent.name.split("x")[0])):
        entries = entries_of(config_of_width(int(path.parent.name.split("x")[0])))
        for method in methods:
            if runs := Runs(path).kept(["ours", count, method]):
                measured.setdefault(method, {})[entries] = middle(runs)[1]
    return measured


def main(args: LargeArguments) -> None:
    config = config_of(args.parameters)
    top = Path(args.folder)
    folder = top / f"{config.hidden_size}x{config.num_hidden_layers}"
    folder.mkdir(parents=True, exist_ok=True)
    runs, out = Runs(folder / "runs.jsonl"), folder / "merged"
    python = environment(PEER, top / "mergekit") if args.peer else None
    entries, copied = entries_of(config), copy_bandwidth()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, ", end="")
    print(f"copy bandwidth {copied / 1e9:.1f} GB/s; {args.count} checkpoints of {entries:,} parameters")
    figures = ("s", "processor, s", "peak, MB")
    header("method", *(f"{who}, {what}" for who in ("ours", "mergekit") for what in figures), "of mergekit's processor")

    def measured(key: list[object], run: Callable[[], Run], count: int) -> tuple[float, float, float]:
        def made() -> Run:
            make(folder, config, args.count)
            return run()

        return middle(runs.all(key, made, count))

    for method in args.methods:
        words = ["large_ours.py", folder, args.count, method, json.dumps(METHODS[method]), out]
        ours = measured(["ours", args.count, method], partial(run_script, words), args.runs)
        cells: list[object] = [method, *(f"{value:.1f}" for value in ours[:2]), f"{ours[2]:.0f}", "-", "-", "-", "-"]
        if python is not None:
            settings: dict[str, Any] = {"limit": args.peer_limit, "dtype": "bfloat16"}
            work = partial(run_peer, PEER, python, folder, args.count, method, out, **settings)
            try:
                theirs = measured(["mergekit", args.count, method], work, args.peer_runs)
            except subprocess.TimeoutExpired:
                cells[4] = f"stopped at {args.peer_limit:.0f}"
            else:
                cells[4:] = [
                    *(f"{value:.1f}" for value in theirs[:2]),
                    f"{theirs[2]:.0f}",
                    f"{ours[1] / theirs[1]:.0%}",
                ]
        line(*cells)
    if args.estimate is not None:
        bandwidths = Bandwidths(*disk_bandwidths(top), copied)
        measured_here = processor_seconds(top, args.count, args.methods)
        print("\n" + estimate_text(measured_here, int(args.estimate), args.count, bandwidths))


if __name__ == "__main__":
    run_recipe(main, LargeArguments, stopped="Finished checkpoints and runs are in --folder; the same command goes on.")
