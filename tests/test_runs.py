"""A run's folder: whose it is, what may go, and what it is resumed from."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.normalizers import Lowercase
from transformers import TrainerCallback, trainer

from hf_taskvec import Base, TaskVector, TaskVectorConfig, TaskVectorTrainer
from hf_taskvec.errors import CheckpointError, OutputExistsError, SettingsDifferError
from hf_taskvec.tasks import Task
from hf_taskvec.training.output import RUN_FILE, RunFolder, check_checkpoint, last_checkpoint
from hf_taskvec.training.recording import Recorder
from hf_taskvec.training.run import train_vector
from hf_taskvec.training.sampler import ShuffledSampler
from tests.helpers import equal_vectors
from tests.toys import toy_base, toy_task, with_model


def run(
    folder: Path, *, base: Base | None = None, task: Task | None = None, callbacks: Any = None, **settings: Any
) -> TaskVectorTrainer:
    """A run of 5 steps an epoch."""
    values = {"per_device_train_batch_size": 10, "learning_rate": 1e-3, "disable_tqdm": True, "logging_strategy": "no"}
    args = TaskVectorConfig(output_dir=str(folder), **{**values, "save_strategy": "no", **settings})
    return TaskVectorTrainer(base or toy_base(), args, task=task or toy_task(), callbacks=callbacks)


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


class At(TrainerCallback):
    """Does something at the beginning of a step."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.action()


class KilledError(Exception):
    """Stands in for the end of the process."""


def die() -> None:
    raise KilledError


# -- nothing of the user's goes ----------------------------------------------------------------------------------------


def test_training_leaves_folders_of_the_user_alone(tmp_path: Path) -> None:
    for name in ("vectors/mnist/notes.txt", "gradients/notes.txt", "full_gradients/notes.txt", "README.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a week of work")
    before = files(tmp_path)
    for epochs in (2, 1):
        run(tmp_path, num_train_epochs=epochs, record_gradients=True).train()
        assert before.items() <= files(tmp_path).items()
    assert sorted(path.name for path in (tmp_path / "vectors").iterdir()) == ["epoch-1", "mnist"]


