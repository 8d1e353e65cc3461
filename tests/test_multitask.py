"""Vectors of several tasks as one artefact: by the papers' formulae, packed on disk and on the Hub, damage refused."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_taskvec import TaskVector, VectorInfo, evaluate, list_vectors, merge
from hf_taskvec.cards import push_multi_task, render_multi_task_card
from hf_taskvec.cards.render import render_vector_card
from hf_taskvec.errors import (
    BaseMismatchError,
    CheckpointError,
    IncompatibleVectorsError,
    NonFiniteError,
    UnknownNameError,
)
from hf_taskvec.evaluation.certificate import certify as certify_vector
from hf_taskvec.evaluation.intervals import paired_accuracy_difference
from hf_taskvec.multitask import METHODS, MultiTaskVector, certify, choose_strengths, get_pack_method, pack
from hf_taskvec.multitask.files import CONFIG_NAME, WEIGHTS_NAME
from hf_taskvec.weights.packed import Packed, in_factors, in_levels
from tests.bases import colours_task, tiny_base
from tests.helpers import equal_vectors, tiny_clip
from tests.hub_server import HubServer
from tests.test_command import answer, call, refusal

SHAPES = {"a.weight": (12, 8), "a.bias": (12,), "conv": (4, 3, 2, 2), "scale": ()}
TASKS = ("birds", "user/cars", "texts")


def vectors(count: int = 3, **kinds: Any) -> list[TaskVector]:
    result = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        deltas = {name: torch.randn(shape, generator=generator) * 1e-3 for name, shape in SHAPES.items()}
        info = VectorInfo(kind="fine-tuned", base="user/base", task=[*TASKS, "more"][seed], **kinds)
        result.append(TaskVector(deltas, info))
    return result


def flat(vector: TaskVector) -> Tensor:
    """All entries, one after the other: what the authors' codes work on."""
    return torch.cat([vector[name].reshape(-1) for name in SHAPES])


# -- parity with slow and obvious references --------------------------------------------------------------------------


def tall_reference(own: list[Tensor], index: int, strength: float) -> Tensor:
    merged = [sum(values) for values in zip(*(vector.tolist() for vector in own), strict=True)]
    delta = own[index].tolist()
    return torch.tensor([m if abs(d) >= strength * abs(m - d) else 0.0 for d, m in zip(delta, merged, strict=True)])


@pytest.mark.parametrize("strength", [0.2, 0.4, 0.6])
def test_tall_masks_are_the_papers(strength: float) -> None:
    whole = vectors()
    packed = pack(whole, "tall_masks", strength=strength)
    for index, task in enumerate(TASKS):
        expected = tall_reference([flat(vector) for vector in whole], index, strength)
        ours = flat(packed.for_task(task))
        assert torch.equal(ours != 0, expected != 0)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)


def test_where_its_bits_are_set_a_task_has_the_merge_bit_for_bit() -> None:
    whole = vectors()
    packed, merged = pack(whole, "tall_masks", of="tsv_m"), merge(whole, "tsv_m")
    for task in TASKS:
        one = packed.for_task(task)
        assert all(bool(((one[name] == merged[name]) | (one[name] == 0)).all()) for name in one)


def test_each_task_may_have_a_strength_of_its_own() -> None:
    whole = vectors()
    packed = pack(whole, "tall_masks", strengths=[0.2, 0.4, 0.6])
    for index, (task, strength) in enumerate(zip(TASKS, (0.2, 0.4, 0.6), strict=True)):
        expected = tall_reference([flat(vector) for vector in whole], index, strength)
        assert torch.equal(flat(packed.for_task(task)) != 0, expected != 0)


def test_emr_is_the_papers() -> None:
    own = [flat(vector) for vector in vectors()]
    packed = pack(vectors(), "emr")
    columns = list(zip(*(vector.double().tolist() for vector in own), strict=True))
    elected = [math.copysign(1, sum(column)) if sum(column) else 0.0 for column in columns]
    unified = [
        sign * max([abs(value) for value in column if value * sign > 0], default=0.0)
        for sign, column in zip(elected, columns, strict=True)
    ]
    for index, task in enumerate(TASKS):
        masked = [value if column[index] * value > 0 else 0.0 for value, column in zip(unified, columns, strict=True)]
        factor = sum(abs(column[index]) for column in columns) / sum(map(abs, masked))
        assert packed.parts[task].factor == pytest.approx(factor, rel=1e-5)
        torch.testing.assert_close(flat(packed.for_task(task)), factor * torch.tensor(masked), rtol=1e-4, atol=1e-9)


