"""How a small CLIP is built and pretrained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hf_taskvec.arguments import arg
from hf_taskvec.errors import check_positive

TEMPLATES = (
    "{}",
    "{}",
    "{}.",
    "a photo of {}.",
    "a picture of {}.",
    "an image of {}.",
    "a photo of the {}.",
    "a blurry photo of {}.",
    "a drawing of {}.",
    "a sketch of {}.",
    "a close-up photo of {}.",
    "a photo of a {}.",
    "a picture of a {}.",
)

MAY_CHANGE = ("stop_step", "save_steps", "save_seconds")  # without a trace in the weights


@dataclass(frozen=True)
class PretrainingConfig:
    """How a small CLIP is built and trained."""

    width: int = arg("Width of the vision tower.", default=384)
    layers: int = arg("Layers of the vision tower.", default=2)
    patch_size: int = arg("Side of a patch in pixels.", default=8)
    intermediate_ratio: int = arg("Width of the vision MLPs as a multiple of `width`.", default=2)
    activation: str = arg("Activation function of both towers.", default="gelu")
    image_size: int = arg("Side of the images in pixels.", default=32)
    text_width: int = arg("Width of the text tower.", default=192)
    text_layers: int = arg("Layers of the text tower.", default=2)
    projection_dim: int = arg("Dimension of the shared space of images and texts.", default=256)
    vocab_size: int = arg("Entries of the tokenizer's vocabulary.", default=3000)
    max_length: int = arg("Most tokens of a caption.", default=24)
    steps: int = arg("Optimiser steps of the whole schedule.", default=4000)
    batch_size: int = arg("Images per step; each counts twice where `view_weight` asks for two views.", default=128)
    learning_rate: float = arg("Peak learning rate.", default=1e-3)
    weight_decay: float = arg("Weight decay, not applied to biases and norms.", default=0.1)
    warmup_steps: int = arg("Steps of warm-up.", default=100)
    schedule: Literal["cosine", "constant"] = arg(
        "Learning rate after the warm-up: a cosine, or constant and linear to 0 over the last `decay_share`.",
        default="cosine",
    )
    decay_share: float = arg(
        "Share of the steps of a `constant` schedule in which the learning rate falls.", default=0.2
    )
    max_grad_norm: float = arg("Clipping norm of the gradient.", default=1.0)
    ema_decay: float = arg("Decay of the averaged weights that are saved; 0 saves the last weights.", default=0.998)
    augmentation: float = arg("Strength of the image augmentation, 0 for none.", default=1.0)
    patch_dropout: float = arg(
        "Share of each image's patches left out of a training step, as in FLIP (2212.00794).", default=0.0
    )
    template_probability: float = arg("Chance that a caption is put into a random prompt template.", default=0.5)
    max_pairs_per_text: int = arg("Pairs kept per caption, as in MetaCLIP (2309.16671); 0 keeps all.", default=0)
    fine_captions: float = arg(
        "Share of the images of labelled sets that keep their caption; the others get a coarse one.", default=1.0
    )
    view_weight: float = arg(
        "Weight of the loss between two views of an image, as in SLIP (2112.12750); 0 for one view.", default=0.0
    )
    caption_mates: bool = arg(
        "Whether images of one subject count as views of each other, as in SupCon (2004.11362).", default=False
    )
    view_temperature: float = arg("Temperature of the loss between views.", default=0.1)
    descriptor_weight: float = arg(
        "Weight of the regression of oriented gradients and colour, as in MaskFeat (2112.09133).", default=0.0
    )
    max_logit_scale: float = arg("Upper bound of the temperature's inverse.", default=50.0)
    save_steps: int = arg("Steps between saved states.", default=250)
    save_seconds: float = arg("Least time between saved states; for a GPU, which takes steps fast.", default=0.0)
    stop_step: int = arg("Step after which to stop before the schedule's end; 0 runs it out.", default=0)
    init_from: str = arg(
        "Folder of a pretrained CLIP to go on from, instead of random weights and a new tokenizer.", default=""
    )
    precision: Literal["no", "bf16"] = arg(
        "`bf16` for mixed precision, on a GPU or a CPU that multiplies bfloat16.", default="no"
    )
    attention: Literal["sdpa", "eager"] = arg(
        "Implementation of attention in training; `eager` is the fastest for 33 tokens on a CPU.", default="sdpa"
    )
    seed: int = arg("Seed of weights, order and augmentation.", default=0)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "view_temperature", "save_steps"):
            check_positive(name, getattr(self, name))
        for name in ("decay_share", "patch_dropout", "template_probability", "fine_captions"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")

    @property
    def views(self) -> int:
        """How many views of each image a step sees."""
        return 2 if self.view_weight else 1

    def learning_rate_factor(self, step: int) -> float:
        """The share of the learning rate at a step of a `constant` schedule."""
        decay = max(1, round(self.steps * self.decay_share))
        return max(0.0, min(1.0, step / max(1, self.warmup_steps), (self.steps - step) / decay))

    def resumable_as(self, step: int) -> dict[str, Any]:
        """The settings on which the first `step` steps depend: a run may go on with others than these."""
        settings = {name: value for name, value in asdict(self).items() if name not in MAY_CHANGE}
        constant = self.schedule == "constant" and step <= self.steps - round(self.steps * self.decay_share)
        return {**settings, "steps": 0, "decay_share": 0} if constant else settings
