"""Statistics on the Hub: beside their vector or alone, and merged by bit for bit without the images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from hf_taskvec import TaskVector, VectorInfo, merge, push_to_hub
from hf_taskvec.cards import push_statistics
from hf_taskvec.errors import CheckpointError, HubError
from hf_taskvec.merging.recipes import MergeRecipe
from hf_taskvec.statistics import Statistics
from tests.helpers import equal_vectors
from tests.hub_server import HubServer
from tests.measured import made_up

SHAPES = {"vision_model.fc1.weight": torch.Size([4, 6]), "vision_model.fc1.bias": torch.Size([4])}


def pair() -> tuple[TaskVector, Statistics]:
    generator = torch.Generator().manual_seed(0)
    deltas = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    statistics = made_up(SHAPES, task="birds")
    info = replace(statistics.info, num_images=64, images_of="birds", base="user/base")
    return TaskVector(deltas, VectorInfo(task="birds", base="user/base")), Statistics(statistics.tensors, info)


def test_statistics_pushed_beside_their_vector_merge_bit_for_bit(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.store.create("model", "user/base")
    vector, statistics = pair()
    push_to_hub(vector, "user/birds", token="write-user")
    card = hub.store.get("model", "user/birds").head.files["README.md"]
    url = push_statistics(statistics, "user/birds", token="write-user")
    assert "/user/birds/commit/" in url
    files = hub.store.get("model", "user/birds").head.files
    assert set(files) >= {"statistics.safetensors", "statistics_config.json", "task_vector.safetensors"}
    assert files["README.md"] == card  # the vector's own
    pulled = Statistics.from_pretrained("user/birds")
    assert pulled.fingerprint == statistics.fingerprint
    assert pulled.info.repo_id == "user/birds"
    merged = merge(["user/birds", vector], "regmean", statistics=["user/birds", statistics])
    assert equal_vectors(merged, merge([vector] * 2, "regmean", statistics=[statistics] * 2))
    both = merge(["user/birds"], "lot", statistics=["user/birds"])
    assert all(source.startswith("user/birds@") for source in MergeRecipe.from_info(both.info).statistics)
    assert [own["num_images"] for own in both.info.statistics] == [64]


def test_statistics_with_a_repository_of_their_own_have_a_card(hub: HubServer) -> None:
    _, statistics = pair()
    push_statistics(statistics, "user/seen", token="write-user", licence="mit")
    card = ModelCard.load("user/seen").content
    assert "64 images" in card
    assert "merge([" in card
    assert "license: mit" in card
    with pytest.raises(HubError):
        push_statistics(statistics, "user/seen", token="read-user")
    with pytest.raises(TypeError, match="collect_statistics"):
        push_statistics(pair()[0], "user/seen")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="holds no task vector"):
        TaskVector.from_pretrained("user/seen")


def test_statistics_of_a_base_that_gets_another_name_do_not_keep_the_old_ones_commit(
    hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    statistics = pair()[1]
    statistics = Statistics(statistics.tensors, replace(statistics.info, base="out/base", base_revision="c" * 40))
    hub.store.create("model", "user/base")
    push_statistics(statistics, "user/seen", token="write-user", base_name="user/base")
    pulled = Statistics.from_pretrained("user/seen").info
    assert (pulled.base, pulled.base_revision, caplog.text) == ("user/base", None, "")
    push_statistics(Statistics(statistics.tensors, replace(pulled, base="base")), "user/seen", token="write-user")
    assert "The published statistics tell 'base' as their base" in caplog.text


def test_damaged_statistics_on_the_hub_are_refused(hub: HubServer) -> None:
    push_statistics(pair()[1], "user/seen", token="write-user")
    store, name = hub.store, "statistics.safetensors"
    repository = store.get("model", "user/seen")
    weights = bytearray(store.blob(repository.head.files[name].sha256).read_bytes())
    weights[-1] ^= 1
    store.write(repository, {name: store.entry(store.add_blob(bytes(weights)), lfs=True)}, title="damage")
    with pytest.raises(CheckpointError, match="not those that"):
        Statistics.from_pretrained("user/seen")
