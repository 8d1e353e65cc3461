"""Spectral and LoRA merges against plain float64 forms of their definitions, and examples worked by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_taskvec import TaskVectorConfig, TaskVectorTrainer, get_task, load_base
from hf_taskvec.errors import IncompatibleVectorsError, NonFiniteError, UnknownNameError
from hf_taskvec.merging import lapack, merge
from hf_taskvec.merging.knots import merge_adapters
from hf_taskvec.merging.linalg import leading, polar
from hf_taskvec.merging.spectral import tsv_parts
from hf_taskvec.merging.wudi import normal_equations
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.lora import LoraAdapter
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.lowrank import Factors

SHAPES = [(48, 48), (90, 40), (40, 90)]


def deltas_of(count: int, shape: tuple[int, int], *, seed: int = 0) -> Tensor:
    """Heavy-tailed matrices with some structure in common."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(shape[0], 3, generator=generator) @ torch.randn(3, shape[1], generator=generator)
    noise = torch.randn(count, *shape, generator=generator)
    return shared * 0.3 + noise * noise.abs()


def merged_values(deltas: Tensor | Sequence[Tensor], method: str, **settings: object) -> Tensor:
    return merge([TaskVector({"w": delta}) for delta in deltas], method, **settings).deltas["w"]


def check(actual: Tensor, expected: Tensor, *, tolerance: float = 1e-5) -> None:
    error = float((actual.double() - expected.double()).norm() / expected.double().norm())
    assert error < tolerance


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.linalg.svd(matrix.double(), full_matrices=False)


def whitened(matrix: Tensor) -> Tensor:
    u, _, v = svd(matrix)
    return u @ v


