"""Vectors in few bits: what they lose, that they stay packed wherever they lie, and that damage is refused."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hf_taskvec.cards.folder import render_folder_card
from hf_taskvec.errors import CheckpointError, NonFiniteError, UnknownNameError
from hf_taskvec.merging import merge
from hf_taskvec.vectors.compression import PACKINGS
from hf_taskvec.vectors.files import CONFIG_NAME
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.packed import BITS, Packed, in_factors, in_few_entries, in_levels, in_signs, packed, unpacked
from tests.helpers import equal_vectors, tiny_clip, tiny_vector

WEIGHTS = "task_vector.safetensors"


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1e-3


def error_of(item: Packed, delta: Tensor) -> float:
    return float((item.delta() - delta).norm() / delta.norm())


# -- bits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, *BITS])
@pytest.mark.parametrize("columns", [1, 7, 8, 9, 61])
def test_codes_come_back_from_their_bits(bits: int, columns: int) -> None:
    codes = torch.randint(0, 2**bits, (5, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    fields = packed(codes, bits)
    assert fields.shape[1] <= math.ceil(columns / 8) * bits
    assert torch.equal(unpacked(fields, bits, columns), codes.float())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(30, 41), (8, 3, 4, 4)])
def test_levels_are_within_a_step_and_keep_zeros(bits: int, shape: tuple[int, ...]) -> None:
    delta = random(*shape)
    delta.view(-1)[::3] = 0
    item = in_levels(delta, bits, clip=False)
    rows, decoded = delta.flatten(1), item.delta().flatten(1)
    step = (rows.amax(1) - rows.amin(1)) / (2**bits - 1)
    assert item.delta().shape == shape
    assert ((rows - decoded).abs() <= step.unsqueeze(1) * 1.0001).all()
    assert (decoded[rows == 0] == 0).all()


@pytest.mark.parametrize(("bits", "most"), [(8, 0.008), (4, 0.12), (3, 0.21), (2, 0.36)])
def test_a_clipped_range_never_loses_more_than_a_whole_one(bits: int, most: float) -> None:
    delta = random(40, 600)
    whole, clipped = (in_levels(delta, bits, clip=clip) for clip in (False, True))
    lost = [(item.delta() - delta).square().sum(1) for item in (whole, clipped)]
    assert (lost[1] <= lost[0] * 1.0001).all()
    assert error_of(clipped, delta) < most
    assert clipped.num_bytes < 4 * delta.numel() * (bits / 32 + 0.01)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("delta", [torch.zeros(3, 5), torch.full((3, 5), 0.3), torch.full((3, 5), -2.0), torch.eye(4)])
def test_rows_of_one_value_and_zeros_are_exact(bits: int, delta: Tensor) -> None:
    torch.testing.assert_close(in_levels(delta, bits).delta(), delta, rtol=1e-6, atol=0)  # no scale is 0 for others


def test_signs_and_their_error() -> None:
    delta = torch.tensor([[1.0, -3.0], [0.5, -0.5]])
    assert in_signs(delta).delta().tolist() == [[1.25, -1.25], [1.25, -1.25]]
    assert in_signs(delta, per="row").delta().tolist() == [[2.0, -2.0], [0.5, -0.5]]
    large = random(50, 60)
    expected = math.sqrt(1 - float(large.abs().mean() ** 2 / large.square().mean()))
    assert error_of(in_signs(large), large) == pytest.approx(expected, rel=1e-4)


def test_few_entries_and_few_directions() -> None:
    delta = random(40, 50)
    few = in_few_entries(delta, float(delta.abs().flatten().sort(descending=True).values[99])).delta()
    assert int(few.count_nonzero()) == 100
    torch.testing.assert_close(few[few != 0], delta[few != 0], rtol=1e-2, atol=0)
    values = torch.linalg.svdvals(delta)
    cut = in_factors(delta, 10, dtype=torch.float32)
    assert error_of(cut, delta) == pytest.approx(float(values[10:].norm() / values.norm()), rel=1e-4)


# -- vectors ----------------------------------------------------------------------------------------------------------


def vector(*, seed: int = 0) -> TaskVector:
    shapes = {"a.weight": (40, 30), "a.bias": (40,), "scale": (), "patch.weight": (8, 3, 4, 4), "none": (0, 4)}
    deltas = {name: random(*shape, seed=seed + index) for index, (name, shape) in enumerate(shapes.items())}
    return TaskVector(deltas, VectorInfo(task=f"task{seed}"))


@pytest.mark.parametrize("method", PACKINGS)
def test_a_compressed_vector_stays_packed_in_its_file_and_tells_what_it_lost(method: str, tmp_path: Path) -> None:
    whole = vector()
    few = whole.compress(method)
    few.save_pretrained(tmp_path)
    opened = TaskVector.from_pretrained(tmp_path, verify=True)
    assert equal_vectors(opened, few)
    assert opened.info == few.info
    told = opened.info.compression
    assert told is not None
    lost = math.sqrt(sum(float((few[n].double() - whole[n].double()).square().sum()) for n in whole)) / whole.norm()
    assert told["method"] == method
    assert told["error"] == pytest.approx(lost, rel=1e-6)
    stored = load_file(tmp_path / WEIGHTS)
    assert told["bytes"] == sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    for name in ("a.bias", "scale", "none"):
        assert torch.equal(few[name], whole[name])
    assert f"{method}, {told['share']:.1%} of the bytes" in render_folder_card(tmp_path, repo_id="user/few")


def test_an_unpacked_copy_is_an_ordinary_vector(tmp_path: Path) -> None:
    few = vector().compress("int4")
    few.save_pretrained(tmp_path / "a", dtype="float32")
    few.to("float32").save_pretrained(tmp_path / "b")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert set(load_file(folder / WEIGHTS)) == set(few)
        assert equal_vectors(TaskVector.from_pretrained(folder), few)
        assert TaskVector.from_pretrained(folder).info.compression == few.info.compression


def test_what_two_compressions_lost_is_told_together() -> None:
    once = vector().compress("int4")
    twice = once.compress("sparse", density=0.5)
    again = once.to("float32")
    lost = math.sqrt(sum(float((twice[name] - again[name]).square().sum()) for name in once)) / once.norm()
    assert twice.info.compression["error"] == pytest.approx(math.hypot(once.info.compression["error"], lost), rel=1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv_m", "dare", "wudi"])
def test_merging_reads_packed_files_as_it_reads_the_vectors_they_decode_to(method: str, tmp_path: Path) -> None:
    few = [vector(seed=seed).compress(packing) for seed, packing in ((0, "int3"), (10, "sign"), (20, "int3"))]
    for index, one in enumerate(few):
        one.save_pretrained(tmp_path / str(index))
    merged = merge([tmp_path / str(index) for index in range(3)], method, output_dir=tmp_path / "merged")
    assert equal_vectors(merged, merge([one.to("float32") for one in few], method))
    assert [parent.compression["method"] for parent in merged.info.parents] == ["int3", "sign", "int3"]


def test_opening_decodes_nothing_and_using_decodes_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector().compress("int2").save_pretrained(tmp_path)
    decoded, decode = [], Packed.delta
    monkeypatch.setattr(Packed, "delta", lambda self: decoded.append(tuple(self.shape)) or decode(self))
    opened = TaskVector.from_pretrained(tmp_path, verify=True)
    assert decoded == []
    _ = opened["a.weight"]
    assert decoded == [(40, 30)]


def test_a_base_takes_a_compressed_vector() -> None:
    base = tiny_clip()
    few = tiny_vector(base).compress("int8")
    moved = few.apply_to(base).vision_model.encoder.layers[0].mlp.fc1.weight
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    torch.testing.assert_close(moved, base.vision_model.encoder.layers[0].mlp.fc1.weight + few[name])
    assert few.info.base_hashes
    assert few.info.compression["error"] < 0.01


def test_an_outlier_that_ruins_a_matrix_is_told_and_rows_mend_it(caplog: pytest.LogCaptureFixture) -> None:
    delta = random(30, 50)
    delta[3, 4] = 1.0
    one = TaskVector({"w": delta})
    with caplog.at_level(logging.WARNING):
        ruined = one.compress("int4", per="tensor")
        assert "'w': 99.9 % of its entries become 0" in caplog.text
        caplog.clear()
        mended = one.compress("int4")
    assert not caplog.text
    rest = delta.clone()
    rest[3] = 0
    lost = [float((few["w"] * (rest != 0) - rest).norm() / rest.norm()) for few in (ruined, mended)]
    assert lost[0] > 0.9
    assert lost[1] < 0.15


def test_what_cannot_be_packed_is_refused_by_name() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'int8'"):
        vector().compress("int5")
    with pytest.raises(UnknownNameError, match="Did you mean 'clip'"):
        vector().compress("int4", clipp=True)
    with pytest.raises(UnknownNameError, match="Known: row, tensor"):
        vector().compress("int4", per="column")
    for settings in ({"density": 0.0}, {"density": 1.5}):
        with pytest.raises(ValueError, match="density must be in"):
            vector().compress("sparse", **settings)
    with pytest.raises(ValueError, match="clip must be true or false"):
        vector().compress("int2", clip=1)
    with pytest.raises(NonFiniteError, match="'w' has entries that float16 cannot hold"):
        TaskVector({"w": torch.full((2, 2), 1e6)}).compress("float16")
    with pytest.raises(NonFiniteError, match="'w' holds NaN"):
        TaskVector({"w": torch.tensor([[1.0, torch.nan]])}).compress("int8")


def damage(folder: Path, method: str, key: str, change: Tensor | None) -> None:
    vector().compress(method).save_pretrained(folder)
    tensors: dict[str, Tensor | None] = {**load_file(folder / WEIGHTS), key: change}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("method", "key", "change", "message"),
    [
        ("int4", "a.weight/codes", torch.zeros(40, 14, dtype=torch.uint8), "bit field of .* truncated"),
        ("int4", "a.weight/codes", torch.zeros(40, 15), "bit field of"),
        ("int4", "a.weight/scales", torch.ones(39), "one scale for each of 40 rows"),
        ("int4", "a.weight/scales", None, "has the parts codes, zeros instead of codes, scales, zeros"),
        ("sign", "a.weight/scales", torch.ones(1, dtype=torch.uint8), "parts that are not floating"),
        ("sign", "b.weight/scales", torch.ones(1), "configuration tells nothing"),
        ("svd", "a.weight/left", torch.ones(40, 3), r"factors of \(40, 3\)"),
        ("int4", "a.bias/values", torch.ones(41), r"has \(41,\) values"),
    ],
)
def test_damaged_files_are_refused(method: str, key: str, change: Tensor | None, message: str, tmp_path: Path) -> None:
    damage(tmp_path, method, key, change)
    with pytest.raises(CheckpointError, match=message):
        TaskVector.from_pretrained(tmp_path)


def test_a_bit_field_that_counts_otherwise_is_refused_when_it_is_used(tmp_path: Path) -> None:
    damage(tmp_path, "sparse", "a.weight/codes", torch.full((1, 150), 255, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="1200 bits set for 60 values"):
        _ = TaskVector.from_pretrained(tmp_path)["a.weight"]


@pytest.mark.parametrize("change", [{"codec": "zip"}, {"bits": 5}, {"shape": [-1]}, {"shape": "a"}, {"more": 1}])
def test_a_packing_that_is_not_known_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    vector().compress("int4").save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    config["packed"]["a.weight"] |= change
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"a\.weight"):
        TaskVector.from_pretrained(tmp_path)
