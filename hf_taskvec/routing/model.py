"""`RoutedVisionModel`: a CLIP vision tower that chooses among the vectors of several tasks by the image itself."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification, CLIPVisionModel, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from hf_taskvec.errors import check_known
from hf_taskvec.merging.linalg import polar
from hf_taskvec.routing.config import PASSES, RoutedVisionConfig
from hf_taskvec.routing.experts import ExpertLinear, GatedMLP, with_experts

MOST_SETS = 128  # of tasks whose merged weights "mass" keeps


class RoutedVisionModel(PreTrainedModel):  # type: ignore[misc]  # Transformers' is untyped
    """A `CLIPVisionModel` whose weights depend on the image, with the zero-shot heads of several tasks.

    `smile`, `mass`, `we_moe` and `twin` of `hf_taskvec.routing` make one; `from_pretrained` loads it again, and once
    `hf_taskvec.routing` is imported so do `AutoModelForImageClassification` and `pipeline`. Labels are the classes of
    all tasks one after the other. Only gates are trainable.

    Args:
        config: Its settings.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> from hf_taskvec.routing import smile
        >>> name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        >>> model = smile(load_base(), {"digits": TaskVector({name: torch.eye(768, 384) / 100})}, "digits", rank=4)
        >>> model(torch.zeros(2, 3, 32, 32), task="digits").logits.shape
        torch.Size([2, 10])
    """

    config_class = RoutedVisionConfig
    config: RoutedVisionConfig
    main_input_name = "pixel_values"
    base_model_prefix = "routed"
    _no_split_modules = ("CLIPEncoderLayer",)

    def __init__(self, config: RoutedVisionConfig) -> None:
        super().__init__(config)
        check_known("routing", config.routing, PASSES)
        vision, count = config.vision, len(config.sizes)
        self.tower = CLIPVisionModel._from_config(vision).requires_grad_(False)
        self.visual_projection = nn.Linear(vision.hidden_size, config.projection_dim, bias=False).requires_grad_(False)
        self.heads = nn.Parameter(torch.zeros(sum(config.sizes.values()), config.projection_dim), requires_grad=False)
        self.directions = nn.ParameterDict()  # of "mass": what is merged for each set of tasks
        self.router = nn.Linear(config.projection_dim, count) if config.routing == "twin" else None
        self._merged: dict[tuple[int, ...], dict[str, Tensor]] = {}
        self._build(count)
        self.post_init()

    def _build(self, count: int) -> None:
        """Puts empty experts where the configuration tells of some."""
        config, ranks = self.config, dict(self.config.experts or {})
        if config.routing == "mass":
            for name, rank in ranks.items():
                out, width = self.tower.get_parameter(name).shape
                self.directions[_key(name, "left")] = _frozen(out, count * rank)
                self.directions[_key(name, "right")] = _frozen(count * rank, width)
            for name, shape in (config.others or {}).items():
                self.directions[_key(name, "delta")] = _frozen(count, *shape)
            return
        gate_rank = config.gate_rank if config.routing == "smile" else 0
        with_experts(self.tower, ranks, count, biases=set(config.biases or ()), gate_rank=gate_rank)
        if config.routing == "we_moe":
            for layer in self.tower.encoder.layers:
                layer.mlp = GatedMLP(layer.mlp, config.vision.hidden_size, count)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: whoever makes the model sets its weights, and files hold all of them."""

    def direction(self, name: str, kind: str) -> Tensor:
        """Of "mass", what is kept of a parameter of the tower: "left", "right" or "delta"."""
        direction: Tensor = self.directions[_key(name, kind)]
        return direction

    # -- what it tells ------------------------------------------------------------------------------------------------

    @property
    def cost(self) -> dict[str, int]:
        """Passes through the tower for each image, and parameters beyond those of tower, projection and heads."""
        with torch.device("meta"):
            vision = CLIPVisionModel._from_config(self.config.vision)
        plain = sum(parameter.numel() for parameter in vision.parameters())
        plain += self.visual_projection.weight.numel() + self.heads.numel()
        total = sum(parameter.numel() for parameter in self.parameters())
        return {"forward_passes": PASSES[self.config.routing], "extra_parameters": total - plain}

    def head(self, task: str | None) -> slice:
        """The labels of a task, or all.

        Raises:
            UnknownNameError: If the model has no head for the task.
        """
        sizes = self.config.sizes
        if task is None:
            return slice(0, len(self.heads))
        check_known("head for task", task, sizes)
        start = sum(sizes[other] for other in itertools.takewhile(lambda other: other != task, sizes))
        return slice(start, start + sizes[task])

    # -- forward ------------------------------------------------------------------------------------------------------

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, *, task: str | None = None, **_: Any
    ) -> ImageClassifierOutput:
        """Logits over all classes, or over those of a task whose classes are known to be the right ones.

        Args:
            pixel_values: Prepared images (N, 3, H, W).
            labels: Numbers of the classes, for the loss.
            task: Whose classes; its weights are still chosen by the image.

        Raises:
            UnknownNameError: If the model has no head for the task.
        """
        rows = self.head(task)
        features, shares = self.route(pixel_values)
        logits = self.logits(features)
        logits = self.restricted(logits, shares) if task is None else logits[:, rows]
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def logits(self, features: Tensor) -> Tensor:
        """Logits over the classes of all tasks, (N, C)."""
        return functional.normalize(features, dim=-1) @ self.heads.T

    def restricted(self, logits: Tensor, shares: Tensor) -> Tensor:
        """Logits over all classes; of "mass", as in the paper, with those of tasks that were not taken out of reach."""
        if self.config.routing != "mass":
            return logits
        counts = torch.tensor(list(self.config.sizes.values()), device=shares.device)
        taken = (shares > 0).repeat_interleave(counts, dim=1)
        return logits.masked_fill(~taken, torch.finfo(logits.dtype).min)

    def route(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, F), and the share of each task in the weights of each image (N, T)."""
        if self.config.routing == "mass":
            return self._by_sets(pixel_values)
        if self.router is None:
            features = self._features(pixel_values)
            return features, self._votes()
        self._mix(None)
        shared = functional.normalize(self._features(pixel_values), dim=-1)
        shares = self.router(shared).softmax(dim=-1)
        self._mix(shares)
        return self._features(pixel_values), shares

    def shared_features(self, pixel_values: Tensor) -> Tensor:
        """What the router of "twin" sees: unit-norm features of the shared weights alone, (N, F)."""
        self._mix(None)
        return functional.normalize(self._features(pixel_values), dim=-1)

    def _features(self, pixel_values: Tensor) -> Tensor:
        features: Tensor = self.visual_projection(self.tower(pixel_values).pooler_output)
        return features

    def _experts(self) -> list[ExpertLinear]:
        return [module for module in self.tower.modules() if isinstance(module, ExpertLinear)]

    def _mix(self, shares: Tensor | None) -> None:
        for layer in self._experts():
            layer.mixture = shares

    def _votes(self) -> Tensor:
        """The share of each task, over the maps that chose for themselves or the gates of the blocks."""
        if self.config.routing == "we_moe":
            gates = [module.shares for module in self.tower.modules() if isinstance(module, GatedMLP)]
            return torch.stack([shares for shares in gates if shares is not None]).mean(dim=0)
        votes = torch.stack([layer.votes for layer in self._experts() if layer.votes is not None]).sum(dim=0)
        return votes / votes.sum(dim=1, keepdim=True)

    # -- "mass": merged weights for each set of tasks -----------------------------------------------------------------

    def _by_sets(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Features by two passes: of all tasks' merged weights, then of those of the chosen tasks."""
        shares = self.residual_shares(pixel_values)
        best = shares.topk(min(self.config.most, shares.shape[1]), dim=1)
        kept = best.values >= self.config.threshold
        kept[:, 0] = True
        chosen = torch.zeros_like(shares).scatter(1, best.indices, best.values * kept)
        result = torch.empty(
            len(pixel_values), self.config.projection_dim, dtype=self.heads.dtype, device=shares.device
        )
        sets = [tuple(row.nonzero().flatten().tolist()) for row in chosen]
        for tasks in dict.fromkeys(sets):
            rows = torch.tensor([index for index, other in enumerate(sets) if other == tasks], device=shares.device)
            pooled = functional_call(self.tower, self.merged(tasks), (pixel_values[rows],)).pooler_output
            result[rows] = self.visual_projection(pooled).to(result.dtype)
        return result, chosen / chosen.sum(dim=1, keepdim=True)

    def residual_shares(self, pixel_values: Tensor) -> Tensor:
        """Shares (N, T) by what each task's right singular vectors leave of the deciding inputs, in the first pass."""
        seen: list[Tensor] = []
        hook = self.tower.get_submodule(self.config.layer).register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
        try:
            everything = tuple(range(len(self.config.sizes)))
            functional_call(self.tower, self.merged(everything), (pixel_values,))
        finally:
            hook.remove()
        states = seen[0][:, 0] if self.config.token == "cls" else seen[0].mean(dim=1)
        right = self.direction(f"{self.config.layer}.weight", "right").unflatten(0, (len(self.config.sizes), -1))
        inside = torch.einsum("ni,tki->tnk", states, right)
        rest = states - torch.einsum("tnk,tki->tni", inside, right)
        shares: Tensor = (-rest.norm(dim=-1)).softmax(dim=0).T
        return shares

    @torch.no_grad()
    def merged(self, tasks: tuple[int, ...]) -> dict[str, Tensor]:
        """The weights of the base with the directions of some tasks, whitened against each other as in TSV-M."""
        if tasks not in self._merged:
            if len(self._merged) >= MOST_SETS:
                self._merged.clear()
            self._merged[tasks] = self._merge(tasks)
        return self._merged[tasks]

    def _merge(self, tasks: tuple[int, ...]) -> dict[str, Tensor]:
        rows, count, result = list(tasks), len(self.config.sizes), {}
        for name in self.config.experts or {}:
            left = self.direction(name, "left").unflatten(1, (count, -1))[:, rows].flatten(1)
            right = self.direction(name, "right").unflatten(0, (count, -1))[rows].flatten(0, 1)
            values = left.norm(dim=0)
            unit = left / values.where(values > 0, torch.inf)
            delta = polar(unit)[0] * values.double() @ polar(right)[0]
            result[name] = self.tower.get_parameter(name) + delta.to(left)
        for name in self.config.others or {}:
            result[name] = self.tower.get_parameter(name) + self.direction(name, "delta")[rows].mean(dim=0)
        return result


def _key(name: str, kind: str) -> str:
    """A name that a `ParameterDict` can hold."""
    return f"{name.replace('.', '/')}/{kind}"


def _frozen(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


AutoConfig.register(RoutedVisionConfig.model_type, RoutedVisionConfig, exist_ok=True)
AutoModelForImageClassification.register(RoutedVisionConfig, RoutedVisionModel, exist_ok=True)
