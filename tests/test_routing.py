"""Routed models: each by a slow and obvious reference, through Transformers' files, pipeline and Trainer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments, pipeline

from hf_taskvec import TaskVector, VectorInfo, evaluate, merge
from hf_taskvec.errors import BaseMismatchError, DataError, UnknownNameError
from hf_taskvec.models.base import Base
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.multitask import pack
from hf_taskvec.routing import RoutedVisionModel, evaluate_routed, mass, smile, twin, we_moe
from hf_taskvec.routing.experts import ExpertLinear
from hf_taskvec.routing.making import expert_of
from hf_taskvec.tasks import Task
from hf_taskvec.tuning.descent import Descent
from tests.bases import colours_task, tiny_base

NAMES = ("colours", "shades", "hues")
LAYER = "encoder.layers.1.mlp.fc1"
ONE_STEP = Descent(steps=1, learning_rate=1e-12, batch_size=4)


@cache
def tasks() -> tuple[Task, ...]:
    return tuple(dataclasses.replace(colours_task(), name=name) for name in NAMES)


@cache
def vectors(linear: bool = False) -> dict[str, TaskVector]:
    """A random vector of the tiny base for each task; of linear maps alone if wanted."""
    names = {name: weight.detach() for name, weight in tiny_base().model.named_parameters()}
    result = {}
    for seed, task in enumerate(NAMES):
        generator = torch.Generator().manual_seed(seed)
        moved = {name: weight.clone() for name, weight in names.items()}
        for name in moved:
            noise = 0.05 * torch.randn(moved[name].shape, generator=generator)
            if name.startswith("vision_model") and (not linear or "proj" in name or ".fc" in name):
                moved[name] += noise
        info = VectorInfo(kind="fine-tuned", base="user/tiny", task=task)
        result[task] = TaskVector.from_weights(names, moved, info=info)
    return result


@cache
def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(9))


def features_of(base: Base, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        features: Tensor = base.model.visual_projection(base.model.vision_model(pixels).pooler_output)
    return features


def one_by_one(method: Callable[..., RoutedVisionModel]) -> RoutedVisionModel:
    return method(tiny_base(), vectors(), tasks())


def learned() -> RoutedVisionModel:
    return we_moe(tiny_base(), vectors(), tasks(), images=8, descent=Descent(steps=2, batch_size=4), progress=False)


def shared() -> RoutedVisionModel:
    return twin(tiny_base(), pack(vectors(), "twin"), tasks(), images=8)


@cache
def models() -> dict[str, RoutedVisionModel]:
    return {"smile": one_by_one(smile), "mass": one_by_one(mass), "we_moe": learned(), "twin": shared()}


# -- references -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_smile_sends_each_token_to_the_expert_whose_directions_hold_most_of_it() -> None:
    rank, gate_rank, states = 3, 2, torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    expert = expert_of(smile(tiny_base(), vectors(), tasks(), rank=rank, gate_rank=gate_rank), LAYER)
    base = tiny_base().model.vision_model.get_submodule(LAYER)
    ours, votes = expert(states), torch.zeros(2, len(NAMES))
    for image in range(2):
        for token in range(5):
            state, lengths, changes = states[image, token].double(), [], []
            for vector in vectors().values():
                delta = vector[f"vision_model.{LAYER}.weight"].double()
                left, values, right = torch.linalg.svd(delta, full_matrices=False)
                lengths.append(float((right[:gate_rank] @ state).norm()))
                low = left[:, :rank] * values[:rank] @ right[:rank] @ state
                changes.append(low + vector[f"vision_model.{LAYER}.bias"].double())
            winner = max(range(len(NAMES)), key=lengths.__getitem__)
            votes[image, winner] += 1
            expected = base.weight.double() @ state + base.bias.double() + changes[winner]
            torch.testing.assert_close(ours[image, token].double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(expert.votes, votes)


@pytest.mark.parametrize("method", [smile, mass])
def test_of_one_vector_a_router_is_the_fine_tuned_model(method: Callable[..., RoutedVisionModel]) -> None:
    one = {"colours": vectors()["colours"]}
    model = method(tiny_base(), one, tasks()[:1])
    features, shares = model.route(images())
    expected = features_of(one["colours"].apply_to(tiny_base()), images())
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    assert torch.equal(shares, torch.ones(len(images()), 1))


@torch.no_grad()
def test_mass_takes_the_tasks_whose_directions_leave_least_and_merges_them_by_tsv() -> None:
    base, given = tiny_base(), list(vectors(linear=True).values())
    model = mass(base, vectors(linear=True), tasks(), threshold=0.33, most=2)
    merged = merge(given, "tsv_m")
    first = merged.apply_to(base)
    everything = model.merged((0, 1, 2))
    for name in model.config.experts:
        expected = first.model.vision_model.get_parameter(name)
        torch.testing.assert_close(everything[name], expected, rtol=1e-4, atol=1e-5)
    features, shares = model.route(images())
    for index in range(len(images())):
        seen: list[Tensor] = []
        layer = first.model.vision_model.get_submodule(model.config.layer)
        hook = layer.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        features_of(first, images()[index : index + 1])
        hook.remove()
        state, rests = seen[0][0, 0].double(), []
        for vector in given:
            delta = vector[f"vision_model.{model.config.layer}.weight"].double()
            right = torch.linalg.svd(delta, full_matrices=False)[2][: 32 // 3]
            rests.append(float((state - right.T @ (right @ state)).norm()))
        softmax = (-torch.tensor(rests)).softmax(dim=0)
        best = softmax.argsort(descending=True)[:2].tolist()
        taken = sorted({best[0], *(task for task in best if softmax[task] >= 0.33)})
        assert shares[index].nonzero().flatten().tolist() == taken
        cut = pack([given[task] for task in taken], "tsv_compress", rank=(32 // 3) / 32)
        low = merge([cut.for_task(NAMES[task]) for task in taken], "task_arithmetic")
        if len(taken) == 1:  # directions of one vector are orthogonal already
            matrices = {name: low[name] for name in low if low[name].ndim == 2}
            rest = {name: given[taken[0]][name] for name in low if low[name].ndim != 2}
            expected = features_of(TaskVector({**matrices, **rest}).apply_to(base), images()[index : index + 1])
            torch.testing.assert_close(features[index : index + 1], expected, rtol=1e-3, atol=1e-4)
    assert {int((row > 0).sum()) for row in shares} <= {1, 2}


@torch.no_grad()
def test_twin_mixes_the_tasks_own_directions_by_its_router() -> None:
    base, packed = tiny_base(), pack(vectors(linear=True), "twin", rank=0.25)
    model = twin(base, packed, tasks(), images=8)
    features, shares = model.route(images())
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(images())))
    common = TaskVector({name: packed.shared[name] for name in packed.shared})
    seen = functional.normalize(features_of(common.apply_to(base), images()), dim=-1)
    torch.testing.assert_close(model.router(seen).softmax(dim=-1), shares, rtol=1e-3, atol=1e-4)
    for index, share in enumerate(shares.tolist()):
        deltas = {
            name: common[name] + sum(s * packed.parts[task].deltas[name] for s, task in zip(share, NAMES, strict=True))
            for name in common
        }
        expected = features_of(TaskVector(deltas).apply_to(base), images()[index : index + 1])
        torch.testing.assert_close(features[index : index + 1], expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_we_moe_starts_as_task_arithmetic() -> None:
    model = we_moe(tiny_base(), vectors(), tasks(), images=8, descent=ONE_STEP, progress=False)
    for block in model.tower.encoder.layers:
        block.mlp.gate.weight.zero_()
    features, shares = model.route(images())
    expected = features_of(merge(list(vectors().values())).apply_to(tiny_base(), scaling=0.3), images())
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(shares, torch.full((len(images()), 3), 0.3))


@pytest.mark.parametrize("objective", ["entropy", "expert"])
def test_gates_learn_and_nothing_else_moves(objective: str) -> None:
    descent = Descent(steps=3, learning_rate=0.01, batch_size=8)
    options = {"images": 8, "progress": False, "objective": objective}
    start = we_moe(tiny_base(), vectors(), tasks(), descent=ONE_STEP, **options)
    first = we_moe(tiny_base(), vectors(), tasks(), descent=descent, **options)
    before, after = dict(start.named_parameters()), dict(first.named_parameters())
    moved = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-6)}
    assert moved
    assert all(".mlp.gate." in name or ".mlp.hidden." in name for name in moved)
    if objective == "expert":
        again = we_moe(tiny_base(), vectors(), tasks(), descent=descent, **options)
        assert all(torch.equal(after[name], value) for name, value in again.named_parameters())
    loss = [_loss(model, objective) for model in (start, first)]
    assert loss[1] < loss[0]


@torch.no_grad()
def _loss(model: RoutedVisionModel, objective: str) -> float:
    """The mean loss over the images that the gates were learnt on."""
    from hf_taskvec.models.classifier import classify
    from hf_taskvec.models.heads import zero_shot_head
    from hf_taskvec.tuning.images import choose_images
    from hf_taskvec.tuning.objectives import summed_loss

    base, total = tiny_base(), 0.0
    for sample in choose_images(base, tasks(), images=8).samples:
        pixels = Normalize(base)(next(iter(sample.batches(8)))["pixel_values"])
        own = vectors()[sample.task.name].apply_to(base)
        head = zero_shot_head(base, sample.task.class_names, sample.task.templates)
        target = None if objective == "entropy" else classify(own.model, head, pixels).softmax(dim=-1)
        total += float(summed_loss(objective, model(pixels, task=sample.task.name).logits, target))
    return total


# -- what is reported -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["smile", "mass", "we_moe", "twin"])
def test_a_report_tells_accuracies_and_how_often_the_right_task_was_chosen(kind: str) -> None:
    base, model = tiny_base(), models()[kind]
    report = evaluate_routed(model, base, tasks(), batch_size=30)
    pixels, labels = _test_images(base)
    with torch.no_grad():
        shares = model.route(pixels)[1].argmax(dim=1)
        joint = model(pixels).logits.argmax(dim=1)
        for number, (name, result) in enumerate(zip(NAMES, report.results, strict=True)):
            own = model(pixels, task=name).logits.argmax(dim=1)
            assert result.accuracy == pytest.approx(float((own == labels).double().mean()))
            assert result.metrics["joint_accuracy"] == pytest.approx(
                float((joint == labels + 3 * number).double().mean())
            )
            assert result.metrics["routing_accuracy"] == pytest.approx(float((shares == number).double().mean()))
    assert "routing_accuracy" in report.to_markdown()
    assert report.split == "test"


def _test_images(base: Base) -> tuple[Tensor, Tensor]:
    from hf_taskvec.tasks.pixels import load_pixels

    pixels = load_pixels(tasks()[0], "test", base.processor.image_processor)
    return Normalize(base)(pixels.__getitems__(range(len(pixels)))["pixel_values"]), pixels.labels


def test_costs_are_counted() -> None:
    maps = 2 * (4 * (32 + 32) + 2 * (32 + 64))  # in + out, over the linear maps of two layers
    biases = 3 * 2 * (5 * 32 + 64)
    gates = 3 * 2 * (5 * 32 + 64)
    ranked = smile(tiny_base(), vectors(), tasks(), rank=4)
    assert ranked.cost == {"forward_passes": 1, "extra_parameters": 3 * 4 * maps + biases + gates}
    assert models()["twin"].cost["forward_passes"] == models()["mass"].cost["forward_passes"] == 2
    whole = 3 * 2 * 2 * 32 * 64 + 3 * 2 * (32 + 64)
    assert models()["we_moe"].cost["extra_parameters"] == whole + 2 * (32 * 32 + 32 + 32 * 3 + 3)


def test_routers_serve_well_where_tasks_look_different() -> None:
    generator = torch.Generator().manual_seed(0)
    experts = torch.linalg.qr(torch.randn(32, 32, generator=generator))[0]
    layer = ExpertLinear((32, 8), 2, 4, bias=(False, False), gate_rank=4)
    with torch.no_grad():
        layer.gate.copy_(experts[:8])
        layer.right.copy_(experts[:8])
        layer.left.normal_(generator=generator)
        states = torch.stack([experts[:4].sum(dim=0), experts[4:8].sum(dim=0)]).unsqueeze(1)
        layer(states)
    assert layer.votes.tolist() == [[1.0, 0.0], [0.0, 1.0]]


# -- Transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["smile", "mass", "we_moe", "twin"])
def test_transformers_saves_and_loads_it_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = models()[kind]
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    with torch.no_grad():
        expected = model(images()).logits
        for kind_of_model in (RoutedVisionModel, AutoModelForImageClassification):
            again = kind_of_model.from_pretrained(tmp_path).eval()
            assert torch.equal(again(images()).logits, expected)
            assert again.config.tasks == list(NAMES)
            assert again.cost == model.cost
    assert again.config.provenance["base"] == tiny_base().name
    with pytest.raises(UnknownNameError, match=r"no head for task 'birds'"):
        again(images(), task="birds")


def test_a_pipeline_names_task_and_class() -> None:
    classify = pipeline(
        "image-classification",
        model=models()["smile"],
        image_processor=tiny_base().processor.image_processor,
        device="cpu",
    )
    answers = classify(Image.new("RGB", (40, 36), (200, 30, 30)), top_k=9)
    assert {answer["label"] for answer in answers} == {
        f"{name}: {label}" for name in NAMES for label in ("red", "green", "blue")
    }


def test_the_trainer_trains_its_gates_alone(tmp_path: Path) -> None:
    model = learned()
    before = {name: value.clone() for name, value in model.named_parameters()}
    data = [{"pixel_values": image, "labels": torch.tensor(number)} for number, image in enumerate(images())]
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, learning_rate=0.01, report_to=[], use_cpu=True, save_strategy="no"
    )
    trainer = Trainer(model, args, train_dataset=data, eval_dataset=data)
    trainer.train()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved
    assert all(".mlp.gate." in name or ".mlp.hidden." in name for name in moved)
    assert trainer.predict(data).predictions.shape == (6, 9)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_a_router_without_a_head_or_a_vector_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no head for task 'hues'"):
        smile(tiny_base(), vectors(), tasks()[:2])
    with pytest.raises(UnknownNameError, match="no vector of task 'hues'"):
        mass(tiny_base(), {name: vectors()[name] for name in NAMES[:2]}, tasks())
    with pytest.raises(UnknownNameError, match="no head for task 'birds'"):
        evaluate_routed(models()["smile"], tiny_base(), dataclasses.replace(tasks()[0], name="birds"))


def test_bad_settings_are_refused_by_name() -> None:
    base = tiny_base()
    with pytest.raises(ValueError, match="gate_rank must be positive"):
        smile(base, vectors(), tasks(), gate_rank=0)
    with pytest.raises(ValueError, match="threshold must be in"):
        mass(base, vectors(), tasks(), threshold=2.0)
    with pytest.raises(UnknownNameError, match="map that the vectors change"):
        mass(base, vectors(), tasks(), layer="encoder.layers.9.mlp.fc1")
    with pytest.raises(UnknownNameError, match="Known: cls, mean"):
        mass(base, vectors(), tasks(), token="first")
    with pytest.raises(ValueError, match="got an artefact of emr"):
        twin(base, pack(vectors(), "emr"), tasks())
    with pytest.raises(UnknownNameError, match="objective of gates 'labels'"):
        we_moe(base, vectors(), tasks(), objective="labels")
    for call in (
        lambda: we_moe(base, vectors(), tasks(), split="test"),
        lambda: twin(base, pack(vectors(), "twin"), tasks(), split="test"),
    ):
        with pytest.raises(ValueError, match="transductive=True"):
            call()


def test_test_images_are_told_of_where_they_were_declared() -> None:
    base = tiny_base()
    seen = twin(base, pack(vectors(), "twin"), tasks(), split="test", images=8, transductive=True)
    assert evaluate_routed(seen, base, tasks()).transductive
    assert not evaluate_routed(models()["twin"], base, tasks()).transductive


def test_another_base_and_a_changed_projection_are_refused() -> None:
    base = tiny_base()
    other = dataclasses.replace(base, model=type(base.model)(base.model.config).eval())
    with pytest.raises(BaseMismatchError, match="has other values"):
        smile(other, vectors(), tasks())
    moved = TaskVector({"visual_projection.weight": torch.ones(16, 32)})
    with pytest.raises(DataError, match="visual_projection"):
        smile(base, {"colours": moved}, tasks()[:1])
    assert evaluate(base, tasks()[0]).accuracy >= 0
