"""The benchmark of large checkpoints: what it makes of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import large
import pytest
from large_estimate import Bandwidths, disk_bandwidths, estimate, grown

RUN = {"seconds": 9.0, "parts": {}, "peak": 1}


def test_a_line_through_what_was_measured_is_followed_and_one_size_grows_in_proportion() -> None:
    assert grown([1.0, 2.0, 3.0], [5.0, 7.0, 9.0], 10.0) == pytest.approx(23.0)
    assert grown([2.0], [3.0], 20.0) == 30.0


def test_an_estimate_is_the_bytes_over_the_bandwidths_and_the_processors_growth() -> None:
    bandwidths = Bandwidths(read=2e9, write=1e9, copy=1e10)
    ((method, sizes, disk, memory, processor, whole),) = estimate({"ties": {10**9: 36.0}}, 10**11, 8, bandwidths)
    assert (method, sizes) == ("ties", "1")
    assert float(str(disk)) == pytest.approx((1.8e12 / 2e9 + 2e11 / 1e9) / 3600, abs=0.005)  # nine read, one written
    assert float(str(memory)) == pytest.approx(2e12 / 1e10 / 3600, abs=0.005)
    assert float(str(processor)) == 1.0
    assert whole == "1.0 to 1.3"


def test_what_was_measured_is_found_by_size_method_and_count(tmp_path: Path) -> None:
    for width, seconds in ((128, 2.0), (192, 5.0)):
        folder = tmp_path / f"{width}x{max(2, width // 64)}"
        folder.mkdir()
        used = {"import": [50.0, 50.0], "merge and save": [seconds, 1.0]}
        lines = [{"key": [who, 8, "ties"], "run": {**RUN, "processor": used}} for who in ("ours", "mergekit")]
        (folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert large.processor_seconds(tmp_path, 4, ["ties"]) == {}
    measured = large.processor_seconds(tmp_path, 8, ["ties", "dare_ties"])
    sizes = [large.entries_of(large.config_of_width(width)) for width in (128, 192)]
    assert measured == {"ties": dict(zip(sizes, (3.0, 6.0), strict=True))}


def test_the_disks_bandwidth_leaves_no_file(tmp_path: Path) -> None:
    assert all(value > 0 for value in disk_bandwidths(tmp_path, 1 << 20))
    assert not list(tmp_path.iterdir())
