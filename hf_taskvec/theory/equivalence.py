"""Whether one epoch of a run is one gradient step: the paper's central identity, measured (arXiv 2508.16082)."""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.registry import as_tasks
from hf_taskvec.text import table
from hf_taskvec.theory.gradients import gradient_vector
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.full_batch import Violation, check_deterministic, check_dtype, violated_preconditions
from hf_taskvec.training.joint import JointTrainer
from hf_taskvec.training.run import keeping_nothing, quiet
from hf_taskvec.training.trainer import TaskVectorTrainer
from hf_taskvec.vectors.vector import TaskVector

TOLERANCE_FLOAT64 = 1e-12
TOLERANCE_FLOAT32 = 1e-5


@dataclass(frozen=True)
class TaskEquivalence:
    """How far one task's trained vector is from −η∇L; errors are relative, in norm.

    Attributes:
        task: Name of the task.
        error_float64: Of the trained vector, with everything in float64.
        error_float32: Of −η∇L computed with a float32 model, against float64.
        error_float32_subtracted: Of the vector trained in float32, a difference of rounded weights.
        cosine: Between the trained vector and −η∇L, in float64.
        norm_ratio: The trained vector's norm divided by that of −η∇L.
        by_parameter: `error_float64` of each parameter. The gradient of the keys' biases is zero but for rounding
            (softmax does not see them), so their entry says nothing.
    """

    task: str
    error_float64: float
    error_float32: float
    error_float32_subtracted: float
    cosine: float
    norm_ratio: float
    by_parameter: Mapping[str, float] = dataclasses.field(repr=False)


@dataclass(frozen=True)
class Equivalence:
    """What `verify_equivalence` found.

    Attributes:
        tasks: One result per task.
        violations: Settings of the run under which the identity need not hold.
        joint_error: Relative error of the mean of the tasks' vectors against one epoch of joint training, in
            float64; `None` for one task.
    """

    tasks: tuple[TaskEquivalence, ...]
    violations: tuple[Violation, ...]
    joint_error: float | None = None

    @property
    def relative_error_float64(self) -> float:
        """The largest `error_float64` of a task."""
        return max(task.error_float64 for task in self.tasks)

    @property
    def relative_error_float32(self) -> float:
        """The largest `error_float32` of a task: that of the gradient taken directly."""
        return max(task.error_float32 for task in self.tasks)

    @property
    def holds(self) -> bool:
        """Whether the identity holds to 1e-12 in float64 and 1e-5 in float32."""
        return self.holds_in_float64 and self.relative_error_float32 <= TOLERANCE_FLOAT32

    @property
    def holds_in_float64(self) -> bool:
        """Whether the identity holds to 1e-12 in float64, for joint training too."""
        return max(self.relative_error_float64, self.joint_error or 0.0) <= TOLERANCE_FLOAT64

    @property
    def verdict(self) -> str:
        """The finding in one sentence."""
        if self.holds:
            return "One epoch is one gradient step: the task vector is −η∇L."
        if self.holds_in_float64:
            return (
                f"One epoch is one gradient step: the task vector is −η∇L. A float32 model's gradient of "
                f"{max(self.tasks, key=lambda task: task.error_float32).task} is {self.relative_error_float32:.1e} off "
                f"by rounding, more than {TOLERANCE_FLOAT32:g}."
            )
        if self.violations:
            return f"One epoch is not one gradient step here, because of {'; '.join(map(str, self.violations))}."
        return "One epoch differs from the gradient step by more than rounding, and no setting explains it."

    def to_markdown(self) -> str:
        """A table, one row per task, and the verdict."""
        headers = ["task", "error float64", "error float32", "float32, weights subtracted", "cosine", "norm ratio"]
        rows = []
        for task in self.tasks:
            errors = (task.error_float64, task.error_float32, task.error_float32_subtracted)
            cells = [f"{error:.1e}" for error in errors] + [f"{task.cosine:.6f}", f"{task.norm_ratio:.6f}"]
            rows.append([task.task, *cells])
        lines = [table(headers, rows)]
        if self.joint_error is not None:
            lines += ["", f"Mean of the vectors against one epoch of joint training: {self.joint_error:.1e}."]
        return "\n".join([*lines, "", self.verdict])

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "tasks": [dataclasses.asdict(task) for task in self.tasks],
            "violations": [dataclasses.asdict(violation) for violation in self.violations],
            "joint_error": self.joint_error,
            "relative_error_float64": self.relative_error_float64,
            "relative_error_float32": self.relative_error_float32,
            "holds": self.holds,
            "verdict": self.verdict,
        }


