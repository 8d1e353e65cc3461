"""Vectors in fewer bytes: which packings there are, what they lose, and what is told of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import NonFiniteError, UnknownNameError, check_fraction, check_known
from hf_taskvec.weights.arithmetic import check_finite, is_finite
from hf_taskvec.weights.deltas import Deltas
from hf_taskvec.weights.packed import Packed, PackedDeltas, as_it_is, in_factors, in_few_entries, in_levels, in_signs

logger = logging.getLogger(__name__)
_RUINED = 0.95  # share of a matrix's entries that become 0 above which its levels say next to nothing
PACKINGS: dict[str, dict[str, Any]] = {
    **{f"int{bits}": {"per": "row", "clip": True} for bits in (8, 4, 3, 2)},
    "sign": {"per": "tensor"},
    "sparse": {"density": 0.05},
    "svd": {"rank": 0.05},
    "float16": {},
    "bfloat16": {},
}  # the settings of each, with their defaults


def compress(deltas: Deltas, method: str, settings: Mapping[str, Any]) -> tuple[PackedDeltas, dict[str, Any]]:
    """Packs deltas, and tells what that lost; see `TaskVector.compress`.

    Returns:
        The packed deltas, and method, settings, `error` (the norm of what is lost over the norm), `bytes` and `share`
        (of the bytes that float32 needs).

    Raises:
        UnknownNameError: If there is no such method or setting.
        ValueError: If a setting is out of range.
        NonFiniteError: If a delta holds NaN or Inf, or has entries beyond what the packing can hold.

    Example:
        >>> from hf_taskvec.weights.deltas import TensorDeltas
        >>> _, told = compress(TensorDeltas({"w": torch.eye(64)}), "int4", {})
        >>> told["error"], told["bytes"], round(told["share"], 3)
        (0.0, 2432, 0.148)
    """
    check_known("compression", method, PACKINGS)
    chosen = dict(PACKINGS[method])
    for key, value in settings.items():
        if key not in chosen:
            raise UnknownNameError(f"setting of {method}:", key, chosen)
        chosen[key] = value
    for key in chosen.keys() & {"density", "rank"}:
        check_fraction(key, chosen[key])
    if type(chosen.get("clip", True)) is not bool:
        raise ValueError(f"clip must be true or false, got {chosen['clip']!r}")
    pack = _packer(method, chosen)
    items, lost, squares = {}, [], []
    for name in deltas.shapes:
        delta = deltas[name].cpu()
        check_finite(name, delta)
        items[name] = item = as_it_is(delta) if delta.ndim < 2 or not delta.numel() else pack(delta)
        decoded = item.delta()
        if not is_finite(decoded):
            raise NonFiniteError(f"{name!r} has entries that {method} cannot hold; int8 or bfloat16 can")
        if item.codec == "levels":
            tell_if_ruined(name, delta, decoded)
        lost.append(float((decoded.double() - delta.double()).square().sum()))
        squares.append(float(delta.double().square().sum()))
    packed = PackedDeltas(items)
    entries = sum(shape.numel() for shape in deltas.shapes.values())
    error = math.sqrt(math.fsum(lost) / total) if (total := math.fsum(squares)) > 0 else 0.0
    share = packed.num_bytes / (4 * entries) if entries else 1.0
    return packed, {"method": method, **chosen, "error": error, "bytes": packed.num_bytes, "share": share}


def _packer(method: str, chosen: Mapping[str, Any]) -> Callable[[Tensor], Packed]:
    """What packs one matrix."""
    if method.startswith("int"):
        bits = int(method.removeprefix("int"))
        return lambda delta: in_levels(delta, bits, per=chosen["per"], clip=chosen["clip"])
    if method == "sign":
        return lambda delta: in_signs(delta, per=chosen["per"])
    if method == "sparse":
        return lambda delta: in_few_entries(delta, _smallest(delta, chosen["density"]))
    if method == "svd":
        return lambda delta: in_factors(delta, max(1, round(chosen["rank"] * min(delta.flatten(1).shape))))
    dtype = getattr(torch, method)
    return lambda delta: as_it_is(delta.to(dtype))


def _smallest(delta: Tensor, density: float) -> float:
    """The smallest magnitude that a density keeps."""
    flat = delta.reshape(-1).abs().float()
    return float(flat.kthvalue(len(flat) - max(1, round(density * len(flat))) + 1).values)


def tell_if_ruined(name: str, delta: Tensor, decoded: Tensor) -> None:
    """Warns if single large entries have pressed nearly all others to 0."""
    before = int(delta.count_nonzero())
    share = 1 - int(decoded.count_nonzero()) / before if before else 0.0
    if share > _RUINED:
        logger.warning(
            "%r: %.1f %% of its entries become 0, since a few are far larger than the rest; more bits mend it, or "
            'per="row" if they stand in few rows',
            name,
            100 * share,
        )
