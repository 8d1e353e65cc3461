"""What was measured of merges on one base: which remedy helped against which finding, and a predictor."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hf_taskvec.doctor.facts import Facts
from hf_taskvec.errors import CheckpointError
from hf_taskvec.evaluation.intervals import Interval
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.folders import read_json

SHIPPED = Path(__file__).with_name("evidence.json")
LEAST_HELPED = 0.8  # a remedy that helped in fewer of the flagged merges is not offered


@dataclass(frozen=True)
class Remedy:
    """What was tried against a finding, and what it brought in the merges that had the finding.

    Attributes:
        name: What was tried.
        gain: Normalised accuracy of the merge with it minus that of the plain merge, a mean over tasks, each the mean
            over its merges, with its bootstrap interval over tasks.
        helped: Share of the merges in which that was above 0.
        merges: How many merges.
    """

    name: str
    gain: Interval
    helped: float
    merges: int

    @property
    def helps(self) -> bool:
        """Whether it may be offered: the interval lies above 0, and it helped in four of five merges."""
        return self.gain.low > 0 and self.helped >= LEAST_HELPED


@dataclass(frozen=True)
class Predictor:
    """A linear predictor of the normalised accuracy that a merge keeps on one of its tasks.

    Attributes:
        features: Names of its features; see `features_of`.
        centres, scales: What is taken off each feature, and what it is then divided by.
        coefficients: The factor of each.
        intercept: What is predicted where all features are at their centres.
        radius: Half the width of the interval, from how far tasks lay off that were held out of the fit in turn.
        lowest, highest: The range of each feature where it was fitted; outside there is no prediction.
    """

    features: tuple[str, ...]
    centres: tuple[float, ...]
    scales: tuple[float, ...]
    coefficients: tuple[float, ...]
    intercept: float
    radius: float
    lowest: tuple[float, ...]
    highest: tuple[float, ...]

    def value(self, row: Mapping[str, float]) -> float:
        """The prediction.

        Example:
            >>> Predictor(("x",), (1.0,), (2.0,), (0.5,), 0.8, 0.1, (0.0,), (3.0,)).value({"x": 3.0})
            1.3
        """
        parts = zip(self.features, self.centres, self.scales, self.coefficients, strict=True)
        return self.intercept + math.fsum(factor * (row[name] - mean) / scale for name, mean, scale, factor in parts)

    def outside(self, row: Mapping[str, float]) -> list[str]:
        """The features that lie outside the range where it was fitted, by a tenth of it or more."""
        ends = zip(self.features, self.lowest, self.highest, strict=True)
        return [name for name, low, high in ends if abs(row[name] - (low + high) / 2) > 0.6 * (high - low) + 1e-9]


@dataclass(frozen=True)
class Evidence:
    """What was measured on one base.

    Attributes:
        base: Name of the base.
        base_hashes: Hashes of the base parameters that the vectors covered; vectors of others are not judged by it.
        sizes: How many vectors were merged.
        told: What it rests on, in words.
        harms: For each symptom, normalised accuracy of the merges with it minus that of those without.
        remedies: For each symptom, what was tried in the merges that had it.
        predictors: The predictors that held on tasks that they were not fitted on, by `vectors` and `tasks`.
        refused: Why there is none, by the same names.
    """

    base: str
    base_hashes: Mapping[str, str]
    sizes: tuple[int, ...]
    told: str
    harms: Mapping[str, Interval] = field(default_factory=dict)
    remedies: Mapping[str, tuple[Remedy, ...]] = field(default_factory=dict)
    predictors: Mapping[str, Predictor] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str] = SHIPPED) -> Evidence:
        """Reads what `recipes/doctor.py` wrote, by default what comes with the package.

        Raises:
            CheckpointError: If it is not such a file.

        Example:
            >>> Evidence.load().base
            'hf-taskvec/tiny-clip'
        """
        values = read_json(Path(path))
        try:
            return cls.from_dict(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{Path(path).name} is not evidence of the doctor ({error!r:.100}): recipes/doctor.py writes it"
            ) from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evidence:
        """The evidence from JSON values."""
        remedies = {
            symptom: tuple(Remedy(**{**one, "gain": Interval(**one["gain"])}) for one in tried)
            for symptom, tried in values["remedies"].items()
        }
        predictors = {name: _predictor(one) for name, one in values["predictors"].items()}
        return cls(
            base=str(values["base"]),
            base_hashes=dict(values["base_hashes"]),
            sizes=tuple(values["sizes"]),
            told=str(values["told"]),
            harms={symptom: Interval(**one) for symptom, one in values["harms"].items()},
            remedies=remedies,
            predictors=predictors,
            refused=dict(values["refused"]),
        )

    def speaks_of(self, infos: Sequence[VectorInfo]) -> str | None:
        """Why it says nothing of vectors with these provenances; `None` if it does."""
        hashes = infos[0].base_hashes
        if dict(hashes) != dict(self.base_hashes):
            other = infos[0].base or "an unknown base"
            where = other if other != self.base else f"{other}, but of other parameters"
            return f"it was measured on {self.base}, and these are of {where}"
        if len(infos) not in self.sizes:
            return (
                f"it was measured on merges of {' or '.join(map(str, self.sizes))} vectors, and these are {len(infos)}"
            )
        return None

    def remedy(self, symptom: str, *, epochs: bool = True) -> Remedy | None:
        """What helped most against a symptom, if anything did.

        Args:
            symptom: Its name.
            epochs: Whether vectors of earlier epochs can be had.
        """
        tried = [one for one in self.remedies.get(symptom, ()) if one.helps]
        tried = [one for one in tried if epochs or not one.name.startswith("epoch")]
        return max(tried, key=lambda one: one.gain.mean, default=None)


@cache
def shipped() -> Evidence:
    """The evidence that comes with the package."""
    return Evidence.load()


def _predictor(values: Mapping[str, Any]) -> Predictor:
    lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Predictor(**lists)


VECTOR_FEATURES = ("count", "norm", "ratio", "cosine", "conflict", "overlap", "rank", "narrowness")
TASK_FEATURES = (*VECTOR_FEATURES, "base", "own", "kept by the base", "confidence", "turn", "undone")


def features_of(facts: Facts, index: int) -> dict[str, float]:
    """The features of one task of a merge, as far as they are known; lengths, ranks and overlaps as logarithms."""
    values: dict[str, float | None] = {
        "count": float(len(facts.labels)),
        "norm": math.log(facts.norms[index]),
        "ratio": math.log(facts.ratio(index)),
        "cosine": facts.mean_with_others("cosines", index),
        "conflict": facts.mean_with_others("conflicts", index),
        "overlap": _log(facts.mean_with_others("overlaps", index)),
        "rank": _log(None if facts.stable_ranks is None else facts.stable_ranks[index]),
        "narrowness": _log(facts.narrowness(index)),
    }
    if facts.base_accuracies and facts.own_accuracies and facts.excess_confidences:
        before, after = facts.base_accuracies[index], facts.own_accuracies[index]
        values |= {"base": before, "own": after, "kept by the base": min(2.0, before / after) if after else None}
        values["confidence"] = facts.excess_confidences[index]
    if facts.turns is not None:
        undone = facts.undone(index)
        values |= {"turn": facts.turns[index], "undone": None if undone is None else max(-2.0, min(2.0, undone))}
    return {name: value for name, value in values.items() if value is not None}


def _log(value: float | None) -> float | None:
    return None if value is None or value <= 0 else math.log(value)
