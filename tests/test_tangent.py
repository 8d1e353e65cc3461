"""The tangent space: the linearised model against its explicit Jacobian, training in it, and disentanglement."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_taskvec import (
    Base,
    TaskVector,
    TaskVectorConfig,
    TaskVectorTrainer,
    evaluate,
    gradient_vector,
    load_base,
    merge,
)
from hf_taskvec.cards.render import render_vector_card
from hf_taskvec.editing import Disentanglement, disentanglement, linearize, nonlinear_advantage, transport
from hf_taskvec.errors import CheckpointError, UnknownNameError
from hf_taskvec.evaluation.accuracy import predict
from hf_taskvec.evaluation.plots import plot_disentanglement
from hf_taskvec.models.classifier import ImageClassifier, classify
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.routing.making import given
from hf_taskvec.statistics import collect_statistics
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.training import alternating_tuning_and_merging
from hf_taskvec.training.run import quiet
from hf_taskvec.tuning.prefix import stages
from hf_taskvec.weights.names import parameters_of
from recipes import tangent_space
from tests.bases import save_tiny_base
from tests.helpers import equal_vectors, finetuned
from tests.siglip import save_tiny_siglip
from tests.toys import toy_base, toy_task, wide_base

PIXELS = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
DIGITS, SHAPES = toy_task(images=24), toy_task("shapes", images=24)
LINEAR = linearize(wide_base())


def moved(*, seed: int = 1, size: float = 0.01, projection: bool = True) -> TaskVector:
    """A random vector of the wide base, with its projection."""
    base = wide_base().model
    model = finetuned(base, seed=seed, size=size)
    if projection:
        with torch.no_grad():
            noise = torch.randn(model.visual_projection.weight.shape, generator=torch.Generator().manual_seed(seed))
            model.visual_projection.weight.add_(size * noise)
    return TaskVector.from_models(base, model, include_projection=projection)


def features(base: Base) -> Tensor:
    """Image features (2, F)."""
    with torch.no_grad():
        result: Tensor = base.model.visual_projection(base.model.vision_model(PIXELS).pooler_output)
        return result


def jacobian() -> dict[str, Tensor]:
    """The explicit derivative of the wide base's image features by each parameter, (2, F, ...)."""

    def call(weights: dict[str, Tensor]) -> Tensor:
        tower = {name.removeprefix("vision_model."): w for name, w in weights.items() if name.startswith("vision")}
        pooled = functional_call(model.vision_model, tower, (PIXELS,)).pooler_output
        return pooled @ weights["visual_projection.weight"].T

    model = wide_base().model
    with sdpa_kernel(SDPBackend.MATH):  # the one that `vmap` knows
        result: dict[str, Tensor] = jacrev(call)({name: parameters_of(model)[name] for name in moved().deltas})
    return result


@pytest.fixture(scope="module")
def explicit() -> dict[str, Tensor]:
    return jacobian()


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(save_tiny_siglip(tmp_path_factory.mktemp("siglip")))


# -- the mathematics --------------------------------------------------------------------------------------------------


def test_it_is_the_value_at_the_base_plus_the_explicit_jacobian_times_the_step(explicit: dict[str, Tensor]) -> None:
    vector = moved(size=0.3)
    change = sum(torch.einsum("nf...,...->nf", explicit[name], delta) for name, delta in vector.deltas.items())
    torch.testing.assert_close(features(vector.apply_to(LINEAR)), features(wide_base()) + change, rtol=1e-9, atol=1e-9)
    assert (features(vector.apply_to(wide_base())) - features(wide_base()) - change).abs().max() > 0.01  # it is curved


def test_the_jacobian_is_that_of_finite_differences() -> None:
    step, vector = 1e-4, moved()
    ahead, behind = (features(vector.apply_to(wide_base(), scaling=sign * step)) for sign in (1, -1))
    change = features(vector.apply_to(LINEAR)) - features(wide_base())
    torch.testing.assert_close((ahead - behind) / (2 * step), change, rtol=1e-5, atol=1e-6)


def test_it_is_linear_in_the_weights() -> None:
    one, two, start = moved(seed=1), moved(seed=2), features(LINEAR)
    first, second = (features(vector.apply_to(LINEAR)) - start for vector in (one, two))
    both = features((7 * one - 3 * two).apply_to(LINEAR))
    torch.testing.assert_close(both, start + 7 * first - 3 * second, rtol=1e-9, atol=1e-9)


