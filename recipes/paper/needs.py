"""What a merge method needs besides the vectors, made once and kept: statistics of training images of each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_taskvec import Task, TaskVector, list_methods
from hf_taskvec.merging import get_method
from hf_taskvec.models.base import Base
from hf_taskvec.statistics import Statistics, collect_statistics
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.resume import compute_or_read


@dataclass(frozen=True)
class Needs:
    """Where the needs of methods are kept for the vectors of one run.

    Attributes:
        base: The base.
        tasks: The tasks, in the order of the vectors.
        folder: Where statistics are kept, one folder per task.
        num_images: Images per task.
    """

    base: Base
    tasks: Sequence[Task]
    folder: Path
    num_images: int

    def of(self, method: str, vectors: Sequence[TaskVector]) -> dict[str, Any]:
        """The further arguments of `merge` for a method, and none for one that looks at no data."""
        if not get_method(method).statistics:
            return {}
        pairs = zip(self.tasks, vectors, strict=True)
        return {"statistics": [self.statistics(task, vector) for task, vector in pairs]}

    def statistics(self, task: Task, vector: TaskVector) -> Statistics:
        """The statistics of one task's training images with its vector, of every kind that a method asks for."""
        kinds = sorted({kind for method in list_methods() for kind in method.statistics})
        settings: Mapping[str, Any] = {"kinds": kinds, "num_images": self.num_images, "split": "train"}

        def compute(path: Path) -> None:
            collect_statistics(self.base, task, vector=vector, **settings).save_pretrained(path)

        plan = {**settings, "base": self.base.name, "vector": vector_fingerprint(vector.deltas)}
        return compute_or_read(self.folder / task.name, plan, compute=compute, read=Statistics.from_pretrained)
