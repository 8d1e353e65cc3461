"""Transport to another base: each method against brute force, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as DatasetImage
from editing import carrying, choosing, likening
from PIL import Image
from torch import Tensor
from torch.nn import functional
from typer.testing import CliRunner

from hf_taskvec import Base, Task, TaskVector, VectorInfo, evaluate, get_task, gradient_vector, load_base
from hf_taskvec.cards.render import render_vector_card, transport_words
from hf_taskvec.command.app import app
from hf_taskvec.editing import rotation, transport
from hf_taskvec.editing.permutation import assigned, match_permutations
from hf_taskvec.editing.rotation import Paired, completed
from hf_taskvec.editing.transport import METHODS
from hf_taskvec.errors import BaseMismatchError, DataError, IncompatibleVectorsError, UnknownNameError
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.weights.names import canonical, parameters_of
from recipes import analogies
from recipes import transport as recipe
from tests.bases import colours_task, save_colour_dataset, tiny_base
from tests.helpers import equal_vectors
from tests.toys import toy_base, toy_task

WIDTH, HEADS = 32, 2  # of tiny_base
MLP = 64


def noisy(base: Base, size: float, *, seed: int, name: str) -> Base:
    """A copy whose vision tower has moved at random."""
    model, generator = copy.deepcopy(base.model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.vision_model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return dataclasses.replace(base, model=model, name=name)


def vector_of(base: Base, *, seed: int = 5, name: str = "digits") -> TaskVector:
    moved = noisy(base, 0.02, seed=seed, name="moved")
    return TaskVector.from_models(base.model, moved.model, info=VectorInfo(base=base.name, task=name))


def shuffled(model: Any, *, seed: int) -> None:
    """Permutes a tower in place, module by module, so that it computes the same."""
    generator = torch.Generator().manual_seed(seed)

    def order(count: int) -> Tensor:
        return torch.randperm(count, generator=generator)

    tower, stream = model.vision_model, order(WIDTH)
    embeddings = tower.embeddings
    embeddings.class_embedding.copy_(embeddings.class_embedding[stream])
    embeddings.patch_embedding.weight.copy_(embeddings.patch_embedding.weight[stream])
    embeddings.position_embedding.weight.copy_(embeddings.position_embedding.weight[:, stream])
    for norm in (tower.pre_layrnorm, tower.post_layernorm):
        norm.weight.copy_(norm.weight[stream])
        norm.bias.copy_(norm.bias[stream])
    for layer in tower.encoder.layers:
        for norm in (layer.layer_norm1, layer.layer_norm2):
            norm.weight.copy_(norm.weight[stream])
            norm.bias.copy_(norm.bias[stream])
        size, heads = WIDTH // HEADS, order(HEADS).tolist()
        inside = [torch.cat([head * size + order(size) for head in heads]) for _ in range(2)]
        attention, neurons = layer.self_attn, order(MLP)
        rows = [(attention.q_proj, inside[0]), (attention.k_proj, inside[0]), (attention.v_proj, inside[1])]
        for linear, out in [*rows, (layer.mlp.fc1, neurons)]:
            linear.weight.copy_(linear.weight[out][:, stream])
            linear.bias.copy_(linear.bias[out])
        for linear, into in ((attention.out_proj, inside[1]), (layer.mlp.fc2, neurons)):
            linear.weight.copy_(linear.weight[stream][:, into])
            linear.bias.copy_(linear.bias[stream])
    model.visual_projection.weight.copy_(model.visual_projection.weight[:, stream])


@pytest.fixture(scope="module")
def old() -> Base:
    """A base whose biases and norms are no longer those of a new model, so that every permutation shows."""
    return noisy(tiny_base(), 0.05, seed=1, name="old")


@pytest.fixture(scope="module")
def permuted_copy(old: Base) -> Base:
    model = copy.deepcopy(old.model)
    with torch.no_grad():
        shuffled(model, seed=3)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before, after = (one.get_image_features(pixel_values=pixels).pooler_output for one in (old.model, model))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)  # the same function: a symmetry of the tower
    return dataclasses.replace(old, model=model, name="permuted")


# -- rebasin ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_permuted_copy_is_matched_exactly(old: Base, permuted_copy: Base, noise: float) -> None:
    vector = vector_of(old)
    moved = copy.deepcopy(vector.apply_to(old).model)
    with torch.no_grad():
        shuffled(moved, seed=3)
    expected = TaskVector.from_models(permuted_copy.model, moved)
    near = noisy(permuted_copy, noise, seed=4, name="near")
    brought = transport(vector, to=near, method="rebasin", source=old)
    assert equal_vectors(brought, TaskVector({name: expected[name] for name in vector.deltas}))


def test_rebasin_brings_the_weights_closer_than_no_permutation(old: Base) -> None:
    other = noisy(tiny_base(), 1.0, seed=9, name="other")
    orders = match_permutations(old, other)
    assert set(orders) == {"residual", *(f"{layer}.{kind}" for layer in (0, 1) for kind in ("mlp", "qk", "vo"))}
    assert all(order.sort().values.equal(torch.arange(len(order))) for order in orders.values())
    mine, theirs = (parameters_of(base.model.vision_model) for base in (old, other))
    turned = transport(TaskVector(mine), to=other, method="rebasin", source=old)
    apart = [sum(float((theirs[name] - one[name]).square().sum()) for name in mine) for one in (mine, turned)]
    assert apart[1] < apart[0]


def test_the_entries_of_a_head_stay_together(old: Base) -> None:
    orders = match_permutations(old, noisy(tiny_base(), 1.0, seed=9, name="other"))
    size = WIDTH // HEADS
    for layer in (0, 1):
        heads = [(orders[f"{layer}.{kind}"] // size).view(HEADS, size) for kind in ("qk", "vo")]
        assert all(bool((of_head == of_head[0]).all()) for kind in heads for of_head in kind)
        assert torch.equal(heads[0], heads[1])


def test_rebasin_of_a_tower_looks_at_no_projection_of_another_width(old: Base) -> None:
    model = copy.deepcopy(old.model)
    model.visual_projection = torch.nn.Linear(WIDTH, 24, bias=False)
    vector, other = vector_of(old), dataclasses.replace(old, model=model, name="other")
    assert equal_vectors(transport(vector, to=other, method="rebasin", source=old), vector)


def test_an_assignment_is_the_best_of_all() -> None:
    likeness = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    best = max(permutations(range(5)), key=lambda order: sum(likeness[row, column] for row, column in enumerate(order)))
    assert assigned(likeness).tolist() == list(best)


# -- theseus ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whitening", [0.0, 0.4])
def test_an_orthogonally_turned_copy_is_found(whitening: float) -> None:
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    rows = torch.randn(50, 6, generator=generator, dtype=torch.float64) * torch.arange(1.0, 7.0)
    paired = Paired()
    for part in rows.split(11):  # enough for the rows to be put together on the way
        paired.add(part + 3, part @ turn - 1)  # means do not count
    torch.testing.assert_close(paired.rotation(whitening), turn, rtol=1e-6, atol=1e-6)


def test_a_rotation_from_few_rows_is_orthogonal_and_right_on_them() -> None:
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q
    rows = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    paired = Paired()
    paired.add(rows, rows @ turn)
    chosen = paired.rotation(0.4)
    torch.testing.assert_close(chosen @ chosen.T, torch.eye(9, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    centred = rows - rows.mean(dim=0)
    torch.testing.assert_close(centred @ chosen, centred @ turn, rtol=1e-6, atol=1e-6)


def test_what_is_not_shown_turns_as_little_as_can_be() -> None:
    generator = torch.Generator().manual_seed(2)
    old, new = (torch.linalg.qr(torch.randn(5, 2, generator=generator).double()).Q for _ in range(2))
    best = completed(old, new)
    rest = torch.linalg.qr(old, mode="complete").Q[:, 2:]
    for seed in range(50):  # any other completion is farther from the identity
        turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed)).double()).Q
        other = (torch.eye(5) + rest @ (turn - torch.eye(3)) @ rest.T) @ best
        torch.testing.assert_close(old.T @ other, new.T)
        assert (other - torch.eye(5)).norm() >= (best - torch.eye(5)).norm() - 1e-9


def test_theseus_brings_the_linear_maps_of_a_permuted_copy_to_the_copys(old: Base, permuted_copy: Base) -> None:
    names = ["self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"]
    names = [f"vision_model.encoder.layers.1.{name}.weight" for name in names]
    mine, theirs = (canonical(base.model.named_parameters()) for base in (old, permuted_copy))
    vector = TaskVector({name: mine[name].detach() for name in names}, VectorInfo(base="old"))
    brought = transport(
        vector, to=permuted_copy, tasks=colours_task(), method="theseus", source=old, images_per_class=None
    )
    seen: dict[str, Tensor] = {}
    modules = dict(permuted_copy.model.named_modules())
    hooks = [
        modules[name.removesuffix(".weight")].register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].flatten(0, 1)})
        )
        for name in names
    ]
    with torch.no_grad():
        pixels = load_pixels(colours_task(), "train", permuted_copy.processor.image_processor)
        images = pixels.__getitems__(range(20))["pixel_values"]
        ImageClassifier(permuted_copy, colours_task()).normalize(images)
        permuted_copy.model.vision_model(ImageClassifier(permuted_copy, colours_task()).normalize(images))
    for hook in hooks:
        hook.remove()
    for name in names:
        inputs = seen[name] - seen[name].mean(dim=0)
        torch.testing.assert_close(inputs @ brought[name].T, inputs @ theirs[name].T, rtol=1e-3, atol=1e-3)


def test_what_theseus_cannot_rotate_is_refused_before_any_image_is_shown(
    old: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(old.model)
    model.vision_model.encoder.layers[1].mlp.fc2 = torch.nn.Bilinear(1, MLP, WIDTH)
    strange = dataclasses.replace(old, model=model, name="strange")
    vector = TaskVector({name: torch.ones_like(value) for name, value in parameters_of(model.vision_model).items()})
    monkeypatch.setattr(rotation, "_rotations", lambda *_: pytest.fail("images were shown"))
    with pytest.raises(IncompatibleVectorsError, match=r"theseus rotates linear maps and norms.*fc2"):
        transport(vector, to=strange, method="theseus", source=strange, tasks=colours_task())


# -- gradfix ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("force", [False, True])
def test_gradfix_is_the_loop_over_entries(force: bool) -> None:
    base, task = toy_base(), toy_task(images=20)
    vector = vector_of(base)
    brought = transport(vector, to=base, tasks=task, images_per_class=None, force=force)
    classifier = ImageClassifier(base, task).eval()
    pixels = load_pixels(task, "train", base.processor.image_processor)
    for row in range(len(pixels)):  # one image after the other
        batch = pixels.__getitems__([row])
        loss = functional.cross_entropy(classifier(batch["pixel_values"])["logits"], batch["labels"])
        (loss / len(pixels)).backward()
    name = "vision_model.encoder.layers.1.mlp.fc2.weight"
    gradient = canonical(classifier.named_parameters())[name].grad
    assert gradient is not None
    told = 0
    for delta, slope, got in zip(
        vector[name].flatten().tolist(), gradient.flatten().tolist(), brought[name].flatten().tolist(), strict=True
    ):
        if abs(slope) < 1e-4 * float(gradient.abs().max()):  # its sign is rounding
            continue
        told += 1
        expected = (abs(delta) if slope < 0 else -abs(delta)) if force else (delta if delta * slope < 0 else 0.0)
        assert got == expected
    assert told > 0.9 * gradient.numel()


def test_the_gradient_vector_of_the_same_images_passes_gradfix_whole() -> None:
    base, task = toy_base(), toy_task(images=20)
    step = gradient_vector(base, task, learning_rate=0.1)
    assert equal_vectors(transport(step, to=base, tasks=task, images_per_class=None), step)
    assert transport(step * -1.0, to=base, tasks=task, images_per_class=None).is_zero


def test_gradfix_sees_so_many_images_of_each_class(old: Base) -> None:
    brought = transport(vector_of(old), to=old, tasks=colours_task(), images_per_class=1, seed=4)
    told = brought.info.transport
    assert told is not None
    assert (told["tasks"], told["images_per_class"], told["seed"]) == (["colours"], 1, 4)
    assert not equal_vectors(brought, transport(vector_of(old), to=old, tasks=colours_task(), images_per_class=5))


# -- the shift --------------------------------------------------------------------------------------------------------


def test_what_is_left_of_a_delta_is_orthogonal_to_the_shift_of_the_base(old: Base) -> None:
    new, vector = noisy(old, 0.1, seed=8, name="new"), vector_of(old)
    shift = TaskVector.from_models(old.model, new.model)
    whole = transport(vector, to=new, method="orthogonal_shift", source=old)
    half = transport(vector, to=new, method="orthogonal_shift", source=old, share=0.5)
    for name in vector.deltas:
        s, delta = shift[name].double().flatten(), vector[name].double().flatten()
        assert abs(float(s @ whole[name].double().flatten())) <= 1e-5 * float(s.norm() * delta.norm())
        torch.testing.assert_close(half[name], (vector[name] + whole[name]) / 2)


# -- of all methods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["orthogonal_shift", "theseus", "rebasin"])
def test_a_vector_brought_to_its_own_base_is_itself(old: Base, method: str) -> None:
    vector = vector_of(old)
    brought = transport(vector, to=old, method=method, source=old, tasks=colours_task())
    for name in vector.deltas:
        if method == "theseus" and "embeddings" in name:
            assert not brought[name].any()
        else:
            torch.testing.assert_close(brought[name], vector[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_vector_is_the_new_bases_and_tells_both(old: Base, method: str, tmp_path: Path) -> None:
    new, vector = noisy(old, 0.1, seed=8, name="user/new"), vector_of(old)
    with pytest.raises(BaseMismatchError, match=r"hf_taskvec\.editing\.transport\(vector, to=base\)"):
        vector.apply_to(new)
    transport(vector, to=new, method=method, source=old, tasks=colours_task()).save_pretrained(tmp_path / "brought")
    brought = TaskVector.from_pretrained(tmp_path / "brought")
    assert brought.apply_to(new).edited
    with pytest.raises(BaseMismatchError):
        brought.apply_to(old)
    told = brought.info.transport
    assert told is not None
    assert (brought.info.base, told["base"], told["method"]) == ("user/new", "old", method)
    assert told["base_fingerprint"] == vector.info.base_fingerprint
    assert brought.info.task == "digits"
    card = render_vector_card(brought.info, repo_id="user/brought")
    assert f"of `digits`: brought to `user/new` from old by {method}" in card.replace("\\", "")
    again = transport(brought, to=new, tasks=colours_task())
    assert f"; before that from old by {method}" in str(transport_words(again.info.transport))


def test_a_strangers_transport_breaks_no_card() -> None:
    for told in ({}, {"base": 3, "tasks": 4}, {"earlier": "x", "method": None}):
        render_vector_card(VectorInfo(transport=told), repo_id="user/x")


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_base_of_another_architecture_is_refused_with_the_shapes(old: Base, method: str) -> None:
    with pytest.raises(IncompatibleVectorsError, match=r"shape \(32,\) in the vector and \(64,\) in 'toy'"):
        transport(vector_of(old), to=toy_base(), method=method, source=old, tasks=colours_task())


def test_other_heads_are_another_architecture(old: Base) -> None:
    model = copy.deepcopy(old.model)
    model.config.vision_config.num_attention_heads = 4
    other = dataclasses.replace(old, model=model, name="other")
    with pytest.raises(IncompatibleVectorsError, match="'old' has 2 attention heads a layer and 'other' 4"):
        transport(vector_of(old), to=other, method="rebasin", source=old)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"method": "gradfx"}, UnknownNameError, "Did you mean 'gradfix'"),
        ({"whitening": 0.4}, UnknownNameError, "setting of gradfix"),
        ({"force": 1}, ValueError, "force of gradfix must be true or false, got 1"),
        ({"method": "theseus", "whitening": 0.7}, ValueError, r"whitening must be in \[0, 0.5\], got 0.7"),
        ({"method": "orthogonal_shift", "share": float("nan")}, ValueError, "share"),
        ({"images_per_class": 0}, ValueError, "images_per_class"),
        ({"seed": -1}, ValueError, "^seed must be a whole number of at least 0, got -1"),
        ({"seed": 0.5, "method": "rebasin"}, ValueError, "^seed must be a whole number of at least 0, got 0.5"),
        ({"tasks": []}, DataError, "transport needs at least one task"),
        ({"tasks": None}, DataError, r"name the tasks: transport\(\.\.\., tasks=\.\.\.\)"),
        ({"to": "user/clip"}, TypeError, "load one by load_base"),
        ({"to": "edited"}, ValueError, "was added to 'old' already"),
        ({"method": "rebasin", "source": "other"}, BaseMismatchError, "'other' has other values"),
        ({"method": "rebasin", "source": None}, ValueError, "does not tell its base: pass it as source="),
    ],
)
def test_bad_input_is_refused(old: Base, changed: dict[str, Any], error: type[Exception], message: str) -> None:
    vector = vector_of(old)
    if changed.get("to") == "edited":
        changed = {"to": vector.apply_to(old)}
    if changed.get("source") == "other":
        changed = {**changed, "source": noisy(old, 0.1, seed=2, name="other")}
    if changed.get("source", 0) is None:
        vector = TaskVector(vector.deltas)
    with pytest.raises(error, match=message):
        transport(vector, **{"to": old, "tasks": colours_task(), **changed})


def test_a_base_without_proof_is_told(old: Base, caplog: pytest.LogCaptureFixture) -> None:
    transport(TaskVector(vector_of(old).deltas), to=old, method="orthogonal_shift", source=old)
    assert "no fingerprint of its base" in caplog.text


# -- the recipes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "STEPS", (1, 2))
    for module in (carrying, likening):
        monkeypatch.setattr(module, "RATES", (1e-3,))


@pytest.mark.usefixtures("few_steps")
def test_the_recipe_of_transport_goes_on_and_writes_its_page(old: Base, tmp_path: Path) -> None:
    for base, name in ((old, "old"), (noisy(old, 0.05, seed=2, name="new"), "new")):
        base.save_pretrained(tmp_path / name)
    save_colour_dataset(tmp_path / "data" / "colours")
    for seed in (0, 1):
        vector = vector_of(load_base(tmp_path / "old"), seed=seed, name="colours")
        vector.save_pretrained(tmp_path / "out" / f"seed-{seed}" / "colours" / "vector")
    wanted = recipe.TransportArguments(
        folder=str(tmp_path / "out"),
        to=str(tmp_path / "new"),
        tasks=["colours"],
        base=str(tmp_path / "old"),
        data_dir=str(tmp_path / "data"),
        ways=["base", "plain", "rebasin, gradfix", "gradient", "few-shot"],
        results_dir=str(tmp_path / "results"),
        table=str(tmp_path / "page.md"),
    )
    page = recipe.main(wanted)
    assert page == recipe.main(wanted) == (tmp_path / "page.md").read_text()
    assert len(list((tmp_path / "results").glob("seed-1-colours-*.json"))) == 2 * 5  # each with its plan
    accuracy = evaluate(load_base(tmp_path / "new"), Task.from_dataset(tmp_path / "data" / "colours")).accuracy
    assert f"\n| colours | {100 * accuracy:.1f} ± 0.0 |" in page
    assert "`rebasin, gradfix`: at least 15 points over the new base on" in page


@pytest.mark.usefixtures("few_steps")
def test_the_recipe_of_analogies_makes_its_vectors_and_writes_its_page(
    old: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old.save_pretrained(tmp_path / "old")
    for name in ("mnist", "gtsrb"):
        save_colour_dataset(tmp_path / "data" / name)
    monkeypatch.setitem(
        likening.EXAMPLES, "scans", likening.Example("words", lambda tasks: (*[tasks["digits"]] * 3, tasks["mnist"]))
    )
    wanted = analogies.AnalogiesArguments(
        data_dir=str(tmp_path / "data"),
        examples=["scans"],
        base=str(tmp_path / "old"),
        seeds=[0],
        epochs=1,
        max_train=12,
        max_validation=30,
        max_test=30,
        results_dir=str(tmp_path / "results"),
        table=str(tmp_path / "page.md"),
    )
    page = analogies.main(wanted)
    assert page == analogies.main(wanted)
    made = {path.name for path in (tmp_path / "results" / "seed-0").iterdir()}
    assert {"digits", "scans-0.json", "scans-4.json"} <= made
    assert "mnist" not in made  # the fourth is not trained on
    rows = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in page.splitlines() if row.startswith("| ")}
    assert "scans" in rows


def test_the_parts_of_the_analogies_are_what_they_are_called() -> None:
    random = np.random.default_rng(0)
    greys = random.integers(0, 256, size=400)
    rows = {
        "image": [Image.new("RGB", (4, 4), (int(grey),) * 3) for grey in greys],
        "label": [i % 4 for i in range(400)],
    }
    features = Features({"image": DatasetImage(), "label": ClassLabel(names=list("abcd"))})
    data = Dataset.from_dict(rows, features=features)
    task = Task.from_dataset(DatasetDict(train=data, test=data.select(range(40))), name="signs")
    quarters = likening.light({"gtsrb": task})
    middle = np.median([likening.brightness(row) for row in task.load("train")])
    for part, odd, dark in zip(quarters, (0, 0, 1, 1), (False, True, False, True), strict=True):
        for row in part.load("test"):
            assert row["label"] % 2 == odd
            assert (likening.brightness(row) < middle) == dark
    assert sum(len(part.load("test")) for part in quarters) == 40
    quarters = likening.scans({"mnist": get_task("digits"), "digits": get_task("digits")})
    for part, labels in zip(quarters, [range(5)] * 2 + [range(5, 10)] * 2, strict=True):
        assert set(part.load("test")["label"][:]) == set(labels)


# -- the command ------------------------------------------------------------------------------------------------------


def test_the_verbs_save_what_they_make(tmp_path: Path) -> None:
    old, new = tiny_base(), noisy(tiny_base(), 0.05, seed=1, name="new")
    for base, name in ((old, "old"), (new, "new")):
        base.save_pretrained(tmp_path / name)
    for number, name in enumerate("abc"):
        vector_of(old, seed=number, name=name).save_pretrained(tmp_path / name)
    run = CliRunner().invoke
    words = [
        "transport",
        str(tmp_path / "a"),
        "--to",
        str(tmp_path / "new"),
        "--task",
        "digits",
        "-o",
        str(tmp_path / "to"),
    ]
    result = run(app, [*words, "-s", "force=true", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["transport"]["force"] is True
    assert TaskVector.from_pretrained(tmp_path / "to").info.base == "new"
    again = run(app, words)
    assert (again.exit_code, "holds a vector already" in again.stderr) == (1, True)
    words = ["analogy", *(str(tmp_path / name) for name in "abc"), "-o", str(tmp_path / "d")]
    result = run(app, [*words, "--factor", "0.5"])
    assert result.exit_code == 0, result.output
    fourth = TaskVector.from_pretrained(tmp_path / "d")
    a, b, c = (TaskVector.from_pretrained(tmp_path / name) for name in "abc")
    assert equal_vectors(fourth, c + 0.5 * (b - a))
    chosen = run(app, [*words, "--overwrite", "--base", str(tmp_path / "old"), "--task", "shapes", "--json"])
    assert chosen.exit_code == 0, chosen.output
    told = json.loads(chosen.stdout)
    assert told["factor"] == max(map(float, told["information"]), key=lambda one: told["information"][f"{one:g}"])
