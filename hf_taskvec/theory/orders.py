"""The order in the learning rate at which task arithmetic and joint training agree, fitted to measured distances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hf_taskvec.theory.expansion import corrections, joint_path, merged_weights
from hf_taskvec.theory.losses import MeanLoss


@dataclass(frozen=True)
class ConvergenceStudy:
    """‖θ_TA − θ_MT‖ over learning rates, before and after the correction.

    Attributes:
        learning_rates: η.
        distances: ‖θ_TA − θ_MT‖ at each η.
        residuals: ‖θ_TA + α η² Σ_t C_t − θ_MT‖ at each η.
    """

    learning_rates: tuple[float, ...]
    distances: tuple[float, ...]
    residuals: tuple[float, ...]

    @property
    def order(self) -> float:
        """The fitted order of the distance; the theory says 2."""
        return order_of_convergence(self.learning_rates, self.distances)

    @property
    def corrected_order(self) -> float:
        """The fitted order of the residual; the theory says 3."""
        return order_of_convergence(self.learning_rates, self.residuals)


def order_of_convergence(learning_rates: Sequence[float], errors: Sequence[float]) -> float:
    """The slope of log error against log learning rate, by least squares.

    Raises:
        ValueError: If there are fewer than two pairs, or a value has no logarithm.

    Example:
        >>> round(order_of_convergence([0.1, 0.01], [1e-2, 1e-4]), 6)
        2.0
    """
    if len(learning_rates) != len(errors) or len(errors) < 2:
        raise ValueError(f"a slope needs two or more pairs, got {len(learning_rates)} rates and {len(errors)} errors")
    if min(*learning_rates, *errors) <= 0 or not all(map(math.isfinite, errors)):
        raise ValueError("an order needs positive, finite rates and errors; an error of 0 has no order")
    slope, _ = np.polyfit(np.log(learning_rates), np.log(errors), deg=1)
    return float(slope)


def convergence_study(
    losses: Sequence[MeanLoss],
    start: Tensor,
    *,
    learning_rates: Sequence[float],
    epochs: int = 3,
    alpha: float | None = None,
) -> ConvergenceStudy:
    """Measures the distance of task arithmetic from joint training at several learning rates.

    Args:
        losses: The tasks.
        start: The base's weights (n,).
        learning_rates: η, small enough for the leading term to rule and large enough to stay above rounding.
        epochs: Epochs k; for one epoch the distance is zero and has no order.
        alpha: The factor of the sum of vectors, 1/T if left out.

    Raises:
        ValueError: If `epochs` is below 2.

    Example:
        >>> losses = [MeanLoss([lambda w: (w**2).sum() / 2]), MeanLoss([lambda w: (w**2).sum()])]
        >>> start = torch.ones(1, dtype=torch.float64)
        >>> study = convergence_study(losses, start, learning_rates=[0.1, 0.01], epochs=2)
        >>> round(study.order, 3)
        2.0
    """
    if epochs < 2:
        raise ValueError(f"epochs must be at least 2, got {epochs}: after one epoch there is nothing to correct")
    factor = 1 / len(losses) if alpha is None else alpha
    distances, residuals = [], []
    for rate in learning_rates:
        path = joint_path(losses, start, learning_rate=rate, epochs=epochs, alpha=alpha)
        merged = merged_weights(losses, start, learning_rate=rate, epochs=epochs, alpha=alpha)
        correction = torch.stack(corrections(losses, path, alpha=alpha)).sum(dim=0)
        distances.append(float((merged - path[-1]).norm()))
        residuals.append(float((merged + factor * rate**2 * correction - path[-1]).norm()))
    return ConvergenceStudy(tuple(learning_rates), tuple(distances), tuple(residuals))
