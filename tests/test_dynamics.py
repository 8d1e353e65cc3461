"""Dynamics of a run, geometry of tasks and projected trajectories, from inner products of vectors on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paper.projection import project_trajectories

from hf_taskvec import TaskVector, TaskVectorConfig, TaskVectorTrainer, gradient_vector
from hf_taskvec.errors import DataError, SettingsDifferError
from hf_taskvec.theory.dynamics import Dynamics, measure_dynamics, task_geometry
from tests.toys import toy_base, toy_task


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs with its gradients; never changed by a test, but for full gradients beside it."""
    folder = tmp_path_factory.mktemp("run")
    args = TaskVectorConfig(
        output_dir=str(folder),
        num_train_epochs=3,
        learning_rate=0.05,
        optim="sgd",
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        warmup_steps=0,
        per_device_train_batch_size=10,
        record_gradients=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    TaskVectorTrainer(toy_base(), args, task=toy_task()).train()
    return folder


def test_accumulated_gradients_of_plain_sgd_are_the_steps_between_vectors(run: Path) -> None:
    vectors = [TaskVector.from_pretrained(run / "vectors" / f"epoch-{k}") for k in (1, 2)]
    gradient = TaskVector.from_pretrained(run / "gradients" / "epoch-2")
    step = TaskVector({name: vectors[1].deltas[name] - vectors[0].deltas[name] for name in gradient.deltas})
    assert step.cosine(TaskVector(gradient.deltas)) == pytest.approx(-1.0, abs=1e-4)
    assert step.norm() == pytest.approx(0.05 * gradient.norm(), rel=1e-3)


def test_dynamics_are_the_norms_and_cosines_of_the_saved_vectors(run: Path) -> None:
    dynamics = measure_dynamics(toy_base(), toy_task(), run)
    assert dynamics.num_epochs == 3
    assert sum(dynamics.shares) == pytest.approx(1.0)
    first = gradient_vector(toy_base(), toy_task(), learning_rate=1.0)
    last = TaskVector.from_pretrained(run / "vectors" / "epoch-3")
    assert dynamics.norms("full")[0] == pytest.approx(first.norm(), rel=1e-5)
    assert dynamics.norms("vector")[2] == pytest.approx(last.norm(), rel=1e-5)
    assert float(dynamics.cosines("vector", "full")[2, 0]) == pytest.approx(last.cosine(first), abs=1e-5)
    per_layer = last.cosines(first, by="layer")
    for layer, expected in per_layer.items():
        assert float(dynamics.cosines("vector", "full", layer=layer)[2, 0]) == pytest.approx(expected, abs=1e-4)
    assert dynamics.to_dict()["courses"]["all"]["vector_to_final_vector"][-1] == pytest.approx(1.0)


def test_a_second_reading_computes_no_gradient(run: Path) -> None:
    before = measure_dynamics(toy_base(), toy_task(), run)
    stamps = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    again = measure_dynamics(toy_base(), toy_task(), run)
    assert stamps == {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert again.to_dict() == before.to_dict()


def test_full_gradients_of_another_task_are_not_taken_for_this_ones(run: Path) -> None:
    measure_dynamics(toy_base(), toy_task(), run)
    with pytest.raises(SettingsDifferError, match="task=digits there, shapes here"):
        measure_dynamics(toy_base(), toy_task("shapes"), run)


def test_a_run_without_gradients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="record_gradients=True"):
        measure_dynamics(toy_base(), toy_task(), tmp_path)


def test_a_gradient_counts_as_a_descent_direction() -> None:
    products = torch.tensor([[1.0, 1.0, -1.0], [1.0, 1.0, -1.0], [-1.0, -1.0, 1.0]], dtype=torch.float64)
    dynamics = Dynamics("t", (1.0,), {"all": products})  # the vector is minus the gradient
    assert float(dynamics.cosines("vector", "full")) == 1.0
    assert float(dynamics.cosines("full", "accumulated")) == 1.0


def test_geometry_of_vectors_by_hand() -> None:
    vectors = {
        "a": TaskVector({"w": torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "b": torch.tensor([1.0, 1.0])}),
        "b": TaskVector({"w": torch.tensor([[0.0, 0.0], [1.0, 0.0]]), "b": torch.tensor([1.0, -1.0])}),
        "c": TaskVector({"w": torch.tensor([[-2.0, 0.0], [0.0, 0.0]]), "b": torch.tensor([-2.0, -2.0])}),
    }
    geometry = task_geometry(vectors, rank=1)
    assert geometry.cosines[0].tolist() == pytest.approx([1.0, 0.0, -1.0])
    assert geometry.sign_agreement[0].tolist() == pytest.approx([1.0, 5 / 6, 0.5])
    assert geometry.subspace_overlap[0].tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert geometry.random_overlap == 0.5
    with pytest.raises(DataError, match="two or more"):
        task_geometry({"a": vectors["a"]})


def test_random_subspaces_overlap_as_chance_says() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = {str(k): TaskVector({"w": torch.randn(64, 64, generator=generator)}) for k in range(4)}
    geometry = task_geometry(vectors, rank=8)
    assert geometry.mean("subspace_overlap") == pytest.approx(geometry.random_overlap, rel=0.15)


def test_a_projection_keeps_the_distances_of_a_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(50, 2, generator=generator, dtype=torch.float64))[0]
    coordinates = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0], [-1.0, 1.0]], dtype=torch.float64)
    vectors = [TaskVector({"w": axes @ point}) for point in coordinates]
    projection = project_trajectories({"run": vectors[:2], "joint": vectors[2:]})
    points = torch.cat([projection.points["run"], projection.points["joint"][1:]])
    expected = torch.cat([torch.zeros(1, 2, dtype=torch.float64), coordinates])
    torch.testing.assert_close(torch.cdist(points, points), torch.cdist(expected, expected))
    assert sum(projection.explained) == pytest.approx(1.0)
    assert projection.points["joint"][0].tolist() == [0.0, 0.0]
