"""What every way to route begins with: vectors and heads that fit the base, and an empty model to fill."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.errors import DataError, check_known
from hf_taskvec.evaluation.accuracy import Tasks, check_base, vectors_by_task
from hf_taskvec.models.base import Base
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.routing.config import RoutedVisionConfig, labels_of
from hf_taskvec.routing.experts import ExpertLinear
from hf_taskvec.routing.model import RoutedVisionModel
from hf_taskvec.tasks import Task, as_tasks
from hf_taskvec.vectors.application import check_fits
from hf_taskvec.vectors.compatibility import check_compatible
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.names import PROJECTION, VISION_PREFIX, parameters_of

Vectors = Mapping[str, TaskVector] | Sequence[TaskVector]


@dataclass(frozen=True)
class Given:
    """A base, and the vectors and heads of its tasks, in one order.

    Attributes:
        base: The base.
        tasks: The tasks.
        vectors: Their vectors.
    """

    base: Base
    tasks: tuple[Task, ...]
    vectors: tuple[TaskVector, ...]

    @property
    def linear(self) -> list[str]:
        """The linear maps of the tower whose weights the vectors change, by their names in it."""
        maps = {name for name, module in self.base.model.vision_model.named_modules() if hasattr(module, "in_features")}
        changed = [name.removeprefix(VISION_PREFIX).removesuffix(".weight") for name in self.vectors[0].deltas]
        return [name for name in changed if name in maps]

    def deltas(self, name: str) -> Tensor:
        """The deltas (T, …) of a parameter of the tower; zeros if the vectors do not change it."""
        own = [vector.deltas.get(VISION_PREFIX + name) for vector in self.vectors]
        shape = self.base.model.vision_model.get_parameter(name).shape
        return torch.stack([torch.zeros(shape) if delta is None else delta.float() for delta in own])

    def changes(self, name: str) -> bool:
        """Whether the vectors change a parameter of the tower."""
        return VISION_PREFIX + name in self.vectors[0].deltas

    @property
    def others(self) -> list[str]:
        """The other parameters that they change: norms, embeddings, and biases of maps that they leave alone."""
        of_maps = {f"{name}.{kind}" for name in self.linear for kind in ("weight", "bias")}
        names = [name.removeprefix(VISION_PREFIX) for name in self.vectors[0].deltas]
        return [name for name in names if name not in of_maps]

    def config(self, routing: str, **settings: Any) -> RoutedVisionConfig:
        """The configuration of a model for them."""
        names = {task.name: list(task.class_names) for task in self.tasks}
        labels = labels_of(names)
        made = {"base": self.base.name, **settings.pop("provenance", {})}
        return RoutedVisionConfig(
            vision_config=json.loads(self.base.model.vision_model.config.to_json_string(use_diff=False)),
            projection_dim=self.base.model.config.projection_dim,
            routing=routing,
            tasks=list(names),
            class_names=list(names.values()),
            id2label=labels,
            label2id={label: number for number, label in labels.items()},
            provenance=made,
            **settings,
        )


def given(base: Base, vectors: Vectors, tasks: Tasks) -> Given:
    """Vectors and heads that fit a base.

    Raises:
        UnknownNameError: If a task has no vector, or a vector's task no head.
        IncompatibleVectorsError, BaseMismatchError: If vectors and base do not fit.
        DataError: If the vectors change the projection, which no router mixes.

    Example:
        >>> from hf_taskvec import load_base
        >>> vector = TaskVector({"vision_model.post_layernorm.bias": torch.ones(384)})
        >>> given(load_base(), {"digits": vector}, "digits").others
        ['post_layernorm.bias']
    """
    tasks = as_tasks(tasks)
    check_base(base)
    base.check_zero_shot("routing")
    base.check_not_linearized("routing")
    by_task = vectors_by_task(vectors, tasks)
    for task in by_task:
        check_known("head for task", task, [task.name for task in tasks])
    chosen = [by_task[task.name] for task in tasks]
    check_compatible(chosen)
    for vector in chosen:
        check_fits(vector, parameters_of(base.model), allow_other_base=False, where=repr(base.name))
        vector.check_finite()
    if PROJECTION in chosen[0].deltas:
        raise DataError("the vectors change visual_projection, which no router mixes; leave it out of them")
    return Given(base, tuple(tasks), tuple(chosen))


@torch.no_grad()
def filled(config: RoutedVisionConfig, source: Given, tower: Mapping[str, Tensor]) -> RoutedVisionModel:
    """A model with the base's weights, some of them replaced, and the heads of the tasks; its experts are still empty.

    Args:
        config: Its settings.
        source: Base and tasks.
        tower: What replaces parameters of the tower, by their names in it.
    """
    model, base = RoutedVisionModel(config), source.base.model
    own = {name.replace(".mlp.mlp.", ".mlp."): weight for name, weight in model.tower.named_parameters()}
    for name, weight in base.vision_model.named_parameters():
        own[name].copy_(tower.get(name, weight))
    model.visual_projection.weight.copy_(base.visual_projection.weight)
    heads = [zero_shot_head(source.base, task.class_names, task.templates) for task in source.tasks]
    model.heads.copy_(torch.cat(heads))
    model.eval().to(source.base.device)
    return model


def expert_of(model: RoutedVisionModel, name: str) -> ExpertLinear:
    """The map with experts of a name in the plain tower.

    Raises:
        TypeError: If there is none.
    """
    inside = name.replace(".mlp.", ".mlp.mlp.") if model.config.routing == "we_moe" else name
    module = model.tower.get_submodule(inside)
    if not isinstance(module, ExpertLinear):
        raise TypeError(f"{name} has no experts")
    return module
