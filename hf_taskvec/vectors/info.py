"""`VectorInfo`: where a task vector comes from, as it stands in its `task_vector_config.json`."""

from __future__ import annotations

import dataclasses
import platform
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal

from hf_taskvec.errors import CheckpointError
from hf_taskvec.weights.fingerprint import fingerprint
from hf_taskvec.weights.folders import check_text

MAX_DEPTH = 64
Kind = Literal["difference", "fine-tuned", "gradient", "merged", "lora"]


@dataclass(frozen=True)
class VectorInfo:
    """Provenance of a task vector; `None` where a fact is unknown or does not apply.

    Attributes:
        kind: How the vector was made.
        base: Hub id or folder name of the base.
        base_revision: Commit of the base on the Hub.
        base_hashes: Hash of each base parameter the vector touches.
        include_projection: Whether `visual_projection` was trained and is part of the vector.
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
        scaling: Factor the deltas already hold, 1 for an unscaled vector.
        rounding_error: Relative error, in norm, of the dtype the vector was saved in.
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
    include_projection: bool = False
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
    scaling: float = 1.0
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

    @property
    def base_fingerprint(self) -> str | None:
        """One hash over `base_hashes`; `None` if the base is unknown."""
        return fingerprint(self.base_hashes) if self.base_hashes else None

    @property
    def label(self) -> str:
        """A short name for messages and tables."""
        return self.task or self.method or self.kind

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; defaults are left out, and parents repeat neither hashes nor norms."""
        result: dict[str, Any] = {"kind": self.kind}
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            default = spec.default_factory() if spec.default_factory is not dataclasses.MISSING else spec.default
            if value != default:
                result[spec.name] = _plain(value)
        if self.parents:
            drop = {"base_hashes", "layer_norms"}
            result["parents"] = [
                {key: value for key, value in parent.to_dict().items() if key not in drop} for parent in self.parents
            ]
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> VectorInfo:
        """Reads what `to_dict` wrote.

        Raises:
            CheckpointError: If an entry is unknown or of a wrong type.
        """
        _check_sane("task vector config", values)
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
                entries[key] = _checked(key, value, hints[key])
        return cls(**entries)


def _plain(value: Any) -> Any:
    """A field's value as JSON has it."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def _checked(key: str, value: Any, hint: Any) -> Any:
    """`value` if it has the type that the field's annotation names."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        origin = typing.get_origin(option)
        if origin is Literal and value in typing.get_args(option):
            return value
        if origin is not None and issubclass(origin if isinstance(origin, type) else object, Mapping):
            if isinstance(value, dict) and _values_fit(value, typing.get_args(option)[1]):
                return value
        elif origin is tuple:
            if isinstance(value, (list, tuple)) and all(type(item) is str for item in value):
                return tuple(value)
        elif option is float and type(value) in (int, float):
            return float(value)
        elif isinstance(option, type) and type(value) is option:
            return value
    raise CheckpointError(f"task vector config: {key!r} must be {hint}, got {type(value).__name__} {str(value)[:80]!r}")


def _check_sane(where: str, value: Any, *, depth: int = 0) -> None:
    """Raises if a JSON value holds absurd strings, numbers or nesting."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{where} is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        check_text(value, where, max_length=4000)
    elif isinstance(value, (int, float)) and not abs(value) < 1 << 63:  # also refuses NaN
        raise CheckpointError(f"{where} holds a number out of range")
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str):
                check_text(key, where)
            inside = f"task vector config: {key!r}" if depth == 0 else where
            _check_sane(inside, item, depth=depth + 1)


def _values_fit(values: Mapping[str, Any], kind: Any) -> bool:
    kinds = (int, float) if kind is float else (kind,)
    return kind is Any or all(type(value) in kinds for value in values.values())


def library_versions() -> dict[str, str]:
    """Versions of Python and the libraries that decide a vector's values."""
    names = ("hf-taskvec", "torch", "transformers", "accelerate", "datasets")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
