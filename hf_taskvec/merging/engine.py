"""The streaming engine: a merged vector is computed parameter by parameter, chunk by chunk, when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hf_taskvec.errors import NonFiniteError
from hf_taskvec.tensors import check_finite
from hf_taskvec.vector import TaskVector

CHUNK = 1 << 17  # entries per vector and chunk: T chunks of float32 stay in the cache

MergeChunk = Callable[[Tensor, str], Tensor]  # (T, n) deltas of one parameter -> (n,)


class LazyDeltas(Mapping[str, Tensor]):
    """Deltas computed on access and not kept; `shapes` tells their shapes without computing them."""

    def __init__(self, shapes: Mapping[str, torch.Size], compute: Callable[[str], Tensor]) -> None:
        self.shapes = dict(shapes)
        self.compute = compute

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self.compute(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def map_parameters(compute: Callable[[str], Tensor], vectors: Sequence[TaskVector]) -> TaskVector:
    """A vector whose parameter `name` is `compute(name)`, with the names and shapes of `vectors`."""
    return TaskVector(LazyDeltas({name: d.shape for name, d in vectors[0].deltas.items()}, compute))


def map_chunks(merge_chunk: MergeChunk, vectors: Sequence[TaskVector]) -> TaskVector:
    """A vector computed by `merge_chunk` from one chunk of all T deltas at a time, in float32 or wider.

    Args:
        merge_chunk: Maps deltas (T, n) of the parameter `name` to its merged deltas (n,). The input is a buffer that
            the next call overwrites: it may be changed in place, and the result may be a part of it.
        vectors: The vectors to merge.

    Raises:
        NonFiniteError: On access, if a delta holds NaN or Inf.
    """
    wide = torch.float32
    for vector in vectors:
        wide = torch.promote_types(wide, vector.dtype)

    def compute(name: str) -> Tensor:
        deltas = [vector.deltas[name].reshape(-1) for vector in vectors]
        size, shape = deltas[0].numel(), vectors[0].deltas[name].shape
        merged = torch.empty(size, dtype=wide, device=deltas[0].device)
        buffer = torch.empty(len(vectors), min(size, CHUNK), dtype=wide, device=merged.device)
        for start in range(0, size, CHUNK):
            part = buffer[:, : min(CHUNK, size - start)]
            for row, delta in zip(part, deltas, strict=True):
                row.copy_(delta[start : start + CHUNK])
            check_finite_deltas(part, name, vectors)
            merged[start : start + CHUNK] = merge_chunk(part, name)
        return merged.view(shape)

    return map_parameters(compute, vectors)


def check_finite_deltas(deltas: Tensor, name: str, vectors: Sequence[TaskVector]) -> None:
    """Raises a `NonFiniteError` that names the parameter and the vector in which it holds NaN or Inf."""
    try:
        check_finite(name, deltas)
    except NonFiniteError:
        row = int((~torch.isfinite(deltas)).flatten(1).any(dim=1).nonzero()[0])
        raise NonFiniteError(f"{name!r} of vector {row} ({vectors[row].info.label!r}) holds NaN or Inf") from None
