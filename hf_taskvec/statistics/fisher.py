"""Gradients of the model's own likelihood: the diagonal Fisher information, and the output factors of K-FAC."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_taskvec.models.classifier import classify
from hf_taskvec.statistics.hooks import Sums, check_images
from hf_taskvec.statistics.maps import measured
from hf_taskvec.statistics.sums import GramSum
from hf_taskvec.weights.names import canonical


class GradientSums(Sums):
    """Squared gradients per image of the log-likelihood of a label drawn from the model, and their factors.

    Args:
        model: A CLIP model.
        head: Its zero-shot head (C, F).
        kinds: `fisher`, `kfac` or both.
        rank: Rank of the factors.
        seed: Of the labels that are drawn.
        names: The parameters to measure, under canonical names.
    """

    def __init__(
        self, model: Any, head: Tensor, *, kinds: Sequence[str], rank: int, seed: int, names: Collection[str]
    ) -> None:
        super().__init__()
        self.model, self.head, self.kinds, self.seed = model, head, kinds, seed
        named = canonical(model.named_parameters())
        self.parameters: dict[str, nn.Parameter] = {name: named[name] for name in names}
        self.hooked: list[tuple[str, nn.Module]] = []
        if "fisher" in kinds:
            for name, parameter in self.parameters.items():
                self.squares[f"fisher/{name}"] = torch.zeros_like(parameter, dtype=torch.float64)
        if "kfac" in kinds:
            for name, module in [*measured(model.vision_model), ("visual_projection", model.visual_projection)]:
                if not isinstance(module, nn.LayerNorm) and f"{name}.weight" in self.parameters:
                    weight: Any = module.weight
                    key = f"gradients/{name}"
                    self.grams[key] = GramSum(len(weight), rank, device=weight.device, dtype=weight.dtype)
                    self.hooked.append((key, module))

    def show(self, pixel_values: Tensor, images: Sequence[int], where: str) -> None:
        """Shows normalised images, one by one: the gradient is squared per image, once it is summed over tokens."""
        for position, image in enumerate(images):
            with ExitStack() as stack:
                for key, module in self.hooked:
                    stack.callback(module.register_forward_hook(partial(self._watch, key, image, where)).remove)
                logits = classify(self.model, self.head, pixel_values[position : position + 1])
            if not logits.isfinite().all():
                check_images(logits, [image], "the logits", where)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + image)
            chances = logits.detach().double().softmax(dim=-1).cpu()
            label = torch.multinomial(chances[0], 1, generator=generator).to(logits.device)
            loss = functional.cross_entropy(logits, label)
            self._add(torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True), image, where)

    def _add(self, gradients: Sequence[Tensor | None], image: int, where: str) -> None:
        if "fisher" not in self.kinds:
            return
        for name, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                squares = gradient.double().square()
                if not math.isfinite(float(squares.sum())):
                    check_images(gradient.reshape(1, -1), [image], f"the gradients of {name!r}", where)
                self.squares[f"fisher/{name}"] += squares

    def _watch(self, key: str, image: int, where: str, module: nn.Module, args: Any, output: Tensor) -> None:
        def take(gradient: Tensor) -> None:
            rows = gradient.flatten(2).transpose(1, 2) if isinstance(module, nn.Conv2d) else gradient
            rows = rows.reshape(-1, self.grams[key].width)
            if not math.isfinite(self.grams[key].add(rows)):
                check_images(rows, [image], f"the gradients at the outputs of {key.partition('/')[2]!r}", where)

        output.register_hook(take)

    def into(
        self,
        tensors: dict[str, Tensor],
        errors: dict[str, float],
        *,
        dtype: torch.dtype,
        num_images: int,
    ) -> None:
        """Puts the means over images into a value's parts."""
        kept = torch.bfloat16 if dtype == torch.float16 else dtype  # gradients are beyond the range of float16
        self.factors(tensors, errors, dtype=kept, count=num_images)
        for key, total in self.squares.items():
            tensors[key] = (total / num_images).to(kept).cpu()
