"""Living merges: the sums of the quadratic engine, which vectors are added to and taken from one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError, check_finite_number
from hf_taskvec.merging.needs import check_statistics
from hf_taskvec.merging.quadratic_engine import is_embedding, pseudo_inverse
from hf_taskvec.merging.registry import get_method
from hf_taskvec.statistics.maps import inputs_of
from hf_taskvec.statistics.value import Statistics
from hf_taskvec.text import listed
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import LazyDeltas
from hf_taskvec.weights.names import differences


@dataclass(frozen=True)
class LivingMerge:
    """What `regmean` without shrinking needs of all its vectors: sums, which tell nothing of how many there were.

    A value: `add` and `remove` return a new one. Its size does not grow with the vectors: a float64 matrix (n, n) for
    every kind of inputs and one (m, n) for every matrix, 1.4 GB for a ViT-B/32. To remove a vector restores the merge
    before it was added up to the rounding of float64.

    Attributes:
        crossed: Sum of `D_t G_t`, by parameter; of what is no matrix, sum of `D_t`.
        squares: Sum of `G_t`, by the inputs it is of.
        infos: Provenance of the vectors in it.

    Example:
        >>> vector = TaskVector({"w.weight": torch.tensor([[1.0, 2.0]])})
        >>> other = TaskVector({"w.weight": torch.tensor([[3.0, 4.0]])})
        >>> seen = Statistics({"gram/w": torch.eye(2)})
        >>> merged = LivingMerge().add(vector, seen).add(other, seen)
        >>> merged.vector()["w.weight"]
        tensor([[2., 3.]])
        >>> merged.remove(other, seen).vector()["w.weight"]
        tensor([[1., 2.]])
    """

    crossed: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    squares: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    infos: tuple[VectorInfo, ...] = ()

    def add(self, vector: TaskVector, statistics: Statistics) -> LivingMerge:
        """With one vector more.

        Args:
            vector: The vector, of the same base and coverage.
            statistics: Its statistics, with `gram`.

        Raises:
            IncompatibleVectorsError, BaseMismatchError, ValueError: As `merge`.
        """
        return dataclasses.replace(self._changed(vector, statistics, 1.0), infos=(*self.infos, vector.info))

    def remove(self, vector: TaskVector, statistics: Statistics) -> LivingMerge:
        """With one vector less, which must be in it.

        Raises:
            ValueError: If no vector of this provenance is in it.
        """
        if vector.info not in self.infos:
            inside = listed([info.label for info in self.infos]) or "none"
            raise ValueError(f"the vector {vector.info.label!r} is not in this merge, which holds {inside}")
        place = self.infos.index(vector.info)
        left = (*self.infos[:place], *self.infos[place + 1 :])
        return dataclasses.replace(self._changed(vector, statistics, -1.0), infos=left) if left else LivingMerge()

    def vector(self, *, ridge: float = 0.0) -> TaskVector:
        """The merged vector, each parameter computed when it is used; what is no matrix is averaged.

        Args:
            ridge: λ, the pull to the base; see `regmean`.

        Raises:
            ValueError: If nothing is in the merge, or `ridge` is negative.
        """
        check_finite_number("ridge", ridge)
        if ridge < 0:
            raise ValueError(f"ridge must be at least 0, got {ridge}")
        if not self.infos:
            raise ValueError("there is no vector in this merge; add one")
        shapes = {name: tensor.shape for name, tensor in self.crossed.items()}

        def compute(name: str) -> Tensor:
            crossed, square = self.crossed[name], self.squares.get(inputs_of(name))
            if square is None or not _is_regressed(name, crossed):
                return (crossed / len(self.infos)).float()
            pull = ridge * float(square.trace()) / len(square)
            if pull == 0:
                return (crossed.flatten(1) @ pseudo_inverse(square)[0]).float().view(crossed.shape)
            lower = torch.linalg.cholesky(square + pull * torch.eye(len(square), dtype=square.dtype))
            return torch.cholesky_solve(crossed.flatten(1).T, lower).T.float().reshape(crossed.shape)

        info = VectorInfo.merged(self.infos, method="regmean", settings={"shrink": 1.0, "ridge": ridge, "living": True})
        return TaskVector(LazyDeltas(shapes, compute, torch.float32, torch.device("cpu")), info)

    def _changed(self, vector: TaskVector, statistics: Statistics, sign: float) -> LivingMerge:
        check_statistics([vector], [statistics], get_method("regmean"), transductive=False)
        shapes = {name: tensor.shape for name, tensor in self.crossed.items()}
        if self.crossed and (
            lines := differences(shapes, vector.deltas.shapes, left_name="the merge", right_name="the vector")
        ):
            raise IncompatibleVectorsError(f"they differ: {listed(lines, separator='; ')}", details=lines)
        crossed, squares = dict(self.crossed), dict(self.squares)
        done: set[str] = set()
        for name in vector.deltas:
            delta, key = vector.deltas[name].double(), inputs_of(name)
            gram = statistics.gram(name) if _is_regressed(name, delta) else None
            if gram is not None:
                square = gram.matrix()
                delta = (delta.flatten(1) @ square).view(delta.shape)
                if key not in done:
                    squares[key] = squares[key] + sign * square if key in squares else sign * square
                    done.add(key)
            crossed[name] = crossed[name] + sign * delta if name in crossed else sign * delta
        return LivingMerge(crossed, squares, self.infos)


def _is_regressed(name: str, delta: Tensor) -> bool:
    return delta.ndim > 1 and not is_embedding(name)
