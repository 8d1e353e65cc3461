"""Pretraining on a machine that is lent for minutes: pairs that travel, states that come back in small files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretraining import bundle as bundles
from pretraining.bundle import bundle, unbundle
from pretraining.pack import pack, unpack
from pretraining.run import Travel, pretrain, running_base
from pretraining.sources import Gathered, Sources, gather_pairs
from pretraining.state import load_state

from hf_taskvec import get_task
from hf_taskvec.errors import CheckpointError, DataError, OutputExistsError
from recipes import pretrain_tiny_clip
from tests.pairs import FEATURES, toy_pairs, toy_trainer

SHAPES = get_task("shapes")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after four of its steps."""
    folder = tmp_path_factory.mktemp("stopped")
    trainer = toy_trainer(folder, FEATURES)
    trainer.module.clip.config.save_pretrained(folder)
    trainer.train(stop_at=4)
    return folder


def test_packed_pairs_are_the_gathered_ones(tmp_path: Path) -> None:
    gathered = gather_pairs(Sources(generated=20, unlabelled=[SHAPES]), FEATURES)
    size = pack(gathered, FEATURES, tmp_path / "pack", quality=100)
    unpacked = unpack(tmp_path / "pack", FEATURES)
    assert torch.equal(unpacked.pairs.pixels, gathered.pairs.pixels)
    assert (unpacked.pairs.texts, unpacked.pairs.subjects) == (gathered.pairs.texts, gathered.pairs.subjects)
    assert unpacked.duplicates == gathered.duplicates
    assert unpacked.facts == {**gathered.facts, "packed_at_quality": 100}
    lossy = pack(gathered, FEATURES, tmp_path / "pack", quality=80)  # replaces the former
    assert lossy < size
    error = (unpack(tmp_path / "pack", FEATURES).pairs.pixels.float() - gathered.pairs.pixels.float()).abs().mean()
    assert 0 < error < 25  # of noisy drawings


def test_what_was_packed_with_other_settings_or_is_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no packed pairs"):
        unpack(tmp_path, FEATURES)
    with pytest.raises(ValueError, match="pack_quality"):
        pack(Gathered(toy_pairs(), 0), FEATURES, tmp_path / "pack", quality=0)
    pack(Gathered(toy_pairs(), 0), FEATURES, tmp_path / "pack")
    with pytest.raises(CheckpointError, match=r"other settings: \{'fine_captions': 1.0\}"):
        unpack(tmp_path / "pack", replace(FEATURES, fine_captions=0.5))
    (tmp_path / "pack" / "sheet-0000.webp").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"sheet-0000.webp is missing or damaged"):
        unpack(tmp_path / "pack", FEATURES)


def test_a_bundle_goes_on_where_the_run_was(stopped: Path, tmp_path: Path) -> None:
    assert bundle(stopped, tmp_path / "bundle", size=100_000)
    parts = list((tmp_path / "bundle").iterdir())
    assert len(parts) > 2
    assert max(path.stat().st_size for path in parts) <= 100_000
    unbundle(tmp_path / "bundle", tmp_path / "run")
    before, after = load_state(stopped), load_state(tmp_path / "run")
    assert before is not None
    assert after is not None
    assert all(torch.equal(value, after.model[name]) for name, value in before.model.items())
    for left, right in zip(before.optimizer.values(), after.optimizer.values(), strict=True):
        assert torch.equal(left["step"], right["step"])
        torch.testing.assert_close(left["exp_avg_sq"], right["exp_avg_sq"], rtol=2**-7, atol=1e-30)
    resumed = toy_trainer(tmp_path / "run", FEATURES)
    assert resumed.resume()
    assert all(value.dtype == torch.float32 for value in resumed.average.values())
    resumed.train()
    whole = toy_trainer(tmp_path / "whole", FEATURES)
    whole.train()
    for name, value in whole.module.state_dict().items():  # the moments were rounded
        torch.testing.assert_close(value, resumed.module.state_dict()[name], rtol=0, atol=2e-3, msg=name)


