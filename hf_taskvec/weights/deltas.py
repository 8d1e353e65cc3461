"""`Deltas`: named tensors that tell their shapes, dtype and device without being computed or read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from hf_taskvec.weights.arithmetic import subtract
from hf_taskvec.weights.names import shapes_of


class Flat(Protocol):
    """The entries of one delta in a row, of which a slice is a tensor: a flat tensor, or one that is computed so."""

    def __getitem__(self, index: slice, /) -> Tensor:
        """Some of the entries."""

    def numel(self) -> int:
        """How many there are."""


class Deltas(Mapping[str, Tensor]):
    """Deltas by name. Whoever asks for shapes, dtype or device causes no work; taking a delta may compute or read it.

    Attributes:
        shapes: Shape of each delta, in the order in which they are iterated.
        dtype: The widest dtype among them.
        device: Where they lie.
    """

    shapes: Mapping[str, torch.Size]
    dtype: torch.dtype
    device: torch.device

    @abstractmethod
    def __getitem__(self, name: str) -> Tensor:
        """The delta of one parameter."""

    def flat(self, name: str) -> Flat:
        """The entries of one delta in a row, for who needs only some of them at a time."""
        return self[name].reshape(-1)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:  # `Mapping` would take the delta to find out
        return name in self.shapes


class TensorDeltas(Deltas):
    """Deltas that are there: tensors in memory, or the memory-mapped ones of a file.

    Args:
        tensors: The deltas. The mapping is copied, the tensors are not; a graph that they are of is left behind.

    Example:
        >>> deltas = TensorDeltas({"w": torch.ones(2, 3)})
        >>> deltas.shapes["w"], deltas.dtype
        (torch.Size([2, 3]), torch.float32)
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        self.shapes = shapes_of(self._tensors)
        self.dtype = reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values()} or {torch.float32})
        self.device = next((tensor.device for tensor in self._tensors.values()), torch.device("cpu"))

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]


class LazyDeltas(Deltas):
    """Deltas computed on access and not kept; `shapes`, `dtype` and `device` tell theirs without computing them."""

    def __init__(
        self,
        shapes: Mapping[str, torch.Size],
        compute: Callable[[str], Tensor],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shapes = dict(shapes)
        self.compute = compute
        self.dtype, self.device = dtype, device

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self.compute(name)


class _FlatDifference:
    """The entries of a difference in a row; see `Flat`."""

    def __init__(self, after: Tensor, before: Tensor) -> None:
        self.after, self.before = after.reshape(-1), before.reshape(-1)

    def __getitem__(self, index: slice, /) -> Tensor:
        return subtract(self.after[index], self.before[index])

    def numel(self) -> int:
        return self.after.numel()


class DifferenceDeltas(Deltas):
    """The differences of two sets of weights, taken when they are used: with mapped files, nothing is in memory.

    Args:
        after: The weights after fine-tuning.
        before: Those before it, of the same names and shapes.

    Example:
        >>> deltas = DifferenceDeltas({"w": torch.tensor([3.0])}, {"w": torch.tensor([1.0])})
        >>> deltas["w"], deltas.dtype
        (tensor([2.]), torch.float32)
    """

    def __init__(self, after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
        self._after, self._before, self.shapes = dict(after), dict(before), shapes_of(before)
        tensors = [*after.values(), *before.values()]
        self.dtype = reduce(torch.promote_types, {tensor.dtype for tensor in tensors} | {torch.float32})
        self.device = next((tensor.device for tensor in after.values()), torch.device("cpu"))

    def __getitem__(self, name: str) -> Tensor:
        return subtract(self._after[name], self._before[name])

    def flat(self, name: str) -> Flat:
        """The entries of one delta in a row, each subtracted when it is asked for."""
        return _FlatDifference(self._after[name], self._before[name])


def deltas_of(tensors: Mapping[str, Tensor]) -> Deltas:
    """`tensors` as `Deltas`; the mapping of a caller is copied."""
    return tensors if isinstance(tensors, Deltas) else TensorDeltas(tensors)
