"""A vector's folder that several processes write together: each its shards, the first one index and configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hf_taskvec.vectors.files import CONFIG_NAME, STEM, Rounded, is_own, write_config
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.deltas import Deltas, LazyDeltas
from hf_taskvec.weights.folders import atomic_folder, write_json
from hf_taskvec.weights.processes import agreed, dealt, from_first, gathered, together
from hf_taskvec.weights.safetensors import MAX_SHARD_SIZE, split_sizes, write_safetensors

if TYPE_CHECKING:
    from accelerate import PartialState


def share_of(deltas: Deltas, group: PartialState) -> Deltas:
    """The deltas that this process computes."""
    names = _shares(deltas, group)[group.process_index]
    shapes = {name: deltas.shapes[name] for name in names}
    return LazyDeltas(shapes, deltas.__getitem__, deltas.dtype, deltas.device)


def write_vector_together(
    folder: str | os.PathLike[str],
    deltas: Deltas,
    own: Deltas,
    info: VectorInfo,
    *,
    dtype: torch.dtype,
    group: PartialState,
    max_shard_size: int | str = MAX_SHARD_SIZE,
) -> None:
    """Writes a vector's folder, whole or not at all, from the deltas that each process has; called on all of them.

    Values, fingerprint and provenance are those that one process writes; the shards are others.

    Args:
        folder: As in `write_vector`, on a disk that all processes see.
        deltas: All deltas, of which only shapes are asked.
        own: Those of this process, as `share_of` deals them.
        info: Provenance.
        dtype: Dtype of the file.
        group: The processes.
        max_shard_size: Size above which a share is split.

    Raises:
        TaskVecError: If another process failed.
        NonFiniteError, OutputExistsError: As `write_vector`.
    """
    rounded = Rounded(own, dtype, layer_norms=False)
    plan = _plan(deltas, dtype, group, max_shard_size)
    with _one_folder(folder, group) as target:
        with together():
            stream = iter(rounded)
            for file, names in plan[group.process_index].items():
                few = (next(stream) for _ in names)
                write_safetensors(target / file, few, shapes={n: deltas.shapes[n] for n in names}, dtype=dtype)
        parts = gathered((rounded.hashes, rounded.errors, rounded.squares))
        with together():
            if group.is_main_process:
                for hashes, errors, squares in parts[1:]:
                    rounded.hashes |= hashes
                    rounded.errors += errors
                    rounded.squares += squares
                places = {name: file for files in plan for file, names in files.items() for name in names}
                size = sum(shape.numel() for shape in deltas.shapes.values()) * dtype.itemsize
                index = {"metadata": {"total_size": size}, "weight_map": places}
                write_json(target / f"{STEM}.safetensors.index.json", index)
                write_config(target, rounded.added_to(info), rounded.hashes, {})


@contextmanager
def _one_folder(folder: str | os.PathLike[str], group: PartialState) -> Iterator[Path]:
    """Yields one temporary folder to all processes, which the first makes and, once all are done, puts in place."""
    if not group.is_main_process:
        path = from_first(None)
        if path is not None:
            yield Path(path)
        agreed(None)
        return
    began = done = False
    try:
        with atomic_folder(folder, marker=CONFIG_NAME, own=is_own) as target:
            from_first(os.path.abspath(target))
            began = True
            yield target
            done = True
    except BaseException as failure:
        if not began:
            from_first(None)
        if done or not began:  # else all have raised already
            agreed(failure)
        raise
    agreed(None)


def _shares(deltas: Deltas, group: PartialState) -> list[list[str]]:
    return dealt({name: shape.numel() for name, shape in deltas.shapes.items()}, group.num_processes)


def _plan(
    deltas: Deltas, dtype: torch.dtype, group: PartialState, max_shard_size: int | str
) -> Sequence[dict[str, list[str]]]:
    """The files of each process, and the names in each."""
    files: list[list[list[str]]] = []
    for names in _shares(deltas, group):
        sizes = {name: deltas.shapes[name].numel() * dtype.itemsize for name in names}
        split = split_sizes(sizes, "{suffix}", max_shard_size)
        files.append([list(inside) for inside in split.filename_to_tensors.values() if inside])
    total, number = sum(map(len, files)), 0
    plan: list[dict[str, list[str]]] = []
    for shards in files:
        plan.append({})
        for inside in shards:
            number += 1
            plan[-1][f"{STEM}-{number:05d}-of-{total:05d}.safetensors"] = inside
    return plan
