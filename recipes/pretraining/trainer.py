"""The loop that trains a small CLIP on pairs and on images alone; resumable, on a CPU or a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPProcessor
from transformers import get_cosine_schedule_with_warmup as cosine_schedule

from hf_taskvec.errors import CheckpointError, DataError
from pretraining.build import TrainedClip
from pretraining.config import TEMPLATES, PretrainingConfig
from pretraining.descriptors import descriptors
from pretraining.losses import contrastive_loss, view_loss
from pretraining.pairs import Pairs, augment, normalize
from pretraining.state import State, load_state, save_state

LOG_EVERY = 50
WARM, MEASURED, SAFE = 0.03, 0.1, 0.97  # of a run's time: when its rate is measured, and how much is then planned for


@dataclass
class Pace:
    """How many steps a run can take in its time, by the rate of its first ones.

    Args:
        seconds: The run's time.
    """

    seconds: float
    mark: tuple[float, int] | None = None  # when the first steps, which warm up, were over

    def steps(self, step: int, elapsed: float) -> int | None:
        """The last step that the time is enough for, once the rate is known."""
        if self.mark is None and elapsed >= WARM * self.seconds:
            self.mark = elapsed, step
        if self.mark is None or elapsed < MEASURED * self.seconds or step == self.mark[1]:
            return None
        rate = (step - self.mark[1]) / (elapsed - self.mark[0])
        return step + max(1, int(SAFE * rate * (self.seconds - elapsed)))


class PairTrainer:
    """Trains a CLIP on pairs; its state can be saved and resumed exactly.

    Args:
        model: The CLIP, trained in place.
        processor: Its tokenizer and image processor.
        pairs: What it is trained on.
        config: How.
        output_dir: Where its state lies.

    Raises:
        DataError: If there are fewer pairs than a batch.
    """

    def __init__(
        self, model: CLIPModel, processor: CLIPProcessor, pairs: Pairs, *, config: PretrainingConfig, output_dir: str
    ) -> None:
        if len(pairs) < config.batch_size:
            raise DataError(f"{len(pairs)} pairs are fewer than a batch of {config.batch_size}; lower batch_size")
        self.config, self.processor, self.pairs = config, processor, pairs
        self.folder = Path(output_dir)
        AcceleratorState._reset_state()  # a process keeps the precision of its last trainer; ours is in `_losses`
        self.accelerator = Accelerator(mixed_precision="no")
        trained = TrainedClip(model, config)
        optimizer = torch.optim.AdamW(
            _groups(trained, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98), fused=True
        )
        self.scheduler = (
            cosine_schedule(optimizer, config.warmup_steps, config.steps)
            if config.schedule == "cosine"
            else LambdaLR(optimizer, lambda step: self.config.learning_rate_factor(step))
        )
        self.model, self.optimizer = self.accelerator.prepare(trained, optimizer)
        self.average = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.generator = torch.Generator(self.device)
        self.module.generator = self.generator
        self.step, self.loss, self.views_per_second = 0, 0.0, 0.0
        self.on_save: Callable[[], object] | None = None
        self._saved, self._saved_step = 0.0, 0  # when, and which
        self.log: list[dict[str, float]] = []
        self.pixels = pairs.pixels.to(self.device)
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)
        self._index_captions()
        if config.descriptor_weight:
            self.shift, self.spread = self._descriptor_statistics()

    @property
    def module(self) -> TrainedClip:
        """The model without its distributed wrapper."""
        module: TrainedClip = self.accelerator.unwrap_model(self.model)
        return module

    @property
    def device(self) -> torch.device:
        """The device of the run."""
        device: torch.device = self.accelerator.device
        return device

    def _index_captions(self) -> None:
        self.captions = list(dict.fromkeys(self.pairs.texts))
        rank = {text: index for index, text in enumerate(self.captions)}
        self.caption_of = torch.tensor([rank[text] for text in self.pairs.texts])
        own = torch.arange(len(self.pairs))
        subjects = self.pairs.subjects if self.config.caption_mates else None
        first: dict[str, int] = {}
        mates = [first.setdefault(name, row) if name else row for row, name in enumerate(subjects or [])]
        self.group_of = torch.tensor(mates) if mates else own

    def _descriptor_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and spread of each entry of the descriptors, over a part of the images."""
        rows = torch.randperm(len(self.pairs), generator=torch.Generator().manual_seed(self.config.seed))[:4096]
        known = descriptors(self.pixels[rows.to(self.device)].float() / 255)
        return known.mean(dim=0), known.std(dim=0, unbiased=False).clamp(min=0.02)

    def _rows(self) -> Tensor:
        """This step's rows: a fresh order per epoch, one slice per process."""
        per_epoch = len(self.pairs) // self.config.batch_size
        epoch, index = divmod(self.step, per_epoch)
        if self._epoch != epoch:
            generator = torch.Generator().manual_seed(self.config.seed * 100_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.pairs), generator=generator)
        rows = self._order[index * self.config.batch_size :][: self.config.batch_size]
        return rows[self.accelerator.process_index :: self.accelerator.num_processes]

    def _losses(self, rows: Tensor) -> dict[str, Tensor]:
        """The weighted losses of a step by name."""
        config = self.config
        generator = self.generator.manual_seed(
            (config.seed * 1_000_003 + self.step) * 64 + self.accelerator.process_index
        )
        rows = rows.repeat(config.views)
        pixels = self.pixels[rows.to(self.device)].float() / 255
        if config.augmentation > 0:
            pixels = augment(pixels, config.augmentation, generator)
        unique, caption = self.caption_of[rows].unique(return_inverse=True)
        tokens = self._tokens(unique, generator).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            out = self.model(dict(tokens), normalize(pixels, self.processor.image_processor))
        losses = {"caption": contrastive_loss(out.image, out.text, caption.to(self.device), out.scale)}
        if out.view is not None:
            groups = self.group_of[rows].to(self.device)
            losses["view"] = config.view_weight * view_loss(out.view, groups, temperature=config.view_temperature)
        if out.descriptor is not None:
            wanted = (descriptors(pixels) - self.shift) / self.spread
            losses["descriptor"] = config.descriptor_weight * F.mse_loss(out.descriptor, wanted)
        return losses

    def _tokens(self, unique: Tensor, generator: torch.Generator) -> Any:
        """The tokens of captions, some of them in a prompt."""
        forms = torch.randint(len(TEMPLATES), unique.shape, generator=generator, device=self.device)
        chance = torch.rand(unique.shape, generator=generator, device=self.device)
        forms[chance >= self.config.template_probability] = 0
        texts = [
            TEMPLATES[form].format(self.captions[row])
            for form, row in zip(forms.tolist(), unique.tolist(), strict=True)
        ]
        return self.processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")

    def train(self, *, stop_at: int = 0, minutes: float = math.inf, fit: bool = False) -> None:
        """Trains up to the last step, saving the state every `save_steps` and at the end.

        Args:
            stop_at: The step to stop at before, if not 0.
            minutes: The time to stop after.
            fit: Whether a constant schedule ends with the minutes, after steps counted by the rate of the first ones.

        Raises:
            ValueError: If there are no minutes to fit to, or the schedule is no constant one before its decay.
        """
        pace = self._pace(minutes) if fit else None
        bar = tqdm(
            total=self.config.steps, initial=self.step, mininterval=5, disable=not self.accelerator.is_main_process
        )
        self.model.train()
        begin, first = time.perf_counter(), self.step
        while self.step < min(stop_at or self.config.steps, self.config.steps):
            elapsed = time.perf_counter() - begin
            if elapsed >= 60 * minutes:
                break
            if pace is not None and (steps := pace.steps(self.step, elapsed)):
                self.config, bar.total, pace = replace(self.config, steps=steps), steps, None
            losses = self._losses(self._rows())
            self._update(torch.stack(list(losses.values())).sum())
            bar.update()
            views = (self.step - first) * self.config.batch_size * self.config.views
            self.views_per_second = views / (time.perf_counter() - begin)
            if self.step % LOG_EVERY == 0:
                self.log.append({"step": self.step, "loss": round(self.loss, 4)})
                rates = {"views/s": f"{self.views_per_second:.0f}"}
                bar.set_postfix({**rates, **{name: f"{loss:.3f}" for name, loss in losses.items()}})
            late = time.perf_counter() - max(begin, self._saved) >= self.config.save_seconds
            if self.step % self.config.save_steps == 0 and late:
                self.save_state()
        bar.close()
        if self.step > first and self._saved_step != self.step:
            self.save_state()

    def _pace(self, minutes: float) -> Pace:
        steps = self.config.steps - round(self.config.steps * self.config.decay_share)
        processes = self.accelerator.num_processes  # each would count other steps
        if not math.isfinite(minutes) or self.config.schedule != "constant" or self.step > steps or processes > 1:
            raise ValueError(
                "fit_minutes needs minutes and a constant schedule that has not begun to fall, in one process; got "
                f"minutes={minutes:g}, schedule={self.config.schedule!r} at step {self.step} of {self.config.steps}, "
                f"{processes} process(es)"
            )
        return Pace(60 * minutes)

    def _update(self, loss: Tensor) -> None:
        """One step of the optimiser and of the average."""
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.module.clip.logit_scale.data.clamp_(max=math.log(self.config.max_logit_scale))
        self.step += 1
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step)) if self.config.ema_decay else 0.0
        for name, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
        value = loss.item()
        self.loss = value if self.step == 1 else 0.98 * self.loss + 0.02 * value

    def save_state(self) -> None:
        """Writes weights, averaged weights, optimiser and step."""
        if not self.accelerator.is_main_process:
            return
        facts = {
            "step": self.step,
            "loss": self.loss,
            "log": self.log,
            "scheduler": self.scheduler.state_dict(),
            "config": asdict(self.config),
        }
        save_state(
            self.folder, State(self.module.state_dict(), self.average, self.optimizer.state_dict()["state"], facts)
        )
        self._saved, self._saved_step = time.perf_counter(), self.step
        if self.on_save is not None:
            self.on_save()

    def resume(self) -> bool:
        """Continues from the state in the output folder, when there is one.

        Raises:
            CheckpointError: If its steps were made with other settings.
        """
        state = load_state(self.folder)
        if state is None:
            return False
        facts, step = state.facts, state.facts["step"]
        saved = PretrainingConfig(**facts["config"])
        if saved.resumable_as(step) != self.config.resumable_as(step):
            now = asdict(self.config)
            changed = {name: value for name, value in asdict(saved).items() if value != now[name]}
            raise CheckpointError(
                f"{self.folder} was written with other settings: {changed}; name them, or use another folder"
            )
        self.step, self.loss, self.log = step, facts["loss"], facts["log"]
        self.module.load_state_dict(state.model)
        self.average = {name: value.to(self.device) for name, value in state.average.items()}
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state.optimizer})
        for group, rate in zip(self.optimizer.param_groups, facts["scheduler"]["_last_lr"], strict=True):
            group["lr"] = rate
        self.scheduler.load_state_dict(facts["scheduler"])
        return True


def _groups(model: TrainedClip, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters with weight decay, the matrices, and without."""
    decayed = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
