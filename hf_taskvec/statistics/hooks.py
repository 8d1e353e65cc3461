"""What the maps of a vision tower see: hooks that sum their inputs while images pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_taskvec.errors import NonFiniteError
from hf_taskvec.statistics.maps import inputs_of, rows_of, width_of
from hf_taskvec.statistics.sums import GramSum


class Sums:
    """Gram matrices and plain sums by name, gathered over processes and turned into a value's tensors.

    Attributes:
        grams: By `<kind>/<map>`.
        squares: By `<kind>/<parameter>`: sums, of as many rows or images as `numbers` tells.
    """

    def __init__(self) -> None:
        self.grams: dict[str, GramSum] = {}
        self.squares: dict[str, Tensor] = {}
        self.numbers: dict[str, Tensor] = {}

    def reduce(self, accelerator: Accelerator) -> None:
        """Adds the sums of all processes, in every one of them."""
        tensors = [tensor for gram in self.grams.values() for tensor in gram.tensors()]
        if accelerator.num_processes > 1:
            for tensor in (*tensors, *self.squares.values(), *self.numbers.values()):
                tensor.copy_(accelerator.reduce(tensor, reduction="sum"))

    def check_rank(self, rank: int | None, num_images: int) -> None:
        """Raises a `ValueError` if no map has seen as many rows as `rank` asks for."""
        most = max(self.counts().values(), default=rank)
        if rank is not None and most is not None and rank > most:
            raise ValueError(
                f"rank {rank} is more than the {most} inputs of a map that {num_images} images give; take a smaller "
                "rank or a larger num_images"
            )

    def factors(
        self,
        tensors: dict[str, Tensor],
        errors: dict[str, float],
        *,
        dtype: torch.dtype,
        count: int | None = None,
    ) -> None:
        """Factorises every Gram matrix: the mean over its rows, or over `count`."""
        for name, gram in self.grams.items():
            done = gram.factorised(dtype, count=count)
            if not done.factor.isfinite().all():
                raise NonFiniteError(f"the factor of {name!r} overflows {dtype}; pass dtype='bfloat16' or 'float32'")
            tensors[name], errors[name] = done.factor, done.error
            if done.rest is not None:
                tensors[f"rest/{name}"] = done.rest

    def counts(self) -> dict[str, int]:
        """How many rows each Gram matrix is the sum over."""
        return {name: int(gram.count) for name, gram in self.grams.items()}


class InputSums(Sums):
    """The inputs of every linear map, and what the scales of norms multiply, over the images that are shown.

    Args:
        modules: Linear maps and norms by their canonical names.
        kinds: `gram` or `prefix`, `diagonal`, or one of the first and the last.
        rank: Rank of the factors.
    """

    def __init__(self, modules: Iterable[tuple[str, nn.Module]], *, kinds: Sequence[str], rank: int) -> None:
        super().__init__()
        self.hooked: list[tuple[str, nn.Module]] = []
        for name, module in modules:
            weight: Any = module.weight
            key = f"{'prefix' if 'prefix' in kinds else 'gram'}/{inputs_of(f'{name}.weight')}"
            if isinstance(module, nn.LayerNorm):
                if "diagonal" in kinds and weight is not None:
                    key = f"diagonal/{name}.weight"
                    self.squares[key] = torch.zeros_like(weight, dtype=torch.float64)
                    self.numbers[key] = torch.zeros((), dtype=torch.float64, device=weight.device)
                    self.hooked.append((key, module))
            elif {"gram", "prefix"} & set(kinds) and key not in self.grams:
                self.grams[key] = GramSum(width_of(module), rank, device=weight.device, dtype=weight.dtype)
                self.hooked.append((key, module))

    @torch.no_grad()
    def show(self, run: Callable[[], Tensor], images: Sequence[int], where: str) -> Tensor:
        """What `run` computes, while the modules are watched, of the rows `images` of a split."""
        with ExitStack() as stack:
            for key, module in self.hooked:
                handle = module.register_forward_pre_hook(partial(self._take, key, images, where))
                stack.callback(handle.remove)
            return run()

    def _take(self, key: str, images: Sequence[int], where: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = rows_of(module, args[0])
        if key in self.grams:
            finite = math.isfinite(self.grams[key].add(rows))
        else:
            self.squares[key] += rows.double().square().sum(dim=0)
            self.numbers[key] += len(rows)
            finite = bool(self.squares[key].isfinite().all())
        if not finite:
            check_images(rows, images, f"the inputs of {key.partition('/')[2]!r}", where)

    def into(
        self,
        tensors: dict[str, Tensor],
        errors: dict[str, float],
        *,
        dtype: torch.dtype,
        num_images: int,
    ) -> None:
        """Puts the means into a value's parts."""
        self.factors(tensors, errors, dtype=dtype)
        for key, total in self.squares.items():
            tensors[key] = (total / self.numbers[key]).to(dtype).cpu()


def check_images(rows: Tensor, images: Sequence[int], what: str, where: str) -> None:
    """Raises a `NonFiniteError` that names the first image whose rows (N tokens, n) hold NaN or Inf."""
    finite = rows.reshape(len(images), -1).isfinite().all(dim=1)
    if not bool(finite.all()):
        image = images[int((~finite).nonzero()[0])]
        raise NonFiniteError(f"{what} hold NaN or Inf at image {image} of the {where}: the weights or the image do")
    raise NonFiniteError(f"{what} overflow in the {where}: their squares are beyond float32")
