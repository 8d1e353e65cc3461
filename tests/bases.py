"""A whole base in miniature (random weights, tokenizer, image processor) and a toy task in a folder."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from hf_taskvec import Base, Task, load_base


def save_tiny_base(folder: Path) -> Path:
    """Writes a random CLIP of width 32 with its processor."""
    letters = sorted(ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocab = {word: index for index, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=48)
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 16,
    }
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 48,
        "projection_dim": 16,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


def save_colour_dataset(folder: Path, *, train: int = 90, test: int = 30, seed: int = 0) -> Path:
    """Writes a dataset folder of noisy red, green and blue images with a `ClassLabel`."""
    rng = np.random.default_rng(seed)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "green", "blue"])}
    )
    for split, count in (("train", train), ("test", test)):
        labels = [index % 3 for index in range(count)]
        images = []
        for label in labels:
            pixels = rng.integers(0, 120, size=(40, 36, 3), dtype=np.uint8)
            pixels[..., label] += 100
            images.append(Image.fromarray(pixels))
        images_of_split = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
        (folder / "data").mkdir(parents=True, exist_ok=True)
        images_of_split.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


@cache
def tiny_base() -> Base:
    """What `save_tiny_base` writes; never changed by a test."""
    with tempfile.TemporaryDirectory() as folder:
        return load_base(save_tiny_base(Path(folder) / "base"))


@cache
def colours_task() -> Task:
    """The task `colours` on what `save_colour_dataset` writes; never changed by a test."""
    return Task.from_dataset(save_colour_dataset(Path(os.environ["HF_HOME"]) / "colours"))


def same_base(left: Base, right: Base) -> bool:
    """Whether two bases have equal weights."""
    pairs = zip(left.model.state_dict().values(), right.model.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