def test_tsv_keeps_the_leading_directions_of_matrices_and_the_rest_in_full() -> None:
    whole = vectors()
    packed = pack(whole, "tsv_compress")
    for vector, task in zip(whole, TASKS, strict=True):
        one = packed.for_task(task)
        left, values, right = torch.linalg.svd(vector["a.weight"].double(), full_matrices=False)
        expected = (left[:, :2] * values[:2] @ right[:2]).float()  # of 8, a third: 2
        torch.testing.assert_close(one["a.weight"], expected, rtol=1e-4, atol=1e-8)
        assert all(torch.equal(one[name], vector[name]) for name in SHAPES if name != "a.weight")


def test_twin_is_a_scaled_merge_plus_the_leading_directions_of_the_rest() -> None:
    whole = vectors()
    packed = pack(whole, "twin", scaling=0.3, rank=0.25, dtype="float32")
    merged = merge(whole, scaling=0.3)
    for vector, task in zip(whole, TASKS, strict=True):
        one = packed.for_task(task)
        for name, rank in (("a.weight", 2), ("conv", 1)):
            expected = merged[name] + in_factors(vector[name] - merged[name], rank, dtype=torch.float32).delta()
            torch.testing.assert_close(one[name], expected, rtol=1e-4, atol=1e-8)
        torch.testing.assert_close(one["a.bias"], vector["a.bias"], rtol=1e-4, atol=1e-8)
    lossless = pack(whole, "twin", rank=1.0, dtype="float32")
    assert max(own.told["error"] for own in lossless.parts.values()) < 1e-5


def tvq_reference(delta: Tensor, bits: int) -> Tensor:
    """The paper's asymmetric levels of a whole tensor, its zero point clamped."""
    most, values = 2**bits - 1, delta.double()
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    step = (high - low) / most
    zero = min(max(round(-low / step), 0), most)
    return (((values / step).round() + zero).clamp(0, most) - zero) * step


def test_levels_of_a_whole_tensor_are_the_papers() -> None:
    for vector in vectors():
        for bits in (2, 3, 4, 8):
            item = in_levels(vector["a.weight"], bits, per="tensor", clip=False)
            torch.testing.assert_close(
                item.delta().double(), tvq_reference(vector["a.weight"], bits), rtol=1e-4, atol=1e-8
            )


def test_rtvq_quantises_the_offset_from_the_quantised_mean() -> None:
    whole = vectors()
    packed = pack(whole, "rtvq", per="tensor", clip=False)
    base = tvq_reference(torch.stack([vector["a.weight"] for vector in whole]).mean(dim=0), 3)
    for vector, task in zip(whole, TASKS, strict=True):
        expected = base + tvq_reference(vector["a.weight"] - base, 2)
        torch.testing.assert_close(packed.for_task(task)["a.weight"].double(), expected, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(packed.for_task(task)["a.bias"], vector["a.bias"])


def test_a_basis_of_as_many_atoms_as_vectors_loses_nothing_and_a_smaller_one_is_a_projection() -> None:
    whole = vectors()
    rows = torch.stack([flat(vector) for vector in whole]).double()
    for atoms in (1, 2, 3):
        packed = pack(whole, "basis", atoms=atoms)
        left, values, right = torch.linalg.svd(rows, full_matrices=False)
        expected = left[:, :atoms] * values[:atoms] @ right[:atoms]
        ours = torch.stack([flat(packed.for_task(task)) for task in TASKS]).double()
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-8)
    assert pack(whole, "basis").share == pytest.approx(1 + 3 * 4 / (4 * whole[0].num_entries))


