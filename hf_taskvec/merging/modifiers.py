"""Methods that take another method's result and rescale it: by layer (LiNeS) or by singular direction (SVC)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import check_positive
from hf_taskvec.merging.engine import map_parameters, parallel, stacked, wide_dtype
from hf_taskvec.merging.linalg import leading
from hf_taskvec.merging.registry import get_method, merge_method
from hf_taskvec.vectors.vector import TaskVector

_LAYER = re.compile(r"\.layers\.(\d+)\.")


@merge_method("lines", paper="2410.17146")
def lines(
    vectors: Sequence[TaskVector],
    *,
    of: str = "task_arithmetic",
    of_settings: Mapping[str, Any] | None = None,
    shallow: float | None = None,
    growth: float = 0.5,
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
    """
    merged = _inner(of, of_settings, vectors)
    if shallow is None:
        total = get_method("task_arithmetic").merge(vectors)
        norm = _l1(merged)
        shallow = (1.0 if of == "task_arithmetic" else _l1(total) / norm if norm > 0 else 1.0) / len(vectors)
    return scale_layers(merged, shallow=shallow, growth=growth)


def scale_layers(vector: TaskVector, *, shallow: float, growth: float) -> TaskVector:
    """Any vector with the delta of layer l of L scaled by `shallow + growth * l / (L - 1)`; see `lines`.

    What belongs to no layer is scaled by `shallow`.
    """
    layers = {name: int(match[1]) for name in vector.deltas if (match := _LAYER.search(name))}
    last = max(layers.values(), default=0)
    factors = {name: shallow + growth * (layer / last if last else 1.0) for name, layer in layers.items()}
    scaled = map_parameters(lambda name: vector.deltas[name] * factors.get(name, shallow), [vector])
    return TaskVector(scaled.deltas, vector.info)


@merge_method("svc", paper="2602.05536", resumable=True)
def svc(
    vectors: Sequence[TaskVector],
    *,
    of: str = "task_arithmetic",
    of_settings: Mapping[str, Any] | None = None,
    floor: float | None = None,
) -> TaskVector:
    """Shrinks, in each matrix of another method's result, the singular directions that several vectors add up.

    Direction r is scaled by T over the sum of max(floor, s), where s is the result's response in that output direction
    projected on a vector's. A vector without response there counts as `floor`. Parameters that are no matrices stay.

    Args:
        vectors: Vectors of one base.
        of: The method whose result is calibrated.
        of_settings: Its settings.
        floor: The paper's alpha, positive; 1/T if left out, as in the paper. At 1 directions only shrink.

    Raises:
        ValueError: If `floor` is not positive.
    """
    floor = 1 / len(vectors) if floor is None else floor
    check_positive("floor", floor)
    merged, wide = _inner(of, of_settings, vectors), wide_dtype(vectors)

    def compute(name: str) -> Tensor:
        delta = merged.deltas[name]
        if delta.ndim != 2 or 0 in delta.shape:
            return delta
        basis = leading(delta).left  # (m, r)
        response = basis.T @ delta.double()
        weight = torch.zeros_like(response[:, 0])
        for own in stacked(vectors, name, wide):
            part = basis.T @ own.double()
            squares = part.square().sum(dim=1)
            share = (response * part).sum(dim=1) / squares.clamp(min=torch.finfo(squares.dtype).tiny)
            weight += torch.where(squares > 0, share, 0.0).clamp(min=floor)
        return (basis @ (response * (len(vectors) / weight).unsqueeze(1))).to(wide)

    return map_parameters(compute, vectors)


def _inner(of: str, settings: Mapping[str, Any] | None, vectors: Sequence[TaskVector]) -> TaskVector:
    method = get_method(of)
    method.check(vectors, settings or {})
    return method.merge(vectors, **(settings or {}))


def _l1(vector: TaskVector) -> float:
    names = list(vector.deltas.shapes)

    def norm(name: str) -> float:
        return float(vector.deltas[name].abs().double().sum())

    return sum(parallel(norm, names, description="norm", device=vector.device))
