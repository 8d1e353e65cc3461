"""The files of a `MultiTaskVector`: `multi_task_vector.safetensors` and `multi_task_vector_config.json`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError, UnknownNameError, is_finite_number
from hf_taskvec.hub.access import HubAccess
from hf_taskvec.hub.client import LIBRARY
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.vectors.entries import check_sane, plain
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.arithmetic import check_finite
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes
from hf_taskvec.weights.folders import atomic_folder, check_inside, check_output_folder, read_json, write_json
from hf_taskvec.weights.names import shapes_of
from hf_taskvec.weights.packed import PackedDeltas
from hf_taskvec.weights.safetensors import CODES, open_safetensors, write_safetensors

CONFIG_NAME = "multi_task_vector_config.json"
WEIGHTS_NAME = "multi_task_vector.safetensors"
SCHEMA_VERSION = 1
FILES = Wanted(
    (WEIGHTS_NAME, CONFIG_NAME, "README.md"),
    required=(CONFIG_NAME, WEIGHTS_NAME),
    missing=f"holds no vectors of several tasks: it lacks {CONFIG_NAME} or {WEIGHTS_NAME}; pack(vectors, method) makes "
    "them",
    checked_later=WEIGHTS_NAME,
)
_SHARED = "shared"
Artefact = TypeVar("Artefact")


@dataclass(frozen=True)
class Stored:
    """What the files hold.

    Attributes:
        combine: How a task's vector is made.
        shared: What the tasks share.
        parts: For each task its name, its packed tensors, and `factor` with what is told of it.
        info: Provenance.
    """

    combine: str
    shared: PackedDeltas
    parts: tuple[tuple[str, PackedDeltas, dict[str, Any]], ...]
    info: VectorInfo

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under `shared/` or the number of its task."""
        groups = {_SHARED: self.shared, **{str(number): deltas for number, (_, deltas, _) in enumerate(self.parts)}}
        return {f"{key}/{path}": tensor for key, deltas in groups.items() for path, tensor in deltas.stored.items()}


def write_artefact(folder: str | os.PathLike[str], stored: Stored) -> dict[str, str]:
    """Writes the files, whole or not at all.

    Returns:
        The SHA-256 of the weight file by its name.

    Raises:
        NonFiniteError: If a tensor holds NaN or Inf.
        OutputExistsError: If the folder holds something else.
        ValueError: If the provenance could not be read again.
    """
    check_output_folder(folder, marker=CONFIG_NAME)
    stored.info.check_readable()
    tensors = stored.tensors
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            check_finite(name, tensor)
    tasks = [
        {"name": task, **plain(told, f"what is told of {task!r}"), "packed": deltas.header}
        for task, deltas, told in stored.parts
    ]
    config = {
        "schema_version": SCHEMA_VERSION,
        "library": LIBRARY,
        "combine": stored.combine,
        "info": stored.info.to_dict(),
        "shared": stored.shared.header,
        "tasks": tasks,
        "fingerprint": fingerprint(tensor_hashes(tensors)),
    }
    with atomic_folder(folder, marker=CONFIG_NAME, own=is_own) as target:
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        shapes = shapes_of(tensors)
        digest = write_safetensors(target / WEIGHTS_NAME, tensors.items(), shapes=shapes, dtype=dtypes, hashed=True)
        write_json(target / CONFIG_NAME, config)
    return {WEIGHTS_NAME: str(digest)}


def is_own(name: str) -> bool:
    """Whether a file is one of an artefact's, which the next one in its folder replaces."""
    return name in (CONFIG_NAME, WEIGHTS_NAME)


def read_artefact(
    source: str | os.PathLike[str],
    build: Callable[[Stored], Artefact],
    *,
    revision: str | None = None,
    access: HubAccess | None = None,
    verify: bool = False,
) -> Artefact:
    """Opens the files by Hub id or folder, memory-mapped, and makes of them what `build` makes.

    Raises:
        CheckpointError: If files are missing, damaged, hostile or of a newer schema, or do not fit together.
    """
    folder = fetch_folder(source, FILES, revision=revision, access=access)
    with folder.being_read():
        stored, announced = _read(folder.path)
        if (verify or folder.unchecked) and fingerprint(tensor_hashes(stored.tensors)) != announced:
            raise CheckpointError(f"the tensors in {folder.path} are not those that its configuration was written for")
        if folder.commit is not None:
            info = dataclasses.replace(stored.info, repo_id=folder.name, repo_commit=folder.commit)
            stored = dataclasses.replace(stored, info=info)
        try:
            artefact = build(stored)
        except (IncompatibleVectorsError, UnknownNameError) as error:
            raise CheckpointError(f"{folder.path}: {error}", details=error.details) from None
    for weights in folder.unchecked:
        weights.note_checked()
    return artefact


