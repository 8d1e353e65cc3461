"""Parameter names: one canonical form for every layout of a CLIP checkpoint.

Transformers 5 writes `CLIPVisionModel` flat (`encoder.layers.0…`); version 4, `CLIPModel` and
`CLIPVisionModelWithProjection` use `vision_model.encoder.layers.0…`. The second form is canonical here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from hf_taskvec.errors import CheckpointError

VISION_PREFIX = "vision_model."
PROJECTION = "visual_projection.weight"
_FLAT_HEADS = {"embeddings", "pre_layrnorm", "encoder", "post_layernorm"}
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_OUTER = ("module.", "model.")
_LAYER = re.compile(r"^(.*?\.layers\.\d+)\.")

Value = TypeVar("Value")


def canonical_name(name: str) -> str:
    """The canonical form of one parameter name.

    Example:
        >>> canonical_name("_orig_mod.encoder.layers.0.mlp.fc1.bias")
        'vision_model.encoder.layers.0.mlp.fc1.bias'
    """
    if _WRAPPERS & {*(parts := name.split("."))}:  # of torch.compile, FSDP and checkpointing; no module is called so
        name = ".".join(word for word in parts if word not in _WRAPPERS)
    return VISION_PREFIX + name if name.split(".", 1)[0] in _FLAT_HEADS else name


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """The canonical form of each name of a set; what a wrapper puts in front of all names of a CLIP goes too.

    Example:
        >>> canonical_names(["module.post_layernorm.bias"])
        {'module.post_layernorm.bias': 'vision_model.post_layernorm.bias'}
    """
    names = list(names)
    for outer in (*_OUTER, *(f"{wrapper}." for wrapper in sorted(_WRAPPERS))):
        if names and all(name.startswith(outer) for name in names):
            inner = canonical_names(name.removeprefix(outer) for name in names)
            if any(name.startswith(VISION_PREFIX) for name in inner.values()):
                return {outer + name: short for name, short in inner.items()}
    return {name: canonical_name(name) for name in names}


def canonical(named: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """The entries under canonical names; the buffer `position_ids` of old files is no parameter and left out.

    Raises:
        CheckpointError: If two names have one canonical form.
    """
    entries = [(name, value) for name, value in named if not name.endswith("embeddings.position_ids")]
    short = canonical_names(name for name, _ in entries)
    result: dict[str, Value] = {}
    for name, value in entries:
        if short[name] in result:
            raise CheckpointError(f"{name!r} and another parameter are both {short[name]!r} in canonical form")
        result[short[name]] = value
    return result


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters, detached, under canonical names."""
    return {name: tensor.detach() for name, tensor in canonical(model.named_parameters()).items()}


def covered_names(names: Iterable[str], *, include_projection: bool = False) -> list[str]:
    """The names a task vector covers: the vision tower, and `visual_projection` if asked; all names of other models."""
    names = list(names)
    vision = [name for name in names if name.startswith(VISION_PREFIX)]
    if not vision:
        return names
    return vision + [name for name in names if include_projection and name == PROJECTION]


def layer_of(name: str) -> str:
    """The layer a parameter belongs to: `….layers.3` for encoder blocks, else its module."""
    match = _LAYER.match(name)
    return match.group(1) if match else name.rsplit(".", 1)[0]


def differences(
    left: Mapping[str, torch.Size], right: Mapping[str, torch.Size], *, left_name: str, right_name: str
) -> list[str]:
    """Every name or shape in which two sets of parameters differ, in words."""
    lines = [f"{name!r} is in {left_name} but not in {right_name}" for name in left if name not in right]
    lines += [f"{name!r} is in {right_name} but not in {left_name}" for name in right if name not in left]
    for name in left:
        if name in right and tuple(left[name]) != tuple(right[name]):
            shapes = f"{tuple(left[name])} in {left_name} and {tuple(right[name])} in {right_name}"
            lines.append(f"{name!r} has shape {shapes}")
    return lines


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The shape of each tensor."""
    return {name: tensor.shape for name, tensor in tensors.items()}
