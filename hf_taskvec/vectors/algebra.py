"""The algebra of task vectors: sums, factors, inner products, equality, and what can be asked of one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError, check_known, nearest
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import check_compatible, is_zero
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.arithmetic import check_finite, check_scaling, dot, finite, is_number, same
from hf_taskvec.weights.deltas import Deltas, deltas_of
from hf_taskvec.weights.dtypes import DTYPE_CODES, DTYPES, as_device, as_dtype
from hf_taskvec.weights.lowrank import filled
from hf_taskvec.weights.names import PROJECTION, canonical_name, layer_of

By = Literal["parameter", "layer"]


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Algebra:
    """Named deltas with their provenance, as elements of a vector space; see `TaskVector`."""

    deltas: Deltas
    info: VectorInfo

    def __init__(self, deltas: Mapping[str, Tensor], info: VectorInfo | None = None) -> None:
        if not isinstance(deltas, Deltas):
            _check_tensors(deltas)
        if not isinstance(info, VectorInfo | None):
            raise TypeError(f"info must be a VectorInfo, got {type(info).__name__}; VectorInfo(**values) makes one")
        object.__setattr__(self, "deltas", deltas_of(deltas))
        object.__setattr__(self, "info", info or VectorInfo())

    # -- algebra ------------------------------------------------------------------------------------------------------

    def __add__(self, other: Self) -> Self:
        return self._combine(other, torch.add)

    def __radd__(self, other: object) -> Self:
        return self if other == 0 else NotImplemented  # sum() starts from the integer 0

    def __sub__(self, other: Self) -> Self:
        return self._combine(other, torch.sub)

    __array_ufunc__ = None  # a number of numpy on the left lets `__rmul__` do it

    def __mul__(self, factor: float) -> Self:
        if not is_number(factor):
            return NotImplemented
        factor = check_scaling(factor)
        # a receipt of forgetting is of one strength, and of no other
        info = dataclasses.replace(self.info, scaling=check_scaling(self.info.scaling * factor), forgetting=None)
        scaled = {name: finite(delta * factor, name, f"times {factor:g}") for name, delta in self.deltas.items()}
        return type(self)(scaled, info)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Self:
        return self * (1 / float(divisor)) if is_number(divisor) else NotImplemented

    def __neg__(self) -> Self:
        return self * -1.0

    def to(
        self, dtype: torch.dtype | str | torch.device | None = None, device: str | torch.device | None = None
    ) -> Self:
        """The vector in another dtype or on another device; a dtype may be given by name.

        Raises:
            NonFiniteError: If a delta overflows the dtype.
            ValueError: If there is no such dtype, or the device cannot be used.
        """
        if isinstance(dtype, torch.device) or (isinstance(dtype, str) and dtype.removeprefix("torch.") not in DTYPES):
            dtype, device = None, dtype
        kind = None if dtype is None else as_dtype(dtype)
        device = None if device is None else as_device(device)
        moved = {name: delta.to(device=device, dtype=kind) for name, delta in self.deltas.items()}
        if kind is not None and torch.finfo(kind).max < torch.finfo(self.dtype).max:
            moved = {name: finite(delta, name, f"in {kind}") for name, delta in moved.items()}
        return type(self)(moved, self.info)

    def dot(self, other: Self) -> float:
        """The inner product with another vector."""
        self._check_same(other)
        return math.fsum(dot(delta, other.deltas[name]) for name, delta in self.deltas.items())

    def norm(self) -> float:
        """The Euclidean norm."""
        return math.sqrt(self.dot(self))

    def cosine(self, other: Self) -> float:
        """The cosine of the angle to another vector; 0.0 if either is zero."""
        return _cosine(self.dot(other), self.norm(), other.norm())

    def norms(self, *, by: By = "parameter") -> dict[str, float]:
        """The norm of each parameter's delta, or of each layer's."""
        return {key: math.sqrt(value) for key, value in self.dots(self, by=by).items()}

    def dots(self, other: Self, *, by: By = "parameter") -> dict[str, float]:
        """The inner product with another vector, per parameter or per layer."""
        self._check_same(other)
        check_known("grouping", by, get_args(By))
        result: dict[str, float] = {}
        for name, delta in self.deltas.items():
            key = layer_of(name) if by == "layer" else name
            result[key] = result.get(key, 0.0) + dot(delta, other.deltas[name])
        return result

    def cosines(self, other: Self, *, by: By = "parameter") -> dict[str, float]:
        """The cosine with another vector, per parameter or per layer; 0.0 where either is zero."""
        left, right = self.norms(by=by), other.norms(by=by)
        return {key: _cosine(value, left[key], right[key]) for key, value in self.dots(other, by=by).items()}

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def num_entries(self) -> int:
        """Number of entries over all deltas."""
        return sum(shape.numel() for shape in self.deltas.shapes.values())

    @property
    def is_zero(self) -> bool:
        """Whether the vector changes nothing, as after a run whose only step had learning rate 0."""
        return is_zero(self.deltas)

    @property
    def dtype(self) -> torch.dtype:
        """The widest dtype among the deltas."""
        return self.deltas.dtype

    @property
    def device(self) -> torch.device:
        """Where the deltas lie."""
        return self.deltas.device

    def __getitem__(self, name: str) -> Tensor:
        """The delta of one parameter; names of any layout of a CLIP vision tower do."""
        for known in (name, canonical_name(str(name))):
            if known in self.deltas:
                return self.deltas[known]
        close = nearest(str(name), list(self.deltas))
        raise KeyError(f"no parameter {name!r:.200} in the vector." + (f" Did you mean {close!r}?" if close else ""))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self.deltas or canonical_name(name) in self.deltas)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Algebra):
            return NotImplemented
        if self.deltas is other.deltas:
            return True
        if dict(self.deltas.shapes) != dict(other.deltas.shapes):
            return False
        return all(same(self.deltas[name], other.deltas[name]) for name in self.deltas.shapes)

    def __hash__(self) -> int:
        """Equal for equal vectors, and taken from names and shapes alone: no delta is read."""
        return hash(frozenset(self.deltas.shapes.items()))

    def __len__(self) -> int:
        return len(self.deltas)

    def __iter__(self) -> Iterator[str]:
        return iter(self.deltas)

    def __repr__(self) -> str:
        return f"TaskVector({self.info.label!r}, {len(self)} parameters, {self.num_entries:,} entries)"

    def _combine(self, other: Self, operation: Callable[[Tensor, Tensor], Tensor]) -> Self:
        if not isinstance(other, Algebra):
            return NotImplemented
        self._check_same(other)
        wide = torch.promote_types(torch.promote_types(self.dtype, other.dtype), torch.float32)
        method = "sum" if operation is torch.add else "difference"
        deltas = {
            name: finite(operation(delta.to(wide), other.deltas[name].to(wide)), name, f"in the {method}")
            for name, delta in self.deltas.items()
        }
        flat = [*self._terms(method), *(other._terms(method) if method == "sum" else [other.info])]
        return type(self)(deltas, VectorInfo.merged(flat, method=method))

    def _terms(self, method: str) -> list[VectorInfo]:
        """Provenance of what a sum was made of, so that a long sum is no deep nest."""
        is_sum = method == "sum" and self.info.method == "sum" and self.info.scaling == 1
        return list(self.info.parents) if is_sum else [self.info]

    def _check_same(self, other: Self) -> None:
        if not isinstance(other, Algebra):
            raise TypeError(f"expected a TaskVector, got {type(other).__name__}")
        check_compatible([self, other])

    # -- checks and coverage -----------------------------------------------------------------------------------------

    def check_finite(self) -> None:
        """Raises a `NonFiniteError` that names the first parameter holding NaN or Inf."""
        for name, delta in self.deltas.items():
            check_finite(name, delta)

    def covering(self, shapes: Mapping[str, Sequence[int]], *, base_hashes: Mapping[str, str] | None = None) -> Self:
        """The same change as a vector that covers more parameters: those it does not touch are zero.

        Args:
            shapes: Shape of each parameter to cover, such as another vector's `deltas.shapes`.
            base_hashes: Hashes of the base's parameters, as in another vector's provenance.

        Raises:
            IncompatibleVectorsError: If the vector has a parameter that `shapes` lacks, or of another shape.

        Example:
            >>> vector = Algebra({"a": torch.ones(2)}).covering({"a": (2,), "b": (3,)})
            >>> vector["b"]
            tensor([0., 0., 0.])
        """
        wanted = {name: torch.Size(shape) for name, shape in shapes.items()}
        lines = [
            f"{name!r} of shape {tuple(shape)} is not among those to cover"
            for name, shape in self.deltas.shapes.items()
            if wanted.get(name) != shape
        ]
        if lines:
            raise IncompatibleVectorsError(listed(lines, separator="; "), details=lines)
        hashes = {name: value for name, value in (base_hashes or {}).items() if name in wanted}
        projection = self.info.include_projection or PROJECTION in wanted
        hashes |= self.info.base_hashes
        info = dataclasses.replace(self.info, base_hashes=hashes, include_projection=projection)
        return type(self)(filled(self.deltas, wanted), info)


def _cosine(product: float, left: float, right: float) -> float:
    """The cosine from an inner product and two norms; rounding does not take it out of [-1, 1]."""
    return max(-1.0, min(1.0, product / (left * right))) if left * right > 0 else 0.0


def _check_tensors(deltas: Mapping[str, Tensor]) -> None:
    """Raises unless a caller's deltas are floating tensors by name."""
    if not isinstance(deltas, Mapping):
        raise TypeError(f"deltas must be a mapping of names to tensors, got {type(deltas).__name__}")
    for name, delta in deltas.items():
        if not isinstance(delta, Tensor):
            raise TypeError(f"{name!r} is a {type(delta).__name__}; a delta must be a torch.Tensor (torch.as_tensor)")
        if not isinstance(name, str):
            raise TypeError(f"a delta's name must be text, got {type(name).__name__} {name!r:.80}")
        if delta.layout != torch.strided:
            raise IncompatibleVectorsError(f"{name!r} has the layout {delta.layout}; a delta must be dense")
        if delta.dtype not in DTYPE_CODES:
            known = ", ".join(map(str, DTYPE_CODES))
            raise IncompatibleVectorsError(f"{name!r} has dtype {delta.dtype}; a delta is in {known}")
