"""Training with the tower sharded over processes: one process's vector, checkpoints without a pickle, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import distributed
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from hf_taskvec import TaskVector, TaskVectorConfig, TaskVectorTrainer, load_base, verify_equivalence
from hf_taskvec.errors import CheckpointError
from hf_taskvec.models.base import Base
from hf_taskvec.training import sharding
from hf_taskvec.training.atm import alternating_tuning_and_merging
from hf_taskvec.training.output import SHARDS, last_checkpoint, shard_name
from hf_taskvec.training.run import quiet
from tests.backbones import save_backbone
from tests.bases import save_colour_dataset, save_tiny_base
from tests.helpers import equal_vectors, in_processes
from tests.siglip import save_tiny_siglip
from tests.toys import toy_base, toy_task, with_model

BOTH = (True, False)


@pytest.fixture
def group() -> Iterator[None]:
    """A group of this process alone, as `torchrun --nproc_per_node 1` makes one."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def base() -> Base:
    """A tower that takes chance to train."""
    return with_model(toy_base(), attention_dropout=0.1)


class Stop(TrainerCallback):
    """Ends a run in the middle of an epoch as an error would."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fails after five steps."""
        if state.global_step == 5:
            raise InterruptedError


def trainer_in(folder: Path, base: Base, *callbacks: TrainerCallback, **changes: Any) -> TaskVectorTrainer:
    settings: dict[str, Any] = {"num_train_epochs": 2, "learning_rate": 1e-3, "per_device_train_batch_size": 13}
    settings |= {"save_strategy": "steps", "save_steps": 3, "shard": True, "disable_tqdm": True, **changes}
    config = TaskVectorConfig(output_dir=str(folder), **settings)
    trainer = TaskVectorTrainer(base, config, task=toy_task(), callbacks=list(callbacks))
    quiet(trainer)
    return trainer


