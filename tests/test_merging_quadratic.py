"""Merging by statistics: the properties of the one quadratic, and what `merge` refuses of statistics."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_taskvec import TaskVector, VectorInfo, merge
from hf_taskvec.errors import BaseMismatchError, IncompatibleVectorsError, UnknownNameError
from hf_taskvec.merging.quadratic_engine import Term, minimum
from hf_taskvec.merging.recipes import MergeRecipe
from hf_taskvec.statistics import Statistics, StatisticsInfo
from recipes import merge as recipe
from tests.helpers import equal_vectors
from tests.measured import made_up

SHAPES = {
    "layers.0.fc1.weight": torch.Size([4, 12]),  # more columns than the factors have rows
    "layers.0.fc2.weight": torch.Size([5, 6]),
    "layers.0.norm.weight": torch.Size([6]),
    "layers.0.norm.bias": torch.Size([6]),
    "embeddings.position_embedding.weight": torch.Size([3, 6]),
}
MATRICES = [name for name in SHAPES if "fc" in name]


def vectors(count: int, *, seed: int = 0) -> list[TaskVector]:
    generator = torch.Generator().manual_seed(seed)
    return [
        TaskVector(
            {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()},
            VectorInfo(task=f"task{index}"),
        )
        for index in range(count)
    ]


def seen(count: int, *, rank: int = 4, rest: float = 0.1) -> list[Statistics]:
    return [made_up(SHAPES, seed=index, rank=rank, rest=rest, task=f"task{index}") for index in range(count)]


def scaled(statistics: Statistics, factor: float) -> Statistics:
    """With every Gram matrix times a factor."""
    tensors = {name: tensor * factor**0.5 if "gram" in name else tensor for name, tensor in statistics.tensors.items()}
    return Statistics(tensors, statistics.info)


def check_close(left: TaskVector, right: TaskVector, names: Any = SHAPES, **tolerances: float) -> None:
    for name in names:
        torch.testing.assert_close(
            left.deltas[name], right.deltas[name], **(tolerances or {"rtol": 1e-4, "atol": 1e-5})
        )


@pytest.mark.parametrize(("rank", "outputs"), [(2, 3), (20, 3), (20, 50)])
@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_the_minimum_is_that_of_the_formula_on_every_route(rank: int, outputs: int, ridge: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shape = outputs, 10
    terms = [Term(draw(*shape).float(), draw(rank, 10), draw(10).square(), weight) for weight in (0.5, 2.0)]
    anchor = draw(*shape)
    grams = [weight * (t.factor.T @ t.factor + t.diagonal.diag()) for t, weight in zip(terms, (0.5, 2.0), strict=True)]
    pull = ridge * torch.stack(grams).sum(dim=0).trace() / 10
    total = torch.stack(grams).sum(dim=0) + pull * torch.eye(10)
    crossed = torch.stack([term.delta.double() @ gram for term, gram in zip(terms, grams, strict=True)]).sum(dim=0)
    expected = (crossed + pull * anchor) @ torch.linalg.inv(total)
    merged, unseen = minimum(terms, ridge=ridge, anchor=anchor)
    torch.testing.assert_close(merged, expected)  # float32 deltas are computed with in float64
    assert unseen == 0


def test_without_a_ridge_the_pseudo_inverse_is_taken_on_both_routes() -> None:
    generator = torch.Generator().manual_seed(0)
    for rank in (3, 30):
        factors = torch.randn(2, rank, 5, generator=generator, dtype=torch.float64)
        factors = torch.cat([factors, torch.zeros(2, rank, 5)], dim=2)  # five directions that nothing has seen
        terms = [Term(torch.ones(2, 10).double() * (i + 1), factors[i], torch.zeros(10).double()) for i in range(2)]
        merged, unseen = minimum(terms)
        grams = [factor.T @ factor for factor in factors]
        expected = (terms[0].delta @ grams[0] + terms[1].delta @ grams[1]) @ torch.linalg.pinv(grams[0] + grams[1])
        torch.testing.assert_close(merged, expected)
        assert unseen == 5


REGRESSIONS: list[tuple[str, Mapping[str, Any]]] = [
    ("regmean", {}),
    ("regmean", {"shrink": 1.0}),
    ("fisher", {}),
    ("lot", {}),
    ("bmm", {"of": "task_arithmetic", "of_settings": {"weights": [0.25, 0.5, 0.25]}}),
]


@pytest.mark.parametrize(("method", "settings"), REGRESSIONS)
def test_one_task_returns_its_vector(method: str, settings: Mapping[str, Any]) -> None:
    settings = {"of": "average"} if method == "bmm" else settings
    check_close(merge(vectors(1), method, statistics=seen(1), **settings), vectors(1)[0])


@pytest.mark.parametrize(("method", "settings"), REGRESSIONS)
def test_equal_statistics_return_the_weighted_mean(method: str, settings: Mapping[str, Any]) -> None:
    equal = [dataclasses.replace(seen(1)[0], info=StatisticsInfo())] * 3
    merged = merge(vectors(3), method, statistics=equal, weights=[1.0, 2.0, 1.0], **settings)
    expected = merge(vectors(3), "task_arithmetic", weights=[0.25, 0.5, 0.25])
    check_close(merged, expected)


@pytest.mark.parametrize(("method", "settings"), REGRESSIONS)
def test_equal_deltas_return_the_delta(method: str, settings: Mapping[str, Any]) -> None:
    same = [dataclasses.replace(vectors(1)[0], info=VectorInfo(task=f"task{index}")) for index in range(3)]
    check_close(merge(same, method, statistics=seen(3), **settings), same[0])


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_scale_of_the_gram_matrices_changes_nothing(factor: float) -> None:
    expected = merge(vectors(3), "regmean", statistics=seen(3), ridge=0.1)
    rescaled = [scaled(statistics, factor) for statistics in seen(3)]
    check_close(merge(vectors(3), "regmean", statistics=rescaled, ridge=0.1), expected)


def test_disjoint_inputs_do_not_interfere() -> None:
    pair, generator = vectors(2), torch.Generator().manual_seed(1)
    halves = torch.randn(2, 3, 6, generator=generator)
    halves[0, :, 3:], halves[1, :, :3] = 0, 0
    parts = [made_up(SHAPES, rest=0.0, task=f"task{index}") for index in range(2)]
    for half, statistics in zip(halves, parts, strict=True):
        statistics.tensors["gram/layers.0.fc2"] = half  # type: ignore[index]
    merged = merge(pair, "regmean", statistics=parts, shrink=1.0).deltas["layers.0.fc2.weight"]
    for vector, half in zip(pair, halves, strict=True):
        torch.testing.assert_close(merged @ half.T, vector.deltas["layers.0.fc2.weight"] @ half.T)


def test_what_is_no_matrix_gets_what_others_says() -> None:
    pair, statistics = vectors(2), seen(2)
    first, second = (vector.deltas["layers.0.norm.weight"] for vector in pair)
    one, two = (own.diagonal("layers.0.norm.weight") for own in statistics)
    assert one is not None
    assert two is not None
    expected = {
        "average": (first + second) / 2,
        "sum": first + second,
        "base": torch.zeros(6),
        "diagonal": (first * one + second * two) / (one + two),
    }
    for others, delta in expected.items():
        merged = merge(pair, "regmean", statistics=statistics, others=others)
        torch.testing.assert_close(merged.deltas["layers.0.norm.weight"], delta)
        assert merged.info.settings["others"] == others
    with pytest.raises(UnknownNameError, match="average, base, diagonal, sum"):
        merge(pair, "regmean", statistics=statistics, others="mean")


def test_fisher_weighs_each_entry_by_its_information() -> None:
    pair = [TaskVector({"w": torch.tensor([1.0, 1.0, 4.0])}), TaskVector({"w": torch.tensor([3.0, 3.0, 8.0])})]
    information = [Statistics({"fisher/w": torch.tensor(values)}) for values in ([3.0, 0.0, 0.0], [1.0, 1.0, 0.0])]
    merged = merge(pair, "fisher", statistics=information, normalize=False)
    torch.testing.assert_close(merged.deltas["w"], torch.tensor([1.5, 3.0, 6.0]))
    normalised = merge(pair, "fisher", statistics=information)  # by norms 3 and the root of 2
    torch.testing.assert_close(normalised.deltas["w"][0], torch.tensor((1 + 3 * 0.5**0.5) / (1 + 0.5**0.5)))


def test_a_singular_sum_is_told_with_the_ridge_that_mends_it(caplog: pytest.LogCaptureFixture) -> None:
    pair, few = vectors(2), seen(2, rank=1, rest=0.0)
    with caplog.at_level(logging.WARNING):
        merge(pair, "regmean", statistics=few, shrink=1.0)
    assert "10 of 12 directions" in caplog.text
    assert "ridge=0.001" in caplog.text
    caplog.clear()
    merge(pair, "regmean", statistics=few, shrink=1.0, ridge=0.001)
    assert not caplog.records


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ridge": -1.0}, "ridge must be at least 0"),
        ({"ridge": float("nan")}, "ridge must be finite"),
        ({"shrink": 0.0}, "shrink must be in"),
        ({"weights": [1.0]}, "one factor per vector"),
        ({"weights": [-1.0, 1.0]}, "weights must be at least 0"),
        ({"weights": [0.0, 0.0]}, "one of them more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge(vectors(2), "regmean", statistics=seen(2), **settings)


# -- what merge takes and refuses -------------------------------------------------------------------------------------


def with_info(statistics: Statistics, **changes: Any) -> Statistics:
    return dataclasses.replace(statistics, info=dataclasses.replace(statistics.info, **changes))


def test_a_method_that_looks_at_data_wants_statistics_and_says_how_to_get_them(tmp_path: Path) -> None:
    pair, statistics = vectors(2), seen(2)
    for given, message in (
        (None, r"regmean needs statistics \(gram\).*collect_statistics"),
        (statistics[:1], "statistics of 2 vectors, got 1"),
        (statistics[0], "a list, one per vector, got one Statistics"),
        (["nowhere", 3], "statistics 1 is a int"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(pair, "regmean", statistics=given, output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="ties does not look at data"):
        merge(pair, "ties", statistics=statistics)
    with pytest.raises(ValueError, match="regmean needs statistics"):
        merge(pair, "svc", of="regmean")
    assert not list(tmp_path.iterdir())


def test_statistics_of_something_else_are_refused() -> None:
    pair, (one, two) = vectors(2), seen(2)
    known = [dataclasses.replace(vector, info=dataclasses.replace(vector.info, base_hashes={})) for vector in pair]
    hashed = dataclasses.replace(
        pair[1], info=VectorInfo(task="task1", base="a/b", base_hashes=dict.fromkeys(SHAPES, "1"))
    )
    name = "layers.0.fc2.weight"
    wide = Statistics({**two.tensors, "gram/layers.0.fc2": torch.ones(2, 7)}, two.info)
    bare = Statistics({key: value for key, value in two.tensors.items() if "fc2" not in key}, two.info)
    cases: list[tuple[TaskVector, Statistics, type[Exception], str]] = [
        (pair[1], with_info(two, task="other"), IncompatibleVectorsError, "task 'other'.*vector of 'task1'"),
        (hashed, with_info(two, base="c/d", base_hashes={name: "2"}), BaseMismatchError, "collected with c/d"),
        (pair[1], with_info(two, preprocessing="y"), IncompatibleVectorsError, "different preprocessing"),
        (pair[1], with_info(two, split="test"), ValueError, "transductive=True"),
        (pair[1], wide, IncompatibleVectorsError, "tell of 7 inputs of 'layers.0.fc2.weight', the vector of 6"),
        (pair[1], bare, IncompatibleVectorsError, "no Gram matrix of the inputs of 'layers.0.fc2.weight'"),
        (pair[1], Statistics({}, StatisticsInfo(("fisher",))), ValueError, "have no gram"),
    ]
    for vector, statistics, error, message in cases:
        with pytest.raises(error, match=message):
            merge([known[0], vector], "regmean", statistics=[with_info(one, preprocessing="x"), statistics])
    merged = merge(pair, "regmean", statistics=[one, with_info(two, split="test")], transductive=True)
    assert merged.info.transductive


def test_statistics_of_other_weights_are_told(caplog: pytest.LogCaptureFixture) -> None:
    pair, (one, two) = vectors(2), seen(2)
    with caplog.at_level(logging.WARNING):
        merge(pair, "regmean", statistics=[with_info(one, vector="0"), with_info(two, base_hashes={"w": "1"})])
    assert "other weights of the vector 'task0'" in caplog.text
    assert "at the base, not with the vector" in caplog.text


def test_a_merge_by_statistics_is_repeated_by_its_recipe(tmp_path: Path) -> None:
    folders = []
    for index, (vector, statistics) in enumerate(zip(vectors(2), seen(2), strict=True)):
        vector.save_pretrained(tmp_path / str(index))
        with_info(statistics, num_images=64).save_pretrained(tmp_path / str(index))
        folders.append(str(tmp_path / str(index)))
    merged = merge(folders, "regmean", statistics=folders, ridge=0.01, output_dir=tmp_path / "merged")
    assert equal_vectors(merged, merge(vectors(2), "regmean", statistics=seen(2), ridge=0.01))  # kept bit for bit
    info = TaskVector.from_pretrained(tmp_path / "merged").info
    assert [own["num_images"] for own in info.statistics] == [64, 64]
    assert [own["split"] for own in info.statistics] == ["train", "train"]
    assert equal_vectors(MergeRecipe.from_info(info).run(), merged)
    arguments = recipe.MergeArguments(
        vectors=folders,
        method="regmean",
        settings={"ridge": 0.01},
        statistics=folders,
        output_dir=str(tmp_path / "again"),
        quiet=True,
    )
    again = recipe.main(arguments)
    assert again is not None
    assert equal_vectors(again, merged)


def test_the_order_of_the_vectors_makes_no_difference() -> None:
    three, statistics = vectors(3), seen(3)
    for method in ("regmean", "fisher", "lot", "bmm"):
        turned = merge(three[::-1], method, statistics=statistics[::-1])
        check_close(merge(three, method, statistics=statistics), turned)


# -- the other members of the family ----------------------------------------------------------------------------------


def test_lot_is_the_paper_s_formula_and_stays_at_the_base_where_nothing_was_seen() -> None:
    pair, few = vectors(2), seen(2, rank=2, rest=0.0)
    merged = merge(pair, "lot", statistics=few)
    name = "layers.0.fc1.weight"
    grams = [own.gram(name).matrix() for own in few]  # type: ignore[union-attr]
    deltas = [vector.deltas[name].double() for vector in pair]
    expected = (deltas[0] @ grams[0] + deltas[1] @ grams[1]) @ torch.linalg.pinv(grams[0] + grams[1], rtol=1e-6)
    torch.testing.assert_close(merged.deltas[name].double(), expected, rtol=1e-4, atol=1e-5)
    bias = "layers.0.norm.bias"
    torch.testing.assert_close(merged.deltas[bias], (pair[0].deltas[bias] + pair[1].deltas[bias]) / 2)


def test_bmm_goes_from_regmean_to_its_anchor_as_the_ridge_grows() -> None:
    three, statistics = vectors(3), seen(3)
    plain = merge(three, "regmean", statistics=statistics, shrink=1.0)
    anchor = merge(three, "ties", density=0.5) * 0.7
    settings: dict[str, Any] = {"of": "ties", "of_settings": {"density": 0.5}, "inner_scaling": 0.7}
    near = merge(three, "bmm", statistics=statistics, ridge=1e-12, **settings)
    check_close(near, plain, MATRICES, rtol=1e-3, atol=1e-4)
    far = merge(three, "bmm", statistics=statistics, ridge=1e9, **settings)
    check_close(far, anchor)  # also what is no matrix
    with pytest.raises(ValueError, match="regmean needs statistics"):
        merge(three, "bmm", statistics=statistics, of="regmean")


def test_actmat_and_wudi_are_one_up_to_the_norms_of_the_deltas() -> None:
    three = vectors(3)
    for name in MATRICES:
        deltas = [vector.deltas[name].double() for vector in three]
        for method, powers in (("actmat", 0), ("wudi", 2)):
            grams = [delta.T @ delta / delta.norm() ** powers for delta in deltas]
            crossed = torch.stack([delta @ gram for delta, gram in zip(deltas, grams, strict=True)]).sum(dim=0)
            expected = crossed @ torch.linalg.pinv(torch.stack(grams).sum(dim=0), rtol=1e-6)
            settings = {"solver": "exact"} if method == "wudi" else {}
            merged = merge(three, method, **settings).deltas[name]
            torch.testing.assert_close(merged.double(), expected, rtol=1e-4, atol=1e-5)


def test_wudi_by_descent_is_adam_on_the_paper_s_loss() -> None:
    three = [vector.to(torch.float64) for vector in vectors(3)]
    merged = merge(three, "wudi", steps=5, learning_rate=0.01)
    for name in MATRICES:
        deltas = [vector.deltas[name] for vector in three]
        slow = torch.stack(deltas).sum(dim=0).requires_grad_()
        adam = torch.optim.Adam([slow], lr=0.01)
        for _ in range(5):
            adam.zero_grad()
            losses = [((slow - delta) @ delta.T).square().sum() / delta.square().sum() for delta in deltas]
            torch.stack(losses).sum().backward()
            adam.step()
        torch.testing.assert_close(merged.deltas[name], slow.detach(), rtol=1e-5, atol=1e-7)


def test_weights_of_actmat_are_those_of_the_sums() -> None:
    three, weights = vectors(3), [0.5, 2.0, 0.1]
    merged = merge(three, "actmat", weights=weights)
    for name in MATRICES:
        deltas = [vector.deltas[name].double() for vector in three]
        grams = [weight * delta.T @ delta for delta, weight in zip(deltas, weights, strict=True)]
        crossed = torch.stack([delta @ gram for delta, gram in zip(deltas, grams, strict=True)]).sum(dim=0)
        expected = crossed @ torch.linalg.pinv(torch.stack(grams).sum(dim=0), rtol=1e-6)
        torch.testing.assert_close(merged.deltas[name].double(), expected, rtol=1e-4, atol=1e-5)


def test_ace_is_the_formula_with_the_collective_prior() -> None:
    four = vectors(4)
    name = "layers.0.fc2.weight"
    deltas = [vector.deltas[name].double() for vector in four]
    centred = [delta - delta.mean(dim=0) for delta in deltas]
    total = torch.stack([own.T @ own for own in centred]).sum(dim=0)
    crossed = torch.stack([delta @ own.T @ own for delta, own in zip(deltas, centred, strict=True)]).sum(dim=0)
    prior = torch.ones(6, 1, dtype=torch.float64) @ total.mean(dim=0, keepdim=True)
    expected = crossed @ torch.linalg.inv(total + prior)
    torch.testing.assert_close(merge(four, "ace").deltas[name].double(), expected, rtol=1e-4, atol=1e-5)
