"""Checkpoints merged into a checkpoint: the way over a vector, bit for bit, in constant memory, also after a kill."""

from __future__ import annotations

import json
import logging
import resource
import runpy
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from hf_taskvec.errors import BaseMismatchError, CheckpointError, NonFiniteError, NoSpaceError, OutputExistsError
from hf_taskvec.merging import MergeMethod, checkpoints, merge, merge_checkpoints
from hf_taskvec.merging.registry import METHODS as REGISTERED
from hf_taskvec.vectors import applied
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights import arithmetic, continued, folders, kept
from hf_taskvec.weights.arithmetic import PIECE, scaled_sum
from tests.architectures import model_of, moved
from tests.helpers import anonymous_bytes, rewrite_weights
from tests.scripts.dying_merge import merge_until

METHODS: dict[str, dict[str, Any]] = {"task_arithmetic": {}, "ties": {"density": 0.3}, "dare_ties": {}, "iso_c": {}}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model in bfloat16 and two made from it; never changed by a test."""
    folder = tmp_path_factory.mktemp("models")
    base = model_of("llama").to(torch.bfloat16)
    base.save_pretrained(folder / "base")
    for seed in (1, 2):
        moved(base, seed=seed).save_pretrained(folder / f"tuned-{seed}")
    (folder / "base" / "tokenizer_config.json").write_text("{}")
    model_of.cache_clear()
    return folder


def tuned(folder: Path) -> list[Path]:
    return [folder / "tuned-1", folder / "tuned-2"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "task_vector_applied.json"}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("method", METHODS)
def test_it_is_what_a_merge_and_a_checkpoint_with_its_vector_give(method: str, models: Path, tmp_path: Path) -> None:
    merge_checkpoints(
        models / "base", tuned(models), method, output_dir=tmp_path / "out", scaling=0.5, **METHODS[method]
    )
    vectors = [TaskVector.from_checkpoints(models / "base", folder) for folder in tuned(models)]
    merged = merge(vectors, method, scaling=0.5, **METHODS[method])
    merged.save_checkpoint(models / "base", tmp_path / "expected")
    assert files(tmp_path / "out") == files(tmp_path / "expected")
    assert "tokenizer_config.json" in files(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "task_vector_applied.json").read_text())
    assert [told["base"], told["vector"]["method"], told["vector"]["scaling"]] == ["base", method, 0.5]
    assert [parent["finetuned"] for parent in told["vector"]["parents"]] == ["tuned-1", "tuned-2"]
    _, loading = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())


def test_vectors_and_checkpoints_merge_together_and_what_none_covers_stays(models: Path, tmp_path: Path) -> None:
    norms = "model.layers.*.weight"
    vector = TaskVector.from_checkpoints(models / "base", models / "tuned-1", include=norms)
    vector.save_pretrained(tmp_path / "vector")
    merge_checkpoints(models / "base", [vector], output_dir=tmp_path / "one")
    merge_checkpoints(models / "base", [models / "tuned-1"], include=norms, output_dir=tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")
    result, before, after = (
        load_file(folder / "model.safetensors") for folder in (tmp_path / "one", models / "base", models / "tuned-1")
    )
    for name, weight in result.items():
        assert weight.equal((after if "layers" in name else before)[name]), name
    with pytest.raises(ValueError, match=r"are for checkpoints; .*vector holds a vector"):
        merge_checkpoints(models / "base", [tmp_path / "vector"], include=norms, output_dir=tmp_path / "three")
    shutil.copytree(models / "base", tmp_path / "base")
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite_weights(tmp_path / "base", {name: before[name] + 1})
    with pytest.raises(BaseMismatchError, match="other values in 1 of"):
        merge_checkpoints(tmp_path / "base", [vector], output_dir=tmp_path / "three")


def test_what_is_not_finite_is_named_and_nothing_is_left(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "tuned-2", tmp_path / "broken")
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_file(tmp_path / "broken" / "model.safetensors")
    weights[name][0, 0] = torch.nan
    rewrite_weights(tmp_path / "broken", weights)
    for method in ("task_arithmetic", "ties"):
        with pytest.raises(NonFiniteError, match=name):
            merge_checkpoints(
                models / "base", [models / "tuned-1", tmp_path / "broken"], method, output_dir=tmp_path / "out"
            )
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_several_processes_are_told_the_way_over_a_vector(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "processes", lambda: "two")
    with pytest.raises(CheckpointError, match="over_processes=True"):
        merge_checkpoints(models / "base", tuned(models), output_dir="out")


def test_a_folder_of_something_else_is_left_alone(models: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("a week of work")
    with pytest.raises(OutputExistsError):
        merge_checkpoints(models / "base", tuned(models), output_dir=tmp_path)


@pytest.mark.parametrize("kind", ["ties", "save"])
def test_a_killed_process_leaves_what_it_wrote_to_the_next(kind: str, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    TaskVector.from_checkpoints(models / "base", models / "tuned-1").save_pretrained(tmp_path / "vector")
    number = merge_until(0, kind, tmp_path)
    expected = files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    moments = (1, 2, number // 2, number)
    for moment in moments:
        assert merge_until(moment, kind, tmp_path) == moment
        assert not (tmp_path / "out").exists()
        assert len(hidden(tmp_path)) == 2  # what is kept, and the folder that was to take the output's place
        assert merge_until(0, kind, tmp_path) == number - (moment - 1), moment
        assert files(tmp_path / "out") == expected
        assert hidden(tmp_path) == []
        shutil.rmtree(tmp_path / "out")


def test_what_was_kept_serves_the_same_files_only(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    number = merge_until(0, "ties", tmp_path)
    merge_until(number, "ties", tmp_path)
    shutil.copytree(models / "tuned-1", tmp_path / "tuned-2", dirs_exist_ok=True)  # another expert
    assert merge_until(0, "ties", tmp_path) == number
    merge_checkpoints(models / "base", [models / "tuned-1"] * 2, "ties", output_dir=tmp_path / "expected")
    assert files(tmp_path / "out") == files(tmp_path / "expected")
    assert hidden(tmp_path) == []


@pytest.fixture
def stopped(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Works into `out` until a parameter is computed, or to the end; tells how many parameters it computed."""

    def work(call: Callable[..., object], *arguments: Any, until: int = 0, **settings: Any) -> int:
        count = 0

        def added(*values: Any) -> torch.Tensor:
            nonlocal count
            count += 1
            if count == until:
                raise KeyboardInterrupt
            return arithmetic.added(*values)

        monkeypatch.setattr(applied, "added", added)
        with nullcontext() if not until else pytest.raises(KeyboardInterrupt):
            call(*arguments, output_dir=tmp_path / "out", **settings)
        return count

    return work


