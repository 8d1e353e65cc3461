"""Merge methods that drop entries at random and rescale the rest; chance comes from `seed` alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
import xxhash
from torch import Tensor

from hf_taskvec.errors import check_fraction
from hf_taskvec.merging.engine import CHUNK, chunks, map_parameters, stacked, wide_dtype
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.merging.sparse import agreeing_mean
from hf_taskvec.vectors.vector import TaskVector

_IDENTIFYING = 1024  # entries of each parameter that tell vectors apart
_DRAWS = 1 << 16  # chances are rounded to multiples of 2^-16, and entries rescaled by the rounded chance


@merge_method("dare", paper="2311.03099")
def dare(vectors: Sequence[TaskVector], *, density: float = 0.1, seed: int = 0) -> TaskVector:
    """Drops entries at random, rescales the rest so that the expectation stays, and sums the vectors.

    Args:
        vectors: Vectors of one base.
        density: Chance of an entry to be kept, in (0, 1]: the paper's 1 - p with p = .9. All parameters alike.
        seed: Source of chance. A vector draws the same mask wherever it stands in the list.

    Raises:
        ValueError: If `density` is outside (0, 1].

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([-1.0, 1.0])})]
        >>> dare(pair, density=1.0).deltas["w"]
        tensor([2., 2.])
    """
    check_fraction("density", density)
    chance = Chance(vectors, seed)
    return _map_dropped(lambda deltas: deltas.sum(dim=0), vectors, density, chance)


@merge_method("dare_ties", paper="2311.03099")
def dare_ties(vectors: Sequence[TaskVector], *, density: float = 0.1, seed: int = 0) -> TaskVector:
    """Drops entries at random and rescales, then elects signs and averages as TIES does.

    The trimming of TIES is left out: at its 20 % it would keep all of the 10 % that are left.

    Args:
        vectors: Vectors of one base.
        density: As in `dare`.
        seed: As in `dare`.

    Raises:
        ValueError: If `density` is outside (0, 1].

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([-1.0, 1.0])})]
        >>> dare_ties(pair, density=1.0).deltas["w"]
        tensor([3., 1.])
    """
    check_fraction("density", density)
    return _map_dropped(agreeing_mean, vectors, density, Chance(vectors, seed))


@merge_method("della", paper="2406.11617")
def della(vectors: Sequence[TaskVector], *, density: float = 0.7, epsilon: float = 0.14, seed: int = 0) -> TaskVector:
    """Drops entries at random, small ones more often, rescales, and averages those that agree with the elected sign.

    Ranks count within a row, the weights of one output; a parameter of one dimension is one row. The entry with rank r
    of n from the top (r = 0, 1, …) is kept with chance `density + epsilon / 2 - epsilon * r / n`; the authors' code
    spreads the same window over n - 1 steps. An entry whose kept deltas sum to exactly 0 stays 0, where that code takes
    the positive ones. The defaults are those of the command in the authors' README (drop rate .3, window size .14),
    which applies a scaling of 1.1; the paper tunes all three.

    Args:
        vectors: Vectors of one base.
        density: Mean chance of an entry to be kept: one minus the paper's drop rate.
        epsilon: Difference of that chance between the largest and the smallest entry, the paper's window size.
        seed: Source of chance, as in `dare`.

    Raises:
        ValueError: If a chance would leave (0, 1].

    Example:
        >>> pair = [TaskVector({"w": torch.tensor([3.0, 1.0])}), TaskVector({"w": torch.tensor([-1.0, 1.0])})]
        >>> della(pair, density=1.0, epsilon=0.0).deltas["w"]
        tensor([3., 1.])
    """
    check_fraction("density", density)
    if not (epsilon >= 0 and density - epsilon / 2 > 0 and density + epsilon / 2 <= 1):
        raise ValueError(f"density ± epsilon / 2 must be in (0, 1], got density {density} and epsilon {epsilon}")
    chance = Chance(vectors, seed)
    wide = wide_dtype(vectors)

    def compute(name: str) -> Tensor:
        deltas = stacked(vectors, name, wide)
        shape = deltas.shape[1:]
        if 0 in shape:
            return deltas[0]
        rows = deltas.reshape(len(vectors), shape[0] if len(shape) > 1 else 1, -1)
        columns = rows.shape[2]
        rates = density + epsilon / 2 - epsilon * torch.arange(columns, dtype=torch.float64) / columns
        rates = rates.to(rows)
        step = max(1, CHUNK // columns)
        for row in range(len(vectors)):
            draws = draw([chance.stream(row, name)], rows[row].numel()).reshape(-1, columns)
            for start in range(0, len(draws), step):
                _drop_by_rank_(rows[row, start : start + step], draws[start : start + step], rates)
        flat = rows.reshape(len(vectors), -1)
        for start in range(0, flat.shape[1], CHUNK):
            flat[0, start : start + CHUNK] = agreeing_mean(flat[:, start : start + CHUNK])
        return flat[0].view(shape).clone()

    return map_parameters(compute, vectors)


class Chance:
    """Random numbers that depend on the seed, the vector's content, the parameter and the position, on nothing else.

    Args:
        vectors: The vectors, each of which gets a stream of its own; equal ones are told apart by their order.
        seed: Source of chance.
    """

    def __init__(self, vectors: Sequence[TaskVector], seed: int) -> None:
        self.seed = seed
        seen: Counter[str] = Counter()
        self.keys = []
        for vector in vectors:
            digest = xxhash.xxh3_128()
            for name in sorted(vector.deltas):
                digest.update(name.encode())
                digest.update(vector.deltas[name].reshape(-1)[:_IDENTIFYING].float().cpu().contiguous().numpy().data)
            key = digest.hexdigest()
            self.keys.append(f"{key} {seen[key]}")
            seen[key] += 1

    def stream(self, row: int, name: str) -> torch.Generator:
        """The generator of a vector's parameter; its draws go through the entries in order."""
        text = f"{self.seed} {self.keys[row]} {name}"
        return torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(text.encode()) >> 1)


