"""What a run can be held to besides its loss, for a vector that merges better: deltas of some kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hf_taskvec.models.base import Base
from hf_taskvec.tasks.pixels import IGNORED, PixelDataset
from hf_taskvec.training.config import TaskVectorConfig
from hf_taskvec.training.curvature import Held, held_by
from hf_taskvec.training.objective import Loss, Objective
from hf_taskvec.weights.names import canonical, parameters_of

Penalty = Callable[[], Tensor]


def orthogonality(delta: Tensor) -> Tensor:
    """The squared distance of `ΔᵀΔ` from the identity, of a matrix (OrthoReg, arXiv 2604.17078).

    Taken on the smaller of the two products: ‖ΔᵀΔ − I‖² = ‖ΔΔᵀ‖² − 2‖Δ‖² + columns.

    Args:
        delta: What training changed of a linear layer's weight, (out, in).

    Example:
        >>> float(orthogonality(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))), float(orthogonality(torch.eye(3)))
        (9.0, 0.0)
    """
    rows, columns = delta.shape
    product = delta @ delta.T if rows < columns else delta.T @ delta
    return product.square().sum() - 2 * delta.square().sum() + columns


def training_loss(
    objective: Objective, images: PixelDataset, model: nn.Module, base: Base, args: TaskVectorConfig
) -> Loss:
    """The loss of a run on its images, with the penalties that its settings ask for."""
    loss = objective.loss(images, label_smoothing=args.label_smoothing_factor)
    originals = parameters_of(base.model)
    held = None
    if args.curvature:
        trained = canonical((name, value) for name, value in model.named_parameters() if value.requires_grad)
        held = held_by(args.curvature_of, originals, trained)
    penalty = penalty_of(
        model,
        originals,
        orthogonality_weight=args.orthogonality,
        pull=args.pull_to_base,
        curvature_weight=args.curvature,
        held=held,
    )
    return penalised(loss, penalty)


def penalty_of(
    model: nn.Module,
    originals: Mapping[str, Tensor],
    *,
    orthogonality_weight: float,
    pull: float,
    curvature_weight: float = 0.0,
    held: Held | None = None,
) -> Penalty | None:
    """The penalty on what training changes of a model's trainable parameters; `None` if all factors are 0.

    Args:
        model: The model that is trained.
        originals: The parameters before training, under canonical names; they are not copied.
        orthogonality_weight: Factor of the sum of `orthogonality` over the weights of linear layers.
        pull: Factor of the squared distance from the originals, over all trainable parameters.
        curvature_weight: Factor of `held`.
        held: What the changes do to other tasks; see `held_by`.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = {name: value.detach().clone() for name, value in layer.named_parameters()}
        >>> penalty = penalty_of(layer, before, orthogonality_weight=0.5, pull=1.0)
        >>> with torch.no_grad():
        ...     _ = layer.weight.add_(2 * torch.eye(2)), layer.bias.add_(1.0)
        >>> round(penalty().item(), 4)  # 0.5 * 18 + 8 + 2
        19.0
    """
    if not (orthogonality_weight or pull or (curvature_weight and held)):
        return None
    named = canonical((name, value) for name, value in model.named_parameters() if value.requires_grad)
    kinds = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)}
    matrices = [name for name, value in named.items() if id(value) in kinds]
    before = {name: originals[name] for name in named}

    def penalty() -> Tensor:
        device = next(iter(named.values())).device
        with torch.autocast(device.type, enabled=False):
            for name, value in before.items():
                before[name] = value.to(device)  # once
            changes = {name: value - before[name] for name, value in named.items()}
            total = torch.zeros((), device=device)
            if orthogonality_weight:
                total = total + orthogonality_weight * sum(orthogonality(changes[name]) for name in matrices)
            if held and curvature_weight:
                total = total + curvature_weight * held(changes)
            if pull:
                total = total + pull * sum(change.square().sum() for change in changes.values())
        return total

    return penalty


def penalised(loss: Loss, penalty: Penalty | None) -> Loss:
    """A loss plus a penalty while training; each batch carries the share that its images are of the accumulated batch.

    So accumulation and several processes change nothing. An evaluation tells the loss alone.

    Args:
        loss: The loss, as `Trainer` calls it.
        penalty: The penalty; `None` for none.

    Example:
        >>> plain = lambda outputs, labels, num_items_in_batch=None: outputs["logits"].sum()
        >>> total = penalised(plain, lambda: torch.tensor(10.0))
        >>> float(total({"logits": torch.ones(2)}, torch.zeros(2), num_items_in_batch=4))
        7.0
    """
    if penalty is None:
        return loss

    def total(outputs: dict[str, Tensor], labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        value = loss(outputs, labels, num_items_in_batch)
        if not torch.is_grad_enabled():
            return value
        share = 1.0 if num_items_in_batch is None else labels.ne(IGNORED).sum() / num_items_in_batch
        return value + share * penalty()

    return total
