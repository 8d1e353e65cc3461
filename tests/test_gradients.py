"""Gradient vectors are −η∇L, and one epoch of full-batch gradient descent is one of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from hf_taskvec import TaskVectorConfig, TaskVectorTrainer, gradient_vector, load_base, verify_equivalence
from hf_taskvec.errors import DataError, NonFiniteError, SettingsDifferError
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.theory.equivalence import Equivalence, TaskEquivalence, relative_error
from hf_taskvec.theory.gradients import gradient_stack
from hf_taskvec.training.full_batch import prepare_full_batch, violated_preconditions
from hf_taskvec.training.joint import JointTrainer
from tests.helpers import in_processes
from tests.toys import toy_base, toy_task, wide_base, with_model


def full_batch(folder: Path, **settings: object) -> TaskVectorConfig:
    values = {"per_device_train_batch_size": 16, "learning_rate": 0.1, "save_strategy": "no", "disable_tqdm": True}
    return TaskVectorConfig(output_dir=str(folder), full_batch=True, **{**values, **settings})


def test_the_gradient_vector_is_minus_the_learning_rate_times_autograd() -> None:
    base, task = wide_base(), toy_task()
    model = ImageClassifier(base, task)
    pixels = load_pixels(task, "train", base.processor.image_processor)
    batch = pixels.__getitems__(range(len(pixels)))
    functional.cross_entropy(model(batch["pixel_values"])["logits"], batch["labels"]).backward()
    vector = gradient_vector(base, task, learning_rate=0.3, batch_size=16)  # 50 images: the last batch holds 2
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(vector.deltas[name], -0.3 * parameter.grad, rtol=1e-11, atol=1e-15)
    assert set(vector.deltas) == {name for name, p in model.named_parameters() if p.requires_grad}


def test_the_base_is_left_alone_and_the_provenance_is_whole() -> None:
    base, task = toy_base(), toy_task()
    before = {name: weight.clone() for name, weight in base.model.state_dict().items()}
    counts: dict[str, Any] = {"epochs": 1.0, "batch_size": np.int64(25)}
    vector = gradient_vector(base, task, learning_rate=0.1, **counts)
    assert all(torch.equal(before[name], weight) for name, weight in base.model.state_dict().items())
    assert all(parameter.grad is None for parameter in base.model.parameters())
    info = vector.info
    assert (info.kind, info.task, info.epochs, info.steps, info.num_images) == ("gradient", "digits", 1.0, 1, 50)
    assert info.dataset_revision is not None
    vector.apply_to(base)  # its base hashes fit


def test_a_float32_gradient_is_right_to_1e_5_where_subtracted_weights_are_not() -> None:
    task = toy_task()
    exact = gradient_vector(wide_base(), task, learning_rate=1e-5)
    direct = gradient_vector(toy_base(), task, learning_rate=1e-5)
    tuned = direct.apply_to(toy_base())
    assert relative_error(direct, exact) <= 1e-5
    assert relative_error(type(direct).from_models(toy_base().model, tuned.model), exact) > 1e-3


def test_several_tasks_are_the_weighted_sum_of_their_gradients() -> None:
    base, tasks = wide_base(), [toy_task("digits"), toy_task("shapes", images=30)]
    alone = [gradient_vector(base, task, learning_rate=0.1) for task in tasks]
    both = gradient_vector(base, tasks, learning_rate=0.1, weights=[2.0, -0.5])
    assert relative_error(both, alone[0] * 2.0 + alone[1] * -0.5) <= 1e-12
    assert [parent.task for parent in both.info.parents] == ["digits", "shapes"]


def test_pseudo_epochs_are_the_vector_of_full_batch_gradient_descent(tmp_path: Path) -> None:
    base, task = wide_base(), toy_task()
    trainer = TaskVectorTrainer(base, full_batch(tmp_path, num_train_epochs=3), task=task)
    trainer.train()
    assert trainer.state.global_step == 3
    for epochs in (1, 3):
        expected = gradient_vector(base, task, learning_rate=0.1, epochs=epochs)
        assert relative_error(trainer.task_vectors()[epochs - 1], expected) <= 1e-12


def test_joint_pseudo_epochs_are_joint_training(tmp_path: Path) -> None:
    base, tasks = wide_base(), [toy_task("digits"), toy_task("shapes", images=30)]
    trainer = JointTrainer(base, full_batch(tmp_path, num_train_epochs=2), tasks=tasks)
    trainer.train()
    expected = gradient_vector(base, tasks, learning_rate=0.1, weights=[0.5, 0.5], epochs=2)
    assert relative_error(trainer.task_vector(), expected) <= 1e-12
    assert trainer.task_vector().info.settings["tasks"] == ["digits", "shapes"]


def test_a_joint_run_on_one_task_is_that_tasks_run(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "save_strategy": "no", "disable_tqdm": True}
    vectors = []
    for trainer_class, named in ((TaskVectorTrainer, {"task": toy_task()}), (JointTrainer, {"tasks": [toy_task()]})):
        folder = tmp_path / trainer_class.__name__
        trainer = trainer_class(toy_base(), TaskVectorConfig(output_dir=str(folder), **settings), **named)
        trainer.train()
        vectors.append(trainer.task_vector())
    assert relative_error(*vectors) <= 1e-4


def test_a_stack_lies_on_disk_and_is_not_computed_twice(tmp_path: Path) -> None:
    tasks = [toy_task("digits"), toy_task("shapes", images=30)]
    stack = gradient_stack(toy_base(), tasks, output_dir=tmp_path)
    changed = (tmp_path / "digits" / "task_vector.safetensors").stat().st_mtime_ns
    again = gradient_stack(toy_base(), tasks, output_dir=tmp_path)
    assert list(again) == ["digits", "shapes"]
    assert again["shapes"].cosine(stack["shapes"]) == pytest.approx(1.0)
    assert (tmp_path / "digits" / "task_vector.safetensors").stat().st_mtime_ns == changed


@pytest.mark.parametrize("change", [{"learning_rate": 0.5}, {"trainable_parameters": ["*.mlp.*"]}])
def test_a_stack_of_other_settings_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    gradient_stack(toy_base(), [toy_task()], output_dir=tmp_path)
    with pytest.raises(SettingsDifferError, match=next(iter(change))):
        gradient_stack(toy_base(), [toy_task()], output_dir=tmp_path, **change)


def test_a_stack_of_another_base_or_other_images_is_refused(tmp_path: Path) -> None:
    gradient_stack(toy_base(), [toy_task()], output_dir=tmp_path)
    with pytest.raises(SettingsDifferError, match="base_fingerprint"):
        gradient_stack(with_model(toy_base()), [toy_task()], output_dir=tmp_path)
    with pytest.raises(SettingsDifferError, match="max_train=50 there, 20 here"):
        gradient_stack(toy_base(), [toy_task(images=20)], output_dir=tmp_path)


def test_verify_equivalence_holds_for_full_batch_gradient_descent() -> None:
    result = verify_equivalence(toy_base(), [toy_task("digits"), toy_task("shapes", images=30)])
    assert result.relative_error_float64 <= 1e-12
    assert result.relative_error_float32 <= 1e-5
    assert result.joint_error is not None
    assert result.joint_error <= 1e-12
    assert result.violations == ()
    assert result.holds
    by_parameter = result.tasks[0].by_parameter.items()
    assert max(error for name, error in by_parameter if not name.endswith("k_proj.bias")) <= 1e-12


def test_equivalence_holds_on_the_parameters_that_are_trained(tmp_path: Path) -> None:
    args = full_batch(tmp_path, trainable_parameters=["*.mlp.*"])
    result = verify_equivalence(toy_base(), toy_task(), args=args)
    assert result.holds, result.to_markdown()
    assert all(".mlp." in name for name in result.tasks[0].by_parameter)
    base, task = wide_base(), toy_task()
    whole = gradient_vector(base, task, learning_rate=0.1)
    chosen = gradient_vector(base, task, learning_rate=0.1, trainable_parameters=["*.mlp.*"])
    assert set(chosen.deltas) == {name for name in whole.deltas if ".mlp." in name}
    for name, delta in chosen.deltas.items():
        torch.testing.assert_close(delta, whole.deltas[name], rtol=1e-11, atol=1e-15)


def test_verify_equivalence_names_what_the_settings_violate(tmp_path: Path) -> None:
    args = full_batch(tmp_path, optim="adamw_torch", weight_decay=0.01, max_grad_norm=0.5, record_gradients=True)
    result = verify_equivalence(toy_base(), toy_task(), args=args)
    assert not result.holds
    assert {violation.name for violation in result.violations} == {"optim", "weight_decay", "max_grad_norm"}
    assert result.relative_error_float64 > 0.1
    assert "weight_decay=0.01" in result.verdict


def test_rounding_in_float32_is_told_from_a_difference() -> None:
    def off_by(float64: float, float32: float) -> Equivalence:
        return Equivalence((TaskEquivalence("digits", float64, float32, 1e-5, 1.0, 1.0, {}),), ())

    assert off_by(1e-14, 1e-6).holds
    rounded = off_by(1e-14, 2e-5)
    assert rounded.holds_in_float64
    assert not rounded.holds
    assert "gradient of digits is 2.0e-05 off by rounding" in rounded.verdict
    assert "more than rounding" in off_by(1e-3, 1e-3).verdict


def test_clipping_alone_changes_the_length_and_not_the_direction(tmp_path: Path) -> None:
    result = verify_equivalence(toy_base(), toy_task(), args=full_batch(tmp_path, max_grad_norm=0.5))
    assert [violation.name for violation in result.violations] == ["max_grad_norm"]
    assert result.tasks[0].cosine == pytest.approx(1.0)
    assert result.tasks[0].norm_ratio < 0.9


def test_the_defaults_violate_every_precondition_they_should() -> None:
    names = {violation.name for violation in violated_preconditions(TaskVectorConfig())}
    assert names == {"full_batch", "optim", "weight_decay", "max_grad_norm", "lr_scheduler_type", "warmup_steps"}
    assert violated_preconditions(TaskVectorConfig(full_batch=True)) == ()


def test_what_keeps_an_epoch_from_being_a_gradient_step_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    prepare_full_batch(TaskVectorConfig(full_batch=True, num_train_epochs=3), 40, toy_base())
    assert caplog.text == ""  # further epochs are further steps
    prepare_full_batch(TaskVectorConfig(full_batch=True, max_grad_norm=0.5), 40, toy_base())
    assert "an epoch is not exactly a gradient step: max_grad_norm" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"learning_rate": 0.1, "epochs": 0}, "epochs must be"),
        ({"learning_rate": 0.1, "batch_size": 0}, "batch_size must be"),
        ({"learning_rate": 0.1, "weights": [1.0, 2.0]}, "one factor per task"),
        ({"learning_rate": 0.1, "weights": [float("nan")]}, "weights must be finite"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gradient_vector(toy_base(), toy_task(), **settings)


def test_no_task_and_one_class_are_refused() -> None:
    with pytest.raises(DataError, match="at least one task"):
        gradient_vector(toy_base(), [], learning_rate=0.1)
    with pytest.raises(DataError, match="at least two class names"):
        Task(name="one", dataset="somewhere", class_names=("alone",))


def test_dropout_and_half_precision_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"attention_dropout=0\.1"):
        gradient_vector(with_model(toy_base(), attention_dropout=0.1), toy_task(), learning_rate=0.1)
    with pytest.raises(ValueError, match=r"attention_dropout=0\.1"):
        TaskVectorTrainer(with_model(toy_base(), attention_dropout=0.1), full_batch(tmp_path), task=toy_task())
    half = dataclasses.replace(toy_base(), model=with_model(toy_base()).model.half())
    with pytest.raises(ValueError, match="float32 or float64"):
        gradient_vector(half, toy_task(), learning_rate=0.1)


def test_a_gradient_that_is_not_finite_names_its_batch() -> None:
    base = with_model(toy_base())
    with torch.no_grad():
        base.model.vision_model.post_layernorm.weight[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"'digits' is NaN or Inf in batch 0 \(images 0 to 15\)"):
        gradient_vector(base, toy_task(), learning_rate=0.1, batch_size=16)


SCRIPT = """
import sys, torch
from hf_taskvec import gradient_vector, load_base
from tests.toys import toy_task
from accelerate import PartialState
vector = gradient_vector(load_base(sys.argv[1], dtype=torch.float64), toy_task(), learning_rate=0.1, batch_size=8)
assert PartialState().num_processes == 2
if PartialState().is_main_process:
    vector.save_pretrained(sys.argv[2])
"""


@pytest.mark.slow  # three Python start-ups
def test_two_processes_give_the_vector_of_one(tmp_path: Path) -> None:
    script, saved = tmp_path / "two.py", tmp_path / "base"
    toy_base().model.save_pretrained(saved)
    toy_base().processor.save_pretrained(saved)
    script.write_text(SCRIPT)
    in_processes(script, saved, tmp_path / "v")
    alone = gradient_vector(load_base(saved, dtype=torch.float64), toy_task(), learning_rate=0.1, batch_size=8)
    together = type(alone).from_pretrained(tmp_path / "v")
    assert relative_error(together, alone) <= 1e-14