def test_its_gradient_is_that_of_the_explicit_jacobian_at_every_point(explicit: dict[str, Tensor]) -> None:
    classifier = ImageClassifier(moved(size=0.1).apply_to(LINEAR), DIGITS, include_projection=True)
    weight = torch.randn(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (classify(classifier, classifier.head, PIXELS) * weight).sum().backward()
    values = features(moved(size=0.1).apply_to(LINEAR)).requires_grad_()
    (torch.nn.functional.normalize(values, dim=-1) @ classifier.head.T * weight).sum().backward()
    for name, parameter in classifier.named_parameters():
        wanted = torch.einsum("nf...,nf->...", explicit[name], values.grad)
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-8, atol=1e-9, msg=name)


def test_at_the_base_it_is_the_base(siglip: Base) -> None:
    for base in (toy_base(), siglip):
        logits, _ = predict(base, DIGITS, progress=False)
        torch.testing.assert_close(predict(linearize(base), DIGITS, progress=False)[0], logits, rtol=0, atol=1e-4)


def test_siglip_is_linear_too(siglip: Base) -> None:
    vector, linear = TaskVector.from_models(siglip.model, finetuned(siglip.model, size=0.05)), linearize(siglip)
    pixels = PIXELS.float()
    with torch.no_grad():
        start, one, four = (
            model.model.vision_model(pixels).pooler_output
            for model in (linear, vector.apply_to(linear), vector.apply_to(linear, scaling=4))
        )
    torch.testing.assert_close(four, start + 4 * (one - start), rtol=1e-3, atol=1e-4)
    assert (one - start).abs().max() > 1e-2


def test_what_is_frozen_has_no_gradient_and_still_counts() -> None:
    vector = moved(projection=False)
    classifier = ImageClassifier(vector.apply_to(LINEAR), DIGITS)
    classifier.freeze_except(["*.mlp.fc1.weight"])
    logits = classify(classifier, classifier.head, PIXELS)
    logits.sum().backward()
    assert {name.split(".", 4)[-1] for name, p in classifier.named_parameters() if p.grad is not None} == {
        "mlp.fc1.weight"
    }
    expected = classify(vector.apply_to(LINEAR).model, classifier.head, PIXELS)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


def test_only_the_weights_are_its_parameters_and_the_point_of_expansion_goes_with_them() -> None:
    linear = linearize(toy_base())
    assert list(parameters_of(linear.model)) == list(parameters_of(toy_base().model))
    assert set(linear.model.state_dict()) == set(toy_base().model.state_dict())
    wide = dataclasses.replace(linear, model=copy.deepcopy(linear.model).double())
    there = features(moved().apply_to(wide, allow_other_base=True))
    torch.testing.assert_close(there, features(moved().apply_to(LINEAR)))
    assert linear.linearized
    assert "linearized" in repr(linear)
    assert not toy_base().linearized


def test_the_base_is_left_alone_and_later_changes_of_it_do_not_matter() -> None:
    base = dataclasses.replace(wide_base(), model=copy.deepcopy(wide_base().model))
    linear = linearize(base)
    before = features(linear)
    with torch.no_grad():
        for parameter in base.model.vision_model.parameters():
            parameter.add_(0.1)
    assert torch.equal(features(linear), before)


# -- training ---------------------------------------------------------------------------------------------------------


def settings(folder: Path, **changes: Any) -> TaskVectorConfig:
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 16,
        "warmup_steps": 0,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
    }
    return TaskVectorConfig(**{**defaults, **changes})


