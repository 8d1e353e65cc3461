"""Merging one vector after another: how the next one enters what is held of those before, of one size for ever.

What is held is a float64 tensor for every parameter, and the sum of the vectors' norms. `ContinualMerge` holds it from
one vector to the next; the methods registered here take a list in its order, and hold as much while they merge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import NonFiniteError, check_finite_number, check_fraction, check_known
from hf_taskvec.merging.engine import map_parameters, parallel, rounding_of, wide_dtype
from hf_taskvec.merging.linalg import leading
from hf_taskvec.merging.quadratic_engine import is_embedding
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import is_finite

Held = Mapping[str, Tensor]
Enter = Callable[
    ..., Tensor
]  # what is held of a parameter, the next delta, its name, the settings -> what is held then


@dataclass(frozen=True)
class Rule:
    """A way to merge one vector after another.

    Attributes:
        enter: What is held of a parameter once the next delta, in float64, has entered it.
        defaults: Its settings.
        averaged: Which parameters' sums are divided by the number of vectors.
        renormed: Whether the whole gets the mean norm of the vectors.
    """

    enter: Enter
    defaults: Mapping[str, Any] = field(default_factory=dict)
    averaged: Callable[[str, Tensor], bool] = lambda *_: False
    renormed: bool = False

    def entered(
        self, held: Held, vector: TaskVector, settings: Mapping[str, Any], *, rounding: float, index: int
    ) -> Held:
        """What is held of every parameter with vector number `index` in it; nothing is changed in place.

        Raises:
            NonFiniteError: If a delta holds NaN or Inf.
        """

        def enter(name: str) -> Tensor:
            delta = vector.deltas[name].detach().to("cpu", torch.float64, copy=True)
            if not is_finite(delta):
                raise NonFiniteError(f"{name!r} of vector {index} ({vector.info.label!r}) holds NaN or Inf")
            return self.enter(held[name], delta, name, rounding=rounding, **settings) if held else delta

        tensors = parallel(enter, vector.deltas, description=vector.info.label)
        return dict(zip(vector.deltas, tensors, strict=True))

    def factor(self, held: Held, norms: float, count: int) -> Callable[[str], float]:
        """By what is held of a parameter has to be multiplied to be the merged vector of `count` vectors."""
        if not self.renormed:
            return lambda name: 1 / count if self.averaged(name, held[name]) else 1.0
        norm = float(torch.stack([torch.linalg.vector_norm(tensor) for tensor in held.values()]).norm())
        return lambda name: norms / count / norm if norm > 0 else 1.0


def is_projected(name: str, held: Tensor) -> bool:
    """Whether a parameter is the matrix of a linear map."""
    return held.ndim == 2 and held.numel() > 0 and not is_embedding(name)


def check_rule(rule: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of a rule with its value.

    Raises:
        UnknownNameError: If there is no such rule or setting.
        ValueError: If a value is out of range.
    """
    check_known("way to merge one after another", rule, RULES)
    settled = dict(RULES[rule].defaults)
    for name, value in settings.items():
        check_known(f"setting of {rule}:", name, settled)
        settled[name] = value
    for name, value in settled.items():
        check_finite_number(name, value)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    if "share" in settled:
        check_fraction("share", settled["share"])
    return settled


@merge_method("opcm", paper="2501.09522", order_independent=False)
def opcm(vectors: Sequence[TaskVector], *, share: float = 0.5) -> TaskVector:
    """Adds each vector without what lies along the directions of the sum before it, and gives the sum their mean norm.

    In the singular bases U, V of a matrix of the sum, the next delta D loses the diagonal of Uᵀ D V and its block of
    the r leading directions, which hold `share` of the sum's singular values; what is no matrix of a linear map is
    added whole. The authors' code takes one direction fewer than the paper's r. It takes all of U and V, also where
    singular values are 0 and the directions arbitrary; here those stay out. The order of the vectors is the list's.

    Args:
        vectors: Vectors of one base.
        share: The share of the singular values whose directions are kept free, in (0, 1].

    Raises:
        ValueError: If `share` is outside (0, 1].

    Example:
        >>> first, second = torch.diag(torch.tensor([1.0, 0.0])), torch.tensor([[5.0, 0.0], [0.0, 1.0]])
        >>> merged = opcm([TaskVector({"w": first}), TaskVector({"w": second})]).deltas["w"]
        >>> (merged / merged.max()).round(decimals=3)  # the 5 lies along the first vector's direction
        tensor([[1., 0.],
                [0., 1.]])
    """
    return _one_after_another(vectors, "opcm", share=share)


