"""Theseus: deltas between the rotations that bring one base's activations closest to another's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_taskvec.errors import IncompatibleVectorsError
from hf_taskvec.models.base import Base
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.statistics.maps import measured
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.weights.deltas import Deltas

TOLERANCE = 1e-6  # of the largest singular value, below which a direction counts as not shown: images pass in float32
BATCH = 64


class Paired:
    """Rows of two bases' activations that belong together, (n, F) each, and the rotation from one to the other.

    Of many rows only the triangular factor is kept, which has the same inner products of columns.
    """

    def __init__(self) -> None:
        self.rows = torch.zeros(0, 0, dtype=torch.float64)

    def add(self, old: Tensor, new: Tensor) -> None:
        """Adds rows of both bases."""
        block = torch.cat([torch.ones(len(old), 1), old.cpu(), new.cpu()], dim=1).double()
        self.rows = torch.cat([self.rows, block]) if len(self.rows) else block
        if len(self.rows) > 2 * self.rows.shape[1]:
            self.rows = torch.linalg.qr(self.rows, mode="r").R

    def rotation(self, whitening: float) -> Tensor:
        """The orthogonal map T for which old rows times T are closest to new rows, both centred and whitened.

        Directions that no row shows are turned as little as the others allow.
        """
        centred = torch.linalg.qr(self.rows, mode="r").R[1:, 1:]  # the first row is along the column of ones: the means
        sides = []
        for rows in centred.chunk(2, dim=1):
            left, lengths, directions = torch.linalg.svd(rows, full_matrices=False)
            shown = lengths > TOLERANCE * lengths[:1]
            sides.append((left[:, shown] * lengths[shown].pow(1 - 2 * whitening), directions[shown]))
        (old, from_), (new, to) = sides
        left, lengths, right = torch.linalg.svd(old.T @ new, full_matrices=False)
        shown = lengths > TOLERANCE * lengths[:1]
        return completed(from_.T @ left[:, shown], to.T @ right[shown].T)


def completed(old: Tensor, new: Tensor) -> Tensor:
    """The orthogonal map that is nearest to none among those that bring one orthonormal set to another.

    Args:
        old: The first set, as columns (F, r); rows times the map bring them to `new`.
        new: The second.

    Example:
        >>> x, y, _ = torch.eye(3).split(1, dim=1)
        >>> completed(x, 0.6 * x + 0.8 * y)  # a turn about the third axis
        tensor([[ 0.6000,  0.8000,  0.0000],
                [-0.8000,  0.6000,  0.0000],
                [ 0.0000,  0.0000,  1.0000]])
    """
    size, rank = old.shape
    within = torch.linalg.qr(torch.cat([old, new], dim=1)).Q  # all else stays
    left, right = (torch.linalg.qr(within.T @ side, mode="complete").Q[:, rank:] for side in (old, new))
    u, _, v = torch.linalg.svd(left.T @ right)
    stays = torch.eye(size, dtype=old.dtype) - within @ within.T
    turn: Tensor = old @ new.T + stays + within @ left @ u @ v @ right.T @ within.T
    return turn


def rotated(
    deltas: Deltas, source: Base, to: Base, tasks: Sequence[Task], *, whitening: float
) -> Iterator[tuple[str, Tensor]]:
    """Each delta with its inputs and outputs rotated from one base to the other; embeddings become 0.

    Raises:
        IncompatibleVectorsError: If a delta is of something else than a linear map or a norm.
    """
    modules: dict[str, list[str]] = {}
    for name in deltas.shapes:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    old, new = (dict(_modules(base)) for base in (source, to))
    for module, names in modules.items():
        if not _embeds(module) and not isinstance(old.get(module), (nn.Linear, nn.LayerNorm)):
            raise IncompatibleVectorsError(f"theseus rotates linear maps and norms, and {names[0]!r} is of neither")
    for module, names in modules.items():
        embeds = _embeds(module)
        turns = () if embeds else _rotations((source, to), (old[module], new[module]), tasks, whitening)
        for name in names:
            delta = deltas[name]
            if embeds:
                yield name, torch.zeros_like(delta)
                continue
            into, out = (turn.to(delta.device) for turn in turns)
            wide = out.T @ delta.double()
            yield name, (wide @ into if delta.ndim == 2 else wide).to(delta.dtype)


def _embeds(module: str) -> bool:
    return ".embeddings." in f".{module}."


def _modules(base: Base) -> Iterator[tuple[str, nn.Module]]:
    yield from measured(base.model.vision_model, "vision_model.")
    yield "visual_projection", base.model.visual_projection


@torch.no_grad()
def _rotations(
    bases: tuple[Base, Base], modules: tuple[nn.Module, nn.Module], tasks: Sequence[Task], whitening: float
) -> tuple[Tensor, Tensor]:
    """The rotations of what goes into a module and what comes out, from two bases' activations on the same images."""
    inputs, outputs = Paired(), Paired()
    for task in tasks:
        images = [load_pixels(task, "train", base.processor.image_processor) for base in bases]
        for start in range(0, len(images[0]), BATCH):
            rows = range(start, min(start + BATCH, len(images[0])))
            batches = (pixels.__getitems__(rows)["pixel_values"] for pixels in images)
            (old_in, old_out), (new_in, new_out) = map(_seen, bases, modules, batches)
            inputs.add(old_in, new_in)
            outputs.add(old_out, new_out)
    return inputs.rotation(whitening), outputs.rotation(whitening)


def _seen(base: Base, module: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What goes into a module and what comes out, as rows, while images pass."""
    seen: list[Tensor] = []

    def take(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        seen.extend(rows.reshape(-1, rows.shape[-1]) for rows in (inputs[0], output))

    hook = module.register_forward_hook(take)
    try:
        base.model.visual_projection(base.model.vision_model(Normalize(base)(pixels.to(base.device))).pooler_output)
    finally:
        hook.remove()
    return seen[0], seen[1]
