"""A journal of finished parameters beside the output folder, so that a killed merge goes on where it stopped."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_taskvec.errors import CheckpointError
from hf_taskvec.merging.engine import parallel
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import LazyDeltas
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hash
from hf_taskvec.weights.kept import DIGITS, kept_folder
from hf_taskvec.weights.safetensors import open_safetensors, write_safetensors
from hf_taskvec.weights.temporary import new_temporary

logger = logging.getLogger(__name__)
_ENTRY = re.compile(rf"(\d+)\.([0-9a-f]{{{DIGITS}}})\.safetensors")


class Journal:
    """Computed deltas in a hidden folder, each in a file whose name tells its place and its digest.

    A journal serves: an entry that is damaged is computed again, and one that cannot be written is done without.

    Args:
        folder: The folder; `None` keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.entries: dict[int, Path] = {}
        for path in folder.iterdir() if folder is not None else ():
            if match := _ENTRY.fullmatch(path.name):
                self.entries[int(match[1])] = path

    def keep(self, vector: TaskVector) -> TaskVector:
        """The lazy vector, with each delta read from the journal or computed and written there."""
        deltas, places = vector.deltas, {name: place for place, name in enumerate(vector.deltas.shapes)}

        def delta(name: str) -> Tensor:
            known = self._read(places[name], name, deltas.shapes[name])
            if known is not None and known.dtype == deltas.dtype:
                return known
            computed = deltas[name]
            self._write(places[name], name, computed)
            return computed

        return TaskVector(LazyDeltas(deltas.shapes, delta, deltas.dtype, deltas.device), vector.info)

    def _read(self, place: int, name: str, shape: Sequence[int]) -> Tensor | None:
        """The delta of an entry; `None` if there is none, or not the one that was written."""
        path = self.entries.get(place)
        if path is None:
            return None
        try:
            tensors = open_safetensors([path])
            delta = tensors[name]
            if delta.shape == shape and f"{place}.{tensor_hash(delta)[:DIGITS]}.safetensors" == path.name:
                return delta
        except (CheckpointError, KeyError, OSError):
            pass
        logger.warning("The entry of %r in %s is damaged; it is computed again", name, path.parent)
        return None

    def _write(self, place: int, name: str, delta: Tensor) -> None:
        if self.folder is None:
            return
        path = self.folder / f"{place}.{tensor_hash(delta)[:DIGITS]}.safetensors"
        try:
            with new_temporary(path, folder=False) as temporary:
                write_safetensors(temporary, [(name, delta)], shapes={name: delta.shape}, dtype=delta.dtype)
                os.replace(temporary, path)
        except OSError as error:
            logger.warning("The journal %s cannot be written (%s); the merge goes on without", self.folder, error)
            self.folder = None
        else:
            self.entries[place] = path


@contextmanager
def open_journal(output_dir: str | os.PathLike[str], key: str) -> Iterator[Journal]:
    """Yields the journal of a merge into a folder, and removes it if the block ends without an error.

    Args:
        output_dir: Where the merge writes.
        key: What it depends on; see `journal_key`.
    """
    with kept_folder(output_dir, key) as folder:
        yield Journal(folder)


def journal_key(
    vectors: Sequence[TaskVector],
    method: str,
    settings: Mapping[str, Any],
    *,
    source: object = None,
    prints: Sequence[object] | None = None,
) -> str:
    """One hash over everything that the deltas of a merged vector depend on.

    Args:
        vectors: The vectors.
        method: The method's name.
        settings: All its settings.
        source: What else tells its code apart.
        prints: What tells each vector from others; by default its fingerprint, for which all of it is read.
    """
    if prints is None:
        prints = parallel(lambda vector: vector_fingerprint(vector.deltas), vectors, description="fingerprints")
    parts = {f"vector {i}": f"{value} {v.dtype}" for i, (value, v) in enumerate(zip(prints, vectors, strict=True))}
    settled = {"method": method, "settings": json.dumps(settings, sort_keys=True, default=repr), "source": repr(source)}
    return fingerprint({**parts, **settled})
