"""LoRA adapters as values: factors and provenance, written as an adapter that `peft` loads."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import atomic_folder
from hf_taskvec.weights.lowrank import Factors, LowRankDeltas
from hf_taskvec.weights.safetensors import write_safetensors

CONFIG = "adapter_config.json"


WEIGHTS = "adapter_model.safetensors"


PREFIX = "base_model.model."


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
