"""Parameter names: one canonical form for every layout of a CLIP checkpoint, the files' own for all other models.

Transformers 5 writes `CLIPVisionModel` flat (`encoder.layers.0…`); version 4, `CLIPModel` and
`CLIPVisionModelWithProjection` use `vision_model.encoder.layers.0…`. The second form is canonical here; a flat text
tower gets `text_model.` in the same way. A model of Transformers in memory may have other names than its file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hf_taskvec.errors import CheckpointError

VISION_PREFIX, TEXT_PREFIX = "vision_model.", "text_model."
PROJECTION = "visual_projection.weight"
LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers?|blocks?|resblocks|h)\.(\d+)\.")  # of a block of any transformer
_FLAT_HEADS = {"embeddings", "pre_layrnorm", "encoder", "post_layernorm"}
_FLAT_OTHERS = re.compile(  # names with such a head that no tower of CLIP or SigLIP has: of ViT, BERT, T5, BART
    r"encoder\.(?!layers\.\d)|embeddings\.(?!(?:class_embedding|patch_embedding|position_embedding|position_ids)\b)"
    r"|encoder\.layers\.\d+\.(fc\d|self_attn_layer_norm|final_layer_norm|attention|feed_forward|layer_norm)\."
    r"|decoder\."
)
_FLAT_TEXT = "embeddings.token_embedding.weight"
_TEXT_HEADS = {"embeddings", "encoder", "final_layer_norm", "head"}
_SIGLIP_HEAD = re.compile(r"head\.(probe|attention|layernorm|mlp)\b")
_NO_CLIP = re.compile(  # names beside a `vision_model` that is no CLIP's: of SigLIP, BLIP, language models
    r"logit_bias$|vision_model\.head\.|vision_model\.encoder\.layers\.\d+\.self_attn\.qkv\."
    r"|(text_decoder|text_encoder|language_model|language_projection|qformer|multi_modal_projector|connector|decoder)\."
)
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_OUTER = ("module.", "model.")

Value = TypeVar("Value")


def canonical_name(name: str) -> str:
    """The canonical form of one parameter name.

    Example:
        >>> canonical_name("_orig_mod.encoder.layers.0.mlp.fc1.bias")
        'vision_model.encoder.layers.0.mlp.fc1.bias'
    """
    name = _unwrapped(name)
    flat = name.split(".", 1)[0] in _FLAT_HEADS and not _FLAT_OTHERS.match(name)
    return VISION_PREFIX + name if flat else name


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
    bare = {name: _unwrapped(name) for name in names}
    return {name: prefix + inner for (name, inner), prefix in zip(bare.items(), _prefixes(bare.values()), strict=True)}


def _unwrapped(name: str) -> str:
    """A name without what torch.compile, FSDP and checkpointing put into it; no module is called so."""
    return ".".join(word for word in name.split(".") if word not in _WRAPPERS)


def _prefixes(names: Collection[str]) -> list[str]:
    """What stands in front of each name of a set in its canonical form: the tower whose flat layout the set is."""
    if _FLAT_TEXT in names:
        return [TEXT_PREFIX if name.split(".", 1)[0] in _TEXT_HEADS else "" for name in names]
    flat = [name.split(".", 1)[0] in _FLAT_HEADS for name in names]
    if not any(flat) or any(map(_FLAT_OTHERS.match, names)):
        return [""] * len(names)
    return [VISION_PREFIX if own or _SIGLIP_HEAD.match(name) else "" for name, own in zip(names, flat, strict=True)]


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


def named_as_in_files(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's parameters themselves, under canonical names; see `parameters_of`."""
    return canonical(_as_in_files(model, dict(model.named_parameters())).items())


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters, detached, under canonical names: those that its file has.

    Example:
        >>> list(parameters_of(nn.Linear(2, 1)))
        ['weight', 'bias']
    """
    named = {name: tensor.detach() for name, tensor in model.named_parameters()}
    return canonical(_as_in_files(model, named).items())


def _as_in_files(model: Any, named: dict[str, Value]) -> dict[str, Value]:
    """The parameters of a model of Transformers under the names of its file, split as they are there."""
    kind = getattr(getattr(model, "config", None), "model_type", "clip")
    if not hasattr(model, "base_model_prefix") or str(kind).startswith("clip"):
        return named
    from transformers.core_model_loading import revert_weight_conversion

    reverted: dict[str, Value] = revert_weight_conversion(model, named)
    return reverted


def aligned_names(names: Iterable[str], onto: Collection[str], prefixes: Iterable[str]) -> dict[str, str]:
    """The name of each parameter in another set, from which it may differ by what holds the body of a model.

    Args:
        names: The names.
        onto: Those of the other set.
        prefixes: The attributes that hold a body in a whole model, as Transformers names them (`base_model_prefix`).

    Example:
        >>> aligned_names(["vit.layernorm.bias", "classifier.bias"], ["layernorm.bias"], ["vit"])
        {'vit.layernorm.bias': 'layernorm.bias', 'classifier.bias': 'classifier.bias'}
    """
    known, result = set(onto), {}
    outer = [f"{prefix}." for prefix in dict.fromkeys(prefixes) if prefix]
    for name in names:
        options = [name, *(name.removeprefix(prefix) for prefix in outer), *(prefix + name for prefix in outer)]
        result[name] = next((option for option in options if option in known), name)
    return result


def is_clip(names: Iterable[str]) -> bool:
    """Whether canonical names are those of a CLIP with its vision tower, whole or in part.

    Example:
        >>> is_clip(["vision_model.post_layernorm.bias"]), is_clip(["vision_model.head.probe"]), is_clip(["w"])
        (True, False, False)
    """
    names = list(names)
    return any(name.startswith(VISION_PREFIX) for name in names) and not any(map(_NO_CLIP.match, names))


def covered_names(names: Iterable[str], *, include_projection: bool = False) -> list[str]:
    """The names a task vector covers: the vision tower, and `visual_projection` if asked; all names of other models."""
    names = list(names)
    if not is_clip(names):
        return names
    vision = [name for name in names if name.startswith(VISION_PREFIX)]
    return vision + [name for name in names if include_projection and name == PROJECTION]


def layer_of(name: str) -> str:
    """The layer a parameter belongs to: `….layers.3` for encoder blocks, else its module.

    Example:
        >>> layer_of("bert.encoder.layer.3.output.dense.bias"), layer_of("model.norm.weight")
        ('bert.encoder.layer.3', 'model.norm')
    """
    match = LAYER_NUMBER.search(name)
    return name[: match.end() - 1] if match else name.rpartition(".")[0] or name


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
