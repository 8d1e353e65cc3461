"""Checkpoints by Hub id, folder or file: fetched, opened memory-mapped, and written as a stream; no model is built."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hf_taskvec.errors import CheckpointError, NotCachedError, OutputExistsError
from hf_taskvec.hub.access import AnyPath, HubAccess
from hf_taskvec.hub.fetch import CHECKPOINT, PICKLED, SIDE_FILES, WEIGHTS, Wanted
from hf_taskvec.models.embedded import EMBEDDED_BASES
from hf_taskvec.models.layouts import (
    APPLIED_NAME,
    CONFIG,
    check_not_quantised,
    fetch_checkpoint,
    model_class,
    read_config,
    ties_of,
    weight_files,
)
from hf_taskvec.models.open_clip import as_transformers
from hf_taskvec.text import listed
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.arithmetic import equal
from hf_taskvec.weights.continued import continue_sharded
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.folders import (
    atomic_folder,
    check_inside,
    check_output_folder,
    check_space,
    read_json,
    write_json,
)
from hf_taskvec.weights.kept import kept_bytes, kept_folder
from hf_taskvec.weights.names import aligned_names, canonical_names, shapes_of
from hf_taskvec.weights.safetensors import open_safetensors, write_sharded

if TYPE_CHECKING:
    from hf_taskvec.models.base import Base

logger = logging.getLogger(__name__)
TOWER = Wanted((*WEIGHTS, CONFIG), required=CHECKPOINT.required, missing=PICKLED)
Edit = Callable[[str, Tensor], Tensor]  # canonical name and weight of a parameter -> its new weight
_BUFFER = re.compile(  # no parameter, whatever its dtype: statistics, positions, masks
    r"(^|\.)(running_mean|running_var|num_batches_tracked|position_ids|token_type_ids|inv_freq|original_inv_freq"
    r"|relative_position_index|masked_bias)$"
)
_MASK = re.compile(r"\.attn\.bias$")  # GPT-2's, of four dimensions
_INTEGERS = {torch.int64, torch.int32, torch.int16, torch.bool}


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model, in a folder or in memory.

    Attributes:
        name: Hub id or folder name.
        commit: Its commit on the Hub.
        weights: The parameters by the names they have there; memory-mapped if they come from a file.
        copy_side_files: Writes what a checkpoint has beside its weights into a folder.
        config: Its configuration, if there is one.
        files: Its weight files, if it lies in a folder.
    """

    name: str
    commit: str | None
    weights: Mapping[str, Tensor]
    copy_side_files: Callable[[Path], None]
    config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    _hashes: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def hashes(self, names: Iterable[str]) -> dict[str, str]:
        """The hash of each of some parameters by canonical names, taken once."""
        chosen = list(names)
        self._hashes.update(tensor_hashes({name: self.tensors[name] for name in chosen if name not in self._hashes}))
        return {name: self._hashes[name] for name in sorted(chosen)}

    def stamp(self) -> list[object]:
        """What tells these weights from others without reading them: path, size and time of each file, and ties."""
        known = [(path, path.stat()) for path in self.files]
        files = [[os.path.realpath(path), status.st_size, status.st_mtime_ns] for path, status in known]
        return [*files, *ties_of(self.config).items()]

    @cached_property
    def names(self) -> dict[str, str]:
        """The canonical name of each parameter; copies of a tied one have its name, buffers have none.

        Raises:
            CheckpointError: If two parameters have one canonical name and are not tied.
        """
        kept = [name for name, weight in self.weights.items() if not is_buffer(name, weight)]
        names = canonical_names(kept)
        owners: dict[str, str] = {}
        for name, short in names.items():
            if short in owners:
                raise CheckpointError(f"{name!r} and another parameter are both {short!r} in canonical form")
            owners[short] = name
        for copy, owner in ties_of(self.config).items():
            if copy in owners and (owner not in owners or self._same(owners[copy], owners[owner])):
                names[owners[copy]] = owner
        return names

    def _same(self, one: str, other: str) -> bool:
        return equal(self.weights[one], self.weights[other])

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The parameters under canonical names, each tied one once."""
        return {short: self.weights[name] for name, short in self.names.items()}

    @cached_property
    def buffers(self) -> dict[str, Tensor]:
        """What else is there: running statistics, positions, masks."""
        return {name: weight for name, weight in self.weights.items() if name not in self.names}

    @property
    def architecture(self) -> str | None:
        """The kind of model, as its configuration names it."""
        kind = self.config.get("model_type")
        return kind if isinstance(kind, str) else None

    @property
    def body(self) -> str:
        """The attribute that holds the body of the model in its class, as `vit`; empty if it is not known."""
        return str(getattr(model_class(self.config), "base_model_prefix", ""))

    def names_onto(self, onto: Collection[str], *others: Checkpoint) -> dict[str, str]:
        """The name in another set of each canonical name; see `aligned_names`."""
        if set(onto) <= set(self.tensors):
            return {name: name for name in self.tensors}
        return aligned_names(self.tensors, onto, [self.body, *(other.body for other in others)])

    @classmethod
    def of_base(cls, base: Base) -> Checkpoint:
        """That of a base in memory."""
        base.check_not_linearized("save_checkpoint")

        def copy(target: Path) -> None:
            base.model.config.save_pretrained(target)
            base.processor.save_pretrained(target)

        return cls(base.name, base.revision, base.model.state_dict(), copy)


# -- reading ----------------------------------------------------------------------------------------------------------


def open_checkpoint(
    source: AnyPath, *, revision: str | None = None, access: HubAccess | None = None, whole: bool = False
) -> Checkpoint:
    """Opens the safetensors weights of a checkpoint of Transformers, memory-mapped.

    Args:
        source: Hub id, folder, path of one `.safetensors` file, or the name of an embedded base.
        revision: Branch, tag or commit.
        access: How the Hub is reached.
        whole: Whether the files beside the weights are wanted too.

    Returns:
        The checkpoint, under its own names and canonical ones.

    Raises:
        CheckpointError: If there is no such checkpoint, it is quantised, or has only pickled weights: to load a pickle
            is to run whatever code it names.

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
    files = weight_files(folder.path)
    for file in files:
        check_inside(file, folder.path)
    return _checked(os.fspath(source) if embedded else folder.name, folder.commit, folder.path, files)


