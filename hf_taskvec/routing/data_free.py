"""Routing that needs neither images nor training: SMILE and MASS."""

from __future__ import annotations

import torch
from torch import Tensor

from hf_taskvec.errors import check_fraction, check_known, check_positive
from hf_taskvec.evaluation.accuracy import Tasks
from hf_taskvec.merging.linalg import leading
from hf_taskvec.models.base import Base
from hf_taskvec.routing.making import Vectors, expert_of, filled, given
from hf_taskvec.routing.model import RoutedVisionModel


@torch.no_grad()
def smile(base: Base, vectors: Vectors, tasks: Tasks, *, rank: int = 128, gate_rank: int = 1) -> RoutedVisionModel:
    """Each linear map adds, for each token, the low-rank expert whose directions hold most of it (arXiv 2408.10174).

    The experts are the leading singular vectors of each vector's matrices, with its biases; a token goes to the one
    with the largest `|V_tᵀ x|` over the leading `gate_rank` right singular vectors. Norms, embeddings and what else is
    no linear map get the mean of the vectors.

    Args:
        base: The model.
        vectors: Vectors of it, by task or with their tasks in the provenance.
        tasks: Their tasks, whose heads the model gets.
        rank: Rank of each expert.
        gate_rank: How many directions of each decide.

    Raises:
        UnknownNameError: If a task has no vector, or a vector no head.
        ValueError: If a rank is not positive.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        >>> model = smile(load_base(), {"digits": TaskVector({name: torch.eye(768, 384) / 100})}, "digits", rank=4)
        >>> model.cost
        {'forward_passes': 1, 'extra_parameters': 4992}
    """
    for name, value in (("rank", rank), ("gate_rank", gate_rank)):
        check_positive(name, value)
    source = given(base, vectors, tasks)
    ranks = {name: min(int(rank), *source.deltas(f"{name}.weight").shape[1:]) for name in source.linear}
    biases = [name for name in source.linear if source.changes(f"{name}.bias")]
    least = min([int(gate_rank), *ranks.values()])
    settings = {"rank": int(rank), "gate_rank": least}
    config = source.config("smile", experts=ranks, biases=biases, gate_rank=least, provenance=settings)
    plain = base.model.vision_model
    mean = {name: plain.get_parameter(name) + source.deltas(name).mean(dim=0) for name in source.others}
    model = filled(config, source, mean)
    for name, kept in ranks.items():
        expert, cut = expert_of(model, name), [leading(delta, kept) for delta in source.deltas(f"{name}.weight")]
        _set(expert.left, torch.cat([own.left * own.values for own in cut], dim=1))
        _set(expert.right, torch.cat([own.right.T for own in cut]))
        _set(expert.gate, torch.cat([own.right.T[:least] for own in cut]))
        if expert.biases is not None:
            _set(expert.biases, source.deltas(f"{name}.bias"))
    return model


@torch.no_grad()
def mass(
    base: Base,
    vectors: Vectors,
    tasks: Tasks,
    *,
    threshold: float = 0.2,
    most: int = 3,
    layer: str | None = None,
    token: str = "cls",
) -> RoutedVisionModel:
    """Two passes: the first, by TSV-M of all, tells the tasks of an image; the second runs TSV-M of those (2504.05342).

    A task's share is the softmax over tasks of minus what its right singular vectors leave of the inputs of one linear
    map; those above `threshold` are taken, the best one always. Each vector keeps the leading 1/T of its singular
    vectors. Without a known task the label is the best one over the heads of the tasks that were taken.

    Args:
        base: The model.
        vectors: As in `smile`.
        tasks: As in `smile`.
        threshold: The least share of a task that is taken, in (0, 1].
        most: How many are taken at most.
        layer: The deciding map, by its name in the tower; the last that the vectors change if left out.
        token: Whether its class token ("cls") or the mean of all tokens ("mean") decides.

    Raises:
        UnknownNameError: If a task has no vector or head, or the vectors do not change such a map.
        ValueError: If a setting is out of range.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        >>> mass(load_base(), {"digits": TaskVector({name: torch.eye(768, 384) / 100})}, "digits").config.layer
        'encoder.layers.0.mlp.fc1'
    """
    check_fraction("threshold", threshold)
    check_positive("most", most)
    check_known("deciding token", token, ("cls", "mean"))
    source = given(base, vectors, tasks)
    maps = source.linear
    if layer is None:
        layer = maps[-1] if maps else ""
    check_known("map that the vectors change:", layer, maps)
    ranks = {
        f"{name}.weight": max(1, min(source.deltas(f"{name}.weight").shape[1:]) // len(source.tasks)) for name in maps
    }
    plain = base.model.vision_model
    names = [name for name, _ in plain.named_parameters() if source.changes(name) and name not in ranks]
    others = {name: list(plain.get_parameter(name).shape) for name in names}
    settings = {"threshold": float(threshold), "most": int(most), "layer": layer, "token": token}
    config = source.config("mass", experts=ranks, others=others, provenance=settings, **settings)
    model = filled(config, source, {})
    for name, kept in ranks.items():
        cut = [leading(delta, kept) for delta in source.deltas(name)]
        _set(model.direction(name, "left"), torch.cat([own.left * own.values for own in cut], dim=1))
        _set(model.direction(name, "right"), torch.cat([own.right.T for own in cut]))
    for name in others:
        _set(model.direction(name, "delta"), source.deltas(name))
    return model


def _set(parameter: Tensor | None, values: Tensor) -> None:
    if parameter is not None:
        parameter.copy_(values)
