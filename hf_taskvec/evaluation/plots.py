"""Figures: readable in print and by colour-blind eyes, with units on the axes."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.wise_ft import Interpolation
from hf_taskvec.weights.folders import write_bytes

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")  # Okabe and Ito
MARKERS = ("o", "s", "^", "D", "v", "P")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    r"""Writes a figure as PNG, atomically.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> save_figure(Figure(), path := f"{mkdtemp()}/figure.png")
        >>> Path(path).read_bytes()[:4]
        b'\x89PNG'
    """
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    write_bytes(path, buffer.getvalue())


def plot_merge(
    report: Report, curves: Mapping[str, Mapping[float, Report]], *, zero_shot: float, merged: str | None = None
) -> Figure:
    """Accuracies per task beside the validation accuracy of each method against the scaling.

    Args:
        report: The merged model's report with references.
        curves: For each method, validation reports by scaling.
        zero_shot: Mean validation accuracy of the base.
        merged: The method of the report, whose curve has the colour of its bars; the first if left out.

    Example:
        >>> from hf_taskvec import TaskResult
        >>> report = Report("merged", "test", (TaskResult("digits", 0.5, 100, zero_shot=0.2, individual=0.8),))
        >>> len(plot_merge(report, {"ties": {0.3: report, 1.0: report}}, zero_shot=0.2).axes)
        2
    """
    count = len(report.results)
    figure = Figure(figsize=(6 + 0.5 * count, 4), layout="constrained", dpi=120)
    left, right = figure.subplots(1, 2, width_ratios=(2 + 0.5 * count, 3))
    _plot_tasks(left, report)
    merged = next(iter(curves), None) if merged is None else merged
    others = itertools.cycle(COLOURS[3:])  # those that no bar has
    for index, (method, curve) in enumerate(curves.items()):
        scalings = sorted(curve)
        values = [100 * curve[scaling].accuracy for scaling in scalings]
        colour = COLOURS[1] if method == merged else next(others)
        right.plot(scalings, values, color=colour, marker=MARKERS[index % 6], markersize=4, label=method)
    right.axhline(100 * zero_shot, color="black", linestyle=":", label="zero-shot")
    right.set(xlabel="scaling", ylabel="mean validation accuracy (%)")
    right.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1))  # clear of the curves
    return figure


def plot_gains(curve: Mapping[float, Report], zero_shot: Report) -> Figure:
    """What the vector adds to the base's validation accuracy against its scaling, by task and on average.

    Example:
        >>> from hf_taskvec import TaskResult
        >>> report = Report("merged", "test", (TaskResult("digits", 0.5, 100, zero_shot=0.2, individual=0.8),))
        >>> plot_gains({0.3: report, 1.0: report}, report).axes[0].get_xlabel()
        'scaling'
    """
    figure = Figure(figsize=(7, 3.5), layout="constrained", dpi=100)
    axes = figure.subplots()
    gains = {
        base.task: [curve[scaling].results[index].accuracy - base.accuracy for scaling in curve]
        for index, base in enumerate(zero_shot.results)
    }
    _plot_gains(axes, list(curve), gains)
    axes.set(xlabel="scaling", ylabel="validation accuracy minus\nthe base's (points)")
    figure.legend(frameon=False, loc="outside right upper")
    return figure


def plot_along(scalings: Sequence[float], accuracies: Mapping[str, Sequence[float]], *, split: str = "test") -> Figure:
    """Each task's accuracy along its own vector, above the base's, and the straight way to the mean at scaling 1.

    A mean above that line is concave: a small step along the vectors brings more than its share. Below it, convex.

    Args:
        scalings: The scalings in their order, 0 and 1 among them.
        accuracies: For each task its accuracy at each of them, in [0, 1].
        split: The part of the tasks that was measured.

    Raises:
        ValueError: If 0 or 1 is not among the scalings, or there is no task.

    Example:
        >>> figure = plot_along([0, 0.5, 1], {"digits": [0.2, 0.5, 0.6], "shapes": [0.3, 0.4, 0.7]})
        >>> [line.get_label() for line in figure.axes[0].get_lines()]
        ['digits', 'shapes', 'mean', '_zero', 'straight']
    """
    if not accuracies or not {0, 1} <= set(scalings):
        raise ValueError(f"a figure along vectors needs a task and the scalings 0 and 1, got {list(scalings)}")
    start, end = list(scalings).index(0), list(scalings).index(1)
    figure = Figure(figsize=(7.5, 4), layout="constrained", dpi=110)
    axes = figure.subplots()
    gains = {task: [value - values[start] for value in values] for task, values in accuracies.items()}
    _plot_gains(axes, scalings, gains)
    axes.plot(
        [0, 1], [0, 100 * fmean(values[end] for values in gains.values())], color="black", ls=":", label="straight"
    )
    axes.set(xlabel="scaling of the task's own vector", ylabel=f"{split} accuracy minus the base's (points)")
    figure.legend(frameon=False, loc="outside right upper")
    return figure


def _plot_gains(axes: Axes, scalings: Sequence[float], gains: Mapping[str, Sequence[float]]) -> None:
    """One line per task in points, the mean of several thick, and a line at 0."""
    for index, (task, values) in enumerate(gains.items()):
        style: dict[str, Any] = {
            "color": COLOURS[index % 6],
            "marker": MARKERS[index % 6],
            "linestyle": "-" if index < 6 else "--",
        }
        axes.plot(scalings, [100 * value for value in values], label=task, markersize=4, **style)
    if len(gains) > 1:
        means = [100 * fmean(column) for column in zip(*gains.values(), strict=True)]
        axes.plot(scalings, means, label="mean", color="black", linewidth=2.5)
    axes.axhline(0, color="grey", linestyle=":", label="_zero")


def plot_wise_ft(curves: Mapping[str, Interpolation], *, split: str = "test") -> Figure:
    """Target against control accuracy along the way from the base, an open mark, to the fine-tuned model.

    Args:
        curves: Curves of `wise_ft`, by what each is called.
        split: The part of the tasks that was measured.

    Raises:
        ValueError: If there is no curve.

    Example:
        >>> curve = Interpolation((0.0, 0.5, 1.0), (0.2, 0.6, 0.8), (0.5, 0.5, 0.3))
        >>> plot_wise_ft({"digits": curve}).axes[0].get_ylabel()
        'control test accuracy (%)'
    """
    if not curves:
        raise ValueError("a figure of target against control needs a curve at least")
    figure = Figure(figsize=(6, 4), layout="constrained", dpi=120)
    axes = figure.subplots()
    for index, (name, curve) in enumerate(curves.items()):
        target, control = [100 * value for value in curve.target], [100 * value for value in curve.control]
        style: dict[str, Any] = {"color": COLOURS[index % 6], "marker": MARKERS[index % 6], "markersize": 5}
        axes.plot(target, control, label=name, linestyle="-" if index < 6 else "--", **style)
        axes.plot(target[:1], control[:1], fillstyle="none", label="_base", **{**style, "markersize": 9})
    axes.set(xlabel=f"target {split} accuracy (%)", ylabel=f"control {split} accuracy (%)")
    figure.legend(frameon=False, loc="outside right upper")
    return figure


def plot_front(points: Sequence[tuple[float, float]], *, front: Sequence[int], names: tuple[str, str]) -> Figure:
    """Every trial of a search by two goals, with those that no other dominates joined by a line.

    Args:
        points: Two accuracies of each trial, in [0, 1].
        front: The numbers of those that nothing dominates.
        names: What the two are.

    Example:
        >>> plot_front([(0.5, 0.3), (0.4, 0.1)], front=[0], names=("mean", "worst")).axes[0].get_xlabel()
        'mean accuracy (%)'
    """
    figure = Figure(figsize=(5, 4), layout="constrained", dpi=120)
    axes = figure.subplots()
    percent = [(100 * x, 100 * y) for x, y in points]
    axes.scatter([x for x, _ in percent], [y for _, y in percent], color=COLOURS[4], s=12, label="tried")
    best = sorted(percent[number] for number in front)
    style: dict[str, Any] = {"color": COLOURS[0], "marker": MARKERS[0], "markersize": 5}
    axes.plot([x for x, _ in best], [y for _, y in best], label="not dominated", **style)
    axes.set(xlabel=f"{names[0]} accuracy (%)", ylabel=f"{names[1]} accuracy (%)")
    axes.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def plot_disentanglement(
    maps: Mapping[str, Sequence[Sequence[float]]], *, factors: Sequence[float], tasks: tuple[str, str]
) -> Figure:
    """Maps of the disentanglement error of two vectors, one a model, on one colour scale; lower is better.

    Args:
        maps: For each model ξ by the factor of the first vector (row) and of the second (column).
        factors: The factors.
        tasks: The names of the two tasks.

    Example:
        >>> figure = plot_disentanglement({"ordinary": [[0, 1], [1, 0]]}, factors=[0, 1], tasks=("digits", "shapes"))
        >>> figure.axes[0].get_xlabel()
        'factor of digits'
    """
    figure = Figure(figsize=(1 + 3.2 * len(maps), 3.4), layout="constrained", dpi=120)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    top = max(0.01, *(value for errors in maps.values() for row in errors for value in row))
    for axes, (title, errors) in zip(panels, maps.items(), strict=True):
        columns = list(zip(*errors, strict=True))  # the first factor goes to the right
        image = axes.imshow(columns, origin="lower", vmin=0, vmax=top, cmap="viridis")
        axes.set_xticks(range(len(factors)), [f"{factor:g}" for factor in factors])
        axes.set_yticks(range(len(factors)), [f"{factor:g}" for factor in factors])
        axes.set(title=title, xlabel=f"factor of {tasks[0]}", ylabel=f"factor of {tasks[1]}")
    figure.colorbar(image, ax=panels, label="disentanglement error")
    return figure


def _plot_tasks(axes: Axes, report: Report) -> None:
    positions = range(len(report.results))
    bars: tuple[tuple[str, list[float | None], str], ...] = (
        ("zero-shot", [result.zero_shot for result in report.results], ""),
        (report.model, [result.accuracy for result in report.results], "//"),
        ("individual", [result.individual for result in report.results], ".."),
    )
    for index, (label, values, hatch) in enumerate(bars):
        heights = [100 * (value or 0.0) for value in values]
        places = [position + 0.27 * (index - 1) for position in positions]
        axes.bar(places, heights, 0.27, color=COLOURS[index], hatch=hatch, edgecolor="white", label=label)
    axes.set_xticks(list(positions), [result.task for result in report.results], rotation=30, ha="right")
    axes.set(ylabel=f"{report.split} accuracy (%)", ylim=(0, 115))
    axes.legend(frameon=False, fontsize="small", ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
