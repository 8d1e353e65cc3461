"""Merge methods on the singular vectors of each matrix; other parameters are averaged, as the papers do.

Matrices are decomposed in float64. Where a matrix of low rank was rounded, the directions of the rounding carry nothing
and are left out, where a decomposition would fill them arbitrarily (`linalg.above_noise`): in float32 those below some
1e-7 of the largest singular value, in bfloat16 those below some 1e-2. Of a spectrum that falls without a gap every
direction counts, as the methods define it, down to those that hold no more than the rounding of a run's arithmetic.

The authors' models are open_clip's, where queries, keys and values are one matrix of three times the rows; here, as in
Transformers, they are three matrices. Each is right as such, but results differ: published numbers are of the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hf_taskvec.errors import check_finite_number, check_fraction
from hf_taskvec.merging import lapack
from hf_taskvec.merging.engine import (
    check_finite_deltas,
    chunk_size,
    map_parameters,
    parallel,
    rounding_of,
    stacked,
    wide_dtype,
)
from hf_taskvec.merging.linalg import Singular, above_noise, leading, leading_and_rest, noise, polar, spectral_norm
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.vectors.vector import TaskVector

_BLOCK = re.compile(r"attn|attention|mlp")
_OUTSIDE = re.compile(r"embed|projection|classifier|(^|\.)(head|proj)(\.|$)")


@merge_method("tsv_m", paper="2412.00081", resumable=True)
def tsv_m(vectors: Sequence[TaskVector]) -> TaskVector:
    """Keeps the leading 1/T of each matrix's singular vectors and whitens those of all vectors against each other.

    The paper's scaling is 1. Of more vectors than a matrix has rows or columns each keeps one direction, where the
    authors' code keeps none and returns 0. That code decomposes the stacked queries, keys and values as one matrix;
    here, as in Transformers, they are three. It works in float32, this in float64.

    Example:
        >>> pair = [TaskVector({"w": torch.eye(2)}), TaskVector({"w": 3 * torch.eye(2)})]
        >>> tsv_m(pair).deltas["w"].norm().round(decimals=3)
        tensor(2.)
    """
    rounding = rounding_of(vectors)

    def merge_matrices(deltas: Tensor) -> Tensor:
        left, values, right = _whitened(deltas, rounding)
        return left * values @ right.T

    return map_matrices(merge_matrices, vectors)


def tsv_parts(vectors: Sequence[TaskVector]) -> dict[str, Tensor]:
    """What each of T vectors adds to `tsv_m` of them all, (T, ...) by parameter.

    A factor other than 0 before a vector is a factor before its part, and leaves the other parts as they are.

    Example:
        >>> pair = [TaskVector({"w": torch.eye(2)}), TaskVector({"w": torch.diag(torch.tensor([1.0, 3.0]))})]
        >>> tsv_parts(pair)["w"].norm(dim=(1, 2)).round(decimals=3)
        tensor([1., 3.])
    """
    rounding, wide, names = rounding_of(vectors), wide_dtype(vectors), list(vectors[0].deltas.shapes)

    def compute(name: str) -> Tensor:
        deltas = stacked(vectors, name, wide)
        if not _are_matrices(deltas):
            return deltas / len(vectors)
        blocks = (whole.tensor_split(len(vectors), dim=-1) for whole in _whitened(deltas, rounding))
        return torch.stack([left * values @ right.T for left, values, right in zip(*blocks, strict=True)]).to(wide)

    lapack.load()  # before a pool limits the threads of what is loaded
    return dict(zip(names, parallel(compute, names, description="tsv_m"), strict=True))


def _whitened(deltas: Tensor, rounding: float) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors (m, k), values (k,) and right vectors (n, k) of matrices (T, m, n), a block of columns for each."""
    rank = max(1, min(deltas.shape[1:]) // len(deltas))
    own = [leading(delta, rank, rounding=rounding) for delta in deltas]
    left, _ = polar(torch.cat([each.left for each in own], dim=1))
    right, _ = polar(torch.cat([each.right for each in own], dim=1))
    return left, torch.cat([each.values for each in own]), right


@merge_method("iso_c", paper="2502.04959", resumable=True)
def iso_c(vectors: Sequence[TaskVector]) -> TaskVector:
    """Sums the vectors and gives each matrix a flat spectrum: all singular values become their mean.

    The mean is over min(m, n) values. Of a sum of low rank r, as of LoRA vectors, r directions get it and the others
    stay empty, where the authors' code fills them arbitrarily: r / min(m, n) of the sum of singular values is left, a
    factor that the scaling has to make good. That code flattens the stacked queries, keys and values as one matrix;
    here, as in Transformers, they are three.

    Example:
        >>> pair = [TaskVector({"w": torch.diag(torch.tensor([3.0, 1.0]))})]
        >>> iso_c(pair).deltas["w"].norm().round(decimals=3)
        tensor(2.8280)
    """
    rounding, wide, shapes = rounding_of(vectors), wide_dtype(vectors), vectors[0].deltas.shapes

    def compute(name: str) -> Tensor:
        if len(shapes[name]) != 2 or 0 in shapes[name]:
            return stacked(vectors, name, wide).mean(dim=0)
        deltas = [vector.deltas[name] for vector in vectors]
        total = _sum(deltas)
        if not torch.isfinite(total.sum()):
            check_finite_deltas(deltas, name, vectors)
        factor, mean = polar(total, rounding=rounding)
        return (factor * mean).to(wide)

    lapack.load()  # before a pool limits the threads of what is loaded
    return map_parameters(compute, vectors)


@merge_method("iso_cts", paper="2502.04959", resumable=True)
def iso_cts(vectors: Sequence[TaskVector], *, common: float = 0.8) -> TaskVector:
    """As `iso_c`, with the weakest directions of the sum replaced by directions of the single vectors outside it.

    What `iso_c` tells of low ranks and of queries, keys and values holds here too.

    Args:
        vectors: Vectors of one base.
        common: Fraction of the rank that the sum keeps, in (0, 1], rounded so that the rest divides among the vectors.

    Raises:
        ValueError: If `common` is outside (0, 1].

    Example:
        >>> pair = [TaskVector({"w": torch.eye(2)}), TaskVector({"w": 3 * torch.eye(2)})]
        >>> iso_cts(pair).deltas["w"].norm().round(decimals=3)
        tensor(5.6570)
    """
    check_fraction("common", common)
    rounding = rounding_of(vectors)

    def merge_matrices(deltas: Tensor) -> Tensor:
        rank, count = min(deltas.shape[1:]), len(deltas)
        each = min(round((rank - int(rank * common)) / count), (rank - 1) // count)
        total = _sum(list(deltas))
        if not each:
            factor, mean = polar(total, rounding=rounding)
            return factor * mean
        shared, own = _shared_and_own(total, deltas, rank - each * count, each, rounding)
        # the vectors' own directions are orthogonal to the shared ones on the left, so that those stay as they are
        left = torch.cat([shared.left, polar(torch.cat([each.left for each in own], dim=1))[0]], dim=1)
        right, _ = polar(torch.cat([each.right for each in (shared, *own)], dim=1))
        return left @ right.T * torch.cat([each.values for each in (shared, *own)]).mean()

    return map_matrices(merge_matrices, vectors)


def _shared_and_own(
    total: Tensor, deltas: Tensor, keep: int, each: int, rounding: float
) -> tuple[Singular, list[Singular]]:
    """Leading directions of the sum of matrices (T, m, n), and of each matrix outside the sum's left ones."""
    if deltas.shape[1] > deltas.shape[2]:
        shared = leading(total, keep, rounding=rounding)
        basis = shared.left
        own = [leading(delta - basis @ (basis.T @ delta.double()), each, rounding=0) for delta in deltas]
    else:
        shared, rest = leading_and_rest(total, keep, rounding=rounding)
        small = [leading(rest.T @ delta.double(), each, rounding=0) for delta in deltas]  # few rows: cheap to decompose
        own = [Singular(rest @ each.left, each.values, each.right) for each in small]
    # what is rounded is the whole matrix, whatever is left of it outside
    alive = [each.values > noise(d, spectral_norm(d), rounding) for each, d in zip(own, deltas, strict=True)]
    if not all(each.all() for each in alive) and above_noise(torch.linalg.svdvals(total), total, rounding).all():
        alive = [each.values > noise(d, spectral_norm(d), 0) for each, d in zip(own, deltas, strict=True)]
    return shared, [each.where(kept) for each, kept in zip(own, alive, strict=True)]


@merge_method("cart", paper="2412.12153", resumable=True)
def cart(vectors: Sequence[TaskVector], *, rank: float = 0.08, strength: float = 1.0) -> TaskVector:
    """Adds to the mean of the vectors what is left of each around it, cut to its leading singular vectors.

    Embeddings, projections and classifiers are averaged: of matrices, the authors' code cuts those of attention and
    MLP only. It cuts the stacked queries, keys and values as one matrix; here, as in Transformers, they are three. And
    it rounds the number of singular vectors down: 30 of 384 at .08, here 31.

    Args:
        vectors: Vectors of one base.
        rank: Fraction of the rank kept, in (0, 1].
        strength: Factor of the centred parts, the paper's lambda, which it tunes; the mean is not scaled by it.

    Raises:
        ValueError: If `rank` is outside (0, 1], or `strength` is not finite.

    Example:
        >>> pair = [TaskVector({"w": torch.eye(2)}), TaskVector({"w": 3 * torch.eye(2)})]
        >>> cart(pair, rank=1.0).deltas["w"].norm().round(decimals=3)
        tensor(2.8280)
    """
    check_fraction("rank", rank)
    check_finite_number("strength", strength)
    rounding = rounding_of(vectors)

    def merge_matrices(deltas: Tensor) -> Tensor:
        mean = deltas.mean(dim=0)
        result = mean.to(torch.float64, copy=True)
        for delta in deltas:
            centred = leading(delta - mean, max(1, round(rank * min(mean.shape))), rounding=rounding)
            result += strength * (centred.left * centred.values @ centred.right.T)
        return result

    return map_matrices(merge_matrices, vectors, where=is_block)


def is_block(name: str) -> bool:
    """Whether a matrix belongs to attention or MLP, as all do whose name says nothing else.

    Example:
        >>> is_block("layers.0.mlp.fc1.weight"), is_block("visual_projection.weight")
        (True, False)
    """
    return bool(_BLOCK.search(name) or not _OUTSIDE.search(name))


def _sum(deltas: Sequence[Tensor]) -> Tensor:
    """The sum of tensors in float64, which keeps directions that float32 would round away; chunk by chunk."""
    flat = [delta.reshape(-1) for delta in deltas]
    total = torch.empty(flat[0].numel(), dtype=torch.float64, device=flat[0].device)
    size = chunk_size(total.device)
    for start in range(0, len(total), size):  # what is summed stays in the cache, each delta is read once
        chunk = flat[0][start : start + size].to(torch.float64, copy=True)
        for delta in flat[1:]:
            chunk += delta[start : start + size]
        total[start : start + size] = chunk
    return total.view(deltas[0].shape)


def map_matrices(
    merge_matrices: Callable[[Tensor], Tensor],
    vectors: Sequence[TaskVector],
    *,
    where: Callable[[str], bool] = lambda name: True,
) -> TaskVector:
    """A vector whose matrices are `merge_matrices` of the T deltas (T, m, n); other parameters are averaged.

    A convolution's kernel counts as a parameter of another dimension, as in the methods' papers.

    Args:
        merge_matrices: Maps T deltas to one.
        vectors: The vectors.
        where: Which matrices, by name; the others are averaged too.
    """
    lapack.load()  # before a pool limits the threads of what is loaded
    wide = wide_dtype(vectors)

    def compute(name: str) -> Tensor:
        deltas = stacked(vectors, name, wide)
        if not (_are_matrices(deltas) and where(name)):
            return deltas.mean(dim=0)
        return merge_matrices(deltas).to(wide)

    return map_parameters(compute, vectors)


def _are_matrices(deltas: Tensor) -> bool:
    return deltas.ndim == 3 and 0 not in deltas.shape
