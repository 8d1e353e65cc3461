"""What is left of a task that was forgotten: traces of its training images, and how fast it comes back."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from transformers.training_args import OptimizerNames

from hf_taskvec.evaluation.accuracy import evaluate, predict
from hf_taskvec.evaluation.intervals import Interval
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.run import train_vector
from hf_taskvec.vectors.info import VectorInfo


def membership(models: Mapping[str, Base], task: Task, *, most: int = 1000) -> dict[str, Any] | None:
    """How well each model's loss tells the task's training images from its test images.

    The attack is the simplest there is: the lower the loss of an image, the likelier it was trained on (Yeom et al.
    2018).

    Args:
        models: Models by what they are called.
        task: The task.
        most: The most images of each part, the first of a fixed shuffle; 0 for no attack.

    Returns:
        For each model the area under the ROC curve, `auc`, with the `low` and `high` end of its 95 % interval.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> list(membership({"base": load_base()}, get_task("digits"), most=20)["base"])
        ['auc', 'low', 'high']
    """
    if not most:
        return None
    few = subset(task, max_train=most, max_test=most)
    areas = {}
    for name, model in models.items():
        area = roc_area(-image_losses(model, few, "train"), -image_losses(model, few, "test"))
        areas[name] = {"auc": area.mean, "low": area.low, "high": area.high}
    return areas


def image_losses(model: Base, task: Task, split: Split) -> NDArray[np.float64]:
    """The cross-entropy of each image, (N,).

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> image_losses(load_base(), get_task("digits"), "validation").shape
        (139,)
    """
    logits, labels = predict(model, task, split, progress=False)
    losses: NDArray[np.float64] = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none").numpy()
    return losses


def roc_area(positive: NDArray[np.float64], negative: NDArray[np.float64], *, confidence: float = 0.95) -> Interval:
    """The area under the ROC curve of scores, with its interval (Hanley and McNeil 1982).

    Args:
        positive: Scores of what is to be told from the rest, (P,).
        negative: Scores of the rest, (N,).
        confidence: Coverage, in (0, 1).

    Raises:
        ValueError: If one of the two is empty.

    Example:
        >>> roc_area(np.array([3.0, 2.0]), np.array([1.0, 2.0])).mean
        0.875
    """
    wanted, rest = len(positive), len(negative)
    if not wanted or not rest:
        raise ValueError(f"an area needs scores of both kinds, got {wanted} and {rest}")
    ranks = stats.rankdata(np.concatenate([positive, negative]))
    area = (float(ranks[:wanted].sum()) - wanted * (wanted + 1) / 2) / (wanted * rest)
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + (wanted - 1) * (first - area**2) + (rest - 1) * (second - area**2)
    reach = float(stats.norm.ppf((1 + confidence) / 2)) * math.sqrt(max(variance, 0) / (wanted * rest))
    return Interval(area, area - reach, area + reach, wanted + rest)


def relearning(before: Base, after: Base, task: Task, info: VectorInfo, *, most: int = 64) -> dict[str, Any] | None:
    """After how many steps of fine-tuning a model is as good at a task as another: 1, 2, 4, ... are tried.

    Args:
        before: The model whose accuracy on the task's validation images is to be reached.
        after: The model that is fine-tuned; it is left alone.
        task: The task.
        info: Whose optimiser, learning rate, batch size and seed are taken, where it tells them.
        most: The most steps; 0 for none.

    Returns:
        `steps`, `None` if `most` of them do not do; the accuracy `wanted`; and the `reached` one by steps.

    Example:
        >>> from hf_taskvec import VectorInfo, get_task, load_base
        >>> from hf_taskvec.tasks.subsets import subset
        >>> base = load_base()
        >>> relearning(base, base, subset(get_task("digits"), max_train=32), VectorInfo(), most=1)["steps"]
        0
    """
    if not most:
        return None
    wanted = evaluate(before, [task], split="validation", progress=False).accuracy
    now = evaluate(after, [task], split="validation", progress=False).accuracy
    reached, steps = {"0": now}, 0
    while now < wanted and max(1, 2 * steps) <= most:
        steps = max(1, 2 * steps)
        now = _accuracy_after(after, task, info, steps)
        reached[str(steps)] = now
    return {"steps": steps if now >= wanted else None, "wanted": wanted, "reached": reached}


def _accuracy_after(model: Base, task: Task, info: VectorInfo, steps: int) -> float:
    """The validation accuracy after so many steps."""
    given: dict[str, Any] = {"learning_rate": info.learning_rate, "per_device_train_batch_size": info.batch_size}
    given |= {"optim": info.optimizer if info.optimizer in set(OptimizerNames) else None, "seed": info.seed}
    settings = {name: value for name, value in given.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        config = TaskVectorConfig(
            output_dir=folder,
            max_steps=steps,
            lr_scheduler_type="constant",
            warmup_steps=0,
            record_epochs=False,
            track_gradients=False,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **settings,
        )
        vector = train_vector(model, task, config, output_dir=Path(folder) / "run")
        return evaluate(vector.apply_to(model), [task], split="validation", progress=False).accuracy
