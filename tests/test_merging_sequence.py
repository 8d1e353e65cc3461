"""Vectors merged one after another: against definitions written out in full, the batch methods, files and bad input."""

from __future__ import annotations

import itertools
import json
import logging
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_taskvec import TaskVector, VectorInfo, merge
from hf_taskvec.errors import (
    BaseMismatchError,
    CheckpointError,
    IncompatibleVectorsError,
    NonFiniteError,
    OutputExistsError,
    UnknownNameError,
)
from hf_taskvec.merging.continual import CONFIG_NAME, ContinualMerge
from hf_taskvec.merging.sequential import RULES

WEIGHT, BIAS = "vision_model.encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.0.mlp.fc1.bias"
POSITIONS = "vision_model.embeddings.position_embedding.weight"
SHAPES = {WEIGHT: (9, 6), BIAS: (9,), POSITIONS: (5, 6), "vision_model.embeddings.patch_embedding.weight": (4, 3, 2, 2)}


def vectors(count: int, *, seed: int = 0, ties: bool = False) -> list[TaskVector]:
    generator = torch.Generator().manual_seed(seed)
    result = []
    for index in range(count):
        deltas = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        if ties:
            deltas = {name: (2 * delta).round() / 2 for name, delta in deltas.items()}
        result.append(TaskVector(deltas, VectorInfo(task=f"task{index}", base_hashes={WEIGHT: "1"})))
    return result


def streamed(order: list[TaskVector], method: str) -> TaskVector:
    sequence = ContinualMerge(method)
    for vector in order:
        sequence = sequence.add(vector)
    return sequence.vector()


def check_close(left: TaskVector, right: TaskVector, *, tolerance: float = 1e-6) -> None:
    for name in left.deltas:
        torch.testing.assert_close(left.deltas[name], right.deltas[name], rtol=tolerance, atol=tolerance)


def authors_opcm(order: list[TaskVector], share: float) -> dict[str, Tensor]:
    """The method as its authors write it: whole bases, a factor that is divided out and put back at every step."""
    deltas = [{name: delta.double() for name, delta in vector.deltas.items()} for vector in order]
    norms = [torch.cat([delta.flatten() for delta in each.values()]).norm() for each in deltas]
    merged, factor = deltas[0], torch.ones(())
    for step, new in enumerate(deltas[1:], start=2):
        for name, delta in new.items():
            if name == WEIGHT:
                left, values, right = torch.linalg.svd(merged[name], full_matrices=True)
                count = next(k for k in range(1, len(values) + 1) if values[:k].sum() / values.sum() > share)
                inside = left.T @ delta @ right.T
                inside.diagonal().fill_(0)
                inside[:count, :count] = 0
                delta = left @ inside @ right
            merged = {**merged, name: factor * merged[name] + delta}
        norm = torch.cat([delta.flatten() for delta in merged.values()]).norm()
        mean = torch.stack(norms[:step]).mean()
        merged, factor = {name: delta * mean / norm for name, delta in merged.items()}, norm / mean
    return merged


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_opcm_is_the_definition_written_out_with_whole_bases(share: float) -> None:
    four = vectors(4)
    expected = authors_opcm(four, share) if share < 1 else None
    merged = merge(four, "opcm", share=share)
    if expected is not None:
        for name, delta in expected.items():
            torch.testing.assert_close(merged.deltas[name], delta.float(), rtol=1e-5, atol=1e-6)
    assert merged.norm() == pytest.approx(sum(vector.norm() for vector in four) / 4, rel=1e-5)


def test_what_opcm_adds_is_orthogonal_to_what_was_there() -> None:
    first, second = vectors(2)
    total = ContinualMerge("opcm").add(first).add(second).held[WEIGHT]
    before = first.deltas[WEIGHT].double()
    assert abs(float(((total - before) * before).sum())) < 1e-9 * float(before.norm() * total.norm()) + 1e-9