def test_a_basis_of_equal_vectors_has_atoms_of_nothing() -> None:
    one, *_ = vectors()
    packed = pack({"a": one, "b": one}, "basis", atoms=2)
    torch.testing.assert_close(flat(packed.for_task("b")), flat(one), rtol=1e-4, atol=1e-9)


# -- every way to pack ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_every_way_to_pack_comes_back_bit_for_bit_and_tells_what_it_lost(method: str, tmp_path: Path) -> None:
    whole = vectors(base_hashes={name: name for name in SHAPES})
    packed = pack(whole, method, output_dir=tmp_path / "packed")
    again = MultiTaskVector.from_pretrained(tmp_path / "packed", verify=True)
    assert again.tasks == TASKS
    stored = load_file(tmp_path / "packed" / WEIGHTS_NAME)
    assert again.num_bytes == sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    fresh = pack(whole, method)
    for vector, task in zip(whole, TASKS, strict=True):
        one = again.for_task(task)
        assert equal_vectors(one, fresh.for_task(task))
        lost = float((flat(one).double() - flat(vector).double()).norm() / flat(vector).double().norm())
        assert one.info.compression is not None
        assert one.info.compression["error"] == pytest.approx(lost, rel=1e-5, abs=1e-7)
        assert one.info.task == task
        assert one.info.base_fingerprint == vector.info.base_fingerprint
    assert packed.info.method == method
    assert f"{method}, ".replace("_", "\\_") in render_vector_card(again.for_task("texts").info, repo_id="user/texts")


@pytest.mark.parametrize("method", METHODS)
def test_one_task_alone_and_tiny_parameters_are_packed(method: str) -> None:
    deltas = {"w": torch.tensor([[2.0, -1.0]]), "empty": torch.zeros(0, 3), "one": torch.tensor(3.0)}
    one = pack({"a": TaskVector(deltas)}, method).for_task("a")
    assert {name: one[name].shape for name in one} == {name: delta.shape for name, delta in deltas.items()}
    if method == "twin":
        assert one["one"] == 3.0
    else:
        torch.testing.assert_close(one["one"], deltas["one"])


@pytest.mark.parametrize("method", ["tall_masks", "emr"])
def test_masks_take_one_bit_an_entry(method: str) -> None:
    wide = {f"{task}": TaskVector({"w": torch.randn(64, 128)}) for task in range(8)}
    packed = pack(wide, method)
    assert packed.share == 1 + 8 / 32
    assert pack(wide, method, shared="bfloat16").share == 0.5 + 8 / 32
    one = pack(wide, method, shared="int8").for_task("3")["w"]
    exact = packed.for_task("3")["w"]
    assert torch.equal(one[exact == 0], exact[exact == 0])
    torch.testing.assert_close(one, exact, rtol=0, atol=0.05)


def test_one_task_is_decoded_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(vectors(), "rtvq", output_dir=tmp_path)
    decoded, decode = list[Packed](), Packed.delta
    packed = MultiTaskVector.from_pretrained(tmp_path)
    monkeypatch.setattr(Packed, "delta", lambda self: decoded.append(self) or decode(self))
    _ = packed.for_task("texts")["conv"]
    own = [packed.shared.items_packed["conv"], packed.parts["texts"].deltas.items_packed["conv"]]
    assert [id(item) for item in decoded] == [id(item) for item in own]


