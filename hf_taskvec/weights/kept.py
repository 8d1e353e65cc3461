"""A hidden folder beside an output, for what long work has finished: a process that is killed leaves it to the next."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from hf_taskvec.errors import TaskVecError
from hf_taskvec.weights.fingerprint import fingerprint
from hf_taskvec.weights.temporary import held, place_of

logger = logging.getLogger(__name__)
DIGITS = 16
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ATTEMPTS = 100  # to hold a folder that other work clears away meanwhile


@contextmanager
def kept_folder(output_dir: str | os.PathLike[str], key: str) -> Iterator[Path | None]:
    """Yields a folder for finished parts of a result, and removes it if the block ends without an error.

    Its name holds a hash of the key and of the versions that compute, so that each work has its own. The process that
    uses it holds it; a second one that does the same gets none. Folders of other work into the same place whose
    processes are gone are removed.

    Args:
        output_dir: Where the result goes.
        key: A hash of what it depends on.
    """
    target = Path(os.path.abspath(place_of(output_dir)))
    versions = {name: version(name) for name in ("hf-taskvec", "torch")}
    folder = target.with_name(f".{target.name}.{fingerprint({'key': key, **versions})[:DIGITS]}.journal")
    _clear_others(folder, target)
    with _held(folder) as free:
        try:
            yield folder if free else None
        except BaseException as error:
            full = isinstance(error, OSError) and error.errno in _FULL
            again = full or isinstance(error, TaskVecError)  # it would end like that again
            if free and (again or not any(folder.iterdir())):
                shutil.rmtree(folder, ignore_errors=True)
            elif free and isinstance(error, KeyboardInterrupt):
                logger.warning("Stopped: what is finished of %s is kept in %s; the same goes on there", target, folder)
            raise
        if free:
            shutil.rmtree(folder, ignore_errors=True)


def kept_bytes(output_dir: str | os.PathLike[str]) -> int:
    """The room that earlier work into the same place left taken, which `kept_folder` goes on with or clears away."""
    total = 0
    for folder in _left(Path(os.path.abspath(place_of(output_dir)))):
        with suppress(OSError):  # other work has cleared it away just now
            total += sum(file.stat().st_size for file in folder.iterdir())
    return total


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
                with suppress(OSError):  # unless something is in it
                    folder.rmdir()
            elif not free:
                logger.warning("Another process merges the same into %s; this one keeps no journal", folder.parent)
            yield bool(free)
            return
    yield False


def _clear_others(folder: Path, target: Path) -> None:
    """Removes what is kept of other work into `target`, unless it is going on."""
    for path in _left(target):
        if path != folder:
            with held(path) as dead:
                if dead:
                    shutil.rmtree(path, ignore_errors=True)


def _left(target: Path) -> list[Path]:
    """The folders of what is kept of any work into `target`."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{{DIGITS}}}\.journal")
    beside = target.parent.iterdir() if target.parent.is_dir() else ()
    return [path for path in beside if pattern.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]
