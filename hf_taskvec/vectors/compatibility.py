"""Whether vectors belong together, and whether there is anything in them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Protocol, get_args

from hf_taskvec.errors import BaseMismatchError, IncompatibleVectorsError
from hf_taskvec.text import listed
from hf_taskvec.vectors.info import Kind, VectorInfo
from hf_taskvec.weights.deltas import Deltas
from hf_taskvec.weights.names import differences


class Parts(Protocol):
    """What a vector is made of."""

    @property
    def deltas(self) -> Deltas:
        """The deltas by parameter."""

    @property
    def info(self) -> VectorInfo:
        """Provenance."""


def check_compatible(vectors: Sequence[Parts]) -> None:
    """Raises unless all vectors have the same names, shapes and base; every difference is listed."""
    check_same_shapes(vectors)
    check_one_base([vector.info for vector in vectors])


def check_same_shapes(vectors: Sequence[Parts]) -> None:
    """Raises an `IncompatibleVectorsError` unless all vectors have the same names and shapes."""
    first, lines = vectors[0], []
    for index, vector in enumerate(vectors[1:], start=1):
        label = f"vector {index} ({vector.info.label!r})"
        lines += differences(first.deltas.shapes, vector.deltas.shapes, left_name="vector 0", right_name=label)
    if lines:
        check_named_alike(vectors)
        remedy = (
            "" if any("shape" in line for line in lines) else '. merge(..., missing="zero") takes what is missing as 0'
        )
        message = f"the vectors differ: {listed(lines, separator='; ')}{remedy}"
        raise IncompatibleVectorsError(message, details=lines)


def check_named_alike(vectors: Sequence[Parts]) -> None:
    """Raises if one vector names the parameters of its base as another does, but behind the attribute that holds them.

    A whole model's file has `vit.layernorm.bias` where its body alone, which a trainer changes, has `layernorm.bias`.

    Raises:
        IncompatibleVectorsError: If the fingerprints of the base tell that they are the same parameters.

    Example:
        >>> from hf_taskvec import TaskVector
        >>> check_named_alike([TaskVector({}, VectorInfo(base_hashes={name: "1"})) for name in ("w", "x")])
    """
    for inner, outer in permutations(vectors, 2):
        ours, theirs = inner.info.base_hashes, outer.info.base_hashes
        for body in sorted({name.partition(".")[0] for name in theirs} if ours else ()):
            if all(theirs.get(f"{body}.{name}") == value for name, value in ours.items()):
                raise IncompatibleVectorsError(
                    f"{outer.info.label!r} names the parameters of the base as {inner.info.label!r} does, but behind "
                    f"'{body}.', as in the file of a whole model. Make it by TaskVector.from_models(load_base(base), "
                    "load_base(finetuned)), which names them as a trainer does"
                )


def check_one_base(infos: Sequence[VectorInfo]) -> None:
    """Raises a `BaseMismatchError` if the fingerprints in several provenances are of different bases.

    Example:
        >>> check_one_base([VectorInfo(base_hashes={"w": "1"}), VectorInfo()])
    """
    first = infos[0]
    for index, info in enumerate(infos[1:], start=1):
        ours, theirs = first.base_hashes, info.base_hashes
        other = [name for name in ours if name in theirs and ours[name] != theirs[name]]
        if other:
            raise BaseMismatchError(
                f"vector {index} ({info.label!r}) was made from {info.base or 'another base'}, "
                f"vector 0 ({first.label!r}) from {first.base or 'another base'}: "
                f"{len(other)} base parameters differ, first {', '.join(map(repr, other[:3]))}. "
                "hf_taskvec.editing.transport(vector, to=base) brings a vector to another base",
                details=other,
            )


def is_zero(deltas: Deltas) -> bool:
    """Whether every entry is zero; reads no further than the first that is not."""
    return not any(bool(deltas[name].any()) for name in deltas.shapes)


def check_not_zero(
    vectors: Sequence[Parts], *, allow_zero: bool = False, kinds: Sequence[Kind] = get_args(Kind)
) -> None:
    """Raises if a vector changes nothing: its training made no step, or its first and only one at learning rate 0.

    Args:
        vectors: The vectors.
        allow_zero: Whether that is wanted.
        kinds: The kinds of vectors that must change something.

    Raises:
        IncompatibleVectorsError: If one is zero; all such are named.

    Example:
        >>> import torch
        >>> from hf_taskvec import TaskVector
        >>> check_not_zero([TaskVector({"w": torch.ones(2)})])
    """
    if allow_zero:
        return
    checked = [(index, vector) for index, vector in enumerate(vectors) if vector.info.kind in kinds]
    if zero := [f"vector {index} ({v.info.label!r})" for index, v in checked if is_zero(v.deltas)]:
        raise IncompatibleVectorsError(
            f"{listed(zero)} changes nothing: all its entries are zero, as after a run without a step or with a "
            "learning rate of 0. Train it again, or pass allow_zero=True.",
            details=zero,
        )
