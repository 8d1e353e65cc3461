"""Merging by saliency: what each entry of a vector adds to the signal that a whole tower lets through."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hf_taskvec.errors import BaseMismatchError, CheckpointError
from hf_taskvec.merging.engine import check_finite_delta, map_parameters, parallel, stacked, wide_dtype
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.vectors.application import check_fits
from hf_taskvec.vectors.checkpoints import checkpoint_of
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.names import PROJECTION

_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_BLOCK = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(?:self_attn\.([qkv]|out)_proj|mlp\.fc([12]))\.weight")
_ORDER = {"q": 0, "k": 0, "v": 0, "out": 1, "1": 2, "2": 3}  # of the matrices in a block
Chain = Sequence[Sequence[str]]  # layers from input to output, each the names of matrices whose outputs are added
Weight = Callable[[str], Tensor]  # name -> the magnitudes of a matrix (m, n)


@merge_method("sa_merging", paper="2606.00511", resumable=True)
def sa_merging(
    vectors: Sequence[TaskVector], *, dropped: float = 0.2, rounds: int = 10, base: str | None = None
) -> TaskVector:
    """Drops, round by round, the entries of each vector with the least saliency for the whole tower, and sums the rest.

    R is the sum of the outputs for an input of ones when every matrix of a fine-tuned tower is replaced by its
    magnitudes and all else is left out; the saliency of an entry is its derivative of R times the sum of all vectors
    there. A round drops the same fraction of what is left in each matrix of each vector, then R is taken anew. With the
    paper's settings a tenth is left, also of a single vector.

    The paper's product of layers has no branches and there is no public code. Here the layers are patch embedding,
    queries, keys and values side by side with their outputs added, `out_proj`, `fc1`, `fc2` and, if the base has it,
    `visual_projection`, without residual connections; what is none of them is summed as it is. The paper's ranks of
    LoRA factors are not treated apart: entries of the written-out matrices count.

    Args:
        vectors: Vectors of one base.
        dropped: Fraction of the entries left that a round drops, the paper's p, in [0, 1). An entry at least stays, and
            entries tied with the last one stay too.
        rounds: Number of rounds; 0 returns the sum.
        base: Hub id or folder of the base, whose weights R needs; the one that the first vector names if left out.

    Raises:
        ValueError: If `dropped` or `rounds` is out of range.
        CheckpointError: If the base is not known or cannot be opened.
        BaseMismatchError, IncompatibleVectorsError: If it is not the vectors' base.

    Example:
        >>> name = "vision_model.encoder.layers.0.mlp.fc2.weight"
        >>> one = TaskVector({name: torch.ones(384, 768)})
        >>> kept = sa_merging([one], base="hf-taskvec/tiny-clip").deltas[name]
        >>> round(float(kept.mean()), 3)
        0.107
    """
    if not 0 <= dropped < 1:
        raise ValueError(f"dropped must be in [0, 1), got {dropped}")
    if rounds < 0:
        raise ValueError(f"rounds must be 0 or more, got {rounds}")
    covered = set(vectors[0].deltas.shapes)
    left = Survivors(vectors)
    if rounds and any(name in covered for layer in chain_of(covered) for name in layer):
        checkpoint = checkpoint_of(base, vectors[0].info)
        for vector in vectors:
            other = check_fits(vector, checkpoint.tensors, allow_other_base=True, where=repr(checkpoint.name))
            if other:
                raise BaseMismatchError(
                    f"the vector {vector.info.label!r} was made from {vector.info.base or 'another base'}, and "
                    f"{checkpoint.name} has other values in {len(other)} parameters, first {other[0]!r}. Saliency "
                    "needs the weights it was made from: pass base= with their Hub id or folder",
                    details=other,
                )
        for _ in range(rounds):
            left.drop(checkpoint.tensors, dropped)
    return map_parameters(left.total, vectors)


class Survivors:
    """What is left of T vectors, one bit an entry of each matrix that the chain of layers has.

    Args:
        vectors: The vectors.
    """

    def __init__(self, vectors: Sequence[TaskVector]) -> None:
        self.vectors, self.shapes = vectors, vectors[0].deltas.shapes
        self.wide, self.device = wide_dtype(vectors), vectors[0].device
        self._bits: dict[tuple[int, str], np.ndarray] = {}

    def drop(self, base: Mapping[str, Tensor], share: float) -> None:
        """Drops a share of what is left in each matrix of each vector, by saliency.

        Args:
            base: The base's weights.
            share: Which, in [0, 1).

        Raises:
            CheckpointError: If the base has not the layers of a CLIP vision tower.
        """
        chain = chain_of(base)
        signals = parallel(
            lambda index: signals_of(lambda name: self._magnitudes(base, index, name), chain),
            range(len(self.vectors)),
            description="saliency",
            device=self.device,
        )
        names = [name for layer in chain for name in layer if name in self.shapes]

        def prune(name: str) -> None:
            total = self.total(name).flatten(1).abs_()
            for index, (forward, backward) in enumerate(signals):
                score = (total * forward[name] * backward[name].unsqueeze(1)).flatten()
                mask = self.mask(index, name).flatten()
                values = score[mask]
                keep = max(1, round((1 - share) * len(values)))
                bound = values.kthvalue(len(values) - keep + 1).values
                self._bits[index, name] = np.packbits((mask & (score >= bound)).cpu().numpy())

        parallel(prune, names, description="saliency", device=self.device)

    def mask(self, index: int, name: str) -> Tensor:
        """Which entries of a parameter of a vector are left."""
        shape = self.shapes[name]
        if (bits := self._bits.get((index, name))) is None:
            return torch.ones(shape, dtype=torch.bool, device=self.device)
        mask = np.unpackbits(bits, count=shape.numel()).view(np.bool_)
        return torch.from_numpy(mask).to(self.device).view(shape)

    def total(self, name: str) -> Tensor:
        """The sum of what is left of a parameter."""
        deltas = stacked(self.vectors, name, self.wide)
        for index, delta in enumerate(deltas):
            if (index, name) in self._bits:
                delta.mul_(self.mask(index, name))
        return deltas.sum(dim=0)

    def _magnitudes(self, base: Mapping[str, Tensor], index: int, name: str) -> Tensor:
        """The magnitudes of a fine-tuned matrix, with what is left of its delta; a kernel's as one row per output."""
        weight = base[name].to(self.device, self.wide, copy=True)
        if name in self.shapes:
            delta = self.vectors[index].deltas[name].to(self.wide)
            check_finite_delta(delta, name, self.vectors, index)
            weight.addcmul_(delta, self.mask(index, name).to(self.wide))
        return weight.abs_().flatten(1)


