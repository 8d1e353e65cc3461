"""What every merge method owes its caller, whatever its mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from hf_taskvec.errors import (
    BaseMismatchError,
    IncompatibleVectorsError,
    NonFiniteError,
    OutputExistsError,
    UnknownNameError,
)
from hf_taskvec.merging import METHODS, get_method, list_methods, merge, methods_table
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from tests.measured import needs

NAMES = sorted(METHODS)
SHAPES = {
    "vision_model.class": (),
    "vision_model.one": (1,),
    "vision_model.encoder.layers.0.bias": (3,),
    "vision_model.encoder.layers.0.weight": (2, 5),
    "vision_model.encoder.layers.1.weight": (40, 33),
    "vision_model.patch.weight": (4, 3, 2, 2),
}


def vectors(count: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[TaskVector]:
    """Random vectors with exact zeros, ties and a heavy tail."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for index in range(count):
        deltas = {}
        for name, shape in SHAPES.items():
            delta = torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).abs().exp()
            delta = (delta * 8).round() / 8  # ties
            deltas[name] = delta.masked_fill(torch.rand(shape, generator=generator) < 0.1, 0).to(dtype)
        result.append(TaskVector(deltas, VectorInfo(task=f"task{index}")))
    return result


def counts(name: str, wanted: Sequence[int]) -> list[int]:
    method = get_method(name)
    return [n for n in wanted if n >= method.min_vectors and (method.max_vectors is None or n <= method.max_vectors)]


def check_equal(left: TaskVector, right: TaskVector, **tolerances: float) -> None:
    assert list(left.deltas) == list(right.deltas)
    for name in left.deltas:
        torch.testing.assert_close(left.deltas[name], right.deltas[name], **tolerances)


@pytest.mark.parametrize("name", NAMES)
def test_results_are_finite_of_the_right_shape_and_deterministic(name: str) -> None:
    for count in counts(name, [1, 2, 3, 8, 20]):
        merged = merge(vectors(count), name, **needs(name, vectors(count)))
        assert {key: tuple(delta.shape) for key, delta in merged.deltas.items()} == SHAPES
        assert all(delta.isfinite().all() and delta.dtype == torch.float32 for delta in merged.deltas.values())
        check_equal(merged, merge(vectors(count), name, **needs(name, vectors(count))), rtol=0, atol=0)
        assert merged.info.method == name
        assert [parent.task for parent in merged.info.parents] == [f"task{i}" for i in range(count)]
        assert merged.info.settings == get_method(name).defaults


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_inputs_are_left_alone(name: str, dtype: torch.dtype) -> None:
    count = counts(name, [2, 3])[0]
    inputs, copies = vectors(count, dtype=dtype), vectors(count, dtype=dtype)
    merged = merge(inputs, name, **needs(name, inputs))
    for delta in merged.deltas.values():
        delta.add_(1)  # the result shares no memory with an input either
    for vector, copy in zip(inputs, copies, strict=True):
        check_equal(vector, copy, rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if get_method(name).order_independent])
