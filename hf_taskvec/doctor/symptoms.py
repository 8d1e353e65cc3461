"""What can be wrong with vectors that are to be merged, each a figure with a limit and a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from hf_taskvec.doctor.facts import Facts

Place = tuple[int, ...]  # the vector, or the two, that a figure is of


@dataclass(frozen=True)
class Symptom:
    """One kind of finding.

    Attributes:
        name: Its name, under which what was measured of it is kept.
        limit: Figures above it are found. The limits were set before any merge was measured.
        pairs: Whether it is of two vectors.
        figure: The figure; `None` where it is not known.
        sentence: What it means, of the names of the vectors.
    """

    name: str
    limit: float
    figure: Callable[[Facts, Place], float | None]
    sentence: Callable[[Facts, Place, Sequence[str]], str]
    pairs: bool = False

    def places(self, facts: Facts) -> list[tuple[float, Place]]:
        """Every figure above the limit with its place, the worst first."""
        count = len(facts.labels)
        places = list(combinations(range(count), 2)) if self.pairs else [(index,) for index in range(count)]
        figures = [(self.figure(facts, place), place) for place in places]
        return sorted(
            ((value, place) for value, place in figures if value is not None and value > self.limit),
            key=lambda entry: -entry[0],
        )


def _entry(values: Sequence[float] | None, place: Place) -> float | None:
    return None if values is None else values[place[0]]


def _cell(table: Sequence[Sequence[float]] | None, place: Place) -> float | None:
    return None if table is None else table[place[0]][place[1]]


def _gain(facts: Facts, place: Place) -> float | None:
    """What a vector brings on its own task, with the sign turned: the less, the larger."""
    before, after = _entry(facts.base_accuracies, place), _entry(facts.own_accuracies, place)
    return None if before is None or after is None else before - after


def _dependence(facts: Facts, place: Place) -> float | None:
    """The share of a task's accuracy that is not there without its vector."""
    before, after = _entry(facts.base_accuracies, place), _entry(facts.own_accuracies, place)
    return None if before is None or not after else 1 - before / after


def _turn(facts: Facts, place: Place) -> float | None:
    cosine = _entry(facts.turns, place)
    return None if cosine is None else -cosine


def _accuracies(facts: Facts, place: Place) -> str:
    before, after = _entry(facts.base_accuracies, place), _entry(facts.own_accuracies, place)
    return f"{100 * (before or 0):.0f} % of validation images without it, {100 * (after or 0):.0f} % with it"


SYMPTOMS = (
    Symptom(
        "outweighs",
        1.25,
        lambda facts, place: facts.ratio(place[0]),
        lambda facts, place, names: (
            f"{names[0]} is {facts.ratio(place[0]):.2f} times as long as the others, and outweighs them in a sum"
        ),
    ),
    Symptom(
        "opposed",
        0.0,
        lambda facts, place: -facts.cosines[place[0]][place[1]],
        lambda facts, place, names: (
            f"{names[0]} and {names[1]} pull apart: their cosine is {facts.cosines[place[0]][place[1]]:.3f}"
        ),
        pairs=True,
    ),
    Symptom(
        "conflicting",
        0.5,
        lambda facts, place: facts.conflicts[place[0]][place[1]],
        lambda facts, place, names: (
            f"{names[0]} and {names[1]} have opposite signs in "
            f"{100 * facts.conflicts[place[0]][place[1]]:.1f} % of their entries; unrelated ones have 50 %"
        ),
        pairs=True,
    ),
    Symptom(
        "crowded",
        8.0,
        lambda facts, place: _cell(facts.overlaps, place),
        lambda facts, place, names: (
            f"{names[0]} and {names[1]} change the same directions: their leading ones overlap "
            f"{_cell(facts.overlaps, place):.1f} times as much as random ones"
        ),
        pairs=True,
    ),
    Symptom(
        "narrow",
        2.0,
        lambda facts, place: facts.narrowness(place[0]),
        lambda facts, place, names: (
            f"{names[0]} lies in few directions: its stable rank is "
            f"{_entry(facts.stable_ranks, place):.1f}, the others' {facts.narrowness(place[0]):.1f} times that"
        ),
    ),
    Symptom(
        "overconfident",
        0.1,
        lambda facts, place: _entry(facts.excess_confidences, place),
        lambda facts, place, names: (
            f"the model of {names[0]} is surer than it is right: its mean confidence is "
            f"{100 * (_entry(facts.excess_confidences, place) or 0):.0f} points above its accuracy"
        ),
    ),
    Symptom(
        "little-gain",
        -0.05,
        _gain,
        lambda facts, place, names: f"the vector of {names[0]} brings little: {_accuracies(facts, place)}",
    ),
    Symptom(
        "dependent",
        0.4,
        _dependence,
        lambda facts, place, names: f"{names[0]} depends on its vector: {_accuracies(facts, place)}",
    ),
    Symptom(
        "turned",
        -0.15,
        _turn,
        lambda facts, place, names: (
            f"{names[0]} has turned from its gradient at the base: their cosine is {_entry(facts.turns, place):.2f}"
        ),
    ),
    Symptom(
        "undone",
        0.2,
        lambda facts, place: facts.undone(place[0]),
        lambda facts, place, names: (
            f"the other vectors raise the loss of {names[0]}: to first order they undo "
            f"{100 * (facts.undone(place[0]) or 0):.0f} % of what its own takes off"
        ),
    ),
)
