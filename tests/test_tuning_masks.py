"""Masks over singular directions (AdaRank) and corrections of features (representation surgery)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from hf_taskvec import TaskVector, evaluate, merge
from hf_taskvec.errors import CheckpointError, OutputExistsError, UnknownNameError
from hf_taskvec.merging.adarank import cut, packed, unpacked
from hf_taskvec.merging.linalg import leading
from hf_taskvec.tuning import Descent, Surgery, rank_masks, surgery
from hf_taskvec.tuning.images import choose_images
from hf_taskvec.tuning.masks import Directions
from hf_taskvec.tuning.objectives import summed_loss
from hf_taskvec.tuning.surgery import corrected
from hf_taskvec.tuning.tower import Tower, features_of
from tests.test_tuning import NAMES, SHORT, toys, wide

MATRIX, BIAS = "vision_model.encoder.layers.0.mlp.fc1.weight", "vision_model.encoder.layers.0.mlp.fc1.bias"


def parts(vectors: dict[str, TaskVector]) -> dict[str, TaskVector]:
    """The vectors on one matrix and one bias, of which gradients are quick."""
    return {
        task: TaskVector({name: vector[name] for name in (MATRIX, BIAS)}, vector.info)
        for task, vector in vectors.items()
    }


# -- masks ---------------------------------------------------------------------------------------------------------


def test_the_gradient_of_masks_is_that_of_autograd_through_the_cut_sum(tmp_path: Path) -> None:
    base, vectors, (task, _) = wide()
    chosen = list(parts(vectors).values())
    tower = Tower(base, [task], [MATRIX, BIAS])
    directions = Directions(tower, chosen, tmp_path)
    generator = torch.Generator().manual_seed(0)
    values = directions.first(0.3)
    values = values + 0.2 * torch.randn(len(values), generator=generator, dtype=torch.float64)
    batch = choose_images(base, [task], images=6).samples[0].batch(range(6))
    directions.set(values)
    tower.add_gradient("entropy", task, batch["pixel_values"], None, size=6)
    gradient = directions.gradient()

    wanted = values.clone().requires_grad_()
    rank = 64
    logits, factors = wanted[: 2 * rank].view(2, rank), wanted[2 * rank :].view(2, 2)
    soft = logits.sigmoid()
    masks = soft + ((logits >= 0).double() - soft).detach()  # straight-through
    total: Tensor = tower.originals[MATRIX]
    for index, vector in enumerate(chosen):
        singular = leading(vector[MATRIX])
        total = total + factors[0, index] * (singular.left * singular.values * masks[index]) @ singular.right.T
    bias = tower.originals[BIAS] + factors[1, 0] * chosen[0][BIAS] + factors[1, 1] * chosen[1][BIAS]
    names = {name: value for name, value in zip((MATRIX, BIAS), (total, bias), strict=True)}
    short = {name.replace("vision_model.", "vision_model.", 1): value for name, value in names.items()}
    torch.testing.assert_close(tower.parameters[MATRIX].detach(), total.detach())
    logits_of = functional_call(tower.classifier, short, (batch["pixel_values"],))["logits"]
    (summed_loss("entropy", logits_of, None) / 6).backward()
    torch.testing.assert_close(gradient, wanted.grad, rtol=1e-6, atol=1e-10)


def test_a_mask_keeps_its_directions() -> None:
    matrix = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
    kept = cut(leading(matrix), torch.tensor([True, False, True]))
    torch.testing.assert_close(kept.float(), torch.diag(torch.tensor([4.0, 0.0, 1.0])))


@pytest.mark.parametrize("rank", [1, 8, 13])
def test_a_packed_mask_comes_back(rank: int) -> None:
    mask = torch.rand(rank, generator=torch.Generator().manual_seed(rank)) < 0.5
    assert unpacked(packed(mask), rank).tolist() == mask.tolist()
    with pytest.raises(ValueError, match="does not fit a matrix of rank"):
        unpacked(packed(torch.ones(rank + 8).bool()), rank)


def test_adarank_by_hand() -> None:
    one, other = (TaskVector({"w": torch.diag(torch.tensor(d)), "b": torch.ones(1)}) for d in ([3.0, 1.0], [1.0, 5.0]))
    assert merge([one, other], "adarank")["w"].diagonal().tolist() == pytest.approx([3.0, 5.0])  # the leading half each
    masks = {"w": [packed(torch.tensor([False, True])), packed(torch.tensor([True, True]))]}
    merged = merge([one, other], "adarank", masks=masks, coefficients={"*": [2.0, 0.5]})
    assert merged["w"].diagonal().tolist() == pytest.approx([0.5, 4.5])
    assert merged["b"].tolist() == [2.5]
    with pytest.raises(ValueError, match=r"one text per vector \(2\); 'w' has 1"):
        merge([one, other], "adarank", masks={"w": ["80"]})
    with pytest.raises(ValueError, match="masks must name every matrix"):
        merge([one, other], "adarank", masks={"v": ["80", "80"]})


def test_learned_masks_give_the_weights_they_were_learned_with(tmp_path: Path) -> None:
    base, vectors, tasks = toys()
    given = parts(vectors)
    descent = Descent(steps=4, batch_size=8, learning_rate=0.1)
    learned = rank_masks(base, given, tasks, descent=descent)
    assert learned.provenance["split"] == "validation"
    assert 0 < learned.kept < 1
    first = packed(torch.arange(64) < 32)
    assert set(learned.masks[MATRIX]) != {first}  # steps of 0.1 have crossed zero
    merged = learned.merge(output_dir=tmp_path / "merged")
    by_hand = torch.zeros(128, 64, dtype=torch.float64)
    for index, vector in enumerate(given.values()):
        mask = unpacked(learned.masks[MATRIX][index], 64)
        by_hand += learned.coefficients[MATRIX][index] * cut(leading(vector[MATRIX]), mask)
    torch.testing.assert_close(merged[MATRIX].double(), by_hand, atol=1e-6, rtol=1e-5)
    assert TaskVector.from_pretrained(tmp_path / "merged").info.settings["learned"]["objective"] == "expert"


def test_coefficients_of_cut_vectors_stay_in_their_bounds() -> None:
    base, vectors, tasks = toys()
    descent = Descent(steps=2, batch_size=4, learning_rate=5.0)
    learned = rank_masks(base, parts(vectors), tasks, descent=descent)
    values = [value for row in learned.coefficients.values() for value in row]
    assert 0 <= min(values) <= max(values) <= 1


# -- surgery -------------------------------------------------------------------------------------------------------


def test_a_correction_by_hand() -> None:
    features = torch.tensor([[1.0, -2.0]])
    down, up = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.5, 9.0], [1.0, 9.0]])
    assert corrected(features, down, up).tolist() == [[0.5, -3.0]]  # relu leaves (1, 0)


def test_surgery_brings_features_nearer_to_the_experts() -> None:
    base, vectors, tasks = toys()
    model = merge(list(vectors.values()), "average").apply_to(base)
    corrected = surgery(base, model, vectors, tasks, descent=Descent(steps=150, learning_rate=1e-2))
    assert all(curve[-1] < 0.9 * curve[0] for curve in corrected.curve.values())
    sample = choose_images(base, tasks[:1], split="test", transductive=True).samples[0]
    own, merged = features_of(vectors["digits"].apply_to(base), sample), features_of(model, sample)
    assert (corrected.correct("digits", merged) - own).abs().mean() < (merged - own).abs().mean()


def test_a_correction_of_nothing_is_the_merged_model() -> None:
    base, vectors, tasks = toys()
    model = merge(list(vectors.values()), "average").apply_to(base)
    nothing_learned = surgery(base, model, vectors, tasks, images=4, descent=Descent(steps=1))
    nothing = dataclasses.replace(
        nothing_learned, up={task: torch.zeros_like(up) for task, up in nothing_learned.up.items()}
    )
    report, plain = nothing.evaluate(model, tasks), evaluate(model, tasks)
    assert [result.accuracy for result in report.results] == [result.accuracy for result in plain.results]


def test_corrections_are_saved_and_read(tmp_path: Path) -> None:
    base, vectors, tasks = toys()
    options: dict[str, Any] = {"images": 4, "rank": 2, "descent": Descent(steps=2)}
    learned = surgery(base, base, vectors, tasks, split="test", transductive=True, **options)
    learned.save_pretrained(tmp_path / "surgery")
    again = Surgery.from_pretrained(tmp_path / "surgery")
    assert (again.transductive, again.provenance, again.curve) == (True, learned.provenance, learned.curve)
    assert all(torch.equal(again.up[name], learned.up[name]) for name in NAMES)
    assert again.evaluate(base, tasks).transductive
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(OutputExistsError):
        learned.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds no corrections"):
        Surgery.from_pretrained(tmp_path / "other")


def test_bad_input_of_surgery_is_refused() -> None:
    base, vectors, tasks = toys()
    with pytest.raises(UnknownNameError, match="no vector of task 'shapes'"):
        surgery(base, base, {"digits": vectors["digits"]}, tasks)
    with pytest.raises(ValueError, match="rank must be a whole number"):
        surgery(base, base, vectors, tasks, rank=0)
    with pytest.raises(ValueError, match="pass transductive=True"):
        surgery(base, base, vectors, tasks, split="test")
    learned = surgery(base, base, vectors, tasks[0], images=4, descent=SHORT)
    with pytest.raises(UnknownNameError, match="no correction for task 'shapes'"):
        learned.evaluate(base, tasks)
