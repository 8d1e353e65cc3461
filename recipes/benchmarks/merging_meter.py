"""Seconds, processor time and memory of the parts of a merge; standard library only: it runs beside any package."""

from __future__ import annotations

import json
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Meter:
    """Times parts of a process and watches its anonymous memory; files that are mapped do not count."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, tuple[float, float]] = {}  # seconds of all threads, outside the kernel and in it
        self.peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Times one part."""
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        yield
        after = resource.getrusage(resource.RUSAGE_SELF)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        outside, inside = self.processor.get(name, (0.0, 0.0))
        self.processor[name] = (
            outside + after.ru_utime - before.ru_utime,
            inside + after.ru_stime - before.ru_stime,
        )

    def report(self, **values: object) -> None:
        """Prints one line of JSON: seconds and processor time of each part, peak memory in bytes and other values."""
        self._done.set()
        self._thread.join()
        figures = {"seconds": self.seconds, "processor": self.processor, "peak": self.peak}
        print("METER " + json.dumps({**figures, **values}), flush=True)

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    self.peak = max(self.peak, int(line.split()[1]) * 1024)
