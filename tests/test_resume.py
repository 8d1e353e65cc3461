"""Work that is done once: read again only if it was made by the same plan."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hf_taskvec.errors import OutputExistsError, SettingsDifferError
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.resume import claim_folder, compute_or_read, share_out
from hf_taskvec.weights.temporary import held

PLAN = {"learning_rate": 0.1, "tasks": ("a", "b"), "start": None}


def write(path: Path) -> None:
    write_json(path, {"made": str(path.name)})


def refuse(path: Path) -> None:
    raise AssertionError(f"{path} was computed again")


def test_a_result_is_computed_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    first = compute_or_read(path, PLAN, compute=write, read=read_json)
    assert compute_or_read(path, PLAN, compute=refuse, read=read_json) == first == {"made": "result.json"}


def test_a_result_of_another_plan_is_refused_and_every_difference_named(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    compute_or_read(path, PLAN, compute=write, read=read_json)
    with pytest.raises(
        SettingsDifferError, match=r"learning_rate=0\.1 there, 0\.2 here; seed=unknown there, 3"
    ) as caught:
        compute_or_read(path, {**PLAN, "learning_rate": 0.2, "seed": 3}, compute=refuse, read=read_json)
    assert len(caught.value.differences) == 2


def test_many_differences_make_a_short_message(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    compute_or_read(path, {f"setting_{k}": "x" * 900 for k in range(50)}, compute=write, read=read_json)
    with pytest.raises(SettingsDifferError, match="and 48 more; choose another output folder") as caught:
        compute_or_read(path, {f"setting_{k}": "y" * 900 for k in range(50)}, compute=refuse, read=read_json)
    assert len(str(caught.value)) <= 600
    assert len(caught.value.differences) == 50


def test_a_result_without_a_plan_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "result.json")
    with pytest.raises(OutputExistsError, match=r"no result\.json\.plan\.json"):
        compute_or_read(tmp_path / "result.json", PLAN, compute=refuse, read=read_json)


def test_work_that_failed_is_done_again_by_any_plan(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with pytest.raises(AssertionError):
        compute_or_read(path, PLAN, compute=refuse, read=read_json)
    assert compute_or_read(path, {"learning_rate": 0.2}, compute=write, read=read_json) == {"made": "result.json"}
    with pytest.raises(SettingsDifferError):
        compute_or_read(path, PLAN, compute=refuse, read=read_json)


def test_a_folder_is_claimed_by_one_plan(tmp_path: Path) -> None:
    for _ in range(2):
        claim_folder(tmp_path / "run", PLAN, name="plan.json")
    with pytest.raises(SettingsDifferError, match="start=None there, x here"):
        claim_folder(tmp_path / "run", {**PLAN, "start": "x"}, name="plan.json")
    write(tmp_path / "thesis.json")
    with pytest.raises(OutputExistsError, match="something else"):
        claim_folder(tmp_path, PLAN, name="plan.json")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["run", "thesis.json"]


def test_a_folder_is_claimed_from_within_and_after_a_process_that_was_killed_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.chdir(run)
    for left in (".plan.json.0a1b2c3d.tmp", ".plan.json.lock"):
        (run / left).touch()
    for _ in range(2):
        claim_folder(".", PLAN, name="plan.json")
    assert [path.name for path in run.iterdir()] == ["plan.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


WORKER = """
import os, sys, time
from pathlib import Path
from hf_taskvec.weights.folders import read_json, write_json
from hf_taskvec.weights.resume import claim_folder, compute_or_read, share_out
from hf_taskvec.weights.temporary import held

folder = Path(sys.argv[1])
claim_folder(folder / "run", {"pieces": 6}, name="settings.json")

def compute(path):
    (folder / f"{path.stem}-by-{os.getpid()}").touch()
    time.sleep(0.2)
    write_json(path, {"by": os.getpid()})

def path_of(piece):
    return folder / "run" / f"{piece}.json"

def work(piece):
    return compute_or_read(path_of(piece), {"piece": piece}, compute=compute, read=read_json)