def draw(streams: Sequence[torch.Generator], size: int) -> Tensor:
    """Signed integers of 16 bits, uniform, one row (size,) from each stream.

    Streams may be drawn from in parts, if all sizes but the last are multiples of 4.
    """
    fours = torch.empty(len(streams), -(-size // 4), dtype=torch.int64)
    for row, stream in zip(fours, streams, strict=True):
        row.random_(-(2**63), None, generator=stream)
    return fours.view(torch.int16)[:, :size]


def _map_dropped(
    combine: Callable[[Tensor], Tensor], vectors: Sequence[TaskVector], density: float, chance: Chance
) -> TaskVector:
    """`combine`, through which any factor passes, of the deltas (T, n) dropped and rescaled."""
    limit = max(1, round(density * _DRAWS))
    wide, shapes = wide_dtype(vectors), vectors[0].deltas.shapes

    def compute(name: str) -> Tensor:
        streams = [chance.stream(row, name) for row in range(len(vectors))]
        merged = torch.empty(shapes[name].numel(), dtype=wide, device=vectors[0].device)
        for start, deltas in chunks(vectors, name, wide):
            if limit < _DRAWS:
                _drop_(deltas, streams, limit)
            merged[start : start + deltas.shape[1]] = combine(deltas).mul_(_DRAWS / limit)
        return merged.view(shapes[name])

    return map_parameters(compute, vectors)


def _drop_(deltas: Tensor, streams: Sequence[torch.Generator], limit: int) -> None:
    """Zeroes, in place, the entries of deltas (T, n) whose draw is not among the lowest `limit`."""
    draws = draw(streams, deltas.shape[1]).to(deltas)
    deltas.mul_(draws.lt_(limit - _DRAWS // 2))  # lt_ leaves 0.0 and 1.0: far cheaper than a boolean mask


def _drop_by_rank_(rows: Tensor, draws: Tensor, rates: Tensor) -> None:
    """Drops entries of rows (R, n) in place, that of rank r with chance `1 - rates[r]`, and rescales the rest."""
    order = _descending(rows.abs())
    limits = (rates.double() * _DRAWS).round().clamp(min=1)
    factors = ((draws.to(rows) + _DRAWS // 2) < limits.to(rows)) * (_DRAWS / limits).to(rows)
    rows.mul_(torch.empty_like(rows).scatter_(1, order, factors))


def _descending(magnitudes: Tensor) -> Tensor:
    """The order of each row's entries from the largest; of equal ones, the last first."""
    if magnitudes.dtype != torch.float32 or magnitudes.device.type != "cpu":
        return magnitudes.flip(1).argsort(dim=1, descending=True, stable=True).neg_().add_(magnitudes.shape[1] - 1)
    # One sort of 64-bit keys that hold magnitude and place: numpy sorts them with vector instructions.
    keys = magnitudes.view(torch.int32).long().bitwise_left_shift_(32)
    keys += torch.arange(magnitudes.shape[1])
    keys.numpy().sort(axis=1)
    return keys.bitwise_and_((1 << 32) - 1).flip(1)
