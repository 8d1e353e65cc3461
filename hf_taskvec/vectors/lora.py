"""LoRA adapters as values: factors and provenance, read from `peft` and written as an adapter that it loads."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError
from hf_taskvec.hub.access import AnyPath
from hf_taskvec.vectors.adapter_config import CONFIG
from hf_taskvec.vectors.factors import PREFIX, WEIGHTS, AdapterParts
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import atomic_folder, write_json
from hf_taskvec.weights.names import shapes_of
from hf_taskvec.weights.safetensors import write_safetensors


class LoraAdapter(AdapterParts):
    """A LoRA adapter, opened."""

    def to_vector(self) -> TaskVector:
        """The exact weight change; each delta is multiplied out when it is used."""
        return TaskVector(self.deltas, self.info)

    def save_pretrained(self, save_directory: AnyPath) -> None:
        """Writes an adapter that `peft` loads, its scalings multiplied into the left factors.

        Only for parameters of linear layers; names are canonical, so it loads onto a `CLIPModel`.

        Args:
            save_directory: A new folder, or one that holds an adapter, whose files are replaced.

        Raises:
            IncompatibleVectorsError: If a parameter is no matrix of a linear layer.
            OutputExistsError: If the folder holds something else than an adapter.

        Example:
            >>> from tempfile import mkdtemp
            >>> from hf_taskvec.vectors.info import VectorInfo
            >>> from hf_taskvec.weights.lowrank import Factors
            >>> factors = Factors(torch.ones(2, 1), torch.ones(1, 3), 0.5, torch.Size([2, 3]))
            >>> folder = mkdtemp()
            >>> LoraAdapter({"vision_model.fc.weight": factors}, VectorInfo(kind="lora")).save_pretrained(folder)
            >>> LoraAdapter.from_pretrained(folder).to_vector()["vision_model.fc.weight"]
            tensor([[0.5000, 0.5000, 0.5000],
                    [0.5000, 0.5000, 0.5000]])
        """
        tensors: dict[str, Tensor] = {}
        for name, item in self.factors.items():
            if len(item.shape) != 2 or name.endswith("embedding.weight"):
                raise IncompatibleVectorsError(f"{name!r} belongs to no linear layer; save the vector instead")
            module = f"{PREFIX}{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = item.right
            tensors[f"{module}.lora_B.weight"] = item.left * item.scaling
        with atomic_folder(save_directory, marker=CONFIG, own=lambda name: name in (CONFIG, WEIGHTS)) as folder:
            write_safetensors(folder / WEIGHTS, tensors.items(), shapes=shapes_of(tensors), dtype=torch.float32)
            write_json(folder / CONFIG, self._config())

    def _config(self) -> dict[str, object]:
        """What `peft` reads: every factor with its own rank, and alpha equal to it, so that nothing is scaled again."""
        modules = {name.removesuffix(".weight"): item.right.shape[0] for name, item in self.factors.items()}
        ranks = {re.escape(module): rank for module, rank in modules.items()}
        return {
            "peft_type": "LORA",
            "task_type": None,
            "auto_mapping": None,
            "inference_mode": True,
            "bias": "none",
            "base_model_name_or_path": self.info.base,
            "revision": self.info.base_revision,
            "r": max(modules.values()),
            "lora_alpha": max(modules.values()),
            "lora_dropout": 0.0,
            "rank_pattern": ranks,
            "alpha_pattern": ranks,
            "target_modules": sorted(modules),
            "modules_to_save": None,
            "fan_in_fan_out": False,
            "use_rslora": False,
            "use_dora": False,
            "init_lora_weights": True,
        }
