"""Deltas of low rank: kept as factors, multiplied out when needed, written as an adapter for `peft`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from hf_taskvec.weights.deltas import Deltas, LazyDeltas


@dataclass(frozen=True)
class Factors:
    """A delta of low rank: `scaling * left @ right`, reshaped.

    Attributes:
        left: (rows, r).
        right: (r, columns).
        scaling: `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
        shape: Shape of the parameter.
    """

    left: Tensor
    right: Tensor
    scaling: float
    shape: torch.Size

    def delta(self) -> Tensor:
        """The product, in float64 and rounded once to float32 (float64 factors stay so)."""
        wide = torch.promote_types(self.left.dtype, torch.float32)
        return (self.left.double() @ self.right.double()).mul_(self.scaling).to(wide).reshape(self.shape)


class LowRankDeltas(Deltas):
    """Deltas multiplied out on access; parameters of `zeros` that have no factors are zero."""

    def __init__(self, factors: Mapping[str, Factors], zeros: Mapping[str, torch.Size] | None = None) -> None:
        self.factors = dict(factors)
        self.shapes = {**(zeros or {}), **{name: item.shape for name, item in self.factors.items()}}
        self.dtype = reduce(torch.promote_types, {item.left.dtype for item in factors.values()}, torch.float32)
        self.device = next((item.left.device for item in self.factors.values()), torch.device("cpu"))

    def to(self, device: torch.device) -> LowRankDeltas:
        """The deltas with their factors on another device."""
        moved = {
            name: replace(item, left=item.left.to(device), right=item.right.to(device))
            for name, item in self.factors.items()
        }
        return LowRankDeltas(moved, {name: shape for name, shape in self.shapes.items() if name not in moved})

    def __getitem__(self, name: str) -> Tensor:
        if name in self.factors:
            return self.factors[name].delta()
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.shapes[name])


def filled(deltas: Deltas, shapes: Mapping[str, torch.Size]) -> Deltas:
    """Deltas that cover `shapes`, zero where `deltas` has none; factors stay factors."""
    if isinstance(deltas, LowRankDeltas):
        return LowRankDeltas(deltas.factors, shapes)

    def delta(name: str) -> Tensor:
        if name in deltas:
            return deltas[name]
        return torch.zeros((), dtype=deltas.dtype, device=deltas.device).expand(shapes[name])

    return LazyDeltas(shapes, delta, deltas.dtype, deltas.device)
