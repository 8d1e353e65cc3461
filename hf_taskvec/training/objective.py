"""What a run minimises: its images, its model and its loss, for one task; `hf_taskvec.training.joint` has several."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers.trainer_utils import EvalPrediction

from hf_taskvec.evaluation.metrics import Accuracy
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier, LinearClassifier
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.pixels import IGNORED, PixelDataset, load_pixels
from hf_taskvec.training.plan import task_plan
from hf_taskvec.vectors.info import VectorInfo

logger = logging.getLogger(__name__)
Loss = Callable[..., Tensor]  # (outputs, labels, num_items_in_batch) -> the loss


def with_master_weights(model: ImageClassifier) -> ImageClassifier:
    """The model with weights in float32 if they were in half precision, where most steps would be rounded away.

    `bf16` or `fp16` in the settings computes in half precision all the same. What the base's weights were in is told by
    the dtype of the base; its values are the same in float32.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> model = ImageClassifier(load_base(dtype="bfloat16"), get_task("counts"))
        >>> next(with_master_weights(model).parameters()).dtype
        torch.float32
    """
    if next(model.parameters()).dtype in (torch.float16, torch.bfloat16):
        logger.info("The base is in half precision: it is trained in float32, of which bf16=True computes in bfloat16")
        return model.float()
    return model


@runtime_checkable
class Objective(Protocol):
    """The part of a run that depends on what is learned."""

    def images(self, base: Base, data: Split | Dataset) -> PixelDataset:
        """The images of a part, or of a dataset."""

    def classifier(self, base: Base, *, include_projection: bool) -> ImageClassifier:
        """The model to train."""

    def loss(self, images: PixelDataset, *, label_smoothing: float) -> Loss:
        """The loss over `images`, as `Trainer` wants it."""

    def plan(self) -> dict[str, Any]:
        """What tells this objective from every other."""

    def describe(self, info: VectorInfo) -> VectorInfo:
        """The provenance of a vector with what is known of the tasks."""


@dataclass(frozen=True)
class SingleTask:
    """One task against its frozen head."""

    task: Task

    @cached_property
    def facts(self) -> dict[str, Any]:
        """The task's provenance, taken once: for a local dataset its files are hashed."""
        return self.task.provenance()

    def images(self, base: Base, data: Split | Dataset) -> PixelDataset:
        """The images of a part of the task, or of a dataset with the columns and classes that `Task.load` gives."""
        task, split = self.task, data
        if isinstance(data, Dataset):
            info: Any = VectorInfo(**{**self.facts, "data_settings": {}})
            task, split = Task.from_info(info, dataset={"test": data}), "test"
        return load_pixels(task, split, base.processor.image_processor)

    def classifier(self, base: Base, *, include_projection: bool) -> ImageClassifier:
        """The tower with the task's head."""
        if not base.zero_shot:
            return LinearClassifier(base, self.task)
        return ImageClassifier(base, self.task, include_projection=include_projection)

    def loss(self, images: PixelDataset, *, label_smoothing: float) -> Loss:
        """The mean cross-entropy; see `summed_cross_entropy`."""
        return summed_cross_entropy(label_smoothing=label_smoothing)

    def plan(self) -> dict[str, Any]:
        """What tells the task from every other."""
        return task_plan(self.facts)

    def describe(self, info: VectorInfo) -> VectorInfo:
        """The provenance with the task's name, data, classes and prompts."""
        return dataclasses.replace(info, **self.facts)


def summed_cross_entropy(*, label_smoothing: float = 0.0, weight: Tensor | None = None) -> Loss:
    """The cross-entropy summed over images and divided by their number in the whole accumulated batch.

    So accumulation, a ragged last batch and several processes change nothing.

    Args:
        label_smoothing: The share of each label that is spread over all classes, in [0, 1).
        weight: A factor for each class (C,).
    """

    def loss(outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"]
        total = functional.cross_entropy(
            logits,
            labels,
            weight=None if weight is None else weight.to(logits),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        return total / (num_items_in_batch if num_items_in_batch is not None else labels.ne(IGNORED).sum())

    return loss


def accuracy_of(prediction: EvalPrediction) -> dict[str, float]:
    """The accuracy for `Trainer.evaluate`."""
    predictions = torch.as_tensor(prediction.predictions).argmax(dim=-1)
    scores: dict[str, float] = Accuracy().compute(predictions=predictions, references=prediction.label_ids)
    return scores
