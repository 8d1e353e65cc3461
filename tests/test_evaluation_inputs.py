"""What `evaluate` and the choices take, refuse in a sentence, tell, and show."""

from __future__ import annotations

import copy
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from sklearn import metrics as sklearn_metrics

from hf_taskvec import (
    Report,
    Task,
    TaskResult,
    TaskVector,
    choose_scaling,
    choose_weights,
    evaluate,
    get_task,
)
from hf_taskvec.errors import CheckpointError, DataError, NonFiniteError, UnknownNameError
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.metrics import METRICS, Accuracy, compute_metrics
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.evaluation.scalings import SCALINGS, best_scaling, scaling_curve
from hf_taskvec.models.base import Base
from recipes import evaluate_model
from tests.bases import colours_task, tiny_base
from tests.helpers import finetuned


@pytest.fixture(scope="module")
def base() -> Base:
    return tiny_base()


@pytest.fixture(scope="module")
def task() -> Task:
    return colours_task()


@pytest.fixture(scope="module")
def vector(base: Base) -> TaskVector:
    made = TaskVector.from_models(base.model, finetuned(base.model, size=0.05))
    return TaskVector(made.deltas, replace(made.info, task="colours"))


def report_of(**accuracies: float) -> Report:
    return Report("m", "validation", tuple(TaskResult(task, value, 1000) for task, value in accuracies.items()))


# -- tasks and models ---------------------------------------------------------------------------------------------


def test_one_task_is_as_good_as_a_list_of_one(base: Base, task: Task) -> None:
    assert evaluate(base, task) == evaluate(base, [task]) == evaluate(base, iter([task]))


def test_a_task_may_be_given_by_its_name(base: Base) -> None:
    assert evaluate(base, "counts", split="validation") == evaluate(base, [get_task("counts")], split="validation")


def test_two_tasks_of_one_name_are_refused(base: Base, task: Task, vector: TaskVector) -> None:
    other = replace(task, class_names=("a", "b", "c"))
    for refused in (
        lambda: evaluate(base, [task, other]),
        lambda: choose_scaling(base, vector, [task, other]),
        lambda: scaling_curve(base, vector, [task, other]),
        lambda: choose_weights(base, [vector], [task, other]),
        lambda: evaluate_individually(base, {"colours": vector}, [task, other]),
    ):
        with pytest.raises(DataError, match="'colours' comes twice"):
            refused()


def test_references_of_two_results_of_one_task_are_refused() -> None:
    report = Report("m", "test", (TaskResult("a", 0.5, 10), TaskResult("a", 0.6, 10)))
    with pytest.raises(ValueError, match="several of 'a'"):
        report.with_references(zero_shot={"a": 0.5})


def test_what_is_no_base_is_refused_with_the_remedy(base: Base, task: Task, vector: TaskVector) -> None:
    for model, remedy in ((base.model, r"Base\(model, processor"), (vector, "apply_to"), ("openai/clip", "load_base")):
        with pytest.raises(TypeError, match=remedy):
            evaluate(model, task)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=remedy):
            choose_scaling(model, vector, task)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=remedy):
            choose_weights(model, [vector], task)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_of_nan_has_no_accuracy(base: Base, task: Task, value: float) -> None:
    model = copy.deepcopy(base.model)
    with torch.no_grad():
        model.vision_model.encoder.layers[1].mlp.fc1.weight[0, 0] = value
    with pytest.raises(NonFiniteError, match=r"NaN or Inf: its parameter 'vision_model\.encoder\.layers\.1\.mlp\.fc1"):
        evaluate(Base(model, base.processor, "broken"), task)


def test_individual_accuracies_need_a_vector_per_task(base: Base, task: Task, vector: TaskVector) -> None:
    assert evaluate_individually(base, [vector], task) == evaluate_individually(base, {"colours": vector}, [task])
    with pytest.raises(UnknownNameError, match="no vector of task 'colours'"):
        evaluate_individually(base, {"color": vector}, task)
    with pytest.raises(ValueError, match="two vectors are of task 'colours'"):
        evaluate_individually(base, [vector, vector], task)


