"""One engine for every method whose merged matrix D is the minimum of a quadratic.

    sum over t of w_t tr (D - D_t) G_t (D - D_t)ᵀ  +  λ g |D - A|²,    g = tr(sum of w_t G_t) / n

with the deltas D_t (m, n), Gram matrices G_t (n, n) of what they act on, and an anchor A. Its solution

    D = (sum of w_t D_t G_t + λ g A) (sum of w_t G_t + λ g I)⁻¹

is found in float64 by the smaller of two Cholesky factorisations, n x n or, if the factors of the G_t have fewer rows,
that of their products with each other (Woodbury). λ does not depend on the scale of the G_t.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_taskvec.errors import check_finite_number, check_known
from hf_taskvec.merging.arithmetic import check_weights
from hf_taskvec.merging.engine import check_finite_deltas, map_parameters, map_sum, stacked, wide_dtype
from hf_taskvec.merging.needs import is_map
from hf_taskvec.statistics.value import Statistics
from hf_taskvec.vectors.vector import TaskVector

logger = logging.getLogger(__name__)
Others = Literal["average", "sum", "base", "diagonal"]
CUTOFF = 1e-6  # without a ridge, directions with less than this fraction of the largest eigenvalue count as unseen
MENDING = 1e-3  # the ridge to offer where directions are unseen


@dataclass(frozen=True)
class Term:
    """One vector's part of the quadratic in one matrix: `G = factorᵀ factor + diag(diagonal)`, in float64.

    Attributes:
        delta: (m, n), of any dtype.
        factor: (r, n).
        diagonal: (n,).
        weight: w, at least 0.
    """

    delta: Tensor
    factor: Tensor
    diagonal: Tensor
    weight: float = 1.0

    @cached_property
    def rows(self) -> Tensor:
        """The factor times the root of the weight."""
        scaled: Tensor = self.factor * self.weight**0.5
        return scaled


def minimum(
    terms: Sequence[Term], *, ridge: float = 0.0, anchor: Tensor | None = None, cutoff: float = CUTOFF
) -> tuple[Tensor, int]:
    """The minimum D (m, n) of the quadratic.

    Args:
        terms: One per vector.
        ridge: λ, at least 0. At 0 a direction that no Gram matrix has seen is left at the anchor.
        anchor: A (m, n); zero if left out.
        cutoff: See `pseudo_inverse`.

    Returns:
        The minimum, and how many directions of n no Gram matrix has seen; 0 with a ridge.

    Example:
        >>> one = Term(torch.eye(2).double(), torch.tensor([[2.0, 0.0]]).double(), torch.zeros(2).double())
        >>> minimum([one])[0].tolist(), minimum([one])[1]
        ([[1.0, 0.0], [0.0, 0.0]], 1)
    """
    columns = terms[0].delta.shape[1]
    rows = torch.cat([term.rows for term in terms])
    own = torch.stack([term.diagonal * term.weight for term in terms])
    pull = ridge * float(rows.square().sum() + own.sum()) / columns
    anchored = rows.new_zeros(terms[0].delta.shape) if anchor is None else anchor
    held = own.sum(dim=0) + pull
    if not bool((held > 0).all()):
        return _pseudo(terms, rows, held, anchored, cutoff)
    start = anchored * pull
    wide = torch.empty_like(start)  # one buffer: pages that are new for each vector take longer than the sums
    for term, row in zip(terms, own, strict=True):
        start.addcmul_(wide.copy_(term.delta), row)
    start /= held
    errors = torch.cat([wide.copy_(term.delta).sub_(start) @ term.rows.T for term in terms], dim=1)  # (m, sum of r)
    if len(rows) < columns:
        scaled = rows / held
        small = upper_product(scaled, rows)
        small.diagonal().add_(1.0)
        factor = torch.linalg.cholesky(small, upper=True)
        return start.addmm_(torch.cholesky_solve(errors.T, factor, upper=True).T, scaled), 0
    square = upper_product(rows.T, rows.T)
    square.diagonal().add_(held)
    factor = torch.linalg.cholesky(square, upper=True)
    if len(rows) < len(start):
        return start.addmm_(errors, torch.cholesky_solve(rows.T, factor, upper=True).T), 0
    return start.add_(torch.cholesky_solve((errors @ rows).T, factor, upper=True).T), 0


def upper_product(left: Tensor, right: Tensor, *, blocks: int = 4) -> Tensor:
    """The upper triangle, diagonal included, of `left @ rightᵀ`, which is symmetric; below it stands anything.

    Args:
        left: (n, k).
        right: (n, k).
        blocks: How many blocks of rows; with b of them it takes (b + 1) / 2b of the time.

    Example:
        >>> upper_product(torch.eye(2), torch.eye(2), blocks=2).triu().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    product = left.new_zeros(len(left), len(right))
    step = -(-len(left) // blocks)
    for first in range(0, len(left), step):
        product[first : first + step, first:] = left[first : first + step] @ right[first:].T
    return product


def _pseudo(terms: Sequence[Term], rows: Tensor, held: Tensor, anchor: Tensor, cutoff: float) -> tuple[Tensor, int]:
    """The minimum nearest to the anchor, by the pseudo-inverse, and how many directions are unseen."""
    columns = len(held)
    errors = torch.cat([(term.delta - anchor) @ term.rows.T for term in terms], dim=1)
    if len(rows) < columns and not bool(held.any()):
        inverse, seen = pseudo_inverse(rows @ rows.T, cutoff)
        return anchor + errors @ inverse @ rows, columns - seen
    square = rows.T @ rows
    square.diagonal().add_(held)
    inverse, seen = pseudo_inverse(square, cutoff)
    pulled = sum(((term.delta - anchor) * (term.diagonal * term.weight) for term in terms), errors @ rows)
    return anchor + pulled @ inverse, columns - seen


def pseudo_inverse(square: Tensor, cutoff: float = CUTOFF) -> tuple[Tensor, int]:
    """The pseudo-inverse of a symmetric positive matrix, and its rank.

    Args:
        square: The matrix (n, n).
        cutoff: The fraction of the largest eigenvalue from which on an eigenvalue counts.

    Example:
        >>> inverse, rank = pseudo_inverse(torch.diag(torch.tensor([4.0, 0.0])).double())
        >>> inverse.tolist(), rank
        ([[0.25, 0.0], [0.0, 0.0]], 1)
    """
    values, vectors = torch.linalg.eigh(square)
    seen = values > cutoff * values[-1].clamp(min=0)
    return (vectors[:, seen] / values[seen]) @ vectors[:, seen].T, int(seen.sum())


@dataclass(frozen=True)
class Quadratic:
    """The settings that the methods of the family share, and the merge by them.

    Attributes:
        ridge: λ.
        weights: w, one per vector; 1 each if left out.
        others: What parameters get that are no matrix, unless there is an anchor, whose they are: the weighted mean of
            the deltas, their sum, nothing, or ("diagonal") each entry of a norm's scale weighted by the mean square of
            what it multiplies, the rest the mean.
        anchor: The vector A; zero if left out.
        pseudo: Whether directions that nothing has seen are the method's own choice, not to be warned of.
        cutoff: Without a ridge, the fraction of the largest eigenvalue from which on a direction is seen.
    """

    ridge: float = 0.0
    weights: Sequence[float] | None = None
    others: Others = "average"
    anchor: TaskVector | None = None
    pseudo: bool = False
    cutoff: float = CUTOFF

    def merge(
        self,
        vectors: Sequence[TaskVector],
        statistics: Sequence[Statistics],
        terms: Callable[[str, Sequence[Tensor], Sequence[float]], list[Term] | None],
    ) -> TaskVector:
        """Merges parameter by parameter, when each is needed.

        Args:
            vectors: The vectors.
            statistics: Theirs, for `others="diagonal"`; may be empty.
            terms: Maps a parameter's name, its deltas (m, …) as they are stored and the weights to the terms of the
                quadratic; to `None` if it has none.

        Raises:
            ValueError: If a setting is out of range.
        """
        weights, wide = self.checked_weights(vectors), wide_dtype(vectors)
        told: set[str] = set()

        def compute(name: str) -> Tensor:
            if len(shape := vectors[0].deltas.shapes[name]) > 1 and shape.numel():
                deltas = [vector.deltas[name] for vector in vectors]
                check_finite_deltas(deltas, name, vectors)
                if (own := terms(name, deltas, weights)) is not None:
                    start = None if self.anchor is None else self.anchor.deltas[name].double().flatten(1)
                    merged, unseen = minimum(own, ridge=self.ridge, anchor=start, cutoff=self.cutoff)
                    self._tell(name, unseen, merged.shape[1], told)
                    return merged.to(wide).reshape(shape)
            return rest.deltas[name]

        rest = self._merge_others(vectors, statistics, weights)
        return map_parameters(compute, vectors)

    def checked_weights(self, vectors: Sequence[TaskVector]) -> list[float]:
        """The weights, once all settings are known to be in range."""
        check_finite_number("ridge", self.ridge)
        if self.ridge < 0:
            raise ValueError(f"ridge must be at least 0, got {self.ridge}")
        check_known("treatment of what is no matrix:", self.others, get_args(Others))
        weights = [1.0] * len(vectors) if self.weights is None else check_weights(self.weights, vectors)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"weights must be at least 0, and one of them more, got {weights}")
        return weights

    def _tell(self, name: str, unseen: int, columns: int, told: set[str]) -> None:
        if unseen and not self.pseudo and not told:
            told.add(name)
            logger.warning(
                "%r and perhaps others: the images show nothing of %d of %d directions, which stay at the base; pass "
                "ridge=%g, or collect statistics of more images",
                *(name, unseen, columns, MENDING),
            )

    def _merge_others(
        self, vectors: Sequence[TaskVector], statistics: Sequence[Statistics], weights: Sequence[float]
    ) -> TaskVector:
        if self.anchor is not None:
            return self.anchor
        shares = [weight / sum(weights) for weight in weights]
        plain = {"base": [0.0] * len(weights), "sum": list(weights)}.get(self.others, shares)
        summed, wide = map_sum(lambda name: plain, vectors), wide_dtype(vectors)

        def compute(name: str) -> Tensor:
            diagonals = [own.diagonal(name) for own in statistics] if self.others == "diagonal" else []
            known = [diagonal.double() for diagonal in diagonals if diagonal is not None]
            if not known or len(known) < len(vectors):
                return summed.deltas[name]
            seen = torch.stack(known) * torch.tensor(shares, dtype=torch.float64).unsqueeze(1)
            total = seen.sum(dim=0)
            mean = (stacked(vectors, name, torch.float64) * seen).sum(dim=0) / total
            return torch.where(total > 0, mean, summed.deltas[name].double()).to(wide)

        return map_parameters(compute, vectors)


