"""`ContinualMerge`: a merge that vectors are added to one after another, saved and gone on with at any time."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError, TaskVecError
from hf_taskvec.hub.client import LIBRARY
from hf_taskvec.merging.sequential import RULES, check_rule
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import check_one_base
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import LazyDeltas
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes
from hf_taskvec.weights.folders import atomic_folder, check_inside, read_json, write_json
from hf_taskvec.weights.names import differences, shapes_of
from hf_taskvec.weights.safetensors import open_safetensors, shard_files, write_sharded

logger = logging.getLogger(__name__)

STEM = "sequence"
CONFIG_NAME = "sequence_config.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ContinualMerge:
    """A sequence of vectors merged one after another, in memory that does not grow with them.

    A value: `add` returns a new one. It holds one float64 tensor for every parameter, 0.7 GB for a ViT-B/32, and of the
    vectors themselves only where they come from. The vector is that of `merge` with the list in the same order: bit for
    bit with `opcm`, `nufilt` and `magmax`, up to the rounding of sums with `average` and `task_arithmetic`. The order
    makes no difference with the last three.

    Args:
        method: `opcm`, `nufilt`, `magmax`, `average` or `task_arithmetic`.
        settings: Settings of the method other than its defaults.
        held: What is held of each parameter; nothing for a new sequence.
        norms: Sum of the vectors' norms.
        rounding: The coarsest relative rounding of the vectors' dtypes.
        wide: Dtype of the merged vector.
        info: Provenance of the merged vector, with those of the vectors as its parents.

    Raises:
        UnknownNameError: If there is no such method or setting.
        ValueError: If a setting is out of range.

    Example:
        >>> first = TaskVector({"w": torch.tensor([3.0, -1.0])}, VectorInfo(task="digits"))
        >>> second = TaskVector({"w": torch.tensor([1.0, -2.0])}, VectorInfo(task="shapes"))
        >>> merged = ContinualMerge("magmax").add(first).add(second)
        >>> merged.tasks, merged.vector()["w"]
        (('digits', 'shapes'), tensor([ 3., -2.]))
    """

    method: str = "opcm"
    settings: Mapping[str, Any] = field(default_factory=dict)
    held: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    norms: float = 0.0
    rounding: float = 0.0
    wide: torch.dtype = torch.float32
    info: VectorInfo | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", check_rule(self.method, self.settings))

    def __len__(self) -> int:
        """How many vectors are in it."""
        return len(self.info.parents) if self.info else 0

    def __contains__(self, info: VectorInfo) -> bool:
        """Whether a vector of this provenance is in it."""
        return self.info is not None and _bare(info) in map(_bare, self.info.parents)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What is in it, in its order."""
        return tuple(parent.label for parent in self.info.parents) if self.info else ()

    def add(self, vector: TaskVector) -> ContinualMerge:
        """With one vector more.

        It is told in the log if a vector of the same provenance is in it already.

        Args:
            vector: The next vector, of the same base and coverage.

        Raises:
            IncompatibleVectorsError, BaseMismatchError: If it does not fit those in the sequence.
            NonFiniteError: If it holds NaN or Inf.
        """
        if self.info is not None:
            shapes = shapes_of(self.held)
            if lines := differences(shapes, vector.deltas.shapes, left_name="the sequence", right_name="the vector"):
                raise IncompatibleVectorsError(f"they differ: {listed(lines, separator='; ')}", details=lines)
            check_one_base([self.info, vector.info])
            if vector.info.task is not None and vector.info in self:
                logger.warning("a vector of %r with this very provenance is in the sequence already", vector.info.label)
        infos = [*(self.info.parents if self.info else ()), vector.info]
        rounding = max(self.rounding, torch.finfo(vector.dtype).eps)
        info = VectorInfo.merged(infos, method=self.method, settings=self.settings)
        if self.info is not None:  # parents that were read from a file hold no hashes of the base
            info = dataclasses.replace(info, base_hashes={**vector.info.base_hashes, **self.info.base_hashes})
        return dataclasses.replace(
            self,
            held=RULES[self.method].entered(self.held, vector, self.settings, rounding=rounding, index=len(self)),
            norms=self.norms + vector.norm(),
            rounding=rounding,
            wide=torch.promote_types(self.wide, vector.dtype),
            info=info,
        )

    def vector(self) -> TaskVector:
        """The merged vector, unscaled, each parameter computed when it is used.

        Raises:
            ValueError: If no vector is in the sequence.
        """
        info = self._filled()
        factor = RULES[self.method].factor(self.held, self.norms, len(self))
        lazy = LazyDeltas(
            shapes_of(self.held),
            lambda name: (self.held[name] * factor(name)).to(self.wide),
            self.wide,
            torch.device("cpu"),
        )
        return TaskVector(lazy, info)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `sequence.safetensors` and `sequence_config.json`; whole or not at all.

        Args:
            save_directory: A new folder, or one that holds a sequence, which is replaced.

        Raises:
            ValueError: If no vector is in the sequence.
            OutputExistsError: If the folder holds something else.
        """
        info = self._filled()
        info.check_readable()
        config = {name: getattr(self, name) for name in ("method", "settings", "norms", "rounding")}
        with atomic_folder(save_directory, marker=CONFIG_NAME, own=_is_own) as folder:
            write_sharded(folder, STEM, self.held.items(), shapes=shapes_of(self.held), dtype=torch.float64)
            write_json(
                folder / CONFIG_NAME,
                {
                    "schema_version": SCHEMA_VERSION,
                    "library": LIBRARY,
                    **config,
                    "wide": str(self.wide).removeprefix("torch."),
                    "info": info.to_dict(),
                    "fingerprint": fingerprint(tensor_hashes(self.held)),
                },
            )

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> ContinualMerge:
        """Opens a saved sequence, memory-mapped, so that the next vector can be added.

        Args:
            source: Its folder.

        Raises:
            CheckpointError: If files are missing, damaged, hostile or of a newer schema.

        Example:
            >>> from tempfile import mkdtemp
            >>> folder = f"{mkdtemp()}/sequence"
            >>> ContinualMerge().add(TaskVector({"w": torch.eye(2)})).save_pretrained(folder)
            >>> len(ContinualMerge.from_pretrained(folder).add(TaskVector({"w": torch.ones(2, 2)})))
            2
        """
        folder = Path(source)
        config = _read_config(folder)
        files = [folder / file for file in shard_files(folder, STEM)]
        for file in files:
            check_inside(file, folder)
        held = open_safetensors(files)
        if fingerprint(tensor_hashes(held)) != config.pop("fingerprint"):
            raise CheckpointError(f"the tensors in {folder} are not those that {CONFIG_NAME} was written for")
        try:
            info, wide = VectorInfo.from_dict(config.pop("info")), getattr(torch, config.pop("wide"))
            return cls(held=held, wide=wide, info=info, **config)
        except CheckpointError:
            raise
        except (TaskVecError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / CONFIG_NAME}: {error}") from None

    def _filled(self) -> VectorInfo:
        if self.info is None:
            raise ValueError("there is no vector in this sequence; add one: sequence = sequence.add(vector)")
        return self.info


def _bare(info: VectorInfo) -> Mapping[str, Any]:
    """A provenance as that of a parent is kept in a file."""
    return {key: value for key, value in info.to_dict().items() if key not in ("base_hashes", "layer_norms")}


def _is_own(name: str) -> bool:
    return name == CONFIG_NAME or (name.startswith(STEM) and name.endswith((".safetensors", ".safetensors.index.json")))


def _read_config(folder: Path) -> dict[str, Any]:
    """What stands in the configuration of a sequence, its types checked as far as nothing later does."""
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{folder} holds no sequence: it lacks {CONFIG_NAME}")
    check_inside(folder / CONFIG_NAME, folder)
    config = read_json(folder / CONFIG_NAME)
    version, library = config.pop("schema_version", None), config.pop("library", None)
    if library != LIBRARY or type(version) is not int:
        raise CheckpointError(f"{CONFIG_NAME} is no configuration of hf_taskvec")
    if version > SCHEMA_VERSION:
        raise CheckpointError(f"{CONFIG_NAME} has schema version {version}: pip install --upgrade hf-taskvec")
    kinds = {"method": str, "settings": dict, "norms": float, "rounding": float, "wide": str, "info": dict}
    for name, kind in {**kinds, "fingerprint": str}.items():
        if type(config.get(name)) is not kind:
            raise CheckpointError(f"{CONFIG_NAME}: {name!r} must be {kind.__name__}, got {config.get(name)!r:.80}")
    if config["wide"] not in ("float32", "float64"):
        raise CheckpointError(f"{CONFIG_NAME}: 'wide' must be float32 or float64, got {config['wide']!r:.80}")
    if unknown := sorted(config.keys() - kinds.keys() - {"fingerprint"}):
        raise CheckpointError(f"{CONFIG_NAME} has an unknown entry {unknown[0]!r:.80}; update hf_taskvec")
    return config
