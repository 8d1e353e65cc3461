"""What a merge of checkpoints too large to try would take: what `large.py` has measured, and the bytes to be moved.

    disk       = bytes read / reading bandwidth + bytes written / writing bandwidth
    memory     = bytes read and written / copy bandwidth
    processor  = a + b x parameters, least squares through the sizes measured; in proportion if there is one
    estimate   = from the largest of the three to disk + processor

A merge reads base and fine-tuned checkpoints once and writes the result once, 2 bytes a parameter each. It computes and
waits for the disk in turn, or at once where the system reads ahead: hence two numbers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_taskvec.text import table

BYTES = 2  # of a parameter in bfloat16
PIECE = 1 << 24


@dataclass(frozen=True)
class Bandwidths:
    """Bytes per second that the disk reads and writes, and that a copy in memory moves."""

    read: float
    write: float
    copy: float


def disk_bandwidths(folder: Path, size: int = 1 << 30) -> tuple[float, float]:
    """Bytes per second read from and written to the disk under a folder, past the system's cache."""
    path = folder / "bandwidth.tmp"
    piece = os.urandom(min(PIECE, size))
    try:
        start = time.perf_counter()
        with path.open("wb") as file:
            for _ in range(size // len(piece)):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            written = time.perf_counter() - start
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        with path.open("rb", buffering=0) as file:
            while file.read(len(piece)):
                pass
        read = time.perf_counter() - start
    finally:
        path.unlink(missing_ok=True)
    return size / read, size / written


def grown(sizes: Sequence[float], values: Sequence[float], size: float) -> float:
    """What the line through some values gives at a larger size; a single value grows in proportion."""
    if len(sizes) == 1:
        return values[0] * size / sizes[0]
    slope, start = np.polyfit(sizes, values, 1)
    return float(start + slope * size)


def estimate(
    measured: Mapping[str, Mapping[int, float]], parameters: int, count: int, bandwidths: Bandwidths
) -> list[list[object]]:
    """A row for each method: the sizes measured, then hours of disk, memory and processor, and of the whole.

    Args:
        measured: For each method, seconds of processor time by parameters of a checkpoint.
        parameters: Those of the large checkpoint.
        count: Fine-tuned checkpoints.
        bandwidths: Of the disk and of memory.
    """
    read, written = BYTES * parameters * (count + 1), BYTES * parameters
    disk = read / bandwidths.read + written / bandwidths.write
    memory = (read + written) / bandwidths.copy
    rows: list[list[object]] = []
    for method, runs in measured.items():
        processor = grown(list(runs), list(runs.values()), parameters)
        hours = [seconds / 3600 for seconds in (disk, memory, processor)]
        sizes = ", ".join(f"{size / 1e9:.2g}" for size in runs)
        rows.append(
            [method, sizes, *(f"{value:.2f}" for value in hours), f"{max(hours):.1f} to {hours[0] + hours[2]:.1f}"]
        )
    return rows


def estimate_text(
    measured: Mapping[str, Mapping[int, float]], parameters: int, count: int, bandwidths: Bandwidths
) -> str:
    """The table, and what it is made of."""
    headers = ["method", "measured at 1e9", "disk, h", "memory, h", "processor, h", "estimate, h"]
    size = BYTES * parameters / 1e12
    told = (
        f"Estimate for {count} checkpoints of {parameters:,} parameters: {size * (count + 1):.2f} TB read at "
        f"{bandwidths.read / 1e9:.2f} GB/s, {size:.2f} TB written at {bandwidths.write / 1e9:.2f} GB/s, copied at "
        f"{bandwidths.copy / 1e9:.1f} GB/s (large_estimate.py has the formula).\n\n"
    )
    return told + table(headers, estimate(measured, parameters, count, bandwidths), align="ll" + "r" * 4)
