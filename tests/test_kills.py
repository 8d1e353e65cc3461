"""A process that is killed while it saves: whatever the moment, the next one ends with the same result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_taskvec import TaskVector
from tests.scripts.dying import WORK, die_in
from tests.toys import toy_base

MOMENTS = 15  # of each kind of work, spread over all its changes to the folder


def prepared(kind: str, root: Path) -> Path:  # the base is saved: a tokenizer trained anew is another one
    """The folder that a kind of work starts from, with something of the user's in it."""
    folder = root / "work"
    toy_base().model.save_pretrained(folder / "base")
    toy_base().processor.save_pretrained(folder / "base")
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


def results(folder: Path) -> dict[str, TaskVector | bytes]:
    """Every vector that a reader finds, by its place, and the report."""
    found: dict[str, TaskVector | bytes] = {}
    for path in folder.rglob("task_vector_config.json"):
        if not any(part.startswith(".") for part in path.relative_to(folder).parts):
            found[str(path.parent.relative_to(folder))] = TaskVector.from_pretrained(path.parent)
    return found | {path.name: path.read_bytes() for path in folder.glob("report.json")}


def same(one: TaskVector | bytes, other: TaskVector | bytes) -> bool:
    if isinstance(one, bytes) or isinstance(other, bytes):
        return one == other
    return all(one.deltas[name].equal(other.deltas[name]) for name in {*one.deltas, *other.deltas})


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(WORK))
def test_whatever_the_moment_of_a_kill_the_next_run_ends_as_if_there_had_been_none(kind: str, tmp_path: Path) -> None:
    whole = prepared(kind, tmp_path / "whole")
    changes = die_in(kind, whole)
    expected = results(whole)
    for index in range(MOMENTS):
        root = tmp_path / str(index)
        folder = prepared(kind, root)
        before, moment = users(folder), 1 + index * (changes - 1) // (MOMENTS - 1)
        die_in(kind, folder, moment)
        assert before.items() <= users(folder).items(), moment
        assert results(folder).keys() <= expected.keys(), moment  # a reader sees whole vectors only
        die_in(kind, folder)
        ended = results(folder)
        assert ended.keys() == expected.keys(), moment
        assert [name for name in expected if not same(ended[name], expected[name])] == [], moment
        assert users(folder) == before, moment
        assert stale(folder) == [], moment
        shutil.rmtree(root)
