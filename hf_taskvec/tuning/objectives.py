"""What is minimised on a task's images: the cross-entropy to its expert or its labels, or the entropy."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

Objective = Literal["expert", "entropy", "labels"]


def summed_loss(objective: Objective, logits: Tensor, targets: Tensor | None) -> Tensor:
    """The loss summed over N images.

    Args:
        objective: "expert": the cross-entropy to the expert's probabilities (SyMerge, arXiv 2412.19098); "entropy": of
            the model's own probabilities (AdaMerging, arXiv 2310.02575); "labels": the cross-entropy to the labels.
        logits: Logits (N, C).
        targets: The expert's probabilities (N, C), or labels (N,); none for the entropy.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 0.0]])
        >>> [round(float(summed_loss(kind, logits, target)), 3) for kind, target in (
        ...     ("expert", torch.tensor([[1.0, 0.0]])), ("entropy", None), ("labels", torch.tensor([1])))]
        [0.693, 0.693, 0.693]
    """
    logs = functional.log_softmax(logits, dim=-1)
    if objective == "labels" and targets is not None:
        return functional.nll_loss(logs, targets, reduction="sum")
    weights = logs.exp() if objective == "entropy" or targets is None else targets
    return -(weights * logs).sum()
