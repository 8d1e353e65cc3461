"""Joint multitask training: one vision tower on the mean of several tasks' losses, what merging is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier, classify
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.pixels import IGNORED, PADDING, PixelDataset, load_pixels
from hf_taskvec.tasks.registry import as_tasks
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.objective import Loss, summed_cross_entropy
from hf_taskvec.training.plan import task_plan
from hf_taskvec.training.trainer import TaskVectorTrainer
from hf_taskvec.vectors.info import VectorInfo


class JointPixels(PixelDataset):
    """The images of several tasks one after the other.

    A batch has `owners` (N,), the number of each image's task; `labels` (N,) count through the classes of all tasks.

    Args:
        parts: The images of each task.
        num_classes: How many classes each task has.
    """

    def __init__(self, parts: Sequence[PixelDataset], num_classes: Sequence[int]) -> None:
        self.parts = list(parts)
        self.starts = np.cumsum([0, *map(len, parts)])
        self.offsets = torch.tensor(np.cumsum([0, *num_classes])[:-1])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of `indices`: `pixel_values`, `labels` and `owners`."""
        wanted = np.asarray(indices, dtype=np.int64)
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        owners[wanted == PADDING] = 0
        rows = np.where(wanted == PADDING, PADDING, wanted - self.starts[owners])
        pixels = torch.zeros(len(wanted), *self.parts[0].shape, dtype=torch.uint8)
        labels = torch.full((len(wanted),), IGNORED)
        for number, images in enumerate(self.parts):
            mine = np.flatnonzero(owners == number)
            batch = images.__getitems__(rows[mine].tolist())
            pixels[mine] = batch["pixel_values"]
            labels[mine] = torch.where(batch["labels"] == IGNORED, IGNORED, batch["labels"] + self.offsets[number])
        return {"pixel_values": pixels, "labels": labels, "owners": torch.from_numpy(owners)}


class JointClassifier(ImageClassifier):
    """A vision tower with the frozen heads of several tasks; an image is classified among its own task's classes."""

    class_owners: Tensor

    def __init__(self, base: Base, tasks: Sequence[Task], *, include_projection: bool = False) -> None:
        super().__init__(base, tasks[0], include_projection=include_projection)
        heads = [zero_shot_head(base, task.class_names, task.templates) for task in tasks]
        self.register_buffer("head", torch.cat(heads).to(self.head), persistent=False)
        owners = torch.cat([torch.full((len(head),), number) for number, head in enumerate(heads)])
        self.register_buffer("class_owners", owners.to(self.head.device), persistent=False)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, owners: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Logits (N, C) over the classes of all tasks, -Inf outside each image's own task if `owners` tells it."""
        logits = classify(self, self.head, self.normalize(pixel_values))
        if owners is None:
            return {"logits": logits}
        return {"logits": logits.masked_fill(self.class_owners.ne(owners[:, None]), -torch.inf)}


@dataclass(frozen=True)
class JointTasks:
    """Several tasks at once: the mean over the tasks of their mean losses, so that a small one counts like a large one.

    Args:
        tasks: The tasks.

    Raises:
        DataError: If there is no task.
    """

    tasks: tuple[Task, ...]

    def images(self, base: Base, data: Split | Dataset) -> JointPixels:
        """The images of a part of every task."""
        if isinstance(data, Dataset):
            raise TypeError("joint training is evaluated on parts of its tasks by name (train, validation, test)")
        base.check_zero_shot("joint training")
        parts = [load_pixels(task, data, base.processor.image_processor) for task in self.tasks]
        return JointPixels(parts, self._num_classes())

    def classifier(self, base: Base, *, include_projection: bool) -> ImageClassifier:
        """The tower with the heads of all tasks."""
        return JointClassifier(base, self.tasks, include_projection=include_projection)

    def loss(self, images: PixelDataset, *, label_smoothing: float) -> Loss:
        """The mean of the tasks' mean losses."""
        if label_smoothing:
            raise ValueError(
                f"label_smoothing_factor must be 0 in joint training, got {label_smoothing}: a label would be spread "
                "over the classes of other tasks"
            )
        sizes = [len(task_images) for task_images in images.parts] if isinstance(images, JointPixels) else []
        factors = [sum(sizes) / (len(sizes) * size) for size in sizes]
        weight = torch.tensor(factors, dtype=torch.float64).repeat_interleave(torch.tensor(self._num_classes()))
        return summed_cross_entropy(weight=weight)

    def plan(self) -> dict[str, Any]:
        """What tells the tasks from all others."""
        return {"tasks": [task_plan(task.provenance()) for task in self.tasks]}

    def describe(self, info: VectorInfo) -> VectorInfo:
        """The provenance with the tasks' names."""
        names = [task.name for task in self.tasks]
        return dataclasses.replace(info, method="joint_training", settings={**info.settings, "tasks": names})

    def _num_classes(self) -> list[int]:
        return [len(task.class_names) for task in self.tasks]


class JointTrainer(TaskVectorTrainer):
    """Fine-tunes one vision tower on several tasks at once, each with its frozen zero-shot head.

    An epoch sees each image of every task once; see `JointTasks` for the loss. With `full_batch` this is the joint
    training of the theory.

    Args:
        base: The model to start from, left unchanged.
        args: The run's settings.
        tasks: The tasks.
        callbacks: Further callbacks.

    Raises:
        DataError: If there is no task.

    Example:
        >>> import tempfile
        >>> from hf_taskvec import get_task, load_base
        >>> from hf_taskvec.tasks.subsets import subset
        >>> tasks = [subset(get_task(name), max_train=8) for name in ("digits", "shapes")]
        >>> trainer = JointTrainer(load_base(), TaskVectorConfig(output_dir=tempfile.mkdtemp()), tasks=tasks)
        >>> len(trainer.train_dataset)
        16
    """

    def __init__(
        self,
        base: Base,
        args: TaskVectorConfig | None = None,
        *,
        tasks: Sequence[Task | str],
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        together = JointTasks(tuple(as_tasks(tasks, needed_by="joint training")))
        super().__init__(base, args, task=together, callbacks=callbacks)
