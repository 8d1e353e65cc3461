"""Temporary files and folders that take the place of others in one step, and that the next writer clears away."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)
PARTIAL, SWAPPING = "tmp", "swap"  # a swapping folder may hold what was in the folder it takes the place of
ATTEMPTS = 100
Own = Callable[[str], bool]


def nothing(name: str) -> bool:
    """No name is an artefact's own beside those that a new one has too."""
    return False


def place_of(path: str | os.PathLike[str]) -> Path:
    """Where an output goes: where its link leads to, if it is one, since only there it is moved in one step."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def temporary_name(target: Path, kind: str = PARTIAL) -> Path:
    """A new hidden name beside `target`."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{kind}")


@contextmanager
def new_temporary(target: Path, *, folder: bool) -> Iterator[Path]:
    """Yields a new file or folder beside `target`, held while the block runs and gone after it unless it was moved."""
    while True:
        path = temporary_name(target)
        path.mkdir() if folder else path.touch(exist_ok=False)
        with held(path, wait=True):
            if not path.exists():  # another writer cleared it away before it was held
                continue
            try:
                yield path
            finally:
                discard(path)
            return


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool | None]:
    """Holds the lock of a file or folder, which ends with the process.

    Yields whether it could be had: `False` if another holds it or it is gone, `None` where there are no locks.
    """
    if sys.platform == "win32":  # where a folder has no lock and an open file cannot be renamed
        yield None
        return
    try:
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # NFS locks what is open to write
    except OSError as error:
        yield False if isinstance(error, FileNotFoundError) else None
        return
    try:
        yield _lock(handle, wait=wait) and _is_at(handle, path)
    finally:
        os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file or folder still lies at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except OSError:  # another writer cleared it away just now
        return False


def _lock(handle: int, *, wait: bool) -> bool | None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks, unless another machine has removed the file
        return False if error.errno == errno.ESTALE else None
    return True


def clear_stale(target: Path, own: Own = nothing) -> None:
    """Removes what writers of `target` that died have left beside it; what was the user's goes back to its place."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}\.({PARTIAL}|{SWAPPING})")
    try:
        left_behind = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
    except OSError:  # no right to list the folder
        return
    for path in left_behind:
        with held(path) as dead:
            if not dead or path.is_symlink():
                continue
            if path.suffix == f".{PARTIAL}":
                discard(path)
            elif target.exists():
                keep_others(path, target, own)
            else:
                os.rename(path, target)


def discard(path: Path) -> None:
    """Removes a temporary file or folder, if it is there."""
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def put_in_place(ready: Path, target: Path, own: Own) -> None:
    """Lets a finished temporary folder take the place of `target`, whose other content is kept.

    Where the system can exchange two folders there is one at every moment, and of several writers the last one's stays.

    Args:
        ready: The finished folder.
        target: Its place: free, or a folder.
        own: Which names in `target` are the artefact's own. They go; so does what the finished folder has too.
    """
    fresh = set(os.listdir(ready))
    swapping = temporary_name(target, SWAPPING)
    os.rename(ready, swapping)
    for attempt in range(ATTEMPTS):
        try:
            if not target.exists():
                os.rename(swapping, target)
                return
            shutil.copymode(target, swapping)
            _exchange(swapping, target)
            break
        except OSError:  # another writer came or went in between
            if attempt == ATTEMPTS - 1:
                discard(swapping)
                raise
    keep_others(swapping, target, lambda name: name in fresh or own(name))


def keep_others(old: Path, target: Path, own: Own) -> None:
    """Empties a folder that was replaced: the artefact's files are removed, the user's move to `target`."""
    for _ in range(ATTEMPTS):  # a writer that was replaced may still be moving files here
        try:
            entries = list(old.iterdir())
        except FileNotFoundError:  # another writer has put everything back
            return
        for entry in entries:
            is_file = entry.is_symlink() or not entry.is_dir()
            with suppress(OSError):
                if is_file and own(entry.name):
                    entry.unlink()
                elif not (target / entry.name).exists():
                    os.rename(entry, target / entry.name)
        with suppress(OSError):
            old.rmdir()
            return
    logger.warning("What was in %s and could not be put back lies in %s", target, old)


def _exchange(one: Path, other: Path) -> None:
    """Exchanges two folders in one step, or in three where the system cannot."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "renameat2"):
            at, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            if libc.renameat2(at, os.fsencode(one), at, os.fsencode(other), exchange) == 0:
                return
            if (code := ctypes.get_errno()) == 2:
                raise FileNotFoundError(code, os.strerror(code), str(other))
    aside = temporary_name(other, SWAPPING)
    os.rename(other, aside)
    os.rename(one, other)
    os.rename(aside, one)
