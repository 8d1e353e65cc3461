"""A journal of finished parameters beside the output folder, so that a killed merge goes on where it stopped."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from hf_taskvec.errors import CheckpointError
from hf_taskvec.merging.engine import LazyDeltas, parallel
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.fingerprint import fingerprint
from hf_taskvec.weights.folders import write_text
from hf_taskvec.weights.safetensors import open_safetensors, write_safetensors


class Journal:
    """Keeps each computed delta in a hidden folder beside `output_dir` until the merge is complete.

    A journal of other vectors, settings or versions than `key` tells of is thrown away.
    """

    def __init__(self, output_dir: str | os.PathLike[str], key: str) -> None:
        target = Path(output_dir)
        self.folder = target.parent / f".{target.name}.journal"
        written = self.folder / "key"
        if not (written.is_file() and written.read_text(encoding="utf-8") == key):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            write_text(written, key)

    def keep(self, vector: TaskVector) -> TaskVector:
        """The lazy vector, with each delta read from the journal or computed and written there."""
        places = {name: self.folder / f"{index}.safetensors" for index, name in enumerate(vector.deltas)}
        lazy = LazyDeltas(
            vector.deltas.shapes, lambda name: self._delta(vector, name, places[name]), vector.dtype, vector.device
        )
        return TaskVector(lazy, vector.info)

    def close(self) -> None:
        """Removes the journal."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _delta(self, vector: TaskVector, name: str, place: Path) -> Tensor:
        if place.is_file():
            try:
                return open_safetensors([place])[name]
            except (CheckpointError, KeyError):
                place.unlink()  # the power failed while it was written: compute it again
        delta = vector.deltas[name]
        handle, temporary = tempfile.mkstemp(prefix=f".{place.name}.", dir=self.folder)
        os.close(handle)
        write_safetensors(Path(temporary), [(name, delta)], shapes={name: delta.shape}, dtype=delta.dtype)
        os.replace(temporary, place)
        return delta


def journal_key(vectors: Sequence[TaskVector], method: str, settings: Mapping[str, Any]) -> str:
    """One hash over everything a merged vector depends on."""
    prints = parallel(vector_fingerprint, vectors, description="fingerprints")
    parts = {f"vector {index}": value for index, value in enumerate(prints)}
    settled = {"method": method, "settings": repr(sorted(settings.items())), "version": version("hf-taskvec")}
    return fingerprint({**parts, **settled})
