"""Arithmetic on single tensors that task vectors are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import SupportsFloat

import torch
from torch import Tensor

from hf_taskvec.errors import NonFiniteError

PIECE = 1 << 20  # entries of a tensor that are widened at a time


def is_finite(tensor: Tensor) -> bool:
    """Whether the tensor holds neither NaN nor Inf."""
    # The sum is finite for nearly every finite tensor and costs half of isfinite(); only if it is not, look closer.
    return bool(torch.isfinite(tensor.sum()) or torch.isfinite(tensor).all())


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises a `NonFiniteError` if the tensor holds NaN or Inf."""
    if not is_finite(tensor):
        raise NonFiniteError(f"{name!r} holds NaN or Inf; the run it comes from diverged, or the file is damaged")


def scaled_sum(weight: Tensor, delta: Tensor, scaling: float) -> Tensor:
    """`weight + scaling * delta`, computed in float32 or wider and returned in the weight's dtype."""
    wide = torch.promote_types(torch.promote_types(weight.dtype, delta.dtype), torch.float32)
    if weight.dtype != wide and weight.numel() > PIECE and weight.shape == delta.shape:  # nothing large is widened
        pairs = zip(weight.reshape(-1).split(PIECE), delta.reshape(-1).split(PIECE), strict=True)
        result = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        for piece, (before, change) in zip(result.view(-1).split(PIECE), pairs, strict=True):
            piece.copy_(scaled_sum(before, change, scaling))
        return result
    return torch.add(weight.to(wide), delta.to(weight.device, wide), alpha=scaling).to(weight.dtype)


def check_scaling(scaling: SupportsFloat) -> float:
    """A factor as a Python number.

    Raises:
        NonFiniteError: If it is NaN, infinite or beyond the range of one.
        TypeError: If it is no number.
    """
    if not is_number(scaling):
        raise TypeError(f"scaling must be a number, got {type(scaling).__name__}")
    try:
        value = float(scaling)
    except OverflowError:  # of an integer
        value = math.inf
    if not math.isfinite(value):
        raise NonFiniteError(f"scaling must be finite, got {value}")
    return value


def is_number(value: object) -> bool:
    """Whether a value is one real number: of Python, numpy or torch."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    return isinstance(value, Real)


def finite(tensor: Tensor, name: str, doing: str) -> Tensor:
    """The tensor.

    Raises:
        NonFiniteError: If it holds NaN or Inf.
    """
    if not is_finite(tensor):
        raise NonFiniteError(f"{name!r} holds NaN or Inf {doing}: the values are beyond the range of {tensor.dtype}")
    return tensor


def added(name: str, weight: Tensor, delta: Tensor, scaling: float) -> Tensor:
    """`scaled_sum` of a parameter that must stay finite.

    Raises:
        NonFiniteError: If the result holds NaN or Inf.
    """
    beyond = abs(scaling) > torch.finfo(torch.float32).max and torch.float64 not in (weight.dtype, delta.dtype)
    result = scaled_sum(weight, delta, math.inf if beyond else scaling)
    if not is_finite(result):
        raise NonFiniteError(
            f"{name!r} holds NaN or Inf in {result.dtype} once the vector is added at scaling {scaling:g}; "
            "take a smaller scaling, or a base in float32"
        )
    return result


def rounding_noise(weight: Tensor, before: Tensor, delta: Tensor) -> float:
    """The squared norm that rounding to the dtype of `weight` adds to its difference from `before`.

    Rounding `before` itself tells it, as long as training moves values by less than their spacing or leaves them as
    generic as they were. Where `before` has round values already, an entry that moved is off by up to half the spacing
    of the numbers around it: by the spacing over the root of 12 on average.
    """
    info, total = torch.finfo(weight.dtype), [0.0, 0.0]
    flat = (tensor.reshape(-1).split(PIECE) for tensor in (weight, before.to(weight.device), delta))
    for after, wide, moved in zip(*flat, strict=True):
        total[0] += float((wide.to(after.dtype).double() - wide.double()).square().sum())
        exponents = torch.frexp(after.float()).exponent
        spacing = torch.ldexp(torch.tensor(info.eps / 2, dtype=torch.float64), exponents.double())
        spacing.clamp_(min=info.smallest_normal * info.eps)
        total[1] += float(spacing[(moved != 0) & (after != 0)].square().sum())
    return max(total[0], total[1] / 12)


def subtract(after: Tensor, before: Tensor) -> Tensor:
    """`after - before` in float32, or float64 if either is: rounded once."""
    wide = torch.promote_types(torch.promote_types(after.dtype, before.dtype), torch.float32)
    return torch.sub(after.to(wide), before.to(after.device, wide))


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have one dtype and equal values."""
    return left.dtype == right.dtype and torch.equal(left, right.to(left.device))


def equal(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have equal values, in whatever dtype and wherever they lie."""
    if left.shape != right.shape:
        return False
    pairs = zip(left.reshape(-1).split(PIECE), right.reshape(-1).split(PIECE), strict=True)
    return all(torch.equal(a.cpu().double(), b.cpu().double()) for a, b in pairs)


def dot(left: Tensor, right: Tensor) -> float:
    """The inner product in float64, in chunks that fit the cache."""
    chunk = 1 << 18
    pairs = zip(left.reshape(-1).split(chunk), right.reshape(-1).split(chunk), strict=True)
    return math.fsum(float(torch.dot(a.double(), b.to(a.device).double())) for a, b in pairs)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: its idle threads spin, and take their cores from whoever works beside it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
