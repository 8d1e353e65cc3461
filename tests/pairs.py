"""Settings and pairs for the tests of pretraining."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from pretraining.build import build_model, train_tokenizer
from pretraining.config import PretrainingConfig
from pretraining.pairs import Pairs, image_processor
from pretraining.trainer import PairTrainer
from transformers import CLIPProcessor

TINY = PretrainingConfig(
    width=64,
    layers=1,
    patch_size=16,
    text_width=64,
    text_layers=1,
    projection_dim=16,
    vocab_size=700,
    steps=6,
    batch_size=8,
    warmup_steps=2,
    save_steps=3,
)
FEATURES = replace(
    TINY, patch_dropout=0.5, view_weight=1.0, caption_mates=True, descriptor_weight=1.0, schedule="constant"
)
COLOURS = {"a red square": (220, 20, 20), "a green square": (20, 220, 20), "a blue square": (20, 20, 220)}


def toy_pairs(count: int = 24) -> Pairs:
    texts = [list(COLOURS)[index % 3] for index in range(count)]
    pixels = torch.stack([torch.tensor(COLOURS[text], dtype=torch.uint8) for text in texts])
    return Pairs(pixels[:, :, None, None].expand(-1, 3, 32, 32).contiguous(), texts)


def toy_folder(path: Path) -> str:
    texts = [list(COLOURS)[index % 3] for index in range(24)]
    images = [PILImage.new("RGB", (40, 32), (*COLOURS[text][:2], COLOURS[text][2] + i)) for i, text in enumerate(texts)]
    features = Features({"image": Image(), "text": Value("string")})
    for split in ("train", "test"):
        (path / "data").mkdir(parents=True, exist_ok=True)
        table = Dataset.from_dict({"image": images, "text": texts}, features=features)
        table.to_parquet(str(path / "data" / f"{split}-00000-of-00001.parquet"))
    return str(path)


def toy_trainer(folder: Path, config: PretrainingConfig = TINY) -> PairTrainer:
    torch.manual_seed(0)
    pairs = toy_pairs()
    tokenizer = train_tokenizer(pairs.texts, config)
    processor = CLIPProcessor(image_processor=image_processor(32), tokenizer=tokenizer)
    return PairTrainer(build_model(config, tokenizer), processor, pairs, config=config, output_dir=str(folder))
