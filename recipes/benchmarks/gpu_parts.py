"""What a GPU is measured at: merges against the CPU, training against a bare loop, and the full-batch gradient."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, TrainerCallback

from hf_taskvec import TaskVector, TaskVectorConfig, TaskVectorTrainer, gradient_vector, load_base, merge
from hf_taskvec.errors import TaskVecError
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.pixels import PixelDataset, load_pixels
from hf_taskvec.training.run import quiet
from hf_taskvec.training.sampler import ShuffledSampler

# Width, layers, heads, patch and image size of the vision tower, and the width of the shared space.
ARCHITECTURES = {
    "ViT-B/32": (768, 12, 12, 32, 224, 512),
    "ViT-B/16": (768, 12, 12, 16, 224, 512),
    "ViT-L/14": (1024, 24, 16, 14, 224, 768),
    "tiny": (64, 2, 2, 8, 32, 32),
}

CPU = torch.device("cpu")
COMPARED = 24  # parameters of each vector on which device and CPU are compared
TOO_SLOW = "too slow for the time left"


class Deadline:
    """The time that is left of some seconds from now on."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, not below 0."""
        return max(0.0, self.end - time.monotonic())

    def at_most(self, seconds: float) -> Deadline:
        """The deadline of a part that may take some of the time that is left."""
        return Deadline(min(seconds, self.left))


T = TypeVar("T")


@dataclass(frozen=True)
class Measured(Generic[T]):
    """What some work gave, its seconds, and the most bytes it had on a GPU at once; 0 on a CPU."""

    value: T
    seconds: float
    peak: int


def measured(device: torch.device, work: Callable[[], T]) -> Measured[T]:
    """Runs some work once and waits for the device."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    value = work()
    if cuda:
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    return Measured(value, seconds, torch.cuda.max_memory_allocated(device) if cuda else 0)


def random_base(name: str) -> Base:
    """A CLIP with random weights: the vision tower of an architecture, the embedded base's words."""
    width, layers, heads, patch, size, shared = ARCHITECTURES[name]
    embedded = load_base()
    vision = dict(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        patch_size=patch,
        image_size=size,
    )
    text = {**embedded.model.config.text_config.to_dict(), "projection_dim": shared}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=shared)).eval()
    images = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return Base(model, CLIPProcessor(image_processor=images, tokenizer=embedded.processor.tokenizer), name)


def random_vectors(base: Base, count: int) -> list[TaskVector]:
    """Random vectors of the base's vision tower."""
    vectors = []
    for seed in range(count):
        generator = torch.Generator().manual_seed(seed)
        named = base.model.vision_model.named_parameters()
        deltas = {name: 1e-3 * torch.randn(value.shape, generator=generator) for name, value in named}
        vectors.append(TaskVector(deltas))
    return vectors


@dataclass
class MergeRow:
    """What is known of a merge method: figures as text, and the seconds that device and CPU are expected to take."""

    name: str
    cpu: str = "–"
    device: str = "–"
    memory: str = "–"
    difference: str = "–"
    remark: str = ""
    there: float = math.inf
    here: float = math.inf

    def cells(self) -> list[str]:
        """The row of the table."""
        return [self.name, self.cpu, self.device, self.memory, self.difference, self.remark]


def merge_rows(
    vectors: Sequence[TaskVector], methods: Sequence[str], device: torch.device, deadline: Deadline
) -> list[list[str]]:
    """For each merge method: seconds on the CPU and the device, the device's memory and the largest difference.

    The difference is that on the vectors' first `COMPARED` parameters, relative to the largest entry of the CPU's
    result: there both are quick, and all methods come first. From the seconds it took there follows what all parameters
    will take: first on the device, then on the CPU, the quickest methods first, each with half of the time. What would
    not end in time is left out, with the reason, as are methods that random vectors do not suit.
    """
    names = list(vectors[0].deltas)[:COMPARED]
    small = [TaskVector({name: vector.deltas[name] for name in names}) for vector in vectors]
    ratio = vectors[0].num_entries / small[0].num_entries
    rows = {name: MergeRow(name) for name in methods}
    merge(small, "average", device=device)  # the first call on a device takes seconds for itself
    for row in rows.values():
        if deadline.left == 0:
            row.remark = "no time left"
            continue
        with _told_in(row):
            there = measured(device, partial(merge, small, row.name, device=device))
            here = measured(CPU, partial(merge, small, row.name))
            row.difference = f"{largest_difference(here.value, there.value):.1e}"
            row.there, row.here = there.seconds * ratio, here.seconds * ratio
    known = [row for row in rows.values() if row.difference != "–"]
    on_device = deadline.at_most(deadline.left / 2)  # the rest is the CPU's
    for row in sorted(known, key=lambda row: row.there):
        if row.there > on_device.left:
            row.remark = TOO_SLOW
            continue
        with _told_in(row):
            whole = measured(device, partial(merge, vectors, row.name, device=device))
            row.device, row.memory = f"{whole.seconds:.2f}", f"{whole.peak / 2**30:.2f}"
    for row in sorted(known, key=lambda row: row.here):
        if row.here > deadline.left:
            row.remark = row.remark or TOO_SLOW
            continue
        row.cpu = f"{measured(CPU, partial(merge, vectors, row.name)).seconds:.2f}"
    return [row.cells() for row in rows.values()]


