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
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.weights.names import canonical_name

BATCH = 96  # images per pass: their states stay in the cache


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
    attention, normed = used["attention"], used["norm"](states)
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (linear(project, normed).unflatten(-1, _heads(attention)) for project in projections)
    mixed = functional.scaled_dot_product_attention(
        query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale=attention.scale
    )
    return states + linear(attention.out_proj, mixed.transpose(1, 2).flatten(2))


def _attend_at_class_token(used: Any, states: Tensor) -> Tensor:
    """Of one query per image the keys' weights are applied to the query, and the values' to what is mixed.

    So nothing is projected token by token. The keys' bias adds the same to the scores of all tokens.
    """
    attention, normed = used["attention"], used["norm"](states)
    keys, values = (project.weight.unflatten(0, _heads(attention)) for project in (attention.k_proj, attention.v_proj))
    query = attention.q_proj(normed[:, 0]).unflatten(-1, _heads(attention))
    wanted = torch.einsum("nhd,hdw->nhw", attention.scale * query, keys)
    shares = (wanted @ normed.transpose(1, 2)).softmax(dim=-1)
    mixed = torch.einsum("nhw,hdw->nhd", shares @ normed, values).flatten(1) + attention.v_proj.bias
    attended: Tensor = states[:, :1] + attention.out_proj(mixed).unsqueeze(1)
    return attended


def _heads(attention: Any) -> tuple[int, int]:
    return attention.num_heads, attention.head_dim


def _think(used: Any, states: Tensor) -> Tensor:
    mlp = used["mlp"]
    return states + linear(mlp.fc2, mlp.activation_fn(linear(mlp.fc1, used["norm"](states))))


def linear(layer: nn.Linear, states: Tensor) -> Tensor:
    """A layer at the tokens of some images (N, T, W), as a convolution where oneDNN computes it.

    oneDNN takes the widest registers of every processor; MKL, which multiplies matrices, does so on Intel's only.

    Example:
        >>> layer, states = nn.Linear(8, 4), torch.randn(16, 5, 8)
        >>> torch.allclose(linear(layer, states), layer(states), atol=1e-5)
        True
    """
    if states.shape[1] == 1 or states.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return functional.linear(states, layer.weight, layer.bias)
    pixels = states.unsqueeze(2).permute(0, 3, 1, 2)  # (N, W, T, 1), channels last as they lie
    return functional.conv2d(pixels, layer.weight[:, :, None, None], layer.bias).permute(0, 2, 3, 1).squeeze(2)


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
        self._own = [dict(stage.named_parameters()) for stage in self.stages]
        self._names = [{local: known[id(value)] for local, value in own.items()} for own in self._own]

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
        numbers = range(start, len(self.stages) if end is None else end)
        changed = [self._changed(number, deltas) for number in numbers]
        return torch.cat([self._through(batch, numbers, changed) for batch in states.split(BATCH)])

    def _changed(self, number: int, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of a stage that differ from the model's."""
        own, names = self._own[number], self._names[number]
        return {local: own[local] + deltas[name] for local, name in names.items() if name in deltas}

    def _through(self, states: Tensor, numbers: Iterable[int], changed: Iterable[dict[str, Tensor]]) -> Tensor:
        for number, parameters in zip(numbers, changed, strict=True):
            stage = self.stages[number]
            with self._running:
                states = functional_call(stage, parameters, (states,)) if parameters else stage(states)
        return states


def _with_same_weights(*modules: nn.Module) -> list[Any]:
    """Modules of one's own on the very tensors of others."""
    tensors = [value for module in modules for value in itertools.chain(module.parameters(), module.buffers())]
    return copy.deepcopy(list(modules), {id(value): value for value in tensors})
