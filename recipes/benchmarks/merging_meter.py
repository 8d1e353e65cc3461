"""Seconds and memory of the parts of a merge; standard library only, so that it runs beside any package."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Meter:
    """Times parts of a process and watches its anonymous memory; files that are mapped do not count."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times one part."""
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def report(self, **values: object) -> None:
        """Prints one line of JSON: seconds of each part, peak memory in bytes and other values."""
        self._done.set()
        self._thread.join()
        print("METER " + json.dumps({"seconds": self.seconds, "peak": self.peak, **values}), flush=True)

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)
