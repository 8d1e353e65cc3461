"""Merging by saliency: an example worked by hand, the definition by autograd, and its base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hf_taskvec.errors import BaseMismatchError, CheckpointError
from hf_taskvec.merging import merge
from hf_taskvec.merging.saliency import Survivors, chain_of, signals_of
from hf_taskvec.vectors.vector import TaskVector
from tests.helpers import tiny_clip, tiny_vector

BLOCK = "vision_model.encoder.layers.{}."
FC1, FC2 = (f"{BLOCK.format(0)}mlp.{name}.weight" for name in ("fc1", "fc2"))
WIDTH = 6
SHAPES = {
    "vision_model.embeddings.patch_embedding.weight": (WIDTH, 3, 2, 2),
    **{
        BLOCK.format(layer) + name: shape
        for layer in range(2)
        for name, shape in {
            "layer_norm1.weight": (WIDTH,),
            **{f"self_attn.{role}_proj.weight": (WIDTH, WIDTH) for role in ("q", "k", "v", "out")},
            "mlp.fc1.weight": (2 * WIDTH, WIDTH),
            "mlp.fc2.weight": (WIDTH, 2 * WIDTH),
        }.items()
    },
    "visual_projection.weight": (4, WIDTH),
}


def weights(*, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in SHAPES.items()}


def left_of(vectors: Sequence[TaskVector], base: Mapping[str, Tensor], share: float, rounds: int) -> Survivors:
    left = Survivors(vectors)
    for _ in range(rounds):
        left.drop(base, share)
    return left


def test_worked_example() -> None:
    base = {FC1: torch.ones(2, 2), FC2: torch.tensor([[1.0, 3.0]])}
    vector = TaskVector({FC1: torch.tensor([[1.0, 2.0], [-1.5, -0.5]]), FC2: torch.tensor([[1.0, -1.0]])})
    # magnitudes [[2, 3], [.5, .5]] and [2, 2]: both outputs of fc1 count alike, its first brings five times as much
    once = left_of([vector], base, 0.5, 1)
    assert once.total(FC1).tolist() == [[0.0, 2.0], [-1.5, 0.0]]
    assert once.total(FC2).tolist() == [[1.0, 0.0]]
    # now [[1, 3], [.5, 1]] and [2, 3]: the second output counts so much more that 1.5 there beats 2
    twice = left_of([vector], base, 0.5, 2)
    assert twice.total(FC1).tolist() == [[0.0, 0.0], [-1.5, 0.0]]
    assert twice.total(FC2).tolist() == [[1.0, 0.0]]


def slow_masks(base: Mapping[str, Tensor], deltas: Sequence[Mapping[str, Tensor]], share: float, rounds: int) -> list:
    """As the definition has it, by autograd through the whole product."""
    chain = [name for layer in chain_of(base) for name in layer]
    masks = [{name: torch.ones_like(base[name], dtype=torch.bool) for name in chain} for _ in deltas]
    for _ in range(rounds):
        total = {n: sum(d[n] * m[n] for d, m in zip(deltas, masks, strict=True)) for n in chain}
        after = []
        for delta, mask in zip(deltas, masks, strict=True):
            moved = {name: (delta[name] * mask[name]).requires_grad_() for name in chain}
            size = {name: (base[name] + moved[name]).abs().flatten(1) for name in chain}
            signal = size["vision_model.embeddings.patch_embedding.weight"].sum(dim=1)
            for layer in range(2):
                block = BLOCK.format(layer)
                queries, keys, values, out = (
                    size[f"{block}self_attn.{role}_proj.weight"] for role in ["q", "k", "v", "out"]
                )
                signal = out @ (queries @ signal + keys @ signal + values @ signal)
                signal = size[f"{block}mlp.fc2.weight"] @ size[f"{block}mlp.fc1.weight"] @ signal
            (size["visual_projection.weight"] @ signal).sum().backward()
            saliency = {name: (moved[name].grad * total[name]).abs() for name in chain}
            kept = {}
            for name in chain:
                ranked = saliency[name][mask[name]].sort(descending=True).values
                kept[name] = mask[name] & (saliency[name] >= ranked[max(1, round((1 - share) * len(ranked))) - 1])
            after.append(kept)
        masks = after
    return masks


@pytest.mark.parametrize("rounds", [1, 4])
def test_saliency_agrees_with_autograd_through_the_whole_tower(rounds: int) -> None:
    base, deltas = weights(), [weights(seed=seed) for seed in (1, 2, 3)]
    left = left_of([TaskVector(delta) for delta in deltas], base, 0.3, rounds)
    for index, masks in enumerate(slow_masks(base, deltas, 0.3, rounds)):
        for name, mask in masks.items():
            assert torch.equal(left.mask(index, name), mask), name


def test_a_deep_tower_stays_within_float32() -> None:
    chain = [[str(layer)] for layer in range(200)]
    sides = signals_of(lambda name: torch.full((64, 64), 100.0), chain)
    assert all(torch.equal(signal, torch.ones(64)) for side in sides for signal in side.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "clip"
    tiny_clip().save_pretrained(path)
    return path


def test_merge_reads_the_base_and_keeps_a_tenth_of_each_matrix(folder: Path) -> None:
    vectors = [tiny_vector(seed=seed) for seed in (1, 2)]
    merged, turned = (merge(order, "sa_merging", base=str(folder)) for order in (vectors, vectors[::-1]))
    alone = merge(vectors[:1], "sa_merging", base=str(folder))
    total = merge(vectors, "task_arithmetic")
    layers = {name for layer in chain_of(merged.deltas) for name in layer}
    assert len(layers) == 13
    for name, delta in merged.deltas.items():
        torch.testing.assert_close(delta, turned.deltas[name])
        if name not in layers:
            torch.testing.assert_close(delta, total.deltas[name])
        else:
            share = float((alone.deltas[name] != 0).double().mean())
            assert share == pytest.approx(0.8**10, abs=0.002)
            assert float((delta != 0).double().mean()) <= 2.05 * 0.8**10
    assert merged.info.settings == {"dropped": 0.2, "rounds": 10, "base": str(folder)}


def test_no_round_returns_the_sum_and_needs_no_base() -> None:
    vectors = [tiny_vector(seed=seed) for seed in (1, 2)]
    merged, total = merge(vectors, "sa_merging", rounds=0), merge(vectors, "task_arithmetic")
    for name, delta in merged.deltas.items():
        torch.testing.assert_close(delta, total.deltas[name])


def test_another_base_or_none_is_refused(folder: Path, tmp_path: Path) -> None:
    vectors = [tiny_vector(tiny_clip(seed=5))]
    with pytest.raises(BaseMismatchError, match="made from another base"):
        merge(vectors, "sa_merging", base=str(folder), output_dir=tmp_path / "out")
    with pytest.raises(CheckpointError, match="does not tell its base; pass base="):
        merge(vectors, "sa_merging")
    odd = {FC1: torch.ones(2, 3), FC2: torch.ones(2, 4)}
    with pytest.raises(CheckpointError, match=r"fc2\.weight' does not fit the layer before it"):
        Survivors([TaskVector(odd)]).drop(odd, 0.5)
    for settings in ({"dropped": 1.0}, {"dropped": -0.1}, {"rounds": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(settings))} must be"):
            merge(vectors, "sa_merging", base=str(folder), **settings)
    assert not list(tmp_path.iterdir())
