"""The report's figures, each beside the JSON it shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from hf_taskvec.evaluation.intervals import Interval, bootstrap_interval
from hf_taskvec.evaluation.plots import COLOURS, MARKERS, save_figure
from hf_taskvec.weights.folders import read_json, write_json
from paper.analysis import budgets_of, compare_budgets, over_seeds, scores
from paper.comparison import INDIVIDUAL, JOINT
from paper.results import Results

Data = dict[str, Any]


def draw_figures(results: Results, folder: Path) -> list[str]:
    """Draws every figure as `<name>.png` beside `<name>.json`, and returns the names."""
    for name, (gather, _) in FIGURES.items():
        write_json(folder / f"{name}.json", gather(results))
    redraw(folder)
    return list(FIGURES)


def redraw(folder: Path) -> None:
    """Draws every figure from the JSON in the folder."""
    for name, (_, draw) in FIGURES.items():
        save_figure(draw(read_json(folder / f"{name}.json")), folder / f"{name}.png")


def draw_orders(data: Data) -> Figure:
    """Distance of task arithmetic from joint training against the learning rate, on the network and on the base."""
    figure, panels = _panels(2)
    for axes, (key, title) in zip(
        panels, (("mlp", "tanh network, 3 tasks"), ("clip", "base, up to 3 tasks")), strict=True
    ):
        study = data[key]
        for index, (name, order, label) in enumerate(
            (("distances", "order", "task arithmetic"), ("residuals", "corrected_order", "after the correction"))
        ):
            _line(axes, study["learning_rates"], study[name], index, f"{label}, order {study[order]:.2f}")
        axes.set(
            xscale="log", yscale="log", title=title, xlabel="learning rate η", ylabel="distance from joint training"
        )
        axes.set_xticks(study["learning_rates"], [f"{rate:g}" for rate in study["learning_rates"]], rotation=30)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(frameon=False, loc="lower right")  # below both lines
    return figure


def norm_data(results: Results) -> Data:
    """Share of each epoch in the sum of the mean gradient norms, per task over seeds."""
    data = {}
    for task in results.tasks:
        items = [item for item in results.dynamics if item["task"] == task]
        epochs = min(len(item["shares"]) for item in items)
        data[task] = [vars(over_seeds(items, [item["shares"][k] for item in items])) for k in range(epochs)]
    return data


def draw_norms(data: Data) -> Figure:
    """The shares against the epoch, one line per task."""
    figure, (axes,) = _panels(1)
    for index, (task, course) in enumerate(data.items()):
        _band(axes, range(1, len(course) + 1), course, index, task)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="share of the sum of gradient norms", ylim=(0, None))
    axes.legend(frameon=False, ncols=2)
    return figure


COURSES = {
    "accumulated_to_first": "epoch's gradient with the first epoch's",
    "accumulated_to_final_vector": "epoch's gradient with the last vector",
    "vector_to_first_full_gradient": "vector with −∇L at the base",
    "vector_to_final_vector": "vector with the last vector",
}


def direction_data(results: Results) -> Data:
    """Cosines against the epoch, averaged over tasks, and between the epochs' accumulated gradients."""
    items = results.dynamics
    epochs = min(len(item["shares"]) for item in items)
    courses = {
        name: [vars(over_seeds(items, [i["courses"]["all"][name][k] for i in items])) for k in range(epochs)]
        for name in COURSES
    }
    matrices = [np.array(item["cosines_between_accumulated_gradients"])[:epochs, :epochs] for item in items]
    return {"courses": courses, "between_epochs": np.mean(matrices, axis=0).tolist()}


def draw_directions(data: Data) -> Figure:
    """The courses, and the cosine matrix between epochs."""
    figure, (left, right) = _panels(2)
    for index, (name, course) in enumerate(data["courses"].items()):
        _band(left, range(1, len(course) + 1), course, index, COURSES[name])
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="epoch", ylabel="cosine, mean over tasks")
    left.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))
    matrix = data["between_epochs"]
    _heat(figure, right, matrix, [str(k + 1) for k in range(len(matrix))], "cosine between epochs' gradients", [matrix])
    right.set(xlabel="epoch", ylabel="epoch")
    return figure


def layer_data(results: Results) -> Data:
    """Per layer: cosine of the first and of the last vector with the gradient at the base, and with each other."""
    layers = [layer for layer in results.dynamics[0]["courses"] if layer != "all"]

    def course(name: str, epoch: int) -> list[Any]:
        items = results.dynamics
        return [vars(over_seeds(items, [i["courses"][layer][name][epoch] for i in items])) for layer in layers]

    return {
        "layers": [layer.removeprefix("vision_model.") for layer in layers],
        "first vector with −∇L at the base": course("vector_to_first_full_gradient", 0),
        "last vector with −∇L at the base": course("vector_to_first_full_gradient", -1),
        "first vector with the last": course("vector_to_final_vector", 0),
    }


