"""Heads, reports and the choice of a scaling."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from safetensors.torch import load_file, save_file

from hf_taskvec import (
    Report,
    Task,
    TaskResult,
    TaskVector,
    TaskVectorConfig,
    TaskVectorTrainer,
    choose_scaling,
    choose_weights,
    evaluate,
    load_base,
    merge,
)
from hf_taskvec.errors import CheckpointError, NotCachedError, UnknownNameError
from hf_taskvec.evaluation.accuracy import predict
from hf_taskvec.evaluation.coefficients import _Search
from hf_taskvec.evaluation.intervals import bootstrap_interval
from hf_taskvec.evaluation.metrics import METRICS, Accuracy
from hf_taskvec.evaluation.plots import plot_gains, plot_merge, save_figure
from hf_taskvec.evaluation.scalings import best_scaling, edit, scaling_curve, touched
from hf_taskvec.evaluation.settings import choose_settings
from hf_taskvec.evaluation.summary import Mean, summary_table
from hf_taskvec.models.base import Base
from hf_taskvec.models.heads import zero_shot_head
from tests.bases import colours_task, same_base, save_tiny_base, tiny_base
from tests.helpers import finetuned
from tests.measured import made_up


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


@pytest.fixture(scope="module")
def task() -> Task:
    return colours_task()


@pytest.fixture(scope="module")
def vector(base: Base) -> TaskVector:
    return TaskVector.from_models(base.model, finetuned(base.model, size=0.05))


def test_a_base_loads_in_float32_and_evaluation_mode(base: Base) -> None:
    assert base.model.dtype == torch.float32
    assert not base.model.training
    assert base.name == "base"


def test_a_base_that_lacks_a_parameter_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_tiny_base(tmp_path / "base")
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    weights["extra"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing keys: text_projection\.weight; unexpected keys: extra"):
        load_base(folder)


def test_a_base_that_is_neither_here_nor_in_the_cache_says_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(NotCachedError, match="hf download nobody/nothing"):
        load_base("nobody/nothing", cache_dir=tmp_path, local_files_only=True)


def test_the_head_averages_unit_features_of_the_templates(base: Base) -> None:
    templates, names = ("a photo of a {}.", "{}"), ("circle", "square")
    head = zero_shot_head(base, names, templates)
    mean = base.encode_text(["a photo of a square.", "square"]).mean(dim=0)
    expected = mean / mean.norm() * base.model.logit_scale.exp()
    torch.testing.assert_close(head[1], expected.detach())


def test_the_cached_head_depends_on_names_order_templates_and_text_tower(base: Base) -> None:
    first = zero_shot_head(base, ("circle", "square"), ("{}",))
    assert torch.equal(first, zero_shot_head(base, ("circle", "square"), ("{}",)))
    assert torch.equal(zero_shot_head(base, ("square", "circle"), ("{}",)), first.flip(0))
    assert not torch.equal(zero_shot_head(base, ("circle", "square"), ("a {}",)), first)
    other = load_base_with_other_text(base)
    assert not torch.equal(zero_shot_head(other, ("circle", "square"), ("{}",)), first)


def load_base_with_other_text(base: Base) -> Base:
    """A copy whose text projection has another entry."""
    other = copy.deepcopy(base)
    with torch.no_grad():
        other.model.text_projection.weight[0, 0] += 1
    return other


def test_logits_are_those_of_clip_itself(base: Base, task: Task) -> None:
    single = Task(name="single", dataset=task.dataset, class_names=task.class_names, templates=("a {}",))
    logits, labels = predict(base, single)
    images = single.load("test")
    texts = [f"a {name}" for name in task.class_names]
    inputs = base.processor(
        text=texts, images=[images[i]["image"] for i in range(5)], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        expected = base.model(**inputs).logits_per_image
    torch.testing.assert_close(logits[:5], expected, atol=1e-4, rtol=1e-4)
    assert labels.tolist() == images["label"][:]


def test_accuracy_counts_correct_predictions() -> None:
    scores = Accuracy().compute(predictions=[0, 1, 1, 2], references=[0, 1, 2, 2])
    assert scores == {"accuracy": 0.75, "standard_error": math.sqrt(0.75 * 0.25 / 4), "num_images": 4}
    per_class = METRICS["per_class_accuracy"](np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    assert per_class == {0: 1.0, 1: 1.0, 2: 0.5}


def test_further_metrics_are_in_the_report(base: Base, task: Task) -> None:
    (result,) = evaluate(base, [task], metrics="per_class_accuracy").results
    per_class = result.metrics["per_class_accuracy"]
    assert sum(per_class.values()) / 3 == pytest.approx(result.accuracy)  # ten images of each class


def test_evaluation_needs_a_task(base: Base) -> None:
    with pytest.raises(ValueError, match="at least one task"):
        evaluate(base, [])


def test_editing_again_starts_from_the_originals(base: Base, vector: TaskVector) -> None:
    edited, originals = vector.apply_to(base, scaling=3.0), touched(base, vector)
    for scaling in (-2.0, 0.5):  # an edit that added to what is there already would end at 1.5
        edit(edited, originals, vector, scaling=scaling)
    assert same_base(edited, vector.apply_to(base, scaling=0.5))


@pytest.fixture(scope="module")
def useful(base: Base, task: Task, tmp_path_factory: pytest.TempPathFactory) -> TaskVector:
    """A vector that was trained on the task."""
    args = TaskVectorConfig(
        output_dir=str(tmp_path_factory.mktemp("run")),
        num_train_epochs=4,
        learning_rate=3e-3,
        per_device_train_batch_size=16,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
    )
    trainer = TaskVectorTrainer(base, args, task=task)
    trainer.train()
    return trainer.task_vector()


def test_the_curve_is_what_applying_at_each_scaling_gives(base: Base, task: Task, useful: TaskVector) -> None:
    before, scalings = copy.deepcopy(base), (1.0, -2.0, 0.5)
    curve = scaling_curve(base, useful, [task], scalings=scalings)
    for scaling, report in curve.items():
        again = evaluate(useful.apply_to(base, scaling=scaling), [task], split="validation")
        assert report.results == again.results
    assert curve[1.0].accuracy > curve[-2.0].accuracy  # else equal results would say nothing
    assert same_base(base, before)
    assert choose_scaling(base, useful, [task], scalings=scalings) == best_scaling(curve)


def test_weights_of_a_useful_and_a_harmful_vector(base: Base, task: Task, useful: TaskVector) -> None:
    before = copy.deepcopy(base)
    harmful = TaskVector({name: -delta for name, delta in useful.deltas.items()}, useful.info)
    weights = choose_weights(base, [useful, harmful], [task], start=0.5, steps=(0.5, 0.5))
    assert weights[0] > weights[1] >= 0
    assert same_base(base, before)

    def accuracy(chosen: list[float]) -> float:
        merged = merge([useful, harmful], "task_arithmetic", weights=chosen)
        return evaluate(merged.apply_to(base), [task], split="validation").accuracy

    assert accuracy(weights) > accuracy([0.5, 0.5])
    with pytest.raises(ValueError, match="steps must be positive"):
        choose_weights(base, [useful, harmful], [task], steps=(0.0,))


def test_settings_are_the_best_of_all_combinations_at_their_best_scaling(
    base: Base, task: Task, useful: TaskVector
) -> None:
    before, scalings = copy.deepcopy(base), [0.5, 1.0]
    pair = [useful, TaskVector({name: -delta for name, delta in useful.deltas.items()}, useful.info)]
    grid = {"weights": [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]}
    chosen = choose_settings(base, pair, [task], "task_arithmetic", grid, scalings=scalings)
    own: Any = {"criterion": "normalised", "individual": {task.name: 0.5}}
    normalised = choose_settings(base, pair, [task], "task_arithmetic", grid, scalings=scalings, **own)
    assert [2 * reached for _, reached in chosen.scores] == [reached for _, reached in normalised.scores]
    assert chosen.settings == {"weights": [1.0, 0.0]}
    for settings, reached in chosen.scores:
        curve = scaling_curve(base, merge(pair, "task_arithmetic", **settings), [task], scalings=scalings)
        assert reached == max(report.accuracy for report in curve.values())
    assert len(chosen.scores) == 3
    merged = chosen.merge(pair)
    assert merged.info.scaling == chosen.scaling
    report = evaluate(merged.apply_to(base), [task], split="validation")
    assert report.accuracy == chosen.scaling.score == max(reached for _, reached in chosen.scores)
    assert same_base(base, before)


def test_a_setting_of_a_method_that_looks_at_data_is_chosen_like_any_other(
    base: Base, task: Task, useful: TaskVector, caplog: pytest.LogCaptureFixture
) -> None:
    pair = [useful, TaskVector({name: -delta for name, delta in useful.deltas.items()}, useful.info)]
    options = {"statistics": [made_up(useful.deltas.shapes, seed=seed) for seed in range(2)]}
    own = {"of": "task_arithmetic", "of_settings": {"weights": [1.0, 0.0]}}  # the anchor is the useful one
    grid = {"ridge": [1e3], "inner_scaling": [-1.0, 1.0]}
    chosen = choose_settings(base, pair, [task], "bmm", grid, scalings=[1.0], **options, **own)
    assert chosen.settings == {**own, "ridge": 1e3, "inner_scaling": 1.0}
    assert chosen.at_end == ("inner_scaling",)
    assert "the best inner_scaling, 1, is the largest that was tried" in caplog.text
    assert chosen.merge(pair, **options).info.settings["ridge"] == 1e3


@pytest.mark.parametrize(
    ("grid", "settings", "error", "message"),
    [
        ({"ridge": [1.0]}, {}, UnknownNameError, "setting of ties"),
        ({"density": []}, {}, ValueError, "'density' has no value to try"),
        ({"density": [0.1]}, {"density": 0.2}, ValueError, "'density' is given and to be chosen"),
        ({"density": [0.1, 2.0]}, {}, ValueError, "density must be in"),
        ({"density": [0.1] * 1001}, {}, ValueError, "1001 combinations"),
    ],
)
def test_settings_that_cannot_be_chosen_are_refused_before_a_merge(
    grid: dict[str, list[float]], settings: dict[str, float], error: type[Exception], message: str, vector: TaskVector
) -> None:
    with pytest.raises(error, match=message):
        choose_settings(None, [vector], "digits", "ties", grid, **settings)  # type: ignore[arg-type]


def test_of_equal_scalings_the_smallest_wins() -> None:
    report = Report("m", "validation", (TaskResult("t", 0.5, 10),))
    worse = Report("m", "validation", (TaskResult("t", 0.4, 10),))
    assert best_scaling({1.0: report, 0.3: report, 0.1: worse}) == 0.3


REPORT = Report("merged", "test", (TaskResult("a", 0.6, 100), TaskResult("b", 0.8, 50)), 0.3)


def test_a_report_holds_means_and_normalised_accuracies() -> None:
    zero_shot = Report("base", "test", (TaskResult("a", 0.5, 100), TaskResult("b", 0.3, 50)))
    report = REPORT.with_references(zero_shot=zero_shot, individual={"a": 0.8, "b": 0.8})
    assert report.accuracy == pytest.approx(0.7)
    assert report.zero_shot == pytest.approx(0.4)
    assert report.normalized == pytest.approx((0.75 + 1.0) / 2)
    table = report.to_markdown()
    assert "| a | 50.0 | 80.0 | 60.0 ± 4.9 | 75.0 | 100 |" in table
    assert "| **mean** | 40.0 | 80.0 | 70.0 | 87.5 | 150 |" in table


def test_an_unknown_reference_is_a_dash_and_no_mean() -> None:
    report = REPORT.with_references(individual={"a": 0.8})
    assert report.individual is None
    assert report.results[1].normalized is None
    assert "| b | – | – | 80.0 ± 5.7 | – | 50 |" in report.to_markdown()


def test_a_saved_report_comes_back(tmp_path: Path) -> None:
    report = REPORT.with_references(individual={"a": 0.8, "b": 0.9})
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    assert json.loads((tmp_path / "report.json").read_text())["results"][0]["normalized"] == pytest.approx(0.75)


def test_a_model_that_saw_test_images_says_so_wherever_it_goes(base: Base, vector: TaskVector, tmp_path: Path) -> None:
    seen = TaskVector(vector.deltas, replace(vector.info, settings={"transductive": True}))
    model = vector.apply_to(merge([seen, seen], "average").apply_to(base), allow_other_base=True)
    report = evaluate(model, [colours_task()])
    assert "Transductive: test images were used" in report.to_markdown()
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json").transductive
    assert not evaluate(vector.apply_to(base), [colours_task()]).transductive


def test_a_damaged_report_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"model": "m"}')
    with pytest.raises(CheckpointError, match="no valid report: it lacks 'results'"):
        Report.load(tmp_path / "report.json")


def test_the_mean_over_seeds_has_students_interval() -> None:
    mean = Mean.of([0.5, 0.6, 0.7])  # t(0.975, 2) = 4.3027
    assert mean.value == pytest.approx(0.6)
    assert mean.half_width == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert str(mean) == "60.0 ± 24.8"
    assert str(Mean.of([0.5])) == "50.0"


def test_the_summary_has_a_row_per_task_and_columns_per_model() -> None:
    zero_shot = Report("base", "test", (TaskResult("a", 0.5, 100), TaskResult("b", 0.3, 50)))
    report = REPORT.with_references(zero_shot=zero_shot, individual={"a": 0.8, "b": 0.8})
    table = summary_table({"ties": [report, report], "average": [report, report]})
    assert table.splitlines()[2] == "| a | 50.0 | 80.0 ± 0.0 | 60.0 ± 0.0 | 75.0 ± 0.0 | 60.0 ± 0.0 | 75.0 ± 0.0 |"


def test_a_figure_is_written_whole(tmp_path: Path) -> None:
    report = REPORT.with_references(zero_shot=REPORT, individual={"a": 0.8, "b": 0.9})
    save_figure(plot_merge(report, {"ties": {0.1: REPORT, 0.5: REPORT}}, zero_shot=0.4), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.parametrize(("best", "change"), [(0.6, 0.1), (0.0, -0.1)])
def test_a_weight_climbs_by_its_step_to_the_best_and_not_below_zero(best: float, change: float) -> None:
    search = object.__new__(_Search)
    search.criterion = "accuracy"
    search.report = lambda weights: Report("m", "validation", (TaskResult("a", 1 - abs(weights[1] - best) / 2, 99),))  # type: ignore[method-assign]
    weights, reached = search.climb([0.3, 0.3], 0.5, index=1, change=change)
    assert (weights, reached) == ([0.3, best], 1.0)


@pytest.mark.parametrize("confidence", [-0.5, 0, 1])
def test_an_interval_of_no_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\)"):
        bootstrap_interval([0.1, 0.2], confidence=confidence)


def test_figures_show_percent_and_points() -> None:
    better = Report("merged", "test", tuple(TaskResult(task, 0.6, 100) for task in "abcd"))
    base = Report("base", "test", tuple(TaskResult(task, 0.5, 100) for task in "abcd"))
    curve, line = plot_merge(better, {"ties": {0.1: better, 0.5: base}}, zero_shot=0.4).axes[1].lines
    assert list(curve.get_ydata()) == pytest.approx([60, 50])
    assert list(line.get_ydata()) == pytest.approx([40, 40])
    lines = plot_gains({0.1: better, 0.5: base}, base).axes[0].lines[:5]  # four tasks and their mean
    assert all(list(line.get_ydata()) == pytest.approx([10, 0]) for line in lines)
    assert len({to_rgba(line.get_color()) for line in lines}) == 5


def test_a_figure_shows_the_merge_in_one_colour() -> None:
    curve = {0.1: REPORT, 0.5: REPORT}
    left, right = plot_merge(REPORT, {"average": curve, "ties": curve}, zero_shot=0.4, merged="ties").axes
    bars = [container.patches[0].get_facecolor() for container in left.containers]
    average, ties, _ = (to_rgba(line.get_color()) for line in right.lines)
    assert ties == bars[1]
    assert average not in bars
