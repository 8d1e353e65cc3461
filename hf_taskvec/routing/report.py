"""How well a routed model does: with its task's head, with all heads, and whether it chose the right task."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_taskvec.errors import NonFiniteError
from hf_taskvec.evaluation.accuracy import Tasks, check_base
from hf_taskvec.evaluation.metrics import Accuracy
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.result import TaskResult
from hf_taskvec.models.base import Base
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.routing.model import RoutedVisionModel
from hf_taskvec.tasks import Split, Task, as_tasks
from hf_taskvec.tasks.pixels import load_pixels


def evaluate_routed(
    model: RoutedVisionModel, base: Base, tasks: Tasks, *, split: Split = "test", batch_size: int = 256
) -> Report:
    """The accuracy of a routed model on each task.

    Args:
        model: The model.
        base: The base it was made from, whose image processor prepares the images.
        tasks: Tasks of which it has heads, or their names.
        split: Which part of them.
        batch_size: Images per forward pass.

    Returns:
        A report whose accuracies are those within the task's own classes, with weights chosen by the image; its metrics
        tell `joint_accuracy`, over the classes of all tasks, and `routing_accuracy`, the share of images whose largest
        share is of their own task. `model.cost` tells passes and parameters.

    Raises:
        UnknownNameError: If the model has no head for a task.
        NonFiniteError: If its logits are not finite.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> from hf_taskvec.routing import smile
        >>> base, name = load_base(), "vision_model.encoder.layers.0.mlp.fc1.weight"
        >>> model = smile(base, {"digits": TaskVector({name: torch.eye(768, 384) / 100})}, "digits", rank=4)
        >>> evaluate_routed(model, base, "digits", split="validation").results[0].metrics["routing_accuracy"]
        1.0
    """
    tasks = as_tasks(tasks, needed_by="evaluate_routed")
    check_base(base)
    for task in tasks:
        model.head(task.name)
    seen = bool((model.config.provenance or {}).get("split") == "test")
    results = tuple(_measure(model.eval(), base, task, split, batch_size) for task in tasks)
    return Report(model.config.routing, split, results, transductive=seen or base.transductive)


@torch.inference_mode()
def _measure(model: RoutedVisionModel, base: Base, task: Task, split: Split, batch_size: int) -> TaskResult:
    pixels, normalize = load_pixels(task, split, base.processor.image_processor), Normalize(base)
    own, number = model.head(task.name), list(model.config.sizes).index(task.name)
    guesses, joint, routed = list[Tensor](), list[Tensor](), list[Tensor]()
    for rows in torch.arange(len(pixels)).split(batch_size):
        images = normalize(pixels.__getitems__(rows.tolist())["pixel_values"].to(base.device))
        features, shares = model.route(images)
        logits = model.logits(features)
        if not logits.isfinite().all():
            raise NonFiniteError(f"the logits of {model.config.routing} on {task.name!r} hold NaN or Inf")
        guesses.append(logits[:, own].argmax(dim=-1).cpu())
        joint.append(model.restricted(logits, shares).argmax(dim=-1).cpu() - own.start)
        routed.append((shares.argmax(dim=-1) == number).cpu())
    labels, metric = pixels.labels, Accuracy()
    scores = metric.compute(predictions=torch.cat(guesses), references=labels)
    further = {
        "joint_accuracy": metric.compute(predictions=torch.cat(joint), references=labels)["accuracy"],
        "routing_accuracy": float(torch.cat(routed).double().mean()),
    }
    return TaskResult(
        task.name, scores["accuracy"], scores["num_images"], metrics=further, num_skipped=len(pixels.skipped)
    )