def draw_layers(data: Data) -> Figure:
    """The cosines by layer."""
    figure, (axes,) = _panels(1)
    layers = data["layers"]
    for index, (name, course) in enumerate((key, value) for key, value in data.items() if key != "layers"):
        _band(axes, range(len(layers)), course, index, name)
    axes.set_xticks(range(len(layers)), [layer.replace("encoder.", "") for layer in layers], rotation=35, ha="right")
    axes.set(ylabel="cosine, mean over tasks")
    axes.legend(frameon=False, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def geometry_data(results: Results) -> Data:
    """Mean cosine tables between tasks after one epoch and converged, for the dynamics' optimiser."""
    cells = [cell for cell in results.cells if cell.scores[0].optimizer == results.settings.dynamics_optimizer]
    tables = {
        budget: np.mean([cell.geometry[budget]["cosines"] for cell in cells], axis=0).tolist()
        for budget in ("1", "converged")
    }
    return {"tasks": results.tasks, **tables}


def draw_geometry(data: Data) -> Figure:
    """Both tables side by side."""
    figure, panels = _panels(2)
    names = {"1": "after one epoch", "converged": "converged"}
    for axes, (budget, title) in zip(panels, names.items(), strict=True):
        _heat(figure, axes, data[budget], data["tasks"], "cosine between task vectors", [data[key] for key in names])
        axes.set_title(title)
    return figure


def trajectory_data(results: Results) -> Data:
    """The trajectories of the first seed of the dynamics' optimiser."""
    cells = [cell for cell in results.cells if cell.scores[0].optimizer == results.settings.dynamics_optimizer]
    return min(cells, key=lambda cell: cell.scores[0].seed).trajectory


def draw_trajectory(data: Data) -> Figure:
    """The trajectories on the first two principal components, the tasks thin, the mean and joint training thick."""
    figure, (axes,) = _panels(1)
    main = ("task arithmetic", JOINT)
    for index, (name, points) in enumerate(data["points"].items()):
        x, y = np.array(points).T[:2]
        thick = name in main
        colour = ("black", COLOURS[5])[main.index(name)] if thick else COLOURS[index % 5]
        axes.plot(
            x,
            y,
            color=colour,
            marker=MARKERS[index % 6],
            markersize=4,
            linestyle="-" if thick or index < 5 else "--",
            linewidth=2.5 if thick else 1,
            label=name,
        )
    shares = [f"component {k + 1} ({100 * share:.0f} % of the variance)" for k, share in enumerate(data["explained"])]
    axes.set(xlabel=shares[0], ylabel=shares[1])
    axes.legend(frameon=False, fontsize="small", ncols=2)
    return figure


def budget_data(results: Results) -> Data:
    """Mean accuracy at each budget, per optimiser and method."""
    methods = [*results.settings.merges, JOINT, INDIVIDUAL]
    optimizers = {}
    for optimizer in results.settings.optimizers:
        budgets = budgets_of(results.cells, optimizer)
        all_scores = {m: [scores(results.cells, optimizer, m, budget) for budget in budgets] for m in methods}
        courses = {
            method: [vars(bootstrap_interval([score.mean for score in at_budget])) for at_budget in by_budget]
            for method, by_budget in all_scores.items()
        }
        optimizers[optimizer] = {"budgets": budgets, "methods": courses}
    return {"zero_shot": fmean(results.zero_shot.values()), "optimizers": optimizers}


def draw_budgets(data: Data) -> Figure:
    """One panel per optimiser."""
    count = len(data["optimizers"])
    figure, panels = _panels(count, rows=math.ceil(count / 2), share=True)
    for axes, (optimizer, panel) in zip(panels, data["optimizers"].items(), strict=False):  # an odd one leaves a gap
        places = range(len(panel["budgets"]))
        for index, (method, course) in enumerate(panel["methods"].items()):
            _band(axes, places, course, index, method, percent=True)
        axes.axhline(100 * data["zero_shot"], color="black", linestyle=":", label="zero-shot")
        axes.set_xticks(list(places), panel["budgets"], rotation=30)
        axes.set(title=optimizer, xlabel="budget (epochs per task)")
    for axes in panels[::2]:
        axes.set_ylabel("mean test accuracy (%)")
    for axes in panels[count:]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4)
    return figure


def difference_data(results: Results) -> Data:
    """One epoch minus converged, per optimiser and method."""
    settings = results.settings
    comparisons = [compare_budgets(results.cells, o, m) for o in settings.optimizers for m in settings.merges]
    rows = [
        {"optimizer": c.optimizer, "method": c.method, "wins": c.wins, "trials": c.trials, **vars(c.difference)}
        for c in comparisons
    ]
    return {"rows": rows}


def draw_differences(data: Data) -> Figure:
    """Intervals of the differences, one row per optimiser and method."""
    figure, (axes,) = _panels(1, height=1.5 + 0.28 * len(data["rows"]))
    optimizers = list(dict.fromkeys(row["optimizer"] for row in data["rows"]))
    for place, row in enumerate(data["rows"]):
        index = optimizers.index(row["optimizer"])
        spread = [[100 * (row["mean"] - row["low"])], [100 * (row["high"] - row["mean"])]]
        axes.errorbar(
            [100 * row["mean"]],
            [place],
            xerr=np.abs(spread),
            color=COLOURS[index % 6],
            marker=MARKERS[index % 6],
            capsize=3,
        )
    labels = [f"{row['optimizer']}, {row['method']}" for row in data["rows"]]
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("one epoch minus converged (percentage points)")
    return figure


