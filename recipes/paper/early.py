"""The early-epoch adviser measured: merged accuracy at the epochs it chooses, and the steps it saves.

Experts that train less can merge better (arXiv 2506.14126). Whether they do may depend on the schedule as much as on
where training stops, so both are told apart: every budget with a schedule of its own, against one long run that is cut
short.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from matplotlib.figure import Figure

from hf_taskvec.evaluation.intervals import Interval, bootstrap_interval, paired_difference
from hf_taskvec.evaluation.plots import COLOURS, MARKERS
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.text import table
from hf_taskvec.theory.early import Criterion, choose_epochs
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.resume import share_out
from paper.comparison import accuracies, merged_model
from paper.runs import CUT, Run, train_run
from paper.settings import CONVERGED, Reproduction, ScaledMethod
from paper.studies import once, study_path

Values = dict[str, Any]
OWN, LONG, CONSTANT = "each budget its own schedule", "one long schedule, cut short", "constant rate, cut short"
ARMS = {OWN: ("adamw_cosine", ""), LONG: ("adamw_cosine", CUT), CONSTANT: ("adamw", "")}  # optimiser, prefix of budgets
CRITERIA = get_args(Criterion)


def study_epochs(settings: Reproduction, base: Base) -> list[Values]:
    """One entry per seed: merged accuracies of every arm at every budget and at the chosen epochs; kept ones are read.

    Args:
        settings: Tasks, seeds, budgets and merges; `adamw_cosine` and `adamw` are among the optimisers.
        base: The base.

    Raises:
        ValueError: If an optimiser is missing, or a budget is less than an epoch.
    """
    if missing := {name for name, _ in ARMS.values()} - set(settings.optimizers):
        raise ValueError(f"the schedules are told apart by adamw_cosine and adamw; optimizers lack {sorted(missing)}")
    if min(settings.budgets) < 1 or any(budget != int(budget) for budget in settings.budgets):
        raise ValueError(f"budgets must be whole epochs, got {settings.budgets}")
    return share_out(
        settings.seeds,
        lambda seed: study_path(settings, f"epochs-{seed}"),
        lambda seed: once(settings, f"epochs-{seed}", lambda: _seed(settings, base, seed)),
    )


def _seed(settings: Reproduction, base: Base, seed: int) -> Values:
    tasks = settings.load_tasks(seed)
    arms = {}
    for arm, (optimizer, prefix) in ARMS.items():
        runs = {}
        for task in tasks:
            folder = Path(settings.output_dir) / "runs" / optimizer / f"seed-{seed}" / task.name
            runs[task.name] = train_run(settings, base, [task], optimizer=optimizer, seed=seed, folder=folder)
        arms[arm] = _arm(settings, base, tasks, {name: series_of(run, prefix) for name, run in runs.items()}, seed)
    return {"seed": seed, "arms": arms}


def series_of(run: Run, prefix: str) -> list[TaskVector]:
    """The vectors of a run's budgets and its converged one, by epochs, each number of epochs once."""
    names = [name for name in run.vectors if name == CONVERGED or name.removeprefix(prefix).isdigit()]
    wanted = [name for name in names if name == CONVERGED or name.startswith(prefix)]
    by_epochs = {float(vector.info.epochs or 0.0): vector for vector in map(run.vector, wanted)}
    longest = run.vector(CONVERGED).info.epochs or 0.0
    return [by_epochs[epochs] for epochs in sorted(by_epochs) if epochs <= longest]


def _arm(
    settings: Reproduction, base: Base, tasks: Sequence[Task], series: Mapping[str, list[TaskVector]], seed: int
) -> Values:
    """All merges of one arm."""
    merges: Values = {}
    for text, method in settings.scaled_methods().items():

        def score(vectors: Sequence[TaskVector], method: ScaledMethod = method) -> float:
            return fmean(accuracies(merged_model(base, list(vectors), method, seed=seed), tasks).values())

        budgets = {
            f"{budget:g}": score([_up_to(run, budget) for run in series.values()])
            for budget in sorted(settings.budgets)
        }
        choices = {}
        for by in CRITERIA:
            choices[by] = _chosen(base, tasks, series, by, method, score)
        merges[text] = {
            "budgets": budgets,
            CONVERGED: score([run[-1] for run in series.values()]),
            "choices": choices,
        }
    return merges


def _chosen(
    base: Base,
    tasks: Sequence[Task],
    series: Mapping[str, list[TaskVector]],
    by: Criterion,
    method: ScaledMethod,
    score: Callable[[Sequence[TaskVector]], float],
) -> Values:
    """What the adviser picks; where every run converged in its first epoch there is nothing to choose."""
    if all(len(run) == 1 for run in series.values()):
        only = [run[0] for run in series.values()]
        return {
            "accuracy": score(only),
            "saved": 0.0,
            "epochs": {name: run[0].info.epochs for name, run in series.items()},
        }
    choice = choose_epochs(base, series, tasks, by=by, method=method.method, scaling=method.factor(len(tasks)))
    return {
        "accuracy": score(list(choice.vectors.values())),
        "saved": choice.saved,
        "epochs": dict(choice.epochs),
    }


