"""Which modules of a vision tower are measured, and under which names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from hf_taskvec.weights.names import canonical_name

_QKV = re.compile(r"\.[qkv]_proj$")


def inputs_of(parameter: str) -> str:
    """The name under which the inputs of a weight are kept: q, k and v have one.

    Example:
        >>> inputs_of("vision_model.encoder.layers.0.self_attn.k_proj.weight")
        'vision_model.encoder.layers.0.self_attn.qkv'
    """
    return _QKV.sub(".qkv", parameter.rpartition(".")[0])


def measured(tower: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The linear maps and norms of a module, by canonical names.

    A convolution counts if its windows do not overlap, as those of a patch embedding: it is a linear map of patches.
    """
    for name, module in tower.named_modules():
        patches = isinstance(module, nn.Conv2d) and module.stride == module.kernel_size and module.padding == (0, 0)
        if isinstance(module, (nn.Linear, nn.LayerNorm)) or patches:
            yield canonical_name(prefix + name), module


def rows_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """The inputs (N, …) of a linear map as rows (tokens, n), each image's together; of a norm, what its scale meets."""
    if isinstance(module, nn.LayerNorm):
        normal = functional.layer_norm(inputs, module.normalized_shape, eps=module.eps)
        return normal.reshape(-1, inputs.shape[-1])
    if isinstance(module, nn.Conv2d):
        patches = functional.unfold(inputs, module.kernel_size, stride=module.stride)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])
    return inputs.reshape(-1, inputs.shape[-1])


def width_of(module: nn.Module) -> int:
    """How many entries a row of the inputs of a map has."""
    weight: Any = module.weight
    return int(weight[0].numel())