def is_artefact(source: str | os.PathLike[str], *, revision: str | None = None) -> bool:
    """Whether a folder or repository holds vectors of several tasks.

    Example:
        >>> from tempfile import mkdtemp
        >>> is_artefact(mkdtemp())
        False
    """
    try:
        folder = fetch_folder(source, Wanted((CONFIG_NAME,)), revision=revision).path
    except CheckpointError:  # whatever is wrong with it, the opening of a vector tells
        return False
    return (folder / CONFIG_NAME).is_file()


def artefact_info(folder: Path) -> VectorInfo:
    """The provenance in a folder; its weights are not opened.

    Raises:
        CheckpointError: If there is none, or it is damaged or of a newer schema.
    """
    return VectorInfo.from_dict(_config(folder)["info"])


def _read(folder: Path) -> tuple[Stored, str]:
    """What a folder holds, and the fingerprint that it announces."""
    check_inside(folder / WEIGHTS_NAME, folder)
    config = _config(folder)
    groups = _groups(open_safetensors([folder / WEIGHTS_NAME]), len(config["tasks"]))
    shared = PackedDeltas.from_stored(groups.pop(_SHARED), config["shared"])
    parts = tuple(_part(entry, groups[str(number)]) for number, entry in enumerate(config["tasks"]))
    if len({task for task, _, _ in parts}) < len(parts):
        raise CheckpointError(f"{CONFIG_NAME} names a task twice")
    return Stored(config["combine"], shared, parts, VectorInfo.from_dict(config["info"])), config["fingerprint"]


def _config(folder: Path) -> dict[str, Any]:
    """The configuration in a folder, whose entries are of their kinds."""
    check_inside(folder / CONFIG_NAME, folder)
    config = read_json(folder / CONFIG_NAME)
    check_sane(CONFIG_NAME, config)
    if config.get("library") != LIBRARY or type(config.get("schema_version")) is not int:
        raise CheckpointError(f"{CONFIG_NAME} is no configuration of hf_taskvec")
    if config["schema_version"] > SCHEMA_VERSION:
        raise CheckpointError(
            f"{CONFIG_NAME} has schema version {config['schema_version']}, this hf_taskvec reads up to "
            f"{SCHEMA_VERSION}: pip install --upgrade hf-taskvec"
        )
    kinds = {"combine": str, "info": dict, "shared": dict, "tasks": list, "fingerprint": str}
    for key, kind in kinds.items():
        if not isinstance(config.get(key), kind):
            raise CheckpointError(
                f"{CONFIG_NAME}: {key!r} must be a {kind.__name__}, got {str(config.get(key))[:80]!r}"
            )
    return config


def _groups(tensors: Mapping[str, Tensor], count: int) -> dict[str, dict[str, Tensor]]:
    """The tensors of what is shared and of each task."""
    groups: dict[str, dict[str, Tensor]] = {key: {} for key in (_SHARED, *map(str, range(count)))}
    for path, tensor in tensors.items():
        key, _, name = path.partition("/")
        if key not in groups:
            raise CheckpointError(f"{WEIGHTS_NAME} holds {path[:200]!r}, of which {CONFIG_NAME} tells nothing")
        if tensor.dtype not in CODES:
            raise CheckpointError(f"{path[:200]!r} has dtype {tensor.dtype}, which no delta has")
        groups[key][name] = tensor
    if empty := [key for key, inside in groups.items() if not inside and key != _SHARED]:
        raise CheckpointError(f"{CONFIG_NAME} tells of {count} tasks, and {WEIGHTS_NAME} lacks {len(empty)} of them")
    return groups


def _part(entry: Any, tensors: Mapping[str, Tensor]) -> tuple[str, PackedDeltas, dict[str, Any]]:
    """One task of a configuration, with its tensors."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise CheckpointError(f"{CONFIG_NAME}: a task lacks its name")
    if not isinstance(entry.get("packed"), dict) or not is_finite_number(entry.get("factor")):
        raise CheckpointError(f"{CONFIG_NAME} does not tell how the part of {entry['name'][:80]!r} is read")
    told = {key: value for key, value in entry.items() if key not in ("name", "packed")}
    return entry["name"], PackedDeltas.from_stored(tensors, entry["packed"]), told