def test_a_checkpoint_without_a_plan_is_damaged(tmp_path: Path) -> None:
    run(tmp_path, save_strategy="epoch").train()
    (tmp_path / "checkpoint-5" / RUN_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"task_vector_run\.json is damaged: it holds no plan"):
        run(tmp_path, num_train_epochs=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


@pytest.mark.parametrize("stranger", ["vectors/epoch-7/notes.txt", "gradients/epoch-1/a", "checkpoint-3/weights.bin"])
def test_what_a_run_might_replace_without_having_written_it_is_refused_before_work(
    tmp_path: Path, stranger: str
) -> None:
    (tmp_path / stranger).parent.mkdir(parents=True)
    (tmp_path / stranger).write_text("a week of work")
    trainer = run(tmp_path)
    with pytest.raises(OutputExistsError, match=f"{Path(stranger).parent}, which no run of this folder wrote"):
        trainer.train()
    assert list(files(tmp_path)) == [stranger]
    assert trainer.state.global_step == 0


def test_before_training_there_is_no_vector_of_an_epoch(tmp_path: Path) -> None:
    assert run(tmp_path).task_vectors() == []


def test_every_epoch_has_an_order_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders, draw = list[list[int]](), ShuffledSampler.__iter__

    def drawn(sampler: ShuffledSampler) -> Iterator[int]:
        orders.append(list(draw(sampler)))
        return iter(orders[-1])

    monkeypatch.setattr(ShuffledSampler, "__iter__", drawn)
    run(tmp_path, num_train_epochs=3).train()
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == list(draw(ShuffledSampler(50, seed=42, multiple=10)))


def test_recorded_gradients_count_their_steps_and_know_no_clipping(tmp_path: Path) -> None:
    plain, clipped = (
        run(tmp_path / str(limit), record_gradients=True, max_grad_norm=limit, learning_rate=1e-12)
        for limit in (0.0, 0.03)
    )
    plain.train()
    clipped.train()
    whole, cut = (TaskVector.from_pretrained(tmp_path / limit / "gradients" / "epoch-1") for limit in ("0.0", "0.03"))
    assert whole.info.settings["steps"] == cut.info.settings["steps"] == 5
    assert cut.info.mean_gradient_norm == pytest.approx(whole.info.mean_gradient_norm, rel=1e-4)
    assert whole.info.mean_gradient_norm is not None
    assert whole.info.mean_gradient_norm > 0.03
    assert (cut - whole).norm() < 1e-4 * whole.norm()


def test_what_is_added_to_a_run_goes_with_it(tmp_path: Path) -> None:
    run(tmp_path).train()
    (tmp_path / "vectors" / "epoch-0.5").mkdir()
    RunFolder(tmp_path).adopt("vectors/epoch-0.5")
    RunFolder(tmp_path).adopt("vectors/epoch-0.5")  # once is enough
    assert json.loads((tmp_path / RUN_FILE).read_text())["written"].count("vectors/epoch-0.5") == 1
    run(tmp_path).train()
    assert [path.name for path in (tmp_path / "vectors").iterdir()] == ["epoch-1"]


def test_notes_beside_a_recorded_vector_are_kept(tmp_path: Path) -> None:
    run(tmp_path).train()
    (tmp_path / "vectors" / "epoch-1" / "notes.txt").write_text("good one")
    before = files(tmp_path)
    with pytest.raises(OutputExistsError, match=r"holds notes\.txt besides the vector of an earlier run"):
        run(tmp_path).train()
    assert files(tmp_path) == before


def test_a_vector_of_the_user_is_not_recorded_over(tmp_path: Path) -> None:
    trainer = run(tmp_path)
    trainer.train()
    trainer.task_vector().save_pretrained(tmp_path / "vectors" / "mine")
    with pytest.raises(OutputExistsError, match=r"no run of .* wrote it"):
        trainer.record("mine")
    with pytest.raises(ValueError, match="recorded vector's name"):
        trainer.record("../mine")


# -- whose a folder is -------------------------------------------------------------------------------------------------


def test_a_folder_belongs_to_its_task_and_base(tmp_path: Path) -> None:
    first = run(tmp_path)
    first.train()
    before = files(tmp_path)
    with pytest.raises(SettingsDifferError, match="task=digits there, shapes here") as caught:
        run(tmp_path, task=toy_task("shapes")).train()
    assert "choose another output folder" in str(caught.value)
    with pytest.raises(SettingsDifferError, match="base_fingerprint"):
        run(tmp_path, base=with_model(toy_base())).train()
    assert files(tmp_path) == before
    assert first.task_vectors()[0].info.task == "digits"


def test_a_trainer_whose_folder_another_took_over_gives_none_of_its_vectors(tmp_path: Path) -> None:
    first = run(tmp_path)
    first.train()
    run(tmp_path, learning_rate=2e-3).train()
    with pytest.raises(OutputExistsError, match="another run has written"):
        first.task_vectors()
    with pytest.raises(OutputExistsError, match="another run has written"):
        first.recorded_vector("epoch-1")


def test_a_second_run_in_a_folder_at_work_is_refused(tmp_path: Path) -> None:
    refused: list[str] = []

    def start_another() -> None:
        with pytest.raises(OutputExistsError, match="another run is at work") as caught:
            run(tmp_path).train()
        refused.append(str(caught.value))

    trainer = run(tmp_path, callbacks=[At(2, start_another)])
    trainer.train()
    assert len(refused) == 1
    assert equal_vectors(trainer.task_vectors()[0], trainer.task_vector())
    run(tmp_path).train()  # the lock is given back


def test_a_folder_that_cannot_be_locked_is_trained_in_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("hf_taskvec.weights.temporary.fcntl.flock", no_locks)
    run(tmp_path).train()
    assert caplog.text.count(f"{tmp_path} cannot be locked") == 1


# -- names of epochs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "names"), [(2.4, ["1", "2", "2.4"]), (1.6, ["1", "1.6"]), (0.4, ["0.4"])])
def test_a_fraction_of_an_epoch_has_a_name_of_its_own(tmp_path: Path, epochs: float, names: list[str]) -> None:
    trainer = run(tmp_path, num_train_epochs=epochs, record_gradients=True)
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "vectors").iterdir()) == [f"epoch-{name}" for name in names]
    assert sorted(path.name for path in (tmp_path / "gradients").iterdir()) == [f"epoch-{name}" for name in names]
    for name in names:
        assert f"{trainer.recorded_vector(f'epoch-{name}').info.epochs:g}" == name
    assert [f"{vector.info.epochs:g}" for vector in trainer.task_vectors()] == names


# -- resuming ----------------------------------------------------------------------------------------------------------

