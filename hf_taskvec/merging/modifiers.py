"""Methods that take another method's result and rescale it: by layer (LiNeS) or by singular direction (SVC)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import check_finite_number, check_positive
from hf_taskvec.merging.engine import map_parameters, parallel, rounding_of, stacked, wide_dtype
from hf_taskvec.merging.linalg import leading
from hf_taskvec.merging.registry import get_method, merge_method
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.names import LAYER_NUMBER

logger = logging.getLogger(__name__)
_AFTER_LAYERS = re.compile(
    r"post_layernorm|visual_projection|\.ln_post\.|(^|\.)(norm|layernorm|ln_f|final_layer_norm|pooler|lm_head)\."
)
PUBLISHED_SCALINGS = {"task_arithmetic": 0.3}  # of what svc calibrates; 1 for all other methods
PUBLISHED_FLOORS = {"tsv_m": 1.0}  # 1/T for all other methods


@merge_method("lines", paper="2410.17146")
def lines(
    vectors: Sequence[TaskVector],
    *,
    of: str = "task_arithmetic",
    of_settings: Mapping[str, Any] | None = None,
    shallow: float | None = None,
    growth: float = 0.5,
    depth: int | None = None,
) -> TaskVector:
    """Scales another method's result layer by layer, linearly from the first to the last: deep layers keep more.

    Args:
        vectors: Vectors of one base.
        of: The method whose result is scaled.
        of_settings: Its settings.
        shallow: Factor of the first layer and of everything outside the layers, the paper's alpha. By default the L1
            norm of the vectors' sum over that of the result, divided by T, as in the authors' code.
        growth: What the last layer's factor is more, the paper's beta, which replaces the scaling: the authors choose
            it on validation data from .1 to 1 (1.5 with TIES) and have no default; .5 is the middle.
        depth: Number of layers of the tower; the authors' code has 12. By default the last layer that the vectors
            cover counts as the tower's last, which is told in a warning unless they cover what comes after it.

    Raises:
        ValueError: If a number is not finite, or a vector covers a layer beyond `depth`.

    Example:
        >>> ones = TaskVector({f"m.layers.{layer}.w": torch.ones(1) for layer in range(2)})
        >>> [float(delta) for delta in lines([ones], depth=2).deltas.values()]
        [1.0, 1.5]
    """
    check_finite_number("growth", growth)
    if shallow is not None:
        check_finite_number("shallow", shallow)
    depth = tower_depth(vectors[0].deltas.shapes, depth)  # refuses before any work
    merged = inner_merge(of, of_settings, vectors)
    if shallow is None:
        total = get_method("task_arithmetic").merge(vectors)
        norm = _l1(merged)
        shallow = (1.0 if of == "task_arithmetic" else _l1(total) / norm if norm > 0 else 1.0) / len(vectors)
    return scale_layers(merged, shallow=shallow, growth=growth, depth=depth)


def scale_layers(vector: TaskVector, *, shallow: float, growth: float, depth: int | None = None) -> TaskVector:
    """Any vector with the delta of layer l of L scaled by `shallow + growth * l / (L - 1)`; see `lines`.

    What belongs to no layer is scaled by `shallow`.

    Args:
        vector: The vector.
        shallow: Factor of the first layer.
        growth: What the last layer's factor is more.
        depth: The number of layers L; one more than the last that the vector covers if left out.

    Returns:
        The scaled vector, computed when it is used.

    Example:
        >>> ones = TaskVector({f"m.layers.{layer}.w": torch.ones(1) for layer in range(2)})
        >>> [float(delta) for delta in scale_layers(ones, shallow=0.5, growth=0.5, depth=3).deltas.values()]
        [0.5, 0.75]
    """
    depth = tower_depth(vector.deltas.shapes, depth)

    def factor(name: str) -> float:
        if (layer := _layer(name)) is None:
            return shallow
        return shallow + growth * (layer / (depth - 1) if depth > 1 else 1.0)

    scaled = map_parameters(lambda name: vector.deltas[name] * factor(name), [vector])
    return TaskVector(scaled.deltas, vector.info)


def tower_depth(names: Iterable[str], depth: int | None = None) -> int:
    """The number of layers of the tower whose parameters these are; a warning tells it if nothing proves it.

    Raises:
        ValueError: If `depth` is given and a later layer is covered.

    Example:
        >>> tower_depth(["m.layers.1.w"], depth=12)
        12
    """
    names = list(names)
    covered = max((layer for name in names if (layer := _layer(name)) is not None), default=-1) + 1
    if depth is None:
        if covered and not any(_layer(name) is None and _AFTER_LAYERS.search(name) for name in names):
            logger.warning("The tower is taken to have %d layers, as no later one is covered; pass depth=", covered)
        return max(covered, 1)
    if depth < max(covered, 1):
        raise ValueError(f"depth must be at least {max(covered, 1)}, as layer {covered - 1} is covered, got {depth}")
    return depth


def _layer(name: str) -> int | None:
    match = LAYER_NUMBER.search(name)
    return int(match[1]) if match else None


@merge_method("svc", paper="2602.05536", resumable=True)
def svc(
    vectors: Sequence[TaskVector],
    *,
    of: str = "task_arithmetic",
    of_settings: Mapping[str, Any] | None = None,
    inner_scaling: float | None = None,
    floor: float | None = None,
) -> TaskVector:
    """Shrinks, in each matrix of another method's result, the singular directions that several vectors add up.

    Direction r is scaled by T over the sum of max(floor, s), where s is the result's response in that output direction
    projected on a vector's. A vector without response there counts as `floor`. Parameters that are no matrices, and
    embeddings, stay as the other method left them.

    The order is that of the authors' code: the other method's result is scaled first and calibrated then, which is not
    the same as scaling afterwards, and the scaling of what this returns is 1. That code takes squared responses below
    1e-12 as 1e-12, this one as they are. It sees the stacked queries, keys and values as one matrix; here they are
    three.

    Args:
        vectors: Vectors of one base.
        of: The method whose result is calibrated.
        of_settings: Its settings.
        inner_scaling: Factor of that result before it is calibrated. By default the authors': .3 for
            `task_arithmetic`, 1 for the others.
        floor: The paper's alpha, positive. By default the authors': 1 for `tsv_m`, 1/T for the others. At 1 directions
            only shrink.

    Raises:
        ValueError: If `floor` is not positive, or `inner_scaling` not finite.

    Example:
        >>> pair = [TaskVector({"w": torch.eye(2)}), TaskVector({"w": 3 * torch.eye(2)})]
        >>> svc(pair).deltas["w"].norm().round(decimals=3)
        tensor(1.9970)
    """
    floor = PUBLISHED_FLOORS.get(of, 1 / len(vectors)) if floor is None else floor
    factor = PUBLISHED_SCALINGS.get(of, 1.0) if inner_scaling is None else inner_scaling
    check_positive("floor", floor)
    check_finite_number("inner_scaling", factor)
    merged, wide, rounding = inner_merge(of, of_settings, vectors), wide_dtype(vectors), rounding_of(vectors)

    def compute(name: str) -> Tensor:
        delta = merged.deltas[name] * factor
        if delta.ndim != 2 or 0 in delta.shape or "embedding" in name:
            return delta
        basis = leading(delta, rounding=rounding).left  # (m, r)
        response = basis.T @ delta.double()
        weight = torch.zeros_like(response[:, 0])
        for own in stacked(vectors, name, wide):
            projected = basis.T @ own.double()
            squares = projected.square().sum(dim=1)
            share = (response * projected).sum(dim=1) / squares.clamp(min=torch.finfo(squares.dtype).tiny)
            weight += torch.where(squares > 0, share, 0.0).clamp(min=floor)
        return (basis @ (response * (len(vectors) / weight).unsqueeze(1))).to(wide)

    return map_parameters(compute, vectors)


def inner_merge(of: str, settings: Mapping[str, Any] | None, vectors: Sequence[TaskVector]) -> TaskVector:
    """What another method makes of the vectors, for a method that has `of` and `of_settings`.

    Raises:
        UnknownNameError, ValueError: If there is no such method, or it cannot take these settings or vectors.
    """
    method = get_method(of)
    if not isinstance(settings, Mapping | None):
        raise ValueError(f"of_settings must be a mapping of settings of {of}, got {type(settings).__name__}")
    return method.run(vectors, method.settled(vectors, settings or {}))


def _l1(vector: TaskVector) -> float:
    names = list(vector.deltas.shapes)

    def norm(name: str) -> float:
        return float(vector.deltas[name].abs().double().sum())

    return sum(parallel(norm, names, description="norm", device=vector.device))
