"""safetensors files that a killed process left half written, and the next one goes on with."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from hf_taskvec.weights.folders import write_json, write_text
from hf_taskvec.weights.safetensors import MAX_SHARD_SIZE, Dtypes, bytes_of, dtype_of, header_of, shard_plan

logger = logging.getLogger(__name__)
DONE = ".done"  # beside each file: a line for each tensor that was written


def continue_sharded(
    folder: Path,
    stem: str,
    compute: Callable[[str], Tensor],
    *,
    shapes: Mapping[str, Sequence[int]],
    dtype: Dtypes,
    kept: Path,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> int:
    """Writes what `write_sharded` writes, by way of a folder where what an earlier process finished is kept.

    Each tensor that is there is compared with its digest; the first that is missing or damaged and all after it in its
    file are computed. Nothing is written twice.

    Args:
        folder: Where the files go once they are whole.
        stem: Their name.
        compute: The values of a tensor, asked for in the order of `shapes`.
        shapes: Shape of each tensor.
        dtype: Dtype of all tensors, or of each.
        kept: The folder of what is finished, on the same disk; see `kept_folder`.
        max_shard_size: Size above which the weights are split into shards.

    Returns:
        How many tensors were there.

    Example:
        >>> from tempfile import mkdtemp
        >>> out, kept = Path(mkdtemp()), Path(mkdtemp())
        >>> ones = {"w": torch.ones(2)}
        >>> continue_sharded(out, "model", ones.get, shapes={"w": [2]}, dtype=torch.float32, kept=kept)
        0
    """
    plan = shard_plan(stem, shapes, dtype, max_shard_size)
    there = 0
    for filename, names in plan.filename_to_tensors.items():
        inside = {name: shapes[name] for name in names}
        there += _continue_file(kept / filename, compute, shapes=inside, dtype=dtype)
    for filename in plan.filename_to_tensors:  # all are whole
        os.replace(kept / filename, folder / filename)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / f"{stem}.safetensors.index.json", index)
    return there


def _continue_file(
    path: Path, compute: Callable[[str], Tensor], *, shapes: Mapping[str, Sequence[int]], dtype: Dtypes
) -> int:
    """Brings one file to its end; tells how many of its tensors were there."""
    header, record = header_of(shapes, dtype), path.with_name(path.name + DONE)
    sizes = {name: dtype_of(dtype, name).itemsize * torch.Size(shape).numel() for name, shape in shapes.items()}
    digests = _intact(path, record, header, sizes)
    names = list(shapes)
    write_text(record, "".join(digest + "\n" for digest in digests))
    with open(path, "r+b" if path.exists() else "w+b") as file, open(record, "a", encoding="utf-8") as lines:
        file.write(header)
        file.seek(len(header) + sum(sizes[name] for name in names[: len(digests)]))
        file.truncate()
        for name in names[len(digests) :]:
            tensor = compute(name)
            if tuple(tensor.shape) != tuple(shapes[name]):
                raise ValueError(f"tensor {name!r} of shape {tuple(tensor.shape)} does not fit the announced header")
            data = bytes_of(tensor, dtype_of(dtype, name))
            file.write(data)
            file.flush()  # the line comes after what it tells of
            lines.write(xxhash.xxh3_128_hexdigest(data) + "\n")
            lines.flush()
    return len(digests)


def _intact(path: Path, record: Path, header: bytes, sizes: Mapping[str, int]) -> list[str]:
    """The digests of the tensors that a file begins with, as far as they are what was written."""
    if not (path.is_file() and record.is_file()):
        return []
    told = record.read_text(encoding="utf-8", errors="replace").splitlines()
    digests: list[str] = []
    with open(path, "rb") as file:
        if file.read(len(header)) != header:
            return []
        for digest, (name, size) in zip(told, sizes.items(), strict=False):
            content, left = xxhash.xxh3_128(), size
            while left and (piece := file.read(min(left, 1 << 24))):
                content.update(piece)
                left -= len(piece)
            if left or content.hexdigest() != digest:
                logger.warning("%r in %s is damaged; it is computed again", name, path)
                break
            digests.append(digest)
    return digests
