"""Pretraining of a small CLIP from image-text pairs: data, model, loss and a resumable Accelerate loop."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import get_dataset_split_names
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers import get_cosine_schedule_with_warmup as cosine_schedule

from hf_taskvec.errors import CheckpointError, check_positive
from hf_taskvec.models.pooling import pooled
from hf_taskvec.tasks.generated import generated_pairs
from hf_taskvec.weights.folders import read_json, write_json
from pretraining.pairs import Pairs, augment, balance, decode_pairs, image_processor, load_pairs, normalize

TEMPLATES = (
    "{}", "{}", "{}.", "a photo of {}.", "a picture of {}.", "an image of {}.", "a photo of the {}.",
    "a blurry photo of {}.", "a drawing of {}.", "a sketch of {}.", "a close-up photo of {}.",
    "a photo of a {}.", "a picture of a {}.",
)  # fmt: skip

LOG_NAME = "training_log.json"


@dataclass(frozen=True)
class PretrainingConfig:
    """How a small CLIP is built and trained.

    Args:
        intermediate_ratio: Width of the vision MLPs as a multiple of `width`.
        max_pairs_per_text: Pairs kept per caption, as in MetaCLIP (2309.16671); 0 keeps all.
        ema_decay: Decay of the averaged weights that are saved; 0 saves the last weights.
        augmentation: Strength of the image augmentation, 0 for none.
        stop_step: Step after which to stop before the schedule's end; 0 runs it out.
        init_from: Folder of a pretrained CLIP to go on from, instead of random weights and a new tokenizer.
        patch_dropout: Share of each image's patches left out of a training step, as in FLIP (2212.00794).
        template_probability: Chance that a caption is put into a random prompt template.
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
    max_grad_norm: float = 1.0
    ema_decay: float = 0.998
    augmentation: float = 1.0
    patch_dropout: float = 0.0
    template_probability: float = 0.5
    max_pairs_per_text: int = 0
    max_logit_scale: float = 50.0
    save_steps: int = 250
    stop_step: int = 0
    init_from: str = ""
    seed: int = 0


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
        vocab_size=len(tokenizer), hidden_size=config.text_width, intermediate_size=2 * config.text_width,
        num_hidden_layers=config.text_layers, num_attention_heads=max(1, config.text_width // 64),
        max_position_embeddings=config.max_length, hidden_act=config.activation, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = dict(
        hidden_size=config.width, intermediate_size=config.intermediate_ratio * config.width,
        num_hidden_layers=config.layers, num_attention_heads=max(1, config.width // 64),
        image_size=config.image_size, patch_size=config.patch_size, hidden_act=config.activation,
    )  # fmt: skip
    return CLIPModel(
        CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=config.projection_dim, logit_scale_init_value=2.6592
        )
    )


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
        model.vision_model = pooled(model.vision_model)
        if config.patch_dropout:
            model.vision_model.embeddings.register_forward_hook(self._drop_patches)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.scheduler = cosine_schedule(optimizer, config.warmup_steps, config.steps)
        self.average = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.generator = torch.Generator()
        self.step = 0
        self.loss = 0.0
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
        self.captions = captions

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
        generator = self.generator.manual_seed(
            (config.seed * 1_000_003 + self.step) * 64 + self.accelerator.process_index
        )
        pixels = self.pairs.pixels[rows].float() / 255
        if config.augmentation > 0:
            pixels = augment(pixels, config.augmentation, generator)
        unique, caption = self.caption_of[rows].unique(return_inverse=True)
        forms = torch.randint(len(TEMPLATES), unique.shape, generator=generator)
        forms[torch.rand(unique.shape, generator=generator) >= config.template_probability] = 0
        texts = [TEMPLATES[form].format(self.captions[row]) for form, row in zip(forms, unique, strict=True)]
        tokens = self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        device = self.accelerator.device
        output = self.model(
            **tokens.to(device), pixel_values=normalize(pixels, self.processor.image_processor).to(device)
        )
        scale = self.module.logit_scale.exp()
        return contrastive_loss(output.image_embeds, output.text_embeds, caption.to(device), scale)

    def _drop_patches(self, _module: Any, _inputs: Any, states: Tensor) -> Tensor:
        """The class token and a random part of the patches of each image, (N, 1 + K, W)."""
        patches = states.shape[1] - 1
        kept = max(1, round(patches * (1 - self.config.patch_dropout)))
        order = torch.rand(len(states), patches, generator=self.generator).argsort(dim=1)[:, :kept] + 1
        rows = order[..., None].expand(-1, -1, states.shape[2]).to(states.device)
        return torch.cat([states[:, :1], states.gather(1, rows)], dim=1)

    def train(self, *, stop_at: int = 0) -> None:
        """Trains up to the last step (or `stop_at`, if not 0), saving the state every `save_steps`."""
        last = min(stop_at or self.config.steps, self.config.steps)
        bar = tqdm(total=self.config.steps, initial=self.step, disable=not self.accelerator.is_main_process)
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
            self.loss = loss.item() if self.step == 1 else 0.98 * self.loss + 0.02 * loss.item()
            bar.update()
            bar.set_postfix(loss=f"{self.loss:.3f}", refresh=False)
            if self.step % 50 == 0:
                self.log.append({"step": self.step, "loss": round(self.loss, 4)})
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
        state = {
            "step": self.step,
            "loss": self.loss,
            "log": self.log,
            "scheduler": self.scheduler.state_dict(),
            "config": asdict(self.config),
        }
        (new / "state.json").write_text(json.dumps(state), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(new, final)

    def resume(self) -> bool:
        """Continues from the state in the output folder, when there is one."""
        state, new = self.folder / "state", self.folder / "state.new"
        if not state.exists() and (new / "state.json").is_file():  # written last: killed just before the renaming
            os.replace(new, state)
        if not (state / "state.json").is_file():
            return False
        saved: dict[str, Any] = json.loads((state / "state.json").read_text())
        if saved["config"] != asdict(self.config):
            raise CheckpointError(f"{state} was written with other settings: {saved['config']}; use another folder")
        self.step, self.loss, self.log = saved["step"], saved["loss"], saved["log"]
        self.module.load_state_dict(load_file(state / "model.safetensors"))
        self.average = load_file(state / "average.safetensors")
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {}
        for key, value in load_file(state / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            optimizer["state"].setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict(optimizer)
        for group, rate in zip(self.optimizer.param_groups, saved["scheduler"]["_last_lr"], strict=True):
            group["lr"] = rate
        self.scheduler.load_state_dict(saved["scheduler"])
        return True

    def averaged_model(self) -> CLIPModel:
        """A copy of the model with the averaged weights."""
        model = CLIPModel(self.module.config)
        model.load_state_dict(self.average)
        return model.eval()


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


def gather_pairs(sources: Sequence[str], config: PretrainingConfig, *, generated: int) -> Pairs:
    """The training pairs of every source and the generated ones, with captions capped."""
    processor = image_processor(config.image_size)
    parts = [load_pairs(source, "train", processor) for source in sources]
    if generated:
        parts.append(decode_pairs(generated_pairs(generated, seed=config.seed), processor))
    pairs = Pairs(torch.cat([part.pixels for part in parts]), [text for part in parts for text in part.texts])
    return balance(pairs, config.max_pairs_per_text, seed=config.seed)


def pretrain(
    sources: Sequence[str], *, config: PretrainingConfig, output_dir: str, generated: int = 0
) -> dict[str, float]:
    """Trains a CLIP and saves it, in half precision, with its processor and log.

    Args:
        sources: Hub ids or folders of datasets with the columns `image` and `text`.
        config: How it is built and trained.
        output_dir: Where the model, its log and the state of an unfinished run go; the latter is resumed.
        generated: How many generated pairs to add.

    Returns:
        Retrieval (recall at 5) of the saved weights on the test split of every source that has one.
    """
    torch.manual_seed(config.seed)
    pairs = gather_pairs(sources, config, generated=generated)
    if config.init_from:
        model = CLIPModel.from_pretrained(config.init_from, dtype=torch.float32)
        processor = CLIPProcessor.from_pretrained(config.init_from)
    else:
        tokenizer = train_tokenizer(pairs.texts, config)
        model = build_model(config, tokenizer)
        processor = CLIPProcessor(image_processor=image_processor(config.image_size), tokenizer=tokenizer)
    trainer = PairTrainer(model, processor, pairs, config=config, output_dir=output_dir)
    trainer.resume()
    trainer.train(stop_at=config.stop_step)
    trainer.accelerator.wait_for_everyone()
    if not trainer.accelerator.is_main_process:
        return {}
    trainer.averaged_model().half().save_pretrained(output_dir)
    backend = processor.tokenizer.backend_tokenizer  # what the last call set would be saved and warn every user
    backend.no_truncation()
    backend.no_padding()
    processor.save_pretrained(output_dir)
    saved = CLIPModel.from_pretrained(output_dir, dtype=torch.float32)
    figures = {}
    for source in sources:
        if "test" in get_dataset_split_names(source):
            figures[Path(source).name] = retrieval(
                saved, processor, load_pairs(source, "test", processor.image_processor)
            )
    log = {
        "stages": [
            *_earlier_stages(config),
            {"config": asdict(config), "stopped_at": trainer.step, "loss": trainer.log},
        ],
        "sources": [Path(name).name for name in sources],
        "generated_pairs": generated,
        "pairs": len(pairs),
        "captions": len(set(pairs.texts)),
        "recall_at_5": figures,
    }
    write_json(Path(output_dir) / LOG_NAME, log)
    return figures


def _earlier_stages(config: PretrainingConfig) -> list[dict[str, Any]]:
    """The stages of the run this one goes on from."""
    path = Path(config.init_from) / LOG_NAME
    return read_json(path)["stages"] if config.init_from and path.is_file() else []
