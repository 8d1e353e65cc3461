"""Deltas in few bits: kept as they lie in the file and decoded, parameter by parameter, when they are used."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hf_taskvec.errors import CheckpointError, check_known
from hf_taskvec.weights.deltas import Deltas, TensorDeltas

Per = Literal["row", "tensor"]
Codec = Literal["plain", "levels", "sign", "sparse", "factors", "mask"]
BITS = (8, 4, 3, 2)
_GROUP = 8  # codes that fill whole bytes, whatever their bits
_SLAB = 1 << 16  # entries decoded at a time: they stay in the cache while they are scaled
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of a row's range that its levels may span
_PARTS: dict[Codec, tuple[str, ...]] = {
    "plain": ("values",),
    "levels": ("codes", "scales", "zeros"),
    "sign": ("codes", "scales"),
    "sparse": ("codes", "values"),
    "factors": ("left", "right"),
    "mask": ("codes",),
}


@dataclass(frozen=True)
class Packed:
    """One delta in few bits.

    Attributes:
        codec: How its parts are read: "plain" as it was; "levels" as (code - zero) * scale, "sign" as plus or minus
            scale, with one scale per row or for all; "sparse" as values where a bit is set; "factors" as a product;
            "mask" as 1 where a bit is set and 0 elsewhere.
        shape: Shape of the delta.
        parts: Its tensors by name; codes are bytes (rows, bytes), each row begins with a new byte.
        bits: Bits of a code.
    """

    codec: Codec
    shape: torch.Size
    parts: Mapping[str, Tensor]
    bits: int = 1

    @property
    def num_bytes(self) -> int:
        """How much is stored."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.parts.values())

    @property
    def header(self) -> dict[str, Any]:
        """What a file must tell besides the tensors."""
        return {"codec": self.codec, "shape": list(self.shape), "bits": self.bits}

    def check(self, name: str) -> None:
        """Raises a `CheckpointError` if the parts are not those of such a delta."""
        codes, count = self.parts.get("codes"), self.shape.numel()
        wrong = None
        if set(self.parts) != set(_PARTS[self.codec]):
            wrong = f"has the parts {', '.join(sorted(self.parts))} instead of {', '.join(_PARTS[self.codec])}"
        elif not all(tensor.is_floating_point() for key, tensor in self.parts.items() if key != "codes"):
            wrong = "has parts that are not floating"
        elif self.codec == "plain" and self.parts["values"].shape != self.shape:
            wrong = f"has {tuple(self.parts['values'].shape)} values"
        elif self.codec == "factors":
            left, right = self.parts["left"].shape, self.parts["right"].shape
            if len(left) != 2 or len(right) != 2 or left[1] != right[0] or left[0] * right[1] != count:
                wrong = f"has factors of {tuple(left)} and {tuple(right)}"
        elif codes is not None:
            rows = codes.shape[0] if codes.ndim == 2 else 0
            if (
                not rows
                or count % rows
                or codes.dtype != torch.uint8
                or codes.shape[1] != _bytes(count // rows, self.bits)
            ):
                wrong = f"has a bit field of {tuple(codes.shape)} {codes.dtype}, which is truncated or another's"
            elif any(self.parts[key].shape != (rows,) for key in ("scales", "zeros") if key in self.parts):
                wrong = f"has not one scale for each of {rows} rows"
        if wrong is not None:
            raise CheckpointError(f"the packed delta {name!r} of shape {tuple(self.shape)} {wrong}")

    def delta(self) -> Tensor:
        """The delta, in float32 or as it was.

        Raises:
            CheckpointError: If a bit field tells another number of entries than there are.
        """
        if self.codec == "plain":
            return self.parts["values"]
        if self.codec == "factors":
            return (self.parts["left"].float() @ self.parts["right"].float()).view(self.shape)
        if self.codec == "mask":
            return self.bits_set().float()
        if self.codec == "sparse":
            result, places = torch.zeros(self.shape.numel()), self.bits_set().view(-1)
            if int(places.sum()) != len(self.parts["values"]):
                raise CheckpointError(
                    f"a bit field has {int(places.sum())} bits set for {len(self.parts['values'])} values"
                )
            result[places] = self.parts["values"].float()
            return result.view(self.shape)
        return self._levels()

    def bits_set(self) -> Tensor:
        """Where the bit field of a "mask", or of what is "sparse", has a bit set."""
        bits = np.unpackbits(self.parts["codes"].numpy(), count=self.shape.numel(), bitorder="little")
        return torch.from_numpy(bits.view(np.bool_)).view(self.shape)

    def _levels(self) -> Tensor:
        """The delta of codes with a scale per row; slab by slab, in the cache."""
        codes, scales = self.parts["codes"], self.parts["scales"].unsqueeze(1)
        zeros = self.parts["zeros"].float().unsqueeze(1) if "zeros" in self.parts else None
        rows = codes.shape[0]
        columns = self.shape.numel() // rows
        result = torch.empty(rows, columns)
        step = max(1, _SLAB // max(columns, 1))
        for start in range(0, rows, step):
            here = slice(start, start + step)
            values = unpacked(codes[here], self.bits, columns, signs=zeros is None)
            torch.mul(values if zeros is None else values.sub_(zeros[here]), scales[here], out=result[here])
        return result.view(self.shape)


class PackedDeltas(Deltas):
    """Deltas of which each is decoded when it is taken, and not kept."""

    def __init__(self, items: Mapping[str, Packed]) -> None:
        self.items_packed = dict(items)
        self.shapes = {name: item.shape for name, item in self.items_packed.items()}
        plain = {item.parts["values"].dtype for item in self.items_packed.values() if item.codec == "plain"}
        self.dtype = functools.reduce(torch.promote_types, plain, torch.float32)
        self.device = torch.device("cpu")

    def __getitem__(self, name: str) -> Tensor:
        return self.items_packed[name].delta()

    @property
    def num_bytes(self) -> int:
        """How much is stored."""
        return sum(item.num_bytes for item in self.items_packed.values())

    @property
    def stored(self) -> TensorDeltas:
        """The tensors as they lie in a file, each under `parameter/part`."""
        pairs = ((name, item) for name, item in self.items_packed.items())
        return TensorDeltas({f"{name}/{key}": tensor for name, item in pairs for key, tensor in item.parts.items()})

    @property
    def header(self) -> dict[str, Any]:
        """What a file must tell besides the tensors."""
        return {name: item.header for name, item in self.items_packed.items()}

    @classmethod
    def from_stored(cls, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> PackedDeltas:
        """Reads what `stored` and `header` gave.

        Raises:
            CheckpointError: If they do not belong together, or a bit field is truncated.
        """
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in header}
        for path, tensor in tensors.items():
            name, _, key = path.rpartition("/")
            if name not in parts:
                raise CheckpointError(
                    f"the packed vector holds {path[:200]!r}, of which its configuration tells nothing"
                )
            parts[name][key] = tensor
        items = {name: _read(name, header[name], parts[name]) for name in header}
        for name, item in items.items():
            item.check(name)
        return cls(items)


def _read(name: str, header: Any, parts: Mapping[str, Tensor]) -> Packed:
    """One entry of a configuration, with its tensors."""
    if not isinstance(header, Mapping) or set(header) != {"codec", "shape", "bits"}:
        raise CheckpointError(f"the configuration does not tell codec, shape and bits of {name[:200]!r}")
    shape, bits = header["shape"], header["bits"]
    sizes = isinstance(shape, list) and all(type(size) is int and 0 <= size < 1 << 40 for size in shape)
    if header["codec"] not in get_args(Codec) or not sizes or bits not in (1, *BITS):
        raise CheckpointError(f"{name[:200]!r} has an unknown codec, shape or number of bits; update hf_taskvec")
    return Packed(header["codec"], torch.Size(shape), parts, bits)


# -- packing ----------------------------------------------------------------------------------------------------------


def in_levels(delta: Tensor, bits: int, *, per: Per = "row", clip: bool = True) -> Packed:
    """A delta in 2^bits even levels per row, or for all of it.

    Args:
        delta: The delta; rows are along its first dimension.
        bits: 8, 4, 3 or 2.
        per: What a scale is for.
        clip: Whether a row's levels may span less than its range where that lowers its squared error, as it does with
            few bits. One of four levels is exactly 0 only if that is better too; without clipping, and with more
            levels, one always is.

    Example:
        >>> in_levels(torch.tensor([[0.0, 3.0, 1.2, -4.0], [0.0, 0.0, 0.0, 0.0]]), 3, clip=False).delta()
        tensor([[ 0.,  3.,  1., -4.],
                [ 0.,  0.,  0.,  0.]])
    """
    check_known("number of bits", str(bits), map(str, BITS))
    rows, most = _rows(delta, per), 2**bits - 1
    low, high = rows.amin(dim=1).clamp(max=0), rows.amax(dim=1).clamp(min=0)
    best, scales = torch.full_like(low, torch.inf), torch.zeros_like(low)
    zeros, codes = torch.zeros_like(low), torch.zeros_like(rows, dtype=torch.uint8)
    for share in _SHARES if clip and bits < 8 else (1.0,):
        step = ((high - low) * (share / most)).float().to(rows.dtype)
        step = torch.where(step > 0, step, 1.0)
        exact = (-low * share / step).round().clamp(0, most)
        for zero in (exact, torch.full_like(exact, most / 2)) if clip and bits == 2 else (exact,):
            tried = (rows / step.unsqueeze(1)).add_(zero.unsqueeze(1)).round_().clamp_(0, most)
            error = ((tried - zero.unsqueeze(1)).mul_(step.unsqueeze(1)).sub_(rows)).square_().sum(dim=1)
            better = error < best
            best, scales = torch.where(better, error, best), torch.where(better, step, scales)
            zeros = torch.where(better, zero, zeros)
            codes[better] = tried[better].to(torch.uint8)
    scales = torch.where(high > low, scales, 0.0)
    parts = {"codes": packed(codes, bits), "scales": scales.float(), "zeros": zeros.half()}
    return Packed("levels", delta.shape, parts, bits)


def in_signs(delta: Tensor, *, per: Per = "tensor") -> Packed:
    """A delta as its signs times its mean magnitude, per row or over all of it; 0 counts as positive.

    Example:
        >>> in_signs(torch.tensor([[1.0, -3.0]])).delta()
        tensor([[ 2., -2.]])
    """
    rows = _rows(delta, per)
    scales = rows.abs().mean(dim=1).float()
    return Packed("sign", delta.shape, {"codes": packed((rows >= 0).to(torch.uint8), 1), "scales": scales})


def in_few_entries(delta: Tensor, smallest: float, *, dtype: torch.dtype = torch.bfloat16) -> Packed:
    """A delta without its entries below a magnitude: one bit an entry, and the values of those that are left.

    Example:
        >>> in_few_entries(torch.tensor([0.5, -2.0, 1.0]), 1.0).delta()
        tensor([ 0., -2.,  1.])
    """
    flat = delta.reshape(-1)
    left = (flat.abs() >= smallest) & (flat != 0)
    return Packed(
        "sparse", delta.shape, {"codes": packed(left.to(torch.uint8).view(1, -1), 1), "values": flat[left].to(dtype)}
    )


def in_factors(delta: Tensor, rank: int, *, dtype: torch.dtype = torch.bfloat16) -> Packed:
    """A delta cut to its leading singular values, as two factors.

    Example:
        >>> in_factors(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), 1).delta().abs()
        tensor([[4., 0.],
                [0., 0.]])
    """
    left, values, right = torch.linalg.svd(delta.reshape(len(delta), -1).double(), full_matrices=False)
    root = values[:rank].sqrt()
    parts = {"left": (left[:, :rank] * root).to(dtype), "right": (root.unsqueeze(1) * right[:rank]).to(dtype)}
    return Packed("factors", delta.shape, parts)


def in_bits(mask: Tensor) -> Packed:
    """A mask, one bit an entry.

    Example:
        >>> in_bits(torch.tensor([[True, False]])).delta()
        tensor([[1., 0.]])
    """
    return Packed("mask", mask.shape, {"codes": packed(mask.reshape(1, -1).to(torch.uint8), 1)})


def as_it_is(delta: Tensor) -> Packed:
    """A delta that is not packed."""
    return Packed("plain", delta.shape, {"values": delta.contiguous()})


def _rows(delta: Tensor, per: Per) -> Tensor:
    """A delta as the rows that a scale is for, in float32 or wider."""
    check_known("unit of a scale", per, get_args(Per))
    return delta.reshape(len(delta) if per == "row" else 1, -1).to(torch.promote_types(delta.dtype, torch.float32))


def _bytes(count: int, bits: int) -> int:
    """Bytes of a row of so many codes."""
    return -(-count * bits // _GROUP) if bits != 3 else -(-count // _GROUP) * 3


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes (rows, n), bytes below 2^bits, in as few bytes (rows, m); the first code is in the lowest bits.

    Example:
        >>> packed(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4)
        tensor([[33,  3]], dtype=torch.uint8)
    """
    array = codes.contiguous().numpy()
    if bits == 8:
        return codes.contiguous()
    single = (array[..., None] >> np.arange(bits, dtype=np.uint8)) & 1  # (rows, n, bits)
    flat = np.packbits(single.reshape(len(array), -1), axis=1, bitorder="little")
    padded = np.zeros((len(array), _bytes(array.shape[1], bits)), np.uint8)
    padded[:, : flat.shape[1]] = flat
    return torch.from_numpy(padded)


def unpacked(fields: Tensor, bits: int, count: int, *, signs: bool = False) -> Tensor:
    """The first `count` codes of each row (rows, m) of bytes, in float32; single bits as -1 and 1 if they are signs.

    Example:
        >>> unpacked(torch.tensor([[33, 3]], dtype=torch.uint8), 4, 3)
        tensor([[1., 2., 3.]])
    """
    if bits == 8:
        return fields[:, :count].float()
    array = fields.numpy()
    if bits == 3:  # three bytes are two indices of twelve bits, each four codes
        first, second, third = (array[:, place::3].astype(np.uint16) for place in range(3))
        array = np.stack([first | (second & 15) << 8, second >> 4 | third << 4], axis=2).reshape(len(array), -1)
    values = np.take(_table(bits, signs), array, axis=0).reshape(len(array), -1)
    return torch.from_numpy(values[:, :count])


@functools.cache
def _table(bits: int, signs: bool) -> np.ndarray:
    """What each byte (of 3 bits: each twelve bits) holds, (256, codes) in float32."""
    width = 12 if bits == 3 else 8
    codes = (np.arange(2**width)[:, None] >> np.arange(0, width, bits)) & (2**bits - 1)
    table: np.ndarray = (2 * codes - 1 if signs else codes).astype(np.float32)
    return table