def test_merges_read_the_vectors_of_an_artefact_as_they_lie() -> None:
    packed = pack(vectors(), "emr")
    lazy = [packed.for_task(task) for task in TASKS]
    assert equal_vectors(merge(lazy, "ties"), merge([one.to("float32") for one in lazy], "ties"))


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_packed_is_refused_by_name() -> None:
    whole = vectors()
    with pytest.raises(UnknownNameError, match="Did you mean 'emr'"):
        pack(whole, "emrr")
    with pytest.raises(UnknownNameError, match="Did you mean 'strength'"):
        pack(whole, "tall_masks", strenght=0.4)
    with pytest.raises(UnknownNameError, match="packing 'int5'"):
        pack(whole, "emr", shared="int5")
    for settings in ({"strength": 0.0}, {"strength": -1.0}, {"strengths": [0.4, 0.4, 0.0]}):
        with pytest.raises(ValueError, match="strength must be positive"):
            pack(whole, "tall_masks", **settings)
    with pytest.raises(ValueError, match="strengths must be 3 numbers, one a vector, got 2"):
        pack(whole, "tall_masks", strengths=[0.4, 0.4])
    with pytest.raises(ValueError, match="rank must be in"):
        pack(whole, "twin", rank=2.0)
    with pytest.raises(UnknownNameError, match="number of bits '5'"):
        pack(whole, "rtvq", bits=5)
    with pytest.raises(ValueError, match="atoms must be from 1 to 3"):
        pack(whole, "basis", atoms=4)
    with pytest.raises(ValueError, match="two vectors are of task 'birds'"):
        pack([whole[0], whole[0]], "emr")
    with pytest.raises(ValueError, match="vector 0 does not tell its task"):
        pack([TaskVector({"w": torch.ones(2)})], "emr")
    with pytest.raises(UnknownNameError, match=r"no vector of task 'bird'\. Did you mean 'birds'"):
        pack(whole, "emr").for_task("bird")
    with pytest.raises(NonFiniteError, match="'w' of vector 0"):
        pack({"a": TaskVector({"w": torch.tensor([torch.nan])})}, "tall_masks")


def test_vectors_of_another_base_and_other_parameters_are_refused() -> None:
    left, right = vectors(2)
    known = [
        dataclasses.replace(vector, info=dataclasses.replace(vector.info, base_hashes=dict.fromkeys(SHAPES, number)))
        for vector, number in ((left, "1"), (right, "2"))
    ]
    with pytest.raises(BaseMismatchError):
        pack(known, "tall_masks")
    with pytest.raises(IncompatibleVectorsError):
        pack({"a": left, "b": TaskVector({"other": torch.ones(2)})}, "tall_masks")


def test_parts_of_other_vectors_and_more_tasks_than_parts_are_refused() -> None:
    packed = pack(vectors(), "tall_masks")
    other = pack({task: TaskVector({"w": torch.ones(3, 3)}) for task in TASKS}, "tall_masks")
    with pytest.raises(IncompatibleVectorsError, match="'w' is in the part of 'birds' but not in what is shared"):
        dataclasses.replace(packed, parts=other.parts)
    with pytest.raises(IncompatibleVectorsError, match="of 3 vectors and holds the parts of 2 tasks"):
        dataclasses.replace(packed, parts={task: packed.parts[task] for task in TASKS[:2]})
    with pytest.raises(IncompatibleVectorsError, match="has mask for what is sum"):
        dataclasses.replace(packed, combine="sum")
    with pytest.raises(IncompatibleVectorsError, match="not one coefficient for each"):
        dataclasses.replace(packed, combine="span")


def test_an_outlier_that_ruins_the_levels_is_told(caplog: pytest.LogCaptureFixture) -> None:
    delta = torch.randn(30, 50, generator=torch.Generator().manual_seed(0)) * 1e-3
    delta[3, 4] = 1.0
    with caplog.at_level(logging.WARNING):
        pack({"a": TaskVector({"w": delta})}, "rtvq", per="tensor", clip=False, base_bits=4)
    assert "'w': 99.9 % of its entries become 0" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        pack({"a": TaskVector({"w": delta})}, "rtvq", base_bits=4)
    assert not caplog.text


