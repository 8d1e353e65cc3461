"""Which singular directions of each vector a sum needs, learned from images (AdaRank, arXiv 2503.22178)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.evaluation.accuracy import Tasks
from hf_taskvec.merging import merge
from hf_taskvec.merging.adarank import is_matrix, leading_share, packed
from hf_taskvec.merging.engine import rounding_of
from hf_taskvec.merging.linalg import leading
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split
from hf_taskvec.tuning.descent import DEFAULTS, Descent
from hf_taskvec.tuning.images import Images
from hf_taskvec.tuning.mixture import inner_product
from hf_taskvec.tuning.objectives import Objective
from hf_taskvec.tuning.preparation import Vectors, prepare
from hf_taskvec.tuning.tower import Tower
from hf_taskvec.vectors.vector import TaskVector

START = 0.1  # logit of a direction that is kept at first, and minus that of one that is not


@dataclass(frozen=True)
class LearnedMasks:
    """What `rank_masks` found.

    Attributes:
        masks: For each matrix one mask per vector, as `adarank` takes them.
        coefficients: For each parameter one number per vector.
        kept: The share of all singular directions that stay, in [0, 1].
        curve: Mean loss over the tasks, at each step before it was taken.
        vectors: The vectors, in the order of masks and numbers.
        transductive: Whether test images were used.
        provenance: Objective, split, images and their hash, and every setting.
    """

    masks: Mapping[str, tuple[str, ...]] = field(repr=False)
    coefficients: Mapping[str, tuple[float, ...]] = field(repr=False)
    kept: float
    curve: tuple[float, ...] = field(repr=False)
    vectors: tuple[TaskVector, ...] = field(repr=False, compare=False)
    transductive: bool
    provenance: Mapping[str, Any]

    def merge(self, *, output_dir: str | os.PathLike[str] | None = None) -> TaskVector:
        """The sum of the cut vectors, whose provenance says how masks and coefficients were found.

        Args:
            output_dir: Where to write it, parameter by parameter; without it the result is in memory.
        """
        return merge(
            self.vectors,
            "adarank",
            output_dir=output_dir,
            masks=self.masks,
            coefficients=self.coefficients,
            transductive=self.transductive,
            learned=self.provenance,
        )


def rank_masks(
    base: Base,
    vectors: Vectors,
    tasks: Tasks,
    *,
    objective: Objective = "expert",
    split: Split = "validation",
    images: Images = None,
    descent: Descent = DEFAULTS,
    transductive: bool = False,
    progress: bool = True,
) -> LearnedMasks:
    """Masks over the singular directions of every vector's matrices, with a coefficient per vector and parameter.

    A direction stays where its logit is not negative; its gradient passes through that step as through a sigmoid
    (straight-through). At first the leading 1/T of each matrix stay, with logits of ±0.1. The paper minimises the
    entropy on test images, and reports the best of several evaluations on them; here the default is what each task's
    own model says of validation images, and the result is that of the last step.

    The factors of all matrices lie in a temporary folder, twice as large as the vectors or less.

    Args:
        base: The model the vectors are added to; it is left alone.
        vectors: Vectors of that base, also by the names of their tasks.
        tasks: The tasks, or their names.
        objective: As in `learn_coefficients`.
        split: As in `learn_coefficients`.
        images: As in `learn_coefficients`.
        descent: Settings of the steps; logits have no bounds.
        transductive: As in `learn_coefficients`.
        progress: Whether a bar shows up after two seconds.

    Raises:
        UnknownNameError, ValueError, DataError, IncompatibleVectorsError, BaseMismatchError, NonFiniteError: As
            `learn_coefficients`.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> from hf_taskvec.tuning import Descent
        >>> base, name = load_base(), "vision_model.encoder.layers.0.mlp.fc1.bias"
        >>> vector = TaskVector({name: torch.ones_like(base.model.get_parameter(name)) / 100})
        >>> rank_masks(base, {"digits": vector}, "digits", images=8, descent=Descent(steps=1)).masks
        {}
    """
    ready = prepare(
        base,
        vectors,
        tasks,
        objective=objective,
        split=split,
        images=images,
        transductive=transductive,
        descent=descent,
    )
    with tempfile.TemporaryDirectory(prefix="hf_taskvec-") as folder:
        directions = Directions(ready.tower, ready.vectors, Path(folder))
        values, curve = ready.loop.descend(
            directions, directions.first(descent.start), bounds=directions.bounds(descent.bounds), progress=progress
        )
        masks, coefficients = directions.split(values)
    texts = {name: tuple(map(packed, each)) for name, each in masks.items()}
    flat = torch.cat([mask for each in masks.values() for mask in each]) if masks else torch.ones(1)
    return LearnedMasks(
        texts,
        {name: tuple(row) for name, row in coefficients.items()},
        float(flat.double().mean()),
        tuple(curve),
        ready.vectors,
        ready.chosen.transductive,
        {**ready.provenance(), "loss": curve[-1]},
    )


class Directions:
    """The base plus the sum of cut vectors, as a function of one tensor: a logit per direction, then the coefficients.

    Args:
        tower: The model that is set.
        vectors: The vectors.
        folder: Where the factors of their matrices are kept.
    """

    def __init__(self, tower: Tower, vectors: Sequence[TaskVector], folder: Path) -> None:
        self.tower, self.vectors = tower, list(vectors)
        shapes = vectors[0].deltas.shapes
        self.ranks = {name: min(shapes[name]) for name in tower.parameters if is_matrix(shapes[name])}
        self.factors = [_factors(vector, self.ranks, folder / str(index)) for index, vector in enumerate(vectors)]

    def first(self, start: float) -> Tensor:
        """The values to start from."""
        count = len(self.vectors)
        logits = [torch.where(leading_share(rank, count), START, -START).repeat(count) for rank in self.ranks.values()]
        return torch.cat([*logits, torch.full((len(self.tower.parameters) * count,), start)]).double()

    def bounds(self, of_coefficients: tuple[float, float] | None) -> tuple[Tensor, Tensor] | None:
        """The bounds of all values, of which the logits have none."""
        if of_coefficients is None:
            return None
        free = len(self.vectors) * sum(self.ranks.values())
        limited = len(self.vectors) * len(self.tower.parameters)
        low, high = (torch.full((free + limited,), sign * torch.inf, dtype=torch.float64) for sign in (-1, 1))
        low[free:], high[free:] = of_coefficients
        return low, high

    def split(self, values: Tensor) -> tuple[dict[str, list[Tensor]], dict[str, list[float]]]:
        """The masks of each matrix and the coefficients of each parameter, one per vector."""
        logits, coefficients = self._parted(values)
        masks = {name: [row >= 0 for row in rows] for name, rows in logits.items()}
        return masks, {name: row.tolist() for name, row in coefficients.items()}

    @torch.no_grad()
    def set(self, values: Tensor) -> None:
        """Sets the tower's weights."""
        self.values = values
        masks, coefficients = self.split(values)
        for name, parameter in self.tower.parameters.items():
            original = self.tower.originals[name]
            total = original.to(torch.promote_types(original.dtype, torch.float32), copy=True)
            for index, factor in enumerate(coefficients[name]):
                if name not in masks:
                    total.add_(self.vectors[index].deltas[name].to(total), alpha=factor)
                elif masks[name][index].any():
                    left, right = self._of(name, index, total)
                    kept = masks[name][index].to(total.device)
                    total.addmm_(left[:, kept], right[:, kept].T, alpha=factor)
            parameter.copy_(total)

    @torch.no_grad()
    def gradient(self) -> Tensor:
        """The gradient with respect to the values: σᵢ uᵢᵀ G vᵢ for a direction, summed over those kept for a factor."""
        logits, coefficients = self._parted(self.values)
        of_logits, of_factors = list[Tensor](), list[Tensor]()
        for name, parameter in self.tower.parameters.items():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if name not in logits:
                products = [inner_product(gradient.reshape(-1), vector.deltas[name]) for vector in self.vectors]
                of_factors.append(torch.stack(products).cpu().double())
                continue
            for index, row in enumerate(logits[name]):
                left, right = self._of(name, index, gradient)
                along = ((left.T @ gradient).T * right).sum(dim=0).cpu().double()
                slope = row.sigmoid() * (1 - row.sigmoid())
                of_logits.append(coefficients[name][index] * along * slope)
                of_factors.append(along[row >= 0].sum().reshape(1))
        return torch.cat([*of_logits, *of_factors])

    def _of(self, name: str, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The left vectors times the singular values (m, k), and the right vectors (n, k), of one vector's matrix."""
        deltas = self.factors[index].deltas
        return deltas[f"{name}.left"].to(like), deltas[f"{name}.right"].to(like)

    def _parted(self, values: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The logits (T, k) of each matrix, and the coefficients (T,) of each parameter."""
        count, names = len(self.vectors), list(self.tower.parameters)
        sizes = [count * rank for rank in self.ranks.values()]
        *rows, rest = values.split([*sizes, count * len(names)])
        logits = {name: row.view(count, -1) for name, row in zip(self.ranks, rows, strict=True)}
        return logits, dict(zip(names, rest.view(len(names), count), strict=True))


def _factors(vector: TaskVector, names: Mapping[str, int], folder: Path) -> TaskVector:
    """The singular factors of a vector's matrices, on disk."""
    factors, rounding = {}, rounding_of([vector])
    for name in names:
        delta = vector.deltas[name]
        singular = leading(delta, rounding=rounding)
        dtype = torch.promote_types(delta.dtype, torch.float32)
        factors[f"{name}.left"] = (singular.left * singular.values).to(dtype).contiguous()
        factors[f"{name}.right"] = singular.right.to(dtype).contiguous()
    if not factors:
        return TaskVector({})
    TaskVector(factors).save_pretrained(folder)
    return TaskVector.from_pretrained(folder)