def verify_equivalence(
    base: Base,
    task: Task | str | Sequence[Task | str],
    *,
    args: TaskVectorConfig | None = None,
    learning_rate: float = 0.1,
) -> Equivalence:
    """Trains one epoch and compares the task vector with the full-batch gradient times −η.

    The gradient comes from a loop of its own (`gradient_vector`), not from the trainer. The base is run in float64 and
    in float32; nothing of the runs is kept.

    Args:
        base: The model.
        task: A task or a registered task's name, or several: then also the mean of their vectors is compared with joint
            training.
        args: Settings of the run to check, its learning rate included; full-batch gradient descent if left out.
        learning_rate: The learning rate if `args` is left out. The smaller it is, the more of the step is lost in the
            rounding of the weights, of which the trained vector is a difference.

    Raises:
        ValueError: If the loss is no deterministic function of the weights, or the model has no text tower.
        DataError: If there is no task.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> from hf_taskvec.tasks.subsets import subset
        >>> verify_equivalence(load_base(), subset(get_task("digits"), max_train=8)).verdict
        'One epoch is one gradient step: the task vector is −η∇L.'
    """
    tasks = as_tasks(task, needed_by="verify_equivalence")
    base.check_zero_shot("verify_equivalence")
    check_deterministic(base.tower)
    check_dtype(base)
    args = args or TaskVectorConfig(full_batch=True, learning_rate=learning_rate, disable_tqdm=True)
    wide = in_dtype(base, torch.float64)
    results, total = [], None
    with tempfile.TemporaryDirectory() as folder:
        args = keeping_nothing(args, folder)
        for each in tasks:
            trained = _train(TaskVectorTrainer(wide, copy.copy(args), task=each))
            results.append(_compare(base, wide, each, trained, args))
            total = trained if total is None else total + trained
        joint = _train(JointTrainer(wide, copy.copy(args), tasks=tasks)) if len(tasks) > 1 else None
    joint_error = None if joint is None or total is None else relative_error(total / len(tasks), joint)
    return Equivalence(tuple(results), violated_preconditions(args), joint_error)


def relative_error(vector: TaskVector, reference: TaskVector) -> float:
    """The norm of the difference divided by the reference's norm, in float64.

    Example:
        >>> relative_error(TaskVector({"w": torch.tensor([3.0])}), TaskVector({"w": torch.tensor([2.0])}))
        0.5
    """
    squares = [_square_difference(vector, reference, name) for name in reference.deltas]
    return math.sqrt(math.fsum(squares)) / norm if (norm := reference.norm()) > 0 else math.inf


def in_dtype(base: Base, dtype: torch.dtype) -> Base:
    """The base with its weights in another dtype, a copy.

    Example:
        >>> from hf_taskvec import load_base
        >>> in_dtype(load_base(), torch.float64).model.dtype
        torch.float64
    """
    return dataclasses.replace(base, model=copy.deepcopy(base.model).to(dtype))


def _compare(base: Base, wide: Base, task: Task, trained: TaskVector, args: TaskVectorConfig) -> TaskEquivalence:
    descend = partial(
        gradient_vector,
        task=task,
        learning_rate=args.learning_rate,
        include_projection=args.include_projection,
        trainable_parameters=args.trainable_parameters,
    )
    gradient = descend(wide)
    narrow = in_dtype(base, torch.float32)
    direct = descend(narrow)
    subtracted = _train(TaskVectorTrainer(narrow, copy.copy(args), task=task))
    norms = gradient.norms()
    return TaskEquivalence(
        task=task.name,
        error_float64=relative_error(trained, gradient),
        error_float32=relative_error(direct, gradient),
        error_float32_subtracted=relative_error(subtracted, gradient),
        cosine=trained.cosine(gradient),
        norm_ratio=trained.norm() / gradient.norm(),
        by_parameter={
            name: math.sqrt(_square_difference(trained, gradient, name)) / norm if norm > 0 else 0.0
            for name, norm in norms.items()
        },
    )


def _train(trainer: TaskVectorTrainer) -> TaskVector:
    quiet(trainer)
    trainer.train()
    return trainer.task_vector()


def _square_difference(vector: TaskVector, reference: TaskVector, name: str) -> float:
    return float((vector.deltas[name].double() - reference.deltas[name].double()).square().sum())
