"""Publishing: nothing is made before it can succeed, nothing stale stays, and nothing leaves that should not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import CLIPModel

from hf_taskvec import load_base, merge
from hf_taskvec.cards import CARD_NAME
from hf_taskvec.cards.find import list_epochs, list_vectors
from hf_taskvec.cards.publish import create_collection, push_model_to_hub, push_series_to_hub, push_to_hub
from hf_taskvec.errors import CheckpointError, HubError, IncompatibleVectorsError
from hf_taskvec.evaluation.report import Report, TaskResult
from hf_taskvec.hub.access import PushOptions
from hf_taskvec.hub.push import push_folder
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import equal_vectors, tiny_vector
from tests.hub_server import Fault, HubServer

REPO = "user/vector"
SECRET = "hf_" + "a1B2c3D4" * 4
REPORT = Report("vector", "test", (TaskResult("mnist", 0.9, 100),), scaling=1.0)


@pytest.fixture(scope="module")
def vector(base: CLIPModel) -> TaskVector:
    made = tiny_vector(base)
    return replace(made, info=replace(made.info, base="user/base", task="mnist", kind="fine-tuned"))


@pytest.fixture(autouse=True)
def based(hub: HubServer) -> HubServer:
    hub.store.create("model", "user/base")
    return hub


def push(vector: TaskVector, repo_id: str = REPO, **options: Any) -> str:
    return push_to_hub(vector, repo_id, **{"token": "write-user", **options})


def files(hub: HubServer, repo_id: str = REPO) -> set[str]:
    return set(hub.store.get("model", repo_id).head.files) - {".gitattributes"}


def card_data(repo_id: str = REPO) -> dict[str, Any]:
    return yaml.safe_load(ModelCard.load(repo_id).content.split("---\n")[1])


def repositories(hub: HubServer) -> list[str]:
    return sorted(id for _, id in hub.store.repos)


# -- where to ---------------------------------------------------------------------------------------------------------


def test_a_name_without_namespace_is_the_users_own(hub: HubServer, tmp_path: Path, vector: TaskVector) -> None:
    url = push(vector, "mine")
    assert url.startswith(f"{hub.url}/user/mine/commit/")
    assert equal_vectors(TaskVector.from_pretrained("user/mine", cache_dir=tmp_path), vector)
    assert 'from_pretrained("user/mine")' in ModelCard.load("user/mine").content
    push_series_to_hub([replace(vector, info=replace(vector.info, epochs=1.0))], "run", token="write-user")
    assert list_epochs("user/run") == [1.0]


def test_without_a_token_nothing_is_made_and_the_remedy_is_told(hub: HubServer, vector: TaskVector) -> None:
    for repo_id in ("mine", REPO):
        with pytest.raises(HubError, match="hf auth login"):
            push(vector, repo_id, token=False)
    assert repositories(hub) == ["user/base"]


def test_a_vector_publishes_itself(hub: HubServer, tmp_path: Path, vector: TaskVector) -> None:
    url = vector.push_to_hub("mine", token="write-user", report=REPORT, licence="mit")
    assert url.startswith(f"{hub.url}/user/mine/commit/")
    assert files(hub, "user/mine") >= {"report.json", "task_vector.safetensors"}
    assert equal_vectors(TaskVector.from_pretrained("user/mine", cache_dir=tmp_path), vector)


METHOD = """
import torch
from hf_taskvec.vectors.vector import TaskVector
print(TaskVector({"w": torch.ones(2)}).push_to_hub("mine"))
"""


def test_a_vector_publishes_itself_wherever_it_was_imported_from(hub: HubServer) -> None:
    run = subprocess.run(
        [sys.executable, "-c", METHOD],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_TOKEN": "write-user"},
    )
    assert run.returncode == 0, run.stderr
    assert "/user/mine/commit/" in run.stdout


OFFLINE = """
import torch
from hf_taskvec import TaskVector, list_vectors, push_to_hub
from hf_taskvec.errors import TaskVecError
for call in (lambda: push_to_hub(TaskVector({"w": torch.ones(2)}), "user/x", token="t"), list_vectors):
    try:
        call()
    except TaskVecError as error:
        print(type(error).__name__, error)
