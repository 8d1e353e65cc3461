"""A CLIP vision tower in stages, so that what no vector changes is computed once for all settings."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import Normalize
from hf_taskvec.models.pooling import class_token_attention
from hf_taskvec.weights.names import canonical_name


class Stage(nn.Module):
    """A step of the tower on the model's own parameters.

    Args:
        step: From states to states, by its modules.
        modules: The modules, by the names that `step` knows.
    """

    def __init__(self, step: Callable[[Any, Tensor], Tensor], modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.step, self.used = step, nn.ModuleDict(modules)

    def forward(self, states: Tensor) -> Tensor:
        """The states after the step."""
        return self.step(self.used, states)


def _embed(used: Any, pixels: Tensor) -> Tensor:
    states: Tensor = used["norm"](used["embeddings"](used["normalize"](pixels)))
    return states


def _attend(used: Any, states: Tensor) -> Tensor:
    attended: Tensor = states + used["attention"](used["norm"](states), attention_mask=None)[0]
    return attended


def _attend_at_class_token(used: Any, states: Tensor) -> Tensor:
    return states[:, :1] + class_token_attention(used["attention"], used["norm"](states))


def _think(used: Any, states: Tensor) -> Tensor:
    thought: Tensor = states + used["mlp"](used["norm"](states))
    return thought


def _project(used: Any, states: Tensor) -> Tensor:
    return functional.normalize(used["projection"](used["norm"](states[:, 0])), dim=-1)


class Tower:
    """From images in uint8 to unit features, from any stage on, with some parameters changed; for several threads.

    Args:
        base: The model; it is left alone, and whoever reads it meanwhile finds it as it is.

    Example:
        >>> from hf_taskvec import load_base
        >>> tower = Tower(load_base())
        >>> pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        >>> states = tower.run(pixels, {}, end=tower.first_changed(["vision_model.post_layernorm.bias"]))
        >>> torch.allclose(tower.run(states, {}, start=tower.last), tower.run(pixels, {}), atol=1e-6)
        True
    """

    def __init__(self, base: Base) -> None:
        self._running = threading.Lock()  # `functional_call` changes modules for as long as it runs
        tower, visual_projection = _with_same_weights(base.model.vision_model, base.model.visual_projection)
        embedding = {"normalize": Normalize(base), "embeddings": tower.embeddings, "norm": tower.pre_layrnorm}
        self.stages = [Stage(_embed, embedding)]
        for layer in tower.encoder.layers:
            attend = _attend_at_class_token if layer is tower.encoder.layers[-1] else _attend
            self.stages.append(Stage(attend, {"attention": layer.self_attn, "norm": layer.layer_norm1}))
            self.stages.append(Stage(_think, {"mlp": layer.mlp, "norm": layer.layer_norm2}))
        projection = {"norm": tower.post_layernorm, "projection": visual_projection}
        self.stages.append(Stage(_project, projection))
        known = {id(value): canonical_name(name) for name, value in base.model.named_parameters()}
        self._names = [{local: known[id(value)] for local, value in s.named_parameters()} for s in self.stages]

    @property
    def last(self) -> int:
        """The number of the last stage."""
        return len(self.stages) - 1

    def first_changed(self, names: Iterable[str]) -> int:
        """The first stage that holds one of the parameters; the last one if none does."""
        wanted = set(names)
        changed = (number for number, here in enumerate(self._names) if not wanted.isdisjoint(here.values()))
        return next(changed, self.last)

    @torch.inference_mode()
    def run(self, states: Tensor, deltas: Mapping[str, Tensor], *, start: int = 0, end: int | None = None) -> Tensor:
        """The states before the stage `end`, or the features (N, F), of those before the stage `start`.

        Args:
            states: Pixels (N, 3, H, W) in uint8, or what an earlier call gave.
            deltas: What is added to the parameters, by their canonical names.
            start: The first stage to run.
            end: The stage to stop before; none if left out.
        """
        for number in range(start, len(self.stages) if end is None else end):
            stage, names = self.stages[number], self._names[number]
            with self._running:
                own = dict(stage.named_parameters())
                changed = {local: own[local] + deltas[name] for local, name in names.items() if name in deltas}
                states = functional_call(stage, changed, (states,)) if changed else stage(states)
        return states


def _with_same_weights(*modules: nn.Module) -> list[Any]:
    """Modules of one's own on the very tensors of others."""
    tensors = [value for module in modules for value in itertools.chain(module.parameters(), module.buffers())]
    return copy.deepcopy(list(modules), {id(value): value for value in tensors})
