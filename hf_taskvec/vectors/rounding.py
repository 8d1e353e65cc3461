"""Rounding of fine-tuned weights to a narrower dtype: known by dtype or values, told, and refused if large."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError
from hf_taskvec.text import listed
from hf_taskvec.weights.arithmetic import PIECE, dot, equal, rounding_noise
from hf_taskvec.weights.deltas import Deltas

MAX_ROUNDING = 0.5  # share of a vector's norm above which it is more noise than change
LITTLE = 0.01  # share below which nobody needs to be warned
_EVIDENCE = 1000  # of so many entries of the base none may be round by chance
logger = logging.getLogger(__name__)


def hidden_dtype(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> torch.dtype | None:
    """The half precision that wide fine-tuned weights were stored in once: all have its values, the base has not.

    Example:
        >>> base = torch.linspace(0, 1, 5000)
        >>> hidden_dtype({"w": base}, {"w": (base + 1).bfloat16().float()}), hidden_dtype({"w": base}, {"w": base + 1})
        (torch.bfloat16, None)
    """
    if any(weight.dtype not in (torch.float32, torch.float64) for weight in (*before.values(), *after.values())):
        return None
    for dtype in (torch.bfloat16, torch.float16):
        if not any(_odd_entries(after.values(), dtype)):
            total = 0
            for count in _odd_entries((before[name] for name in after), dtype):
                total += count
                if total >= _EVIDENCE:
                    return dtype
    return None


def _odd_entries(weights: Iterable[Tensor], dtype: torch.dtype) -> Iterator[int]:
    """How many entries of each piece `dtype` would round; the first of a tensor is small, since it mostly tells."""
    for weight in weights:
        flat = weight.detach().reshape(-1)
        for piece in (flat[:1024], *flat[1024:].split(PIECE)):
            yield int((piece.to(dtype).to(piece.dtype) != piece).sum())


def same_but_for_rounding(before: Tensor, after: Tensor, hidden: torch.dtype | None = None) -> bool:
    """Whether nothing but the dtype's rounding tells two weights apart; `hidden` is a dtype that `after` once had.

    Example:
        >>> weight = torch.tensor([0.1])
        >>> same_but_for_rounding(weight, weight.half()), same_but_for_rounding(weight, weight.half().float())
        (True, False)
    """
    if equal(before, after):
        return True
    if before.shape != after.shape or not after.is_floating_point():
        return False
    if hidden is not None:
        return equal(before.to(hidden), after)
    if before.dtype == after.dtype:
        return False
    before, after = before.cpu(), after.cpu()
    return torch.equal(before.to(after.dtype), after) or torch.equal(after.to(before.dtype), before)


def check_rounding(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    deltas: Deltas,
    *,
    hidden: torch.dtype | None = None,
    allowed: bool = False,
    looked_at: bool = True,
) -> float:
    """The share of the difference's norm that the fine-tuned weights' rounding explains; told, and refused if large.

    A base that is as narrow can be where training started, so that nothing is refused then.

    Args:
        ours: The base's weights.
        theirs: The fine-tuned ones.
        deltas: Their difference.
        hidden: The dtype that the fine-tuned weights were stored in once (`hidden_dtype`).
        allowed: Whether more than half of the norm may be rounding.
        looked_at: Whether weights of one dtype are read for it too.

    Raises:
        IncompatibleVectorsError: If more is, and it is not allowed.

    Example:
        >>> from hf_taskvec.weights.deltas import TensorDeltas
        >>> base, tuned = torch.linspace(1, 2, 99), torch.linspace(3, 4, 99).half()
        >>> check_rounding({"w": base}, {"w": tuned}, TensorDeltas({"w": tuned - base})) < 0.01
        True
    """
    rounded = list(ours) if hidden else [name for name in ours if is_narrower(theirs[name], ours[name])]
    widened = [name for name in ours if is_narrower(ours[name], theirs[name])]
    alike = [name for name in ours if not hidden and looked_at and _are_half(ours[name], theirs[name])]
    some = rounded or widened or alike
    square = math.fsum(dot(deltas[name], deltas[name]) for name in deltas) if some else 0.0
    if square == 0:
        return 0.0
    _tell_unmoved(ours, theirs, alike)
    both = _share((_noise_of_moved(ours[name], theirs[name]) for name in alike), square)
    if widened:
        noise = (rounding_noise(ours[name], theirs[name], deltas[name]) for name in widened)
        logger.warning(
            "The base is in %s, narrower than the fine-tuned weights. If they started from a wider copy of it, %.0f %% "
            "of the vector's norm is rounding",
            ours[widened[0]].dtype,
            100 * _share(noise, square),
        )
    if not rounded:
        return both
    dtype = hidden or theirs[rounded[0]].dtype
    share = _share((rounding_noise(_in(theirs[name], hidden), ours[name], deltas[name]) for name in rounded), square)
    whence = f"have the values of {dtype}, which they were stored in once" if hidden else f"are in {dtype}"
    text = f"{share:.0%} of the vector's norm is rounding: the fine-tuned weights {whence}, narrower than the base"
    if share > MAX_ROUNDING and not allowed:
        raise IncompatibleVectorsError(
            f"{text}. Take the fine-tuned weights in the dtype they were trained in, or pass allow_rounding=True"
        )
    logger.log(logging.WARNING if share >= LITTLE else logging.INFO, "%s", text)
    return min(1.0, math.hypot(share, both))


def _tell_unmoved(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], names: Sequence[str]) -> None:
    """Tells of tensors whose changes mostly were smaller than the base's rounding, so that entries are as they were."""
    lost = [name for name in names if _is_mostly_unmoved(ours[name], theirs[name])]
    if not lost:
        return
    share = sum(ours[name].numel() for name in lost) / sum(ours[name].numel() for name in names)
    logger.log(
        logging.WARNING if share >= LITTLE else logging.INFO,
        "in %d of %d tensors (%.0f %% of the entries; %s) most changes are below the rounding of %s: more than half of "
        "the entries are as they were. Take base and fine-tuned weights in float32 if there are any",
        len(lost),
        len(names),
        100 * share,
        listed(lost, room=100),
        ours[lost[0]].dtype,
    )