@pytest.mark.parametrize("name", ["hf-taskvec", "torch"])
@pytest.mark.parametrize("kind", ["save", "merge"])
def test_nothing_that_another_version_wrote_is_taken(
    kind: str, name: str, models: Path, stopped: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = TaskVector.from_checkpoints(models / "base", models / "tuned-1")
    calls: dict[str, list[Any]] = {
        "save": [vector.save_checkpoint, models / "base"],
        "merge": [merge_checkpoints, models / "base", tuned(models)],
    }
    settings = {"resume": True} if kind == "save" else {}
    number = stopped(*calls[kind], **settings)
    stopped(*calls[kind], until=3, **settings)
    assert stopped(*calls[kind], **settings) == number - 2
    stopped(*calls[kind], until=3, **settings)
    monkeypatch.setattr(kept, "version", lambda package: "0" if package == name else version(package))
    assert stopped(*calls[kind], **settings) == number


def test_nothing_that_was_merged_in_another_dtype_is_taken(models: Path, stopped: Callable[..., int]) -> None:
    half = [TaskVector.from_checkpoints(models / "base", folder).to(torch.bfloat16) for folder in tuned(models)]
    wide = [vector.to(torch.float32) for vector in half]  # of the same values; a method may cut by what dtype they had
    number = stopped(merge_checkpoints, models / "base", wide)
    for again in (half, wide):
        stopped(merge_checkpoints, models / "base", half, until=number)
        assert stopped(merge_checkpoints, models / "base", again) == (number if again is wide else 1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("own", {}), ("svc", {"of": "own"}), ("lines", {"of": "svc", "of_settings": {"of": "own"}, "depth": 9})],
)
def test_nothing_that_was_merged_by_other_code_is_taken(
    name: str, settings: dict[str, Any], models: Path, tmp_path: Path, stopped: Callable[..., int]
) -> None:
    number = stopped(merge_checkpoints, models / "base", tuned(models))
    for factor in (1.0, 2.0):
        (tmp_path / "own.py").write_text(
            "from hf_taskvec.merging.engine import map_parameters\n\n\n"
            "def own(vectors):\n"
            f"    return map_parameters(lambda name: vectors[0].deltas[name] * {factor}, vectors)\n"
        )
        REGISTERED["own"] = MergeMethod("own", runpy.run_path(str(tmp_path / "own.py"))["own"], "")
        until = number * (factor == 1)
        try:
            done = stopped(merge_checkpoints, models / "base", tuned(models), name, until=until, **settings)
        finally:
            del REGISTERED["own"]
        assert done == number


def test_what_is_kept_lies_beside_where_a_link_leads_to(
    models: Path, tmp_path: Path, stopped: Callable[..., int]
) -> None:
    (tmp_path / "disk" / "real").mkdir(parents=True)  # may be another disk, from which nothing can be moved in one step
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "real")
    stopped(merge_checkpoints, models / "base", tuned(models), until=3)
    assert hidden(tmp_path) == []
    assert len(hidden(tmp_path / "disk")) == 1
    stopped(merge_checkpoints, models / "base", tuned(models))
    assert (tmp_path / "out").is_symlink()
    assert "model.safetensors" in files(tmp_path / "disk" / "real")
    assert hidden(tmp_path / "disk") == []