def _up_to(run: Sequence[TaskVector], budget: float) -> TaskVector:
    """The last vector of at most so many epochs, or the first."""
    return [run[0], *(vector for vector in run if (vector.info.epochs or 0.0) <= budget)][-1]


def choice_table(entries: Sequence[Values]) -> str:
    """One row per arm, merge and criterion: chosen minus converged in points and the share of steps saved."""
    rows = []
    for arm in ARMS:
        for text in entries[0]["arms"][arm]:
            cells = [one["arms"][arm][text] for one in entries]
            for by in CRITERIA:
                choices = [cell["choices"][by] for cell in cells]
                difference = paired_difference(
                    [one["accuracy"] for one in choices], [cell[CONVERGED] for cell in cells]
                )
                saved = bootstrap_interval([one["saved"] for one in choices])
                met = "yes" if difference.mean >= 0 and saved.mean >= TARGET else "no"
                rows.append([arm, text, by, _percent(difference, "+"), _percent(saved), met])
    headers = ["training", "merge", "chosen by", "chosen minus converged", "steps saved (%)", "target met"]
    return table(headers, rows, align="lllrrl")


TARGET = 0.75  # of the steps saved, at no loss of merged accuracy


def draw_choices(entries: Sequence[Values]) -> Figure:
    """One panel per merge: what the merges of chosen epochs gain over converged ones, against the steps saved."""
    merges = list(entries[0]["arms"][OWN])
    figure = Figure(figsize=(4 * len(merges), 3.6), layout="constrained", dpi=100)
    for axes, text in zip(figure.subplots(1, len(merges), squeeze=False)[0].tolist(), merges, strict=True):
        for arm, colour in zip(ARMS, COLOURS, strict=False):
            cells = [one["arms"][arm][text] for one in entries]
            for by, marker in zip(CRITERIA, MARKERS, strict=False):
                choices = [cell["choices"][by] for cell in cells]
                gain = paired_difference([one["accuracy"] for one in choices], [cell[CONVERGED] for cell in cells])
                saved = bootstrap_interval([one["saved"] for one in choices])
                ends = [[100 * (gain.mean - gain.low)], [100 * (gain.high - gain.mean)]]
                place = [100 * saved.mean], [100 * gain.mean]
                axes.errorbar(*place, yerr=ends, color=colour, marker=marker, linestyle="", label=f"{arm}; by {by}")
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.axvline(100 * TARGET, color="grey", linewidth=0.8, linestyle=":")
        axes.set(title=text, xlabel="training steps saved (%)", xlim=(0, 100))
        axes.set_ylabel("chosen minus converged (points)")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(CRITERIA), fontsize="small")
    return figure


def budget_table(entries: Sequence[Values]) -> str:
    """One row per arm and merge: each budget minus converged in points, paired over seeds."""
    budgets = list(next(iter(entries[0]["arms"][OWN].values()))["budgets"])
    rows = []
    for arm in ARMS:
        for text in entries[0]["arms"][arm]:
            cells = [one["arms"][arm][text] for one in entries]
            last = [cell[CONVERGED] for cell in cells]
            less = [paired_difference([cell["budgets"][name] for cell in cells], last) for name in budgets]
            rows.append([arm, text, *(_percent(one, "+") for one in less), _percent(bootstrap_interval(last))])
    headers = ["training", "merge", *(f"{name} epoch{'' if name == '1' else 's'}" for name in budgets), "converged"]
    return table(headers, rows, align="ll" + "r" * (len(budgets) + 1))


def separation(entries: Sequence[Values]) -> list[str]:
    """For each merge one sentence: whether one epoch merges better, and what of it is the schedule."""
    sentences = []
    for text in entries[0]["arms"][OWN]:
        stop, own = (
            paired_difference(
                [one["arms"][arm][text]["budgets"]["1"] for one in entries],
                [one["arms"][arm][text][CONVERGED] for one in entries],
            )
            for arm in (LONG, OWN)
        )
        schedule = paired_difference(
            [one["arms"][OWN][text]["budgets"]["1"] for one in entries],
            [one["arms"][LONG][text]["budgets"]["1"] for one in entries],
        )
        sentences.append(
            f"`{text}`: one epoch with a schedule of its own is {_verdict(own)} than converged ({_percent(own, '+')} "
            f"points); the stopping point alone, on the long schedule, {_verdict(stop)} ({_percent(stop, '+')}); the "
            f"schedule alone, at one epoch, {_verdict(schedule)} ({_percent(schedule, '+')})."
        )
    return sentences


def _verdict(difference: Interval) -> str:
    if difference.count < 2:
        return "not known to be better or worse"  # one seed has no interval
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "neither better nor worse"


def _percent(interval: Interval, sign: str = "") -> str:
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]" if interval.count > 1 else mean
