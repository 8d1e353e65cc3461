"""Training dynamics: how gradients and vectors turn from epoch to epoch, and how tasks lie to each other.

Everything comes from inner products of memory-mapped vectors, read chunk by chunk: a run of 76 epochs needs no more
memory than one of two.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import DataError
from hf_taskvec.merging.geometry import cosines, inner_products, mean_over_pairs, sign_conflicts
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.theory.gradients import descent_of
from hf_taskvec.training.output import FULL_GRADIENTS, GRADIENT_VECTORS, VECTORS, RunFolder, epoch_name
from hf_taskvec.training.plan import base_plan, task_plan, vector_of
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes
from hf_taskvec.weights.names import layer_of

TOTAL = "all"  # stands for the whole vector among the layers


@dataclass(frozen=True)
class Dynamics:
    """How the gradients and the vector of one run turned over its K epochs; epoch 1 is entry 0.

    Attributes:
        task: Name of the task.
        mean_gradient_norms: Mean norm of the minibatch gradients of each epoch.
        products: For each layer and for `all`, the inner products (3K, 3K) of the full-dataset gradients at each
            epoch's start, the gradients accumulated over each epoch, and the vectors at each epoch's end.
    """

    task: str
    mean_gradient_norms: tuple[float, ...]
    products: Mapping[str, Tensor]

    @property
    def num_epochs(self) -> int:
        """K."""
        return len(self.mean_gradient_norms)

    @property
    def shares(self) -> list[float]:
        """Each epoch's share of the sum of the mean gradient norms."""
        return [norm / math.fsum(self.mean_gradient_norms) for norm in self.mean_gradient_norms]

    def norms(self, kind: str) -> list[float]:
        """The norms of the `full` gradients, the `accumulated` gradients or the `vector`s."""
        return self.products[TOTAL].diagonal()[self._rows(kind)].sqrt().tolist()

    def cosines(self, left: str, right: str, *, layer: str = TOTAL) -> Tensor:
        """Cosines (K, K) between two of `full`, `accumulated` and `vector`; gradients count as descent directions."""
        sign = 1.0 if (left == "vector") == (right == "vector") else -1.0
        return sign * cosines(self.products[layer])[self._rows(left), self._rows(right)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: norms, shares and every cosine, the courses also per layer."""
        return {
            "task": self.task,
            "mean_gradient_norms": list(self.mean_gradient_norms),
            "shares": self.shares,
            "norms": {kind: self.norms(kind) for kind in _KINDS},
            "cosines_between_full_gradients": self.cosines("full", "full").tolist(),
            "cosines_between_accumulated_gradients": self.cosines("accumulated", "accumulated").tolist(),
            "courses": {layer: self._courses(layer) for layer in self.products},
        }

    def _courses(self, layer: str) -> dict[str, list[float]]:
        accumulated = self.cosines("accumulated", "accumulated", layer=layer)
        with_vector = self.cosines("accumulated", "vector", layer=layer)
        return {
            "accumulated_to_first": accumulated[:, 0].tolist(),
            "accumulated_to_final_vector": with_vector[:, -1].tolist(),
            "full_to_first": self.cosines("full", "full", layer=layer)[:, 0].tolist(),
            "full_to_final_vector": self.cosines("full", "vector", layer=layer)[:, -1].tolist(),
            "vector_to_first_full_gradient": self.cosines("vector", "full", layer=layer)[:, 0].tolist(),
            "vector_to_final_vector": self.cosines("vector", "vector", layer=layer)[:, -1].tolist(),
        }

    def _rows(self, kind: str) -> slice:
        start = _KINDS.index(kind) * self.num_epochs
        return slice(start, start + self.num_epochs)


_KINDS = ("full", "accumulated", "vector")


def measure_dynamics(
    base: Base, task: Task, run: str | os.PathLike[str], *, batch_size: int = 256, progress: bool = False
) -> Dynamics:
    """Reads a run's dynamics from its folder, after computing the full-dataset gradient at each epoch's start.

    Args:
        base: The base of the run.
        task: The task of the run.
        run: The `output_dir` of a `TaskVectorTrainer` with `record_epochs` and `record_gradients`. The full gradients
            are kept there too, so that a second call computes nothing.
        batch_size: Images per pass.
        progress: Whether to show progress bars.

    Raises:
        DataError: If the folder lacks vectors or gradients of its epochs.
        SettingsDifferError: If the full gradients there are those of another run, base or task.
    """
    folder = Path(run)
    epochs = sum(1 for path in (folder / GRADIENT_VECTORS).glob("epoch-*"))
    wanted = [folder / kind / epoch_name(epoch + 1) for kind in (GRADIENT_VECTORS, VECTORS) for epoch in range(epochs)]
    if epochs == 0 or not all(path.is_dir() for path in wanted):
        raise DataError(f"{folder} lacks epochs; train with record_epochs=True and record_gradients=True")
    accumulated, vectors = (
        [TaskVector.from_pretrained(path) for path in paths] for paths in (wanted[:epochs], wanted[epochs:])
    )
    origin = base_plan(base) | task_plan(task.provenance())
    full = []
    for epoch in range(epochs):
        before = vectors[epoch - 1] if epoch else None
        plan = origin | {"start": fingerprint(tensor_hashes(before.deltas)) if before else "the base"}

        def gradient(before: TaskVector | None = before) -> TaskVector:
            model = before.apply_to(base) if before else base
            return -descent_of(vectors[0], model, task, batch_size=batch_size, progress=progress)

        name = f"{FULL_GRADIENTS}/{epoch_name(epoch + 1)}"
        RunFolder(folder).adopt(name, f"{name}.plan.json")  # a later run in the folder replaces them
        full.append(vector_of(folder / name, plan, gradient))
    norms = tuple(float(vector.info.mean_gradient_norm or 0.0) for vector in accumulated)
    return Dynamics(task.name, norms, _by_layer(_strip([*full, *accumulated, *vectors])))


@dataclass(frozen=True)
class Geometry:
    """How vectors of several tasks lie to each other; entries of (T, T) are pairs.

    Attributes:
        tasks: Names of the tasks.
        cosines: Cosine of the angle.
        sign_agreement: Fraction of entries whose signs are not opposite.
        subspace_overlap: ‖U_aᵀ U_b‖²/r of the first r left singular vectors, averaged over the weight matrices.
        random_overlap: What random subspaces would have.
    """

    tasks: tuple[str, ...]
    cosines: Tensor
    sign_agreement: Tensor
    subspace_overlap: Tensor
    random_overlap: float

    def mean(self, name: str) -> float:
        """The mean of a table over the pairs of different tasks."""
        return mean_over_pairs(getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        names = ("cosines", "sign_agreement", "subspace_overlap")
        return {
            "tasks": list(self.tasks),
            **{name: getattr(self, name).tolist() for name in names},
            "random_overlap": self.random_overlap,
            "means": {name: self.mean(name) for name in names},
        }


def task_geometry(vectors: Mapping[str, TaskVector], *, rank: int = 8) -> Geometry:
    """Pairwise cosines, sign agreement and subspace overlap of the vectors or gradients of several tasks.

    Args:
        vectors: One vector per task.
        rank: How many singular vectors r span a matrix's subspace.

    Raises:
        DataError: If there are fewer than two vectors.

    Example:
        >>> a, b = (TaskVector({"w": torch.tensor(values)}) for values in ([1.0, 0.0], [1.0, 1.0]))
        >>> round(task_geometry({"a": a, "b": b}).mean("cosines"), 3)
        0.707
    """
    if len(vectors) < 2:
        raise DataError(f"a geometry needs two or more vectors, got {len(vectors)}")
    stack = _strip(list(vectors.values()))
    total = torch.stack(list(inner_products(stack).values())).sum(dim=0)
    conflicts = torch.stack(list(sign_conflicts(stack).values())).sum(dim=0)
    overlap, chance = _subspace_overlap(stack, rank)
    agreement = 1 - conflicts.double() / stack[0].num_entries
    return Geometry(tuple(vectors), cosines(total), agreement, overlap, chance)


def _strip(vectors: Sequence[TaskVector]) -> list[TaskVector]:
    """The vectors without provenance: those of a run start from different weights and are compared all the same."""
    return [TaskVector(vector.deltas) for vector in vectors]


def _by_layer(vectors: Sequence[TaskVector]) -> dict[str, Tensor]:
    """Inner products of all pairs per layer and, under `all`, of the whole."""
    result: dict[str, Tensor] = {}
    for name, products in inner_products(vectors).items():
        for key in (layer_of(name), TOTAL):
            result[key] = result[key] + products if key in result else products.clone()
    return result


def _subspace_overlap(vectors: Sequence[TaskVector], rank: int) -> tuple[Tensor, float]:
    """Mean overlap (T, T) over the weight matrices, and that of random subspaces; one matrix of all tasks at a time."""
    count, overlaps, chances = len(vectors), [], []
    for name, first in vectors[0].deltas.items():
        if first.ndim != 2 or min(first.shape) < 2:
            continue
        r = min(rank, *first.shape)
        bases = torch.stack([torch.linalg.svd(v.deltas[name].double(), full_matrices=False)[0][:, :r] for v in vectors])
        flat = bases.permute(1, 0, 2).reshape(len(first), count * r)
        blocks = (flat.T @ flat).square().view(count, r, count, r)
        overlaps.append(blocks.sum(dim=(1, 3)).cpu() / r)
        chances.append(r / len(first))
    if not overlaps:
        return torch.full((count, count), math.nan, dtype=torch.float64), math.nan
    return torch.stack(overlaps).mean(dim=0), math.fsum(chances) / len(chances)
