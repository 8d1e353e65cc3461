"""Mergeability against scale: trends over widths and depths, with the authors' ViT-B/16 beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from hf_taskvec.errors import DataError
from hf_taskvec.evaluation.plots import COLOURS, MARKERS
from hf_taskvec.text import listed, table

Values = dict[str, Any]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """Something of a base that may depend on its size.

    Attributes:
        title: Axis label.
        factor: What values are multiplied by to be shown.
        authors: The authors' ViT-B/16 (arXiv 2508.16082: eight tasks, AdamW, converged, 1/T), where it is known.
        is_log: Whether it spans powers of ten: its trend is one of its logarithm, and tells a factor per doubling.
    """

    title: str
    factor: float = 1.0
    authors: float | None = None
    is_log: bool = False

    def fitted(self, value: float) -> float:
        """What the trend is fitted to."""
        return math.log2(value) if self.is_log else value

    def shown(self, value: float) -> float:
        """A value of the trend as it is shown."""
        return 2**value if self.is_log else self.factor * value


# The authors' zero-shot accuracy is .551, merged .7162 after one epoch and .7256 converged, individual .9318.
AUTHORS_PARAMETERS = 85_799_424  # of the vision tower of ViT-B/16, without its projection
MEASURES = {
    "gain": Measure("merge over zero-shot (points)", 100, 0.7256 - 0.551),
    "gain_at_mean": Measure("mean over zero-shot (points)", 100, 0.7256 - 0.551),
    "kept": Measure("share of the experts' gain kept", 1, (0.7256 - 0.551) / (0.9318 - 0.551)),
    "cosine": Measure("cosine between tasks", 1, 0.069),
    "curvature": Measure("bend along the vector (points)", 100),
    "disentanglement": Measure("disentanglement error (%)", 100),
    "second_order": Measure("second-order term per unit of η", is_log=True),
    "early": Measure("one epoch minus converged (points)", 100, 0.7162 - 0.7256),
}


@dataclass(frozen=True)
class Trend:
    """A straight line through a measure against log2 of the parameters, with bootstrap intervals over the cells.

    Attributes:
        slope: Change per doubling of the parameters.
        low, high: Its 95 % interval.
        grid: log2 of the parameters at which the line is told; the authors' size is the last.
        line, line_low, line_high: The line there, with its interval.
        count: Number of cells.
    """

    slope: float
    low: float
    high: float
    grid: list[float]
    line: list[float]
    line_low: list[float]
    line_high: list[float]
    count: int


def scale_texts(widths: Sequence[int], depths: Sequence[int]) -> list[str]:
    """The grid as texts of variants.

    Raises:
        ValueError: If a width is no multiple of 64, or there is none.

    Example:
        >>> scale_texts([64], [2, 4])
        ['2x64: layers=2 width=64', '4x64: layers=4 width=64']
    """
    if not widths or not depths:
        raise ValueError("a scale study needs widths and depths, got none")
    if odd := [width for width in widths if width < 64 or width % 64]:
        raise ValueError(f"widths must be multiples of 64, the size of an attention head; got {odd[0]}")
    return [f"{depth}x{width}: layers={depth} width={width}" for depth in depths for width in widths]


def fit_trend(parameters: Sequence[float], values: Sequence[float], *, seed: int = 0) -> Trend | None:
    """The trend of a measure over cells; `None` where fewer than four cells of three sizes leave no interval.

    Raises:
        DataError: If a value is not finite.
    """
    x, y = np.log2(np.asarray(parameters, dtype=float)), np.asarray(values, dtype=float)
    if not np.isfinite(y).all():
        raise DataError("a trend needs finite values")
    if len(x) < 4 or len(np.unique(x)) < 3:
        return None
    grid = np.append(np.linspace(x.min(), x.max(), 9), math.log2(AUTHORS_PARAMETERS))

    def line(x: Array, y: Array, axis: int = -1) -> Array:
        centre = x.mean(axis=axis, keepdims=True)
        spread = ((x - centre) ** 2).sum(axis=axis)
        slope = np.divide(((x - centre) * y).sum(axis=axis), spread, out=np.zeros_like(spread), where=spread > 0)
        at = y.mean(axis=axis) + slope * (grid.reshape(-1, *[1] * slope.ndim) - centre.squeeze(axis))
        return np.concatenate([slope[None], at])

    interval = stats.bootstrap(
        (x, y), line, paired=True, vectorized=True, n_resamples=2000, method="percentile", rng=seed
    ).confidence_interval
    whole = line(x, y)
    return Trend(
        float(whole[0]),
        float(interval.low[0]),
        float(interval.high[0]),
        grid.tolist(),
        whole[1:].tolist(),
        interval.low[1:].tolist(),
        interval.high[1:].tolist(),
        len(x),
    )


def scale_data(cells: Sequence[Values]) -> Values:
    """What figure and page show, as JSON values: every cell's measures, and their trends."""
    kept = ("variant", "seed", "width", "layers", "views", "parameters", "probe", "zero_shot", "individual", *MEASURES)
    trends = {}
    for name, measure in MEASURES.items():
        known = [cell for cell in cells if cell[name] is not None]
        trend = fit_trend([cell["parameters"] for cell in known], [measure.fitted(cell[name]) for cell in known])
        trends[name] = None if trend is None else asdict(trend)
    return {"cells": [{name: cell[name] for name in kept} for cell in cells], "trends": trends}


