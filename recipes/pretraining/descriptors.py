"""Hand-made image descriptors, which a network can learn to tell without labels: oriented gradients and colour."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CELLS, ORIENTATIONS, COLOUR_CELLS = 8, 8, 4
DESCRIPTOR_SIZE = CELLS * CELLS * ORIENTATIONS + COLOUR_CELLS * COLOUR_CELLS * 3


def descriptors(pixels: Tensor) -> Tensor:
    """Histograms of oriented gradients in 8 x 8 cells, normalised by their 3 x 3 neighbourhood, and mean colours.

    Args:
        pixels: Images in [0, 1], shape (N, 3, H, W).

    Returns:
        Shape (N, `DESCRIPTOR_SIZE`), values in [0, 1].
    """
    grey = F.pad(pixels.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]
    down = grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]
    # the orientation's circle, where an edge and its opposite are one, cut into bins; two neighbours share a gradient
    place = torch.atan2(down, across).remainder(math.pi) * (ORIENTATIONS / math.pi)
    bins = torch.arange(ORIENTATIONS, device=pixels.device).view(1, -1, 1, 1)
    distance = (place - bins).abs()
    share = (1 - torch.minimum(distance, ORIENTATIONS - distance)).clamp(min=0)
    cells = F.adaptive_avg_pool2d(share * torch.hypot(across, down), CELLS)
    energy = F.avg_pool2d(cells.square().sum(dim=1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)
    edges = (cells / (energy + 1e-4).sqrt()).clamp(max=1)
    colour = F.adaptive_avg_pool2d(pixels, COLOUR_CELLS)
    return torch.cat([edges.flatten(1), colour.flatten(1)], dim=1)
