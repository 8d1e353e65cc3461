"""What is measured of some vectors before they are merged: of each, and of each pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import DataError, UnknownNameError
from hf_taskvec.evaluation.accuracy import predict
from hf_taskvec.merging.engine import wide_dtype
from hf_taskvec.merging.geometry import cosines, inner_products, sign_conflicts
from hf_taskvec.merging.linalg import leading
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.text import listed, shortened
from hf_taskvec.theory.gradients import descent_of
from hf_taskvec.vectors.compatibility import check_compatible, check_not_zero
from hf_taskvec.vectors.vector import TaskVector

RANK = 8  # leading singular directions of a matrix that are compared
Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Facts:
    """Figures of T vectors; those of the second group are `None` without base and tasks, or where none was wanted.

    Attributes:
        labels: What the vectors are called: their tasks, where these differ.
        norms: Their norms.
        cosines: Cosines of all pairs, (T, T).
        conflicts: Share of entries with opposite signs, (T, T); unrelated vectors have one half.
        overlaps: ‖U_aᵀ U_b‖²/r of the leading singular directions, a mean over the matrices, times what it takes for
            random directions to have 1, (T, T); `None` if no delta is a matrix.
        stable_ranks: Squared norm over the square of the largest singular value, a mean over the matrices.
        epochs: Epochs trained, where they are known.
        base_accuracies: Accuracy of the base on each task's validation images.
        own_accuracies: That of the base with the task's vector.
        excess_confidences: Mean of the largest probability that the base with the vector gives to a class, less its
            accuracy.
        descents: −g_i · v_j of the gradient g_i of task i at the base, (T, T): to first order, what vector j takes off
            the loss of task i.
        turns: Cosine of each vector with its task's negative gradient.
    """

    labels: tuple[str, ...]
    norms: tuple[float, ...]
    cosines: Table
    conflicts: Table
    overlaps: Table | None
    stable_ranks: tuple[float, ...] | None
    epochs: tuple[float | None, ...]
    base_accuracies: tuple[float, ...] | None = None
    own_accuracies: tuple[float, ...] | None = None
    excess_confidences: tuple[float, ...] | None = None
    descents: Table | None = None
    turns: tuple[float, ...] | None = None

    def among(self, members: Sequence[int]) -> Facts:
        """The same of some of the vectors.

        Example:
            >>> table = ((1.0, 0.5), (0.5, 1.0))
            >>> facts = Facts(("a", "b"), (1.0, 2.0), table, table, None, None, (None, None))
            >>> facts.among([1]).norms, facts.among([1]).cosines
            ((2.0,), ((1.0,),))
        """

        def chosen(values: Any) -> Any:
            if values is None:
                return None
            rows = tuple(values[index] for index in members)
            nested = bool(rows) and isinstance(rows[0], tuple)
            return tuple(tuple(row[index] for index in members) for row in rows) if nested else rows

        return Facts(**{spec.name: chosen(getattr(self, spec.name)) for spec in fields(self)})

    def ratio(self, index: int) -> float:
        """A vector's norm over the mean norm of the others."""
        return self.norms[index] / self._others(index, self.norms)

    def narrowness(self, index: int) -> float | None:
        """The mean stable rank of the others over a vector's own."""
        ranks = self.stable_ranks
        return None if ranks is None or not ranks[index] else self._others(index, ranks) / ranks[index]

    def undone(self, index: int) -> float | None:
        """To first order, which share of what its own vector takes off a task's loss the other vectors put on again."""
        if self.descents is None:
            return None
        row = self.descents[index]
        return -(math.fsum(row) - row[index]) / abs(row[index]) if row[index] else 0.0

    def mean_with_others(self, name: str, index: int) -> float | None:
        """The mean of a table's row over the other vectors."""
        table: Table | None = getattr(self, name)
        return None if table is None else self._others(index, table[index])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not known is left out."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def _others(self, index: int, values: Sequence[float]) -> float:
        return fmean(value for place, value in enumerate(values) if place != index)


def vector_facts(vectors: Sequence[TaskVector]) -> Facts:
    """The figures of some vectors that need no data.

    Raises:
        DataError: If there are fewer than two.
        IncompatibleVectorsError: If they differ in names or shapes, or one is zero.
        BaseMismatchError: If they are of different bases.
        NonFiniteError: If one holds NaN or Inf.

    Example:
        >>> pair = [TaskVector({"w": torch.tensor(values)}) for values in ([3.0, 4.0], [4.0, -3.0])]
        >>> facts = vector_facts(pair)
        >>> facts.norms, facts.cosines[0][1], facts.conflicts[0][1]
        ((5.0, 5.0), 0.0, 0.5)
    """
    if len(vectors) < 2:
        raise DataError(f"a diagnosis tells how vectors go together: it needs two or more of them, got {len(vectors)}")
    check_compatible(vectors)
    check_not_zero(vectors)
    products = torch.stack(list(inner_products(vectors).values())).sum(dim=0)
    opposed = torch.stack(list(sign_conflicts(vectors).values())).sum(dim=0).double() / vectors[0].num_entries
    overlaps, ranks = _directions(vectors)
    return Facts(
        labels=_labels(vectors),
        norms=tuple(products.diagonal().sqrt().tolist()),
        cosines=_table(cosines(products)),
        conflicts=_table(opposed),
        overlaps=overlaps,
        stable_ranks=ranks,
        epochs=tuple(vector.info.epochs for vector in vectors),
    )


