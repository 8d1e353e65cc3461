"""Progress bars of evaluations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from huggingface_hub.utils import tqdm

PROGRESS = "hf_taskvec.evaluation"  # huggingface_hub.utils.disable_progress_bars(PROGRESS) keeps the bars quiet

Item = TypeVar("Item")


def progress_bar(items: Iterable[Item], description: str, *, total: int, shown: bool = True) -> Iterable[Item]:
    """The items under a progress bar that shows up after two seconds, unless it is switched off.

    Example:
        >>> list(progress_bar(range(3), "counting", total=3, shown=False))
        [0, 1, 2]
    """
    return items if not shown else tqdm(items, desc=description, total=total, delay=2, leave=False, name=PROGRESS)
