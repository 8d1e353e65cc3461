"""`VectorInfo`: where a task vector comes from, as it stands in its `task_vector_config.json`."""

from __future__ import annotations

import dataclasses
import platform
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

from hf_taskvec.errors import CheckpointError, check_known
from hf_taskvec.vectors.entries import check_sane, checked, plain
from hf_taskvec.weights.fingerprint import fingerprint

Kind = Literal["difference", "fine-tuned", "gradient", "merged", "lora"]


@dataclass(frozen=True)
class VectorInfo:
    """Provenance of a task vector; `None` where a fact is unknown or does not apply.

    Attributes:
        kind: How the vector was made.
        base: Hub id or folder name of the base.
        base_revision: Commit of the base on the Hub.
        base_hashes: Hash of each base parameter the vector touches.
        finetuned, finetuned_revision: Hub id or folder name, and commit, of the checkpoint or adapter it was made from.
        architecture: Kind of the base, as its configuration names it; `None` for a CLIP.
        include_projection: Whether `visual_projection` was trained and is part of the vector.
        left_out: How many parameters outside the vector's reach the fine-tuning changed too.
        task: Name of the task; of a merged vector, see `parents`.
        dataset, dataset_config, dataset_revision: The training data.
        class_names: The classes that were told apart, in the order of the class numbers.
        templates: The prompts of the zero-shot head, each with one `{}` for the class name.
        data_settings: How the task reads its dataset, where that is not the default: columns, splits, labels.
        epochs: Epochs trained, fractions allowed.
        steps: Optimiser steps taken.
        optimizer: Name of the optimiser, as `TrainingArguments.optim` has it.
        learning_rate, weight_decay, batch_size, seed: Training settings; the batch over all processes.
        num_images: Training images per epoch.
        method: Merge method of a merged vector.
        settings: Settings of the merge, or whatever else is needed to repeat the making.
        recipe: The merge by Hub ids and folders, for it to be repeated.
        statistics: Of a merge that looked at data: whose images, how many, from which split, for each vector.
        mean_gradient_norm: Mean norm of the gradients that were summed up.
        scaling: Factor the deltas already hold, 1 for an unscaled vector.
        compression: How the vector was compressed, what of its norm that lost, and how many bytes are left; see
            `TaskVector.compress`.
        forgetting: Of a vector that takes a task away: what is left of that task and of the control tasks; see
            `hf_taskvec.editing.forget`.
        transport: Of a vector that was brought to its base from another: that other base and how; see
            `hf_taskvec.editing.transport`.
        rounding_error: Relative error, in norm, of the dtypes that the fine-tuned weights and the vector were saved in;
            the least it can be where the base's weights are in the same half precision.
        command: The command that made it.
        seconds: How long the making took, on the machine it ran on.
        license: Licence of the vector, by the Hub's name for it.
        tags: Further tags of its card on the Hub.
        language: Languages of class names and prompts, by their codes.
        repo_id, repo_commit: Repository and commit on the Hub that it was pulled from.
        num_entries: Number of entries over all parameters; filled in when the vector is published, for its card.
        layer_norms: Norm of each layer's delta; filled in when the vector is published, for its card.
        versions: Version of each library involved.
        parents: Provenance of the vectors this one was merged from.
    """

    kind: Kind = "difference"
    base: str | None = None
    base_revision: str | None = None
    base_hashes: Mapping[str, str] = field(default_factory=dict, repr=False)
    finetuned: str | None = None
    finetuned_revision: str | None = None
    architecture: str | None = None
    include_projection: bool = False
    left_out: int | None = None
    task: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    dataset_revision: str | None = None
    class_names: tuple[str, ...] = field(default=(), repr=False)
    templates: tuple[str, ...] = field(default=(), repr=False)
    data_settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    epochs: float | None = None
    steps: int | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    num_images: int | None = None
    seed: int | None = None
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] | None = field(default=None, repr=False)
    statistics: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    mean_gradient_norm: float | None = None
    scaling: float = 1.0
    compression: Mapping[str, Any] | None = None
    forgetting: Mapping[str, Any] | None = None
    transport: Mapping[str, Any] | None = None
    rounding_error: float | None = None
    command: str | None = None
    seconds: float | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    repo_id: str | None = None
    repo_commit: str | None = None
    num_entries: int | None = None
    layer_norms: Mapping[str, float] = field(default_factory=dict, repr=False)
    versions: Mapping[str, str] = field(default_factory=dict, repr=False)
    parents: tuple[VectorInfo, ...] = ()

    def __post_init__(self) -> None:
        """Brings every value into the form that a file can hold.

        Raises:
            ValueError: If it cannot: NaN, infinite, or an object that JSON has no form for.
        """
        check_known("kind of vector", self.kind, typing.get_args(Kind))
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            value = tuple(value) if spec.name == "parents" else plain(value, spec.name)
            object.__setattr__(self, spec.name, tuple(value) if isinstance(value, list) else value)

    def check_readable(self) -> None:
        """Raises a `ValueError` if its reader refused a file with this provenance, for a control character say."""
        try:
            VectorInfo.from_dict(self.to_dict())
        except CheckpointError as error:
            raise ValueError(f"the provenance could not be read again: {error}") from None

    @property
    def base_fingerprint(self) -> str | None:
        """One hash over `base_hashes`; `None` if the base is unknown."""
        return fingerprint(self.base_hashes) if self.base_hashes else None

    @property
    def label(self) -> str:
        """A short name for messages and tables."""
        return self.task or self.method or self.kind

    @property
    def transductive(self) -> bool:
        """Whether test images were used in the making, of this vector or of one it was merged from."""
        return any(one.settings.get("transductive") is True for one in self.lineage())

    @property
    def tangent(self) -> bool:
        """Whether this vector, or one it was merged from, was trained in the tangent space of its base."""
        return any(one.settings.get("tangent") is True for one in self.lineage())

    def lineage(self) -> Iterator[VectorInfo]:
        """This provenance, then that of every vector it was merged from, and of what those were merged from."""
        yield self
        for parent in self.parents:
            yield from parent.lineage()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; defaults are left out, and parents repeat neither hashes nor norms."""
        result: dict[str, Any] = {"kind": self.kind}
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if spec.name == "parents":
                continue
            default = spec.default_factory() if spec.default_factory is not dataclasses.MISSING else spec.default
            if value != default:
                result[spec.name] = plain(value, spec.name)
        if self.parents:
            drop = {"base_hashes", "layer_norms"}
            result["parents"] = [
                {key: value for key, value in parent.to_dict().items() if key not in drop} for parent in self.parents
            ]
        return result

    @classmethod
    def merged(
        cls,
        infos: Sequence[VectorInfo],
        *,
        method: str,
        settings: Mapping[str, Any] | None = None,
        recipe: Mapping[str, Any] | None = None,
        statistics: Sequence[Mapping[str, Any]] = (),
    ) -> VectorInfo:
        """Provenance of a vector made from others of one base.

        Args:
            infos: Theirs.
            method: How they were merged.
            settings: Settings of the method.
            recipe: What it takes to repeat the merge.
            statistics: Where the statistics of each vector come from, if the merge looked at data.

        Example:
            >>> merged = VectorInfo.merged([VectorInfo(task="mnist"), VectorInfo(task="svhn")], method="sum")
            >>> [parent.task for parent in merged.parents]
            ['mnist', 'svhn']
        """
        first = infos[0]
        hashes = {name: value for info in reversed(infos) for name, value in info.base_hashes.items()}
        return cls(
            kind="merged",
            base=first.base,
            base_revision=first.base_revision,
            base_hashes=hashes,
            architecture=first.architecture,
            include_projection=any(info.include_projection for info in infos),
            method=method,
            settings=settings or {},
            recipe=recipe,
            statistics=tuple(statistics),
            versions=first.versions,
            parents=tuple(infos),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VectorInfo:
        """Reads what `to_dict` wrote.

        Raises:
            CheckpointError: If an entry is unknown or of a wrong type.
        """
        check_sane("task vector config", values)
        hints = typing.get_type_hints(cls)
        entries: dict[str, Any] = {}
        for key, value in values.items():
            if key not in hints:
                raise CheckpointError(f"task vector config has an unknown entry {key[:80]!r}; update hf_taskvec")
            if key == "parents":
                if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
                    raise CheckpointError("task vector config: 'parents' must be a list of mappings")
                entries[key] = tuple(cls.from_dict(item) for item in value)
            else:
                entries[key] = checked(key, value, hints[key])
        return cls(**entries)


def library_versions() -> dict[str, str]:
    """Versions of Python and the libraries that decide a vector's values."""
    names = ("hf-taskvec", "torch", "transformers", "accelerate", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
