"""TAK: what a change does to other tasks, against the whole matrix, and runs that are held to little of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_taskvec import TaskVector, TaskVectorConfig, TaskVectorTrainer
from hf_taskvec.errors import BaseMismatchError
from hf_taskvec.statistics import Statistics, collect_statistics
from hf_taskvec.statistics.value import Gram
from hf_taskvec.training import alternating_tuning_and_merging
from hf_taskvec.training.curvature import curvature, held_by
from hf_taskvec.training.run import quiet
from hf_taskvec.weights.names import PROJECTION, parameters_of
from tests.toys import toy_base, toy_task

DIGITS, SHAPES = toy_task(images=24), toy_task("shapes", images=24)


@pytest.fixture(scope="module")
def seen() -> Statistics:
    return collect_statistics(toy_base(), SHAPES, kinds=["gram", "kfac", "fisher"], num_images=8, dtype="float32")


@pytest.fixture(scope="module")
def folder(seen: Statistics, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("statistics") / "shapes"
    seen.save_pretrained(path)
    return str(path)


def trained(folder: Path, *, epochs: int = 3, **changes: Any) -> TaskVector:
    config = TaskVectorConfig(
        output_dir=str(folder),
        num_train_epochs=epochs,
        learning_rate=1e-3,
        per_device_train_batch_size=12,
        warmup_steps=0,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        trainable_parameters=["*.mlp.*.weight"],
        **changes,
    )
    trainer = TaskVectorTrainer(toy_base(), config, task=DIGITS)
    quiet(trainer)
    trainer.train()
    return trainer.task_vector()


def test_it_is_the_quadratic_form_of_the_kronecker_product() -> None:
    chance = torch.Generator().manual_seed(0)

    def gram(size: int) -> Gram:
        return Gram(torch.randn(2, size, generator=chance), torch.rand(size, generator=chance))

    gradients, inputs, delta = gram(3), gram(4), torch.randn(3, 2, 2, generator=chance, dtype=torch.float64)
    whole = torch.kron(gradients.matrix(), inputs.matrix())  # of rows one after another
    expected = delta.flatten() @ whole @ delta.flatten()
    torch.testing.assert_close(curvature(delta, gradients, inputs), expected, rtol=1e-6, atol=0)


def test_of_one_image_and_one_token_it_is_the_squared_derivative_of_the_likelihood() -> None:
    one = collect_statistics(
        toy_base(), SHAPES, kinds=["gram", "kfac", "fisher"], num_images=1, rank=1, dtype="float32"
    )
    gradients, inputs, squares = one.gradients(PROJECTION), one.gram(PROJECTION), one.fisher(PROJECTION)
    assert gradients is not None
    assert inputs is not None
    assert squares is not None
    for row, column in ((0, 0), (3, 7)):
        delta = torch.zeros(squares.shape)
        delta[row, column] = 2.0
        torch.testing.assert_close(curvature(delta, gradients, inputs), 4 * squares[row, column], rtol=1e-2, atol=0)


def test_a_run_that_is_held_changes_less_of_the_other_task(folder: str, tmp_path: Path) -> None:
    free, held = (
        trained(tmp_path / "free", epochs=12, tangent=True),
        trained(tmp_path / "held", epochs=12, tangent=True, curvature=100.0, curvature_of=[folder]),
    )
    penalty = held_by([folder], parameters_of(toy_base().model), list(free.deltas))
    harm = [float(penalty(dict(vector.deltas)) / vector.norm() ** 2) for vector in (free, held)]
    assert harm[1] < 0.5 * harm[0]
    assert held.info.settings["curvature"] == 100.0
    assert held.info.settings["curvature_of"][0].startswith("shapes ")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda info: dataclasses.replace(info, kinds=("gram",)), ValueError, "hold gram, not gram and kfac"),
        (lambda info: dataclasses.replace(info, vector="0" * 64), ValueError, "of an expert"),
        (lambda info: dataclasses.replace(info, split="test"), ValueError, "of test images"),
        (
            lambda info: dataclasses.replace(info, base_hashes={name: "0" * 32 for name in info.base_hashes}),
            BaseMismatchError,
            "collect them at this base",
        ),
    ],
)
def test_statistics_that_do_not_fit_are_refused(
    seen: Statistics, change: Callable[[Any], Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    Statistics(seen.tensors, change(seen.info)).save_pretrained(tmp_path / "other")
    with pytest.raises(error, match=words):
        trained(tmp_path / "run", curvature=1.0, curvature_of=[str(tmp_path / "other")])


def test_a_factor_without_statistics_and_weights_without_factors_are_refused(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="curvature and curvature_of belong together"):
        TaskVectorConfig(output_dir=str(tmp_path), curvature=1.0)
    with pytest.raises(ValueError, match=r"curvature_of must be a list.*got 'out/shapes'"):
        TaskVectorConfig(output_dir=str(tmp_path), curvature=1.0, curvature_of="out/shapes")
    moving = TaskVectorConfig(output_dir=str(tmp_path), curvature=1.0, curvature_of=[folder])
    with pytest.raises(ValueError, match="curvature must be 0: each round starts elsewhere"):
        alternating_tuning_and_merging(toy_base(), [DIGITS, SHAPES], args=moving, rounds=2, output_dir=tmp_path / "atm")
    with pytest.raises(ValueError, match="of no weight that is trained"):
        held_by([folder], parameters_of(toy_base().model), ["vision_model.post_layernorm.bias"])