@pytest.mark.usefixtures("group")
def test_a_sharded_run_gives_the_vector_of_a_whole_one(tmp_path: Path) -> None:
    sharded, whole = (trainer_in(tmp_path / str(shard), toy_base(), shard=shard, logging_steps=1) for shard in BOTH)
    assert all(isinstance(weight, DTensor) for weight in sharded.model.parameters())
    for trainer in (sharded, whole):
        trainer.train()
    ours, theirs = sharded.task_vector(), whole.task_vector()
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert ours.info.base_hashes == theirs.info.base_hashes
    assert (ours.info.settings["shard"], ours.info.steps, ours.info.task) == (True, 8, "digits")
    assert equal_vectors(ours, sharded.task_vectors()[-1])
    norms = [[entry["grad_norm"] for entry in t.state.log_history if "grad_norm" in entry] for t in (sharded, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert sharded.evaluate()["eval_accuracy"] == pytest.approx(whole.evaluate()["eval_accuracy"])
    with pytest.raises(ValueError, match="no whole model to save"):
        sharded.save_model(str(tmp_path / "model"))


@pytest.mark.usefixtures("group")
def test_a_stopped_run_goes_on_to_the_same_vector_without_a_pickle(base: Base, tmp_path: Path) -> None:
    trainer_in(tmp_path / "whole", base).train()
    with pytest.raises(InterruptedError):
        trainer_in(tmp_path / "stopped", base, Stop()).train()
    checkpoint = last_checkpoint(tmp_path / "stopped")
    assert checkpoint is not None
    assert checkpoint.name == "checkpoint-3"
    assert {path.suffix for path in checkpoint.iterdir()} == {".json", ".safetensors"}
    again = trainer_in(tmp_path / "stopped", base)
    with pytest.raises(ValueError, match="no vector before its first step"):
        again.task_vector()
    torch.manual_seed(7)  # dropout must go on where it stopped
    again.train(resume_from_checkpoint=True)
    for name in ("epoch-1", "epoch-2"):
        whole, resumed = (TaskVector.from_pretrained(tmp_path / run / "vectors" / name) for run in ("whole", "stopped"))
        assert equal_vectors(whole, resumed)


@pytest.mark.usefixtures("group")
def test_a_checkpoint_is_resumed_as_it_was_started_or_refused_by_name(base: Base, tmp_path: Path) -> None:
    for shard in (True, False):
        trainer_in(tmp_path / str(shard), base, shard=shard, num_train_epochs=1).train()
    first, whole = (last_checkpoint(tmp_path / name) for name in ("True", "False"))
    assert first is not None
    assert whole is not None
    two = tmp_path / "two"
    shutil.copytree(first, two)
    (two / SHARDS).write_text(json.dumps(json.loads((two / SHARDS).read_text()) | {"processes": 2}))
    for rank in range(2):
        shutil.copy(first / shard_name(0, 1), two / shard_name(rank, 2))
    for checkpoint, shard, said in (
        (two, True, "written with shard=True and 2 processes, this run has shard=True and 1 processes"),
        (whole, True, "written with shard=False, this run has shard=True and 1 processes"),
        (first, False, "written with shard=True and 1 processes, this run has shard=False"),
    ):
        with pytest.raises(CheckpointError, match=said):
            trainer_in(tmp_path / f"to-{shard}", base, shard=shard).train(resume_from_checkpoint=checkpoint)
    (two / shard_name(1, 2)).unlink()
    with pytest.raises(CheckpointError, match=r"it has no shard-00002-of-00002\.safetensors"):
        trainer_in(tmp_path / "to-True", base).train(resume_from_checkpoint=two)
    (first / SHARDS).write_text("{}")
    with pytest.raises(CheckpointError, match=r"shards\.json is damaged"):
        trainer_in(tmp_path / "to-True", base).train(resume_from_checkpoint=first)


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("shard", BOTH)
def test_a_checkpoint_that_is_written_anew_in_part_counts_as_unfinished(
    shard: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer_in(tmp_path, toy_base(), num_train_epochs=1, shard=shard).train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(sharding, "write_safetensors", full)
    monkeypatch.setattr(sharding.ObjectiveTrainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match="No space left"):
        trainer_in(tmp_path, toy_base(), num_train_epochs=1, save_steps=4, shard=shard).train()
    assert last_checkpoint(tmp_path) != tmp_path / "checkpoint-4"


@pytest.mark.usefixtures("group")
def test_a_checkpoint_of_a_whole_run_in_the_place_of_shards_is_resumed_as_such(base: Base, tmp_path: Path) -> None:
    for shard in BOTH:
        trainer_in(tmp_path, base, num_train_epochs=1, shard=shard).train()
    trainer = trainer_in(tmp_path, base, shard=False)
    trainer.train(resume_from_checkpoint=tmp_path / "checkpoint-4")
    assert trainer.state.global_step == 8


@pytest.mark.parametrize(
    "settings",
    [
        {"tangent": True},
        {"pull_to_base": 0.1},
        {"track_gradients": True},
        {"fp16": True, "use_cpu": False},
        {"torch_compile": True},
        {"save_only_model": True},
        {"optim": "adafactor"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_what_needs_a_whole_tower_is_refused_by_name(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(settings))} .* with shard=True"):
        TaskVectorConfig(output_dir=str(tmp_path), shard=True, **settings)


def test_adapters_an_own_optimiser_and_a_process_alone_are_refused_by_name(tmp_path: Path) -> None:
    config = TaskVectorConfig(output_dir=str(tmp_path), shard=True)
    own = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match="peft_config must be left out"):
        TaskVectorTrainer(toy_base(), config, task=toy_task(), peft_config=LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="optimizers must be left out"):
        TaskVectorTrainer(toy_base(), config, task=toy_task(), optimizers=(own, None))
    with pytest.raises(ValueError, match="this one is alone: start it by `accelerate launch`"):
        TaskVectorTrainer(toy_base(), config, task=toy_task())
    with pytest.raises(ValueError, match="shard must be False here"):
        verify_equivalence(toy_base(), toy_task(), args=config)
    with pytest.raises(ValueError, match="shard must be False here"):
        alternating_tuning_and_merging(
            toy_base(), [toy_task(), toy_task("shapes")], args=config, rounds=2, output_dir=tmp_path / "rounds"
        )
    assert not (tmp_path / "rounds").exists()


def test_processes_that_do_not_save_pass_over_an_adapters_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TaskVectorConfig(output_dir=str(tmp_path / "run"))
    trainer = TaskVectorTrainer(
        toy_base(), config, task=toy_task(), peft_config=LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    )
    monkeypatch.setattr(TaskVectorConfig, "should_save", False)
    trainer.save_model(str(tmp_path / "checkpoint"), _internal_call=True)
    assert not (tmp_path / "checkpoint").exists()


TOWERS = """
import os
import sys
from pathlib import Path
from hf_taskvec import Task, TaskVectorConfig, TaskVectorTrainer, load_base
from hf_taskvec.training.run import quiet

folder, optim, shard = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"
count = int(os.environ["WORLD_SIZE"])
for base in sys.argv[4:]:
    config = TaskVectorConfig(
        output_dir=str(folder / f"{base}-{shard}"), num_train_epochs=2, learning_rate=1e-3, disable_tqdm=True,
        per_device_train_batch_size=12 // count, optim=optim, shard=shard, eval_strategy="epoch",
        include_projection=base == "clip", gradient_accumulation_steps=2,
    )
    trainer = TaskVectorTrainer(load_base(folder / base), config, task=Task.from_dataset(folder / "colours"))
    quiet(trainer)
    trainer.train()
    if shard:
        sizes = [(weight.to_local().numel(), weight.numel()) for weight in trainer.model.weights().values()]
        assert sum(held for held, _ in sizes) < 1.2 / count * sum(whole for _, whole in sizes)
    vector = trainer.task_vector()
    if config.should_save:
        vector.save_pretrained(folder / f"{base}-{shard}-final")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sharding")
    save_tiny_base(root / "clip")
    save_tiny_siglip(root / "siglip")
    for kind in ("vit", "dinov2"):
        save_backbone(root / kind, kind)
    save_colour_dataset(root / "colours")
    (root / "towers.py").write_text(TOWERS)
    return root


@pytest.mark.slow  # five Python start-ups or more each
@pytest.mark.parametrize(
    ("count", "optim", "tolerance", "bases"),
    [
        (2, "adamw_torch_fused", 1e-3, ["clip"]),
        (3, "sgd", 1e-5, ["clip"]),  # which does not divide the widths
        (4, "sgd", 1e-5, ["siglip", "vit", "dinov2"]),  # some parameters have one row: three have nothing of them
    ],
)
def test_processes_that_share_a_tower_give_the_vector_of_one(
    count: int, optim: str, tolerance: float, bases: list[str], folder: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(folder, tmp_path / "run")
    for shard, processes in ((True, count), (False, 1)):
        in_processes(run / "towers.py", run, optim, str(shard), *bases, count=processes)
    for name in bases:
        shared, one = (
            TaskVector.from_pretrained(run / f"{name}-{shard}-final", verify=True) for shard in (True, False)
        )
        assert (shared - one).norm() < tolerance * one.norm()
        assert shared.info.base_hashes == one.info.base_hashes
        assert len(list((run / f"{name}-True" / "vectors" / "epoch-2").glob("*.safetensors"))) == count
        shared.apply_to(load_base(run / name))


@pytest.mark.slow  # nine Python start-ups
def test_processes_that_were_killed_go_on_in_the_middle_of_an_epoch(folder: Path, tmp_path: Path) -> None:
    script = Path(__file__).parent / "scripts" / "train_colours.py"
    words = (script, folder / "clip", folder / "colours")
    in_processes(*words, tmp_path / "whole", "--batch", "8", "--shard")
    with pytest.raises(AssertionError):
        in_processes(*words, tmp_path / "killed", "--batch", "8", "--shard", "--die_at", "9")
    in_processes(*words, tmp_path / "killed", "--batch", "8", "--shard", "--resume")
    whole, killed = (TaskVector.from_pretrained(tmp_path / name / "final") for name in ("whole", "killed"))
    assert equal_vectors(whole, killed)
