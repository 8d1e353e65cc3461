"""What `merge` takes and refuses at its door, and that nothing infinite leaves it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_taskvec import TaskVector, VectorInfo, list_methods, merge
from hf_taskvec.errors import (
    BaseMismatchError,
    CheckpointError,
    IncompatibleVectorsError,
    NonFiniteError,
    OutputExistsError,
    TaskVecError,
    UnknownNameError,
)
from hf_taskvec.merging.recipes import MergeRecipe
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.lora import LoraAdapter
from hf_taskvec.weights.lowrank import Factors
from recipes import merge as recipe
from tests.measured import needs

NAMES = [method.name for method in list_methods()]


def pair() -> list[TaskVector]:
    generator = torch.Generator().manual_seed(0)
    return [
        TaskVector({"w": torch.randn(6, 5, generator=generator), "b": torch.randn(3, generator=generator)})
        for _ in range(2)
    ]


def same(left: TaskVector, right: TaskVector) -> None:
    assert set(left.deltas) == set(right.deltas)
    for name in left.deltas:
        torch.testing.assert_close(left.deltas[name], right.deltas[name])


# -- natural arguments ------------------------------------------------------------------------------------------------


def test_numbers_of_numpy_and_torch_are_numbers(tmp_path: Path) -> None:
    expected = merge(pair(), weights=[0.5, 0.25], scaling=0.5)
    for weights in (np.array([0.5, 0.25]), np.array([0.5, 0.25], np.float32), torch.tensor([0.5, 0.25]), (0.5, 0.25)):
        for scaling in (np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)):
            merged = merge(pair(), weights=weights, scaling=scaling, output_dir=tmp_path / "out")
            same(merged, expected)
            assert merged.info.settings["weights"] == [0.5, 0.25]
            assert merged.info.scaling == 0.5
    merged = merge(pair(), "ties", density=np.float32(0.5), output_dir=tmp_path / "out")
    assert merged.info.settings["density"] == 0.5
    merged = merge(pair(), "wudi", steps=np.int64(2), output_dir=tmp_path / "out")
    same(merged, merge(pair(), "wudi", steps=2.0))
    inner = merge(pair(), "lines", of="ties", of_settings={"density": np.float32(0.5)}, output_dir=tmp_path / "out")
    assert inner.info.settings["of_settings"] == {"density": 0.5}


@pytest.mark.parametrize("name", ["bfloat16", "float16", "torch.float64", "float32"])
def test_a_dtype_by_name_is_one(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name.removeprefix("torch."))
    assert merge(pair(), dtype=name).dtype == dtype
    assert merge(pair(), dtype=name, output_dir=tmp_path / "out").dtype == dtype


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv_m"])
def test_factors_are_those_of_the_vectors_before_any_method(method: str) -> None:
    one, two = pair()
    same(merge([one, two], method, factors=[0.5, -2]), merge([0.5 * one, -2 * two], method))


def test_a_merge_with_factors_is_repeated_with_them(tmp_path: Path) -> None:
    for name, vector in zip(("one", "two"), pair(), strict=True):
        vector.save_pretrained(tmp_path / name)
    merged = merge([tmp_path / "one", tmp_path / "two"], "ties", factors=[0.5, -2], output_dir=tmp_path / "out")
    assert [parent.scaling for parent in merged.info.parents] == [0.5, -2]
    recipe = MergeRecipe.from_info(merged.info)
    assert recipe.factors == (0.5, -2)
    same(recipe.run(), merged)


@pytest.mark.parametrize("factors", [[1.0], [1.0, 0.0], [1.0, float("nan")], [1.0, "2"]])
def test_factors_that_fit_no_merge_are_refused(factors: list[float]) -> None:
    with pytest.raises(ValueError, match="factors"):
        merge(pair(), factors=factors)


def test_folders_and_hub_ids_are_taken_beside_vectors(tmp_path: Path) -> None:
    one, two = pair()
    one.save_pretrained(tmp_path / "one")
    two.save_pretrained(tmp_path / "two")
    same(merge([str(tmp_path / "one"), two]), merge(pair()))
    merged = merge([tmp_path / "one", str(tmp_path / "two")], "ties", density=0.5, output_dir=tmp_path / "out")
    same(merged, merge(pair(), "ties", density=0.5))
    again = MergeRecipe.from_info(TaskVector.from_pretrained(tmp_path / "out").info)
    assert again.vectors == (str(tmp_path / "one"), str(tmp_path / "two"))
    same(again.run(), merged)
    assert merge([tmp_path / "one", two]).info.recipe is None  # a vector in memory cannot be found again


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ("out/ties", "list of vectors, got one str"),
        (Path("out"), "list of vectors, got one PosixPath"),
        (TaskVector({"w": torch.ones(1)}), "list of vectors, got one TaskVector"),
        ({"mnist": TaskVector({"w": torch.ones(1)})}, "of a dict pass its values"),
        (None, "list of vectors, got a NoneType"),
        ([], "at least one vector, got none"),
        ([TaskVector({"w": torch.ones(1)}), {"w": torch.ones(1)}], "vector 1 is a dict"),
        ([None], "vector 0 is a NoneType"),
    ],
)
def test_what_is_no_list_of_vectors_is_refused_in_a_sentence(vectors: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge(vectors)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("ties", {"density": "0.5"}, "density must be a number, got str '0.5'"),
        ("ties", {"density": [0.1, 0.2]}, "density must be a number, got list"),
        ("ties", {"density": True}, "density must be a number, got bool"),
        ("ties", {"scope": 3}, "scope must be text, got int"),
        ("wudi", {"steps": 2.5}, "steps must be a whole number, got float '2.5'"),
        ("dare", {"seed": "one"}, "seed must be a whole number"),
        ("task_arithmetic", {"scaling": "0.3"}, "scaling must be a number, got str '0.3'"),
        ("task_arithmetic", {"scaling": None}, "scaling must be a number"),
        ("task_arithmetic", {"scaling": np.array([0.1, 0.2])}, "scaling must be a number"),
        ("task_arithmetic", {"dtype": "flot16"}, "Did you mean 'float16'"),
        ("task_arithmetic", {"dtype": torch.int64}, "dtype must be one of"),
        ("task_arithmetic", {"device": "bfloat16"}, "the device 'bfloat16' cannot be used"),
        ("task_arithmetic", {"device": 3.5}, "the device '3.5' cannot be used"),
        ("task_arithmetic", {"missing": "none"}, "no treatment of missing parameters 'none'"),
    ],
)
def test_arguments_of_a_wrong_kind_are_refused_before_anything_is_opened(
    method: str, settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        merge([tmp_path / "not there", tmp_path / "nor there"], method, output_dir=tmp_path / "out", **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("weights", ["ab", "12", {1: 1, 2: 2}, [None, 1], [[1, 2], [3, 4]], 0.3, {"a": 1}, [1]])
def test_weights_that_are_no_list_of_numbers_are_refused_in_a_sentence(weights: object) -> None:
    with pytest.raises(ValueError, match="weights must"):
        merge(pair(), weights=weights)


def test_settings_of_an_inner_method_are_checked_as_its_own() -> None:
    for method in ("svc", "lines"):
        with pytest.raises(ValueError, match="of_settings must be a mapping"):
            merge(pair(), method, of_settings=[0.2])
        with pytest.raises(ValueError, match="density must be a number"):
            merge(pair(), method, of="ties", of_settings={"density": "0.2"})
        with pytest.raises(UnknownNameError, match="no merge method 'tie'"):
            merge(pair(), method, of="tie")


def test_method_settings_and_number_are_checked_before_a_vector_is_opened(tmp_path: Path) -> None:
    nowhere = [tmp_path / "not there"] * 3
    with pytest.raises(UnknownNameError, match="no merge method 'tie'"):
        merge(nowhere, "tie")
    with pytest.raises(UnknownNameError, match="densty"):
        merge(nowhere, "ties", densty=0.1)
    with pytest.raises(ValueError, match="slerp merges 2 to 2 vectors, got 3"):
        merge(nowhere, "slerp")
    with pytest.raises(CheckpointError):
        merge(nowhere, "ties")


# -- nothing infinite leaves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_overflows_is_refused_in_memory_as_on_disk(name: str, tmp_path: Path) -> None:
    for place in ({}, {"output_dir": tmp_path / "out"}):
        for broken in (
            {"scaling": 1e300},
            {"dtype": torch.float16, "scaling": 1e9},
            {"dtype": "float16", "scaling": 1e7},
        ):
            with pytest.raises(NonFiniteError, match="overflow"):
                merge(pair(), name, **place, **broken, **needs(name, pair()))
    assert not list(tmp_path.iterdir())
    for bad in (float("nan"), float("inf"), np.float32("inf"), torch.tensor(torch.nan)):
        with pytest.raises(NonFiniteError, match="scaling must be finite"):
            merge(pair(), name, scaling=bad, **needs(name, pair()))


def test_a_sum_that_overflows_is_refused(tmp_path: Path) -> None:
    large = [TaskVector({"w": torch.full((4,), 3e38)})] * 2
    for place in ({}, {"output_dir": tmp_path / "out"}):
        with pytest.raises(NonFiniteError, match="'w'"):
            merge(large, **place)
        with pytest.raises(NonFiniteError, match="'w'"):
            merge(pair(), weights=[1e18, 1.0], scaling=1e18, dtype="float16", **place)
        with pytest.raises(ValueError, match=r"'w'|settings"):
            merge(pair(), weights=[1e300, 1.0], **place)
    half = merge([TaskVector({"w": torch.full((4,), 6e4, dtype=torch.float16)})] * 2, "average", dtype="float16")
    assert half.deltas["w"].isfinite().all()  # the sum in between is wide


# -- coverage ---------------------------------------------------------------------------------------------------------


def partial() -> list[TaskVector]:
    one = TaskVector({"a": torch.ones(4, 3), "b": torch.ones(2)}, VectorInfo(base_hashes={"a": "1", "b": "2"}))
    two = TaskVector({"b": torch.full((2,), 3.0), "c": torch.ones(5)}, VectorInfo(base_hashes={"b": "2", "c": "3"}))
    return [one, two]


@pytest.mark.parametrize("name", NAMES)
def test_what_a_vector_lacks_is_zero_on_request_only(name: str, tmp_path: Path) -> None:
    shapes = {"a": torch.Size([4, 3]), "b": torch.Size([2]), "c": torch.Size([5])}
    zeros = {key: torch.zeros(shape) for key, shape in shapes.items()}
    whole = [TaskVector({**zeros, **dict(vector.deltas)}) for vector in partial()]
    measured = needs(name, whole)
    with pytest.raises(IncompatibleVectorsError, match="'c'"):
        merge(partial(), name, **measured)
    merged = merge(partial(), name, missing="zero", output_dir=tmp_path / "out", **measured)
    same(merged, merge(whole, name, **measured))
    assert merged.info.base_hashes == {"a": "1", "b": "2", "c": "3"}


def test_coverage_that_cannot_be_completed_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, two = partial()
    other = TaskVector({"b": torch.ones(3)})
    with pytest.raises(IncompatibleVectorsError, match=r"'b' has shape \(2,\) and, in vector 1, \(3,\)"):
        merge([one, other], missing="zero")
    alien = TaskVector(two.deltas, dataclasses.replace(two.info, base_hashes={"b": "9", "c": "3"}))
    with pytest.raises(BaseMismatchError, match="'b'"):
        merge([one, alien], missing="zero")
    unknown = TaskVector(two.deltas)
    merged = merge([one, unknown], missing="zero", output_dir=tmp_path / "out")  # what is saved can be loaded
    assert merged.info.base_hashes == {}
    assert "known for some of its parameters only" in caplog.text


def test_adapters_on_different_layers_stay_factors() -> None:
    def lora(name: str) -> TaskVector:
        generator = torch.Generator().manual_seed(len(name))
        left, right = torch.randn(8, 2, generator=generator), torch.randn(2, 6, generator=generator)
        return LoraAdapter({name: Factors(left, right, 1.0, torch.Size((8, 6)))}, VectorInfo(kind="lora")).to_vector()

    vectors = [lora("q.weight"), lora("value.weight")]
    merged = merge(vectors, "task_arithmetic", missing="zero")
    torch.testing.assert_close(merged.deltas["q.weight"], vectors[0].deltas["q.weight"])
    torch.testing.assert_close(merged.deltas["value.weight"], vectors[1].deltas["value.weight"])


# -- zero vectors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fine-tuned", "gradient", "lora"])
def test_a_trained_vector_that_is_zero_is_refused_unless_allowed(kind: str, tmp_path: Path) -> None:
    good = TaskVector({"w": torch.ones(3)})
    empty = TaskVector({"w": torch.zeros(3)}, VectorInfo(kind=kind, task="mnist"))  # type: ignore[arg-type]
    with pytest.raises(IncompatibleVectorsError, match=r"vector 1 \('mnist'\).*allow_zero=True"):
        merge([good, empty], output_dir=tmp_path / "out")
    assert not list(tmp_path.iterdir())
    same(merge([good, empty], allow_zero=True), good)


def test_another_zero_vector_is_told(caplog: pytest.LogCaptureFixture) -> None:
    good = TaskVector({"w": torch.ones(3)})
    same(merge([good, TaskVector({"w": torch.zeros(3)})]), good)
    assert "Vector 1 ('difference') is zero" in caplog.text


# -- recipes ----------------------------------------------------------------------------------------------------------


def saved(folder: Path) -> list[str]:
    for index, vector in enumerate(pair()):
        vector.save_pretrained(folder / f"v{index}")
    return [str(folder / f"v{index}") for index in range(2)]


@pytest.mark.parametrize(
    "change",
    [
        {"vectors": "abc"},
        {"vectors": [1, 2]},
        {"vectors": None},
        {"vectors": {}},
        {"vectors": ["x"] * 2000},
        {"method": None},
        {"method": 3},
        {"method": "average"},
        {"method": "no_such"},
        {"settings": [1]},
        {"settings": {"output_dir": "/tmp/elsewhere"}},
        {"settings": {"density": "x" * 9000}},
        {"settings": None},
        {"settings": {"density": []}},
        {"scaling": "big"},
        {"scaling": None},
        {"scaling": [1]},
        {"dtype": 4},
        {"dtype": "int8"},
        {"missing": "maybe"},
        {"allow_zero": "yes"},
        {"extra": 1},
        {"run": "x"},
    ],
)
def test_a_strangers_recipe_that_is_damaged_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    sources = saved(tmp_path)
    merge(sources, "ties", output_dir=tmp_path / "out")
    path = tmp_path / "out" / CONFIG_NAME
    config = json.loads(path.read_text())
    config["recipe"] = {**config["recipe"], **change}
    path.write_text(json.dumps(config))
    with pytest.raises((CheckpointError, TaskVecError)):
        MergeRecipe.from_info(TaskVector.from_pretrained(tmp_path / "out").info)


def test_the_recipe_does_not_replace_a_vector_unasked(tmp_path: Path) -> None:
    sources, out = saved(tmp_path), tmp_path / "out"
    recipe.main(recipe.MergeArguments(vectors=sources, output_dir=str(out), quiet=True))
    before = (out / CONFIG_NAME).read_bytes()
    again = recipe.MergeArguments(vectors=sources, method="average", output_dir=str(out), quiet=True)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        recipe.main(again)
    assert (out / CONFIG_NAME).read_bytes() == before
    merged = recipe.main(dataclasses.replace(again, overwrite=True))
    assert merged is not None
    assert merged.info.method == "average"
