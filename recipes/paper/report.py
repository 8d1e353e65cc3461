"""`report.md`: the claims with verdicts, the figures and the tables behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from hf_taskvec.evaluation.intervals import Interval, bootstrap_interval
from hf_taskvec.evaluation.report import percent
from hf_taskvec.text import table
from hf_taskvec.vectors.info import library_versions
from hf_taskvec.weights.folders import write_text
from paper.analysis import budgets_of, compare_budgets, scores
from paper.claims import Claim, claim_multitask, claim_one_epoch, judge
from paper.comparison import INDIVIDUAL, JOINT, Cell
from paper.figures import atm_data, draw_figures
from paper.results import Compared, Results
from paper.settings import CONVERGED, Reproduction

CAPTIONS = {
    "orders": "Distance of task arithmetic from joint training after three full-batch epochs, float64.",
    "gradient_norms": "Share of each epoch in the sum of the mean minibatch gradient norms. Bands: 95 % over seeds.",
    "directions": "Cosines along the runs, gradients as descent directions.",
    "layers": "The same by layer.",
    "geometry": "Cosines between the tasks' vectors, mean over seeds.",
    "trajectory": "Vectors of every budget on the first two principal components, first seed; the base is the origin.",
    "budgets": "Mean test accuracy of merged models against the budget of each task.",
    "differences": "One epoch minus converged, paired over seeds, 95 % bootstrap intervals.",
    "atm": "Alternating tuning and merging at equal budget, and post hoc on validation images.",
}


def write_report(results: Results, *, command: str) -> Path:
    """Draws the figures and writes `report.md` into the output folder.

    Args:
        results: What was measured.
        command: The command that made it, for the report's head.
    """
    folder, claims = Path(results.settings.output_dir), judge(results)
    figures = draw_figures(results, folder / "figures")
    parts = [
        *_head(results, command, "Reproduction of “On Task Vectors and Gradients” (arXiv 2508.16082)"),
        "## Claims",
        "",
        *claim_table(claims),
        "",
        "### The rules and all figures",
        "",
        *_claims(claims),
        "## One epoch against convergence",
        "",
        *comparison_table(results.settings, results.cells),
        "",
        "## Accuracy at every budget",
        "",
        *budget_tables(results.settings, results.cells),
        "## Equal budget: one-shot merging, alternating tuning and merging, joint training",
        "",
        *_atm_table(results),
        "",
        "## Geometry between the tasks",
        "",
        *geometry_table(results.settings, results.cells),
        "",
        "## Figures",
        "",
    ]
    for name in figures:
        parts += [f"![{CAPTIONS[name]}](figures/{name}.png)", "", f"{CAPTIONS[name]} Data: `figures/{name}.json`.", ""]
    path = folder / "report.md"
    write_text(path, "\n".join(parts))
    return path


def write_comparison(compared: Compared, *, command: str) -> Path:
    """Writes `one_epoch.md` into the output folder: the claims that rest on merges of one epoch, and their tables."""
    claims, settings, cells = [claim_one_epoch(compared), claim_multitask(compared)], compared.settings, compared.cells
    parts = [
        *_head(compared, command, "One epoch against convergence (arXiv 2508.16082)"),
        *claim_table(claims),
        "",
        *_claims(claims),
        *comparison_table(settings, cells),
        "",
        *budget_tables(settings, cells),
        *geometry_table(settings, cells),
    ]
    path = Path(settings.output_dir) / "one_epoch.md"
    write_text(path, "\n".join(parts) + "\n")
    return path


def comparison_table(settings: Reproduction, cells: Sequence[Cell]) -> list[str]:
    """One row per optimiser and method, in percent and percentage points."""
    lines = [
        "Mean test accuracy in percent; differences in points, paired over seeds, with 95 % bootstrap intervals. "
        "Wins: seeds and random subsets of tasks in which one epoch ties or wins.",
        "",
    ]
    headers = ["optimiser", "method", "1 epoch", "converged", "difference", "normalised difference", "wins"]
    rows = []
    for optimizer in settings.optimizers:
        for method in settings.merges:
            c = compare_budgets(cells, optimizer, method)
            figures = [points(i) for i in (c.one_epoch, c.converged, c.difference, c.normalized_difference)]
            rows.append([optimizer, method, *figures, f"{percent(c.wins)} % of {c.trials}"])
    return [*lines, table(headers, rows, align="llrrrrr")]


def budget_tables(settings: Reproduction, cells: Sequence[Cell]) -> list[str]:
    """For each optimiser, absolute and normalised accuracy by method and budget."""
    lines = []
    for optimizer in settings.optimizers:
        budgets = budgets_of(cells, optimizer)
        own = [score.accuracy for score in scores(cells, optimizer, INDIVIDUAL, CONVERGED)]
        epochs = bootstrap_interval(
            [fmean(cell.converged_epochs.values()) for cell in cells if cell.scores[0].optimizer == optimizer]
        )
        lines += [
            f"**{optimizer}**, converged after {epochs.mean:.1f} epochs on average; absolute (normalised), percent",
            "",
        ]
        rows = []
        for method in [*settings.merges, JOINT, INDIVIDUAL]:
            entries = []
            for budget in budgets:
                seed_scores = scores(cells, optimizer, method, budget)
                normal = [score.normalized(reference) for score, reference in zip(seed_scores, own, strict=True)]
                absolute = bootstrap_interval([score.mean for score in seed_scores])
                entries.append(f"{points(absolute)} ({percent(fmean(normal))})")
            rows.append([method, *entries])
        lines += [table(["method", *budgets], rows), ""]
    return lines


def geometry_table(settings: Reproduction, cells: Sequence[Cell]) -> list[str]:
    """How the tasks' vectors lie to each other, one row per optimiser and budget."""
    names = ("cosines", "sign_agreement", "subspace_overlap")
    random = cells[0].geometry["1"]["random_overlap"]
    lines = [
        "Means over pairs of tasks, with 95 % bootstrap intervals over seeds: cosine; fraction of entries whose signs "
        "are not opposite; overlap of the spaces of the 8 leading left singular vectors of each matrix "
        f"({random:.3f} for random ones).",
        "",
    ]
    rows = []
    for optimizer in settings.optimizers:
        own = [cell for cell in cells if cell.scores[0].optimizer == optimizer]
        for budget, label in (("1", "1 epoch"), (CONVERGED, CONVERGED)):
            means = [bootstrap_interval([cell.geometry[budget]["means"][name] for cell in own]) for name in names]
            rows.append([optimizer, label, *means])
    headers = ["optimiser", "budget", "cosine", "sign agreement", "subspace overlap"]
    return [*lines, table(headers, rows, align="llrrr")]


