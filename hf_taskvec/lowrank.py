"""Deltas of low rank: kept as factors, multiplied out when needed, written as an adapter for `peft`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError
from hf_taskvec.info import VectorInfo
from hf_taskvec.storage import atomic_folder, write_safetensors
from hf_taskvec.vector import TaskVector

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Factors:
    """A delta of low rank: `scaling * left @ right`, reshaped.

    Attributes:
        left: (rows, r).
        right: (r, columns).
        scaling: `alpha / r`, or `alpha / sqrt(r)` for rsLoRA.
        shape: Shape of the parameter.
    """

    left: Tensor
    right: Tensor
    scaling: float
    shape: torch.Size

    def delta(self) -> Tensor:
        """The product, in float64 and rounded once to float32 (float64 factors stay so)."""
        wide = torch.promote_types(self.left.dtype, torch.float32)
        return (self.left.double() @ self.right.double()).mul_(self.scaling).to(wide).reshape(self.shape)


class LowRankDeltas(Mapping[str, Tensor]):
    """Deltas multiplied out on access; parameters of `zeros` that have no factors are zero."""

    def __init__(self, factors: Mapping[str, Factors], zeros: Mapping[str, torch.Size] | None = None) -> None:
        self.factors = dict(factors)
        self.shapes = {**(zeros or {}), **{name: item.shape for name, item in self.factors.items()}}
        self.dtype = torch.float32
        for item in self.factors.values():
            self.dtype = torch.promote_types(self.dtype, item.left.dtype)
        self.device = next((item.left.device for item in self.factors.values()), torch.device("cpu"))

    def to(self, device: torch.device) -> LowRankDeltas:
        """The deltas with their factors on another device."""
        moved = {
            name: replace(item, left=item.left.to(device), right=item.right.to(device))
            for name, item in self.factors.items()
        }
        return LowRankDeltas(moved, {name: shape for name, shape in self.shapes.items() if name not in moved})

    def __getitem__(self, name: str) -> Tensor:
        if name in self.factors:
            return self.factors[name].delta()
        return torch.zeros((), dtype=self.dtype, device=self.device).expand(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA adapter, opened.

    Attributes:
        factors: Factors of each adapted parameter, under canonical names.
        info: Provenance.
        zeros: Shapes of the parameters to cover besides, with a delta of zero.
    """

    factors: Mapping[str, Factors]
    info: VectorInfo
    zeros: Mapping[str, torch.Size] = field(default_factory=dict)

    def to_vector(self) -> TaskVector:
        """The exact weight change; each delta is multiplied out when it is used."""
        return TaskVector(LowRankDeltas(self.factors, self.zeros), self.info)

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes an adapter that `peft` loads, its scalings multiplied into the left factors.

        Only for parameters of linear layers; names are canonical, so it loads onto a `CLIPModel`.

        Raises:
            IncompatibleVectorsError: If a parameter is no matrix of a linear layer.
            OutputExistsError: If the folder holds something else than an adapter.
        """
        from peft import LoraConfig  # slow to import, and merging needs it nowhere else

        tensors: dict[str, Tensor] = {}
        for name, item in self.factors.items():
            if len(item.shape) != 2 or name.endswith("embedding.weight"):
                raise IncompatibleVectorsError(f"{name!r} belongs to no linear layer; save the vector instead")
            module = f"{PREFIX}{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = item.right
            tensors[f"{module}.lora_B.weight"] = item.left * item.scaling
        ranks = {re.escape(name.removesuffix(".weight")): item.right.shape[0] for name, item in self.factors.items()}
        config = LoraConfig(
            r=max(ranks.values()), lora_alpha=max(ranks.values()), rank_pattern=dict(ranks), alpha_pattern=dict(ranks),
            target_modules=sorted(name.removesuffix(".weight") for name in self.factors), inference_mode=True,
            base_model_name_or_path=self.info.base, revision=self.info.base_revision,
        )  # fmt: skip
        with atomic_folder(save_directory, marker=CONFIG) as folder:
            shapes = {name: tensor.shape for name, tensor in tensors.items()}
            write_safetensors(folder / WEIGHTS, tensors.items(), shapes=shapes, dtype=torch.float32)
            config.save_pretrained(os.fspath(folder))
