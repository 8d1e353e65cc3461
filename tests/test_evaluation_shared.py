"""Several processes evaluate as one does: the batches are dealt, the result is the same to the last bit."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hf_taskvec import Report, evaluate, load_base
from hf_taskvec.errors import NonFiniteError
from hf_taskvec.evaluation import accuracy
from hf_taskvec.weights import processes
from tests.toys import toy_base, toy_task

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_report_what_one_does_and_once(count: int, tmp_path: Path) -> None:
    launcher = ("torch.distributed.run", f"--nproc_per_node={count}", "--standalone")
    recipe = [ROOT / "recipes" / "evaluate_model.py", "--tasks", "digits", "--metrics", "per_class_accuracy"]
    command = [sys.executable, "-m", *launcher, *recipe, "--output", tmp_path / "report.json"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("| task |") == 1
    assert Report.load(tmp_path / "report.json") == evaluate(load_base(), "digits", metrics="per_class_accuracy")


def group(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process the one of a rank among three, alone with its own part."""
    state = SimpleNamespace(process_index=rank, num_processes=3, is_main_process=rank == 0)
    state.local_main_process_first = nullcontext
    monkeypatch.setattr(accuracy, "processes", lambda: state)
    monkeypatch.setattr(accuracy, "check_alike", lambda facts, work: None)
    monkeypatch.setattr(accuracy, "summed", lambda logits, state: logits)


@pytest.mark.parametrize("batch_size", [7, 30])
def test_each_batch_is_one_processs_and_their_sum_is_the_whole(
    batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, task = toy_base(), toy_task(images=40)
    whole, labels = accuracy.predict(base, task, "train", batch_size=batch_size)
    parts = []
    for rank in range(3):
        group(rank, monkeypatch)
        parts.append(accuracy.predict(base, task, "train", batch_size=batch_size)[0])
        assert accuracy.predict(base, task, "train", batch_size=batch_size)[1].equal(labels)
    filled = torch.stack([part.any(dim=1) for part in parts])
    assert filled.sum(dim=0).eq(1).all()
    assert filled[:, ::batch_size].int().argmax(dim=0).tolist() == [
        row % 3 for row in range(len(filled[0, ::batch_size]))
    ]
    assert sum(parts).equal(whole)


def test_a_broken_model_stops_every_process_and_not_one(monkeypatch: pytest.MonkeyPatch) -> None:
    base = toy_base()
    group(2, monkeypatch)  # one that computes nothing itself
    monkeypatch.setattr(accuracy, "summed", lambda logits, state: logits * torch.nan)
    with pytest.raises(NonFiniteError, match="hold NaN or Inf"):
        accuracy.predict(base, toy_task(), "validation")


@pytest.mark.parametrize("name", ["the task", "batch_size", "its weights' hash", "the prompts"])
def test_processes_that_do_different_things_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = accuracy._facts(toy_base(), toy_task(), "test", batch_size=8, num_images=10)
    monkeypatch.setattr(processes, "gathered", lambda mine: [mine, mine, {**mine, name: "another"}])
    with pytest.raises(ValueError, match=f"{name} is .* in process 0 and another in process 2"):
        processes.check_alike(facts, "an evaluation")
    monkeypatch.setattr(processes, "gathered", lambda mine: [mine, mine])
    processes.check_alike(facts, "an evaluation")


def test_a_process_that_waits_alone_says_what_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def gather(mine: Any) -> list[Any]:
        time.sleep(0.2)
        return [mine]

    monkeypatch.setattr(processes, "gathered", gather)
    monkeypatch.setattr(processes, "PATIENCE", 0.01)
    with caplog.at_level(logging.WARNING):
        processes.check_alike({"the task": "digits"}, "an evaluation")
    assert "must be called on all of them" in caplog.text
