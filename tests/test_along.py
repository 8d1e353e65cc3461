"""Accuracy along task vectors: what is right at each scaling, the bend with its interval, the figure and the page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paper.along import Course, along_data, along_table, bend_of, course

from hf_taskvec import evaluate, gradient_vector, load_base
from hf_taskvec.errors import DataError, SettingsDifferError
from hf_taskvec.evaluation.plots import plot_along
from recipes import along_vector
from tests.toys import toy_task

DIGITS = toy_task()


def straight(gain_at_half: float, *, images: int = 400, task: str = "a") -> Course:
    """A task whose accuracy rises from 0 to 0.8, with a part of that at half the vector."""
    right = [round(images * share) for share in (0.0, 0.8 * gain_at_half, 0.8)]
    return Course(task, (0.0, 0.5, 1.0), np.stack([np.arange(images) < count for count in right]).astype(float))


@pytest.mark.parametrize(("share", "verdict"), [(0.8, "concave"), (0.2, "convex"), (0.5, "undecided")])
def test_the_bend_tells_concave_from_convex(share: float, verdict: str) -> None:
    bend = bend_of([straight(share), straight(share, task="b")])
    assert bend.verdict == verdict
    assert bend.share is not None
    assert bend.share.mean == pytest.approx(share)
    assert bend.share.low < share < bend.share.high
    assert bend.bend.mean == pytest.approx(0.8 * (share - 0.5))
    assert bend.bend.count == 800


def test_few_images_leave_the_bend_undecided() -> None:
    assert bend_of([straight(0.7, images=10)]).verdict == "undecided"


def test_a_vector_that_gains_nothing_has_a_bend_and_no_share() -> None:
    nothing = Course("a", (0.0, 0.5, 1.0), np.tile(np.arange(20) % 2, (3, 1)).astype(float))
    assert (bend_of([nothing]).bend.mean, bend_of([nothing]).share) == (0.0, None)
    assert along_table(along_data([nothing], split="test")).endswith("| – | undecided |")


def test_a_course_is_the_accuracy_of_base_plus_part_of_the_vector() -> None:
    base, vector = load_base(), gradient_vector(load_base(), DIGITS, learning_rate=0.5)
    measured = course(base, [vector, vector * 0.0], DIGITS, scalings=[0.0, 0.5, 1.0])
    ends = [evaluate(vector.apply_to(base, scaling=scaling), DIGITS).accuracy for scaling in (0.0, 1.0)]
    assert measured.accuracies[0] == pytest.approx(ends[0])
    assert measured.accuracies[2] == pytest.approx((ends[0] + ends[1]) / 2)  # the mean over two seeds


def test_what_cannot_be_followed_is_named() -> None:
    vector = gradient_vector(load_base(), DIGITS, learning_rate=0.5)
    with pytest.raises(ValueError, match=r"\[0.5\] are missing"):
        course(load_base(), [vector], DIGITS, scalings=[0, 1])
    with pytest.raises(DataError, match="no vector of 'digits'"):
        course(load_base(), [], DIGITS)
    with pytest.raises(DataError, match="at least one task"):
        bend_of([])
    with pytest.raises(ValueError, match="the scalings 0 and 1"):
        plot_along([0.5, 1.0], {"a": [0.1, 0.2]})


def test_the_figure_shows_gains_in_points_and_the_straight_way() -> None:
    axes = plot_along([0, 0.5, 1], {"a": [0.2, 0.5, 0.6], "b": [0.3, 0.4, 0.7]}).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert lines["a"] == pytest.approx([0, 30, 40])
    assert lines["mean"] == pytest.approx([0, 20, 40])
    assert lines["straight"] == pytest.approx([0, 40])


def test_the_recipe_follows_what_quickstart_left_and_reads_it_the_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_base()
    for seed in (0, 1):
        for task in ("digits", "shapes"):
            vector = gradient_vector(base, toy_task(task), learning_rate=0.1 + seed)
            vector.save_pretrained(tmp_path / "vectors" / f"seed-{seed}" / task / "vector")
    args = along_vector.AlongArguments(
        folder=str(tmp_path / "vectors"),
        tasks=["digits", "shapes"],
        scalings=[0.0, 0.5, 1.0],
        output_dir=str(tmp_path / "out"),
    )
    data = along_vector.main(args)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"along.json", "along.png", "report.md"}
    assert list(data["accuracies"]) == ["digits", "shapes"]
    assert "| **mean** |" in (tmp_path / "out" / "report.md").read_text()
    assert along_vector.main(args) == data
    with pytest.raises(SettingsDifferError, match="vectors="):
        along_vector.main(replace(args, seeds=[0]))
    with pytest.raises(DataError, match=r"seed-2.digits.vector is missing"):
        along_vector.main(replace(args, seeds=[2]))
    assert "| **mean** |" in capsys.readouterr().out
