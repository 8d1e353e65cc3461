"""Which to choose: every way is measured on the same images, and table and picture tell what was measured."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from multitask.choice import accuracy, choice_table, merges_table, normalised, plot_choice
from multitask.ways import Way, make_way, right_answers

from hf_taskvec import TaskVector, evaluate, get_tasks, load_base
from hf_taskvec.multitask import pack
from hf_taskvec.routing import evaluate_routed, smile
from recipes import which_to_choose
from tests.bases import save_colour_dataset, save_tiny_base

FEW = ["zero-shot", "task_arithmetic", "smile", "mass", "twin-router", "emr", "int4"]
FEW += ["task_arithmetic@int2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two tasks and their vectors; never changed by a test."""
    root = tmp_path_factory.mktemp("choice")
    base = load_base(save_tiny_base(root / "base"))
    names = {name: weight.detach() for name, weight in base.model.named_parameters()}
    for seed, task in enumerate(("first", "second")):
        save_colour_dataset(root / "data" / task, seed=seed, train=30, test=12)
        generator = torch.Generator().manual_seed(seed)
        moved = {name: weight.clone() for name, weight in names.items()}
        for name in moved:
            if name.startswith("vision_model") and ("fc1" in name or "fc2" in name):
                moved[name] += 0.1 * torch.randn(moved[name].shape, generator=generator)
        TaskVector.from_weights(names, moved).save_pretrained(root / "vectors" / task / "vector")
    return root


def test_every_way_is_measured_and_stands_in_table_and_picture(place: Path, tmp_path: Path) -> None:
    args = which_to_choose.ChoiceArguments(
        folder=str(place / "vectors"),
        tasks=["first", "second"],
        base=str(place / "base"),
        data_dir=str(place / "data"),
        ways=FEW,
        steps=1,
        results_dir=str(tmp_path / "ways"),
        output_dir=str(tmp_path / "out"),
    )
    results = which_to_choose.main(args)
    assert set(results) == {*FEW, "float32"}
    assert which_to_choose.main(args) == results  # kept, not measured again
    page = (tmp_path / "out" / "which_to_choose.md").read_text()
    assert all(f"| `{name}` |" in page for name in results if "@" not in name)
    assert "| task_arithmetic | int2 | " in page
    assert (tmp_path / "out" / "which_to_choose.png").stat().st_size > 10_000
    assert results["float32"]["size"] == 2
    assert results["task_arithmetic"]["size"] == 1
    assert results["zero-shot"]["size"] == 0
    assert results["smile"]["passes"] == 1
    assert results["mass"]["passes"] == 2
    base = load_base(place / "base")
    tasks = get_tasks(["first", "second"], data_dir=place / "data")
    vectors = {task.name: TaskVector.from_pretrained(place / "vectors" / task.name / "vector") for task in tasks}
    report = evaluate(pack(vectors, "emr").apply_to(base), tasks)
    ours = {task: bits.count("1") / len(bits) for task, bits in results["emr"]["right"].items()}
    assert ours == {result.task: pytest.approx(result.accuracy) for result in report.results}
    routed = evaluate_routed(smile(base, vectors, tasks, rank=128), base, tasks)
    for result in routed.results:
        for kind, value in {"right": result.accuracy, "joint": result.metrics["joint_accuracy"]}.items():
            bits = results["smile"][kind][result.task]
            assert bits.count("1") / len(bits) == pytest.approx(value)
    zero = right_answers(Way(base, 0.0), base, tasks)
    assert zero["right"] == results["zero-shot"]["right"]
    assert make_way("rtvq", base, vectors, tasks, steps=1).size < 0.5


def test_figures_are_those_of_the_answers() -> None:
    experts = {"a": "1" * 80 + "0" * 20, "b": "1" * 40 + "0" * 60}
    bits = {"a": "1" * 60 + "0" * 40, "b": "1" * 40 + "0" * 60}
    assert accuracy(bits).value == pytest.approx(0.5)
    assert normalised(bits, experts).value == pytest.approx((0.75 + 1) / 2)
    assert accuracy(bits).low < 0.5 < accuracy(bits).high
    assert 0.1 < accuracy(bits).high - accuracy(bits).low < 0.16  # 2 · 1.96 · √(.24 / 200)
    assert normalised(experts, experts).low == normalised(experts, experts).high == 1  # the same images
    results = {
        "float32": {"size": 2.0, "passes": 1, "right": experts},
        "tsv_m": {"size": 1.0, "passes": 1, "right": bits, "joint": bits},
        "smile": {"size": 1.5, "passes": 1, "right": bits, "joint": bits, "routed": experts},
    }
    rows = choice_table(results).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == ["tsv_m", "smile", "float32"]  # by what they store
    assert "| yes | 60.0 [" in rows[2]
    assert "| 60.0 [" in rows[1]
    assert rows[0].count("|  |") == 1
    assert merges_table(results) == ""
    same = {**results, "tsv_m@int2": results["tsv_m"]}
    assert "| tsv_m | int2 | 0.0 [0.0, 0.0] |" in merges_table(same)
    figure = plot_choice(same)
    assert [axes.get_ylabel() for axes in figure.axes] == ["mean accuracy (%)", "mean normalised accuracy (%)"]
    assert {text.get_text() for text in figure.axes[0].texts} == set(results)
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()][:3] == ["0.25", "0.5", "1"]


def test_labels_stand_inside_the_picture_apart_and_the_better_one_of_a_column_above() -> None:
    sizes = {
        "float32": 8,
        "low": 1,
        "middle": 1,
        "high": 1,
        **{f"packed-{number}": 0.2 * number for number in range(1, 5)},
    }
    right = {"low": 20, "middle": 22, "high": 24}
    results = {
        name: {"size": size, "passes": 1, "right": {"a": "1" * right.get(name, 60) + "0" * (100 - right.get(name, 60))}}
        for name, size in sizes.items()
    }
    figure = plot_choice(results)
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
        assert all(axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1 and box.x1 < axes.bbox.x1 for box in boxes.values())
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))
        assert boxes["low"].y0 < boxes["middle"].y0 < boxes["high"].y0
