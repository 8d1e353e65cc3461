"""The model of a pretraining run: tokenizer, CLIP, and the heads that only training needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from hf_taskvec.models.pooling import pooled
from pretraining.config import TEMPLATES, PretrainingConfig
from pretraining.descriptors import DESCRIPTOR_SIZE

VIEW_SIZE = 128  # features in which views are compared


def train_tokenizer(texts: Sequence[str], config: PretrainingConfig) -> CLIPTokenizer:
    """Trains CLIP's byte-pair tokenizer on the captions and the prompt templates."""
    corpus = [*dict.fromkeys(texts), *(template.format("") for template in TEMPLATES)]
    letters = sorted(ByteLevel.alphabet())
    # The trainer numbers word ends in hash order, which would decide ties between merges: number them first.
    specials = ["<|startoftext|>", "<|endoftext|>", *(letter + "</w>" for letter in letters)]
    trainer = BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=specials,
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend = CLIPTokenizer().backend_tokenizer
    backend.train_from_iterator(corpus, trainer)
    learned = json.loads(backend.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return CLIPTokenizer(vocab=learned["vocab"], merges=merges, model_max_length=config.max_length)


def build_model(config: PretrainingConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A randomly initialised CLIP whose text tower fits `tokenizer`."""
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        intermediate_size=2 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=max(1, config.text_width // 64),
        max_position_embeddings=config.max_length,
        hidden_act=config.activation,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = dict(
        hidden_size=config.width,
        intermediate_size=config.intermediate_ratio * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=max(1, config.width // 64),
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_act=config.activation,
    )
    return CLIPModel(
        CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=config.projection_dim, logit_scale_init_value=2.6592
        )
    )


@dataclass(frozen=True)
class Features:
    """What a training step compares.

    Args:
        image: Unit vectors of N images, (N, F).
        text: Unit vectors of U captions, (U, F).
        scale: The inverse temperature between them.
        view: Unit vectors in which views are compared, (N, V).
        descriptor: Predicted descriptors, (N, D).
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    view: Tensor | None
    descriptor: Tensor | None


class TrainedClip(nn.Module):
    """A CLIP and the heads on its pooled image features that the image-only losses need.

    Args:
        clip: The model, trained in place.
        config: Which heads there are, and the share of patches left out in training.
    """

    def __init__(self, clip: CLIPModel, config: PretrainingConfig) -> None:
        super().__init__()
        clip.set_attn_implementation(config.attention)
        clip.vision_model = pooled(clip.vision_model)
        self.clip, self.patch_dropout = clip, config.patch_dropout
        self.generator: torch.Generator | None = None
        if self.patch_dropout:
            clip.vision_model.embeddings.register_forward_hook(self._drop_patches)
        width, heads = clip.config.vision_config.hidden_size, nn.ModuleDict()
        if config.view_weight:
            heads["view"] = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, VIEW_SIZE))
        if config.descriptor_weight:
            # linear: what it finds, a linear probe finds too
            heads["descriptor"] = nn.Linear(width, DESCRIPTOR_SIZE)
        self.heads = heads

    def forward(self, tokens: dict[str, Tensor], pixel_values: Tensor) -> Features:
        """The features of a batch of normalised images and of its captions."""
        clip, heads = self.clip, self.heads
        hidden = clip.vision_model(pixel_values=pixel_values).pooler_output
        image = _unit(clip.visual_projection(hidden))
        text = _unit(clip.text_projection(clip.text_model(**tokens).pooler_output))
        view = _unit(heads["view"](hidden)) if "view" in heads else None
        descriptor = heads["descriptor"](hidden).float() if "descriptor" in heads else None
        return Features(image, text, clip.logit_scale.exp(), view, descriptor)

    def _drop_patches(self, _module: Any, _inputs: Any, states: Tensor) -> Tensor:
        """The class token and a random part of the patches of each image, (N, 1 + K, W)."""
        patches = states.shape[1] - 1
        kept = max(1, round(patches * (1 - self.patch_dropout)))
        order = torch.rand(len(states), patches, generator=self.generator, device=states.device)
        rows = (order.argsort(dim=1)[:, :kept] + 1)[..., None].expand(-1, -1, states.shape[2])
        return torch.cat([states[:, :1], states.gather(1, rows)], dim=1)


def _unit(features: Tensor) -> Tensor:
    return nn.functional.normalize(features.float(), dim=-1)
