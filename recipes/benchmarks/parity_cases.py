"""What parity compares, and why a peer differs where it does: each reason can be checked in the peer's source.

A reason comes with its proof: the parameters it does not touch, or the peer's definition in plain torch. What is left
of the difference then is rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Untouched = Callable[[str, Tensor], bool]  # name and deltas (T, ...) of a parameter -> whether the reason spares it
Restated = Callable[[Tensor], Tensor]  # deltas (T, ...) of a parameter -> the peer's merged delta


@dataclass(frozen=True)
class Case:
    """One method of one peer.

    Attributes:
        peer: Its key in `PEERS`.
        method: Our name of the method.
        settings: Our settings for the peer's mathematics.
        reason: Why the results differ beyond rounding.
        untouched: Where they should not, given the reason.
        restated: The peer's definition.
        kept: Whether our settings should keep as many entries as the peer, given the number of all.
        weights: Whether the peer merges whole weights, not what was added to the base.
        chance: Whether only statistics can agree.
    """

    peer: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    untouched: Untouched | None = None
    restated: Restated | None = None
    kept: Callable[[int], float] | None = None
    weights: bool = False
    chance: bool = False


def _same_count(*shares: float) -> Untouched:
    """Whether rounding down and rounding give each share of the entries the same size."""

    def same(name: str, deltas: Tensor) -> bool:
        size = deltas[0].numel()
        return all(int(share * size) == round(share * size) for share in shares)

    return same


def _cosines(deltas: Tensor) -> Tensor:
    flat = deltas.flatten(1).double()
    unit = flat / flat.norm(dim=1, keepdim=True)
    rows, columns = torch.triu_indices(len(flat), len(flat), offset=1)
    cosines: Tensor = (unit @ unit.T)[rows, columns]
    return cosines


def _is_linear(name: str, deltas: Tensor) -> bool:
    return deltas.ndim == 3 and "embedding" not in name


def mergekit_sce(deltas: Tensor) -> Tensor:
    """As mergekit: divides by the weights left at each entry; under a mean square of 1e-6 all vectors weigh alike."""
    variance = deltas.var(dim=0, correction=0)
    count = int(0.1 * int(variance.count_nonzero()))
    mask = torch.zeros_like(variance)
    mask.view(-1)[variance.flatten().topk(count).indices] = 1
    deltas = deltas * mask
    energy = deltas.square().flatten(1).mean(dim=1)
    shares = energy / energy.sum() if energy.sum() >= 1e-6 else torch.full_like(energy, 1 / len(energy))
    elected = torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0)
    weights = shares.view(-1, *[1] * (deltas.ndim - 1)) * (deltas.sign() == elected)
    return (deltas * weights).sum(dim=0) / weights.sum(dim=0).clamp(min=1e-6)


def fusion_bench_magmax(deltas: Tensor) -> Tensor:
    """fusion-bench takes the last of the largest entries."""
    merged = deltas[0]
    for delta in deltas[1:]:
        merged = torch.where(delta.abs() >= merged.abs(), delta, merged)
    return merged


CHANCE = "other random numbers"
CASES = [
    Case("mergekit", "average"),
    Case("mergekit", "task_arithmetic"),
    Case(
        "mergekit",
        "ties",
        {"scope": "parameter"},
        "mergekit rounds the number of kept entries down, we round it",
        untouched=_same_count(0.2),
    ),
    Case(
        "mergekit",
        "dare",
        reason=f"{CHANCE}; it rescales each delta to its old L1 norm, the paper by 1 / density",
        chance=True,
    ),
    Case(
        "mergekit",
        "della",
        reason=f"{CHANCE}; it rescales as in dare, the paper each entry by 1 / its own chance",
        chance=True,
    ),
    Case(
        "mergekit",
        "breadcrumbs",
        reason="mergekit rounds the numbers of kept and of dropped entries down",
        untouched=_same_count(0.143, 0.007),
    ),
    Case(
        "mergekit",
        "sce",
        reason="mergekit divides by the weights left at each entry and weights all vectors alike "
        "where their mean square is below 1e-6, as in any fine-tuning",
        restated=mergekit_sce,
    ),
    Case(
        "mergekit",
        "slerp",
        reason="above a cosine of .9995 mergekit takes the chord",
        untouched=lambda name, deltas: bool((_cosines(deltas) < 0.9995).all()),
        weights=True,
    ),
    Case(
        "mergekit",
        "model_stock",
        reason="mergekit leaves negative cosines in, which turn the mean round",
        untouched=lambda name, deltas: bool(_cosines(deltas).mean() >= 0),
    ),
    Case("mergekit", "karcher", reason="mergekit stops at steps below 1e-5", weights=True),
    Case("fusion_bench", "average"),
    Case("fusion_bench", "task_arithmetic"),
    Case(
        "fusion_bench",
        "ties",
        reason="fusion-bench rounds down and keeps one entry more: here as many as we",
        kept=lambda size: (int(0.2 * size) + 1) / size,
    ),
    Case("fusion_bench", "dare", reason=CHANCE, chance=True),
    Case(
        "fusion_bench",
        "magmax",
        reason="of entries of one magnitude it takes the later vector's, we the positive",
        restated=fusion_bench_magmax,
    ),
    Case(
        "fusion_bench",
        "slerp",
        reason="above a cosine of .9995 fusion-bench takes the chord",
        untouched=lambda name, deltas: bool((_cosines(deltas) < 0.9995).all()),
        weights=True,
    ),
    Case("fusion_bench", "iso_c", reason="float32 there, float64 here"),
    Case("fusion_bench", "iso_cts", reason="float32 there, float64 here"),
    Case("fusion_bench", "tsv_m", reason="float32 there, float64 here"),
    Case(
        "fusion_bench",
        "wudi",
        {"steps": 3},
        "fusion-bench also descends on embeddings and averages norms and biases, which the authors leave at the base",
        untouched=_is_linear,
    ),
]
