"""The vectors under the sliders: each with the moments of its training, all in one tensor, merged for any setting."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from hf_taskvec.merging import list_methods, merge
from hf_taskvec.merging.sources import covering_alike
from hf_taskvec.studio.kept import Kept
from hf_taskvec.studio.prepared import Finish, prepared, weighted_sum
from hf_taskvec.studio.setting import SUM, Setting
from hf_taskvec.vectors.compatibility import check_compatible
from hf_taskvec.vectors.vector import TaskVector

_KEYS = itertools.count()
KEPT_MERGES = 16  # of methods other than the sum, which are computed anew for each setting
KEPT_PREPARED = 2  # methods whose costly part is kept for the vectors that count
SLOW = 0.3  # seconds of a merge from which on it is told that one is being made


@dataclass(frozen=True)
class Moment:
    """A vector at one moment of its training.

    Attributes:
        label: The moment, as "½" epoch or "gradient".
        source: Folder or Hub id of the vector, or what it is in words.
        vector: The vector.
        code: The Python that opens it, where it is no vector of its own that a recipe names: a LoRA adapter, an epoch
            of a series, one task of several.
    """

    label: str
    source: str
    vector: TaskVector
    code: str | None = None

    @cached_property
    def norm(self) -> float:
        """The norm of the vector."""
        return self.vector.norm()


@dataclass(frozen=True)
class Lever:
    """What one slider moves.

    Attributes:
        name: What it is called.
        moments: The moments of its training in their order; the last one is the vector itself.
    """

    name: str
    moments: tuple[Moment, ...]

    @property
    def vector(self) -> TaskVector:
        """The vector at the end of its training."""
        return self.moments[-1].vector


class Bank:
    """Some levers, whose vectors are kept as the rows of one tensor.

    Args:
        levers: The levers; parameters that one of them lacks are zero in it.

    Raises:
        IncompatibleVectorsError, BaseMismatchError: If they are of several bases or shapes.

    Example:
        >>> vectors = [TaskVector({"w": torch.ones(2)}), TaskVector({"v": torch.ones(1)})]
        >>> bank = Bank([Lever("one", (Moment("end", "out/one", vector),)) for vector in vectors])
        >>> bank.delta(Setting((0.5, 2.0), (0, 0)))
        {'w': tensor([0.5000, 0.5000]), 'v': tensor([2.])}
    """

    def __init__(self, levers: Sequence[Lever]) -> None:
        self.key = next(_KEYS)  # tells this bank apart for as long as the process lives, as its address would not
        self.levers = tuple(levers)
        moments = [moment for lever in self.levers for moment in lever.moments]
        vectors = covering_alike([moment.vector for moment in moments])
        check_compatible(vectors)
        for vector in vectors:
            vector.check_finite()
        self.shapes = dict(vectors[0].deltas.shapes)
        self.stack = torch.empty(len(vectors), sum(shape.numel() for shape in self.shapes.values()))
        for row, vector in zip(self.stack, vectors, strict=True):
            for place, name in self._places(row).items():
                name.copy_(vector.deltas[place])
        self._vectors = [
            TaskVector(self._places(row), vector.info) for row, vector in zip(self.stack, vectors, strict=True)
        ]
        self._took: dict[str, float] = {}  # seconds of the last merge by each method that was made from the ground
        self._prepared: Kept[tuple[str | int, ...], Finish | None] = Kept(KEPT_PREPARED)
        self._merges: Kept[Setting, dict[str, Tensor]] = Kept(KEPT_MERGES)

    def _places(self, row: Tensor) -> dict[str, Tensor]:
        """The parts of a row by parameter, as views."""
        parts = row.split([shape.numel() for shape in self.shapes.values()])
        return {name: values.view(shape) for (name, shape), values in zip(self.shapes.items(), parts, strict=True)}

    def _rows(self, setting: Setting) -> dict[int, float]:
        """The rows of the stack that count at a setting, with their factors."""
        rows, first = {}, 0
        for lever, factor, moment in zip(self.levers, setting.factors, setting.moments, strict=True):
            if factor != 0:
                rows[first + moment] = factor
            first += len(lever.moments)
        return rows

    @property
    def start(self) -> Setting:
        """Where the sliders stand at first: the usual third of each vector, at the end of its training."""
        return Setting((0.3,) * len(self.levers), tuple(len(lever.moments) - 1 for lever in self.levers))

    def moments(self, setting: Setting) -> list[Moment]:
        """The moment of each lever at a setting."""
        return [lever.moments[moment] for lever, moment in zip(self.levers, setting.moments, strict=True)]

    def delta(self, setting: Setting) -> dict[str, Tensor]:
        """What a setting adds to the base, by parameter; nothing if all factors are 0.

        Raises:
            ValueError, TaskVecError: What the method refuses, such as too few vectors.
        """
        rows = self._rows(setting)
        if not rows:
            return {}
        if setting.method == SUM:
            return self._places(weighted_sum(self.stack, rows))
        return self._merges.get(setting, lambda: self._merge(rows, setting.method))

    def is_slow(self, setting: Setting) -> bool:
        """Whether the merge of a setting may take a while.

        It does not if it is a sum, the last one by its method was fast, or the costly part of it is at hand.
        """
        rows, method = self._rows(setting), setting.method
        if method == SUM or not rows or self._prepared.at_hand((method, *rows)):
            return False
        return self._took.get(method, SLOW) >= SLOW

    def _merge(self, rows: Mapping[int, float], method: str) -> dict[str, Tensor]:
        start, factors = time.perf_counter(), list(rows.values())
        vectors, known = [self._vectors[row] for row in rows], self._prepared.at_hand((method, *rows))
        finish = known or self._prepared.get((method, *rows), lambda: prepared(method, vectors))
        if finish is None:
            merged = merge(vectors, method, factors=factors)
            deltas = {name: merged.deltas[name] for name in merged.deltas}
        else:
            deltas = self._places(finish(factors))
        if not known:
            self._took[method] = time.perf_counter() - start
        return deltas

    def merged(self, setting: Setting) -> TaskVector:
        """The merged vector of a setting, with its provenance and, where a recipe names all, how to repeat it.

        Raises:
            DataError: If all factors are 0.
        """
        recipe = setting.recipe(self.sources(setting))
        if not self.codes(setting):
            return recipe.run()
        return self.merged_in_memory(setting)

    def merged_in_memory(self, setting: Setting) -> TaskVector:
        """The merged vector of a setting, from the vectors as they are held here, whose provenance tells no recipe."""
        rows = self._rows(setting)
        return merge([self._vectors[row] for row in rows], setting.method, factors=list(rows.values()))

    def vectors(self, setting: Setting) -> list[TaskVector]:
        """The vector of each lever at the moments of a setting, all of one coverage."""
        return [self._vectors[row] for row in self._rows(replace(setting, factors=(1.0,) * len(self.levers)))]

    def codes(self, setting: Setting) -> dict[str, str]:
        """The Python that opens those vectors of a setting that no recipe names, by their sources."""
        pairs = zip(self.moments(setting), setting.factors, strict=True)
        return {moment.source: moment.code for moment, factor in pairs if moment.code is not None and factor != 0}

    def sources(self, setting: Setting) -> list[str]:
        """Folder or Hub id of each lever's vector at a setting."""
        return [moment.source for moment in self.moments(setting)]

    @cached_property
    def cosines(self) -> Tensor:
        """The cosine of every pair of rows, (rows, rows)."""
        unit = torch.nn.functional.normalize(self.stack, dim=1)
        products: Tensor = unit @ unit.T
        return products.clamp(-1, 1)

    @cached_property
    def conflicts(self) -> Tensor:
        """The share of entries, among those that are zero in neither row, whose signs are opposite, (rows, rows)."""
        signs = self.stack.sign()
        both, alike = signs.abs() @ signs.abs().T, signs @ signs.T
        shares: Tensor = (both - alike) / (2 * both.clamp(min=1))
        return shares

    def chosen(self, pairs: Tensor, setting: Setting) -> Tensor:
        """Of a value for each pair of rows those of the moments of a setting, (levers, levers)."""
        rows = list(self._rows(replace(setting, factors=(1.0,) * len(self.levers))))
        return pairs[rows][:, rows]


def methods_at_hand() -> list[str]:
    """The methods that need no data and no setting, the sum first."""
    names = [method.name for method in list_methods() if not method.statistics and method.max_vectors is None]
    return [SUM, *(name for name in names if name not in (SUM, *_NOT_AT_HAND))]


# By learned values, of LoRA factors only, and by an optimiser that takes minutes.
_NOT_AT_HAND = ("adarank", "weighted", "core_space", "wudi")