@merge_method("nufilt", paper="2509.21413", order_independent=False)
def nufilt(
    vectors: Sequence[TaskVector], *, filtered: float = 1 / 6, own: float = 0.01, ridge: float = 0.1
) -> TaskVector:
    """Adds each vector filtered by the null space of the inputs that the sum before it answers to, and an adapter.

    A matrix D of the next vector enters the sum M as D(I - UUᵀ) + X, U being M's leading right singular vectors. The
    adapter X is to leave M's answers to U alone and to give D's own answers to its leading right singular vectors V: it
    minimises |(M + D(I - UUᵀ) + X - D)V|² + |XU|² + `ridge` |X|². Other parameters are averaged.

    The authors take 50 steps of Adam from X = 0 for a product D B A of rank 64 of 768 and the loss without `ridge`;
    here is the minimum, of a rank no larger than V has. They leave second MLP layers and what is no matrix at the base.
    The order of the vectors is the list's.

    Args:
        vectors: Vectors of one base.
        filtered: Columns of U, as a fraction of the inputs; the authors' 128 of 768.
        own: Columns of V, likewise; the authors' 8 of 768. With 0 there is no adapter, only the filter.
        ridge: Pull of the adapter to 0, without which vectors that agree in direction would blow it up.

    Raises:
        ValueError: If a setting is outside [0, 1].

    Example:
        >>> first, second = torch.diag(torch.tensor([1.0, 0.0])), torch.tensor([[5.0, 0.0], [0.0, 1.0]])
        >>> nufilt([TaskVector({"w": first}), TaskVector({"w": second})], own=0.0).deltas["w"].round(decimals=3)
        tensor([[1., 0.],
                [0., 1.]])
    """
    return _one_after_another(vectors, "nufilt", filtered=filtered, own=own, ridge=ridge)


def _one_after_another(vectors: Sequence[TaskVector], rule: str, **settings: Any) -> TaskVector:
    settled, held, norms = check_rule(rule, settings), dict[str, Tensor](), 0.0
    rounding, wide = rounding_of(vectors), wide_dtype(vectors)
    for index, vector in enumerate(vectors):
        held = dict(RULES[rule].entered(held, vector, settled, rounding=rounding, index=index))
        norms += vector.norm()
    factor = RULES[rule].factor(held, norms, len(vectors))
    device = vectors[0].device
    return map_parameters(lambda name: (held[name] * factor(name)).to(device, wide), vectors)


def _sum(held: Tensor, delta: Tensor, name: str, *, rounding: float) -> Tensor:
    return held + delta


def _largest(held: Tensor, delta: Tensor, name: str, *, rounding: float) -> Tensor:
    size, other = delta.abs(), held.abs()
    return torch.where((size > other) | ((size == other) & (delta > held)), delta, held)


def _apart(held: Tensor, delta: Tensor, name: str, *, rounding: float, share: float) -> Tensor:
    if not is_projected(name, held):
        return held + delta
    own = leading(held, rounding=rounding)
    total = float(own.values.sum())
    if total == 0:
        return held + delta
    count = 1 + int((own.values.cumsum(0) <= share * total).sum())
    along = own.left.T @ delta @ own.right
    taken = along.diagonal().diag()
    taken[:count, :count] = along[:count, :count]
    return held + delta - own.left @ taken @ own.right.T


def _filtered(
    held: Tensor, delta: Tensor, name: str, *, rounding: float, filtered: float, own: float, ridge: float
) -> Tensor:
    if not is_projected(name, held):
        return held + delta
    before = _inputs(held, filtered, rounding)
    entering = held + delta - delta @ before @ before.T
    mine = _inputs(delta, own, rounding)
    wanted = torch.cat([(delta - entering) @ mine, held.new_zeros(len(held), before.shape[1])], dim=1)
    inputs = torch.cat([mine, before], dim=1)
    pull = max(ridge, torch.finfo(held.dtype).eps) * torch.eye(inputs.shape[1], dtype=held.dtype)
    adapter: Tensor = torch.linalg.solve(inputs.T @ inputs + pull, wanted.T).T @ inputs.T
    return entering + adapter


def _inputs(matrix: Tensor, fraction: float, rounding: float) -> Tensor:
    """The leading right singular vectors (n, k) of a matrix (m, n): a fraction of n, one at least unless it is 0."""
    count = max(1, round(fraction * matrix.shape[1])) if fraction > 0 else 0
    return leading(matrix, count, rounding=rounding).right if count else matrix.new_zeros(matrix.shape[1], 0)


def _is_any(name: str, held: Tensor) -> bool:
    return True


def _is_no_map(name: str, held: Tensor) -> bool:
    return not is_projected(name, held)


RULES: Mapping[str, Rule] = {
    "opcm": Rule(_apart, {"share": 0.5}, renormed=True),
    "nufilt": Rule(_filtered, {"filtered": 1 / 6, "own": 0.01, "ridge": 0.1}, averaged=_is_no_map),
    "magmax": Rule(_largest),
    "average": Rule(_sum, averaged=_is_any),
    "task_arithmetic": Rule(_sum),
}