def with_tasks(
    facts: Facts,
    vectors: Sequence[TaskVector],
    base: Base,
    tasks: Sequence[Task],
    *,
    num_images: int = 256,
    gradients: bool = True,
    batch_size: int = 256,
) -> Facts:
    """The figures with those that need the base and images: validation images, and training images for the gradients.

    Args:
        facts: The figures of the vectors.
        vectors: The vectors.
        base: Their base.
        tasks: The task of each vector, in their order.
        num_images: Most images of each kind and task.
        gradients: Whether to compute the gradients at the base.
        batch_size: Images per pass.

    Raises:
        BaseMismatchError: If the vectors are of another base.

    Example:
        >>> from hf_taskvec import get_tasks, load_base
        >>> base, pair = load_base(), get_tasks(["digits", "shapes"])
        >>> shape = base.model.vision_model.post_layernorm.bias.shape
        >>> vectors = [TaskVector({"vision_model.post_layernorm.bias": torch.full(shape, x)}) for x in (0.1, -0.1)]
        >>> facts = with_tasks(vector_facts(vectors), vectors, base, pair, num_images=8, gradients=False)
        >>> len(facts.base_accuracies), facts.turns
        (2, None)
    """
    small = [_cut(task, num_images) for task in tasks]
    before = [_score(base, task, batch_size) for task in small]
    after = [_score(v.apply_to(base), task, batch_size) for v, task in zip(vectors, small, strict=True)]
    facts = replace(
        facts,
        base_accuracies=tuple(accuracy for accuracy, _ in before),
        own_accuracies=tuple(accuracy for accuracy, _ in after),
        excess_confidences=tuple(confidence - accuracy for accuracy, confidence in after),
    )
    if not gradients:
        return facts
    table, turns = [], []
    for index, task in enumerate(small):
        descent = descent_of(vectors[index], base, task, batch_size=batch_size)
        table.append(tuple(descent.dot(vector) for vector in vectors))
        size = descent.norm() * facts.norms[index]
        turns.append(table[-1][index] / size if size > 0 else 0.0)
    return replace(facts, descents=tuple(table), turns=tuple(turns))


def match_tasks(vectors: Sequence[TaskVector], tasks: Sequence[Task]) -> list[Task]:
    """The task of each vector, by name.

    Raises:
        UnknownNameError: If a vector's task is none of the given ones.
        DataError: If a task has no vector, or a vector tells no task.
    """
    known = {task.name: task for task in tasks}
    for index, vector in enumerate(vectors):
        if vector.info.task is None:
            raise DataError(f"vector {index} ({vector.info.label!r}) does not tell its task; diagnose it without tasks")
        if vector.info.task not in known:
            raise UnknownNameError(f"task for vector {index}:", vector.info.task, known)
    names = [str(vector.info.task) for vector in vectors]
    if more := [name for name in known if name not in names]:
        raise DataError(f"there is no vector of {listed(more)}; the vectors are of {listed(names)}")
    return [known[name] for name in names]


def _cut(task: Task, most: int) -> Task:
    """The task on at most so many images, or fewer if it was cut before."""
    return subset(task, max_train=most, max_validation=most)


def _score(model: Base, task: Task, batch_size: int) -> tuple[float, float]:
    """Accuracy and mean confidence on a task's validation images."""
    logits, labels = predict(model, task, "validation", batch_size=batch_size, progress=False)
    if not len(labels):
        raise DataError(f"the validation part of {task.name!r} is empty, so that nothing tells how good its vector is")
    accuracy = float((logits.argmax(dim=1) == labels).double().mean())
    return accuracy, float(logits.softmax(dim=1).amax(dim=1).double().mean())


def _labels(vectors: Sequence[TaskVector]) -> tuple[str, ...]:
    """Their tasks; with their place where these do not tell them apart."""
    labels = [shortened(vector.info.label, 40) for vector in vectors]
    return tuple(f"{label} ({place})" if labels.count(label) > 1 else label for place, label in enumerate(labels))


def _table(values: Tensor) -> Table:
    return tuple(map(tuple, values.tolist()))


def _directions(vectors: Sequence[TaskVector]) -> tuple[Table | None, tuple[float, ...] | None]:
    """Overlaps (T, T) over chance and stable ranks (T,), means over the matrices; one matrix at a time."""
    count, wide, overlaps, ranks = len(vectors), wide_dtype(vectors), [], []
    for name, shape in vectors[0].deltas.shapes.items():
        if len(shape) != 2 or min(shape) < 2:
            continue
        rank = min(RANK, *shape)
        deltas = [vector.deltas[name].to("cpu", wide) for vector in vectors]
        largest = [leading(delta, rank) for delta in deltas]
        left = torch.cat([one.left for one in largest], dim=1)
        blocks = (left.T @ left).square().view(count, rank, count, rank).sum(dim=(1, 3))
        overlaps.append(blocks / rank * (shape[0] / rank))
        squares = [float(one.values[0]) ** 2 for one in largest]
        norms = [float(delta.double().square().sum()) for delta in deltas]
        ranks.append([norm / square if square else 0.0 for norm, square in zip(norms, squares, strict=True)])
    if not overlaps:
        return None, None
    means = torch.tensor(ranks, dtype=torch.float64).mean(dim=0)
    return _table(torch.stack(overlaps).mean(dim=0)), tuple(means.tolist())
