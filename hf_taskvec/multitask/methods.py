"""Ways to pack the vectors of several tasks: one decorated function each, as merge methods are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from hf_taskvec.errors import UnknownNameError, check_finite_number, check_fraction, check_known, check_positive
from hf_taskvec.merging.engine import check_finite_delta, stacked, wide_dtype
from hf_taskvec.merging.modifiers import inner_merge
from hf_taskvec.merging.registry import MergeMethod
from hf_taskvec.multitask.value import COEFFICIENTS, Combine, TaskPart
from hf_taskvec.text import table
from hf_taskvec.vectors.compression import PACKINGS, compress, tell_if_ruined
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import TensorDeltas
from hf_taskvec.weights.dtypes import as_dtype
from hf_taskvec.weights.packed import BITS, Packed, PackedDeltas, Per, as_it_is, in_bits, in_factors, in_levels

WHOLE = "float32"  # or float64: what is shared, as it was computed
METHODS: dict[str, MergeMethod] = {}


@dataclass(frozen=True)
class Pieces:
    """What a method makes of T vectors; see `MultiTaskVector`."""

    combine: Combine
    shared: PackedDeltas
    parts: Sequence[TaskPart]


Pack = Callable[..., Pieces]


def pack_method(name: str, *, paper: str) -> Callable[[Pack], Pack]:
    """Registers a function as a way to pack: vectors of one base in their order, then settings by keyword.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> "emr" in METHODS
        True
    """

    def register(function: Pack) -> Pack:
        if name in METHODS:
            raise ValueError(f"there is a way to pack {name!r} already; choose another name")
        METHODS[name] = MergeMethod(name, cast(Callable[..., TaskVector], function), paper)
        return function

    return register


def get_pack_method(name: str) -> MergeMethod:
    """The registered way to pack, or an `UnknownNameError` that offers the nearest name.

    Example:
        >>> get_pack_method("tall_masks").paper
        '2405.07813'
    """
    if name not in METHODS:
        raise UnknownNameError("way to pack", name, METHODS)
    return METHODS[name]


def pack_methods_table() -> str:
    """A Markdown table of every way to pack: what it does, its paper, its defaults.

    Example:
        >>> print(pack_methods_table().splitlines()[0])
        | method | what each task keeps of its own | paper | settings |
    """
    rows = []
    for name, method in sorted(METHODS.items()):
        settings = ", ".join(f"`{key}={value!r}`" for key, value in method.defaults.items()) or "-"
        rows.append([f"`{name}`", method.summary, f"[{method.paper}](https://arxiv.org/abs/{method.paper})", settings])
    return table(["method", "what each task keeps of its own", "paper", "settings"], rows, align="llll") + "\n"


def run_pack(vectors: Sequence[TaskVector], name: str, settings: Mapping[str, Any]) -> tuple[Pieces, dict[str, Any]]:
    """What a method makes of vectors, and every setting with its value."""
    method = get_pack_method(name)
    settled = method.settled(vectors, settings)
    return cast(Pieces, method.merge(vectors, **settled)), settled


# -- masks ------------------------------------------------------------------------------------------------------------


@pack_method("tall_masks", paper="2405.07813")
def tall_masks(
    vectors: Sequence[TaskVector],
    *,
    strength: float = 0.4,
    strengths: Sequence[float] | None = None,
    of: str = "task_arithmetic",
    of_settings: Mapping[str, Any] | None = None,
    shared: str = WHOLE,
) -> Pieces:
    """One bit an entry: where its delta is at least `strength` times as large as what separates it from the merge.

    The vector of a task is the merge there and 0 elsewhere. The paper's own merge is the sum, or TIES with its agreeing
    deltas summed, where `of="ties"` takes their mean. The authors' code leaves out what is exactly as large; its saving
    (`np.save` with its arguments in the wrong order) and loading (`torch.load` of that file) of masks cannot work.

    Args:
        vectors: Vectors of one base.
        strength: The paper's lambda, positive, for all vectors.
        strengths: One for each instead, as `choose_strengths` finds them on validation data from .2 to .6.
        of: Merge method of what is shared.
        of_settings: Its settings.
        shared: How what is shared is kept: "float32", or a packing of `TaskVector.compress`.

    Raises:
        ValueError: If a strength is not positive, or there are not as many as vectors.
        UnknownNameError: If there is no such merge method or packing.
    """
    each = [strength] * len(vectors) if strengths is None else list(strengths)
    if len(each) != len(vectors):
        raise ValueError(f"strengths must be {len(vectors)} numbers, one a vector, got {len(each)}")
    for value in each:
        check_positive("strength", value)
    _check_packing(shared)
    merged, wide = inner_merge(of, of_settings, vectors), wide_dtype(vectors)
    kept, masks = dict[str, Tensor](), [dict[str, Packed]() for _ in vectors]
    for name in vectors[0].deltas:
        kept[name] = total = merged.deltas[name].to(wide)
        for index, (vector, value) in enumerate(zip(vectors, each, strict=True)):
            delta = vector.deltas[name].to(wide)
            check_finite_delta(delta, name, vectors, index)
            masks[index][name] = in_bits(delta.abs() >= (total - delta).abs().mul_(value))
    return Pieces("masked", _kept(kept, shared), [TaskPart(PackedDeltas(own)) for own in masks])


@pack_method("emr", paper="2405.17461")
def emr(vectors: Sequence[TaskVector], *, shared: str = WHOLE) -> Pieces:
    """One bit an entry and one factor: where its delta has the sign of the sum; there the largest such delta is shared.

    The factor keeps the sum of magnitudes over the whole vector, as in the paper; the authors' code takes the mean over
    tensors of each tensor's mean. An entry whose deltas sum to exactly 0 is 0.

    Args:
        vectors: Vectors of one base.
        shared: As in `tall_masks`.

    Raises:
        UnknownNameError: If there is no such packing.
    """
    _check_packing(shared)
    wide = wide_dtype(vectors)
    kept, masks = dict[str, Tensor](), [dict[str, Packed]() for _ in vectors]
    sizes, reached = torch.zeros(len(vectors), dtype=torch.float64), torch.zeros(len(vectors), dtype=torch.float64)
    for name in vectors[0].deltas:
        deltas = stacked(vectors, name, wide)
        sign = deltas.sum(dim=0).sign_()
        agrees = deltas * sign > 0
        largest = deltas.abs().mul_(agrees).amax(dim=0)
        kept[name] = largest * sign
        for index, mask in enumerate(agrees):
            masks[index][name] = in_bits(mask)
            sizes[index] += deltas[index].abs().sum(dtype=torch.float64)
            reached[index] += largest[mask].sum(dtype=torch.float64)
    factors = (sizes / reached).where(reached > 0, 0.0).tolist()
    parts = [TaskPart(PackedDeltas(own), factor) for own, factor in zip(masks, factors, strict=True)]
    return Pieces("masked", _kept(kept, shared), parts)


# -- few directions ---------------------------------------------------------------------------------------------------


@pack_method("tsv_compress", paper="2412.00081")
def tsv_compress(vectors: Sequence[TaskVector], *, rank: float = 0.0, dtype: str = "float32") -> Pieces:
    """The leading 1/T of each matrix's singular vectors; other parameters in full. Nothing is shared.

    Args:
        vectors: Vectors of one base.
        rank: Fraction of the singular vectors kept instead, in (0, 1]; 0 for the paper's 1/T.
        dtype: Of the singular vectors.

    Raises:
        ValueError: If `rank` is out of range, or `dtype` is no floating one.
    """
    if rank:
        check_fraction("rank", rank)
    kind, share = as_dtype(dtype), rank or 1 / len(vectors)

    def own(index: int) -> PackedDeltas:
        items = {}
        for name in vectors[index].deltas:
            delta = _checked(vectors, index, name)
            few = max(1, int(share * min(delta.flatten(1).shape) + 1e-9)) if delta.ndim == 2 and delta.numel() else 0
            items[name] = in_factors(delta, few, dtype=kind) if few else as_it_is(delta)
        return PackedDeltas(items)

    return Pieces("sum", PackedDeltas({}), [TaskPart(own(index)) for index in range(len(vectors))])


@pack_method("twin", paper="2406.15479")
def twin(
    vectors: Sequence[TaskVector],
    *,
    of: str = "task_arithmetic",
    of_settings: Mapping[str, Any] | None = None,
    scaling: float = 0.3,
    rank: float = 0.05,
    dtype: str = "bfloat16",
    shared: str = WHOLE,
) -> Pieces:
    """The leading singular vectors of what separates it from the merge, which is shared; parameters without in full.

    Where tasks are not known, `hf_taskvec.routing.twin` makes a model of it whose router mixes them, as the paper does.

    Args:
        vectors: Vectors of one base.
        of: Merge method of what is shared.
        of_settings: Its settings.
        scaling: Factor of the merge.
        rank: Fraction of each matrix's singular vectors kept, in (0, 1].
        dtype: Of the singular vectors.
        shared: As in `tall_masks`.

    Raises:
        ValueError: If `rank` or `scaling` is out of range.
        UnknownNameError: If there is no such merge method or packing.
    """
    check_fraction("rank", rank)
    check_finite_number("scaling", scaling)
    _check_packing(shared)
    merged, kind, wide = inner_merge(of, of_settings, vectors), as_dtype(dtype), wide_dtype(vectors)
    kept = _kept({name: merged.deltas[name].to(wide) * scaling for name in vectors[0].deltas}, shared)
    parts = [dict[str, Packed]() for _ in vectors]
    for name in kept:
        common = kept[name]
        for index, items in enumerate(parts):
            items[name] = _in_few_directions(_checked(vectors, index, name).to(wide) - common, rank, kind)
    return Pieces("sum", kept, [TaskPart(PackedDeltas(items)) for items in parts])


# -- few bits and few vectors -----------------------------------------------------------------------------------------


@pack_method("rtvq", paper="2503.06921")
def rtvq(
    vectors: Sequence[TaskVector], *, base_bits: int = 3, bits: int = 2, per: Per = "row", clip: bool = True
) -> Pieces:
    """Two bits an entry: its offset from the mean of the vectors, which is shared in three.

    Offsets are taken from the quantised mean, so that they make good what it lost. The paper's levels are one set for a
    whole tensor over all of its range: `per="tensor"` and `clip=False`. Parameters of one dimension stay as they are.

    Args:
        vectors: Vectors of one base.
        base_bits: Bits of the mean, 8, 4, 3 or 2.
        bits: Bits of the offsets.
        per: As in `TaskVector.compress`.
        clip: As in `TaskVector.compress`.

    Raises:
        UnknownNameError: If there is no such number of bits.
    """
    for value in (base_bits, bits):
        check_known("number of bits", str(value), map(str, BITS))
    wide = wide_dtype(vectors)
    mean, parts = dict[str, Packed](), [dict[str, Packed]() for _ in vectors]
    for name in vectors[0].deltas:
        deltas = stacked(vectors, name, wide)
        mean[name] = _in_levels(name, deltas.mean(dim=0), base_bits, per, clip)
        common = mean[name].delta()
        for items, delta in zip(parts, deltas, strict=True):
            items[name] = _in_levels(name, delta - common, bits, per, clip)
    return Pieces("sum", PackedDeltas(mean), [TaskPart(PackedDeltas(items)) for items in parts])


@pack_method("basis", paper="2502.01015")
def basis(vectors: Sequence[TaskVector], *, atoms: int = 0, shared: str = WHOLE) -> Pieces:
    """M numbers: its coordinates in the M leading principal directions of all vectors, which are shared.

    Directions are those of the whole vectors, not centred. With as many atoms as vectors nothing is lost.

    Args:
        vectors: Vectors of one base.
        atoms: How many; 0 for half as many as there are vectors.
        shared: As in `tall_masks`; of the atoms.

    Raises:
        ValueError: If there are more atoms than vectors.
        UnknownNameError: If there is no such packing.
    """
    count = atoms or max(1, len(vectors) // 2)
    if not 0 < count <= len(vectors):
        raise ValueError(f"atoms must be from 1 to {len(vectors)}, the number of vectors, got {atoms}")
    _check_packing(shared)
    wide, gram = wide_dtype(vectors), torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for name in vectors[0].deltas:
        flat = stacked(vectors, name, wide).reshape(len(vectors), -1).double()
        gram += flat @ flat.T
    squares, directions = torch.linalg.eigh(gram)
    top = directions[:, -count:].flip(1)  # (T, M)
    norms = squares[-count:].flip(0).clamp(min=0).sqrt()
    mixing = (top / norms.where(norms > 0, torch.inf)).T  # atoms of nothing are nothing
    kept = {name: _mixed(mixing, stacked(vectors, name, wide)) for name in vectors[0].deltas}
    rows = [row.clone(memory_format=torch.contiguous_format) for row in (top * norms).to(wide)]
    parts = [TaskPart(PackedDeltas({COEFFICIENTS: as_it_is(row)})) for row in rows]
    return Pieces("span", _kept(kept, shared), parts)


def _mixed(mixing: Tensor, deltas: Tensor) -> Tensor:
    """Sums (M, …) of T deltas by factors (M, T), in float64."""
    mixed: Tensor = torch.tensordot(mixing, deltas.double(), dims=1)
    return mixed.to(deltas.dtype)


def _in_levels(name: str, delta: Tensor, bits: int, per: Per, clip: bool) -> Packed:
    if delta.ndim < 2 or not delta.numel():
        return as_it_is(delta)
    item = in_levels(delta, bits, per=per, clip=clip)
    tell_if_ruined(name, delta, item.delta())
    return item


def _in_few_directions(delta: Tensor, rank: float, dtype: torch.dtype) -> Packed:
    if delta.ndim < 2 or not delta.numel():
        return as_it_is(delta)
    return in_factors(delta, max(1, round(rank * min(delta.flatten(1).shape))), dtype=dtype)


def _checked(vectors: Sequence[TaskVector], index: int, name: str) -> Tensor:
    """One delta of one vector, in float32 or wider."""
    delta = vectors[index].deltas[name].to(wide_dtype(vectors))
    check_finite_delta(delta, name, vectors, index)
    return delta


def _check_packing(shared: str) -> None:
    check_known("packing", shared, (WHOLE, *PACKINGS))


def _kept(tensors: Mapping[str, Tensor], packing: str) -> PackedDeltas:
    """What is shared, packed."""
    if packing == WHOLE:
        return PackedDeltas({name: as_it_is(tensor) for name, tensor in tensors.items()})
    return compress(TensorDeltas(tensors), packing, {})[0]
