"""Ways from one merged model to one model a task, measured alike: what each stores, takes, and gets right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_taskvec import Task, TaskVector, choose_scaling, merge
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import classify
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.models.per_task import TaskModels
from hf_taskvec.multitask import METHODS, choose_strengths, pack
from hf_taskvec.routing import RoutedVisionModel, mass, smile, twin, we_moe
from hf_taskvec.tasks import Split
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.tuning.descent import Descent
from hf_taskvec.vectors.compression import PACKINGS

EXPERTS, ZERO_SHOT = "float32", "zero-shot"
MERGED, ROUTED = ("task_arithmetic", "ties", "tsv_m"), ("smile", "smile-32", "mass", "we_moe", "twin-router")
OF_FEW_BITS = tuple(f"{method}@{packing}" for method in MERGED for packing in ("int2", "rtvq"))
WAYS = (ZERO_SHOT, *MERGED, *ROUTED, *METHODS, *PACKINGS, *OF_FEW_BITS, EXPERTS)
SCALINGS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.2)
Model = Base | TaskModels | RoutedVisionModel


@dataclass(frozen=True)
class Way:
    """One way, ready to be measured.

    Attributes:
        model: The model, or one for each task.
        size: What it stores beside the base, over one vector in float32.
        passes: Passes through the tower for each image.
        told: What was chosen on validation data.
    """

    model: Model
    size: float
    passes: int = 1
    told: Mapping[str, Any] = field(default_factory=dict)


def make_way(name: str, base: Base, vectors: Mapping[str, TaskVector], tasks: Sequence[Task], *, steps: int) -> Way:
    """A way by its name.

    Args:
        name: One of `WAYS`; "ties@int2" is a merge of vectors in few bits.
        base: The base.
        vectors: The tasks' vectors.
        tasks: The tasks.
        steps: Of the gates of "we_moe".
    """
    if name == ZERO_SHOT:
        return Way(base, 0.0)
    method, _, packing = name.partition("@")
    if method in MERGED:
        merged = merge(list(in_few_bits(vectors, packing).values()), method)
        scaling = float(choose_scaling(base, merged, tasks, scalings=SCALINGS))
        return Way(merged.apply_to(base, scaling=scaling), 1.0, told={"scaling": scaling})
    if name in ROUTED:
        return _routed(_router(name, base, vectors, tasks, steps), base, vectors)
    if name in METHODS:
        chosen: dict[str, Any] = {}
        if name == "tall_masks":
            chosen["strengths"] = choose_strengths(base, vectors, tasks)
        packed = pack(vectors, name, **chosen)
        return Way(packed.apply_to(base), packed.share, told=chosen)
    few = in_few_bits(vectors, name if name in PACKINGS else "")
    shares = [float((vector.info.compression or {"share": 1.0})["share"]) for vector in few.values()]
    return Way(TaskModels(name, tuple(few), lambda task: few[task].apply_to(base)), sum(shares))


def in_few_bits(vectors: Mapping[str, TaskVector], packing: str) -> dict[str, TaskVector]:
    """The vectors, each compressed or all packed together; as they are without a name."""
    if packing in METHODS:
        packed = pack(vectors, packing)
        return {task: packed.for_task(task) for task in packed.tasks}
    return {task: vector.compress(packing) if packing else vector for task, vector in vectors.items()}


def _router(
    name: str, base: Base, vectors: Mapping[str, TaskVector], tasks: Sequence[Task], steps: int
) -> RoutedVisionModel:
    if name == "twin-router":
        return twin(base, pack(vectors, "twin"), tasks)
    if name == "we_moe":
        return we_moe(base, vectors, tasks, descent=Descent(steps=steps, learning_rate=1e-3))
    return (
        mass(base, vectors, tasks) if name == "mass" else smile(base, vectors, tasks, rank=32 if "32" in name else 128)
    )


def _routed(model: RoutedVisionModel, base: Base, vectors: Mapping[str, TaskVector]) -> Way:
    """A routed model, which also stores every entry of the base that it changed."""
    own = {name.replace(".mlp.mlp.", ".mlp."): value for name, value in model.tower.named_parameters()}
    pairs = [(own[name], value) for name, value in base.model.vision_model.named_parameters()]
    changed = sum(value.numel() for mine, value in pairs if not torch.equal(mine, value))
    entries = next(iter(vectors.values())).num_entries
    cost = model.cost
    return Way(model, (changed + cost["extra_parameters"]) / entries, cost["forward_passes"])


@torch.inference_mode()
def right_answers(way: Way, base: Base, tasks: Sequence[Task], *, split: Split = "test") -> dict[str, Any]:
    """For each task and image whether a way is right ("1" or "0"): among its classes, among all, and in its task.

    Of a model for each task there is only the first: its task is known.
    """
    heads = [zero_shot_head(base, task.class_names, task.templates) for task in tasks]
    starts = torch.tensor([0, *(len(head) for head in heads)]).cumsum(dim=0).tolist()
    kinds = ["right"] if isinstance(way.model, TaskModels) else ["right", "joint"]
    kinds += ["routed"] if isinstance(way.model, RoutedVisionModel) else []
    result: dict[str, Any] = {kind: {} for kind in kinds}
    normalize = Normalize(base)
    for number, task in enumerate(tasks):
        model = way.model.for_task(task.name) if isinstance(way.model, TaskModels) else way.model
        pixels, bits = load_pixels(task, split, base.processor.image_processor), {kind: "" for kind in kinds}
        for rows in torch.arange(len(pixels)).split(256):
            images = normalize(pixels.__getitems__(rows.tolist())["pixel_values"].to(base.device))
            logits, joint, shares = _logits(model, torch.cat(heads), images)
            own, labels = logits[:, starts[number] : starts[number + 1]], pixels.labels[rows]
            bits["right"] += _text(own.argmax(dim=1).cpu() == labels)
            if "joint" in bits:
                bits["joint"] += _text(joint.argmax(dim=1).cpu() == labels + starts[number])
            if "routed" in bits and shares is not None:
                bits["routed"] += _text(shares.argmax(dim=1).cpu() == number)
        for kind, text in bits.items():
            result[kind][task.name] = text
    return result


def _logits(model: Any, heads: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits over all classes, those that count where the task is not known, and the shares of the tasks."""
    if isinstance(model, RoutedVisionModel):
        features, shares = model.route(images)
        logits = model.logits(features)
        return logits, model.restricted(logits, shares), shares
    logits = classify(model.model, heads, images)
    return logits, logits, None


def _text(right: Tensor) -> str:
    return "".join("1" if value else "0" for value in right.tolist())
