"""CLIP weights in the layouts of open_clip and timm under the names of Transformers; no value is changed or copied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

_BLOCK = re.compile(r"(.*\.)?(?:resblocks|blocks)\.(\d+)\.(.+)")
_INSIDE = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "attn.proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_STACKED = ("attn.in_proj_", "attn.qkv.")  # queries, keys and values, one below the other
_VISION = "vision_model."
_OPEN_CLIP = {
    "visual.class_embedding": f"{_VISION}embeddings.class_embedding",
    "visual.positional_embedding": f"{_VISION}embeddings.position_embedding.weight",
    "visual.conv1.weight": f"{_VISION}embeddings.patch_embedding.weight",
    "visual.ln_pre": f"{_VISION}pre_layrnorm",
    "visual.ln_post": f"{_VISION}post_layernorm",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_TIMM = {
    "cls_token": f"{_VISION}embeddings.class_embedding",
    "pos_embed": f"{_VISION}embeddings.position_embedding.weight",
    "patch_embed.proj.weight": f"{_VISION}embeddings.patch_embedding.weight",
    "norm_pre": f"{_VISION}pre_layrnorm",
    "norm": f"{_VISION}post_layernorm",
    "head.weight": "visual_projection.weight",
}
_TRANSPOSED = {"visual.proj", "text_projection"}  # open_clip multiplies from the left
_BUFFERS = {"attn_mask"}


def as_transformers(weights: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The weights under the names of Transformers; `None` if they are no CLIP in one of the two layouts.

    Queries, keys and values are the three parts of one matrix, of which each gets its rows.

    Args:
        weights: The weights, by their names in the file.

    Example:
        >>> import torch
        >>> stacked = {"visual.transformer.resblocks.0.attn.in_proj_bias": torch.arange(6.0)}
        >>> stacked |= {"visual.class_embedding": torch.zeros(2)}
        >>> (as_transformers(stacked) or {})["vision_model.encoder.layers.0.self_attn.k_proj.bias"]
        tensor([2., 3.])
    """
    names = {name.removeprefix("text."): tensor for name, tensor in weights.items()}
    if "visual.class_embedding" in names:
        table = _OPEN_CLIP
    elif "norm_pre.weight" in names and "cls_token" in names:
        table = _TIMM
    else:
        return None
    return {new: tensor for name, weight in names.items() for new, tensor in _renamed(name, weight, table)}


def _renamed(name: str, weight: Tensor, table: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that one tensor is in Transformers; one of no known name keeps its own, for its reader to name."""
    if name in _BUFFERS:
        return
    if match := _BLOCK.fullmatch(name):
        is_text = table is _OPEN_CLIP and not name.startswith("visual.")
        yield from _of_block(f"{'text_model.' if is_text else _VISION}encoder.layers.{match[2]}.", match[3], weight)
        return
    if name in table:
        shaped = weight.T if name in _TRANSPOSED else weight
        if name in ("cls_token", "pos_embed"):  # timm's have a dimension for the batch
            shaped = shaped.flatten(0, -2) if name == "pos_embed" else shaped.reshape(-1)
        yield table[name], shaped
        return
    module, _, kind = name.rpartition(".")
    yield (f"{table[module]}.{kind}" if module in table else name), weight


def _of_block(prefix: str, name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    for stacked in _STACKED:
        if name.startswith(stacked):
            kind = name.removeprefix(stacked)
            for letter, rows in zip("qkv", weight.chunk(3), strict=True):
                yield f"{prefix}self_attn.{letter}_proj.{kind}", rows
            return
    module, _, kind = name.rpartition(".")
    yield f"{prefix}{_INSIDE.get(module, module)}.{kind}", weight
