"""A journal of finished parameters beside the output folder, so that a killed merge goes on where it stopped."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_taskvec.errors import CheckpointError, TaskVecError
from hf_taskvec.merging.engine import parallel
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import LazyDeltas
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hash
from hf_taskvec.weights.safetensors import open_safetensors, write_safetensors
from hf_taskvec.weights.temporary import held, new_temporary

logger = logging.getLogger(__name__)
_DIGITS = 16
_ENTRY = re.compile(rf"(\d+)\.([0-9a-f]{{{_DIGITS}}})\.safetensors")
_ATTEMPTS = 100  # to hold a folder that other merges clear away meanwhile


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
            if delta.shape == shape and f"{place}.{tensor_hash(delta)[:_DIGITS]}.safetensors" == path.name:
                return delta
        except (CheckpointError, KeyError, OSError):
            pass
        logger.warning("The entry of %r in %s is damaged; it is computed again", name, path.parent)
        return None

    def _write(self, place: int, name: str, delta: Tensor) -> None:
        if self.folder is None:
            return
        path = self.folder / f"{place}.{tensor_hash(delta)[:_DIGITS]}.safetensors"
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

    Its name holds the key, so that each merge has its own. The process that uses it holds it; a second one that merges
    the same keeps none. Journals of other merges into the folder whose processes are gone are removed.

    Args:
        output_dir: Where the merge writes.
        key: What it depends on; see `journal_key`.
    """
    target = Path(os.path.abspath(output_dir))
    folder = target.with_name(f".{target.name}.{key[:_DIGITS]}.journal")
    _clear_others(folder, target)
    with _held(folder) as free:
        journal = Journal(folder if free else None)
        try:
            yield journal
        except BaseException as error:
            if free and (isinstance(error, TaskVecError) or not journal.entries):  # it would end like that again
                shutil.rmtree(folder, ignore_errors=True)
            elif free and isinstance(error, KeyboardInterrupt):
                logger.warning(
                    "Stopped: %d finished parameters are kept in %s; the same merge into %s goes on from there",
                    len(journal.entries),
                    folder,
                    target,
                )
            raise
        if free:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Makes a folder and holds it while the block runs; tells whether it could be had."""
    for _ in range(_ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            logger.warning("The journal %s cannot be written (%s); the merge goes on without", folder, error)
            yield False
            return
        with held(folder) as free:
            if not free and not folder.exists():  # cleared away before it was held
                continue
            if free is None:
                logger.warning("%s cannot be locked; the merge keeps no journal", folder.parent)
            elif not free:
                logger.warning("Another process merges the same into %s; this one keeps no journal", folder.parent)
            yield bool(free)
            return
    yield False


def _clear_others(folder: Path, target: Path) -> None:
    """Removes the journals of other merges into `target`, unless they are at work."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{{_DIGITS}}}\.journal")
    for path in target.parent.iterdir() if target.parent.is_dir() else ():
        if path != folder and pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with held(path) as dead:
                if dead:
                    shutil.rmtree(path, ignore_errors=True)


def journal_key(
    vectors: Sequence[TaskVector], method: str, settings: Mapping[str, Any], *, source: object = None
) -> str:
    """One hash over everything that the deltas of a merged vector depend on.

    Args:
        vectors: The vectors.
        method: The method's name.
        settings: All its settings.
        source: What else tells its code apart.
    """
    prints = parallel(lambda vector: vector_fingerprint(vector.deltas), vectors, description="fingerprints")
    parts = {f"vector {i}": f"{value} {v.dtype}" for i, (value, v) in enumerate(zip(prints, vectors, strict=True))}
    versions = {name: version(name) for name in ("hf-taskvec", "torch")}
    settled = {"method": method, "settings": json.dumps(settings, sort_keys=True, default=repr), "source": repr(source)}
    return fingerprint({**parts, **settled, **versions})
