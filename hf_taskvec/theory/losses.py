"""Tasks as functions of flat weights: value, gradient and Hessian-vector product of the mean loss over all images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.tasks import Task, as_tasks
from hf_taskvec.tasks.pixels import PixelDataset, load_pixels
from hf_taskvec.theory.equivalence import in_dtype
from hf_taskvec.training.full_batch import check_deterministic
from hf_taskvec.vectors.vector import TaskVector

Part = Callable[[Tensor], Tensor]  # flat weights (n,) -> what one batch adds to the mean loss


class MeanLoss:
    """A task's mean loss as a function of flat weights (n,); batch after batch, so memory does not grow with images.

    Args:
        parts: One function per batch; their sum is the mean loss.

    Example:
        >>> loss = MeanLoss([lambda w: (w**2).sum() / 2])
        >>> loss.value(torch.ones(2)), loss.gradient(torch.ones(2)).tolist()
        (1.0, [1.0, 1.0])
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)

    def value(self, weights: Tensor) -> float:
        """The loss."""
        with torch.no_grad():
            return sum(float(batch_loss(weights)) for batch_loss in self.parts)

    def gradient(self, weights: Tensor) -> Tensor:
        """The gradient, (n,)."""
        total = torch.zeros_like(weights)
        for batch_loss in self.parts:
            point = weights.detach().requires_grad_()
            total += torch.autograd.grad(batch_loss(point), point)[0]
        return total

    def hessian_product(self, weights: Tensor, direction: Tensor) -> Tensor:
        """The Hessian times a direction, (n,), by differentiating the gradient once more."""
        total = torch.zeros_like(weights)
        for batch_loss in self.parts:
            point = weights.detach().requires_grad_()
            gradient = torch.autograd.grad(batch_loss(point), point, create_graph=True)[0]
            total += torch.autograd.grad(gradient, point, grad_outputs=direction)[0]
        return total


@dataclass(frozen=True)
class FeedForward:
    """The network W_L φ(… φ(W_1 x)) without biases, for which the paper bounds the second-order error.

    Attributes:
        widths: Inputs, hidden units of each layer, classes.
        activation: φ, twice differentiable with φ(0) = 0.
    """

    widths: tuple[int, ...]
    activation: Callable[[Tensor], Tensor] = torch.tanh

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.widths) - 1

    @property
    def num_weights(self) -> int:
        """The length n of the flat weights."""
        return sum(a * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    def matrices(self, weights: Tensor) -> list[Tensor]:
        """W_1 … W_L as parts of the flat weights."""
        shapes = list(zip(self.widths[1:], self.widths, strict=False))
        parts = weights.split([a * b for a, b in shapes])
        return [entries.view(shape) for entries, shape in zip(parts, shapes, strict=True)]

    def logits(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """The logits (N, C) of inputs (N, F)."""
        first, *rest = self.matrices(weights)
        values = inputs @ first.T
        for matrix in rest:
            values = self.activation(values) @ matrix.T
        return values


def feed_forward_loss(network: FeedForward, inputs: Tensor, labels: Tensor) -> MeanLoss:
    """The mean cross-entropy of a feed-forward network on inputs (N, F).

    Example:
        >>> network, inputs, labels = FeedForward((2, 3, 2)), torch.eye(2), torch.tensor([0, 1])
        >>> round(feed_forward_loss(network, inputs, labels).value(torch.zeros(network.num_weights)), 4)  # log 2
        0.6931
    """
    return MeanLoss([lambda weights: functional.cross_entropy(network.logits(weights, inputs), labels)])


@dataclass(frozen=True)
class ClipLosses:
    """Tasks on a CLIP vision tower as functions of its flat weights.

    Attributes:
        start: The base's weights (n,) in float64.
        losses: One loss per task.
        shapes: Shape of each parameter, in the order of the flat weights.
    """

    start: Tensor
    losses: tuple[MeanLoss, ...]
    shapes: dict[str, torch.Size]

    def vector(self, difference: Tensor) -> TaskVector:
        """A flat difference (n,) as a task vector."""
        return TaskVector(_unflatten(difference, self.shapes))

    def flatten(self, vector: TaskVector) -> Tensor:
        """A task vector as a flat difference (n,)."""
        return torch.cat([vector.deltas[name].double().reshape(-1) for name in self.shapes]).to(self.start.device)


def clip_losses(base: Base, tasks: Sequence[Task], *, batch_size: int = 64) -> ClipLosses:
    """The mean losses of tasks on a base's vision tower, in float64.

    Attention runs as plain mathematics on a copy: fused kernels cannot be differentiated twice, and the `eager` form of
    Transformers takes its softmax in float32.

    Raises:
        DataError: If there is no task.
        ValueError: If the loss is no deterministic function of the weights.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> problem = clip_losses(load_base(), [get_task("digits")])
        >>> len(problem.losses), problem.start.dtype
        (1, torch.float64)
    """
    tasks = as_tasks(tasks, needed_by="the theory")
    check_deterministic(base.tower)
    wide = in_dtype(base, torch.float64)
    wide.model.set_attn_implementation("sdpa")
    models = [ImageClassifier(wide, task).eval() for task in tasks]
    weights = models[0].weights()
    shapes = {name: weight.shape for name, weight in weights.items()}
    losses = []
    for task, model in zip(tasks, models, strict=True):
        model.vision_model = models[0].vision_model  # its weights are replaced in every call: one copy is enough
        pixels = load_pixels(task, "train", base.processor.image_processor)
        batches = [range(i, min(i + batch_size, len(pixels))) for i in range(0, len(pixels), batch_size)]
        loss = partial(_batch_loss, model=model, pixels=pixels, shapes=shapes)
        losses.append(MeanLoss([partial(loss, rows=rows) for rows in batches]))
    return ClipLosses(torch.cat([weight.reshape(-1) for weight in weights.values()]), tuple(losses), shapes)


def _batch_loss(
    weights: Tensor, *, model: ImageClassifier, pixels: PixelDataset, rows: range, shapes: dict[str, torch.Size]
) -> Tensor:
    """What some images add to a task's mean loss; they are read when they are needed."""
    batch = pixels.__getitems__(rows)
    images, labels = batch["pixel_values"].to(weights.device), batch["labels"].to(weights.device)
    with sdpa_kernel(SDPBackend.MATH):
        logits = functional_call(model, _unflatten(weights, shapes), (images,))["logits"]
    return functional.cross_entropy(logits, labels, reduction="sum") / len(pixels)


def _unflatten(flat: Tensor, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    parts = flat.split([shape.numel() for shape in shapes.values()])
    return {name: entries.view(shape) for (name, shape), entries in zip(shapes.items(), parts, strict=True)}
