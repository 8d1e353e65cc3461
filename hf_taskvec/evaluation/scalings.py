"""The scaling of a vector: tried on validation data, and chosen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from hf_taskvec.evaluation.accuracy import evaluate
from hf_taskvec.evaluation.report import Report
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import scaled_sum
from hf_taskvec.weights.names import canonical_name

SCALINGS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)


def scaling_curve(
    base: Base,
    vector: TaskVector,
    tasks: Iterable[Task],
    *,
    scalings: Sequence[float] = SCALINGS,
    split: Split = "validation",
    batch_size: int = 256,
    progress: bool = False,
) -> dict[float, Report]:
    """A report for each scaling of a vector; one copy of the base is edited in place for all of them."""
    tasks = list(tasks)
    if not scalings:
        raise ValueError("scalings must hold at least one value")
    edited = vector.apply_to(base, scaling=scalings[0])
    originals = touched(base, vector)
    reports = {}
    for scaling in tqdm(scalings, desc="trying scalings", disable=not progress, leave=False):
        edit(edited, originals, vector, scaling=scaling)
        reports[scaling] = evaluate(
            edited, tasks, split=split, batch_size=batch_size, label=vector.info.label, scaling=scaling
        )
    return reports


def choose_scaling(
    base: Base,
    vector: TaskVector,
    tasks: Iterable[Task],
    *,
    scalings: Sequence[float] = SCALINGS,
    batch_size: int = 256,
    progress: bool = False,
) -> float:
    """The scaling with the best mean accuracy on the tasks' validation parts; the smallest of equals."""
    curve = scaling_curve(base, vector, tasks, scalings=scalings, batch_size=batch_size, progress=progress)
    return best_scaling(curve)


def best_scaling(curve: Mapping[float, Report]) -> float:
    """The scaling of a curve with the highest mean accuracy; the smallest of equals."""
    return min(curve, key=lambda scaling: (-curve[scaling].accuracy, scaling))


@torch.no_grad()
def edit(model: Base, originals: Mapping[str, Tensor], vector: TaskVector, *, scaling: float = 1.0) -> None:
    """Sets a model's parameters, in place, to the originals plus a scaled vector."""
    for name, parameter in touched(model, vector).items():
        parameter.copy_(scaled_sum(originals[name], vector.deltas[name], scaling))


def touched(model: Base, vector: TaskVector) -> dict[str, Tensor]:
    """The parameters of a model that a vector changes, under canonical names."""
    named = model.model.named_parameters()
    return {canonical_name(name): parameter for name, parameter in named if canonical_name(name) in vector.deltas}