def atm_data(results: Results) -> Data:
    """Mean accuracies per number of rounds, of one-shot merges and joint training at that budget, and post hoc."""
    items, settings = results.atm, results.settings
    budget = f"{settings.atm_budget:g}"
    one_shot = {method: scores(results.cells, settings.atm_optimizer, method, budget) for method in settings.merges}

    def over(accuracies: Sequence[Mapping[str, float]]) -> Any:
        return vars(over_seeds(items, [fmean(each.values()) for each in accuracies]))

    return {
        "budget": settings.atm_budget,
        "one_shot": {
            method: vars(bootstrap_interval([score.mean for score in one_per_seed]))
            for method, one_per_seed in one_shot.items()
            if one_per_seed
        },
        "rounds": {count: over([item["rounds"][count] for item in items]) for count in items[0]["rounds"]},
        JOINT: over([item[JOINT] for item in items]),
        "post_hoc": [over([item["post_hoc"][k] for item in items]) for k in range(len(items[0]["post_hoc"]))],
    }


def draw_atm(data: Data) -> Figure:
    """Rounds at equal budget on the left, post-hoc rounds on the right."""
    figure, (left, right) = _panels(2, share=True)
    counts = list(data["rounds"])
    _band(left, range(len(counts)), list(data["rounds"].values()), 0, "alternating tuning and merging", percent=True)
    left.axhline(100 * data[JOINT]["mean"], color=COLOURS[5], linestyle="--", label="joint training, same budget")
    left.set_xticks(range(len(counts)), counts)
    left.set(xlabel=f"rounds ({data['budget']} epochs per task in all)", ylabel="mean test accuracy (%)")
    left.legend(frameon=False)
    _band(right, range(len(data["post_hoc"])), data["post_hoc"], 2, "post-hoc, validation images", percent=True)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="rounds after merging converged vectors")
    right.legend(frameon=False)
    return figure


def _panels(count: int, *, rows: int = 1, share: bool = False, height: float = 3.8) -> tuple[Figure, Sequence[Axes]]:
    columns = math.ceil(count / rows)
    figure = Figure(figsize=(max(6.0, 4.2 * columns), height * rows), layout="constrained", dpi=110)
    return figure, figure.subplots(rows, columns, sharey=share, squeeze=False).flatten().tolist()


def _line(axes: Axes, x: Sequence[float], y: Sequence[float], index: int, label: str) -> None:
    style = "-" if index < 6 else "--"  # there are six colours
    axes.plot(x, y, color=COLOURS[index % 6], marker=MARKERS[index % 6], linestyle=style, markersize=4, label=label)


def _band(
    axes: Axes,
    x: Sequence[float],
    course: Sequence[Mapping[str, Any]],
    index: int,
    label: str,
    *,
    percent: bool = False,
) -> None:
    """A line with its intervals."""
    factor = 100 if percent else 1
    intervals = [Interval(**point) for point in course]
    _line(axes, x, [factor * each.mean for each in intervals], index, label)
    low, high = [factor * each.low for each in intervals], [factor * each.high for each in intervals]
    axes.fill_between(x, low, high, color=COLOURS[index % 6], alpha=0.15, linewidth=0)


def _heat(
    figure: Figure,
    axes: Axes,
    table: Sequence[Sequence[float]],
    labels: Sequence[str],
    title: str,
    tables: Sequence[Sequence[Sequence[float]]],
) -> None:
    """A table of cosines in colours, with the figures in the cells; the diagonal, all ones, stays white.

    One colour means one cosine in all `tables` of a figure.
    """
    off = ~np.eye(len(table), dtype=bool)
    values, every = np.where(off, np.array(table), np.nan), np.array(tables)[:, off]
    low, high = min(0.0, float(every.min())), float(every.max())
    image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high)
    for row, column in zip(*off.nonzero(), strict=True):
        value = values[row, column]
        dark = value < (low + high) / 2
        text = f"{value:z.2f}".replace("0.", ".", 1)
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(labels)), labels, rotation=45, ha="right")
    axes.set_yticks(range(len(labels)), labels)
    figure.colorbar(image, ax=axes, label=title, fraction=0.046, pad=0.04)


FIGURES: dict[str, tuple[Callable[[Results], Data], Callable[[Data], Figure]]] = {
    "orders": (lambda results: results.orders, draw_orders),
    "gradient_norms": (norm_data, draw_norms),
    "directions": (direction_data, draw_directions),
    "layers": (layer_data, draw_layers),
    "geometry": (geometry_data, draw_geometry),
    "trajectory": (trajectory_data, draw_trajectory),
    "budgets": (budget_data, draw_budgets),
    "differences": (difference_data, draw_differences),
    "atm": (atm_data, draw_atm),
}
