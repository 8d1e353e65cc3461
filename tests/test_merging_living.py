"""Living merges: what was added can be taken out again, in any order."""

from __future__ import annotations

import random

import pytest
import torch

from hf_taskvec import TaskVector, merge
from hf_taskvec.errors import IncompatibleVectorsError
from hf_taskvec.merging.living import LivingMerge
from tests.measured import made_up
from tests.test_merging_quadratic import SHAPES, check_close, seen, vectors


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_a_living_merge_is_regmean_in_any_of_twenty_orders(ridge: float) -> None:
    four, statistics = vectors(4), seen(4)
    expected = merge(four[:3], "regmean", statistics=statistics[:3], shrink=1.0, ridge=ridge)
    for order in range(20):
        events = [("add", index) for index in range(4)]
        random.Random(order).shuffle(events)
        events.insert(random.Random(order).randint(events.index(("add", 3)) + 1, 4), ("remove", 3))
        living = LivingMerge()
        for verb, index in events:
            living = getattr(living, verb)(four[index], statistics[index])
        check_close(living.vector(ridge=ridge), expected)
        assert {info.task for info in living.infos} == {"task0", "task1", "task2"}


def test_its_size_does_not_grow_with_the_vectors() -> None:
    living, sizes = LivingMerge(), []
    for vector, statistics in zip(vectors(5), seen(5), strict=True):
        living = living.add(vector, statistics)
        tensors = (*living.crossed.values(), *living.squares.values())
        sizes.append(sum(tensor.numel() for tensor in tensors))
    assert len(set(sizes)) == 1


def test_adding_returns_a_new_value() -> None:
    one = LivingMerge().add(vectors(1)[0], seen(1)[0])
    before = {name: tensor.clone() for name, tensor in one.crossed.items()}
    one.add(vectors(2)[1], seen(2)[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in one.crossed.items())
    merged = one.vector()
    assert merged.info.parents[0].task == "task0"
    check_close(merged, vectors(1)[0])


def test_what_does_not_belong_is_refused() -> None:
    pair, statistics = vectors(2), seen(2)
    living = LivingMerge().add(pair[0], statistics[0])
    with pytest.raises(ValueError, match="'task1' is not in this merge, which holds task0"):
        living.remove(pair[1], statistics[1])
    other = {"layers.0.fc1.weight": torch.ones(2, 12)}
    with pytest.raises(IncompatibleVectorsError, match="they differ"):
        living.add(TaskVector(other), made_up({name: delta.shape for name, delta in other.items()}))
    with pytest.raises(IncompatibleVectorsError, match="vector of 'task0'"):
        living.add(pair[0], statistics[1])
    with pytest.raises(ValueError, match="add one"):
        living.remove(pair[0], statistics[0]).vector()
    with pytest.raises(ValueError, match="ridge must be"):
        living.vector(ridge=-1.0)
    assert set(living.crossed) == set(SHAPES)
