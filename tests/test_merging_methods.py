"""Each merge method on an example worked by hand, and against a slow, obvious form of its definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hf_taskvec.errors import UnknownNameError
from hf_taskvec.merging import engine, merge, stochastic
from hf_taskvec.merging.geometry import inner_products, sign_conflicts
from hf_taskvec.merging.modifiers import scale_layers
from hf_taskvec.merging.radix import Histograms
from hf_taskvec.merging.selection import _Search, magnitude_thresholds
from hf_taskvec.merging.spectral import is_block
from hf_taskvec.merging.stochastic import Chance, draw
from hf_taskvec.vectors.vector import TaskVector


def vector(*values: float) -> TaskVector:
    return TaskVector({"w": torch.tensor(values, dtype=torch.float32)})


def matrix(values: Tensor) -> TaskVector:
    return TaskVector({"w": values})


def merged_values(vectors: Sequence[TaskVector], method: str, **settings: object) -> Tensor:
    return merge(vectors, method, **settings).deltas["w"]


def check(actual: Tensor, expected: Sequence[float] | Tensor, **tolerances: float) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), **tolerances)


def random_matrices(count: int, rows: int, columns: int, *, seed: int = 0) -> list[TaskVector]:
    generator = torch.Generator().manual_seed(seed)
    return [matrix(torch.randn(rows, columns, generator=generator)) for _ in range(count)]


# -- arithmetic -------------------------------------------------------------------------------------------------------


def test_average_and_task_arithmetic() -> None:
    pair = [vector(1.0, 2.0), vector(3.0, -2.0)]
    check(merged_values(pair, "average"), [2.0, 0.0])
    check(merged_values(pair, "task_arithmetic"), [4.0, 0.0])
    check(merged_values(pair, "task_arithmetic", weights=[0.5, 2.0]), [6.5, -3.0])
    with pytest.raises(ValueError, match="one factor per vector"):
        merge(pair, "task_arithmetic", weights=[1.0])
    with pytest.raises(ValueError, match="finite"):
        merge(pair, "task_arithmetic", weights=[1.0, math.nan])


def test_hundreds_of_vectors_take_a_weight_each() -> None:
    check(merged_values([vector(2.0)] * 300, "task_arithmetic", weights=[0.5] * 300), [300.0])


def test_metagpt_weights_by_squared_norm() -> None:
    check(merged_values([vector(3.0, 0.0), vector(0.0, 1.0)], "metagpt"), [3 * 0.9, 0.1])


def test_model_stock_keeps_more_the_better_the_vectors_agree() -> None:
    check(merged_values([vector(1.0, 0.0), vector(0.0, 1.0)], "model_stock"), [0.0, 0.0])
    check(merged_values([vector(2.0, 2.0)] * 3, "model_stock"), [2.0, 2.0])
    half = [vector(1.0, 0.0), vector(0.5, math.sqrt(0.75))]  # cosine 1/2: 2 * .5 / 1.5
    check(merged_values(half, "model_stock"), torch.tensor([0.75, math.sqrt(0.75) / 2]) * 2 / 3)
    check(merged_values([vector(1.0, 0.0), vector(-1.0, 0.1)], "model_stock"), [0.0, 0.0])


def test_slerp_walks_along_the_arc() -> None:
    pair = [vector(1.0, 0.0), vector(0.0, 1.0)]
    check(merged_values(pair, "slerp"), [math.sqrt(0.5)] * 2)
    check(merged_values(pair, "slerp", position=0.0), [1.0, 0.0])
    check(merged_values(pair, "slerp", position=1.0), [0.0, 1.0])
    check(merged_values(pair, "slerp", position=1 / 3), [math.cos(math.pi / 6), math.sin(math.pi / 6)])
    check(merged_values([vector(2.0, 0.0), vector(4.0, 0.0)], "slerp", position=0.25), [2.5, 0.0])
    with pytest.raises(ValueError, match="position"):
        merge(pair, "slerp", position=1.5)


def test_karcher_is_slerp_for_two_and_a_stationary_point_for_many() -> None:
    pair = [v * (1 / v.norm()) for v in random_matrices(2, 3, 4)]
    check(merged_values(pair, "karcher"), merged_values(pair, "slerp"), rtol=1e-5, atol=1e-6)
    units = [v.deltas["w"].double() / v.norm() for v in random_matrices(5, 3, 4, seed=2)]
    mean = merged_values([matrix(unit) for unit in units], "karcher")
    assert float(mean.norm()) == pytest.approx(1.0, abs=1e-9)
    angles = [torch.acos((mean * unit).sum()) for unit in units]
    logs = [a / a.sin() * (unit - a.cos() * mean) for a, unit in zip(angles, units, strict=True)]
    assert float(sum(logs).norm()) < 1e-6


def test_scope_decides_whether_directions_are_those_of_parameters() -> None:
    one = TaskVector({"a": torch.tensor([1.0]), "b": torch.tensor([0.0])})
    two = TaskVector({"a": torch.tensor([0.0]), "b": torch.tensor([1.0])})
    check(merge([one, two], "slerp", scope="vector").deltas["a"], [math.sqrt(0.5)])
    check(merge([one, two], "slerp", scope="parameter").deltas["a"], [0.5])


def test_geometry_in_one_pass() -> None:
    vectors = random_matrices(4, 300, 200)
    flat = torch.stack([v.deltas["w"].flatten() for v in vectors]).double()
    torch.testing.assert_close(inner_products(vectors)["w"], flat @ flat.T)
    conflicts = sign_conflicts(vectors)["w"]
    for i, j in itertools.product(range(4), repeat=2):
        assert conflicts[i, j] == int((flat[i] * flat[j] < 0).sum())


# -- sparse -----------------------------------------------------------------------------------------------------------


def test_ties_drops_the_minority_sign() -> None:
    check(merged_values([vector(3.0, 1.0), vector(-1.0, 1.0)], "ties", density=1.0), [3.0, 1.0])


def test_ties_worked_example() -> None:
    vectors = [vector(4.0, -1.0, 0.5, 2.0), vector(-1.0, -3.0, 2.5, 0.1), vector(3.0, 2.0, -0.2, 1.0)]
    # half kept: (4, 0, 0, 2), (0, -3, 2.5, 0), (3, 2, 0, 0); signs +, -, +, +
    check(merged_values(vectors, "ties", density=0.5), [3.5, -3.0, 2.5, 2.0])


def slow_ties(vectors: Sequence[TaskVector], density: float, scope: str) -> dict[str, Tensor]:
    names = list(vectors[0].deltas)
    groups = [names] if scope == "vector" else [[name] for name in names]
    trimmed: list[dict[str, Tensor]] = [{} for _ in vectors]
    for group, (index, one) in itertools.product(groups, enumerate(vectors)):
        values = torch.cat([one.deltas[name].flatten().abs() for name in group])
        count = max(1, round(density * len(values)))
        bound = values.kthvalue(len(values) - count + 1).values
        for name in group:
            trimmed[index][name] = one.deltas[name] * (one.deltas[name].abs() >= bound)
    result = {}
    for name in names:
        stack = torch.stack([one[name] for one in trimmed])
        agrees = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
        result[name] = (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    return result


@pytest.mark.parametrize("scope", ["vector", "parameter"])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ties_agrees_with_its_definition_whatever_the_ties_and_zeros(
    density: float, scope: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = []
    for _ in range(3):
        deltas = {"big": torch.randn(300, 250, generator=generator), "small": torch.randn(7, generator=generator)}
        vectors.append(TaskVector({name: (delta * 4).round().div(4).to(dtype) for name, delta in deltas.items()}))
    merged = merge(vectors, "ties", density=density, scope=scope)
    wide = torch.promote_types(dtype, torch.float32)
    for name, expected in slow_ties([v.to(wide) for v in vectors], density, scope).items():
        torch.testing.assert_close(merged.deltas[name], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_histograms_find_what_a_sort_finds(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 5000, generator=generator, dtype=dtype)
    rows[1] = (rows[1] * 3).round()
    ranks = [1, 2, 700, 2500, 4999, 5000]
    values = Histograms(dtype, lambda name: rows.split(1234, dim=1)).descend(["w"], ranks, map)
    assert torch.equal(values, rows.sort(dim=1, descending=True).values[:, [rank - 1 for rank in ranks]])


def largest(values: torch.Tensor, rank: int) -> float:
    """The `rank`-th largest value: one of the values themselves, so that no processor can round it otherwise."""
    return float(values.flatten().sort(descending=True).values[rank - 1])


def test_a_sample_that_misleads_costs_time_and_nothing_else() -> None:
    place = matrix(torch.arange(1_000_000, dtype=torch.float64))
    search = _Search(lambda deltas, name: deltas, [place], {"w": 1_000_000})
    sampled = search._sample("w", 1_000_000)[0].long()
    values = torch.rand(1_000_000, generator=torch.Generator().manual_seed(0)) + 2
    values[sampled] = 1.0
    threshold = magnitude_thresholds([TaskVector({"empty": torch.empty(0), "w": values})], 0.5, "vector")["w"]
    assert float(threshold) == largest(values, 500_000)


def test_a_sample_of_a_matrix_whose_rows_differ_does_not_mislead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_taskvec.merging.selection.Histograms", None)  # what a sample that misleads costs
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 768, generator=generator) * torch.randn(4000, 1, generator=generator).exp()
    threshold = magnitude_thresholds([matrix(values)], 0.2, "vector")["w"]
    assert float(threshold) == largest(values.abs(), round(0.2 * values.numel()))


@pytest.mark.parametrize("values", [torch.zeros(200_000), torch.ones(200_000), torch.arange(200_000.0) // 1000])
@pytest.mark.parametrize("density", [1e-6, 0.2, 0.5, 1.0])
def test_ties_at_the_threshold_are_found_exactly(values: torch.Tensor, density: float) -> None:
    threshold = magnitude_thresholds([matrix(values)], density, "parameter")["w"]
    rank = max(1, round(density * len(values)))
    assert float(threshold) == largest(values, rank)


def test_breadcrumbs_drops_outliers_and_the_small() -> None:
    values = vector(*range(1, 11))  # a tenth dropped on top, then two tenths kept
    check(merged_values([values], "breadcrumbs", density=0.2, outliers=0.1), [0.0] * 7 + [8.0, 9.0, 0.0])
    two = merged_values([values, values * -2], "breadcrumbs", density=0.2, outliers=0.1)
    check(two, [0.0] * 7 + [-8.0, -9.0, 0.0])
    check(merged_values([vector(5.0)], "breadcrumbs"), [5.0])
    with pytest.raises(ValueError, match="outliers"):
        merge([values], "breadcrumbs", density=0.5, outliers=0.6)


def test_breadcrumbs_counts_per_parameter_or_over_the_whole() -> None:
    vectors = [TaskVector({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0])})]
    inside = merge(vectors, "breadcrumbs", density=0.5, outliers=0.0)
    check(torch.cat(list(inside.deltas.values())), [0.0, 2.0, 0.0, 20.0])
    across = merge(vectors, "breadcrumbs", density=0.5, outliers=0.25, scope="vector")
    check(torch.cat(list(across.deltas.values())), [0.0, 2.0, 10.0, 0.0])


def test_magmax_takes_the_largest_and_the_positive_of_opposites() -> None:
    vectors = [vector(1.0, -5.0, 2.0, 0.0), vector(-3.0, 4.0, -2.0, 0.0)]
    check(merged_values(vectors, "magmax"), [-3.0, -5.0, 2.0, 0.0])
    check(merged_values(vectors[::-1], "magmax"), [-3.0, -5.0, 2.0, 0.0])


def test_consensus_ta_drops_what_only_one_vector_needs() -> None:
    # sums 4, 3, 2; the second vector needs the first entry only if 1 >= .4 * 3, which is not so
    vectors = [vector(3.0, 1.5, 2.0), vector(1.0, 1.5, 0.0)]
    check(merged_values(vectors, "consensus_ta"), [0.0, 3.0, 0.0])
    check(merged_values(vectors, "consensus_ta", strength=0.3), [4.0, 3.0, 0.0])
    check(merged_values(vectors, "consensus_ta", agreement=1), [4.0, 3.0, 2.0])
    check(merged_values(vectors[:1], "consensus_ta"), [3.0, 1.5, 2.0])
    with pytest.raises(ValueError, match="positive"):
        merge(vectors, "consensus_ta", agreement=0)


def test_consensus_ties_masks_the_sum_of_agreeing_deltas() -> None:
    vectors = [vector(4.0, 1.0, -2.0, 0.0), vector(3.0, -3.0, -2.0, 0.1), vector(-2.0, 1.0, -2.5, 0.0)]
    # half kept: (4, 0, -2, 0), (3, -3, 0, 0)... ties at 2 and 3 keep (4, 0, -2, 0), (3, -3, 0, 0), (-2, 0, -2.5, 0)
    merged = torch.tensor([7.0, -3.0, -4.5, 0.0])
    needs = sum((v.deltas["w"].abs() >= (merged - v.deltas["w"]).abs() * 0.4).int() for v in vectors)
    check(merged_values(vectors, "consensus_ties", density=0.5), merged * (needs >= 2))


# -- random -----------------------------------------------------------------------------------------------------------


def test_dare_keeps_a_fraction_and_the_expectation() -> None:
    ones = TaskVector({"w": torch.ones(1000, 500)})
    merged = merged_values([ones], "dare", density=0.125)
    assert set(merged.unique().tolist()) == {0.0, 8.0}
    rate = 0.125 * 0.875
    assert float((merged > 0).float().mean()) == pytest.approx(0.125, abs=5 * math.sqrt(rate / 500_000))
    rows, columns = (merged > 0).float().mean(1), (merged > 0).float().mean(0)
    assert float(rows.std()) == pytest.approx(math.sqrt(rate / 500), rel=0.2)
    assert float(columns.std()) == pytest.approx(math.sqrt(rate / 1000), rel=0.2)
    tenth = merged_values([ones], "dare", density=0.1)
    assert float(tenth.mean()) == pytest.approx(1.0, abs=5 * math.sqrt(9 / 500_000))
    check(merged_values([ones], "dare", density=1.0), torch.ones(1000, 500))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dare_in_chunks_is_one_draw_of_the_whole(dtype: torch.dtype) -> None:
    inputs = [vector.to(dtype) for vector in random_matrices(3, 411, 487)]  # three chunks and a rest that is odd
    chance = Chance(inputs, seed=4)
    expected = torch.zeros(411 * 487, dtype=torch.float64)
    for row, one in enumerate(inputs):
        draws = draw([chance.stream(row, "w")], expected.numel())[0].double() + 2**15
        expected += torch.where(draws < round(0.3 * 2**16), one.deltas["w"].flatten().double(), 0.0)
    expected *= 2**16 / round(0.3 * 2**16)
    check(merged_values(inputs, "dare", density=0.3, seed=4).flatten(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["dare", "dare_ties", "della"])
def test_chance_depends_on_the_seed_and_the_content_only(method: str) -> None:
    def inputs(names: Sequence[str]) -> list[TaskVector]:
        deltas = {"a": torch.ones(400, 400), "b": torch.ones(70000)}
        return [TaskVector({name: deltas[name] * (i + 1) for name in names}) for i in range(3)]

    first = merge(inputs("ab"), method, seed=1)
    for other in (merge(inputs("ba"), method, seed=1), merge(inputs("ab")[::-1], method, seed=1)):
        for name in "ab":
            torch.testing.assert_close(first.deltas[name], other.deltas[name])
    assert not torch.equal(first.deltas["a"], merge(inputs("ab"), method, seed=2).deltas["a"])
    assert not torch.equal(first.deltas["a"].flatten()[:70000], first.deltas["b"])
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    merge(inputs("ab"), method)
    assert torch.equal(torch.rand(3), expected)  # the global generator is left alone


def test_masks_of_different_vectors_are_independent() -> None:
    ones = TaskVector({"w": torch.ones(100000)})
    both = merged_values([ones, ones * 100], "dare", density=0.5)
    kept_both = float((both == 202).float().mean())
    assert kept_both == pytest.approx(0.25, abs=0.007)
    same = merged_values([ones, ones], "dare", density=0.5)
    assert float((same == 4).float().mean()) == pytest.approx(0.25, abs=0.007)


def test_dare_ties_averages_what_agrees() -> None:
    merged = merged_values([vector(3.0, 1.0), vector(-1.0, 1.0)], "dare_ties", density=1.0)
    check(merged, [3.0, 1.0])


def test_della_keeps_large_entries_more_often() -> None:
    row = torch.arange(1.0, 101.0)
    deltas = TaskVector({"w": row.repeat(20000, 1)})
    merged = merged_values([deltas], "della", density=0.5, epsilon=0.4)
    rates = (merged != 0).float().mean(0)
    expected = 0.7 - 0.4 * torch.arange(99, -1, -1) / 100
    torch.testing.assert_close(rates, expected, rtol=0, atol=5 * math.sqrt(0.25 / 20000))
    torch.testing.assert_close(merged.mean(0), row, rtol=0.06, atol=0)  # the rescaling keeps the expectation
    check(merged_values([vector(3.0, 1.0), vector(-1.0, 1.0)], "della", density=1.0, epsilon=0.0), [3.0, 1.0])
    with pytest.raises(ValueError, match="epsilon"):
        merge([deltas], "della", density=0.9, epsilon=0.4)


# -- competition ------------------------------------------------------------------------------------------------------


def slow_pcb(deltas: Tensor, density: float) -> Tensor:
    count, size = deltas.shape
    clipped = round(1e-4 * size)
    ordered = deltas.abs().sort(dim=1).values
    low, high = ordered[:, clipped, None], ordered[:, size - 1 - clipped, None]
    magnitude = deltas.abs().clamp(low, high)
    score = torch.exp(count * ((magnitude - low) / (high - low)) ** 2) * torch.tanh(deltas * deltas.sum(0))
    ranked = score.sort(dim=1, descending=True).values
    dropped, best = ranked[:, max(1, round(density * size)), None], ranked[:, :1]
    weights = (score - dropped).clamp(min=0) / (best - dropped)
    return (deltas.sign() * magnitude * weights).sum(0) / weights.sum(0).clamp(min=1e-12)


@pytest.mark.parametrize("size", [50, 90000])
def test_pcb_agrees_with_its_definition(size: int) -> None:
    deltas = torch.randn(3, size, generator=torch.Generator().manual_seed(1)) * 0.1
    merged = merged_values([matrix(row.clone()) for row in deltas], "pcb")
    torch.testing.assert_close(merged, slow_pcb(deltas, 0.2), rtol=1e-4, atol=1e-5)


def test_pcb_changes_nothing_that_no_vector_changes() -> None:
    values = torch.randn(2, 12_000, generator=torch.Generator().manual_seed(0))
    values[:, 0] = 0.0  # the smallest ten-thousandth is lifted to a threshold, zeros are not
    merged = merged_values([vector(*row.tolist()) for row in values], "pcb", density=1.0)
    assert merged[0] == 0
    assert merged[1:].count_nonzero() > 11_000


def test_pcb_worked_example() -> None:
    # of two entries one is kept: in each vector the one whose sign and size fit the sum, so the weights are 1 and 0
    merged = merged_values([vector(2.0, -1.0), vector(1.0, 3.0)], "pcb", density=0.5)
    check(merged, [2.0, 3.0])


def test_sce_worked_example() -> None:
    vectors = [vector(4.0, 1.0, 0.0, 3.0), vector(0.0, 1.0, 0.0, -1.0)]
    # variances 4, 0, 0, 4: the first and last entry are kept; energies 25 and 1; the last sum is positive
    check(merged_values(vectors, "sce", density=0.5), [4.0 * 25 / 26, 0.0, 0.0, 3.0 * 25 / 26])


# -- modifiers --------------------------------------------------------------------------------------------------------


def test_lines_scales_deep_layers_more() -> None:
    names = [f"m.layers.{i}.w" for i in range(3)] + ["m.embed"]
    ones = TaskVector({name: torch.ones(2) for name in names})
    merged = merge([ones, ones], "lines", growth=0.6)  # shallow is 1/2, the sum is 2
    assert [float(merged.deltas[name][0]) for name in names] == pytest.approx([1.0, 1.6, 2.2, 1.0])
    scaled = scale_layers(ones, shallow=0.1, growth=0.2)
    assert [float(scaled.deltas[name][0]) for name in names] == pytest.approx([0.1, 0.2, 0.3, 0.1])


def test_lines_evens_out_the_norm_of_the_method_it_scales() -> None:
    vectors = [vector(3.0, 1.0), vector(-1.0, 1.0)]  # sum (2, 2), ties (3, 1): equal L1 norms
    check(merged_values(vectors, "lines", of="ties", of_settings={"density": 1.0}, growth=0.0), [1.5, 0.5])
    with pytest.raises(UnknownNameError, match="densty"):
        merge(vectors, "lines", of="ties", of_settings={"densty": 1.0})


def test_svc_undoes_the_counting_of_what_is_shared() -> None:
    shared, own = torch.zeros(3, 3), torch.zeros(3, 3)
    shared[0, 0], own[1, 1] = 2.0, 1.0
    pair = [matrix(shared + own), matrix(shared)]
    # first direction: s is 2 for both, so 4 / 2; second: s is 1 for one and 1/2, the floor, for the other
    expected = torch.diag(torch.tensor([2.0, 2 / 1.5, 0.0]))
    check(merged_values(pair, "svc", inner_scaling=1.0), expected, rtol=1e-5, atol=1e-6)
    # scaled by .3 before: 1.2 / .6; the second is .3 with s at .3, so the floor counts twice
    check(merged_values(pair, "svc"), torch.diag(torch.tensor([2.0, 0.6, 0.0])), rtol=1e-5, atol=1e-6)


def tower(count: int, *, layers: int = 2, seed: int = 0, width: int = 12) -> list[TaskVector]:
    """Vectors with the kinds of parameters that a vision tower of Transformers has."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (width,),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, 4, 4),
        "vision_model.embeddings.position_embedding.weight": (17, width),
        "vision_model.post_layernorm.weight": (width,),
        "visual_projection.weight": (8, width),
    }
    for layer in range(layers):
        block = f"vision_model.encoder.layers.{layer}"
        shapes |= {
            f"{block}.self_attn.q_proj.weight": (width, width),
            f"{block}.self_attn.out_proj.weight": (width, width),
            f"{block}.mlp.fc1.weight": (2 * width, width),
            f"{block}.mlp.fc1.bias": (2 * width,),
        }
    shared = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return [
        TaskVector({n: (x + torch.randn(x.shape, generator=generator, dtype=torch.float64)) for n, x in shared.items()})
        for _ in range(count)
    ]


