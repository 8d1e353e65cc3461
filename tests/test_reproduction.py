"""The reproduction: statistics, convergence on validation, resuming, judging and the report."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from paper.analysis import compare_budgets
from paper.comparison import INDIVIDUAL, JOINT, Cell, Score, merged_model
from paper.estimate import count_images, estimate
from paper.figures import draw_geometry
from paper.report import comparison_table, write_comparison, write_report
from paper.results import Compared, claim_folder, compare_budgets_of, reproduce
from paper.runs import StopWhenConverged, train_run
from paper.settings import CONVERGED, Reproduction, ScaledMethod

from hf_taskvec import TaskVector
from hf_taskvec.arguments import parse_recipe
from hf_taskvec.errors import OutputExistsError, SettingsDifferError, UnknownNameError
from hf_taskvec.evaluation.intervals import bootstrap_interval, paired_difference
from recipes import reproduce_paper
from tests.toys import toy_base, toy_task

CONFIGS = Path(__file__).parent.parent / "recipes" / "configs"


def small(folder: Path, **changes: object) -> Reproduction:
    """The smallest settings of the full shape."""
    values = {
        "base": str(folder / "base"),
        "tasks": ["digits", "shapes"],
        "output_dir": str(folder / "out"),
        "seeds": [0, 1],
        "optimizers": ["adam"],
        "learning_rates": [1e-3],
        "max_epochs": [2],
        "patience": 1,
        "budgets": [0.5, 1.0],
        "merges": ["task_arithmetic@1/T"],
        "batch_size": 8,
        "max_train": 16,
        "max_validation": 8,
        "max_test": 12,
        "num_subsets": 1,
        "subset_size": 1,
        "theory_images": 4,
        "dynamics_epochs": 2,
        "atm_budget": 1,
        "atm_rounds": [1, 2],
        "post_hoc_rounds": 1,
    }
    return Reproduction(**{**values, **changes})


def saved_base(folder: Path) -> None:
    toy_base().model.save_pretrained(folder / "base")
    toy_base().processor.save_pretrained(folder / "base")


@pytest.mark.parametrize("epochs", [1, 0, -3])
def test_a_course_of_gradients_needs_two_epochs_and_is_refused_before_the_folder_is_claimed(
    tmp_path: Path, epochs: int
) -> None:
    with pytest.raises(ValueError, match=f"dynamics_epochs must be at least 2 to show a course, got {epochs}"):
        small(tmp_path, dynamics_epochs=epochs)
    flags = ["--output_dir", str(tmp_path / "out"), "--dynamics_epochs", str(epochs)]
    with pytest.raises(ValueError, match="dynamics_epochs must be at least 2"):
        parse_recipe(Reproduction, argv=flags)
    assert not (tmp_path / "out").exists()


def test_a_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    import numpy as np

    random = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        interval = bootstrap_interval(random.normal(1.0, 1.0, size=40).tolist(), seed=trial)
        covered += interval.low <= 1.0 <= interval.high
    assert 86 <= covered <= 100
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval([])


def test_a_paired_difference_ignores_what_the_pairs_share() -> None:
    difference = paired_difference([0.1, 0.5, 0.9], [0.0, 0.4, 0.8])
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="one length"):
        paired_difference([1.0], [1.0, 2.0])


def test_a_run_stops_patience_epochs_after_its_best_and_not_before_the_last_budget() -> None:
    def stopped_at(accuracies: list[float], *, patience: int, at_least: float) -> int:
        callback = StopWhenConverged(patience=patience, at_least=at_least)
        control = type("Control", (), {"should_training_stop": False})()
        for epoch, accuracy in enumerate(accuracies, start=1):
            state = type("State", (), {"epoch": float(epoch)})()
            callback.on_evaluate(None, state, control, metrics={"eval_accuracy": accuracy})
            if control.should_training_stop:
                return epoch
        return 0

    course = [0.1, 0.5, 0.4, 0.5, 0.3, 0.2]
    assert stopped_at(course, patience=2, at_least=1) == 4  # a tie is no improvement
    assert stopped_at(course, patience=2, at_least=5) == 5
    assert stopped_at([0.1, 0.2, 0.3], patience=2, at_least=1) == 0


def test_a_run_keeps_every_budget_and_picks_the_epoch_best_on_validation(tmp_path: Path) -> None:
    settings = small(tmp_path, max_epochs=[3], patience=5)
    run = train_run(settings, toy_base(), [toy_task(images=16)], optimizer="adam", seed=0, folder=tmp_path / "run")
    assert set(run.vectors) == {"0.5", "1", CONVERGED}
    assert run.validation[run.converged_epoch - 1] == max(run.validation)
    assert run.vector(CONVERGED).info.epochs == run.converged_epoch
    assert run.vector("0.5").info.steps == 1
    again = train_run(settings, toy_base(), [toy_task(images=16)], optimizer="adam", seed=0, folder=tmp_path / "run")
    assert again == run
    other = dataclasses.replace(settings, learning_rates=[1e-2])
    with pytest.raises(SettingsDifferError, match=r"learning_rates=\[0.001\] there, \[0.01\] here"):
        train_run(other, toy_base(), [toy_task(images=16)], optimizer="adam", seed=0, folder=tmp_path / "run")


def test_with_a_schedule_every_budget_is_a_run_of_its_own(tmp_path: Path) -> None:
    settings = small(tmp_path, optimizers=["adamw_cosine", "adam"], learning_rates=[1e-3, 1e-3], max_epochs=[2, 2])
    run = train_run(
        settings, toy_base(), [toy_task(images=16)], optimizer="adamw_cosine", seed=0, folder=tmp_path / "run"
    )
    assert run.vector("1").info.settings["num_train_epochs"] == 1
    assert run.vector(CONVERGED).info.settings["num_train_epochs"] == 2


def cell(seed: int, one: float, last: float) -> Cell:
    def score(method: str, budget: str, value: float) -> Score:
        return Score("adam", seed, budget, method, {"a": value, "b": value})

    scores = [score("ties@1", "1", one), score("ties@1", CONVERGED, last), score(INDIVIDUAL, CONVERGED, 0.8)]
    subsets = [score("ties@1", "1", 0.9), score("ties@1", CONVERGED, 0.1)]
    return Cell(scores, subsets, {"a": 2}, {}, {}, {}, {})


@pytest.mark.parametrize(
    ("one", "last", "verdict"), [(0.5, 0.5, "not testable here"), (0.7, 0.9, "does not hold"), (0.91, 0.9, "holds")]
)
def test_the_comparison_alone_has_its_verdict_and_tables(tmp_path: Path, one: float, last: float, verdict: str) -> None:
    settings = small(tmp_path, optimizers=["adam"], merges=["ties@1"], seeds=[0, 1, 2])
    geometry = {"random_overlap": 0.1, "means": dict.fromkeys(("cosines", "sign_agreement", "subspace_overlap"), 0.5)}
    cells = []
    for seed in settings.seeds:
        own = cell(seed, one + 0.001 * seed, last + 0.002 * seed)
        joint = [Score("adam", seed, budget, JOINT, {"a": 0.9, "b": 0.9}) for budget in ("1", CONVERGED)]
        alone = Score("adam", seed, "1", INDIVIDUAL, {"a": 0.6, "b": 0.6})
        scores = [*own.scores, alone, *joint]
        cells.append(dataclasses.replace(own, scores=scores, geometry={"1": geometry, CONVERGED: geometry}))
    compared = Compared(settings, ["a", "b"], "toy", {"a": 0.5, "b": 0.5}, cells)
    page = write_comparison(compared, command="python recipes/one_epoch_vs_converged.py").read_text(encoding="utf-8")
    assert f"**{verdict}" in page.split("Task arithmetic is approximate")[0]
    assert f"| adam | ties@1 | {100 * (one + 0.001):.1f} [" in page
    assert page.count("- Rule: ") == 2


def test_one_epoch_is_compared_with_convergence_in_pairs() -> None:
    compared = compare_budgets([cell(0, 0.5, 0.6), cell(1, 0.7, 0.7)], "adam", "ties@1")
    assert compared.difference.mean == pytest.approx(-0.05)
    assert compared.normalized_difference.mean == pytest.approx(-0.05 / 0.8)
    assert (compared.wins, compared.trials) == (0.75, 4)  # a tie, and the two subsets


def test_a_merge_is_a_method_with_a_scaling() -> None:
    assert ScaledMethod.parse("task_arithmetic@1/T").factor(4) == 0.25
    assert ScaledMethod.parse("ties@0.7").factor(4) == 0.7
    with pytest.raises(UnknownNameError, match="ties"):
        ScaledMethod.parse("tie@1")
    with pytest.raises(ValueError, match="number or 1/T"):
        ScaledMethod.parse("ties@most")


def test_merging_with_one_over_t_is_averaging(tmp_path: Path) -> None:
    run = train_run(
        small(tmp_path), toy_base(), [toy_task(images=16)], optimizer="adam", seed=0, folder=tmp_path / "run"
    )
    vector = run.vector("1")
    model = merged_model(toy_base(), [vector, vector], ScaledMethod.parse("task_arithmetic@1/T"), seed=0)
    expected = vector.apply_to(toy_base()).model.state_dict()
    for name, weight in model.model.state_dict().items():
        assert float((weight - expected[name]).abs().max()) <= 1e-6


def test_a_budget_of_a_warm_up_s_first_step_alone_scores_as_zero_shot() -> None:
    vector = TaskVector.from_models(toy_base().model, toy_base().model)
    info = dataclasses.replace(vector.info, kind="fine-tuned", steps=1)
    model = merged_model(toy_base(), [TaskVector(vector.deltas, info)] * 2, ScaledMethod.parse("ties@1"), seed=0)
    for name, weight in model.model.state_dict().items():
        assert torch.equal(weight, toy_base().model.state_dict()[name])


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="adam"):
        small(tmp_path, optimizers=["adm"])
    with pytest.raises(ValueError, match="one value per optimiser"):
        small(tmp_path, learning_rates=[1e-3, 1e-3])
    with pytest.raises(ValueError, match="budgets must hold 1"):
        small(tmp_path, budgets=[2.0])


@pytest.mark.parametrize("name", ["paper7_smoke", "paper7_tiny", "paper7_vit_b16"])
def test_the_published_configurations_are_read(name: str) -> None:
    (settings,) = parse_recipe(Reproduction, argv=["--config", str(CONFIGS / f"{name}.yaml")])
    assert len(settings.optimizers) == 4
    assert len(settings.merges) >= 4
    assert len(settings.seeds) >= (2 if name == "paper7_smoke" else 5)


def test_the_estimate_counts_images_without_the_data() -> None:
    (settings,) = parse_recipe(Reproduction, argv=["--config", str(CONFIGS / "paper7_vit_b16.yaml")])
    tiny = dataclasses.replace(settings, vision_shape=[32, 16, 16, 1, 2, 32])
    works = {work.name: work for work in count_images(tiny, tiny.load_tasks(), tiny.train_images, tiny.test_images)}
    assert works["dynamics"].trained == 2 * 5 * 6 * sum(settings.train_images)
    text = estimate(tiny).to_markdown()
    assert "one epoch against convergence" in text
    assert "hours on cpu" in text or "hours on cuda" in text


def test_results_of_other_settings_are_left_alone(tmp_path: Path) -> None:
    claim_folder(small(tmp_path))
    claim_folder(small(tmp_path))
    with pytest.raises(OutputExistsError, match=r"seeds=\[0, 1\] there, \[0\] here"):
        claim_folder(small(tmp_path, seeds=[0]))


def test_the_figures_are_drawn_again_from_their_data(tmp_path: Path) -> None:
    shown = CONFIGS.parent / "results" / "paper7_tiny" / "figures"
    for path in shown.glob("*.json"):
        shutil.copy(path, tmp_path)
    settings, run = parse_recipe(Reproduction, reproduce_paper.RunArguments, argv=["--redraw", str(tmp_path)])
    assert reproduce_paper.main(settings, run) is None
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in shown.iterdir()}


def test_one_colour_means_one_cosine_in_both_tables_of_a_figure() -> None:
    tables = {"1": [[1.0, -0.001], [-0.001, 1.0]], "converged": [[1.0, 0.4], [0.4, 1.0]]}
    panels = [axes for axes in draw_geometry({"tasks": ["a", "b"], **tables}).axes if axes.images]
    assert [axes.images[0].get_clim() for axes in panels] == [(-0.001, 0.4)] * 2
    assert [[text.get_text() for text in axes.texts] for axes in panels] == [[".00"] * 2, [".40"] * 2]


@pytest.mark.slow  # about a minute of processor time
def test_the_whole_reproduction_writes_its_report_and_repeats_no_finished_work(tmp_path: Path) -> None:
    saved_base(tmp_path)
    settings = small(tmp_path)
    out = tmp_path / "out"
    compared = compare_budgets_of(settings, progress=False)
    results = reproduce(settings, progress=False)
    assert results.cells == compared.cells  # read, not run again
    report = write_report(results, command="python recipes/reproduce_paper.py").read_text()
    assert report.count("- Rule: ") == 7
    for verdict in ("Holds.", "task_arithmetic@1/T", "joint training"):
        assert verdict in report
    figures = sorted(path.stem for path in (out / "figures").glob("*.png"))
    assert figures == sorted(path.stem for path in (out / "figures").glob("*.json"))
    assert len(figures) == 9
    assert all(f"figures/{name}.png" in report for name in figures)
    assert not list((out / "work").rglob("*.safetensors"))  # no vector is kept but the converged merges

    stamps = {path: path.stat().st_mtime_ns for folder in ("cells", "studies") for path in (out / folder).iterdir()}
    (out / "cells" / "adam-1.json").unlink()  # as if it had been killed there
    again = reproduce(settings, progress=False)
    kept = {path: stamp for path, stamp in stamps.items() if not path.name.startswith("adam-1.json")}  # nor its plan
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert comparison_table(settings, again.cells)
    assert json.loads((out / "cells" / "adam-1.json").read_text())["scores"][0]["seed"] == 1


@pytest.mark.slow  # a minute and a half on two cores
def test_the_smoke_configuration_runs_and_judges_every_claim(tmp_path: Path) -> None:
    arguments = ["--config", str(CONFIGS / "paper7_smoke.yaml"), "--output_dir", str(tmp_path)]
    settings, run = parse_recipe(Reproduction, reproduce_paper.RunArguments, argv=arguments)
    path = reproduce_paper.main(settings, run)
    assert path is not None
    report = path.read_text()
    rows = report.split("### The rules")[0].split("| --- | --- | --- | --- |\n")[1].strip().splitlines()
    verdicts = [row.split(" | ")[1] for row in rows]
    assert len(verdicts) == 7
    assert verdicts[:2] == ["**holds**"] * 2  # theorems
    assert "one-shot merging by ties@1" in report
    assert "Geometry between the tasks" in report
