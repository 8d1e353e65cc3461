"""The files of a task vector: `task_vector.safetensors` (or shards with an index) and `task_vector_config.json`."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import CheckpointError, NonFiniteError
from hf_taskvec.hub.access import HubAccess
from hf_taskvec.hub.client import LIBRARY
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.arithmetic import check_finite, is_finite
from hf_taskvec.weights.deltas import Deltas, TensorDeltas
from hf_taskvec.weights.dtypes import DTYPE_CODES, as_dtype
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hash, tensor_hashes
from hf_taskvec.weights.folders import atomic_folder, check_inside, check_output_folder, read_json, write_json
from hf_taskvec.weights.names import layer_of
from hf_taskvec.weights.packed import PackedDeltas
from hf_taskvec.weights.safetensors import (
    CODES,
    MAX_SHARD_SIZE,
    Dtypes,
    dtype_of,
    open_safetensors,
    shard_files,
    write_sharded,
)

STEM = "task_vector"
CONFIG_NAME = "task_vector_config.json"
FILES = Wanted(
    (f"{STEM}*.safetensors", f"{STEM}.safetensors.index.json", CONFIG_NAME, "README.md"),
    required=(CONFIG_NAME, f"{STEM}*.safetensors"),
    missing=f"holds no task vector: it lacks {CONFIG_NAME} or {STEM}.safetensors. A whole fine-tuned model becomes one "
    "by TaskVector.from_checkpoints(base, finetuned); of vectors that were packed, "
    "MultiTaskVector.from_pretrained(...).for_task(task) gives one",
    checked_later=f"{STEM}*.safetensors",
)
SCHEMA_VERSION = 1
PACKED = "packed"  # the entry of the configuration that tells how packed deltas are read
_WEIGHTS = re.compile(rf"{STEM}(-\d+-of-\d+)?\.safetensors")
_PATIENCE = 10.0  # seconds in which a folder that is being replaced is read again


# -- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        info: Provenance as it stands in the configuration, with what the writing added.
        digests: SHA-256 of each weight file by its name, if it was asked for.
    """

    info: VectorInfo
    digests: Mapping[str, str]


@dataclass
class Rounded:
    """A pass over deltas that rounds them and takes what the configuration tells of them."""

    deltas: Deltas
    dtype: Dtypes
    layer_norms: bool
    hashes: dict[str, str] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    errors: list[float] = field(default_factory=list)
    squares: list[float] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name in self.deltas:
            delta = self.deltas[name]
            check_finite(name, delta)
            stored = delta.to(dtype_of(self.dtype, name))
            if stored.dtype != delta.dtype:
                if not is_finite(stored):
                    raise NonFiniteError(f"{name!r} overflows {stored.dtype}; save it in float32 or bfloat16")
                self.errors.append(float((stored.double() - delta.double()).square().sum()))
                self.squares.append(float(delta.double().square().sum()))
            self.hashes[name] = tensor_hash(stored)
            if self.layer_norms:
                self.add_norm(name, stored)
            yield name, stored

    def add_norm(self, name: str, delta: Tensor) -> None:
        """Adds a delta to the norm of its layer."""
        self.norms[layer_of(name)] += float(torch.linalg.vector_norm(delta, dtype=torch.float32)) ** 2

    def added_to(self, info: VectorInfo) -> VectorInfo:
        """The provenance with the rounding error, on top of one that it tells of, and the layers' norms."""
        if any(self.squares) and any(self.errors):
            own = math.sqrt(math.fsum(self.errors) / math.fsum(self.squares))
            info = dataclasses.replace(info, rounding_error=math.hypot(info.rounding_error or 0.0, own))
        if self.norms:
            info = dataclasses.replace(info, layer_norms={layer: norm**0.5 for layer, norm in self.norms.items()})
        return info