def trained(folder: Path, *, keyword: bool = False, resume: bool = False, **changes: Any) -> TaskVectorTrainer:
    extra = {"tangent": True} if keyword else {}
    trainer = TaskVectorTrainer(toy_base(), settings(folder, **changes), task=DIGITS, **extra)
    quiet(trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TaskVectorTrainer:
    return trained(tmp_path_factory.mktemp("tangent"), tangent=True, include_projection=True)


def test_a_run_in_the_tangent_space_is_evaluated_there(run: TaskVectorTrainer, tmp_path: Path) -> None:
    vector = run.task_vector()
    accuracy = evaluate(vector.apply_to(linearize(toy_base())), [DIGITS], progress=False).accuracy
    assert run.evaluate("test")["eval_accuracy"] == pytest.approx(accuracy)
    assert not equal_vectors(vector, trained(tmp_path, include_projection=True).task_vector())


def test_its_first_full_batch_step_is_the_gradient_and_its_second_that_of_the_linear_model(tmp_path: Path) -> None:
    rate = 0.5
    common: dict[str, Any] = {"tangent": True, "full_batch": True, "learning_rate": rate}
    runs = [trained(tmp_path / f"{epochs}", num_train_epochs=epochs, **common) for epochs in (1, 2)]
    first, second = (trainer.task_vector() for trainer in runs)
    ordinary = gradient_vector(toy_base(), DIGITS, learning_rate=rate)
    assert (first - ordinary).norm() < 1e-4 * ordinary.norm()
    classifier = ImageClassifier(first.apply_to(linearize(toy_base())), DIGITS)
    pixels = load_pixels(DIGITS, "train", toy_base().processor.image_processor)
    batch = pixels.__getitems__(range(len(pixels)))
    torch.nn.functional.cross_entropy(classifier(batch["pixel_values"])["logits"], batch["labels"]).backward()
    for name, parameter in classifier.named_parameters():
        if parameter.grad is not None:
            wanted = first[name] - rate * parameter.grad
            torch.testing.assert_close(second[name], wanted, rtol=1e-2, atol=1e-4 * float(first.norm()), msg=name)


def test_a_vector_tells_that_it_is_tangent_and_so_does_a_merge(run: TaskVectorTrainer, tmp_path: Path) -> None:
    vector = run.task_vector()
    vector.save_pretrained(tmp_path / "vector")
    assert TaskVector.from_pretrained(tmp_path / "vector").info.settings["tangent"] is True
    assert merge([vector, vector], "ties").info.tangent
    assert (2 * vector).info.tangent
    assert not moved().info.tangent


def test_its_card_shows_the_model_that_it_is_for(run: TaskVectorTrainer) -> None:
    card = render_vector_card(run.task_vector().info, repo_id="user/vector")
    assert "base = linearize(load_base(" in card
    assert "from hf_taskvec.editing import linearize" in card
    assert "linearize" not in render_vector_card(moved().info, repo_id="user/vector")


def test_a_tangent_vector_on_the_ordinary_model_is_told(
    run: TaskVectorTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vector = run.task_vector()
    vector.apply_to(linearize(toy_base()))
    assert "tangent space" not in caplog.text
    vector.apply_to(toy_base())
    assert "trained in the tangent space" in caplog.text
    assert "linearize(base)" in caplog.text
    caplog.clear()
    vector.save_checkpoint(toy_base(), tmp_path / "model")
    assert "trained in the tangent space" in caplog.text
    caplog.clear()
    moved(projection=False).apply_to(wide_base())
    assert caplog.text == ""


def test_the_keyword_is_the_setting_and_a_stopped_run_goes_on(run: TaskVectorTrainer, tmp_path: Path) -> None:
    common: dict[str, Any] = {"include_projection": True, "keyword": True, "save_strategy": "epoch"}
    trained(tmp_path, num_train_epochs=1, lr_scheduler_type="constant", **common)
    again = trained(tmp_path, num_train_epochs=2, lr_scheduler_type="constant", resume=True, **common).task_vector()
    whole = trained(tmp_path / "whole", lr_scheduler_type="constant", include_projection=True, tangent=True)
    assert equal_vectors(again, whole.task_vector())


def test_in_half_precision_it_trains_too(run: TaskVectorTrainer, tmp_path: Path) -> None:
    vector, half = run.task_vector(), trained(tmp_path, tangent=True, include_projection=True, bf16=True).task_vector()
    assert vector.cosine(half) > 0.9


# -- disentanglement --------------------------------------------------------------------------------------------------


FEW = [subset(task, max_test=8) for task in (DIGITS, SHAPES)]


def slowly(base: Base, vectors: dict[str, TaskVector], factors: list[float]) -> list[list[float]]:
    """ξ by its definition: a model and a prediction for every pair of factors and every image."""
    rows = []
    for one in factors:
        row = []
        for other in factors:
            error = 0.0
            both = (one * vectors["digits"] + other * vectors["shapes"]).apply_to(base)
            for task, factor in zip(FEW, (one, other), strict=True):
                alone = (factor * vectors[task.name]).apply_to(base)
                head = zero_shot_head(base, task.class_names, task.templates)
                images = load_pixels(task, "test", base.processor.image_processor)
                wrong = 0
                for number in range(len(images)):
                    pixels = Normalize(base)(images.__getitems__([number])["pixel_values"])
                    with torch.no_grad():
                        left, right = (classify(model.model, head, pixels).argmax() for model in (alone, both))
                    wrong += int(left != right)
                error += wrong / len(images)
            row.append(error)
        rows.append(row)
    return rows


@pytest.mark.parametrize("make", [lambda base: base, linearize], ids=["ordinary", "linearised"])
def test_the_map_is_what_a_slow_double_loop_gives(make: Callable[[Base], Base]) -> None:
    base, factors = make(wide_base()), [-1.0, 2.0]
    vectors = {"digits": moved(seed=1, size=0.02), "shapes": moved(seed=2, size=0.02)}
    found = disentanglement(base, vectors, FEW, factors=factors, progress=False)
    expected = slowly(base, vectors, factors)
    np.testing.assert_allclose(found.errors, expected, atol=1e-9)
    assert 0 < found.errors.max() <= 2
    swapped = disentanglement(base, vectors, FEW[::-1], factors=factors, progress=False)
    np.testing.assert_allclose(swapped.errors, np.transpose(expected), atol=1e-9)


def test_alone_a_vector_has_no_error_on_its_own_task() -> None:
    vectors = {"digits": moved(seed=1, size=0.02), "shapes": moved(seed=2, size=0.02)}
    found = disentanglement(wide_base(), vectors, [DIGITS, SHAPES], factors=[0, 2], images=10, progress=False)
    assert not found.differs[0][:, 0].any()
    assert not found.differs[1][0].any()
    assert found.differs[1][1].any()
    assert found.differs[0].shape == (2, 2, 10)


def test_intervals_hold_their_means_and_cover_the_truth() -> None:
    chance = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        differs = tuple(chance.random((1, 1, size)) < rate for size, rate in ((60, 0.05), (200, 0.3)))
        one = Disentanglement(("a", "b"), (1.0,), differs)
        low, high = one.at(1, 1).low, one.at(1, 1).high
        assert low <= one.errors[0, 0] <= high
        covered += low <= 0.35 <= high
    assert 0.91 <= covered / 300 <= 0.99
    assert one.error.low <= one.error.mean <= one.error.high
    with pytest.raises(ValueError, match=r"factor 2 was not tried; of 1\.0"):
        one.at(1, 2)
    nothing = Disentanglement(("a", "b"), (1.0,), (np.zeros((1, 1, 9), bool), np.zeros((1, 1, 9), bool)))
    assert nothing.at(1, 1).mean == nothing.at(1, 1).low == 0 < nothing.at(1, 1).high


def test_the_advantage_is_the_difference_of_accuracies_by_what_chance_leaves() -> None:
    vector = moved(size=0.05)
    usual, linear = (evaluate(vector.apply_to(m), [DIGITS], progress=False).accuracy for m in (wide_base(), LINEAR))
    found = nonlinear_advantage(wide_base(), vector, DIGITS, progress=False)
    assert found.mean == pytest.approx((usual - linear) / 0.9)
    assert found.low <= found.mean <= found.high
    still = nonlinear_advantage(wide_base(), vector, DIGITS, tangent=0 * vector, progress=False)
    assert still.mean == pytest.approx((usual - evaluate(wide_base(), [DIGITS], progress=False).accuracy) / 0.9)


def test_the_figure_shows_each_map_with_the_first_factor_to_the_right() -> None:
    figure = plot_disentanglement(
        {"one": [[0, 0.5], [1.5, 0]], "two": [[0, 0], [0, 0]]}, factors=[-1, 1], tasks=("a", "b")
    )
    panel = figure.axes[0]
    assert np.asarray(panel.images[0].get_array()).tolist() == [[0, 1.5], [0.5, 0]]
    assert (panel.get_xlabel(), panel.get_title(), len(figure.axes)) == ("factor of a", "one", 3)


def test_the_recipe_tells_all_ways_and_reads_what_it_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = tangent_space.TangentArguments(
        base=str(save_tiny_base(tmp_path / "base")),
        tasks=["digits", "shapes"],
        max_train=32,
        max_validation=20,
        max_test=20,
        scalings=[0.5, 1.0],
        factors=[0.0, 1.0],
        map_images=10,
        tak=1.0,
        table=str(tmp_path / "page.md"),
    )
    config = settings(tmp_path / "out")
    page = tangent_space.main(args, config)
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")][:7] == [
        "| way",
        "| ---",
        "| base",
        "| ordinary",
        "| post hoc",
        "| tangent",
        "| held",
    ]
    assert "Summed up, tangent vectors have" in page
    assert "Alone, held vectors have" in page
    assert (tmp_path / "page.png").is_file()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*") if path.is_file()}
    assert tangent_space.main(args, config) == page
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.parametrize(("pairs", "words"), [(["digits"], "two by two, got 1"), (["digits", "faces"], "faces")])
def test_the_recipe_refuses_half_a_pair_and_tasks_that_are_not_trained(pairs: list[str], words: str) -> None:
    args = tangent_space.TangentArguments(tasks=["digits", "shapes"], pairs=pairs)
    with pytest.raises(ValueError, match=words):
        tangent_space.pairs_of([DIGITS, SHAPES], args)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_attention_without_a_forward_derivative_is_refused_by_name(tmp_path: Path) -> None:
    base = dataclasses.replace(toy_base(), model=copy.deepcopy(toy_base().model))
    base.model.vision_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(CheckpointError, match=r"'flash_attention_2'.*attn_implementation='eager'"):
        linearize(base)
    with pytest.raises(CheckpointError, match=r"'flash_attention_2'.*attn_implementation='eager'"):
        TaskVectorTrainer(base, settings(tmp_path), task=DIGITS, tangent=True)


def test_a_linearised_base_is_refused_where_layers_or_files_are_needed(tmp_path: Path) -> None:
    linear = linearize(toy_base())
    vector = TaskVector.from_models(toy_base().model, finetuned(toy_base().model))
    with pytest.raises(ValueError, match="linearised already"):
        linearize(linear)
    with pytest.raises(ValueError, match="save_pretrained does not take 'toy' in its tangent space"):
        linear.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="save_checkpoint does not take"):
        vector.save_checkpoint(linear, tmp_path / "model")
    with pytest.raises(ValueError, match="training does not take"):
        TaskVectorTrainer(linear, settings(tmp_path), task=DIGITS)
    with pytest.raises(ValueError, match="collect_statistics does not take"):
        collect_statistics(linear, DIGITS, num_images=4)
    with pytest.raises(ValueError, match="routing does not take"):
        given(linear, {"digits": vector}, DIGITS)
    with pytest.raises(ValueError, match="transport does not take"):
        transport(vector, to=linear, method="gradfix", tasks=DIGITS)
    with pytest.raises(ValueError, match="transport does not take"):
        transport(vector, to=toy_base(), source=linear, method="theseus", tasks=DIGITS)
    with pytest.raises(ValueError, match="a layer of a linearised tower"):
        next(stages(linear.model, Normalize(linear))).run(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["gradient_checkpointing", "torch_compile"])
