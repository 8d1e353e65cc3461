"""Merging in shared subspaces: examples worked by hand, plain forms of the definitions, and what must not matter."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hf_taskvec.errors import NonFiniteError, UnknownNameError
from hf_taskvec.merging import merge
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.lowrank import Factors, LowRankDeltas

SHAPES = [(24, 24), (45, 20), (20, 45)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def merged_values(deltas: Tensor | Sequence[Tensor], method: str, **settings: object) -> Tensor:
    return merge([TaskVector({"w": delta}) for delta in deltas], method, **settings).deltas["w"]


def check(actual: Tensor, expected: Tensor | Sequence[Sequence[float]], *, tolerance: float = 1e-6) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert actual.shape == expected.shape
    assert float((actual.double() - expected).norm()) <= tolerance * float(expected.norm())


def whitened(matrix: Tensor) -> Tensor:
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(random(size, size, seed=seed)).Q


# -- DC-Merge ---------------------------------------------------------------------------------------------------------

ONE, OTHER = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])  # directions with a cosine of .6


@pytest.mark.parametrize(
    ("density", "expected"), [(1.0, [[0.91, -0.12], [-0.12, 0.59]]), (0.25, [[1.71, -0.27], [-0.27, 0.99]])]
)
def test_dc_merge_worked_example(density: float, expected: list[list[float]]) -> None:
    # on the whitened axes (.949, -.316) and (.316, .949) the cores are 2 [[.9, .3], [.3, .1]] and [[.1, .3], [.3, .9]];
    # means .95 and .55 on the diagonal, or 1.8 and .9 if each keeps its largest entry; off the diagonal nothing
    check(merged_values([2 * torch.outer(ONE, ONE), torch.outer(OTHER, OTHER)], "dc_merge", density=density), expected)


def slow_dc_merge(deltas: Tensor, density: float) -> Tensor:
    count, rank = len(deltas), min(deltas.shape[1:]) // len(deltas)
    parts = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = whitened(torch.cat([u[:, :rank] for u, _, _ in parts], dim=1))
    right = whitened(torch.cat([v[:rank] for _, _, v in parts]))
    cores = []
    for u, s, v in parts:
        core = left.T @ (u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]) @ right.T
        smallest = core.abs().flatten().sort(descending=True).values[max(1, round(density * core.numel())) - 1]
        cores.append(core * (core.abs() >= smallest))
    total = sum(cores)
    merged = torch.zeros_like(total)
    for row in range(len(total)):
        for column in range(len(total)):
            agreeing = [core[row, column] for core in cores if core[row, column] * total[row, column] > 0]
            if agreeing and row // rank == column // rank:
                merged[row, column] = sum(agreeing) / len(agreeing)
    assert len(total) == rank * count
    return left @ merged @ right


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("density", [0.001, 0.1, 1.0])
def test_dc_merge_agrees_with_its_definition(shape: tuple[int, int], count: int, density: float) -> None:
    deltas = random(count, *shape) + random(*shape, seed=1)
    check(merged_values(deltas, "dc_merge", density=density), slow_dc_merge(deltas, density))


def test_dc_merge_returns_one_vector_and_adds_vectors_that_do_not_meet() -> None:
    one = random(6, 9)
    check(merged_values([one], "dc_merge", density=1.0), one)
    top, bottom = torch.zeros(6, 8), torch.zeros(6, 8)
    top[:3, :4], bottom[3:, 4:] = random(3, 4, seed=1), random(3, 4, seed=2)
    check(merged_values([top, bottom], "dc_merge", density=1.0), top + bottom)


def test_dc_merge_turns_with_its_vectors() -> None:
    deltas, left, right = random(3, 20, 30), rotation(20, 1), rotation(30, 2)
    turned = merged_values([left @ delta @ right for delta in deltas], "dc_merge", density=0.3)
    check(turned, left @ merged_values(deltas, "dc_merge", density=0.3) @ right)


@pytest.mark.parametrize(
    ("smoothing", "values", "expected"),
    [
        ("average", [3.0, 1.0], [2.0, 2.0]),
        ("linear", [6.0, 2.0], [6.0, 2.0]),
        ("linear", [11.5, 2.0, 1.0, 0.5], [6.25, 4.583333, 2.916667, 1.25]),  # 15 * (5, 3.67, 2.33, 1) / 12
        ("average", [3.0, 1.0, 0.0], [2.0, 2.0, 0.0]),  # a direction that is not there gets nothing
        ("linear", [0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_dc_merge_smooths_singular_values(smoothing: str, values: list[float], expected: list[float]) -> None:
    merged = merged_values([torch.diag(torch.tensor(values))], "dc_merge", density=1.0, smoothing=smoothing)
    torch.testing.assert_close(merged, torch.diag(torch.tensor(expected)), rtol=1e-5, atol=1e-6)


def test_dc_merge_cuts_to_a_rank_and_refuses_what_is_none() -> None:
    values = torch.diag(torch.tensor([4.0, 3.0, 2.0, 1.0]))
    check(merged_values([values], "dc_merge", density=1.0, rank=2), torch.diag(torch.tensor([4.0, 3.0, 0.0, 0.0])))
    check(merged_values([values], "dc_merge", density=1.0, rank=16), values)
    for rank in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="rank must be a positive whole number"):
            merged_values([values], "dc_merge", rank=rank)
    with pytest.raises(UnknownNameError, match="Did you mean 'average'"):
        merged_values([values], "dc_merge", smoothing="averaged")


# -- the core of adapters ---------------------------------------------------------------------------------------------


def adapters(ranks: Sequence[int], *, dtype: torch.dtype = torch.float64) -> list[TaskVector]:
    """LoRA vectors of two matrices and a parameter that none adapts; the last leaves one matrix alone."""
    zeros = {"up.weight": torch.Size([30, 20]), "bias": torch.Size([7]), "down.weight": torch.Size([18, 40])}
    vectors = []
    for index, rank in enumerate(ranks):
        names = ["up.weight"] if index == len(ranks) - 1 > 0 else ["up.weight", "down.weight"]
        factors = {}
        for name in names:
            rows, columns = zeros[name]
            left, right = (random(*shape, seed=10 * index) for shape in [(rows, rank), (rank, columns)])
            factors[name] = Factors(left.to(dtype), right.to(dtype), 1.5 - index / 4, zeros[name])
        vectors.append(TaskVector(LowRankDeltas(factors, zeros), VectorInfo(task=f"task{index}", kind="lora")))
    return vectors


def written_out(vectors: Sequence[TaskVector]) -> list[TaskVector]:
    """The same vectors without their factors."""
    return [TaskVector(dict(vector.deltas)) for vector in vectors]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("average", {}),
        ("task_arithmetic", {"weights": [0.5, -2.0, 1.0]}),
        ("metagpt", {}),
        ("model_stock", {}),
        ("karcher", {}),
    ],
)
def test_what_commutes_with_rotations_is_the_same_in_the_core(method: str, settings: dict[str, object]) -> None:
    vectors = adapters([2, 4, 3])
    inside, outside = (
        merge(vectors, "core_space", of=method, of_settings=settings),
        merge(written_out(vectors), method, **settings),
    )
    assert list(inside.deltas) == list(outside.deltas)
    for name in outside.deltas:
        torch.testing.assert_close(inside.deltas[name], outside.deltas[name], rtol=1e-9, atol=1e-9)


def test_tsv_m_in_the_core_is_tsv_m() -> None:
    vectors = [TaskVector(LowRankDeltas({"up.weight": v.deltas.factors["up.weight"]})) for v in adapters([4, 4, 4])]
    check(merge(vectors, "core_space").deltas["up.weight"], merge(written_out(vectors), "tsv_m").deltas["up.weight"])


def test_iso_c_in_the_core_means_over_the_core() -> None:
    vectors = [TaskVector(LowRankDeltas({"up.weight": v.deltas.factors["up.weight"]})) for v in adapters([2, 3])]
    outside = merge(written_out(vectors), "iso_c").deltas["up.weight"]
    check(merge(vectors, "core_space", of="iso_c").deltas["up.weight"], outside * 20 / 5)


def test_ties_in_the_core_agrees_with_its_definition() -> None:
    vectors = adapters([2, 3])
    items = [vector.deltas.factors["up.weight"] for vector in vectors]
    left, _, _ = torch.linalg.svd(torch.cat([i.left.double() * i.scaling for i in items], dim=1), full_matrices=False)
    _, _, right = torch.linalg.svd(torch.cat([i.right.double() for i in items]), full_matrices=False)
    inside = [TaskVector({"w": left.T @ vector.deltas["up.weight"].double() @ right.T}) for vector in vectors]
    expected = left @ merge(inside, "ties", density=0.4).deltas["w"] @ right
    settings = {"density": 0.4, "scope": "parameter"}
    check(merge(vectors, "core_space", of="ties", of_settings=settings).deltas["up.weight"], expected)


def test_the_core_is_lossless_and_keeps_what_only_one_adapts() -> None:
    vectors = adapters([2, 5], dtype=torch.float32)
    alone = merge(vectors[:1], "core_space", of="average")
    for name, delta in vectors[0].deltas.items():
        torch.testing.assert_close(alone.deltas[name], delta, rtol=1e-5, atol=1e-5)
    both = merge(vectors, "core_space", of="task_arithmetic")
    check(both.deltas["down.weight"], vectors[0].deltas["down.weight"].double())
    assert not both.deltas["bias"].any()


def test_the_core_does_not_depend_on_the_order_nor_on_factors_that_repeat() -> None:
    vectors = adapters([3, 3, 2])
    for method in ("tsv_m", "ties"):
        one, other = (merge(order, "core_space", of=method) for order in (vectors, vectors[::-1]))
        torch.testing.assert_close(one.deltas["up.weight"], other.deltas["up.weight"], rtol=1e-4, atol=1e-5)
    twice = merge([vectors[0]] * 2, "core_space", of="average")  # half of the axes are spanned by rounding only
    check(twice.deltas["up.weight"], vectors[0].deltas["up.weight"].double())


def test_vectors_without_factors_get_the_methods_own_result() -> None:
    deltas = random(3, 8, 6)
    check(merged_values(deltas, "core_space", of="ties"), merged_values(deltas, "ties"))


def test_what_cannot_merge_in_the_core_is_refused_by_name() -> None:
    vectors = adapters([2, 2])
    with pytest.raises(ValueError, match="'core_space' itself"):
        merge(vectors, "core_space", of="core_space")
    with pytest.raises(UnknownNameError, match="Did you mean 'ties'"):
        merge(vectors, "core_space", of="tie")
    with pytest.raises(UnknownNameError, match="Did you mean 'density'"):
        merge(vectors, "core_space", of="ties", of_settings={"densty": 0.2})
    vectors[1].deltas.factors["up.weight"].right[0, 3] = torch.nan
    with pytest.raises(NonFiniteError, match=r"up\.weight.*vector 1 \('task1'\)"):
        merge(vectors, "core_space")
