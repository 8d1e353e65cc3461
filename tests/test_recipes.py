"""Recipes: their arguments, and the main job from end to end."""

from __future__ import annotations

import ast
import logging
import os
import runpy
import shlex
import signal
import subprocess
import sys
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from paper.seeds import seed_folders, seed_of

from hf_taskvec import Report, TaskVector, TaskVectorConfig, VectorInfo, choose_scaling, get_task, load_base, merge
from hf_taskvec.arguments import parse_recipe
from hf_taskvec.errors import ArgumentsError, DataError, OutputExistsError, SettingsDifferError, UnknownNameError
from hf_taskvec.evaluation.scalings import SCALINGS
from hf_taskvec.models.base import EMBEDDED, FEATURE_CLIP
from hf_taskvec.weights.folders import read_json
from recipes import (
    add_vectors,
    compare_compressions,
    compare_methods,
    evaluate_model,
    finetune,
    forgetting,
    learn_coefficients,
    one_after_another,
    penalties,
    precision,
    quickstart,
    robustness,
)
from tests.bases import save_colour_dataset, save_tiny_base
from tests.helpers import finetuned

ROOT = Path(__file__).parents[1]


def short_run(folder: Path, *, save_strategy: str = "no", **settings: Any) -> TaskVectorConfig:
    """Settings by which a tiny base learns colours."""
    return TaskVectorConfig(
        output_dir=str(folder),
        learning_rate=3e-3,
        per_device_train_batch_size=16,
        disable_tqdm=True,
        save_strategy=save_strategy,
        **settings,
    )


METADATA = '# /// script\n# requires-python = ">=3.11"\n# dependencies = ["hf-taskvec"]\n# ///\n'
RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.py")) if path.name != "interrupts.py"]


def test_a_recipe_that_keeps_what_is_finished_says_so_when_it_is_stopped() -> None:
    for path in (*RECIPES, *(ROOT / "recipes" / "benchmarks").glob("*.py")):
        source = path.read_text()
        assert "compute_or_read(" not in source or "stopped=" in source, path  # by default nothing was written


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_a_recipe_is_short_and_explains_its_arguments(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(path.read_text().removeprefix(METADATA).splitlines()) <= 120
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(path), run_name="__main__")
    shown = capsys.readouterr().out
    assert "--config" in shown
    assert str(ROOT) not in shown


