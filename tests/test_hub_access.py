"""The keywords of reading and publishing: checked in one place, and the token reaches every exchange."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import CLIPModel

from hf_taskvec.cards.publish import push_model_to_hub, push_to_hub
from hf_taskvec.errors import CheckpointError, UnknownNameError
from hf_taskvec.hub.access import HubAccess, PushOptions, check_revision
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import tiny_vector
from tests.hub_server import HubServer


@pytest.mark.parametrize(
    ("call", "meant"),
    [
        (lambda vector: TaskVector.from_pretrained("user/vector", tokn="x"), "token"),
        (lambda vector: TaskVector.from_checkpoints("user/a", "user/b", local_file_only=True), "local_files_only"),
        (lambda vector: TaskVector.from_adapter("user/a", cachedir="x"), "cache_dir"),
        (lambda vector: vector.save_checkpoint("user/a", "out", force_downloads=True), "force_download"),
        (lambda vector: push_to_hub(vector, "user/vector", privat=True), "private"),
        (lambda vector: push_model_to_hub(vector, "user/vector", scaling=1.0, create_pull=True), "create_pr"),
    ],
)
def test_an_unknown_keyword_is_refused_with_the_nearest_one(hub: HubServer, call: object, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{meant}'"):
        call(tiny_vector())  # type: ignore[operator]
    assert hub.log == []


def test_a_value_of_another_type_is_refused() -> None:
    with pytest.raises(TypeError, match="token must be str or bool or None, got int"):
        HubAccess.of({"token": 5})
    with pytest.raises(TypeError, match="private must be bool or None, got str"):
        PushOptions.of({"private": "yes"})


def test_a_token_is_in_no_repr() -> None:
    assert "secret" not in f"{HubAccess(token='secret')}{PushOptions(token='secret')}"


@pytest.mark.parametrize(
    "name", ["main", "v1.0", "refs/pr/3", "feature/of-mine_2", "a" * 40, "f3a9d02", "größe", "a-b.c/d"]
)
def test_names_of_branches_tags_and_commits_are_revisions(name: str) -> None:
    check_revision(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../../victim",
        "a/../b",
        "a..b",
        "/etc/passwd",
        "a//b",
        ".hidden",
        "a/.git",
        "a.lock",
        "a b",
        "a\n",
        "a\\b",
        "a:b",
        "-f",
        "a?b",
        "a*",
        "a~1",
        "a^",
        "a@{1}",
        "a/",
        "a.",
        "\x1b[2J",
        "a" * 300,
        "a\u202eb",
    ],
)
def test_what_leads_elsewhere_is_no_revision(hub: HubServer, tmp_path: Path, name: str) -> None:
    for read in (TaskVector.from_pretrained, TaskVector.from_adapter):
        with pytest.raises(CheckpointError, match="revision must be the name"):
            read("user/vector", revision=name, cache_dir=tmp_path)
    with pytest.raises(CheckpointError, match="revision must be the name"):
        push_to_hub(tiny_vector(), "user/vector", revision=name, token="write-user")
    assert hub.log == []


def test_the_token_reads_a_private_base(
    hub: HubServer, tmp_path: Path, base: CLIPModel, checkpoints: tuple[Path, Path]
) -> None:
    hub.store.add_folder("model", "user/base", checkpoints[0], private=True)
    vector = tiny_vector(base)
    vector = TaskVector(vector.deltas, replace(vector.info, base="user/base", task="mnist"))
    vector.save_checkpoint("user/base", tmp_path / "out", token="read-user", cache_dir=tmp_path / "cache")
    assert CLIPModel.from_pretrained(tmp_path / "out").config.projection_dim == base.config.projection_dim
    push_model_to_hub(vector, "user/model", scaling=1.0, token="write-user")
    assert "model.safetensors" in hub.store.get("model", "user/model").head.files
