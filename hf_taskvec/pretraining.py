"""Pretraining of a small CLIP from image-text pairs: data, model, loss and a resumable Accelerate loop."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict, load_dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers import get_cosine_schedule_with_warmup as cosine_schedule

from hf_taskvec.errors import DataError, UnknownNameError, check_positive

logger = logging.getLogger(__name__)

TEMPLATES = (
    "{}", "{}", "{}.", "a photo of {}.", "a picture of {}.", "an image of {}.", "a photo of the {}.", "a blurry photo of {}.",
    "a drawing of {}.", "a sketch of {}.", "a close-up photo of {}.", "a photo of a {}.", "a picture of a {}.",
)  # fmt: skip


@dataclass(frozen=True)
class PretrainingConfig:
    """How a small CLIP is built and trained.

    Args:
        intermediate_ratio: Width of the vision MLPs as a multiple of `width`.
        max_pairs_per_text: Pairs kept per caption, as in MetaCLIP (2309.16671); 0 keeps all.
        ema_decay: Decay of the averaged weights that are saved; 0 saves the last weights.
        augmentation: Strength of the image augmentation, 0 for none.
        template_probability: Chance that a caption is put into a random prompt template.
    """

    width: int = 384
    layers: int = 2
    patch_size: int = 8
    intermediate_ratio: int = 2
    image_size: int = 32
    text_width: int = 192
    text_layers: int = 2
    projection_dim: int = 256
    vocab_size: int = 3000
    max_length: int = 32
    steps: int = 4000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    augmentation: float = 1.0
    template_probability: float = 0.5
    max_pairs_per_text: int = 0
    max_logit_scale: float = 50.0
    save_steps: int = 250
    seed: int = 0


@dataclass(frozen=True)
class Pairs:
    """Decoded images and their captions; pixels are uint8 (N, 3, H, W)."""

    pixels: Tensor
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)

    def __add__(self, other: Pairs) -> Pairs:
        return Pairs(torch.cat([self.pixels, other.pixels]), self.texts + other.texts)


def image_processor(size: int) -> CLIPImageProcessor:
    """CLIP's image processor for images of `size` pixels."""
    return CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})


def decode_pairs(dataset: Dataset, processor: CLIPImageProcessor) -> Pairs:
    """Decodes and resizes every image once.

    Raises:
        DataError: If a column is missing or an image does not decode.
    """
    for column in ("image", "text"):
        if column not in dataset.column_names:
            raise UnknownNameError("column", column, dataset.column_names)
    pixels = []
    for start in tqdm(range(0, len(dataset), 1000), desc="decode", unit="k", leave=False):
        try:
            images = dataset[start : start + 1000]["image"]
        except OSError as error:
            raise DataError(f"an image in rows {start} to {start + 999} does not decode: {error}") from error
        images = [image.convert("RGB") for image in images]
        batch = processor(images, do_rescale=False, do_normalize=False, return_tensors="pt")
        pixels.append(batch["pixel_values"].clamp(0, 255).to(torch.uint8))
    if not pixels:
        raise DataError("a pair set is empty")
    return Pairs(torch.cat(pixels), list(dataset["text"]))


def load_pairs(source: str, split: str, processor: CLIPImageProcessor) -> Pairs | None:
    """Loads one split of a Hub dataset or folder of pairs; `None` when it has no such split."""
    datasets: DatasetDict = load_dataset(source)
    return decode_pairs(datasets[split], processor) if split in datasets else None


def balance(pairs: Pairs, max_pairs_per_text: int, *, seed: int) -> Pairs:
    """Keeps at most `max_pairs_per_text` random pairs of each caption; 0 keeps all."""
    if not max_pairs_per_text:
        return pairs
    counts: dict[str, int] = {}
    kept = []
    for row in torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist():
        text = pairs.texts[row]
        counts[text] = counts.get(text, 0) + 1
        if counts[text] <= max_pairs_per_text:
            kept.append(row)
    kept.sort()
    return Pairs(pairs.pixels[kept], [pairs.texts[row] for row in kept])


def train_tokenizer(texts: Sequence[str], config: PretrainingConfig) -> CLIPTokenizer:
    """Trains CLIP's byte-pair tokenizer on the captions and the prompt templates."""
    corpus = [*dict.fromkeys(texts), *(template.format("") for template in TEMPLATES)]
    tokenizer = CLIPTokenizer().train_new_from_iterator(corpus, vocab_size=config.vocab_size, show_progress=False)
    tokenizer.model_max_length = config.max_length
    return tokenizer


