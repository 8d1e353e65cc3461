"""Dtypes and devices that a delta can have, by value or by name."""

from __future__ import annotations

import torch

from hf_taskvec.errors import nearest

DTYPE_CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_CODES}


def as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A floating dtype, given as one or by its name.

    Raises:
        ValueError: If there is none of that name, or it cannot be a delta's.

    Example:
        >>> as_dtype("bfloat16"), as_dtype("torch.float16"), as_dtype(torch.float32)
        (torch.bfloat16, torch.float16, torch.float32)
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        close = nearest(name[:100], list(DTYPES))
        hint = f". Did you mean {close!r}?" if close else ""
        raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPE_CODES))}, got {dtype!s:.80}{hint}")
    return DTYPES[name]


def as_device(device: str | torch.device) -> torch.device:
    """A device that can be used, with its index: each thread has a current device of its own.

    Raises:
        ValueError: If it cannot.

    Example:
        >>> as_device("cpu")
        device(type='cpu')
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0][:300]
        raise ValueError(f"the device {str(device)[:80]!r} cannot be used: {reason}") from None
