"""Routing by gates that are learnt on few images: WE-MoE without labels, Twin with the name of each image's task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hf_taskvec.errors import DataError, NonFiniteError, check_finite_number, check_known
from hf_taskvec.evaluation.accuracy import Tasks
from hf_taskvec.evaluation.progress import progress_bar
from hf_taskvec.models.base import Base
from hf_taskvec.models.classifier import classify
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.multitask.value import MultiTaskVector
from hf_taskvec.routing.experts import GatedMLP
from hf_taskvec.routing.making import Given, Vectors, expert_of, filled, given
from hf_taskvec.routing.model import RoutedVisionModel
from hf_taskvec.tasks import Split
from hf_taskvec.tuning.descent import Descent, order
from hf_taskvec.tuning.images import Choice, Images, TaskImages, choose_images
from hf_taskvec.tuning.objectives import Objective, summed_loss

STEPS = Descent(steps=1000, learning_rate=1e-4)
_PULL = 1e-4  # of the router's weights to 0
_ITERATIONS = 200


def we_moe(
    base: Base,
    vectors: Vectors,
    tasks: Tasks,
    *,
    scaling: float = 0.3,
    objective: Objective = "entropy",
    split: Split = "validation",
    images: Images = None,
    descent: Descent = STEPS,
    transductive: bool = False,
    progress: bool = True,
) -> RoutedVisionModel:
    """Each MLP mixes the vectors for each image by a gate on its inputs, all else is task arithmetic (2402.00433).

    A gate is two linear maps with a ReLU between, averaged over the tokens, one for each layer; it starts at `scaling`
    for every vector, so that the first model is task arithmetic. The authors learn on test images, this on validation
    images by default.

    Args:
        base: The model.
        vectors: Vectors of it, by task or with their tasks in the provenance.
        tasks: Their tasks, whose heads the model gets.
        scaling: Factor of the vectors in all else, and of each at the start.
        objective: "entropy" as in the paper, or "expert": the cross-entropy to what each task's own model says.
        split: As in `learn_coefficients`.
        images: As in `learn_coefficients`.
        descent: Settings of the steps; start and bounds have no meaning here.
        transductive: As in `learn_coefficients`.
        progress: Whether a bar shows up after two seconds.

    Raises:
        UnknownNameError: If a task has no vector, or a vector no head.
        ValueError: If a setting is out of range, labels are asked for, or test images undeclared.
        NonFiniteError: If a loss is not finite.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        >>> vector = TaskVector({name: torch.eye(768, 384) / 100})
        >>> few = {"images": 8, "descent": Descent(steps=1)}
        >>> we_moe(load_base(), {"digits": vector}, "digits", **few).config.provenance["split"]
        'validation'
    """
    check_finite_number("scaling", scaling)
    check_known("objective of gates", objective, ("entropy", "expert"))
    source = given(base, vectors, tasks)
    chosen = choose_images(base, source.tasks, split=split, images=images, transductive=transductive, seed=descent.seed)
    settings = {key: value for key, value in descent.provenance().items() if key not in ("start", "bounds")}
    told = {"scaling": scaling, "objective": objective, **chosen.provenance(), **settings}
    model = _gated(source, scaling, told)
    for number, block in enumerate(module for module in model.modules() if isinstance(module, GatedMLP)):
        block.start(value=scaling, seed=descent.seed + number)
    targets = _experts_say(source, chosen) if objective == "expert" else {}
    _learn(model, source, chosen, targets, objective, descent, progress=progress)
    return model


@torch.no_grad()
def _gated(source: Given, scaling: float, told: Mapping[str, Any]) -> RoutedVisionModel:
    """Task arithmetic with the vectors of each MLP still apart."""
    plain = source.base.model.vision_model
    maps = [name for name, _ in plain.named_modules() if name.endswith((".mlp.fc1", ".mlp.fc2"))]
    biases = [name for name in maps if source.changes(f"{name}.bias")]
    apart = {f"{name}.{kind}" for name in maps for kind in ("weight", "bias")}
    rest = [name for name, _ in plain.named_parameters() if source.changes(name) and name not in apart]
    summed = {name: plain.get_parameter(name) + scaling * source.deltas(name).sum(dim=0) for name in rest}
    config = source.config("we_moe", experts=dict.fromkeys(maps, 0), biases=biases, provenance=told)
    model = filled(config, source, summed)
    for name in maps:
        expert = expert_of(model, name)
        expert.left.copy_(torch.cat(list(source.deltas(f"{name}.weight")), dim=1))
        if expert.biases is not None:
            expert.biases.copy_(source.deltas(f"{name}.bias"))
    return model


@torch.no_grad()
def _experts_say(source: Given, chosen: Choice) -> dict[str, Tensor]:
    """The probabilities (N, C) that each task's own model gives to its images."""
    targets = {}
    for task, vector, sample in zip(source.tasks, source.vectors, chosen.samples, strict=True):
        expert, head = vector.apply_to(source.base), zero_shot_head(source.base, task.class_names, task.templates)
        logits = torch.cat([classify(expert.model, head, pixels).float() for pixels in _pixels(source.base, sample)])
        targets[task.name] = logits.softmax(dim=-1).cpu()
    return targets


def _pixels(base: Base, sample: TaskImages) -> list[Tensor]:
    """The prepared images of a task, in batches."""
    normalize = Normalize(base)
    return [normalize(batch["pixel_values"].to(base.device)) for batch in sample.batches(256)]


