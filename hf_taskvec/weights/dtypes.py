"""Dtypes that a delta can have, by value or by name."""

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
