"""Checkpoints by Hub id, folder or file: fetched, opened memory-mapped, and written as a stream; no model is built."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hf_taskvec.errors import CheckpointError, NotCachedError, OutputExistsError
from hf_taskvec.hub.access import AnyPath, HubAccess
from hf_taskvec.hub.fetch import CHECKPOINT, PICKLED, SIDE_FILES, WEIGHTS, Wanted
from hf_taskvec.models.embedded import EMBEDDED_BASES
from hf_taskvec.models.layouts import CONFIG, check_is_clip, fetch_checkpoint
from hf_taskvec.text import listed
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.folders import atomic_folder, check_inside, check_output_folder, read_json, write_json
from hf_taskvec.weights.names import canonical, canonical_names, shapes_of
from hf_taskvec.weights.safetensors import open_safetensors, shard_files, write_sharded

if TYPE_CHECKING:
    from hf_taskvec.models.base import Base

APPLIED_NAME = "task_vector_applied.json"
TOWER = Wanted((*WEIGHTS, CONFIG), required=CHECKPOINT.required, missing=PICKLED)
Edit = Callable[[str, Tensor], Tensor]  # canonical name and weight of a parameter -> its new weight


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model, in a folder or in memory.

    Attributes:
        name: Hub id or folder name.
        commit: Its commit on the Hub.
        weights: The parameters by the names they have there; memory-mapped if they come from a file.
        copy_side_files: Writes what a checkpoint has beside its weights into a folder.
    """

    name: str
    commit: str | None
    weights: Mapping[str, Tensor]
    copy_side_files: Callable[[Path], None]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters under canonical names."""
        return canonical(self.weights.items())

    @classmethod
    def of_base(cls, base: Base) -> Checkpoint:
        """That of a base in memory."""

        def copy(target: Path) -> None:
            base.model.config.save_pretrained(target)
            base.processor.save_pretrained(target)

        return cls(base.name, base.revision, base.model.state_dict(), copy)


# -- reading ----------------------------------------------------------------------------------------------------------


def open_checkpoint(
    source: AnyPath, *, revision: str | None = None, access: HubAccess | None = None, whole: bool = False
) -> Checkpoint:
    """Opens the safetensors weights of a CLIP checkpoint, memory-mapped.

    Args:
        source: Hub id, folder, path of one `.safetensors` file, or the name of an embedded base.
        revision: Branch, tag or commit.
        access: How the Hub is reached.
        whole: Whether the files beside the weights are wanted too.

    Returns:
        The checkpoint, under its own names and canonical ones.

    Raises:
        CheckpointError: If there is no such checkpoint, it is another model than CLIP, or has only pickled weights: to
            load a pickle is to run whatever code it names.

    Example:
        >>> open_checkpoint("hf-taskvec/tiny-clip").tensors["vision_model.post_layernorm.bias"].shape
        torch.Size([384])
    """
    if not isinstance(source, (str, os.PathLike)):
        kind = type(source).__name__
        raise TypeError(f"expected a Hub id, folder or file, got {kind}; for models there is TaskVector.from_models")
    if os.path.isfile(source):
        return _open_file(Path(source))
    check_exists(source)
    embedded = EMBEDDED_BASES.get(os.fspath(source)) if revision is None else None
    folder = fetch_checkpoint(embedded or source, CHECKPOINT if whole else TOWER, revision=revision, access=access)
    files = [folder.path / file for file in shard_files(folder.path, "model")]
    for file in files:
        check_inside(file, folder.path)
    return _checked(os.fspath(source) if embedded else folder.name, folder.commit, folder.path, open_safetensors(files))


def _open_file(path: Path) -> Checkpoint:
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is no .safetensors file. Pickled weights (.bin, .pt, .ckpt) are refused, since loading them can "
            "run code: load them where you trust them and save_pretrained() the model"
        )
    beside = path.parent if path.name.startswith("model") else None  # whose configuration is the file's, if any
    return _checked(path.stem, None, beside, open_safetensors([path]))


def _checked(name: str, commit: str | None, folder: Path | None, weights: Mapping[str, Tensor]) -> Checkpoint:
    check_is_clip(folder, canonical_names(weights).values(), name)

    def copy(target: Path) -> None:
        for path in side_files(folder) if folder is not None else []:
            shutil.copyfile(path, target / path.name)

    checkpoint = Checkpoint(name, commit, weights, copy)
    _ = checkpoint.tensors  # refuses two names of one parameter
    return checkpoint


def side_files(folder: Path) -> list[Path]:
    """Configuration, tokenizer and image processor of a checkpoint."""
    paths = [path for pattern in SIDE_FILES for path in sorted(folder.glob(pattern))]
    paths = [path for path in paths if not path.name.endswith(".index.json") and path.name != APPLIED_NAME]
    for path in paths:
        check_inside(path, folder)  # a link out of the folder could carry somebody's secret into what is written
    return paths


def check_exists(source: AnyPath) -> None:
    """Raises a `CheckpointError` if what can only be a path leads nowhere.

    A name like `user/name` may be on the Hub; what is absolute, begins with a dot, is a `Path` of more than two parts,
    or ends like a file cannot.
    """
    text = os.fspath(source)
    looks = text.startswith((os.sep, ".", "~")) or os.path.isabs(text) or text.endswith((".safetensors", ".pt", ".bin"))
    if looks and not os.path.exists(text):
        raise CheckpointError(f"{text[:200]!r} is neither a folder nor a file: there is nothing at that path")


def checkpoint_of(
    base: AnyPath | Base | None, info: VectorInfo, *, revision: str | None = None, access: HubAccess | None = None
) -> Checkpoint:
    """The base that is given, or that a vector's provenance names, with its side files.

    Raises:
        CheckpointError: If neither tells one, or there is none of that name.
    """
    if base is None:
        if info.base is None:
            raise CheckpointError(f"the vector {info.label!r} does not tell its base; pass base=")
        try:
            return open_checkpoint(info.base, revision=revision or info.base_revision, access=access, whole=True)
        except (CheckpointError, NotCachedError) as error:
            raise CheckpointError(f"the base that the vector names cannot be opened; pass base=. {error}") from error
    if isinstance(base, (str, os.PathLike)):
        return open_checkpoint(base, revision=revision, access=access, whole=True)
    return Checkpoint.of_base(base)


# -- writing ----------------------------------------------------------------------------------------------------------


def write_checkpoint(
    checkpoint: Checkpoint, output_dir: AnyPath, edit: Edit, *, applied: Mapping[str, Any] | None = None
) -> None:
    """Writes an edited checkpoint as a folder, parameter by parameter.

    The folder keeps the layout, the dtype of each parameter and the side files (configuration, tokenizer, image
    processor), so it loads with the class that loads the original.

    Args:
        checkpoint: What to edit.
        output_dir: A new folder, or one that this function wrote and nothing was added to.
        edit: The new weight of each parameter.
        applied: What `task_vector_applied.json` in the folder is to tell.

    Raises:
        OutputExistsError: If the folder holds something else.
        CheckpointError: If a floating parameter has a dtype that cannot be written.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp()) / "halved"
        >>> write_checkpoint(open_checkpoint("hf-taskvec/tiny-clip"), folder, lambda name, weight: weight / 2)
        >>> sorted(path.name for path in folder.iterdir())[:2]
        ['config.json', 'model.safetensors']
    """
    known = check_checkpoint_folder(output_dir)
    kept = {name: weight for name, weight in checkpoint.weights.items() if weight.is_floating_point()}
    short = canonical_names(kept)

    def edited() -> Iterator[tuple[str, Tensor]]:
        for name, weight in kept.items():
            yield name, edit(short[name], weight)

    with atomic_folder(output_dir, marker=APPLIED_NAME, own=lambda name: name in known) as target:
        dtypes = {name: weight.dtype for name, weight in kept.items()}
        write_sharded(target, "model", edited(), shapes=shapes_of(kept), dtype=dtypes)
        checkpoint.copy_side_files(target)
        files = sorted(path.name for path in target.iterdir())
        write_json(target / APPLIED_NAME, {**(applied or {}), "files": files})


def check_checkpoint_folder(path: AnyPath) -> set[str]:
    """The names of the files that `write_checkpoint` wrote into a folder; none if it is new or empty.

    Raises:
        OutputExistsError: If it holds anything else: nothing of somebody's project is replaced.
    """
    folder = Path(path)
    check_output_folder(folder, marker=APPLIED_NAME)
    if not (folder / APPLIED_NAME).is_file():
        return set()
    files = read_json(folder / APPLIED_NAME).get("files")
    known = files if isinstance(files, list) else []
    names = {entry.name for entry in folder.iterdir()} - {APPLIED_NAME}
    if odd := sorted(name for name in names if name not in known):
        raise OutputExistsError(
            f"{folder} holds files that no checkpoint of this package has: {listed(map(repr, odd), room=150)}; choose "
            "another output folder",
            details=odd,
        )
    return names | {APPLIED_NAME}
