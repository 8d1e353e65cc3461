"""The state of a pretraining run in a few files of bounded size, to come back from a machine that is lent for minutes.

The optimiser's moments are rounded to bfloat16 and the average to half precision: a run that goes on from a bundle is
not bit for bit the one that was never moved. Chance is drawn by step and device, so a run that changes between a CPU
and a GPU differs as well.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from hf_taskvec.errors import CheckpointError, OutputExistsError
from hf_taskvec.weights.folders import write_bytes
from pretraining.state import AVERAGE, FACTS, MODEL, OPTIMIZER

PART, WHOLE = 15 << 20, 60 << 20  # bytes of one file, and of all
_NAME = re.compile(r"state\.tar\.(\d+)-of-(\d+)")


def bundle(folder: Path, target: Path, *, size: int = PART, whole: int = WHOLE) -> bool:
    """Writes the state of a run, with what `running_base` needs, as `state.tar.1-of-N` … into a folder.

    Args:
        folder: The output folder of the run, with a state.
        target: Where the parts go; an earlier bundle there is replaced.
        size: Most bytes of one file.
        whole: Most bytes of all. Where the state takes more, only its averaged weights and facts are kept, from which
            `averaged_clip` can be had and a new run can start, but this one cannot go on.

    Returns:
        Whether the run can go on from the bundle.
    """
    state = folder / "state"
    average = _rounded(load_file(state / AVERAGE), torch.float16)
    small = {AVERAGE: average, FACTS: (state / FACTS).read_bytes()}
    moments = _rounded(load_file(state / OPTIMIZER), torch.bfloat16)
    full = {**small, MODEL: (state / MODEL).read_bytes(), OPTIMIZER: moments}
    complete = sum(map(len, full.values())) <= whole
    files = {f"state/{name}": content for name, content in (full if complete else small).items()}
    files |= {path.name: path.read_bytes() for path in sorted(folder.glob("*.json"))}
    content = _tar(files)
    parts = [content[start : start + size] for start in range(0, len(content), size)]
    for old in _parts(target):
        old.unlink()  # ours by name, and of another count it would be taken for a part of this
    for index, piece in enumerate(parts, start=1):
        write_bytes(target / f"state.tar.{index}-of-{len(parts)}", piece)
    return complete


def unbundle(source: Path, folder: Path) -> None:
    """Puts a bundle back as the output folder of a run; one that has a state already is left as it is.

    Raises:
        CheckpointError: If parts are missing, or the run cannot go on from what they hold.
        OutputExistsError: If the folder holds something else.
    """
    if (folder / "state" / FACTS).is_file():
        return
    parts = _parts(source)
    counts = {int(_NAME.fullmatch(path.name)[2]) for path in parts}  # type: ignore[index]
    if not parts or counts != {len(parts)}:
        told = ", ".join(path.name for path in parts) or "nothing"
        raise CheckpointError(f"{source} holds {told} of a bundle: every state.tar.K-of-N is needed")
    if folder.exists() and any(folder.iterdir()):
        raise OutputExistsError(f"{folder} is not empty and holds no state; choose another output folder")
    with tarfile.open(fileobj=io.BytesIO(b"".join(path.read_bytes() for path in parts))) as archive:
        if f"state/{MODEL}" not in archive.getnames():
            raise CheckpointError(f"the bundle in {source} holds averaged weights only: start a new run from them")
        archive.extractall(folder, filter="data")


def _parts(folder: Path) -> list[Path]:
    """The files of a bundle in their order."""
    numbered = [(int(match[1]), path) for path in folder.glob("state.tar.*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(numbered)]


def _rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> bytes:
    """A safetensors file with the tensors of more than one entry in less precision; step counts stay exact."""
    wanted = {
        name: value.to(dtype) if value.is_floating_point() and value.ndim else value for name, value in tensors.items()
    }
    return save(wanted)


def _tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
