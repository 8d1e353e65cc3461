"""A server that is not as the Hub, or means harm: one clear error in a short time, and nothing leaves this machine."""

from __future__ import annotations

import email.utils
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from transformers import CLIPModel

from hf_taskvec.cards.find import list_epochs, list_vectors
from hf_taskvec.cards.publish import push_to_hub
from hf_taskvec.errors import CheckpointError, HubError, NotCachedError, TaskVecError
from hf_taskvec.hub import client, guard
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import equal_vectors, tiny_vector
from tests.hub_server import Fault, HubServer

REPO = "user/vector"


@pytest.fixture(scope="module")
def vector(base: CLIPModel) -> TaskVector:
    made = tiny_vector(base)
    return TaskVector(made.deltas, replace(made.info, task="mnist"))


@pytest.fixture
def published(hub: HubServer, vector: TaskVector) -> HubServer:
    push_to_hub(vector, REPO, token="write-user")
    hub.log.clear()
    return hub


def pull(tmp_path: Path, **settings: Any) -> TaskVector:
    return TaskVector.from_pretrained(REPO, cache_dir=tmp_path / "cache", **settings)


class Waits(list[float]):
    """The seconds that would have been waited."""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    made = Waits()
    monkeypatch.setattr(time, "sleep", made.append)
    return made


# -- odd answers ------------------------------------------------------------------------------------------------------

INFO = {"id": REPO, "sha": "a" * 40, "siblings": []}
ODD = [
    None,
    [],
    3,
    "x",
    {},
    {"id": 5},
    {**INFO, "siblings": 3},
    {**INFO, "siblings": [{}]},
    {**INFO, "siblings": [None]},
    {**INFO, "siblings": [{"rfilename": 7}]},
    {**INFO, "siblings": [{"rfilename": "README.md", "lfs": 3}]},
    {**INFO, "sha": "../../../victim"},
    {**INFO, "sha": 5},
    {**INFO, "sha": None},
    {**INFO, "sha": "\x1b[2J"},
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 200_000,
    b'{"a":' * 100_000,
]


@pytest.mark.parametrize("body", ODD, ids=lambda body: str(body)[:30])
def test_odd_json_about_a_repository_is_one_clear_error(
    published: HubServer, tmp_path: Path, vector: TaskVector, body: Any
) -> None:
    head = published.store.get("model", REPO).head
    victim = tmp_path / "victim"
    fault = Fault("GET /api/models/user/vector", body=b"null" if body is None else body, times=99)
    for call in (lambda: pull(tmp_path), lambda: push_to_hub(vector, REPO, token="write-user")):
        published.faults[:] = [replace(fault)]
        with pytest.raises(TaskVecError) as error:
            call()
        assert str(error.value).isprintable()
    with suppress(TaskVecError):  # an empty list may well be one
        assert list_epochs(REPO) == []
    assert published.store.get("model", REPO).head == head
    assert not victim.exists()


@pytest.mark.parametrize("skip", [0, 1])
def test_a_server_that_changes_its_mind_writes_nothing_elsewhere(
    published: HubServer, tmp_path: Path, vector: TaskVector, skip: int
) -> None:
    (tmp_path / "victim").write_text("mine")
    for sha in ("../../../../victim", "../../victim"):
        published.faults[:] = [Fault("GET /api/models/user/vector$", body={**INFO, "sha": sha}, skip=skip, times=9)]
        published.faults += [Fault("GET .*/tree/", body=[], times=9)]
        published.faults += [Fault("(GET|HEAD) .*/resolve/", headers={"X-Repo-Commit": sha}, times=99)]
        with suppress(TaskVecError):
            assert equal_vectors(pull(tmp_path), vector)
    assert (tmp_path / "victim").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["victim"]
    cached = {path.name for path in (tmp_path / "cache").iterdir()} if (tmp_path / "cache").is_dir() else set()
    assert cached <= {"models--user--vector", "CACHEDIR.TAG", ".locks"}
    published.faults.clear()
    assert equal_vectors(pull(tmp_path), vector)


