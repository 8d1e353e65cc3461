"""How far task arithmetic is from joint training after k full-batch epochs, order by order in the learning rate.

θ_TA = θ_0 + α Σ_t τ_t, and θ_MT descends on Σ_t L_t with step αη; α is 1/T unless given (arXiv 2508.16082; the
corrections and the closed form here are derived anew, their constants are not the paper's).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hf_taskvec.errors import check_positive
from hf_taskvec.theory.losses import MeanLoss


def joint_path(
    losses: Sequence[MeanLoss], start: Tensor, *, learning_rate: float, epochs: int, alpha: float | None = None
) -> list[Tensor]:
    """θ_MT after 0 … k epochs of gradient descent on all tasks at once.

    Example:
        >>> loss = MeanLoss([lambda w: (w**2).sum() / 2])
        >>> start = torch.ones(1, dtype=torch.float64)
        >>> [float(point) for point in joint_path([loss], start, learning_rate=0.5, epochs=2)]
        [1.0, 0.5, 0.25]
    """
    check_rate(learning_rate, epochs)
    alpha = _alpha(alpha, losses)
    path = [start]
    for _ in range(epochs):
        gradient = torch.stack([loss.gradient(path[-1]) for loss in losses]).sum(dim=0)
        path.append(path[-1] - alpha * learning_rate * gradient)
    return path


def task_path(loss: MeanLoss, start: Tensor, *, learning_rate: float, epochs: int) -> list[Tensor]:
    """θ_t after 0 … k epochs of gradient descent on one task; see `joint_path`."""
    return joint_path([loss], start, learning_rate=learning_rate, epochs=epochs, alpha=1.0)


def merged_weights(
    losses: Sequence[MeanLoss], start: Tensor, *, learning_rate: float, epochs: int, alpha: float | None = None
) -> Tensor:
    """θ_TA: the start plus α times the sum of the tasks' vectors after k epochs.

    Example:
        >>> loss = MeanLoss([lambda w: (w**2).sum() / 2])
        >>> start = torch.ones(1, dtype=torch.float64)
        >>> float(merged_weights([loss, loss], start, learning_rate=0.5, epochs=1))
        0.5
    """
    total = torch.zeros_like(start)
    for loss in losses:
        total += task_path(loss, start, learning_rate=learning_rate, epochs=epochs)[-1] - start
    return start + _alpha(alpha, losses) * total


def corrections(losses: Sequence[MeanLoss], path: Sequence[Tensor], *, alpha: float | None = None) -> list[Tensor]:
    """C_t of each task, with which θ_MT = θ_TA + α η² Σ_t C_t + O(η³).

    C_t = Σ_{l=1}^{k-1} H_t(θ_l) Σ_{j<l} r_{t,j} with r_{t,j} = α Σ_s g_s(θ_j) − g_t(θ_j): k gradients and k − 1
    Hessian-vector products per task.

    Args:
        losses: The tasks.
        path: θ_MT after 0 … k epochs, as `joint_path` gives it.
        alpha: The factor of the sum of vectors.

    Example:
        >>> losses = [MeanLoss([lambda w: (w**2).sum() / 2]), MeanLoss([lambda w: (w**2).sum()])]
        >>> start = torch.ones(1, dtype=torch.float64)
        >>> path = joint_path(losses, start, learning_rate=0.1, epochs=2)
        >>> [round(float(correction), 6) for correction in corrections(losses, path)]
        [0.5, -1.0]
    """
    alpha = _alpha(alpha, losses)
    sums = [torch.zeros_like(path[0]) for _ in losses]  # of r_{t,j} over j < l
    results = [torch.zeros_like(path[0]) for _ in losses]
    for before, here in pairwise(path[:-1]):
        gradients = [loss.gradient(before) for loss in losses]
        joint = alpha * torch.stack(gradients).sum(dim=0)
        for loss, gradient, total, result in zip(losses, gradients, sums, results, strict=True):
            total += joint - gradient
            result += loss.hessian_product(here, total)
    return results


def leading_error(losses: Sequence[MeanLoss], start: Tensor, *, learning_rate: float, epochs: int) -> Tensor:
    """θ_TA − θ_MT up to O(η³) for α = 1/T: η² k(k−1)/2 times the covariance of Hessians and gradients over the tasks.

    It needs one gradient and one Hessian-vector product per task, all at the start: Σ_t (H_t − H̄)(g_t − ḡ) is
    Σ_t H_t (g_t − ḡ), because the deviations of the gradients sum to zero.

    Example:
        >>> losses = [MeanLoss([lambda w: (w**2).sum() / 2]), MeanLoss([lambda w: (w**2).sum()])]
        >>> start = torch.ones(1, dtype=torch.float64)
        >>> round(float(leading_error(losses, start, learning_rate=0.1, epochs=2)), 6)
        0.0025
    """
    check_rate(learning_rate, epochs)
    gradients = [loss.gradient(start) for loss in losses]
    mean = torch.stack(gradients).mean(dim=0)
    products = [loss.hessian_product(start, gradient - mean) for loss, gradient in zip(losses, gradients, strict=True)]
    return learning_rate**2 * epochs * (epochs - 1) / 2 * torch.stack(products).mean(dim=0)


def predicted_loss_gap(losses: Sequence[MeanLoss], start: Tensor, *, learning_rate: float, epochs: int) -> float:
    """The mean loss at θ_TA minus that at θ_MT, up to O(η³), for α = 1/T.

    Of either sign: where it is negative, task arithmetic beats joint training.

    Example:
        >>> losses = [MeanLoss([lambda w: (w**2).sum() / 2]), MeanLoss([lambda w: (w**2).sum()])]
        >>> start = torch.ones(1, dtype=torch.float64)
        >>> round(predicted_loss_gap(losses, start, learning_rate=0.1, epochs=2), 6)
        0.00375
    """
    mean = torch.stack([loss.gradient(start) for loss in losses]).mean(dim=0)
    return float(mean @ leading_error(losses, start, learning_rate=learning_rate, epochs=epochs))


def check_rate(learning_rate: float, epochs: int) -> None:
    """Raises a `ValueError` unless η > 0 and k ≥ 1."""
    check_positive("learning_rate", learning_rate)
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")


def _alpha(alpha: float | None, losses: Sequence[MeanLoss]) -> float:
    return 1 / len(losses) if alpha is None else alpha