# -- scalings and criteria ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scalings",
    [np.array([0.1, 0.2]), np.array([0.1, 0.2], np.float32), torch.tensor([0.1, 0.2]), iter([0.1, 0.2, 0.1])],
)
def test_scalings_may_be_any_numbers(base: Base, task: Task, vector: TaskVector, scalings: Any) -> None:
    curve = scaling_curve(base, vector, task, scalings=scalings)
    assert list(curve) == pytest.approx([0.1, 0.2])
    assert all(type(scaling) is float for scaling in curve)
    json.dumps([report.to_dict() for report in curve.values()])


@pytest.mark.parametrize("scalings", ["0.1", 0.3, ["a"], np.ones((2, 2)), None, [0.1, True]])
def test_scalings_that_are_no_numbers_are_refused_in_a_sentence(
    base: Base, task: Task, vector: TaskVector, scalings: Any
) -> None:
    with pytest.raises(TypeError, match="scalings must be numbers"):
        choose_scaling(base, vector, task, scalings=scalings)


@pytest.mark.parametrize("scalings", [[], np.array([]), [0.1, float("nan")], [float("inf")], [10**400]])
def test_no_scaling_and_one_that_is_not_finite_are_refused(
    base: Base, task: Task, vector: TaskVector, scalings: Any
) -> None:
    with pytest.raises(ValueError, match="scalings must"):
        choose_scaling(base, vector, task, scalings=scalings)


def test_the_criteria_differ_as_in_the_literature() -> None:  # individual .98 and .40: .2 by accuracy, .4 normalised
    curve = {
        0.1: report_of(a=0.5, b=0.1),
        0.2: report_of(a=0.90, b=0.28),
        0.4: report_of(a=0.85, b=0.32),
        0.8: report_of(a=0.1, b=0.1),
    }
    curve = {scaling: report.with_references(individual={"a": 0.98, "b": 0.40}) for scaling, report in curve.items()}
    assert best_scaling(curve) == best_scaling(curve, criterion="accuracy") == 0.2
    assert best_scaling(curve, criterion="normalised") == 0.4


def test_choices_take_the_criterion_with_accuracies_reports_or_vectors(
    base: Base, task: Task, vector: TaskVector
) -> None:
    own = evaluate_individually(base, [vector], task, split="validation")
    report = evaluate(vector.apply_to(base), task, split="validation")
    for individual in (own, report, [report], {"colours": vector}, [vector], iter([vector])):
        chosen = choose_scaling(base, vector, task, scalings=(0.5, 1.0), criterion="normalised", individual=individual)
        assert chosen in (0.5, 1.0)
    by_provenance = choose_weights(base, [vector], task, start=1.0, steps=[0.5], criterion="normalised")
    assert by_provenance == choose_weights(
        base, [vector], task, start=1.0, steps=[0.5], criterion="normalised", individual=own
    )


def test_a_criterion_without_what_it_needs_is_refused_before_any_work(
    base: Base, task: Task, vector: TaskVector
) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'normalised'"):
        choose_scaling(base, vector, task, criterion="normalized")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pass individual="):
        choose_scaling(base, vector, task, criterion="normalised")
    with pytest.raises(UnknownNameError, match="no vector of task 'colours'"):
        choose_weights(base, [TaskVector(vector.deltas)], task, criterion="normalised")
    with pytest.raises(ValueError, match="it lacks that of a"):
        best_scaling({1.0: report_of(a=0.5)}, criterion="normalised")
    with pytest.raises(ValueError, match="at least one scaling"):
        best_scaling({})