@torch.enable_grad()
def _learn(
    model: RoutedVisionModel,
    source: Given,
    chosen: Choice,
    targets: Mapping[str, Tensor],
    objective: Objective,
    settings: Descent,
    *,
    progress: bool,
) -> None:
    """Steps of Adam on the gates, in each of which every task has its images."""
    normalize = Normalize(source.base)
    adam = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=settings.learning_rate)
    orders = [
        order(len(sample), settings.batch_size, seed=settings.seed + number)
        for number, sample in enumerate(chosen.samples)
    ]
    for step in progress_bar(range(settings.steps), "learning gates", total=settings.steps, shown=progress):
        adam.zero_grad()
        for sample, batches in zip(chosen.samples, orders, strict=True):
            rows, name = next(batches), sample.task.name
            pixels = normalize(sample.batch(rows)["pixel_values"].to(source.base.device))
            target = targets[name][rows].to(source.base.device) if targets else None
            logits: Tensor = model(pixels, task=name).logits
            loss = summed_loss(objective, logits, target) / len(rows)
            if not loss.isfinite():
                raise NonFiniteError(f"the loss of task {name!r} is {loss.item()} in step {step}")
            loss.backward()
        adam.step()


def twin(
    base: Base,
    packed: MultiTaskVector,
    tasks: Tasks,
    *,
    split: Split = "validation",
    images: Images = None,
    transductive: bool = False,
) -> RoutedVisionModel:
    """The shared weights plus a mixture of the tasks' own directions, by a router on shared features (2406.15479).

    The router is a softmax regression on the unit-norm features of the shared weights, so each image passes twice; the
    authors take a small network. Its labels are the tasks of the images, whose classes it does not see. Norms,
    embeddings and what else is no linear map get the mean of the tasks' own.

    Args:
        base: The model.
        packed: What `pack(vectors, "twin")` made.
        tasks: Its tasks, whose heads the model gets.
        split: As in `learn_coefficients`.
        images: As in `learn_coefficients`.
        transductive: As in `learn_coefficients`.

    Raises:
        ValueError: If the artefact was packed in another way, or test images are asked for undeclared.
        UnknownNameError: If a task has no vector, or a vector no head.

    Example:
        >>> from hf_taskvec import TaskVector, load_base
        >>> from hf_taskvec.multitask import pack
        >>> name = "vision_model.encoder.layers.0.mlp.fc1.weight"
        >>> packed = pack({"digits": TaskVector({name: torch.eye(768, 384) / 100})}, "twin")
        >>> twin(load_base(), packed, "digits", images=8).cost["forward_passes"]
        2
    """
    if packed.info.method != "twin":
        raise ValueError(f"this router needs what pack(vectors, 'twin') makes, got an artefact of {packed.info.label}")
    source = given(base, {task: packed.for_task(task) for task in packed.tasks}, tasks)
    chosen = choose_images(base, source.tasks, split=split, images=images, transductive=transductive)
    if len(source.tasks) > 1 and any(not len(sample) for sample in chosen.samples):
        raise DataError("a router needs images of every task")
    model = _twin(source, packed, chosen.provenance())
    with torch.no_grad():
        pixels = [_pixels(base, sample) for sample in chosen.samples]
        features = [torch.cat([model.shared_features(batch) for batch in batches]) for batches in pixels]
    weight, bias = _regression([own.double().cpu() for own in features])
    if model.router is not None:
        with torch.no_grad():
            model.router.weight.copy_(weight)
            model.router.bias.copy_(bias)
    return model


@torch.no_grad()
def _twin(source: Given, packed: MultiTaskVector, told: Mapping[str, Any]) -> RoutedVisionModel:
    """The shared weights, with each task's own directions beside them."""
    plain, prefix = source.base.model.vision_model, "vision_model."
    parts = [packed.parts[task.name].deltas.items_packed for task in source.tasks]
    factors = {name: [own[f"{prefix}{name}.weight"].parts for own in parts] for name in source.linear}
    ranks = {name: int(own[0]["right"].shape[0]) for name, own in factors.items()}
    biases = [name for name in source.linear if source.changes(f"{name}.bias")]
    tower = {name: plain.get_parameter(name) + source.deltas(name).mean(dim=0) for name in source.others}
    for name in [*(f"{name}.weight" for name in ranks), *(f"{name}.bias" for name in biases)]:
        tower[name] = plain.get_parameter(name) + packed.shared[prefix + name]
    config = source.config("twin", experts=ranks, biases=biases, provenance={**packed.info.settings, **told})
    model = filled(config, source, tower)
    for name, own in factors.items():
        expert = expert_of(model, name)
        expert.left.copy_(torch.cat([pair["left"].float() for pair in own], dim=1))
        if expert.right is not None:
            expert.right.copy_(torch.cat([pair["right"].float() for pair in own]))
        if expert.biases is not None:
            expert.biases.copy_(torch.stack([items[f"{prefix}{name}.bias"].delta() for items in parts]))
    return model


def _regression(features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Softmax regression (T, F) and (T,) that tells the tasks apart; every task counts alike."""
    count, width = len(features), features[0].shape[1]
    everything = torch.cat(features)
    labels = torch.cat([torch.full((len(own),), number) for number, own in enumerate(features)])
    importance = torch.cat([torch.full((len(own),), 1 / (count * len(own)), dtype=torch.float64) for own in features])
    values = torch.zeros(count, width + 1, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([values], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        logits = everything @ values[:, :-1].T + values[:, -1]
        losses = functional.cross_entropy(logits, labels, reduction="none")
        loss = (losses * importance).sum() + _PULL * values[:, :-1].square().sum() / 2
        loss.backward()
        return loss

    solver.step(closure)
    solved = values.detach()
    return solved[:, :-1], solved[:, -1]
