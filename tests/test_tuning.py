"""What is learned from images: coefficients, their gradient, what is refused, and what is told of it."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from hf_taskvec import Base, Task, TaskVector, evaluate, load_base, merge
from hf_taskvec.errors import BaseMismatchError, DataError, NonFiniteError, UnknownNameError
from hf_taskvec.merging.weighted import factors_of, without_conflicts
from hf_taskvec.tuning import Descent, learn_coefficients
from hf_taskvec.tuning.descent import Loop, order
from hf_taskvec.tuning.images import choose_images
from hf_taskvec.tuning.mixture import Mixture, Per
from hf_taskvec.tuning.objectives import Objective, summed_loss
from hf_taskvec.tuning.tower import Tower
from hf_taskvec.weights.names import canonical_name
from tests.helpers import finetuned, in_processes
from tests.toys import toy_base, toy_task, wide_base

NAMES = ("digits", "shapes")
SHORT = Descent(steps=3, batch_size=8, learning_rate=0.05)


def vectors_of(base: Base, *, size: float = 0.02) -> dict[str, TaskVector]:
    """A random vector for each of the two tasks."""
    models = {name: finetuned(base.model, seed=seed, size=size) for seed, name in enumerate(NAMES, start=1)}
    made = {name: TaskVector.from_models(base.model, model) for name, model in models.items()}
    return {name: TaskVector(v.deltas, dataclasses.replace(v.info, task=name)) for name, v in made.items()}


@cache
def toys() -> tuple[Base, dict[str, TaskVector], list[Task]]:
    return toy_base(), vectors_of(toy_base()), [toy_task(name) for name in NAMES]


@cache
def wide() -> tuple[Base, dict[str, TaskVector], list[Task]]:
    return wide_base(), vectors_of(wide_base()), [toy_task(name) for name in NAMES]


# -- mathematics ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["expert", "entropy", "labels"])
@pytest.mark.parametrize("per", ["task", "layer", "parameter"])
def test_the_gradient_is_that_of_autograd_through_the_merged_weights(per: Per, objective: Objective) -> None:
    base, vectors, (task, _) = wide()
    tower = Tower(base, [task], list(vectors["digits"].deltas))
    mixture = Mixture(tower, list(vectors.values()), per)
    batch = choose_images(base, [task], images=6).samples[0].batch(range(6))
    targets = {"expert": torch.rand(6, 10).double().softmax(1), "labels": batch["labels"]}.get(objective)
    values = torch.rand(len(mixture.groups), 2, dtype=torch.float64, requires_grad=True)
    mixture.set(values.detach())
    tower.add_gradient(objective, task, batch["pixel_values"], targets, size=6)

    names = dict(zip(tower.parameters, range(len(tower.parameters)), strict=True))
    merged = {}
    for name, parameter in tower.classifier.named_parameters():
        short = name if name in names else f"vision_model.{name.removeprefix('vision_model.')}"
        if short in names:
            row = values[mixture._rows[short]]
            deltas = [vector.deltas[short] for vector in vectors.values()]
            merged[name] = tower.originals[short] + row[0] * deltas[0] + row[1] * deltas[1]
            torch.testing.assert_close(merged[name].detach(), parameter.detach())
    assert len(merged) == len(names)
    logits = functional_call(tower.classifier, merged, (batch["pixel_values"],))["logits"]
    (summed_loss(objective, logits, targets) / 6).backward()
    torch.testing.assert_close(mixture.gradient(), values.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("per", ["task", "parameter"])
def test_the_first_steps_are_those_of_adamerging(per: Per) -> None:
    base, vectors, tasks = wide()
    steps, rate = 4, 0.05
    descent = Descent(steps=steps, batch_size=8, learning_rate=rate, bounds=None)
    learned = learn_coefficients(base, vectors, tasks, objective="entropy", per=per, descent=descent, progress=False)
    slow = slow_adamerging(per, steps, rate)
    ours = torch.tensor([*learned.coefficients.values()], dtype=torch.float64)
    assert list(learned.coefficients) == list(slow)
    torch.testing.assert_close(ours, torch.stack([*slow.values()]), rtol=0, atol=1e-5)
    assert (ours - 0.3).abs().max() > 0.05


def slow_adamerging(per: Per, steps: int, rate: float) -> dict[str, Tensor]:
    """The authors' loop: Adam on coefficients of whole weights, the sum over tasks of the mean entropy of a batch."""
    base, vectors, tasks = wide()
    names = list(vectors["digits"].deltas)
    tower = Tower(base, tasks, names)
    groups = {name: "*" if per == "task" else name for name in names}
    raw = {group: torch.full((2,), 0.3, dtype=torch.float64, requires_grad=True) for group in groups.values()}
    adam = torch.optim.Adam(list(raw.values()), lr=rate)
    samples = choose_images(base, tasks).samples
    orders = [order(len(sample), 8, seed=number) for number, sample in enumerate(samples)]
    named = {canonical_name(name): name for name, _ in tower.classifier.named_parameters()}
    for _ in range(steps):
        weights = {
            named[name]: tower.originals[name]
            + sum(raw[groups[name]][index] * vector.deltas[name] for index, vector in enumerate(vectors.values()))
            for name in names
        }
        losses = []
        for sample, rows in zip(samples, orders, strict=True):
            tower.classifier.head = tower.heads[sample.task.name]
            batch = {"pixel_values": sample.batch(next(rows))["pixel_values"]}
            logits = functional_call(tower.classifier, weights, (batch["pixel_values"],))["logits"]
            losses.append(-(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean(0))
        adam.zero_grad()
        torch.stack(losses).sum().backward()
        adam.step()
    return {group: value.detach() for group, value in raw.items()}


def test_the_losses_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])  # probabilities (1/2, 1/2), (3/4, 1/4)
    entropy = math.log(2) - (0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(summed_loss("entropy", logits, None)) == pytest.approx(entropy)
    both = summed_loss("labels", logits, torch.tensor([0, 1]))
    assert float(both) == pytest.approx(math.log(8))
    assert float(summed_loss("expert", logits, torch.eye(2))) == pytest.approx(float(both))


def test_an_experts_own_coefficient_is_found() -> None:
    base, vectors, tasks = toys()
    digits = {"digits": vectors["digits"] * 3.0}
    descent = Descent(bounds=None, steps=60, batch_size=4, learning_rate=0.05)
    learned = learn_coefficients(base, digits, tasks[0], descent=descent)
    assert learned.coefficients["*"][0] == pytest.approx(1.0, abs=0.15)
    assert learned.curve[-1] < learned.curve[0]


def test_a_coefficient_that_reached_a_bound_can_leave_it() -> None:
    base, vectors, tasks = toys()
    digits = {"digits": vectors["digits"] * 3.0}
    values = {}
    for steps in (1, 3, 6, 9):  # the first step leads beyond 2; the best is at 1
        descent = Descent(bounds=(0.0, 2.0), steps=steps, batch_size=10, learning_rate=3.0)
        values[steps] = learn_coefficients(base, digits, tasks[0], descent=descent).coefficients["*"][0]
    assert values[1] == 2.0
    assert min(values.values()) < 1.9


def test_what_ties_leaves_of_each_vector() -> None:  # the second entries agree, the third's sign is lost by the first
    one = TaskVector({"w": torch.tensor([4.0, 2.0, -1.0, 0.1])})
    other = TaskVector({"w": torch.tensor([0.2, 3.0, 5.0, 0.1])})
    left, right = without_conflicts([one, other], 0.75)
    assert left["w"].tolist() == [4.0, 2.0, 0.0, 0.0]
    assert right["w"].tolist() == pytest.approx([0.2, 3.0, 5.0, 0.0])
    merged = merge([one, other], "weighted", coefficients={"*": [0.5, 2.0]}, density=0.75)
    assert merged["w"].tolist() == pytest.approx([2.4, 7.0, 10.0, 0.0])


def test_learning_with_a_density_is_learning_on_what_ties_leaves() -> None:
    base, vectors, tasks = toys()
    trimmed = [vector.to(torch.float32) for vector in without_conflicts(list(vectors.values()), 0.2)]
    options: dict[str, Any] = {"objective": "entropy", "per": "layer", "descent": SHORT}
    ours = learn_coefficients(base, vectors, tasks, density=0.2, **options)
    direct = learn_coefficients(base, trimmed, tasks, **options)
    assert ours.coefficients == direct.coefficients
    merged = direct.merge()
    for name, delta in ours.merge().deltas.items():
        torch.testing.assert_close(delta, merged[name])


def test_the_nearest_name_gives_a_parameter_its_coefficients() -> None:
    vector = TaskVector({name: torch.ones(1) for name in ("a.layers.0.w", "a.layers.0.v", "b.w")})
    coefficients = {"a.layers.0": [2.0], "*": [1.0], "a.layers.0.v": [3.0]}
    assert list(factors_of(coefficients, [vector]).values()) == [[2.0], [3.0], [1.0]]
    with pytest.raises(ValueError, match=r"no entry for 'b\.w'; '\*' is for all others"):
        factors_of({"a.layers.0": [1.0]}, [vector])
    with pytest.raises(ValueError, match=r"name 'a\.layers\.1', which is no parameter or layer"):
        factors_of({"*": [1.0], "a.layers.1": [1.0]}, [vector])
    with pytest.raises(ValueError, match=r"one factor per vector \(1\), got 2"):
        factors_of({"*": [1.0, 2.0]}, [vector])


# -- results ---------------------------------------------------------------------------------------------------------


def test_the_merge_is_what_was_learned_on() -> None:
    base, vectors, tasks = toys()
    learned = learn_coefficients(base, vectors, tasks, per="parameter", descent=SHORT)
    tower = Tower(base, tasks, list(vectors["digits"].deltas))
    mixture = Mixture(tower, list(vectors.values()), "parameter")
    mixture.set(torch.tensor([learned.coefficients[group] for group in mixture.groups], dtype=torch.float64))
    applied = TaskVector.from_models(base.model, learned.merge().apply_to(base.model))
    for name, parameter in tower.parameters.items():
        torch.testing.assert_close(tower.originals[name] + applied[name], parameter.detach(), rtol=1e-5, atol=1e-6)


def test_provenance_tells_objective_split_and_images(tmp_path: Path) -> None:
    base, vectors, tasks = toys()
    learned = learn_coefficients(base, vectors, tasks, images=12, descent=SHORT)
    learned.merge(output_dir=tmp_path / "merged")
    info = TaskVector.from_pretrained(tmp_path / "merged").info
    how = info.settings["learned"]
    assert (how["objective"], how["split"], how["images"]) == ("expert", "validation", {"digits": 12, "shapes": 12})
    assert info.settings["transductive"] is False
    other = learn_coefficients(base, vectors, tasks, images=11, descent=SHORT)
    assert other.provenance["images_hash"] != how["images_hash"]
    assert len(learned.curve) == 3


def test_test_images_are_declared_and_told() -> None:
    base, vectors, tasks = toys()
    with pytest.raises(ValueError, match="pass transductive=True"):
        learn_coefficients(base, vectors, tasks, split="test", descent=SHORT)
    learned = learn_coefficients(base, vectors, tasks, split="test", transductive=True, images=8, descent=SHORT)
    report = evaluate(learned.merge().apply_to(base), tasks)
    assert report.transductive
    assert "Transductive" in report.to_markdown()


def test_a_seed_decides_the_result() -> None:
    base, vectors, tasks = toys()
    first, again, other = (
        learn_coefficients(base, vectors, tasks, descent=dataclasses.replace(SHORT, seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first.coefficients != other.coefficients


def test_own_images_need_no_labels() -> None:
    base, vectors, (task, _) = toys()
    own = task.load("validation").remove_columns("label")
    learned = learn_coefficients(base, vectors, task, images={"digits": own}, descent=SHORT)
    alike = learn_coefficients(base, vectors, task, descent=SHORT)
    assert learned.coefficients == alike.coefficients
    assert learned.provenance["split"] == "own images"
    assert learned.provenance["images_hash"] == alike.provenance["images_hash"]


def test_own_images_that_are_test_images_are_found() -> None:
    base, vectors, (task, _) = toys()
    own = {"digits": task.load("test").select([3])}
    with pytest.raises(ValueError, match="1 of the 1 images given for 'digits' are test images"):
        learn_coefficients(base, vectors, task, images=own, descent=SHORT)
    assert learn_coefficients(base, vectors, task, images=own, transductive=True, descent=SHORT).transductive
    with pytest.raises(ValueError, match="would learn from test labels"):
        learn_coefficients(base, vectors, task, images=own, objective="labels", transductive=True, descent=SHORT)


# -- bad input -------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_named() -> None:
    base, vectors, tasks = toys()
    unlabelled = {"digits": tasks[0].load("validation").remove_columns("label")}
    with pytest.raises(UnknownNameError, match="no vector of task 'shapes'"):
        learn_coefficients(base, {"digits": vectors["digits"]}, tasks, descent=SHORT)
    with pytest.raises(DataError, match="needs the label of every image, and those of 'digits' lack some"):
        learn_coefficients(base, vectors, tasks[0], images=unlabelled, objective="labels", descent=SHORT)
    with pytest.raises(UnknownNameError, match="no images of task 'shapes'"):
        learn_coefficients(base, vectors, tasks, images=unlabelled, descent=SHORT)
    own = {"digits": tasks[0].load("validation").rename_column("image", "picture")}
    with pytest.raises(DataError, match="have no column 'image'"):
        learn_coefficients(base, vectors, tasks[0], images=own, descent=SHORT)
    with pytest.raises(DataError, match="at least one task"):
        learn_coefficients(base, vectors, [], descent=SHORT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "experts"}, "Did you mean 'expert'"),
        ({"per": "tensor"}, "no group of parameters 'tensor'"),
        ({"split": "validate"}, "Did you mean 'validation'"),
        ({"density": 0.0}, r"density must be in \(0, 1\]"),
        ({"images": 0}, "images must be a whole number of at least 1"),
        ({"objective": "labels", "split": "test", "transductive": True}, "would learn from test labels"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    base, vectors, tasks = toys()
    with pytest.raises(ValueError, match=message):
        learn_coefficients(base, vectors, tasks, descent=SHORT, **options)


def test_bad_settings_of_the_steps_are_refused() -> None:
    for settings, message in (
        ({"start": 1.5}, "start must lie within bounds"),
        ({"steps": 0}, "steps must be a whole number of at least 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"start": float("nan")}, "start must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            Descent(**settings)
    told = Descent(steps=3.0, batch_size=np.int64(8)).provenance()  # type: ignore[arg-type]
    assert [type(told[name]) for name in ("steps", "batch_size", "seed")] == [int, int, int]


def test_a_foreign_base_and_nan_are_refused_by_name() -> None:
    base, vectors, tasks = toys()
    name = "vision_model.post_layernorm.bias"
    broken = {**vectors, "shapes": TaskVector({**vectors["shapes"].deltas, name: torch.full((64,), torch.nan)})}
    with pytest.raises(NonFiniteError, match=name):
        learn_coefficients(base, broken, tasks, descent=SHORT)
    moved = dataclasses.replace(base, model=finetuned(base.model, seed=5))
    with pytest.raises(BaseMismatchError, match="other values"):
        learn_coefficients(moved, vectors, tasks, descent=SHORT)


# -- several processes -----------------------------------------------------------------------------------------------


def test_the_shares_of_two_processes_add_up_to_the_whole_step() -> None:
    base, vectors, tasks = wide()

    def step(index: int, count: int) -> tuple[Tensor, Tensor]:
        tower = Tower(base, tasks, list(vectors["digits"].deltas))
        fake: Any = SimpleNamespace(
            process_index=index, num_processes=count, device=torch.device("cpu"), reduce=lambda both, reduction: both
        )
        tower.accelerator = fake
        chosen = choose_images(base, tasks)
        mixture = Mixture(tower, list(vectors.values()), "layer")
        mixture.set(torch.full((len(mixture.groups), 2), 0.3))
        loop = Loop(tower, chosen, {}, "entropy", settings=Descent(batch_size=7))
        return loop.gradient(mixture, 0)

    whole, shares = step(0, 1), [step(0, 2), step(1, 2)]
    for together, *parts in zip(whole, *shares, strict=True):
        torch.testing.assert_close(sum(parts), together, rtol=1e-9, atol=1e-12)


SCRIPT = """
import sys, torch
from accelerate import PartialState
from hf_taskvec import load_base
from hf_taskvec.tuning import Descent, learn_coefficients
from tests.test_tuning import vectors_of
from tests.toys import toy_task
base = load_base(sys.argv[1], dtype=torch.float64)
learned = learn_coefficients(base, vectors_of(base), [toy_task("digits"), toy_task("shapes")], per="layer",
                             descent=Descent(steps=3, batch_size=7, learning_rate=0.05))
assert PartialState().num_processes == 2
if PartialState().is_main_process:
    learned.merge(output_dir=sys.argv[2])
"""


@pytest.mark.slow  # three Python start-ups
def test_two_processes_give_the_coefficients_of_one(tmp_path: Path) -> None:
    script, saved = tmp_path / "two.py", tmp_path / "base"
    toy_base().save_pretrained(saved)
    script.write_text(SCRIPT)
    in_processes(script, saved, tmp_path / "v")
    base = load_base(saved, dtype=torch.float64)
    alone = learn_coefficients(
        base,
        vectors_of(base),
        [toy_task(name) for name in NAMES],
        per="layer",
        descent=Descent(steps=3, batch_size=7, learning_rate=0.05),
    )
    together = TaskVector.from_pretrained(tmp_path / "v").info.settings["coefficients"]
    for group, values in alone.coefficients.items():
        assert together[group] == pytest.approx(values, rel=1e-6)
