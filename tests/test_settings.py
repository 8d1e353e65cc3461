"""Settings and arguments of a trainer: they work, or they are refused by name; and provenance tells them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig
from transformers import CLIPVisionModel, CLIPVisionModelWithProjection, EarlyStoppingCallback, TrainingArguments

from hf_taskvec import TaskVector, TaskVectorConfig, TaskVectorTrainer, get_task, gradient_vector
from hf_taskvec.arguments import parse_recipe
from hf_taskvec.errors import DataError, SettingsDifferError, UnknownNameError
from hf_taskvec.evaluation.accuracy import predict
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.training.joint import JointTrainer
from hf_taskvec.weights.names import parameters_of
from tests.helpers import equal_vectors
from tests.toys import toy_base, toy_task


def config(folder: Path, **settings: Any) -> TaskVectorConfig:
    values = {"per_device_train_batch_size": 10, "learning_rate": 1e-3, "disable_tqdm": True, "save_strategy": "no"}
    return TaskVectorConfig(output_dir=str(folder), **{**values, **settings})


def trained(folder: Path, **settings: Any) -> TaskVectorTrainer:
    trainer = TaskVectorTrainer(toy_base(), config(folder, **settings), task=toy_task())
    trainer.train()
    return trainer


# -- inherited settings ------------------------------------------------------------------------------------------------


def test_a_config_from_the_command_line_is_the_one_of_python() -> None:
    (parsed,) = parse_recipe(TaskVectorConfig, argv=[])
    ours = TaskVectorConfig()
    different = [
        spec.name
        for spec in dataclasses.fields(TaskVectorConfig)
        if spec.init and getattr(parsed, spec.name) != getattr(ours, spec.name) and spec.name != "accelerator_config"
    ]
    assert different == []
    assert parsed.use_cpu is not torch.accelerator.is_available()


@pytest.mark.parametrize(
    "settings",
    [
        {"activation_checkpointing": True},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}},
        {"activation_checkpointing": True, "trainable_parameters": ["*.layers.0.mlp.*"]},
    ],
)
def test_activation_checkpointing_changes_memory_alone(tmp_path: Path, settings: dict[str, Any]) -> None:
    plain = {name: value for name, value in settings.items() if "checkpointing" not in name}
    vector = trained(tmp_path / "a", **settings).task_vector()
    assert equal_vectors(vector, trained(tmp_path / "b", **plain).task_vector())
    assert all(delta.any() for delta in vector.deltas.values())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_works_by_its_old_name(tmp_path: Path) -> None:
    vector = trained(tmp_path / "a", gradient_checkpointing=True).task_vector()
    assert equal_vectors(vector, trained(tmp_path / "b").task_vector())


def test_label_smoothing_is_that_of_cross_entropy(tmp_path: Path) -> None:
    settings = {"optim": "sgd", "weight_decay": 0.0, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
    settings |= {"warmup_steps": 0, "per_device_train_batch_size": 50, "learning_rate": 0.1}
    trainer = trained(tmp_path, label_smoothing_factor=0.3, **settings)
    start = TaskVectorTrainer(toy_base(), config(tmp_path), task=toy_task())
    batch = start.train_dataset.__getitems__(range(50))
    logits = start.model(batch["pixel_values"])["logits"].log_softmax(dim=-1)
    spread = 0.7 * logits[torch.arange(50), batch["labels"]] + 0.3 * logits.mean(dim=-1)
    (-spread.mean()).backward()
    named = dict(start.model.named_parameters())
    expected = TaskVector({name: -0.1 * named[name].grad for name in trainer.task_vector()})
    assert (trainer.task_vector() - expected).norm() < 1e-4 * expected.norm()
    assert trainer.task_vector().info.settings["label_smoothing_factor"] == 0.3


def test_label_smoothing_over_other_tasks_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label_smoothing_factor must be 0 in joint training"):
        JointTrainer(toy_base(), config(tmp_path, label_smoothing_factor=0.1), tasks=[toy_task()])


def test_the_sampling_strategy_is_followed(tmp_path: Path) -> None:
    shuffled, first, again = (
        trained(tmp_path / name, train_sampling_strategy=strategy).task_vector()
        for name, strategy in (("a", "random"), ("b", "sequential"), ("c", "sequential"))
    )
    assert equal_vectors(first, again)
    assert first.cosine(shuffled) < 0.999
    assert first.info.settings["train_sampling_strategy"] == "sequential"


@pytest.mark.parametrize(
    "settings",
    [
        {"train_sampling_strategy": "group_by_length"},
        {"train_sampling_strategy": "batch_rebalance"},
        {"neftune_noise_alpha": 5.0},
        {"use_liger_kernel": True},
        {"fsdp": "full_shard"},
        {"deepspeed": "ds.json"},
        {"bf16_full_eval": True},
        {"fp16_full_eval": True},
        {"eval_do_concat_batches": False},
        {"average_tokens_across_devices": False},
        {"include_num_input_tokens_seen": "all"},
        {"label_names": ["y"]},
        {"label_smoothing_factor": 1.0},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"per_device_train_batch_size": 0},
        {"num_train_epochs": -1.0},
        {"gradient_accumulation_steps": 0},
        {"fp16": True, "use_cpu": True},
        {"full_batch": True, "auto_find_batch_size": True},
        {
            "activation_checkpointing_kwargs": {"use_reentrant": True},
            "activation_checkpointing": True,
            "trainable_parameters": ["*.mlp.*"],
        },
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_would_do_nothing_or_something_else_is_refused_by_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))) as caught:
        config(tmp_path, **settings)
    assert len(str(caught.value)) <= 300


def test_the_log_shows_loss_and_learning_rate_unasked(tmp_path: Path) -> None:
    history = trained(tmp_path, num_train_epochs=2).state.log_history
    lines = [entry for entry in history if "loss" in entry]
    assert [entry["step"] for entry in lines] == [1, 10]
    assert all("learning_rate" in entry for entry in lines)
    assert not [name for entry in history for name in entry if "cosine" in name]


def test_runs_of_several_precisions_in_one_process_leave_each_other_alone(tmp_path: Path) -> None:
    expected = {half: trained(tmp_path / f"alone-{half}", bf16=half).task_vector() for half in (False, True)}
    gradient = gradient_vector(toy_base(), toy_task(), learning_rate=0.1)  # after a run in bf16
    assert not equal_vectors(expected[False], expected[True])
    halves = (True, False, True)
    trainers = []
    for args in [config(tmp_path / f"{number}", bf16=half) for number, half in enumerate(halves)]:
        assert equal_vectors(gradient_vector(toy_base(), toy_task(), learning_rate=0.1), gradient)
        trainers.append(TaskVectorTrainer(toy_base(), args, task=toy_task()))
    config(tmp_path / "unused")
    for half, trainer in zip(halves, trainers, strict=True):
        assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
        trainer.train()
        assert equal_vectors(trainer.task_vector(), expected[half])


def test_a_run_in_half_precision_changes_nothing_that_is_measured_after_it(tmp_path: Path) -> None:
    AcceleratorState._reset_state()
    gradient = gradient_vector(toy_base(), toy_task(), learning_rate=0.1)
    logits, _ = predict(toy_base(), toy_task())
    trained(tmp_path, bf16=True)
    assert AcceleratorState().mixed_precision == "bf16"  # what the next accelerator of the process inherits
    assert predict(toy_base(), toy_task())[0].equal(logits)
    assert equal_vectors(gradient_vector(toy_base(), toy_task(), learning_rate=0.1), gradient)


# -- arguments ---------------------------------------------------------------------------------------------------------


def test_a_task_may_be_named(tmp_path: Path) -> None:
    trainer = TaskVectorTrainer(toy_base(), config(tmp_path), task="digits")
    assert len(trainer.train_dataset) == len(get_task("digits").load("train"))
    with pytest.raises(UnknownNameError, match="Did you mean 'digits'"):
        TaskVectorTrainer(toy_base(), config(tmp_path), task="digit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": toy_base().model}, r"base must be a Base .* got CLIPModel; load_base\(\) gives one"),
        ({"base": "openai/clip"}, "base must be a Base .* got str"),
        ({"task": 3}, "task must be a Task or a registered task's name, got int"),
        ({"args": TrainingArguments("unused")}, "args must be a TaskVectorConfig, got TrainingArguments"),
        ({"data_collator": print}, "takes no data_collator: batches come ready-made"),
        ({"eval_dataset": []}, "takes no eval_dataset: pass task="),
        ({"train_dataset": []}, "takes no train_dataset: pass task="),
        ({"processing_class": None}, "takes no processing_class: the base brings its processor"),
        ({"model_init": print}, "takes no model_init: every run starts from the base"),
        ({"callback": []}, "no argument 'callback'. Did you mean callbacks"),
        ({"peft": None}, "Did you mean peft_config"),
    ],
)
def test_what_has_no_place_is_refused_in_a_sentence(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    given = {"base": toy_base(), "args": config(tmp_path), "task": toy_task(), **arguments}
    with pytest.raises(TypeError, match=message):
        TaskVectorTrainer(given.pop("base"), given.pop("args"), **given)


def test_metrics_of_ones_own_take_the_place_of_accuracy(tmp_path: Path) -> None:
    def error(prediction: Any) -> dict[str, float]:
        return {"error": float((prediction.predictions.argmax(-1) != prediction.label_ids).mean())}

    args = config(tmp_path, eval_strategy="epoch")
    trainer = TaskVectorTrainer(toy_base(), args, task=toy_task(), compute_metrics=error)
    trainer.train()
    assert [entry["eval_error"] for entry in trainer.state.log_history if "eval_error" in entry]


def test_metrics_may_see_the_images(tmp_path: Path) -> None:
    def dark(prediction: Any) -> dict[str, float]:
        return {"images": len(prediction.inputs)}

    args = config(tmp_path, include_for_metrics=["inputs"])
    trainer = TaskVectorTrainer(toy_base(), args, task=toy_task(), compute_metrics=dark)
    assert trainer.evaluate("test")["eval_images"] == 40


def test_any_part_of_the_task_is_evaluated_by_name(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    unasked, validation, test = trainer.evaluate(), trainer.evaluate("validation"), trainer.evaluate("test")
    assert unasked["eval_accuracy"] == validation["eval_accuracy"]
    assert len(trainer.predict("test").predictions) == 40
    assert set(test) >= {"eval_loss", "eval_accuracy"}
    assert trainer.evaluate(toy_task().load("test"))["eval_accuracy"] == test["eval_accuracy"]
    with pytest.raises(DataError, match=r"class|label"):
        trainer.evaluate(toy_task("shapes").load("test"))
    with pytest.raises(UnknownNameError, match="Did you mean 'test'"):
        trainer.evaluate("tests")
    with pytest.raises(TypeError, match="evaluates a part of its task by name"):
        trainer.evaluate([1, 2])


def test_what_a_run_of_many_folders_would_need_is_refused(tmp_path: Path) -> None:
    trainer = TaskVectorTrainer(toy_base(), config(tmp_path), task=toy_task())
    with pytest.raises(TypeError, match="an output_dir of its own"):
        trainer.hyperparameter_search()
    with pytest.raises(TypeError, match="push_to_hub"):
        trainer.create_model_card()


# -- low-rank training -------------------------------------------------------------------------------------------------


def low_rank(folder: Path, *, alpha: int = 8, lora: dict[str, Any] | None = None, **settings: Any) -> TaskVectorTrainer:
    adapter = LoraConfig(r=2, lora_alpha=alpha, target_modules=["q_proj", "fc1"], **(lora or {}))
    args = config(folder, **{"learning_rate": 1e-2, **settings})
    return TaskVectorTrainer(toy_base(), args, task=toy_task(), peft_config=adapter)


def test_low_rank_training_gives_the_vector_of_the_products_of_its_factors(tmp_path: Path) -> None:
    trainer = low_rank(tmp_path)
    trainer.train()
    vector = trainer.task_vector()
    names = [
        f"vision_model.encoder.layers.{k}.{module}.weight" for k in (0, 1) for module in ("mlp.fc1", "self_attn.q_proj")
    ]
    assert sorted(vector.deltas) == names
    assert all(torch.linalg.matrix_rank(delta.double(), tol=1e-6) == 2 for delta in vector.deltas.values())
    assert vector.info.settings["lora"]["target_modules"] == ["fc1", "q_proj"]
    batch = trainer.train_dataset.__getitems__(range(8))
    edited = ImageClassifier(vector.apply_to(toy_base()), toy_task()).eval()
    with torch.no_grad():
        expected = trainer.model.eval()(batch["pixel_values"])["logits"]
        torch.testing.assert_close(edited(batch["pixel_values"])["logits"], expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="task_vector"):
        trainer.save_model(str(tmp_path / "whole"))


def test_a_low_rank_run_is_resumed_bit_for_bit_by_its_own_settings_only(tmp_path: Path) -> None:
    whole = low_rank(tmp_path / "whole", num_train_epochs=2, save_strategy="epoch")
    whole.train()
    stopped = low_rank(tmp_path / "part", num_train_epochs=2, save_strategy="epoch", save_total_limit=None)
    stopped.train()
    again = low_rank(tmp_path / "again", num_train_epochs=2)
    again.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-5"))
    assert equal_vectors(again.task_vector(), whole.task_vector())
    with pytest.raises(SettingsDifferError, match="lora="):
        low_rank(tmp_path / "other", alpha=16).train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-5"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": {"bias": "all"}}, "bias must be 'none'"),
        ({"lora": {"lora_bias": True}}, "lora_bias must be False"),
        ({"lora": {"use_dora": True}}, "use_dora must be False"),
        ({"include_projection": True}, "include_projection cannot be set beside peft_config"),
        ({"track_gradients": True}, "track_gradients cannot"),
        ({"trainable_parameters": ["*.mlp.*"]}, "trainable_par"),
    ],
)
def test_what_does_not_fit_low_rank_training_is_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        low_rank(tmp_path, **settings)
    with pytest.raises(TypeError, match=r"must be a peft\.LoraConfig"):
        TaskVectorTrainer(toy_base(), config(tmp_path), task=toy_task(), peft_config={"r": 2})


# -- what a run leaves -------------------------------------------------------------------------------------------------


def test_a_saved_model_and_a_checkpoint_load_as_clip_vision_models(tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", save_strategy="epoch")
    trainer.save_model(str(tmp_path / "saved"))
    expected = parameters_of(trainer.model)
    for folder in (tmp_path / "saved", tmp_path / "run" / "checkpoint-5"):
        tower, projected = (kind.from_pretrained(folder) for kind in (CLIPVisionModel, CLIPVisionModelWithProjection))
        for model in (tower, projected):
            for name, weight in parameters_of(model).items():
                assert torch.equal(weight, expected[name]), name
        assert torch.equal(projected.visual_projection.weight, toy_base().model.visual_projection.weight)


def test_the_vector_of_an_earlier_epoch_says_so(tmp_path: Path) -> None:
    def worse_and_worse(prediction: Any) -> dict[str, float]:
        scores.append(1 / (len(scores) + 1))
        return {"accuracy": scores[-1]}

    scores: list[float] = []
    args = config(
        tmp_path,
        num_train_epochs=6,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
    )
    trainer = TaskVectorTrainer(
        toy_base(), args, task=toy_task(), compute_metrics=worse_and_worse, callbacks=[EarlyStoppingCallback(2)]
    )
    trainer.train()
    vector = trainer.task_vector()
    assert equal_vectors(vector, trainer.recorded_vector("epoch-1"))
    assert (vector.info.epochs, vector.info.steps) == (1.0, 5)
    assert vector.info.settings["trained_epochs"] == 3.0
    assert vector.info.settings["chosen_by"] == "accuracy"


def test_provenance_holds_what_is_needed_to_repeat_and_to_use_the_vector(tmp_path: Path) -> None:
    trainer = trained(
        tmp_path, bf16=True, adam_beta2=0.98, gradient_accumulation_steps=2, per_device_train_batch_size=5, data_seed=3
    )
    info = trainer.task_vector().info
    expected = {"bf16": True, "betas": [0.9, 0.98], "gradient_accumulation_steps": 2, "data_seed": 3}
    assert expected.items() <= info.settings.items()
    assert (info.class_names, info.templates) == (toy_task().class_names, toy_task().templates)
    assert info.batch_size == 10


def test_an_optimiser_of_ones_own_is_named(tmp_path: Path) -> None:
    trainer = TaskVectorTrainer(toy_base(), config(tmp_path, lr_scheduler_type="constant"), task=toy_task())
    optimizer = torch.optim.Adagrad(trainer.model.parameters(), lr=1e-3)
    trainer = TaskVectorTrainer(
        toy_base(), config(tmp_path, lr_scheduler_type="constant"), task=toy_task(), optimizers=(optimizer, None)
    )
    assert trainer.vector_info().optimizer == "Adagrad"
