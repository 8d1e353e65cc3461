"""How long a reproduction takes: its images counted from the settings, the time per image measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers import CLIPVisionConfig, CLIPVisionModel

from hf_taskvec.errors import DataError
from hf_taskvec.tasks import Task
from hf_taskvec.text import table
from paper.runs import run_budgets
from paper.settings import Reproduction

FLOAT64 = 2.0  # a float64 pass in float32 passes; far more on most GPUs


@dataclass(frozen=True)
class Work:
    """Images that pass through the model in one experiment, forward and backward or forward alone."""

    name: str
    trained: float
    evaluated: float


@dataclass(frozen=True)
class Estimate:
    """The time a reproduction would take on this machine.

    Attributes:
        works: One entry per experiment.
        training, evaluation: Seconds per image.
        device: What it was measured on.
    """

    works: tuple[Work, ...]
    training: float
    evaluation: float
    device: str

    def hours(self, work: Work) -> float:
        """Hours of one experiment."""
        return (work.trained * self.training + work.evaluated * self.evaluation) / 3600

    def to_markdown(self) -> str:
        """A table of hours, and the sum."""
        rows = [
            [work.name, f"{work.trained:,.0f}", f"{work.evaluated:,.0f}", f"{self.hours(work):.2f}"]
            for work in self.works
        ]
        hours = table(["experiment", "images trained on", "images evaluated", "hours"], rows)
        total = sum(map(self.hours, self.works))
        speed = f"{1000 * self.training:.2f} ms per trained image and {1000 * self.evaluation:.2f} ms per evaluated one"
        return "\n".join([hours, "", f"In all {total:.2f} hours on {self.device}, at {speed}; loading is not counted."])


def estimate(settings: Reproduction) -> Estimate:
    """Counts the images of every experiment and times a few on this machine.

    Raises:
        DataError: If `train_images` and `test_images` do not fit the tasks.
    """
    tasks = settings.load_tasks()
    train, test = _sizes(settings, tasks)
    training, evaluation, device = _time_per_image(settings)
    return Estimate(tuple(count_images(settings, tasks, train, test)), training, evaluation, device)


def count_images(settings: Reproduction, tasks: Sequence[Task], train: list[int], test: list[int]) -> list[Work]:
    """The images of every experiment, if every run takes its most epochs.

    Args:
        settings: The settings.
        tasks: The tasks.
        train: Training images of each task.
        test: Test images of each task.
    """
    seeds, merges, images, tested = len(settings.seeds), len(settings.merges), sum(train), sum(test)
    trained = evaluated = 0.0
    for optimizer in settings.optimizers:
        budgets = run_budgets(settings, optimizer)
        more = sum(budgets) if optimizer == "adamw_cosine" else 0
        for trained_on, size in [
            *zip([[task] for task in tasks], train, strict=True),
            (tasks, images),
        ]:  # and all jointly
            trained += (max(settings.most_epochs(optimizer, trained_on), *budgets) + more) * size
        evaluated += (len(budgets) + 1) * (merges + 2) * tested
        if settings.subset_size < len(train):
            evaluated += settings.num_subsets * 2 * merges * tested * settings.subset_size / len(train)
    atm = settings.atm_budget * (len(settings.atm_rounds) + 1) * images
    post_hoc = settings.post_hoc_rounds * images / 9  # validation is a tenth of the training split
    return [
        Work("equivalence", (3 * FLOAT64 + 2 + 4 * (FLOAT64 + 1) / len(train)) * images, 0),
        Work("dynamics", 2 * seeds * settings.dynamics_epochs * images, 0),
        Work("one epoch against convergence", seeds * trained, seeds * evaluated),
        Work(
            "alternating tuning and merging",
            seeds * (atm + post_hoc),
            seeds * (len(settings.atm_rounds) + 2 + settings.post_hoc_rounds) * tested,
        ),
    ]


def _sizes(settings: Reproduction, tasks: Sequence[Task]) -> tuple[list[int], list[int]]:
    given = settings.train_images, settings.test_images
    if any(given):
        if {len(sizes) for sizes in given} != {len(tasks)}:
            raise DataError(f"train_images and test_images must have one number per task ({len(tasks)}) each")
        return given
    return [len(task.load("train")) for task in tasks], [len(task.load("test")) for task in tasks]


def _time_per_image(settings: Reproduction, *, images: int = 8) -> tuple[float, float, str]:
    """Seconds per image of training and evaluating a tower of the base's shape, random weights."""
    if settings.vision_shape:
        size, patch, width, layers, heads, inner = settings.vision_shape
        config = CLIPVisionConfig(
            image_size=size,
            patch_size=patch,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=inner,
        )
    else:
        config = settings.load_base().model.config.vision_config
    device = Accelerator(cpu=not torch.accelerator.is_available()).device
    model = CLIPVisionModel(config).to(device)
    pixels = torch.randn(images, 3, config.image_size, config.image_size, device=device)

    def train() -> None:
        model(pixels).pooler_output.sum().backward()
        model.zero_grad()

    def evaluate() -> None:
        with torch.inference_mode():
            model(pixels)

    return _best(train) / images, _best(evaluate) / images, str(device)


def _best(run: Callable[[], None], *, repeats: int = 4, most_seconds: float = 10.0) -> float:
    """The shortest of a few timings, of one if that takes long; the first warms up."""
    times: list[float] = []
    while len(times) < repeats and sum(times) < most_seconds:
        started = time.perf_counter()
        run()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
