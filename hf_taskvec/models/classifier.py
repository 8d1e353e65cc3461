"""Zero-shot classification: a vision tower against a frozen head from the text tower (CLIP, arXiv 2103.00020)."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from hf_taskvec.errors import CheckpointError, UnknownNameError
from hf_taskvec.models.base import Base
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.models.pooling import pooled
from hf_taskvec.tasks import Task
from hf_taskvec.weights.names import canonical


class Normalize(nn.Module):
    """uint8 images to the floats a tower expects: rescaled and normalised as its image processor is set to do.

    Args:
        base: The model with its image processor.

    Raises:
        CheckpointError: If the processor does more to an image than that, as one that pads what it has normalised.

    Example:
        >>> from hf_taskvec import load_base
        >>> Normalize(load_base())(torch.zeros(1, 3, 2, 2, dtype=torch.uint8)).shape
        torch.Size([1, 3, 2, 2])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, base: Base) -> None:
        super().__init__()
        processor, weight = base.processor.image_processor, next(base.model.vision_model.parameters())
        unit = 1 / processor.rescale_factor if processor.do_rescale else 1.0  # how many grey levels are 1.0
        mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
        for name, values in (("mean", mean), ("std", std)):
            channels = _channels(f"image_{name}", values)
            constant = torch.tensor(channels, dtype=weight.dtype, device=weight.device).view(1, 3, 1, 1) * unit
            self.register_buffer(name, constant, persistent=False)
        _check_followed(processor, *(torch.tensor(_channels("image_mean", values)) * unit for values in (mean, std)))

    def forward(self, pixels: Tensor) -> Tensor:
        """Images (N, 3, H, W), uint8 to float."""
        return (pixels.to(self.mean.dtype) - self.mean) / self.std


def _check_followed(processor: Any, mean: Tensor, std: Tensor) -> None:
    """Raises a `CheckpointError` if a processor does more to an image than pixels and normalisation stand for."""
    probe = Image.linear_gradient("L").resize((24, 40)).convert("RGB")
    try:
        whole = processor([probe], return_tensors="pt")["pixel_values"]
        pixels = processor([probe], do_rescale=False, do_normalize=False, return_tensors="pt")["pixel_values"]
    except (ValueError, TypeError, LookupError, OSError, RuntimeError):
        return  # `load_pixels` tells what it makes of an image of the task
    expected = (pixels.to(torch.uint8) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    if whole.shape != expected.shape or not torch.allclose(whole.float(), expected, atol=1e-3):
        switches = [name for name in vars(processor) if name.startswith("do_") and getattr(processor, name)]
        raise CheckpointError(
            f"the image processor {type(processor).__name__} ({', '.join(sorted(switches))}) changes images beyond "
            "resizing, cropping, rescaling and normalising, so what it makes of them cannot be kept as pixels; switch "
            "that off in its configuration"
        )


def _channels(name: str, values: Any) -> list[float]:
    """An image processor's numbers of the three channels; one number stands for all."""
    try:
        channels = [float(values)] * 3 if isinstance(values, (int, float)) else [float(value) for value in values]
    except (TypeError, ValueError):
        channels = []
    if len(channels) != 3:
        raise CheckpointError(
            f"{name} of the image processor must be three numbers, one a channel, got {values!r:.100}"
        )
    return channels


class ImageClassifier(nn.Module):
    """A CLIP or SigLIP vision tower with a frozen zero-shot head, fed with uint8 pixels.

    Its trainable parameters have canonical names: `vision_model.…` and `visual_projection.weight`.

    Args:
        base: The model, whose tower is copied.
        task: The task whose classes the head tells apart.
        include_projection: Whether `visual_projection` is trainable besides the tower.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> classifier = ImageClassifier(load_base(), get_task("counts"))
        >>> classifier(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))["logits"].shape
        torch.Size([2, 5])
    """

    main_input_name = "pixel_values"
    head: Tensor
    normalize: Normalize

    def __init__(self, base: Base, task: Task, *, include_projection: bool = False) -> None:
        super().__init__()
        self.vision_model = pooled(copy.deepcopy(base.model.vision_model)).requires_grad_(True)
        self.visual_projection = copy.deepcopy(base.model.visual_projection).requires_grad_(include_projection)
        self.normalize = Normalize(base)
        head = zero_shot_head(base, task.class_names, task.templates)
        self.register_buffer("head", head.to(self.normalize.mean), persistent=False)
        bias = getattr(base.model, "logit_bias", None)
        self.register_buffer("logit_bias", None if bias is None else bias.detach().clone(), persistent=False)

    @property
    def config(self) -> Any:
        """The configuration of the vision tower, where Transformers looks for one."""
        return self.vision_model.config

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Recomputes activations in the backward pass instead of keeping them; see `PreTrainedModel`.

        The last layer, which runs on the class token alone, keeps its few.
        """
        self.vision_model.activation_checkpointing_enable(**settings)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits (N, C) of uint8 images (N, 3, H, W)."""
        return {"logits": classify(self, self.head, self.normalize(pixel_values))}

    def freeze_except(self, patterns: Sequence[str]) -> None:
        """Freezes the parameters whose canonical name fits none of the patterns, in which `*` stands for anything.

        Raises:
            UnknownNameError: If a pattern fits no trainable parameter.
        """
        trained = canonical((name, value) for name, value in self.named_parameters() if value.requires_grad)
        for pattern in patterns:
            if not fnmatch.filter(trained, pattern):
                raise UnknownNameError("trainable parameter", pattern, trained)
        for name, parameter in trained.items():
            parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))

    def weights(self) -> dict[str, Tensor]:
        """The trainable parameters, detached, under canonical names."""
        trained = ((name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad)
        return {name: parameter.detach() for name, parameter in canonical(trained).items()}


def classify(model: Any, head: Tensor, pixels: Tensor) -> Tensor:
    """Logits (N, C) of normalised images (N, 3, H, W) by a model's tower and projection and a head (C, F).

    Those of SigLIP have its bias, so that the sigmoid of one is the probability that this class alone fits the image.

    Example:
        >>> from hf_taskvec import load_base
        >>> classify(load_base().model, torch.zeros(5, 256), torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """
    features = model.visual_projection(pooled(model.vision_model)(pixels).pooler_output)
    logits = functional.normalize(features, dim=-1) @ head.T
    bias = getattr(model, "logit_bias", None)  # SigLIP's
    return logits if bias is None else logits + bias