def test_constants_are_packed_exactly() -> None:
    deltas = {"zero": torch.zeros(3, 4), "same": torch.full((3, 4), 0.25)}
    one = pack({"a": TaskVector(deltas), "b": TaskVector({**deltas, "same": torch.full((3, 4), -0.25)})}, "rtvq")
    assert torch.equal(one.for_task("a")["zero"], deltas["zero"])
    torch.testing.assert_close(one.for_task("b")["same"], torch.full((3, 4), -0.25))


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("0/a.weight/codes", torch.zeros(1, 11, dtype=torch.uint8), "bit field of .* truncated"),
        ("2/conv/codes", None, "has the parts  instead of codes"),
        ("3/conv/codes", torch.zeros(1, 6, dtype=torch.uint8), "of which multi_task_vector_config.json tells nothing"),
        ("shared/conv/values", torch.zeros(4, 3, 2), r"has \(4, 3, 2\) values"),
        ("1/more/codes", torch.zeros(1, 6, dtype=torch.uint8), "its configuration tells nothing"),
    ],
)
def test_damaged_files_are_refused(key: str, change: Tensor | None, message: str, tmp_path: Path) -> None:
    pack(vectors(), "tall_masks", output_dir=tmp_path)
    tensors: dict[str, Tensor | None] = {**load_file(tmp_path / WEIGHTS_NAME), key: change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, tmp_path / WEIGHTS_NAME, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        MultiTaskVector.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config["tasks"].append({**config["tasks"][0], "name": "more"}), "tells of 4 tasks, .* lacks 1"),
        (lambda config: config["tasks"].pop(), "tells nothing"),
        (lambda config: config["tasks"][0].update(name="texts"), "names a task twice"),
        (lambda config: config["tasks"][0].pop("factor"), "does not tell how the part of 'birds' is read"),
        (lambda config: config.update(combine="product"), "no way to combine 'product'"),
        (lambda config: config.update(schema_version=9), "pip install --upgrade"),
        (lambda config: config.update(library="other"), "is no configuration of hf_taskvec"),
        (lambda config: config["info"]["parents"].pop(), "tells of 2 vectors and holds the parts of 3"),
        (lambda config: config["tasks"][0]["packed"].pop("conv"), "its configuration tells nothing"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    pack(vectors(), "tall_masks", output_dir=tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    change(config)
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        MultiTaskVector.from_pretrained(tmp_path)


def test_bits_that_changed_are_found_when_they_are_verified(tmp_path: Path) -> None:
    pack(vectors(), "tall_masks", output_dir=tmp_path)
    weights = bytearray((tmp_path / WEIGHTS_NAME).read_bytes())
    weights[-1] ^= 1
    (tmp_path / WEIGHTS_NAME).write_bytes(weights)
    with pytest.raises(CheckpointError, match="not those that its configuration was written for"):
        MultiTaskVector.from_pretrained(tmp_path, verify=True)


# -- on a base --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> dict[str, TaskVector]:
    """Vectors of the tiny base by task, `colours` among them."""
    base, result = tiny_base(), {}
    names = {name: weight.detach() for name, weight in base.model.named_parameters()}
    for seed, task in enumerate(("colours", "shades")):
        generator = torch.Generator().manual_seed(seed)
        moved = {name: weight.clone() for name, weight in names.items()}
        for name in moved:
            if name.startswith("vision_model"):
                moved[name] += 0.2 * torch.randn(moved[name].shape, generator=generator)
        info = VectorInfo(kind="fine-tuned", base="user/tiny", task=task)
        result[task] = TaskVector.from_weights(names, moved, info=info)
    return result


def test_evaluate_gives_each_task_its_own_weights(real: dict[str, TaskVector]) -> None:
    base, task = tiny_base(), colours_task()
    renamed = dataclasses.replace(task, name="shades")
    packed = pack(real, "tsv_compress", rank=1.0)
    report = evaluate(packed.apply_to(base), [task, renamed])
    own = [evaluate(real[name].apply_to(base), task).accuracy for name in ("colours", "shades")]
    assert [result.accuracy for result in report.results] == pytest.approx(own)
    assert own[0] != own[1]
    with pytest.raises(UnknownNameError, match="no model for task 'birds'"):
        evaluate(packed.apply_to(base), [task, dataclasses.replace(task, name="birds")])
    with pytest.raises(TypeError, match="add it to its base first"):
        evaluate(packed, task)  # type: ignore[arg-type]


def test_another_base_is_refused(real: dict[str, TaskVector]) -> None:
    other = dataclasses.replace(tiny_base(), model=tiny_clip())
    with pytest.raises((BaseMismatchError, IncompatibleVectorsError)):
        pack(real, "emr").apply_to(other).for_task("colours")
    model = torch.nn.Module.__new__(type(tiny_base().model))
    model.__init__(tiny_base().model.config)  # type: ignore[misc]
    with pytest.raises(BaseMismatchError, match="has other values"):
        pack(real, "emr").apply_to(dataclasses.replace(tiny_base(), model=model)).for_task("colours")


def test_what_packing_costs_is_certified_with_its_interval(real: dict[str, TaskVector], tmp_path: Path) -> None:
    base, task = tiny_base(), colours_task()
    packed = certify(base, pack(real, "emr"), real, task)
    packed.save_pretrained(tmp_path)
    told = MultiTaskVector.from_pretrained(tmp_path).for_task("colours").info.compression
    assert told is not None
    accuracies = [evaluate(one.apply_to(base), task).accuracy for one in (packed.for_task("colours"), real["colours"])]
    assert told["accuracy"]["difference"] == pytest.approx(accuracies[0] - accuracies[1])
    assert told["accuracy"]["low"] <= told["accuracy"]["difference"] <= told["accuracy"]["high"]
    assert "accuracy on colours (test)" in render_multi_task_card(packed, repo_id="user/packed")
    assert "not measured" in render_multi_task_card(packed, repo_id="user/packed")  # of the other task
    few = certify_vector(base, real["colours"].compress("int2"), real["colours"], task)
    few.save_pretrained(tmp_path / "few")
    assert "points \\[" in render_vector_card(TaskVector.from_pretrained(tmp_path / "few").info, repo_id="user/few")
    with pytest.raises(ValueError, match="not compressed"):
        certify_vector(base, real["colours"], real["colours"], task)


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    truth, covered, runs = 0.1, 0, 400
    for _ in range(runs):
        draws = torch.rand(200, generator=generator)
        left, right = (draws < 0.9).tolist(), (draws < 0.8).tolist()
        flips = torch.rand(200, generator=generator) < 0.05
        right = [bool(value) != bool(flip) for value, flip in zip(right, flips, strict=True)]
        expected = 0.9 - (0.8 * 0.95 + 0.2 * 0.05)
        interval = paired_accuracy_difference(left, right)
        covered += interval.low <= expected <= interval.high
    assert truth < expected
    assert 0.92 <= covered / runs <= 0.98


def test_strengths_are_those_that_validation_data_choose(real: dict[str, TaskVector]) -> None:
    base, task = tiny_base(), colours_task()
    tried = [0.2, 2.0, 50.0]
    (chosen,) = choose_strengths(base, {"colours": real["colours"]}, task, tried=tried)
    assert chosen == 0.2  # of one vector every mask is whole
    strengths = choose_strengths(base, real, [task, dataclasses.replace(task, name="shades")], tried=tried)
    for value in tried:
        models = pack(real, "tall_masks", strength=value).apply_to(base)
        best = pack(real, "tall_masks", strengths=strengths).apply_to(base)
        tasks = [task, dataclasses.replace(task, name="shades")]
        scores = [[r.accuracy for r in evaluate(m, tasks, split="validation").results] for m in (best, models)]
        assert all(a >= b for a, b in zip(*scores, strict=True))


# -- Hub and command --------------------------------------------------------------------------------------------------


def test_an_artefact_goes_to_the_hub_and_back_bit_for_bit(hub: HubServer, real: dict[str, TaskVector]) -> None:
    hub.store.create("model", "user/tiny")
    packed = pack(real, "tall_masks")
    report = evaluate(packed.apply_to(tiny_base()), colours_task(), individual={"colours": 0.9})
    url = push_multi_task(packed, "user/packed", report=report, token="write-user", licence="mit")
    assert "/user/packed/commit/" in url
    pulled = MultiTaskVector.from_pretrained("user/packed")
    assert all(equal_vectors(pulled.for_task(task), packed.for_task(task)) for task in real)
    assert pulled.for_task("colours").info.repo_id == "user/packed"
    card = ModelCard.load("user/packed")
    assert "multi-task-vector" in card.data.tags
    assert 'packed.for_task("colours")' in card.content
    assert "90.0" in card.content
    assert [entry.repo_id for entry in list_vectors()] == []  # it is no vector
    (entry,) = list_vectors(kind="multi-task", task="colours")
    assert (entry.repo_id, entry.kind, entry.tasks) == ("user/packed", "multi-task", tuple(real))
    assert list_vectors(kind="any") == [entry]
    with pytest.raises(CheckpointError, match="holds no task vector"):
        TaskVector.from_pretrained("user/packed")
    with pytest.raises(TypeError, match="pack"):
        push_multi_task(real["colours"], "user/packed")  # type: ignore[arg-type]
    repository = hub.store.get("model", "user/packed")
    weights = bytearray(hub.store.blob(repository.head.files[WEIGHTS_NAME].sha256).read_bytes())
    weights[-1] ^= 1
    entry = hub.store.entry(hub.store.add_blob(bytes(weights)), lfs=True)
    hub.store.write(repository, {WEIGHTS_NAME: entry}, title="damage")
    with pytest.raises(CheckpointError, match="not those that"):
        MultiTaskVector.from_pretrained("user/packed")


def test_an_artefact_of_a_base_that_gets_another_name_tells_it_for_every_task(
    hub: HubServer, real: dict[str, TaskVector], caplog: pytest.LogCaptureFixture
) -> None:
    packed = pack(real, "tall_masks")
    info = dataclasses.replace(packed.info, base="out/base", base_revision="c" * 40)
    hub.store.create("model", "user/tiny")
    push_multi_task(dataclasses.replace(packed, info=info), "user/packed", token="write-user", base_name="user/tiny")
    pulled = MultiTaskVector.from_pretrained("user/packed")
    for told in (pulled.info, pulled.for_task("colours").info):
        assert (told.base, told.base_revision) == ("user/tiny", None)
    assert "its base" not in caplog.text
    unknown = dataclasses.replace(packed, info=dataclasses.replace(info, base_revision=None))
    push_multi_task(unknown, "user/packed", token="write-user")
    assert "The published vectors tell 'out/base' as their base" in caplog.text


def test_the_command_knows_artefacts(hub: HubServer, tmp_path: Path, real: dict[str, TaskVector]) -> None:
    base = tiny_base()
    base.save_pretrained(tmp_path / "base")
    for task, vector in real.items():
        vector.save_pretrained(tmp_path / task)
    packed = tmp_path / "packed"
    argv = ("pack", tmp_path / "colours", tmp_path / "shades", "--method", "emr", "-o", packed)
    told = answer(*argv)
    assert [row["task"] for row in told["tasks"]] == ["colours", "shades"]
    assert "choose another --output-dir" in refusal(*argv)
    assert answer("info", packed)["method"] == "emr"
    assert "say which by --task: colours, shades" in refusal("apply", packed, "--base", tmp_path / "base")
    answer("apply", packed, "--task", "shades", "--base", tmp_path / "base", "-o", tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "--task is for vectors of several tasks" in refusal("apply", tmp_path / "colours", "--task", "colours")
    data = colours_task().dataset
    report = answer(
        "evaluate", "colours", "--vector", packed, "--base", tmp_path / "base", "--data-dir", Path(data).parent
    )
    assert (
        report["mean"]["accuracy"]
        == evaluate(MultiTaskVector.from_pretrained(packed).apply_to(base), colours_task()).accuracy
    )
    token = {"HF_TOKEN": "write-user"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in token.items():
            patch.setenv(name, value)
        assert "/user/packed/commit/" in answer("push", packed, "user/packed")["url"]
        assert "no one checkpoint" in refusal("push", packed, "user/packed", "--checkpoint", "--scaling", "1")
    assert [(row["repo_id"], row["kind"]) for row in answer("list")] == [("user/packed", "multi-task")]
    assert call("list", "--kind", "vector", "-q").stdout.split() == []
    commit = hub.store.get("model", "user/packed").head.id
    assert call("pull", "user/packed", "-q").stdout == f"user/packed@{commit}\n"
    assert call("info", "user/packed", "-q").stdout == "vectors of several tasks\n"
    assert answer("pull", "user/packed", "-o", tmp_path / "pulled")["method"] == "emr"
    assert MultiTaskVector.from_pretrained(tmp_path / "pulled").tasks == ("colours", "shades")


def test_every_way_to_pack_says_what_it_does() -> None:
    for name in METHODS:
        assert get_pack_method(name).summary.endswith(".")
