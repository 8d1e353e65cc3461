"""Vectors from checkpoints and back, in every layout that a CLIP vision tower is saved in."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection

from hf_taskvec.errors import (
    BaseMismatchError,
    CheckpointError,
    IncompatibleVectorsError,
    NonFiniteError,
    OutputExistsError,
)
from hf_taskvec.models.base import load_base
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import equal_vectors, finetuned, rewrite_weights, tiny_vector
from tests.hub_server import HubServer

Folders = tuple[Path, Path]


@pytest.fixture
def vision(tmp_path: Path, tuned: CLIPModel) -> Path:
    """The fine-tuned vision tower as `CLIPVisionModel` of Transformers 5 writes it: flat names."""
    CLIPVisionModel(tuned.config.vision_config).save_pretrained(tmp_path / "vision")
    flat = {name: value.contiguous() for name, value in tuned.vision_model.state_dict().items()}
    rewrite_weights(tmp_path / "vision", flat)
    return tmp_path / "vision"


def test_checkpoints_give_the_vector_of_their_models(checkpoints: Folders, base: CLIPModel, tuned: CLIPModel) -> None:
    vector = TaskVector.from_checkpoints(*checkpoints, task="mnist")
    assert equal_vectors(vector, TaskVector.from_models(base, tuned))
    assert (vector.info.task, vector.info.base, vector.info.finetuned) == ("mnist", "base", "tuned")


def test_flat_and_prefixed_files_give_the_same_vector(checkpoints: Folders, vision: Path) -> None:
    assert "encoder.layers.0.layer_norm1.weight" in open_raw(vision)
    flat = TaskVector.from_checkpoints(checkpoints[0], vision)
    position_ids = {"embeddings.position_ids": torch.arange(17)[None]}
    rewrite_weights(vision, position_ids, prefix=("", "vision_model."))  # as version 4 wrote them
    assert "vision_model.encoder.layers.0.layer_norm1.weight" in open_raw(vision)
    assert equal_vectors(TaskVector.from_checkpoints(checkpoints[0], vision), flat)
    assert equal_vectors(TaskVector.from_checkpoints(*checkpoints), flat)


def open_raw(folder: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return set(file.keys())


def test_a_vision_model_with_projection_is_a_checkpoint_too(
    tmp_path: Path, checkpoints: Folders, tuned: CLIPModel
) -> None:
    model = CLIPVisionModelWithProjection(tuned.config.vision_config)
    model.vision_model.load_state_dict(tuned.vision_model.state_dict())
    model.visual_projection.load_state_dict(tuned.visual_projection.state_dict())
    model.save_pretrained(tmp_path / "m")
    assert equal_vectors(
        TaskVector.from_checkpoints(checkpoints[0], tmp_path / "m"), TaskVector.from_checkpoints(*checkpoints)
    )
    with torch.no_grad():
        model.visual_projection.weight.add_(1.0)
    model.save_pretrained(tmp_path / "m")
    with pytest.raises(IncompatibleVectorsError, match="include_projection=True"):
        TaskVector.from_checkpoints(checkpoints[0], tmp_path / "m")
    vector = TaskVector.from_checkpoints(checkpoints[0], tmp_path / "m", include_projection=True)
    assert "visual_projection.weight" in vector.deltas


def test_asking_for_a_projection_that_the_finetuned_file_lacks_is_an_error(checkpoints: Folders, vision: Path) -> None:
    with pytest.raises(IncompatibleVectorsError, match=r"visual_projection\.weight' is in the base but not in"):
        TaskVector.from_checkpoints(checkpoints[0], vision, include_projection=True)


def test_missing_and_extra_parameters_are_all_named(checkpoints: Folders, vision: Path) -> None:
    missing = ["encoder.layers.0.mlp.fc1.bias", "post_layernorm.weight"]
    rewrite_weights(vision, {**dict.fromkeys(missing), "encoder.layers.9.extra": torch.zeros(1)})
    with pytest.raises(IncompatibleVectorsError) as error:
        TaskVector.from_checkpoints(checkpoints[0], vision)
    for name in [*missing, "encoder.layers.9.extra"]:
        assert f"'vision_model.{name}'" in str(error.value)


def test_a_doubled_name_is_refused(vision: Path) -> None:
    name = "encoder.layers.0.mlp.fc1.bias"
    rewrite_weights(vision, {f"vision_model.{name}": torch.zeros(128)})
    with pytest.raises(CheckpointError, match="in canonical form"):
        open_checkpoint(vision)


def test_weights_that_could_run_code_are_refused_with_the_way_out(tmp_path: Path, checkpoints: Folders) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    refusal = r"Pickled weights .* are refused, since loading them can run code.*save_pretrained"
    with pytest.raises(CheckpointError, match=refusal):
        TaskVector.from_checkpoints(checkpoints[0], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["pytorch_model.bin"]  # and not opened


def test_a_damaged_file_is_named(vision: Path, checkpoints: Folders) -> None:
    data = (vision / "model.safetensors").read_bytes()
    (vision / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no valid safetensors file"):
        TaskVector.from_checkpoints(checkpoints[0], vision)


def test_a_sharded_checkpoint_is_one_checkpoint(tmp_path: Path, checkpoints: Folders, tuned: CLIPModel) -> None:
    tuned.save_pretrained(tmp_path / "m", max_shard_size="100KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1
    assert equal_vectors(
        TaskVector.from_checkpoints(checkpoints[0], tmp_path / "m"), TaskVector.from_checkpoints(*checkpoints)
    )


@pytest.mark.parametrize("scaling", [1.0, 0.3])
def test_a_written_checkpoint_loads_and_equals_apply_to(
    tmp_path: Path, checkpoints: Folders, base: CLIPModel, scaling: float
) -> None:
    vector = TaskVector.from_checkpoints(*checkpoints)
    vector.save_checkpoint(checkpoints[0], tmp_path / "out", scaling=scaling)
    expected = vector.apply_to(base, scaling=scaling)
    loaded = CLIPModel.from_pretrained(tmp_path / "out")
    assert same_weights(loaded, expected)
    vision, loading = CLIPVisionModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"]
    assert same_weights(vision, expected.vision_model)


def same_weights(left: torch.nn.Module, right: torch.nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_written_checkpoint_keeps_layout_and_side_files(tmp_path: Path, vision: Path, tuned: CLIPModel) -> None:
    (vision / "vocab.txt").write_text("a")
    (vision / "secret.bin").write_text("no side file of a checkpoint")
    vector = tiny_vector(tuned, seed=5)
    vector.save_checkpoint(vision, tmp_path / "out")
    assert open_raw(tmp_path / "out") == open_raw(vision)
    side = ["config.json", "model.safetensors", "task_vector_applied.json", "vocab.txt"]
    assert sorted(os.listdir(tmp_path / "out")) == side
    moved = finetuned(tuned, seed=5).vision_model
    loaded = CLIPVisionModel.from_pretrained(tmp_path / "out")
    for left, right in zip(loaded.parameters(), moved.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-7)


def test_a_checkpoint_is_not_written_from_another_base_nor_over_something_else(
    tmp_path: Path, checkpoints: Folders
) -> None:
    vector = TaskVector.from_checkpoints(*checkpoints)
    with pytest.raises(
        BaseMismatchError, match=r"made from base, and 'tuned' has other values in \d+ of \d+ parameters"
    ):
        vector.save_checkpoint(checkpoints[1], tmp_path / "out")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    with pytest.raises(OutputExistsError):
        vector.save_checkpoint(checkpoints[0], tmp_path / "photos")
    assert sorted(os.listdir(tmp_path)) == ["photos"]


@pytest.mark.parametrize("other", [False, True])
def test_a_written_checkpoint_records_what_was_added_to_what(tmp_path: Path, checkpoints: Folders, other: bool) -> None:
    vector = TaskVector.from_checkpoints(*checkpoints, task="mnist")
    vector.save_checkpoint(checkpoints[other], tmp_path / "out", scaling=0.5, allow_other_base=other)
    applied = json.loads((tmp_path / "out" / "task_vector_applied.json").read_text())
    assert (applied["base"], applied["scaling"]) == (checkpoints[other].name, 0.5)
    assert applied["other_base"] is other
    assert applied["vector"]["task"] == "mnist"


def test_half_precision_checkpoints_stay_half_precision(tmp_path: Path, checkpoints: Folders, base: CLIPModel) -> None:
    CLIPModel.from_pretrained(checkpoints[0], dtype=torch.float16).save_pretrained(tmp_path / "half")
    CLIPModel.from_pretrained(checkpoints[1], dtype=torch.float16).save_pretrained(tmp_path / "tuned")
    vector = TaskVector.from_checkpoints(tmp_path / "half", tmp_path / "tuned")
    vector.save_checkpoint(tmp_path / "half", tmp_path / "out")
    loaded = CLIPModel.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.float16
    assert same_weights(loaded, CLIPModel.from_pretrained(tmp_path / "tuned"))


def test_a_subfolder_is_opened_and_may_not_leave_the_folder(tmp_path: Path) -> None:
    vector = tiny_vector()
    vector.save_pretrained(tmp_path / "series" / "epoch-1")
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "series", subfolder="epoch-1"), vector)
    shutil.copytree(tmp_path / "series" / "epoch-1", tmp_path / "elsewhere")
    for subfolder in ("../elsewhere", str(tmp_path / "elsewhere"), "epoch-1/../../elsewhere"):
        with pytest.raises(CheckpointError, match="leaves its folder"):
            TaskVector.from_pretrained(tmp_path / "series", subfolder=subfolder)


VIT_B32 = """
import sys, time, torch
from pathlib import Path
from transformers import CLIPModel, CLIPConfig
from hf_taskvec.vectors.vector import TaskVector

