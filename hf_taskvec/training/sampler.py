"""The order of a run's images: a permutation per epoch that depends on seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from hf_taskvec.tasks.pixels import PADDING


class ShuffledSampler(Sampler[int]):
    """A permutation per epoch that depends on seed and epoch alone, padded so that all processes get full batches.

    Padding stands for no image (`PADDING`), so no image counts twice and several processes take the very steps of one.

    Args:
        size: Number of images.
        seed: Seed of the permutations.
        multiple: The padded length is a multiple of this.
        shuffle: Whether to permute at all; without it every epoch has the images in their own order.

    Example:
        >>> sampler = ShuffledSampler(3, seed=0, multiple=4)
        >>> sorted(sampler)
        [-1, 0, 1, 2]
    """

    def __init__(self, size: int, *, seed: int, multiple: int, shuffle: bool = True) -> None:
        self.size, self.seed, self.multiple, self.shuffle = size, seed, multiple, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the permutation; the data loader of `accelerate` calls it at each epoch's start."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
            yield from torch.randperm(self.size, generator=generator).tolist()
        else:
            yield from range(self.size)
        yield from [PADDING] * (len(self) - self.size)

    def __len__(self) -> int:
        return -(-self.size // self.multiple) * self.multiple