def chain_of(names: Iterable[str]) -> Chain:
    """The layers of a CLIP vision tower, from the patches to the projection, as far as they are among some names.

    Example:
        >>> block = "vision_model.encoder.layers.0."
        >>> names = ["mlp.fc1", "self_attn.q_proj", "self_attn.k_proj"]
        >>> [len(layer) for layer in chain_of([f"{block}{name}.weight" for name in names])]
        [2, 1]
    """
    names, blocks = sorted(names), dict[tuple[int, int], list[str]]()
    for name in names:
        if match := _BLOCK.fullmatch(name):
            blocks.setdefault((int(match[1]), _ORDER[match[2] or match[3]]), []).append(name)
    first, last = ([[name]] if name in names else [] for name in (_PATCHES, PROJECTION))
    return [*first, *(blocks[place] for place in sorted(blocks)), *last]


def signals_of(weight: Weight, chain: Chain) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What reaches each matrix (m, n) from an input of ones (n,), and the derivative of R by its outputs (m,).

    Each is given up to a factor of its layer's, which no ranking inside a matrix sees: the products of a deep tower
    would leave float32.

    Args:
        weight: The magnitudes of a matrix.
        chain: The layers.

    Raises:
        CheckpointError: If the layers do not fit one after the other.
    """
    forward: dict[str, Tensor] = {}
    backward: dict[str, Tensor] = {}
    signal = torch.ones_like(weight(chain[0][0])[0])
    for layer in chain:
        forward |= dict.fromkeys(layer, signal)
        signal = _through([weight(name) for name in layer], signal, layer)
    signal = torch.ones_like(signal)
    for layer in reversed(chain):
        backward |= dict.fromkeys(layer, signal)
        signal = _through([weight(name).T for name in layer], signal, layer)
    return forward, backward


def _through(matrices: Sequence[Tensor], signal: Tensor, layer: Sequence[str]) -> Tensor:
    """The sum of the outputs of matrices for one input, with a mean of 1."""
    if any(matrix.shape[1] != len(signal) for matrix in matrices):
        raise CheckpointError(f"{layer[0]!r} does not fit the layer before it: the base is no CLIP vision tower")
    total = torch.stack([matrix @ signal for matrix in matrices]).sum(dim=0)
    return total / total.mean().clamp(min=torch.finfo(total.dtype).tiny)