def test_a_list_of_odd_entries_keeps_the_sane_ones(published: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    tags = ["hf-taskvec", "task-vector", "task:mnist", "task:\x1b[2J", 5]
    tags += ["base_model:finetune:user/base", "base_model:user/base"]
    odd: list[Any] = ["../../etc/passwd", "user/\x1b[31mred", "user", "user/a/b", "-rf/x", "a/..", 5]
    entries = [{"id": id, "tags": tags, "sha": "x"} for id in [*odd, REPO]]
    published.faults.append(Fault("GET /api/models", body=entries))
    (entry,) = list_vectors()
    assert (entry.repo_id, entry.base, entry.tasks, entry.commit) == (REPO, "user/base", ("mnist",), None)
    assert "7 entries of the Hub's list" in caplog.text


@pytest.mark.parametrize("body", [b"null", b"3", b"[3]", b"[null]", b'[{"id": null}]', b"[[", b'{"a": 1}'])
def test_an_odd_list_is_an_error_or_empty(published: HubServer, body: bytes) -> None:
    published.faults.append(Fault("GET /api/models", body=body))
    with suppress(TaskVecError):
        assert list_vectors() == []


def test_a_path_in_a_listing_that_leaves_the_folder_is_refused(published: HubServer, tmp_path: Path) -> None:
    config = {"rfilename": "task_vector_config.json", "size": 5, "blobId": "1" * 40}
    for name in ("../../../task_vector.safetensors", "/tmp/task_vector.safetensors", "task_vector\x1b[2J.safetensors"):
        body = {**INFO, "siblings": [config, {"rfilename": name, "size": 5, "blobId": "1" * 40}]}
        published.faults[:] = [Fault("GET /api/models", body=body, times=9)]
        with pytest.raises(TaskVecError):
            pull(tmp_path)
    assert not any("/resolve/" in line for line in published.log)


def test_a_configuration_of_absurd_size_is_refused_before_the_download(published: HubServer, tmp_path: Path) -> None:
    files = [{"rfilename": "task_vector.safetensors", "size": 65 << 20, "blobId": "1" * 40}]
    files += [{"rfilename": "task_vector_config.json", "size": 65 << 20, "blobId": "1" * 40}]
    published.faults.append(Fault("GET /api/models", body={**INFO, "siblings": files}, times=9))
    with pytest.raises(CheckpointError, match=r"config.json' has 68157440 bytes, which is no configuration"):
        pull(tmp_path)
    assert not any("/resolve/" in line for line in published.log)


def test_an_answer_larger_than_any_sane_one_is_refused_while_it_comes(
    published: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MAX_ANSWER_BYTES", 1 << 20)
    published.faults.append(Fault("GET /api/models", body=b" " * (2 << 20), times=9))
    with pytest.raises(HubError, match="answers with more than 1 MB"):
        pull(tmp_path)


def test_pages_without_an_end_come_to_one(published: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_ANSWERS", 20)
    link = {"Link": f'<{published.url}/api/models?cursor=0>; rel="next"'}
    published.faults.append(Fault("GET /api/models", body=[], headers=link, times=999))
    with pytest.raises(HubError, match="page after page"):
        list_vectors()
    assert len(published.log) < 40  # the client may ask again where a connection was slow


def test_a_link_to_the_next_page_may_be_relative(published: HubServer, vector: TaskVector) -> None:
    push_to_hub(vector, "user/second", token="write-user")
    published.api.page = 1
    published.faults.append(Fault("GET /api/models", headers={"Link": '</api/models?cursor=1>; rel="next"'}))
    try:
        assert [entry.repo_id for entry in list_vectors()] == ["user/second", REPO]
    finally:
        published.api.page = 100


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stranger() -> Any:
    """Another host, which writes down what it is told."""
    with HubServer() as server:
        server.api.tokens.clear()
        yield server


def heard(server: HubServer) -> list[str]:
    return [token for token in server.authorizations if token]


def test_a_token_does_not_follow_a_link_to_another_host(published: HubServer, stranger: HubServer) -> None:
    link = {"Link": f'<{stranger.url}/api/models>; rel="next"'}
    published.faults.append(Fault("GET /api/models", headers=link))
    list_vectors(token="read-user")
    assert stranger.log == ["GET /api/models"]
    assert heard(stranger) == []


def test_a_token_does_not_follow_an_upload_to_another_host(
    hub: HubServer, stranger: HubServer, vector: TaskVector
) -> None:
    hub.faults.append(Fault("info/lfs/objects/batch", replace=(f"{hub.url}/user", f"{stranger.url}/user")))
    with pytest.raises(TaskVecError):
        push_to_hub(vector, REPO, token="write-user")
    assert [line for line in stranger.log if "verify" in line]
    assert heard(stranger) == []


def test_a_token_does_not_follow_a_redirect_to_another_host(
    published: HubServer, stranger: HubServer, tmp_path: Path
) -> None:
    for match in ("GET /api/models/user/vector", "(GET|HEAD) .*config.json"):
        published.faults[:] = [Fault(match, status=302, headers={"Location": f"{stranger.url}/x"}, times=9)]
        with pytest.raises(TaskVecError):
            pull(tmp_path, token="read-user")
    assert stranger.log
    assert heard(stranger) == []


@pytest.mark.parametrize(
    ("match", "location"),
    [
        ("GET /api/models/user/vector", "/api/models/user/new?blobs=true"),
        ("HEAD .*config.json", "/user/new/resolve/main/task_vector_config.json"),
        ("GET .*config.json", "/user/new/resolve/main/task_vector_config.json"),
    ],
)
def test_a_redirect_on_the_same_host_may_be_relative(
    published: HubServer, tmp_path: Path, vector: TaskVector, match: str, location: str
) -> None:  # as after a repository was renamed
    published.store.repos["model", "user/new"] = published.store.get("model", REPO)
    published.faults.append(Fault(match, status=307, headers={"Location": location}))
    assert equal_vectors(pull(tmp_path), vector)
    assert any("user/new" in line for line in published.log)


# -- waits ------------------------------------------------------------------------------------------------------------


def answer(status: int, **headers: str) -> Exception:
    request = httpx2.Request("GET", "http://hub/api/models/x/y")
    response = httpx2.Response(status, headers=headers, request=request)
    return client.HfHubHTTPError("trouble", response=response)


def test_a_wait_is_as_long_as_the_server_asks_for() -> None:
    assert client.seconds_to_wait(answer(429, **{"Retry-After": "7"}), 1) == 7.0
    assert client.seconds_to_wait(answer(503, **{"Retry-After": "0"}), 1) == 0.0
    assert client.seconds_to_wait(answer(429, RateLimit='"api";r=0;t=55'), 1) == 55.0
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert client.seconds_to_wait(answer(429, **{"Retry-After": date}), 1) == pytest.approx(30, abs=2)
    for odd in ("²", "-5", "1e9", "soon", "9" * 40, ""):
        assert guard.retry_after({"Retry-After": odd}) is None
    assert client.seconds_to_wait(answer(429, **{"Retry-After": "soon"}), 2) == 2.0
    assert client.seconds_to_wait(answer(501), 1) is None


def test_the_waits_of_one_call_are_bounded_together_and_told(
    published: HubServer, tmp_path: Path, waits: Waits, caplog: pytest.LogCaptureFixture
) -> None:
    published.faults.append(Fault("GET /api/models", status=429, headers={"Retry-After": "40"}, times=9))
    with pytest.raises(HubError, match=r"limits the rate of requests \(429\); try again in 40 s"):
        pull(tmp_path)
    assert sum(waits) <= 60
    assert "limit on the rate of requests); trying again in 40 s" in caplog.text


@pytest.mark.parametrize("call", [lambda tmp_path: list_vectors(), lambda tmp_path: pull(tmp_path)])
@pytest.mark.parametrize("match", ["GET /api/models", "GET /cdn"])
def test_no_part_of_an_exchange_waits_for_an_hour(
    published: HubServer, tmp_path: Path, waits: Waits, call: Any, match: str
) -> None:
    published.faults.append(Fault(match, status=429, headers={"Retry-After": "3600"}, times=99))
    with suppress(HubError):  # the list has nothing to do with the other host
        call(tmp_path)
    assert sum(waits) <= 60


def test_waits_of_several_downloads_at_once_are_not_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    watch = guard.Guard()
    request = httpx2.Request("GET", "http://hub/x/y/resolve/main/z")
    limited = httpx2.Response(429, headers={"Retry-After": "25"}, request=request, content=b"")
    for _ in range(8):
        watch.on_response(limited)
    clock[0] += 30
    watch.on_response(limited)
    clock[0] += 30
    with pytest.raises(client.HfHubHTTPError):
        watch.on_response(limited)


def test_a_server_that_says_nothing_is_given_up(
    published: HubServer, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "ANSWER_TIMEOUT", 0.05)
    published.faults.append(Fault("GET /api/models", delay=0.3, times=9))
    with pytest.raises(HubError, match="lost or too slow"):
        list_vectors()


# -- clear answers ----------------------------------------------------------------------------------------------------


def test_a_clear_no_is_not_answered_from_the_cache(published: HubServer, tmp_path: Path, vector: TaskVector) -> None:
    pull(tmp_path)
    published.store.get("model", REPO).private = True
    for settings in ({}, {"token": False}, {"token": False, "force_download": True}):
        with pytest.raises(CheckpointError, match="local_files_only=True reads it"):
            pull(tmp_path, **settings)
    assert equal_vectors(pull(tmp_path, local_files_only=True), vector)
    assert equal_vectors(pull(tmp_path, token="read-user"), vector)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_a_refusal_is_told_though_a_copy_is_in_the_cache(published: HubServer, tmp_path: Path, status: int) -> None:
    pull(tmp_path)
    published.faults.append(Fault("GET /api/models", status=status, times=9))
    with pytest.raises(TaskVecError, match="earlier copy is in the cache"):
        pull(tmp_path)


def test_what_a_server_does_not_offer_is_not_tried_later(published: HubServer, vector: TaskVector) -> None:
    for status in (501, 405):
        published.faults[:] = [Fault("POST /api/models/user/vector/commit", status=status, times=9)]
        with pytest.raises(HubError, match=rf"does not offer this \({status}") as error:
            push_to_hub(tiny_vector(seed=4), REPO, token="write-user")
        assert "later" not in str(error.value)


def test_a_part_in_the_cache_is_told_as_a_part(published: HubServer, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    for name in ("README.md", "task_vector_config.json"):
        hf_hub_download(REPO, name, cache_dir=tmp_path / "cache")
        with pytest.raises(NotCachedError, match=r"only a part of user/vector; .* hf download user/vector"):
            pull(tmp_path, local_files_only=True)


def test_a_model_is_told_from_a_vector(hub: HubServer, tmp_path: Path, checkpoints: tuple[Path, Path]) -> None:
    hub.store.add_folder("model", REPO, checkpoints[0])
    hub.store.add_folder("model", REPO, tmp_path)
    for source in (REPO, checkpoints[0]):
        with pytest.raises(CheckpointError, match=rf"^{source} holds no task vector.*from_checkpoints"):
            TaskVector.from_pretrained(source, cache_dir=tmp_path / "cache")
    assert not any("/resolve/" in line for line in hub.log)
