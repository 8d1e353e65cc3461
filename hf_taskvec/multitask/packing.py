"""`pack`: one door to every way of keeping the vectors of several tasks as one artefact."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from hf_taskvec.evaluation.accuracy import Tasks, evaluate, vectors_by_task
from hf_taskvec.evaluation.certificate import accuracy_difference
from hf_taskvec.merging.sources import Source, as_sources, check_changes, known_base, open_source
from hf_taskvec.models.base import Base
from hf_taskvec.multitask.methods import get_pack_method, run_pack
from hf_taskvec.multitask.value import MultiTaskVector, TaskPart, task_names_of
from hf_taskvec.tasks import Split, as_tasks
from hf_taskvec.vectors.compatibility import check_compatible
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector

STRENGTHS = (0.2, 0.3, 0.4, 0.5, 0.6)


def pack(
    vectors: Sequence[Source] | Mapping[str, TaskVector],
    method: str = "tall_masks",
    *,
    output_dir: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> MultiTaskVector:
    """Packs the vectors of several tasks of one base: what they share once, and what each has of its own.

    Args:
        vectors: Vectors whose provenance tells their tasks, or vectors by task; folders and Hub ids are opened.
        method: "tall_masks", "emr", "tsv_compress", "twin", "rtvq" or "basis"; see `pack_methods_table`.
        output_dir: Where to save it, too.
        **settings: Settings of the method.

    Returns:
        The artefact; what the vector of each task lost of its norm stands in its part.

    Raises:
        UnknownNameError: If there is no such method or setting.
        ValueError: If a setting is out of range, a vector tells no task, or two tell the same.
        IncompatibleVectorsError, BaseMismatchError: If names, shapes or bases differ.
        NonFiniteError: If a vector holds NaN or Inf.

    Example:
        >>> import torch
        >>> deltas = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([1.0, 2.0])}
        >>> packed = pack({task: TaskVector({"w": delta}) for task, delta in deltas.items()}, "emr")
        >>> packed.for_task("a")["w"], packed.for_task("b")["w"]
        (tensor([3., 0.]), tensor([1.8000, 1.2000]))
    """
    get_pack_method(method)
    if isinstance(vectors, Mapping):
        opened = [
            dataclasses.replace(vector, info=dataclasses.replace(vector.info, task=task))
            for task, vector in vectors.items()
        ]
    else:
        sources = as_sources(vectors)
        opened = [source if isinstance(source, TaskVector) else open_source(source)[1] for source in sources]
    names = task_names_of([vector.info for vector in opened])
    check_compatible(opened)
    check_changes(opened)
    pieces, settled = run_pack(opened, method, settings)
    infos = [vector.info for vector in opened]
    info = known_base(VectorInfo.merged(infos, method=method, settings=settled), opened[0].deltas.shapes)
    bare = MultiTaskVector(pieces.combine, pieces.shared, dict(zip(names, pieces.parts, strict=True)), info)
    packed = dataclasses.replace(
        bare, parts={name: _with_error(bare, name, vector) for name, vector in zip(names, opened, strict=True)}
    )
    if output_dir is not None:
        packed.save_pretrained(output_dir)
        return MultiTaskVector.from_pretrained(output_dir)
    return packed


def _with_error(packed: MultiTaskVector, task: str, vector: TaskVector) -> TaskPart:
    """A task's part with what its vector lost, and what it takes beside what is shared."""
    own, decoded = packed.parts[task], packed.for_task(task).deltas
    lost, squares = [], []
    for name, delta in vector.deltas.items():
        wide = delta.double()
        lost.append(float((decoded[name].double() - wide).square().sum()))
        squares.append(float(wide.square().sum()))
    error = math.sqrt(math.fsum(lost) / total) if (total := math.fsum(squares)) > 0 else 0.0
    size = own.deltas.num_bytes
    return dataclasses.replace(
        own, told={"error": error, "bytes": size, "share": size / (4 * max(1, vector.num_entries))}
    )


def choose_strengths(
    base: Base,
    vectors: Sequence[TaskVector] | Mapping[str, TaskVector],
    tasks: Tasks,
    *,
    tried: Sequence[float] = STRENGTHS,
    **settings: Any,
) -> list[float]:
    """The strength of each task's mask in `tall_masks` that is best on its validation part; the smallest of equals.

    Args:
        base: The model.
        vectors: Vectors by task, or with their tasks in the provenance.
        tasks: The vectors' tasks, in their order.
        tried: The strengths to try; the paper's by default.
        **settings: Other settings of `tall_masks`.

    Raises:
        UnknownNameError: If a task has no vector.
        ValueError: If no strength is to be tried, or one is not positive.

    Example:
        >>> import torch
        >>> from hf_taskvec import load_base
        >>> vector = TaskVector({"vision_model.post_layernorm.bias": torch.ones(384) / 100})
        >>> choose_strengths(load_base(), {"digits": vector}, "digits", tried=[0.2, 0.4])
        [0.2]
    """
    tasks = as_tasks(tasks)
    by_task = vectors_by_task(vectors, tasks)
    if not tried:
        raise ValueError("tried must hold at least one strength")
    chosen, scores = {task.name: by_task[task.name] for task in tasks}, dict[float, list[float]]()
    for value in sorted(tried):
        models = pack(chosen, "tall_masks", strength=value, **settings).apply_to(base)
        scores[value] = [result.accuracy for result in evaluate(models, tasks, split="validation").results]
    return [max(scores, key=lambda value: (scores[value][index], -value)) for index in range(len(tasks))]


def certify(
    base: Base,
    packed: MultiTaskVector,
    vectors: Sequence[TaskVector] | Mapping[str, TaskVector],
    tasks: Tasks,
    *,
    split: Split = "test",
) -> MultiTaskVector:
    """The artefact with what packing cost each task in accuracy, which its configuration and card then tell.

    Args:
        base: The model.
        packed: The artefact.
        vectors: The vectors that it was made of, by task or with their tasks in the provenance.
        tasks: Which tasks are measured, or their names.
        split: On which part of them.

    Raises:
        UnknownNameError: If a task has no vector, or the artefact holds none of it.

    Example:
        >>> import torch
        >>> from hf_taskvec import load_base
        >>> base, vector = load_base(), TaskVector({"vision_model.post_layernorm.bias": torch.ones(384) / 100})
        >>> packed = pack({"digits": vector}, "emr")
        >>> certified = certify(base, packed, {"digits": vector}, "digits", split="validation")
        >>> certified.for_task("digits").info.compression["accuracy"]["difference"]
        0.0
    """
    tasks, models = as_tasks(tasks), packed.apply_to(base)
    by_task, parts = vectors_by_task(vectors, tasks), dict(packed.parts)
    for task in tasks:
        models.check(task.name)
    for task in tasks:
        cost = accuracy_difference(models.for_task(task.name), by_task[task.name].apply_to(base), task, split=split)
        own = parts[task.name]
        parts[task.name] = dataclasses.replace(own, told={**own.told, "accuracy": cost})
    return dataclasses.replace(packed, parts=parts)