def nufilt_loss(entered: Tensor, held: Tensor, delta: Tensor, before: Tensor, own: Tensor, ridge: float) -> Tensor:
    filtered = held + delta @ (torch.eye(delta.shape[1], dtype=delta.dtype) - before @ before.T)
    adapter = entered - filtered
    losses = [(filtered + adapter - delta) @ own, adapter @ before, ridge**0.5 * adapter]
    return sum((loss.square().sum() for loss in losses), start=torch.zeros((), dtype=delta.dtype))


def test_nufilt_is_the_minimum_of_its_loss() -> None:
    first, second = vectors(2)
    entered = ContinualMerge("nufilt", {"filtered": 0.5, "own": 0.3, "ridge": 0.2}).add(first).add(second).held[WEIGHT]
    held, delta = first.deltas[WEIGHT].double(), second.deltas[WEIGHT].double()
    before, own = (torch.linalg.svd(matrix)[2].T[:, :count] for matrix, count in ((held, 3), (delta, 2)))
    entered = entered.clone().requires_grad_()
    loss = nufilt_loss(entered, held, delta, before, own, 0.2)
    (gradient,) = torch.autograd.grad(loss, entered)
    assert float(gradient.abs().max()) < 1e-9 * float(loss.detach() + 1)  # the loss is convex


def test_without_its_adapter_nufilt_leaves_the_answers_to_what_was_there_alone() -> None:
    first, second = vectors(2)
    merged = merge([first, second], "nufilt", filtered=0.5, own=0.0).deltas[WEIGHT]
    leading = torch.linalg.svd(first.deltas[WEIGHT])[2].T[:, :3]
    torch.testing.assert_close(merged @ leading, first.deltas[WEIGHT] @ leading, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["opcm", "nufilt", "magmax"])
def test_a_stream_is_the_batch_merge_in_the_same_order_bit_for_bit(method: str) -> None:
    four = vectors(4, ties=True)
    for order in ([0, 1, 2, 3], [2, 0, 3, 1]):
        chosen = [four[index] for index in order]
        batch, stream = merge(chosen, method), streamed(chosen, method)
        assert all(torch.equal(batch.deltas[name], stream.deltas[name]) for name in SHAPES)
        assert batch.info.parents == stream.info.parents
        assert batch.info.settings == stream.info.settings


@pytest.mark.parametrize("method", ["average", "task_arithmetic"])
def test_running_sums_are_the_batch_merge_up_to_rounding(method: str) -> None:
    check_close(streamed(vectors(5), method), merge(vectors(5), method))


@pytest.mark.parametrize("method", sorted(RULES))
def test_order_makes_a_difference_where_the_method_says_so(method: str) -> None:
    three = vectors(3, ties=True)
    results = [streamed(list(order), method).deltas[WEIGHT] for order in itertools.permutations(three)]
    apart = max(float((result - results[0]).abs().max()) for result in results)
    assert (apart > 1e-3) is (method in ("opcm", "nufilt"))


@pytest.mark.parametrize("method", sorted(RULES))
def test_one_vector_is_returned_as_it_is(method: str) -> None:
    check_close(streamed(vectors(1), method), vectors(1)[0])


@pytest.mark.parametrize("method", sorted(RULES))
def test_a_sequence_goes_on_from_its_files_bit_for_bit(method: str, tmp_path: Path) -> None:
    three = vectors(3)
    sequence = ContinualMerge(method)
    for vector in three:
        sequence.add(vector)  # a value: this one is thrown away
        sequence = sequence.add(vector)
        sequence.save_pretrained(tmp_path / "sequence")
        sequence = ContinualMerge.from_pretrained(tmp_path / "sequence")
    assert len(sequence) == 3
    assert sequence.tasks == ("task0", "task1", "task2")
    whole = streamed(three, method)
    assert all(torch.equal(sequence.vector().deltas[name], whole.deltas[name]) for name in SHAPES)
    assert sequence.vector().info.base_hashes == {WEIGHT: "1"}


