"""What `TaskVectorTrainer` costs beside a bare PyTorch loop that takes the same steps on the same tensors.

python recipes/benchmarks/training.py
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import ProgressCallback
from transformers.trainer_callback import PrinterCallback

from hf_taskvec import TaskVector, TaskVectorConfig, TaskVectorTrainer, get_task, load_base
from hf_taskvec.arguments import arg, run_recipe
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import ImageClassifier
from hf_taskvec.tasks import Task
from hf_taskvec.tasks.pixels import PixelDataset, load_pixels
from hf_taskvec.text import table
from hf_taskvec.training.sampler import ShuffledSampler


@dataclass
class BenchmarkArguments:
    base: str | None = arg("Hub id or folder of a CLIP model; the embedded tiny CLIP if left out.", default=None)
    task: str = arg("The task to train on.", default="digits")
    data_dir: str | None = arg("Folder with one dataset folder per task, instead of the Hub.", default=None)
    epochs: int = arg("Epochs per run.", default=3)
    batch_size: int = arg("Images per step.", default=128)
    runs: int = arg("Runs of each, in turn; the median counts.", default=5)
    compile: bool = arg("Whether to run with torch_compile=True too, which needs a compiler.", default=False)


def bare_loop(base: Base, task: Task, pixels: PixelDataset, args: BenchmarkArguments) -> tuple[float, TaskVector]:
    """AdamW at 1e-5 with clipping, on batches in the trainer's order; returns seconds and the vector."""
    model = ImageClassifier(base, task)
    start = time.perf_counter()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.0, fused=True
    )
    sampler = ShuffledSampler(len(pixels), seed=42, multiple=1)
    for sampler.epoch in range(args.epochs):
        order = list(sampler)
        for first in range(0, len(order), args.batch_size):
            batch = pixels.__getitems__(order[first : first + args.batch_size])
            loss = functional.cross_entropy(model(batch["pixel_values"])["logits"], batch["labels"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - start
    return seconds, TaskVector.from_weights(dict(ImageClassifier(base, task).weights()), model.weights())


def our_trainer(
    base: Base, task: Task, args: BenchmarkArguments, *, track: bool = False, compiled: bool = False
) -> tuple[float, TaskVector]:
    """The same by `TaskVectorTrainer`, with or without what it records, and compiled, which counts in its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        config = TaskVectorConfig(
            output_dir=folder,
            num_train_epochs=args.epochs,
            per_device_train_batch_size=args.batch_size,
            weight_decay=0.0,
            lr_scheduler_type="constant",
            warmup_steps=0,
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            torch_compile=compiled,
            track_gradients=track,
            record_epochs=track,
        )
        trainer = TaskVectorTrainer(base, config, task=task)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        start = time.perf_counter()
        trainer.train()
        return time.perf_counter() - start, trainer.task_vector()


def main(args: BenchmarkArguments) -> dict[str, float]:
    base, task = load_base(args.base), get_task(args.task, data_dir=args.data_dir)
    pixels = load_pixels(task, "train", base.processor.image_processor)
    ours: dict[str, dict[str, bool]] = {"trainer, torch.compile": {"compiled": True}} if args.compile else {}
    ours |= {"trainer": {}, "trainer, recording": {"track": True}}
    times: dict[str, list[float]] = {name: [] for name in ("bare loop", *ours)}
    for _ in range(args.runs + 1):  # the first round warms up
        seconds, bare = bare_loop(copy.copy(base), task, pixels, args)
        times["bare loop"].append(seconds)
        for name, how in ours.items():
            seconds, vector = our_trainer(base, task, args, **how)
            times[name].append(seconds)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    images = args.epochs * len(pixels)
    print(f"{base.name}, {task.name}, {args.epochs} epochs of {len(pixels)} images, batch {args.batch_size}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {args.runs}\n")
    rows = [
        [name, f"{seconds:.2f}", f"{images / seconds:.0f}", f"{seconds / medians['bare loop']:.3f}"]
        for name, seconds in medians.items()
    ]
    print(table(["", "seconds", "images/s", "ratio"], rows))
    print(f"\nrelative difference of the vectors: {(vector - bare).norm() / bare.norm():.1e}")
    return medians


if __name__ == "__main__":
    run_recipe(main, BenchmarkArguments)