def test_the_end_of_the_grid_is_told(caplog: pytest.LogCaptureFixture) -> None:
    low, high = report_of(a=0.4), report_of(a=0.6)
    with caplog.at_level(logging.WARNING):
        inside = best_scaling({0.1: low, 0.2: high, 0.3: low})
        assert (inside, inside.at_end, inside.score, inside.criterion) == (0.2, None, 0.6, "accuracy")
        assert best_scaling({0.1: high}).at_end is None
        assert caplog.text == ""
        assert best_scaling({0.1: low, 0.2: low, 5.0: high}).at_end == "largest"
        assert "5, is the largest that was tried; a larger one may be better" in caplog.text
        assert best_scaling({0.1: high, 0.2: low}).at_end == "smallest"
        assert "0.1, is the smallest that was tried" in caplog.text
    assert max(SCALINGS) == 5.0


def test_a_chosen_scaling_is_a_number_wherever_one_goes() -> None:
    chosen = best_scaling({0.1: report_of(a=0.4), 0.5: report_of(a=0.6)})
    again = copy.deepcopy(chosen)
    assert (again, again.at_end) == (0.5, "largest")
    assert json.dumps({"scaling": chosen}) == '{"scaling": 0.5}'
    assert Report("m", "test", (TaskResult("a", 0.5, 10),), chosen).scaling == 0.5


def test_a_choice_that_rests_on_few_images_is_told(caplog: pytest.LogCaptureFixture) -> None:
    few = Report("m", "validation", (TaskResult("pets", 0.5, 10), TaskResult("cars", 0.5, 500)))
    with caplog.at_level(logging.WARNING):
        best_scaling({0.1: few})
    assert "few validation images, of 'pets' (10)" in caplog.text
    assert "cars" not in caplog.text


def test_weights_that_rest_on_few_images_are_told(
    base: Base, task: Task, vector: TaskVector, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        choose_weights(base, [vector], task, start=1.0, steps=[0.5])
    assert "few validation images, of 'colours' (9)" in caplog.text


# -- metrics ------------------------------------------------------------------------------------------------------

GUESSED, TRUE = torch.tensor([0, 1, 1, 2, 0, 3]), torch.tensor([0, 1, 2, 2, 1, 0])
NAMES = ("cat", "dog", "fish", "newt", "owl")


def measured(*metrics: Any) -> dict[str, Any]:
    return compute_metrics(metrics, GUESSED, TRUE, class_names=NAMES)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("accuracy", sklearn_metrics.accuracy_score(TRUE, GUESSED)),
        ("f1", sklearn_metrics.f1_score(TRUE, GUESSED, average="macro", zero_division=0)),
        ("precision", sklearn_metrics.precision_score(TRUE, GUESSED, average="macro", zero_division=0)),
        ("recall", sklearn_metrics.recall_score(TRUE, GUESSED, average="macro", zero_division=0)),
        ("balanced_accuracy", np.mean([0.5, 0.5, 0.5])),
    ],
)
def test_named_metrics_are_scikit_learns(name: str, reference: float) -> None:
    assert measured(name) == {name: pytest.approx(reference)}


def test_per_class_accuracy_goes_by_class_name() -> None:
    expected = {"per_class_accuracy": {"cat": 0.5, "dog": 0.5, "fish": 0.5}}
    assert measured("per_class_accuracy") == expected


def test_a_function_gets_predictions_and_references_by_its_own_names() -> None:
    def first(predictions: Any, references: Any) -> float:
        return float(predictions[3] * 10 + references[4])  # 2 and 1

    def second(y_true: Any, y_pred: Any) -> np.float32:
        return np.float32(y_pred[3] * 10 + y_true[4])

    def third(labels: Any, p: Any) -> dict[str, Any]:
        return {"a": torch.tensor(p[3] * 10 + labels[4]), "b": np.arange(2)}

    assert measured(first, second, third) == {"first": 21.0, "second": 21.0, "a": 21, "b": [0, 1]}
    assert measured(lambda p, r: float(p[3] * 10 + r[4])) == {"lambda": 21.0}
    assert measured(sklearn_metrics.matthews_corrcoef).keys() == {"matthews_corrcoef"}


