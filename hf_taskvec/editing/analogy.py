"""Analogies: a is to b as c is to what there is no vector of, c + α(b − a)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_taskvec.evaluation.accuracy import check_base, predict
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.evaluation.scalings import check_scalings, edit, touched
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task, as_task
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import check_scaling

FACTORS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def analogy(a: TaskVector, b: TaskVector, c: TaskVector, *, factor: float = 1.0) -> TaskVector:
    """The vector c + α(b − a) of a task that is to c as b is to a (arXiv 2212.04089, section 5).

    Args:
        a: What b differs from as the result is to differ from c, such as photographs with labels.
        b: Such as sketches with the same labels.
        c: Such as photographs of other classes, for a vector of their sketches.
        factor: α; `choose_analogy` chooses it without labels.

    Raises:
        IncompatibleVectorsError: If the vectors are of different bases or parameters.
        ValueError: If α is not finite.

    Example:
        >>> one = analogy(*(TaskVector({"w": torch.tensor([float(value)])}) for value in (1, 4, 10)), factor=0.5)
        >>> one["w"], one.info.method
        (tensor([11.5000]), 'analogy')
    """
    factor = check_scaling(factor)
    deltas = (c + factor * (b - a)).deltas
    settings = {"factor": factor, "weights": [-factor, factor, 1.0]}
    return TaskVector(deltas, VectorInfo.merged([a.info, b.info, c.info], method="analogy", settings=settings))


@dataclass(frozen=True)
class ChosenAnalogy:
    """An analogy whose factor was chosen without labels.

    Attributes:
        vector: The vector.
        factor: The chosen α.
        information: The mutual information of images and predicted classes, in nats, for every α that was tried.
    """

    vector: TaskVector
    factor: float
    information: Mapping[float, float]


def choose_analogy(
    base: Base,
    a: TaskVector,
    b: TaskVector,
    c: TaskVector,
    task: Task | str,
    *,
    factors: Iterable[float] = FACTORS,
    split: Split = "validation",
    batch_size: int = 256,
    progress: bool = True,
) -> ChosenAnalogy:
    """The analogy whose predictions on a task's images tell most, without looking at a label.

    It maximises the mutual information of images and predicted classes: predictions are to be sure of each image and
    to differ between images. Being sure alone (the mean entropy) is best when all images fall into one class. The
    smaller of equals is taken.

    Args:
        base: The model; it is left alone.
        a: As for `analogy`.
        b: Likewise.
        c: Likewise.
        task: The task without labels: its images and class names are used.
        factors: The values of α to try.
        split: Which images of it.
        batch_size: Images per forward pass.
        progress: Whether bars show up after two seconds.

    Raises:
        ValueError: If no factor is given, or one is not finite.
        IncompatibleVectorsError: If the vectors are of different bases or parameters.

    Example:
        >>> from hf_taskvec import load_base
        >>> base = load_base()
        >>> still = TaskVector.from_models(base.model, base.model)
        >>> choose_analogy(base, still, still, still, "digits", factors=[0, 1]).factor
        0.0
    """
    check_base(base)
    wanted, values = as_task(task, needed_by="choose_analogy"), check_scalings(factors, "factors")
    step, told = b - a, {}
    edited, originals = c.apply_to(base), touched(base, c)
    for factor in progress_bar(values, "trying factors", total=len(values), shown=progress):
        edit(edited, originals, c + factor * step)
        logits, _ = predict(edited, wanted, split, batch_size=batch_size, progress=False)
        told[factor] = information(logits)
    best = min(told, key=lambda factor: (-told[factor], factor))
    return ChosenAnalogy(analogy(a, b, c, factor=best), best, told)


def information(logits: Tensor) -> float:
    """The mutual information of images and predicted classes, in nats, from logits (N, C).

    Example:
        >>> sure = 100 * torch.eye(2)
        >>> round(information(sure), 4), information(sure[[0, 0]])
        (0.6931, 0.0)
    """
    chances = logits.double().softmax(dim=-1)
    marginal = torch.special.entr(chances.mean(dim=0)).sum()
    return max(0.0, float(marginal - torch.special.entr(chances).sum(dim=-1).mean()))
