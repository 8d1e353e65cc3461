"""Merging in a subspace that the vectors share: DC-Merge's cover of their singular directions, the core of adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from hf_taskvec.errors import check_fraction, check_known
from hf_taskvec.merging.engine import check_finite_delta, map_parameters, parallel, rounding_of, wide_dtype
from hf_taskvec.merging.linalg import Singular, leading, noise, polar
from hf_taskvec.merging.modifiers import inner_merge
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.merging.selection import kept
from hf_taskvec.merging.sparse import agreeing_mean
from hf_taskvec.merging.spectral import map_matrices
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import LazyDeltas
from hf_taskvec.weights.lowrank import Factors, LowRankDeltas

Smoothing = Literal["none", "average", "linear"]
_STEEPEST = 5.0  # the authors' rho: of a linear ramp, how much the first singular value is of the last at most


@merge_method("dc_merge", paper="2603.06242", resumable=True)
def dc_merge(
    vectors: Sequence[TaskVector],
    *,
    rank: int | None = None,
    density: float = 0.001,
    smoothing: Smoothing = "none",
) -> TaskVector:
    """Merges each matrix on axes that cover the leading singular directions of all vectors, by their largest entries.

    The leading singular vectors of all vectors, side by side, are whitened to one basis on each side. Each vector is
    cut to its own leading directions and written on those axes; its largest entries there are kept, signs are elected
    and agreeing entries averaged as in TIES, and what is left between the axes of different vectors is dropped.

    The defaults are the recipe of the authors' code for full fine-tuning. For LoRA it has `rank=16` and smoothing
    "average" (ViT-B/16, L/14) or "linear" (B/32). The scaling is chosen on validation data, .1 to 3. That code keeps
    `int(density * n²)` entries of a matrix whose shorter side is n, this `round(density * k²)` of a core with k axes:
    one entry more or less, or a few where the vectors do not divide the side. Of more vectors than a matrix has rows
    or columns each keeps one direction, where that code returns 0. It decomposes the stacked queries, keys and values
    as one matrix; here, as in Transformers, they are three.

    Args:
        vectors: Vectors of one base.
        rank: How many singular directions of each vector are kept; the shorter side over T if left out, which is also
            the most.
        density: Fraction of the entries of a vector's core that are kept, in (0, 1]; at least one is.
        smoothing: What becomes of the kept singular values: "none" leaves them, "average" gives all their mean,
            "linear" a ramp with their sum, whose ends are as far apart as theirs but at most by a factor of 5.
            Directions within rounding get nothing.

    Raises:
        UnknownNameError: If `smoothing` is unknown.
        ValueError: If `density` is outside (0, 1] or `rank` is not positive.

    Example:
        >>> pair = [TaskVector({"w": torch.diag(torch.tensor(values))}) for values in ([3.0, 1.0], [1.0, 2.0])]
        >>> dc_merge(pair, density=1.0).deltas["w"].diagonal()
        tensor([3., 2.])
    """
    check_fraction("density", density)
    check_known("smoothing", smoothing, get_args(Smoothing))
    if rank is not None and (type(rank) is not int or rank < 1):
        raise ValueError(f"rank must be a positive whole number or left out, got {rank!r}")
    rounding = rounding_of(vectors)

    def merge_matrices(deltas: Tensor) -> Tensor:
        most = max(1, min(deltas.shape[1:]) // len(deltas))
        cut = [leading(delta, min(rank or most, most), rounding=rounding) for delta in deltas]
        left, _ = polar(torch.cat([each.left for each in cut], dim=1))
        right, _ = polar(torch.cat([each.right for each in cut], dim=1))
        cores = torch.stack(
            [(left.T @ each.left) * _smoothed(each, smoothing) @ (each.right.T @ right) for each in cut]
        )
        own = torch.arange(cores.shape[1], device=cores.device) // cut[0].values.numel()  # whose axis each is
        merged = agreeing_mean(_largest(cores, density)).view(cores.shape[1:])
        return left @ (merged * (own.unsqueeze(1) == own)) @ right.T

    return map_matrices(merge_matrices, vectors)


def _smoothed(own: Singular, smoothing: Smoothing) -> Tensor:
    """The singular values (k,) after smoothing; those of directions within rounding stay 0."""
    alive = own.values > 0
    count = int(alive.sum())
    if smoothing == "none" or not count:
        return own.values
    ratio = 1.0 if smoothing == "average" else min(_STEEPEST, float(own.values[0] / own.values[count - 1]))
    shares = torch.zeros_like(own.values)
    shares[:count] = torch.linspace(ratio, 1.0, count, dtype=shares.dtype, device=shares.device)
    return shares * (own.values.sum() / shares.sum())


def _largest(cores: Tensor, density: float) -> Tensor:
    """Each core (T, k, k) flat, with all but its largest entries 0; those tied with the smallest kept one stay."""
    flat = cores.flatten(1)
    bound = flat.abs().topk(kept(density, flat.shape[1]), dim=1).values[:, -1:]
    return torch.where(flat.abs() >= bound, flat, 0.0)


@merge_method("core_space", paper="2509.17786", resumable=True)
def core_space(
    vectors: Sequence[TaskVector], *, of: str = "tsv_m", of_settings: Mapping[str, Any] | None = None
) -> TaskVector:
    """Brings the factors of LoRA vectors into one small core per matrix, without loss, and merges there by any method.

    The left factors side by side span what all outputs can be, the right ones what all inputs can; in orthonormal bases
    U and V of both, each vector is U M_i Vᵀ with M_i no larger than the sum of the ranks. The method merges the M_i;
    the result is U M Vᵀ. What a method does that commutes with rotations comes out as it would outside, far cheaper.

    Bases are the singular vectors of the stacked factors, as in the authors' code; axes that only rounding spans hold
    zeros, but count in the size of the core. Parameters without factors in some vector are given to the method as they
    are, so that of vectors that are no adapters the method's own result comes out; parameters that no vector adapts
    stay 0 and count in no density.

    Args:
        vectors: Vectors of one base, meant for those of LoRA adapters; ranks may differ.
        of: The method that merges the cores. Scalings for LoRA are larger than for full fine-tuning: with
            `iso_c` the authors tune 3.5 to 4.5.
        of_settings: Its settings.

    Raises:
        UnknownNameError, ValueError: If `of` is no method, or one that needs more than vectors, or for its settings.

    Example:
        >>> left, right = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 2.0]])
        >>> one = TaskVector(LowRankDeltas({"w": Factors(left, right, 1.0, torch.Size([2, 2]))}))
        >>> core_space([one, one], of="task_arithmetic").deltas["w"].round(decimals=3) + 0.0
        tensor([[0., 4.],
                [0., 0.]])
    """
    if of == "core_space":
        raise ValueError("of must be a method that merges the cores, got 'core_space' itself")
    wide, shapes = wide_dtype(vectors), vectors[0].deltas.shapes
    cores = _Cores.of(vectors)
    inside = [TaskVector(cores.deltas(index), vector.info) for index, vector in enumerate(vectors)]
    merged = inner_merge(of, of_settings, inside)

    def compute(name: str) -> Tensor:
        if name not in merged.deltas:  # no vector adapts it
            return torch.zeros(shapes[name], dtype=wide, device=vectors[0].device)
        delta = merged.deltas[name]
        if name in cores.bases:
            left, right = cores.bases[name]
            delta = left @ delta.double() @ right.T
        return delta.to(wide).reshape(shapes[name])

    return map_parameters(compute, vectors)


@dataclass(frozen=True)
class _Cores:
    """T vectors in the cores of their matrices.

    Attributes:
        vectors: The vectors.
        bases: For each matrix of which all vectors have factors, orthonormal U (m, p) and V (n, q), in float64.
        cores: For each of them, the vectors' M_i (T, p, q), in float64.
        others: The shapes of the parameters that some vector has in full.
    """

    vectors: Sequence[TaskVector]
    bases: Mapping[str, tuple[Tensor, Tensor]]
    cores: Mapping[str, Tensor]
    others: Mapping[str, torch.Size]

    @classmethod
    def of(cls, vectors: Sequence[TaskVector]) -> _Cores:
        """The cores of vectors; small, and computed at once."""
        low = [vector.deltas for vector in vectors if isinstance(vector.deltas, LowRankDeltas)]
        shapes = vectors[0].deltas.shapes
        if len(low) < len(vectors):
            return cls(vectors, {}, {}, shapes)
        names = [name for name in shapes if any(name in deltas.factors for deltas in low)]
        factors = {name: [deltas.factors[name] for deltas in low if name in deltas.factors] for name in names}
        rounding = rounding_of(vectors)

        def core(name: str) -> tuple[tuple[Tensor, Tensor], Tensor]:
            for index, deltas in enumerate(low):
                if (item := deltas.factors.get(name)) is not None:
                    check_finite_delta(item.left, name, vectors, index)
                    check_finite_delta(item.right, name, vectors, index)
            left = _basis([item.left.double() * item.scaling for item in factors[name]], rounding)
            right = _basis([item.right.double().T for item in factors[name]], rounding)
            empty = torch.zeros(left.shape[1], right.shape[1], dtype=left.dtype, device=left.device)
            own = [_inside(deltas.factors.get(name), left, right, empty) for deltas in low]
            return (left, right), torch.stack(own)

        computed = parallel(core, names, description="cores", device=vectors[0].device)
        bases = {name: basis for name, (basis, _) in zip(names, computed, strict=True)}
        return cls(vectors, bases, {name: own for name, (_, own) in zip(names, computed, strict=True)}, {})

    def deltas(self, index: int) -> LazyDeltas:
        """The cores of one vector, and its other parameters as they are."""
        shapes = {name: own.shape[1:] for name, own in self.cores.items()} | dict(self.others)
        vector = self.vectors[index]

        def compute(name: str) -> Tensor:
            return self.cores[name][index] if name in self.cores else vector.deltas[name]

        dtype = torch.float64 if self.cores else vector.dtype
        return LazyDeltas(shapes, compute, dtype, vector.device)


def _basis(sides: Sequence[Tensor], rounding: float) -> Tensor:
    """Orthonormal axes (m, k) of what T factors (m, r_i) span together, k being min(m, sum of r_i).

    Axes within rounding are zeros.
    """
    stacked = torch.cat(list(sides), dim=1)
    left, values, _ = torch.linalg.svd(stacked, full_matrices=False)
    axes: Tensor = left * (values > noise(stacked, float(values[0]), rounding))
    return axes


def _inside(item: Factors | None, left: Tensor, right: Tensor, empty: Tensor) -> Tensor:
    """A vector's M in the bases; zeros if it does not adapt the parameter."""
    if item is None:
        return empty
    core: Tensor = left.T @ (item.left.double() * item.scaling) @ (item.right.double() @ right)
    return core
