"""A copy of a base's vision tower that is differentiated on images of several tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_taskvec.errors import NonFiniteError
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.models.pooling import pooled
from hf_taskvec.tasks import Task
from hf_taskvec.tuning.images import TaskImages
from hf_taskvec.tuning.objectives import Objective, summed_loss
from hf_taskvec.weights.names import PROJECTION, canonical, parameters_of


@torch.no_grad()
def features_of(model: Base, sample: TaskImages, *, batch_size: int = 256) -> Tensor:
    """A model's features (N, F) of a task's images, in float32 and not normalised.

    Args:
        model: A base, or what `TaskVector.apply_to` made of it.
        sample: The images.
        batch_size: Images per forward pass.

    Raises:
        NonFiniteError: If they are not finite.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> from hf_taskvec.tuning.images import choose_images
        >>> base = load_base()
        >>> features_of(base, choose_images(base, [get_task("digits")], images=3).samples[0]).shape
        torch.Size([3, 256])
    """
    normalize, tower, project = Normalize(model), pooled(model.model.vision_model), model.model.visual_projection
    model.model.eval()
    pixels = (normalize(batch["pixel_values"].to(model.device)) for batch in sample.batches(batch_size))
    features = torch.cat([project(tower(images).pooler_output).float().cpu() for images in pixels])
    if not features.isfinite().all():
        raise NonFiniteError(f"the features of {model.name!r} on {sample.task.name!r} hold NaN or Inf")
    return features


class Tower:
    """A copy of a base's vision tower for several tasks, whose covered parameters are trainable.

    Args:
        base: The model; it is left alone.
        tasks: The tasks, whose heads are kept.
        names: The parameters that vectors change, under canonical names.

    Attributes:
        device: Where it is.
        parameters: The trainable parameters by canonical name.
        originals: The base's values of them.
    """

    def __init__(self, base: Base, tasks: Sequence[Task], names: Sequence[str]) -> None:
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.device = device = self.accelerator.device
        self.classifier = ImageClassifier(base, tasks[0], include_projection=PROJECTION in names).eval().to(device)
        self.classifier.freeze_except(list(names))
        trained = canonical(self.classifier.named_parameters())
        self.parameters = {name: trained[name] for name in names}
        weights = parameters_of(base.model)
        self.originals = {name: weights[name].to(device) for name in names}
        heads = {task.name: zero_shot_head(base, task.class_names, task.templates) for task in tasks}
        self.heads = {name: head.to(self.classifier.head) for name, head in heads.items()}

    def logits(self, task: Task, pixels: Tensor) -> Tensor:
        """Logits (N, C) of uint8 images (N, 3, H, W) by the task's head."""
        self.classifier.head = self.heads[task.name]
        logits: Tensor = self.classifier(pixels.to(self.device))["logits"]
        return logits

    def add_gradient(
        self, objective: Objective, task: Task, pixels: Tensor, targets: Tensor | None, *, size: int
    ) -> float:
        """Adds the gradient of the loss of some images, divided by `size`, to the parameters'; returns that loss."""
        logits = self.logits(task, pixels)
        goal = None if targets is None else targets.to(logits.device)
        loss = summed_loss(objective, logits, goal) / size
        loss.backward()
        return float(loss.detach())

    def clear(self) -> None:
        """Drops the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None
