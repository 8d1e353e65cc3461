"""`TaskResult`: what was measured on one task, checked wherever it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_taskvec.errors import is_finite_number
from hf_taskvec.evaluation.metrics import standard_error
from hf_taskvec.text import printable, shortened

MOST_IMAGES = 10**12
_MOST_VALUES = 100_000  # of all metrics of one task together
_DEEPEST = 4


@dataclass(frozen=True)
class TaskResult:
    """Accuracy of one model on one task's split, in [0, 1].

    Attributes:
        task: Name of the task.
        accuracy: Fraction of images classified correctly.
        num_images: Number of images.
        zero_shot: The base's accuracy on the same images, if known.
        individual: The accuracy of the model fine-tuned on this task alone, on the same images, if known.
        metrics: Further metrics by name.
        num_skipped: Images of the split that do not decode and were left out, by the task's wish.

    Raises:
        ValueError: If an accuracy is outside [0, 1], or a number is none.

    Example:
        >>> TaskResult("digits", 0.5, 100, individual=0.8).normalized
        0.625
    """

    task: str
    accuracy: float
    num_images: int
    zero_shot: float | None = None
    individual: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict, repr=False)
    num_skipped: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.task, str):
            raise ValueError(f"a task's name must be a string, got a {type(self.task).__name__}")
        if not isinstance(self.metrics, Mapping):
            raise ValueError(f"metrics of {self.task!r} must be a mapping, got a {type(self.metrics).__name__}")
        store = {
            "accuracy": fraction(self.accuracy, f"accuracy of {self.task!r}"),
            "num_images": _count(self.num_images, f"number of images of {self.task!r}", least=1),
            "num_skipped": _count(self.num_skipped, f"number of skipped images of {self.task!r}", least=0),
        }
        for name in ("zero_shot", "individual"):
            if (value := getattr(self, name)) is not None:
                store[name] = fraction(value, f"{name} accuracy of {self.task!r}")
        for name, value in store.items():
            object.__setattr__(self, name, value)

    @property
    def standard_error(self) -> float:
        """The binomial standard error of `accuracy`."""
        return standard_error(self.accuracy, self.num_images)

    @property
    def normalized(self) -> float | None:
        """`accuracy` divided by the individual model's."""
        return self.accuracy / self.individual if self.individual else None


def fraction(value: object, what: str) -> float:
    """The value as a float, if it is a number in [0, 1].

    Raises:
        ValueError: If it is not.

    Example:
        >>> fraction(1, "accuracy")
        1.0
    """
    if not is_finite_number(value) or not 0 <= value <= 1:
        raise ValueError(f"the {what} must be a number in [0, 1], got {_shown(value)}")
    return float(value)


def finite(value: object, what: str) -> float:
    """The value as a float, if it is a finite number.

    Raises:
        ValueError: If it is not.

    Example:
        >>> finite(1, "scaling")
        1.0
    """
    if not is_finite_number(value):
        raise ValueError(f"the {what} must be a finite number, got {_shown(value)}")
    return float(value)


def _count(value: object, what: str, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= MOST_IMAGES:
        raise ValueError(f"the {what} must be a whole number of at least {least}, got {_shown(value)}")
    return int(value)


def check_metrics(metrics: Mapping[str, Any], where: str) -> None:
    """Checks metrics that come from a file: finite numbers, short printable strings, not too many, not too deep.

    Raises:
        ValueError: If something else is among them; it is named.

    Example:
        >>> check_metrics({"f1": 0.5, "per_class_accuracy": {"cat": 1.0}}, "'pets'")
    """
    count = 0
    pending: list[tuple[Any, int]] = [(metrics, 0)]
    while pending:
        value, depth = pending.pop()
        count += 1
        if count > _MOST_VALUES or depth > _DEEPEST:
            raise ValueError(f"the metrics of {where} are too many or too deep")
        if isinstance(value, Mapping):
            pending += [(item, depth + 1) for pair in value.items() for item in pair]
        elif isinstance(value, list):
            pending += [(item, depth + 1) for item in value]
        elif isinstance(value, str):
            if len(value) > 1000 or printable(value) != value:
                raise ValueError(f"the metrics of {where} hold an odd text: {_shown(value)}")
        elif not (value is None or isinstance(value, bool) or is_finite_number(value)):
            raise ValueError(f"the metrics of {where} hold {_shown(value)}")


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if abs(value) < 10**30 else "a huge number"
    return shortened(repr(value), 60)
