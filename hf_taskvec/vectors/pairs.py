"""Two models of one kind, in memory or in files, brought to the same names, and their difference."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError
from hf_taskvec.models.layouts import CONFIG
from hf_taskvec.text import listed
from hf_taskvec.vectors.application import body_of
from hf_taskvec.vectors.checkpoints import Checkpoint
from hf_taskvec.vectors.differences import Coverage, difference
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.arithmetic import equal
from hf_taskvec.weights.deltas import Deltas
from hf_taskvec.weights.names import aligned_names, is_clip, parameters_of

logger = logging.getLogger(__name__)


def between_models(
    before: nn.Module, after: nn.Module, coverage: Coverage, info: VectorInfo
) -> tuple[Deltas, VectorInfo]:
    """The deltas from one model in memory to another, and their provenance.

    Raises:
        CheckpointError: If a model is sharded over processes.
        IncompatibleVectorsError, NonFiniteError: As `difference`.
    """
    ours, theirs = parameters_of(before), parameters_of(after)
    for name, weight in {**ours, **theirs}.items():
        if type(weight.data).__name__ == "DTensor" or type(weight).__name__ == "DTensor":
            raise CheckpointError(
                f"{name!r} is sharded over processes (FSDP2, tensor parallelism): let all of them call "
                "hf_taskvec.vectors.gathering.gather_vector(base, model, folder), which gathers one parameter at a time"
            )
    names = aligned_names(theirs, ours, [body_of(after), body_of(before)])
    kind = getattr(getattr(before, "config", None), "model_type", None)
    info = dataclasses.replace(info, architecture=None if kind is None or is_clip(ours) else str(kind))
    return difference(ours, {names[name]: weight for name, weight in theirs.items()}, coverage, info)


def between_checkpoints(
    before: Checkpoint, after: Checkpoint, coverage: Coverage, info: VectorInfo, *, looked_at: bool = True
) -> tuple[Deltas, VectorInfo]:
    """The deltas from one checkpoint to another, each taken from the files when it is used, and their provenance.

    Args:
        before: The base.
        after: The fine-tuned checkpoint.
        coverage: What is covered.
        info: Provenance to complete.
        looked_at: Whether every entry is read, so that NaN, Inf and a difference that is all zero are told now.

    Raises:
        CheckpointError: If they are of two kinds of model, or quantised.
        IncompatibleVectorsError, NonFiniteError: As `difference`.
    """
    info = dataclasses.replace(
        info,
        base=before.name,
        base_revision=before.commit,
        finetuned=after.name,
        finetuned_revision=after.commit,
        architecture=None if is_clip(before.tensors) else before.architecture,
        left_out=_changed_statistics(before, after) or None,
    )
    names = after.names_onto(before.tensors, before)
    theirs = {names[name]: weight for name, weight in after.tensors.items()}
    with _of_one_kind(before, after):
        return difference(
            before.tensors, theirs, coverage, info, mapped=True, looked_at=looked_at, hashes=before.hashes
        )


@contextmanager
def _of_one_kind(before: Checkpoint, after: Checkpoint) -> Iterator[None]:
    """Around what compares two checkpoints: if they do not fit and are two kinds of model, the error says so.

    Raises:
        CheckpointError: If they do not fit and their configurations name two kinds.
    """
    try:
        yield
    except IncompatibleVectorsError as error:
        kinds = [(own.architecture or "").split("_vision_model")[0].split("_text_model")[0] for own in (before, after)]
        if all(kinds) and kinds[0] != kinds[1]:
            raise CheckpointError(
                f"{before.name} is a {kinds[0]} and {after.name} a {kinds[1]} (model_type in {CONFIG}): a vector is "
                "the difference of two models of one kind, one of which was made from the other",
                details=error.details,
            ) from error
        raise


def _changed_statistics(before: Checkpoint, after: Checkpoint) -> int:
    """How many running statistics the fine-tuning changed too, which no vector holds; they are told."""
    names = [
        name
        for name, own in before.buffers.items()
        if "running_" in name and name in after.buffers and not equal(own, after.buffers[name])
    ]
    if names:
        logger.warning(
            "Left out of the vector: %d running statistics of batch norm, %s. A model that gets the vector needs them "
            "measured anew: some batches through it in training mode",
            len(names),
            listed(map(repr, names), room=120),
        )
    return len(names)
