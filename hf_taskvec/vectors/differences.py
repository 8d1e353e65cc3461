"""The difference of two sets of weights: what a vector covers, what must not differ besides, and what rounding adds."""

from __future__ import annotations

import dataclasses
import fnmatch
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError, UnknownNameError
from hf_taskvec.text import listed
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.rounding import check_rounding, hidden_dtype, same_but_for_rounding
from hf_taskvec.weights.arithmetic import PIECE, check_finite
from hf_taskvec.weights.deltas import Deltas, DifferenceDeltas, TensorDeltas
from hf_taskvec.weights.dtypes import DTYPE_CODES
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.names import PROJECTION, VISION_PREFIX, differences, is_clip, shapes_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Coverage:
    """What a difference covers, and what it bears.

    Attributes:
        include_projection: Whether it covers `visual_projection` besides the vision tower.
        vision_only: Whether changes outside what it covers are left out instead of refused.
        allow_rounding: Whether more than half of its norm may be rounding.
        include: Patterns of the parameters that it covers, in place of the vision tower of a CLIP or of all of another
            model.
        exclude: Patterns of those that it does not.
    """

    include_projection: bool = False
    vision_only: bool = False
    allow_rounding: bool = False
    include: str | Sequence[str] = ()
    exclude: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            given = getattr(self, name)
            patterns = (given,) if isinstance(given, str) else tuple(given)
            if odd := [pattern for pattern in patterns if not isinstance(pattern, str)]:
                raise TypeError(f"{name} takes patterns of names, got a {type(odd[0]).__name__}")
            object.__setattr__(self, name, patterns)
        if self.include and self.include_projection:
            raise ValueError("include= takes the place of include_projection; put 'visual_projection.*' into it")

    @property
    def patterns(self) -> dict[str, list[str]]:
        """The patterns that were given, for the provenance."""
        given = {"include": list(self.include), "exclude": list(self.exclude)}
        return {name: patterns for name, patterns in given.items() if patterns}

    def rule(self, base: Iterable[str], finetuned: Iterable[str]) -> Callable[[str], bool]:
        """Which names are covered, by the patterns or by what model the base is.

        Raises:
            UnknownNameError: If a pattern fits no name.
        """
        base = list(base)
        names = list(dict.fromkeys([*base, *finetuned]))
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise UnknownNameError("parameter", pattern, names)
        clip = is_clip(base)
        if self.vision_only and not clip and not self.include:
            raise ValueError("vision_only is for a CLIP; of another model, include= and exclude= name what is covered")

        def covers(name: str) -> bool:
            inside = not clip or name.startswith(VISION_PREFIX) or (self.include_projection and name == PROJECTION)
            if self.include:
                inside = _fits(name, self.include)
            return inside and not _fits(name, self.exclude)

        return covers


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def difference(
    base: Mapping[str, Tensor],
    finetuned: Mapping[str, Tensor],
    coverage: Coverage,
    info: VectorInfo,
    *,
    mapped: bool = False,
    looked_at: bool = True,
    hashes: Callable[[Iterable[str]], dict[str, str]] | None = None,
) -> tuple[Deltas, VectorInfo]:
    """The deltas from one set of weights to another, under canonical names, and their provenance.

    Args:
        base: The weights before fine-tuning.
        finetuned: Those after it.
        coverage: What is covered.
        info: Provenance to complete.
        mapped: Whether the weights stay as they are, in files, so that each delta can be taken when it is used.
        looked_at: Whether every entry is read now; who does not must look for NaN and Inf when the deltas are used.
        hashes: Tells the hashes of some of the base's weights, where they are known.

    Raises:
        IncompatibleVectorsError: If names or shapes differ, if weights outside what is covered changed, or if most of
            the difference is rounding.
        CheckpointError: If weights are quantised.
        NonFiniteError: If one holds NaN or Inf.
    """
    covers = coverage.rule(base, finetuned)
    ours = {name: weight for name, weight in base.items() if covers(name)}
    theirs = {name: weight for name, weight in finetuned.items() if covers(name)}
    if not ours and coverage.patterns:
        raise IncompatibleVectorsError("none of the base's parameters is covered; include= names some")
    _check_alike(ours, theirs, base, finetuned)
    check_floating(ours, "the base")
    check_floating(theirs, "the fine-tuned model")
    hidden = hidden_dtype(ours, theirs)
    left_out = changed_outside(base, finetuned, ours, coverage, hidden)
    lazy = DifferenceDeltas({name: theirs[name] for name in ours}, ours)
    deltas = lazy if mapped else TensorDeltas(dict(lazy))
    if looked_at and not _check_entries(deltas):
        logger.warning("The fine-tuned weights are those of the base: every entry of the vector is zero")
    allowed = coverage.allow_rounding
    rounding = check_rounding(ours, theirs, deltas, hidden=hidden, allowed=allowed, looked_at=looked_at)
    info = dataclasses.replace(
        info,
        base_hashes=tensor_hashes(ours) if hashes is None else hashes(ours),
        include_projection=PROJECTION in ours,
        settings={**info.settings, **coverage.patterns},
        left_out=(info.left_out or 0) + len(left_out) or None,
        rounding_error=rounding or info.rounding_error,
    )
    return deltas, info


