"""`Statistics`: what was measured in a model on some images, with its provenance and its files."""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from hf_taskvec.errors import CheckpointError, NonFiniteError, is_finite_number
from hf_taskvec.hub.access import HubAccess, HubKeywords
from hf_taskvec.hub.client import LIBRARY
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.statistics.maps import inputs_of
from hf_taskvec.vectors.entries import check_sane, checked, plain
from hf_taskvec.vectors.files import CONFIG_NAME as VECTOR_CONFIG
from hf_taskvec.weights.arithmetic import is_finite
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes
from hf_taskvec.weights.folders import atomic_folder, check_inside, read_json, write_json
from hf_taskvec.weights.names import shapes_of
from hf_taskvec.weights.safetensors import open_safetensors, shard_files, write_sharded

Kind = Literal["gram", "diagonal", "fisher", "kfac", "prefix"]
STEM = "statistics"
CONFIG_NAME = "statistics_config.json"
SCHEMA_VERSION = 2  # 1 had `rests`: one number in place of each diagonal `rest/`
FILES = Wanted(
    (f"{STEM}*.safetensors", f"{STEM}.safetensors.index.json", CONFIG_NAME),
    required=(CONFIG_NAME, f"{STEM}*.safetensors"),
    missing=f"holds no statistics: it lacks {CONFIG_NAME} or {STEM}.safetensors. collect_statistics(base, task, "
    "vector=vector) makes them from some images",
    checked_later=f"{STEM}*.safetensors",
)


