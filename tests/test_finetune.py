"""The fine-tuning recipe: it goes on with its own run, and touches nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_taskvec import TaskVector, TaskVectorConfig
from hf_taskvec.errors import OutputExistsError, SettingsDifferError
from recipes import finetune
from tests.bases import save_colour_dataset, save_tiny_base
from tests.helpers import equal_vectors


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_finetune_goes_on_with_its_own_run_and_refuses_another(tmp_path: Path) -> None:
    save_colour_dataset(tmp_path / "data" / "colours")
    save_colour_dataset(tmp_path / "data" / "tints", seed=1)
    base = save_tiny_base(tmp_path / "base")

    def recipe(task: str = "colours", **settings: Any) -> TaskVector:
        values = {"per_device_train_batch_size": 27, "learning_rate": 1e-3, "disable_tqdm": True, **settings}
        arguments = finetune.FinetuneArguments(task=task, base=str(base), data_dir=str(tmp_path / "data"))
        return finetune.main(arguments, TaskVectorConfig(output_dir=str(tmp_path / "out"), **values))

    vector = recipe()
    assert equal_vectors(recipe(), vector)
    before = files(tmp_path / "out")
    for changes, message in (
        ({"task": "tints"}, "task=colours there, tints here"),
        ({"learning_rate": 2e-3}, r"learning_rate=0\.001 there, 0\.002 here"),
        ({"seed": 1}, "seed=42 there, 1 here"),
    ):
        with pytest.raises(SettingsDifferError, match=message):
            recipe(**changes)
    assert files(tmp_path / "out") == before
    assert recipe(num_train_epochs=2).info.epochs == 2.0


def test_finetune_looks_at_its_output_folder_before_it_trains(tmp_path: Path) -> None:
    (tmp_path / "vector").mkdir()
    (tmp_path / "vector" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputExistsError, match="holds something else"):
        finetune.main(finetune.FinetuneArguments(task="digits"), TaskVectorConfig(output_dir=str(tmp_path)))
    assert list(files(tmp_path)) == ["vector/thesis.txt"]