@contextmanager
def _told_in(row: MergeRow) -> Iterator[None]:
    """Tells in the remarks of a row why a method does not suit, or where a device lacks memory."""
    try:
        yield
    except (TaskVecError, ValueError, torch.OutOfMemoryError) as error:
        row.remark = str(error).split(". ")[0][:100]


def largest_difference(left: TaskVector, right: TaskVector) -> float:
    """The largest difference of two vectors' entries, relative to the largest entry of the first."""
    largest = max(float(delta.abs().max()) for delta in left.deltas.values())
    pairs = ((delta, right.deltas[name].cpu()) for name, delta in left.deltas.items())
    return max(float((a - b).abs().max()) for a, b in pairs) / largest if largest else 0.0


class Stopwatch(TrainerCallback):  # type: ignore[misc]
    """Seconds of a run's steps after the first few, which warm up."""

    def __init__(self, device: torch.device, warmup: int) -> None:
        self.device, self.warmup, self.start, self.seconds = device, warmup, 0.0, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts after the warm-up."""
        if state.global_step == self.warmup:
            self.start = _now(self.device)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops before the last vector is made."""
        self.seconds = _now(self.device) - self.start


def trainer_rate(base: Base, task: Task, *, bf16: bool, batch_size: int, steps: int, device: torch.device) -> float:
    """Images a second of `TaskVectorTrainer`."""
    warmup = max(1, steps // 4)
    with tempfile.TemporaryDirectory() as folder:
        config = TaskVectorConfig(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            bf16=bf16,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            warmup_steps=0,
            use_cpu=device.type == "cpu",
        )
        trainer = TaskVectorTrainer(base, config, task=task)
        quiet(trainer)
        watch = Stopwatch(device, warmup)
        trainer.add_callback(watch)
        trainer.train()
    AcceleratorState._reset_state(reset_partial_state=True)  # a process keeps the precision of its last trainer
    return (steps - warmup) * batch_size / watch.seconds


def bare_rate(base: Base, task: Task, *, bf16: bool, batch_size: int, steps: int, device: torch.device) -> float:
    """Images a second of a bare loop that takes the same steps on batches in the trainer's order."""
    pixels = load_pixels(task, "train", base.processor.image_processor)
    model = ImageClassifier(base, task).to(device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1, fused=True)
    warmup, start = max(1, steps // 4), 0.0
    for step, rows in enumerate(_batches(pixels, batch_size, steps)):
        if step == warmup:
            start = _now(device)
        batch = {name: value.to(device, non_blocking=True) for name, value in pixels.__getitems__(rows).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = model(batch["pixel_values"])["logits"]
        nn.functional.cross_entropy(logits.float(), batch["labels"]).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return (steps - warmup) * batch_size / (_now(device) - start)


def gradient_rate(base: Base, task: Task, *, batch_size: int) -> float:
    """Images a second of `gradient_vector`, on the device it chooses."""
    images = len(load_pixels(task, "train", base.processor.image_processor))
    run = measured(
        torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        lambda: gradient_vector(base, task, learning_rate=1.0, batch_size=batch_size),
    )
    return images / run.seconds


def _batches(pixels: PixelDataset, batch_size: int, steps: int) -> list[list[int]]:
    sampler, rows = ShuffledSampler(len(pixels), seed=42, multiple=1), list[int]()
    while len(rows) < batch_size * steps:
        rows += list(sampler)[: len(pixels) // batch_size * batch_size]
        sampler.epoch += 1
    return [rows[step * batch_size :][:batch_size] for step in range(steps)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