# -- linear algebra ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES, (5, 3), (1, 4), (300, 200)])
@pytest.mark.parametrize("rank", [1, 7, None])
def test_leading_triplets_are_those_of_a_full_svd(shape: tuple[int, int], rank: int | None) -> None:
    matrix = deltas_of(1, shape)[0]
    u, s, v = svd(matrix)
    triplets = leading(matrix, rank)
    count = len(s) if rank is None else min(rank, len(s))
    torch.testing.assert_close(triplets.values, s[:count], rtol=1e-7, atol=1e-9 * float(s[0]))
    product = triplets.left * triplets.values @ triplets.right.T
    torch.testing.assert_close(product, u[:, :count] * s[:count] @ v[:count], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        triplets.left.T @ triplets.left, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("rank", [1, 7, 60])
@pytest.mark.parametrize("compiled", [True, False])
def test_part_of_a_spectrum_is_that_of_the_whole(rank: int, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lapack.load() is not None  # the fast path is there, and is what the first case tests
    if not compiled:
        monkeypatch.setattr(lapack, "load", lambda: None)
    matrix = deltas_of(1, (90, 60))[0].double().numpy()
    gram = matrix.T @ matrix
    before = gram.copy()
    values, vectors = lapack.largest_eigenpairs(gram, rank)
    assert (gram == before).all()
    np.testing.assert_allclose(values, np.linalg.eigvalsh(gram)[-rank:], rtol=0, atol=1e-12 * values[-1])
    np.testing.assert_allclose(gram @ vectors, vectors * values, atol=1e-12 * values[-1])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(rank), atol=1e-12)


@pytest.mark.parametrize("types", ["a", "z"])  # they sort before and after the known ones
def test_a_routine_of_another_signature_is_not_called(types: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lapack, "_TYPES", types)
    assert lapack.load.__wrapped__() is None


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e4, 1e5, 1e7])
def test_polar_factors_stay_exact_however_the_spectrum_decays(condition: float) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(80, 80, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    spectrum = torch.logspace(0, -torch.log10(torch.tensor(condition)).item(), 80, dtype=torch.float64)
    factor, mean = polar(u * spectrum @ v.T)
    check(factor, u @ v.T, tolerance=1e-6)
    assert mean == pytest.approx(float(spectrum.mean()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("rank", "shape"), [(4, (60, 50)), (40, (90, 80)), (8, (64, 700))])
def test_directions_below_rounding_carry_nothing(dtype: torch.dtype, rank: int, shape: tuple[int, int]) -> None:
    left, right = deltas_of(1, (shape[0], rank))[0].double(), deltas_of(1, (rank, shape[1]))[0].double()
    stored = torch.linalg.qr(left).Q @ torch.linalg.qr(right.T).Q.T
    factor, _ = polar(stored.to(dtype), rounding=torch.finfo(dtype).eps)
    assert float(torch.linalg.matrix_norm(factor).square()) == pytest.approx(rank, abs=1e-6)
    assert float(polar(torch.zeros(40, 40))[0].norm()) == 0


def with_spectrum(spectrum: Tensor, rows: int, *, seed: int = 0) -> Tensor:
    """A float64 matrix (rows, n) with random singular vectors."""
    generator, columns = torch.Generator().manual_seed(seed), len(spectrum)
    u, v = (
        torch.linalg.qr(torch.randn(n, columns, generator=generator, dtype=torch.float64)).Q for n in (rows, columns)
    )
    return u * spectrum @ v.T


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m", "svc"])
@pytest.mark.parametrize("rows", [80, 800])
@pytest.mark.parametrize("span", [5.3, 5.45, 5.5, 6.0, 6.4])
def test_the_same_numbers_in_float32_and_float64_merge_alike_across_the_routes(
    method: str, rows: int, span: float
) -> None:
    spectrum = torch.logspace(0, -span, 80, dtype=torch.float64)
    deltas = [with_spectrum(spectrum, rows, seed=seed).float() for seed in (0, 1)]
    narrow = merged_values(deltas[:1] if method == "iso_c" else deltas, method)
    wide = merged_values([delta.double() for delta in (deltas[:1] if method == "iso_c" else deltas)], method)
    check(narrow, wide, tolerance=1e-6)
    if method == "iso_c":
        u, s, v = svd(deltas[0])
        check(narrow, u @ v * s.mean(), tolerance=1e-3)  # as the definition has it: no direction is missing


DESCENT = {"full_batch": {"full_batch": True, "learning_rate": 0.3}} | {
    "sgd": {"optim": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "per_device_train_batch_size": 32}
}


def descended(name: str, tmp_path: Path, *, epochs: int, setting: str) -> TaskVector:
    args = TaskVectorConfig(
        output_dir=str(tmp_path / name),
        num_train_epochs=epochs,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        trainable_parameters=["*.1.mlp.fc1.weight", "*.0.self_attn.q_proj.weight"],
        **DESCENT[setting],
    )
    trainer = TaskVectorTrainer(load_base(), args, task=subset(get_task(name), max_train=64))
    trainer.train()
    return trainer.task_vector()


@pytest.mark.parametrize(("setting", "epochs", "count"), [("full_batch", 1, 1), ("full_batch", 2, 2), ("sgd", 2, 2)])
def test_vectors_of_plain_descent_keep_all_their_directions(
    setting: str, epochs: int, count: int, tmp_path: Path
) -> None:
    vectors = [descended(name, tmp_path, epochs=epochs, setting=setting) for name in ("digits", "shapes")[:count]]
    for name in vectors[0].deltas:
        total = sum(vector.deltas[name].double() for vector in vectors)
        u, s, v = svd(total)
        assert s[-1] < s[0] * 1e-6  # beyond the reach of the Gram route
        check(merge(vectors, "iso_c").deltas[name], u @ v * s.mean(), tolerance=1e-3)
    for method in ("iso_cts", "tsv_m", "svc"):
        wide = merge([vector.to(torch.float64) for vector in vectors], method)
        for name, delta in merge(vectors, method).deltas.items():
            check(delta, wide.deltas[name], tolerance=1e-3)


def test_one_weak_direction_of_many_is_no_rounding() -> None:
    spectrum = torch.logspace(0, -7, 100, dtype=torch.float64)
    spectrum[-1] = 2e-8  # by itself, and far above what rounding puts into one direction
    values = torch.linalg.svdvals(with_spectrum(spectrum, 100).float().double())
    factor, _ = polar(with_spectrum(spectrum, 100).float())
    assert values[-1] < values[-2] / 4
    assert float(torch.linalg.matrix_norm(factor).square()) == pytest.approx(100)


# -- spectral methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_tsv_m_agrees_with_its_definition(shape: tuple[int, int], count: int) -> None:
    deltas = deltas_of(count, shape)
    rank = min(shape) // count
    parts = [svd(delta) for delta in deltas]
    left = whitened(torch.cat([u[:, :rank] for u, _, _ in parts], dim=1))
    right = whitened(torch.cat([v[:rank] for _, _, v in parts]))
    check(merged_values(deltas, "tsv_m"), left * torch.cat([s[:rank] for _, s, _ in parts]) @ right)


def test_tsv_m_keeps_vectors_that_do_not_meet() -> None:
    one, two = torch.zeros(4, 4), torch.zeros(4, 4)
    one[0, 0], two[1, 2] = 3.0, 2.0
    check(merged_values([one, two], "tsv_m"), one + two)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 5, 60])
