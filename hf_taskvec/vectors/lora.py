"""LoRA adapters of `peft`, read as exact weight changes."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError
from hf_taskvec.hub.access import HubAccess
from hf_taskvec.hub.fetch import Wanted, fetch_folder
from hf_taskvec.vectors.adapter import CONFIG, WEIGHTS, LoraAdapter
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.arithmetic import check_finite
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.folders import read_json
from hf_taskvec.weights.lowrank import Factors
from hf_taskvec.weights.names import PROJECTION, canonical, covered_names
from hf_taskvec.weights.safetensors import open_safetensors

_KEY = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.weight)?$")
# Initialisations that also edit the base, so that the adapter alone is not the change of its weights.
_BASE_EDITING = ("pissa", "olora", "corda", "loftq", "lora_ga")
_REFUSED = {
    "modules_to_save": "trains whole modules besides the factors",
    "layer_replication": "replicates layers",
    "trainable_token_indices": "trains single tokens",
    "target_parameters": "targets bare parameters",
    "lora_bias": "trains a bias in the factors",
    "use_qalora": "is made for a quantised base",
    "alora_invocation_tokens": "acts on some tokens only, so it is no change of weights",
    "megatron_config": "is made for Megatron layers",
}


def read_adapter(
    adapter: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    revision: str | None = None,
    access: HubAccess | None = None,
) -> LoraAdapter:
    """Opens a `peft` LoRA adapter.

    Args:
        adapter: Hub id or folder.
        base: Hub id or folder of the base. With it, names and shapes are checked, the vector knows its base and covers
            the whole vision tower (parameters without factors are zero), so it merges with any vector of that base.
        revision: Branch, tag or commit of the adapter.
        access: How the Hub is reached.

    Raises:
        CheckpointError: If it is no LoRA adapter, is damaged, or changes more than the product of its factors:
            DoRA and other variants, trained biases, saved modules, initialisations that edit the base.
        IncompatibleVectorsError: If it adapts parameters outside the vision tower or does not fit `base`.
    """
    folder = fetch_folder(adapter, Wanted([CONFIG, WEIGHTS]), revision=revision, access=access)
    config = _read_config(folder.path, folder.name)
    if not (folder.path / WEIGHTS).is_file():
        raise CheckpointError(
            f"{folder.name} has no {WEIGHTS}. Pickled adapters (.bin) are refused, since loading them can run code: "
            "load it with peft where you trust it and save it again with save_pretrained"
        )
    factors = _read_factors(open_safetensors([folder.path / WEIGHTS]), config)
    covered = covered_names(factors, include_projection=True)
    if outside := [name for name in factors if name not in covered]:
        raise IncompatibleVectorsError(
            f"the adapter also changes {len(outside)} parameters outside the vision tower, first {outside[0]!r}",
            details=outside,
        )
    info = VectorInfo(
        kind="lora", base=config.base_model_name_or_path, base_revision=config.revision,
        include_projection=PROJECTION in factors, settings={"adapter": folder.name, "adapter_revision": folder.commit},
    )  # fmt: skip
    if base is None:
        return LoraAdapter(factors, info)
    checkpoint = open_checkpoint(base, access=access)
    names = covered_names(checkpoint.tensors, include_projection=PROJECTION in factors)
    weights = {name: checkpoint.tensors[name] for name in names}
    factors = {name: _fitted(name, item, weights) for name, item in factors.items()}
    info = dataclasses.replace(
        info, base=checkpoint.name, base_revision=checkpoint.commit, base_hashes=tensor_hashes(weights)
    )
    return LoraAdapter(factors, info, {name: weight.shape for name, weight in weights.items()})


def _read_config(folder: Path, name: str) -> LoraConfig:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{name} has no {CONFIG}, so it is no peft adapter")
    kind = read_json(folder / CONFIG).get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{name} is a peft adapter of type {kind!r}; only LORA has an exact weight change here")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error"
        )  # peft warns where it drops an entry of a newer version: that is no exact reading
        try:
            config = PeftConfig.from_pretrained(os.fspath(folder))
        except (TypeError, ValueError, UserWarning) as error:
            raise CheckpointError(f"{name}: peft cannot read {CONFIG}: {error}") from error
    for spec in dataclasses.fields(config):
        if spec.metadata.get("is_lora_variant") and getattr(config, spec.name):
            raise CheckpointError(
                f"{name} uses the variant {spec.name}, whose change is not the product of the factors"
            )
    for key, reason in _REFUSED.items():
        if getattr(config, key, None):
            raise CheckpointError(f"{name} sets {key}: it {reason}, which the product of the factors does not hold")
    if config.bias != "none":
        raise CheckpointError(f"{name} trained biases (bias={config.bias!r}), which the factors do not hold")
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights.lower().startswith(_BASE_EDITING):
        raise CheckpointError(
            f"{name} was initialised by {config.init_lora_weights!r}, which edits the base too; save it with peft's "
            "path_initial_model_for_weight_conversion first"
        )
    return config


def _read_factors(tensors: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Factors]:
    halves: dict[str, dict[str, Tensor]] = {}
    embeddings = set()
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None:
            raise CheckpointError(f"the adapter holds {key[:200]!r}, which is no LoRA factor")
        check_finite(key, tensor)
        halves.setdefault(match[1], {})[match[3]] = tensor
        if match[2]:
            embeddings.add(match[1])
    result = {}
    for module, pair in halves.items():
        if set(pair) != {"A", "B"}:
            raise CheckpointError(f"the adapter lacks one of the two factors of {module[:200]!r}")
        result[f"{module}.weight"] = _factors(module, pair["A"], pair["B"], config, module in embeddings)
    if not result:
        raise CheckpointError("the adapter holds no factors")
    return canonical(result.items())


def _factors(module: str, a: Tensor, b: Tensor, config: LoraConfig, embedding: bool) -> Factors:
    rank = config.rank_pattern.get(get_pattern_key(config.rank_pattern, module), config.r)
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, module), config.lora_alpha)
    if a.shape[0] != rank or b.ndim < 2 or b.shape[1] != rank:
        shapes = f"A {tuple(a.shape)} and B {tuple(b.shape)}"
        raise CheckpointError(f"{module!r} has factors {shapes}, but its rank is {rank} in {CONFIG}")
    scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
    left, right = b.flatten(1), a.flatten(1)  # a convolution's B is 1 x 1, so flattening leaves a matrix product
    if left.shape[1] != rank:
        raise CheckpointError(f"{module!r}: a factor B of shape {tuple(b.shape)} is not supported")
    shape = torch.Size([b.shape[0], *a.shape[1:]])
    if embedding or config.fan_in_fan_out:
        left, right, shape = right.T, left.T, torch.Size(reversed(shape))
    return Factors(left, right, scaling, shape)


def _fitted(name: str, item: Factors, weights: Mapping[str, Tensor]) -> Factors:
    if name not in weights:
        raise IncompatibleVectorsError(f"{name!r} is in the adapter but not in the base")
    if weights[name].shape != item.shape:
        shapes = f"{tuple(item.shape)} in the adapter and {tuple(weights[name].shape)} in the base"
        raise IncompatibleVectorsError(f"{name!r} has shape {shapes}")
    return item
