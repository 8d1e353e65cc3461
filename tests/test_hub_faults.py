"""What goes wrong between here and the Hub ends in the right vector or in one clear error, and loses nothing."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import HfApi, snapshot_download
from transformers import CLIPModel

from hf_taskvec.cards.find import list_vectors
from hf_taskvec.cards.publish import push_to_hub
from hf_taskvec.errors import CheckpointError, HubError, NotCachedError, TaskVecError
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import PROCESSES, equal_vectors, tiny_vector
from tests.hub_server import Fault, HubServer
from tests.hub_server_api import Token

REPO = "user/vector"
API = HfApi(token="write-user")


@pytest.fixture(scope="module")
def vector(base: CLIPModel) -> TaskVector:
    made = tiny_vector(base)
    return TaskVector(made.deltas, replace(made.info, task="mnist"))


@pytest.fixture(scope="module")
def other(base: CLIPModel) -> TaskVector:
    return tiny_vector(base, seed=2)


@pytest.fixture
def published(hub: HubServer, vector: TaskVector) -> HubServer:
    push(vector)
    hub.log.clear()
    return hub


def push(vector: TaskVector, **settings: object) -> str:
    return push_to_hub(vector, REPO, **{"token": "write-user", **settings})


def pull(tmp_path: Path, **settings: object) -> TaskVector:
    return TaskVector.from_pretrained(REPO, cache_dir=tmp_path / "cache", **settings)


def count(hub: HubServer, start: str) -> int:
    return sum(line.startswith(start) for line in hub.log)


# -- trouble that passes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503])
@pytest.mark.parametrize("match", ["GET /api/models/user/vector", "HEAD .*safetensors"])
def test_a_server_error_that_passes_is_waited_out(
    published: HubServer, tmp_path: Path, vector: TaskVector, status: int, match: str
) -> None:
    published.faults.append(Fault(match, status=status))
    assert equal_vectors(pull(tmp_path), vector)
    assert published.faults[0].times == 0


def test_a_rate_limit_is_waited_out_as_long_as_it_asks(
    published: HubServer, tmp_path: Path, vector: TaskVector
) -> None:
    published.faults.append(Fault("GET /api/models", status=429, headers={"Retry-After": "2"}))
    start = time.monotonic()
    assert equal_vectors(pull(tmp_path), vector)
    assert time.monotonic() - start >= 2


def test_a_rate_limit_that_asks_for_an_hour_is_reported(published: HubServer, tmp_path: Path) -> None:
    published.faults.append(Fault("GET /api/models", status=429, headers={"Retry-After": "3600"}, times=9))
    with pytest.raises(HubError, match="try again in 3600 s"):
        pull(tmp_path)


def test_a_connection_cut_in_mid_download_is_resumed(published: HubServer, tmp_path: Path, vector: TaskVector) -> None:
    published.faults.append(Fault("GET /cdn", cut=100_000))
    assert equal_vectors(pull(tmp_path), vector)
    assert count(published, "GET /cdn") == 2


@pytest.mark.parametrize("fault", [Fault("PUT /lfs", cut=100_000), Fault("PUT /lfs", status=502)], ids=["cut", "502"])
def test_an_upload_that_breaks_off_is_tried_again(
    hub: HubServer, tmp_path: Path, vector: TaskVector, fault: Fault
) -> None:
    hub.faults.append(replace(fault))
    push(vector)
    assert count(hub, "PUT /lfs") == 2
    assert equal_vectors(pull(tmp_path), vector)


@pytest.mark.parametrize("match", ["GET /api/models", "GET /cdn"])
def test_a_slow_answer_is_asked_for_again(published: HubServer, tmp_path: Path, vector: TaskVector, match: str) -> None:
    published.faults.append(Fault(match, delay=3))
    assert equal_vectors(pull(tmp_path), vector)


@pytest.mark.parametrize("fault", [Fault("/commit/", status=503), Fault("/commit/", lose=True)], ids=["503", "lost"])
def test_a_push_whose_answer_fails_ends_in_one_commit(
    hub: HubServer, tmp_path: Path, vector: TaskVector, fault: Fault
) -> None:
    hub.faults.append(replace(fault))
    url = push(vector)
    repo = hub.store.get("model", REPO)
    assert url.endswith(repo.head.id)
    assert len(repo.commits) == 2
    assert equal_vectors(pull(tmp_path), vector)


# -- trouble that stays -----------------------------------------------------------------------------------------------


def test_a_hub_that_stays_broken_is_named_without_a_cache(published: HubServer, tmp_path: Path) -> None:
    published.faults.append(Fault("GET /api", status=503, times=99))
    with pytest.raises(HubError, match=r"reading user/vector failed: the Hub has trouble \(503"):
        pull(tmp_path)
    published.faults[:] = [Fault("GET /api", status=400)]
    with pytest.raises(HubError, match="listing task vectors failed"):
        list_vectors()


@pytest.mark.parametrize("fault", [Fault("", status=503), Fault("", cut=0)], ids=["503", "cut"])
def test_a_hub_that_stays_broken_leaves_the_cache_in_use(
    published: HubServer, tmp_path: Path, vector: TaskVector, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    pull(tmp_path)
    published.faults.append(replace(fault, times=99))
    assert equal_vectors(pull(tmp_path), vector)
    assert "comes from the cache" in caplog.text


def test_a_connection_that_is_always_cut_is_an_error(published: HubServer, tmp_path: Path, vector: TaskVector) -> None:
    published.faults.append(Fault("GET /cdn", cut=0, times=6))
    with pytest.raises(HubError, match="connection was lost"):
        pull(tmp_path)
    assert equal_vectors(pull(tmp_path), vector)  # and the cache is as good as new


# -- wrong content ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("match", ["GET /cdn", "GET .*config.json", "GET .*README"])
def test_a_file_damaged_on_the_way_is_thrown_away(
    published: HubServer, tmp_path: Path, vector: TaskVector, match: str
) -> None:
    published.faults.append(Fault(match, corrupt=True))
    with pytest.raises(HubError, match="damaged on the way"):
        pull(tmp_path)
    assert equal_vectors(pull(tmp_path), vector)


@pytest.mark.parametrize("offline", [False, True])
def test_a_damaged_file_that_was_never_checked_is_found_by_the_next_who_opens_it(
    published: HubServer, tmp_path: Path, vector: TaskVector, offline: bool
) -> None:  # whoever fetched it checks nothing, or was killed between the download and the check
    published.faults.append(Fault("GET /cdn", corrupt=True))
    snapshot_download(REPO, cache_dir=tmp_path / "cache")
    with pytest.raises(HubError, match="damaged on the way"):
        pull(tmp_path, local_files_only=offline)
    assert equal_vectors(pull(tmp_path), vector)
    (blob,) = (path for path in (tmp_path / "cache").rglob("blobs/*") if path.stat().st_size > 100_000)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.unlink()
    blob.write_bytes(content)  # another file than the one that was checked
    with pytest.raises(HubError, match="damaged on the way"):
        pull(tmp_path, local_files_only=offline)


def test_a_cache_that_cannot_be_written_is_read_and_checked_each_time(
    published: HubServer, tmp_path: Path, vector: TaskVector
) -> None:
    snapshot = Path(snapshot_download(REPO, cache_dir=tmp_path / "cache"))
    (snapshot.parent.parent / "checked").write_text("in the way of the notes")
    for _ in range(2):
        assert equal_vectors(pull(tmp_path, local_files_only=True), vector)
    blob = (snapshot / "task_vector.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(HubError, match="damaged on the way"):
        pull(tmp_path, local_files_only=True)


def test_a_checkpoint_damaged_on_the_way_is_thrown_away(
    hub: HubServer, tmp_path: Path, checkpoints: tuple[Path, Path]
) -> None:
    hub.store.add_folder("model", "user/tuned", checkpoints[1])
    hub.faults.append(Fault("GET /cdn", corrupt=True))
    with pytest.raises(HubError, match="damaged on the way"):
        TaskVector.from_checkpoints(checkpoints[0], "user/tuned", cache_dir=tmp_path)
    loaded = TaskVector.from_checkpoints(checkpoints[0], "user/tuned", cache_dir=tmp_path)
    assert equal_vectors(loaded, TaskVector.from_checkpoints(*checkpoints))


def test_a_stale_etag_does_not_bring_back_the_old_weights(
    published: HubServer, tmp_path: Path, other: TaskVector
) -> None:
    pull(tmp_path)
    old = published.store.get("model", REPO).head.files["task_vector.safetensors"].sha256
    push(other)
    published.faults.append(Fault("HEAD .*safetensors", headers={"X-Linked-Etag": f'"{old}"'}))
    with pytest.raises(HubError, match="damaged on the way"):
        pull(tmp_path)
    assert equal_vectors(pull(tmp_path), other)


def test_an_answer_of_another_size_is_refused(published: HubServer, tmp_path: Path, vector: TaskVector) -> None:
    published.faults.append(Fault("HEAD .*safetensors", headers={"X-Linked-Size": "1000"}))
    with pytest.raises(HubError, match="size"):
        pull(tmp_path)
    assert equal_vectors(pull(tmp_path), vector)


# -- rights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "message"),
    [("read-user", "write access"), ("write-other", "write access"), ("expired-user", "hf auth login")],
)
def test_a_push_without_rights_says_what_to_do(
    published: HubServer, other: TaskVector, token: str, message: str
) -> None:
    with pytest.raises(HubError, match=message):
        push(other, token=token)
    assert len(published.store.get("model", REPO).commits) == 2


def test_an_expired_token_cannot_pull_and_says_so(published: HubServer, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="expired; log in again"):
        pull(tmp_path, token="expired-user")


def test_a_gated_vector_says_how_to_get_access(published: HubServer, tmp_path: Path, vector: TaskVector) -> None:
    API.update_repo_settings(REPO, gated="auto")
    with pytest.raises(CheckpointError, match="gated: accept its terms"):
        pull(tmp_path, token="read-other")
    published.api.granted.add(("other", REPO))
    assert equal_vectors(pull(tmp_path, token="read-other"), vector)


# -- others at work ---------------------------------------------------------------------------------------------------


def test_a_repository_deleted_between_calls(published: HubServer, tmp_path: Path, vector: TaskVector) -> None:
    published.faults.append(Fault("HEAD .*safetensors", call=lambda: published.store.delete("model", REPO)))
    with pytest.raises(TaskVecError):
        pull(tmp_path)
    with pytest.raises(CheckpointError, match="check the name"):
        pull(tmp_path / "elsewhere")


def test_a_deleted_repository_is_told_and_lives_on_in_the_cache(
    published: HubServer, tmp_path: Path, vector: TaskVector
) -> None:
    pull(tmp_path)
    published.store.delete("model", REPO)
    with pytest.raises(CheckpointError, match="local_files_only=True"):
        pull(tmp_path)
    assert equal_vectors(pull(tmp_path, local_files_only=True), vector)


def test_a_branch_moved_between_calls_mixes_nothing(
    published: HubServer, tmp_path: Path, vector: TaskVector, other: TaskVector
) -> None:
    def move() -> None:
        push(other)

    published.faults.append(Fault("HEAD .*config.json", call=lambda: in_thread(move)))
    assert equal_vectors(pull(tmp_path), vector)
    assert equal_vectors(pull(tmp_path), other)


def test_a_branch_forced_elsewhere_between_calls_mixes_nothing(
    published: HubServer, tmp_path: Path, vector: TaskVector, other: TaskVector
) -> None:
    def force() -> None:  # the commit that was asked for is gone
        repo = published.store.get("model", REPO)
        old = repo.head.id
        push(other)
        del repo.commits[old]

    published.faults.append(Fault("HEAD .*config.json", call=lambda: in_thread(force)))
    with pytest.raises(CheckpointError, match="no such revision"):
        pull(tmp_path)
    assert equal_vectors(pull(tmp_path), other)


def in_thread(call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def test_of_two_pushes_at_once_one_wins_and_the_other_reports(
    published: HubServer, tmp_path: Path, base: CLIPModel, other: TaskVector
) -> None:
    third = tiny_vector(base, seed=3)
    published.faults.append(Fault("/commit/", call=lambda: in_thread(lambda: push(other))))
    with pytest.raises(HubError, match="another push came first"):
        push(third)
    assert equal_vectors(pull(tmp_path), other)
    push(third)
    assert equal_vectors(pull(tmp_path), third)


# -- this machine -----------------------------------------------------------------------------------------------------


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Makes every write beyond `size` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_a_pull_and_leaves_the_cache_usable(
    published: HubServer, tmp_path: Path, vector: TaskVector
) -> None:
    with disk_of(100_000), pytest.raises(HubError, match="File too large"):
        pull(tmp_path)
    assert equal_vectors(pull(tmp_path), vector)


def test_a_full_disk_stops_a_push_before_it_reaches_the_hub(hub: HubServer, vector: TaskVector) -> None:
    with disk_of(100_000), pytest.raises(OSError, match="File too large"):
        push(vector)
    assert hub.log == []


def test_a_full_disk_stops_a_save_and_leaves_the_old_vector(
    tmp_path: Path, vector: TaskVector, other: TaskVector
) -> None:
    vector.save_pretrained(tmp_path / "v")
    with disk_of(100_000), pytest.raises(OSError, match="File too large"):
        other.save_pretrained(tmp_path / "v")
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "v"), vector)
    assert os.listdir(tmp_path) == ["v"]


def test_a_kill_in_mid_download_leaves_the_cache_usable(
    published: HubServer, tmp_path: Path, vector: TaskVector
) -> None:
    child = PROCESSES.Process(target=pull, args=(tmp_path,))
    published.faults.append(Fault("GET /cdn", call=child.kill, delay=0.2))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(NotCachedError):
        pull(tmp_path, local_files_only=True)
    assert equal_vectors(pull(tmp_path), vector)


def test_a_token_is_in_no_log_and_in_no_error(
    published: HubServer, tmp_path: Path, vector: TaskVector, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "hf_" + "Secret0" * 5
    published.api.tokens[secret] = Token("user", write=False)
    library = logging.getLogger("huggingface_hub")
    library.addHandler(caplog.handler)
    errors = []
    with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, "huggingface_hub"):
        for faults in ([], [Fault("GET /api", status=401, times=9)], [Fault("", status=400, times=9)]):
            published.faults[:] = faults
            for call in (push, lambda vector, token: pull(tmp_path / str(len(errors)), token=token)):
                try:
                    call(vector, token=secret)
                except TaskVecError as error:
                    errors.append("".join(traceback.format_exception(error)))
    library.removeHandler(caplog.handler)
    assert len(errors) == 5  # a read token may pull
    assert caplog.text
    assert secret not in "".join(errors)
    assert secret not in caplog.text
