"""Before merging: vectors that are too long for the others are shrunk (DisTaC, arXiv 2508.01148)."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import check_positive
from hf_taskvec.merging.engine import check_finite_deltas, wide_dtype
from hf_taskvec.merging.modifiers import inner_merge
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import check_compatible
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import Deltas, LazyDeltas
from hf_taskvec.weights.lowrank import LowRankDeltas

logger = logging.getLogger(__name__)


def condition(vectors: Sequence[TaskVector], *, ratio: float = 1.0) -> list[TaskVector]:
    """Shrinks each vector that is longer than the others to their mean norm; short ones stay as they are.

    One long vector outweighs all others in a sum, and stretching the short ones instead harms them (DisTaC, arXiv
    2508.01148, of which this is the rule alone: the paper then distils the long model into the shrunk one on unlabelled
    images). The factor of a vector is the mean norm of the others over its own, if that is below 1.

    Args:
        vectors: Vectors of one base.
        ratio: How many times the mean norm of the others a vector must be longer than to be shrunk.

    Returns:
        The vectors in their order, computed on access in float32 or wider if one was shrunk, whose provenance tells the
        factor.

    Raises:
        ValueError: If `ratio` is not positive.
        IncompatibleVectorsError: If the vectors differ in names, shapes or base.
        NonFiniteError: If one holds NaN or Inf.

    Example:
        >>> from torch import tensor
        >>> vectors = [TaskVector({"w": tensor([value])}) for value in (1.0, 2.0, 3.0)]
        >>> [vector["w"].item() for vector in condition(vectors)]
        [1.0, 2.0, 1.5]
    """
    check_positive("ratio", ratio)
    check_compatible(vectors)
    for name in vectors[0].deltas.shapes:
        check_finite_deltas([vector.deltas[name] for vector in vectors], name, vectors)
    norms = [vector.norm() for vector in vectors]
    factors = [factor_of(norms, index, ratio=ratio) for index in range(len(vectors))]
    pairs = list(zip(vectors, factors, strict=True))
    if shrunk := [f"{vector.info.label!r} to {factor:.2f}" for vector, factor in pairs if factor != 1]:
        logger.info("shrunk, for they are longer than the others: %s", listed(shrunk))
    wide = wide_dtype(vectors)
    return [_shrunk(vector, factor, wide) for vector, factor in pairs] if shrunk else list(vectors)


@merge_method("distac", paper="2508.01148")
def distac(
    vectors: Sequence[TaskVector],
    *,
    of: str = "task_arithmetic",
    of_settings: Mapping[str, Any] | None = None,
    ratio: float = 1.0,
) -> TaskVector:
    """Shrinks the vectors that are longer than the others to their mean norm, and merges by another method.

    The paper then distils each long model into the shrunk one, on images; this is its rule alone. See `condition`.

    Args:
        vectors: Vectors of one base.
        of: The method that merges.
        of_settings: Its settings.
        ratio: As in `condition`.

    Raises:
        ValueError: If `ratio` is not positive.

    Example:
        >>> from torch import tensor
        >>> vectors = [TaskVector({"w": tensor([value])}) for value in (1.0, 2.0, 3.0)]
        >>> distac(vectors)["w"]
        tensor([4.5000])
    """
    return inner_merge(of, of_settings, condition(vectors, ratio=ratio))


def factor_of(norms: Sequence[float], index: int, *, ratio: float = 1.0) -> float:
    """What a vector among others of such norms is shrunk by; 1 if it is not.

    Example:
        >>> [factor_of([1.0, 2.0, 3.0], index) for index in range(3)], factor_of([1.0, 3.0], 1, ratio=4.0)
        ([1.0, 1.0, 0.5], 1.0)
    """
    others = [norm for place, norm in enumerate(norms) if place != index]
    mean = math.fsum(others) / len(others) if others else 0.0
    return mean / norms[index] if 0 < mean * ratio < norms[index] and mean < norms[index] else 1.0


def _shrunk(vector: TaskVector, factor: float, wide: torch.dtype) -> TaskVector:
    if factor == 1:
        return TaskVector(_scaled(vector.deltas, 1.0, wide), vector.info)
    settings = {**vector.info.settings, "condition": factor}
    info = dataclasses.replace(vector.info, scaling=vector.info.scaling * factor, settings=settings)
    return TaskVector(_scaled(vector.deltas, factor, wide), info)


def _scaled(deltas: Deltas, factor: float, wide: torch.dtype) -> Deltas:
    """The deltas times a factor; factors of low rank stay factors."""
    if isinstance(deltas, LowRankDeltas):
        factors = {
            name: dataclasses.replace(item, scaling=item.scaling * factor) for name, item in deltas.factors.items()
        }
        return LowRankDeltas(factors, deltas.shapes)

    def delta(name: str) -> Tensor:
        return deltas[name].to(wide) * factor

    return LazyDeltas(deltas.shapes, delta, wide, deltas.device)
