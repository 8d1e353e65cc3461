"""Work for tests that kill its process with SIGKILL, at its n-th change to a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch

from hf_taskvec import Task, TaskVectorConfig, evaluate, load_base, merge
from hf_taskvec.models import heads
from hf_taskvec.training.run import train_vector
from tests.helpers import PROCESSES, count_or_die, until_killed
from tests.toys import toy_task

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
PROCESSES.set_forkserver_preload(["tests.scripts.dying"])


def train(folder: Path) -> None:
    """Fifteen steps of a run that records, tracks and keeps one checkpoint at a time."""
    args = TaskVectorConfig(
        output_dir=str(folder),
        num_train_epochs=3,
        learning_rate=1e-3,
        per_device_train_batch_size=10,
        save_strategy="steps",
        save_steps=2,
        save_total_limit=1,
        record_gradients=True,
        record_steps=[7],
        disable_tqdm=True,
        logging_strategy="no",
    )
    train_vector(load_base(folder / "base"), toy_task(), args, output_dir=folder / "out")


def merge_folders(folder: Path) -> None:
    """A merge with a journal of the vectors `v0`, `v1`… beside its output."""
    merge(sorted(folder.glob("v*")), "iso_c", output_dir=folder / "out")


def evaluate_folder(folder: Path) -> None:
    """An evaluation of the images in `images`, whose caches lie in `cache`."""
    datasets.config.HF_DATASETS_CACHE = folder / "cache"
    heads.HF_HOME = str(folder / "cache")
    evaluate(load_base(folder / "base"), Task.from_dataset(folder / "images"), progress=False).save(
        folder / "report.json"
    )


WORK: dict[str, Callable[[Path], None]] = {"train": train, "merge": merge_folders, "evaluate": evaluate_folder}


def _die_in(kind: str, folder: Path, moment: int, count: Any) -> None:
    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if (event in CHANGES or writes) and str(arguments[0]).startswith(str(folder)):
            count_or_die(count, moment)

    torch.set_num_threads(1)
    sys.addaudithook(watch)
    WORK[kind](folder)


def die_in(kind: str, folder: Path, moment: int = 0) -> int:
    """Works in a process that is killed before its `moment`-th change to the folder, or not at all; tells how many."""
    return until_killed(_die_in, kind, folder, moment)
