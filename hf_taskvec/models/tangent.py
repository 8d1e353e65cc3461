"""A model in the tangent space of its base: f(θ0) + J(θ0)(θ − θ0), linear in its weights (arXiv 2305.12827)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_taskvec.errors import CheckpointError
from hf_taskvec.models.base import Base
from hf_taskvec.models.pooling import pooled, with_children

ATTENTION = ("eager", "sdpa")  # the same mathematics; kernels of others have no forward derivative


class TangentTower(nn.Module):
    """A vision tower whose pooled output is linear in its parameters, which are those of the tower by name and value.

    The point θ0 of the expansion is no parameter of it: moved along with the module, never trained or saved.

    Args:
        tower: A vision tower of CLIP or SigLIP, which is copied.
        both: Whether the output is followed by that at θ0, as a `TangentProjection` needs.
    """

    linearized = True
    origin: Any

    def __init__(self, tower: Any, *, both: bool) -> None:
        super().__init__()
        kind = tower.config._attn_implementation
        if kind not in ATTENTION:
            raise CheckpointError(
                f"attention {kind!r} cannot be differentiated forward, as the tangent space needs; load the base by "
                "load_base(..., attn_implementation='eager')"
            )
        origin = pooled(copy.deepcopy(tower)).requires_grad_(False).eval()
        origin.set_attn_implementation("sdpa")  # whose plain kernel rounds nothing in float64, as eager does
        vars(self)["origin"], self.both = origin, both  # no submodule: its parameters are none of this module's
        for name, child in copy.deepcopy(origin).named_children():
            self.add_module(name, child)
        for module in list(self.modules())[1:]:
            module.register_forward_pre_hook(_refuse)

    @property
    def config(self) -> Any:
        """The configuration of the tower."""
        return self.origin.config

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.origin._apply(fn, recurse)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """The pooled output at θ of normalised images (N, 3, H, W), by one forward derivative."""
        start, step = {}, {}
        here = dict(self.named_parameters())
        for name, value in self.origin.named_parameters():
            if here[name].requires_grad or not torch.equal(here[name], value):
                start[name], step[name] = value, here[name] - value
        if not start:
            at_origin = self.origin(pixel_values).pooler_output
            return self._output(at_origin, at_origin)

        def features(weights: dict[str, Tensor]) -> Tensor:
            pooler_output: Tensor = functional_call(self.origin, weights, (pixel_values,)).pooler_output
            return pooler_output

        with sdpa_kernel(SDPBackend.MATH):  # the only one with a forward derivative
            at_origin, change, *_ = jvp(features, (start,), (step,))
        return self._output(at_origin + change, at_origin)

    def _output(self, here: Tensor, at_origin: Tensor) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=torch.cat([here, at_origin], dim=-1) if self.both else here)


def _refuse(module: nn.Module, inputs: Any) -> None:
    raise ValueError("a layer of a linearised tower gives nothing by itself: pass the base that linearize was given")


class TangentProjection(nn.Module):
    """A projection of what a `TangentTower` gives, so that both together are linear in the parameters of both.

    Args:
        projection: The projection of a CLIP, which is copied.
    """

    origin: Tensor

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(projection.weight.detach().clone(), requires_grad=projection.weight.requires_grad)
        self.register_buffer("origin", projection.weight.detach().clone(), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Image features (N, F) of the tower's output at θ, followed by that at θ0."""
        here, at_origin = features.chunk(2, dim=-1)
        return linear(here, self.origin) + linear(at_origin, self.weight - self.origin)


def linearize(base: Base) -> Base:
    """The base in its tangent space: its image features are f(θ0) + J(θ0)(θ − θ0), J being their derivative at θ0.

    It is used as the base is: add vectors and evaluate. At θ0 both are equal up to rounding. As with the paper's
    authors, what is linear in the weights is the image features; the cosine with the head's classes comes after.
    Attention is computed by the plain kernel of PyTorch (`SDPBackend.MATH`), which has a forward derivative, and
    without dropout. `recipes/benchmarks/tangent.py` measures what a pass and a step of training cost.

    Args:
        base: The base, edited or not; it is copied. Where it stands is θ0.

    Raises:
        CheckpointError: If its attention has no forward derivative.
        ValueError: If it is linearised already.

    Example:
        >>> from hf_taskvec import TaskVector, evaluate, get_task, load_base
        >>> base = load_base()
        >>> digits, linear = get_task("digits"), linearize(base)
        >>> vector = TaskVector({"vision_model.post_layernorm.bias": torch.ones(384) / 100})  # where f is linear
        >>> models = [vector.apply_to(model) for model in (base, linear)]
        >>> len({evaluate(model, [digits], split="validation").accuracy for model in models})
        1
    """
    base.check_zero_shot("linearize")
    if base.linearized:
        raise ValueError(f"{base.name!r} is linearised already; linearize takes the base itself")
    projection = base.model.visual_projection
    has_one = not isinstance(projection, nn.Identity)  # CLIP's, which SigLIP lacks
    children: dict[str, nn.Module] = {"vision_model": TangentTower(base.model.vision_model, both=has_one)}
    if has_one:
        children["visual_projection"] = TangentProjection(projection)
    return dataclasses.replace(base, model=with_children(base.model, **children))
