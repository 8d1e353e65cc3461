"""The order of a run's images: a permutation per epoch that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from hf_taskvec.tasks.pixels import PADDING


class ShuffledSampler(Sampler[int]):
    """A permutation per epoch that depends on seed and epoch alone, padded so that all processes get full batches.

    Padding stands for no image (`PADDING`), so no image counts twice and several processes take the very steps of one.
    """

    def __init__(self, size: int, *, seed: int, multiple: int) -> None:
        self.size, self.seed, self.multiple = size, seed, multiple
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        yield from torch.randperm(self.size, generator=generator).tolist()
        yield from [PADDING] * (len(self) - self.size)

    def __len__(self) -> int:
        return -(-self.size // self.multiple) * self.multiple
