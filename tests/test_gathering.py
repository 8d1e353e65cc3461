"""Vectors of models that are sharded over processes, and what is refused of such runs by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hf_taskvec import TaskVector, TaskVectorConfig
from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError
from hf_taskvec.vectors import gathering
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.vectors.gathering import gather_vector
from tests.architectures import model_of, moved
from tests.helpers import equal_vectors, finetuned, in_processes, tiny_clip

SCRIPT = """
import sys
from pathlib import Path
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from hf_taskvec import TaskVector
from hf_taskvec.errors import CheckpointError, IncompatibleVectorsError
from hf_taskvec.vectors.gathering import gather_vector
from hf_taskvec.weights.processes import processes

folder, group = Path(sys.argv[1]), processes()
mesh = init_device_mesh("cpu", (group.num_processes,))
model = AutoModelForCausalLM.from_pretrained(folder / "tuned")
for layer in model.model.layers:
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
gather_vector(folder / "base", model, folder / "out", task="t")
gather_vector(folder / "base", model, folder / "some", include="model.layers.*")
for name, call in {
    "memory": lambda: TaskVector.from_models(model, model),
    "other": lambda: gather_vector(folder / "other", model, folder / "nothing"),
}.items():
    try:
        call()
    except (CheckpointError, IncompatibleVectorsError) as error:
        (folder / f"{name}-{group.process_index}").write_text(str(error))
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_the_vector_of_an_fsdp_run_is_that_of_its_whole_model(count: int, tmp_path: Path) -> None:
    base = model_of("llama")
    base.save_pretrained(tmp_path / "base")
    moved(base).save_pretrained(tmp_path / "tuned")
    model_of("bert").save_pretrained(tmp_path / "other")
    (tmp_path / "script.py").write_text(SCRIPT)
    in_processes(tmp_path / "script.py", tmp_path, count=count)
    for name, include in (("out", ()), ("some", "model.layers.*")):
        expected = TaskVector.from_checkpoints(tmp_path / "base", tmp_path / "tuned", include=include)
        gathered = TaskVector.from_pretrained(tmp_path / name, verify=True)
        assert equal_vectors(gathered, expected)
        assert gathered.info.base_hashes == expected.info.base_hashes
        assert gathered.info.left_out == expected.info.left_out
        assert len(list((tmp_path / name).glob("*.safetensors"))) == count
    for rank in range(count):
        assert "is sharded over processes" in (tmp_path / f"memory-{rank}").read_text()
        assert "base and model differ" in (tmp_path / f"other-{rank}").read_text()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were the first of two processes, up to where they write."""
    group = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    monkeypatch.setattr(gathering, "processes", lambda: group)
    monkeypatch.setattr(gathering, "write_vector_together", lambda *values, **more: None)


@pytest.mark.usefixtures("launched")
def test_a_text_tower_that_changed_too_is_refused_as_of_whole_models(tmp_path: Path) -> None:
    base = tiny_clip()
    base.save_pretrained(tmp_path / "base")
    model = finetuned(base)
    gather_vector(tmp_path / "base", model, tmp_path / "out")
    with torch.no_grad():
        model.text_model.final_layer_norm.bias.add_(1.0)
    with pytest.raises(IncompatibleVectorsError, match=r"'text_model\.final_layer_norm\.bias' changed too.*include="):
        gather_vector(tmp_path / "base", model, tmp_path / "out")
    gather_vector(tmp_path / "base", model, tmp_path / "out", vision_only=True)


@pytest.mark.usefixtures("launched")
def test_a_quantised_model_is_refused_as_of_whole_models(tmp_path: Path) -> None:
    base = tiny_clip()
    base.save_pretrained(tmp_path / "base")
    layer = base.vision_model.post_layernorm
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(CheckpointError, match="weights of the model are quantised"):
        gather_vector(tmp_path / "base", base, tmp_path / "out")


@pytest.mark.usefixtures("launched")
def test_a_model_narrower_than_its_base_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = tiny_clip()
    base.save_pretrained(tmp_path / "base")
    gather_vector(tmp_path / "base", finetuned(base), tmp_path / "out")
    assert "rounding" not in caplog.text
    gather_vector(tmp_path / "base", finetuned(base).bfloat16(), tmp_path / "out")
    assert "the model is in torch.bfloat16, narrower than the base: its rounding is part of the vector" in caplog.text


def test_alone_it_names_the_way_without_a_launcher(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"alone, TaskVector\.from_models does"):
        gather_vector("hf-taskvec/tiny-clip", torch.nn.Linear(1, 1), tmp_path / "out")


@pytest.mark.parametrize("name", ["fsdp", "deepspeed", "megatron_lm"])
def test_a_launcher_that_shards_the_tower_is_refused_by_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(ValueError, match=rf"{name} must be off.*pickle.*shard=True.*TaskVector\.from_checkpoints"):
        TaskVectorConfig(output_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("left", "remedy"),
    [
        ("__0_0.distcp", "accelerate merge-weights"),
        ("pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights"),
        ("zero_to_fp32.py", "zero_to_fp32.py FOLDER OUT --safe_serialization"),
        ("shards.json", "its vectors are in the folder vectors beside it"),
    ],
)
def test_a_folder_of_shards_is_named_with_what_makes_weights_of_it(left: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).touch()
    with pytest.raises(CheckpointError, match=remedy):
        open_checkpoint(tmp_path)