def slow_svc(vectors: Sequence[TaskVector], merged: TaskVector, floor: float) -> dict[str, Tensor]:
    """The published calibration, direction by direction."""
    result = {}
    for name, delta in merged.deltas.items():
        result[name] = delta.double()
        if delta.ndim != 2 or "embedding" in name:
            continue
        left, values, right = torch.linalg.svd(delta.double(), full_matrices=False)
        for index, direction in enumerate(left.T):
            shares = []
            for vector in vectors:
                response = direction @ vector.deltas[name].double()
                share = float(direction @ delta.double() @ response / (response @ response))
                shares.append(max(share, floor))
            values[index] *= len(vectors) / sum(shares)
        result[name] = left * values @ right
    return result


@pytest.mark.parametrize(
    ("of", "scaling", "floor"), [("task_arithmetic", 0.3, 0.25), ("tsv_m", 1.0, 1.0), ("ties", 1.0, 0.25)]
)
def test_svc_scales_first_and_leaves_embeddings_alone_as_published(of: str, scaling: float, floor: float) -> None:
    vectors = tower(4)
    expected = slow_svc(vectors, merge(vectors, of) * scaling, floor)
    for name, delta in merge(vectors, "svc", of=of).deltas.items():
        torch.testing.assert_close(delta.double(), expected[name], rtol=1e-6, atol=1e-8)
    other = slow_svc(vectors, merge(vectors, of) * 0.7, 0.4)
    for name, delta in merge(vectors, "svc", of=of, inner_scaling=0.7, floor=0.4).deltas.items():
        torch.testing.assert_close(delta.double(), other[name], rtol=1e-6, atol=1e-8)


