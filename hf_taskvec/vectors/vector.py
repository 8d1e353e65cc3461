"""`TaskVector`: named differences between fine-tuned and base weights, with their provenance."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

import torch
from torch import Tensor, nn

from hf_taskvec.hub.access import HubAccess, HubKeywords
from hf_taskvec.hub.publisher import Publishable
from hf_taskvec.vectors.algebra import Algebra
from hf_taskvec.vectors.application import add_in_place, check_fits, module_of, named_as
from hf_taskvec.vectors.applied import applied_key, write_applied
from hf_taskvec.vectors.checkpoints import check_checkpoint_folder, checkpoint_of, open_checkpoint
from hf_taskvec.vectors.compression import compress
from hf_taskvec.vectors.differences import Coverage, difference
from hf_taskvec.vectors.factors import AdapterParts
from hf_taskvec.vectors.files import read_vector, write_vector
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.pairs import between_checkpoints, between_models
from hf_taskvec.weights.arithmetic import check_scaling
from hf_taskvec.weights.safetensors import MAX_SHARD_SIZE

if TYPE_CHECKING:
    from hf_taskvec.models.base import Base

Target = TypeVar("Target", bound="nn.Module | Base")


class TaskVector(Algebra, Publishable):
    """Named deltas of the parameters of one base, and where they come from (Ilharco et al., arXiv 2212.04089).

    A value: every operation returns a new vector, and two vectors are equal if their deltas are, in names, dtypes and
    values; where they come from does not count. Dots accumulate in float64.

    Args:
        deltas: One tensor per parameter, under canonical names. Files stay memory-mapped.
        info: Provenance; an empty one if left out.

    Raises:
        IncompatibleVectorsError: If a delta is not of a floating dtype.

    Example:
        >>> one, two = TaskVector({"w": torch.tensor([3.0, 4.0])}), TaskVector({"w": torch.tensor([0.0, 1.0])})
        >>> (one - 2 * two)["w"], one.norm()
        (tensor([3., 2.]), 5.0)
    """

    # -- making -------------------------------------------------------------------------------------------------------

    @classmethod
    def from_models(
        cls,
        base: nn.Module | Base,
        finetuned: nn.Module | Base,
        *,
        include_projection: bool = False,
        vision_only: bool = False,
        allow_rounding: bool = False,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        info: VectorInfo | None = None,
    ) -> TaskVector:
        """The difference of two models of one architecture, in float32 (float64 for float64 models).

        Args:
            base: The model before fine-tuning.
            finetuned: The model after it.
            include_projection: Whether the vector covers `visual_projection` besides the vision tower.
            vision_only: Whether changes outside of what the vector covers (the text tower, say) are left out, which is
                logged and recorded, instead of refused. Parameters that only rounding changed are never refused.
            allow_rounding: Whether more than half of the vector's norm may be the rounding of fine-tuned weights that
                are in a narrower dtype than the base.
            include: Patterns of the names that the vector covers, in which `*` stands for anything: "text_model.*".
                By default the vision tower of a CLIP, and all parameters of any other model.
            exclude: Patterns of those that it does not, as of a head that only one model has: "classifier.*". What they
                leave out though it changed is logged and counted in the provenance.
            info: Provenance to keep; the base's hashes are filled in.

        Raises:
            IncompatibleVectorsError: If names or shapes differ, if weights outside the vector's reach changed, or if
                most of the vector is rounding.
            CheckpointError: If weights are quantised.
            NonFiniteError: If one holds NaN or Inf.

        Example:
            >>> before, after = nn.Linear(3, 2), nn.Linear(3, 2)
            >>> len(TaskVector.from_models(before, after))
            2
        """
        coverage = Coverage(include_projection, vision_only, allow_rounding, include, exclude)
        return cls(*between_models(module_of(base), module_of(finetuned), coverage, info or VectorInfo()))

    @classmethod
    def from_weights(
        cls,
        base: Mapping[str, Tensor],
        finetuned: Mapping[str, Tensor],
        *,
        include_projection: bool = False,
        vision_only: bool = False,
        allow_rounding: bool = False,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        info: VectorInfo | None = None,
    ) -> TaskVector:
        """The difference of two sets of weights under canonical names; see `from_models`."""
        coverage = Coverage(include_projection, vision_only, allow_rounding, include, exclude)
        return cls(*difference(base, finetuned, coverage, info or VectorInfo()))

    @classmethod
    def from_checkpoints(
        cls,
        base: str | os.PathLike[str],
        finetuned: str | os.PathLike[str],
        *,
        base_revision: str | None = None,
        revision: str | None = None,
        include_projection: bool = False,
        vision_only: bool = False,
        allow_rounding: bool = False,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        task: str | None = None,
        **hub: Unpack[HubKeywords],
    ) -> TaskVector:
        """The difference of two checkpoints of Transformers, by Hub id, folder or `.safetensors` file.

        No model is built and no delta kept: each is taken from the mapped files when it is used. A tied parameter
        counts once, buffers are no parameters.

        Args:
            base: The checkpoint before fine-tuning; `hf-taskvec/tiny-clip` is the embedded one.
            finetuned: The checkpoint after it, in any layout of that model.
            base_revision: Branch, tag or commit of `base`.
            revision: Branch, tag or commit of `finetuned`.
            include_projection: As in `from_models`.
            vision_only: As in `from_models`.
            allow_rounding: As in `from_models`.
            include: As in `from_models`.
            exclude: As in `from_models`.
            task: Name of the task, for the provenance.
            **hub: `token`, `cache_dir`, `local_files_only`, `force_download`; see `HubAccess`.

        Raises:
            CheckpointError: If a checkpoint has no safetensors weights, is damaged or quantised.
            IncompatibleVectorsError: As in `from_models`.
            UnknownNameError: If a pattern fits no parameter.

        Example:
            >>> TaskVector.from_checkpoints("hf-taskvec/tiny-clip", "hf-taskvec/tiny-clip").is_zero
            True
        """
        access = HubAccess.of(hub)
        before = open_checkpoint(base, revision=base_revision, access=access)
        after = open_checkpoint(finetuned, revision=revision, access=access)
        coverage = Coverage(include_projection, vision_only, allow_rounding, include, exclude)
        return cls(*between_checkpoints(before, after, coverage, VectorInfo(task=task)))

    @classmethod
    def from_adapter(
        cls,
        adapter: str | os.PathLike[str],
        *,
        base: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        task: str | None = None,
        vision_only: bool = False,
        **hub: Unpack[HubKeywords],
    ) -> TaskVector:
        """The exact weight change of a `peft` LoRA adapter.

        Args:
            adapter: Hub id or folder.
            base: Hub id or folder of the base. With it, names and shapes are checked, the vector knows its base and
                covers the whole vision tower (parameters without factors are zero), so that it merges with any vector
                of that base. Without it the vector covers the adapted parameters alone; `covering` adds the others.
            revision: Branch, tag or commit of the adapter.
            task: Name of the task, for the provenance.
            vision_only: Whether what the adapter changes outside the vision tower, and whole modules that were trained
                beside it such as a classifier, are left out, which is logged and recorded, instead of refused.
            **hub: `token`, `cache_dir`, `local_files_only`, `force_download`; see `HubAccess`.

        Raises:
            CheckpointError: If it is no LoRA adapter, is damaged, or changes more than the product of its factors:
                DoRA and other variants, trained biases, saved modules, initialisations that edit the base.
            IncompatibleVectorsError: If it adapts parameters outside the vision tower or does not fit `base`.
        """
        parts = AdapterParts.from_pretrained(
            adapter, base=base, revision=revision, task=task, vision_only=vision_only, **hub
        )
        return cls(parts.deltas, parts.info)

    # -- compressing --------------------------------------------------------------------------------------------------

    def compress(self, method: str = "int4", **settings: Any) -> TaskVector:
        """The vector in fewer bytes; merging, applying and whatever else reads it decodes one parameter at a time.

        What it lost stands in `info.compression`: `error`, the norm of the difference over that of the vector, and
        `share`, its bytes over those of float32. Parameters of one dimension stay as they are, where few bits would
        save little and cost much. Saved, it stays packed; `vector.to("float32")` unpacks it.

        Args:
            method: "int8", "int4", "int3", "int2": even levels (TVQ, arXiv 2503.06921), `per` "row" or "tensor" as in
                the paper, where one outlier takes the levels of all others, which is told. `clip` lets the levels span
                less than the range where that lowers the squared error, which the paper does not. "sign": one bit an
                entry, and the mean magnitude `per` "tensor" or "row" (BitDelta, arXiv 2402.10193, without its training
                of the scales). "sparse": the largest entries of each parameter, a fraction `density`. "svd": the
                leading singular values of each matrix, a fraction `rank`. "float16", "bfloat16": what halves it.
            **settings: Those of the method.

        Raises:
            UnknownNameError: If there is no such method or setting.
            ValueError: If a setting is out of range.
            NonFiniteError: If a delta holds NaN or Inf, or has entries beyond what the packing can hold.

        Example:
            >>> vector = TaskVector({"w": torch.eye(64)}).compress("int2")
            >>> torch.equal(vector["w"], torch.eye(64)), vector.info.compression["error"]
            (True, 0.0)
        """
        packed, told = compress(self.deltas, method, settings)
        if self.info.compression is not None:  # on top of what was lost before
            told["error"] = math.hypot(told["error"], self.info.compression.get("error", 0.0))
        return type(self)(packed, dataclasses.replace(self.info, compression=told))

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        max_shard_size: int | str = MAX_SHARD_SIZE,
    ) -> None:
        """Writes `task_vector.safetensors` and `task_vector_config.json`; the folder appears whole or not at all.

        Args:
            save_directory: A new folder, or one that holds a task vector, whose files are replaced; others stay.
            dtype: Floating dtype of the file, by value or name; by default the vector's, and a compressed one stays
                packed. What it rounds away is told by `rounding_error` in the provenance of the file.
            max_shard_size: Size above which the weights are split into shards.

        Raises:
            NonFiniteError: If a delta holds NaN or Inf, or overflows `dtype`.
            OutputExistsError: If the folder holds something else.
            ValueError: If the provenance could not be read again.

        Example:
            >>> from tempfile import mkdtemp
            >>> vector, folder = TaskVector({"w": torch.ones(2)}), mkdtemp()
            >>> vector.save_pretrained(folder)
            >>> TaskVector.from_pretrained(folder) == vector
            True
        """
        write_vector(save_directory, self.deltas, self.info, dtype=dtype, max_shard_size=max_shard_size)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        subfolder: str = "",
        verify: bool = False,
        **hub: Unpack[HubKeywords],
    ) -> TaskVector:
        """Opens a saved vector by Hub id or folder, memory-mapped.

        Args:
            source: Hub id or folder.
            revision: Branch, tag or commit.
            subfolder: Folder inside the repository.
            verify: Whether to read the weights of a folder once and compare them with the fingerprint that was stored
                with them; what comes from the Hub is always compared, once.
            **hub: `token`, `cache_dir`, `local_files_only`, `force_download`; see `HubAccess`.

        Raises:
            CheckpointError: If the files are missing, damaged or hostile.
            NotCachedError: If the Hub is out of reach and the cache has no copy.

        Example:
            >>> from tempfile import mkdtemp
            >>> folder = mkdtemp()
            >>> TaskVector({"w": torch.ones(2)}).save_pretrained(folder)
            >>> TaskVector.from_pretrained(folder, verify=True)["w"]
            tensor([1., 1.])
        """
        access = HubAccess.of(hub)
        return cls(*read_vector(source, revision=revision, subfolder=subfolder, access=access, verify=verify))

    # -- applying -----------------------------------------------------------------------------------------------------

    def apply_to(self, model: Target, *, scaling: float = 1.0, allow_other_base: bool = False) -> Target:
        """A copy of a model with `scaling` times the vector added to its weights.

        Args:
            model: A `Base`, or a model that has the vector's parameters: any `PreTrainedModel`, with another head too.
            scaling: The factor; 1 gives the fine-tuned model back.
            allow_other_base: Whether to add the vector to weights other than those it was made from; the model's
                configuration records it.

        Raises:
            BaseMismatchError: If the weights are not those of the vector's base.
            IncompatibleVectorsError: If the model lacks a parameter or has another shape.
            NonFiniteError: If the vector, `scaling` or the result is not finite.

        Example:
            >>> before, after = nn.Linear(3, 2), nn.Linear(3, 2)
            >>> applied = TaskVector.from_models(before, after).apply_to(before)
            >>> torch.allclose(applied.weight, after.weight, atol=1e-6)
            True
        """
        scaling = check_scaling(scaling)
        module = module_of(model)
        where = "this model" if isinstance(model, nn.Module) else repr(model.name)
        other = check_fits(self, named_as(self, module), allow_other_base=allow_other_base, where=where)
        self.check_finite()
        result = copy.deepcopy(module)
        add_in_place(self, result, scaling)
        if other and (config := getattr(result, "config", None)):  # the model's own save_pretrained keeps it
            config.task_vector_of_other_base = self.info.base or "unknown"
        if isinstance(model, nn.Module):
            return cast(Target, result)
        transductive = model.transductive or self.info.transductive
        return cast(Target, dataclasses.replace(model, model=result, edited=True, transductive=transductive))

    def save_checkpoint(
        self,
        base: str | os.PathLike[str] | Base | None = None,
        output_dir: str | os.PathLike[str] | None = None,
        *,
        scaling: float = 1.0,
        revision: str | None = None,
        allow_other_base: bool = False,
        resume: bool = False,
        **hub: Unpack[HubKeywords],
    ) -> None:
        """Writes base plus vector as a checkpoint folder for `from_pretrained`; no model is built.

        The folder keeps the base's layout, dtypes and side files (tokenizer, processor, settings of generation), so it
        loads with the class that loads the base.
        `task_vector_applied.json` in it records the vector, the scaling and the base.

        Args:
            base: Hub id, folder or `Base`; the one that the vector names if left out.
            output_dir: A new folder, or one that this method wrote and nothing was added to.
            scaling: The factor of the vector.
            revision: Branch, tag or commit of the base; by default the one the vector was made from if it names it.
            allow_other_base: Whether to add the vector to weights other than those it was made from; recorded.
            resume: Whether a call that is killed leaves what it has written for the next one to go on from; the key
                of that takes a pass over the vector.
            **hub: `token`, `cache_dir`, `local_files_only`, `force_download`; see `HubAccess`.

        Raises:
            BaseMismatchError, IncompatibleVectorsError, NonFiniteError: As `apply_to`.
            CheckpointError: If there is no such base.
            OutputExistsError: If the folder holds something else.
            ValueError: If the provenance could not be read again.

        Example:
            >>> import os, tempfile
            >>> vector = TaskVector.from_checkpoints("hf-taskvec/tiny-clip", "hf-taskvec/tiny-clip")
            >>> folder = os.path.join(tempfile.mkdtemp(), "model")
            >>> vector.save_checkpoint(output_dir=folder, scaling=0.5)
            >>> "model.safetensors" in os.listdir(folder)
            True
        """
        if output_dir is None:
            raise ValueError("save_checkpoint needs a folder to write: save_checkpoint(output_dir=...)")
        scaling = check_scaling(scaling)
        self.info.check_readable()
        check_checkpoint_folder(output_dir)
        checkpoint = checkpoint_of(base, self.info, revision=revision, access=HubAccess.of(hub))
        self.check_finite()
        key = applied_key(self, checkpoint, scaling) if resume else None
        write_applied(self, checkpoint, output_dir, scaling=scaling, allow_other_base=allow_other_base, key=key)
