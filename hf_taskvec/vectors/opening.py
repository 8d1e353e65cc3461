"""What stands at a Hub id or in a folder: a task vector, an adapter or a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from hf_taskvec.errors import CheckpointError
from hf_taskvec.hub.access import AnyPath, split_revision
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.models.embedded import EMBEDDED_BASES
from hf_taskvec.vectors.adapter_config import CONFIG as ADAPTER_NAME
from hf_taskvec.vectors.checkpoints import Checkpoint, open_checkpoint
from hf_taskvec.vectors.differences import Coverage
from hf_taskvec.vectors.files import CONFIG_NAME, vector_fingerprint
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.pairs import between_checkpoints
from hf_taskvec.vectors.vector import TaskVector


@dataclass(frozen=True)
class Weights:
    """Named tensors, and the vector that they are if they are one.

    Attributes:
        name: Where they are from, to quote.
        tensors: The tensors under canonical names, memory-mapped where they come from a file.
        vector: The vector whose deltas they are; `None` for the weights of a checkpoint.
        commit: The Hub commit of a checkpoint.
    """

    name: str
    tensors: Mapping[str, Tensor]
    vector: TaskVector | None = None
    commit: str | None = None

    @property
    def kind(self) -> str:
        """What they are, in words."""
        return "checkpoint" if self.vector is None else "task vector"


def open_weights(source: AnyPath) -> Weights:
    """Opens a task vector, a LoRA adapter (as a vector) or a checkpoint by Hub id, `@revision` if wanted, or folder.

    Raises:
        CheckpointError: If there is nothing of the kind, or it is damaged.
        NotCachedError, HubError: If the Hub is out of reach or fails.

    Example:
        >>> open_weights("hf-taskvec/tiny-clip").kind
        'checkpoint'
    """
    marker, place, revision = _marked(source)
    if marker is None:
        checkpoint = open_checkpoint(place, revision=revision)
        return Weights(os.fspath(source), checkpoint.tensors, commit=checkpoint.commit)
    vector = _vector(marker, place, revision)
    return Weights(os.fspath(source), vector.deltas, vector)


def vector_from(source: AnyPath, before: Checkpoint, coverage: Coverage) -> tuple[TaskVector, object]:
    """The vector, adapter or difference of a checkpoint from its base at a Hub id or in a folder.

    Differences are taken from the files when they are used, and not looked at before that.

    Returns:
        The vector, and what tells its weights from others.

    Raises:
        CheckpointError: If there is nothing of the kind.
        IncompatibleVectorsError: If a checkpoint does not fit its base.

    Example:
        >>> base = open_checkpoint("hf-taskvec/tiny-clip")
        >>> vector_from("hf-taskvec/tiny-clip", base, Coverage())[0].is_zero
        True
    """
    marker, place, revision = _marked(source)
    if marker is None:
        after = open_checkpoint(place, revision=revision)
        info = VectorInfo(task=os.path.basename(os.fspath(place)) or None)
        return TaskVector(*between_checkpoints(before, after, coverage, info, looked_at=False)), after.stamp()
    if coverage.patterns:
        raise ValueError(f"include= and exclude= are for checkpoints; {place} holds a vector or an adapter")
    vector = _vector(marker, place, revision)
    return vector, vector_fingerprint(vector.deltas)


def _vector(marker: str, place: AnyPath, revision: str | None) -> TaskVector:
    open_it = TaskVector.from_adapter if marker == ADAPTER_NAME else TaskVector.from_pretrained
    return open_it(place, revision=revision)


def _marked(source: AnyPath) -> tuple[str | None, AnyPath, str | None]:
    """The file that says what a source is, its place and its revision."""
    place, revision = split_revision(source)
    is_checkpoint = os.path.isfile(place) or os.fspath(place) in EMBEDDED_BASES
    return None if is_checkpoint else _marker(place, revision), place, revision


def _marker(place: AnyPath, revision: str | None) -> str | None:
    """The file that says what a folder holds, a vector or an adapter; `None` if it has neither."""
    try:
        folder = fetch_folder(place, Wanted((CONFIG_NAME, ADAPTER_NAME)), revision=revision).path
    except CheckpointError:  # whatever is wrong with it, the opening of a checkpoint tells
        return None
    return next((name for name in (CONFIG_NAME, ADAPTER_NAME) if (folder / name).is_file()), None)