def test_settings_without_a_place_in_the_tangent_space_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} must be False in the tangent space"):
        settings(tmp_path, tangent=True, **{name: True})


def test_low_rank_and_alternating_runs_and_whole_models_are_refused(run: TaskVectorTrainer, tmp_path: Path) -> None:
    lora = LoraConfig(r=2, target_modules=["fc1"])
    with pytest.raises(ValueError, match="tangent cannot be set beside peft_config"):
        TaskVectorTrainer(toy_base(), settings(tmp_path), task=DIGITS, peft_config=lora, tangent=True)
    with pytest.raises(ValueError, match="tangent must be False"):
        alternating_tuning_and_merging(
            toy_base(), [DIGITS], args=settings(tmp_path, tangent=True), rounds=1, output_dir=tmp_path / "atm"
        )
    with pytest.raises(ValueError, match="no whole model"):
        run.save_model(str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("tasks", "factors", "error", "words"),
    [
        ([DIGITS], [1], ValueError, "of two tasks, got 1"),
        ([DIGITS, SHAPES, toy_task("patterns")], [1], ValueError, "of two tasks, got 3"),
        ([DIGITS, SHAPES], [], ValueError, "factors must hold at least one"),
        ([DIGITS, SHAPES], [float("nan")], ValueError, "factors"),
        ([DIGITS, toy_task("patterns")], [1], UnknownNameError, "patterns"),
    ],
)
def test_a_map_needs_two_tasks_with_vectors_and_finite_factors(
    tasks: list[Any], factors: list[float], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        disentanglement(wide_base(), {"digits": moved(), "shapes": moved(seed=2)}, tasks, factors=factors)


def test_no_images_at_a_time_and_a_suite_for_one_task_are_refused() -> None:
    vectors = {"digits": moved(), "shapes": moved(seed=2)}
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1, got 0"):
        disentanglement(wide_base(), vectors, [DIGITS, SHAPES], batch_size=0)
    with pytest.raises(ValueError, match="nonlinear_advantage takes one task, and these are several tasks: digits, sh"):
        nonlinear_advantage(wide_base(), moved(), [DIGITS, SHAPES])  # type: ignore[arg-type]
