"""LoRA adapters of `peft`, read as the factors of exact weight changes."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, Unpack

import torch
from torch import Tensor

from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError
from hf_taskvec.hub.access import AnyPath, HubAccess, HubKeywords
from hf_taskvec.hub.fetch import Folder, Wanted, fetch_folder
from hf_taskvec.text import listed
from hf_taskvec.vectors.adapter_config import CONFIG, AdapterConfig, parse_config
from hf_taskvec.vectors.checkpoints import check_exists, open_checkpoint
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.arithmetic import check_finite
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.folders import check_inside, read_json
from hf_taskvec.weights.lowrank import Factors, LowRankDeltas
from hf_taskvec.weights.names import (
    PROJECTION,
    VISION_PREFIX,
    canonical,
    canonical_name,
    covered_names,
    differences,
    shapes_of,
)
from hf_taskvec.weights.safetensors import open_safetensors

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
MAX_CONFIG_BYTES = 1 << 20
_KEY = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.weight)?$")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterParts:
    """What an adapter is made of.

    Attributes:
        factors: Factors of each adapted parameter, under canonical names.
        info: Provenance.
        zeros: Shapes of the parameters to cover besides, with a delta of zero.
    """

    factors: Mapping[str, Factors]
    info: VectorInfo
    zeros: Mapping[str, torch.Size] = field(default_factory=dict)

    @property
    def deltas(self) -> LowRankDeltas:
        """The exact weight change; each delta is multiplied out when it is used."""
        return LowRankDeltas(self.factors, self.zeros)

    @classmethod
    def from_pretrained(
        cls,
        adapter: AnyPath,
        *,
        base: AnyPath | None = None,
        revision: str | None = None,
        task: str | None = None,
        vision_only: bool = False,
        **hub: Unpack[HubKeywords],
    ) -> Self:
        """Opens a `peft` LoRA adapter; arguments and errors are those of `TaskVector.from_adapter`."""
        access = HubAccess.of(hub)
        check_exists(adapter)
        folder = fetch_folder(adapter, Wanted([CONFIG, WEIGHTS]), revision=revision, access=access)
        config = _read_config(folder)
        tensors = open_safetensors([_weights_file(folder)])
        saved = _saved_modules(tensors, config, folder.name, vision_only=vision_only)
        factors = _read_factors({key: tensor for key, tensor in tensors.items() if key not in saved}, config)
        covered = set(covered_names(factors, include_projection=True))
        outside = [name for name in factors if name not in covered]
        _tell_left_out(outside, saved, vision_only=vision_only)
        factors = {name: item for name, item in factors.items() if name in covered}
        info = VectorInfo(
            kind="lora",
            base=config.base,
            base_revision=config.revision,
            task=task,
            include_projection=PROJECTION in factors,
            finetuned=folder.name,
            finetuned_revision=folder.commit,
            left_out=len(outside) + len(saved) or None,
        )
        return cls(factors, info) if base is None else cls(factors, *_fitted(factors, info, base, access))


def _fitted(
    factors: Mapping[str, Factors], info: VectorInfo, base: AnyPath, access: HubAccess
) -> tuple[VectorInfo, dict[str, torch.Size]]:
    """What fits an adapter to its base: it knows the base's weights, and covers the whole vision tower."""
    checkpoint = open_checkpoint(base, access=access)
    names = covered_names(checkpoint.tensors, include_projection=PROJECTION in factors)
    weights = {name: checkpoint.tensors[name] for name in names}
    ours = {name: item.shape for name, item in factors.items()}
    theirs = {name: weight.shape for name, weight in weights.items() if name in factors}
    if lines := differences(ours, theirs, left_name="the adapter", right_name="the base"):
        raise IncompatibleVectorsError(f"adapter and base differ: {listed(lines, separator='; ')}", details=lines)
    info = dataclasses.replace(
        info, base=checkpoint.name, base_revision=checkpoint.commit, base_hashes=tensor_hashes(weights)
    )
    return info, shapes_of(weights)


