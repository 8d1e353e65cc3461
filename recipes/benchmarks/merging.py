"""Seconds and memory of merging synthetic vision towers: ours, mergekit and fusion-bench in the same run.

python recipes/benchmarks/merging.py --folder /scratch/merging
python recipes/benchmarks/merging.py --folder /scratch/merging --tables peers --peer_runs 1 \
    --methods task_arithmetic ties dare iso_c
python recipes/benchmarks/merging.py --folder /scratch/merging --tables large --large_methods ties --large_counts 20

The tables: `peers`, our methods beside those of the peers that have them; `growth`, our time over the number of
vectors; `large`, the same on the larger tower; `lora`, merged adapters beside peft; `bounds`, what the slower merges
cannot do without; `spread`, where equal merges differ. Each merge is a process of its own, and every run is kept in
`runs.jsonl` in the folder, so a benchmark that is stopped goes on where it was, and one that asked for fewer runs can
be completed; delete that file on another machine. The folder takes 14 GB for B/32, 25 GB for 20 vectors of L/14 and
8 GB for the peers' environments. The whole takes an hour and a half on two cores once towers and environments are
there, most of it the peers'; the second command about twelve minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from merging_bounds import bounds_table
from merging_tables import Bench, growth_table, lora_table, peers_table, spread_table

from hf_taskvec.arguments import arg, run_recipe

METHODS = [
    "average",
    "task_arithmetic",
    "ties",
    "dare",
    "breadcrumbs",
    "consensus_ta",
    "magmax",
    "pcb",
    "della",
    "sce",
    "karcher",
    "model_stock",
    "iso_c",
    "iso_cts",
    "tsv_m",
    "wudi",
]
GROWTH = ["task_arithmetic", "ties", "dare", "pcb", "iso_c"]


@dataclass
class BenchmarkArguments:
    folder: str = arg("Where towers, environments and results go.", default="out/benchmark-merging")
    tables: list[str] = arg("Tables to print.", default=["peers", "growth", "large", "lora", "bounds", "spread"])
    methods: list[str] = arg("Methods of the table `peers`.", default=METHODS)
    peers: list[str] = arg("Peers to run: mergekit, fusion_bench or none.", default=["mergekit", "fusion_bench"])
    count: int = arg("Number of vectors in the table `peers`.", default=8)
    size: str = arg("Tower of `peers`, `growth` and `lora`: tiny, b32 or l14.", default="b32")
    growth_methods: list[str] = arg("Methods of the table `growth`.", default=GROWTH)
    counts: list[int] = arg("Numbers of vectors in the table `growth`.", default=[2, 5, 10, 20])
    large: str = arg("Tower of the table `large`.", default="l14")
    large_methods: list[str] = arg("Methods of the table `large`.", default=["task_arithmetic", "ties"])
    large_counts: list[int] = arg("Numbers of vectors in the table `large`.", default=[2, 5, 10, 20])
    runs: int = arg("Runs of ours; the median counts.", default=3)
    peer_runs: int = arg("Runs of each peer; the median counts.", default=3)


def main(args: BenchmarkArguments) -> None:
    bench = Bench.at(Path(args.folder), args.runs, args.peer_runs)
    print(f"{torch.get_num_threads()} threads, copy bandwidth {bench.bandwidth / 1e9:.1f} GB/s, ", end="")
    print(f"medians of {args.runs} runs, {args.peer_runs} of each peer", flush=True)
    tables = {
        "peers": partial(peers_table, bench, args.size, args.count, args.methods, args.peers),
        "growth": partial(growth_table, bench, args.size, args.counts, args.growth_methods),
        "large": partial(growth_table, bench, args.large, args.large_counts, args.large_methods),
        "lora": partial(lora_table, bench, args.size),
        "bounds": partial(bounds_table, bench, args.size, args.count),
        "spread": partial(spread_table, bench, args.size, args.count),
    }
    for name in args.tables:
        tables[name]()


if __name__ == "__main__":
    run_recipe(main, BenchmarkArguments)
