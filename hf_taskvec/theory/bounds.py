"""Bounds on the distance of task arithmetic from joint training, with their constants measured (arXiv 2508.16082)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hf_taskvec.theory.expansion import check_rate, joint_path, merged_weights, task_path
from hf_taskvec.theory.losses import FeedForward, MeanLoss


@dataclass(frozen=True)
class Activation:
    """Bounds on an activation's first and second derivative, ρ1 and ρ2."""

    first: float
    second: float


ACTIVATIONS = {"tanh": Activation(1.0, 4 / (3 * math.sqrt(3))), "gelu": Activation(1.129, 2 / math.sqrt(2 * math.pi))}


@dataclass(frozen=True)
class DriftBound:
    """‖θ_TA − θ_MT‖ beside its bound ζ [((1 + ηβ)^k − 1)/β − kη].

    Attributes:
        distance: The measured distance.
        bound: The bound with the measured constants.
        zeta: The largest ‖g_t − ḡ‖ on the joint path.
        beta: The largest ‖H_t‖ found at both ends and in the middle of the segments between the paths; a measured
            constant, which a larger value between these points would exceed.
    """

    distance: float
    bound: float
    zeta: float
    beta: float


@dataclass(frozen=True)
class FeedForwardBounds:
    """Bounds on a feed-forward network's gradient and Hessian in norm, from its spectral norms and inputs.

    Attributes:
        spectral_norm: The largest ‖W_l‖ on the path, s.
        input_norm: The largest ‖x‖, R.
        gradient: The bound on the gradient.
        hessian: The bound on the Hessian.
    """

    spectral_norm: float
    input_norm: float
    gradient: float
    hessian: float


def drift_bound(zeta: float, beta: float, *, learning_rate: float, epochs: int) -> float:
    """ζ [((1 + ηβ)^k − 1)/β − kη]: no derivative beyond the second and no small η is needed. α is 1/T.

    Example:
        >>> drift_bound(2.0, 1.0, learning_rate=0.5, epochs=2)  # 2 (1.5² − 1 − 1)
        0.5
    """
    check_rate(learning_rate, epochs)
    if learning_rate * beta * epochs < 1e-6:  # the difference of nearly equal numbers; the next term is far below
        return zeta * learning_rate**2 * beta * epochs * (epochs - 1) / 2
    return zeta * (math.expm1(epochs * math.log1p(learning_rate * beta)) / beta - epochs * learning_rate)


def measure_drift(
    losses: Sequence[MeanLoss], start: Tensor, *, learning_rate: float, epochs: int, iterations: int = 50
) -> DriftBound:
    """Runs task arithmetic and joint training for k full-batch epochs and compares their distance with the bound.

    Args:
        losses: The tasks.
        start: The base's weights (n,).
        learning_rate: The step size η.
        epochs: The number of epochs k.
        iterations: Most Hessian-vector products for each Hessian's norm.

    Example:
        >>> losses = [MeanLoss([lambda w: (w**2).sum() / 2]), MeanLoss([lambda w: (w**2).sum()])]
        >>> start = torch.ones(1, dtype=torch.float64)
        >>> found = measure_drift(losses, start, learning_rate=0.1, epochs=2)
        >>> round(found.distance, 6), found.distance <= found.bound
        (0.0025, True)
    """
    rate: dict[str, Any] = {"learning_rate": learning_rate, "epochs": epochs}
    joint = joint_path(losses, start, **rate)
    merged = merged_weights(losses, start, **rate)
    zeta = beta = 0.0
    for point in joint[:-1]:
        gradients = torch.stack([loss.gradient(point) for loss in losses])
        zeta = max(zeta, float((gradients - gradients.mean(dim=0)).norm(dim=1).max()))
    for loss in losses:
        own = task_path(loss, start, **rate)
        for ours, theirs in zip(own[:-1], joint[:-1], strict=True):
            points = [ours] if torch.equal(ours, theirs) else [ours, (ours + theirs) / 2, theirs]
            beta = max(beta, *(hessian_norm(loss, point, iterations=iterations) for point in points))
    return DriftBound(float((merged - joint[-1]).norm()), drift_bound(zeta, beta, **rate), zeta, beta)


def hessian_norm(loss: MeanLoss, weights: Tensor, *, iterations: int = 100, tolerance: float = 1e-6) -> float:
    """The Hessian's largest absolute eigenvalue by power iteration; it approaches the value from below.

    Example:
        >>> loss = MeanLoss([lambda w: (w**2).sum()])
        >>> round(hessian_norm(loss, torch.ones(3, dtype=torch.float64)), 6)
        2.0
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(weights.shape, generator=generator, dtype=weights.dtype).to(weights.device)
    norm = 0.0
    for _ in range(iterations):
        product = loss.hessian_product(weights, direction / direction.norm())
        previous, norm = norm, float(product.norm())
        if norm == 0.0 or abs(norm - previous) <= tolerance * norm:
            break
        direction = product
    return norm


def feed_forward_bounds(
    network: FeedForward, activation: Activation, path: Sequence[Tensor], inputs: Tensor
) -> FeedForwardBounds:
    """Bounds on gradient and Hessian of the mean cross-entropy anywhere on a path of weights.

    Args:
        network: The network.
        activation: ρ1 and ρ2 of its activation, as in `ACTIVATIONS`.
        path: The flat weights (n,) to cover.
        inputs: All inputs (N, F).

    Example:
        >>> network, weights, inputs = FeedForward((2, 2)), torch.eye(2).flatten(), torch.eye(2)
        >>> found = feed_forward_bounds(network, ACTIVATIONS["tanh"], [weights], inputs)
        >>> round(found.spectral_norm, 6), round(found.gradient**2, 6)
        (1.0, 2.0)
    """
    matrices = [matrix for weights in path for matrix in network.matrices(weights)]
    s = max(float(torch.linalg.matrix_norm(matrix, ord=2)) for matrix in matrices)
    r = float(inputs.norm(dim=1).max())
    layers, rho1, rho2 = network.num_layers, activation.first, activation.second
    kappa = max(1.0, rho1 * s)
    gradient = math.sqrt(2 * layers) * kappa ** (layers - 1) * r
    outer = layers / 2 * kappa ** (2 * (layers - 1)) * r**2  # of the softmax; the rest is the network's own curvature
    mixed = rho1 * r * kappa ** (layers - 2) * math.sqrt(2 * layers * (layers - 1))
    curved = s * rho2 * r**2 * kappa ** (2 * layers - 4) * layers * (layers - 1) / 2
    return FeedForwardBounds(s, r, gradient, outer + math.sqrt(2) * (mixed + curved))
