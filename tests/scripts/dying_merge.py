"""A merge of checkpoints whose process kills itself while it computes its n-th parameter."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from hf_taskvec.merging import merge_checkpoints
from hf_taskvec.vectors import applied
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import PROCESSES

PROCESSES.set_forkserver_preload(["tests.scripts.dying_merge"])


def _work(kind: str, folder: Path, moment: int, count: Any) -> None:
    plain = applied.added

    def added(*values: Any) -> Any:
        count.value += 1
        if count.value == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*values)

    torch.set_num_threads(1)
    applied.added = added
    if kind == "save":
        vector = TaskVector.from_pretrained(folder / "vector")
        vector.save_checkpoint(folder / "base", folder / "out", scaling=0.5, resume=True)
    else:
        merge_checkpoints(folder / "base", [folder / "tuned-1", folder / "tuned-2"], kind, output_dir=folder / "out")


def merge_until(moment: int, kind: str, folder: Path) -> int:
    """Works in a process that is killed at its `moment`-th parameter, or, at 0, not at all.

    Returns:
        How many parameters it computed.

    Raises:
        RuntimeError: If it ended in another way.
    """
    count = PROCESSES.Value("i", 0)
    process = PROCESSES.Process(target=_work, args=(kind, folder, moment, count))
    process.start()
    process.join()
    if process.exitcode != (-signal.SIGKILL if moment else 0):
        raise RuntimeError(f"{kind} ended with {process.exitcode}, expected at parameter {moment}")
    return int(count.value)