def _read_config(folder: Folder) -> AdapterConfig:
    path = folder.path / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder.name} has no {CONFIG}, so it is no peft adapter")
    check_inside(path, folder.path)
    return parse_config(read_json(path, max_bytes=MAX_CONFIG_BYTES), folder.name)


def _weights_file(folder: Folder) -> Path:
    path = folder.path / WEIGHTS
    if not path.is_file():
        raise CheckpointError(
            f"{folder.name} has no {WEIGHTS}. Pickled adapters (.bin) are refused, since loading them can run code: "
            "load it with peft where you trust it and save it again with save_pretrained"
        )
    check_inside(path, folder.path)
    return path


def _saved_modules(
    tensors: Mapping[str, Tensor], config: AdapterConfig, where: str, *, vision_only: bool
) -> dict[str, str]:
    """The tensors of modules that were trained as a whole, and their parameters' canonical names."""
    if not config.modules_to_save:
        return {}
    modules = set(config.modules_to_save)
    saved = {}
    for key in tensors:
        name = key.removeprefix(PREFIX)
        if _KEY.match(key) is None and modules & set(name.split(".")):
            saved[key] = canonical_name(name)
    inside = any(name.startswith(VISION_PREFIX) or name == PROJECTION for name in saved.values())
    if inside or not vision_only:
        remedy = "merge it with peft and use TaskVector.from_checkpoints" if inside else "pass vision_only=True"
        raise CheckpointError(
            f"{where} sets modules_to_save ({listed(sorted(modules), room=80)}): it trains whole modules besides the "
            f"factors, which the product of the factors does not hold; {remedy}"
        )
    return saved


def _tell_left_out(outside: list[str], saved: Mapping[str, str], *, vision_only: bool) -> None:
    """Logs what the vector does not hold, or refuses it."""
    if outside and not vision_only:
        raise IncompatibleVectorsError(
            f"the adapter also changes {len(outside)} parameters outside the vision tower, first {outside[0]!r}; pass "
            "vision_only=True to take the tower's part",
            details=outside,
        )
    if names := [*outside, *saved.values()]:
        logger.warning("Left out of the vector: %d parameters, %s", len(names), listed(map(repr, names), room=120))


def _read_factors(tensors: Mapping[str, Tensor], config: AdapterConfig) -> dict[str, Factors]:
    halves: dict[str, dict[str, Tensor]] = {}
    embeddings = set()
    for key, tensor in tensors.items():
        match = _KEY.match(key)
        if match is None:
            raise CheckpointError(f"the adapter holds {key[:200]!r}, which is no LoRA factor")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise CheckpointError(f"{key[:200]!r} is {tensor.dtype}; a factor must be in half precision or wider")
        check_finite(key, tensor)
        halves.setdefault(match[1], {})[match[3]] = tensor
        if match[2]:
            embeddings.add(match[1])
    if not halves:
        raise CheckpointError("the adapter holds no factors")
    config.check_modules(halves)
    result = {}
    for module, pair in halves.items():
        if set(pair) != {"A", "B"}:
            raise CheckpointError(f"the adapter lacks one of the two factors of {module[:200]!r}")
        result[f"{module}.weight"] = _factors(module, pair["A"], pair["B"], config, module in embeddings)
    return canonical(result.items())


def _factors(module: str, a: Tensor, b: Tensor, config: AdapterConfig, embedding: bool) -> Factors:
    rank = config.rank_of(module)
    if a.ndim < 2 or a.shape[0] != rank or b.ndim < 2 or b.shape[1] != rank:
        shapes = f"A {tuple(a.shape)} and B {tuple(b.shape)}"
        raise CheckpointError(f"{module!r} has factors {shapes}, but its rank is {rank} in {CONFIG}")
    left, right = b.flatten(1), a.flatten(1)  # a convolution's B is 1 x 1, so flattening leaves a matrix product
    if left.shape[1] != rank:
        raise CheckpointError(f"{module!r}: a factor B of shape {tuple(b.shape)} is not supported")
    shape = torch.Size([b.shape[0], *a.shape[1:]])
    if embedding or config.transposed:
        left, right, shape = right.T, left.T, torch.Size(reversed(shape))
    return Factors(left, right, config.scaling_of(module), shape)
