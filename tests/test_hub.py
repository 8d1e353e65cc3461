"""Publishing, using, listing and collecting over a real Hub on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, snapshot_download
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPVisionModel

from hf_taskvec.cards import render_vector_card
from hf_taskvec.cards.find import list_epochs, list_vectors
from hf_taskvec.cards.publish import create_collection, push_model_to_hub, push_series_to_hub, push_to_hub
from hf_taskvec.errors import BaseMismatchError, CheckpointError, HubError, NonFiniteError, NotCachedError
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.result import TaskResult
from hf_taskvec.hub.push import _chunks
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import equal_vectors, tiny_vector
from tests.hub_server import HubServer

REPO = "user/vector"
API = HfApi(token="write-user")
REPORT = Report("vector", "test", (TaskResult("mnist", 0.9, 100, zero_shot=0.5, individual=0.95),), scaling=1.0)


def vector_of(base: CLIPModel, task: str = "mnist", *, seed: int = 1, **changes: object) -> TaskVector:
    vector = tiny_vector(base, seed=seed)
    info = replace(vector.info, base="user/base", task=task, dataset=f"user/{task}", kind="fine-tuned", **changes)
    return TaskVector(vector.deltas, info)


def push(vector: TaskVector, repo_id: str = "user/vector", **settings: object) -> str:
    return push_to_hub(vector, repo_id, token="write-user", **settings)


def pull(tmp_path: Path, repo_id: str = "user/vector", **settings: object) -> TaskVector:
    return TaskVector.from_pretrained(repo_id, cache_dir=tmp_path / "cache", **settings)


PULL = """
import sys
from hf_taskvec.vectors.vector import TaskVector
TaskVector.from_pretrained("user/vector", cache_dir=sys.argv[2]).save_pretrained(sys.argv[1])
"""


def test_a_fresh_process_pulls_what_another_pushed(hub: HubServer, tmp_path: Path, base: CLIPModel) -> None:
    vector = vector_of(base)
    push(vector)
    pulled = subprocess.run(
        [sys.executable, "-c", PULL, tmp_path / "theirs", tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert pulled.returncode == 0, pulled.stderr
    loaded = TaskVector.from_pretrained(tmp_path / "theirs")
    assert equal_vectors(loaded, vector)
    assert (loaded.info.repo_id, loaded.info.repo_commit) == (REPO, hub.store.get("model", REPO).head.id)
    assert replace(loaded.info, layer_norms={}, num_entries=None, repo_id=None, repo_commit=None) == vector.info
    card = next((tmp_path / "cache").rglob("README.md")).read_text()
    assert card == render_vector_card(loaded.info, repo_id="user/vector")


def test_a_push_is_one_commit_with_weights_configuration_card_and_report(hub: HubServer, base: CLIPModel) -> None:
    url = push(vector_of(base), report=REPORT, commit_message="first")
    repo = hub.store.get("model", "user/vector")
    assert [commit.title for commit in repo.commits.values()] == ["initial commit", "first"]
    assert url == f"{hub.url}/user/vector/commit/{repo.head.id}"
    files = {"README.md", "report.json", "task_vector.safetensors", "task_vector_config.json"}
    assert set(repo.head.files) - {".gitattributes"} == files
    assert sum(line.startswith("POST /api/models/user/vector/commit") for line in hub.log) == 1


def test_the_hub_reads_the_metadata_of_the_card(hub: HubServer, base: CLIPModel) -> None:
    push(vector_of(base, license="mit"), report=REPORT)
    info = API.model_info("user/vector")
    expected = {"hf-taskvec", "task-vector", "task-arithmetic", "model-merging", "task:mnist", "license:mit"}
    assert expected | {"base_model:user/base", "base_model:finetune:user/base", "dataset:user/mnist"} <= set(info.tags)
    results = ModelCard.load("user/vector").data.eval_results
    assert [(r.dataset_type, r.metric_type, r.metric_value) for r in results] == [("user/mnist", "accuracy", 0.9)]


def test_pushing_again_changes_nothing_and_returns_the_same_commit(hub: HubServer, base: CLIPModel) -> None:
    assert push(vector_of(base)) == push(vector_of(base))
    assert len(hub.store.get("model", "user/vector").commits) == 2


def test_a_new_push_leaves_no_file_of_the_old_one(hub: HubServer, tmp_path: Path, base: CLIPModel) -> None:
    old, new = vector_of(base), vector_of(base, seed=2)
    old.save_pretrained(tmp_path / "shards", max_shard_size=50_000)
    API.create_repo("user/vector")
    API.upload_folder(repo_id="user/vector", folder_path=tmp_path / "shards")
    push(new)
    files = hub.store.get("model", "user/vector").head.files
    assert [name for name in files if name.startswith("task_vector.safetensors")] == ["task_vector.safetensors"]
    assert not any("-of-" in name for name in files)
    assert equal_vectors(pull(tmp_path), new)


def test_branches_and_pull_requests_leave_main_alone(hub: HubServer, tmp_path: Path, base: CLIPModel) -> None:
    push(vector_of(base))
    main = hub.store.get("model", "user/vector").head.id
    push(vector_of(base, seed=2), revision="dev")
    url = push(vector_of(base, seed=3), create_pr=True)
    assert url.endswith("/discussions/1")
    assert hub.store.get("model", "user/vector").head.id == main
    for seed, revision in ((1, None), (1, main), (2, "dev"), (3, "refs/pr/1")):
        assert equal_vectors(pull(tmp_path, revision=revision), vector_of(base, seed=seed))


def test_a_private_vector_needs_a_token(hub: HubServer, tmp_path: Path, base: CLIPModel) -> None:
    push(vector_of(base), private=True)
    with pytest.raises(CheckpointError, match="log in"):
        pull(tmp_path)
    assert equal_vectors(pull(tmp_path, token="read-user"), vector_of(base))


def test_private_is_not_ignored_for_a_public_repository(hub: HubServer, base: CLIPModel) -> None:
    push(vector_of(base))
    with pytest.raises(HubError, match="is public"):
        push(vector_of(base, seed=2), private=True)


def test_a_bad_repository_id_is_an_error_before_any_work(hub: HubServer, base: CLIPModel) -> None:
    with pytest.raises(CheckpointError, match="Hub id"):
        push(vector_of(base), "user/a b/c")
    assert hub.log == []


def test_a_vector_that_is_not_finite_is_not_pushed(hub: HubServer, base: CLIPModel) -> None:
    vector = vector_of(base)
    next(iter(vector.deltas.values())).view(-1)[0] = float("nan")
    with pytest.raises(NonFiniteError):
        push(vector)
    assert hub.log == []


def test_revision_subfolder_and_caching_mean_what_transformers_means(
    hub: HubServer, tmp_path: Path, base: CLIPModel
) -> None:
    push(vector_of(base))
    with pytest.raises(CheckpointError, match="no such revision"):
        pull(tmp_path, revision="v1")
    with pytest.raises(CheckpointError, match="task_vector_config"):
        pull(tmp_path, subfolder="epoch-1")
    with pytest.raises(NotCachedError, match="hf download user/vector"):
        pull(tmp_path, local_files_only=True)
    pull(tmp_path)
    asked = len(hub.log)
    assert equal_vectors(pull(tmp_path, local_files_only=True), vector_of(base))
    assert len(hub.log) == asked
    pull(tmp_path)
    assert hub.log[asked:] == ["GET /api/models/user/vector"]  # one request tells that the cache is up to date
    pull(tmp_path, force_download=True)
    assert sum(line.startswith("GET /cdn/") for line in hub.log[asked:]) == 1


OFFLINE = """
import sys
from hf_taskvec.errors import NotCachedError
from hf_taskvec.vectors.vector import TaskVector
print(TaskVector.from_pretrained("user/vector", cache_dir=sys.argv[1]).norm())
try:
    TaskVector.from_pretrained("user/unknown", cache_dir=sys.argv[1])
