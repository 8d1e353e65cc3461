"""The sum of vectors with a coefficient for each vector and layer or parameter, as `hf_taskvec.tuning` finds them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from hf_taskvec.errors import check_fraction
from hf_taskvec.merging.arithmetic import check_weights
from hf_taskvec.merging.engine import map_chunks, map_sum
from hf_taskvec.merging.registry import merge_method
from hf_taskvec.merging.selection import magnitude_thresholds
from hf_taskvec.merging.sparse import trim_
from hf_taskvec.text import listed
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.names import layer_of

EVERYWHERE = "*"  # the key of coefficients that hold for all parameters

Coefficients = Mapping[str, Sequence[float]]


@merge_method("weighted", paper="2310.02575")
def weighted(
    vectors: Sequence[TaskVector],
    *,
    coefficients: Coefficients | None = None,
    density: float | None = None,
    transductive: bool = False,
    learned: Mapping[str, Any] | None = None,
) -> TaskVector:
    """The sum of the vectors, with one coefficient for each vector and task, layer or parameter.

    `learn_coefficients` finds them and calls this by itself.

    Args:
        vectors: Vectors of one base.
        coefficients: One number per vector under the name of a parameter, of a layer, or `*` for all that is not named;
            1 everywhere if left out.
        density: If given, what is summed is left of each vector after TIES has trimmed it to this fraction and elected
            the signs, as in AdaMerging++.
        transductive: Whether the coefficients were found on test images; kept in the provenance, it changes nothing.
        learned: How they were found; likewise.

    Raises:
        ValueError: If a parameter has no coefficients, or there is not one finite number per vector.

    Example:
        >>> from torch import tensor
        >>> pair = [TaskVector({"w": tensor([3.0, 1.0])}), TaskVector({"w": tensor([-1.0, 1.0])})]
        >>> weighted(pair, coefficients={"w": [1.0, 0.5]}).deltas["w"]
        tensor([2.5000, 1.5000])
    """
    factors = factors_of(coefficients or {EVERYWHERE: [1.0] * len(vectors)}, vectors)
    if density is None:
        return map_sum(factors.__getitem__, vectors)
    check_fraction("density", density)
    smallest = magnitude_thresholds(vectors, density, "vector")

    def merge_chunk(deltas: Tensor, name: str) -> Tensor:
        kept = elect_(trim_(deltas, smallest[name]))
        return kept.mul_(kept.new_tensor(factors[name])[:, None]).sum(dim=0)

    return map_chunks(merge_chunk, vectors)


def factors_of(coefficients: Coefficients, vectors: Sequence[TaskVector]) -> dict[str, list[float]]:
    """The coefficients of each parameter: its own, else its layer's, else those for everywhere.

    Raises:
        ValueError: If a parameter has none, one key names nothing, or there is not one finite number per vector.

    Example:
        >>> from torch import ones
        >>> vector = TaskVector({"a.layers.0.w": ones(1), "b.w": ones(1)})
        >>> factors_of({"a.layers.0": [0.5], "*": [0.1]}, [vector])
        {'a.layers.0.w': [0.5], 'b.w': [0.1]}
    """
    if not isinstance(coefficients, Mapping):
        raise ValueError(f"coefficients must be a mapping of names to lists, got {type(coefficients).__name__}")
    checked = {key: check_weights(values, vectors) for key, values in coefficients.items()}
    names = list(vectors[0].deltas.shapes)
    keys = {name: _key_of(name, checked) for name in names}
    if lacking := [name for name, key in keys.items() if key is None]:
        raise ValueError(
            f"coefficients have no entry for {listed(map(repr, lacking))}; {EVERYWHERE!r} is for all others"
        )
    known = {EVERYWHERE, *names, *map(layer_of, names)}
    if unknown := [key for key in checked if key not in known]:
        raise ValueError(
            f"coefficients name {listed(map(repr, unknown))}, which is no parameter or layer of the vectors"
        )
    return {name: checked[key] for name, key in keys.items() if key is not None}


def _key_of(name: str, keys: Iterable[str]) -> str | None:
    return next((key for key in (name, layer_of(name), EVERYWHERE) if key in keys), None)


def elect_(deltas: Tensor) -> Tensor:
    """Zeroes, in place, the entries of T deltas (T, n) whose sign is not that of the sum over the vectors.

    Example:
        >>> from torch import tensor
        >>> elect_(tensor([[3.0, 1.0], [-1.0, 1.0]]))
        tensor([[3., 1.],
                [0., 1.]])
    """
    return deltas.masked_fill_(deltas.sign().ne(deltas.sum(dim=0).sign()), 0)


def without_conflicts(vectors: Sequence[TaskVector], density: float) -> list[TaskVector]:
    """What TIES leaves of each vector: its largest entries, as far as they have the elected sign.

    Each result is computed on access, from all vectors.

    Args:
        vectors: Vectors of one base.
        density: Fraction of entries kept, in (0, 1].

    Raises:
        ValueError: If `density` is outside (0, 1].

    Example:
        >>> from torch import tensor
        >>> pair = [TaskVector({"w": tensor([3.0, 1.0])}), TaskVector({"w": tensor([-1.0, 2.0])})]
        >>> [vector["w"].tolist() for vector in without_conflicts(pair, 0.5)]
        [[3.0, 0.0], [0.0, 2.0]]
    """
    check_fraction("density", density)
    smallest = magnitude_thresholds(vectors, density, "vector")

    def one(index: int, deltas: Tensor, name: str) -> Tensor:
        return elect_(trim_(deltas, smallest[name]))[index]

    kept = [map_chunks(partial(one, index), vectors) for index in range(len(vectors))]
    return [TaskVector(each.deltas, vector.info) for each, vector in zip(kept, vectors, strict=True)]
