"""Folders and files are written whole or not at all, nothing of the user's goes, and the dead leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hf_taskvec.errors import OutputExistsError
from hf_taskvec.weights import temporary
from hf_taskvec.weights.folders import atomic_folder, write_bytes, write_json


def own(name: str) -> bool:
    return name == "marker" or name.startswith("part-")


def write(folder: Path, **files: str) -> None:
    with atomic_folder(folder, marker="marker", own=own) as target:
        for name, text in {"marker": "m", **files}.items():
            (target / name).write_text(text)


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("exchanges", [True, False])
def test_what_is_the_users_survives_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(sys, "platform", "other")
    write(tmp_path / "v", **{"part-1": "old", "part-2": "old"})
    (tmp_path / "v" / "notes.md").write_text("mine")
    (tmp_path / "v" / "epoch-1").mkdir()
    (tmp_path / "v" / "epoch-1" / "part-1").write_text("mine too")
    write(tmp_path / "v", **{"part-1": "new"})
    assert content(tmp_path / "v") == {
        "marker": "m",
        "part-1": "new",
        "notes.md": "mine",
        os.path.join("epoch-1", "part-1"): "mine too",
    }
    assert os.listdir(tmp_path) == ["v"]


def test_a_folder_that_cannot_take_its_place_ends_in_the_error_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(one: Path, other: Path) -> None:
        raise OSError(16, "Device or resource busy")

    write(tmp_path / "v", **{"part-1": "old"})
    monkeypatch.setattr(temporary, "_exchange", busy)
    with pytest.raises(OSError, match="busy"):
        write(tmp_path / "v", **{"part-1": "new"})
    assert content(tmp_path) == {os.path.join("v", name): text for name, text in (("marker", "m"), ("part-1", "old"))}


@pytest.mark.skipif(sys.platform != "linux", reason="the system cannot exchange two folders in one step")
def test_where_two_folders_can_be_exchanged_there_is_one_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "v", **{"part-1": "old"})
    rename = os.rename

    def watched(source: Path, target: Path) -> None:
        rename(source, target)
        assert (tmp_path / "v" / "marker").is_file()

    monkeypatch.setattr(os, "rename", watched)
    write(tmp_path / "v", **{"part-1": "new"})
    assert content(tmp_path / "v") == {"marker": "m", "part-1": "new"}


def test_json_is_written_for_people_too(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": {"b": "ü"}, "c": [1]})
    lines = ["{", '  "a": {', '    "b": "ü"', "  },", '  "c": [', "    1", "  ]", "}", ""]
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "\n".join(lines)


def test_a_folder_without_the_marker_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "part-1").write_text("mine")
    with pytest.raises(OutputExistsError):
        write(tmp_path / "v")
    assert content(tmp_path) == {os.path.join("v", "part-1"): "mine"}


def test_a_link_to_a_folder_stays_one(tmp_path: Path) -> None:
    write(tmp_path / "disk")
    (tmp_path / "v").symlink_to(tmp_path / "disk")
    write(tmp_path / "v", **{"part-1": "new"})
    assert (tmp_path / "v").is_symlink()
    assert content(tmp_path / "disk") == {"marker": "m", "part-1": "new"}


DYING = """
import os, sys
from pathlib import Path
from hf_taskvec.weights import temporary
from hf_taskvec.weights.folders import atomic_folder, write_bytes, write_json
when, target = sys.argv[1], Path(sys.argv[2])
def die(*args): os.kill(os.getpid(), 9)
if when == "file":
    os.replace = die
    write_bytes(target, b"x")
if when == "swapped":
    temporary.keep_others = die
elif when == "before the swap":
    temporary._exchange = die
with atomic_folder(target, marker="marker", own=lambda name: name == "marker" or name.startswith("part-")) as folder:
    (folder / "marker").write_text("m")
    (folder / "part-1").write_text("dying")
    if when == "writing":
        die()