def peak():  # highest anonymous memory so far, sampled from a thread
    import threading
    state = {"max": 0}
    def watch():
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            state["max"] = max(state["max"], next(int(l.split()[1]) for l in lines if l.startswith("RssAnon")))
            time.sleep(0.002)
    threading.Thread(target=watch, daemon=True).start()
    return state

root, state = Path(sys.argv[1]), peak()
vector = TaskVector.from_checkpoints(root / "base", root / "tuned")
vector.save_pretrained(root / "v")
del vector
loaded = TaskVector.from_pretrained(root / "v")
loaded.save_checkpoint(root / "base", root / "out", scaling=0.5)
model = CLIPModel.from_pretrained(root / "base")
model = loaded.apply_to(model)
print(loaded.num_entries, state["max"] * 1024)
"""
MAKE_VIT_B32 = """
import sys, torch
from transformers import CLIPModel, CLIPConfig
torch.manual_seed(0)
with torch.device("meta"):
    model = CLIPModel(CLIPConfig())
model = model.to_empty(device="cpu")
with torch.no_grad():
    for p in model.parameters(): p.normal_(std=0.02)
    for b in model.buffers(): b.copy_(torch.arange(b.numel()).view(b.shape))
    model.save_pretrained(sys.argv[1] + "/base")
    for p in model.vision_model.parameters(): p.add_(torch.randn_like(p), alpha=1e-4)
    model.save_pretrained(sys.argv[1] + "/tuned")
