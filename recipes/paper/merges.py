"""One merge method against another: what each looks at, what it takes and what it reaches, and the table of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_taskvec import Report, TaskVector, evaluate
from hf_taskvec.errors import check_known
from hf_taskvec.evaluation.accuracy import evaluate_individually
from hf_taskvec.evaluation.settings import choose_settings
from hf_taskvec.evaluation.summary import Mean
from hf_taskvec.merging import get_method
from hf_taskvec.text import table
from hf_taskvec.tuning import Descent, learn_coefficients
from hf_taskvec.weights.folders import read_json, write_json
from paper.needs import Needs

NOTE = (
    "Test accuracy in percent, mean over {seeds} ± 95 % interval. Images, labels and split are what the merge itself "
    "looks at, images per task; its scaling is then chosen on the labelled validation images, the same for every row "
    "but those of learned coefficients, which have none. Seconds are those of all the merge needs: statistics or "
    "learning, and merging. Zero-shot is {zero_shot}, individual models reach {individual}."
)


@dataclass(frozen=True)
class Run:
    """A merge of one seed's vectors.

    Attributes:
        report: Its accuracies on test images.
        seconds: What it took, with the statistics or the learning.
        images: Images per task that it looked at, "-" for none.
        split: The part of the tasks that they are of.
        labels: Whether it saw their labels.
        settings: What was chosen on validation data beside the scaling.
    """

    report: Report
    seconds: float
    images: str = "-"
    split: str = "-"
    labels: bool = False
    settings: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Run:
        """Reads what `measure_merge` and `measure_learned` write."""
        values = read_json(path)
        facts = {name: values[name] for name in ("seconds", "images", "split", "labels")}
        return cls(Report.from_dict(values["report"]), settings=values.get("settings", {}), **facts)


def measure_individual(needs: Needs, vectors: Mapping[str, TaskVector], path: Path) -> None:
    """Writes each task's accuracy with its own vector."""
    write_json(path, evaluate_individually(needs.base, vectors, needs.tasks))


def measure_merge(
    needs: Needs,
    vectors: Mapping[str, TaskVector],
    path: Path,
    *,
    method: str,
    grid: Mapping[str, Sequence[float]],
    scalings: Sequence[float],
) -> None:
    """Writes the run of a merge at its best scaling on validation data, and with the best of some settings."""
    given, seconds = needs.of(method, list(vectors.values()))
    own = list(vectors.values())
    chosen = choose_settings(needs.base, own, needs.tasks, method, grid, scalings=scalings, **given)
    start = time.perf_counter()
    merged = chosen.merge(own, **given)
    seconds += time.perf_counter() - start
    report = evaluate(merged.apply_to(needs.base), needs.tasks, label=method, scaling=float(chosen.scaling))
    looked_at = merged.info.statistics
    images = _range([one["num_images"] for one in looked_at])
    split = ", ".join(dict.fromkeys(one["split"] for one in looked_at)) or "-"
    _write(path, report, seconds=seconds, images=images, split=split, labels=False, settings=chosen.settings)


def measure_learned(
    needs: Needs, vectors: Mapping[str, TaskVector], path: Path, *, settings: Mapping[str, Any], descent: Descent
) -> None:
    """Writes the run of a sum whose coefficients are learned; of test images, which the report tells, if asked for."""
    start = time.perf_counter()
    transductive = settings["split"] == "test"
    learned = learn_coefficients(
        needs.base, vectors, needs.tasks, **settings, descent=descent, transductive=transductive
    )
    merged = learned.merge()
    seconds = time.perf_counter() - start
    report = evaluate(merged.apply_to(needs.base), needs.tasks, label=f"learned ({settings['objective']})")
    images = _range([*learned.provenance["images"].values()])
    labels = settings["objective"] == "labels"
    _write(path, report, seconds=seconds, images=images, split=learned.provenance["split"], labels=labels, settings={})


def _write(path: Path, report: Report, **facts: Any) -> None:
    write_json(path, {**facts, "report": report.to_dict()})


def _range(counts: Sequence[int]) -> str:
    """How many images of each task: one number, or the least and the most."""
    ends = dict.fromkeys([min(counts), max(counts)]) if counts else {}
    return " to ".join(map(str, ends)) or "-"


def methods_page(results: Mapping[str, Sequence[Run]]) -> str:
    """The table with what it says, and how far the best merge that looks at data is from the best that does not."""
    first = [run.report for run in next(iter(results.values()))]
    zero_shot, individual = (
        Mean.of([getattr(report, name) for report in first]) for name in ("zero_shot", "individual")
    )
    seeds = f"{len(first)} seed{'s' if len(first) > 1 else ''}"
    note = NOTE.format(seeds=seeds, zero_shot=zero_shot, individual=individual)
    return "\n\n".join([note, methods_table(results), *_best(results)]) + "\n"


def methods_table(results: Mapping[str, Sequence[Run]]) -> str:
    """The merges by accuracy, in percent, with 95 % intervals over seeds; those that saw test images are marked."""
    headers = ["method", "images", "split", "labels", "accuracy", "above zero-shot", "normalised", "chosen"]
    rows = []
    for label, runs in sorted(results.items(), key=lambda item: -_accuracy(item[1])):
        reports = [run.report for run in runs]
        gains = [report.accuracy - (report.zero_shot or 0.0) for report in reports]
        cells = [Mean.of([report.accuracy for report in reports]), Mean.of(gains)]
        cells.append(Mean.of([report.normalized or 0.0 for report in reports]))
        chosen = ", ".join(map(_chosen, runs))
        mark = " (transductive)" if any(report.transductive for report in reports) else ""
        shown = [runs[0].images, runs[0].split + mark, "yes" if runs[0].labels else "no", *cells, chosen]
        rows.append([f"`{label}`", *shown, f"{sum(run.seconds for run in runs) / len(runs):.2f}"])
    return table([*headers, "seconds"], rows, align="lrllrrrlr")


def _chosen(run: Run) -> str:
    """The scaling of a run, and what was chosen with it."""
    settings = "".join(f" ({name} {value:g})" for name, value in run.settings.items())
    return ("-" if run.report.scaling is None else f"{run.report.scaling:g}") + settings


def tuned(text: str) -> tuple[str, dict[str, list[float]]]:
    """A method and the values of a setting to choose from, of a flag such as `bmm:ridge=0.1,1`."""
    method, _, rest = text.partition(":")
    name, _, values = rest.partition("=")
    check_known(f"setting of {method}:", name, get_method(method).defaults)
    try:
        return method, {name: [float(value) for value in values.split(",")]}
    except ValueError:
        raise ValueError(f"a setting to choose is given as bmm:ridge=0.1,1, got {text!r:.80}") from None


def _best(results: Mapping[str, Sequence[Run]]) -> list[str]:
    """One sentence, if there are merges of both kinds; those that saw test images do not count."""
    fair = {label: runs for label, runs in results.items() if not any(run.report.transductive for run in runs)}
    free = {label: runs for label, runs in fair.items() if runs[0].images == "-"}
    aware = {label: runs for label, runs in fair.items() if label not in free}
    if not free or not aware:
        return []
    left, right = (max(group, key=lambda label: _accuracy(group[label])) for group in (aware, free))
    pairs = zip(aware[left], free[right], strict=True)
    gain = Mean.of([one.report.accuracy - other.report.accuracy for one, other in pairs])
    return [f"The best that looks at data, `{left}`, minus the best that does not, `{right}`: {gain} points, paired."]


def _accuracy(runs: Sequence[Run]) -> float:
    return sum(run.report.accuracy for run in runs) / len(runs)
