"""The streaming engine: a merged vector is computed parameter by parameter, chunk by chunk, when it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from huggingface_hub.utils import tqdm
from threadpoolctl import ThreadpoolController
from torch import Tensor

from hf_taskvec.errors import NonFiniteError
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import is_finite, one_thread
from hf_taskvec.weights.deltas import Deltas, LazyDeltas

CPU = torch.device("cpu")
CHUNK = 1 << 16  # entries per vector and chunk: a row of float32 is half of a core's second-level cache
CHUNK_ELSEWHERE = 1 << 22  # the same on a GPU, where launching a kernel costs more than a small chunk
AHEAD = 1 << 24  # merged entries that may wait for the writer, so that no thread idles beside a large matrix
PROGRESS = "hf_taskvec.merging"  # huggingface_hub.utils.disable_progress_bars(PROGRESS) keeps the bars quiet

Scope = Literal["vector", "parameter"]
MergeChunk = Callable[[Tensor, str], Tensor]  # (T, n) deltas of one parameter, its name -> (n,)
MergeRows = Callable[[Sequence[Tensor], str], Tensor]  # T deltas (n,) of one parameter, its name -> (n,)
Item = TypeVar("Item")
Result = TypeVar("Result")


def map_parameters(compute: Callable[[str], Tensor], vectors: Sequence[TaskVector]) -> TaskVector:
    """A vector whose parameter `name` is `compute(name)`, with the names and shapes of `vectors`."""
    return TaskVector(LazyDeltas(vectors[0].deltas.shapes, compute, wide_dtype(vectors), vectors[0].device))


def map_chunks(merge_chunk: MergeChunk, vectors: Sequence[TaskVector]) -> TaskVector:
    """A vector computed by `merge_chunk` from one chunk of all T deltas at a time, in float32 or wider.

    Args:
        merge_chunk: Maps deltas (T, n) of the parameter `name` to its merged deltas (n,). The input is a buffer that
            the next call overwrites: it may be changed in place, and the result may be a part of it.
        vectors: The vectors to merge.

    Raises:
        NonFiniteError: On access, if a delta holds NaN or Inf.
    """
    wide, shapes, device = wide_dtype(vectors), vectors[0].deltas.shapes, vectors[0].device

    def compute(name: str) -> Tensor:
        merged = torch.empty(shapes[name].numel(), dtype=wide, device=device)
        for start, deltas in chunks(vectors, name, wide):
            merged[start : start + deltas.shape[1]] = merge_chunk(deltas, name)
        return merged.view(shapes[name])

    return map_parameters(compute, vectors)


def map_rows(merge_rows: MergeRows, vectors: Sequence[TaskVector]) -> TaskVector:
    """A vector computed by `merge_rows` from one chunk of all T deltas at a time, where they lie: nothing is copied.

    Args:
        merge_rows: Maps T deltas (n,), in the vectors' own dtypes and never changed, to their merged deltas (n,), in
            float32 or wider. NaN or Inf in any of them must make the merged entry NaN or Inf.
        vectors: The vectors to merge.

    Raises:
        NonFiniteError: On access, if a delta holds NaN or Inf.
    """
    wide, shapes, device = wide_dtype(vectors), vectors[0].deltas.shapes, vectors[0].device
    size = 2 * chunk_size(device)  # with no copy of the rows in the cache; fewer calls wait for the interpreter's lock

    def compute(name: str) -> Tensor:
        flat = [vector.deltas.flat(name) for vector in vectors]
        merged = torch.empty(flat[0].numel(), dtype=wide, device=device)
        for start in range(0, merged.numel(), size):  # what is merged stays in the cache, each delta is read once
            merged[start : start + size] = merge_rows([delta[start : start + size] for delta in flat], name)
        if not torch.isfinite(merged.sum()):
            check_finite_deltas([vector.deltas[name] for vector in vectors], name, vectors)
        return merged.view(shapes[name])

    return map_parameters(compute, vectors)


def map_sum(factors: Callable[[str], Sequence[float]], vectors: Sequence[TaskVector]) -> TaskVector:
    """A vector whose parameter `name` is the sum of the vectors' deltas times `factors(name)`."""
    wide = wide_dtype(vectors)

    def merge_rows(rows: Sequence[Tensor], name: str) -> Tensor:
        weights = factors(name)
        merged = rows[0].to(wide) * weights[0]
        for row, weight in zip(rows[1:], weights[1:], strict=True):
            merged.add_(row, alpha=weight)
        return merged

    return map_rows(merge_rows, vectors)


