"""The tables of the merging benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from merging_data import make_checkpoints, make_vectors
from merging_peers import PEERS, Peer, environment, run_lora, run_ours, run_peer
from merging_runs import Run, Runs, copy_bandwidth, header, line, per_step


@dataclass(frozen=True)
class Bench:
    """One benchmark.

    Attributes:
        folder: Its folder.
        runs: What it has measured.
        bandwidth: Of a copy, in bytes per second.
        ours, theirs: How many runs the medians are taken of.
    """

    folder: Path
    runs: Runs
    bandwidth: float
    ours: int
    theirs: int

    @classmethod
    def at(cls, folder: Path, ours: int, theirs: int) -> Bench:
        """The benchmark of a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, Runs(folder / "runs.jsonl"), copy_bandwidth(), ours, theirs)

    def merge(self, size: str, count: int, method: str) -> Run:
        """Our merge."""

        def at(**settings: object) -> Run:
            work = partial(run_ours, self.folder / size, count, method, settings, self.folder / "merged")
            return self.runs.median(["ours", size, count, method, settings], work, self.ours)

        return per_step(at(steps=2), at(steps=12), 10) if method == "wudi" else at()

    def merge_by(self, peer: Peer, python: str, size: str, count: int, method: str) -> Run:
        """A peer's merge."""

        def at(**settings: Any) -> Run:
            towers, out = self.folder / size, self.folder / "merged"
            work = partial(run_peer, peer, python, towers, count, method, out, **settings)
            return self.runs.median([peer.name, size, count, method, settings], work, self.theirs)

        return per_step(at(iter_num=1), at(iter_num=2), 1) if method == "wudi" else at()

    def distance(self, run: Run, size: str, count: int) -> float:
        """Time of a merge over that of copying what it moves at least: each vector read, the result written."""
        one = sum(path.stat().st_size for path in (self.folder / size / "vector-0").glob("*.safetensors"))
        return run.merging * self.bandwidth / ((count + 1) * one)


def peers_table(bench: Bench, size: str, count: int, methods: Sequence[str], names: Sequence[str]) -> None:
    """Our merges beside those of the peers that have the method; of wudi, a step; first, reading the vectors alone."""
    peers = [PEERS[name] for name in names if name != "none"]
    pythons = [(peer, environment(peer, bench.folder / peer.worker.removesuffix(".py"))) for peer in peers]
    (make_checkpoints if peers else make_vectors)(bench.folder / size, size=size, count=count)
    header(f"{size}, T = {count}", "by", "process s", "parts s", "peak GB", "slower than ours", "merging over a copy")
    for method in ["reading", *methods]:
        ours = bench.merge(size, count, method)
        line(*_cells(method, "ours", ours), "", f"{bench.distance(ours, size, count):.1f}")
        for peer, python in pythons:
            if python is None or method not in peer.calls:
                continue
            try:
                theirs = bench.merge_by(peer, python, size, count, method)
            except RuntimeError as error:
                line(method, peer.name, f"failed: {' '.join(str(error).split())[-200:]}", "", "", "", "")
                continue
            ratios = f"{theirs.merging / ours.merging:.1f}x merge"
            if "step" not in ours.parts:
                ratios += f", {theirs.seconds / ours.seconds:.1f}x process"
            line(*_cells(method, peer.name, theirs), ratios, f"{bench.distance(theirs, size, count):.1f}")


def growth_table(bench: Bench, size: str, counts: Sequence[int], methods: Sequence[str]) -> None:
    """How the time of our merges grows with the number of vectors."""
    make_vectors(bench.folder / size, size=size, count=max(counts))
    each = [f"T = {count}: merge s (s per vector, over a copy, peak GB)" for count in counts]
    header(f"{size}, ours", *each)
    for method in methods:
        runs = [(count, bench.merge(size, count, method)) for count in counts]
        line(
            method,
            *(
                f"{run.merging:.2f} ({run.merging / count:.3f}, {bench.distance(run, size, count):.1f}, "
                f"{run.peak / 1e9:.2f})"
                for count, run in runs
            ),
        )


def spread_table(bench: Bench, size: str, count: int, *, method: str = "task_arithmetic", runs: int = 24) -> None:
    """Where runs of our shortest merge differ: means over the fastest third of the runs, the middle and the slowest."""
    make_vectors(bench.folder / size, size=size, count=count)
    work = partial(run_ours, bench.folder / size, count, method, {}, bench.folder / "merged")
    ordered = sorted(bench.runs.all(["spread", size, count, method], work, runs), key=lambda run: run.merging)
    header(
        f"{size}, T = {count}, {len(ordered)} runs", "", "merge s", "processor s outside the kernel", "in the kernel"
    )
    third = len(ordered) // 3
    for name, third_of_runs in (
        ("fastest", ordered[:third]),
        ("middle", ordered[third:-third]),
        ("slowest", ordered[-third:]),
    ):
        outside, inside = (fmean(run.processor["merge and save"][place] for run in third_of_runs) for place in (0, 1))
        line(method, name, f"{fmean(run.merging for run in third_of_runs):.2f}", f"{outside:.2f}", f"{inside:.2f}")


def lora_table(bench: Bench, size: str, *, count: int = 8) -> None:
    """Merged adapters beside those of peft."""
    header(f"LoRA on {size}, T = {count}, rank 16", "by", "process s", "parts s", "peak GB", "slower than ours")
    folder = bench.folder / f"lora-{size}"
    runs = {
        by: bench.runs.median(["lora", size, count, by], partial(run_lora, folder, size, count, by), bench.ours)
        for by in ("ours", "peft")
    }
    line(*_cells("sum of adapters", "ours", runs["ours"]), "")
    ratio = f"{runs['peft'].merging / runs['ours'].merging:.0f}x merge"
    line(*_cells("sum of adapters", "peft, svd", runs["peft"]), ratio)


def _cells(method: str, by: str, run: Run) -> list[object]:
    parts = ", ".join(f"{name} {value:.2f}" for name, value in run.parts.items())
    whole = "" if "step" in run.parts else f"{run.seconds:.2f}"
    return [method, by, whole, parts, f"{run.peak / 1e9:.2f}"]