def test_cart_averages_what_is_neither_attention_nor_mlp() -> None:
    vectors = tower(4)
    merged, mean = merge(vectors, "cart", strength=2.3), merge(vectors, "average")
    inside = [name for name in mean if "attn" in name or "mlp" in name]
    for name, delta in merged.deltas.items():
        if name in inside and delta.ndim == 2:
            assert not torch.allclose(delta, mean.deltas[name], rtol=0.1)
        else:
            torch.testing.assert_close(delta, mean.deltas[name])
    odd = {
        "blocks.0.attn.proj.weight": True,
        "visual.proj": False,
        "head.weight": False,
        "w": True,
        "encoder.layer.0.attention.attention.query.weight": True,
        "pos_embed": False,
    }
    assert {name: is_block(name) for name in odd} == odd


def slow_fuse_chat(deltas: Tensor, density: float) -> Tensor:
    """Select, calculate and erase as FuseChat's code does."""
    variance = deltas.var(dim=0, correction=0).flatten()
    count = int(density * int(variance.count_nonzero()))
    chosen = torch.zeros_like(variance)
    chosen[variance.topk(count).indices] = 1
    energy = (deltas.flatten(1) * chosen).square().sum(dim=1)
    shares = (energy / energy.sum()).view(-1, *[1] * (deltas.ndim - 1))
    elected = torch.where(deltas.sum(dim=0) >= 0, 1.0, -1.0)
    weights = shares * (deltas.sign() == elected)
    total = weights.sum(dim=0)
    return (deltas * weights).sum(dim=0) / torch.where(total == 0, 1.0, total)