def _is_mostly_unmoved(before: Tensor, after: Tensor) -> bool:
    """Whether more than half of the entries of those rows that changed, as of the tokens that were seen, did not."""
    changed = before != after.to(before.device)
    moved = changed.flatten(1) if changed.ndim > 1 else changed.reshape(1, -1)
    moved = moved[moved.any(dim=1)]
    return 2 * int(moved.sum()) < moved.numel()


def _share(noise: Iterable[float], square: float) -> float:
    return math.sqrt(min(1.0, math.fsum(noise) / square))


def _in(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    return weight if dtype is None else weight.to(dtype)


def is_narrower(one: Tensor, other: Tensor) -> bool:
    """Whether a weight's dtype has a coarser spacing than another's."""
    return torch.finfo(one.dtype).eps > torch.finfo(other.dtype).eps


def _noise_of_moved(before: Tensor, after: Tensor) -> float:
    """As `rounding_noise` of two weights of one half precision, whose bits tell the spacing, faster."""
    info = torch.finfo(after.dtype)
    shift = round(-math.log2(info.eps))  # bits behind the exponent's
    counts = torch.zeros(1 << (15 - shift), dtype=torch.int64)
    flat = (tensor.detach().cpu().reshape(-1).split(PIECE) for tensor in (before, after))
    for old, new in zip(*flat, strict=True):
        exponents = (new[old != new].view(torch.int16) & 0x7FFF) >> shift
        counts += torch.bincount(exponents, minlength=len(counts))
    powers = torch.arange(len(counts)).clamp_(min=1).double() - 1
    spacing = info.smallest_normal * info.eps * torch.exp2(powers)
    return float((counts * spacing.square()).sum()) / 12


def _are_half(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.finfo(one.dtype).eps > torch.finfo(torch.float32).eps
