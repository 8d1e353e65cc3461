"""From right answers to a table and a picture: accuracy, absolute and normalised, with intervals, against its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from hf_taskvec.evaluation.plots import COLOURS, MARKERS
from hf_taskvec.text import table
from multitask.ways import EXPERTS, ROUTED, ZERO_SHOT

DRAWS = 2000  # of the images, for the intervals
HEIGHTS = (4, -10, 14, -20, 24)  # of a label over its point, in points
TICKS = (0.25, 0.5, 1, 2, 4, 8)
Results = Mapping[str, Mapping[str, Any]]  # what was measured, by way


@dataclass(frozen=True)
class Estimate:
    """A figure in [0, 1] or above, with the ends of its 95 % interval, images drawn anew."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def accuracy(bits: Mapping[str, str]) -> Estimate:
    """The mean accuracy over tasks.

    Example:
        >>> accuracy({"a": "11", "b": "00"}).value
        0.5
    """
    draws = np.mean([_drawn(text, text, seed)[0] for seed, text in enumerate(bits.values())], axis=0)
    return _estimate(float(np.mean([text.count("1") / len(text) for text in bits.values()])), draws)


def normalised(bits: Mapping[str, str], experts: Mapping[str, str]) -> Estimate:
    """The mean over tasks of the accuracy over that of the task's own model, on the same images.

    Example:
        >>> normalised({"a": "10"}, {"a": "11"}).value
        0.5
    """
    pairs = [_drawn(text, experts[task], seed) for seed, (task, text) in enumerate(bits.items())]
    draws = np.mean([left / np.maximum(right, 1e-9) for left, right in pairs], axis=0)
    values = [text.count("1") / max(1, experts[task].count("1")) for task, text in bits.items()]
    return _estimate(float(np.mean(values)), draws)


def _drawn(left: str, right: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The accuracies of two models on images drawn anew, DRAWS times."""
    ours, theirs = (np.frombuffer(text.encode(), np.uint8) == ord("1") for text in (left, right))
    cells = [int((ours & theirs).sum()), int((ours & ~theirs).sum()), int((~ours & theirs).sum())]
    shares = np.array([*cells, len(left) - sum(cells)]) / len(left)
    counts = np.random.default_rng(seed).multinomial(len(left), shares, size=DRAWS) / len(left)
    return counts[:, 0] + counts[:, 1], counts[:, 0] + counts[:, 2]


def _estimate(value: float, draws: np.ndarray) -> Estimate:
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(value, float(low), float(high))


def choice_table(results: Results) -> str:
    """One row a way, by what it stores; percent."""
    experts, rows = results[EXPERTS]["right"], []
    for name, told in sorted(results.items(), key=lambda item: item[1]["size"]):
        if "@" in name:
            continue
        known = "joint" not in told
        joint = "" if known else str(accuracy(told["joint"]))
        routed = str(accuracy(told["routed"])) if "routed" in told else ""
        cells = [str(accuracy(told["right"])), str(normalised(told["right"], experts)), joint, routed]
        rows.append([f"`{name}`", f"{told['size']:.2f}", told["passes"], "yes" if known else "no", *cells])
    headers = ["way", "stored", "passes", "needs the task", "accuracy", "normalised", "among all classes", "right task"]
    return table(headers, rows, align="lrrlrrrr") + "\n"


def merges_table(results: Results) -> str:
    """What merges of vectors in few bits lose against those of whole ones, in points; nothing if none was measured."""
    rows = []
    for name, told in results.items():
        method, _, packing = name.partition("@")
        if packing and method in results:
            whole = results[method]["right"]
            pairs = [_drawn(bits, whole[task], seed) for seed, (task, bits) in enumerate(told["right"].items())]
            lost = accuracy(told["right"]).value - accuracy(whole).value
            rows.append([method, packing, _estimate(lost, np.mean([left - right for left, right in pairs], axis=0))])
    return table(["merge", "of vectors in", "difference"], rows, align="llr") + "\n" if rows else ""


def plot_choice(results: Results) -> Figure:
    """Accuracy, absolute and normalised, against what is stored; what must know the task stands apart."""
    figure = Figure(figsize=(13, 6), layout="constrained", dpi=110)
    experts = results[EXPERTS]["right"]
    panels: Sequence[Axes] = figure.subplots(1, 2)
    kinds = {"task known": 0, "merged": 1, "routed": 2}
    for axes, label in zip(panels, ("accuracy (%)", "normalised accuracy (%)"), strict=True):
        shown, labels = set[str](), dict[tuple[float, float], list[str]]()
        for name, told in results.items():
            if "@" in name:
                continue
            value = accuracy(told["right"]) if "norm" not in label else normalised(told["right"], experts)
            if name == ZERO_SHOT:
                axes.axhline(100 * value.value, color="black", linestyle=":", label="zero-shot")
                continue
            kind = "routed" if name in ROUTED else "merged" if "joint" in told else "task known"
            spread = [[100 * (value.value - value.low)], [100 * (value.high - value.value)]]
            style: dict[str, Any] = {"color": COLOURS[kinds[kind]], "marker": MARKERS[kinds[kind]], "capsize": 2}
            axes.errorbar(told["size"], 100 * value.value, yerr=spread, label=None if kind in shown else kind, **style)
            labels.setdefault((round(told["size"], 2), round(100 * value.value, 1)), []).append(name)
            shown.add(kind)
        for place, names in sorted(labels.items(), key=lambda item: (item[0][0], -item[0][1])):
            axes.annotate(", ".join(names), place, (4, 4), textcoords="offset points", fontsize=7)
        axes.set(xscale="log", xlabel="stored beside the base (vectors in float32)", ylabel=f"mean {label}")
        axes.minorticks_off()
        axes.margins(0.12)  # room for the labels, which nothing else keeps inside
        axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    panels[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    figure.draw_without_rendering()  # the layout is made, so that places are known
    for axes in panels:
        _spread_labels(axes)
    return figure


def _spread_labels(axes: Axes) -> None:
    """Brings each label beside its point to where it covers no other label and no point, those above first."""
    labels = [label for label in axes.texts if isinstance(label, Annotation)]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform([one.xy for one in labels])]
    for label in labels:
        for height in HEIGHTS:
            label.set(position=(4, height))
            box = label.get_window_extent()
            if not box.count_overlaps(taken):
                break
        taken.append(box)