@pytest.mark.parametrize("shape", [(7,), (30, 21), (3, 90001)])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_sce_offers_the_rule_of_fuse_chats_code(shape: tuple[int, ...], density: float) -> None:
    deltas = torch.randn(3, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = [matrix(row.clone()) for row in deltas]
    merged = merged_values(inputs, "sce", density=density, rule="fusechat")
    torch.testing.assert_close(merged, slow_fuse_chat(deltas, density))
    assert float(merged.norm()) > float(merged_values(inputs, "sce", density=density).norm())
    with pytest.raises(UnknownNameError, match="no rule 'mergekit'"):
        merge(inputs, "sce", rule="mergekit")


def test_lines_is_told_the_depth_of_the_tower_or_tells_what_it_takes_it_for(caplog: pytest.LogCaptureFixture) -> None:
    block = "vision_model.encoder.layers"
    six_layers = TaskVector({f"{block}.{layer}.mlp.fc1.weight": torch.ones(2) for layer in range(6)})
    merged = merge([six_layers], "lines", shallow=0.1, growth=0.9, depth=12)
    check(torch.stack(list(merged.deltas.values()))[:, 0], [0.1 + 0.9 * layer / 11 for layer in range(6)])
    assert not caplog.text
    merged = merge([six_layers], "lines", shallow=0.1, growth=0.9)
    check(torch.stack(list(merged.deltas.values()))[:, 0], [0.1 + 0.9 * layer / 5 for layer in range(6)])
    assert caplog.text.count("taken to have 6 layers") == 1
    caplog.clear()
    merge(tower(2), "lines")  # what comes after the layers is covered: the last one is the tower's
    assert not caplog.text
    alone = TaskVector({f"{block}.3.mlp.fc1.weight": torch.ones(2)})
    assert float(
        next(iter(scale_layers(alone, shallow=0.1, growth=1.1, depth=12).deltas.values()))[0]
    ) == pytest.approx(0.4)
    for depth in (5, 0):
        with pytest.raises(ValueError, match="depth must be at least 6"):
            merge([six_layers], "lines", depth=depth)


@pytest.mark.parametrize(
    ("method", "setting"),
    [("lines", "growth"), ("lines", "shallow"), ("cart", "strength"), ("svc", "inner_scaling"), ("della", "epsilon")],
)
def test_a_setting_that_is_no_number_is_refused(method: str, setting: str) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=setting):
            merge(tower(2), method, **{setting: value})


# -- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    ["average", "ties", "breadcrumbs", "consensus_ta", "consensus_ties", "magmax", "sce", "pcb", "dare", "della"],
)
def test_a_merge_does_not_depend_on_how_its_parameters_are_cut(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = [matrix(torch.randn(3, 3001, generator=generator)) for _ in range(2)]
    whole = merged_values(inputs, method)
    for module in (engine, stochastic):
        monkeypatch.setattr(module, "CHUNK", 1000)  # nine cuts, and a rest
    check(merged_values(inputs, method), whole)
