"""Re-basin: the permutations of a CLIP vision tower under which one base's weights are closest to another's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError
from hf_taskvec.models.base import Base
from hf_taskvec.weights.names import PROJECTION, VISION_PREFIX, parameters_of

RESIDUAL = "residual"
MOST_SWEEPS = 100
Permutations = Mapping[str, Tensor]  # by group: which entry of the old base comes to each place

_LAYER = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)\.(weight|bias)")
_INSIDE = {"q_proj": "qk", "k_proj": "qk", "v_proj": "vo", "out_proj": "vo", "fc1": "mlp", "fc2": "mlp"}
_NORM = re.compile(r"vision_model\.(pre_layrnorm|post_layernorm|encoder\.layers\.\d+\.layer_norm[12])\.(weight|bias)")
_OUTER = {
    "vision_model.embeddings.class_embedding": (RESIDUAL,),
    "vision_model.embeddings.patch_embedding.weight": (RESIDUAL, None, None, None),
    "vision_model.embeddings.position_embedding.weight": (None, RESIDUAL),
    PROJECTION: (None, RESIDUAL),
}


def groups_of(name: str) -> tuple[str | None, ...]:
    """The group by which each axis of a parameter is permuted; `None` for an axis that stays.

    Raises:
        IncompatibleVectorsError: If it is no parameter of a CLIP vision tower.

    Example:
        >>> groups_of("vision_model.encoder.layers.3.mlp.fc2.weight")
        ('residual', '3.mlp')
    """
    if name in _OUTER:
        return _OUTER[name]
    if _NORM.fullmatch(name):
        return (RESIDUAL,)
    if match := _LAYER.fullmatch(name):
        layer, module, kind = match.groups()
        if module in _INSIDE:
            inside = f"{layer}.{_INSIDE[module]}"
            ends = module in ("out_proj", "fc2")  # in the residual stream
            if kind == "bias":
                return (RESIDUAL,) if ends else (inside,)
            return (RESIDUAL, inside) if ends else (inside, RESIDUAL)
    raise IncompatibleVectorsError(
        f"rebasin knows how the vision tower of a CLIP may be permuted, and {name!r} is no part of one; "
        "method='gradfix' takes any parameter"
    )


def permuted(name: str, tensor: Tensor, permutations: Permutations) -> Tensor:
    """A parameter, or its delta, with its entries in their new places.

    Example:
        >>> turned = {"0.mlp": torch.tensor([1, 0]), "residual": torch.tensor([0])}
        >>> permuted("vision_model.encoder.layers.0.mlp.fc1.weight", torch.tensor([[3.0], [4.0]]), turned)
        tensor([[4.],
                [3.]])
    """
    for axis, group in enumerate(groups_of(name)):
        if group is not None and group in permutations:
            tensor = tensor.index_select(axis, permutations[group].to(tensor.device))
    return tensor


def match_permutations(source: Base, to: Base) -> dict[str, Tensor]:
    """The permutations that bring the weights of one base closest to another's (weight matching, arXiv 2209.04836).

    One assignment problem after another is solved, in float64, each with the other permutations held, until none
    changes. The residual stream begins, from the parameters that only it permutes: embeddings, norms, biases and
    projection. In each layer heads are assigned by the best assignment of their entries: those of queries and keys are
    permuted alike, and those of values and outputs.

    Returns:
        For each group (the residual stream, and of each layer queries with keys, values with outputs, and the neurons)
        the number of the entry of `source` that comes to each place.

    Example:
        >>> from hf_taskvec import load_base
        >>> base = load_base()
        >>> match_permutations(base, base)["0.mlp"][:4]
        tensor([0, 1, 2, 3])
    """
    before, after = (_tower(base) for base in (source, to))
    before = {name: w for name, w in before.items() if w.shape == after[name].shape}  # a projection may have another
    heads = int(source.model.config.vision_config.num_attention_heads)
    sizes = {
        group: size
        for name, tensor in before.items()
        for group, size in zip(groups_of(name), tensor.shape, strict=True)
        if group is not None
    }
    layers = sorted({int(group.partition(".")[0]) for group in sizes if group != RESIDUAL})
    outer = [name for name in before if set(groups_of(name)) <= {RESIDUAL, None}]
    chosen = {RESIDUAL: assigned(_likeness(RESIDUAL, outer, before, after, {}))}
    for _ in range(MOST_SWEEPS):
        last = dict(chosen)
        for layer in layers:
            chosen |= dict(_layer(layer, heads, before, after, chosen))
        chosen[RESIDUAL] = assigned(_likeness(RESIDUAL, list(before), before, after, chosen))
        if all(group in last and torch.equal(order, last[group]) for group, order in chosen.items()):
            break
    return chosen


def _tower(base: Base) -> dict[str, Tensor]:
    weights = parameters_of(base.model)
    return {
        name: w.cpu().double() for name, w in weights.items() if name.startswith(VISION_PREFIX) or name == PROJECTION
    }


def _layer(
    layer: int, heads: int, before: Mapping[str, Tensor], after: Mapping[str, Tensor], chosen: Permutations
) -> Iterator[tuple[str, Tensor]]:
    """The permutations of one layer, the residual stream being as it is."""
    names = [name for name in before if name.startswith(f"vision_model.encoder.layers.{layer}.")]
    likeness = {
        kind: _likeness(f"{layer}.{kind}", names, before, after, {RESIDUAL: chosen[RESIDUAL]})
        for kind in ("mlp", "qk", "vo")
    }
    yield f"{layer}.mlp", assigned(likeness["mlp"])
    qk, vo = (
        likeness[kind].unflatten(1, (heads, -1)).unflatten(0, (heads, -1)).transpose(1, 2) for kind in ("qk", "vo")
    )
    values = torch.zeros(heads, heads, dtype=torch.float64)
    inside: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for new in range(heads):
        for old in range(heads):
            blocks = qk[new, old], vo[new, old]
            inside[new, old] = (assigned(blocks[0]), assigned(blocks[1]))
            values[new, old] = sum(
                block.gather(1, order[:, None]).sum() for block, order in zip(blocks, inside[new, old], strict=True)
            )
    size = qk.shape[-1]
    pairs = list(enumerate(assigned(values).tolist()))
    for index, kind in enumerate(("qk", "vo")):
        yield f"{layer}.{kind}", torch.cat([old * size + inside[new, old][index] for new, old in pairs])


def _likeness(
    group: str,
    names: list[str],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    chosen: Permutations,
) -> Tensor:
    """Inner products, (new places, old entries), of all slices of parameters that a group permutes."""
    total: Tensor | None = None
    others = {name: order for name, order in chosen.items() if name != group}
    for name in names:
        for axis, own in enumerate(groups_of(name)):
            if own == group:
                new = after[name].movedim(axis, 0).flatten(1) if after[name].ndim > 1 else after[name][:, None]
                moved = permuted(name, before[name], others)
                old = moved.movedim(axis, 0).flatten(1) if moved.ndim > 1 else moved[:, None]
                total = new @ old.T if total is None else total + new @ old.T
    if total is None:
        raise IncompatibleVectorsError(f"the tower has no parameter that {group!r} permutes")
    return total


def assigned(likeness: Tensor) -> Tensor:
    """Which column each row gets, one each, so that the sum of what stands there is largest.

    Example:
        >>> assigned(torch.tensor([[0.0, 2.0], [1.0, 2.5]]))
        tensor([1, 0])
    """
    columns: NDArray[np.int64] = linear_sum_assignment(likeness.numpy(), maximize=True)[1]
    return torch.from_numpy(columns)