def test_a_metric_that_is_not_finite_is_unknown_and_told(caplog: pytest.LogCaptureFixture) -> None:
    assert measured(lambda p, r: float("nan")) == {"lambda": None}
    assert "metric 'lambda' is nan" in caplog.text


def test_what_is_no_metric_is_refused_before_any_work(base: Base, task: Task) -> None:
    for metrics, error, message in (
        ("f2", UnknownNameError, "no metric 'f2'. Did you mean 'f1'"),
        (["f1", 3], TypeError, "metrics must hold names"),
        (Accuracy, TypeError, r"Accuracy\(\), not the class"),
        ([lambda p: 0.0], TypeError, "a function of predictions and references"),
    ):
        with pytest.raises(error, match=message):
            evaluate(base, task, metrics=metrics)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="gives a object"):
        measured(lambda p, r: object())
    with pytest.raises(ValueError, match="two metrics give a value called 'f1'"):
        measured("f1", lambda p, r: {"f1": 1.0})


def test_metrics_stand_in_the_report_its_table_and_its_file(base: Base, task: Task, tmp_path: Path) -> None:
    report = evaluate(base, task, metrics=["f1", "per_class_accuracy"])
    f1, per_class = report.results[0].metrics["f1"], report.results[0].metrics["per_class_accuracy"]
    assert set(per_class) == {"red", "green", "blue"}
    table = report.to_markdown()
    assert "| normalised | f1 | images |" in table
    assert f"| {100 * f1:.1f} | 30 |" in table
    assert f"| red | {100 * per_class['red']:.1f} |" in table
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    assert set(METRICS) == {"accuracy", "balanced_accuracy", "precision", "recall", "f1", "per_class_accuracy"}


# -- references and bars ------------------------------------------------------------------------------------------


def test_references_stand_beside_the_accuracies(base: Base, task: Task, vector: TaskVector) -> None:
    edited, plain = vector.apply_to(base), evaluate(base, task)
    own = evaluate_individually(base, [vector], task)
    for zero_shot in (base, plain, {"colours": plain.accuracy}):
        for individual in (own, evaluate(edited, task), [evaluate(edited, task)]):
            report = evaluate(edited, task, zero_shot=zero_shot, individual=individual)
            assert report.zero_shot == plain.accuracy
            assert report.individual == own["colours"]


