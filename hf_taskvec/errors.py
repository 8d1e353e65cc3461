"""Errors a user can meet, and the checks that raise them."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TypeGuard

from hf_taskvec.text import listed, printable, shortened

_WORD_END = re.compile(r"[-_\W]+")


def _plain(name: str) -> str:
    return name.lstrip("-").lower().replace("-", "_")


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that was probably meant: nearly the same letters, the same initials, or the same words in it.

    Example:
        >>> nearest("lr", ["learning_rate", "seed"]), nearest("epochs", ["num_train_epochs", "seed"])
        ('learning_rate', 'num_train_epochs')
        >>> nearest("TIES", ["consensus_ties", "ties"])
        'ties'
    """
    bare = {_plain(candidate): candidate for candidate in known}
    if close := difflib.get_close_matches(_plain(name), bare, n=1, cutoff=0.5):
        return bare[close[0]]
    words = [word for word in _WORD_END.split(name.lower()) if word]
    for candidate in known:
        parts = [word for word in _WORD_END.split(candidate.lower()) if word]
        if words and ("".join(word[0] for word in parts) == "".join(words) or set(words) <= set(parts)):
            return candidate
    return None


class TaskVecError(Exception):
    """Base class of every error this package raises on purpose.

    Its message has at most 600 characters and no control characters, whatever is quoted in it.

    Args:
        message: What is wrong, what was expected, and the remedy.
        details: Every difference or name of which the message shows the first few.

    Attributes:
        details: The same; the whole message if it was too long and no details were given.
    """

    details: tuple[str, ...] = ()

    def __init__(self, message: str, *, details: Iterable[str] = ()) -> None:
        text = printable(message)
        short = shortened(text)
        self.details = tuple(details) or ((text,) if short != text else ())
        super().__init__(short)


class UnknownNameError(TaskVecError, ValueError):
    """A name (task, method, setting, column, split…) that is not known; the message offers the nearest one."""

    def __init__(self, kind: str, name: object, known: Iterable[str], *, hint: str = "") -> None:
        names = sorted(map(str, known))
        wanted = name[:100] if isinstance(name, str) else name
        close = nearest(str(name)[:100], names)
        meant = f" Did you mean {close!r}?" if close else ""
        message = f"no {kind} {wanted!r}.{meant} Known: {listed(names) or 'none'}.{' ' * bool(hint)}{hint}"
        super().__init__(message, details=names)


class ArgumentsError(TaskVecError, ValueError):
    """An argument of a recipe, on the command line or in its YAML file, that cannot be read."""


class IncompatibleVectorsError(TaskVecError, ValueError):
    """Vectors, or a vector and a model, whose names, shapes or dtypes do not fit together."""


class BaseMismatchError(TaskVecError, ValueError):
    """A vector meets a base other than the one it was made from."""


class NonFiniteError(TaskVecError, ValueError):
    """A tensor holds NaN or Inf."""


class ControlLostError(TaskVecError, ValueError):
    """Nothing that forgets a task leaves the control tasks enough of their accuracy."""


class CheckpointError(TaskVecError, ValueError):
    """A file or folder that is not what it should be: missing, damaged, hostile or of an unknown layout."""


class DataError(TaskVecError, ValueError):
    """A dataset that cannot serve as a task: columns, labels, splits or images are wrong."""


class NotCachedError(TaskVecError, OSError):
    """Something must be downloaded, but the Hub is out of reach and the cache has no copy."""


class HubError(TaskVecError, OSError):
    """An exchange with the Hub that failed: no rights, a conflict, trouble of the Hub, the connection or the disk."""


class NoSpaceError(TaskVecError, OSError):
    """A disk with less room than a result needs; nothing was written."""


class OutputExistsError(TaskVecError, FileExistsError):
    """An output folder that holds something else."""


class SettingsDifferError(OutputExistsError):
    """A result or a run that is there was made with other settings.

    Attributes:
        differences: Every setting that differs; the message names the first few.
    """

    def __init__(self, message: str, differences: Sequence[str]) -> None:
        super().__init__(message, details=differences)
        self.differences = tuple(differences)


def check_known(kind: str, name: object, known: Iterable[str]) -> None:
    """Raises an `UnknownNameError` unless `name` is one of the known ones."""
    if name not in (names := tuple(known)):
        raise UnknownNameError(kind, name, names)


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether a value is a real number, of Python or NumPy, that a float can hold; a truth value is none.

    Example:
        >>> [is_finite_number(value) for value in (1, 10**400, float("nan"), True, "1")]
        [True, False, False, False, False]
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # of an integer
        return False


def check_fraction(name: str, value: float) -> None:
    """Raises a `ValueError` unless `value` is in (0, 1]."""
    if not (is_finite_number(value) and 0 < value <= 1):
        raise ValueError(f"{name} must be in (0, 1], got {value!s:.80}")


def check_positive(name: str, value: float) -> None:
    """Raises a `ValueError` unless `value` is positive and finite."""
    if not (is_finite_number(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value!s:.80}")


def check_count(name: str, value: float, *, least: int = 1) -> int:
    """A whole number of Python or NumPy as Python's own.

    Raises:
        ValueError: If it is none, or less than `least`.

    Example:
        >>> check_count("images", 8.0)
        8
    """
    if not is_finite_number(value) or value != int(value) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r:.80}")
    return int(value)


def check_finite_number(name: str, value: float) -> None:
    """Raises a `ValueError` if `value` is NaN or infinite."""
    if not is_finite_number(value):
        raise ValueError(f"{name} must be finite, got {value}")
