"""Merge methods that weigh the vectors against each other entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_taskvec.errors import check_fraction, check_known
from hf_taskvec.merging.engine import Scope, chunks, map_chunks, map_parameters, wide_dtype
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.merging.selection import kept, thresholds
from hf_taskvec.vectors.vector import TaskVector

_CLIPPED = 1e-4  # fraction of the smallest and of the largest magnitudes that pcb clips


@merge_method("pcb", paper="2410.02396")
def pcb(vectors: Sequence[TaskVector], *, density: float = 0.2, scope: Scope = "vector") -> TaskVector:
    """Averages the vectors, each entry weighted by how strong it is in its vector and how well it fits the others.

    The score of an entry x of vector i is exp(T a²) tanh(x s): a is its magnitude, clipped at the outer 0.01 % and
    scaled to [0, 1] within the vector, and s the sum of the T vectors at that entry. Scores above the kept fraction's
    bound, scaled to (0, 1], are the weights. This is `PCB_merge` of the authors' repository, its description of the
    method; the paper writes softmaxes in place of exp and tanh, and the repository's script for ViT-B/32 clips the
    outer 1 %, sums deltas scaled to [-1, 1] for s, keeps 5 % and applies a scaling of 1.2.

    Args:
        vectors: Vectors of one base.
        density: Fraction of entries kept, in (0, 1], the paper's mask ratio. The default is that of the authors' run
            without validation data (with a scaling of 1); where they tune it, they take .05 to .2.
        scope: Whether scales and fractions count over the whole vector, as in the paper, or over each parameter.

    Raises:
        ValueError: If `density` is outside (0, 1].

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([2.0, -1.0])}), TaskVector({"w": torch.tensor([1.0, 3.0])})]
        >>> pcb(pair, density=0.5).deltas["w"].round(decimals=3)
        tensor([2., 3.])
    """
    check_fraction("density", density)

    def outer(size: int) -> list[int]:
        clipped = round(_CLIPPED * size)
        return [clipped + 1, max(size - clipped, clipped + 1)]

    def bounds(size: int) -> list[int]:
        return [1, min(kept(density, size) + 1, size)]  # the largest score, and the largest that is dropped

    magnitudes = thresholds(lambda deltas, name: deltas.abs_(), vectors, outer, scope)

    def scores(deltas: Tensor, name: str) -> Tensor:
        highest, lowest = magnitudes[name]
        cross = (deltas * deltas.sum(dim=0)).tanh_()
        strength = deltas.abs_().clamp_(lowest, highest).sub_(lowest).div_((highest - lowest).clamp(min=1e-38))
        return strength.square_().mul_(len(vectors)).exp_().mul_(cross)

    limits = thresholds(scores, vectors, bounds, scope)

    def merge_chunk(deltas: Tensor, name: str) -> Tensor:
        best, dropped = limits[name]
        clipped = deltas.abs().clamp_(*magnitudes[name].flip(0)).copysign_(deltas).masked_fill_(deltas == 0, 0)
        each = scores(deltas, name)
        weights = (each - dropped).clamp_(min=0).div_((best - dropped).clamp(min=1e-38))
        weights = torch.where((best == dropped) & (each >= best) & (each > 0), 1.0, weights)  # nothing is dropped
        return (clipped * weights).sum(dim=0) / weights.sum(dim=0).clamp_(min=1e-12)

    return map_chunks(merge_chunk, vectors)


SceRule = Literal["paper", "fusechat"]


@merge_method("sce", paper="2408.07990")
def sce(
    vectors: Sequence[TaskVector], *, density: float = 0.1, scope: Scope = "parameter", rule: SceRule = "paper"
) -> TaskVector:
    """Keeps the entries that differ most, weights each vector by its energy there and erases minority signs.

    The energy is that of each parameter's kept entries in either scope. Where all vectors are equal all entries tie and
    are kept.

    The paper and the code behind its numbers (`SCETask` of FuseChat) differ. By the paper's formula, the default, what
    is not selected is dropped, and what is left is summed with the vectors' weights. That code selects for the weights
    only, merges all entries and divides each by the weights of the vectors left there: its result is some three times
    longer. mergekit drops as the paper and divides as the code. Neither is reached from the other by a scaling.

    Args:
        vectors: Vectors of one base.
        density: Fraction of entries selected, those of the largest variance over the vectors, in (0, 1].
        scope: Whether the fraction counts over the whole vector or over each parameter, as in the paper.
        rule: "paper", or "fusechat" for what FuseChat's code does. That code rounds the number of selected entries
            down and counts none whose variance is 0; it takes an entry whose deltas sum to 0 as positive.

    Raises:
        UnknownNameError: If `rule` is unknown.
        ValueError: If `density` is outside (0, 1].

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([1.0, 1.0])})]
        >>> sce(pair, density=0.5).deltas["w"].round(decimals=3)
        tensor([2.8000, 0.0000])
    """
    check_fraction("density", density)
    check_known("rule", rule, get_args(SceRule))
    wide, shapes = wide_dtype(vectors), vectors[0].deltas.shapes

    def selected_count(size: int) -> list[int]:
        return [kept(density, size) if rule == "paper" else max(1, int(density * size))]

    bounds = thresholds(_variance, vectors, selected_count, scope)

    def compute(name: str) -> Tensor:
        smallest = bounds[name][0].squeeze()
        energy = torch.zeros(len(vectors), dtype=torch.float64)
        selected = []
        for _, deltas in chunks(vectors, name, wide):
            selected.append(_variance(deltas, name)[0].ge_(smallest))  # 0.0 and 1.0
            for index, row in enumerate(deltas):
                kept_row = row.mul_(selected[-1]).double()
                energy[index] += torch.dot(kept_row, kept_row).cpu()
        shares = (energy / energy.sum().clamp(min=torch.finfo(torch.float64).tiny)).to(smallest)
        merged = torch.zeros(shapes[name].numel(), dtype=wide, device=smallest.device)
        for (start, deltas), chosen in zip(chunks(vectors, name, wide), selected, strict=True):
            target = merged[start : start + deltas.shape[1]]
            if rule == "paper":
                _weighted_sum_(target, deltas, shares).mul_(chosen)
            else:
                target.copy_(_weighted_mean(deltas, shares))
        return merged.view(shapes[name])

    return map_parameters(compute, vectors)


def _weighted_sum_(target: Tensor, deltas: Tensor, shares: Tensor) -> Tensor:
    """Adds to `target` the deltas (T, n) of the elected sign times their shares (T,); `deltas` is overwritten."""
    elected = deltas.sum(dim=0).sign_()
    for row, share in zip(deltas, shares.tolist(), strict=True):
        target.add_(row.mul_(elected).clamp_(min=0), alpha=share)
    return target.mul_(elected)


def _weighted_mean(deltas: Tensor, shares: Tensor) -> Tensor:
    """The mean of the deltas (T, n) of the elected sign weighted by shares (T,), alike if all shares are 0."""
    elected = torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0)
    shares = shares if bool(shares.any()) else torch.full_like(shares, 1 / len(shares))
    weights = shares.unsqueeze(1) * (deltas.sign() == elected)
    total = weights.sum(dim=0)
    return (deltas * weights).sum(dim=0) / torch.where(total == 0, 1.0, total)


def _variance(deltas: Tensor, name: str) -> Tensor:
    """The variance of each entry over the T vectors, (1, n), exactly 0 where all are equal."""
    apart, total = torch.empty_like(deltas[0]), torch.zeros_like(deltas[0])
    for row in deltas[1:]:
        total += torch.sub(row, deltas[0], out=apart)
    mean = deltas[0] + total.div_(len(deltas))
    total.zero_()
    for row in deltas:
        torch.sub(row, mean, out=apart)
        total.addcmul_(apart, apart)
    return total.div_(len(deltas)).unsqueeze(0)
