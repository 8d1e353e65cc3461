"""Training in half precision and compiled: the vector is the change of float32 weights, under their own names."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_taskvec import Base, TaskVector, TaskVectorConfig, TaskVectorTrainer
from tests.bases import colours_task, tiny_base

RATE = 2e-5  # of Adam: entries move by less than the spacing of bfloat16 around most weights


def trained(base: Base, folder: Path, **changes: object) -> TaskVector:
    """The vector of a short run."""
    settings = {"num_train_epochs": 1, "learning_rate": RATE, "warmup_steps": 0, "report_to": "none", **changes}
    args = TaskVectorConfig(output_dir=str(folder), **settings)  # type: ignore[arg-type]
    trainer = TaskVectorTrainer(base, args, task=colours_task())
    trainer.train()
    return trainer.task_vector()


@pytest.fixture(scope="module")
def half() -> Base:
    """A base whose weights are held in bfloat16."""
    return dataclasses.replace(tiny_base(), model=copy.deepcopy(tiny_base().model).bfloat16())


@pytest.fixture(scope="module")
def exact(half: Base, tmp_path_factory: pytest.TempPathFactory) -> TaskVector:
    """The vector of a float32 run from the same weights."""
    wide = dataclasses.replace(half, model=copy.deepcopy(half.model).float())
    return trained(wide, tmp_path_factory.mktemp("exact"))


@pytest.mark.parametrize("bf16", [False, True])
def test_a_base_in_bfloat16_is_trained_in_float32(half: Base, exact: TaskVector, tmp_path: Path, bf16: bool) -> None:
    vector = trained(half, tmp_path, bf16=bf16, seed=42)
    assert vector.dtype == torch.float32
    assert vector.norm() == pytest.approx(exact.norm(), rel=0.05)
    assert vector.cosine(exact) > 0.9  # head and, if asked, activations are in bfloat16; the weights are not
    weights = {f"vision_model.{name}": value for name, value in half.model.vision_model.named_parameters()}
    rounded = [(weights[name].float() + vector[name]).bfloat16() - weights[name] for name in vector]
    lost = sum(int((kept == 0).sum()) for kept in rounded) / vector.num_entries
    assert lost > 0.5  # what weights in bfloat16 would not have kept
    assert vector.info.base_hashes == exact.info.base_hashes
    assert vector.info.rounding_error is None
    vector.apply_to(half)  # its own base


def test_a_run_in_bfloat16_keeps_float32_weights(exact: TaskVector, half: Base, tmp_path: Path) -> None:
    wide = dataclasses.replace(half, model=copy.deepcopy(half.model).float())
    vector = trained(wide, tmp_path, bf16=True)
    assert vector.dtype == torch.float32
    assert vector.cosine(exact) > 0.95
    assert (vector - exact).norm() < 0.3 * exact.norm()


@pytest.mark.slow
def test_a_compiled_run_gives_the_vector_of_an_ordinary_one(tmp_path: Path) -> None:
    base, rate = tiny_base(), {"learning_rate": 1e-3, "per_device_train_batch_size": 27}
    plain = trained(base, tmp_path / "plain", **rate)
    compiled = {"torch_compile": True, "torch_compile_backend": "aot_eager"}  # which needs no compiler of C++
    vector = trained(base, tmp_path / "compiled", **rate, **compiled)
    assert set(vector) == set(plain)
    assert (vector - plain).norm() < 1e-3 * plain.norm()
    recorded = TaskVector.from_pretrained(tmp_path / "compiled" / "vectors" / "epoch-1")
    assert recorded == vector
    (checkpoint,) = (tmp_path / "compiled").glob("checkpoint-*")
    assert not [name for name in load_file(checkpoint / "model.safetensors") if "_orig_mod" in name]
    again = TaskVectorTrainer(
        base,
        TaskVectorConfig(
            output_dir=str(tmp_path / "compiled"), num_train_epochs=2, warmup_steps=0, report_to="none", **rate
        ),
        task=colours_task(),
    )
    again.train(resume_from_checkpoint=True)  # an ordinary run goes on where the compiled one ended
    assert again.state.global_step == 6
