"""Joint multitask training: one vision tower on the mean of several tasks' losses, what merging is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import TrainerCallback

from hf_taskvec.errors import DataError
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier, classify, zero_shot_head
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.pixels import IGNORED, PADDING, PixelDataset, load_pixels
from hf_taskvec.training.config import TaskVectorConfig
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

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of `indices`: `pixel_values`, `labels` and `owners`."""
        wanted = np.asarray(indices, dtype=np.int64)
        owners = np.searchsorted(self.starts, wanted, side="right") - 1
        owners[wanted == PADDING] = 0
        rows = np.where(wanted == PADDING, PADDING, wanted - self.starts[owners])
        pixels = torch.zeros(len(wanted), *self.parts[0].shape, dtype=torch.uint8)
        labels = torch.full((len(wanted),), IGNORED)
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(owners == number)
            batch = part.__getitems__(rows[mine].tolist())
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


class JointTrainer(TaskVectorTrainer):
    """Fine-tunes one vision tower on several tasks at once, each with its frozen zero-shot head.

    An epoch sees each image of every task once; the loss is the mean over the tasks of their mean losses, so that a
    small task counts as much as a large one. With `full_batch` this is the joint training of the theory.

    Args:
        base: The model to start from, left unchanged.
        args: The run's settings.
        tasks: The tasks.
        callbacks: Further callbacks.

    Raises:
        DataError: If there is no task.
    """

    def __init__(
        self, base: Base, args: TaskVectorConfig | None = None, *, tasks: Sequence[Task],
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:  # fmt: skip
        if not tasks:
            raise DataError("joint training needs at least one task, got none")
        self.tasks = tuple(tasks)
        super().__init__(base, args, task=self.tasks[0], callbacks=callbacks)
        sizes = [len(part) for part in self.train_dataset.parts]
        weights = [sum(sizes) / (len(sizes) * size) for size in sizes]
        self.class_weights = torch.tensor(weights, dtype=torch.float64).repeat_interleave(
            torch.tensor(self._num_classes())
        )
        self.compute_loss_func = self._weighted_cross_entropy

    def load_images(self, split: Split) -> JointPixels:
        """The images of a part of every task."""
        image_processor = self.base.processor.image_processor
        return JointPixels([load_pixels(task, split, image_processor) for task in self.tasks], self._num_classes())

    def build_classifier(self, include_projection: bool) -> ImageClassifier:
        """The model to train."""
        return JointClassifier(self.base, self.tasks, include_projection=include_projection)

    def vector_info(self) -> VectorInfo:
        """Provenance of the vector of this moment."""
        info = super().vector_info()
        names = [task.name for task in self.tasks]
        return dataclasses.replace(
            info, task=None, dataset=None, dataset_config=None, dataset_revision=None, method="joint_training",
            settings={**info.settings, "tasks": names},
        )  # fmt: skip

    def _num_classes(self) -> list[int]:
        return [len(task.class_names) for task in self.tasks]

    def _weighted_cross_entropy(
        self, outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Any = None
    ) -> Tensor:
        logits = outputs["logits"]
        weight = self.class_weights.to(logits)
        total = functional.cross_entropy(logits, labels, weight=weight, ignore_index=IGNORED, reduction="sum")
        return total / (num_items_in_batch if num_items_in_batch is not None else labels.ne(IGNORED).sum())