def test_a_later_bundle_replaces_one_of_more_parts(stopped: Path, tmp_path: Path) -> None:
    bundle(stopped, tmp_path, size=50_000)
    bundle(stopped, tmp_path, size=10 << 20)
    assert [path.name for path in tmp_path.iterdir()] == ["state.tar.1-of-1"]


def test_a_state_that_is_too_large_leaves_its_averaged_weights(stopped: Path, tmp_path: Path) -> None:
    assert not bundle(stopped, tmp_path / "bundle", whole=10_000)
    with pytest.raises(CheckpointError, match="averaged weights only"):
        unbundle(tmp_path / "bundle", tmp_path / "run")


def test_missing_parts_and_full_folders_are_named(stopped: Path, tmp_path: Path) -> None:
    bundle(stopped, tmp_path / "bundle", size=200_000)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="is not empty"):
        unbundle(tmp_path / "bundle", tmp_path / "run")
    min((tmp_path / "bundle").iterdir()).unlink()
    with pytest.raises(CheckpointError, match=r"every state\.tar\.K-of-N is needed"):
        unbundle(tmp_path / "bundle", tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds nothing of a bundle"):
        unbundle(tmp_path / "none", tmp_path / "other")


def test_states_are_saved_no_more_often_than_asked_and_always_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = toy_trainer(tmp_path, replace(FEATURES, save_steps=1, save_seconds=1e6))
    saved: list[int] = []
    trainer.on_save = lambda: saved.append(trainer.step)
    trainer.train()
    assert saved == [FEATURES.steps]


def test_a_run_from_packed_pairs_bundles_itself_and_goes_on_elsewhere(tmp_path: Path) -> None:
    gathered = gather_pairs(Sources(generated=16, held_out=[SHAPES]), FEATURES)
    pack(gathered, FEATURES, tmp_path / "pack")
    there = Travel(packed=str(tmp_path / "pack"), bundle_to=str(tmp_path / "bundle"))
    lent = replace(FEATURES, stop_step=3)
    pretrain(Sources(), config=lent, output_dir=str(tmp_path / "lent"), travel=there)
    here = Travel(packed=str(tmp_path / "pack"), bundle_from=str(tmp_path / "bundle"))
    pretrain(Sources(), config=FEATURES, output_dir=str(tmp_path / "here"), travel=here)
    log = json.loads((tmp_path / "here" / "training_log.json").read_text())
    assert (log["stages"][0]["stopped_at"], log["held_out_tasks"], log["packed_at_quality"]) == (6, ["shapes"], 85)
    assert running_base(str(tmp_path / "here")).num_parameters() > 0


def test_the_recipe_packs_without_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = pretrain_tiny_clip.PretrainArguments(
        generated_pairs=16, output_dir=str(tmp_path / "out"), pack_to=str(tmp_path / "pack")
    )
    assert pretrain_tiny_clip.main(args, FEATURES) == {}
    assert "MiB in" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert len(unpack(tmp_path / "pack", FEATURES).pairs) == 16


def test_no_part_is_larger_than_what_comes_back() -> None:
    assert bundles.PART <= 16 << 20
    assert bundles.WHOLE <= 64 << 20


def test_a_schedule_that_is_fitted_to_its_minutes_ends_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock:
        """A second passes with each step."""

        @staticmethod
        def perf_counter() -> float:
            return float(trainer.step)

    trainer = toy_trainer(tmp_path, replace(FEATURES, steps=10_000, save_steps=10_000, warmup_steps=1))
    monkeypatch.setattr("pretraining.trainer.time", Clock)
    trainer.train(minutes=1.0, fit=True)
    assert 55 <= trainer.step == trainer.config.steps <= 60
    assert trainer.scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-9)
    assert json.loads((tmp_path / "state" / "state.json").read_text())["config"]["steps"] == trainer.step


@pytest.mark.parametrize(("schedule", "minutes"), [("cosine", 1.0), ("constant", float("inf"))])
def test_only_a_constant_schedule_with_minutes_is_fitted(schedule: str, minutes: float, tmp_path: Path) -> None:
    trainer = toy_trainer(tmp_path, replace(FEATURES, schedule=schedule))
    with pytest.raises(ValueError, match="fit_minutes needs minutes and a constant schedule"):
        trainer.train(minutes=minutes, fit=True)