def test_an_edited_base_is_not_shown_under_the_name_of_its_base(base: Base, task: Task, vector: TaskVector) -> None:
    edited = vector.apply_to(base)
    assert evaluate(edited, task).model == evaluate(edited, task, zero_shot=base).model == "edited"
    assert repr(edited).endswith("edited=True)")
    assert "edited" not in repr(base)
    assert evaluate(edited, task, zero_shot=base, label="mine").model == "mine"
    assert evaluate(base, task).model == base.name


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8", True])
def test_a_batch_size_that_is_no_size_is_refused_in_a_sentence(base: Base, task: Task, batch_size: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        evaluate(base, task, batch_size=batch_size)


def test_a_batch_size_may_be_a_number_of_numpy(base: Base, task: Task) -> None:
    assert evaluate(base, task, batch_size=np.int64(7)) == evaluate(base, task, batch_size=7)  # type: ignore[arg-type]


def test_what_cannot_be_is_refused_before_any_work(
    base: Base, task: Task, vector: TaskVector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_taskvec.evaluation.accuracy.predict", lambda *args, **options: pytest.fail("worked"))
    for options in ({"individual": "x"}, {"individual": 3}, {"zero_shot": 0.5}):
        with pytest.raises(TypeError, match="must be a Report or accuracies by task"):
            evaluate(base, task, **options)  # type: ignore[arg-type]
    for scaling in ("a", float("nan"), True):
        with pytest.raises(ValueError, match="scaling must be a finite number"):
            evaluate(base, task, scaling=scaling)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="steps must be numbers"):
        choose_weights(base, [vector], task, steps=0.2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="start must be a finite number"):
        choose_weights(base, [vector], task, start="a")  # type: ignore[arg-type]


def test_references_of_other_images_are_refused() -> None:
    report = Report("m", "test", (TaskResult("a", 0.5, 10),))
    with pytest.raises(ValueError, match="of split 'validation', this one of 'test'"):
        report.with_references(zero_shot=report_of(a=0.5))
    with pytest.raises(ValueError, match="20 images in the individual report and 10 here"):
        report.with_references(individual=[Report("m", "test", (TaskResult("a", 0.5, 20),))])
    with pytest.raises(ValueError, match="two individual reports hold 'a'"):
        report.with_references(individual=[report, report])
    with pytest.raises(UnknownNameError, match=r"no task of the report 'A'\. Did you mean 'a'"):
        report.with_references(individual={"A": 0.5})
    with pytest.raises(ValueError, match=r"individual accuracy of 'a' must be a number in \[0, 1\], got 98"):
        report.with_references(individual={"a": 98})
    for wrong in (3, "a", [0.5]):
        with pytest.raises(TypeError, match="individual must"):
            report.with_references(individual=wrong)  # type: ignore[arg-type]


def test_a_bar_per_batch_is_shown_unless_switched_off(base: Base, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, int]] = []

    def bar(items: Any, *, desc: str, total: int, **options: Any) -> Any:
        assert options["delay"] == 2
        shown.append((desc, total))
        return items

    monkeypatch.setattr("hf_taskvec.evaluation.progress.tqdm", bar)
    evaluate(base, task, batch_size=7)
    assert shown == [("colours test", 5)]  # thirty images
    evaluate(base, task, progress=False)
    assert list(progress_bar([1], "x", total=1, shown=False)) == [1]
    assert len(shown) == 1


# -- reports from outside -----------------------------------------------------------------------------------------

GOOD = report_of(a=0.5).to_dict()


def damaged(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "results": [{**GOOD["results"][0], **changes}]}


