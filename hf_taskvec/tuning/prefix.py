"""Statistics for RegMean++ (arXiv 2508.03121): what reaches each layer of the merged model, in one pass over it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_taskvec.errors import DataError, check_fraction
from hf_taskvec.evaluation.accuracy import Tasks, vectors_by_task
from hf_taskvec.merging.quadratic_engine import Quadratic, gram_terms
from hf_taskvec.merging.registry import TRANSDUCTIVE, get_method
from hf_taskvec.models.base import Base
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.statistics.collect import RANK, ChosenImages, check_settings, origin
from hf_taskvec.statistics.hooks import InputSums
from hf_taskvec.statistics.maps import measured
from hf_taskvec.statistics.value import Statistics, StatisticsInfo
from hf_taskvec.tasks import Split, as_tasks
from hf_taskvec.tuning.preparation import Vectors
from hf_taskvec.vectors.application import check_fits
from hf_taskvec.vectors.compatibility import check_compatible
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import added
from hf_taskvec.weights.dtypes import as_dtype
from hf_taskvec.weights.names import parameters_of


def collect_prefix_statistics(
    base: Base,
    vectors: Vectors,
    tasks: Tasks,
    *,
    num_images: int = 64,
    split: Split = "train",
    rank: int | None = None,
    dtype: torch.dtype | str = torch.float16,
    batch_size: int = 32,
    seed: int = 0,
    transductive: bool = False,
    **settings: Any,
) -> list[Statistics]:
    """Measures what `merge(vectors, "regmean_pp", statistics=…)` needs, on some unlabelled images of every task.

    The tower is merged from the bottom up. What the layers below, merged already, make of a task's images is shown to
    that task's own layer, whose maps give the Gram matrices; by these the layer is merged, and all images pass it. That
    is one pass over the network for all layers; each image passes a covered layer twice and any other once. As in the
    authors' code, embeddings and norms are merged first, and inside a layer the inputs are those of the task's own.
    Here the patch embedding and the visual projection count as matrices too, if the vectors cover them.

    Several processes (`accelerate launch`) share the images and give what one gives.

    Args:
        base: The base.
        vectors: A vector of every task, by the names of the tasks or by their own provenance.
        tasks: The tasks, or their names.
        num_images: How many images of each.
        split: Which part of each task they are from; `test` only with `transductive`.
        rank: Rows of each factor; see `collect_statistics`.
        dtype: Dtype to round the factors to.
        batch_size: Images per pass and process.
        seed: Which images are drawn.
        transductive: Whether test images may be shown.
        **settings: Of `regmean_pp`: `shrink`, `ridge`, `others`, and `weights` in the order of the tasks. The merge by
            the statistics takes the same.

    Returns:
        Statistics of kind `prefix` in the order of the tasks, which must be that of the vectors in the merge.

    Raises:
        UnknownNameError: If there is no such split or setting, or a task has no vector.
        ValueError: If a setting is out of range, or test images are not allowed.
        DataError: If there is no task, or a split has fewer images.
        BaseMismatchError, IncompatibleVectorsError: If the vectors do not fit the base or each other.
        NonFiniteError: If a vector or an activation holds NaN or Inf; layer and image are named.

    Example:
        >>> from hf_taskvec import TaskVector, load_base, merge
        >>> name = "vision_model.encoder.layers.0.mlp.fc2.weight"
        >>> pair = {task: TaskVector({name: torch.full((384, 768), 1e-3)}) for task in ("digits", "shapes")}
        >>> seen = collect_prefix_statistics(load_base(), pair, ["digits", "shapes"], num_images=4)
        >>> merge(list(pair.values()), "regmean_pp", statistics=seen).deltas[name].mean().item()
        0.001...
    """
    tasks = as_tasks(tasks)
    counts = check_settings(base, ("gram",), split, num_images, rank, batch_size, transductive=transductive)
    num_images, rank, batch_size = counts
    if not tasks:
        raise DataError("a merge needs at least one task, got none")
    by_task = vectors_by_task(vectors if isinstance(vectors, Mapping) else list(vectors), tasks)
    own = [by_task[task.name] for task in tasks]
    settled = get_method("regmean_pp").settled(own, settings)
    del settled[TRANSDUCTIVE]
    check_fraction("shrink", settled["shrink"])
    engine = Quadratic(settled["ridge"], settled["weights"], settled["others"], pseudo=True)  # the merge tells of gaps
    engine.checked_weights(own)
    _check(base, own, rank, num_images)
    images = [ChosenImages(base, task, split, count=num_images, seed=seed) for task in tasks]
    climb = _Climb(base, engine, shrink=settled["shrink"], rank=rank or RANK, dtype=as_dtype(dtype))
    shown = [climb.climber(vector, chosen, batch_size) for vector, chosen in zip(own, images, strict=True)]
    climb.merge(shown)
    made = {"vectors": sorted(vector_fingerprint(vector.deltas) for vector in own), **settled}
    measurements = []
    for climber, task, chosen in zip(shown, tasks, images, strict=True):
        info = origin(base, task, climber.vector, chosen)
        info = dataclasses.replace(info, kinds=("prefix",), rank=climb.rank, dtype=climb.dtype_name, prefix=made)
        measurements.append(climber.statistics(info))
    return measurements


@dataclass(frozen=True)
class Stage:
    """A piece of a vision tower that is merged at once.

    Attributes:
        modules: What it is made of, by canonical names.
        run: What it computes of what the stage below gives; of uint8 pixels the first.
    """

    modules: Mapping[str, nn.Module]
    run: Callable[[Tensor], Tensor]

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Its parameters by canonical names."""
        return {f"{where}.{name}": p for where, module in self.modules.items() for name, p in module.named_parameters()}

    def maps(self) -> Iterator[tuple[str, nn.Module]]:
        """Its linear maps and norms by canonical names."""
        for where, module in self.modules.items():
            yield from ((name.removesuffix("."), inner) for name, inner in measured(module, f"{where}."))


