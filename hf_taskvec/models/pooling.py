"""The last layer of a CLIP vision tower, computed where it is read: at the class token."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.clip.modeling_clip import CLIPEncoderLayer, eager_attention_forward


class ClassTokenLayer(nn.Module):
    """An encoder layer whose output is its class token alone, (N, 1, W), equal to the whole layer's up to rounding.

    CLIP pools by the class token, so the last layer's queries and MLP at all other tokens feed nothing. Its
    parameters are the given layer's own, under the same names.

    Args:
        layer: The encoder's last layer.
    """

    def __init__(self, layer: CLIPEncoderLayer) -> None:
        super().__init__()
        self.self_attn, self.layer_norm1 = layer.self_attn, layer.layer_norm1
        self.mlp, self.layer_norm2 = layer.mlp, layer.layer_norm2

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The class token after the layer, (N, 1, W), of all tokens (N, T, W)."""
        token = hidden_states[:, :1] + class_token_attention(
            self.self_attn, self.layer_norm1(hidden_states), attention_mask, **kwargs
        )
        pooled_token: Tensor = token + self.mlp(self.layer_norm2(token))
        return pooled_token


def class_token_attention(attention: Any, states: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    """What an attention block gives at the class token, (N, 1, W), of all tokens (N, T, W).

    Example:
        >>> import torch
        >>> from hf_taskvec import load_base
        >>> block, states = load_base().model.vision_model.encoder.layers[-1].self_attn, torch.randn(1, 17, 384)
        >>> torch.allclose(class_token_attention(block, states), block(states)[0][:, :1], atol=1e-5)
        True
    """
    heads = (len(states), -1, attention.num_heads, attention.head_dim)
    query = attention.q_proj(states[:, :1]).view(heads).transpose(1, 2)
    key, value = (project(states).view(heads).transpose(1, 2) for project in (attention.k_proj, attention.v_proj))
    kind = attention.config._attn_implementation
    interface: Any = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
    dropout = attention.dropout if attention.training else 0.0
    mixed, _ = interface(attention, query, key, value, mask, scaling=attention.scale, dropout=dropout, **kwargs)
    projected: Tensor = attention.out_proj(mixed.reshape(len(states), 1, -1))
    return projected


def pooled(tower: Any) -> Any:
    """A CLIP vision tower on the same parameters that computes its last layer for the class token only.

    Args:
        tower: A `CLIPVisionModel`; it stays as it is. SigLIP's has no class token and is returned.

    Returns:
        A tower with the same `pooler_output`; its `last_hidden_state` is the class token alone.

    Example:
        >>> import torch
        >>> from hf_taskvec import load_base
        >>> tower, images = load_base().model.vision_model, torch.zeros(1, 3, 32, 32)
        >>> torch.allclose(pooled(tower)(images).pooler_output, tower(images).pooler_output, atol=1e-5)
        True
    """
    layers = tower.encoder.layers
    if not isinstance(layers[-1], CLIPEncoderLayer):
        return tower
    encoder = with_children(tower.encoder, layers=nn.ModuleList([*layers[:-1], ClassTokenLayer(layers[-1])]))
    return with_children(tower, encoder=encoder)


def with_children(module: nn.Module, **children: nn.Module) -> nn.Module:
    """A shallow copy of a module with other children in the named places.

    Example:
        >>> layers = nn.Sequential(nn.Identity(), nn.Identity())
        >>> with_children(layers, **{"1": nn.Linear(1, 1)})[1], layers[1]
        (Linear(in_features=1, out_features=1, bias=True), Identity())
    """
    changed = copy.copy(module)
    changed._modules = {**module._modules, **children}
    return changed