def write_vector(
    folder: str | os.PathLike[str],
    deltas: Deltas,
    info: VectorInfo,
    *,
    dtype: torch.dtype | str | None = None,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    layer_norms: bool = False,
    hashed: bool = False,
) -> Written:
    """Writes a vector's folder, whole or not at all.

    Deltas are taken once, one after the other, so lazily computed ones are never in memory as a whole.

    Args:
        folder: A new folder, or one that holds a vector, whose files are replaced; other files in it stay.
        deltas: The deltas.
        info: Provenance.
        dtype: Floating dtype of the file; by default the widest of the deltas, or what packed deltas have, which stay
            packed then.
        max_shard_size: Size above which the weights are split into shards.
        layer_norms: Whether to put the norm of each layer into the configuration.
        hashed: Whether to take the SHA-256 of each weight file, on another core while it is written.

    Raises:
        NonFiniteError: If a delta holds NaN or Inf, or overflows `dtype`.
        OutputExistsError: If the folder holds something else.
        ValueError: If the provenance could not be read again.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp()) / "vector"
        >>> _ = write_vector(folder, TensorDeltas({"w": torch.ones(2)}), VectorInfo(task="digits"))
        >>> deltas, info = read_vector(folder, verify=True)
        >>> deltas["w"], info.task
        (tensor([1., 1.]), 'digits')
    """
    packed = deltas if dtype is None and isinstance(deltas, PackedDeltas) else None
    stored = deltas if packed is None else packed.stored
    dtypes: Dtypes = as_dtype(dtype or deltas.dtype) if packed is None else {n: t.dtype for n, t in stored.items()}
    check_output_folder(folder, marker=CONFIG_NAME)
    info.check_readable()
    rounded = Rounded(stored, dtypes, layer_norms and packed is None)
    with atomic_folder(folder, marker=CONFIG_NAME, own=is_own) as target:
        digests = write_sharded(
            target, STEM, rounded, shapes=stored.shapes, dtype=dtypes, max_shard_size=max_shard_size, hashed=hashed
        )
        if packed is not None and layer_norms:
            for name, delta in packed.items():
                rounded.add_norm(name, delta)
        info = rounded.added_to(info)
        write_config(target, info, rounded.hashes, {} if packed is None else {PACKED: packed.header})
    return Written(info, digests)


def write_config(folder: Path, info: VectorInfo, hashes: Mapping[str, str], further: Mapping[str, Any]) -> None:
    """Writes the configuration of a vector whose stored tensors have these hashes."""
    config = {"schema_version": SCHEMA_VERSION, "library": LIBRARY, **info.to_dict(), **further}
    write_json(folder / CONFIG_NAME, {**config, "fingerprint": fingerprint(hashes)})


def is_own(name: str) -> bool:
    """Whether a file is one of a vector's, which the next vector in its folder replaces."""
    return name in (CONFIG_NAME, f"{STEM}.safetensors.index.json") or _WEIGHTS.fullmatch(name) is not None


# -- reading ----------------------------------------------------------------------------------------------------------


def read_vector(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str = "",
    access: HubAccess | None = None,
    verify: bool = False,
) -> tuple[Deltas, VectorInfo]:
    """Opens the deltas of a vector by Hub id or folder, memory-mapped, and reads its provenance.

    Args:
        source: Hub id or folder.
        revision: Branch, tag or commit.
        subfolder: Folder inside the repository.
        access: How the Hub is reached.
        verify: Whether to read the weights once and compare them with the fingerprint in the configuration; what comes
            from the Hub is always compared, once.

    Raises:
        CheckpointError: If files are missing, damaged, hostile, of a newer schema, or cannot be verified.
        NotCachedError: If the Hub is out of reach and the cache has no copy.
    """
    folder = fetch_folder(source, FILES, revision=revision, subfolder=subfolder, access=access)
    with folder.being_read():
        deltas, info, announced = _read_one_version(folder.path)
        if verify and announced is None:
            raise CheckpointError(f"{folder.name} cannot be verified: its {CONFIG_NAME} tells no fingerprint")
        known = announced is not None and (verify or folder.unchecked)
        if known and vector_fingerprint(deltas) != announced:
            raise CheckpointError(f"the weights in {folder.path} are not those that its configuration was written for")
    for weights in folder.unchecked:
        if announced is None:
            weights.check()
        else:
            weights.note_checked()
    if folder.commit is not None:
        info = dataclasses.replace(info, repo_id=folder.name, repo_commit=folder.commit)
    return deltas, info


