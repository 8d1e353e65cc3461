"""What a vector in fewer bytes costs in accuracy on its task, with an interval, for its provenance and card."""

from __future__ import annotations

import dataclasses
from typing import Any

from hf_taskvec.evaluation.accuracy import predict
from hf_taskvec.evaluation.intervals import paired_accuracy_difference
from hf_taskvec.models.base import Base
from hf_taskvec.tasks import Split, Task, as_task
from hf_taskvec.vectors.vector import TaskVector


def certify(
    base: Base, vector: TaskVector, whole: TaskVector, task: Task | str, *, split: Split = "test"
) -> TaskVector:
    """A compressed vector that tells, in `info.compression`, what it costs in accuracy on a task.

    Args:
        base: The model.
        vector: What `TaskVector.compress` made.
        whole: The vector that it was made of.
        task: The task, or its name.
        split: On which part of it.

    Raises:
        ValueError: If the vector is not compressed.

    Example:
        >>> import torch
        >>> from hf_taskvec import load_base
        >>> base, whole = load_base(), TaskVector({"vision_model.post_layernorm.bias": torch.ones(384) / 100})
        >>> few = certify(base, whole.compress("int4"), whole, "digits", split="validation")
        >>> few.info.compression["accuracy"]["images"]
        139
    """
    if vector.info.compression is None:
        raise ValueError("the vector is not compressed, so there is nothing to certify; see vector.compress")
    task = as_task(task, needed_by="certify")
    cost = accuracy_difference(vector.apply_to(base), whole.apply_to(base), task, split=split)
    info = dataclasses.replace(vector.info, compression={**vector.info.compression, "accuracy": cost})
    return dataclasses.replace(vector, info=info)


def accuracy_difference(model: Base, whole: Base, task: Task, *, split: Split = "test") -> dict[str, Any]:
    """The accuracy of one model minus that of another on the same images, with its 95 % interval.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> accuracy_difference(load_base(), load_base(), get_task("digits"), split="validation")["difference"]
        0.0
    """
    right = []
    for one in (model, whole):
        logits, labels = predict(one, task, split, progress=False)
        right.append((logits.argmax(dim=-1) == labels).tolist())
    interval = paired_accuracy_difference(*right)
    told = {"difference": interval.mean, "low": interval.low, "high": interval.high, "images": interval.count}
    return {"task": task.name, "split": split, **told}
