"""Metrics as `evaluate.Metric` subclasses that need no download."""

from __future__ import annotations

import math
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

_FEATURES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})


class Accuracy(evaluate.Metric):
    """Fraction of correct predictions, its binomial standard error, and the number of images."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Fraction of correct predictions with its binomial standard error.",
            citation="",
            inputs_description="predictions and references: class numbers",
            features=_FEATURES,
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        accuracy = float(np.mean(np.asarray(predictions) == np.asarray(references)))
        error = standard_error(accuracy, len(references))
        return {"accuracy": accuracy, "standard_error": error, "num_images": len(references)}


class PerClassAccuracy(evaluate.Metric):
    """The accuracy within each class that occurs."""

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy within each class.",
            citation="",
            inputs_description="predictions and references: class numbers",
            features=_FEATURES,
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, dict[int, float]]:
        correct, labels = np.asarray(predictions) == np.asarray(references), np.asarray(references)
        return {"per_class_accuracy": {int(c): float(correct[labels == c].mean()) for c in np.unique(labels)}}


def standard_error(accuracy: float, num_images: int) -> float:
    """The binomial standard error of an accuracy measured on `num_images` images."""
    return math.sqrt(accuracy * (1 - accuracy) / num_images)
