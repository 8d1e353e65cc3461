"""Linear maps with experts, of which each image or token gets a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class ExpertLinear(nn.Module):
    """A linear map and, for each of T tasks, a change of it: `W x + b + Σ_t g_t (L_t R_t x + c_t)`.

    The factors g come from `mixture`, (N, T) for each image, or, where the map has a gate of its own, from the input:
    the expert whose leading right singular vectors hold most of a token (SMILE, arXiv 2408.10174).

    Args:
        features: Rows of input and output, (in, out).
        tasks: T.
        rank: Columns of each L_t; 0 for whole matrices.
        bias: Whether the map has a bias, and the experts have.
        gate_rank: Directions of each expert that decide; 0 for no gate.
    """

    bias: Tensor | None
    right: Tensor | None
    biases: Tensor | None
    gate: Tensor | None

    def __init__(
        self, features: tuple[int, int], tasks: int, rank: int, *, bias: tuple[bool, bool], gate_rank: int = 0
    ) -> None:
        super().__init__()
        width, out = features
        self.tasks = tasks
        self.weight = nn.Parameter(torch.zeros(out, width), requires_grad=False)
        self.left = nn.Parameter(torch.zeros(out, tasks * (rank or width)), requires_grad=False)
        for name, shape in (
            ("bias", (out,) if bias[0] else None),
            ("right", (tasks * rank, width) if rank else None),
            ("biases", (tasks, out) if bias[1] else None),
            ("gate", (tasks * gate_rank, width) if gate_rank else None),
        ):
            value = None if shape is None else nn.Parameter(torch.zeros(shape), requires_grad=False)
            self.register_parameter(name, value)
        self.mixture: Tensor | None = None  # (N, T); None for no expert at all
        self.votes: Tensor | None = None  # (N, T): how many tokens of an image chose each expert

    def forward(self, states: Tensor) -> Tensor:
        """The map of tokens (N, tokens, in)."""
        result = functional.linear(states, self.weight, self.bias)
        shares = self._shares(states)
        if shares is None:
            return result
        inner = states if self.right is None else functional.linear(states, self.right)
        each = inner.unsqueeze(-2) if self.right is None else inner.unflatten(-1, (self.tasks, -1))
        mixed = (each * shares.unsqueeze(-1)).flatten(-2)
        result = result + functional.linear(mixed, self.left)
        return result if self.biases is None else result + shares @ self.biases

    def _shares(self, states: Tensor) -> Tensor | None:
        """The factors of the experts, (N, tokens, T) or (N, 1, T)."""
        if self.gate is None:
            return None if self.mixture is None else self.mixture.unsqueeze(1)
        strength = functional.linear(states, self.gate).unflatten(-1, (self.tasks, -1)).norm(dim=-1)
        shares = functional.one_hot(strength.argmax(dim=-1), self.tasks).to(states.dtype)
        self.votes = shares.detach().sum(dim=1)
        return shares


class GatedMLP(nn.Module):
    """An MLP whose experts are mixed for each image by a small network on its inputs (WE-MoE, arXiv 2402.00433).

    Args:
        mlp: The MLP, whose maps are `ExpertLinear`.
        width: Width of its inputs.
        tasks: T.
    """

    def __init__(self, mlp: Any, width: int, tasks: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.hidden, self.gate = nn.Linear(width, width), nn.Linear(width, tasks)
        self.shares: Tensor | None = None  # (N, T), of the last images

    def start(self, *, value: float, seed: int) -> None:
        """Sets the gate to almost equal factors, as the paper does: weights of deviation .01 around 0."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in (self.hidden, self.gate):
                layer.weight.copy_(0.01 * torch.randn(layer.weight.shape, generator=generator))
                layer.bias.zero_()
            self.gate.bias.fill_(value)

    def forward(self, states: Tensor) -> Tensor:
        """The MLP of tokens (N, tokens, width)."""
        self.shares = self.gate(functional.relu(self.hidden(states))).mean(dim=1)
        for layer in (self.mlp.fc1, self.mlp.fc2):
            layer.mixture = self.shares
        result: Tensor = self.mlp(states)
        return result


def with_experts(tower: nn.Module, ranks: Mapping[str, int], tasks: int, *, biases: set[str], gate_rank: int) -> None:
    """Replaces linear maps of a tower, in place, by empty ones with experts."""
    for name, rank in ranks.items():
        parent, _, leaf = name.rpartition(".")
        holder: Any = tower.get_submodule(parent)
        old = getattr(holder, leaf)
        sizes = (old.in_features, old.out_features)
        bias = (old.bias is not None, name in biases)
        setattr(holder, leaf, ExpertLinear(sizes, tasks, rank, bias=bias, gate_rank=gate_rank))