def _check_alike(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], base: Iterable[str], finetuned: Iterable[str]
) -> None:
    """Raises an `IncompatibleVectorsError` if names or shapes of what is covered differ, with the way out."""
    lines = differences(shapes_of(ours), shapes_of(theirs), left_name="the base", right_name="the fine-tuned model")
    if not lines:
        return
    if any(".lora_A." in name for name in finetuned):
        raise IncompatibleVectorsError(
            "the fine-tuned model is a PeftModel, whose factors are apart from its weights: save it and use "
            "TaskVector.from_adapter, or pass its merge_and_unload()",
            details=lines,
        )
    if prefix := _prefix(ours, finetuned):
        raise IncompatibleVectorsError(
            f"names of the fine-tuned model begin with {prefix!r}, as of a CLIP inside another module: save the inner "
            "model (its save_pretrained), or take the prefix from the names",
            details=lines,
        )
    message = f"the models differ: {listed(lines, separator='; ', room=300)}"
    if not is_clip(base) and (remedy := _remedy(ours, theirs)):
        message += f". {remedy}"
    raise IncompatibleVectorsError(message, details=lines)


def _remedy(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """What to do about a head that only one model has, or about rows that were added to a vocabulary."""
    resized = [name for name in ours if name in theirs and ours[name].shape != theirs[name].shape]
    odd = [name for name in {**ours, **theirs} if name not in ours or name not in theirs or name in resized]
    modules = list(dict.fromkeys(f"{name.rpartition('.')[0]}.*" if "." in name else name for name in odd))
    heads = list(dict.fromkeys(f"{name.split('.', 1)[0]}.*" for name in modules))
    patterns = modules if len(modules) <= 3 else heads
    if all(_fits(name, patterns) for name in ours):  # they differ all over
        return ""
    if len(resized) == len(odd):
        return f"Give the base as many rows first (resize_token_embeddings), or leave it out: exclude={patterns[:4]}"
    return f"What only one of them has, as a head, is left out by exclude={patterns[:4]}"


def _check_entries(deltas: Deltas) -> bool:
    """Whether an entry is not zero.

    Raises:
        NonFiniteError: If one is NaN or Inf.
    """
    changed = False
    for name in deltas:
        flat = deltas.flat(name)
        for start in range(0, flat.numel(), PIECE):
            piece = flat[start : start + PIECE]
            check_finite(name, piece)
            changed = changed or bool(piece.any())
    return changed


def check_floating(weights: Mapping[str, Tensor], where: str) -> None:
    """Raises a `CheckpointError` if weights are quantised."""
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


def changed_outside(
    base: Mapping[str, Tensor],
    finetuned: Mapping[str, Tensor],
    covered: Mapping[str, Tensor],
    coverage: Coverage,
    hidden: torch.dtype | None = None,
    *,
    told: bool = True,
) -> list[str]:
    """The parameters that changed, by more than rounding, and are not covered, and those that a pattern leaves out.

    Each is taken once, in the base's order, so that sharded ones can be gathered when they are.

    Raises:
        IncompatibleVectorsError: If some changed and the coverage does not leave them out.
    """
    names = [name for name in base if name not in covered and name in finetuned]
    changed = [name for name in names if not same_but_for_rounding(base[name], finetuned[name], hidden)]
    if changed and not (coverage.vision_only or coverage.patterns):
        alone = changed == [PROJECTION]
        raise IncompatibleVectorsError(
            f"{listed(map(repr, changed), room=200)} changed too, but the vector does not cover it: "
            + ("pass include_projection=True, or " if alone else "pass ")
            + "vision_only=True to leave it out, or include= with what the vector is to cover",
            details=changed,
        )
    if coverage.patterns:
        changed += [name for name in finetuned if name not in base and _fits(name, coverage.exclude)]
    if changed and told:
        shown = listed(map(repr, changed), room=120)
        logger.warning("Left out of the vector: %d parameters that changed too, %s", len(changed), shown)
    return changed
