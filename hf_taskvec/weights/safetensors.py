"""safetensors: written as a stream, opened memory-mapped."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import struct
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_taskvec.errors import CheckpointError
from hf_taskvec.weights.arithmetic import one_thread
from hf_taskvec.weights.dtypes import DTYPE_CODES
from hf_taskvec.weights.folders import check_inside, check_relative, check_text, read_json, write_json

MAX_SHARD_SIZE = "5GB"
MAX_HEADER_BYTES = 16 << 20  # a vision tower's has some 20 kB
MAX_WAITING_BYTES = 64 << 20  # written, not hashed yet, and still in memory
Take = Callable[[memoryview], object]
CODES = {**DTYPE_CODES, torch.uint8: "U8"}  # what a file may hold: deltas, and the bytes of packed ones
_OTHER_CODES = {
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.bool: "BOOL"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
}  # of buffers, and of weights that are passed on as they are
Dtypes = torch.dtype | Mapping[str, torch.dtype]  # of all tensors, or of each


@contextmanager
def writer(path: Path, hashing: Take | None) -> Iterator[Take]:
    """Yields a function that writes bytes to a new file; `hashing` gets them on another core meanwhile."""
    with open(path, "wb") as file:
        if hashing is None:
            yield file.write
            return
        waiting: deque[tuple[Future[object], int]] = deque()
        with one_thread(), ThreadPoolExecutor(1) as worker:

            def write(data: memoryview) -> None:
                waiting.append((worker.submit(hashing, data), len(data)))
                file.write(data)
                while waiting and (waiting[0][0].done() or sum(size for _, size in waiting) > MAX_WAITING_BYTES):
                    waiting.popleft()[0].result()

            yield write
            for hashed, _ in waiting:
                hashed.result()


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    shapes: Mapping[str, Sequence[int]],
    dtype: Dtypes,
    hashed: bool = False,
) -> str | None:
    """Writes tensors one after the other; only one is in memory at a time.

    Args:
        path: The new file.
        tensors: Every name of `shapes`, in its order, with its values.
        shapes: Shape of each tensor.
        dtype: Dtype of the file, or of each tensor.
        hashed: Whether to take the file's SHA-256 on another core meanwhile.

    Returns:
        The SHA-256, if it was asked for.

    Raises:
        CheckpointError: If a name is none that `open_safetensors` reads.
        ValueError: If there is no tensor.
    """
    expected = iter(shapes)
    digest = hashlib.sha256() if hashed else None
    with writer(path, digest.update if digest else None) as write:
        write(memoryview(header_of(shapes, dtype)))
        for name, tensor in tensors:
            if name != next(expected, None) or tuple(tensor.shape) != tuple(shapes[name]):
                raise ValueError(f"tensor {name!r} of shape {tuple(tensor.shape)} does not fit the announced header")
            write(bytes_of(tensor, dtype_of(dtype, name)))
        if (missing := next(expected, None)) is not None:
            raise ValueError(f"tensor {missing!r} was announced and not written")
    return digest.hexdigest() if digest else None


def header_of(shapes: Mapping[str, Sequence[int]], dtype: Dtypes) -> bytes:
    """What a file of tensors in this order begins with.

    Raises:
        CheckpointError: If a name is none that `open_safetensors` reads.
        ValueError: If there is no tensor.
    """
    _check_names(shapes, "the weights")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        kind = dtype_of(dtype, name)
        end = offset + kind.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": (CODES | _OTHER_CODES)[kind], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)  # the data start on a cache line
    return struct.pack("<Q", len(text)) + text


def bytes_of(tensor: Tensor, dtype: torch.dtype) -> memoryview:
    """The values of a tensor as a file holds them."""
    return memoryview(tensor.detach().to("cpu", dtype).contiguous().view(-1).view(torch.uint8).numpy().data)


def dtype_of(dtype: Dtypes, name: str) -> torch.dtype:
    """The dtype of one tensor, where there is one for all or one for each."""
    return dtype[name] if isinstance(dtype, Mapping) else dtype


def write_sharded(
    folder: Path,
    stem: str,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    shapes: Mapping[str, Sequence[int]],
    dtype: Dtypes,
    max_shard_size: int | str = MAX_SHARD_SIZE,
    hashed: bool = False,
) -> dict[str, str]:
    """Writes `<stem>.safetensors`, or shards with `<stem>.safetensors.index.json` above `max_shard_size`.

    Returns:
        The SHA-256 of each weight file by its name, if `hashed`.

    Raises:
        CheckpointError, ValueError: As `write_safetensors`.
    """
    plan = shard_plan(stem, shapes, dtype, max_shard_size)
    stream = iter(tensors)
    digests = {}
    for filename, names in plan.filename_to_tensors.items():
        inside = {name: shapes[name] for name in names}
        few = (next(stream) for _ in names)
        if digest := write_safetensors(folder / filename, few, shapes=inside, dtype=dtype, hashed=hashed):
            digests[filename] = digest
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)
    return digests


def shard_plan(stem: str, shapes: Mapping[str, Sequence[int]], dtype: Dtypes, max_shard_size: int | str) -> Any:
    """Which tensors go into which file, in their order.

    Raises:
        CheckpointError: If a name is none that `open_safetensors` reads.
        ValueError: If the size is none, or there is no tensor.
    """
    _check_names(shapes, f"{stem}.safetensors")
    sizes = {name: math.prod(shape) * dtype_of(dtype, name).itemsize for name, shape in shapes.items()}
    return split_sizes(sizes, f"{stem}{{suffix}}.safetensors", max_shard_size)


def split_sizes(sizes: Mapping[str, int], pattern: str, max_shard_size: int | str) -> Any:
    """Splits tensors of these sizes in bytes into files in their order, so that they can be written as they come.

    Raises:
        ValueError: If the largest size of a file is none.

    Example:
        >>> split_sizes({"a": 1, "b": 9, "c": 1}, "{suffix}", 4).filename_to_tensors.values()
        dict_values([['a'], ['b'], ['c']])
    """
    limit = _shard_limit(max_shard_size)
    split = split_state_dict_into_shards_factory(  # the torch form imports torch.distributed, a second per process
        {name: min(size, limit) for name, size in sizes.items()},  # it puts a larger one before those that come first
        get_storage_size=int,
        filename_pattern=pattern,
        max_shard_size=limit,
    )
    return dataclasses.replace(split, metadata={"total_size": sum(sizes.values())})


def _check_names(names: Collection[str], where: str) -> None:
    if not names:
        raise ValueError(f"there is no tensor to write into {where}")
    for name in names:
        if name == "__metadata__":
            raise CheckpointError(f"{name!r} is no name for a tensor: safetensors files keep their notes under it")
        check_text(name, f"a name in {where}")


def _shard_limit(size: int | str) -> int:
    limit = 0 if isinstance(size, str) else size
    if isinstance(size, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT])B", size, re.IGNORECASE)):
        limit = int(float(match[1]) * 1000 ** (1 + "KMGT".index(match[2].upper())))
    if limit <= 0:
        raise ValueError(f"max_shard_size must be a number of bytes or a size such as '5GB', got {size!r}")
    return limit


def shard_files(folder: Path, stem: str) -> list[str]:
    """Names of the safetensors files of one artefact: a single file, or those of its index.

    Raises:
        CheckpointError: If there is none, or the index is damaged or names files outside the folder.
    """
    if (folder / f"{stem}.safetensors").is_file():
        return [f"{stem}.safetensors"]
    index_path = folder / f"{stem}.safetensors.index.json"
    if not index_path.is_file():
        raise CheckpointError(f"{folder} has neither {stem}.safetensors nor {stem}.safetensors.index.json")
    check_inside(index_path, folder)
    return index_files(read_json(index_path), index_path.name)


def index_files(index: Mapping[str, Any], where: str) -> list[str]:
    """Names of the files in a shard index, each checked to lie in the index's folder."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{where} has no valid 'weight_map'")
    files = sorted(set(weight_map.values()))
    for name in files:
        check_relative(name, where)
        if not name.endswith(".safetensors"):
            raise CheckpointError(f"{where} names {name[:200]!r}, which is no .safetensors file")
    return files


def open_safetensors(paths: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of one or more files, memory-mapped: nothing is read before it is used.

    Raises:
        CheckpointError: If a file is damaged, or two files hold the same name.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        _check_header(path)
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                    check_text(name, f"a name in {path.name}")
                    if name in tensors:
                        raise CheckpointError(f"{name!r} is in more than one file")
                    tensors[name] = file.get_tensor(name)
        except CheckpointError:
            raise
        except (SafetensorError, ValueError, TypeError, OverflowError, RuntimeError) as error:
            line = (str(error).splitlines() or [""])[0]
            raise CheckpointError(f"{path.name} is no valid safetensors file: {line[:200]!r}") from None
    return tensors


def _check_header(path: Path) -> None:
    """Raises unless the file announces a header that fits into it and into memory."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER_BYTES, path.stat().st_size - 8):
        raise CheckpointError(f"{path.name} is no valid safetensors file: it announces a header of {length} bytes")
