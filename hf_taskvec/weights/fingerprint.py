"""Fingerprints of weights: equal exactly when names, shapes, dtypes and values are equal, whatever the order."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
import xxhash
from torch import Tensor

from hf_taskvec.weights.arithmetic import PIECE


def tensor_hash(tensor: Tensor) -> str:
    """The hash of one tensor's shape, dtype and values.

    Half precision counts as the float32 it widens to without loss, so a float16 file and its float32 model agree.
    """
    values = tensor.detach().contiguous()
    dtype = torch.float32 if values.dtype in (torch.float16, torch.bfloat16) else values.dtype
    digest = xxhash.xxh3_128(f"{tuple(values.shape)} {dtype}".encode())
    for piece in values.view(-1).split(PIECE):  # a whole embedding in float32 would be larger than the rest together
        digest.update(piece.to("cpu", dtype).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensor_hashes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The hash of each tensor, sorted by name, computed by as many threads as torch uses."""
    names = sorted(tensors)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return dict(zip(names, pool.map(lambda name: tensor_hash(tensors[name]), names), strict=True))


def fingerprint(hashes: Mapping[str, str]) -> str:
    """One fingerprint from the hashes of all tensors."""
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()
