"""Essential subspaces: an example worked by hand, the definition, and what must not matter."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hf_taskvec.errors import UnknownNameError
from hf_taskvec.merging import merge
from hf_taskvec.statistics.value import Statistics, StatisticsInfo
from hf_taskvec.vectors.vector import TaskVector

LAYERS = [f"tower.layers.{layer}.fc1" for layer in range(3)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seen(*inputs: Tensor, rest: float = 0.0) -> Statistics:
    """Statistics of the inputs (tokens, n) of each layer."""
    grams = {f"gram/{name}": rows / len(rows) ** 0.5 for name, rows in zip(LAYERS, inputs, strict=False)}
    rests = {f"rest/{name}": rows.new_full(rows.shape[1:], rest**0.5) for name, rows in grams.items() if rest}
    return Statistics(grams | rests, StatisticsInfo(("gram",), split="train"))


def merged(deltas: Sequence[Sequence[Tensor]], statistics: Sequence[Statistics]) -> list[Tensor]:
    """The merged matrices of T vectors with one matrix per layer."""
    vectors = [
        TaskVector({f"{name}.weight": delta for name, delta in zip(LAYERS, own, strict=False)}) for own in deltas
    ]
    return list(merge(vectors, "esm", statistics=statistics).deltas.values())


def whitened(matrix: Tensor) -> tuple[Tensor, float]:
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v, float(s.mean())


def slow_esm(deltas: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """As the paper has it, from the inputs (tokens, n) themselves; without the scale of the layer."""
    keep, directions, images = len(deltas[0]) // len(deltas), [], []
    for delta, rows in zip(deltas, inputs, strict=True):
        _, _, principal = torch.linalg.svd(rows @ delta.T, full_matrices=False)
        directions.append(principal[:keep].T)
        images.append(principal[:keep] @ delta)
    norms = [float(image.norm()) for image in images]
    stacked = torch.cat(
        [image * (norm * len(norms) / sum(norms)) ** 2 for image, norm in zip(images, norms, strict=True)]
    )
    sizes = stacked.norm(dim=0)
    right, mean = whitened(stacked * (sizes / sizes.mean()) ** 2)
    return whitened(torch.cat(directions, dim=1))[0] @ right * mean


def test_worked_example() -> None:
    # each keeps one of two directions: the images of the first move its second output more, though its first is larger
    deltas = [torch.diag(torch.tensor([4.0, 2.0])), torch.diag(torch.tensor([6.0, 1.0]))]
    inputs = [torch.tensor([[1.0, 0.0], [0.0, 5.0]]), torch.eye(2)]
    # A is (0, 2) and (6, 0); norms 2 and 6, so times (2/4)² and (6/4)²: (0, .5) and (13.5, 0); columns 13.5 and .5 of
    # mean 7, so times (13.5/7)² and (.5/7)²: mean singular value (50.211... + .00255...) / 2
    size = (13.5**3 + 0.5**3) / 49 / 2
    (result,) = merged([[delta] for delta in deltas], [seen(rows) for rows in inputs])
    torch.testing.assert_close(result, torch.diag(torch.tensor([size, size])), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(24, 20), (30, 28), (18, 50)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_agrees_with_its_definition(rows: int, columns: int, count: int) -> None:
    deltas = [random(rows, columns, seed=seed) * (1 + seed) for seed in range(count)]
    inputs = [random(200, columns, seed=10 + seed) @ random(columns, columns, seed=20 + seed) for seed in range(count)]
    (result,) = merged([[delta] for delta in deltas], [seen(own) for own in inputs])
    expected = slow_esm(deltas, inputs)
    assert float((result - expected).norm() / expected.norm()) < 1e-6


def test_layers_of_a_kind_are_scaled_by_the_square_of_their_norm() -> None:
    one, inputs = random(8, 6), random(50, 6, seed=1)
    results = merged([[one, one * 2, one * 3]], [seen(inputs, inputs, inputs)])
    alone = merged([[one]], [seen(inputs)])[0]  # norms 1, 2, 3 of mean 2
    for result, factor in zip(results, (1 / 4, 2, 3 * 9 / 4), strict=True):
        torch.testing.assert_close(result, alone * factor)


def test_sizes_of_images_and_turns_of_outputs_do_not_matter_and_scales_of_vectors_come_out() -> None:
    deltas = [random(12, 10, seed=seed) for seed in range(3)]
    inputs = [random(60, 10, seed=10 + seed) for seed in range(3)]
    (result,) = merged([[delta] for delta in deltas], [seen(rows) for rows in inputs])
    (brighter,) = merged([[delta] for delta in deltas], [seen(rows * 7) for rows in inputs])
    torch.testing.assert_close(brighter, result)
    turn = torch.linalg.qr(random(12, 12, seed=5)).Q
    (turned,) = merged([[turn @ delta] for delta in deltas], [seen(rows) for rows in inputs])
    torch.testing.assert_close(turned, turn @ result)
    (larger,) = merged([[delta * 3] for delta in deltas], [seen(rows) for rows in inputs])
    torch.testing.assert_close(larger, result * 3)


def test_what_the_factor_leaves_out_counts_by_its_rest() -> None:
    delta = torch.diag(torch.tensor([1.0, 3.0, 2.0, 0.5], dtype=torch.float64))
    narrow = torch.tensor([[5.0, 0.0, 0.0, 0.0]], dtype=torch.float64)  # images of one direction
    pair = [[delta], [delta]]
    blind, told = (merged(pair, [seen(narrow, rest=rest)] * 2)[0] for rest in (0.0, 1e-4))
    assert torch.linalg.matrix_rank(blind) == 1  # of two directions that each could keep
    assert torch.linalg.matrix_rank(told) == 2  # and the largest of the rest


def test_parameters_without_statistics_are_averaged() -> None:
    pair = [
        TaskVector({"tower.embedding.weight": random(4, 3, seed=seed), "b": random(4, seed=seed)}) for seed in (0, 1)
    ]
    result = merge(pair, "esm", statistics=[seen(random(9, 3))] * 2)
    average = merge(pair, "average")
    for name, delta in result.deltas.items():
        torch.testing.assert_close(delta, average.deltas[name])


def test_it_is_no_part_of_another_method() -> None:
    pair = [TaskVector({"w": random(4, 3, seed=seed)}) for seed in (0, 1)]
    with pytest.raises((ValueError, UnknownNameError), match="statistics"):
        merge(pair, "svc", of="esm")
    with pytest.raises(ValueError, match="statistics"):
        merge(pair, "esm")