def run_script(recipe: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A recipe in a process of its own, as a user starts it."""
    command = [sys.executable, str(ROOT / "recipes" / recipe), *argv]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=settings, check=False)


def test_recipes_run_as_scripts_on_a_terminal_that_knows_only_ascii() -> None:  # the table of methods has a "ᵀ"
    done = run_script("merge.py", "--list_methods", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "| `wudi` |" in done.stdout


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} recipes/merge.py --list_methods | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_a_recipe_ends_an_error_of_its_user_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run_script("merge.py", "--vectors", str(tmp_path / "empty"), "--output_dir", str(tmp_path / "out"))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("merge.py: error: ")
    assert "empty" in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_ctrl_c_while_a_recipe_loads_ends_it_in_one_sentence(path: Path, tmp_path: Path) -> None:
    for name in ("accelerate", "huggingface_hub", "lazy_loader", "numpy", "torch"):  # whichever a recipe loads first
        (tmp_path / f"{name}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = run_script(path.name, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, f"{path.name}: stopped before it began.\n")


@pytest.mark.parametrize(
    ("argv", "learning_rate"),
    [
        ([], 3e-4),
        (["--learning_rate", "1e-3"], 1e-3),
        (["--base=openai/clip-vit-base-patch32"], 1e-5),
        (["--base", "openai/clip-vit-base-patch32"], 1e-5),
        (["--base", EMBEDDED], 3e-4),
        (["--base", FEATURE_CLIP], 3e-4),
        (["--config", "other base"], 1e-5),
        (["--config", "own tasks"], 3e-4),
    ],
)
def test_quickstart_takes_an_embedded_bases_settings_for_it_alone(
    argv: list[str], learning_rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other base").write_text("base: openai/clip-vit-base-patch32\n")
    Path("own tasks").write_text("tasks: [digits]\n")
    types = (quickstart.QuickstartArguments, TaskVectorConfig)
    _, config = parse_recipe(*types, argv=argv, defaults=quickstart.tuned_settings)
    assert config.learning_rate == learning_rate
    assert config.record_epochs is (learning_rate == 1e-5)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.py")), ids=lambda path: path.name)
def test_recipes_are_small_and_use_public_names_only(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, node.name
        elif isinstance(node, ast.ImportFrom):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            # Accelerate has no public way to forget the precision of a process's last trainer
            assert own or ast.unparse(node) == "AcceleratorState._reset_state", ast.unparse(node)


def test_quickstart_runs_from_a_base_to_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_tiny_base(tmp_path / "base")
    for name, seed in (("first", 0), ("second", 1)):
        save_colour_dataset(tmp_path / "data" / name, seed=seed)
    config = TaskVectorConfig(
        output_dir=str(tmp_path / "out"),
        learning_rate=3e-3,
        num_train_epochs=2,
        per_device_train_batch_size=16,
        disable_tqdm=True,
        save_strategy="no",
        track_gradients=False,
    )
    arguments = quickstart.QuickstartArguments(
        base=str(base),
        tasks=["first", "second"],
        data_dir=str(tmp_path / "data"),
        seeds=[0, 1],
        methods=["task_arithmetic", "average"],
        choose_weights=True,
    )
    reports = quickstart.main(arguments, config)
    assert [len(runs) for runs in reports.values()] == [2, 2, 2]
    assert list(reports) == ["task_arithmetic", "average", "task_arithmetic, weights"]
    report = Report.load(tmp_path / "out" / "report.json")
    assert report.individual is not None
    assert report.zero_shot is not None
    assert report.individual > 0.9 > report.zero_shot
    assert (tmp_path / "out" / "report.png").is_file()
    merged = TaskVector.from_pretrained(tmp_path / "out" / "seed-1" / "merged-average")
    assert [parent.task for parent in merged.info.parents] == ["first", "second"]
    assert all(parent.seed == 1 for parent in merged.info.parents)
    assert "| **mean** |" in capsys.readouterr().out
    comparison = compare_methods.ComparisonArguments(
        folder=str(tmp_path / "out"),
        tasks=["first", "second"],
        base=str(base),
        data_dir=str(tmp_path / "data"),
        methods=["average", "regmean", "regmean_pp", "lot"],
        num_images=8,
        tuned=["bmm:ridge=0.1,10"],
        learned=["expert", "labels"],
        learned_splits=["validation", "test"],
        learned_images=8,
        learned_steps=2,
        results_dir=str(tmp_path / "kept"),
        table=str(tmp_path / "table.md"),
        scalings=list(SCALINGS),
    )
    table = compare_methods.main(comparison)
    assert compare_methods.main(comparison) == table == (tmp_path / "table.md").read_text()  # kept, not measured again
    mean = sum(run.accuracy for run in reports["average"]) / 2
    assert f"| `average` | - | - | no | {100 * mean:.1f} " in table
    assert "| `lot` | 8 | train | no | " in table
    assert "| `learned-labels-validation` | 8 | validation | yes | " in table
    assert "| `learned-expert-test` | 8 | test (transductive) | no | " in table
    assert "| `regmean_pp` | 8 | train | no | " in table
    assert "| `bmm-ridge` | 8 | train | no | " in table
    assert " (ridge " in table
    assert table.count("| `") == 8  # nothing is learned from labels of test images
    assert "minus the best that does not, `average`: " in table
    packings = compare_compressions.CompressionArguments(
        folder=str(tmp_path / "out"),
        tasks=["first", "second"],
        base=str(base),
        data_dir=str(tmp_path / "data"),
        packings=["int8", "sign"],
        methods=["average"],
        results_dir=str(tmp_path / "packed"),
        table=str(tmp_path / "packings.md"),
        scalings=list(SCALINGS),
    )
    rows = compare_compressions.main(packings).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == ["float32", "int8", "sign"]  # by their bytes
    assert f"| {100 * mean:.1f} " in rows[0]  # the same merge at the same scaling
    wanted = forgetting.ForgettingArguments(
        folder=str(tmp_path / "out"),
        tasks=["first", "second"],
        base=str(base),
        data_dir=str(tmp_path / "data"),
        budget=0.9,
        strengths=[0.5, 1.0],
        relearning_steps=1,
        results_dir=str(tmp_path / "forgotten"),
        table=str(tmp_path / "forgetting.md"),
    )
    page = forgetting.main(wanted)
    assert page == forgetting.main(wanted)  # kept, not measured again
    receipts = {f"seed-0-first-{way}.json" for way in ("forget", "ascent", "negation")}
    assert receipts <= set(os.listdir(tmp_path / "forgotten"))
    assert page.count("\n| first | 33.3 |") == 1
    orders = one_after_another.OrdersArguments(
        folder=str(tmp_path / "out"),
        tasks=["first", "second"],
        base=str(base),
        data_dir=str(tmp_path / "data"),
        methods=["opcm", "average"],
        batch=["average"],
        orders=3,
        between=1,
        results_dir=str(tmp_path / "orders"),
        table=str(tmp_path / "orders.md"),
    )
    page = one_after_another.main(orders)
    assert page == one_after_another.main(orders)
    kept = {path.stem for path in (tmp_path / "orders" / "seed-0").glob("*.json")}
    assert {"batch-average", "opcm-scaling", "opcm-0", "opcm-2", "average-0"} <= kept
    assert "average-1" not in kept  # no order changes it
    rows = {row.split("|")[1].strip(): row.split("|")[2:] for row in page.splitlines() if row.startswith("| `")}
    assert rows["`average`"][0] == rows["`average`, all at once"][0]
    corrupted = robustness.RobustnessArguments(
        folder=str(tmp_path / "out"),
        tasks=["first", "second"],
        base=str(base),
        data_dir=str(tmp_path / "data"),
        methods=["average"],
        strengths=[1, 5],
        alphas=[0, 1],
        max_test=4,
        results_dir=str(tmp_path / "corrupted"),
        output_dir=str(tmp_path / "robustness"),
    )
    page = robustness.main(corrupted)
    assert page == robustness.main(corrupted)
    assert (tmp_path / "robustness" / "robustness.png").is_file()
    with pytest.raises(SettingsDifferError, match="data_dir="):
        robustness.main(replace(corrupted, data_dir=str(tmp_path / "data" / ".." / "data")))
    assert len(read_json(tmp_path / "corrupted" / "base.json")["first"]) == 1 + 7 * 2
    assert page.count("\n| individual |") == page.count("\n| average |") == 1
    rounded = precision.PrecisionArguments(
        folder=str(tmp_path / "out"),
        tasks=["first", "second"],
        base=str(base),
        data_dir=str(tmp_path / "data"),
        dtypes=["bfloat16"],
        lengths=[1 / 1024],
        results_dir=str(tmp_path / "rounded"),
        table=str(tmp_path / "precision.md"),
    )
    page = precision.main(rounded)
    assert page == precision.main(rounded)
    assert logging.getLogger("hf_taskvec.vectors.rounding").isEnabledFor(logging.WARNING)  # as it was
    lost = {tuple(row.split(" | ")[:4]): float(row.split(" | ")[5]) for row in page.splitlines() if "| `" in row}
    assert len(lost) == 8 + 4
    whole, narrow = "`float32`", "`bfloat16`"
    assert lost["| 1", whole, whole, whole] < 0.01 < lost["| 1", whole, whole, narrow] < 1  # percent
    assert lost["| 1", whole, whole, narrow] < lost["| 1", narrow, narrow, narrow]
    assert lost["| 0.000976562", whole, whole, whole] < 1 < 50 < lost["| 0.000976562", narrow, narrow, whole]


def test_penalties_and_a_long_vector_are_compared_with_plain_vectors(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    for name, seed in (("first", 0), ("second", 1)):
        save_colour_dataset(tmp_path / "data" / name, seed=seed)
    config = short_run(tmp_path / "out")
    arguments = penalties.PenaltyArguments(
        base=str(base),
        tasks=["first", "second"],
        data_dir=str(tmp_path / "data"),
        max_test=12,
        orthogonalities=[],
        pulls=[10.0],
        methods=["average"],
        scalings=[0.5, 1.0],
        seeds=[1],
    )
    page = penalties.main(arguments, config)
    assert page == penalties.main(arguments, config) == (tmp_path / "out" / "table.md").read_text()
    lines = [row.split(" | ") for row in page.splitlines() if "`" in row and row.startswith("| ")]
    rows = {(row[0].removeprefix("| "), row[1]): row[2:] for row in lines}
    assert list(rows) == [
        *[(kind, way) for kind in ("plain", "one long") for way in ("`average`", "`distac of average`")],
        ("pull_to_base 10", "`average`"),
    ]
    assert (tmp_path / "out" / "seed-1" / "vectors" / "second-10").is_dir()  # whatever other seeds there are
    mean, longest = zip(*(map(float, row[0].rstrip(")").split(" (")) for row in rows.values()), strict=True)
    assert mean[4] < mean[0] < mean[2]  # pulled, plain, one long
    assert longest[0] < longest[2]
    reports = [
        Report.load(tmp_path / "out" / "seed-1" / kind / f"{way}.json")
        for kind, way in (("plain", "average"), ("one-long-10", "average"), ("one-long-10", "distac-of-average"))
    ]
    assert all(result.num_images == 12 for report in reports for result in report.results)
    gains = [rows["one long", way][4] for way in ("`average`", "`distac of average`")]
    plain, long, shrunk = [report.accuracy for report in reports]
    assert gains == [f"{100 * (long - plain):.1f}", f"{100 * (shrunk - long):.1f}"]
    assert rows["plain", "`average`"][4] == "-"


def test_quickstart_chooses_by_the_criterion(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "base")
    save_colour_dataset(tmp_path / "data" / "colours")
    config = short_run(tmp_path / "out")
    arguments = quickstart.QuickstartArguments(
        base=str(base), tasks=["colours"], data_dir=str(tmp_path / "data"), criterion="normalised"
    )
    (report,) = quickstart.main(arguments, config)["task_arithmetic"]
    loaded, task = load_base(base), get_task("colours", data_dir=tmp_path / "data")
    vector = TaskVector.from_pretrained(tmp_path / "out" / "seed-0" / "merged-task_arithmetic")
    assert report.scaling == choose_scaling(
        loaded, vector, task, criterion="normalised", individual={"colours": vector}
    )


def test_coefficients_are_learned_and_measured_on_test_images(tmp_path: Path) -> None:
    base, folder = save_tiny_base(tmp_path / "base"), save_colour_dataset(tmp_path / "data" / "colours").parent
    loaded = load_base(base)
    TaskVector.from_models(loaded.model, finetuned(loaded.model)).save_pretrained(tmp_path / "vector")
    arguments = learn_coefficients.LearnArguments(
        vectors=[str(tmp_path / "vector")],
        tasks=["colours"],
        base=str(base),
        data_dir=str(folder),
        steps=2,
        output_dir=str(tmp_path / "out"),
    )
    report = learn_coefficients.main(arguments)
    assert report is not None
    assert (report.split, report.results[0].individual is None) == ("test", False)
    assert Report.load(tmp_path / "out" / "report.json").results == report.results
    learned = TaskVector.from_pretrained(tmp_path / "out").info.settings["learned"]
    assert (learned["split"], learned["steps"]) == ("validation", 2)


def test_finetune_saves_the_vector_that_evaluate_applies(tmp_path: Path) -> None:
    base, folder = save_tiny_base(tmp_path / "base"), save_colour_dataset(tmp_path / "data" / "colours").parent
    config = short_run(tmp_path / "out", num_train_epochs=3, save_strategy="epoch")
    vector = finetune.main(finetune.FinetuneArguments(task="colours", base=str(base), data_dir=str(folder)), config)
    arguments = evaluate_model.EvaluateSettings(
        tasks=["colours"],
        base=str(base),
        vector=str(tmp_path / "out" / "vector"),
        scaling=1.0,
        data_dir=str(folder),
        output=str(tmp_path / "report.json"),
    )
    report = evaluate_model.main(arguments)
    assert report.accuracy > 0.9
    assert Report.load(tmp_path / "report.json") == report
    assert vector.info.epochs == 3.0


def test_quickstart_refuses_an_unknown_method_before_training(tmp_path: Path) -> None:
    arguments = quickstart.QuickstartArguments(tasks=["digits"], methods=["task_arithmetic", "tise"])
    with pytest.raises(UnknownNameError, match="Did you mean 'ties'"):
        quickstart.main(arguments, TaskVectorConfig(output_dir=str(tmp_path / "out"), disable_tqdm=True))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_else_stops_the_run_before_training(tmp_path: Path) -> None:
    base, folder = save_tiny_base(tmp_path / "base"), save_colour_dataset(tmp_path / "data" / "colours").parent
    (tmp_path / "out" / "seed-0" / "colours" / "vector").mkdir(parents=True)
    (tmp_path / "out" / "seed-0" / "colours" / "vector" / "thesis.txt").write_text("years of work")
    config = TaskVectorConfig(output_dir=str(tmp_path / "out"), disable_tqdm=True)
    arguments = quickstart.QuickstartArguments(base=str(base), tasks=["colours"], data_dir=str(folder))
    with pytest.raises(OutputExistsError, match="holds something else"):
        quickstart.main(arguments, config)
    assert not (tmp_path / "out" / "seed-0" / "colours" / "run").exists()


def test_a_vector_that_may_be_in_the_sequence_or_not_is_refused_and_one_that_is_in_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (1, 2):
        TaskVector({"w": torch.eye(3) * seed}).save_pretrained(tmp_path / f"bare{seed}")  # of no provenance
    TaskVector({"w": torch.eye(3)}, VectorInfo(task="t")).save_pretrained(tmp_path / "told")
    sources = [str(tmp_path / name) for name in ("told", "bare1", "bare2")]
    with pytest.raises(ArgumentsError, match="bare1 tells of no task and no checkpoint"):
        add_vectors.main(add_vectors.AddArguments(sources, str(tmp_path / "sequence")))
    assert not (tmp_path / "sequence").exists()
    args = add_vectors.AddArguments([str(tmp_path / "told")] * 2, str(tmp_path / "sequence"))
    assert add_vectors.main(args).tasks == ("t",)
    assert "told is in the sequence already" in capsys.readouterr().out


def test_vectors_are_added_to_a_merge_that_is_kept(tmp_path: Path) -> None:
    for seed in (1, 2):
        TaskVector({"w": torch.eye(3) * seed}, VectorInfo(task=f"t{seed}")).save_pretrained(tmp_path / f"v{seed}")
    sources = [str(tmp_path / "v1"), str(tmp_path / "v2")]
    args = add_vectors.AddArguments(sources[:1], str(tmp_path / "sequence"), method="magmax")
    assert add_vectors.main(args).tasks == ("t1",)
    further = replace(args, vectors=sources, output_dir=str(tmp_path / "merged"))
    assert add_vectors.main(further).tasks == add_vectors.main(further).tasks == ("t1", "t2")  # none comes twice
    assert TaskVector.from_pretrained(tmp_path / "merged") == merge(sources, "magmax")
    with pytest.raises(ArgumentsError, match="was begun with magmax"):
        add_vectors.main(replace(args, method="opcm"))
    with pytest.raises(UnknownNameError, match="opcm"):
        add_vectors.main(replace(args, method="opc"))


@pytest.mark.parametrize(
    "recipe", [compare_compressions, compare_methods, forgetting, one_after_another, precision, robustness]
)
def test_a_recipe_on_a_folder_without_vectors_says_so_before_it_measures(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "seed-old").mkdir()
    kind = next(value for name, value in vars(recipe).items() if name.endswith("Arguments") and is_dataclass(value))
    page = tmp_path / "page.md"
    where = {"output_dir": str(tmp_path)} if recipe is robustness else {"table": str(page)}
    with pytest.raises(DataError, match=r"holds no folder seed-N of quickstart\.py"):
        recipe.main(kind(folder=str(tmp_path), tasks=["digits", "shapes"], results_dir=str(tmp_path / "kept"), **where))
    assert [path.name for path in tmp_path.iterdir()] == ["seed-old"]


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"dtypes": ["float15"]}, "dtype must be one of"),
        ({"lengths": [0.5, 0.0]}, r"lengths must be in \(0, 1\], got 0"),
    ],
)
def test_precision_refuses_what_is_no_dtype_or_length_before_it_measures(
    odd: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(ValueError, match=message):
        precision.main(precision.PrecisionArguments(folder=str(tmp_path), tasks=["digits"], **odd))


def test_seeds_are_told_by_their_folders_names(tmp_path: Path) -> None:
    for name in ("seed-10", "seed-2", "seed-x"):
        (tmp_path / name).mkdir()
    assert [seed_of(folder) for folder in seed_folders(tmp_path)] == [2, 10]
