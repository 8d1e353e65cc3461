"""The algebra of task vectors, how they are made from models, and what applying them does."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPModel

from hf_taskvec.errors import BaseMismatchError, IncompatibleVectorsError, NonFiniteError
from hf_taskvec.merging import merge
from hf_taskvec.models.base import Base
from hf_taskvec.training import TaskVectorConfig
from hf_taskvec.vectors.compatibility import check_not_zero
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import equal_vectors, finetuned, random_deltas, tiny_clip, tiny_vector

A, B = TaskVector(random_deltas(seed=1)), TaskVector(random_deltas(seed=2))


def close(left: TaskVector, right: TaskVector) -> None:
    assert set(left) == set(right)
    for name in left:
        torch.testing.assert_close(left.deltas[name], right.deltas[name])


def test_addition_is_commutative_and_subtraction_undoes_it() -> None:
    assert equal_vectors(A + B, B + A)
    close((A + B) - B, A)


def test_negation_multiplication_and_division_agree() -> None:
    assert equal_vectors(-A, A * -1.0)
    assert equal_vectors(2 * A, A + A)
    close((A * 3.0) / 3.0, A)


def test_sum_starts_from_zero_and_adds_everything() -> None:
    assert equal_vectors(sum([A, B, A]), A + B + A)


def test_an_operation_leaves_its_operands_alone() -> None:
    before = copy.deepcopy(A.deltas)
    _ = A + B, A * 2, -A, A.to(torch.float16)
    assert equal_vectors(A, TaskVector(before))


def test_norm_dot_and_cosine_are_those_of_the_flat_vector() -> None:
    flat_a, flat_b = (torch.cat([v.deltas[n].flatten() for n in v]).double() for v in (A, B))
    assert A.norm() == pytest.approx(float(flat_a.norm()))
    assert A.dot(B) == pytest.approx(float(flat_a @ flat_b))
    assert A.cosine(B) == pytest.approx(float(flat_a @ flat_b / flat_a.norm() / flat_b.norm()))
    assert A.cosine(A) == pytest.approx(1.0)
    assert A.cosine(-A) == pytest.approx(-1.0)
    assert A.cosine(A * 0.0) == 0.0


def test_layer_norms_add_up_to_the_norm() -> None:
    assert set(A.norms(by="layer")) == {"a", "layers.0", "d"}
    for by in ("parameter", "layer"):
        assert sum(value**2 for value in A.norms(by=by).values()) == pytest.approx(A.norm() ** 2)
        assert sum(A.dots(B, by=by).values()) == pytest.approx(A.dot(B))
        assert all(value == pytest.approx(1.0) for value in A.cosines(A, by=by).values())


def test_rounding_takes_no_cosine_beyond_one() -> None:
    for seed in range(50):
        vector = TaskVector({"w": torch.randn(7, generator=torch.Generator().manual_seed(seed))})
        assert max(vector.cosine(vector * 3.0), *vector.cosines(vector * 3.0).values()) <= 1


def test_scaling_is_recorded() -> None:
    assert (A * 0.5 * 0.5).info.scaling == pytest.approx(0.25)


def test_a_sum_names_its_parents() -> None:
    left, right = (TaskVector(random_deltas(), VectorInfo(task=task)) for task in ("mnist", "svhn"))
    assert [parent.task for parent in (left + right).info.parents] == ["mnist", "svhn"]


def test_vectors_of_other_names_or_shapes_do_not_add_and_all_are_named() -> None:
    other = {**random_deltas(size=4), "extra": torch.zeros(1)}
    del other["a"]
    with pytest.raises(IncompatibleVectorsError) as error:
        _ = A + TaskVector(other)
    for word in ("'a'", "'extra'", "'layers.0.b'", "(5,)", "(4,)", "'d'"):
        assert word in str(error.value)


def test_vectors_of_other_bases_do_not_add() -> None:
    with pytest.raises(BaseMismatchError, match="base parameters differ"):
        _ = tiny_vector(tiny_clip(seed=0)) + tiny_vector(tiny_clip(seed=7))


def test_deltas_of_a_dtype_that_does_not_add_are_refused() -> None:
    for dtype in (torch.int64, torch.bool, torch.float8_e5m2):  # what could be neither added nor saved
        with pytest.raises(IncompatibleVectorsError, match=f"'a' has dtype {dtype}; a delta is in torch.float64"):
            TaskVector({"a": torch.zeros(2).to(dtype)})


def test_adding_something_else_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        _ = A + 1  # type: ignore[operator]


def test_the_vector_covers_the_vision_tower_only(base: CLIPModel, tuned: CLIPModel) -> None:
    vector = TaskVector.from_models(base, tuned)
    assert len(vector) == len(list(base.vision_model.parameters()))
    assert all(name.startswith("vision_model.") for name in vector)
    assert not vector.info.include_projection


def test_scaling_one_gives_the_finetuned_logits(base: CLIPModel, tuned: CLIPModel) -> None:
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), "input_ids": torch.tensor([[1, 5, 2], [1, 9, 2]])}
    applied = TaskVector.from_models(base, tuned).apply_to(base)
    with torch.no_grad():
        logits = [model(**inputs).logits_per_image for model in (applied, tuned, base)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    assert (logits[0] - logits[2]).abs().max() > 1e-2  # the base answers otherwise, or this test shows nothing


def test_scaling_zero_gives_the_base_and_applying_copies(base: CLIPModel, tuned: CLIPModel) -> None:
    before = copy.deepcopy(base.state_dict())
    applied = TaskVector.from_models(base, tuned).apply_to(base, scaling=0.0)
    assert all(torch.equal(value, before[name]) for name, value in applied.state_dict().items())
    TaskVector.from_models(base, tuned).apply_to(base)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_a_vector_applies_to_the_vision_model_alone(base: CLIPModel, tuned: CLIPModel) -> None:
    applied = TaskVector.from_models(base, tuned).apply_to(base.vision_model)
    for left, right in zip(applied.parameters(), tuned.vision_model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=1e-7)


def test_applying_to_another_base_is_refused_unless_told_otherwise_and_recorded(
    base: CLIPModel, tmp_path: Path
) -> None:
    vector, other = tiny_vector(base), finetuned(base, seed=3)
    with pytest.raises(BaseMismatchError, match=r"other values in \d+ of \d+ parameters, first 'vision_model"):
        vector.apply_to(other)
    vector.apply_to(other, allow_other_base=True).save_pretrained(tmp_path)
    assert CLIPModel.from_pretrained(tmp_path).config.task_vector_of_other_base == "unknown"
    assert not hasattr(other.config, "task_vector_of_other_base")
    assert not hasattr(vector.apply_to(base, allow_other_base=True).config, "task_vector_of_other_base")


def test_a_mismatch_names_both_bases(base: CLIPModel) -> None:
    vector = tiny_vector(base)
    vector = TaskVector(vector.deltas, VectorInfo(base="user/one", base_hashes=vector.info.base_hashes))
    with pytest.raises(BaseMismatchError, match=r"made from user/one, and 'user/two' has other values"):
        vector.apply_to(Base(finetuned(base, seed=3), None, "user/two"))  # type: ignore[arg-type]


def test_applying_to_another_architecture_names_every_parameter(base: CLIPModel) -> None:
    vector = tiny_vector(base)
    with pytest.raises(IncompatibleVectorsError) as error:
        vector.apply_to(torch.nn.Linear(2, 2), allow_other_base=True)
    named = "\n".join(error.value.details)
    assert all(repr(name) in named for name in vector)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_vector_that_is_not_finite_is_refused(base: CLIPModel, value: float) -> None:
    broken = copy.deepcopy(base)
    name, parameter = next(iter(broken.vision_model.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[-1] = value
    with pytest.raises(NonFiniteError, match=name):
        TaskVector.from_models(base, broken)
    vector = tiny_vector(base)
    vector.deltas[f"vision_model.{name}"].view(-1)[-1] = value
    with pytest.raises(NonFiniteError, match=name):
        vector.apply_to(base)
    with pytest.raises(NonFiniteError, match="scaling"):
        tiny_vector(base).apply_to(base, scaling=value)


def test_a_large_finite_delta_is_no_overflow() -> None:  # its sum is infinite, its entries are not
    TaskVector({"w": torch.full((4,), 3e38)}).check_finite()


def test_a_changed_projection_must_be_asked_for(base: CLIPModel, tuned: CLIPModel) -> None:
    moved = copy.deepcopy(tuned)
    with torch.no_grad():
        moved.visual_projection.weight.add_(0.1)
    with pytest.raises(IncompatibleVectorsError, match="include_projection=True"):
        TaskVector.from_models(base, moved)
    vector = TaskVector.from_models(base, moved, include_projection=True)
    assert vector.info.include_projection
    torch.testing.assert_close(vector.apply_to(base).visual_projection.weight, moved.visual_projection.weight)


def test_a_changed_text_tower_is_refused(base: CLIPModel, tuned: CLIPModel) -> None:
    moved = copy.deepcopy(tuned)
    with torch.no_grad():
        moved.text_model.final_layer_norm.weight.add_(0.1)
    with pytest.raises(IncompatibleVectorsError, match=r"text_model\.final_layer_norm"):
        TaskVector.from_models(base, moved, include_projection=True)


def test_half_precision_models_give_a_float32_vector(base: CLIPModel, tuned: CLIPModel) -> None:
    vector = TaskVector.from_models(copy.deepcopy(base).half(), copy.deepcopy(tuned).half())
    assert vector.dtype == torch.float32
    assert TaskVector.from_models(copy.deepcopy(base).double(), copy.deepcopy(tuned).double()).dtype == torch.float64


def test_a_half_precision_base_with_the_same_values_is_the_same_base(base: CLIPModel, tuned: CLIPModel) -> None:
    half = copy.deepcopy(base).half()
    vector = TaskVector.from_models(half, copy.deepcopy(tuned).half())
    vector.apply_to(copy.deepcopy(half).float())


def test_any_module_has_a_vector() -> None:
    before, after = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    applied = TaskVector.from_models(before, after).apply_to(before)
    torch.testing.assert_close(applied.weight, after.weight)


def test_a_vector_is_a_value_and_not_the_callers_mapping() -> None:
    deltas = random_deltas()
    vector = TaskVector(deltas)
    deltas["extra"] = torch.zeros(1)
    assert "extra" not in vector.deltas
    with pytest.raises(dataclasses.FrozenInstanceError):
        vector.deltas = deltas  # type: ignore[misc]
    with pytest.raises(TypeError):
        vector.deltas["extra"] = torch.zeros(1)  # type: ignore[index]


def test_vectors_are_equal_by_value_and_equal_ones_have_one_hash() -> None:
    again = TaskVector(dict(reversed(random_deltas(seed=1).items())), VectorInfo(task="other"))
    assert again == A
    assert hash(again) == hash(A)
    assert len({A, again, B}) == 2
    assert (A != B, A.to(torch.float64) != A, TaskVector({"a": A["a"]}) != A, A != 0) == (True,) * 4


def test_a_delta_is_taken_by_any_name_of_its_parameter() -> None:
    vector = TaskVector({"vision_model.post_layernorm.bias": torch.ones(2)})
    assert vector["post_layernorm.bias"] is vector["vision_model.post_layernorm.bias"]
    assert "post_layernorm.bias" in vector
    with pytest.raises(KeyError, match=r"Did you mean 'vision_model\.post_layernorm\.bias'"):
        vector["vision_model.post_layernorm.bais"]


def test_any_number_is_a_factor_and_nothing_else() -> None:
    factors = (2, 2.0, np.float32(2), np.int64(2), torch.tensor(2.0), Fraction(2))
    assert all(factor * A == A * 2 and A * factor == A * 2 and A / factor == A * 0.5 for factor in factors)
    for odd in ("2", [2], torch.ones(2), None, np.ones(2)):
        with pytest.raises(TypeError):
            _ = A * odd  # type: ignore[operator]


@pytest.mark.parametrize(
    "act",
    [
        lambda: A * float("nan"),
        lambda: A * float("inf"),
        lambda: A * 1e300,
        lambda: TaskVector({"w": torch.tensor([3e38])}) * 2,
        lambda: TaskVector({"w": torch.tensor([3e38])}) + TaskVector({"w": torch.tensor([3e38])}),
        lambda: TaskVector({"w": torch.tensor([1e5])}).to(torch.float16),
        lambda: TaskVector({"w": torch.tensor([1e5])}).to("float16"),
        lambda: TaskVector({"w": torch.tensor([3e38])}) / 1e-10,
    ],
)
def test_nan_and_inf_never_leave_an_operation(act: Callable[[], object]) -> None:
    with pytest.raises(NonFiniteError):
        act()


def test_a_dtype_or_device_may_be_named() -> None:
    assert A.to("bfloat16").dtype == A.to("torch.bfloat16").dtype == torch.bfloat16
    assert A.to("cpu") == A.to(torch.device("cpu")) == A
    assert A.to("meta").device == torch.device("meta")
    with pytest.raises(ValueError, match=r"dtype must be one of torch\.float64"):
        A.to(torch.int8)
    with pytest.raises(ValueError, match="the device 'gpu' cannot be used"):
        A.to("gpu")


def test_what_an_error_quotes_is_cut() -> None:
    long = "x" * 5000
    quoting: list[Callable[[], object]] = [
        lambda: A[long],
        lambda: A.to(long),
        lambda: VectorInfo(settings={long: float("nan")}),
        lambda: A.push_to_hub("user/a", tags=[long, 5]),
        lambda: TaskVectorConfig(label_names=[long]),
    ]
    for call in quoting:
        with pytest.raises((KeyError, ValueError, TypeError)) as error:
            call()
        assert len(str(error.value)) <= 600


def test_only_a_model_takes_a_vector() -> None:
    for odd in ("openai/clip", 3, None):
        with pytest.raises(TypeError, match="expected a model or a Base"):
            A.apply_to(odd)  # type: ignore[type-var]


def test_a_vector_that_changes_nothing_is_told_and_refused_unless_wanted(
    base: CLIPModel, caplog: pytest.LogCaptureFixture
) -> None:
    zero = TaskVector.from_models(base, base, info=VectorInfo(task="mnist"))
    assert "every entry of the vector is zero" in caplog.text
    assert (zero.is_zero, A.is_zero, TaskVector({"w": -torch.zeros(2)}).is_zero) == (True, False, True)
    with pytest.raises(IncompatibleVectorsError, match=r"vector 1 \('mnist'\) changes nothing.*allow_zero=True"):
        check_not_zero([tiny_vector(base), zero])
    check_not_zero([zero], allow_zero=True)
    check_not_zero([tiny_vector(base)])


def test_a_vector_can_cover_what_it_does_not_touch() -> None:
    few, many = TaskVector({"a": torch.ones(2)}), TaskVector({"b": torch.ones(1), "a": torch.ones(2)})
    wider = few.covering(many.deltas.shapes)
    assert wider == TaskVector({"a": torch.ones(2), "b": torch.zeros(1)})
    assert list(wider) == ["b", "a"]
    assert (wider + many).norm() == pytest.approx(3.0)
    with pytest.raises(IncompatibleVectorsError, match=r"'b' of shape \(1,\) is not among those to cover"):
        many.covering(few.deltas.shapes)
    with pytest.raises(IncompatibleVectorsError, match="'a'"):
        few.covering({"a": (3,)})


def test_what_a_covering_vector_does_not_touch_needs_no_hash(base: CLIPModel, tmp_path: Path) -> None:
    whole = tiny_vector(base)
    name = "vision_model.post_layernorm.bias"
    few = TaskVector({name: whole[name]}, VectorInfo(base_hashes={name: whole.info.base_hashes[name]}))
    wider = few.covering(whole.deltas.shapes)
    wider.save_pretrained(tmp_path / "v")
    applied = TaskVector.from_pretrained(tmp_path / "v").apply_to(base)
    torch.testing.assert_close(
        applied.vision_model.post_layernorm.bias - base.vision_model.post_layernorm.bias, few[name]
    )
    with pytest.raises(BaseMismatchError):
        wider.apply_to(finetuned(base, seed=3))


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda: TaskVector([1, 2]), "mapping of names to tensors, got list"),  # type: ignore[arg-type]
        (lambda: TaskVector({"w": np.ones(2)}), "'w' is a ndarray"),  # type: ignore[dict-item]
        (lambda: TaskVector({}, {"task": "a"}), "info must be a VectorInfo, got dict"),  # type: ignore[arg-type]
        (lambda: TaskVector.from_models({}, {}), "weights by name to TaskVector.from_weights"),  # type: ignore[arg-type]
        (lambda: TaskVector.from_checkpoints(None, "x"), "expected a Hub id, folder or file, got NoneType"),  # type: ignore[arg-type]
        (lambda: A.dot(3), "expected a TaskVector, got int"),  # type: ignore[arg-type]
        (lambda: A.norms(by="tensor"), "no grouping 'tensor'.* Known: layer, parameter"),  # type: ignore[arg-type]
        (lambda: A[3], "no parameter 3 in the vector"),  # type: ignore[index]
        (lambda: A.apply_to(torch.nn.Linear(1, 1), scaling="1"), "scaling must be a number, got str"),  # type: ignore[arg-type]
        (lambda: A * 10**400, "scaling must be finite"),
        (lambda: A.apply_to(torch.nn.Linear(1, 1), scaling=-(10**400)), "scaling must be finite"),
        (lambda: A.save_pretrained("never", max_shard_size="lots"), "a size such as '5GB', got 'lots'"),
        (lambda: A.save_pretrained("never", max_shard_size=0), "a size such as '5GB', got 0"),
        (lambda: VectorInfo(kind="magic"), "no kind of vector 'magic'"),  # type: ignore[arg-type]
    ],
)
def test_an_argument_of_another_kind_is_refused_in_a_sentence(
    act: Callable[[], object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((TypeError, ValueError, KeyError), match=said):
        act()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("deltas", "message"),
    [
        ({"w": torch.eye(2).to_sparse()}, r"'w' has the layout torch.sparse_coo; .*dense"),
        ({1: torch.ones(2)}, "name must be text, got int 1"),
    ],
)
def test_deltas_that_are_no_dense_tensors_by_name_are_refused(deltas: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises((IncompatibleVectorsError, TypeError), match=message):
        TaskVector(deltas)


def test_weights_that_are_being_trained_give_a_vector_that_knows_no_graph() -> None:
    base, tuned = tiny_clip(), finetuned(tiny_clip())
    vector = TaskVector.from_weights(dict(base.named_parameters()), dict(tuned.named_parameters()))
    own = TaskVector({"w": torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))})
    for each in (vector, own, vector + vector):
        assert not any(delta.requires_grad for delta in each.deltas.values())
    assert merge([own, own], "ties", density=1.0)["w"].tolist() == [[1.0, -2.0]]
    assert own.compress("int8").norm() == pytest.approx(own.norm(), rel=0.01)
