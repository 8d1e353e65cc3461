"""Merging LoRA vectors without leaving their factors: KnOTS, and truncation of a sum of adapters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError, check_fraction
from hf_taskvec.merging.arithmetic import check_weights
from hf_taskvec.merging.engine import check_finite_deltas, map_parameters, parallel, stacked, wide_dtype
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.merging.selection import kept
from hf_taskvec.merging.sparse import agreeing_mean, trim_
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.lora import LoraAdapter
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.lowrank import Factors, LowRankDeltas


@merge_method("knots", paper="2410.19735", resumable=True)
def knots(vectors: Sequence[TaskVector], *, density: float = 1.0) -> TaskVector:
    """Brings the matrices of all vectors onto one set of output directions and merges there by TIES.

    The matrices side by side are decomposed as U S [V_1 … V_T]; the V_i are trimmed, signed and averaged as in TIES,
    each matrix by itself, and multiplied by U S again. Vectors from LoRA adapters stay factors, which is exact and far
    cheaper. Parameters that are no matrices get the same TIES directly.

    Args:
        vectors: Vectors of one base, meant for those of LoRA adapters.
        density: Fraction of each V_i's entries kept, in (0, 1]; the paper tunes it.

    Raises:
        ValueError: If `density` is outside (0, 1].
    """
    check_fraction("density", density)
    wide, shapes = wide_dtype(vectors), vectors[0].deltas.shapes

    def compute(name: str) -> Tensor:
        found = [v.deltas.factors.get(name) if isinstance(v.deltas, LowRankDeltas) else None for v in vectors]
        factors = [item for item in found if item is not None]
        if len(factors) == len(vectors) and len(shapes[name]) == 2:
            for index, item in enumerate(factors):
                for side in (item.left, item.right):
                    check_finite_deltas(side.unsqueeze(0), name, vectors, [index])
            left, right = _aligned_factors(factors)
        else:
            deltas = stacked(vectors, name, wide)
            if deltas.ndim != 3 or 0 in deltas.shape:
                return _ties(deltas.reshape(len(vectors), -1), density).view(shapes[name])
            left, right = _aligned(deltas.double())
        check_finite_deltas(right, name, vectors, range(len(vectors)))
        return (left @ _ties(right.reshape(len(vectors), -1), density).view(right.shape[1:])).to(wide)

    return map_parameters(compute, vectors)


def merge_adapters(
    adapters: Sequence[LoraAdapter], *, weights: Sequence[float] | None = None, rank: int | None = None
) -> LoraAdapter:
    """The adapter of a given rank that is closest to the weighted sum of adapters; only their factors are touched.

    Args:
        adapters: Adapters of one base; a parameter that some do not adapt counts as zero there.
        weights: One factor per adapter; 1 each if left out.
        rank: Rank of the result, at most that of the sum; the largest rank among the adapters if left out.

    Raises:
        ValueError: If there is no adapter, or `weights` or `rank` is out of range.
        IncompatibleVectorsError: If shapes differ.
    """
    if not adapters or (rank is not None and rank < 1):
        raise ValueError(f"merge_adapters needs at least one adapter and a positive rank, got {len(adapters)}, {rank}")
    factors = check_weights([1.0] * len(adapters) if weights is None else weights, adapters)
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter.factors))

    def merge_one(name: str) -> Factors:
        parts = [(a.factors[name], w) for a, w in zip(adapters, factors, strict=True) if name in a.factors]
        shapes = {part.shape for part, _ in parts}
        if len(shapes) > 1:
            raise IncompatibleVectorsError(f"{name!r} has shapes {sorted(map(tuple, shapes))} in the adapters")
        return _truncated(parts, max(part.right.shape[0] for part, _ in parts) if rank is None else rank)

    device = adapters[0].to_vector().device
    merged = dict(zip(names, parallel(merge_one, names, description="merge adapters", device=device), strict=True))
    infos, settings = [adapter.info for adapter in adapters], {"weights": factors, "rank": rank}
    info = VectorInfo.merged(infos, method="lora_sum", settings=settings)
    zeros = {name: shape for adapter in adapters for name, shape in adapter.zeros.items()}
    return LoraAdapter(merged, info, zeros)


def _truncated(parts: Sequence[tuple[Factors, float]], rank: int) -> Factors:
    """The leading singular vectors of a weighted sum of factors: QR of both sides, SVD of the small core."""
    left = torch.cat([part.left.double() * (part.scaling * weight) for part, weight in parts], dim=1)
    right = torch.cat([part.right.double() for part, _ in parts], dim=0)
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    dtype = parts[0][0].left.dtype
    narrow = (left_basis @ (u[:, :rank] * s[:rank])).to(dtype), (v[:rank] @ right_basis.T).to(dtype)
    return Factors(*narrow, 1.0, parts[0][0].shape)


def _aligned(deltas: Tensor) -> tuple[Tensor, Tensor]:
    """Matrices (T, m, n) as a common left factor U S (m, r) and right factors V_iᵀ (T, r, n)."""
    count, rows, columns = deltas.shape
    side = deltas.permute(1, 0, 2).reshape(rows, count * columns)
    u, s, v = torch.linalg.svd(side, full_matrices=False)
    alive = s > torch.finfo(torch.float32).eps * max(side.shape) * s[0]
    u, s, v = u[:, alive], s[alive], v[alive]
    return u * s, v.view(-1, count, columns).permute(1, 0, 2).contiguous()


def _aligned_factors(parts: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """As `_aligned`, from factors: no matrix is larger than the sum of the ranks on one side."""
    basis, core = torch.linalg.qr(torch.cat([part.left.double() * part.scaling for part in parts], dim=1))
    cores = core.split([part.left.shape[1] for part in parts], dim=1)
    small = torch.stack([own @ part.right.double() for own, part in zip(cores, parts, strict=True)])
    left, right = _aligned(small)
    return basis @ left, right


def _ties(rows: Tensor, density: float) -> Tensor:
    """TIES of rows (T, n) by themselves."""
    rank = kept(density, rows.shape[1]) if rows.shape[1] else 0
    if rank == 0:
        return rows[0].clone()
    smallest = rows.abs().kthvalue(rows.shape[1] - rank + 1, dim=1, keepdim=True).values
    return agreeing_mean(trim_(rows, smallest))
