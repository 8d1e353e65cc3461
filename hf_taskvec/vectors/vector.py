"""`TaskVector`: named differences between fine-tuned and base weights, with their provenance."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, Unpack

import torch
from torch import Tensor, nn

from hf_taskvec.errors import BaseMismatchError, IncompatibleVectorsError, NonFiniteError
from hf_taskvec.hub.access import HubAccess, HubKeywords
from hf_taskvec.hub.publisher import Publishable
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import check_compatible, merged_info
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.arithmetic import check_finite, dot, equal, same, scaled_sum, subtract
from hf_taskvec.weights.deltas import Deltas, deltas_of
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.names import PROJECTION, canonical_name, covered_names, differences, layer_of, parameters_of

if TYPE_CHECKING:
    from hf_taskvec.models.base import Base

Target = TypeVar("Target", bound="nn.Module | Base")
By = Literal["parameter", "layer"]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class TaskVector(Publishable):
    """Named deltas of the parameters of one base, and where they come from (Ilharco et al., arXiv 2212.04089).

    A value: every operation returns a new vector, and two vectors are equal if their deltas are, in names, dtypes and
    values; where they come from does not count. Dots accumulate in float64.

    Args:
        deltas: One tensor per parameter, under canonical names. Files stay memory-mapped.
        info: Provenance; an empty one if left out.

    Raises:
        IncompatibleVectorsError: If a delta is not of a floating dtype.
    """

    deltas: Deltas
    info: VectorInfo

    def __init__(self, deltas: Mapping[str, Tensor], info: VectorInfo | None = None) -> None:
        if not isinstance(deltas, Deltas):
            for name, delta in deltas.items():
                if not delta.is_floating_point():
                    raise IncompatibleVectorsError(f"{name!r} has dtype {delta.dtype}; a delta must be floating")
        object.__setattr__(self, "deltas", deltas_of(deltas))
        object.__setattr__(self, "info", info or VectorInfo())

    # -- making -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_models(
        cls, base: nn.Module, finetuned: nn.Module, *, include_projection: bool = False, info: VectorInfo | None = None
    ) -> TaskVector:
        """The difference of two models of one architecture, in float32 (float64 for float64 models).

        Args:
            base: The model before fine-tuning.
            finetuned: The model after it.
            include_projection: Whether the vector covers `visual_projection` besides the vision tower.
            info: Provenance to keep; the base's hashes are filled in.

        Raises:
            IncompatibleVectorsError: If names or shapes differ, or weights outside the vector's reach changed.
        """
        return cls.from_weights(
            parameters_of(base), parameters_of(finetuned), include_projection=include_projection, info=info
        )

    @classmethod
    def from_weights(
        cls,
        base: Mapping[str, Tensor],
        finetuned: Mapping[str, Tensor],
        *,
        include_projection: bool = False,
        info: VectorInfo | None = None,
    ) -> TaskVector:
        """The difference of two sets of weights under canonical names; see `from_models`."""
        names = covered_names(base, include_projection=include_projection)
        theirs = {name: finetuned[name] for name in covered_names(finetuned, include_projection=include_projection)}
        ours = {name: base[name] for name in names}
        if lines := differences(ours, theirs, left_name="the base", right_name="the fine-tuned model"):
            raise IncompatibleVectorsError(f"the models differ: {listed(lines, separator='; ')}", details=lines)
        for name in base:
            if name not in ours and name in finetuned and not equal(base[name], finetuned[name]):
                remedy = "pass include_projection=True" if name == PROJECTION else "it is no vision-tower task vector"
                raise IncompatibleVectorsError(f"{name!r} changed too, but the vector does not cover it: {remedy}")
        deltas = {name: subtract(theirs[name], ours[name]) for name in names}
        info = info or VectorInfo()
        info = dataclasses.replace(info, base_hashes=tensor_hashes(ours), include_projection=PROJECTION in ours)
        vector = cls(deltas, info)
        vector.check_finite()
        return vector

    @classmethod
    def from_checkpoints(
        cls,
        base: str | os.PathLike[str],
        finetuned: str | os.PathLike[str],
        *,
        base_revision: str | None = None,
        revision: str | None = None,
        include_projection: bool = False,
        task: str | None = None,
        **hub: Unpack[HubKeywords],
    ) -> TaskVector:
        """The difference of two checkpoints, by Hub id or folder; no model is built.

        Args:
            base: The checkpoint before fine-tuning.
            finetuned: The checkpoint after it, in any layout of a CLIP vision tower.
            base_revision: Branch, tag or commit of `base`.
            revision: Branch, tag or commit of `finetuned`.
            include_projection: Whether the vector covers `visual_projection`.
            task: Name of the task, for the provenance.
            **hub: `token`, `cache_dir`, `local_files_only`, `force_download`; see `HubAccess`.

        Raises:
            CheckpointError: If a checkpoint has no safetensors weights or is damaged.
            IncompatibleVectorsError: If names or shapes differ; all are listed.
        """
        from hf_taskvec.vectors.checkpoints import open_checkpoint

        access = HubAccess.of(hub)
        before = open_checkpoint(base, revision=base_revision, access=access)
        after = open_checkpoint(finetuned, revision=revision, access=access)
        info = VectorInfo(
            base=before.name, base_revision=before.commit, task=task,
            settings={"finetuned": after.name, "finetuned_revision": after.commit},
        )  # fmt: skip
        return cls.from_weights(before.tensors, after.tensors, include_projection=include_projection, info=info)

    @classmethod
    def from_adapter(
        cls,
        adapter: str | os.PathLike[str],
        *,
        base: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        **hub: Unpack[HubKeywords],
    ) -> TaskVector:
        """The exact weight change of a `peft` LoRA adapter, by Hub id or folder; see `hf_taskvec.vectors.lora`."""
        from hf_taskvec.vectors.lora import read_adapter

        return read_adapter(adapter, base=base, revision=revision, access=HubAccess.of(hub)).to_vector()

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        max_shard_size: int | str = "5GB",
    ) -> float:
        """Writes `task_vector.safetensors` and `task_vector_config.json`; the folder appears whole or not at all.

        Args:
            save_directory: A new folder, or one that holds a task vector, which is replaced.
            dtype: Floating dtype of the file; by default the vector's.
            max_shard_size: Size above which the weights are split into shards.

        Returns:
            The relative error in norm that the dtype brings, 0.0 if none.

        Raises:
            NonFiniteError: If a delta holds NaN or Inf, or overflows `dtype`.
            OutputExistsError: If the folder holds something else.
        """
        from hf_taskvec.vectors.files import save_vector

        return save_vector(self, save_directory, dtype=dtype, max_shard_size=max_shard_size)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        **hub: Unpack[HubKeywords],
    ) -> TaskVector:
        """Opens a saved vector by Hub id or folder, memory-mapped.

        Args:
            source: Hub id or folder.
            revision: Branch, tag or commit.
            subfolder: Folder inside the repository.
            **hub: `token`, `cache_dir`, `local_files_only`, `force_download`; see `HubAccess`.

        Raises:
            CheckpointError: If the files are missing, damaged or hostile.
            NotCachedError: If the Hub is out of reach and the cache has no copy.
        """
        from hf_taskvec.vectors.files import fetch_vector

        return fetch_vector(source, revision=revision, subfolder=subfolder, access=HubAccess.of(hub))

    # -- applying -----------------------------------------------------------------------------------------------------

    def apply_to(self, model: Target, *, scaling: float = 1.0, allow_other_base: bool = False) -> Target:
        """A copy of a model with `scaling` times the vector added to its weights.

        Args:
            model: A `Base`, a CLIP model or its vision model.
            scaling: The factor; 1 gives the fine-tuned model back.
            allow_other_base: Whether to add the vector to weights other than those it was made from; the model's
                configuration records it.

        Raises:
            BaseMismatchError: If the weights are not those of the vector's base.
            IncompatibleVectorsError: If the model lacks a parameter or has another shape.
            NonFiniteError: If the vector or `scaling` is not finite.
        """
        if not math.isfinite(scaling):
            raise NonFiniteError(f"scaling must be finite, got {scaling}")
        module = model if isinstance(model, nn.Module) else model.model
        where = "this model" if module is model else repr(model.name)
        other = self.check_fits(parameters_of(module), allow_other_base=allow_other_base, where=where)
        self.check_finite()
        result = copy.deepcopy(module)
        with torch.no_grad():
            for name, parameter in result.named_parameters():
                if (delta := self.deltas.get(canonical_name(name))) is not None:
                    parameter.copy_(scaled_sum(parameter, delta, scaling))
        if other and (config := getattr(result, "config", None)):  # the model's own save_pretrained keeps it
            config.task_vector_of_other_base = self.info.base or "unknown"
        return result if isinstance(model, nn.Module) else dataclasses.replace(model, model=result)

    def save_checkpoint(
        self,
        base: str | os.PathLike[str],
        output_dir: str | os.PathLike[str],
        *,
        scaling: float = 1.0,
        revision: str | None = None,
        allow_other_base: bool = False,
        **hub: Unpack[HubKeywords],
    ) -> None:
        """Writes base plus vector as a checkpoint folder for `CLIPModel` or `CLIPVisionModel`; no model is built.

        See `hf_taskvec.vectors.checkpoints.write_checkpoint`.
        """
        from hf_taskvec.vectors.checkpoints import write_checkpoint

        write_checkpoint(
            self, base, output_dir, scaling=scaling, revision=revision, allow_other_base=allow_other_base,
            access=HubAccess.of(hub),
        )  # fmt: skip

    def check_fits(
        self, weights: Mapping[str, Tensor], *, allow_other_base: bool = False, where: str = "this model"
    ) -> list[str]:
        """Raises unless `weights`, under canonical names, are those of the vector's base.

        Returns:
            The parameters in which they differ from the base, if that is allowed.
        """
        lines = []
        for name, delta in self.deltas.items():
            if name not in weights:
                lines.append(f"{name!r} is in the vector but not in the model")
            elif weights[name].shape != delta.shape:
                lines.append(f"{name!r} has shape {tuple(delta.shape)}, in the model {tuple(weights[name].shape)}")
        if lines:
            raise IncompatibleVectorsError(f"vector and model differ: {listed(lines, separator='; ')}", details=lines)
        known = self.info.base_hashes
        hashes = tensor_hashes({name: weights[name] for name in self.deltas}) if known else {}
        other = [name for name, value in hashes.items() if known.get(name) != value]
        if other and not allow_other_base:
            raise BaseMismatchError(
                f"the vector {self.info.label!r} was made from {self.info.base or 'another base'}, and {where} has "
                f"other values in {len(other)} of {len(hashes)} parameters, first {', '.join(map(repr, other[:3]))}. "
                "Load the base it was made from, or pass allow_other_base=True.",
                details=other,
            )
        return other

    def check_finite(self) -> None:
        """Raises a `NonFiniteError` that names the first parameter holding NaN or Inf."""
        for name, delta in self.deltas.items():
            check_finite(name, delta)

    # -- algebra ------------------------------------------------------------------------------------------------------

    def __add__(self, other: TaskVector) -> TaskVector:
        return self._combine(other, torch.add)

    def __radd__(self, other: object) -> TaskVector:
        return self if other == 0 else NotImplemented  # sum() starts from the integer 0

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self._combine(other, torch.sub)

    def __mul__(self, factor: float) -> TaskVector:
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return self._map(
            lambda delta: delta * factor, info=dataclasses.replace(self.info, scaling=self.info.scaling * factor)
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> TaskVector:
        return self * (1 / divisor) if isinstance(divisor, (int, float)) else NotImplemented

    def __neg__(self) -> TaskVector:
        return self * -1.0

    def to(self, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> TaskVector:
        """The vector in another dtype or on another device."""
        return self._map(lambda delta: delta.to(device=device, dtype=dtype), info=self.info)

    def dot(self, other: TaskVector) -> float:
        """The inner product with another vector."""
        self._check_same(other)
        return math.fsum(dot(delta, other.deltas[name]) for name, delta in self.deltas.items())

    def norm(self) -> float:
        """The Euclidean norm."""
        return math.sqrt(self.dot(self))

    def cosine(self, other: TaskVector) -> float:
        """The cosine of the angle to another vector; 0.0 if either is zero."""
        product = self.norm() * other.norm()
        return max(-1.0, min(1.0, self.dot(other) / product)) if product > 0 else 0.0

    def norms(self, *, by: By = "parameter") -> dict[str, float]:
        """The norm of each parameter's delta, or of each layer's."""
        return {key: math.sqrt(value) for key, value in self.dots(self, by=by).items()}

    def dots(self, other: TaskVector, *, by: By = "parameter") -> dict[str, float]:
        """The inner product with another vector, per parameter or per layer."""
        self._check_same(other)
        result: dict[str, float] = {}
        for name, delta in self.deltas.items():
            key = layer_of(name) if by == "layer" else name
            result[key] = result.get(key, 0.0) + dot(delta, other.deltas[name])
        return result

    def cosines(self, other: TaskVector, *, by: By = "parameter") -> dict[str, float]:
        """The cosine with another vector, per parameter or per layer; 0.0 where either is zero."""
        left, right = self.norms(by=by), other.norms(by=by)
        return {
            key: value / (left[key] * right[key]) if left[key] * right[key] > 0 else 0.0
            for key, value in self.dots(other, by=by).items()
        }

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def num_entries(self) -> int:
        """Number of entries over all deltas."""
        return sum(shape.numel() for shape in self.deltas.shapes.values())

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype among the deltas."""
        return self.deltas.dtype

    @property
    def device(self) -> torch.device:
        """Where the deltas lie."""
        return self.deltas.device

    def __getitem__(self, name: str) -> Tensor:
        """The delta of one parameter; names of any layout of a CLIP vision tower do."""
        for known in (name, canonical_name(name)):
            if known in self.deltas:
                return self.deltas[known]
        close = difflib.get_close_matches(name, list(self.deltas), n=1)
        raise KeyError(f"no parameter {name!r} in the vector." + (f" Did you mean {close[0]!r}?" if close else ""))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.deltas or canonical_name(name) in self.deltas)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TaskVector):
            return NotImplemented
        if self.deltas is other.deltas:
            return True
        if dict(self.deltas.shapes) != dict(other.deltas.shapes):
            return False
        return all(same(self.deltas[name], other.deltas[name]) for name in self.deltas.shapes)

    def __hash__(self) -> int:
        """Equal for equal vectors, and taken from names and shapes alone: no delta is read."""
        return hash(frozenset(self.deltas.shapes.items()))

    def __len__(self) -> int:
        return len(self.deltas)

    def __iter__(self) -> Iterator[str]:
        return iter(self.deltas)

    def __repr__(self) -> str:
        return f"TaskVector({self.info.label!r}, {len(self)} parameters, {self.num_entries:,} entries)"

    def _map(self, change: Callable[[Tensor], Tensor], *, info: VectorInfo) -> TaskVector:
        return TaskVector({name: change(delta) for name, delta in self.deltas.items()}, info)

    def _combine(self, other: TaskVector, operation: Callable[[Tensor, Tensor], Tensor]) -> TaskVector:
        if not isinstance(other, TaskVector):
            return NotImplemented
        self._check_same(other)
        deltas = {name: operation(delta, other.deltas[name]) for name, delta in self.deltas.items()}
        return TaskVector(deltas, merged_info([self, other], "sum" if operation is torch.add else "difference"))

    def _check_same(self, other: TaskVector) -> None:
        check_compatible([self, other])
