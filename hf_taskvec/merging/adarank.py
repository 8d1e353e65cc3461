"""The sum of vectors whose matrices are cut to singular directions that `hf_taskvec.tuning.rank_masks` chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_taskvec.merging import lapack
from hf_taskvec.merging.engine import map_parameters, rounding_of, stacked, wide_dtype
from hf_taskvec.merging.linalg import Singular, leading
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.merging.weighted import EVERYWHERE, Coefficients, factors_of
from hf_taskvec.text import listed
from hf_taskvec.vectors.vector import TaskVector

Masks = Mapping[str, Sequence[str]]


@merge_method("adarank", paper="2503.22178", resumable=True)
def adarank(
    vectors: Sequence[TaskVector],
    *,
    masks: Masks | None = None,
    coefficients: Coefficients | None = None,
    transductive: bool = False,
    learned: Mapping[str, Any] | None = None,
) -> TaskVector:
    """The sum of the vectors, each cut in every matrix to chosen singular directions: the leading 1/T by default.

    `rank_masks` chooses them on images and calls this by itself.

    Args:
        vectors: Vectors of one base.
        masks: For each matrix one text per vector: which of its singular directions stay; see `packed`.
        coefficients: As in `weighted`.
        transductive: Whether masks and coefficients were found on test images; kept in the provenance.
        learned: How they were found; likewise.

    Raises:
        ValueError: If the masks are not one per vector for every matrix, or not of its rank; or as `weighted`.

    Example:
        >>> pair = [TaskVector({"w": torch.diag(torch.tensor([3.0, 1.0]))})] * 2
        >>> adarank(pair)["w"].diagonal()
        tensor([6., 0.])
    """
    factors = factors_of(coefficients or {EVERYWHERE: [1.0] * len(vectors)}, vectors)
    shapes, wide, rounding = vectors[0].deltas.shapes, wide_dtype(vectors), rounding_of(vectors)
    chosen = _chosen(masks, vectors)
    lapack.load()  # before a pool limits the threads of what is loaded

    def compute(name: str) -> Tensor:
        deltas = stacked(vectors, name, wide)
        total = torch.zeros(shapes[name], dtype=torch.float64, device=deltas.device)
        for index, delta in enumerate(deltas):
            if name in chosen:
                delta = cut(leading(delta, rounding=rounding), chosen[name][index].to(delta.device))
            total += delta.double() * factors[name][index]
        return total.to(wide)

    return map_parameters(compute, vectors)


def cut(singular: Singular, mask: Tensor) -> Tensor:
    """The matrix of the singular directions that a mask (k,) keeps.

    Example:
        >>> cut(leading(torch.diag(torch.tensor([3.0, 1.0]))), torch.tensor([False, True])).abs().diagonal()
        tensor([0., 1.], dtype=torch.float64)
    """
    return singular.left[:, mask] * singular.values[mask] @ singular.right[:, mask].T


def is_matrix(shape: Sequence[int]) -> bool:
    """Whether a parameter has singular directions to choose among.

    Example:
        >>> is_matrix((2, 3)), is_matrix((3,))
        (True, False)
    """
    return len(shape) == 2 and 0 not in shape


def leading_share(rank: int, count: int) -> Tensor:
    """The mask (rank,) that keeps the leading 1/T of the directions, at least one.

    Example:
        >>> leading_share(4, 2)
        tensor([ True,  True, False, False])
    """
    return torch.arange(rank) < max(1, rank // count)


def packed(mask: Tensor) -> str:
    """A mask (k,) as hexadecimal text, eight directions to two digits, the leading one first.

    Example:
        >>> packed(torch.tensor([True, False, True]))
        'a0'
    """
    return bytes(np.packbits(mask.cpu().numpy()).tolist()).hex()


def unpacked(text: str, rank: int) -> Tensor:
    """The mask (rank,) of a text that `packed` made.

    Raises:
        ValueError: If it is none, or of another rank.

    Example:
        >>> unpacked("a0", 3)
        tensor([ True, False,  True])
    """
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))
    if len(bits) != -(-rank // 8) * 8 or bits[rank:].any():
        raise ValueError(f"a mask of {len(bits)} directions does not fit a matrix of rank {rank}")
    return torch.from_numpy(bits[:rank].astype(bool))


def _chosen(masks: Masks | None, vectors: Sequence[TaskVector]) -> dict[str, list[Tensor]]:
    """The masks of every matrix."""
    ranks = {name: min(shape) for name, shape in vectors[0].deltas.shapes.items() if is_matrix(shape)}
    if masks is None:
        return {name: [leading_share(rank, len(vectors))] * len(vectors) for name, rank in ranks.items()}
    if set(masks) != set(ranks):
        wrong = sorted(set(masks) ^ set(ranks))
        raise ValueError(f"masks must name every matrix of the vectors and nothing else; look at {listed(wrong)}")
    for name, texts in masks.items():
        if len(texts) != len(vectors):
            raise ValueError(f"masks must hold one text per vector ({len(vectors)}); {name!r} has {len(texts)}")
    return {name: [unpacked(text, ranks[name]) for text in texts] for name, texts in masks.items()}
