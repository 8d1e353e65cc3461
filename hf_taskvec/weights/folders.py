"""Files and folders written whole or not at all, JSON that is read with care, paths that stay where they belong."""

from __future__ import annotations

import json
import os
import shutil
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from hf_taskvec.errors import CheckpointError, NoSpaceError, OutputExistsError
from hf_taskvec.weights.temporary import Own, clear_stale, new_temporary, nothing, place_of, put_in_place


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, marker: str, own: Own = nothing) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path` that takes its place when the block ends without an error.

    What an artefact of this kind has is replaced; whatever else lies in the folder stays. The temporary folders of
    writers that died are removed.

    Args:
        path: The folder to write. One that holds `marker` is an earlier artefact of this kind and is replaced.
        marker: A file that every artefact of this kind has.
        own: Which names of an earlier artefact go even if the new one does not have them.

    Raises:
        OutputExistsError: If `path` holds something else.

    Example:
        >>> from tempfile import mkdtemp
        >>> with atomic_folder(Path(mkdtemp()) / "thing", marker="thing.json") as folder:
        ...     write_json(folder / "thing.json", {"a": 1})
    """
    target = place_of(path)
    check_output_folder(target, marker=marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_stale(target, own)
    with new_temporary(target, folder=True) as temporary:
        yield temporary
        check_output_folder(target, marker=marker)
        put_in_place(temporary, target, own)


def check_output_folder(path: str | os.PathLike[str], *, marker: str) -> None:
    """Raises an `OutputExistsError` if `path` is a file or a folder with other content than an artefact's.

    What a process that writes the marker is at, or has left when it was killed, is none.
    """
    target = Path(path)
    if target.is_dir():
        others = any(not entry.name.startswith(f".{marker}.") for entry in target.iterdir())
        if others and not (target / marker).is_file():
            raise OutputExistsError(f"{target} holds something else (no {marker} in it); choose another output folder")
    elif target.exists():
        raise OutputExistsError(f"{target} is a file; choose another output folder")


def check_space(path: str | os.PathLike[str], needed: int, what: str) -> str:
    """How much room a result needs and has, in words.

    Args:
        path: Where it goes; it need not exist.
        needed: Its bytes.
        what: What it is, for messages.

    Raises:
        NoSpaceError: If there is less.

    Example:
        >>> check_space("/", 0, "nothing").startswith("nothing at most 0.0 MB, ")
        True
    """
    place = Path(path).absolute()
    place = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise NoSpaceError(f"the {what} needs {needed / 1e6:,.1f} MB in {place}, and {free / 1e6:,.1f} MB are free")
    return f"{what} at most {needed / 1e6:,.1f} MB, {free / 1e6:,.0f} MB free in {place}"


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file under a temporary name and renames it."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_stale(target)
    with new_temporary(target, folder=False) as temporary:
        temporary.write_bytes(content)
        os.replace(temporary, target)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes UTF-8 text, atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *, max_bytes: int = 64 << 20) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: If the file is no regular file, too large, no JSON or no object.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        raise CheckpointError(f"{path.name} is no regular file")
    if status.st_size > max_bytes:
        raise CheckpointError(f"{path.name} has {status.st_size} bytes, more than a configuration can have")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is no valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object, got {type(value).__name__}")
    return value


def check_relative(name: str, where: str) -> None:
    """Raises a `CheckpointError` if `name` is absolute or leaves its folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        raise CheckpointError(f"{where} names {name[:200]!r}, which leaves its folder")
    check_text(name, f"a file name in {where}")


def check_inside(path: Path, folder: Path) -> None:
    """Raises a `CheckpointError` if `path` lies outside `folder` once links are followed.

    A Hub cache's own links, from a snapshot to the blobs beside it, are no way out.
    """
    root = folder.resolve()
    if path.resolve().is_relative_to(root):
        return
    storage = next((parent.parent for parent in root.parents if parent.name == "snapshots"), None)
    if storage is not None and path.is_symlink():
        hop = Path(os.path.normpath(path.parent.resolve() / os.readlink(path)))
        if path.parent.resolve().is_relative_to(root) and hop.parent == storage / "blobs":
            return
    raise CheckpointError(f"{path} is a link that leaves {folder}")


def check_text(text: str, where: str, *, max_length: int = 1000) -> None:
    """Raises a `CheckpointError` if a string is absurdly long or could drive a terminal: control characters."""
    if len(text) > max_length:
        raise CheckpointError(f"{where} has {len(text)} characters: {text[:80]!r}…")
    if not text.isprintable() and not all(_is_harmless(char) for char in text):
        raise CheckpointError(f"{where} holds control characters: {text[:80]!r}")


def _is_harmless(char: str) -> bool:
    """Whether a character is ordinary text: any space, and what joins letters and emoji invisibly."""
    return char.isprintable() or char in "\n\t\u00ad\u200c\u200d" or unicodedata.category(char) == "Zs"
