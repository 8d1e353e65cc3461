"""Hostile artefacts are refused with one clear error, before memory or disk is spent, and reach nothing outside."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from transformers import CLIPModel

from hf_taskvec.errors import CheckpointError, NonFiniteError
from hf_taskvec.hub.client import translated
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import anonymous_bytes, equal_vectors, random_deltas, tiny_vector
from tests.hub_server import HubServer

Header = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound vector, to be spoiled."""
    TaskVector(random_deltas(), VectorInfo(task="mnist")).save_pretrained(tmp_path / "v")
    return tmp_path / "v"


def weights(folder: Path) -> Path:
    return folder / "task_vector.safetensors"


def edit_header(folder: Path, change: Callable[[Header], object]) -> None:
    """Rewrites the header of a safetensors file and leaves its data alone."""
    content = weights(folder).read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    weights(folder).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "task_vector_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# -- weights ----------------------------------------------------------------------------------------------------------

LIES: dict[str, Callable[[Header], object]] = {
    "an end beyond the file": lambda h: h["a"].update(data_offsets=[h["a"]["data_offsets"][0], 1 << 40]),
    "overlapping tensors": lambda h: h["a"].update(data_offsets=[0, 60]) or h["d"].update(data_offsets=[0, 40]),
    "a hole": lambda h: h.pop("d"),
    "an end before the start": lambda h: h["a"].update(data_offsets=[60, 0]),
    "a negative offset": lambda h: h["a"].update(data_offsets=[-60, 0]),
    "an absurd shape": lambda h: h["a"].update(shape=[1 << 62, 1 << 62]),
    "an absurd shape of no entries": lambda h: h.update(
        z={"dtype": "F32", "shape": [0, 1 << 63], "data_offsets": [0, 0]}
    ),
    "a negative shape": lambda h: h["a"].update(shape=[-5, -3]),
    "a shape of another size": lambda h: h["a"].update(shape=[5, 4]),
    "a narrower dtype": lambda h: h["a"].update(dtype="F16"),
    "an unknown dtype": lambda h: h["a"].update(dtype="F5"),
    "an integer dtype": lambda h: h["a"].update(dtype="I32"),
    "a boolean dtype": lambda h: h["d"].update(dtype="BOOL", shape=[40]),
    "an 8-bit dtype": lambda h: h["d"].update(dtype="F8_E4M3", shape=[40]),
    "no dtype": lambda h: h["a"].pop("dtype"),
    "no mapping": lambda h: h.update(a=[1, 2]),
    "control characters in a name": lambda h: h.update({"\x1b[2J\x1b[31m": h.pop("a")}),
    "a huge name": lambda h: h.update({"a" * 100_000: h.pop("a")}),
    "a huge header": lambda h: h.update(__metadata__={"x": "y" * (17 << 20)}),
    "no tensors": lambda h: h.clear(),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(folder: Path, lie: str) -> None:
    edit_header(folder, LIES[lie])
    before = anonymous_bytes()
    with pytest.raises(CheckpointError) as error:
        TaskVector.from_pretrained(folder)
    assert anonymous_bytes() - before < 64 << 20
    assert len(str(error.value)) < 1000
    assert str(error.value).isprintable()


@pytest.mark.parametrize("length", [0, 1, 7, 4 << 30, 1 << 63, (1 << 64) - 1])
def test_a_header_length_that_cannot_be_is_refused(folder: Path, length: int) -> None:
    content = weights(folder).read_bytes()
    weights(folder).write_bytes(struct.pack("<Q", length) + content[8:])
    with pytest.raises(CheckpointError, match="no valid safetensors file"):
        TaskVector.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"\0", b"PK\x03\x04", b"\x80\x04\x95" + b"cos\nsystem\n"])
def test_a_file_of_another_kind_is_refused(folder: Path, content: bytes) -> None:
    weights(folder).write_bytes(content)
    with pytest.raises(CheckpointError, match="no valid safetensors file"):
        TaskVector.from_pretrained(folder)


def test_every_truncation_of_the_header_is_refused(folder: Path) -> None:
    content = weights(folder).read_bytes()
    for length in range(0, len(content), 37):
        weights(folder).write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            TaskVector.from_pretrained(folder)


