"""What our routes cannot do without, each part timed alone by all threads, and where our merges stand above that.

Reading is timed as merges are, in a process of its own: the first touch of mapped files costs as much as their bytes.
No bound for other routes: another generator of random numbers, or float32, has other parts. The parts of a method run
one after the other here; a merge overlaps some, so that it may come out below their sum.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from merging_data import make_vectors
from merging_runs import header, line
from merging_tables import Bench

from hf_taskvec import TaskVector
from hf_taskvec.merging.engine import CHUNK, parallel
from hf_taskvec.merging.lapack import largest_eigenpairs
from hf_taskvec.merging.stochastic import draw

PARTS = {
    "task_arithmetic": ("read", "write"),
    "average": ("read", "write"),
    "magmax": ("read", "write", "extremes"),
    "dare": ("read", "write", "draws", "masks"),
    "iso_c": ("read", "write", "Gram of sums", "eigen of sums", "product of sums"),
    "tsv_m": ("read", "write", "Gram of each", "1/T of each", "left of each", "eigen of bases", "product of bases"),
}


def bounds_table(bench: Bench, size: str, count: int) -> None:
    """Each method's parts, their sum, and the time of our merge."""
    make_vectors(bench.folder / size, size=size, count=count)
    seconds = _seconds(bench, size, count)
    header(f"{size}, T = {count}", "parts s", "sum s", "merge s")
    for method, parts in PARTS.items():
        each = ", ".join(f"{name} {seconds[name]:.2f}" for name in parts)
        total, merging = sum(seconds[name] for name in parts), bench.merge(size, count, method).merging
        line(method, each, f"{total:.2f}", f"{merging:.2f}")


def _seconds(bench: Bench, size: str, count: int) -> dict[str, float]:
    vectors = [TaskVector.from_pretrained(bench.folder / size / f"vector-{index}") for index in range(count)]
    entries = count * sum(delta.numel() for delta in vectors[0].deltas.values())
    chunks = _ITEMS * [entries // CHUNK // _ITEMS]
    matrices = [tuple(sorted(delta.shape)) for delta in vectors[0].deltas.values() if delta.ndim == 2]
    bases = [(side, side) for side, _ in matrices for _ in "UV"]
    out = bench.folder / "merged"

    def write() -> None:
        shutil.rmtree(out, ignore_errors=True)
        vectors[0].save_pretrained(out)

    random = {shape: np.random.default_rng(0).standard_normal(shape[::-1]) for shape in {*matrices, *bases}}
    grams = {shape: matrix.T @ matrix for shape, matrix in random.items()}
    few = {shape: gram[:, : max(1, len(gram) // count)] for shape, gram in grams.items()}
    all_parts: dict[str, Callable[[], object]] = {
        "write": write,
        "extremes": partial(_run, _extremes, chunks),
        "draws": partial(_run, _draws, chunks),
        "masks": partial(_run, _masks, chunks),
        "Gram of sums": partial(_run, lambda shape: random[shape].T @ random[shape], matrices),
        "Gram of each": partial(_run, lambda shape: random[shape].T @ random[shape], matrices * count),
        "left of each": partial(_run, lambda shape: random[shape] @ few[shape], matrices * count),
        "product of sums": partial(_run, lambda shape: random[shape] @ grams[shape], matrices),
        "product of bases": partial(_run, lambda shape: random[shape] @ grams[shape], bases),
        "eigen of sums": partial(_run, lambda shape: np.linalg.eigh(grams[shape]), matrices),
        "eigen of bases": partial(_run, lambda shape: np.linalg.eigh(grams[shape]), bases),
        "1/T of each": partial(_run, lambda shape: _largest(grams[shape], 1 / count), matrices * count),
    }
    seconds = {name: min(_time(work) for _ in range(bench.ours)) for name, work in all_parts.items()}
    return {**seconds, "read": bench.merge(size, count, "reading").merging}


def _run(function: Callable[[Any], object], items: Sequence[Any]) -> None:
    def discard(item: object) -> None:
        function(item)

    parallel(discard, items, description="")


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


_ITEMS = 64  # in which the chunks come to the threads
_ROW, _OTHER = torch.randn(CHUNK), torch.randn(CHUNK)


def _extremes(chunks: int) -> None:
    highest, lowest = _ROW.clone(), _ROW.clone()
    for _ in range(chunks):
        torch.maximum(highest, _OTHER, out=highest)
        torch.minimum(lowest, _OTHER, out=lowest)


def _draws(chunks: int) -> None:
    stream = torch.Generator().manual_seed(0)
    for _ in range(chunks):
        draw([stream], CHUNK)


def _masks(chunks: int) -> None:
    row, drawn, kept = _ROW.clone(), torch.zeros(CHUNK, dtype=torch.int16), torch.empty(CHUNK)
    for _ in range(chunks):
        row.mul_(kept.copy_(drawn).lt_(1))


def _largest(gram: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    return largest_eigenpairs(gram, max(1, int(share * len(gram))))