"""


def test_offline_a_push_and_a_list_are_not_told_to_be_downloaded() -> None:
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == "HubError pushing to user/x needs the Hub, and HF_HUB_OFFLINE is set; do it again while online"
    assert second.startswith("NotCachedError listing task vectors needs the Hub, and HF_HUB_OFFLINE is set")


# -- nothing before it can succeed ------------------------------------------------------------------------------------


def test_a_licence_that_the_hub_does_not_know_is_refused_before_anything_is_made(
    hub: HubServer, vector: TaskVector
) -> None:
    with pytest.raises(HubError, match=r"refuses the card, so nothing was pushed.*license"):
        push(vector, licence="do what you want")
    assert repositories(hub) == ["user/base"]


def test_a_hub_that_checks_no_cards_takes_the_push(hub: HubServer, vector: TaskVector) -> None:
    hub.faults.append(Fault("POST /api/validate-yaml", status=404))
    push(vector)
    assert "task_vector.safetensors" in files(hub)


def test_a_new_repository_that_stays_empty_is_told(hub: HubServer, vector: TaskVector) -> None:
    hub.faults.append(Fault("POST .*/commit/", status=403, times=9))
    with pytest.raises(HubError, match=r"new repository user/vector is still empty: push again"):
        push(vector)
    hub.faults[:] = [Fault("POST .*/commit/", status=403, times=9)]
    with pytest.raises(HubError) as error:  # it is not new any more
        push(vector)
    assert "still empty" not in str(error.value)


def test_a_vector_that_changes_nothing_is_not_published_unless_that_is_wanted(
    hub: HubServer, vector: TaskVector
) -> None:
    zero = vector * 0.0
    for call in (
        lambda: push(zero),
        lambda: push_model_to_hub(zero, REPO, scaling=1.0, token="write-user"),
        lambda: push_series_to_hub(
            [replace(v, info=replace(v.info, epochs=float(n))) for n, v in enumerate((zero, vector), start=1)],
            REPO,
            token="write-user",
        ),
    ):
        with pytest.raises(IncompatibleVectorsError, match="allow_zero=True"):
            call()
    assert [line for line in hub.log if REPO in line] == []
    push(zero, allow_zero=True)
    assert "task_vector.safetensors" in files(hub)


def test_private_false_does_not_hide_that_a_repository_stays_private(
    hub: HubServer, vector: TaskVector, caplog: pytest.LogCaptureFixture
) -> None:
    push(vector, private=True)
    push(vector * 2.0, private=False)
    assert "user/vector exists and stays private" in caplog.text


# -- nothing stale ----------------------------------------------------------------------------------------------------


def test_a_vector_pushed_over_a_series_leaves_no_epoch_of_it(hub: HubServer, vector: TaskVector) -> None:
    series = [replace(vector * float(n), info=replace(vector.info, epochs=float(n))) for n in (1, 2, 3)]
    push_series_to_hub(series, REPO, token="write-user", report=REPORT)
    assert list_epochs(REPO) == [1.0, 2.0, 3.0]
    push(vector)
    assert list_epochs(REPO) == []
    assert files(hub) == {CARD_NAME, "task_vector.safetensors", "task_vector_config.json"}


def test_a_pull_request_can_be_pushed_to_again(hub: HubServer, tmp_path: Path, vector: TaskVector) -> None:
    push(vector)
    main = hub.store.get("model", REPO).head.id
    push(vector * 2.0, create_pr=True)
    push(vector * 3.0, revision="refs/pr/1")
    assert hub.store.get("model", REPO).head.id == main
    pulled = TaskVector.from_pretrained(REPO, revision="refs/pr/1", cache_dir=tmp_path)
    assert equal_vectors(pulled, vector * 3.0)


def test_files_of_others_in_the_repository_stay(hub: HubServer, tmp_path: Path, vector: TaskVector) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "data.csv").write_text("1,2")
    for name in ("task_vector_notes", "epoch-1/task_vector_notes"):  # a glob of files looks into no folder
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text("mine")
    hub.store.add_folder("model", REPO, tmp_path)
    push(vector)
    kept = {"notes/a.txt", "data.csv", "task_vector_notes/a.txt", "epoch-1/task_vector_notes/a.txt"}
    assert files(hub) >= kept


def test_a_vector_pulled_and_pushed_again_has_the_same_card_and_configuration(
    hub: HubServer, tmp_path: Path, vector: TaskVector
) -> None:
    push(vector, licence="mit", tags=["birds"], language="en")
    first = hub.store.get("model", REPO).head.files
    push(TaskVector.from_pretrained(REPO, cache_dir=tmp_path))
    second = hub.store.get("model", REPO).head.files
    assert first[CARD_NAME] == second[CARD_NAME]
    name = "task_vector_config.json"
    old, new = (json.loads(hub.store.blob(files[name].sha256).read_bytes()) for files in (first, second))
    assert {**new, "layer_norms": None} == {**old, "layer_norms": None}  # sums in another order


# -- nothing that should not leave ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["note.txt", "a.yaml", "LICENSE", "x.csv", ".env", "deep/run.log", "a.json", "b.md"])
@pytest.mark.parametrize("text", ["token: {}", "x{}", "_{}", "export HF_TOKEN={} # mine"])
def test_a_token_in_any_text_file_is_found(hub: HubServer, tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.format(SECRET))
    with pytest.raises(HubError, match="holds an access token") as error:
        push_folder(tmp_path, REPO, PushOptions(token="write-user"))
    assert SECRET not in str(error.value)
    assert REPO not in "".join(hub.log)


@pytest.mark.parametrize(
    "content",
    [
        SECRET.encode("utf-16"),
        b"\xff\xfe\xe9 " + SECRET.encode(),
        b"x" * (8 << 20) + SECRET.encode(),
        b"y" * ((8 << 20) - 9) + SECRET.encode(),
        "é my token is write-user".encode("latin-1"),
    ],
    ids=["utf-16", "undecodable", "late", "across pieces", "the token that is used"],
)
def test_a_token_is_found_whatever_the_encoding_and_place(hub: HubServer, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(HubError, match="holds an access token"):
        push_folder(tmp_path, REPO, PushOptions(token="write-user"))


def test_text_that_is_no_utf_8_is_published_as_it_is(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"name": "caf\xe9", "hf_taskvec": "hf_hub"}')
    push_folder(tmp_path, REPO, PushOptions(token="write-user"))
    assert files(hub) == {"a.json"}


def test_a_token_in_the_card_the_weights_header_or_the_message_is_found(
    hub: HubServer, tmp_path: Path, vector: TaskVector
) -> None:
    for options in ({"tags": [SECRET]}, {"commit_message": f"Add {SECRET}"}, {"licence": SECRET}):
        with pytest.raises(HubError, match="holds an access token"):
            push(vector, **options)
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors", metadata={"note": SECRET})
    with pytest.raises(HubError, match=r"w.safetensors holds an access token"):
        push_folder(tmp_path, REPO, PushOptions(token="write-user"))
    assert REPO not in "".join(hub.log)


def test_what_links_point_to_is_not_published(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "id_rsa").write_text("key")
    for name, target in (("a.txt", tmp_path / "secret" / "id_rsa"), ("b", tmp_path / "secret"), ("c", tmp_path / "no")):
        folder = tmp_path / f"folder-{name}"
        folder.mkdir()
        (folder / "plain.txt").write_text("x")
        (folder / name).symlink_to(target)
        with pytest.raises(CheckpointError, match="link that leaves"):
            push_folder(folder, REPO, PushOptions(token="write-user"))
    pipe = tmp_path / "pipes"
    pipe.mkdir()
    os.mkfifo(pipe / "fifo")
    with pytest.raises(CheckpointError, match="no regular file"):
        push_folder(pipe, REPO, PushOptions(token="write-user"))
    assert REPO not in "".join(hub.log)


def test_version_control_and_caches_are_left_out(hub: HubServer, tmp_path: Path) -> None:
    for name in (".git/config", ".cache/huggingface/x", "a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    push_folder(tmp_path, REPO, PushOptions(token="write-user"))
    assert files(hub) == {"a.txt"}


# -- what the card is told --------------------------------------------------------------------------------------------


def test_licence_tags_and_language_stand_in_card_and_configuration(
    hub: HubServer, tmp_path: Path, vector: TaskVector
) -> None:
    push(vector, licence="cc-by-4.0", tags=["birds", "ornithology"], language=["en", "de"])
    data = card_data()
    assert (data["license"], data["language"]) == ("cc-by-4.0", ["en", "de"])
    assert {"birds", "ornithology", "task-vector"} <= set(data["tags"])
    info = TaskVector.from_pretrained(REPO, cache_dir=tmp_path).info
    assert (info.license, info.tags, info.language) == ("cc-by-4.0", ("birds", "ornithology"), ("en", "de"))
    push_model_to_hub(vector, "user/model", scaling=1.0, base=save(vector, tmp_path), token="write-user", licence="mit")
    assert card_data("user/model")["license"] == "mit"


def save(vector: TaskVector, tmp_path: Path) -> Path:
    from tests.helpers import tiny_clip

    tiny_clip().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_vector_of_a_local_base_is_told_and_can_be_given_the_bases_name(
    hub: HubServer, tmp_path: Path, vector: TaskVector, caplog: pytest.LogCaptureFixture
) -> None:
    for base in ("base", None, "out/base", "j4/tinybase"):
        caplog.clear()
        push(replace(vector, info=replace(vector.info, base=base)))
        assert "Pass base_name=" in caplog.text
    assert list_vectors(base_model="user/base") == []
    caplog.clear()
    push(replace(vector, info=replace(vector.info, base="base")), base_name="user/base")
    assert caplog.text == ""
    assert [entry.repo_id for entry in list_vectors(base_model="user/base")] == [REPO]
    assert TaskVector.from_pretrained(REPO, cache_dir=tmp_path).info.base == "user/base"
    commit = "c" * 40  # of the base that the provenance names, and of no other
    for name, kept in (("user/other", None), ("user/base", commit)):
        push(replace(vector, info=replace(vector.info, base="user/base", base_revision=commit)), base_name=name)
        assert TaskVector.from_pretrained(REPO, cache_dir=tmp_path).info.base_revision == kept
    with pytest.raises(CheckpointError, match="base_name must be a Hub id"):
        push(vector, base_name="../base")


def test_a_pulled_vector_knows_where_from_and_a_merge_of_it_links_there(
    hub: HubServer, tmp_path: Path, vector: TaskVector
) -> None:
    push(vector)
    head = hub.store.get("model", REPO).head.id
    pulled = TaskVector.from_pretrained(REPO, cache_dir=tmp_path / "cache")
    assert (pulled.info.repo_id, pulled.info.repo_commit) == (REPO, head)
    pulled.save_pretrained(tmp_path / "saved")
    assert TaskVector.from_pretrained(tmp_path / "saved").info.repo_id == REPO
    push(merge([pulled, vector], "average"), "user/merged")
    card = ModelCard.load("user/merged").content
    assert f"| [mnist](https://huggingface.co/user/vector/tree/{head}) |" in card
    assert "| mnist |" in card  # the other was never pulled
    again = TaskVector.from_pretrained("user/merged", cache_dir=tmp_path / "cache")
    assert (again.info.repo_id, again.info.parents[0].repo_id, again.info.parents[1].repo_id) == (
        "user/merged",
        REPO,
        None,
    )


def test_a_link_is_made_of_sane_names_only(vector: TaskVector) -> None:
    from hf_taskvec.cards import render_vector_card

    for repo_id, commit in (("x](http://evil)", "a" * 40), (REPO, "main](http://evil)"), (REPO, None)):
        parent = replace(vector.info, repo_id=repo_id, repo_commit=commit)
        card = render_vector_card(VectorInfo(kind="merged", method="average", parents=(parent,)), repo_id="user/x")
        assert "evil" not in card
        assert "huggingface.co/user" not in card


def test_a_vector_of_the_embedded_base_needs_no_warning(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    base = load_base()
    made = TaskVector.from_models(base.model, base.model)
    deltas = {name: made.deltas[name] + 1e-3 for name in made.deltas.shapes}
    caplog.clear()
    push(TaskVector(deltas, replace(made.info, base=base.name)))
    assert caplog.text == ""


# -- another Hub ------------------------------------------------------------------------------------------------------


def test_a_hub_that_leaves_out_what_is_optional_serves_and_takes_vectors(
    hub: HubServer, tmp_path: Path, vector: TaskVector
) -> None:  # no sizes, no hashes, no dates, no privacy, no redirects, and a list without filters
    hub.api.bare = True
    push(vector)
    push(vector * 2.0)
    assert equal_vectors(TaskVector.from_pretrained(REPO, cache_dir=tmp_path), vector * 2.0)
    assert equal_vectors(TaskVector.from_pretrained(REPO, cache_dir=tmp_path, local_files_only=True), vector * 2.0)
    hub.store.create("model", "user/bert")
    assert [entry.repo_id for entry in list_vectors()] == [REPO]
    assert list_vectors(task="svhn") == []
    assert list_vectors(author="other") == []
    assert [entry.repo_id for entry in list_vectors(base_model="user/base", task="mnist", author="user")] == [REPO]


def test_a_vector_goes_up_in_parts_where_the_hub_asks_for_it(
    hub: HubServer, tmp_path: Path, vector: TaskVector
) -> None:
    hub.api.multipart = 100_000
    push(vector)
    assert sum(line.startswith("PUT /lfs") for line in hub.log) == 4
    assert equal_vectors(TaskVector.from_pretrained(REPO, cache_dir=tmp_path), vector)


def test_a_list_in_pages_is_whole(hub: HubServer, vector: TaskVector) -> None:
    for name in ("a", "b", "c"):
        push(vector, f"user/{name}")
    hub.api.page = 1
    try:
        assert [entry.repo_id for entry in list_vectors()] == ["user/a", "user/b", "user/c"]
    finally:
        hub.api.page = 100


def test_a_collection_is_made_of_what_exists_only(hub: HubServer, vector: TaskVector) -> None:
    push(vector, "user/a")
    with pytest.raises(CheckpointError, match="user/none"):
        create_collection("Suite", ["a", "none"], token="write-user")
    assert hub.api.collections == {}
    assert "/collections/user/" in create_collection("Suite", ["a"], token="write-user")


# -- this machine -----------------------------------------------------------------------------------------------------


def test_a_push_that_was_killed_leaves_nothing_once_the_next_is_done(
    hub: HubServer, tmp_path: Path, vector: TaskVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / ".hf-taskvec-push.0a1b2c3d.tmp" / "repository").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    push(vector)
    assert os.listdir(tmp_path) == ["notes"]


def test_what_is_no_vector_or_report_is_refused_in_a_sentence(hub: HubServer, vector: TaskVector) -> None:
    calls: list[Any] = [
        lambda: push_to_hub("out/mnist", REPO),
        lambda: push_to_hub(vector, REPO, report=0.9),
        lambda: push_series_to_hub(["a"], REPO),
        lambda: push_model_to_hub(vector, REPO, scaling=1.0, report=[REPORT]),
        lambda: vector.push_to_hub(REPO, report="good"),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"TaskVector is published|report must be a Report"):
            call()
    assert hub.log == []


def test_a_folder_around_the_vector_is_told_where_it_lies(tmp_path: Path, vector: TaskVector) -> None:
    for name in ("vector", "other/deep"):
        vector.save_pretrained(tmp_path / "out" / name)
    with pytest.raises(CheckpointError, match=r"did you mean .*out/vector\?"):
        TaskVector.from_pretrained(tmp_path / "out")