def build_model(config: PretrainingConfig, tokenizer: CLIPTokenizer) -> CLIPModel:
    """A randomly initialised CLIP whose text tower fits `tokenizer`."""
    text = dict(
        vocab_size=len(tokenizer), hidden_size=config.text_width, intermediate_size=2 * config.text_width,
        num_hidden_layers=config.text_layers, num_attention_heads=max(1, config.text_width // 64),
        max_position_embeddings=config.max_length, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(
        hidden_size=config.width, intermediate_size=config.intermediate_ratio * config.width,
        num_hidden_layers=config.layers, num_attention_heads=max(1, config.width // 64),
        image_size=config.image_size, patch_size=config.patch_size,
    )  # fmt: skip
    return CLIPModel(
        CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=config.projection_dim, logit_scale_init_value=2.6592
        )
    )


def augment(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Randomly moves, scales, turns and recolours a batch; no flip, which would change digits and signs.

    Args:
        pixels: Images in [0, 1], shape (N, 3, H, W).
        strength: 1 for the full range of each change.
    """
    count = len(pixels)

    def uniform(*shape: int, scale: float) -> Tensor:
        return (torch.rand(shape, generator=generator) * 2 - 1) * scale * strength

    angle, zoom, aspect = uniform(count, scale=0.2), uniform(count, scale=0.2).exp(), uniform(count, scale=0.12).exp()
    shift = uniform(count, 2, scale=0.18)
    rows = [angle.cos() * zoom * aspect, -angle.sin() * zoom, shift[:, 0]]
    columns = [angle.sin() * zoom, angle.cos() * zoom / aspect, shift[:, 1]]
    theta = torch.stack([torch.stack(rows, 1), torch.stack(columns, 1)], 1)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    grey = pixels.mean(dim=1, keepdim=True)
    is_grey = torch.rand(count, 1, 1, 1, generator=generator) < 0.1 * strength
    pixels = torch.where(is_grey, grey, pixels)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    pixels = (pixels - mean) * (1 + uniform(count, 1, 1, 1, scale=0.35)) + mean + uniform(count, 1, 1, 1, scale=0.15)
    pixels = pixels + uniform(count, 3, 1, 1, scale=0.05)
    noise = torch.rand(count, 1, 1, 1, generator=generator) * 0.06 * strength
    return (pixels + noise * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)


def contrastive_loss(image: Tensor, text: Tensor, caption: Tensor, scale: Tensor) -> Tensor:
    """CLIP's loss with every image of a caption as its positive.

    Args:
        image: Unit vectors, shape (N, F).
        text: Unit vectors of the batch's unique captions, shape (U, F).
        caption: Index of each image's caption, shape (N,).
        scale: The temperature's inverse.
    """
    logits = scale * image @ text.T
    counts = torch.bincount(caption, minlength=len(text)).clamp(min=1)
    # each caption stands as often as in the batch: log-counts restore its repeated columns
    to_text = F.cross_entropy(logits + counts.log(), caption)
    positives = F.one_hot(caption, len(text)).T / counts[:, None]
    to_image = -(positives * logits.T.log_softmax(dim=1)).sum(dim=1) * counts
    return (to_text + to_image.sum() / len(image)) / 2


class PairTrainer:
    """Trains a CLIP on pairs; its state can be saved and resumed exactly."""

    def __init__(
        self, model: CLIPModel, processor: CLIPProcessor, pairs: Pairs, *, config: PretrainingConfig, output_dir: str
    ) -> None:
        check_positive("steps", config.steps)
        self.config, self.processor, self.pairs = config, processor, pairs
        self.folder = Path(output_dir)
        self.accelerator = Accelerator()
        decayed = [value for value in model.parameters() if value.ndim > 1]
        others = [value for value in model.parameters() if value.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.scheduler = cosine_schedule(optimizer, config.warmup_steps, config.steps)
        self.average = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.step = 0
        self.log: list[dict[str, float]] = []
        self._index_captions()

    @property
    def module(self) -> CLIPModel:
        """The model without its distributed wrapper."""
        return self.accelerator.unwrap_model(self.model)

    def _index_captions(self) -> None:
        captions = list(dict.fromkeys(self.pairs.texts))
        rank = {text: index for index, text in enumerate(captions)}
        self.caption_of = torch.tensor([rank[text] for text in self.pairs.texts])
        tokens = self.processor.tokenizer
        limit = dict(padding="max_length", truncation=True, max_length=self.config.max_length, return_tensors="pt")
        self.tokens = [tokens([form.format(text) for text in captions], **limit)["input_ids"] for form in TEMPLATES]
        normal = self.processor.image_processor
        self.mean = torch.tensor(normal.image_mean).view(1, 3, 1, 1)
        self.std = torch.tensor(normal.image_std).view(1, 3, 1, 1)

    def _rows(self) -> Tensor:
        """This step's rows: a fresh order per epoch, one slice per process."""
        per_epoch = max(1, len(self.pairs) // self.config.batch_size)
        epoch, index = divmod(self.step, per_epoch)
        if getattr(self, "_epoch", None) != epoch:
            generator = torch.Generator().manual_seed(self.config.seed * 100_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.pairs), generator=generator)
        rows = self._order[index * self.config.batch_size :][: self.config.batch_size]
        return rows[self.accelerator.process_index :: self.accelerator.num_processes]

    def _loss(self, rows: Tensor) -> Tensor:
        config = self.config
        generator = torch.Generator().manual_seed(
            (config.seed * 1_000_003 + self.step) * 64 + self.accelerator.process_index
        )
        pixels = self.pairs.pixels[rows].float() / 255
        if config.augmentation > 0:
            pixels = augment(pixels, config.augmentation, generator)
        unique, caption = self.caption_of[rows].unique(return_inverse=True)
        forms = torch.randint(len(TEMPLATES), unique.shape, generator=generator)
        plain = torch.rand(unique.shape, generator=generator) >= config.template_probability
        forms[plain] = 0
        ids = torch.stack([self.tokens[form][row] for form, row in zip(forms.tolist(), unique.tolist(), strict=True)])
        eos = self.processor.tokenizer.eos_token_id
        mask = (ids == eos).cumsum(dim=1).cumsum(dim=1) <= 1
        longest = int(mask.sum(dim=1).max())
        device = self.accelerator.device
        output = self.model(
            input_ids=ids[:, :longest].to(device), attention_mask=mask[:, :longest].long().to(device),
            pixel_values=((pixels - self.mean) / self.std).to(device),
        )  # fmt: skip
        scale = self.module.logit_scale.exp()
        return contrastive_loss(output.image_embeds, output.text_embeds, caption.to(device), scale)

    def train(self, *, stop_at: int | None = None) -> None:
        """Trains up to the last step (or `stop_at`), saving the state every `save_steps`."""
        last = min(stop_at or self.config.steps, self.config.steps)
        bar = tqdm(total=self.config.steps, initial=self.step, disable=not self.accelerator.is_main_process)
        running = 0.0
        self.model.train()
        while self.step < last:
            loss = self._loss(self._rows())
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            self.module.logit_scale.data.clamp_(max=math.log(self.config.max_logit_scale))
            self.step += 1
            self._update_average()
            running = loss.item() if not running else 0.98 * running + 0.02 * loss.item()
            bar.update()
            bar.set_postfix(loss=f"{running:.3f}", refresh=False)
            if self.step % 50 == 0:
                self.log.append({"step": self.step, "loss": round(running, 4)})
            if self.step % self.config.save_steps == 0 or self.step == last:
                self.save_state()
        bar.close()

    def _update_average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step)) if self.config.ema_decay else 0.0
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)

    def save_state(self) -> None:
        """Writes weights, averaged weights, optimiser and step; a kill in between leaves the former state."""
        if not self.accelerator.is_main_process:
            return
        new, final = self.folder / "state.new", self.folder / "state"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in self.module.state_dict().items()}, new / "model.safetensors")
        save_file(self.average, new / "average.safetensors")
        states = self.optimizer.state_dict()["state"]
        flat = {f"{index}.{key}": value for index, entry in states.items() for key, value in entry.items()}
        save_file(flat, new / "optimizer.safetensors")
        (new / "state.json").write_text(json.dumps({"step": self.step, "log": self.log, "config": asdict(self.config)}))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(new, final)

    def resume(self) -> bool:
        """Continues from the state in the output folder, when there is one."""
        state = self.folder / "state"
        if not (state / "state.json").is_file():
            return False
        saved: dict[str, Any] = json.loads((state / "state.json").read_text())
        self.step, self.log = saved["step"], saved["log"]
        self.module.load_state_dict(load_file(state / "model.safetensors"))
        self.average = load_file(state / "average.safetensors")
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {}
        for key, value in load_file(state / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            optimizer["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(optimizer)
        for _ in range(self.step):
            self.scheduler.step()
        return True

    def averaged_model(self) -> CLIPModel:
        """A copy of the model with the averaged weights."""
        model = CLIPModel(self.module.config)
        model.load_state_dict(self.average)
        return model.eval()