def test_its_size_does_not_grow_with_the_vectors(tmp_path: Path) -> None:
    sequence, sizes, entries = ContinualMerge(), set(), set()
    for vector in vectors(5):
        sequence = sequence.add(vector)
        sequence.save_pretrained(tmp_path / "sequence")
        sizes.add((tmp_path / "sequence" / "sequence.safetensors").stat().st_size)
        entries.add(sum(tensor.numel() for tensor in sequence.held.values()))
    assert len(sizes) == len(entries) == 1


def test_an_empty_sequence_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no vector in this sequence; add one"):
        ContinualMerge().vector()
    with pytest.raises(ValueError, match="no vector in this sequence"):
        ContinualMerge().save_pretrained(tmp_path / "sequence")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="at least one vector"):
        merge([], "opcm")


def test_what_does_not_belong_is_refused() -> None:
    first, second = vectors(2)
    sequence = ContinualMerge().add(first)
    with pytest.raises(IncompatibleVectorsError, match="they differ"):
        sequence.add(TaskVector({WEIGHT: torch.ones(2, 6)}))
    with pytest.raises(BaseMismatchError):
        sequence.add(TaskVector(second.deltas, VectorInfo(task="task1", base_hashes={WEIGHT: "2"})))
    broken = {name: delta.clone() for name, delta in second.deltas.items()}
    broken[BIAS][0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"fc1\.bias.*task1"):
        sequence.add(TaskVector(broken, second.info))
    assert sequence.tasks == ("task0",)
    for method, settings, message in (
        ("ties", {}, "magmax"),
        ("opcm", {"shares": 0.5}, "'share'"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            ContinualMerge(method, settings)
    for method, settings in (
        ("opcm", {"share": 0.0}),
        ("nufilt", {"filtered": 1.5}),
        ("nufilt", {"ridge": float("nan")}),
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            ContinualMerge(method, settings)
        with pytest.raises(ValueError, match=next(iter(settings))):
            merge([first, second], method, **settings)


def test_a_vector_that_comes_twice_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = vectors(2)
    ContinualMerge("average").add(first).add(second).save_pretrained(tmp_path / "sequence")
    with caplog.at_level(logging.WARNING):
        again = ContinualMerge.from_pretrained(tmp_path / "sequence").add(first)
    assert "'task0' with this very provenance is in the sequence already" in caplog.text
    assert len(again) == 3


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sequence"
    ContinualMerge().add(vectors(1)[0]).save_pretrained(folder)
    whole = (folder / CONFIG_NAME).read_text()

    def changed(**entries: object) -> None:
        (folder / CONFIG_NAME).write_text(json.dumps({**json.loads(whole), **entries}))

    for entries, message in (
        ({"schema_version": 2}, "newer|upgrade"),
        ({"library": "other"}, "no configuration"),
        ({"norms": "much"}, "'norms' must be float"),
        ({"wide": "bfloat16"}, "'wide' must be"),
        ({"method": "ties"}, "ties"),
        ({"settings": {"share": 7}}, "share"),
        ({"info": {"kind": "strange"}}, "kind"),
        ({"further": 1}, "unknown entry 'further'"),
        ({"fingerprint": "0"}, "not those that"),
    ):
        changed(**entries)
        with pytest.raises(CheckpointError, match=message):
            ContinualMerge.from_pretrained(folder)
    (folder / CONFIG_NAME).write_text(whole)
    tensors = load_file(folder / "sequence.safetensors")
    save_file({**tensors, BIAS: tensors[BIAS] + 1}, folder / "sequence.safetensors")
    with pytest.raises(CheckpointError, match="not those that"):
        ContinualMerge.from_pretrained(folder)
    with pytest.raises(CheckpointError, match="holds no sequence"):
        ContinualMerge.from_pretrained(tmp_path)
    with pytest.raises(OutputExistsError):
        ContinualMerge().add(vectors(1)[0]).save_pretrained(tmp_path)


def test_magmax_of_any_shuffled_stream_is_the_batch_merge() -> None:
    six = vectors(6, ties=True)
    expected = merge(six, "magmax")
    for seed in range(5):
        order = random.Random(seed).sample(six, 6)
        assert all(torch.equal(streamed(order, "magmax").deltas[name], expected.deltas[name]) for name in SHAPES)