@pytest.mark.parametrize("other", [False, True])
def test_a_disk_that_holds_one_result_holds_it_in_two_attempts(
    other: bool, models: Path, tmp_path: Path, stopped: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = (merge_checkpoints, models / "base", tuned(models))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
        with pytest.raises(NoSpaceError, match="checkpoint needs"):
            stopped(*call)
    stopped(*call, until=20)
    (left,) = hidden(tmp_path)
    whole = (models / "base" / "model.safetensors").stat().st_size
    free = whole - (tmp_path / left / "model.safetensors").stat().st_size
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    stopped(*call, scaling=0.5 if other else 1.0)  # another merge clears away what this one left


def test_what_was_kept_serves_the_same_ties_only(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "base", tmp_path / "base")
    stamps = []
    for tied in (False, True):
        config = json.loads((tmp_path / "base" / "config.json").read_text())
        (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
        stamps.append(open_checkpoint(tmp_path / "base").stamp())
    assert stamps[0] != stamps[1]


@pytest.mark.parametrize("damage", ["bit", "cut", "record", "gone"])
def test_what_was_damaged_since_is_computed_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = {f"w{index}": torch.full((64,), float(index)) for index in range(4)}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    kept, out, asked = tmp_path / "kept", tmp_path / "out", []
    kept.mkdir()
    out.mkdir()

    def compute(name: str, until: str = "w3") -> torch.Tensor:
        asked.append(name)
        if name == until:
            raise KeyboardInterrupt
        return tensors[name]

    with pytest.raises(KeyboardInterrupt):
        continued.continue_sharded(out, "m", compute, shapes=shapes, dtype=torch.float32, kept=kept)
    path, record = kept / "m.safetensors", kept / "m.safetensors.done"
    content = bytearray(path.read_bytes())
    content[-300] ^= 1  # in w1 or w2, whichever lies there
    if damage == "record":
        record.write_text("nonsense\n" * 9)
    elif damage == "gone":
        record.unlink()
    else:
        path.write_bytes(content if damage == "bit" else path.read_bytes()[:-100])
    asked.clear()
    with caplog.at_level(logging.WARNING):
        there = continued.continue_sharded(
            out, "m", lambda name: compute(name, ""), shapes=shapes, dtype=torch.float32, kept=kept
        )
    expected = {"bit": 1, "cut": 2, "record": 0, "gone": 0}[damage]
    assert there == expected
    assert asked == list(tensors)[expected:]
    assert ("damaged" in caplog.text) is (damage != "gone")
    assert all(load_file(out / "m.safetensors")[name].equal(tensor) for name, tensor in tensors.items())


def test_several_files_go_on_in_the_one_that_was_being_written(tmp_path: Path) -> None:
    tensors = {f"w{index}": torch.full((256,), float(index)) for index in range(6)}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    (tmp_path / "kept").mkdir()
    (tmp_path / "out").mkdir()

    def compute(name: str, until: str) -> torch.Tensor:
        if name == until:
            raise KeyboardInterrupt
        return tensors[name]

    def work(until: str) -> int:
        return continued.continue_sharded(
            tmp_path / "out",
            "m",
            lambda name: compute(name, until),
            shapes=shapes,
            dtype=torch.float32,
            kept=tmp_path / "kept",
            max_shard_size=2048,
        )

    for until in ("w1", "w3", "w5"):
        with pytest.raises(KeyboardInterrupt):
            work(until)
        assert list((tmp_path / "out").iterdir()) == []
    assert work("") == 5
    index = json.loads((tmp_path / "out" / "m.safetensors.index.json").read_text())["weight_map"]
    assert sorted(set(index.values())) == [f"m-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    for name, file in index.items():
        assert load_file(tmp_path / "out" / file)[name].equal(tensors[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_large_sum_in_half_precision_is_taken_in_pieces_to_the_same_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, PIECE - 5, generator=generator).to(dtype)
    delta = 0.01 * torch.randn(3, PIECE - 5, generator=generator)
    whole = torch.add(weight.float(), delta, alpha=0.5)  # a power of two: rounded once, fused or not
    assert scaled_sum(weight, delta, 0.5).equal(whole.to(dtype))
    assert scaled_sum(weight.T, delta.T, 0.5).equal(whole.to(dtype).T)


def test_a_full_disk_leaves_nothing_of_a_merge_of_checkpoints(models: Path, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            merge_checkpoints(models / "base", tuned(models), output_dir=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_merge_of_checkpoints_holds_no_model_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    for number in range(3):
        weights = {f"layers.{index}.w": random + number for index in range(64)}
        save_file(weights, tmp_path / f"{number}.safetensors")
    del weights
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    merge_checkpoints(files[0], files[1:], output_dir=tmp_path / "out")  # what it allocates once for good
    peak, before = 0, anonymous_bytes()
    plain = continued.bytes_of

    def watched(tensor: torch.Tensor, dtype: torch.dtype) -> memoryview:
        nonlocal peak
        peak = max(peak, anonymous_bytes() - before)
        return plain(tensor, dtype)

    monkeypatch.setattr(continued, "bytes_of", watched)
    merge_checkpoints(files[0], files[1:], output_dir=tmp_path / "out")
    assert peak < 120 << 20  # of that 64 MiB may wait for the writer; the result in float32 would take 256 MiB
