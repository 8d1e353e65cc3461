"""Runs all experiments, finished ones from their JSON, and holds what the report is written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hf_taskvec.evaluation.accuracy import evaluate
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.weights import resume
from paper.comparison import Cell, compare
from paper.settings import Reproduction
from paper.studies import once, study_atm, study_dynamics, study_equivalence, study_orders

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Compared:
    """One epoch against convergence.

    Attributes:
        settings: What was asked for.
        tasks: Names of the tasks.
        base: Name of the base.
        zero_shot: The base's accuracies.
        cells: One entry per seed and optimiser.
    """

    settings: Reproduction
    tasks: list[str]
    base: str
    zero_shot: dict[str, float]
    cells: list[Cell]


@dataclass(frozen=True)
class Results(Compared):
    """Everything that was measured.

    Attributes:
        equivalence, orders: The theory's checks.
        dynamics: One entry per seed and task.
        atm: Alternating tuning and merging, one entry per seed.
    """

    equivalence: dict[str, Any]
    orders: dict[str, Any]
    dynamics: list[dict[str, Any]]
    atm: list[dict[str, Any]]


def reproduce(settings: Reproduction, *, progress: bool = True) -> Results:
    """Runs what is not finished yet; a killed run goes on where it stopped.

    Raises:
        SettingsDifferError: If the output folder holds results of other settings.
    """
    claim_folder(settings)
    base, tasks = settings.load_base(), settings.load_tasks()
    return Results(
        **_measured_on(settings, base, tasks),
        equivalence=study_equivalence(settings, base, tasks),
        orders=study_orders(settings, base, tasks),
        dynamics=study_dynamics(settings, base, progress=progress),
        cells=compare(settings, base, progress=progress),
        atm=study_atm(settings, base, progress=progress),
    )


def compare_budgets_of(settings: Reproduction, *, progress: bool = True) -> Compared:
    """One epoch against convergence alone; what `reproduce` has done in the same folder is read, and the reverse.

    Raises:
        SettingsDifferError: If the output folder holds results of other settings.
    """
    claim_folder(settings)
    base, tasks = settings.load_base(), settings.load_tasks()
    facts = _measured_on(settings, base, tasks)
    return Compared(**facts, cells=compare(settings, base, progress=progress))


def _measured_on(settings: Reproduction, base: Base, tasks: Sequence[Task]) -> dict[str, Any]:
    """The fields of `Compared` that tell where it was measured."""

    def zero_shot() -> dict[str, Any]:
        return {result.task: result.accuracy for result in evaluate(base, tasks).results}

    names = [task.name for task in tasks]
    return {
        "settings": settings,
        "tasks": names,
        "base": base.name,
        "zero_shot": once(settings, "zero_shot", zero_shot),
    }


def claim_folder(settings: Reproduction) -> None:
    """Writes the settings into the output folder, or raises if it holds results of others.

    Raises:
        SettingsDifferError: If it holds results of other settings.
        OutputExistsError: If it holds something else.
    """
    resume.claim_folder(settings.output_dir, settings.plan(), name=SETTINGS)
