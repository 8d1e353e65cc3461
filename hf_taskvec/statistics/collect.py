"""`collect_statistics`: some images of a task go through a model, and hooks sum what its maps see."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
import xxhash
from accelerate import Accelerator, DataLoaderConfiguration
from numpy.random import RandomState
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from hf_taskvec.errors import DataError, check_count, check_known
from hf_taskvec.models.base import Base
from hf_taskvec.models.heads import zero_shot_head
from hf_taskvec.models.normalize import Normalize
from hf_taskvec.statistics.fisher import GradientSums
from hf_taskvec.statistics.hooks import InputSums
from hf_taskvec.statistics.maps import measured
from hf_taskvec.statistics.value import Kind, Statistics, StatisticsInfo
from hf_taskvec.tasks import Split, Task
from hf_taskvec.tasks.pixels import load_pixels
from hf_taskvec.tasks.registry import as_task
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.vectors.info import library_versions
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.dtypes import as_dtype
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.names import covered_names, parameters_of

RANK = 96  # 4 % of the size of a ViT-B/32's vector in float16; see recipes/results/statistics.md


def collect_statistics(
    model: Base,
    task: Task | str,
    *,
    vector: TaskVector | None = None,
    num_images: int = 64,
    split: Split = "train",
    kinds: Sequence[Kind] = ("gram", "diagonal"),
    rank: int | None = None,
    dtype: torch.dtype | str = torch.float16,
    batch_size: int = 32,
    seed: int = 0,
    transductive: bool = False,
    progress: bool = False,
) -> Statistics:
    """Measures what merging methods that look at data need, on some unlabelled images of a task.

    The images are drawn at random from the whole split, so that no class is favoured. All tokens count, in every layer;
    with a vector, in the maps and norms that it covers.
    Several processes (`accelerate launch`) share the images and give what one gives.

    - `gram`: the mean of `x xᵀ` over the inputs x of every linear map: one for q, k and v, one each for out_proj, fc1,
      fc2, the patch embedding and the visual projection. Kept as a factor of `rank` rows.
    - `diagonal`: the mean square of what each entry of a norm's scale multiplies.
    - `fisher`: the mean over images of the squared gradient of the log-likelihood of one label that is drawn from the
      model's own distribution, the gradient summed over tokens before it is squared: an unbiased estimate of the
      diagonal of the Fisher information (no label of the data is used).
    - `kfac`: the Gram matrices of those gradients at the outputs of the linear maps, summed over tokens and averaged
      over images; with those of the inputs they are the factors of K-FAC (expanding over tokens).

    Args:
        model: The base.
        task: The task whose images are shown, of which `fisher` and `kfac` also need the class names.
        vector: The vector to measure, which is added to the base; without it the base itself is measured.
        num_images: How many images.
        split: Which part of the task they are from; `test` only with `transductive`.
        kinds: What to measure.
        rank: Rows of each factor, 96 or as many as the images give if left out. What it leaves out is told by
            `info.errors` and its diagonal is kept.
        dtype: Dtype to round the tensors to; Fisher information is kept in bfloat16 instead of float16, for its range.
        batch_size: Images per pass and process; it changes time and memory only.
        seed: Which images are drawn, and which labels.
        transductive: Whether test images may be shown: what is merged by them must not be judged on them as if it had
            not seen them.
        progress: Whether to show a progress bar.

    Returns:
        The statistics, on the CPU; `save_pretrained` keeps them as they are.

    Raises:
        UnknownNameError: If there is no such kind or split.
        ValueError: If a setting is out of range, test images are not allowed, the model was edited already, or the
            images give fewer rows than `rank`.
        DataError: If the split has fewer images.
        BaseMismatchError, IncompatibleVectorsError: If the vector is not of this base.
        NonFiniteError: If an activation or gradient is NaN or Inf; layer and image are named.

    Example:
        >>> from hf_taskvec import load_base
        >>> statistics = collect_statistics(load_base(), "digits", num_images=8)
        >>> statistics.gram("vision_model.encoder.layers.0.mlp.fc2.weight").factor.shape
        torch.Size([96, 768])
        >>> statistics.info.num_images, statistics.info.split, statistics.info.error < 0.05
        (8, 'train', True)
    """
    task = as_task(task, needed_by="collect_statistics")
    counts = check_settings(model, kinds, split, num_images, rank, batch_size, transductive=transductive)
    num_images, rank, batch_size = counts
    kept, seed = as_dtype(dtype), check_count("seed", seed, least=0)
    if vector is not None and not isinstance(vector, TaskVector):
        raise TypeError(
            f"vector must be a TaskVector, got {type(vector).__name__}; TaskVector.from_pretrained opens one"
        )
    expert = model if vector is None else vector.apply_to(model)
    images = ChosenImages(model, task, split, count=num_images, seed=seed)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), dataloader_config=DataLoaderConfiguration(even_batches=False)
    )
    expert = _placed(expert, accelerator.device)
    seen = covered_names(parameters_of(model.model), include_projection=True)
    seen = seen if vector is None else [name for name in seen if name in vector.deltas]
    shown: dict[str, Any] = {"names": seen, "seed": seed, "progress": progress}
    sums = _measure(expert, task, images, kinds, rank or RANK, batch_size, accelerator, **shown)
    info = dataclasses.replace(origin(model, task, vector, images), kinds=tuple(kinds), rank=rank or RANK)
    return finished(sums, info, accelerator, rank=rank, dtype=kept)


def origin(base: Base, task: Task, vector: TaskVector | None, images: ChosenImages) -> StatisticsInfo:
    """Where statistics of some images come from."""
    weights = parameters_of(base.model)
    return StatisticsInfo(
        base=base.name,
        base_revision=base.revision,
        base_hashes=tensor_hashes({name: weights[name] for name in covered_names(weights, include_projection=True)}),
        vector=None if vector is None else vector_fingerprint(vector.deltas),
        task=None if vector is None else vector.info.task,
        images_of=task.name,
        dataset=task.dataset_name,
        dataset_config=task.config,
        dataset_revision=task.dataset_revision(),
        split=images.split,
        num_images=len(images),
        images_hash=images.hash(),
        preprocessing=xxhash.xxh3_128_hexdigest(base.processor.image_processor.to_json_string().encode()),
        seed=images.seed,
        versions=library_versions(),
    )


def finished(
    sums: Sequence[InputSums | GradientSums],
    info: StatisticsInfo,
    accelerator: Accelerator,
    *,
    rank: int | None,
    dtype: torch.dtype,
) -> Statistics:
    """The value of the sums of all processes."""
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    tokens: dict[str, int] = {}
    count = info.num_images or 0
    for gatherer in sums:
        gatherer.reduce(accelerator)
        gatherer.check_rank(rank, count)
        gatherer.into(tensors, errors, dtype=dtype, num_images=count)
        tokens |= gatherer.counts()
    name = str(dtype).removeprefix("torch.")
    return Statistics(tensors, dataclasses.replace(info, errors=errors, tokens=tokens, dtype=name))


class ChosenImages(Dataset[dict[str, Tensor]]):
    """Some images of a split, drawn at random; each knows its row."""

    def __init__(self, base: Base, task: Task, split: Split, *, count: int, seed: int) -> None:
        pixels, where = load_pixels(task, split, base.processor.image_processor), f"{split} of {task.name!r}"
        if count > len(pixels):
            raise DataError(f"num_images is {count}, but {where} has {len(pixels)}; take no more than that")
        self.pixels, self.where, self.split, self.seed = pixels, where, split, seed
        self.rows = np.sort(RandomState([len(pixels), seed]).permutation(len(pixels))[:count])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        batch = self.pixels.__getitems__(self.rows[list(indices)].tolist())
        return {"pixel_values": batch["pixel_values"], "index": torch.tensor(indices)}

    def hash(self) -> str:
        """One hash over the pixels, in order."""
        digest = xxhash.xxh3_128()
        for row in self.rows:
            digest.update(np.ascontiguousarray(self.pixels.pixels[row]).data)
        return digest.hexdigest()


def _measure(
    model: Base,
    task: Task,
    images: ChosenImages,
    kinds: Sequence[str],
    rank: int,
    batch_size: int,
    accelerator: Accelerator,
    *,
    names: Collection[str],
    seed: int,
    progress: bool,
) -> list[InputSums | GradientSums]:
    """Shows the images; what each kind sums up over them in this process."""
    tower, projection = model.model.vision_model, model.model.visual_projection
    device = accelerator.device
    normalize = Normalize(model).to(device)
    inputs, gradients = None, None
    if {"gram", "diagonal"} & set(kinds):
        maps = [*measured(tower), ("visual_projection", projection)]
        inputs = InputSums(
            [(name, module) for name, module in maps if f"{name}.weight" in names], kinds=kinds, rank=rank
        )
    if {"fisher", "kfac"} & set(kinds):
        head = zero_shot_head(model, task.class_names, task.templates).to(device)
        gradients = GradientSums(model.model, head, kinds=kinds, rank=rank, seed=seed, names=names)
    loader = accelerator.prepare(DataLoader(images, batch_size=batch_size, collate_fn=_keep))  # type: ignore[arg-type]
    for batch in tqdm(loader, desc=f"statistics of {images.where}", disable=not progress, leave=False):
        pixel_values = normalize(batch["pixel_values"].to(device))
        rows = [int(images.rows[index]) for index in batch["index"]]
        if inputs is not None:
            inputs.show(partial(_features, model, pixel_values), rows, images.where)
        if gradients is not None:
            gradients.show(pixel_values, rows, images.where)
    return [gatherer for gatherer in (inputs, gradients) if gatherer is not None]


def _features(model: Base, pixel_values: Tensor) -> Tensor:
    features: Tensor = model.model.visual_projection(model.model.vision_model(pixel_values).pooler_output)
    return features


def _placed(model: Base, device: torch.device) -> Base:
    """The model where it is, or a copy of it on another device."""
    if model.device == device:
        return model
    return dataclasses.replace(model, model=copy.deepcopy(model.model).to(device))


def check_settings(
    model: Base,
    kinds: Sequence[str],
    split: str,
    num_images: int,
    rank: int | None,
    batch_size: int,
    *,
    transductive: bool,
) -> tuple[int, int | None, int]:
    """Refuses settings of a collection before an image is read; see `collect_statistics`. Gives the three counts."""
    if not isinstance(model, Base):
        raise TypeError(f"statistics are collected of a Base, got {type(model).__name__}; load one by load_base")
    model.check_zero_shot("collect_statistics")
    model.check_not_linearized("collect_statistics")
    if isinstance(kinds, str) or not kinds:
        raise ValueError(f"kinds must be a list of what to measure, such as ['gram'], got {kinds!r}")
    for kind in kinds:
        check_known("kind of statistics", kind, get_args(Kind))
    if "prefix" in kinds:
        raise ValueError("'prefix' is of all vectors at once: use tuning.collect_prefix_statistics")
    check_known("split", split, get_args(Split))
    if split == "test" and not transductive:
        raise ValueError(
            "statistics of test images make what is merged by them transductive: take split='train' or 'validation', "
            "or allow it by transductive=True, which their provenance and that of the merge tell"
        )
    if model.edited:
        raise ValueError(
            "a vector was added to this model, so its base cannot be told: pass the base as it was, and vector="
        )
    rank = None if rank is None else check_count("rank", rank)
    return check_count("num_images", num_images), rank, check_count("batch_size", batch_size)


def _keep(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch
