"""A merge of checkpoints whose process kills itself while it computes its n-th parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hf_taskvec.merging import merge_checkpoints
from hf_taskvec.vectors import applied
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import PROCESSES, count_or_die, until_killed

PROCESSES.set_forkserver_preload(["tests.scripts.dying_merge"])


def _work(kind: str, folder: Path, moment: int, count: Any) -> None:
    plain = applied.added

    def added(*values: Any) -> Any:
        count_or_die(count, moment)
        return plain(*values)

    torch.set_num_threads(1)
    applied.added = added
    if kind == "save":
        vector = TaskVector.from_pretrained(folder / "vector")
        vector.save_checkpoint(folder / "base", folder / "out", scaling=0.5, resume=True)
    else:
        merge_checkpoints(folder / "base", [folder / "tuned-1", folder / "tuned-2"], kind, output_dir=folder / "out")


def merge_until(moment: int, kind: str, folder: Path) -> int:
    """Works in a process that is killed at its `moment`-th parameter, or, at 0, not at all; tells how many it began."""
    return until_killed(_work, kind, folder, moment)
