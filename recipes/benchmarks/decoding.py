"""Times how fast packed vectors are decoded, in gigabytes of float32 a second on one core.

python recipes/benchmarks/decoding.py --rows 3072 --columns 768

The aim is 1 GB/s; a copy of the same tensor stands beside it. A task of an artefact is decoded with what it shares.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_taskvec import TaskVector
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.multitask import METHODS, pack
from hf_taskvec.text import table
from hf_taskvec.vectors.compression import PACKINGS


@dataclass
class DecodingArguments:
    rows: int = arg("Rows of the matrix.", default=3072)
    columns: int = arg("Columns of it.", default=768)
    tasks: int = arg("Tasks of an artefact.", default=8)
    repeats: int = arg("How often each is timed; medians are shown.", default=9)


def main(args: DecodingArguments) -> dict[str, float]:
    """Prints and returns gigabytes of float32 output a second, by packing and way to pack."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    deltas = [torch.randn(args.rows, args.columns, generator=generator) * 1e-3 for _ in range(args.tasks)]
    vectors = {f"task {number}": TaskVector({"w": delta}) for number, delta in enumerate(deltas)}
    first = vectors["task 0"]
    readers: dict[str, Callable[[], Tensor]] = {"copy": lambda: deltas[0].clone()}
    for packing in PACKINGS:
        few = first.compress(packing)
        readers[packing] = lambda few=few: few["w"].float()  # type: ignore[misc]
    for method in METHODS:
        one = pack(vectors, method).for_task("task 0")
        readers[f"{method}, one task"] = lambda one=one: one["w"]  # type: ignore[misc]
    speeds = {name: 4e-9 * deltas[0].numel() / _seconds(read, args.repeats) for name, read in readers.items()}
    print(table(["what", "GB/s"], [[name, f"{speed:.2f}"] for name, speed in speeds.items()]))
    return speeds


def _seconds(read: Callable[[], Tensor], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):  # the first warms up
        started = time.perf_counter()
        read()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


if __name__ == "__main__":
    run_recipe(main, DecodingArguments)
