"""A SigLIP in miniature: random weights, a tokenizer of bytes in lower case, an image processor."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipProcessor

_SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_tiny_siglip(folder: Path) -> Path:
    """Writes a random SigLIP of width 32 with its processor."""
    words = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab, [], unk_token=None))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", model_max_length=48
    )
    vision = {**_SIZE, "image_size": 32, "patch_size": 8}
    text = {**_SIZE, "vocab_size": len(words), "max_position_embeddings": 48, "projection_size": 32}
    text |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
        model.logit_bias.data.fill_(-2.0)
        model.logit_scale.data.fill_(2.0)
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    SiglipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