def test_factors_of_tsv_m_scale_what_each_vector_adds(shape: tuple[int, int], count: int) -> None:
    deltas, factors = deltas_of(count, shape), torch.linspace(-1, 2, count)[:, None, None]
    own = [TaskVector({"w": delta, "b": delta[0]}) for delta in deltas]
    added = tsv_parts(own)
    check((factors * added["w"]).sum(0), merged_values(factors * deltas, "tsv_m"))
    torch.testing.assert_close((factors[:, 0] * added["b"]).sum(0), (factors[:, 0] * deltas[:, 0]).mean(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_iso_c_agrees_with_its_definition(shape: tuple[int, int]) -> None:
    deltas = deltas_of(4, shape)
    u, s, v = svd(deltas.double().sum(0))
    check(merged_values(deltas, "iso_c"), u @ v * s.mean())
    merged = torch.linalg.svdvals(merged_values(deltas, "iso_c"))
    torch.testing.assert_close(merged, torch.full_like(merged, float(s.mean())), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("common", [0.3, 0.8, 1.0])
def test_iso_cts_agrees_with_its_definition(shape: tuple[int, int], common: float) -> None:
    deltas, count = deltas_of(4, shape).double(), 4
    rank = min(shape)
    own = round((rank - int(rank * common)) / count)
    u, s, v = svd(deltas.sum(0))
    keep = rank - own * count
    basis = u[:, :keep]
    parts = [svd(delta - basis @ basis.T @ delta) for delta in deltas]
    left = whitened(torch.cat([basis, *(p[0][:, :own] for p in parts)], dim=1))
    right = whitened(torch.cat([v[:keep], *(p[2][:own] for p in parts)]))
    mean = torch.cat([s[:keep], *(p[1][:own] for p in parts)]).mean()
    check(merged_values(deltas.float(), "iso_cts", common=common), left @ right * mean)


def test_iso_cts_leaves_the_sum_one_direction_where_rounding_would_take_all() -> None:
    deltas = deltas_of(3, (5, 9)).double()  # 5 / 3 rounds to 2 each, which are more than there are
    u, s, v = svd(deltas.sum(0))
    parts = [svd(delta - u[:, :2] @ u[:, :2].T @ delta) for delta in deltas]
    left = whitened(torch.cat([u[:, :2], *(p[0][:, :1] for p in parts)], dim=1))
    right = whitened(torch.cat([v[:2], *(p[2][:1] for p in parts)]))
    mean = torch.cat([s[:2], *(p[1][:1] for p in parts)]).mean()
    check(merged_values(deltas.float(), "iso_cts", common=0.01), left @ right * mean)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
def test_iso_cts_makes_no_directions_out_of_rounding(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    low = [torch.randn(shape[0], 2, generator=generator) @ torch.randn(2, shape[1], generator=generator) for _ in "ab"]
    merged = torch.linalg.svdvals(merged_values(low, "iso_cts").double())  # the sum has all four directions there are
    assert merged[4] < 1e-6 * merged[0]
    torch.testing.assert_close(merged[:4], merged[0].expand(4), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_cart_agrees_with_its_definition(shape: tuple[int, int]) -> None:
    deltas = deltas_of(3, shape).double()
    mean = deltas.mean(0)
    rank = max(1, round(0.2 * min(shape)))
    expected = mean.clone()
    for delta in deltas:
        u, s, v = svd(delta - mean)
        expected += 1.5 * (u[:, :rank] * s[:rank] @ v[:rank])
    check(merged_values(deltas.float(), "cart", rank=0.2, strength=1.5), expected)


def test_cart_with_the_whole_rank_is_task_arithmetic_around_the_mean() -> None:
    deltas = deltas_of(3, (20, 30))
    check(merged_values(deltas, "cart", rank=1.0), deltas.mean(0))  # the centred parts cancel


def test_parameters_that_are_no_matrices_are_averaged() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [
        TaskVector({"bias": torch.randn(7, generator=generator), "conv": torch.randn(4, 3, 2, 2, generator=generator)})
        for _ in range(3)
    ]
    expected = merge(inputs, "average")
    for method in ("tsv_m", "iso_c", "iso_cts", "cart"):
        for name, delta in merge(inputs, method).deltas.items():
            torch.testing.assert_close(delta, expected.deltas[name])


def test_wudi_leaves_all_but_linear_layers_at_the_base() -> None:
    names = {"embeddings.position_embedding.weight": (5, 4), "layer_norm.bias": (4,), "patch.weight": (2, 3, 2, 2)}
    inputs = [TaskVector({"fc1.weight": deltas_of(1, (6, 4), seed=seed)[0]}) for seed in (1, 2)]
    inputs = [TaskVector({**vector.deltas, **{n: torch.ones(s) for n, s in names.items()}}) for vector in inputs]
    merged = merge(inputs, "wudi", steps=2)
    assert not any(merged.deltas[name].any() for name in names)
    assert merged.deltas["fc1.weight"].all()


# -- wudi -------------------------------------------------------------------------------------------------------------


def wudi_loss(merged: Tensor, deltas: Tensor) -> Tensor:
    return sum(((merged - d) @ d.T).square().sum() / d.square().sum() for d in deltas)


def test_the_precomputed_gradient_is_that_of_the_loss() -> None:
    deltas = deltas_of(4, (12, 20)).double()
    point = torch.randn(12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).requires_grad_()
    wudi_loss(point, deltas).backward()
    square, cross = normal_equations(deltas)
    torch.testing.assert_close(2 * (point.detach() @ square - cross), point.grad)


def test_wudi_descends_as_adam_on_the_loss_does() -> None:
    deltas = deltas_of(3, (16, 24)).double()  # Adam's first step is a sign: float32 might round it either way
    point = deltas.sum(0).clone().requires_grad_()
    adam = torch.optim.Adam([point], lr=1e-3)
    for _ in range(40):
        adam.zero_grad()
        wudi_loss(point, deltas).backward()
        adam.step()
    check(merged_values(deltas, "wudi", steps=40, learning_rate=1e-3), point.detach(), tolerance=1e-5)


def test_the_exact_solver_is_the_limit_of_descent() -> None:
    basis = torch.linalg.qr(deltas_of(1, (40, 20))[0].double()).Q
    deltas = deltas_of(3, (10, 40)).double() @ basis @ basis.T  # S is singular: 20 of 40 directions
    merged = merged_values(deltas, "wudi", solver="exact")
    square, cross = normal_equations(deltas)
    torch.testing.assert_close(merged @ square, cross, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(merged @ basis @ basis.T, merged)
    point = deltas.sum(0)
    for _ in range(2000):
        point = point - 0.9 * (point @ square - cross) / torch.linalg.matrix_norm(square, 2)
    loss = float(wudi_loss(merged, deltas))
    assert loss * (1 - 1e-9) <= float(wudi_loss(point, deltas)) <= loss * 1.01  # equal up to rounding, or just above
    assert loss < float(wudi_loss(deltas.sum(0), deltas)) / 2
    with pytest.raises(UnknownNameError, match="solver"):
        merge([TaskVector({"w": deltas[0]})], "wudi", solver="sgd")


# -- LoRA -------------------------------------------------------------------------------------------------------------


def adapter(rank: int, *, seed: int, shape: tuple[int, int] = (30, 22), name: str = "w.weight") -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator)
    return LoraAdapter({name: Factors(left, right, 0.5, torch.Size(shape))}, VectorInfo(kind="lora"))


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_knots_in_the_factor_core_is_knots_on_the_full_matrices(density: float) -> None:
    lazy = [adapter(rank, seed=rank).to_vector() for rank in (2, 3, 4)]
    full = [TaskVector({"w.weight": vector.deltas["w.weight"]}) for vector in lazy]
    inside, outside = (merge(inputs, "knots", density=density).deltas["w.weight"] for inputs in (lazy, full))
    check(inside, outside, tolerance=1e-4)


def slow_knots(deltas: Sequence[dict[str, Tensor]], density: float) -> dict[str, Tensor]:
    """The authors' rule: one threshold per vector over S V_i of all matrices, then TIES, then U."""
    bases, aligned = {}, []
    for name in deltas[0]:
        side = torch.cat([each[name].double() for each in deltas], dim=1)
        u, s, v = torch.linalg.svd(side, full_matrices=False)
        alive = s > 1e-6 * s[0]
        bases[name] = u[:, alive]
        aligned.append((name, (s[alive].unsqueeze(1) * v[alive]).chunk(len(deltas), dim=1)))
    trimmed: dict[str, list[Tensor]] = {name: [] for name in bases}
    for index in range(len(deltas)):
        flat = torch.cat([parts[index].flatten() for _, parts in aligned]).abs()
        bound = flat.sort(descending=True).values[max(1, round(density * len(flat))) - 1]
        for name, parts in aligned:
            trimmed[name].append(parts[index] * (parts[index].abs() >= bound * (1 - 1e-6)))
    result = {}
    for name, parts in trimmed.items():
        stack = torch.stack(parts)
        agrees = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
        result[name] = bases[name] @ ((stack * agrees).sum(0) / agrees.sum(0).clamp(min=1))
    return result


@pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("low_rank", [False, True])
def test_knots_trims_by_one_threshold_over_all_matrices(density: float, low_rank: bool) -> None:
    shapes = {"big.weight": (30, 22), "small.weight": (12, 40)}  # of another size and scale: thresholds would differ
    if low_rank:
        lazy = [
            LoraAdapter(
                {
                    **adapter(2, seed=seed, shape=shapes["big.weight"], name="big.weight").factors,
                    **adapter(3, seed=seed + 9, shape=shapes["small.weight"], name="small.weight").factors,
                },
                VectorInfo(kind="lora"),
            ).to_vector()
            for seed in range(3)
        ]
    else:
        generator = torch.Generator().manual_seed(0)
        lazy = [
            TaskVector({n: torch.randn(s, generator=generator) * len(n) for n, s in shapes.items()}) for _ in range(3)
        ]
    expected = slow_knots([dict(vector.deltas) for vector in lazy], density)
    for name, delta in merge(lazy, "knots", density=density).deltas.items():
        check(delta, expected[name], tolerance=1e-4)


def test_knots_on_a_given_device_stays_in_the_factor_core() -> None:
    inputs = [adapter(rank, seed=rank).to_vector() for rank in (2, 3)]
    moved, expected = merge(inputs, "knots", device="cpu"), merge(inputs, "knots")
    check(moved.deltas["w.weight"], expected.deltas["w.weight"])


def test_knots_names_the_vector_whose_factors_hold_nan() -> None:
    broken = adapter(3, seed=1)
    broken.factors["w.weight"].right[1, 2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"'w\.weight' of vector 1"):
        merge([adapter(2, seed=0).to_vector(), broken.to_vector()], "knots")


def test_knots_that_trims_nothing_and_meets_no_conflict_averages() -> None:
    lazy = [adapter(3, seed=0).to_vector()] * 2
    check(merge(lazy, "knots").deltas["w.weight"], lazy[0].deltas["w.weight"])


@pytest.mark.parametrize("rank", [None, 2, 9])
def test_merged_adapters_are_the_closest_of_their_rank_to_the_sum(rank: int | None) -> None:
    adapters = [adapter(size, seed=size) for size in (2, 3, 4)]
    weights = [1.0, -0.5, 2.0]
    total = sum(w * a.to_vector().deltas["w.weight"].double() for a, w in zip(adapters, weights, strict=True))
    u, s, v = svd(total)
    size = 4 if rank is None else rank
    merged = merge_adapters(adapters, weights=weights, rank=rank)
    check(merged.to_vector().deltas["w.weight"], u[:, :size] * s[:size] @ v[:size])
    assert merged.factors["w.weight"].right.shape[0] == size
    assert merged.info.settings["weights"] == weights


def test_merged_adapters_agree_with_peft(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"one": nn.Linear(30, 20), "two": nn.Linear(20, 12)})
    model.config = {"model_type": "custom"}
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=["one", "two"], r=4, lora_alpha=6))
    adapted.add_adapter("other", LoraConfig(target_modules=["one", "two"], r=3, use_rslora=True))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    adapted.save_pretrained(tmp_path)
    adapted.add_weighted_adapter(["default", "other"], [0.7, -0.4], "both", combination_type="svd")
    ours = merge_adapters(
        [LoraAdapter.from_pretrained(tmp_path), LoraAdapter.from_pretrained(tmp_path / "other")], weights=[0.7, -0.4]
    )
    for name, delta in ours.to_vector().deltas.items():
        theirs = adapted.base_model.model.get_submodule(name.removesuffix(".weight")).get_delta_weight("both")
        check(delta, theirs.detach(), tolerance=1e-5)


def test_adapters_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(IncompatibleVectorsError, match=r"w\.weight"):
        merge_adapters([adapter(2, seed=0), adapter(2, seed=1, shape=(30, 21))])
    with pytest.raises(ValueError, match="positive rank"):
        merge_adapters([adapter(2, seed=0)], rank=0)
    different = merge_adapters([adapter(2, seed=0), adapter(3, seed=1, name="v.weight")])
    assert set(different.factors) == {"w.weight", "v.weight"}
