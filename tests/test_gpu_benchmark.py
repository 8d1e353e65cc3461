"""The benchmark of a GPU: every part runs on the CPU with tiny settings, and what cannot work is refused first."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gpu
import gpu_parts
import pytest
import torch
from gpu_parts import CPU, Deadline, largest_difference, measured, merge_rows, random_base, random_vectors

from hf_taskvec import TaskVector
from hf_taskvec.errors import UnknownNameError

TINY = gpu.GpuArguments(
    device="cpu", minutes=5, models=["tiny"], methods=["ties"], vectors=2, batch_size=8, steps=4, images=16
)


def test_every_part_is_measured_and_written(tmp_path: Path) -> None:
    path = tmp_path / "gpu.md"
    text = gpu.main(replace(TINY, results=str(path)))
    assert path.read_text(encoding="utf-8") == text + "\n"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    ties = next(row for row in rows if row[0] == "ties")
    assert ties[4:] == ["0.0e+00", ""]  # the device is the CPU itself
    assert all(float(cell) >= 0 for cell in ties[1:4])
    trained = {row[1]: row[2:] for row in rows if row[0] == "tiny"}
    assert set(trained) == {"float32", "bf16"}
    assert all(float(cell) > 0 for cell in [*trained["bf16"], *trained["float32"][:3]])


def test_what_there_is_no_time_for_is_said() -> None:
    vectors = random_vectors(random_base("tiny"), 2)
    assert merge_rows(vectors, ["average"], CPU, Deadline(0.0)) == [["average", *"––––", "no time left"]]
    assert "no time left" in gpu.training_table(TINY, CPU, Deadline(0.0))


def test_a_method_that_does_not_suit_is_listed_with_its_reason() -> None:
    rows = merge_rows(random_vectors(random_base("tiny"), 2), ["tied", "average"], CPU, Deadline(60.0))
    assert rows[0][:2] == ["tied", "–"]
    assert "no merge method 'tied'" in rows[0][-1]
    assert rows[1][0] == "average"


def test_why_a_device_failed_is_told_where_the_cpu_has_no_time_either(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, calls = random_vectors(random_base("tiny"), 2), list[torch.device]()

    def told(device: torch.device, work: Callable[[], TaskVector]) -> gpu_parts.Measured[TaskVector]:
        calls.append(device)
        if len(calls) == 3:  # all parameters on the device, after few on each
            raise torch.OutOfMemoryError("CUDA out of memory")
        return gpu_parts.Measured(work(), 0.0 if len(calls) == 1 else 1e9, 0)

    monkeypatch.setattr(gpu_parts, "measured", told)
    (row,) = merge_rows(vectors, ["average"], CPU, Deadline(60.0))
    assert (row[1], row[2], row[-1]) == ("–", "–", "CUDA out of memory")


def test_the_largest_difference_is_relative_to_the_largest_entry() -> None:
    left, right = (TaskVector({"a": torch.tensor(a), "b": torch.tensor([-4.0])}) for a in ([1.0, 2.0], [1.0, 2.5]))
    assert largest_difference(left, right) == pytest.approx(0.5 / 4)


def test_measuring_returns_the_value_and_no_gpu_memory_on_a_cpu() -> None:
    run = measured(CPU, lambda: 7)
    assert (run.value, run.peak) == (7, 0)
    assert run.seconds >= 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["ViT-B/31"]}, "Did you mean 'ViT-B/32'"),
        ({"minutes": 0.0}, "minutes must be positive"),
        ({"images": 4}, "a batch of images"),
        ({"steps": 1}, "two steps"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_measured(changes: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, UnknownNameError), match=message):
        gpu.open_device(replace(TINY, **changes))


def test_without_a_gpu_the_way_to_try_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cpu --models tiny"):
        gpu.open_device(replace(TINY, device="cuda"))


def test_pretraining_gets_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="step 9 of 10\n")

    monkeypatch.setattr(subprocess, "run", run)
    text = gpu.pretrain(replace(TINY, pretrain_command="--steps 10 --pairs 'my pairs'"), 90.0 + gpu.SPARE)
    assert calls[0][2:] == ["--steps", "10", "--pairs", "my pairs", "--minutes", "1.50"]
    assert "step 9 of 10" in text


def test_a_pretraining_that_has_no_time_or_does_not_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    args = replace(TINY, pretrain_command="--steps 10")
    assert "No time left: 30 s" in gpu.pretrain(args, 30.0)
    assert "its last saved state stays" in gpu.pretrain(args, 300.0)


def test_a_part_gets_no_more_than_its_share_and_no_more_than_is_left() -> None:
    whole = Deadline(100.0)
    assert whole.at_most(5.0).left <= 5.0
    assert 90.0 < whole.at_most(500.0).left <= 100.0


def test_a_merge_that_would_not_end_in_time_is_compared_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_parts, "COMPARED", 1)
    slow = gpu_parts.measured

    def measured(device: torch.device, work: Callable[[], object]) -> gpu_parts.Measured[object]:
        return replace(slow(device, work), seconds=1e6)

    monkeypatch.setattr(gpu_parts, "measured", measured)
    (row,) = merge_rows(random_vectors(random_base("tiny"), 2), ["average"], CPU, Deadline(60.0))
    assert row == ["average", "–", "–", "–", "0.0e+00", "too slow for the time left"]