def chunks(
    vectors: Sequence[TaskVector],
    name: str,
    dtype: torch.dtype,
    *,
    size: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Offset and deltas (T, n) of one parameter, chunk by chunk, in one buffer that each step overwrites.

    Args:
        vectors: The vectors.
        name: The parameter.
        dtype: Dtype of the buffer.
        size: Entries per vector and chunk; what suits the device if left out.

    Raises:
        NonFiniteError: If a delta holds NaN or Inf.
    """
    flat, device = [vector.deltas.flat(name) for vector in vectors], vectors[0].device
    total, size = flat[0].numel(), size or chunk_size(device)
    buffer = torch.empty(len(flat), min(total, size), dtype=dtype, device=device)
    for start in range(0, total, size):
        chunk = buffer[:, : min(size, total - start)]
        for row, delta in zip(chunk, flat, strict=True):
            row.copy_(delta[start : start + size])
        check_finite_deltas(chunk, name, vectors)
        yield start, chunk


def chunk_size(device: torch.device) -> int:
    """Entries per vector and chunk that suit a device."""
    return CHUNK if device.type == "cpu" else CHUNK_ELSEWHERE


def stacked(vectors: Sequence[TaskVector], name: str, dtype: torch.dtype) -> Tensor:
    """The deltas of one parameter, (T, ...), as a new tensor.

    Raises:
        NonFiniteError: If one holds NaN or Inf.
    """
    shape = vectors[0].deltas.shapes[name]
    deltas = torch.empty((len(vectors), *shape), dtype=dtype, device=vectors[0].device)
    for own, vector in zip(deltas, vectors, strict=True):
        own.copy_(vector.deltas[name])
    check_finite_deltas(deltas, name, vectors)
    return deltas


def wide_dtype(vectors: Sequence[TaskVector]) -> torch.dtype:
    """The dtype to compute in: float32, or float64 if a vector is."""
    wide = torch.float32
    for vector in vectors:
        wide = torch.promote_types(wide, vector.dtype)
    return wide


def rounding_of(vectors: Sequence[TaskVector]) -> float:
    """The relative rounding of the deltas as they are stored: eps of their dtype, whatever they are computed in."""
    return max(torch.finfo(vector.dtype).eps for vector in vectors)


def check_finite_deltas(deltas: Tensor | Sequence[Tensor], name: str, vectors: Sequence[TaskVector]) -> None:
    """Raises a `NonFiniteError` that names the parameter and the vector in which it holds NaN or Inf."""
    if not (isinstance(deltas, Tensor) and is_finite(deltas)):
        for index, delta in enumerate(deltas):
            check_finite_delta(delta, name, vectors, index)


def check_finite_delta(delta: Tensor, name: str, vectors: Sequence[TaskVector], index: int) -> None:
    """As `check_finite_deltas`, of one vector's tensor."""
    if not is_finite(delta):
        raise NonFiniteError(f"{name!r} of vector {index} ({vectors[index].info.label!r}) holds NaN or Inf")


@contextmanager
def thread_pool(device: torch.device = CPU) -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as torch uses, each of which computes alone; of one thread for a GPU.

    One thread per parameter and a pool over parameters keeps chunks in each core's own cache and beats many threads
    per decomposition. On a GPU all would queue for the same stream, and hold memory there meanwhile.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        with one_thread(), ThreadpoolController().limit(limits=1):
            yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def parallel(
    function: Callable[[Item], Result], items: Iterable[Item], *, description: str, device: torch.device = CPU
) -> list[Result]:
    """`function` of each item, in order, computed on `device` by its pool under a progress bar."""
    items = list(items)
    with thread_pool(device) as pool:
        return list(progress(pool.map(function, items), len(items), description))


def progress(items: Iterable[Item], total: int, description: str) -> Iterable[Item]:
    """The items under a progress bar that shows up after two seconds."""
    return tqdm(items, total=total, desc=description, delay=2, leave=False, name=PROGRESS)


class AheadDeltas(Deltas):
    """Deltas that a pool computes ahead of a reader who takes them in order, under a progress bar.

    Args:
        deltas: The lazy deltas.
        pool: Computes them.
        ahead: How many to compute at least beyond the one asked for.
        description: Label of the progress bar.
    """

    def __init__(self, deltas: Deltas, pool: ThreadPoolExecutor, *, ahead: int, description: str) -> None:
        self.shapes, self.dtype, self.device = dict(deltas.shapes), deltas.dtype, deltas.device
        self._names = list(self.shapes)
        self._index = {name: index for index, name in enumerate(self._names)}
        self._deltas, self._pool, self._ahead, self._description = deltas, pool, ahead, description
        self._futures: dict[str, Future[Tensor]] = {}
        self._next, self._waiting = 0, 0  # the first name not yet submitted, and entries submitted and not yet taken

    @classmethod
    def of(cls, vector: TaskVector, pool: ThreadPoolExecutor) -> TaskVector:
        """The vector, computed two parameters per thread ahead."""
        ahead = cls(vector.deltas, pool, ahead=2 * pool._max_workers, description=vector.info.label)
        return TaskVector(ahead, vector.info)

    def __getitem__(self, name: str) -> Tensor:
        place = self._index[name]
        if name not in self._futures:
            self._next = place  # out of order, or once more
        while self._next < len(self._names):
            size = self.shapes[self._names[self._next]].numel()
            if self._next > place + self._ahead and self._waiting + size > AHEAD:
                break
            self._submit(self._names[self._next], size)
        self._waiting -= self.shapes[name].numel()
        return self._futures.pop(name).result()

    def _submit(self, name: str, size: int) -> None:
        self._next += 1
        if name not in self._futures:
            self._futures[name] = self._pool.submit(self._deltas.__getitem__, name)
            self._waiting += size

    def __iter__(self) -> Iterator[str]:
        return iter(progress(self._names, len(self._names), self._description))