def test_missing_and_extra_names_are_refused(tmp_path: Path, base: CLIPModel) -> None:
    tiny_vector(base).save_pretrained(tmp_path / "v")
    name = "vision_model.post_layernorm.bias"
    edit_header(tmp_path / "v", lambda header: header.update(extra=header.pop(name)))
    with pytest.raises(CheckpointError, match="disagree on 2 names, first 'extra'"):
        TaskVector.from_pretrained(tmp_path / "v")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_a_file_is_refused_where_it_would_be_used(tmp_path: Path, base: CLIPModel, value: float) -> None:
    from hf_taskvec.merging import merge

    tiny_vector(base).save_pretrained(tmp_path / "v")
    content = bytearray(weights(tmp_path / "v").read_bytes())
    content[-4:] = struct.pack("<f", value)
    weights(tmp_path / "v").write_bytes(content)
    vector = TaskVector.from_pretrained(tmp_path / "v")
    calls: list[Callable[[], object]] = [
        lambda: vector.apply_to(base),
        lambda: merge([vector, vector], "average"),
        lambda: vector.save_pretrained(tmp_path / "copy"),
    ]
    for call in calls:
        with pytest.raises(NonFiniteError, match="holds NaN or Inf"):
            call()


# -- configuration ----------------------------------------------------------------------------------------------------

CONFIGS: dict[str, object] = {
    "a task that is a mapping": {"task": {"a": 1}},
    "a huge string": {"task": "x" * 1_000_000},
    "control characters": {"task": "\x1b]0;owned\x07"},
    "a direction override": {"task": "mnist\u202egnp.exe"},
    "control characters in a key": {"settings": {"\x1b[2J": 1}},
    "a number beyond all range": {"seed": 10**400},
    "a float beyond all range": {"epochs": 1e300},
    "nan": {"learning_rate": float("nan")},
    "a deep nest": {"settings": json.loads("[" * 200 + "]" * 200)},
    "parents in parents": {"parents": [{"parents": [{"parents": "x"}]}]},
    "an unknown entry": {"__class__": "os.system"},
    "a schema of the future": {"schema_version": 2},
    "a schema that is no number": {"schema_version": "1"},
    "another library": {"library": "other"},
    "a fingerprint that is a list": {"fingerprint": []},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_hostile_configuration_is_refused(folder: Path, case: str) -> None:
    changes = CONFIGS[case]
    if case == "a deep nest":
        changes = {"settings": {"a": CONFIGS[case]["settings"]}}  # type: ignore[index]
    edit_config(folder, **changes)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError) as error:
        TaskVector.from_pretrained(folder)
    assert len(str(error.value)) < 1000
    assert str(error.value).isprintable()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ufeff{}", "[" * 100_000, '{"a": 1' + "0" * 5000 + "}", "\0"])
def test_a_configuration_that_is_no_json_object_is_refused(folder: Path, text: str) -> None:
    (folder / "task_vector_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"task_vector_config\.json"):
        TaskVector.from_pretrained(folder)


def test_a_huge_configuration_is_not_read(folder: Path) -> None:
    os.truncate(folder / "task_vector_config.json", 1 << 40)  # a sparse file
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match="more than a configuration can have"):
        TaskVector.from_pretrained(folder)
    assert time.perf_counter() - start < 1


