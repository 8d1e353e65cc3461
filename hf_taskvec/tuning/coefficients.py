"""Coefficients of vectors, learned from images of their tasks (AdaMerging, arXiv 2310.02575; SyMerge, 2412.19098)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hf_taskvec.errors import check_fraction
from hf_taskvec.evaluation.accuracy import Tasks
from hf_taskvec.merging import merge
from hf_taskvec.merging.weighted import without_conflicts
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split
from hf_taskvec.tuning.descent import DEFAULTS, Descent
from hf_taskvec.tuning.images import Images
from hf_taskvec.tuning.mixture import Mixture, Per, group_name
from hf_taskvec.tuning.objectives import Objective
from hf_taskvec.tuning.preparation import Vectors, prepare
from hf_taskvec.vectors.vector import TaskVector


@dataclass(frozen=True)
class LearnedCoefficients:
    """What `learn_coefficients` found.

    Attributes:
        coefficients: One number per vector under `*`, each layer's name or each parameter's, as `weighted` takes them.
        curve: Mean loss over the tasks, at each step before it was taken.
        vectors: The vectors, in the order of the numbers.
        density: What TIES kept of the vectors; `None` if they were taken as they are.
        transductive: Whether test images were used.
        provenance: Objective, split, images and their hash, and every setting.
    """

    coefficients: Mapping[str, tuple[float, ...]]
    curve: tuple[float, ...] = field(repr=False)
    vectors: tuple[TaskVector, ...] = field(repr=False, compare=False)
    density: float | None
    transductive: bool
    provenance: Mapping[str, Any]

    def merge(self, *, output_dir: str | os.PathLike[str] | None = None) -> TaskVector:
        """The sum of the vectors with these coefficients, whose provenance says how they were found.

        Args:
            output_dir: Where to write it, parameter by parameter; without it the result is in memory.
        """
        return merge(
            self.vectors,
            "weighted",
            output_dir=output_dir,
            coefficients=self.coefficients,
            density=self.density,
            transductive=self.transductive,
            learned=self.provenance,
        )


def learn_coefficients(
    base: Base,
    vectors: Vectors,
    tasks: Tasks,
    *,
    objective: Objective = "expert",
    per: Per = "task",
    split: Split = "validation",
    images: Images = None,
    density: float | None = None,
    descent: Descent = DEFAULTS,
    transductive: bool = False,
    progress: bool = True,
) -> LearnedCoefficients:
    """Coefficients of the vectors' sum that minimise a loss on images of all tasks, by Adam.

    "expert" needs no labels: it is the cross-entropy to what each task's own model says (SyMerge's coefficients without
    its trained layers). "entropy" is AdaMerging, with `density=0.2` AdaMerging++; "labels" needs labels. The gradient
    is taken by inner products with the vectors, which stay on disk; beside the model, one gradient is in memory.
    After each step a coefficient is put back into its bounds, so that one at a bound can leave it again; the authors
    clamp in the forward pass, where such a coefficient has no gradient and is stuck.

    The images are the tasks' validation parts by default, as for `choose_scaling`; the papers take test images. A step
    of AdaMerging's code is on two batches of 16 images of each task, one of 32 here.
    Several processes share each batch and give one process's result up to rounding.

    Args:
        base: The model the vectors are added to; it is left alone.
        vectors: Vectors of that base, also by the names of their tasks.
        tasks: The tasks, or their names.
        objective: What is minimised: "expert", "entropy" or "labels".
        per: What has a coefficient of its own in each vector: the "task" (one), each "layer" (an encoder layer, or a
            module outside of them) or each "parameter", which the papers call layer-wise.
        split: The part of the tasks whose images are used.
        images: At most so many images of each task, or own images by task; see `choose_images`.
        density: If given, what TIES leaves of each vector is summed instead of the vector: the paper's 0.2.
        descent: Settings of the steps.
        transductive: Whether test images may be used; provenance, reports and card will tell.
        progress: Whether a bar shows up after two seconds.

    Raises:
        UnknownNameError: If there is no such objective, part or group, or a task has no vector of its own ("expert").
        ValueError: If a setting is out of range, or test images are asked for undeclared or with their labels.
        DataError: If there is no task, or images lack labels that the objective needs.
        IncompatibleVectorsError, BaseMismatchError: If the vectors do not fit the base or each other.
        NonFiniteError: If a vector or a loss holds NaN or Inf.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> base = load_base()
        >>> vector = TaskVector({"vision_model.post_layernorm.bias": torch.ones(384) / 100})
        >>> learned = learn_coefficients(base, {"digits": vector}, "digits", images=32, descent=Descent(steps=2))
        >>> learned.coefficients["*"][0] > 0.3, learned.merge().info.settings["learned"]["split"]
        (True, 'validation')
    """
    group_name("", per)
    if density is not None:
        check_fraction("density", density)
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
    with _summands(ready.vectors, density) as summands:
        mixture = Mixture(ready.tower, summands, per)
        first = torch.full((len(mixture.groups), len(summands)), descent.start)
        values, curve = ready.loop.descend(mixture, first, bounds=descent.bounds, progress=progress)
    how = {**ready.provenance(), "per": per, "loss": curve[-1]}
    numbers = {group: tuple(row) for group, row in zip(mixture.groups, values.tolist(), strict=True)}
    return LearnedCoefficients(numbers, tuple(curve), ready.vectors, density, ready.chosen.transductive, how)


@contextmanager
def _summands(vectors: Sequence[TaskVector], density: float | None) -> Iterator[list[TaskVector]]:
    """The vectors as they are, or what TIES leaves of each, kept in a temporary folder as long as it is needed."""
    if density is None:
        yield list(vectors)
        return
    with tempfile.TemporaryDirectory(prefix="hf_taskvec-") as folder:
        kept = []
        for number, vector in enumerate(without_conflicts(vectors, density)):
            vector.save_pretrained(Path(folder) / str(number))
            kept.append(TaskVector.from_pretrained(Path(folder) / str(number)))
        yield kept