def stages(model: nn.Module, normalize: nn.Module) -> Iterator[Stage]:
    """The stages of a CLIP from its pixels to its image features.

    Example:
        >>> from hf_taskvec import load_base
        >>> base = load_base()
        >>> states = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
        >>> for stage in stages(base.model, Normalize(base)):
        ...     states = stage.run(states)
        >>> states.shape
        torch.Size([1, 256])
    """
    tower: Any = model.vision_model
    projection: Any = model.visual_projection
    below = {"vision_model.embeddings": tower.embeddings, "vision_model.pre_layrnorm": tower.pre_layrnorm}
    yield Stage(below, lambda pixels: tower.pre_layrnorm(tower.embeddings(normalize(pixels))))
    for number, layer in enumerate(tower.encoder.layers):
        yield Stage({f"vision_model.encoder.layers.{number}": layer}, partial(layer, attention_mask=None))
    above = {"vision_model.post_layernorm": tower.post_layernorm, "visual_projection": projection}
    yield Stage(above, lambda states: projection(tower.post_layernorm(states[:, 0])))


class _Climber:
    """One task on its way up the tower: its vector, its images at this height, and what was measured of them.

    Args:
        vector: The vector.
        where: Whose images they are, for messages.
        batches: Rows of the split, and their pixels.
    """

    def __init__(self, vector: TaskVector, where: str, batches: list[tuple[list[int], Tensor]]) -> None:
        self.vector, self.where, self.batches = vector, where, batches
        self.tensors: dict[str, Tensor] = {}
        self.errors: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    def statistics(self, info: StatisticsInfo) -> Statistics:
        """What was measured so far."""
        told = dataclasses.replace(info, errors=self.errors, tokens=self.tokens)
        return Statistics(self.tensors, told)


class _Climb:
    """A copy of the base that becomes the merged model from the bottom up.

    Args:
        base: The base.
        engine: The merge.
        shrink: Of the merge.
        rank: Rank of the factors.
        dtype: Their dtype.
    """

    def __init__(self, base: Base, engine: Quadratic, *, shrink: float, rank: int, dtype: torch.dtype) -> None:
        self.accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self.device = self.accelerator.device
        self.model = copy.deepcopy(base.model).eval().to(self.device)
        self.normalize, self.weights = Normalize(base).to(self.device), parameters_of(base.model)
        self.engine, self.shrink, self.rank, self.dtype = engine, shrink, rank, dtype

    @property
    def dtype_name(self) -> str:
        """The factors' dtype by name."""
        return str(self.dtype).removeprefix("torch.")

    def climber(self, vector: TaskVector, images: ChosenImages, batch_size: int) -> _Climber:
        """A task with this process's share of its images."""
        mine = range(len(images))[self.accelerator.process_index :: self.accelerator.num_processes]
        shares = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
        batches = [
            ([int(images.rows[index]) for index in share], images.__getitems__(share)["pixel_values"].to(self.device))
            for share in shares
        ]
        return _Climber(vector, images.where, batches)

    @torch.no_grad()
    def merge(self, climbers: Sequence[_Climber]) -> None:
        """Measures and merges every stage."""
        vectors = [climber.vector for climber in climbers]
        for stage in stages(self.model, self.normalize):
            if names := [name for name in stage.parameters if name in vectors[0].deltas]:
                for climber in climbers:
                    self._set(stage, names, climber.vector)
                    self._watch(stage, names, climber)
                measurements = [climber.statistics(StatisticsInfo()) for climber in climbers]
                terms = gram_terms(measurements, shrink=self.shrink, prefix=True)
                self._set(stage, names, self.engine.merge(vectors, (), terms))
            for climber in climbers:
                climber.batches = [(rows, stage.run(states)) for rows, states in climber.batches]

    def _set(self, stage: Stage, names: Sequence[str], vector: TaskVector) -> None:
        parameters = stage.parameters
        for name in names:
            parameters[name].copy_(added(name, self.weights[name], vector.deltas[name], 1.0))

    def _watch(self, stage: Stage, names: Sequence[str], climber: _Climber) -> None:
        """Measures the maps of a stage that the vectors cover."""
        maps = [(name, module) for name, module in stage.maps() if f"{name}.weight" in names]
        sums = InputSums(maps, kinds=("prefix",), rank=self.rank)
        for rows, states in climber.batches:
            sums.show(partial(stage.run, states), rows, climber.where)
        sums.reduce(self.accelerator)
        sums.factors(climber.tensors, climber.errors, dtype=self.dtype)
        climber.tokens |= sums.counts()


def _check(base: Base, vectors: Sequence[TaskVector], rank: int | None, num_images: int) -> None:
    check_compatible(vectors)
    for vector in vectors:
        check_fits(vector, parameters_of(base.model), allow_other_base=False, where=repr(base.name))
        vector.check_finite()
    most = num_images * base.model.vision_model.embeddings.position_embedding.num_embeddings
    if rank is not None and rank > most:
        raise ValueError(
            f"rank {rank} is more than the {most} inputs of a map that {num_images} images give; take a smaller rank "
            "or a larger num_images"
        )