except NotCachedError as error:
    print(error)
"""


def test_offline_mode_reads_the_cache_and_says_what_to_fetch(hub: HubServer, tmp_path: Path, base: CLIPModel) -> None:
    push(vector_of(base))
    pull(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE, tmp_path / "cache"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert run.returncode == 0, run.stderr
    norm, message = run.stdout.splitlines()
    assert float(norm) == vector_of(base).norm()
    assert "fetch it while online: hf download user/unknown" in message


def test_a_new_commit_is_seen_by_the_next_pull(hub: HubServer, tmp_path: Path, base: CLIPModel) -> None:
    for seed in (1, 2):
        push(vector_of(base, seed=seed))
        assert equal_vectors(pull(tmp_path), vector_of(base, seed=seed))


def test_a_series_is_one_repository_and_each_epoch_can_be_picked(
    hub: HubServer, tmp_path: Path, base: CLIPModel
) -> None:
    series = [vector_of(base, seed=seed, epochs=epochs) for seed, epochs in ((2, 10.0), (1, 0.5), (3, 2.0))]
    push_series_to_hub(series, "user/vector", token="write-user")
    assert len(hub.store.get("model", "user/vector").commits) == 2
    assert list_epochs("user/vector") == [0.5, 2.0, 10.0]
    assert equal_vectors(pull(tmp_path), series[0])
    for vector in series:
        picked = pull(tmp_path, subfolder=f"epoch-{vector.info.epochs:g}")
        assert equal_vectors(picked, vector)
        assert picked.info.epochs == vector.info.epochs
    push_series_to_hub(series[:2], "user/vector", token="write-user")
    assert list_epochs("user/vector") == [0.5, 10.0]
    with pytest.raises(CheckpointError, match=r"user/vector at revision 'v9' does not exist"):
        list_epochs("user/vector", revision="v9")
    push(vector_of(base), "user/single")
    assert list_epochs("user/single") == []
    with pytest.raises(CheckpointError, match=r"the folder 'epoch-2' of user/vector holds no task vector"):
        pull(tmp_path, subfolder="epoch-2")


def test_a_series_needs_epochs_that_differ(hub: HubServer, base: CLIPModel) -> None:
    with pytest.raises(ValueError, match="epochs is known"):
        push_series_to_hub([vector_of(base)], "user/vector", token="write-user")
    with pytest.raises(ValueError, match="same epochs"):
        push_series_to_hub([vector_of(base, epochs=1.0)] * 2, "user/vector", token="write-user")
    mixed = [vector_of(base, epochs=1.0, task="mnist"), vector_of(base, epochs=2.0, task="dtd")]
    with pytest.raises(ValueError, match="differ in task: dtd, mnist"):
        push_series_to_hub(mixed, "user/vector", token="write-user")
    with pytest.raises(TypeError, match="repo_id must be text"):
        push_series_to_hub([vector_of(base, epochs=1.0)], None, token="write-user")  # type: ignore[arg-type]
    assert hub.log == []


def test_a_merged_model_loads_with_transformers(
    hub: HubServer, tmp_path: Path, base: CLIPModel, checkpoints: tuple[Path, Path]
) -> None:
    hub.store.add_folder("model", "user/base", checkpoints[0])
    vector = vector_of(base)
    push_model_to_hub(vector, "user/model", scaling=0.3, report=REPORT, base=checkpoints[0], token="write-user")
    expected = vector.apply_to(base, scaling=0.3).state_dict()
    for kind, prefix in ((CLIPModel, ""), (CLIPVisionModel, "vision_model.")):
        loaded = kind.from_pretrained("user/model", cache_dir=tmp_path).state_dict()
        assert all(torch.equal(value, expected[prefix + name]) for name, value in loaded.items())
    assert "base_model:finetune:user/base" in API.model_info("user/model").tags
    with pytest.raises(BaseMismatchError):
        push_model_to_hub(vector, "user/other", scaling=1.0, base=checkpoints[1], token="write-user")


def test_vectors_are_listed_by_base_task_and_author(hub: HubServer, base: CLIPModel) -> None:
    mnist, svhn = vector_of(base), vector_of(base, "svhn", seed=2)
    for repo_id, vector in {"user/mnist": mnist, "user/svhn": svhn, "user/merged": mnist + svhn}.items():
        push(vector, repo_id)
    push_to_hub(mnist, "other/mnist", token="write-other")
    API.create_repo("user/bert")
    assert [entry.repo_id for entry in list_vectors()] == ["other/mnist", "user/merged", "user/mnist", "user/svhn"]
    assert [entry.repo_id for entry in list_vectors(task="svhn")] == ["user/merged", "user/svhn"]
    assert [entry.repo_id for entry in list_vectors(author="user", task="mnist")] == ["user/merged", "user/mnist"]
    assert list_vectors(base_model="user/nothing") == []
    entry = list_vectors(author="user", base_model="user/base")[0]
    assert (entry.base, entry.tasks) == ("user/base", ("mnist", "svhn"))


def test_a_suite_is_collected_once(hub: HubServer, base: CLIPModel) -> None:
    for task in ("mnist", "svhn"):
        push(vector_of(base, task), f"user/{task}")
    first = create_collection("Suite two", ["user/mnist"], token="write-user")
    assert create_collection("Suite two", ["user/mnist", "user/svhn"], token="write-user") == first
    items = API.get_collection(first.split("/collections/")[1]).items
    assert [item.item_id for item in items] == ["user/mnist", "user/svhn"]


def test_published_experts_become_vectors_in_one_call(
    hub: HubServer, tmp_path: Path, checkpoints: tuple[Path, Path], tuned: CLIPModel
) -> None:
    vision = CLIPVisionModel(tuned.config.vision_config)
    vision.load_state_dict(tuned.vision_model.state_dict())
    vision.save_pretrained(tmp_path / "vision")
    hub.store.add_folder("model", "openai/base", checkpoints[0])
    hub.store.add_folder("model", "tanganke/flat", tmp_path / "vision")
    hub.store.add_folder("model", "tanganke/prefixed", checkpoints[1])
    expected = TaskVector.from_checkpoints(*checkpoints)
    for finetuned in ("tanganke/flat", "tanganke/prefixed"):
        vector = TaskVector.from_checkpoints("openai/base", finetuned, cache_dir=tmp_path / "cache")
        assert equal_vectors(vector, expected)
        assert vector.info.base_revision == hub.store.get("model", "openai/base").head.id
        assert vector.info.finetuned == finetuned


def test_a_repository_whose_weights_could_run_code_is_refused_before_the_download(
    hub: HubServer, tmp_path: Path, checkpoints: tuple[Path, Path]
) -> None:
    hub.store.add_folder("model", "openai/base", checkpoints[0])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    shutil.copy(checkpoints[0] / "config.json", tmp_path / "old")
    hub.store.add_folder("model", "tanganke/old", tmp_path / "old")
    with pytest.raises(CheckpointError, match=r"Pickled weights .* are refused, since loading them can run code"):
        TaskVector.from_checkpoints("openai/base", "tanganke/old", cache_dir=tmp_path / "cache")
    assert not any("tanganke/old/resolve" in line for line in hub.log)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_an_adapter_on_the_hub_becomes_a_vector(hub: HubServer, tmp_path: Path, checkpoints: tuple[Path, Path]) -> None:
    config = LoraConfig(r=2, target_modules=r".*vision_model.*v_proj", init_lora_weights=False)
    get_peft_model(CLIPModel.from_pretrained(checkpoints[0]), config).save_pretrained(tmp_path / "adapter")
    hub.store.add_folder("model", "user/adapter", tmp_path / "adapter")
    expected = TaskVector.from_adapter(tmp_path / "adapter")
    assert expected.norm() > 0
    assert equal_vectors(TaskVector.from_adapter("user/adapter", cache_dir=tmp_path / "cache"), expected)


def test_a_snapshot_of_the_cache_is_a_folder_like_any_other(hub: HubServer, tmp_path: Path, base: CLIPModel) -> None:
    push(vector_of(base))
    folder = snapshot_download("user/vector", cache_dir=tmp_path / "cache")
    assert equal_vectors(TaskVector.from_pretrained(folder), vector_of(base))


def test_of_weights_the_header_alone_is_searched_for_tokens(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(400)}, tmp_path / "w.safetensors", metadata={"note": "x"})
    content = (tmp_path / "w.safetensors").read_bytes()
    assert list(_chunks(tmp_path / "w.safetensors")) == [content[8 : 8 + int.from_bytes(content[:8], "little")]]


def test_a_token_in_the_provenance_is_not_published(hub: HubServer, base: CLIPModel) -> None:
    for secret in ("hf_" + "a1B2" * 8, "write-user"):
        with pytest.raises(HubError, match="holds an access token") as error:
            push(vector_of(base, command=f"finetune.py --hub_token {secret}"))
        assert secret not in str(error.value)
    assert hub.log == []
