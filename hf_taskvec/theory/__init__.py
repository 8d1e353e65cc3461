"""Task arithmetic as approximate multitask learning: corrections, bounds and orders, measured (arXiv 2508.16082).

Expansions and bounds take weights as one flat vector of float64 and a task as its `MeanLoss`. Nothing forms a Hessian.
"""

from hf_taskvec.theory.bounds import (
    ACTIVATIONS,
    Activation,
    DriftBound,
    FeedForwardBounds,
    drift_bound,
    feed_forward_bounds,
    hessian_norm,
    measure_drift,
)
from hf_taskvec.theory.early import EpochChoice, choose_epochs, recorded_series
from hf_taskvec.theory.expansion import corrections, joint_path, leading_error, merged_weights, predicted_loss_gap
from hf_taskvec.theory.losses import ClipLosses, FeedForward, MeanLoss, clip_losses, feed_forward_loss
from hf_taskvec.theory.orders import ConvergenceStudy, convergence_study, order_of_convergence

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "ClipLosses",
    "ConvergenceStudy",
    "DriftBound",
    "EpochChoice",
    "FeedForward",
    "FeedForwardBounds",
    "MeanLoss",
    "choose_epochs",
    "clip_losses",
    "convergence_study",
    "corrections",
    "drift_bound",
    "feed_forward_bounds",
    "feed_forward_loss",
    "hessian_norm",
    "joint_path",
    "leading_error",
    "measure_drift",
    "merged_weights",
    "order_of_convergence",
    "predicted_loss_gap",
    "recorded_series",
]
