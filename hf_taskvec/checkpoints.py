"""Checkpoints by Hub id or folder: fetched, opened memory-mapped, and written as a stream; no model is built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from torch import Tensor

from hf_taskvec.errors import CheckpointError, NotCachedError
from hf_taskvec.names import canonical, canonical_name
from hf_taskvec.storage import atomic_folder, check_relative, open_safetensors, shard_files, write_sharded
from hf_taskvec.tensors import scaled_sum

if TYPE_CHECKING:
    from hf_taskvec.vector import TaskVector

WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]
SIDE_FILES = ["*.json", "*.txt", "*.model"]


@dataclass(frozen=True)
class Folder:
    """Files of a repository on this machine: their folder, the name to quote, and the Hub commit if there is one."""

    path: Path
    name: str
    commit: str | None


@dataclass(frozen=True)
class Checkpoint:
    """Memory-mapped weights under canonical names."""

    name: str
    commit: str | None
    tensors: dict[str, Tensor]


def fetch_folder(
    source: str | os.PathLike[str],
    *,
    patterns: Sequence[str],
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Folder:
    """A local folder as it is, or the matching files of a Hub repository, downloaded or from the cache.

    Args:
        source: Folder or Hub id.
        patterns: Globs of the files wanted.
        subfolder: Folder inside the repository.

    Raises:
        CheckpointError: If there is no such folder, repository or revision, or access is refused.
        NotCachedError: If the Hub is out of reach and the cache has no copy.
    """
    if subfolder:
        check_relative(subfolder, "subfolder")
    if Path(source).is_dir():
        path = Path(source) / subfolder
        if not path.is_dir():
            raise CheckpointError(f"{source} has no folder {subfolder!r}")
        return Folder(path, Path(source).resolve().name, None)
    repo = os.fspath(source)
    globs = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
    where = repo if revision is None else f"{repo} at revision {revision!r}"
    try:
        snapshot = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=globs, token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir), local_files_only=local_files_only,
                force_download=force_download,
            )
        )  # fmt: skip
    except HFValidationError:
        raise CheckpointError(f"{repo!r} is neither a folder nor a Hub id (user/name)") from None
    except GatedRepoError:
        raise CheckpointError(f"{where} is gated: accept its terms on the Hub and log in (hf auth login)") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"{where} is neither a folder nor a repository you can see; check the name, or log in (hf auth login)"
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repo} has no revision {revision!r}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise NotCachedError(
            f"{where} is not in the cache and the Hub is out of reach; fetch it first: hf download {repo}"
        ) from error
    path = snapshot / subfolder
    if not path.is_dir():
        raise CheckpointError(f"{where} has no folder {subfolder!r}" if subfolder else f"{where} has no such files")
    return Folder(path, repo, snapshot.name)


def open_checkpoint(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Checkpoint:
    """Opens the safetensors weights of a checkpoint, memory-mapped.

    Raises:
        CheckpointError: If there are none, or only pickled ones, which are refused.
    """
    folder = fetch_folder(
        source, patterns=WEIGHTS, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
    )
    return Checkpoint(folder.name, folder.commit, canonical(_open_weights(folder.path, folder.name).items()))


def _open_weights(folder: Path, name: str) -> dict[str, Tensor]:
    if not any(folder.glob("model*.safetensors*")):
        raise CheckpointError(
            f"{name} has no model.safetensors. Pickled weights (pytorch_model.bin) are refused, since loading them can "
            "run code: load them where you trust them and save_pretrained() them again."
        )
    return open_safetensors([folder / file for file in shard_files(folder, "model")])


def write_checkpoint(
    vector: TaskVector,
    base: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    scaling: float = 1.0,
    revision: str | None = None,
    allow_other_base: bool = False,
) -> None:
    """Writes base plus `scaling` times the vector as a checkpoint folder, parameter by parameter.

    The folder keeps the base's layout, dtypes and side files (configuration, tokenizer, image processor), so it loads
    with the class that loads the base.

    Args:
        vector: The vector to add.
        base: Hub id or folder of the base.
        output_dir: A new folder, or a checkpoint folder, which is replaced.
        scaling: The factor of the vector.
        revision: Branch, tag or commit of the base.
        allow_other_base: Whether to add the vector to weights other than those it was made from.

    Raises:
        BaseMismatchError, IncompatibleVectorsError, NonFiniteError: As `TaskVector.apply_to`.
        OutputExistsError: If the folder holds something else.
    """
    folder = fetch_folder(base, patterns=[*WEIGHTS, *SIDE_FILES], revision=revision)
    weights = _open_weights(folder.path, folder.name)
    vector.check_fits(canonical(weights.items()), allow_other_base=allow_other_base)
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
