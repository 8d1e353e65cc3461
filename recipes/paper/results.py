"""Runs all experiments, finished ones from their JSON, and holds what the report is written from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_taskvec.evaluation.accuracy import evaluate
from hf_taskvec.weights import resume
from paper.comparison import Cell, compare
from paper.settings import Reproduction
from paper.studies import once, study_atm, study_dynamics, study_equivalence, study_orders

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Results:
    """Everything that was measured.

    Attributes:
        settings: What was asked for.
        tasks: Names of the tasks.
        base: Name of the base.
        zero_shot: The base's accuracies.
        equivalence, orders: The theory's checks.
        dynamics: One entry per seed and task.
        cells: One epoch against convergence, one entry per seed and optimiser.
        atm: Alternating tuning and merging, one entry per seed.
    """

    settings: Reproduction
    tasks: list[str]
    base: str
    zero_shot: dict[str, float]
    equivalence: dict[str, Any]
    orders: dict[str, Any]
    dynamics: list[dict[str, Any]]
    cells: list[Cell]
    atm: list[dict[str, Any]]


def reproduce(settings: Reproduction, *, progress: bool = True) -> Results:
    """Runs what is not finished yet; a killed run goes on where it stopped.

    Raises:
        SettingsDifferError: If the output folder holds results of other settings.
    """
    claim_folder(settings)
    base, tasks = settings.load_base(), settings.load_tasks()

    def zero_shot() -> dict[str, Any]:
        return {result.task: result.accuracy for result in evaluate(base, tasks).results}

    return Results(
        settings=settings,
        tasks=[task.name for task in tasks],
        base=base.name,
        zero_shot=once(settings, "zero_shot", zero_shot),
        equivalence=study_equivalence(settings, base, tasks),
        orders=study_orders(settings, base, tasks),
        dynamics=study_dynamics(settings, base, progress=progress),
        cells=compare(settings, base, progress=progress),
        atm=study_atm(settings, base, progress=progress),
    )


def claim_folder(settings: Reproduction) -> None:
    """Writes the settings into the output folder, or raises if it holds results of others.

    Raises:
        SettingsDifferError: If it holds results of other settings.
        OutputExistsError: If it holds something else.
    """
    resume.claim_folder(settings.output_dir, settings.plan(), name=SETTINGS)
