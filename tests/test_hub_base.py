"""Bases from the Hub: they know their commit, and an error names its true cause."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from hf_taskvec import load_base
from hf_taskvec.errors import CheckpointError, NotCachedError, UnknownNameError
from hf_taskvec.vectors.vector import TaskVector
from tests.bases import same_base, save_tiny_base
from tests.hub_server import HubServer

API = HfApi(token="write-user")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture
def hosted(hub: HubServer, folder: Path) -> HubServer:
    hub.store.add_folder("model", "user/base", folder)
    return hub


def test_a_base_from_the_hub_knows_its_commit(hosted: HubServer, tmp_path: Path, folder: Path) -> None:
    first = hosted.store.get("model", "user/base").head.id
    API.create_tag("user/base", tag="v1")
    API.upload_file(path_or_fileobj=b"{}", path_in_repo="note.json", repo_id="user/base")
    head = hosted.store.get("model", "user/base").head.id
    assert head != first
    for revision, commit in ((None, head), ("v1", first), (first, first)):
        base = load_base("user/base", revision=revision, cache_dir=tmp_path)
        assert (base.name, base.revision) == ("user/base", commit)
        assert same_base(base, load_base(folder))
    asked = len(hosted.log)
    assert load_base("user/base", cache_dir=tmp_path, local_files_only=True).revision == head
    assert len(hosted.log) == asked


def test_a_private_base_needs_a_token_and_says_so(hub: HubServer, tmp_path: Path, folder: Path) -> None:
    hub.store.add_folder("model", "user/secret", folder, private=True)
    with pytest.raises(CheckpointError, match="log in"):
        load_base("user/secret", cache_dir=tmp_path)
    assert load_base("user/secret", token="read-user", cache_dir=tmp_path).name == "user/secret"


def test_a_base_that_is_not_there_is_no_matter_of_being_offline(hosted: HubServer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"user/none .*check the name") as gone:
        load_base("user/none", cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="no such revision") as revision:
        load_base("user/base", revision="v9", cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"model.pt is neither a folder nor a repository"):
        load_base("model.pt", cache_dir=tmp_path)
    for error in (gone, revision):
        assert "offline" not in str(error.value)


def test_a_base_with_pickled_weights_only_is_refused_for_that(hub: HubServer, tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"x")
    hub.store.add_folder("model", "user/old", tmp_path / "old")
    for source in ("user/old", tmp_path / "old"):
        with pytest.raises(CheckpointError, match="Pickled weights"):
            load_base(source, cache_dir=tmp_path / "cache")


def test_a_vector_given_as_a_base_is_named(hub: HubServer, tmp_path: Path) -> None:
    TaskVector({"w": torch.ones(2)}).save_pretrained(tmp_path / "vector")
    hub.store.add_folder("model", "user/vector", tmp_path / "vector")
    for source in ("user/vector", tmp_path / "vector"):
        with pytest.raises(CheckpointError, match=r"holds a task vector, not a model; use TaskVector\.from_pretrained"):
            load_base(source, cache_dir=tmp_path / "cache")


OFFLINE = """
import sys
from hf_taskvec import load_base
from hf_taskvec.errors import NotCachedError
print(load_base("user/base", cache_dir=sys.argv[1]).revision)
try:
    load_base("user/other", cache_dir=sys.argv[1])
except NotCachedError as error:
    print(error)
"""


def test_offline_a_base_comes_from_the_cache_or_is_told_to_be_fetched(hosted: HubServer, tmp_path: Path) -> None:
    commit = load_base("user/base", cache_dir=tmp_path).revision
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == commit
    assert "no folder 'user/other'" in second
    assert "hf download user/other" in second


@pytest.mark.parametrize("read", [load_base, TaskVector.from_pretrained, TaskVector.from_adapter])
def test_a_path_that_is_no_folder_is_told_as_one(hub: HubServer, tmp_path: Path, read: object) -> None:
    (tmp_path / "model.pt").write_bytes(b"x")
    for source, message in ((tmp_path / "model.pt", "is a file"), (tmp_path / "none", "neither a folder nor a")):
        with pytest.raises(CheckpointError, match=message):
            read(source)  # type: ignore[operator]
    assert hub.log == []


def test_a_local_base_can_be_given_the_name_it_has_on_the_hub(hosted: HubServer, tmp_path: Path, folder: Path) -> None:
    assert load_base(folder).name == "base"
    assert load_base(folder, base_name="openai/clip-vit-base-patch32").name == "openai/clip-vit-base-patch32"
    with pytest.raises(ValueError, match="base_name is for folders"):
        load_base("user/base", base_name="openai/clip-vit-base-patch32", cache_dir=tmp_path)
    with pytest.raises(ValueError, match="base_name must be a Hub id"):
        load_base(folder, base_name="../clip")


def test_unknown_keywords_of_load_base_are_refused(folder: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'token'"):
        load_base(folder, tokn="x")


def test_local_files_only_of_a_base_that_was_never_fetched(hosted: HubServer, tmp_path: Path) -> None:
    with pytest.raises(NotCachedError, match="hf download user/base"):
        load_base("user/base", cache_dir=tmp_path, local_files_only=True)


def test_embedded_bases_are_found_by_their_names_without_a_network(hub: HubServer) -> None:
    assert same_base(load_base("hf-taskvec/tiny-clip"), load_base())
    assert load_base("hf-taskvec/feature-clip").name == "hf-taskvec/feature-clip"
    assert hub.log == []