@pytest.mark.parametrize(
    "values",
    [
        {**GOOD, "results": []},
        {**GOOD, "results": {}},
        {**GOOD, "results": "abc"},
        {**GOOD, "results": [3]},
        {**GOOD, "results": [None]},
        {**GOOD, "results": [["task"]]},
        {**GOOD, "results": GOOD["results"] * 2},
        {**GOOD, "results": GOOD["results"] * 10_001},
        {**GOOD, "model": 3},
        {**GOOD, "model": "x" * 10_000},
        {**GOOD, "model": "\x1b[2J"},
        {**GOOD, "split": "all"},
        {**GOOD, "split": ["test"]},
        {**GOOD, "split": {}},
        {**GOOD, "scaling": float("nan")},
        {**GOOD, "scaling": "1"},
        {**GOOD, "scaling": True},
        {**GOOD, "scaling": 10**400},
        damaged(accuracy=1e308),
        damaged(accuracy=-0.1),
        damaged(accuracy="0.5"),
        damaged(accuracy=None),
        damaged(accuracy=True),
        damaged(accuracy=float("nan")),
        damaged(accuracy=[0.5]),
        damaged(accuracy=10**400),
        damaged(num_images=0),
        damaged(num_images=-1),
        damaged(num_images=1.5),
        damaged(num_images="9"),
        damaged(num_images=10**400),
        damaged(num_images=float("inf")),
        damaged(num_skipped=-1),
        damaged(zero_shot=2),
        damaged(individual="x"),
        damaged(task=3),
        damaged(task="\x1b]0;owned\x07"),
        damaged(task="x" * 2000),
        damaged(metrics=3),
        damaged(metrics=[]),
        damaged(metrics={"f1": float("inf")}),
        damaged(metrics={"f1": 10**400}),
        damaged(metrics={"a": {"b": {"c": {"d": {"e": {}}}}}}),
        damaged(metrics={"\x1b[2J": 1}),
        damaged(metrics={"a": ["\x07"]}),
        damaged(metrics={"a": [0] * 200_000}),
    ],
)
def test_a_report_of_other_types_or_ranges_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        Report.from_dict(values)
    assert len(str(error.value)) <= 600
    (tmp_path / "report.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError):
        Report.load(tmp_path / "report.json")


def test_reports_are_read_from_regular_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(CheckpointError, match="no regular file"):
            Report.load(path)


def test_a_report_of_an_older_version_is_read() -> None:
    old = {key: value for key, value in GOOD["results"][0].items() if key != "num_skipped"}
    assert Report.from_dict({**GOOD, "results": [old]}) == report_of(a=0.5)


def test_numbers_of_numpy_are_kept_as_python_s(tmp_path: Path) -> None:
    result = TaskResult("a", np.float32(0.5), np.int64(10), individual=np.float64(0.8))  # type: ignore[arg-type]
    report = Report("m", "test", [result], np.float32(0.25))  # type: ignore[arg-type]
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    assert type(report.scaling) is float


def test_nothing_in_a_table_drives_a_terminal_or_breaks_it() -> None:
    report = Report("m|\x1b[31m", "test", (TaskResult("a\x1b[2J|b\n", 0.5, 10),))
    table = report.to_markdown()
    assert table.replace("\n", "").isprintable()
    assert all(line.replace("\\|", "").count("|") == 7 for line in table.splitlines())


def test_images_that_are_skipped_are_counted(base: Base, task: Task, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        data = task.load(split).cast_column("image", Image(decode=False))
        rows = [{"image": row["image"], "label": row["label"]} for row in data]
        if split == "test":
            rows[3]["image"] = {"bytes": b"no image", "path": None}
        Dataset.from_list(rows, features=task.load(split).features).to_parquet(tmp_path / "data" / f"{split}-0.parquet")
    (result,) = evaluate(base, Task.from_dataset(tmp_path, skip_broken=True)).results
    assert (result.num_images, result.num_skipped) == (29, 1)


def test_skipped_images_are_counted_in_the_table() -> None:
    report = Report("m", "test", (TaskResult("a", 0.5, 10, num_skipped=3), TaskResult("b", 0.5, 10)))
    assert "| images | skipped |" in report.to_markdown()
    assert report.to_markdown().endswith("| 20 | 3 |")
    assert "skipped" not in report_of(a=0.5).to_markdown()
    assert Report.from_dict(report.to_dict()) == report


def test_a_report_fits_a_screen_and_is_a_table_in_a_notebook() -> None:
    report = Report("ties (0.3)", "test", tuple(TaskResult(f"task{index}", 0.5, 100) for index in range(20)))
    assert len(repr(report)) < 300
    assert repr(report).startswith("Report('ties (0.3)', test: 50.0 % over 20 tasks: task0 50.0, task1 50.0")
    assert "more" in repr(report)
    assert report._repr_markdown_() == report.to_markdown()
    assert len(repr(TaskResult("a", 0.5, 10, metrics={str(number): number for number in range(1000)}))) < 200


# -- the recipe ---------------------------------------------------------------------------------------------------


def test_the_recipe_chooses_by_normalised_accuracy_and_shows_all_references(
    task: Task, vector: TaskVector, base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector.save_pretrained(tmp_path / "vector")
    base.model.save_pretrained(tmp_path / "base")
    base.processor.save_pretrained(tmp_path / "base")
    folder = str(tmp_path / "vector")
    report = evaluate_model.main(
        evaluate_model.EvaluateSettings(
            tasks=["colours"],
            base=str(tmp_path / "base"),
            vector=folder,
            criterion="normalised",
            individual=[folder],
            metrics=["f1"],
            data_dir=str(Path(task.dataset).parent),
        )
    )
    assert report.zero_shot == evaluate(base, task).accuracy
    assert report.individual == evaluate_individually(base, [vector], task)["colours"]
    assert "| normalised | f1 | images |" in capsys.readouterr().out
