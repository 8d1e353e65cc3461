"""The losses of pretraining: images against captions, views against each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(image: Tensor, text: Tensor, caption: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss with every image of a caption as its positive.

    Args:
        image: Unit vectors, shape (N, F).
        text: Unit vectors of the batch's unique captions, shape (U, F).
        caption: Index of each image's caption, shape (N,).
        scale: The temperature's inverse.
    """
    logits = scale * image @ text.T
    counts = torch.bincount(caption, minlength=len(text)).clamp(min=1)
    # each caption stands as often as in the batch: log-counts restore its repeated columns
    to_text = F.cross_entropy(logits + counts.log(), caption)
    positives = F.one_hot(caption, len(text)).T / counts[:, None]
    to_image = -(positives * logits.T.log_softmax(dim=1)).sum(dim=1) * counts
    return (to_text + to_image.sum() / len(image)) / 2


def view_loss(view: Tensor, group: Tensor, *, temperature: float) -> Tensor:
    """Each view against all others, those of its group as positives: SupCon (2004.11362), `L_out`.

    With a group of two views for each image it is SimCLR's loss (2002.05709).

    Args:
        view: Unit vectors, shape (N, V).
        group: The group of each view, shape (N,).
        temperature: Divides the cosines.
    """
    itself = torch.eye(len(view), dtype=torch.bool, device=view.device)
    logs = (view @ view.T / temperature).masked_fill(itself, -torch.inf).log_softmax(dim=1)
    positive = (group[:, None] == group[None, :]) & ~itself
    counts = positive.sum(dim=1)
    means = -logs.masked_fill(~positive, 0).sum(dim=1) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum().clamp(min=1)
