"""Processes that do one piece of work together, under `torchrun` or `accelerate launch`."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from hf_taskvec.errors import TaskVecError

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds
_WAITING = "waiting for the other processes of this run: %s must be called on all of them, not on the first alone"


def processes() -> PartialState | None:
    """The processes that this one was launched with, connected; `None` if it is alone.

    Example:
        >>> processes() is None
        True
    """
    if int(os.environ.get("WORLD_SIZE") or 1) < 2:
        return None
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def check_alike(facts: Mapping[str, object], work: str) -> None:
    """Waits for all processes, and raises a `ValueError` on each of them unless all have the same facts.

    Args:
        facts: What they must have in common, by names for messages.
        work: What they do together, as "an evaluation".
    """
    patience = threading.Timer(PATIENCE, logger.warning, [_WAITING, work])
    patience.daemon = True
    patience.start()
    try:
        everyones = gathered({name: str(value) for name, value in facts.items()})
    finally:
        patience.cancel()
    for rank, theirs in enumerate(everyones):
        if differing := next((name for name in facts if theirs[name] != everyones[0][name]), None):
            raise ValueError(
                f"the processes of a run do {work} together, so all must do the same: "
                f"{differing} is {everyones[0][differing]} in process 0 and {theirs[differing]} in process {rank}"
            )


def gathered(value: Any) -> list[Any]:
    """What each process has, by rank."""
    from accelerate.utils import gather_object

    values: list[Any] = gather_object([value])
    return values


def from_first(value: Any) -> Any:
    """What the first process has."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def agreed(error: BaseException | None) -> None:
    """Waits for all processes, and raises on each of them if one failed: its own error, or that another has one.

    Raises:
        TaskVecError: If another process failed.
    """
    texts = gathered(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, text in enumerate(texts):
        if text is not None:
            raise TaskVecError(f"process {rank} of this run failed, so all stop: {text}")


@contextmanager
def together() -> Iterator[None]:
    """Around work of which each process does a part: ends when all are done, and raises on all if one failed.

    Raises:
        TaskVecError: If another process failed.
    """
    try:
        yield
    except BaseException as error:
        agreed(error)
        raise
    agreed(None)


def dealt(sizes: Mapping[str, int], count: int) -> list[list[str]]:
    """Names dealt to some processes so that their sizes add up to about the same, each in the order of all.

    Example:
        >>> dealt({"a": 5, "b": 1, "c": 3, "d": 1}, 2)
        [['a'], ['b', 'c', 'd']]
    """
    loads = [0] * count
    owner = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += sizes[name]
    shares: Sequence[list[str]] = [[] for _ in range(count)]
    for name in sizes:
        shares[owner[name]].append(name)
    return list(shares)
