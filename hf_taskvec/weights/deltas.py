"""`Deltas`: named tensors that tell their shapes, dtype and device without being computed or read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import reduce

import torch
from torch import Tensor

from hf_taskvec.weights.names import shapes_of


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

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, name: object) -> bool:  # `Mapping` would take the delta to find out
        return name in self.shapes


class TensorDeltas(Deltas):
    """Deltas that are there: tensors in memory, or the memory-mapped ones of a file.

    Args:
        tensors: The deltas. The mapping is copied, the tensors are not.

    Example:
        >>> deltas = TensorDeltas({"w": torch.ones(2, 3)})
        >>> deltas.shapes["w"], deltas.dtype
        (torch.Size([2, 3]), torch.float32)
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
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


def deltas_of(tensors: Mapping[str, Tensor]) -> Deltas:
    """`tensors` as `Deltas`; the mapping of a caller is copied."""
    return tensors if isinstance(tensors, Deltas) else TensorDeltas(tensors)
