"""Models of one base that differ by task: each is made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from hf_taskvec.errors import check_known
from hf_taskvec.models.base import Base


@dataclass(frozen=True)
class TaskModels:
    """One model for each of several tasks; `evaluate` gives each task its own.

    Attributes:
        name: What to call them in a report.
        tasks: The tasks that there is a model for.
        make: Makes the model of a task.
        transductive: Whether test images were used in the making of one.

    Example:
        >>> from hf_taskvec import load_base
        >>> base = load_base()
        >>> TaskModels("experts", ("digits",), lambda task: base).for_task("digits").name
        'hf-taskvec/tiny-clip'
    """

    name: str
    tasks: tuple[str, ...]
    make: Callable[[str], Base] = field(repr=False)
    transductive: bool = False

    def check(self, task: str) -> None:
        """Raises an `UnknownNameError` if there is no model for a task."""
        check_known("model for task", task, self.tasks)

    def for_task(self, task: str) -> Base:
        """The model of a task.

        Raises:
            UnknownNameError: If there is none.
        """
        self.check(task)
        return self.make(task)