"""


@pytest.mark.slow
def test_a_vit_b32_vector_is_made_saved_loaded_and_applied_below_1_2_gb(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", MAKE_VIT_B32, tmp_path], check=True)
    run = subprocess.run([sys.executable, "-c", VIT_B32, tmp_path], check=True, stdout=subprocess.PIPE, text=True)
    parameters, peak = map(int, run.stdout.split())
    print(f"{parameters} entries, peak anonymous memory {peak / 1e9:.2f} GB")
    assert parameters > 87_000_000
    assert peak < 1.2e9


# -- nothing of the user's is lost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("marked", [False, True])
def test_a_checkpoint_never_takes_the_place_of_a_project(tmp_path: Path, checkpoints: Folders, marked: bool) -> None:
    vector, project = TaskVector.from_checkpoints(*checkpoints), tmp_path / "project"
    if marked:  # an earlier output in which somebody went on working
        vector.save_checkpoint(checkpoints[0], project)
    for name, text in {"config.json": "{}", "notes.txt": "mine", "src/main.py": "mine", ".git/HEAD": "mine"}.items():
        if not (marked and name == "config.json"):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).write_text(text)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match=r"'\.git'" if marked else "no task_vector_applied.json"):
        vector.save_checkpoint(checkpoints[0], project)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_a_checkpoint_replaces_its_own_kind(tmp_path: Path, checkpoints: Folders) -> None:
    vector = TaskVector.from_checkpoints(*checkpoints)
    vector.save_checkpoint(checkpoints[0], tmp_path / "out")
    vector.save_checkpoint(checkpoints[0], tmp_path / "out", scaling=0.5)
    applied = json.loads((tmp_path / "out" / "task_vector_applied.json").read_text())
    assert applied["scaling"] == 0.5
    assert sorted([*applied["files"], "task_vector_applied.json"]) == sorted(os.listdir(tmp_path / "out"))
    assert os.listdir(tmp_path) == ["out"]


def test_a_checkpoint_that_does_not_tell_its_files_is_left_alone(tmp_path: Path, checkpoints: Folders) -> None:
    vector = TaskVector.from_checkpoints(*checkpoints)
    vector.save_checkpoint(checkpoints[0], tmp_path / "out")
    (tmp_path / "out" / "task_vector_applied.json").write_text("{}")
    with pytest.raises(OutputExistsError, match=r"'config\.json'"):
        vector.save_checkpoint(checkpoints[0], tmp_path / "out")


# -- NaN and Inf never leave ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", [float("nan"), float("inf"), 1e300])
def test_a_checkpoint_that_is_not_finite_is_not_written(tmp_path: Path, checkpoints: Folders, scaling: float) -> None:
    vector = TaskVector.from_checkpoints(*checkpoints)
    with pytest.raises(NonFiniteError):
        vector.save_checkpoint(checkpoints[0], tmp_path / "out", scaling=scaling)
    assert os.listdir(tmp_path) == []


def test_an_overflow_of_a_half_precision_base_is_named(tmp_path: Path, checkpoints: Folders, base: CLIPModel) -> None:
    half = CLIPModel.from_pretrained(checkpoints[0], dtype=torch.float16)
    half.save_pretrained(tmp_path / "half")
    vector = TaskVector.from_checkpoints(*checkpoints)
    for act in (
        lambda: vector.apply_to(half, scaling=1e7, allow_other_base=True),
        lambda: vector.save_checkpoint(tmp_path / "half", tmp_path / "out", scaling=1e7, allow_other_base=True),
    ):
        with pytest.raises(NonFiniteError, match=r"vision_model.* in torch.float16 .*smaller scaling"):
            act()
    assert not (tmp_path / "out").exists()


# -- the base ---------------------------------------------------------------------------------------------------------


def test_each_parameter_keeps_its_own_dtype(tmp_path: Path, checkpoints: Folders, base: CLIPModel) -> None:
    mixed = copy.deepcopy(base).half()
    mixed.logit_scale.data = mixed.logit_scale.data.float()
    mixed.save_pretrained(tmp_path / "mixed")
    vector = TaskVector.from_checkpoints(*checkpoints)
    vector.save_checkpoint(tmp_path / "mixed", tmp_path / "out", allow_other_base=True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: value.dtype for name, value in written.items() if value.dtype != torch.float16} == {
        "logit_scale": torch.float32
    }


def test_the_base_is_known_by_value_by_name_or_by_the_vector(tmp_path: Path) -> None:
    base = load_base()
    vector = TaskVector.from_models(base, finetuned(base.model), info=VectorInfo(base=base.name))
    vector.save_checkpoint(output_dir=tmp_path / "known")
    vector.save_checkpoint(base.name, tmp_path / "named")
    vector.save_checkpoint(base, tmp_path / "given")
    expected = vector.apply_to(base)
    for name in ("known", "named", "given"):
        again = load_base(tmp_path / name)
        half = name != "given"  # the embedded base is stored in float16, and its checkpoint stays so
        assert same_weights(again.model, copy.deepcopy(expected.model).half().float() if half else expected.model)
        assert again.encode_text(["a circle"]).shape == base.encode_text(["a circle"]).shape


def test_what_is_missing_is_said_before_any_work(tmp_path: Path) -> None:
    vector = tiny_vector()
    with pytest.raises(CheckpointError, match="does not tell its base; pass base="):
        vector.save_checkpoint(output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match=r"save_checkpoint\(output_dir=\.\.\.\)"):
        vector.save_checkpoint("openai/clip-vit-base-patch32")
    with pytest.raises(TypeError, match="scaling must be a number, got str"):
        vector.save_checkpoint(output_dir=tmp_path / "out", scaling="half")  # type: ignore[arg-type]


def test_a_checkpoint_tells_no_provenance_that_could_not_be_read_again(tmp_path: Path, checkpoints: Folders) -> None:
    vector = TaskVector.from_checkpoints(*checkpoints, task="\x1b[2J")
    with pytest.raises(ValueError, match=r"could not be read again.*'task' holds control characters"):
        vector.save_checkpoint(checkpoints[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_private_base_is_read_with_the_token(hub: HubServer, tmp_path: Path, checkpoints: Folders) -> None:
    hub.store.add_folder("model", "user/private", checkpoints[0])
    hub.store.get("model", "user/private").private = True
    vector = TaskVector.from_checkpoints(*checkpoints)
    vector = TaskVector(vector.deltas, replace(vector.info, base="user/private"))
    access = {"token": "read-user", "cache_dir": tmp_path / "cache"}
    vector.save_checkpoint(output_dir=tmp_path / "out", **access)
    assert (tmp_path / "out" / "model.safetensors").is_file()
    with pytest.raises(CheckpointError):
        vector.save_checkpoint(output_dir=tmp_path / "two", token=False, cache_dir=tmp_path / "other")


def test_a_base_that_is_only_a_folders_name_is_asked_for(
    tmp_path: Path, checkpoints: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = TaskVector.from_checkpoints(*checkpoints)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"base that the vector names cannot be opened; pass base="):
        vector.save_checkpoint(output_dir=tmp_path / "out")
    monkeypatch.chdir(checkpoints[0].parent)
    vector.save_checkpoint(output_dir=tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_link_out_of_the_base_is_not_followed(tmp_path: Path, checkpoints: Folders) -> None:
    shutil.copytree(checkpoints[0], tmp_path / "base")
    (tmp_path / "secret").write_text("token")
    (tmp_path / "base" / "vocab.txt").symlink_to(tmp_path / "secret")
    vector = TaskVector.from_checkpoints(*checkpoints)
    with pytest.raises(CheckpointError, match="a link that leaves"):
        vector.save_checkpoint(tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()