def gram_terms(
    statistics: Sequence[Statistics], *, shrink: float = 1.0, prefix: bool = False
) -> Callable[[str, Sequence[Tensor], Sequence[float]], list[Term] | None]:
    """The terms by the Gram matrices of statistics.

    Args:
        statistics: One per vector.
        shrink: Factor of the entries beside the diagonal, in [0, 1].
        prefix: Whether to take those of inputs in the merged model.
    """

    def terms(name: str, deltas: Sequence[Tensor], weights: Sequence[float]) -> list[Term] | None:
        grams = [own.prefix(name) if prefix else own.gram(name) for own in statistics]
        if is_embedding(name) or any(gram is None for gram in grams):
            return None
        wanted = []
        for delta, gram, weight in zip(deltas, grams, weights, strict=True):
            if gram is not None:
                factor = gram.factor.to(delta.device, torch.float64)
                diagonal = (1 - shrink) * factor.square().sum(dim=0) + gram.diagonal().to(delta.device)
                wanted.append(Term(delta.flatten(1), factor * shrink**0.5, diagonal, weight))
        return wanted

    return terms


def delta_terms(
    scale: Callable[[Tensor], Tensor],
) -> Callable[[str, Sequence[Tensor], Sequence[float]], list[Term] | None]:
    """The terms of methods without data, which take a delta's own rows for the inputs: `G = Dᵀ D` after `scale`."""

    def terms(name: str, deltas: Sequence[Tensor], weights: Sequence[float]) -> list[Term] | None:
        if not is_map(name, deltas[0].ndim):
            return None
        nothing = deltas[0].new_zeros(deltas[0].shape[1], dtype=torch.float64)
        alive = [(delta.double(), weight) for delta, weight in zip(deltas, weights, strict=True) if bool(delta.any())]
        return [Term(delta, scale(delta), nothing, weight) for delta, weight in alive if weight > 0] or None

    return terms


def is_embedding(name: str) -> bool:
    """Whether a parameter is looked up, not multiplied."""
    return "embedding" in name and "patch_embedding" not in name
