"""A pretraining run from its sources to the saved folder, and how well the result retrieves captions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import get_dataset_split_names
from transformers import CLIPConfig, CLIPModel, CLIPProcessor

from hf_taskvec.weights.folders import read_json, write_json
from pretraining.build import build_model, train_tokenizer
from pretraining.bundle import bundle, unbundle
from pretraining.config import PretrainingConfig
from pretraining.pack import unpack
from pretraining.pairs import Pairs, image_processor, load_pairs, normalize
from pretraining.sources import Gathered, Sources, gather_pairs
from pretraining.state import averaged_clip, load_average
from pretraining.trainer import PairTrainer

LOG_NAME = "training_log.json"


@torch.no_grad()
def retrieval(model: CLIPModel, processor: CLIPProcessor, pairs: Pairs, *, k: int = 5) -> float:
    """The share of images whose caption is among the `k` nearest of all different captions."""
    model.eval()
    captions = list(dict.fromkeys(pairs.texts))
    rank = {text: index for index, text in enumerate(captions)}
    tokens = processor.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    texts = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
    hits = 0
    for start in range(0, len(pairs), 256):
        pixels = normalize(pairs.pixels[start : start + 256].float() / 255, processor.image_processor)
        images = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        nearest = (images @ texts.T).topk(min(k, len(captions))).indices
        wanted = torch.tensor([rank[text] for text in pairs.texts[start : start + 256]])
        hits += int((nearest == wanted[:, None]).any(dim=1).sum())
    return hits / len(pairs)


@dataclass(frozen=True)
class Travel:
    """Files of a run on a machine that nothing can be fetched from.

    Args:
        packed: Folder of pairs that `pack` wrote, instead of the sources.
        bundle_to: Folder for bundles of the state, as often as it is saved.
        bundle_from: Folder of a bundle that an output folder without a state begins with.
    """

    packed: str = ""
    bundle_to: str = ""
    bundle_from: str = ""


def pretrain(
    sources: Sources,
    *,
    config: PretrainingConfig,
    output_dir: str,
    minutes: float = math.inf,
    fit: bool = False,
    travel: Travel = Travel(),
) -> dict[str, float]:
    """Trains a CLIP and saves it, in half precision, with its processor and log.

    Args:
        sources: What it is trained on.
        config: How it is built and trained.
        output_dir: Where the model, its log and the state of an unfinished run go; the latter is resumed.
        minutes: Time after which training stops; the same call goes on from its state.
        fit: Whether a constant schedule ends with the minutes.
        travel: Pairs and states that came from, or go to, another machine.

    Returns:
        Retrieval (recall at 5) of the saved weights on the test split of every pair set that has one.
    """
    if travel.bundle_from:
        unbundle(Path(travel.bundle_from), Path(output_dir))
    torch.manual_seed(config.seed)
    gathered = unpack(Path(travel.packed), config) if travel.packed else gather_pairs(sources, config)
    pairs = gathered.pairs
    print(f"{len(pairs)} images, {len(set(pairs.texts))} captions, {gathered.duplicates} equal images left out")
    model, processor = _start(pairs, config)
    trainer = PairTrainer(model, processor, pairs, config=config, output_dir=output_dir)
    trainer.resume()
    if trainer.accelerator.is_main_process:  # so that `running_base` can open an unfinished run
        model.config.save_pretrained(output_dir)
        save_processor(processor, output_dir)
    if travel.bundle_to:
        trainer.on_save = partial(bundle, Path(output_dir), Path(travel.bundle_to))
    trainer.train(stop_at=config.stop_step, minutes=minutes, fit=fit)
    print(f"step {trainer.step} of {trainer.config.steps}, {trainer.views_per_second:.0f} views/s on {trainer.device}")
    trainer.accelerator.wait_for_everyone()
    if not trainer.accelerator.is_main_process:
        return {}
    averaged_clip(trainer.module.clip.config, trainer.average).half().save_pretrained(output_dir)
    save_processor(processor, output_dir)
    figures = {} if travel.packed else recall_at_5(sources.pairs, processor, output_dir)
    write_json(Path(output_dir) / LOG_NAME, training_log(gathered, trainer, figures))
    return figures


def _start(pairs: Pairs, config: PretrainingConfig) -> tuple[CLIPModel, CLIPProcessor]:
    """The model before the first step: random, or one that was pretrained before."""
    if config.init_from:
        model = CLIPModel.from_pretrained(config.init_from, dtype=torch.float32)
        return model, CLIPProcessor.from_pretrained(config.init_from)
    tokenizer = train_tokenizer(pairs.texts, config)
    processor = CLIPProcessor(image_processor=image_processor(config.image_size), tokenizer=tokenizer)
    return build_model(config, tokenizer), processor


def save_processor(processor: CLIPProcessor, output_dir: str) -> None:
    """Saves tokenizer and image processor, without what the last call set, which would warn every user."""
    backend = processor.tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    processor.save_pretrained(output_dir)


def running_base(output_dir: str) -> CLIPModel:
    """The averaged weights of an unfinished run, in float32."""
    return averaged_clip(CLIPConfig.from_pretrained(output_dir), load_average(Path(output_dir)))


def recall_at_5(sources: Sequence[str], processor: CLIPProcessor, output_dir: str) -> dict[str, float]:
    """Retrieval of the saved model on the test split of every pair set that has one."""
    saved = CLIPModel.from_pretrained(output_dir, dtype=torch.float32)
    tested = [source for source in sources if "test" in get_dataset_split_names(source)]
    parts = {Path(source).name: load_pairs(source, "test", processor.image_processor) for source in tested}
    return {name: retrieval(saved, processor, pairs) for name, pairs in parts.items()}


def training_log(gathered: Gathered, trainer: PairTrainer, figures: dict[str, float]) -> dict[str, Any]:
    """What the folder tells about its run and those it went on from."""
    config, pairs = trainer.config, gathered.pairs
    stage = {"config": asdict(config), "stopped_at": trainer.step, "loss": trainer.log}
    return {
        "stages": [*_earlier_stages(config), stage],
        **gathered.facts,
        "pairs": len(pairs),
        "duplicates_left_out": gathered.duplicates,
        "captions": len(set(pairs.texts)),
        "recall_at_5": figures,
    }


def _earlier_stages(config: PretrainingConfig) -> list[dict[str, Any]]:
    """The stages of the run this one goes on from."""
    path = Path(config.init_from) / LOG_NAME
    return read_json(path)["stages"] if config.init_from and path.is_file() else []
