"""What every way of learning from images starts with: inputs that fit, images that were declared, and targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from hf_taskvec.errors import DataError, NonFiniteError, check_known
from hf_taskvec.evaluation.accuracy import Tasks, check_base, vectors_by_task
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task, as_tasks
from hf_taskvec.tuning.descent import Descent, Loop
from hf_taskvec.tuning.images import Choice, Images, TaskImages, choose_images
from hf_taskvec.tuning.mixture import Mixture
from hf_taskvec.tuning.objectives import Objective
from hf_taskvec.tuning.tower import Tower
from hf_taskvec.vectors.application import check_fits
from hf_taskvec.vectors.compatibility import check_compatible
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.names import parameters_of

Vectors = Mapping[str, TaskVector] | Sequence[TaskVector]


@dataclass(frozen=True)
class Preparation:
    """Vectors that fit the base and the tasks, a tower to set, and the loop over the images.

    Attributes:
        vectors: The vectors.
        tower: A copy of the base's tower.
        loop: The steps.
        chosen: The images.
    """

    vectors: tuple[TaskVector, ...]
    tower: Tower
    loop: Loop
    chosen: Choice

    def provenance(self) -> dict[str, Any]:
        """Objective, images and settings of the steps."""
        settings = self.loop.settings.provenance()
        return {"objective": self.loop.objective, **self.chosen.provenance(), **settings}


def prepare(
    base: Base,
    vectors: Vectors,
    tasks: Tasks,
    *,
    objective: Objective,
    split: Split,
    images: Images,
    transductive: bool,
    descent: Descent,
) -> Preparation:
    """Checks everything and takes the images; see `learn_coefficients` for arguments and errors.

    Example:
        >>> from hf_taskvec import load_base
        >>> base, name = load_base(), "vision_model.post_layernorm.bias"
        >>> prepared = prepare(base, {"digits": TaskVector({name: torch.ones(384)})}, "digits", objective="entropy",
        ...     split="train", images=8, transductive=False, descent=Descent())
        >>> list(prepared.tower.parameters), prepared.provenance()["split"]
        (['vision_model.post_layernorm.bias'], 'train')
    """
    tasks, vectors = as_tasks(tasks), vectors if isinstance(vectors, Mapping) else list(vectors)
    check_base(base)
    check_known("objective", objective, get_args(Objective))
    given = _checked(base, vectors, tasks, objective)
    _check_no_test_labels(objective, split == "test")
    chosen = choose_images(base, tasks, split=split, images=images, transductive=transductive, seed=descent.seed)
    _check_no_test_labels(objective, chosen.transductive)
    _check_labels(chosen, objective)
    tower = Tower(base, tasks, list(given[0].deltas))
    loop = Loop(tower, chosen, _targets(tower, vectors, chosen, objective), objective, settings=descent)
    return Preparation(tuple(given), tower, loop, chosen)


def _targets(tower: Tower, vectors: Vectors, chosen: Choice, objective: Objective) -> dict[str, Tensor]:
    """What the images of each task are compared with: the expert's probabilities (N, C), labels (N,), or nothing."""
    if objective == "entropy":
        return {}
    if objective == "labels":
        return {sample.task.name: sample.pixels.labels[sample.rows] for sample in chosen.samples}
    experts = vectors_by_task(vectors, [sample.task for sample in chosen.samples])
    return {
        sample.task.name: expert_probabilities(tower, experts[sample.task.name], sample) for sample in chosen.samples
    }


@torch.no_grad()
def expert_probabilities(tower: Tower, expert: TaskVector, sample: TaskImages, *, batch_size: int = 256) -> Tensor:
    """The probabilities (N, C) that base plus a task's own vector gives to the task's images.

    Args:
        tower: The model, whose weights are the expert's afterwards.
        expert: The task's vector.
        sample: The images.
        batch_size: Images per forward pass.
    """
    Mixture(tower, [expert], "task").set(torch.ones(1, 1))
    batches = sample.batches(batch_size)
    logits = torch.cat([tower.logits(sample.task, batch["pixel_values"]).float() for batch in batches])
    if not logits.isfinite().all():
        raise NonFiniteError(f"the expert of task {sample.task.name!r} gives NaN or Inf")
    return logits.softmax(dim=-1).cpu()


def _checked(
    base: Base,
    vectors: Vectors,
    tasks: Sequence[Task],
    objective: Objective,
) -> list[TaskVector]:
    """The vectors as a list, if they fit each other and the base and cover the tasks."""
    if not tasks:
        raise DataError("learning needs at least one task, got none")
    given = list(vectors.values() if isinstance(vectors, Mapping) else vectors)
    if not given:
        raise ValueError("learning needs at least one vector, got none")
    if objective == "expert":
        vectors_by_task(vectors, tasks)
    check_compatible(given)
    for vector in given:
        check_fits(vector, parameters_of(base.model), allow_other_base=False, where=repr(base.name))
        vector.check_finite()
    return given


def _check_no_test_labels(objective: Objective, transductive: bool) -> None:
    if objective == "labels" and transductive:
        raise ValueError("objective 'labels' would learn from test labels; use 'expert' or 'entropy', or other images")


def _check_labels(chosen: Choice, objective: Objective) -> None:
    if objective != "labels":
        return
    for sample in chosen.samples:
        if not sample.has_labels:
            raise DataError(
                f"objective 'labels' needs the label of every image, and those of {sample.task.name!r} lack some; "
                "add a column 'label', or use objective='expert'"
            )
