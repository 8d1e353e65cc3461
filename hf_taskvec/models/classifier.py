"""Classification: a vision tower against a frozen head, zero-shot (CLIP, arXiv 2103.00020) or linear."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_taskvec.errors import UnknownNameError
from hf_taskvec.models.backbones import backbone_features
from hf_taskvec.models.base import Base
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.models.linear import LinearHead, linear_head
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.models.pooling import pooled
from hf_taskvec.tasks import Task
from hf_taskvec.weights.names import canonical, named_as_in_files


class ImageClassifier(nn.Module):
    """A CLIP or SigLIP vision tower with a frozen zero-shot head, fed with uint8 pixels.

    Its trainable parameters have canonical names: `vision_model.…` and `visual_projection.weight`.

    Args:
        base: The model, whose tower is copied.
        task: The task whose classes the head tells apart.
        include_projection: Whether `visual_projection` is trainable besides the tower.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> classifier = ImageClassifier(load_base(), get_task("counts"))
        >>> classifier(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))["logits"].shape
        torch.Size([2, 5])
    """

    main_input_name = "pixel_values"
    head: Tensor
    normalize: Normalize

    def __init__(self, base: Base, task: Task, *, include_projection: bool = False) -> None:
        super().__init__()
        base.check_zero_shot("zero-shot classification")
        self.vision_model = pooled(copy.deepcopy(base.model.vision_model)).requires_grad_(True)
        self.visual_projection = copy.deepcopy(base.model.visual_projection).requires_grad_(include_projection)
        self.normalize = Normalize(base)
        head = zero_shot_head(base, task.class_names, task.templates)
        self.register_buffer("head", head.to(self.normalize.mean), persistent=False)
        bias = getattr(base.model, "logit_bias", None)
        self.register_buffer("logit_bias", None if bias is None else bias.detach().clone(), persistent=False)

    @property
    def tower(self) -> Any:
        """The part that sees images."""
        return self.vision_model

    @property
    def config(self) -> Any:
        """The configuration of the vision tower, where Transformers looks for one."""
        return self.tower.config

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """Recomputes activations in the backward pass instead of keeping them; see `PreTrainedModel`.

        The last layer, which runs on the class token alone, keeps its few.
        """
        self.tower.activation_checkpointing_enable(**settings)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits (N, C) of uint8 images (N, 3, H, W)."""
        return {"logits": classify(self, self.head, self.normalize(pixel_values))}

    def freeze_except(self, patterns: Sequence[str]) -> None:
        """Freezes the parameters whose canonical name fits none of the patterns, in which `*` stands for anything.

        Raises:
            UnknownNameError: If a pattern fits no trainable parameter.
        """
        trained = self.trained()
        for pattern in patterns:
            if not fnmatch.filter(trained, pattern):
                raise UnknownNameError("trainable parameter", pattern, trained)
        for name, parameter in trained.items():
            parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))

    def trained(self) -> dict[str, nn.Parameter]:
        """The trainable parameters under canonical names."""
        return canonical((name, value) for name, value in self.named_parameters() if value.requires_grad)

    def told(self) -> dict[str, Any]:
        """What plan and provenance of a run tell of the head, beyond the task's class names and prompts."""
        return {}

    def weights(self) -> dict[str, Tensor]:
        """The trainable parameters, detached, under canonical names."""
        return {name: parameter.detach() for name, parameter in self.trained().items()}


class LinearClassifier(ImageClassifier):
    """A ViT or DINOv2 with the frozen linear head of a task, fed with uint8 pixels.

    Its parameters are those of the `ForImageClassification` of its kind; trainable are those of the backbone.

    Args:
        base: The model, whose backbone is copied.
        task: The task whose classes the head tells apart.
    """

    def __init__(self, base: Base, task: Task) -> None:
        nn.Module.__init__(self)
        backbone = copy.deepcopy(base.model).requires_grad_(True)
        backbone.pooler = None  # a ViT's, which a classifier does not read
        self.body = backbone.base_model_prefix
        self.add_module(self.body, backbone)
        self.linear_head = linear_head(base, task)
        classes, width = self.linear_head.weight.shape
        self.classifier = nn.Linear(width, classes).requires_grad_(False).to(backbone.device, backbone.dtype)
        with torch.no_grad():
            self.classifier.weight.copy_(self.linear_head.weight)
            self.classifier.bias.copy_(self.linear_head.bias)
        self.normalize = Normalize(base)
        nn.Module.register_state_dict_post_hook(self, _name_as_in_files)
        nn.Module.register_load_state_dict_pre_hook(self, _name_as_in_memory)

    @property
    def tower(self) -> Any:
        """The backbone."""
        return self.get_submodule(self.body)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits (N, C) of uint8 images (N, 3, H, W)."""
        return {"logits": self.classifier(backbone_features(self.tower, self.normalize(pixel_values)))}

    def trained(self) -> dict[str, nn.Parameter]:
        """The trainable parameters of the backbone under the names of its file."""
        named = named_as_in_files(self.tower)
        return {name: parameter for name, parameter in named.items() if parameter.requires_grad}

    def names_in_files(self) -> dict[str, str]:
        """What each parameter of the backbone is called in a file of the whole model, by what it is called here."""
        names = {id(parameter): name for name, parameter in named_as_in_files(self.tower).items()}
        return {name: f"{self.body}.{names[id(value)]}" for name, value in self.tower.named_parameters(self.body)}

    def told(self) -> dict[str, Any]:
        """The linear head: a hash of its weights, its images, regularisation and accuracies."""
        names = ("digest", "num_images", "regularisation", "train_accuracy", "held_out_accuracy")
        facts = self.linear_head.facts()
        return {"linear_head": {name: facts[name] for name in names}}


def _name_as_in_files(model: LinearClassifier, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Gives the weights of a backbone the names that Transformers gives them in files, where they have others."""
    _rename(state, {prefix + own: prefix + theirs for own, theirs in model.names_in_files().items()})


def _name_as_in_memory(model: LinearClassifier, state: dict[str, Any], prefix: str, *_: object) -> None:
    """The reverse, before weights are loaded; what has the names of a model in memory keeps them."""
    _rename(state, {prefix + theirs: prefix + own for own, theirs in model.names_in_files().items()})


def _rename(state: dict[str, Any], names: dict[str, str]) -> None:
    state.update({new: state.pop(old) for old, new in names.items() if old in state})


def head_of(base: Base, task: Task) -> Tensor | LinearHead:
    """The frozen head of a task: class names through the text tower (C, F), or a linear one where there is none.

    Example:
        >>> from hf_taskvec import get_task, load_base
        >>> head_of(load_base(), get_task("counts")).shape
        torch.Size([5, 256])
    """
    return zero_shot_head(base, task.class_names, task.templates) if base.zero_shot else linear_head(base, task)


def classify(model: Any, head: Tensor | LinearHead, pixels: Tensor) -> Tensor:
    """Logits (N, C) of normalised images (N, 3, H, W) by a model's tower and projection and a head (C, F).

    Those of SigLIP have its bias, so that the sigmoid of one is the probability that this class alone fits the image.

    Example:
        >>> from hf_taskvec import load_base
        >>> classify(load_base().model, torch.zeros(5, 256), torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """
    if isinstance(head, LinearHead):
        return head.logits(backbone_features(model, pixels))
    features = model.visual_projection(pooled(model.vision_model)(pixels).pooler_output)
    logits = functional.normalize(features, dim=-1) @ head.T
    bias = getattr(model, "logit_bias", None)  # SigLIP's
    return logits if bias is None else logits + bias
