"""uint8 images to what a tower expects of them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hf_taskvec.errors import CheckpointError
from hf_taskvec.models.base import Base


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
        processor, weight = base.processor.image_processor, next(base.tower.parameters())
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