def points(interval: Interval) -> str:
    """An interval in percent or percentage points."""
    return f"{percent(interval.mean)} [{percent(interval.low)}, {percent(interval.high)}]"


def _head(results: Compared, command: str, title: str) -> list[str]:
    settings, zero_shot = results.settings, fmean(results.zero_shot.values())
    bounds = ", ".join(
        f"at most {limit} {name}"
        for name, limit in (("training", settings.max_train), ("test", settings.max_test))
        if limit is not None
    )
    versions = ", ".join(f"{name} {number}" for name, number in library_versions().items())
    limits = f" ({bounds} images each; each seed draws its own training images)" if bounds else ""
    return [
        f"# {title}",
        "",
        f"`{command}`",
        "",
        f"Base {results.base}; tasks {', '.join(results.tasks)}{limits}; seeds "
        f"{', '.join(map(str, settings.seeds))}. Zero-shot {percent(zero_shot)} %. Intervals are 95 % bootstrap "
        "intervals over seeds, which with few seeds are too narrow. Convergence is the epoch with the best validation "
        "accuracy; no scaling is tuned. Adam is AdamW without weight decay; clipping at "
        f"{settings.max_grad_norm:g} except in full-batch descent. Of `adamw_cosine` each budget is a run with a "
        f"schedule of its own; of the others the budgets are epochs of one run. Versions: {versions}.",
        "",
    ]


def claim_table(claims: Sequence[Claim]) -> list[str]:
    """One row per claim: what was found, its figure with the interval, and the authors' figure."""
    rows = [[claim.text, f"**{claim.verdict}**", claim.figure, claim.authors] for claim in claims]
    return table(["claim", "found", "here, with 95 % interval over seeds", "authors"], rows, align="llll").splitlines()


def _claims(claims: Sequence[Claim]) -> list[str]:
    lines = []
    for number, claim in enumerate(claims, start=1):
        lines += [
            f"{number}. **{claim.text}** {claim.verdict.capitalize()}.",
            f"   - Rule: {claim.rule}.",
            f"   - Here: {claim.here}.",
            f"   - Authors: {claim.authors}.",
            "",
        ]
    return lines


def _atm_table(results: Results) -> list[str]:
    data = atm_data(results)
    rows: dict[str, Mapping[str, Any]] = {}
    rows |= {f"one-shot merging by {method}": point for method, point in data["one_shot"].items()}
    for count, point in data["rounds"].items():
        more = f"alternating tuning and merging, {count} rounds"
        rows[more if count != "1" else "one-shot merging by the mean (1 round)"] = point
    rows["joint training"] = data[JOINT]
    rows |= {f"post hoc, {k} rounds on validation images": point for k, point in enumerate(data["post_hoc"])}
    cells = [[name, points(Interval(**point))] for name, point in rows.items()]
    return [table([f"{data['budget']} epochs per task", "mean test accuracy (%)"], cells)]
