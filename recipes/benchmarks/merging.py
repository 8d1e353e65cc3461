"""Seconds and memory of merging synthetic vision towers: ours, mergekit and fusion-bench in the same run.

python recipes/benchmarks/merging.py
python recipes/benchmarks/merging.py --methods ties --counts 2 5 10 20 --peers none
python recipes/benchmarks/merging.py --methods ties --size l14 --counts 20 --peers none --runs 1
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from hf_taskvec.recipe import arg, parse_recipe

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from recipes.benchmarks.merging_data import make_towers
from recipes.benchmarks.merging_peers import PEERS, Run, environment, run_ours, run_peer

METHODS = [
    "average", "task_arithmetic", "ties", "dare", "breadcrumbs", "consensus_ta", "magmax", "pcb", "della", "sce",
    "karcher", "model_stock", "iso_c", "iso_cts", "tsv_m", "wudi",
]  # fmt: skip
SETTINGS: dict[str, dict[str, object]] = {"wudi": {"steps": 3}}  # per step: the whole would take a peer hours


@dataclass
class BenchmarkArguments:
    folder: str = arg("Where towers, environments and results go.", default="out/benchmark-merging")
    methods: list[str] = arg("Methods to time.", default=METHODS)
    size: str = arg("tiny, b32 or l14.", default="b32")
    counts: list[int] = arg("Numbers of vectors to merge.", default=[8])
    peers: list[str] = arg("Peers to run: mergekit, fusion_bench or none.", default=["mergekit", "fusion_bench"])
    runs: int = arg("Runs of each; the median counts.", default=3)


def copy_bandwidth() -> float:
    """Bytes per second that a copy of 1 GB moves, reads and writes together, by all threads."""
    source, target = torch.ones(1 << 27), torch.empty(1 << 27)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds)


def median(run: Callable[[], Run], runs: int) -> Run:
    """The run with the median time of the whole process."""
    return sorted((run() for _ in range(runs)), key=lambda one: one.seconds)[runs // 2]


def line(label: Sequence[object], run: Run, ours: Run | None, moved: float, bandwidth: float) -> str:
    parts = ", ".join(f"{name} {value:.2f}" for name, value in run.parts.items())
    ratio = "" if ours is None else f"{run.merging / ours.merging:.1f}x merge, {run.seconds / ours.seconds:.1f}x whole"
    distance = f"{run.merging * bandwidth / moved:.1f}x the copy" if ours is None else ""
    cells = [*label, f"{run.seconds:.2f}", parts, f"{run.peak / 1e9:.2f}", ratio, distance]
    return f"| {' | '.join(map(str, cells))} |"


def main(args: BenchmarkArguments) -> None:
    folder = Path(args.folder)
    towers, out = folder / args.size, folder / "merged"
    peers = [PEERS[name] for name in args.peers if name != "none"]
    found = {peer.name: (peer, environment(peer, folder / peer.worker.removesuffix(".py"))) for peer in peers}
    make_towers(towers, size=args.size, count=max(args.counts), checkpoints=bool(peers))
    bandwidth = copy_bandwidth()
    print(f"{torch.get_num_threads()} threads, copy bandwidth {bandwidth / 1e9:.1f} GB/s, median of {args.runs} runs\n")
    print("| method | T | by | process s | parts s | peak GB | slower than ours | against the bandwidth |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for method in args.methods:
        for count in args.counts:
            settings = SETTINGS.get(method, {})
            ours = median(partial(run_ours, towers, count, method, settings, out), args.runs)
            size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
            moved = (count + 1) * size  # every vector read once, the result written once
            print(line([method, count, "ours"], ours, None, moved, bandwidth), flush=True)
            for name, (peer, python) in found.items():
                if python is None or method not in peer.calls:
                    continue
                try:
                    theirs = median(partial(run_peer, peer, python, towers, count, method, out), args.runs)
                except RuntimeError as error:
                    print(
                        f"| {method} | {count} | {name} | skipped: {' '.join(str(error).split())[-160:]} |", flush=True
                    )
                    continue
                print(line([method, count, name], theirs, ours, moved, bandwidth), flush=True)


if __name__ == "__main__":
    main(*parse_recipe(BenchmarkArguments))
