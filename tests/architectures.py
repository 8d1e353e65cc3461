"""Models of other architectures than CLIP, tiny and random, in the shapes and names that they have at full size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf
from torch import Tensor

from tests.helpers import tiny_config

_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
_IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_IMAGES = {**_VISION, "image_size": 32, "patch_size": 8}
_SIGLIP2_VISION = {**_VISION, "patch_size": 8, "num_patches": 16}
_HEADS = {**_TEXT, "num_key_value_heads": 2, **_IDS}
_DINO = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
_SIGLIP_TEXT = {**_TEXT, **_IDS, "max_position_embeddings": 16}

MODELS: dict[str, Callable[[], Any]] = {
    "clip": lambda: hf.CLIPModel(tiny_config()),
    "clip_text": lambda: hf.CLIPTextModel(tiny_config().text_config),
    "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(vision_config=_IMAGES, text_config=_SIGLIP_TEXT)),
    "siglip_vision": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**_IMAGES)),
    "siglip2": lambda: hf.Siglip2Model(hf.Siglip2Config(vision_config=_SIGLIP2_VISION, text_config=_SIGLIP_TEXT)),
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**_DINO)),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**_IMAGES, num_labels=3)),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**_TEXT, max_position_embeddings=16)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_HEADS)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_HEADS, tie_word_embeddings=True)),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, vocab_size=99, decoder_start_token_id=0)
    ),
}
_WIDE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE: dict[str, Callable[[], Any]] = {
    "clip": lambda: hf.CLIPModel(hf.CLIPConfig()),
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config()),
    "siglip2_vision": lambda: hf.Siglip2VisionModel(hf.Siglip2VisionConfig(**_WIDE)),
}


@cache
def model_of(kind: str) -> Any:
    """The random model of a kind, in evaluation mode; never changed by a test."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MODELS[kind]().eval()


def moved(model: Any, *, seed: int = 1, size: float = 0.02) -> Any:
    """A copy whose every parameter moved."""
    result, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in result.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((size * noise).to(parameter.dtype))
    return result


def outputs(model: Any) -> Tensor:
    """What a model computes of fixed inputs, in one row of numbers."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 99, (2, 7), generator=generator)
    pixels = torch.randn(2, 3, 32, 32, generator=generator).to(model.dtype)
    patches = torch.randn(2, 16, 192, generator=generator).to(model.dtype)
    flat = {"pixel_values": patches, "pixel_attention_mask": torch.ones(2, 16, dtype=torch.long)}
    flat["spatial_shapes"] = torch.tensor([[4, 4], [4, 4]])
    inputs: dict[str, dict[str, Tensor]] = {
        "CLIPModel": {"input_ids": ids, "pixel_values": pixels},
        "SiglipModel": {"input_ids": ids, "pixel_values": pixels},
        "Siglip2Model": {"input_ids": ids, **flat},
        "T5ForConditionalGeneration": {"input_ids": ids, "labels": ids},
    }
    name = type(model).__name__
    default = {"pixel_values": pixels} if model.main_input_name == "pixel_values" else {"input_ids": ids}
    with torch.no_grad():
        given = model(**inputs.get(name, default))
    values = [given.get(key) for key in ("logits", "logits_per_image", "last_hidden_state", "pooler_output")]
    return torch.cat([value.float().flatten() for value in values if value is not None])