print([made["by"] for made in share_out(range(6), path_of, work)])
"""


def test_processes_with_the_same_command_share_the_work_and_have_all_results(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [worker.communicate(timeout=60)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert told[0] == told[1]
    assert len(list(tmp_path.glob("*-by-*"))) == 6  # no piece twice
    assert set(json.loads(told[0])) == {worker.pid for worker in workers}  # and none did all
    assert {path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(".")} == set()


def test_what_a_killed_process_was_at_is_done_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    (tmp_path / ".result.json.lock").touch()  # what it leaves: a file without a lock
    assert share_out([path], Path, lambda path: compute_or_read(path, PLAN, compute=write, read=read_json)) == [
        {"made": "result.json"}
    ]
    assert not (tmp_path / ".result.json.lock").exists()


def test_what_another_process_is_at_comes_last_and_is_not_computed_again(tmp_path: Path) -> None:
    first, second, order = tmp_path / "first.json", tmp_path / "second.json", list[str]()

    def work(path: Path) -> dict[str, str]:
        order.append(path.stem)
        if path == second:  # by now the other has finished the first one
            write_json(first, {"made": "elsewhere"})
            write_json(first.with_name("first.json.plan.json"), PLAN)
            os.close(handle)
        return compute_or_read(path, PLAN, compute=write if path == second else refuse, read=read_json)

    lock = tmp_path / ".first.json.lock"
    lock.touch()
    handle = os.open(lock, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert share_out([first, second], Path, work) == [{"made": "elsewhere"}, {"made": "second.json"}]
    assert order == ["second", "first"]


def test_a_process_tells_that_it_waits_for_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, lock = tmp_path / "result.json", tmp_path / ".result.json.lock"
    lock.touch()
    with held(lock):
        waiting = threading.Thread(target=compute_or_read, args=(path, PLAN), kwargs={"compute": write, "read": Path})
        waiting.start()
        for _ in range(600):
            waiting.join(0 if caplog.messages else 0.05)
        assert caplog.messages == [f"another process is at {path}: this one waits for it"]
        assert waiting.is_alive()
    waiting.join(30)
    assert path.is_file()


def test_that_files_cannot_be_locked_is_told_once_and_the_work_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("hf_taskvec.weights.temporary.fcntl.flock", no_locks)
    monkeypatch.setenv("WORLD_SIZE", "")  # as of a shell that was told of no launcher
    for name in ("first.json", "second.json"):
        assert compute_or_read(tmp_path / name, PLAN, compute=write, read=read_json) == {"made": name}
    assert caplog.text.count(f"no file in {tmp_path} can be locked") == 1
    assert not list(tmp_path.glob(".*"))


def test_processes_that_train_together_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    lock = tmp_path / ".result.json.lock"
    lock.touch()
    handle = os.open(lock, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    made = share_out(
        [tmp_path / "result.json"], Path, lambda path: compute_or_read(path, PLAN, compute=write, read=read_json)
    )
    assert made == [{"made": "result.json"}]
    os.close(handle)


def test_files_are_locked_over_nfs_where_they_must_be_open_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock

    def of_nfs(handle: int, operation: int) -> None:  # as flock(2) says
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(handle, operation)

    monkeypatch.setattr("hf_taskvec.weights.temporary.fcntl.flock", of_nfs)
    lock = tmp_path / "lock"
    lock.touch()
    with held(lock) as first, held(lock) as second:
        assert (first, second) == (True, False)
    with held(tmp_path) as folder:
        assert folder is None


@pytest.mark.parametrize("name", ["fcntl.flock", "os.path.samestat"])
def test_a_lock_that_another_machine_has_removed_over_nfs_is_not_held(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def removed(*args: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    (tmp_path / "lock").touch()
    monkeypatch.setattr(f"hf_taskvec.weights.temporary.{name}", removed)
    with held(tmp_path / "lock", wait=True) as mine:
        assert mine is False
