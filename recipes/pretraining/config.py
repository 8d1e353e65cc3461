"""How a small CLIP is built and pretrained."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hf_taskvec.errors import check_positive

TEMPLATES = (
    "{}", "{}", "{}.", "a photo of {}.", "a picture of {}.", "an image of {}.", "a photo of the {}.",
    "a blurry photo of {}.", "a drawing of {}.", "a sketch of {}.", "a close-up photo of {}.",
    "a photo of a {}.", "a picture of a {}.",
)  # fmt: skip

MAY_CHANGE = ("stop_step", "save_steps")  # without a trace in the weights


@dataclass(frozen=True)
class PretrainingConfig:
    """How a small CLIP is built and trained.

    Args:
        intermediate_ratio: Width of the vision MLPs as a multiple of `width`.
        batch_size: Images per step; each counts twice where `view_weight` asks for two views.
        schedule: Learning rate after the warm-up: a cosine, or constant and linear to 0 over the last `decay_share`.
        decay_share: Share of the steps of a `constant` schedule in which the learning rate falls.
        max_pairs_per_text: Pairs kept per caption, as in MetaCLIP (2309.16671); 0 keeps all.
        fine_captions: Share of the images of labelled sets that keep their caption; the others get a coarse one.
        view_weight: Weight of the loss between two views of an image, as in SLIP (2112.12750); 0 for one view.
        caption_mates: Whether images of one subject count as views of each other, as in SupCon (2004.11362).
        view_temperature: Temperature of the loss between views.
        descriptor_weight: Weight of the regression of oriented gradients and colour, as in MaskFeat (2112.09133).
        ema_decay: Decay of the averaged weights that are saved; 0 saves the last weights.
        augmentation: Strength of the image augmentation, 0 for none.
        stop_step: Step after which to stop before the schedule's end; 0 runs it out.
        init_from: Folder of a pretrained CLIP to go on from, instead of random weights and a new tokenizer.
        patch_dropout: Share of each image's patches left out of a training step, as in FLIP (2212.00794).
        template_probability: Chance that a caption is put into a random prompt template.
        precision: `bf16` for mixed precision, on a GPU or a CPU that multiplies bfloat16.
        attention: Implementation of attention in training; `eager` is the fastest for 33 tokens on a CPU.
    """

    width: int = 384
    layers: int = 2
    patch_size: int = 8
    intermediate_ratio: int = 2
    activation: str = "gelu"
    image_size: int = 32
    text_width: int = 192
    text_layers: int = 2
    projection_dim: int = 256
    vocab_size: int = 3000
    max_length: int = 24
    steps: int = 4000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    decay_share: float = 0.2
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    augmentation: float = 1.0
    patch_dropout: float = 0.0
    template_probability: float = 0.5
    max_pairs_per_text: int = 0
    fine_captions: float = 1.0
    view_weight: float = 0.0
    caption_mates: bool = False
    view_temperature: float = 0.1
    descriptor_weight: float = 0.0
    max_logit_scale: float = 50.0
    save_steps: int = 250
    stop_step: int = 0
    init_from: str = ""
    precision: Literal["no", "bf16"] = "no"
    attention: Literal["sdpa", "eager"] = "sdpa"
    seed: int = 0

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
