"""WUDI by descent and in closed form: the objective reached, the distance between the results, and the time.

python recipes/benchmarks/wudi_solvers.py

Objectives are in units of that at the sum of the vectors, where descent starts; distances from the exact minimum in
units of its norm.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from merging_data import heavy_tailed
from merging_runs import header, line
from torch import Tensor

from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.merging.quadratic_engine import pseudo_inverse
from hf_taskvec.merging.wudi import descend, normal_equations


@dataclass
class SolverArguments:
    shape: list[int] = arg("Rows and columns of the matrix.", default=[192, 192])
    count: int = arg("Number of vectors.", default=8)
    steps: list[int] = arg("Steps of Adam.", default=[100, 300, 1000, 3000])
    cutoffs: list[float] = arg("Cutoffs of the closed form.", default=[1e-6, 1e-3, 1e-2])
    learning_rate: float = arg("Learning rate of Adam.", default=1e-5)


def minimum_of(deltas: Tensor, cutoff: float) -> Tensor:
    """The exact minimum for deltas (T, m, n)."""
    square, cross = normal_equations(deltas.double())
    return cross @ pseudo_inverse(square, cutoff)[0]


def objective(merged: Tensor, deltas: Tensor) -> float:
    """The sum over i of |(M - D_i) D_iᵀ|² / |D_i|², in float64."""
    merged, deltas = merged.double(), deltas.double()
    return sum(float(((merged - delta) @ delta.T).square().sum() / delta.square().sum()) for delta in deltas)


def results(deltas: Tensor, args: SolverArguments) -> Iterator[tuple[str, Tensor, float]]:
    """Label, merged matrix and seconds of each solver."""
    yield "sum of the vectors", deltas.sum(dim=0), 0.0
    yield "mean of the vectors", deltas.mean(dim=0), 0.0
    for steps in args.steps:
        start = time.perf_counter()
        merged = descend(deltas.sum(dim=0), *normal_equations(deltas), steps=steps, learning_rate=args.learning_rate)
        yield f"adam, {steps} steps", merged, time.perf_counter() - start
    for cutoff in args.cutoffs:
        start = time.perf_counter()
        merged = minimum_of(deltas, cutoff)
        yield f"exact, cutoff {cutoff:g}", merged, time.perf_counter() - start


def main(args: SolverArguments) -> None:
    deltas = torch.stack([heavy_tailed(torch.Size(args.shape), index, 0) for index in range(args.count)])
    exact = minimum_of(deltas, 1e-12)
    start = objective(deltas.sum(dim=0), deltas)
    header(f"{args.count} x {args.shape[0]} x {args.shape[1]}", "objective", "distance from the minimum", "norm", "s")
    for label, merged, seconds in results(deltas, args):
        distance = float((merged.double() - exact).norm() / exact.norm())
        size = float(merged.double().norm() / exact.norm())
        line(label, f"{objective(merged, deltas) / start:.4f}", f"{distance:.3f}", f"{size:.3f}", f"{seconds:.3f}")


if __name__ == "__main__":
    run_recipe(main, SolverArguments)
