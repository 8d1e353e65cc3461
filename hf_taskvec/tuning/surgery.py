"""Representation surgery: a small correction of a merged model's features for each task (arXiv 2402.02705)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hf_taskvec.errors import CheckpointError, NonFiniteError, check_count, check_known
from hf_taskvec.evaluation.accuracy import Tasks, check_base, vectors_by_task
from hf_taskvec.evaluation.metrics import Accuracy
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.evaluation.report import Report
from hf_taskvec.evaluation.result import TaskResult
from hf_taskvec.models.base import Base
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.tasks import Split, Task, as_tasks
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.tuning.descent import Descent, order
from hf_taskvec.tuning.images import Images, TaskImages, choose_images
from hf_taskvec.tuning.tower import features_of
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import atomic_folder, read_json, write_json
from hf_taskvec.weights.names import shapes_of
from hf_taskvec.weights.safetensors import open_safetensors, write_safetensors

CONFIG, WEIGHTS = "surgery_config.json", "surgery.safetensors"
STEPS = Descent(steps=1000)


@dataclass(frozen=True)
class Surgery:
    """What `surgery` found: for each task two matrices that correct the merged model's features.

    The task must be known at inference.

    Attributes:
        down: For each task a matrix (r, F).
        up: For each task a matrix (F, r).
        curve: For each task the mean distance to its expert's features, at each step before it was taken.
        transductive: Whether test images were used.
        provenance: Split, images and their hash, and every setting.
    """

    down: Mapping[str, Tensor] = field(repr=False)
    up: Mapping[str, Tensor] = field(repr=False)
    curve: Mapping[str, tuple[float, ...]] = field(repr=False)
    transductive: bool
    provenance: Mapping[str, Any]

    def correct(self, task: str, features: Tensor) -> Tensor:
        """Features (N, F) of a task's images, before they are normalised, less what merging did to them.

        Raises:
            UnknownNameError: If there is no correction for that task.
        """
        check_known("correction for task", task, self.down)
        return corrected(features, self.down[task].to(features), self.up[task].to(features))

    def evaluate(self, model: Base, tasks: Tasks, *, split: Split = "test", batch_size: int = 256) -> Report:
        """The accuracy of the merged model on each task, by that task's correction and zero-shot head.

        Args:
            model: What `TaskVector.apply_to` made with the merged vector.
            tasks: Tasks of which there is a correction.
            split: Which part of them.
            batch_size: Images per forward pass.

        Raises:
            UnknownNameError: If there is no correction for a task.
        """
        tasks = as_tasks(tasks)
        for task in tasks:
            check_known("correction for task", task.name, self.down)
        results = tuple(self._measure(model, task, split, batch_size) for task in tasks)
        seen = self.transductive or model.transductive
        return Report("surgery", split, results, transductive=seen)

    def _measure(self, model: Base, task: Task, split: Split, batch_size: int) -> TaskResult:
        pixels = load_pixels(task, split, model.processor.image_processor)
        everything = TaskImages(task, pixels, torch.arange(len(pixels)))
        features = self.correct(task.name, features_of(model, everything, batch_size=batch_size))
        head = zero_shot_head(model, task.class_names, task.templates).cpu()
        guesses = (functional.normalize(features, dim=-1) @ head.T.to(features)).argmax(dim=-1)
        scores = Accuracy().compute(predictions=guesses, references=pixels.labels)
        return TaskResult(task.name, scores["accuracy"], scores["num_images"], num_skipped=len(pixels.skipped))

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes the matrices and where they come from; the folder appears whole or not at all.

        Raises:
            OutputExistsError: If the folder holds something else.
        """
        tensors = {f"{kind}.{task}": value for kind in ("down", "up") for task, value in getattr(self, kind).items()}
        with atomic_folder(save_directory, marker=CONFIG) as folder:
            write_safetensors(folder / WEIGHTS, tensors.items(), shapes=shapes_of(tensors), dtype=torch.float32)
            facts = {"transductive": self.transductive, "provenance": dict(self.provenance)}
            write_json(folder / CONFIG, {**facts, "curve": {task: list(each) for task, each in self.curve.items()}})

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str]) -> Surgery:
        """Reads what `save_pretrained` wrote.

        Raises:
            CheckpointError: If the files are missing, damaged or of something else.
        """
        folder = Path(source)
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder} holds no corrections: it has no {CONFIG}")
        config, tensors = read_json(folder / CONFIG), open_safetensors([folder / WEIGHTS])
        down, up = (
            {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
            for kind in ("down.", "up.")
        )
        if down.keys() != up.keys() or any(down[task].shape != up[task].T.shape for task in down):
            raise CheckpointError(f"the matrices in {folder / WEIGHTS} do not pair off")
        try:
            curve = {str(task): tuple(map(float, each)) for task, each in config["curve"].items()}
            return cls(down, up, curve, bool(config["transductive"]), dict(config["provenance"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{folder / CONFIG} is no configuration of corrections: {error}") from None


def surgery(
    base: Base,
    model: Base,
    vectors: Mapping[str, TaskVector] | list[TaskVector],
    tasks: Tasks,
    *,
    rank: int = 16,
    split: Split = "validation",
    images: Images = None,
    descent: Descent = STEPS,
    transductive: bool = False,
    progress: bool = True,
) -> Surgery:
    """Learns, for each task, a correction of a merged model's features towards those of the task's own model.

    Features z become `z - up · relu(down · z)`, by the mean absolute distance and Adam, on unlabelled images. `up`
    starts at zero, so that the first model is the merged one; the authors start it at random, and take test images.

    Args:
        base: The model the vectors are added to.
        model: The merged model, such as `merged.apply_to(base, scaling=0.3)`.
        vectors: The tasks' own vectors.
        tasks: The tasks, or their names.
        rank: Rows of `down`.
        split: As in `learn_coefficients`.
        images: As in `learn_coefficients`.
        descent: Settings of the steps; start and bounds have no meaning here.
        transductive: As in `learn_coefficients`.
        progress: Whether a bar shows up after two seconds.

    Raises:
        UnknownNameError: If a task has no vector.
        ValueError: If a setting is out of range, or test images are asked for undeclared.
        NonFiniteError: If features or distances are not finite.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> from hf_taskvec.tuning import Descent
        >>> base = load_base()
        >>> vector = TaskVector({"vision_model.post_layernorm.bias": torch.ones(384) / 100})
        >>> found = surgery(base, base, {"digits": vector}, "digits", images=16, descent=Descent(steps=2))
        >>> found.down["digits"].shape, found.provenance["split"]
        (torch.Size([16, 256]), 'validation')
    """
    tasks = as_tasks(tasks)
    check_base(base)
    check_base(model)
    rank = check_count("rank", rank)
    experts = vectors_by_task(vectors, tasks)
    chosen = choose_images(base, tasks, split=split, images=images, transductive=transductive, seed=descent.seed)
    down, up, curve = dict[str, Tensor](), dict[str, Tensor](), dict[str, tuple[float, ...]]()
    for sample in progress_bar(chosen.samples, "surgery", total=len(tasks), shown=progress):
        name = sample.task.name
        own, merged = features_of(experts[name].apply_to(base), sample), features_of(model, sample)
        down[name], up[name], distances = _fitted(merged, own, rank, descent, name)
        curve[name] = tuple(distances)
    settings = {"rank": rank, **descent.provenance()}
    how = {**chosen.provenance(), **{key: value for key, value in settings.items() if key not in ("start", "bounds")}}
    return Surgery(down, up, curve, chosen.transductive, how)


def corrected(features: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Features (N, F) less their correction by two matrices (r, F) and (F, r).

    Example:
        >>> corrected(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5], [0.0]]))
        tensor([[1., 1.]])
    """
    return features - functional.relu(features @ down.T) @ up.T


def _fitted(merged: Tensor, own: Tensor, rank: int, settings: Descent, task: str) -> tuple[Tensor, Tensor, list[float]]:
    """The two matrices for one task, and the mean distance before each step."""
    generator, width = torch.Generator().manual_seed(settings.seed), merged.shape[1]
    down = ((2 * torch.rand(rank, width, generator=generator) - 1) / width**0.5).requires_grad_()
    up = torch.zeros(width, rank, requires_grad=True)
    adam, distances = torch.optim.Adam([down, up], lr=settings.learning_rate), list[float]()
    batches = order(len(merged), settings.batch_size, seed=settings.seed)
    for step in range(settings.steps):
        rows = next(batches)
        distance = functional.l1_loss(corrected(merged[rows], down, up), own[rows])
        if not distance.isfinite():
            raise NonFiniteError(f"the distance of task {task!r} is {distance.item()} in step {step}")
        distances.append(distance.item())
        adam.zero_grad()
        distance.backward()
        adam.step()
    return down.detach(), up.detach(), distances
