"""Small bases and tasks for the tests of gradients, theory and training."""

from __future__ import annotations

import dataclasses
import json
from functools import cache

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from hf_taskvec import Base, Task, get_task
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.theory.equivalence import in_dtype
from tests.helpers import tiny_config


@cache
def toy_base() -> Base:
    """A randomly initialised CLIP of 32 px with a tokenizer of its own, in float32; never changed by a test."""
    captions = ["a photo of a handwritten digit zero", "circle square horizontal stripes red blue green"] * 3
    learned = CLIPTokenizer().train_new_from_iterator(captions, vocab_size=400, show_progress=False)
    model = json.loads(learned.backend_tokenizer.to_str())["model"]
    vocab = {token: number for number, token in enumerate(sorted(model["vocab"]))}  # learned in an order of chance
    tokenizer = CLIPTokenizer(vocab=vocab, merges=[tuple(merge) for merge in model["merges"]], model_max_length=24)
    config: CLIPConfig = tiny_config()
    text = config.text_config
    text.vocab_size, text.max_position_embeddings = len(tokenizer), 24
    text.bos_token_id, text.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    text.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return Base(model, CLIPProcessor(image_processor=images, tokenizer=tokenizer), "toy")


@cache
def wide_base() -> Base:
    """`toy_base` in float64."""
    return in_dtype(toy_base(), torch.float64)


def toy_task(name: str = "digits", *, images: int = 50) -> Task:
    """A builtin task on a few images."""
    return subset(get_task(name), max_train=images, max_validation=30, max_test=40)


def with_model(base: Base, **changes: object) -> Base:
    """The base with other settings of its vision tower."""
    config = type(base.model.config).from_dict(base.model.config.to_dict())
    for name, value in changes.items():
        setattr(config.vision_config, name, value)
    return dataclasses.replace(base, model=CLIPModel(config).eval())
