"""Work that is done once: computed, or read if it was computed with the same settings, or refused by what differs.

Several processes may be given the same work, on one machine or on some that share the folder: each piece is computed by
one of them, which holds its lock, and read by the others. Where files have no locks, as on Windows, that is told, and
each process would compute all.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from hf_taskvec.errors import OutputExistsError, SettingsDifferError
from hf_taskvec.text import listed, shortened
from hf_taskvec.weights.folders import check_output_folder, read_json, write_json
from hf_taskvec.weights.temporary import held

logger = logging.getLogger(__name__)
_REMEDY = "choose another output folder, or move it away"
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def compute_or_read(
    path: str | os.PathLike[str],
    plan: Mapping[str, Any],
    *,
    compute: Callable[[Path], object],
    read: Callable[[Path], Result],
) -> Result:
    """Reads the result at `path` if it was made by `plan`; computes it if it is not there.

    The plan lies beside the result, in `<path>.plan.json`. Where another process is computing the result, it is waited
    for.

    Args:
        path: File or folder of the result. It must appear whole or not at all, for what is there counts as finished.
        plan: Everything the result depends on, as JSON values.
        compute: Writes the result to the path it is given.
        read: Opens the result.

    Raises:
        SettingsDifferError: If the result there was made by another plan.
        OutputExistsError: If it is not known how it was made.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "square.json"
        >>> def square(x):
        ...     return compute_or_read(
        ...         path, {"x": x}, compute=lambda target: write_json(target, {"square": x * x}), read=read_json
        ...     )
        >>> square(3), square(3)
        ({'square': 9}, {'square': 9})
        >>> square(4)
        Traceback (most recent call last):
        ...
        hf_taskvec.errors.SettingsDifferError: ...square.json was made with other settings: x=3 there, 4 here; ...
    """
    target = Path(path)
    note = target.with_name(f"{target.name}.plan.json")
    if not target.exists():
        with _alone(target):
            if not target.exists():
                write_json(note, plain(plan))
                compute(target)
                return read(target)
    if not note.is_file():
        raise OutputExistsError(f"{target} is there, but no {note.name} tells how it was made; {_REMEDY}")
    check_plan(read_json(note), plan, what=str(target))
    return read(target)


def share_out(
    pieces: Sequence[Piece], path_of: Callable[[Piece], str | os.PathLike[str]], work: Callable[[Piece], Result]
) -> list[Result]:
    """Does every piece of work once among all processes that call this, and returns all results in order.

    A process first does what no other is at, then waits for what the others are at; what a process that ended has left
    unfinished is done by another.

    Args:
        pieces: The work, the same in every process.
        path_of: The path of a piece's result, as `compute_or_read` has it.
        work: Computes or reads a piece, by `compute_or_read`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> def path_of(x):
        ...     return folder / f"{x}.json"
        >>> def square(x):
        ...     return compute_or_read(
        ...         path_of(x), {"x": x}, compute=lambda path: write_json(path, {"square": x * x}), read=read_json
        ...     )
        >>> share_out([2, 3], path_of, square)
        [{'square': 4}, {'square': 9}]
    """
    done = {index: work(piece) for index, piece in enumerate(pieces) if not _in_work(Path(path_of(piece)))}
    return [done[index] if index in done else work(piece) for index, piece in enumerate(pieces)]


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def _in_work(target: Path) -> bool:
    """Whether another process is computing a result."""
    lock = _lock_of(target)
    if _one_of_several() or not lock.exists():
        return False
    with held(lock) as free:
        return free is False and lock.exists()


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Holds the lock of a result, once no other process does. Processes that train one model together have none."""
    if _one_of_several():
        yield
        return
    lock = _lock_of(target)
    lock.parent.mkdir(parents=True, exist_ok=True)
    if _in_work(target):
        logger.warning("another process is at %s: this one waits for it", target)
    while True:
        lock.touch()
        with held(lock, wait=True) as mine:
            if mine is False:  # the one before has removed it meanwhile
                continue
            if mine is None:
                _tell_no_locks(lock.parent)
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
            return


@cache
def _tell_no_locks(folder: Path) -> None:
    """Says, once of each folder, that processes cannot share work out in it."""
    logger.warning("no file in %s can be locked: see to it that no other process does the same work there", folder)


def _one_of_several() -> bool:
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def claim_folder(folder: str | os.PathLike[str], plan: Mapping[str, Any], *, name: str) -> None:
    """Takes a new or empty folder for a run, or makes sure that it holds the beginning of the same run.

    Args:
        folder: The folder of the run.
        plan: Everything the run depends on, as JSON values.
        name: The file in the folder that holds the plan.

    Raises:
        SettingsDifferError: If the folder holds a run by another plan.
        OutputExistsError: If it holds something else.
    """
    folder = Path(folder)
    marker = folder / name
    if not marker.is_file():
        check_output_folder(folder, marker=name)
        with _alone(marker):  # in the folder, for beside it nothing may be written, as where it is mounted
            if not marker.is_file():
                write_json(marker, plain(plan))
                return
    check_plan(read_json(marker), plan, what=str(folder))


def check_plan(there: Mapping[str, Any], here: Mapping[str, Any], *, what: str) -> None:
    """Raises a `SettingsDifferError` that names every entry in which two plans differ."""
    if differences := plan_differences(there, here):
        shown = listed(differences, separator="; ")
        message = f"{shortened(what, 200)} was made with other settings: {shown}; {_REMEDY}"
        raise SettingsDifferError(message, differences)


def plan_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two plans, one line per entry."""
    left, right = plain(there), plain(here)
    return [
        f"{key}={_text(left, key)} there, {_text(right, key)} here"
        for key in dict.fromkeys([*right, *left])
        if key not in left or key not in right or left[key] != right[key]
    ]


def plain(plan: Mapping[str, Any]) -> dict[str, Any]:
    """A plan as JSON reads it again: tuples are lists, keys are strings."""
    return dict(json.loads(json.dumps(plan)))


def _text(plan: Mapping[str, Any], key: str) -> str:
    return shortened(str(plan[key]), 40) if key in plan else "unknown"
