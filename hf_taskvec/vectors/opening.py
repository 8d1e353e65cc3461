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
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.vectors.files import CONFIG_NAME
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
    place, revision = split_revision(source)
    marker = None if os.path.isfile(place) or os.fspath(place) in EMBEDDED_BASES else _marker(place, revision)
    if marker is None:
        checkpoint = open_checkpoint(place, revision=revision)
        return Weights(os.fspath(source), checkpoint.tensors, commit=checkpoint.commit)
    if marker == ADAPTER_NAME:
        vector = TaskVector.from_adapter(place, revision=revision)
    else:
        vector = TaskVector.from_pretrained(place, revision=revision)
    return Weights(os.fspath(source), vector.deltas, vector)


def _marker(place: AnyPath, revision: str | None) -> str | None:
    """The file that says what a folder holds, a vector or an adapter; `None` if it has neither."""
    try:
        folder = fetch_folder(place, Wanted((CONFIG_NAME, ADAPTER_NAME)), revision=revision).path
    except CheckpointError:  # whatever is wrong with it, the opening of a checkpoint tells
        return None
    return next((name for name in (CONFIG_NAME, ADAPTER_NAME) if (folder / name).is_file()), None)
