"""Results that are kept for the next who asks, the latest few."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Kept(Generic[Key, Value]):
    """The latest results by what they depend on, for several threads.

    Args:
        most: How many are kept.

    Example:
        >>> kept = Kept(2)
        >>> kept.get("a", lambda: 1), kept.get("a", lambda: 2)
        (1, 1)
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, compute: Callable[[], Value]) -> Value:
        """What was kept under the key, or else what is computed now; what fails is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = compute()  # outside the lock: others need not wait, and two may compute the same
        with self._lock:
            self._values[key] = value
            while len(self._values) > self.most:
                self._values.popitem(last=False)
        return value

    def at_hand(self, key: Key) -> Value | None:
        """What was kept under the key."""
        with self._lock:
            return self._values.get(key)
