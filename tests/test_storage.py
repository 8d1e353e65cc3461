"""Files of a task vector: what is written is read back, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_taskvec.errors import CheckpointError, NonFiniteError, OutputExistsError
from hf_taskvec.vectors import files
from hf_taskvec.vectors.files import vector_fingerprint, write_vector
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import TensorDeltas
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hash, tensor_hashes
from hf_taskvec.weights.folders import atomic_folder
from hf_taskvec.weights.safetensors import open_safetensors, write_safetensors
from tests.helpers import PROCESSES, anonymous_bytes, equal_vectors, random_deltas, tiny_vector

INFO = VectorInfo(
    kind="fine-tuned",
    base="user/base",
    base_revision="abc",
    task="mnist",
    dataset="ylecun/mnist",
    epochs=1,
    steps=7,
    learning_rate=1e-5,
    seed=3,
    settings={"clip": 1.0, "names": ["a"]},
    versions={"torch": "2.13"},
    class_names=("a cat", "a dog"),
    templates=("a photo of {}.",),
    data_settings={"labels": ["cat", "dog"]},
    parents=(VectorInfo(kind="gradient", task="x", class_names=("zero", "one"), templates=("{}",)),),
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_save_then_load_is_equal_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    vector = TaskVector(random_deltas(), INFO).to(dtype)
    vector.save_pretrained(tmp_path / "v")
    loaded = TaskVector.from_pretrained(tmp_path / "v")
    assert equal_vectors(loaded, vector)
    assert loaded.info == INFO


def test_class_names_that_are_no_words_are_refused() -> None:
    for value in ("cat", ["cat", 1], {"0": "cat"}, ["\x1b[2J", "dog"]):
        with pytest.raises(CheckpointError, match="class_names"):
            VectorInfo.from_dict({"class_names": value})


def test_shards_load_as_one_vector_and_a_single_file_replaces_them(tmp_path: Path) -> None:
    vector = tiny_vector()
    vector.save_pretrained(tmp_path / "v", max_shard_size=50_000)
    shards = sorted(path.name for path in (tmp_path / "v").glob("*.safetensors"))
    assert len(shards) > 2
    assert (tmp_path / "v" / "task_vector.safetensors.index.json").is_file()
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "v"), vector)
    vector.save_pretrained(tmp_path / "v")
    assert sorted(os.listdir(tmp_path / "v")) == ["task_vector.safetensors", "task_vector_config.json"]
    assert os.listdir(tmp_path) == ["v"]  # nothing temporary is left


@pytest.mark.parametrize("size", ["5GB", 70])
def test_the_digests_taken_while_writing_are_those_of_the_files(tmp_path: Path, size: int | str) -> None:
    deltas = TaskVector(random_deltas()).deltas
    digests = write_vector(tmp_path / "v", deltas, VectorInfo(), max_shard_size=size, hashed=True).digests
    files = {path.name: path for path in (tmp_path / "v").glob("*.safetensors")}
    assert digests == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_a_tensor_that_is_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    vector = TaskVector({"a": torch.ones(2), "b": torch.ones(300), "c": torch.ones(3)})
    vector.save_pretrained(tmp_path / "v", max_shard_size="1KB")
    assert TaskVector.from_pretrained(tmp_path / "v", verify=True) == vector
    sizes = [path.stat().st_size for path in sorted((tmp_path / "v").glob("*.safetensors"))]
    assert len(sizes) == 3
    assert sizes[1] > 1200 > max(sizes[0], sizes[2])


def test_the_safetensors_library_reads_the_file(tmp_path: Path) -> None:
    vector = TaskVector(random_deltas())
    vector.save_pretrained(tmp_path / "v")
    read = load_file(tmp_path / "v" / "task_vector.safetensors")
    assert equal_vectors(TaskVector(read), vector)


def test_a_narrower_dtype_reports_its_rounding_error(tmp_path: Path) -> None:
    vector = TaskVector({"w": torch.tensor([1.0, 1 + 2**-9])})
    vector.save_pretrained(tmp_path / "v", dtype="bfloat16")  # 8 bits: the second entry becomes 1.0
    expected = 2**-9 / float(vector.deltas["w"].double().norm())
    loaded = TaskVector.from_pretrained(tmp_path / "v")
    assert loaded.dtype == torch.bfloat16
    assert loaded.info.rounding_error == pytest.approx(expected)


def test_a_dtype_that_overflows_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"'w' overflows torch\.float16"):
        TaskVector({"w": torch.tensor([1e6])}).save_pretrained(tmp_path / "v", dtype=torch.float16)
    assert os.listdir(tmp_path) == []


def test_saving_nan_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="'w'"):
        TaskVector({"w": torch.tensor([float("nan")])}).save_pretrained(tmp_path / "v")
    assert os.listdir(tmp_path) == []


def test_an_integer_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype must be one of"):
        TaskVector(random_deltas()).save_pretrained(tmp_path / "v", dtype=torch.int8)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_text("dear")
    with pytest.raises(OutputExistsError, match="holds something else"):
        TaskVector(random_deltas()).save_pretrained(tmp_path)
    with pytest.raises(OutputExistsError, match="is a file"):
        TaskVector(random_deltas()).save_pretrained(tmp_path / "photo.jpg")
    assert (tmp_path / "photo.jpg").read_text() == "dear"


def test_an_empty_folder_is_a_place_to_save(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    TaskVector(random_deltas()).save_pretrained(tmp_path / "v")
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "v"), TaskVector(random_deltas()))


def test_an_error_in_mid_save_leaves_the_old_vector(tmp_path: Path) -> None:
    old = TaskVector(random_deltas(seed=1))
    old.save_pretrained(tmp_path / "v")
    broken = TaskVector({**random_deltas(seed=2), "d": torch.full((1, 2, 5), float("nan"))})
    with pytest.raises(NonFiniteError):
        broken.save_pretrained(tmp_path / "v")
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "v"), old)
    assert os.listdir(tmp_path) == ["v"]


class Killing(TensorDeltas):
    """Deltas of which the last kills the process that reads it."""

    def __getitem__(self, name: str) -> torch.Tensor:
        if name == "d":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(name)


def save_until_killed(path: Path) -> None:
    TaskVector(Killing(random_deltas(seed=2))).save_pretrained(path)


def test_a_kill_in_mid_save_leaves_the_old_vector_and_a_rerun_succeeds(tmp_path: Path) -> None:
    old, new = (TaskVector(random_deltas(seed=seed)) for seed in (1, 2))
    old.save_pretrained(tmp_path / "v")
    child = PROCESSES.Process(target=save_until_killed, args=(tmp_path / "v",))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "v"), old)
    new.save_pretrained(tmp_path / "v")
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "v"), new)


def test_the_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "v", marker="m") as folder:
        (folder / "m").write_text("old")
    with atomic_folder(tmp_path / "v", marker="m") as folder:
        (folder / "m").write_text("new")
        assert (tmp_path / "v" / "m").read_text() == "old"
    assert (tmp_path / "v" / "m").read_text() == "new"


def test_a_stream_that_breaks_its_announcement_is_refused(tmp_path: Path) -> None:
    shapes = {"a": (2,), "b": (3,)}
    for tensors in ([("a", torch.zeros(2))], [("b", torch.zeros(3))], [("a", torch.zeros(3)), ("b", torch.zeros(3))]):
        with pytest.raises(ValueError, match="tensor '"):
            write_safetensors(tmp_path / "x", tensors, shapes=shapes, dtype=torch.float32)


def test_loading_maps_the_file_and_reads_nothing(tmp_path: Path) -> None:
    vector = TaskVector({f"w{i}": torch.zeros(1 << 20) for i in range(32)})  # 128 MB
    vector.save_pretrained(tmp_path / "v")
    del vector
    before, start = anonymous_bytes(), time.perf_counter()
    loaded = TaskVector.from_pretrained(tmp_path / "v")
    assert time.perf_counter() - start < 1.0
    assert anonymous_bytes() - before < 16 << 20
    assert loaded.num_entries == 32 << 20


def test_writing_into_a_loaded_vector_leaves_the_file_alone(tmp_path: Path) -> None:
    vector = TaskVector(random_deltas())
    vector.save_pretrained(tmp_path / "v")
    TaskVector.from_pretrained(tmp_path / "v").deltas["a"].zero_()
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "v"), vector)


def test_the_fingerprint_tells_names_shapes_dtypes_and_values_apart_but_not_their_order() -> None:
    deltas = random_deltas()
    same = fingerprint(tensor_hashes(deltas))
    assert fingerprint(tensor_hashes(dict(reversed(deltas.items())))) == same
    renamed = {("z" if name == "a" else name): value for name, value in deltas.items()}
    reshaped = {**deltas, "a": deltas["a"].reshape(3, 5)}
    changed = {**deltas, "a": deltas["a"] + torch.eye(5, 3) * 1e-6}
    wider = {**deltas, "a": deltas["a"].double()}
    for other in (renamed, reshaped, changed, wider):
        assert fingerprint(tensor_hashes(other)) != same


def test_swapping_the_values_of_two_parameters_changes_the_fingerprint() -> None:
    left, right = torch.zeros(3), torch.ones(3)
    one, other = TaskVector({"a": left, "b": right}), TaskVector({"a": right, "b": left})
    assert vector_fingerprint(one) != vector_fingerprint(other)


def test_a_view_hashes_like_its_copy() -> None:
    tensor = torch.arange(12.0).reshape(3, 4).t()
    assert tensor_hash(tensor) == tensor_hash(tensor.clone(memory_format=torch.contiguous_format))


def test_provenance_survives_the_round_trip() -> None:
    assert VectorInfo.from_dict(json.loads(json.dumps(INFO.to_dict()))) == INFO
    assert VectorInfo.from_dict(VectorInfo().to_dict()) == VectorInfo()


def test_parents_repeat_no_base_hashes() -> None:
    parent = replace(INFO, base_hashes={"w": "1"}, parents=())
    written = VectorInfo(kind="merged", base_hashes={"w": "1"}, parents=(parent,)).to_dict()
    assert written["base_hashes"] == {"w": "1"}
    assert "base_hashes" not in written["parents"][0]


WRONG = {
    "seed": "3",
    "steps": 1.5,
    "epochs": "one",
    "base": ["x"],
    "include_projection": 1,
    "base_hashes": {"a": 1},
    "settings": [],
    "kind": "magic",
    "parents": {"a": 1},
    "learning_rate": True,
    "task": {"x": 1},
    "versions": None,
}


@pytest.mark.parametrize("key", WRONG)
def test_a_config_entry_of_a_wrong_type_is_refused_by_name(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{key}' must be"):
        VectorInfo.from_dict({key: WRONG[key]})


def test_an_unknown_config_entry_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="unknown entry 'sed'"):
        VectorInfo.from_dict({"sed": 1})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "task_vector_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_newer_schema_is_refused_with_a_remedy(tmp_path: Path) -> None:
    TaskVector(random_deltas()).save_pretrained(tmp_path / "v")
    edit_config(tmp_path / "v", schema_version=99)
    with pytest.raises(CheckpointError, match="pip install --upgrade"):
        TaskVector.from_pretrained(tmp_path / "v")


def test_names_in_the_config_and_in_the_weights_must_agree(tmp_path: Path) -> None:
    tiny_vector().save_pretrained(tmp_path / "v")
    edit_config(tmp_path / "v", base_hashes={"vision_model.other": "00"})
    with pytest.raises(CheckpointError, match="disagree on"):
        TaskVector.from_pretrained(tmp_path / "v")


def test_a_folder_without_a_vector_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"lacks task_vector_config\.json"):
        TaskVector.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="neither a folder nor a Hub id"):
        TaskVector.from_pretrained(tmp_path / "nowhere" / "at" / "all")


# -- what can be saved can be loaded ----------------------------------------------------------------------------------

NBSP, JOINED = "café\u00a0au\u202flait", "\U0001f468\u200d\U0001f33e \u0646\u0645\u06cc\u200c"


@pytest.mark.parametrize("text", [NBSP, JOINED, "soft\u00adhyphen", "名前", "two\nlines"])
def test_ordinary_text_of_any_script_comes_back(tmp_path: Path, text: str) -> None:
    info = VectorInfo(task=text, settings={text: text})
    TaskVector(random_deltas(), info).save_pretrained(tmp_path / "v")
    assert TaskVector.from_pretrained(tmp_path / "v").info == info


@pytest.mark.parametrize(
    ("info", "named"),
    [
        (VectorInfo(task="\x1b[2J"), "'task' holds control characters"),
        (VectorInfo(settings={"a": "b\u202ec"}), "'settings' holds control characters"),
        (VectorInfo(task="x" * 5000), "'task' has 5000 characters"),
        (VectorInfo(seed=2**70), "'seed' holds a number out of range"),
        (VectorInfo(steps=1.5), "'steps' must be"),  # type: ignore[arg-type]
    ],
)
def test_what_could_not_be_read_again_is_refused_before_the_work(tmp_path: Path, info: VectorInfo, named: str) -> None:
    with pytest.raises(ValueError, match=f"could not be read again.*{named}"):
        TaskVector(Killing({"d": torch.zeros(1)}), info).save_pretrained(tmp_path / "v")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("x" * 2000, "has 2000 characters"),
        ("a\x00b", "holds control characters"),
        ("\ud800", "holds control characters"),
        ("__metadata__", "is no name for a tensor"),
    ],
)
def test_a_name_that_could_not_be_read_again_is_refused_before_the_work(tmp_path: Path, name: str, wrong: str) -> None:
    with pytest.raises(CheckpointError, match=wrong):
        TaskVector(Killing({name: torch.zeros(1)})).save_pretrained(tmp_path / "v")
    assert os.listdir(tmp_path) == []


def test_a_vector_without_parameters_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no tensor to write"):
        TaskVector({}).save_pretrained(tmp_path / "v")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), torch.tensor(float("inf"))])
def test_numbers_that_no_file_can_hold_never_come_in(value: object) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        VectorInfo(settings={"losses": [0.5, value]})
    with pytest.raises(ValueError, match="learning_rate"):
        VectorInfo(learning_rate=value)  # type: ignore[arg-type]


def test_an_object_that_no_file_can_hold_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"settings\['loss'\] holds a function"):
        VectorInfo(settings={"loss": lambda: 0})


def test_values_are_plain_when_they_come_in(tmp_path: Path) -> None:
    weights = np.array([0.25, 0.5])
    settings = {
        "weights": weights,
        "scaling": np.float32(0.5),
        "seed": np.int64(3),
        "flag": np.bool_(True),
        "tensor": torch.tensor([1, 2]),
        "path": Path("a"),
        "dtype": torch.float16,
        "layers": (1, 2),
        "names": {"b", "a"},
        3: None,
    }
    info = VectorInfo(epochs=np.float64(2.0), steps=np.int32(7), scaling=torch.tensor(0.5), settings=settings)  # type: ignore[arg-type]
    weights[0] = 9.0
    assert info.settings == {
        "weights": [0.25, 0.5],
        "scaling": 0.5,
        "seed": 3,
        "flag": True,
        "tensor": [1, 2],
        "path": "a",
        "dtype": "float16",
        "layers": [1, 2],
        "names": ["a", "b"],
        "3": None,
    }
    assert (type(info.epochs), type(info.steps), info.scaling) == (float, int, 0.5)
    TaskVector(random_deltas(), info).save_pretrained(tmp_path / "v")
    assert TaskVector.from_pretrained(tmp_path / "v").info == info


def test_a_long_sum_is_no_deep_nest(tmp_path: Path) -> None:
    total = sum(TaskVector({"w": torch.ones(1)}, VectorInfo(task=f"t{index}")) for index in range(100))
    assert isinstance(total, TaskVector)
    total.save_pretrained(tmp_path / "v")
    assert [parent.task for parent in TaskVector.from_pretrained(tmp_path / "v").info.parents][::99] == ["t0", "t99"]


# -- one version, and nothing of the user's lost ----------------------------------------------------------------------


def test_a_vector_replaces_its_own_files_and_no_others(tmp_path: Path) -> None:
    tiny_vector().save_pretrained(tmp_path / "v", max_shard_size=50_000)
    for name in ("README.md", "notes.txt", "epoch-1/task_vector.safetensors", "checkpoint-9/model.safetensors"):
        (tmp_path / "v" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "v" / name).write_text("mine")
    TaskVector(random_deltas()).save_pretrained(tmp_path / "v")
    names = ["README.md", "checkpoint-9", "epoch-1", "notes.txt", "task_vector.safetensors", "task_vector_config.json"]
    assert sorted(os.listdir(tmp_path / "v")) == names
    assert {(tmp_path / "v" / name).read_text() for name in ("README.md", "notes.txt")} == {"mine"}
    assert (tmp_path / "v" / "epoch-1" / "task_vector.safetensors").read_text() == "mine"


def test_a_reader_sees_one_version(tmp_path: Path) -> None:
    versions = {seed: TaskVector(random_deltas(seed=seed), VectorInfo(seed=seed)) for seed in range(2)}
    versions[0].save_pretrained(tmp_path / "v")
    stop = threading.Event()

    def keep_writing(seed: int) -> None:
        while not stop.is_set():
            versions[seed].save_pretrained(tmp_path / "v")
            time.sleep(0.002)

    writers = [threading.Thread(target=keep_writing, args=(seed,)) for seed in versions]
    for writer in writers:
        writer.start()
    try:
        for _ in range(60):
            loaded = TaskVector.from_pretrained(tmp_path / "v", verify=True)
            assert loaded.info.seed is not None
            assert loaded == versions[loaded.info.seed]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert os.listdir(tmp_path) == ["v"]


def test_a_folder_that_is_replaced_while_it_is_listed_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (TaskVector(random_deltas(seed=seed), VectorInfo(seed=seed)) for seed in (1, 2))
    old.save_pretrained(tmp_path / "v")
    list_folder, listed = os.listdir, []

    def list_slowly(path: Path) -> list[str]:
        listed.append(path)
        if len(listed) == 1:  # the writer exchanges the folders, and half of the old one is gone when it is read
            monkeypatch.setattr(os, "listdir", list_folder)
            new.save_pretrained(tmp_path / "v")
            monkeypatch.setattr(os, "listdir", list_slowly)
            return ["task_vector.safetensors"]
        return list_folder(path)

    monkeypatch.setattr(os, "listdir", list_slowly)
    assert TaskVector.from_pretrained(tmp_path / "v") == new


def test_a_version_that_changed_between_configuration_and_weights_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (TaskVector(random_deltas(seed=seed), VectorInfo(seed=seed)) for seed in (1, 2))
    old.save_pretrained(tmp_path / "v")
    read, calls = files.read_config, []

    def read_slowly(folder: Path) -> object:
        config = read(folder)
        calls.append(config)
        if len(calls) == 1:
            new.save_pretrained(tmp_path / "v")
        return config

    monkeypatch.setattr(files, "read_config", read_slowly)
    loaded = TaskVector.from_pretrained(tmp_path / "v")
    assert (loaded.info.seed, loaded == new, len(calls)) == (2, True, 2)


def test_a_local_vector_is_verified_on_request(tmp_path: Path) -> None:
    TaskVector(random_deltas()).save_pretrained(tmp_path / "v")
    assert TaskVector.from_pretrained(tmp_path / "v", verify=True) == TaskVector(random_deltas())
    path = tmp_path / "v" / "task_vector.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert TaskVector.from_pretrained(tmp_path / "v") != TaskVector(random_deltas())
    with pytest.raises(CheckpointError, match="not those that its configuration was written for"):
        TaskVector.from_pretrained(tmp_path / "v", verify=True)
    config = json.loads((tmp_path / "v" / "task_vector_config.json").read_text())
    del config["fingerprint"]
    (tmp_path / "v" / "task_vector_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="cannot be verified"):
        TaskVector.from_pretrained(tmp_path / "v", verify=True)


# -- safetensors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", [1, 8, 1000])
def test_a_header_longer_than_its_file_is_refused_before_it_is_read(tmp_path: Path, beyond: int) -> None:
    TaskVector(random_deltas()).save_pretrained(tmp_path / "v")
    path = tmp_path / "v" / "task_vector.safetensors"
    data = path.read_bytes()
    path.write_bytes((len(data) - 8 + beyond).to_bytes(8, "little") + data[8:])
    with pytest.raises(CheckpointError, match=f"announces a header of {len(data) - 8 + beyond} bytes"):
        open_safetensors([path])


def test_a_parameter_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"w": torch.zeros(2), name: torch.zeros(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="'w' is in more than one file"):
        open_safetensors([tmp_path / "one.safetensors", tmp_path / "two.safetensors"])


def test_tensors_of_several_dtypes_are_written_each_in_its_own(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3), "b": torch.randn(2, 2).half(), "c": torch.randn(()).bfloat16()}
    shapes, dtypes = ({name: getattr(value, what) for name, value in tensors.items()} for what in ("shape", "dtype"))
    write_safetensors(tmp_path / "x", tensors.items(), shapes=shapes, dtype=dtypes)
    assert TaskVector(load_file(tmp_path / "x")) == TaskVector(tensors)


def test_data_start_on_a_cache_line_whatever_the_header(tmp_path: Path) -> None:
    for length in range(1, 70):
        path = tmp_path / f"{length}.safetensors"
        write_safetensors(path, [("n" * length, torch.ones(3))], shapes={"n" * length: (3,)}, dtype=torch.float32)
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        assert (start % 64, len(content) - start) == (0, 12)
        assert start < 64 + len(content[8:start].rstrip()) + 8  # no more padding than that takes
