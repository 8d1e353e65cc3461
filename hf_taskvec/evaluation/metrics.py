"""Metrics that need no download: by name, as `evaluate.Metric` or as a plain function of predictions and references."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import datasets
import evaluate
import numpy as np
from torch import Tensor

from hf_taskvec.errors import check_known

logger = logging.getLogger(__name__)

MetricLike: TypeAlias = evaluate.EvaluationModule | str | Callable[..., Any]
PER_CLASS = "per_class_accuracy"
Labels = np.ndarray[Any, np.dtype[np.int64]]

_PREDICTIONS = ("predictions", "preds", "pred", "y_pred")
_REFERENCES = ("references", "labels", "targets", "y_true")


class Accuracy(evaluate.Metric):
    """Fraction of correct predictions, its binomial standard error, and the number of images.

    It keeps what it is given in memory, and so needs no folder to write to.

    Example:
        >>> Accuracy().compute(predictions=[0, 1, 1, 2], references=[0, 1, 2, 2])["accuracy"]
        0.75
    """

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _build_data_dir(self) -> str:
        return str(self._data_dir_root)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Fraction of correct predictions with its binomial standard error.",
            citation="",
            inputs_description="predictions and references: class numbers",
            features=datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int64"))),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        accuracy = _accuracy(np.asarray(predictions), np.asarray(references))
        error = standard_error(accuracy, len(references))
        return {"accuracy": accuracy, "standard_error": error, "num_images": len(references)}


def standard_error(accuracy: float, num_images: int) -> float:
    """The binomial standard error of an accuracy measured on `num_images` images.

    Example:
        >>> standard_error(0.5, 100)
        0.05
    """
    return math.sqrt(accuracy * (1 - accuracy) / num_images)


def _accuracy(predictions: Labels, references: Labels) -> float:
    return float(np.mean(predictions == references))


def _per_class(predictions: Labels, references: Labels) -> dict[int, float]:
    correct = predictions == references
    return {int(number): float(correct[references == number].mean()) for number in np.unique(references)}


def _balanced_accuracy(predictions: Labels, references: Labels) -> float:
    values = _per_class(predictions, references).values()
    return sum(values) / len(values)


def _macro(predictions: Labels, references: Labels, *, of_predicted: float, of_labelled: float) -> float:
    """The mean over classes of true positives divided by a weighted count; 0 for a class with none."""
    scores = []
    for number in np.union1d(predictions, references):
        predicted, labelled = predictions == number, references == number
        count = of_predicted * predicted.sum() + of_labelled * labelled.sum()
        scores.append((predicted & labelled).sum() / count if count else 0.0)
    return float(np.mean(scores))


# Means over classes ("macro"), as scikit-learn's with zero_division=0.
METRICS: Mapping[str, Callable[[Labels, Labels], Any]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "precision": lambda predictions, references: _macro(predictions, references, of_predicted=1, of_labelled=0),
    "recall": lambda predictions, references: _macro(predictions, references, of_predicted=0, of_labelled=1),
    "f1": lambda predictions, references: _macro(predictions, references, of_predicted=0.5, of_labelled=0.5),
    PER_CLASS: _per_class,
}


def as_metrics(metrics: MetricLike | Sequence[MetricLike]) -> tuple[MetricLike, ...]:
    """One metric or many, checked before any work.

    Args:
        metrics: Names in `METRICS`, objects with `compute(predictions=, references=)`, or functions. A function is
            called with its own names of the two (`predictions` and `references`, or `y_pred` and `y_true` as in
            scikit-learn), else with predictions first; it returns a number, or a mapping of several.

    Raises:
        UnknownNameError: If there is no metric of that name.
        TypeError: If something is none of these.

    Example:
        >>> as_metrics("f1")
        ('f1',)
    """
    if isinstance(metrics, str) or callable(metrics) or hasattr(metrics, "compute"):
        metrics = [metrics]
    for metric in metrics:
        if isinstance(metric, str):
            check_known("metric", metric, METRICS)
        elif isinstance(metric, type):
            raise TypeError(f"metrics must hold instances: {metric.__name__}(), not the class {metric.__name__}")
        elif not hasattr(metric, "compute"):
            _check_function(metric)
    return tuple(metrics)


def compute_metrics(
    metrics: Sequence[MetricLike], predictions: Tensor, references: Tensor, *, class_names: Sequence[str]
) -> dict[str, Any]:
    """The values of some metrics by name, as plain numbers, strings, lists and mappings.

    Args:
        metrics: What `as_metrics` returned.
        predictions: Predicted class numbers, (N,).
        references: True class numbers, (N,).
        class_names: Names that stand for the class numbers in `per_class_accuracy`.

    Raises:
        ValueError: If two metrics give a value of one name.
        TypeError: If a value is no number, string, list or mapping.

    Example:
        >>> from torch import tensor
        >>> compute_metrics(["recall"], tensor([0, 1, 1, 1]), tensor([0, 1, 0, 1]), class_names=["cat", "dog"])
        {'recall': 0.75}
    """
    guessed, true = predictions.cpu().numpy(), references.cpu().numpy()
    values: dict[str, Any] = {}
    for metric in metrics:
        named = _values_of(metric, guessed, true)
        if repeated := named.keys() & values.keys():
            raise ValueError(f"two metrics give a value called {min(repeated)!r}; rename one of them")
        values |= named
    if isinstance(values.get(PER_CLASS), Mapping):
        values[PER_CLASS] = {class_names[int(number)]: value for number, value in values[PER_CLASS].items()}
    return {name: plain(value, name) for name, value in values.items()}


def plain(value: Any, name: str) -> Any:
    """A metric's value as JSON holds it: numbers of NumPy and torch become Python's, and what is not finite `None`.

    Example:
        >>> plain({"a": np.float32(0.5), "b": np.arange(2)}, "metric")
        {'a': 0.5, 'b': [0, 1]}
    """
    if isinstance(value, (np.ndarray, np.generic, Tensor)):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        logger.warning("metric %r is %s; the report says that it is unknown", name, value)
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, name) for item in value]
    raise TypeError(f"metric {name!r} gives a {type(value).__name__}, which a report cannot hold; return a number")


def _values_of(metric: MetricLike, predictions: Labels, references: Labels) -> Mapping[str, Any]:
    if isinstance(metric, str):
        return {metric: METRICS[metric](predictions, references)}
    if hasattr(metric, "compute"):
        result = metric.compute(predictions=predictions, references=references)
        name = getattr(metric, "name", type(metric).__name__)
    else:
        result = _call(metric, predictions, references)
        name = getattr(metric, "__name__", type(metric).__name__).strip("<>")
    return result if isinstance(result, Mapping) else {name: result}


def _call(function: Callable[..., Any], predictions: Labels, references: Labels) -> Any:
    names = _parameter_names(function)
    guessed = next((name for name in names if name in _PREDICTIONS), None)
    true = next((name for name in names if name in _REFERENCES), None)
    if guessed and true:
        return function(**{guessed: predictions, true: references})
    if (true and names[0] == true) or (guessed and names[0] != guessed):
        return function(references, predictions)
    return function(predictions, references)


def _parameter_names(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:  # a function of a C extension
        return []


def _check_function(metric: Any) -> None:
    if not callable(metric):
        raise TypeError(
            f"metrics must hold names ({', '.join(METRICS)}), evaluate.Metric objects, or functions of predictions "
            f"and references; got a value of type {type(metric).__name__}"
        )
    try:
        inspect.signature(metric).bind(None, None)
    except TypeError as error:
        name = getattr(metric, "__name__", type(metric).__name__)
        raise TypeError(f"metric {name!r} must be a function of predictions and references: {error}") from None
    except ValueError:  # a function of a C extension tells no signature
        return