@dataclass(frozen=True)
class StatisticsInfo:
    """Where statistics come from; `None` where a fact is unknown.

    Attributes:
        kinds: What was measured.
        base, base_revision: Hub id or folder name of the base, and its commit.
        base_hashes: Hash of each of the base's parameters in the vision tower.
        vector: Fingerprint of the vector that was added to the base; `None` if they are the base's own.
        task: The task of that vector.
        images_of: The task whose images were shown.
        dataset, dataset_config, dataset_revision: The data.
        split: Which part of them; `test` makes a merge transductive.
        num_images: How many images.
        images_hash: Hash of their pixels, in order.
        preprocessing: Hash of the image processor's settings.
        seed: Which images were drawn, and which labels were sampled.
        rank: The most rows of a factor.
        dtype: Dtype of the tensors.
        errors: Share of each Gram matrix's trace that its factor lacks, by map.
        tokens: How many activations each Gram matrix is the mean over, by map.
        prefix: Of `prefix`, the settings of the merge in which they were measured, and its vectors' fingerprints.
        versions: Version of each library involved.
        repo_id, repo_commit: Repository and commit on the Hub that they were pulled from.
    """

    kinds: tuple[str, ...] = ()
    base: str | None = None
    base_revision: str | None = None
    base_hashes: Mapping[str, str] = field(default_factory=dict, repr=False)
    vector: str | None = None
    task: str | None = None
    images_of: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    split: str | None = None
    num_images: int | None = None
    images_hash: str | None = None
    preprocessing: str | None = None
    seed: int | None = None
    rank: int | None = None
    dtype: str | None = None
    errors: Mapping[str, float] = field(default_factory=dict, repr=False)
    tokens: Mapping[str, int] = field(default_factory=dict, repr=False)
    prefix: Mapping[str, Any] = field(default_factory=dict, repr=False)
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)
    repo_id: str | None = None
    repo_commit: str | None = None

    @property
    def label(self) -> str:
        """A short name for messages and tables."""
        return self.task or self.images_of or "statistics"

    @property
    def error(self) -> float:
        """The largest share of a Gram matrix's trace that its factor lacks."""
        return max(self.errors.values(), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not known is left out."""
        values = {spec.name: plain(getattr(self, spec.name), spec.name) for spec in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value not in (None, {}, [])}

    def summary(self) -> dict[str, Any]:
        """What the provenance of a merge keeps: whose images, how many, from which split, and how they were kept."""
        kept = [
            *("kinds", "task", "images_of", "dataset", "dataset_revision", "split", "num_images", "images_hash"),
            *("preprocessing", "rank", "dtype", "error", "vector", "repo_id", "repo_commit"),
        ]
        values = {name: plain(getattr(self, name), name) for name in kept}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StatisticsInfo:
        """Reads what `to_dict` wrote.

        Raises:
            CheckpointError: If an entry is unknown or of a wrong type.
        """
        check_sane(CONFIG_NAME, values)
        hints = typing.get_type_hints(cls)
        if unknown := [key for key in values if key not in hints]:
            raise CheckpointError(f"{CONFIG_NAME} has an unknown entry {unknown[0][:80]!r}; update hf_taskvec")
        return cls(**{key: checked(key, value, hints[key], where=CONFIG_NAME) for key, value in values.items()})


@dataclass(frozen=True)
class Gram:
    """The mean of `x xᵀ` over the inputs x of a linear map: `factorᵀ factor + diag(rest²)`, its diagonal exact.

    Attributes:
        factor: (r, n), in the dtype of the file.
        rest: The root of the diagonal (n,) of what the factor leaves out; `None` if nothing.
    """

    factor: Tensor
    rest: Tensor | None = None

    def diagonal(self) -> Tensor:
        """The diagonal of what the factor leaves out (n,), in float64."""
        if self.rest is None:
            return self.factor.new_zeros(self.factor.shape[1], dtype=torch.float64)
        return self.rest.double().square()

    def matrix(self) -> Tensor:
        """The matrix (n, n) in float64.

        Example:
            >>> Gram(torch.tensor([[3.0, 0.0]]), rest=torch.tensor([0.5, 1.0])).matrix().tolist()
            [[9.25, 0.0], [0.0, 1.0]]
        """
        wide = self.factor.double()
        product = wide.T @ wide
        product.diagonal().add_(self.diagonal())
        return product


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a model's vision tower computes on some images: Gram matrices of inputs, Fisher information, provenance.

    Files stay memory-mapped. Names are those of the parameters, canonical as in a `TaskVector`.

    Attributes:
        tensors: `gram/<map>`, `prefix/<map>` and `gradients/<map>` (factors), `rest/` and one of these names (the root
            of the diagonal that the factor leaves out), `diagonal/<parameter>` and `fisher/<parameter>`.
        info: Provenance.

    Example:
        >>> statistics = Statistics({"gram/tower.fc1": torch.eye(2)})
        >>> statistics.gram("tower.fc1.weight").matrix().trace()
        tensor(2., dtype=torch.float64)
    """

    tensors: Mapping[str, Tensor]
    info: StatisticsInfo = field(default_factory=StatisticsInfo)

    def __repr__(self) -> str:
        entries, kinds = sum(tensor.numel() for tensor in self.tensors.values()), ", ".join(self.info.kinds)
        return (
            f"Statistics({self.info.label!r}, {kinds or 'unknown'}: {len(self.tensors)} tensors, {entries:,} entries)"
        )

    def gram(self, parameter: str) -> Gram | None:
        """The Gram matrix of the inputs that a weight multiplies; q, k and v share one. `None` if there is none.

        Of a patch embedding, (out, C, p, p), the inputs are the flattened patches.
        """
        return self._gram("gram", inputs_of(parameter))

    def prefix(self, parameter: str) -> Gram | None:
        """As `gram`, of inputs in the merged model up to that layer; see `collect_prefix_statistics`."""
        return self._gram("prefix", inputs_of(parameter))

    def gradients(self, parameter: str) -> Gram | None:
        """The K-FAC factor of a weight's outputs: the Gram matrix of the gradients there, per image."""
        return self._gram("gradients", parameter.rpartition(".")[0])

    def diagonal(self, parameter: str) -> Tensor | None:
        """The mean square of what each entry of a norm's scale multiplies."""
        return self.tensors.get(f"diagonal/{parameter}")

    def fisher(self, parameter: str) -> Tensor | None:
        """The diagonal Fisher information of a parameter: the mean over images of the squared gradient."""
        return self.tensors.get(f"fisher/{parameter}")

    def _gram(self, kind: str, name: str) -> Gram | None:
        factor = self.tensors.get(f"{kind}/{name}")
        return None if factor is None else Gram(factor, self.tensors.get(f"rest/{kind}/{name}"))

    @property
    def fingerprint(self) -> str:
        """One hash over names, shapes, dtypes and values."""
        return fingerprint(tensor_hashes(self.tensors))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `statistics.safetensors` and `statistics_config.json`, bit for bit; whole or not at all.

        Args:
            save_directory: A new folder, that of a task vector, or one that holds statistics, which are replaced;
                other files stay.

        Raises:
            NonFiniteError: If a tensor holds NaN or Inf.
            OutputExistsError: If the folder holds something else.

        Example:
            >>> from tempfile import mkdtemp
            >>> folder = mkdtemp()
            >>> Statistics({"gram/tower.fc1": torch.eye(2)}).save_pretrained(folder)
            >>> Statistics.from_pretrained(folder).gram("tower.fc1.weight").factor.shape
            torch.Size([2, 2])
        """
        for name, tensor in self.tensors.items():
            if not is_finite(tensor):
                raise NonFiniteError(f"{name!r} of the statistics of {self.info.label!r} holds NaN or Inf")
        beside = (Path(save_directory) / VECTOR_CONFIG).is_file()
        with atomic_folder(save_directory, marker=VECTOR_CONFIG if beside else CONFIG_NAME, own=is_own) as folder:
            dtypes = {name: tensor.dtype for name, tensor in self.tensors.items()}
            write_sharded(folder, STEM, self.tensors.items(), shapes=shapes_of(self.tensors), dtype=dtypes)
            config = {"schema_version": SCHEMA_VERSION, "library": LIBRARY, **self.info.to_dict()}
            write_json(folder / CONFIG_NAME, {**config, "fingerprint": self.fingerprint})

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        **hub: Unpack[HubKeywords],
    ) -> Statistics:
        """Opens saved statistics by Hub id or folder, memory-mapped; what comes from the Hub is verified, once.

        Args:
            source: Hub id or folder, that of a vector if they lie beside it.
            revision: Branch, tag or commit.
            subfolder: Folder inside the repository.
            **hub: `token`, `cache_dir`, `local_files_only`, `force_download`; see `HubAccess`.

        Raises:
            CheckpointError: If files are missing, damaged, hostile or of a newer schema.
            NotCachedError: If the Hub is out of reach and the cache has no copy.
        """
        folder = fetch_folder(source, FILES, revision=revision, subfolder=subfolder, access=HubAccess.of(hub))
        with folder.being_read():
            info, announced, rests = _read_config(folder.path)
            files = [folder.path / file for file in shard_files(folder.path, STEM)]
            for file in files:
                check_inside(file, folder.path)
            tensors = open_safetensors(files)
            if folder.unchecked and cls(tensors, info).fingerprint != announced:
                raise CheckpointError(f"the tensors in {folder.path} are not those that {CONFIG_NAME} was written for")
        for file_on_hub in folder.unchecked:
            file_on_hub.note_checked()
        if folder.commit is not None:
            info = dataclasses.replace(info, repo_id=folder.name, repo_commit=folder.commit)
        wide = {name: torch.full(tensors[name].shape[1:], rest**0.5) for name, rest in rests.items() if name in tensors}
        return cls(tensors | {f"rest/{name}": rest for name, rest in wide.items()}, info)


def is_own(name: str) -> bool:
    """Whether a file is one of statistics', which the next ones in its folder replace."""
    return name == CONFIG_NAME or (name.startswith(STEM) and name.endswith((".safetensors", ".safetensors.index.json")))


def _read_config(folder: Path) -> tuple[StatisticsInfo, str | None, Mapping[str, float]]:
    """The provenance in a folder, the fingerprint of the tensors, and the `rests` of an older file."""
    if not (folder / CONFIG_NAME).is_file():
        raise CheckpointError(f"{folder} {FILES.missing}")
    check_inside(folder / CONFIG_NAME, folder)
    config = read_json(folder / CONFIG_NAME)
    version, library = config.pop("schema_version", None), config.pop("library", None)
    announced = config.pop("fingerprint", None)
    if library != LIBRARY or type(version) is not int:
        raise CheckpointError(f"{CONFIG_NAME} is no configuration of hf_taskvec")
    if version > SCHEMA_VERSION:
        raise CheckpointError(
            f"{CONFIG_NAME} has schema version {version}, this hf_taskvec reads up to {SCHEMA_VERSION}: "
            "pip install --upgrade hf-taskvec"
        )
    rests = checked("rests", config.pop("rests", {}), Mapping[str, float], where=CONFIG_NAME)
    if not all(rest >= 0 and is_finite_number(rest) for rest in rests.values()):
        raise CheckpointError(f"{CONFIG_NAME}: 'rests' must be finite and not negative")
    return StatisticsInfo.from_dict(config), announced, {name: rest for name, rest in rests.items() if rest}