LONG: dict[str, Any] = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 2, "save_total_limit": None}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> TaskVectorTrainer:
    """A run that was not interrupted; never changed by a test."""
    trainer = run(tmp_path_factory.mktemp("whole"), track_gradients=True, **LONG)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run, dead at step 9 of 15; to be copied."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(KilledError):
        run(folder, track_gradients=True, callbacks=[At(9, die)], **LONG).train()
    return folder


def course(trainer: TaskVectorTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "cosine_to_vector" in entry]


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "run"))


def test_a_run_goes_on_after_its_last_checkpoint_with_the_course_of_its_gradients(
    whole: TaskVectorTrainer, killed: Path, tmp_path: Path
) -> None:
    steps: list[int] = []
    counter = At(-1, die)
    counter.on_step_begin = lambda args, state, control, **_: steps.append(state.global_step)  # type: ignore[method-assign]
    again = run(copied(killed, tmp_path), track_gradients=True, callbacks=[counter], **LONG)
    again.train(resume_from_checkpoint=True)
    assert steps == list(range(8, 15))  # not from checkpoint-2
    assert equal_vectors(again.task_vector(), whole.task_vector())
    assert course(again) == course(whole)
    assert len(course(again)) == 3


@pytest.mark.parametrize("damage", ["no state", "half a state", "no weights", "no optimizer"])
def test_an_unfinished_checkpoint_is_passed_over(
    whole: TaskVectorTrainer, killed: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(killed, tmp_path)
    last = folder / "checkpoint-8"
    state = last / "trainer_state.json"
    if damage == "half a state":
        state.write_text(state.read_text()[:100])
    else:
        path = {"no state": state, "no weights": last / "model.safetensors", "no optimizer": last / "optimizer.pt"}
        path[damage].unlink()
    assert last_checkpoint(folder) == folder / "checkpoint-6"
    assert "checkpoint-8 is passed over" in caplog.text
    again = run(folder, track_gradients=True, **LONG)
    with pytest.raises(CheckpointError, match="checkpoint-8 cannot be resumed from"):
        again.train(resume_from_checkpoint=str(last))
    again.train(resume_from_checkpoint=True)
    assert equal_vectors(again.task_vector(), whole.task_vector())


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("function", ["rotate_checkpoints", "_save_optimizer_and_scheduler", "_save"])
def test_a_run_that_dies_while_it_writes_a_checkpoint_goes_on(
    whole: TaskVectorTrainer, tmp_path: Path, function: str, time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**LONG, "save_total_limit": 1, "track_gradients": True}
    target: Any = trainer if function == "rotate_checkpoints" else trainer.Trainer
    with monkeypatch.context() as patch:
        calls, original = [], getattr(target, function)

        def dies(*args: Any, **kwargs: Any) -> None:
            calls.append(function)
            if len(calls) == time:
                raise KilledError
            original(*args, **kwargs)

        patch.setattr(target, function, dies)
        with pytest.raises(KilledError):
            run(tmp_path, **settings).train()
    again = run(tmp_path, **settings)
    again.train(resume_from_checkpoint=last_checkpoint(tmp_path) is not None)
    assert equal_vectors(again.task_vector(), whole.task_vector())
    assert course(again) == course(whole)


def test_resuming_on_another_base_task_or_setting_is_refused_by_name(killed: Path, tmp_path: Path) -> None:
    folder = copied(killed, tmp_path)
    moved = dataclasses.replace(toy_base(), model=with_model(toy_base()).model)
    for changes, message in (
        ({"base": moved}, "base_fingerprint="),
        ({"task": toy_task("shapes")}, "task=digits there, shapes here"),
        ({"task": toy_task(images=40)}, "max_train=50 there, 40 here"),
        ({"seed": 7}, "seed=42 there, 7 here"),
        ({"learning_rate": 3e-3}, r"learning_rate=0\.001 there, 0\.003 here"),
        ({"weight_decay": 0.0}, "weight_decay"),
        ({"per_device_train_batch_size": 5}, "batch_size=10 there, 5 here"),
    ):
        before = files(folder)
        with pytest.raises(SettingsDifferError, match=message):
            run(folder, **{**LONG, **changes}).train(resume_from_checkpoint=True)
        with pytest.raises(SettingsDifferError, match=message):  # in a folder of its own as well
            run(tmp_path / "own", **{**LONG, **changes}).train(resume_from_checkpoint=str(folder / "checkpoint-4"))
        assert files(folder) == before
    assert not (tmp_path / "own" / "vectors").exists()


def test_resuming_with_another_tokenizer_is_refused_but_not_for_a_plan_that_does_not_know_it(
    killed: Path, tmp_path: Path
) -> None:
    folder = copied(killed, tmp_path)
    processor = copy.deepcopy(toy_base().processor)
    processor.tokenizer.backend_tokenizer.normalizer = Lowercase()
    trainer = run(folder, base=dataclasses.replace(toy_base(), processor=processor), **LONG)
    with pytest.raises(SettingsDifferError, match="tokenizer="):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.unfinished() is None
    for file in folder.glob("checkpoint-*/task_vector_run.json"):
        note = json.loads(file.read_text())
        note["plan"].pop("tokenizer")
        file.write_text(json.dumps(note))
    assert trainer.unfinished() == folder / "checkpoint-8"
    check_checkpoint(folder / "checkpoint-8", trainer._whole_plan())


def test_another_split_of_the_same_batch_is_the_same_run(killed: Path, tmp_path: Path) -> None:
    trainer = run(copied(killed, tmp_path), per_device_train_batch_size=5, gradient_accumulation_steps=2, **LONG)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 15


def test_a_longer_run_may_be_resumed_and_is_told(
    killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(copied(killed, tmp_path), **{**LONG, "num_train_epochs": 4})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 20
    assert "num_train_epochs=4, 3 before" in caplog.text


class DiesOnceSaved(TrainerCallback):
    """Ends the process after the checkpoint of a step, before the step's epoch ends."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 10:
            die()


def test_an_epoch_whose_end_a_kill_cut_off_is_recorded_by_the_run_that_goes_on(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 3, "save_strategy": "steps", "save_steps": 5, "record_gradients": True}
    run(tmp_path / "whole", **settings).train()
    with pytest.raises(KilledError):
        run(tmp_path / "cut", callbacks=[DiesOnceSaved()], **settings).train()
    assert not (tmp_path / "cut" / "vectors" / "epoch-2").exists()
    run(tmp_path / "cut", **settings).train(resume_from_checkpoint=True)
    for kind in ("vectors", "gradients"):
        names = {path.name for path in (tmp_path / "whole" / kind).iterdir()}
        assert {path.name for path in (tmp_path / "cut" / kind).iterdir()} == names == {f"epoch-{n}" for n in (1, 2, 3)}
        for name in names:
            one, other = (TaskVector.from_pretrained(tmp_path / each / kind / name) for each in ("whole", "cut"))
            assert equal_vectors(one, other), (kind, name)


def test_resuming_with_tracking_switched_on_starts_the_course_afresh_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, save_strategy="epoch", track_gradients=False).train()
    for damage in (None, b"no tensors"):
        if damage:
            (last_checkpoint(tmp_path) or tmp_path).joinpath("epoch_gradients.safetensors").write_bytes(damage)
        epochs = 3 if damage else 2
        again = run(tmp_path, save_strategy="epoch", num_train_epochs=epochs, track_gradients=True)
        again.train(resume_from_checkpoint=True)
        assert course(again)[-1]["cosine_to_first_epoch"] == pytest.approx(1.0)
        assert f"epoch_gradients.safetensors is {'damaged' if damage else 'not there'}" in caplog.text


def test_weights_alone_are_no_checkpoint_to_resume_from(tmp_path: Path) -> None:
    run(tmp_path, save_strategy="epoch", save_only_model=True).train()
    with pytest.raises(CheckpointError, match="it holds the weights only"):
        run(tmp_path, save_strategy="epoch", num_train_epochs=2).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="it holds the weights only"):
        run(tmp_path, num_train_epochs=2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_resuming_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no checkpoint"):
        run(tmp_path / "new").train(resume_from_checkpoint=True)


def test_the_last_checkpoint_is_that_of_the_last_run(tmp_path: Path) -> None:
    run(tmp_path, **{**LONG, "save_steps": 10}).train()
    settings = {**LONG, "save_steps": 2, "learning_rate": 2e-3}
    with pytest.raises(KilledError):
        run(tmp_path, callbacks=[At(5, die)], **settings).train()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    resumed = run(tmp_path, **settings, resume_from_checkpoint=True)
    resumed.train()
    assert resumed.recorder.resumed_from == tmp_path / "checkpoint-4"


def test_train_vector_goes_on_with_the_run_that_was_stopped(
    whole: TaskVectorTrainer, killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    folder = Path(shutil.copytree(killed, tmp_path / "out" / "run"))
    steps: list[int] = []
    monkeypatch.setattr(
        Recorder, "on_step_end", lambda self, args, state, control, **_: steps.append(state.global_step)
    )
    args = run(folder, track_gradients=True, **LONG).args
    vector = train_vector(toy_base(), toy_task(), args, output_dir=tmp_path / "out")
    assert steps == list(range(9, 16))
    assert equal_vectors(vector, whole.task_vector())
    train_vector(toy_base(), toy_task(), args, output_dir=tmp_path / "out")  # a finished run begins anew
    assert steps[7:] == list(range(1, 16))
    other = dataclasses.replace(args, seed=7)
    train_vector(toy_base(), toy_task(), other, output_dir=tmp_path / "out")  # as one with other settings does
    assert steps[22:] == list(range(1, 16))


# -- what is recorded --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"record_steps": [2, 6]}, r"step-6 would never be recorded: the run has 5 optimiser steps, 5 an epoch"),
        ({"record_steps": [16, 20], "num_train_epochs": 3}, r"step-16, step-20 would never .* 15 optimiser steps"),
        (
            {"record_fractions": [0.2, 0.8], "max_steps": 2},
            r"fraction-0.8 would never .* 2 optimiser steps, 5 an epoch",
        ),
        ({"record_steps": [2], "full_batch": True}, r"step-2 would never .* 1 optimiser steps, 1 an epoch"),
    ],
)
def test_a_step_that_never_comes_is_refused_before_work(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    run(tmp_path, max_steps=1).train()
    before = files(tmp_path)
    trainer = run(tmp_path, **settings)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert files(tmp_path) == before
    assert trainer.state.global_step == 0


def test_steps_are_recorded_however_many_names_and_epochs_they_have(tmp_path: Path) -> None:
    trainer = run(tmp_path, num_train_epochs=1.4, record_steps=[2, 7], record_fractions=[0.4, 0.6])
    trainer.train()
    steps = {path.name: TaskVector.from_pretrained(path).info.steps for path in (tmp_path / "vectors").iterdir()}
    assert steps == {"step-2": 2, "fraction-0.4": 2, "fraction-0.6": 3, "step-7": 7, "epoch-1": 5, "epoch-1.4": 7}


def test_a_step_that_lies_behind_the_checkpoint_is_told(
    killed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = run(copied(killed, tmp_path), record_steps=[3, 12], **LONG)
    trainer.train(resume_from_checkpoint=True)
    assert "step-3 cannot be recorded any more: the run goes on after step 8" in caplog.text
    assert trainer.recorded_vector("step-12").info.steps == 12


# -- what is said ------------------------------------------------------------------------------------------------------


def test_ctrl_c_says_what_is_left_and_how_to_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callbacks=[At(1, interrupt)], **LONG).train()
    assert "interrupted at step 1 of 15, before the first checkpoint: start it again" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, callbacks=[At(3, interrupt)], **LONG).train()
    left = (
        f"interrupted at step 3 of 15; {tmp_path / 'checkpoint-2'} is left: train(resume_from_checkpoint=True) goes on"
    )
    assert left in caplog.text


def test_a_run_says_where_its_vectors_are_and_what_resuming_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, save_strategy="epoch").train()
    said = capsys.readouterr().out
    assert f"Task vectors are in {tmp_path / 'vectors'}: epoch-1" in said
    assert "checkpoint-5" in said
    assert "is what resuming needs" in said
    assert sorted(path.name for path in (tmp_path / "checkpoint-5").iterdir() if "gradients" in path.name) == []


def test_a_vector_of_zeros_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recorder, "warned", False)
    trainer = run(tmp_path, max_steps=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert trainer.task_vector().norm() == 0.0
    assert "the learning rate is 0 in the first of 1 steps" in caplog.text
    assert "the task vector is zero: 1 steps moved no weight" in caplog.text
    caplog.clear()
    run(tmp_path, max_steps=1, warmup_steps=0).train()
    assert "zero" not in caplog.text
    assert "learning rate is 0" not in caplog.text
    with caplog.at_level(logging.WARNING):
        run(tmp_path, max_steps=1).train()
    assert "the task vector is zero" in caplog.text
    assert "learning rate is 0" not in caplog.text  # once in a process


def test_the_dead_leave_no_lock(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        run(tmp_path, callbacks=[At(1, die)]).train()
    trainer = run(tmp_path)
    trainer.train()
    assert all(torch.isfinite(delta).all() for delta in trainer.task_vector().deltas.values())
