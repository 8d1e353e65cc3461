"""What the change of a model's weights does to other tasks, by the K-FAC factors of theirs (TAK, arXiv 2602.17385)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hf_taskvec.errors import BaseMismatchError
from hf_taskvec.merging.needs import open_statistics
from hf_taskvec.statistics.value import Gram, Statistics
from hf_taskvec.weights.fingerprint import tensor_hashes

Held = Callable[[Mapping[str, Tensor]], Tensor]  # (changes by name) -> the penalty
_REMEDY = "collect_statistics(base, task, kinds=['gram', 'kfac']) makes them"


def curvature(delta: Tensor, gradients: Gram, inputs: Gram) -> Tensor:
    """tr(G Δ A Δᵀ): how much a change of a weight changes what a task's model predicts, to second order.

    Args:
        delta: The change of a linear map's weight, (out, in) or with further dimensions of the inputs.
        gradients: G, the mean over images of the gradients at its outputs.
        inputs: A, the mean of its inputs.

    Example:
        >>> eye, delta = Gram(torch.eye(2)), torch.tensor([[1.0, 2.0], [0.0, 3.0]])
        >>> float(curvature(delta, eye, eye)), float(curvature(delta, Gram(torch.tensor([[0.0, 2.0]])), eye))
        (14.0, 36.0)
    """
    flat, total = delta.flatten(1), delta.new_zeros(())
    sides = [gradients.factor.to(flat) @ flat]
    if gradients.rest is not None:
        sides.append(gradients.rest.to(flat)[:, None] * flat)
    for rows in sides:
        total = total + (rows @ inputs.factor.to(flat).T).square().sum()
        if inputs.rest is not None:
            total = total + (rows * inputs.rest.to(flat)).square().sum()
    return total


def held_by(sources: Sequence[str], originals: Mapping[str, Tensor], trained: Collection[str]) -> Held:
    """The sum of `curvature` over tasks and trained weights, of changes by name.

    Norms, biases and embeddings, of which there are no factors, are not held, unlike in the paper.

    Args:
        sources: Folders or Hub ids of the statistics of the other tasks, measured at the base.
        originals: The base's parameters under canonical names.
        trained: The names of those that are trained.

    Raises:
        ValueError: If statistics lack a kind, are of an expert or of test images, or of no trained weight.
        BaseMismatchError: If they are of another base.
    """
    factors: list[tuple[str, Gram, Gram]] = []
    for source in sources:
        statistics = open_statistics(source)[1]
        _check(statistics, source, originals)
        own = list(_factors(statistics, trained))
        if not own:
            raise ValueError(f"the statistics in {source} are of no weight that is trained; {_REMEDY}")
        factors += own

    def held(changes: Mapping[str, Tensor]) -> Tensor:
        device = next(iter(changes.values())).device
        factors[:] = [(name, _placed(one, device), _placed(other, device)) for name, one, other in factors]
        return torch.stack([curvature(changes[name], gradients, inputs) for name, gradients, inputs in factors]).sum()

    return held


def shown_as(sources: Sequence[str]) -> list[str]:
    """The tasks of statistics, each with a hash of their values: what a plan and a provenance keep of them."""
    opened = [open_statistics(source)[1] for source in sources]
    return [f"{statistics.info.label} {statistics.fingerprint[:16]}" for statistics in opened]


def _factors(statistics: Statistics, trained: Collection[str]) -> Iterator[tuple[str, Gram, Gram]]:
    for name in trained:
        gradients, inputs = statistics.gradients(name), statistics.gram(name)
        if name.endswith(".weight") and gradients is not None and inputs is not None:
            yield name, gradients, inputs


def _placed(gram: Gram, device: torch.device) -> Gram:
    """The same in float32 on a device; itself if it is there."""
    if gram.factor.device == device and gram.factor.dtype == torch.float32:
        return gram
    rest = None if gram.rest is None else gram.rest.to(device, torch.float32)
    return Gram(gram.factor.to(device, torch.float32), rest)


def _check(statistics: Statistics, source: str, originals: Mapping[str, Tensor]) -> None:
    info = statistics.info
    if not {"gram", "kfac"} <= set(info.kinds):
        raise ValueError(
            f"the statistics in {source} hold {', '.join(info.kinds) or 'nothing'}, not gram and kfac; {_REMEDY}"
        )
    if info.vector is not None:
        raise ValueError(
            f"the statistics in {source} are of an expert and must be of the base; {_REMEDY} without vector="
        )
    if info.split == "test":
        raise ValueError(f"the statistics in {source} are of test images, which no training may look at; {_REMEDY}")
    known = {name: value for name, value in info.base_hashes.items() if name in originals}
    hashes = tensor_hashes({name: originals[name] for name in known})
    if other := [name for name, value in hashes.items() if known[name] != value]:
        raise BaseMismatchError(
            f"the statistics in {source} are of {info.base or 'another base'}, which has other values in "
            f"{len(other)} parameters, first {other[0]!r}; collect them at this base",
            details=other,
        )
