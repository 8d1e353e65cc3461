"""What provenance may hold: plain JSON values of sane size, brought into that form when they come in."""

from __future__ import annotations

import math
import os
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal

import numpy as np
import torch

from hf_taskvec.errors import CheckpointError
from hf_taskvec.weights.folders import check_text

MAX_DEPTH = 64
MAX_TEXT = 4000


def plain(value: Any, where: str, *, depth: int = 0) -> Any:
    """The JSON value of numbers, arrays and tensors, paths, dtypes, tuples and mappings; a copy of what is changeable.

    Args:
        value: The value.
        where: Its name, for the message.
        depth: How deep it lies.

    Raises:
        ValueError: If JSON cannot hold it, or it is no finite number.

    Example:
        >>> plain({"weights": np.array([0.5, 1]), "layers": (1, 2)}, "settings")
        {'weights': [0.5, 1.0], 'layers': [1, 2]}
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"{where} is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, (torch.Tensor, np.generic, np.ndarray)):
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Mapping):
        pairs = [(key.value if isinstance(key, Enum) else key, item) for key, item in value.items()]
        return {str(key): plain(item, f"{where[-300:]}[{key!r:.80}]", depth=depth + 1) for key, item in pairs}
    if isinstance(value, (list, tuple, range)):
        return [plain(item, where, depth=depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item, where, depth=depth + 1) for item in value), key=repr)
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value).removeprefix("torch.")
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (int, float)):
        return _number(value, where)
    raise ValueError(f"{where} holds a {type(value).__name__}, which JSON cannot hold; pass numbers, text or lists")


def _number(value: float, where: str) -> float:
    if not isinstance(value, int) and not math.isfinite(value):
        raise ValueError(f"{where} holds {value}; a number must be finite")
    return int(value) if isinstance(value, int) else float(value)


def check_sane(where: str, value: Any, *, depth: int = 0) -> None:
    """Raises a `CheckpointError` if a JSON value holds absurd strings, numbers or nesting."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{where} is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        check_text(value, where, max_length=MAX_TEXT)
    elif isinstance(value, (int, float)) and not abs(value) < 1 << 63:  # also refuses NaN
        raise CheckpointError(f"{where} holds a number out of range")
    elif isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str):
                check_text(key, where)
            check_sane(f"{where}: {key!r}" if depth == 0 else where, item, depth=depth + 1)


def checked(key: str, value: Any, hint: Any, *, where: str = "task vector config") -> Any:
    """`value` if it has the type that a field's annotation names.

    Raises:
        CheckpointError: If it has not.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        fits, result = _as_option(value, option)
        if fits:
            return result
    raise CheckpointError(f"{where}: {key!r} must be {hint}, got {type(value).__name__} {str(value)[:80]!r}")


def _as_option(value: Any, option: Any) -> tuple[bool, Any]:
    """Whether a JSON value has the type of one member of an annotation, and as what it is read."""
    origin = typing.get_origin(option)
    if origin is Literal:
        return isinstance(value, str) and value in typing.get_args(option), value
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and _values_fit(value, typing.get_args(option)[1]), value
    if origin is tuple:
        kind = str if typing.get_args(option)[0] is str else dict
        fits = isinstance(value, (list, tuple)) and all(type(item) is kind for item in value)
        return fits, tuple(value) if fits else value
    if option is float and type(value) in (int, float):
        return True, float(value)
    return isinstance(option, type) and type(value) is option, value


def _values_fit(values: Mapping[str, Any], kind: Any) -> bool:
    kinds = (int, float) if kind is float else (kind,)
    return kind is Any or all(type(value) in kinds for value in values.values())
