"""The difference of two sets of weights: what a vector covers, what must not differ besides, and what rounding adds."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import is_zero
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.arithmetic import check_finite, equal, rounding_noise, subtract
from hf_taskvec.weights.deltas import Deltas, TensorDeltas
from hf_taskvec.weights.dtypes import DTYPE_CODES
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.names import PROJECTION, covered_names, differences, shapes_of

MAX_ROUNDING = 0.5  # share of a vector's norm above which it is more noise than change
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """What a difference covers, and what it bears.

    Attributes:
        include_projection: Whether it covers `visual_projection` besides the vision tower.
        vision_only: Whether changes outside what it covers are left out instead of refused.
        allow_rounding: Whether more than half of its norm may be rounding.
    """

    include_projection: bool = False
    vision_only: bool = False
    allow_rounding: bool = False


def difference(
    base: Mapping[str, Tensor], finetuned: Mapping[str, Tensor], coverage: Coverage, info: VectorInfo
) -> tuple[Deltas, VectorInfo]:
    """The deltas from one set of weights to another, under canonical names, and their provenance.

    Raises:
        IncompatibleVectorsError: If names or shapes differ, if weights outside what is covered changed, or if most of
            the difference is rounding.
        CheckpointError: If weights are quantised.
        NonFiniteError: If one holds NaN or Inf.
    """
    covered = covered_names(base, include_projection=coverage.include_projection)
    ours = {name: base[name] for name in covered}
    reached = covered_names(finetuned, include_projection=coverage.include_projection)
    theirs = {name: finetuned[name] for name in reached}
    lines = differences(shapes_of(ours), shapes_of(theirs), left_name="the base", right_name="the fine-tuned model")
    if lines and (prefix := _prefix(ours, finetuned)):
        raise IncompatibleVectorsError(
            f"names of the fine-tuned model begin with {prefix!r}, as of a CLIP inside another module: save the inner "
            "model (its save_pretrained), or take the prefix from the names",
            details=lines,
        )
    if lines:
        raise IncompatibleVectorsError(f"the models differ: {listed(lines, separator='; ')}", details=lines)
    _check_floating(ours, "the base")
    _check_floating(theirs, "the fine-tuned model")
    left_out = _changed_outside(base, finetuned, ours, coverage)
    deltas = TensorDeltas({name: subtract(theirs[name], ours[name]) for name in covered})
    for name in deltas:
        check_finite(name, deltas[name])
    if is_zero(deltas):
        logger.warning("The fine-tuned weights are those of the base: every entry of the vector is zero")
    rounding = _check_rounding(ours, theirs, deltas, coverage)
    info = dataclasses.replace(
        info,
        base_hashes=tensor_hashes(ours),
        include_projection=PROJECTION in ours,
        left_out=len(left_out) or None,
        rounding_error=rounding or info.rounding_error,
    )
    return deltas, info


def _check_floating(weights: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name!r} of {where} is a {type(tensor).__name__}, not a torch.Tensor (torch.as_tensor)")
    odd = [f"{name!r} is {tensor.dtype}" for name, tensor in weights.items() if tensor.dtype not in DTYPE_CODES]
    if odd:
        raise CheckpointError(
            f"weights of {where} are quantised: {listed(odd, room=150)}. Their values need scales that are not in the "
            "tensors; load the model with the library that quantised it and save it in float32 or bfloat16",
            details=odd,
        )


def _prefix(ours: Iterable[str], theirs: Iterable[str]) -> str:
    """What stands before every one of our names in theirs; nothing if they differ by more."""
    ours, theirs = list(ours), set(theirs)
    prefixes = [name.removesuffix(ours[0]) for name in theirs if ours and name.endswith("." + ours[0])]
    return next((prefix for prefix in prefixes if {prefix + name for name in ours} <= theirs), "")[:100]


def _changed_outside(
    base: Mapping[str, Tensor], finetuned: Mapping[str, Tensor], covered: Iterable[str], coverage: Coverage
) -> list[str]:
    """The parameters that changed, by more than rounding, and are not covered."""
    outside = set(base) - set(covered)
    names = [name for name in base if name in outside and name in finetuned]
    changed = [name for name in names if not _same_but_for_rounding(base[name], finetuned[name])]
    if changed and not coverage.vision_only:
        alone = changed == [PROJECTION]
        raise IncompatibleVectorsError(
            f"{listed(map(repr, changed), room=200)} changed too, but the vector does not cover it: "
            + ("pass include_projection=True, or " if alone else "pass ")
            + "vision_only=True to leave it out",
            details=changed,
        )
    if changed:
        shown = listed(map(repr, changed), room=120)
        logger.warning("Left out of the vector: %d parameters that changed too, %s", len(changed), shown)
    return changed


def _same_but_for_rounding(before: Tensor, after: Tensor) -> bool:
    if equal(before, after):
        return True
    if before.dtype == after.dtype or before.shape != after.shape or not after.is_floating_point():
        return False
    before, after = before.cpu(), after.cpu()
    return torch.equal(before.to(after.dtype), after) or torch.equal(after.to(before.dtype), before)


def _check_rounding(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], deltas: Deltas, coverage: Coverage
) -> float:
    """The share of the difference's norm that the fine-tuned weights' rounding explains; told, and refused if large."""
    rounded = [name for name in ours if _is_narrower(theirs[name], ours[name])]
    widened = [name for name in ours if _is_narrower(ours[name], theirs[name])]
    square = math.fsum(float(deltas[name].double().square().sum()) for name in deltas) if rounded or widened else 0.0
    if square == 0:
        return 0.0
    if widened:
        share = _share(ours, theirs, widened, deltas, square)
        logger.warning(
            "The base is in %s, narrower than the fine-tuned weights. If they started from a wider copy of it, %.0f %% "
            "of the vector's norm is rounding",
            ours[widened[0]].dtype,
            100 * share,
        )
    if not rounded:
        return 0.0
    share, dtype = _share(theirs, ours, rounded, deltas, square), theirs[rounded[0]].dtype
    text = (
        f"{share:.0%} of the vector's norm is rounding: the fine-tuned weights are in {dtype}, narrower than the base"
    )
    if share > MAX_ROUNDING and not coverage.allow_rounding:
        raise IncompatibleVectorsError(
            f"{text}. Take the fine-tuned weights in the dtype they were trained in, or pass allow_rounding=True"
        )
    logger.warning("%s", text)
    return share


def _share(
    rounded: Mapping[str, Tensor], other: Mapping[str, Tensor], names: Iterable[str], deltas: Deltas, square: float
) -> float:
    noise = math.fsum(rounding_noise(rounded[name], other[name], deltas[name]) for name in names)
    return math.sqrt(min(1.0, noise / square))


def _is_narrower(one: Tensor, other: Tensor) -> bool:
    return torch.finfo(one.dtype).eps > torch.finfo(other.dtype).eps