def _read_one_version(folder: Path) -> tuple[Deltas, VectorInfo, str | None]:
    """Weights and configuration of one vector, though another may be taking its place meanwhile."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        before = _stamp(folder)
        try:
            info, announced, header = read_config(folder)
            deltas = _open_deltas(folder, info, header)
        except (CheckpointError, FileNotFoundError):
            if _stamp(folder) == before:
                raise
        else:
            if _stamp(folder) == before:
                return deltas, info, announced
        time.sleep(0.002)
    raise CheckpointError(f"{folder} is being written to all the time; read it when its writer is done")


def _stamp(folder: Path) -> tuple[int, int, int] | None:
    """What tells one version of a folder's configuration from the next."""
    try:
        status = os.stat(folder / CONFIG_NAME)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _open_deltas(folder: Path, info: VectorInfo, header: Mapping[str, Any] | None) -> Deltas:
    files = [folder / file for file in shard_files(folder, STEM)]
    for file in files:
        check_inside(file, folder)
    tensors = open_safetensors(files)
    if not tensors:
        raise CheckpointError(f"{folder} holds a task vector without parameters")
    for name, delta in tensors.items():
        if delta.dtype not in (DTYPE_CODES if header is None else CODES):
            raise CheckpointError(f"{name!r} has dtype {delta.dtype}; a delta must be floating")
    deltas = TensorDeltas(tensors) if header is None else PackedDeltas.from_stored(tensors, header)
    if not set(info.base_hashes) <= set(deltas):  # parameters that are zero may have no hash; see `covering`
        odd = sorted(set(info.base_hashes) ^ set(deltas))
        raise CheckpointError(f"weights and configuration disagree on {len(odd)} names, first {odd[0][:200]!r}")
    return deltas


def read_info(folder: Path) -> VectorInfo:
    """The provenance in a folder."""
    return read_config(folder)[0]


def read_config(folder: Path) -> tuple[VectorInfo, str | None, Mapping[str, Any] | None]:
    """The provenance in a folder, the fingerprint of the weights if it is announced, and how packed ones are read."""
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{folder} has no {CONFIG_NAME}, so it holds no task vector")
    check_inside(folder / CONFIG_NAME, folder)
    config = read_json(folder / CONFIG_NAME)
    version, library = config.pop("schema_version", None), config.pop("library", None)
    announced, header = config.pop("fingerprint", None), config.pop(PACKED, None)
    if library != LIBRARY or type(version) is not int:
        raise CheckpointError(f"{CONFIG_NAME} is no configuration of hf_taskvec")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{CONFIG_NAME} has schema version {version}, this hf_taskvec reads up to {SCHEMA_VERSION}: "
            "pip install --upgrade hf-taskvec"
        )
    if not isinstance(announced, str | None):
        raise CheckpointError(f"{CONFIG_NAME}: 'fingerprint' must be a string")
    if not isinstance(header, dict | None):
        raise CheckpointError(f"{CONFIG_NAME}: {PACKED!r} must be a mapping")
    return VectorInfo.from_dict(config), announced, header


def vector_fingerprint(deltas: Mapping[str, Tensor]) -> str:
    """One hash over the deltas' names, shapes, dtypes and values; of packed ones, over what is stored."""
    return fingerprint(tensor_hashes(deltas.stored if isinstance(deltas, PackedDeltas) else deltas))
