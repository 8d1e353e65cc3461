"""Processes that evaluate one model together, under `torchrun` or `accelerate launch`: each takes some batches."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor

logger = logging.getLogger(__name__)

PATIENCE = 30.0  # seconds
_WAITING = (
    "waiting for the other processes of this run: an evaluation must be called on all of them, not on the first alone"
)


def processes() -> PartialState | None:
    """The processes that this one was launched with, connected; `None` if it is alone.

    Example:
        >>> processes() is None
        True
    """
    if int(os.environ.get("WORLD_SIZE") or 1) < 2:
        return None
    return PartialState(cpu=not torch.accelerator.is_available())


def check_alike(facts: Mapping[str, object]) -> None:
    """Waits for all processes, and raises a `ValueError` on each of them unless all have the same facts."""
    patience = threading.Timer(PATIENCE, logger.warning, [_WAITING])
    patience.daemon = True
    patience.start()
    try:
        everyones = gather_object([{name: str(value) for name, value in facts.items()}])
    finally:
        patience.cancel()
    for rank, theirs in enumerate(everyones):
        if differing := next((name for name in facts if theirs[name] != everyones[0][name]), None):
            raise ValueError(
                "the processes of a run evaluate together, so all must do the same: "
                f"{differing} is {everyones[0][differing]} in process 0 and {theirs[differing]} in process {rank}"
            )


def summed(logits: Tensor, state: PartialState) -> Tensor:
    """The sum over all processes of a CPU tensor whose rows are zero in all but one: exact, on each of them."""
    shared: Tensor = reduce(logits.to(state.device), reduction="sum")
    return shared.cpu()