def test_a_huge_configuration_on_the_hub_is_not_downloaded(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    os.truncate(folder / "task_vector_config.json", 65 << 20)
    hub.store.add_folder("model", "user/huge", folder)
    with pytest.raises(CheckpointError, match="no configuration or card"):
        TaskVector.from_pretrained("user/huge", cache_dir=tmp_path / "cache")
    assert not any("resolve" in line for line in hub.log)


def test_a_card_with_a_billion_laughs_is_not_parsed(folder: Path) -> None:
    laughs = "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(12))
    (folder / "README.md").write_text(f"---\na: &a [lol]\n{laughs}---\n")
    start, before = time.perf_counter(), anonymous_bytes()
    assert equal_vectors(TaskVector.from_pretrained(folder), TaskVector(random_deltas()))
    assert time.perf_counter() - start < 2
    assert anonymous_bytes() - before < 64 << 20


# -- paths ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A sound sharded vector, with another one beside it."""
    tiny_vector().save_pretrained(tmp_path / "other")
    tiny_vector().save_pretrained(tmp_path / "v", max_shard_size=50_000)
    return tmp_path / "v"


OUTSIDE = [
    "../other/task_vector.safetensors",
    "{root}/other/task_vector.safetensors",
    "a/../../other/task_vector.safetensors",
    "..\\other\\task_vector.safetensors",
    "task_vector\0.safetensors",
    "",
    ".",
    "task_vector.bin",
    "task_vector.safetensors/..",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_shard_index_may_not_lead_outside(sharded: Path, tmp_path: Path, name: str) -> None:
    index = sharded / "task_vector.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], name.format(root=tmp_path))
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"leaves its folder|no \.safetensors file"):
        TaskVector.from_pretrained(sharded)


@pytest.mark.parametrize("value", [None, [], {"a": 1}, {"a": None}, "x"])
def test_a_shard_index_of_wrong_types_is_refused(sharded: Path, value: object) -> None:
    (sharded / "task_vector.safetensors.index.json").write_text(json.dumps({"weight_map": value}))
    with pytest.raises(CheckpointError, match="no valid 'weight_map'"):
        TaskVector.from_pretrained(sharded)


def test_a_missing_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*-of-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        TaskVector.from_pretrained(sharded)


def test_links_may_not_lead_outside(sharded: Path, tmp_path: Path) -> None:
    shard = sorted(sharded.glob("*-of-*.safetensors"))[0]
    shard.rename(tmp_path / "moved.safetensors")
    shard.symlink_to(tmp_path / "moved.safetensors")
    with pytest.raises(CheckpointError, match="a link that leaves"):
        TaskVector.from_pretrained(sharded)


def test_a_linked_subfolder_may_not_lead_outside(sharded: Path, tmp_path: Path) -> None:
    (sharded / "epoch-1").symlink_to(tmp_path / "other")
    with pytest.raises(CheckpointError, match="a link that leaves"):
        TaskVector.from_pretrained(sharded, subfolder="epoch-1")


def test_a_link_to_the_configuration_may_not_lead_outside(folder: Path, tmp_path: Path) -> None:
    (folder / "task_vector_config.json").rename(tmp_path / "secret.json")
    (folder / "task_vector_config.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="a link that leaves"):
        TaskVector.from_pretrained(folder)


@pytest.mark.parametrize("subfolder", ["../x", "/etc", "a/../../x", "..", "a\\..\\x"])
def test_a_subfolder_may_not_lead_outside_of_a_repository(hub: HubServer, tmp_path: Path, subfolder: str) -> None:
    with pytest.raises(CheckpointError, match="leaves its folder"):
        TaskVector.from_pretrained("user/vector", subfolder=subfolder, cache_dir=tmp_path)
    assert hub.log == []


def test_a_repository_with_names_that_leave_it_writes_nothing_outside(
    hub: HubServer, folder: Path, tmp_path: Path
) -> None:
    hub.store.add_folder("model", "user/evil", folder)
    files = hub.store.get("model", "user/evil").head.files
    files["../../../../task_vector_config.json"] = files["task_vector_config.json"]  # type: ignore[index]
    files["/tmp/task_vector_evil.safetensors"] = files["task_vector.safetensors"]  # type: ignore[index]
    cache = tmp_path / "a" / "b" / "cache"
    assert equal_vectors(TaskVector.from_pretrained("user/evil", cache_dir=cache), TaskVector(random_deltas()))
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and cache not in path.parents]
    assert all(path.parent == folder for path in outside)
    assert not Path("/tmp/task_vector_evil.safetensors").exists()


@pytest.mark.parametrize(
    "source", ["user/a b", "../vector", "user/vector/x/y", "a\0b", "", "http://127.0.0.1/x", "x" * 500]
)
def test_a_source_that_is_neither_folder_nor_hub_id_is_refused(hub: HubServer, source: str) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor"):
        TaskVector.from_pretrained(source)


def test_nothing_in_a_checkpoint_folder_is_executed(tmp_path: Path, checkpoints: tuple[Path, Path]) -> None:
    shutil.copytree(checkpoints[0], tmp_path / "evil")
    config = json.loads((tmp_path / "evil" / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil"}
    (tmp_path / "evil" / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    vector = TaskVector.from_checkpoints(tmp_path / "evil", checkpoints[1])
    vector.save_checkpoint(tmp_path / "evil", tmp_path / "out")
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "out" / "evil.py").exists()
    assert equal_vectors(vector, TaskVector.from_checkpoints(*checkpoints))


def test_what_a_server_says_cannot_drive_the_terminal() -> None:
    request = httpx2.Request("GET", "http://hub/x")
    for status in (400, 401, 403, 404, 412, 429, 500):
        response = httpx2.Response(status, request=request, headers={"Retry-After": "\x1b[2J"})
        for kind in (HfHubHTTPError, RemoteEntryNotFoundError):
            error = kind("\x1b[31mred\r\n", response=response, server_message="\x1b]0;owned\x07" + "x" * 10_000)
            message = str(translated(error, "user/x", "reading"))
            assert message.isprintable()
            assert len(message) <= 600
