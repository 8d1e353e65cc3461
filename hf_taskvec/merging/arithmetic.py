"""Merge methods whose result is a linear combination of the vectors; some find its coefficients in their geometry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from hf_taskvec.errors import check_known
from hf_taskvec.merging.engine import Scope, map_sum
from hf_taskvec.merging.geometry import cosines, inner_products
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.vectors.vector import TaskVector

_ANGLE = 1e-6  # below this angle, in radians, the arc is its chord to the last bit of float32


@merge_method("average", paper="2203.05482")
def average(vectors: Sequence[TaskVector]) -> TaskVector:
    """The mean of the vectors: with scaling 1, the average of the fine-tuned models' weights (model soup).

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([-1.0, 1.0])})]
        >>> average(pair).deltas["w"]
        tensor([1., 1.])
    """
    return map_sum(lambda name: [1 / len(vectors)] * len(vectors), vectors)


@merge_method("task_arithmetic", paper="2212.04089")
def task_arithmetic(vectors: Sequence[TaskVector], *, weights: Sequence[float] | None = None) -> TaskVector:
    """The sum of the vectors, each times its weight.

    Args:
        vectors: Vectors of one base.
        weights: One factor per vector; 1 each if left out, as in the paper, whose one scaling is applied afterwards.

    Raises:
        ValueError: If `weights` has another length than `vectors`, or is not finite.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([-1.0, 1.0])})]
        >>> task_arithmetic(pair, weights=[1.0, 0.5]).deltas["w"]
        tensor([2.5000, 1.5000])
    """
    factors = [1.0] * len(vectors) if weights is None else check_weights(weights, vectors)
    return map_sum(lambda name: factors, vectors)


@merge_method("metagpt", paper="2406.11385")
def metagpt(vectors: Sequence[TaskVector]) -> TaskVector:
    """The sum of the vectors, each weighted by its share of the squared norms.

    The closed form minimises the paper's bound on the loss, which takes the vectors as orthogonal and the loss's
    curvature as the same for all. Equal vectors of norm zero count alike.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([-1.0, 1.0])})]
        >>> metagpt(pair).deltas["w"].round(decimals=3)
        tensor([2.3330, 1.0000])
    """
    products = inner_products(vectors)
    squares = torch.stack([product.diagonal() for product in products.values()]).sum(dim=0)
    total = float(squares.sum())
    shares = squares / total if total > 0 else torch.full_like(squares, 1 / len(vectors))
    weights = shares.tolist()
    return map_sum(lambda name: weights, vectors)


@merge_method("model_stock", paper="2403.19522")
def model_stock(vectors: Sequence[TaskVector]) -> TaskVector:
    """The mean of each parameter, drawn towards the base by how far the vectors disagree.

    With the mean cosine c of the T deltas of a parameter, the factor is T c / (1 + (T - 1) c). A negative c counts as
    0, where the formula would leave [0, 1]; one vector is returned as it is.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([1.0, 1.0])})] * 2
        >>> model_stock(pair).deltas["w"].round(decimals=3)
        tensor([1., 1.])
    """

    def factor(products: Tensor) -> Tensor:
        count = len(products)
        if count == 1:
            return torch.ones(1, dtype=products.dtype)
        table = cosines(products)
        cosine = max(0.0, float(table.sum() - table.trace()) / (count * (count - 1)))
        share = count * cosine / (1 + (count - 1) * cosine)
        return torch.full((count,), share / count, dtype=products.dtype)

    return _combine_by(factor, vectors, "parameter")


@merge_method("slerp", paper="Shoemake 1985", order_independent=False, min_vectors=2, max_vectors=2)
def slerp(vectors: Sequence[TaskVector], *, position: float = 0.5, scope: Scope = "parameter") -> TaskVector:
    """Interpolates two vectors along the arc between them.

    Args:
        vectors: Two vectors of one base.
        position: Where on the arc, in [0, 1]: 0 is the first vector, 1 the second.
        scope: Whether the angle is that of the whole vectors or of each parameter.

    Raises:
        ValueError: If `position` is outside [0, 1].

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([1.0, 0.0])}), TaskVector({"w": torch.tensor([0.0, 1.0])})]
        >>> slerp(pair).deltas["w"].round(decimals=3)
        tensor([0.7070, 0.7070])
    """
    if not 0 <= position <= 1:
        raise ValueError(f"position must be in [0, 1], got {position}")

    def factors(products: Tensor) -> Tensor:
        angle = math.acos(float(cosines(products)[0, 1]))
        if angle < _ANGLE or math.pi - angle < _ANGLE or float(products.diagonal().min()) <= 0:
            return torch.tensor([1 - position, position], dtype=products.dtype)  # no arc: the chord
        weights = [math.sin((1 - position) * angle), math.sin(position * angle)]
        return torch.tensor(weights, dtype=products.dtype) / math.sin(angle)

    return _combine_by(factors, vectors, scope)


@merge_method("karcher", paper="Karcher 1977")
def karcher(vectors: Sequence[TaskVector], *, scope: Scope = "parameter") -> TaskVector:
    """The Riemannian mean of the vectors' directions, with the mean of their norms.

    The mean lies in the span of the vectors, so it is found from their inner products alone, in float64. Zero vectors
    have no direction and count in the norm only. Where the directions cancel (no mean
    exists), the plain average is returned.

    Args:
        vectors: Vectors of one base.
        scope: Whether the direction is that of the whole vectors or of each parameter.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([1.0, 0.0])}), TaskVector({"w": torch.tensor([0.0, 1.0])})]
        >>> karcher(pair).deltas["w"].round(decimals=3)
        tensor([0.7070, 0.7070])
    """
    return _combine_by(_karcher_weights, vectors, scope)


def check_weights(weights: Sequence[float], vectors: Sequence[object]) -> list[float]:
    """Raises a `ValueError` unless there is one finite weight per vector."""
    try:
        if isinstance(weights, (str, bytes, Mapping)):
            raise TypeError
        weights = [float(weight) for weight in weights]
    except (TypeError, ValueError):
        kind = f"{type(weights).__name__} {str(weights)[:80]!r}"
        raise ValueError(f"weights must be a list of one number per vector ({len(vectors)}), got {kind}") from None
    if len(weights) != len(vectors):
        raise ValueError(f"weights must have one factor per vector ({len(vectors)}), got {len(weights)}")
    if not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights must be finite, got {weights}")
    return weights


def _karcher_weights(products: Tensor, *, steps: int = 200, tolerance: float = 1e-13) -> Tensor:
    """Coefficients of the Karcher mean on the span of the vectors with these inner products."""
    norms = products.diagonal().clamp(min=0).sqrt()
    alive = norms > 0
    plain = torch.full_like(norms, 1 / len(norms))
    if not alive.any():
        return plain
    table = cosines(products)[alive][:, alive]
    mean = torch.full((len(table),), 1 / len(table), dtype=table.dtype)  # coefficients over the unit vectors
    for _ in range(steps):
        length = float((mean @ table @ mean).clamp(min=0).sqrt())
        if length < 1e-7:
            return plain
        mean = mean / length
        angles = (table @ mean).clamp(-1, 1).acos()
        ratios = torch.where(angles > _ANGLE, angles / angles.sin(), 1.0)
        ratios = torch.where(math.pi - angles > _ANGLE, ratios, 0.0)  # no single arc leads to the opposite point
        tangent = ratios / len(table) - (ratios * angles.cos()).mean() * mean  # mean of the logarithms at `mean`
        size = float((tangent @ table @ tangent).clamp(min=0).sqrt())
        if size < tolerance:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * tangent
    result = torch.zeros_like(norms)
    result[alive] = mean * norms.mean() / norms[alive]
    return result


def _combine_by(factors: Callable[[Tensor], Tensor], vectors: Sequence[TaskVector], scope: Scope) -> TaskVector:
    """The combination whose coefficients come from the inner products of each parameter, or of the whole vectors."""
    check_known("scope", scope, get_args(Scope))
    products = inner_products(vectors)
    if scope == "vector":
        chosen = factors(torch.stack(list(products.values())).sum(dim=0)).tolist()
        return map_sum(lambda name: chosen, vectors)
    each = {name: factors(product).tolist() for name, product in products.items()}
    return map_sum(each.__getitem__, vectors)
