"""What is done before merging: long vectors are shrunk, and training is held near the base or to orthogonal changes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn

from hf_taskvec import TaskVector, TaskVectorConfig, TaskVectorTrainer, VectorInfo, merge
from hf_taskvec.errors import NonFiniteError
from hf_taskvec.merging import condition
from hf_taskvec.training.penalties import orthogonality, penalised, penalty_of
from hf_taskvec.training.plan import run_plan
from hf_taskvec.weights.lowrank import Factors, LowRankDeltas
from tests.bases import colours_task, tiny_base


def vector(*values: float, dtype: torch.dtype = torch.float32) -> TaskVector:
    return TaskVector({"w": torch.tensor(values, dtype=dtype)}, VectorInfo(task=f"norm{values[0]:g}"))


# -- conditioning --------------------------------------------------------------------------------------------------


def test_a_long_vector_gets_the_mean_norm_of_the_others(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        short, middle, long = condition([vector(3.0, 4.0), vector(0.0, 7.0), vector(12.0, 0.0)])
    assert short["w"].tolist() == [3.0, 4.0]  # 5, shorter than 9.5
    assert middle["w"].tolist() == [0.0, 7.0]  # 7, shorter than 8.5
    assert long["w"].tolist() == [6.0, 0.0]  # 12, longer than 6
    assert (long.info.scaling, long.info.settings["condition"]) == (0.5, 0.5)
    assert "'norm12' to 0.50" in caplog.text


def test_a_ratio_leaves_vectors_that_are_hardly_longer() -> None:
    pair = [vector(1.0), vector(1.5)]
    assert [v["w"].item() for v in condition(pair, ratio=2.0)] == [1.0, 1.5]
    assert [v["w"].item() for v in condition(pair)] == [1.0, 1.0]


def test_one_vector_and_zeros_stay_as_they_are() -> None:
    assert condition([vector(2.0)])[0]["w"].item() == 2.0
    assert [v["w"].item() for v in condition([vector(2.0), vector(0.0)])] == [2.0, 0.0]


def test_narrow_vectors_widen_and_factors_stay() -> None:
    half = condition([vector(1.0, dtype=torch.bfloat16), vector(4.0, dtype=torch.bfloat16)])
    assert [each.dtype for each in half] == [torch.float32] * 2
    assert merge(half, "task_arithmetic")["w"].tolist() == [2.0]
    low = TaskVector(LowRankDeltas({"w": Factors(torch.ones(2, 1), torch.ones(1, 3), 4.0, torch.Size([2, 3]))}))
    one = TaskVector({"w": torch.ones(2, 3)})
    shrunk = condition([low, one])[0]
    assert isinstance(shrunk.deltas, LowRankDeltas)
    torch.testing.assert_close(shrunk["w"], torch.ones(2, 3))


def test_the_merge_method_merges_what_condition_gives() -> None:
    vectors = [vector(1.0, -2.0), vector(5.0, 1.0), vector(-1.0, 0.5)]
    merged = merge(vectors, "distac", of="ties", of_settings={"density": 1.0})
    assert merged == TaskVector(merge(condition(vectors), "ties", density=1.0).deltas)


def test_bad_input_of_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="ratio must be positive"):
        condition([vector(1.0)], ratio=0.0)
    with pytest.raises(NonFiniteError, match=r"'w' of vector 1 \('normnan'\)"):
        condition([vector(1.0), vector(float("nan"))])


# -- penalties in training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (3, 3)])
def test_orthogonality_is_the_distance_of_the_product_from_the_identity(shape: tuple[int, int]) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (delta.T @ delta - torch.eye(shape[1])).square().sum()
    torch.testing.assert_close(orthogonality(delta), expected)


def test_penalties_by_hand() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    with torch.no_grad():
        model[0].weight.add_(torch.diag(torch.tensor([2.0, 1.0])))
        model[1].bias.add_(3.0)
    orthogonal = penalty_of(model, before, orthogonality_weight=0.5, pull=0.0)
    near = penalty_of(model, before, orthogonality_weight=0.0, pull=0.1)
    assert orthogonal is not None
    assert near is not None
    assert orthogonal().item() == pytest.approx(4.5)  # half of (4 - 1)², of the linear layer alone
    assert near().item() == pytest.approx(2.3)  # a tenth of 4 + 1 + 9 + 9
    assert penalty_of(model, before, orthogonality_weight=0.0, pull=0.0) is None


def test_a_penalty_is_shared_out_over_a_batch_and_left_out_of_evaluations() -> None:
    def loss(outputs: dict[str, torch.Tensor], labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return torch.zeros(())

    total = penalised(loss, lambda: torch.tensor(8.0))
    shares = [total({}, torch.tensor([1, -100]), num_items_in_batch=4), total({}, torch.ones(3), num_items_in_batch=4)]
    assert [float(share) for share in shares] == [2.0, 6.0]
    with torch.no_grad():
        assert float(total({}, torch.ones(3))) == 0.0


def config(folder: Path, **changes: Any) -> TaskVectorConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 1,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 16,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "record_epochs": False,
    }
    return TaskVectorConfig(**{**settings, **changes})


def trained(folder: Path, **changes: Any) -> TaskVector:
    trainer = TaskVectorTrainer(tiny_base(), config(folder, **changes), task=colours_task())
    trainer.train()
    return trainer.task_vector()


def test_a_pull_shortens_the_vector_and_is_told(tmp_path: Path) -> None:
    free, held = trained(tmp_path / "free"), trained(tmp_path / "held", pull_to_base=1.0)
    assert held.norm() < 0.9 * free.norm()
    assert held.info.settings["pull_to_base"] == 1.0
    assert "pull_to_base" not in free.info.settings


def test_accumulation_changes_nothing_of_a_penalty(tmp_path: Path) -> None:
    options: dict[str, Any] = {"orthogonality": 0.1, "pull_to_base": 0.5, "optim": "sgd", "learning_rate": 1e-2}
    whole = trained(tmp_path / "whole", **options)
    options |= {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    parts = trained(tmp_path / "parts", **options)
    assert (whole - parts).norm() < 1e-4 * whole.norm()


def test_plans_of_runs_without_penalties_are_as_before(tmp_path: Path) -> None:
    assert not {"orthogonality", "pull_to_base"} & run_plan(config(tmp_path)).keys()
    assert run_plan(config(tmp_path, orthogonality=0.5))["orthogonality"] == 0.5


def test_penalties_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="orthogonality must be a number of at least 0"):
        config(tmp_path, orthogonality=-1.0)
    with pytest.raises(ValueError, match="pull_to_base must be a finite number"):
        config(tmp_path, pull_to_base=float("nan"))
    adapter = LoraConfig(target_modules=["fc1"])
    with pytest.raises(ValueError, match="orthogonality cannot be set beside peft_config"):
        TaskVectorTrainer(tiny_base(), config(tmp_path, orthogonality=1.0), task=colours_task(), peft_config=adapter)
