"""A process that is killed while it saves: whatever the moment, the next one ends with the same result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_taskvec import TaskVector
from tests.helpers import equal_vectors
from tests.scripts.dying import WORK, die_in

MOMENTS = 15  # of each kind of work, spread over all its changes to the folder


def prepared(kind: str, root: Path) -> Path:
    """The folder that a kind of work starts from, with something of the user's in it."""
    folder = root / "work"
    if kind == "train":
        TaskVector({"w": torch.ones(3)}).save_pretrained(folder / "out" / "vector")  # of an earlier run
    notes = ["notes.txt", "out/notes.txt", "out/vector/notes.txt"] if kind == "train" else ["notes.txt"]
    for name in [*notes, *(["out/run/notes.txt", "out/run/vectors/mine/notes.txt"] if kind == "train" else [])]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"a week of work: {name}")
    generator = torch.Generator().manual_seed(0)
    if kind == "merge":
        for index in range(3):
            deltas = {f"w{layer}": torch.randn(40, 40, generator=generator) for layer in range(4)}
            TaskVector(deltas).save_pretrained(folder / f"v{index}")
    if kind == "evaluate":
        for split in ("train", "test"):
            for number, name in enumerate(("cat", "dog")):
                (folder / "images" / split / name).mkdir(parents=True)
                for copy in range(3):
                    picture = Image.new("RGB", (32, 32), (80 * copy, 90 * number, 40))
                    picture.save(folder / "images" / split / name / f"{copy}.png")
    return folder


def users(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("notes.txt")}


def stale(folder: Path) -> list[Path]:
    """Temporary files of writers, and journals."""
    return [path for path in folder.rglob(".*") if path.suffix in (".tmp", ".swap", ".journal")]


def same(one: object, other: object) -> bool:
    if isinstance(one, TaskVector) and isinstance(other, TaskVector):
        return equal_vectors(one, other)
    return one == other


def recorded(folder: Path) -> dict[str, TaskVector]:
    """What a run recorded, by its place; each must be whole."""
    return {
        str(path.parent.relative_to(folder)): TaskVector.from_pretrained(path.parent)
        for path in folder.rglob("task_vector_config.json")
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(WORK))
def test_whatever_the_moment_of_a_kill_the_next_run_ends_as_if_there_had_been_none(kind: str, tmp_path: Path) -> None:
    whole = prepared(kind, tmp_path / "whole")
    changes = die_in(kind, whole)
    expected = WORK[kind](whole)
    for index in range(MOMENTS):
        root = tmp_path / str(index)
        folder = prepared(kind, root)
        before, moment = users(folder), 1 + index * (changes - 1) // (MOMENTS - 1)
        die_in(kind, folder, moment)
        assert before.items() <= users(folder).items(), moment
        for name, vector in recorded(folder).items():  # a reader sees whole vectors only
            vector.norm()
            assert name in recorded(whole), moment
        assert same(WORK[kind](folder), expected), moment
        assert users(folder) == before, moment
        assert stale(folder) == [], moment
        theirs = recorded(whole)
        for name, vector in recorded(folder).items():
            assert equal_vectors(vector, theirs[name]), (moment, name)
        assert recorded(folder).keys() == theirs.keys(), moment
        shutil.rmtree(root)
