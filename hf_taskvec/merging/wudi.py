"""WUDI merging: the merged matrix that disturbs each vector's input subspace least, by descent or in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_taskvec.errors import check_known, check_positive
from hf_taskvec.merging.engine import map_parameters, stacked, wide_dtype
from hf_taskvec.merging.needs import is_map
from hf_taskvec.merging.quadratic_engine import Quadratic, delta_terms
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.vectors.vector import TaskVector

Solver = Literal["adam", "exact"]


@merge_method("wudi", paper="2503.08099", resumable=True)
def wudi(
    vectors: Sequence[TaskVector],
    *,
    solver: Solver = "adam",
    steps: int = 300,
    learning_rate: float = 1e-5,
    cutoff: float = 1e-6,
) -> TaskVector:
    """Finds for each matrix M the minimum of the sum over i of |(M - D_i) D_iᵀ|² / |D_i|², D_i being the deltas.

    The gradient is 2 (M S - C) with S the sum of D_iᵀ D_i / |D_i|² and C that of D_i D_iᵀ D_i / |D_i|². Both are
    computed once, so that a step costs one matrix product whatever the number of vectors.

    As in the authors' code, only linear layers are merged: embeddings, norms and biases stay at the base. That code
    treats the stacked weights of queries, keys and values as one matrix; here, as in Transformers, they are three.

    Args:
        vectors: Vectors of one base.
        solver: "adam" descends from the sum of the vectors, as the paper does. It is far from the minimum when it
            stops (`recipes/benchmarks/wudi_solvers.py`), but its results are the published ones, so it is the default.
            "exact" returns the minimum that descent would reach in the end, C S⁺; it is many times faster, its result
            is shorter, and deltas twice as large give one twice as large, which fixed steps do not.
        steps: Steps of Adam.
        learning_rate: Its learning rate.
        cutoff: Directions in which S has less than this fraction of its largest eigenvalue are left out by "exact".

    Raises:
        UnknownNameError: If `solver` is unknown.
        ValueError: If a number is not positive.

    Example:
        >>> pair = [TaskVector({"w": torch.eye(2)}), TaskVector({"w": 3 * torch.eye(2)})]
        >>> wudi(pair, solver="exact").deltas["w"].norm().round(decimals=3)
        tensor(2.8280)
    """
    check_known("solver", solver, get_args(Solver))
    check_positive("steps", steps)
    check_positive("learning_rate", learning_rate)
    check_positive("cutoff", cutoff)

    if solver == "exact":
        engine = Quadratic(others="base", pseudo=True, cutoff=cutoff)
        return engine.merge(vectors, (), delta_terms(lambda delta: delta / torch.linalg.vector_norm(delta)))
    wide = wide_dtype(vectors)

    def compute(name: str) -> Tensor:
        deltas = stacked(vectors, name, wide)
        if not is_map(name, deltas.ndim - 1) or not deltas.any():
            return torch.zeros_like(deltas[0])
        total, equations = deltas.sum(dim=0), normal_equations(deltas)
        return descend(total, *equations, steps=steps, learning_rate=learning_rate).to(wide)

    return map_parameters(compute, vectors)


def normal_equations(deltas: Tensor) -> tuple[Tensor, Tensor]:
    """S (n, n) and C (m, n) of the deltas (T, m, n); see `wudi`. Zero deltas pull nowhere and are left out."""
    columns = deltas.shape[2]
    square, cross = deltas.new_zeros(columns, columns), deltas.new_zeros(deltas.shape[1:])
    for delta in deltas:
        energy = delta.square().sum()
        if energy > 0:
            gram = delta.T @ (delta / energy)
            square += gram
            cross += delta @ gram
    return square, cross


def descend(start: Tensor, square: Tensor, cross: Tensor, *, steps: int, learning_rate: float) -> Tensor:
    """Adam on the quadratic with gradient `2 (M square - cross)`, from `start`."""
    merged = start.clone().requires_grad_()
    adam = torch.optim.Adam([merged], lr=learning_rate, fused=True)
    with torch.no_grad():
        for _ in range(steps):
            merged.grad = torch.addmm(cross, merged, square, beta=-2, alpha=2)
            adam.step()
    return merged.detach()
