"""A tower whose weights are a mixture of vectors: set by coefficients, and differentiated by inner products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_taskvec.errors import check_known
from hf_taskvec.merging.weighted import EVERYWHERE
from hf_taskvec.tuning.tower import Tower
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.names import layer_of

Per = Literal["task", "layer", "parameter"]
_CHUNK = 1 << 18  # entries of an inner product that are added up in the weights' own dtype


class Mixture:
    """The base plus the sum of T vectors times their coefficients, (G, T): one row for each of G groups of parameters.

    The gradient with respect to a coefficient is the inner product of a group's weight gradient and the vector's delta,
    so nothing is differentiated through the sum, and each delta is read where it lies.

    Args:
        tower: The model that is set.
        vectors: The vectors.
        per: What has a coefficient of its own: a task's whole vector, each layer of it, or each parameter.

    Attributes:
        groups: Name of each group.
    """

    def __init__(self, tower: Tower, vectors: Sequence[TaskVector], per: Per) -> None:
        self.tower, self.vectors = tower, list(vectors)
        group_of = {name: group_name(name, per) for name in tower.parameters}
        self.groups = list(dict.fromkeys(group_of.values()))
        self._rows = {name: self.groups.index(group) for name, group in group_of.items()}

    @torch.no_grad()
    def set(self, coefficients: Tensor) -> None:
        """Sets the tower's weights by coefficients (G, T)."""
        rows = coefficients.tolist()
        for name, parameter in self.tower.parameters.items():
            weight = self.tower.originals[name]
            wide = torch.promote_types(weight.dtype, torch.float32)
            total = weight.to(wide, copy=True)
            for vector, factor in zip(self.vectors, rows[self._rows[name]], strict=True):
                if factor:
                    total.add_(vector.deltas[name].to(total.device, wide), alpha=factor)
            parameter.copy_(total)

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """The gradient with respect to the coefficients, (G, T) in float64, of what the tower's parameters hold."""
        total = torch.zeros(len(self.groups), len(self.vectors), dtype=torch.float64)
        for name, parameter in self.tower.parameters.items():
            if parameter.grad is None:
                continue
            flat = parameter.grad.reshape(-1)
            products = [inner_product(flat, vector.deltas[name]) for vector in self.vectors]
            total[self._rows[name]] += torch.stack(products).cpu().double()
        return total


def group_name(name: str, per: Per) -> str:
    """The group of a parameter, as `weighted` knows it: everything, its layer, or itself.

    Example:
        >>> [group_name("vision_model.encoder.layers.0.mlp.fc1.bias", per) for per in ("task", "layer")]
        ['*', 'vision_model.encoder.layers.0']
    """
    check_known("group of parameters", per, get_args(Per))
    return {"task": EVERYWHERE, "layer": layer_of(name), "parameter": name}[per]


def inner_product(gradient: Tensor, delta: Tensor) -> Tensor:
    """The inner product with a delta of the same number of entries, a scalar; chunks are added in float64 on a CPU."""
    chunks = gradient.split(_CHUNK if gradient.device.type == "cpu" else 16 * _CHUNK)
    others = delta.reshape(-1).to(gradient.device, gradient.dtype).split(len(chunks[0]) if chunks else 1)
    products = torch.stack([torch.dot(a, b) for a, b in zip(chunks, others, strict=True)])
    return products.sum(dtype=torch.float32 if gradient.device.type == "mps" else torch.float64)
