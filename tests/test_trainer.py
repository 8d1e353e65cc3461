"""Training: what moves, what is recorded, and that resuming and sharing the work change nothing."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from torch.nn import functional

from hf_taskvec import Task, TaskVector, TaskVectorConfig, TaskVectorTrainer, evaluate, load_base
from hf_taskvec.errors import DataError, UnknownNameError
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.tasks.pixels import IGNORED, PADDING, load_pixels
from hf_taskvec.training.sampler import ShuffledSampler
from hf_taskvec.weights.names import parameters_of
from tests.bases import same_base, save_colour_dataset, save_tiny_base
from tests.helpers import equal_vectors
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("training")
    return save_tiny_base(root / "base"), save_colour_dataset(root / "colours")


@pytest.fixture(scope="module")
def base(folders: tuple[Path, Path]) -> Base:
    return load_base(folders[0])


@pytest.fixture(scope="module")
def task(folders: tuple[Path, Path]) -> Task:
    return Task.from_dataset(folders[1])


def settings(output_dir: Path, **changes: Any) -> TaskVectorConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(output_dir),
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 16,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "epoch",
    }
    return TaskVectorConfig(**{**defaults, **changes})


def test_every_tower_parameter_moves_and_every_other_stays(base: Base, task: Task, tmp_path: Path) -> None:
    before = copy.deepcopy(base)
    trainer = TaskVectorTrainer(base, settings(tmp_path), task=task)
    trainer.train()
    vector = trainer.task_vector()
    tower = {f"vision_model.{name}" for name, _ in base.model.vision_model.named_parameters()}
    assert set(vector.deltas) == tower
    # A key bias shifts all attention scores of a query alike, so that the softmax ignores it: its gradient is rounding.
    assert all(delta.any() for delta in vector.deltas.values())
    assert same_base(base, before)
    assert torch.equal(trainer.model.visual_projection.weight, base.model.visual_projection.weight)


def test_the_projection_is_trained_only_if_asked(base: Base, task: Task, tmp_path: Path) -> None:
    trainer = TaskVectorTrainer(base, settings(tmp_path, include_projection=True, num_train_epochs=1), task=task)
    trainer.train()
    vector = trainer.task_vector()
    assert vector.deltas["visual_projection.weight"].any()
    assert vector.info.include_projection


def test_only_the_named_parameters_are_trained_and_make_the_vector(base: Base, task: Task, tmp_path: Path) -> None:
    args = settings(tmp_path, trainable_parameters=["*.mlp.*.weight"], num_train_epochs=1)
    trainer = TaskVectorTrainer(base, args, task=task)
    trainer.train()
    vector, expected = trainer.task_vector(), parameters_of(base.model)
    chosen = {
        f"vision_model.encoder.layers.{layer}.mlp.{matrix}.weight" for layer in (0, 1) for matrix in ("fc1", "fc2")
    }
    assert set(vector.deltas) == chosen
    assert all(delta.any() for delta in vector.deltas.values())
    moved = {name for name, value in parameters_of(trainer.model).items() if not torch.equal(value, expected[name])}
    assert moved == chosen
    assert vector.info.settings["trainable_parameters"] == ["*.mlp.*.weight"]
    edited = vector.apply_to(base)
    for name, value in parameters_of(trainer.model).items():
        torch.testing.assert_close(parameters_of(edited.model)[name], value, atol=1e-6, rtol=0, msg=name)


def test_an_unknown_parameter_to_train_is_refused(base: Base, task: Task, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"trainable parameter '\*\.mpl\.\*'"):
        TaskVectorTrainer(base, settings(tmp_path, trainable_parameters=["*.mpl.*"]), task=task)
    with pytest.raises(ValueError, match="nothing would be trained"):
        settings(tmp_path, trainable_parameters=[])


def test_training_learns_the_task_and_the_vector_carries_it(base: Base, task: Task, tmp_path: Path) -> None:
    trainer = TaskVectorTrainer(base, settings(tmp_path, num_train_epochs=4, learning_rate=3e-3), task=task)
    trainer.train()
    edited = trainer.task_vector().apply_to(base)
    assert evaluate(edited, [task]).accuracy > 0.9 > evaluate(base, [task]).accuracy
    batch = load_pixels(task, "test", base.processor.image_processor).__getitems__(range(8))
    with torch.no_grad():
        expected = trainer.model(batch["pixel_values"])["logits"]
        classifier = ImageClassifier(edited, task)
        torch.testing.assert_close(classifier(batch["pixel_values"])["logits"], expected, atol=1e-5, rtol=1e-5)


def test_vectors_of_epochs_steps_and_fractions_are_recorded(base: Base, task: Task, tmp_path: Path) -> None:
    trainer = TaskVectorTrainer(base, settings(tmp_path, record_steps=[2], record_fractions=[0.5]), task=task)
    trainer.train()
    first, last = trainer.task_vectors()
    assert equal_vectors(last, trainer.task_vector())
    assert (first.info.epochs, first.info.steps, last.info.epochs, last.info.steps) == (1.0, 6, 2.0, 12)
    assert trainer.recorded_vector("step-2").info.steps == 2
    assert trainer.recorded_vector("fraction-0.5").info.steps == 3
    with pytest.raises(UnknownNameError, match="epoch-2"):
        trainer.recorded_vector("epoch-3")


def test_a_new_run_leaves_no_vector_of_an_older_one(base: Base, task: Task, tmp_path: Path) -> None:
    TaskVectorTrainer(base, settings(tmp_path), task=task).train()
    TaskVectorTrainer(base, settings(tmp_path, num_train_epochs=1), task=task).train()
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == ["epoch-1"]


def test_the_vector_says_how_it_was_made(base: Base, task: Task, tmp_path: Path) -> None:
    trainer = TaskVectorTrainer(base, settings(tmp_path, seed=3), task=task)
    trainer.train()
    info = trainer.task_vector().info
    assert (info.kind, info.task, info.base, info.seed, info.batch_size) == ("fine-tuned", "colours", "base", 3, 16)
    assert info.seconds == trainer.seconds > 0
    assert (info.learning_rate, info.num_images, info.optimizer) == (1e-3, 81, "adamw_torch_fused")
    assert info.versions["torch"].startswith(torch.__version__.split("+")[0])
    assert (info.dataset, info.dataset_revision) == ("colours", task.dataset_revision())
    assert "/" not in str(info)  # no path of this machine


def test_one_full_batch_step_of_sgd_is_the_negative_gradient(base: Base, task: Task, tmp_path: Path) -> None:
    # 81 images in micro-batches of 16 leave a ragged last one; the mean of means would weigh its image 16-fold.
    config = settings(
        tmp_path,
        num_train_epochs=1,
        optim="sgd",
        learning_rate=0.1,
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        warmup_steps=0,
        gradient_accumulation_steps=6,
    )
    trainer = TaskVectorTrainer(base, config, task=task)
    trainer.train()
    model = ImageClassifier(base, task)
    pixels = load_pixels(task, "train", base.processor.image_processor)
    batch = pixels.__getitems__(range(len(pixels)))
    functional.cross_entropy(model(batch["pixel_values"])["logits"], batch["labels"]).backward()
    named = dict(model.named_parameters())
    gradient = TaskVector({name: named[name].grad * -0.1 for name in trainer.task_vector()})
    difference = trainer.task_vector() - gradient
    assert difference.norm() < 1e-4 * gradient.norm()  # float32 weights: the subtraction loses what lies below them


def test_the_log_holds_the_course_of_the_gradients(base: Base, task: Task, tmp_path: Path) -> None:
    trainer = TaskVectorTrainer(base, settings(tmp_path, max_grad_norm=0.01, track_gradients=True), task=task)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "cosine_to_first_epoch" in entry]
    assert [entry["epoch"] for entry in logs] == [1.0, 2.0]
    assert logs[0]["cosine_to_first_epoch"] == pytest.approx(1.0)
    assert logs[0]["mean_gradient_norm"] > 0.1  # before clipping to 0.01
    assert -1 <= logs[1]["cosine_to_first_epoch"] < 1


def test_validation_accuracy_is_logged_if_asked(base: Base, task: Task, tmp_path: Path) -> None:
    trainer = TaskVectorTrainer(base, settings(tmp_path, eval_strategy="epoch"), task=task)
    trainer.train()
    accuracies = [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert len(accuracies) == 2
    assert accuracies[-1] == pytest.approx(
        evaluate(trainer.task_vector().apply_to(base), [task], split="validation").accuracy
    )


# Trainer suppresses the Hub's progress bars while it trains, and warns if the tests' environment has done so already.
pushes = pytest.mark.filterwarnings("ignore:Cannot enable progress bars")


@pushes
def test_vectors_are_pushed_after_each_epoch_if_asked(base: Base, task: Task, tmp_path: Path, hub: HubServer) -> None:
    hosted = {"push_to_hub": True, "hub_model_id": "user/colours", "hub_token": "write-user"}
    trainer = TaskVectorTrainer(base, settings(tmp_path, **hosted, save_strategy="epoch"), task=task)
    trainer.train()
    pushed = TaskVector.from_pretrained("user/colours", subfolder="epoch-1", cache_dir=tmp_path / "cache")
    assert equal_vectors(pushed, trainer.task_vectors()[0])
    assert equal_vectors(
        TaskVector.from_pretrained("user/colours", cache_dir=tmp_path / "cache"), trainer.task_vector()
    )
    titles = [commit.title for commit in HfApi().list_repo_commits("user/colours")]
    assert titles[:2] == ["Epoch 2", "Epoch 1"]
    files = HfApi().list_repo_files("user/colours")
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]


@pushes
def test_the_vector_is_pushed_once_at_the_end_if_asked(base: Base, task: Task, tmp_path: Path, hub: HubServer) -> None:
    hosted = {"push_to_hub": True, "hub_model_id": "user/colours", "hub_token": "write-user", "hub_strategy": "end"}
    TaskVectorTrainer(base, settings(tmp_path, **hosted, record_epochs=False), task=task).train()
    titles = [commit.title for commit in HfApi().list_repo_commits("user/colours")]
    assert titles[0] == "Epoch 2"
    assert "Epoch 1" not in titles


def run_script(folders: tuple[Path, Path], output_dir: Path, *arguments: str, processes: int = 1) -> int:
    """Runs the training script; returns its exit status."""
    launcher = ["torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", "-m"]
    module = [*(launcher if processes > 1 else []), "tests.scripts.train_colours"]
    command = [sys.executable, "-m", *module, *map(str, folders), str(output_dir), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=False).returncode


def test_a_killed_run_resumes_to_the_same_vector_bit_for_bit(folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert run_script(folders, tmp_path / "whole") == 0
    assert run_script(folders, tmp_path / "killed", "--die_at", "9") == 9
    assert not (tmp_path / "killed" / "final").exists()
    assert run_script(folders, tmp_path / "killed", "--resume") == 0
    whole, killed = (TaskVector.from_pretrained(tmp_path / name / "final") for name in ("whole", "killed"))
    assert equal_vectors(whole, killed)
    for epoch in ("epoch-1", "epoch-2", "epoch-3"):
        left, right = (TaskVector.from_pretrained(tmp_path / name / "vectors" / epoch) for name in ("whole", "killed"))
        assert equal_vectors(left, right)


def launched(launcher: Sequence[str], recipe: str, *arguments: object) -> str:
    """What a recipe prints under a launcher, which must not fail."""
    command = [sys.executable, "-m", *launcher, str(ROOT / "recipes" / recipe), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


TORCHRUN = ("torch.distributed.run", "--nproc_per_node=2", "--standalone")
FOUR = ("torch.distributed.run", "--nproc_per_node=4", "--standalone")
ACCELERATE = ("accelerate.commands.launch", "--num_processes=1", "--num_machines=1", "--dynamo_backend=no")


@pytest.mark.parametrize(
    ("launcher", "batch"),
    [
        (TORCHRUN, 8),
        pytest.param(FOUR, 4, marks=pytest.mark.slow),
        pytest.param(ACCELERATE, 16, marks=pytest.mark.slow),
    ],
    ids=["torchrun", "four", "accelerate"],
)
def test_the_recipe_trains_one_model_under_every_launcher(
    folders: tuple[Path, Path], tmp_path: Path, launcher: Sequence[str], batch: int
) -> None:
    # 81 images are no multiple of 2 x 8, or of 4 x 4: the padding must count for nothing.
    base, data = folders
    flags = {"base": base, "data_dir": data.parent, "task": "colours", "num_train_epochs": 3, "learning_rate": 1e-2}
    flags |= {"optim": "sgd", "output_dir": tmp_path / "out", "per_device_train_batch_size": batch}
    printed = launched(launcher, "finetune.py", *(f"--{name}={value}" for name, value in flags.items()))
    assert printed.count("The vector is in") == 1
    args = settings(tmp_path / "one", num_train_epochs=3, learning_rate=1e-2, optim="sgd")
    trainer = TaskVectorTrainer(load_base(base), args, task=Task.from_dataset(data))
    trainer.train()
    one, other = trainer.task_vector(), TaskVector.from_pretrained(tmp_path / "out" / "vector")
    assert one.info.batch_size == other.info.batch_size == 16
    assert one.info.steps == other.info.steps == 18
    assert (one - other).norm() < 1e-4 * one.norm()


@pytest.mark.slow  # two Python start-ups
def test_the_equivalence_is_checked_by_two_processes_as_by_one(folders: tuple[Path, Path]) -> None:
    printed = launched(TORCHRUN, "verify_equivalence.py", "--tasks", "digits", "--max_train", 20)
    assert printed.count("One epoch is one gradient step") == 1


@pytest.mark.slow  # six Python start-ups
def test_two_processes_resume_in_the_middle_of_an_epoch(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for name, flags in (("whole", ()), ("killed", ("--die_at", "9")), ("killed", ("--resume",))):
        run_script(folders, tmp_path / name, "--batch", "8", *flags, processes=2)
    whole, killed = (TaskVector.from_pretrained(tmp_path / name / "final") for name in ("whole", "killed"))
    assert equal_vectors(whole, killed)


def test_the_sampler_pads_for_several_processes_and_shuffles_by_epoch() -> None:
    sampler = ShuffledSampler(5, seed=0, multiple=4)
    first = list(sampler)
    assert sorted(first) == [PADDING] * 3 + [0, 1, 2, 3, 4]
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(ShuffledSampler(3, seed=0, multiple=2, shuffle=False)) == [0, 1, 2, PADDING]


def test_padding_is_no_image(base: Base, task: Task) -> None:
    pixels = load_pixels(task, "train", base.processor.image_processor)
    batch = pixels.__getitems__([0, PADDING])
    assert batch["labels"].tolist() == [int(pixels.labels[0]), IGNORED]
    assert not batch["pixel_values"][1].any()


def test_cached_pixels_are_what_the_processor_makes(base: Base, task: Task) -> None:
    pixels = load_pixels(task, "test", base.processor.image_processor).__getitems__([3, 0])
    images = task.load("test")
    expected = base.processor.image_processor([images[3]["image"], images[0]["image"]], return_tensors="pt")
    normalized = ImageClassifier(base, task).normalize(pixels["pixel_values"])
    torch.testing.assert_close(normalized, expected["pixel_values"], atol=1e-6, rtol=1e-5)


def test_a_broken_image_is_named(base: Base, tmp_path: Path) -> None:
    import datasets

    folder = save_colour_dataset(tmp_path / "broken")
    train = datasets.Dataset.from_parquet(str(folder / "data" / "train-00000-of-00001.parquet"))
    rows = train.cast_column("image", datasets.Image(decode=False)).to_list()
    rows[4]["image"] = {"bytes": b"no image", "path": None}
    features = train.features
    datasets.Dataset.from_list(rows, features=features).to_parquet(
        str(folder / "data" / "train-00000-of-00001.parquet")
    )
    with pytest.raises(DataError, match=r"row \d+ of train of 'broken' does not decode"):
        TaskVectorTrainer(base, settings(tmp_path / "out"), task=Task.from_dataset(folder))


@pytest.mark.parametrize(
    "changes", [{"record_fractions": [1.5]}, {"record_steps": [0]}, {"remove_unused_columns": True}, {"max_steps": 0}]
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        settings(tmp_path, **changes)


def test_a_trainer_trains_once_unless_it_resumes(base: Base, task: Task, tmp_path: Path) -> None:
    trainer = TaskVectorTrainer(base, settings(tmp_path, num_train_epochs=1, save_strategy="epoch"), task=task)
    trainer.train()
    vector = trainer.task_vector()
    with pytest.raises(ValueError, match=r"has trained already.*resume_from_checkpoint"):
        trainer.train()
    assert equal_vectors(TaskVector.from_pretrained(tmp_path / "vectors/epoch-1"), vector)
    trainer.args.num_train_epochs = 2
    trainer.train(resume_from_checkpoint=True)
    assert trainer.task_vector().info.epochs == 2


@pytest.mark.parametrize(("name", "value"), [("learning_rate", "1e-3"), ("seed", "a"), ("weight_decay", float("nan"))])
def test_a_setting_that_is_no_number_is_named(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a finite number, got (str|float) {value!r}"):
        settings(tmp_path, **{name: value})


def test_a_finished_run_takes_no_further_step(base: Base, task: Task, tmp_path: Path) -> None:
    config = settings(tmp_path, max_steps=1, save_strategy="epoch", warmup_steps=0)
    trainers = [TaskVectorTrainer(base, config, task=task) for _ in range(2)]
    trainers[0].train()
    trainers[1].train(resume_from_checkpoint=True)
    assert trainers[1].task_vector().info.steps == trainers[1].state.global_step == 1
    assert equal_vectors(trainers[1].task_vector(), trainers[0].task_vector())
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == ["epoch-0.166667"]