def draw_scale(data: Mapping[str, Any]) -> Figure:
    """One panel per measure: the cells by depth, the trend with its band, and the authors' point."""
    columns = 4
    rows = math.ceil(len(MEASURES) / columns)
    figure = Figure(figsize=(4 * columns, 3.2 * rows), layout="constrained", dpi=100)
    panels = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    depths = sorted({cell["layers"] for cell in data["cells"]})
    for axes, (name, measure) in zip(panels, MEASURES.items(), strict=False):
        for index, depth in enumerate(depths):
            cells = [cell for cell in data["cells"] if cell["layers"] == depth and cell[name] is not None]
            values = [measure.factor * cell[name] for cell in cells]
            axes.plot(
                [cell["parameters"] for cell in cells],
                values,
                linestyle="",
                color=COLOURS[index % 6],
                marker=MARKERS[index % 6],
                label=f"{depth} layers",
            )
        if trend := data["trends"][name]:
            x = [2**place for place in trend["grid"]]
            low, line, high = ([measure.shown(y) for y in trend[key]] for key in ("line_low", "line", "line_high"))
            axes.plot(x, line, color="black", label="trend")
            axes.fill_between(x, low, high, color="black", alpha=0.12, linewidth=0)
        if measure.authors is not None:
            place = [AUTHORS_PARAMETERS], [measure.factor * measure.authors]
            axes.plot(*place, linestyle="", color="black", marker="*", markersize=12, label="authors' ViT-B/16")
        scale = "log" if measure.is_log else "linear"
        axes.set(xscale="log", yscale=scale, xlabel="parameters of the vision tower", ylabel=measure.title)
    for axes in panels[len(MEASURES) :]:
        axes.set_axis_off()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels))
    return figure


def trend_table(data: Mapping[str, Any]) -> str:
    """One row per measure: its range over the cells, change per doubling, the trend at the authors' size, theirs."""
    rows = []
    for name, measure in MEASURES.items():
        values = [measure.factor * cell[name] for cell in data["cells"] if cell[name] is not None]
        trend = data["trends"][name]
        span = f"{min(values):.3g} to {max(values):.3g}" if values else "–"
        change = ahead = "–"
        if trend:
            change = _with_ends(measure, trend["slope"], trend["low"], trend["high"])
            change = f"times {change}" if measure.is_log else change
            ahead = _with_ends(measure, trend["line"][-1], trend["line_low"][-1], trend["line_high"][-1])
        theirs = "–" if measure.authors is None else f"{measure.factor * measure.authors:.3g}"
        rows.append([measure.title, span, change, ahead, theirs])
    headers = ["measure", "here", "per doubling", "trend at ViT-B/16's size", "authors' ViT-B/16"]
    return table(headers, rows)


def extrapolation(data: Mapping[str, Any]) -> str:
    """Two sentences: what of the authors' figures the trends would have told, and what not or cannot be compared."""
    told: dict[bool, list[str]] = {True: [], False: []}
    unknown = []
    for name, measure in MEASURES.items():
        trend = data["trends"][name]
        if trend is None or measure.authors is None:
            unknown.append(measure.title)
        else:
            told[trend["line_low"][-1] <= measure.authors <= trend["line_high"][-1]].append(measure.title)
    inside, outside = (listed(told[key], room=500) or "nothing" for key in (True, False))
    return (
        f"Carried on to ViT-B/16's size, the trends hold the authors' figures for: {inside}. They miss them for: "
        f"{outside}; without a figure of theirs, or a trend: {listed(unknown, room=500) or 'nothing'}."
    )


def _with_ends(measure: Measure, value: float, low: float, high: float) -> str:
    value, low, high = map(measure.shown, (value, low, high))
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"
