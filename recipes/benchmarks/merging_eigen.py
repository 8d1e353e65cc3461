"""Our call of LAPACK's `dsyevr` beside `scipy.linalg.eigh`, in pairs, for matrices as the spectral merges decompose.

python recipes/benchmarks/merging_eigen.py

Both compute the largest eigenpairs of a Gram matrix; SciPy's holds Python's lock meanwhile. Each pair of times is taken
one after the other in the same process, in turned order every second time, by one thread and by as many as there are
cores, each of which has matrices of its own. The ratio is the median over the pairs, with the smallest and the largest.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from merging_runs import header, line
from threadpoolctl import threadpool_limits

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.merging.lapack import largest_eigenpairs, load

Solver = Callable[[np.ndarray, int], object]


@dataclass
class EigenArguments:
    sides: list[int] = arg("Sides of the Gram matrices: B/32 has 768, L/14 1024.", default=[384, 768, 1024])
    counts: list[int] = arg("Numbers of vectors T: 1/T of the spectrum is computed.", default=[4, 8, 20])
    pairs: int = arg("Pairs of times for each line.", default=9)
    matrices: int = arg("Matrices that each thread decomposes in one time.", default=4)


def by_scipy(gram: np.ndarray, rank: int) -> object:
    """The largest eigenpairs by SciPy's own door to the same routine."""
    size = len(gram)
    return scipy.linalg.eigh(gram, subset_by_index=(size - rank, size - 1), driver="evr", check_finite=False)


def seconds(solve: Solver, gram: np.ndarray, rank: int, threads: int, matrices: int) -> float:
    """How long `threads` threads take for some matrices each."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: solve(gram, 2), range(threads)))  # the threads are there
        start = time.perf_counter()
        list(pool.map(lambda _: solve(gram, rank), range(threads * matrices)))
        return time.perf_counter() - start


def main(args: EigenArguments) -> None:
    if load() is None:
        raise RuntimeError("this SciPy's LAPACK has another signature, so ours falls back to NumPy")
    header("side", "T", "threads", "ours s", "scipy s", "scipy over ours", "smallest", "largest")
    with threadpool_limits(limits=1):
        for side in args.sides:
            sample = np.random.default_rng(0).standard_normal((2 * side, side))
            gram = sample.T @ sample
            for count in args.counts:
                for threads in sorted({1, os.cpu_count() or 1}):
                    measured = pairs(gram, max(1, side // count), threads, args)
                    ours, theirs = (statistics.median(times) for times in zip(*measured, strict=True))
                    ratios = sorted(other / own for own, other in measured)
                    cells = [statistics.median(ratios), ratios[0], ratios[-1]]
                    line(side, count, threads, f"{ours:.3f}", f"{theirs:.3f}", *(f"{cell:.2f}" for cell in cells))


def pairs(gram: np.ndarray, rank: int, threads: int, args: EigenArguments) -> list[tuple[float, float]]:
    """Pairs of times, ours and SciPy's."""
    result = []
    for index in range(args.pairs):
        order = (largest_eigenpairs, by_scipy) if index % 2 == 0 else (by_scipy, largest_eigenpairs)
        times = {solve: seconds(solve, gram, rank, threads, args.matrices) for solve in order}
        result.append((times[largest_eigenpairs], times[by_scipy]))
    return result


if __name__ == "__main__":
    run_recipe(main, EigenArguments)