"""


@pytest.mark.parametrize("when", ["writing", "before the swap", "swapped"])
def test_the_next_writer_clears_away_what_a_dead_one_left_and_loses_nothing(tmp_path: Path, when: str) -> None:
    write(tmp_path / "v", **{"part-1": "old", "part-2": "old"})
    (tmp_path / "v" / "notes.md").write_text("mine")
    (tmp_path / ".v.notes").write_text("mine too")
    run = subprocess.run([sys.executable, "-c", DYING, when, str(tmp_path / "v")])
    assert run.returncode == -signal.SIGKILL
    assert content(tmp_path / "v")["part-1"] == ("dying" if when == "swapped" else "old")
    assert len(os.listdir(tmp_path)) == 3
    write(tmp_path / "v", **{"part-1": "new"})
    assert content(tmp_path / "v") == {"marker": "m", "part-1": "new", "notes.md": "mine"}
    assert sorted(os.listdir(tmp_path)) == [".v.notes", "v"]


def test_the_next_writer_of_a_file_clears_away_what_a_dead_one_left(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")
    run = subprocess.run([sys.executable, "-c", DYING, "file", str(tmp_path / "f")])
    assert run.returncode == -signal.SIGKILL
    assert (tmp_path / "f").read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    write_bytes(tmp_path / "f", b"new")
    assert content(tmp_path) == {"f": "new"}


def test_what_a_living_writer_has_begun_is_left_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "v", marker="marker", own=own) as begun:
        (begun / "marker").write_text("first")
        write(tmp_path / "v", **{"part-9": "second"})
        assert (begun / "marker").read_text() == "first"
    assert content(tmp_path / "v") == {"marker": "first"}
    assert os.listdir(tmp_path) == ["v"]


def test_a_name_that_begins_alike_is_another_folder(tmp_path: Path) -> None:
    (tmp_path / ".v.1.abcdef01.swap").mkdir()
    (tmp_path / ".v.1.abcdef01.swap" / "notes").write_text("of v.1")
    (tmp_path / ".v.1.abcdef01.swap" / "marker").write_text("of v.1")
    write(tmp_path / "v")
    assert content(tmp_path / "v") == {"marker": "m"}
    write(tmp_path / "v.1")
    assert content(tmp_path / "v.1") == {"marker": "m", "notes": "of v.1"}


def test_of_many_writers_and_readers_each_sees_one_version(tmp_path: Path) -> None:
    names = [f"part-{index}" for index in range(4)]
    errors: list[BaseException] = []

    def keep_writing(text: str) -> None:
        try:
            for _ in range(25):
                write(tmp_path / "v", **dict.fromkeys(names, text))
        except BaseException as error:  # noqa: BLE001 (a thread's error must reach the test)
            errors.append(error)

    write(tmp_path / "v", **dict.fromkeys(names, "0"))
    (tmp_path / "v" / "notes.md").write_text("mine")
    writers = [threading.Thread(target=keep_writing, args=(str(index),)) for index in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert (tmp_path / "v" / "marker").is_file()  # there is one at every moment
    assert errors == []
    texts = content(tmp_path / "v")
    assert texts.pop("notes.md") == "mine"
    assert len({texts[name] for name in names}) == 1
    assert os.listdir(tmp_path) == ["v"]


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o077, 0o700, 0o600), (0o022, 0o755, 0o644)])
def test_the_umask_counts(tmp_path: Path, mask: int, folder: int, file: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "v")
        write_bytes(tmp_path / "f", b"x")
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "v", tmp_path / "v" / "marker", tmp_path / "f")]
    assert modes == [folder, file, file]
    (tmp_path / "v").chmod(0o711)
    write(tmp_path / "v")
    assert (tmp_path / "v").stat().st_mode & 0o777 == 0o711


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def half(self: Path, data: bytes) -> int:
        with open(self, "wb") as file:
            file.write(data[:1])
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space"):
        write_bytes(tmp_path / "f", b"new")
    assert content(tmp_path) == {"f": "old"}


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "_lock", lambda handle, wait: False)
    write(tmp_path / "v", **{"part-1": "old"})
    write(tmp_path / "v", **{"part-1": "new"})
    assert content(tmp_path / "v")["part-1"] == "new"
