"""The files of a task vector: `task_vector.safetensors` (or shards with an index) and `task_vector_config.json`."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from hf_taskvec.errors import CheckpointError, NonFiniteError
from hf_taskvec.hub.access import HubAccess
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import check_finite
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hash, tensor_hashes
from hf_taskvec.weights.folders import atomic_folder, check_inside, check_output_folder, read_json, write_json
from hf_taskvec.weights.names import layer_of
from hf_taskvec.weights.safetensors import DTYPE_CODES, MAX_SHARD_SIZE, open_safetensors, shard_files, write_sharded

STEM = "task_vector"
CONFIG_NAME = "task_vector_config.json"
FILES = Wanted(
    (f"{STEM}*.safetensors", f"{STEM}.safetensors.index.json", CONFIG_NAME, "README.md"),
    required=(CONFIG_NAME, f"{STEM}*.safetensors"),
    missing=f"holds no task vector: it lacks {CONFIG_NAME} or {STEM}.safetensors. A whole fine-tuned model becomes one "
    "by TaskVector.from_checkpoints(base, finetuned)",
    checked_later=f"{STEM}*.safetensors",
)
SCHEMA_VERSION = 1
_WEIGHTS = re.compile(rf"{STEM}(-\d+-of-\d+)?\.safetensors")


def save_vector(
    vector: TaskVector,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    digests: dict[str, str] | None = None,
    layer_norms: bool = False,
) -> float:
    """Writes a vector's folder, whole or not at all, and returns the rounding error; see `save_pretrained`.

    Deltas are taken once, one after the other, so a lazily computed vector is never in memory as a whole.

    Args:
        digests: Gets the SHA-256 of each weight file by its name, taken while it is written.
        layer_norms: Whether to put the norm of each layer into the configuration.
    """
    dtype = dtype or vector.dtype
    if dtype not in DTYPE_CODES:
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPE_CODES))}, got {dtype}")
    check_output_folder(folder, marker=CONFIG_NAME)
    errors, squares = [], []
    hashes: dict[str, str] = {}
    norms: dict[str, float] = defaultdict(float)

    def rounded() -> Iterator[tuple[str, Tensor]]:
        for name in vector.deltas:
            delta = vector.deltas[name]
            check_finite(name, delta)
            stored = delta.to(dtype)
            if stored.dtype != delta.dtype:
                if not torch.isfinite(stored).all():
                    raise NonFiniteError(f"{name!r} overflows {dtype}; save it in float32 or bfloat16")
                errors.append(float((stored.double() - delta.double()).square().sum()))
                squares.append(float(delta.double().square().sum()))
            hashes[name] = tensor_hash(stored)
            if layer_norms:
                norms[layer_of(name)] += float(torch.linalg.vector_norm(stored, dtype=torch.float32)) ** 2
            yield name, stored

    with atomic_folder(folder, marker=CONFIG_NAME, own=is_own) as target:
        shapes = vector.deltas.shapes
        write_sharded(
            target, STEM, rounded(), shapes=shapes, dtype=dtype, max_shard_size=max_shard_size, digests=digests
        )
        rounding = math.sqrt(math.fsum(errors) / math.fsum(squares)) if any(squares) else 0.0
        info = dataclasses.replace(vector.info, rounding_error=rounding) if rounding else vector.info
        if layer_norms:
            info = dataclasses.replace(info, layer_norms={layer: norm**0.5 for layer, norm in norms.items()})
        write_json(target / CONFIG_NAME, {**config_of(info), "fingerprint": fingerprint(hashes)})
    return rounding


def is_own(name: str) -> bool:
    """Whether a file is one of a vector's, which the next vector in its folder replaces."""
    return name in (CONFIG_NAME, f"{STEM}.safetensors.index.json") or _WEIGHTS.fullmatch(name) is not None


def config_of(info: VectorInfo) -> dict[str, object]:
    """The content of `task_vector_config.json`."""
    return {"schema_version": SCHEMA_VERSION, "library": "hf-taskvec", **info.to_dict()}


def load_vector(folder: Path, *, verify: bool = False) -> TaskVector:
    """Opens the vector in a folder, memory-mapped.

    Args:
        folder: The folder.
        verify: Whether to read the weights once and compare them with the fingerprint in the configuration.

    Raises:
        CheckpointError: If files are missing, damaged, hostile or of a newer schema.
    """
    info, announced = read_config(folder)
    files = [folder / file for file in shard_files(folder, STEM)]
    for file in files:
        check_inside(file, folder)
    deltas = open_safetensors(files)
    if not deltas:
        raise CheckpointError(f"{folder} holds a task vector without parameters")
    for name, delta in deltas.items():
        if delta.dtype not in DTYPE_CODES:
            raise CheckpointError(f"{name!r} has dtype {delta.dtype}; a delta must be floating")
    if info.base_hashes and set(info.base_hashes) != set(deltas):
        odd = sorted(set(info.base_hashes) ^ set(deltas))
        raise CheckpointError(f"weights and configuration disagree on {len(odd)} names, first {odd[0][:200]!r}")
    vector = TaskVector(deltas, info)
    if verify and announced is not None and vector_fingerprint(vector) != announced:
        raise CheckpointError(f"the weights in {folder} are not those that its configuration was written for")
    return vector


def read_info(folder: Path) -> VectorInfo:
    """The provenance in a folder."""
    return read_config(folder)[0]


def read_config(folder: Path) -> tuple[VectorInfo, str | None]:
    """The provenance in a folder, and the fingerprint of the weights if it is announced."""
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}, so it holds no task vector")
    check_inside(folder / CONFIG_NAME, folder)
    config = read_json(folder / CONFIG_NAME)
    version, library = config.pop("schema_version", None), config.pop("library", None)
    announced = config.pop("fingerprint", None)
    if library != "hf-taskvec" or type(version) is not int:
        raise CheckpointError(f"{CONFIG_NAME} is no configuration of hf_taskvec")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{CONFIG_NAME} has schema version {version}, this hf_taskvec reads up to {SCHEMA_VERSION}: "
            "pip install --upgrade hf-taskvec"
        )
    if not isinstance(announced, str | None):
        raise CheckpointError(f"{CONFIG_NAME}: 'fingerprint' must be a string")
    return VectorInfo.from_dict(config), announced


def vector_fingerprint(vector: TaskVector) -> str:
    """One hash over the vector's names, shapes, dtypes and values."""
    return fingerprint(tensor_hashes(vector.deltas))


def fetch_vector(
    source: str | os.PathLike[str], *, revision: str | None = None, subfolder: str = "", access: HubAccess
) -> TaskVector:
    """Opens a vector by Hub id or folder; see `TaskVector.from_pretrained`."""
    folder = fetch_folder(source, FILES, revision=revision, subfolder=subfolder, access=access)
    try:
        announced = read_config(folder.path)[1] is not None
        vector = load_vector(folder.path, verify=bool(folder.unchecked))
    except CheckpointError:
        for weights in folder.unchecked:
            weights.check()  # damaged on the way rather than at its source: fetch it again
        raise
    for weights in folder.unchecked:
        if announced:
            weights.note_checked()
        else:
            weights.check()
    if folder.commit is None:
        return vector
    pulled = dataclasses.replace(vector.info, repo_id=folder.name, repo_commit=folder.commit)
    return TaskVector(vector.deltas, pulled)