def test_order_matters_only_where_declared(name: str) -> None:
    inputs = vectors(counts(name, [5, 2])[0], seed=3)
    check_equal(
        merge(inputs, name, **needs(name, inputs)),
        merge(inputs[::-1], name, **needs(name, inputs[::-1])),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", NAMES)
def test_zero_vectors_merge_to_zero(name: str) -> None:
    count = counts(name, [3, 2])[0]
    zero = TaskVector({key: torch.zeros(shape) for key, shape in SHAPES.items()})
    merged = merge([zero] * count, name, **needs(name, [zero] * count))
    assert all((delta == 0).all() for delta in merged.deltas.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_vector_among_others_and_identical_vectors_are_no_trouble(name: str) -> None:
    count = counts(name, [4, 2])[0]
    zero = TaskVector({key: torch.zeros(shape) for key, shape in SHAPES.items()})
    for inputs in ([*vectors(count - 1), zero], vectors(1) * count):
        assert all(delta.isfinite().all() for delta in merge(inputs, name, **needs(name, inputs)).deltas.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_dtype_goes_in_and_the_chosen_one_comes_out(name: str, dtype: torch.dtype) -> None:
    inputs = vectors(counts(name, [3, 2])[0], dtype=dtype)
    merged = merge(inputs, name, **needs(name, inputs))
    wide = torch.promote_types(dtype, torch.float32)
    assert {delta.dtype for delta in merged.deltas.values()} == {wide}
    check_equal(
        merged, merge([vector.to(wide) for vector in inputs], name, **needs(name, inputs)), rtol=1e-5, atol=1e-6
    )
    half = merge(inputs, name, dtype=torch.bfloat16, **needs(name, inputs))
    assert {delta.dtype for delta in half.deltas.values()} == {torch.bfloat16}


@pytest.mark.parametrize("name", NAMES)
def test_float64_gives_what_float32_gives(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [  # no ties: rounding would break them one way or the other
        TaskVector({key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()})
        for _ in range(counts(name, [3, 2])[0])
    ]
    wide = merge([vector.to(torch.float64) for vector in inputs], name, **needs(name, inputs))
    check_equal(merge(inputs, name, **needs(name, inputs)), wide.to(torch.float32), rtol=1e-4, atol=1e-4)


ACCELERATOR = torch.accelerator.current_accelerator(check_available=True)


@pytest.mark.skipif(ACCELERATOR is None or ACCELERATOR.type == "mps", reason="there is no accelerator with float64")
@pytest.mark.parametrize("name", NAMES)
def test_an_accelerator_gives_what_the_cpu_gives(name: str, tmp_path: Path) -> None:
    device = torch.device(ACCELERATOR or "cpu")
    inputs = vectors(counts(name, [3, 2])[0])
    expected = merge(inputs, name, **needs(name, inputs))
    for merged in (
        merge(inputs, name, device=device, **needs(name, inputs)),
        merge([vector.to(device=device) for vector in inputs], name, **needs(name, inputs)),
    ):
        assert merged.device.type == device.type
        check_equal(merged.to(device="cpu"), expected, rtol=1e-4, atol=1e-4)
    saved = merge(inputs, name, device=device, output_dir=tmp_path / "out", **needs(name, inputs))
    check_equal(TaskVector({key: saved.deltas[key] for key in SHAPES}), expected, rtol=1e-4, atol=1e-4)


def test_vectors_on_different_devices_are_refused(tmp_path: Path) -> None:
    one, other = vectors(2)
    with pytest.raises(IncompatibleVectorsError, match=r"vector 0 \('task0'\) is cpu; vector 1 \('task1'\) is meta"):
        merge([one, other.to(device="meta")], output_dir=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0)])
def test_a_parameter_without_entries_stays_one(name: str, shape: tuple[int, ...]) -> None:
    inputs = [TaskVector({"empty": torch.ones(shape), **vector.deltas}) for vector in vectors(2)]
    for scope in ("vector", "parameter") if "scope" in get_method(name).defaults else (None,):
        merged = merge(inputs, name, **({} if scope is None else {"scope": scope}), **needs(name, inputs))
        assert merged.deltas["empty"].shape == shape


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_holds_what_memory_would(name: str, tmp_path: Path) -> None:
    inputs = vectors(counts(name, [3, 2])[0])
    for index, vector in enumerate(inputs):
        vector.save_pretrained(tmp_path / str(index))
    opened = [TaskVector.from_pretrained(tmp_path / str(index)) for index in range(len(inputs))]
    written = merge(opened, name, output_dir=tmp_path / "merged", scaling=0.5, **needs(name, opened))
    expected = merge(inputs, name, **needs(name, inputs)) * 0.5
    for key, delta in expected.deltas.items():
        torch.testing.assert_close(written.deltas[key], delta, rtol=1e-5, atol=1e-6)
    assert written.info.scaling == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["merged", *map(str, range(len(inputs)))])


@pytest.mark.parametrize("name", NAMES)
def test_nan_and_inf_are_named(name: str) -> None:
    for value in (torch.nan, torch.inf, -torch.inf):
        inputs = vectors(counts(name, [3, 2])[0])
        inputs[1].deltas["vision_model.encoder.layers.1.weight"][5, 7] = value
        with pytest.raises(NonFiniteError, match=r"layers\.1\.weight.*vector 1 \('task1'\)"):
            merge(inputs, name, **needs(name, inputs))


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_a_single_number_is_named_too(name: str) -> None:
    inputs = vectors(counts(name, [3, 2])[0])
    inputs[1].deltas["vision_model.class"].fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"vision_model\.class.*vector 1 \('task1'\)"):
        merge(inputs, name, **needs(name, inputs))


