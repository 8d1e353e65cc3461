"""Checkpoints by Hub id or folder: fetched, opened memory-mapped, and written as a stream; no model is built."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from hf_taskvec.errors import CheckpointError
from hf_taskvec.hub.access import HubAccess
from hf_taskvec.hub.fetch import CHECKPOINT, PICKLED, SIDE_FILES, WEIGHTS, Wanted, fetch_folder
from hf_taskvec.weights.arithmetic import scaled_sum
from hf_taskvec.weights.folders import atomic_folder, check_inside, write_json
from hf_taskvec.weights.names import canonical, canonical_name
from hf_taskvec.weights.safetensors import open_safetensors, shard_files, write_sharded

if TYPE_CHECKING:
    from hf_taskvec.vectors.vector import TaskVector

APPLIED_NAME = "task_vector_applied.json"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Memory-mapped weights under canonical names."""

    name: str
    commit: str | None
    tensors: dict[str, Tensor]


def open_checkpoint(
    source: str | os.PathLike[str], *, revision: str | None = None, access: HubAccess | None = None
) -> Checkpoint:
    """Opens the safetensors weights of a checkpoint, memory-mapped.

    Raises:
        CheckpointError: If there are none, or only pickled ones: to load a pickle is to run whatever code it names.
    """
    folder = fetch_folder(source, Wanted(WEIGHTS, missing=PICKLED), revision=revision, access=access)
    return Checkpoint(folder.name, folder.commit, canonical(_open_weights(folder.path, folder.name).items()))


def _open_weights(folder: Path, name: str) -> dict[str, Tensor]:
    if not any(folder.glob("model*.safetensors*")):
        raise CheckpointError(f"{name} {PICKLED}")
    files = [folder / file for file in shard_files(folder, "model")]
    for file in files:
        check_inside(file, folder)
    return open_safetensors(files)


def write_checkpoint(
    vector: TaskVector,
    base: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    scaling: float = 1.0,
    revision: str | None = None,
    allow_other_base: bool = False,
    access: HubAccess | None = None,
) -> None:
    """Writes base plus `scaling` times the vector as a checkpoint folder, parameter by parameter.

    The folder keeps the base's layout, dtypes and side files (configuration, tokenizer, image processor), so it loads
    with the class that loads the base. `task_vector_applied.json` in it records the vector, the scaling and the base.

    Args:
        vector: The vector to add.
        base: Hub id or folder of the base.
        output_dir: A new folder, or a checkpoint folder, which is replaced.
        scaling: The factor of the vector.
        revision: Branch, tag or commit of the base.
        allow_other_base: Whether to add the vector to weights other than those it was made from.
        access: How the Hub is reached for the base.

    Raises:
        BaseMismatchError, IncompatibleVectorsError, NonFiniteError: As `TaskVector.apply_to`.
        OutputExistsError: If the folder holds something else.
    """
    folder = fetch_folder(base, CHECKPOINT, revision=revision, access=access)
    weights = _open_weights(folder.path, folder.name)
    other = vector.check_fits(canonical(weights.items()), allow_other_base=allow_other_base, where=repr(folder.name))
    vector.check_finite()
    dtypes = {weight.dtype for weight in weights.values() if weight.is_floating_point()}
    if len(dtypes) != 1:
        raise CheckpointError(f"{folder.name} mixes dtypes {sorted(map(str, dtypes))}; save it in one dtype first")
    kept = {name: weight for name, weight in weights.items() if weight.is_floating_point()}  # position_ids go

    def edited() -> Iterator[tuple[str, Tensor]]:
        for name, weight in kept.items():
            delta = vector.deltas.get(canonical_name(name))
            yield name, weight if delta is None else scaled_sum(weight, delta, scaling)

    with atomic_folder(output_dir, marker="config.json") as target:
        shapes = {name: weight.shape for name, weight in kept.items()}
        write_sharded(target, "model", edited(), shapes=shapes, dtype=dtypes.pop())
        for pattern in SIDE_FILES:
            for path in folder.path.glob(pattern):
                if not path.name.endswith(".index.json"):
                    shutil.copyfile(path, target / path.name)
        applied = {"base": folder.name, "base_revision": folder.commit, "scaling": scaling}
        info = {key: value for key, value in vector.info.to_dict().items() if key != "base_hashes"}
        write_json(target / APPLIED_NAME, {**applied, "other_base": bool(other), "vector": info})