def _open_file(path: Path) -> Checkpoint:
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is no .safetensors file. Pickled weights (.bin, .pt, .ckpt) are refused, since loading them can "
            "run code: load them where you trust them and save_pretrained() the model"
        )
    beside = path.parent if path.name.startswith("model") else None  # whose configuration is the file's, if any
    return _checked(path.stem, None, beside, [path])


def _checked(name: str, commit: str | None, folder: Path | None, files: Sequence[Path]) -> Checkpoint:
    weights, config = open_safetensors(files), read_config(folder)
    check_not_quantised(config, name)
    if converted := as_transformers(weights):
        return Checkpoint(name, commit, converted, partial(_refuse_copy, name), files=tuple(files))

    def copy(target: Path) -> None:
        for path in side_files(folder) if folder is not None else []:
            shutil.copyfile(path, target / path.name)

    checkpoint = Checkpoint(name, commit, weights, copy, config, tuple(files))
    _ = checkpoint.names  # refuses two names of one parameter
    return checkpoint


def _refuse_copy(name: str, target: Path) -> None:
    raise CheckpointError(
        f"{name} is in the layout of open_clip or timm, without the configuration that Transformers reads: pass the "
        "same model in the layout of Transformers as base="
    )


def is_buffer(name: str, tensor: Tensor) -> bool:
    """Whether a tensor of a checkpoint is no parameter.

    Example:
        >>> is_buffer("bn.running_mean", torch.zeros(2)), is_buffer("bn.weight", torch.zeros(2))
        (True, False)
    """
    is_mask = _MASK.search(name) is not None and tensor.ndim == 4
    return tensor.dtype in _INTEGERS or is_mask or _BUFFER.search(name) is not None


def side_files(folder: Path) -> list[Path]:
    """Configuration, tokenizer, processor, settings of generation and chat template of a checkpoint."""
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
    checkpoint: Checkpoint,
    output_dir: AnyPath,
    edit: Edit,
    *,
    applied: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> None:
    """Writes an edited checkpoint as a folder, parameter by parameter.

    The folder keeps the layout, the dtype of each parameter, buffers and the side files (configuration, tokenizer,
    processor, settings of generation), so it loads with the class that loads the original.

    Args:
        checkpoint: What to edit.
        output_dir: A new folder, or one that this function wrote and nothing was added to.
        edit: The new weight of each parameter.
        applied: What `task_vector_applied.json` in the folder is to tell.
        key: A hash of all that the weights depend on. With it, a process that is killed leaves what it has written
            beside the folder, and the next with the same key goes on from there.

    Raises:
        OutputExistsError: If the folder holds something else.
        NoSpaceError: If the disk has less room than it needs.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp()) / "halved"
        >>> write_checkpoint(open_checkpoint("hf-taskvec/tiny-clip"), folder, lambda name, weight: weight / 2)
        >>> sorted(path.name for path in folder.iterdir())[:2]
        ['config.json', 'model.safetensors']
    """
    known = check_checkpoint_folder(output_dir)
    weights, names = checkpoint.weights, checkpoint.names

    def edited(name: str) -> Tensor:
        weight = weights[name]
        return edit(names[name], weight) if name in names else weight

    shapes, dtypes = shapes_of(weights), {name: weight.dtype for name, weight in weights.items()}
    room = sum(weight.nbytes for weight in weights.values()) - (0 if key is None else kept_bytes(output_dir))
    check_space(output_dir, room, "checkpoint")
    with ExitStack() as stack:
        kept = None if key is None else stack.enter_context(kept_folder(output_dir, key))
        target = stack.enter_context(atomic_folder(output_dir, marker=APPLIED_NAME, own=lambda name: name in known))
        if kept is None:
            write_sharded(target, "model", ((n, edited(n)) for n in weights), shapes=shapes, dtype=dtypes)
        elif there := continue_sharded(target, "model", edited, shapes=shapes, dtype=dtypes, kept=kept):
            logger.info("%d of %d weights were there already", there, len(weights))
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
