"""Merging LoRA vectors without leaving their factors: KnOTS, and truncation of a sum of adapters."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError, check_fraction
from hf_taskvec.merging.arithmetic import check_weights
from hf_taskvec.merging.engine import (
    CHUNK,
    check_finite_deltas,
    map_parameters,
    parallel,
    rounding_of,
    stacked,
    wide_dtype,
)
from hf_taskvec.merging.linalg import above_noise
from hf_taskvec.merging.radix import Histograms
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.merging.selection import kept
from hf_taskvec.merging.sparse import agreeing_mean
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.lora import LoraAdapter
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.lowrank import Factors, LowRankDeltas


@merge_method("knots", paper="2410.19735", resumable=True)
def knots(vectors: Sequence[TaskVector], *, density: float = 1.0) -> TaskVector:
    """Brings the matrices of all vectors onto one set of output directions and merges there by TIES.

    The matrices side by side are decomposed as U [S V_1 … S V_T]; the S V_i are trimmed, signed and averaged as in
    TIES, with one threshold per vector over all its parameters, and multiplied by U again. Vectors from LoRA adapters
    stay factors, which is exact and far cheaper. Parameters that are no matrices get the same TIES directly.

    An entry whose kept parts sum to exactly 0 stays 0, where the authors' code takes the sign that most entries have;
    it keeps `int(density * n) + 1` of n entries, this `round(density * n)`. Its models stack queries, keys and values
    into one matrix; here, as in Transformers, they are three.

    Args:
        vectors: Vectors of one base, meant for those of LoRA adapters.
        density: Fraction of each vector's aligned entries kept, in (0, 1]; the paper tunes it (.2 for ViT-B/32). Below
            1 every matrix is decomposed three times, twice of them to find the thresholds.

    Raises:
        ValueError: If `density` is outside (0, 1].

    Example:
        >>> pair = [TaskVector({"w": torch.eye(2)}), TaskVector({"w": 3 * torch.eye(2)})]
        >>> knots(pair).deltas["w"].norm().round(decimals=3)
        tensor(2.8280)
    """
    check_fraction("density", density)
    wide, shapes = wide_dtype(vectors), vectors[0].deltas.shapes
    aligned = Aligned(vectors)
    smallest = aligned.thresholds(density) if density < 1 else None

    def compute(name: str) -> Tensor:
        basis, values, right = aligned.parts(name)
        if smallest is not None:
            scaled = aligned.scaled(values, right)
            scaled.mul_(scaled.abs().to(smallest.dtype) >= smallest)  # in the dtype in which they were ranked
            merged = agreeing_mean(scaled).view(right.shape[1:])
        else:
            merged = agreeing_mean(right.reshape(len(vectors), -1).clone()).view(right.shape[1:])
            basis = basis if values is None or basis is None else basis * values
        return (merged if basis is None else basis @ merged).to(wide).reshape(shapes[name])

    return map_parameters(compute, vectors)


class Aligned:
    """The parameters of T vectors on common output directions, decomposed anew each time they are asked for."""

    def __init__(self, vectors: Sequence[TaskVector]) -> None:
        self.vectors, self.shapes = vectors, vectors[0].deltas.shapes
        self.wide, self.rounding = wide_dtype(vectors), rounding_of(vectors)

    def parts(self, name: str) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """U (m, r), S (r,) and V_iᵀ (T, r, n) of a parameter; without U and S, the deltas (T, ...) if no matrices."""
        deltas = [vector.deltas for vector in self.vectors]
        factors = [d.factors[name] for d in deltas if isinstance(d, LowRankDeltas) and name in d.factors]
        if len(factors) == len(self.vectors) and len(self.shapes[name]) == 2:
            check_finite_deltas([item.left for item in factors], name, self.vectors)
            check_finite_deltas([item.right for item in factors], name, self.vectors)
            basis, values, right = _aligned_factors(factors, self.rounding)
        else:
            stack = stacked(self.vectors, name, self.wide)
            if stack.ndim != 3 or 0 in stack.shape:
                return None, None, stack
            basis, values, right = _aligned(stack.double(), self.rounding)
        check_finite_deltas(right, name, self.vectors)
        return basis, values, right

    @staticmethod
    def scaled(values: Tensor | None, right: Tensor) -> Tensor:
        """Each vector's S V_i (T, r * n) as a new tensor."""
        scaled = right.clone() if values is None else right * values.unsqueeze(1)
        return scaled.reshape(len(right), -1)

    def thresholds(self, density: float) -> Tensor:
        """For each vector the smallest magnitude that it keeps, over all its parameters together, (T, 1)."""

        def magnitudes(name: str) -> Iterator[Tensor]:
            _, values, right = self.parts(name)
            scaled = self.scaled(values, right).to(self.wide).abs_()
            yield from (chunk.cpu() for chunk in scaled.split(CHUNK, dim=1))

        names, device = [name for name, shape in self.shapes.items() if shape.numel()], self.vectors[0].device
        if not names:
            return torch.zeros(len(self.vectors), 1, dtype=self.wide, device=device)
        run = functools.partial(parallel, description="thresholds", device=device)
        return Histograms(self.wide, magnitudes).descend(names, lambda size: [kept(density, size)], run).to(device)


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

    Example:
        >>> factors = Factors(torch.ones(3, 1), torch.ones(1, 2), 1.0, torch.Size((3, 2)))
        >>> adapter = LoraAdapter({"q.weight": factors}, VectorInfo(kind="lora"))
        >>> merged = merge_adapters([adapter, adapter], weights=[1.0, 0.5])
        >>> merged.to_vector().deltas["q.weight"].round(decimals=3)[0]
        tensor([1.5000, 1.5000])
    """
    if not adapters or (rank is not None and rank < 1):
        raise ValueError(f"merge_adapters needs at least one adapter and a positive rank, got {len(adapters)}, {rank}")
    factors = check_weights([1.0] * len(adapters) if weights is None else weights, adapters)
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter.factors))

    def merge_one(name: str) -> Factors:
        terms = [(a.factors[name], w) for a, w in zip(adapters, factors, strict=True) if name in a.factors]
        shapes = {item.shape for item, _ in terms}
        if len(shapes) > 1:
            raise IncompatibleVectorsError(f"{name!r} has shapes {sorted(map(tuple, shapes))} in the adapters")
        return _truncated(terms, max(item.right.shape[0] for item, _ in terms) if rank is None else rank)

    device = adapters[0].to_vector().device
    merged = dict(zip(names, parallel(merge_one, names, description="merge adapters", device=device), strict=True))
    infos, settings = [adapter.info for adapter in adapters], {"weights": factors, "rank": rank}
    info = VectorInfo.merged(infos, method="lora_sum", settings=settings)
    zeros = {name: shape for adapter in adapters for name, shape in adapter.zeros.items()}
    return LoraAdapter(merged, info, zeros)


def _truncated(terms: Sequence[tuple[Factors, float]], rank: int) -> Factors:
    """The leading singular vectors of a weighted sum of factors: QR of both sides, SVD of the small core."""
    left = torch.cat([item.left.double() * (item.scaling * weight) for item, weight in terms], dim=1)
    right = torch.cat([item.right.double() for item, _ in terms], dim=0)
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right.T)
    u, s, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    first = terms[0][0]
    dtype = first.left.dtype
    narrow = (left_basis @ (u[:, :rank] * s[:rank])).to(dtype), (v[:rank] @ right_basis.T).to(dtype)
    return Factors(*narrow, 1.0, first.shape)


def _aligned(deltas: Tensor, rounding: float) -> tuple[Tensor, Tensor, Tensor]:
    """Matrices (T, m, n) in float64 as a common left factor U (m, r), S (r,) and right factors V_iᵀ (T, r, n)."""
    count, rows, columns = deltas.shape
    side = deltas.permute(1, 0, 2).reshape(rows, count * columns)
    u, s, v = torch.linalg.svd(side, full_matrices=False)
    alive = above_noise(s, side, rounding)
    u, s, v = u[:, alive], s[alive], v[alive]
    return u, s, v.view(-1, count, columns).permute(1, 0, 2).contiguous()


def _aligned_factors(factors: Sequence[Factors], rounding: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `_aligned`, from factors: no matrix is larger than the sum of the ranks on one side."""
    basis, core = torch.linalg.qr(torch.cat([item.left.double() * item.scaling for item in factors], dim=1))
    cores = core.split([item.left.shape[1] for item in factors], dim=1)
    small = torch.stack([own @ item.right.double() for own, item in zip(cores, factors, strict=True)])
    left, values, right = _aligned(small, rounding)
    return basis @ left, values, right
