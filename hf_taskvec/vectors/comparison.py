"""How alike two vectors, or two checkpoints, are: as a whole, by layer and by parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError
from hf_taskvec.text import listed
from hf_taskvec.weights.arithmetic import check_finite, dot
from hf_taskvec.weights.names import differences, layer_of, shapes_of


@dataclass(frozen=True)
class Likeness:
    """Sums over the entries of two sets of tensors, which add up from parameter to layer to whole.

    Attributes:
        entries: Entries of each.
        product: Their inner product.
        left_square, right_square: Their squared norms.
        distance_square: The squared norm of their difference.
        agreeing: Entries of one sign, zeros left out.
        opposed: Entries of opposite signs.
    """

    entries: int = 0
    product: float = 0.0
    left_square: float = 0.0
    right_square: float = 0.0
    distance_square: float = 0.0
    agreeing: int = 0
    opposed: int = 0

    def __add__(self, other: Likeness) -> Likeness:
        return Likeness(*(getattr(self, spec.name) + getattr(other, spec.name) for spec in fields(self)))

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> Likeness:
        """That of two tensors of one shape.

        Example:
            >>> import torch
            >>> alike = Likeness.of(torch.tensor([3.0, 4.0, 0.0]), torch.tensor([4.0, -3.0, 1.0]))
            >>> alike.cosine, alike.sign_agreement, round(alike.distance, 3)
            (0.0, 0.5, 7.141)
        """
        signs = left.sign() * right.to(left.device).sign()
        change = right.to(left.device).double() - left.double()
        return cls(
            entries=left.numel(),
            product=dot(left, right),
            left_square=dot(left, left),
            right_square=dot(right, right),
            distance_square=dot(change, change),
            agreeing=int((signs > 0).sum()),
            opposed=int((signs < 0).sum()),
        )

    @property
    def left_norm(self) -> float:
        """The norm of the first."""
        return math.sqrt(self.left_square)

    @property
    def right_norm(self) -> float:
        """The norm of the second."""
        return math.sqrt(self.right_square)

    @property
    def distance(self) -> float:
        """The norm of the difference."""
        return math.sqrt(self.distance_square)

    @property
    def cosine(self) -> float:
        """The cosine of the angle between them; 0.0 if either is zero."""
        size = self.left_norm * self.right_norm
        return max(-1.0, min(1.0, self.product / size)) if size > 0 else 0.0

    @property
    def sign_agreement(self) -> float | None:
        """The share of entries of one sign among those that are zero in neither; `None` if there are none."""
        known = self.agreeing + self.opposed
        return self.agreeing / known if known else None


@dataclass(frozen=True)
class Comparison:
    """Two sets of tensors beside each other.

    Attributes:
        parameters: The likeness of each parameter that both have.
        only_left, only_right: The names that only one of them has.
    """

    parameters: Mapping[str, Likeness]
    only_left: tuple[str, ...] = ()
    only_right: tuple[str, ...] = ()

    @property
    def whole(self) -> Likeness:
        """The likeness over all parameters."""
        return sum(self.parameters.values(), Likeness())

    @property
    def layers(self) -> dict[str, Likeness]:
        """The likeness of each layer."""
        result: dict[str, Likeness] = {}
        for name, alike in self.parameters.items():
            layer = layer_of(name)
            result[layer] = result.get(layer, Likeness()) + alike
        return result

    def largest(self, count: int) -> dict[str, Likeness]:
        """The parameters that differ most, by the norm of the difference."""
        names = sorted(self.parameters, key=lambda name: (-self.parameters[name].distance, name))
        return {name: self.parameters[name] for name in names[:count]}


def compare(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Comparison:
    """Compares two sets of tensors by name: the deltas of two vectors, or the weights of two checkpoints.

    Args:
        left: The first.
        right: The second; what it lacks, or has besides, is named in the result.

    Raises:
        IncompatibleVectorsError: If a parameter has two shapes, or none is in both.
        NonFiniteError: If a tensor holds NaN or Inf.

    Example:
        >>> import torch
        >>> compare({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([2.0, 0.0])}).whole.cosine
        1.0
    """
    common = [name for name in left if name in right]
    if not common:
        raise IncompatibleVectorsError(
            f"the two have no parameter in common: one holds {listed(left, room=100)}, the other "
            f"{listed(right, room=100)}"
        )
    ours, theirs = ({name: one[name] for name in common} for one in (left, right))
    if lines := differences(shapes_of(ours), shapes_of(theirs), left_name="the first", right_name="the second"):
        raise IncompatibleVectorsError(f"the two differ: {listed(lines, separator='; ')}", details=lines)
    for name in common:
        check_finite(name, ours[name])
        check_finite(name, theirs[name])
    parameters = {name: Likeness.of(ours[name], theirs[name]) for name in common}
    return Comparison(
        parameters, tuple(name for name in left if name not in right), tuple(name for name in right if name not in left)
    )