def with_setting(setting: str) -> list[str]:
    return [name for name in NAMES if setting in get_method(name).defaults]


@pytest.mark.parametrize("name", with_setting("density"))
@pytest.mark.parametrize("density", [0, -0.1, 1.5, float("nan")])
def test_a_density_outside_its_range_is_refused(name: str, density: float) -> None:
    with pytest.raises(ValueError, match="density must be in"):
        merge(vectors(3), name, density=density)


@pytest.mark.parametrize("name", with_setting("scope"))
def test_an_unknown_scope_is_refused(name: str) -> None:
    with pytest.raises(UnknownNameError, match="parameter, vector"):
        merge(vectors(counts(name, [2])[0]), name, scope="layer")


@pytest.mark.parametrize(("written", "meant"), [("TIES", "ties"), ("Task-Arithmetic", "task_arithmetic")])
def test_a_name_in_capitals_is_meant_as_it_stands(written: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"Did you mean '{meant}'"):
        merge([TaskVector({"w": torch.ones(2)})], written)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'ties'"):
        merge(vectors(2), "tie")
    with pytest.raises(UnknownNameError, match="Did you mean 'density'"):
        merge(vectors(2), "ties", densty=0.1)


def test_too_few_and_too_many_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one vector"):
        merge([], "ties")
    with pytest.raises(ValueError, match="slerp merges 2 to 2 vectors, got 3"):
        merge(vectors(3), "slerp")


def test_all_differences_are_listed_and_nothing_is_written(tmp_path: Path) -> None:
    first, other = vectors(2)
    deltas = dict(other.deltas)
    deltas.pop("vision_model.one")
    deltas["vision_model.class"] = torch.zeros(2)
    with pytest.raises(IncompatibleVectorsError, match=r"(?s)vision_model\.one.*vision_model\.class"):
        merge([first, TaskVector(deltas)], "ties", output_dir=tmp_path / "out")
    with pytest.raises(IncompatibleVectorsError, match=r"float32; vector 1 .* is torch\.float16"):
        merge([first, other.to(torch.float16)], "ties", output_dir=tmp_path / "out")
    hashed = [TaskVector(first.deltas, VectorInfo(base_hashes={"vision_model.one": value})) for value in "ab"]
    with pytest.raises(BaseMismatchError, match=r"vision_model\.one"):
        merge(hashed, "ties", output_dir=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_output_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="holds something else"):
        merge(vectors(2), "average", output_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failing_merge_keeps_the_earlier_result(tmp_path: Path) -> None:
    merge(vectors(2), "average", output_dir=tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert CONFIG_NAME in before
    broken = vectors(2)
    broken[0].deltas["vision_model.patch.weight"][0] = torch.nan
    with pytest.raises(NonFiniteError):
        merge(broken, "average", output_dir=tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_table_lists_every_method_with_its_defaults() -> None:
    table = methods_table()
    assert table.count("\n") == len(list_methods()) + 2
    assert "| `ties` |" in table
    assert "`density=0.2`" in table


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    merge(vectors(2), "ties")
    assert torch.get_num_threads() == before
