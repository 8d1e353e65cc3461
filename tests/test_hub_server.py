"""The test Hub answers the real clients as the Hub does: `huggingface_hub` and `datasets` over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub_server import HubServer

API = HfApi(token="write-user")
TEXT, LARGE = b"hello\n", os.urandom(300_000)


@pytest.fixture
def repo(hub: HubServer) -> str:
    API.create_repo("user/repo")
    API.create_commit(
        "user/repo",
        [CommitOperationAdd("a/text.txt", TEXT), CommitOperationAdd("large.safetensors", LARGE)],
        commit_message="two files",
    )
    return "user/repo"


def test_files_come_back_from_commit_to_download(repo: str, tmp_path: Path) -> None:
    for name, content in (("a/text.txt", TEXT), ("large.safetensors", LARGE)):
        path = hf_hub_download(repo, name, cache_dir=tmp_path)
        assert Path(path).read_bytes() == content


def test_tree_infos_and_commits_agree(repo: str) -> None:
    info = API.model_info(repo, files_metadata=True)
    files = {item.path: item for item in API.list_repo_tree(repo, recursive=True) if hasattr(item, "size")}
    assert set(files) == {".gitattributes", "a/text.txt", "large.safetensors"}
    assert {sibling.rfilename for sibling in info.siblings or []} == set(files)
    assert files["large.safetensors"].lfs is not None
    assert files["a/text.txt"].lfs is None
    assert [item.path for item in API.list_repo_tree(repo)] == [".gitattributes", "large.safetensors", "a"]
    assert [item.path for item in API.get_paths_info(repo, ["a/text.txt", "b"])] == ["a/text.txt"]
    assert [commit.title for commit in API.list_repo_commits(repo)] == ["two files", "initial commit"]
    assert API.list_repo_commits(repo)[0].commit_id == info.sha


def test_multipart_uploads_are_put_together(hub: HubServer, repo: str, tmp_path: Path) -> None:
    hub.api.multipart, content = 100_000, os.urandom(250_001)
    API.upload_file(path_or_fileobj=content, path_in_repo="parts.bin", repo_id=repo)
    assert sum(line.startswith("PUT /lfs/") for line in hub.log) == 3 + 1
    assert Path(hf_hub_download(repo, "parts.bin", cache_dir=tmp_path)).read_bytes() == content


def test_a_file_that_is_here_is_not_uploaded_again(hub: HubServer, repo: str) -> None:
    before = sum(line.startswith("PUT") for line in hub.log)
    API.upload_file(path_or_fileobj=LARGE, path_in_repo="copy.safetensors", repo_id=repo)
    assert sum(line.startswith("PUT") for line in hub.log) == before


def test_branches_tags_and_pull_requests_name_commits(repo: str) -> None:
    first = API.model_info(repo).sha
    API.create_tag(repo, tag="v1")
    API.create_branch(repo, branch="dev/new")
    API.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=repo, revision="dev/new")
    request = API.upload_file(path_or_fileobj=b"y", path_in_repo="y", repo_id=repo, create_pr=True)
    assert request.pr_url is not None
    refs = API.list_repo_refs(repo, include_pull_requests=True)
    assert [branch.name for branch in refs.branches] == ["main", "dev/new"]
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", first)]
    assert API.file_exists(repo, "x", revision="dev/new")
    assert API.file_exists(repo, "y", revision="refs/pr/1")
    assert API.model_info(repo).sha == first
    API.delete_tag(repo, tag="v1")
    API.delete_branch(repo, branch="dev/new")
    assert len(API.list_repo_refs(repo).branches) == 1


def test_deleting_files_and_repositories(repo: str) -> None:
    API.create_commit(
        repo, [CommitOperationDelete("a/"), CommitOperationDelete("large.safetensors")], commit_message="-"
    )
    assert API.list_repo_files(repo) == [".gitattributes"]
    API.delete_repo(repo)
    with pytest.raises(RepositoryNotFoundError):
        API.model_info(repo)


def test_what_is_not_there_has_the_right_error(repo: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(repo, "nothing", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(repo, "a/text.txt", revision="nowhere", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        API.model_info("user/nothing")


def test_a_commit_on_an_old_parent_is_refused(repo: str) -> None:
    parent = API.model_info(repo).sha
    API.upload_file(path_or_fileobj=b"1", path_in_repo="x", repo_id=repo, parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since"):
        API.upload_file(path_or_fileobj=b"2", path_in_repo="x", repo_id=repo, parent_commit=parent)


@pytest.mark.parametrize(("token", "message"), [("read-user", "write token"), ("write-other", "write token")])
def test_a_token_without_rights_cannot_write(repo: str, token: str, message: str) -> None:
    with pytest.raises(HfHubHTTPError, match=message):
        API.upload_file(path_or_fileobj=b"1", path_in_repo="x", repo_id=repo, token=token)


def test_an_expired_token_is_refused_everywhere(repo: str) -> None:
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        API.model_info(repo, token="expired-user")
    assert API.whoami("write-user")["name"] == "user"


def test_a_private_repository_is_seen_by_its_owner_only(repo: str, tmp_path: Path) -> None:
    API.update_repo_settings(repo, private=True)
    assert API.model_info(repo).private
    for token in (False, "write-other"):
        with pytest.raises(RepositoryNotFoundError):
            API.model_info(repo, token=token)
    assert hf_hub_download(repo, "a/text.txt", token="read-user", cache_dir=tmp_path)


def test_a_gated_repository_shows_its_tree_and_guards_its_files(hub: HubServer, repo: str, tmp_path: Path) -> None:
    API.update_repo_settings(repo, gated="auto")
    assert "large.safetensors" in API.list_repo_files(repo, token="read-other")
    for token in (False, "read-other"):
        with pytest.raises(GatedRepoError):
            hf_hub_download(repo, "large.safetensors", token=token, cache_dir=tmp_path)
    hub.api.granted.add(("other", repo))
    assert hf_hub_download(repo, "large.safetensors", token="read-other", cache_dir=tmp_path)


def test_models_are_listed_by_tag_author_and_page(hub: HubServer) -> None:
    hub.api.page = 2
    for index in range(5):
        API.create_repo(f"user/m{index}")
        card = f"---\ntags:\n- task-vector\nlibrary_name: lib\nbase_model: user/base{index % 2}\n---\n"
        API.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=f"user/m{index}")
    assert [info.id for info in API.list_models(filter="task-vector")] == [f"user/m{index}" for index in range(5)]
    assert [i.id for i in API.list_models(filter=["lib", "base_model:user/base1"])] == ["user/m1", "user/m3"]
    assert list(API.list_models(author="other")) == []
    hub.api.page = 100


def test_a_card_that_breaks_the_rules_is_refused(repo: str) -> None:
    for head in ("license: free-beer", "base_model: a b", "tags: {a: 1}", "a: [", "model-index: [{name: 1}]"):
        with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
            API.upload_file(path_or_fileobj=f"---\n{head}\n---\n".encode(), path_in_repo="README.md", repo_id=repo)


def test_collections_hold_models(repo: str) -> None:
    made = API.create_collection("Suite mini", namespace="user")
    assert API.create_collection("Suite mini", namespace="user", exists_ok=True).slug == made.slug
    for _ in range(2):
        API.add_collection_item(made.slug, repo, "model", note="first", exists_ok=True)
    assert [(item.item_id, item.note) for item in API.get_collection(made.slug).items] == [(repo, "first")]


def test_the_file_system_reads_ranges(repo: str) -> None:
    with HfFileSystem(token="read-user").open(f"{repo}/large.safetensors", "rb", block_size=1000) as file:
        file.seek(123_456)
        assert file.read(10) == LARGE[123_456:123_466]


def test_load_dataset_runs_over_http(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "toy" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        Dataset.from_dict({"x": [1, 2, 3], "label": [0, 1, 0]}).to_parquet(tmp_path / f"toy/data/{split}-0.parquet")
    hub.store.add_folder("dataset", "user/toy", tmp_path / "toy")
    loaded = load_dataset("user/toy", cache_dir=str(tmp_path / "cache"))
    assert {split: rows["x"] for split, rows in loaded.items()} == {"train": [1, 2, 3], "test": [1, 2, 3]}
    streamed = load_dataset("user/toy", split="test", streaming=True)
    assert [row["label"] for row in streamed] == [0, 1, 0]


def test_the_server_starts_by_hand_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.hub_server", "--port", "0"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        cwd=root,
        env={**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        endpoint = line.split(" at ")[1].split(";")[0]
        assert HfApi(endpoint, token="write-user").whoami()["name"] == "user"
        assert list(tmp_path.iterdir())
        process.terminate()
    assert not list(tmp_path.iterdir())
