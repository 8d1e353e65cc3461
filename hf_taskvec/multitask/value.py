"""`MultiTaskVector`: what the vectors of several tasks share, and what each of them has of its own, in few bytes."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from hf_taskvec.errors import IncompatibleVectorsError, check_known
from hf_taskvec.hub.access import HubAccess, HubKeywords
from hf_taskvec.models.base import Base
from hf_taskvec.models.per_task import TaskModels
from hf_taskvec.multitask.files import Stored, read_artefact, write_artefact
from hf_taskvec.text import listed
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.deltas import LazyDeltas
from hf_taskvec.weights.names import differences
from hf_taskvec.weights.packed import PackedDeltas

Combine = Literal["masked", "sum", "span"]
COEFFICIENTS = "coefficients"  # the one tensor of a task in a span


@dataclass(frozen=True)
class TaskPart:
    """What one task has of its own.

    Attributes:
        deltas: Its packed tensors.
        factor: What its vector is multiplied by.
        told: What is known of the vector that comes out: `error` (the norm of what is lost over the norm), `bytes` and
            `share` (of the bytes that float32 needs), and `accuracy` once it was measured.
    """

    deltas: PackedDeltas
    factor: float = 1.0
    told: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class MultiTaskVector:
    """Vectors of several tasks as one artefact; `pack` makes it, and which task it is must be known to use it.

    Files stay memory-mapped, and the vector of one task is decoded without those of the others, one parameter at a
    time.

    Attributes:
        combine: How a task's vector is made: "masked" (the shared vector where the task's bits are set, times its
            factor), "sum" (shared vector plus the task's own), "span" (the task's combination of shared atoms).
        shared: What all tasks share; empty if they share nothing. Of a span, M atoms for each parameter, (M, …).
        parts: What each task has of its own, by its name.
        info: Provenance of all; `parents` are the vectors in the order of `parts`.

    Raises:
        IncompatibleVectorsError: If parts do not fit what is shared.

    Example:
        >>> from hf_taskvec.multitask import pack
        >>> one, two = (TaskVector({"w": torch.tensor(values)}, VectorInfo(task=task)) for task, values in
        ...     (("a", [1.0, 0.0]), ("b", [0.0, 2.0])))
        >>> packed = pack([one, two], "tall_masks")
        >>> packed.for_task("b")["w"], packed.tasks
        (tensor([0., 2.]), ('a', 'b'))
    """

    combine: Combine
    shared: PackedDeltas
    parts: Mapping[str, TaskPart]
    info: VectorInfo

    def __post_init__(self) -> None:
        check_known("way to combine", self.combine, _COMBINED)
        if len(self.info.parents) != len(self.parts):
            raise IncompatibleVectorsError(
                f"the artefact tells of {len(self.info.parents)} vectors and holds the parts of {len(self.parts)} tasks"
            )
        lines = []
        for task, own in self.parts.items():
            lines += self._differences(f"the part of {task!r}", own.deltas)
        if not self.parts:
            lines.append("it holds no task")
        if lines:
            raise IncompatibleVectorsError(
                f"the parts do not fit what they share, so they are another's: {listed(lines, separator='; ')}",
                details=lines,
            )

    def _differences(self, label: str, own: PackedDeltas) -> list[str]:
        """In what a task's tensors do not fit those that are shared."""
        if self.combine == "span":
            counts = {shape[:1] for shape in self.shared.shapes.values()}
            fits = set(own.shapes) == {COEFFICIENTS} and counts == {own.shapes[COEFFICIENTS]}
            return [] if fits else [f"{label} has not one coefficient for each of the shared atoms"]
        codecs = {item.codec for item in own.items_packed.values()}
        if (self.combine == "masked") is not (codecs == {"mask"}):
            return [f"{label} has {listed(sorted(codecs))} for what is {self.combine}"]
        if self.combine == "sum" and not self.shared:
            first = next(iter(self.parts.values())).deltas
            return differences(own.shapes, first.shapes, left_name=label, right_name="that of the first task")
        return differences(own.shapes, self.shared.shapes, left_name=label, right_name="what is shared")

    # -- using --------------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that there is a vector for."""
        return tuple(self.parts)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Shape of each parameter."""
        if self.combine == "span":
            return {name: shape[1:] for name, shape in self.shared.shapes.items()}
        return dict(next(iter(self.parts.values())).deltas.shapes)

    @property
    def num_bytes(self) -> int:
        """How much is stored."""
        return self.shared.num_bytes + sum(own.deltas.num_bytes for own in self.parts.values())

    @property
    def share(self) -> float:
        """The bytes of all over those of one vector in float32."""
        return self.num_bytes / (4 * max(1, sum(shape.numel() for shape in self.shapes.values())))

    def for_task(self, task: str) -> TaskVector:
        """The vector of one task, decoded parameter by parameter when it is used.

        Raises:
            UnknownNameError: If there is no such task.
        """
        check_known("vector of task", task, self.parts)
        own, number = self.parts[task], self.tasks.index(task)
        compute = functools.partial(_COMBINED[self.combine], self.shared, own)
        dtype = torch.promote_types(self.shared.dtype, own.deltas.dtype)
        lost = {"method": self.info.method, **self.info.settings, **own.told}
        info = dataclasses.replace(
            self.info.parents[number],
            task=task,
            base=self.info.base,
            base_revision=self.info.base_revision,
            base_hashes=self.info.base_hashes,
            compression={name: value for name, value in lost.items() if value is not None},
            repo_id=self.info.repo_id,
            repo_commit=self.info.repo_commit,
        )
        return TaskVector(LazyDeltas(self.shapes, compute, dtype, torch.device("cpu")), info)

    def apply_to(self, base: Base, *, allow_other_base: bool = False) -> TaskModels:
        """A model for each task, made when it is asked for: `evaluate(packed.apply_to(base), tasks)`.

        Args:
            base: The model that the vectors were made from.
            allow_other_base: Whether to add them to other weights.

        Raises:
            BaseMismatchError: When a model is made, if the weights are not those of the vectors' base.
        """

        def make(task: str) -> Base:
            return self.for_task(task).apply_to(base, allow_other_base=allow_other_base)

        return TaskModels(self.info.label, self.tasks, make, self.info.transductive or base.transductive)

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `multi_task_vector.safetensors` and its configuration, as packed as it is; whole or not at all.

        Raises:
            OutputExistsError: If the folder holds something else.
            ValueError: If the provenance could not be read again.

        Example:
            >>> from tempfile import mkdtemp
            >>> from hf_taskvec.multitask import pack
            >>> packed, folder = pack([TaskVector({"w": torch.ones(2)}, VectorInfo(task="a"))], "emr"), mkdtemp()
            >>> packed.save_pretrained(folder)
            >>> MultiTaskVector.from_pretrained(folder, verify=True).for_task("a")["w"]
            tensor([1., 1.])
        """
        write_artefact(save_directory, self.stored)

    @property
    def stored(self) -> Stored:
        """What its files hold."""
        own = [(task, one.deltas, {"factor": one.factor, **one.told}) for task, one in self.parts.items()]
        return Stored(self.combine, self.shared, tuple(own), self.info)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        verify: bool = False,
        **hub: Unpack[HubKeywords],
    ) -> MultiTaskVector:
        """Opens a saved artefact by Hub id or folder, memory-mapped.

        Args:
            source: Hub id or folder.
            revision: Branch, tag or commit.
            verify: Whether to read a folder's file once and compare it with the fingerprint that was stored with it;
                what comes from the Hub is always compared, once.
            **hub: `token`, `cache_dir`, `local_files_only`, `force_download`; see `HubAccess`.

        Raises:
            CheckpointError: If files are missing, damaged or hostile, or the parts do not fit what they share.
            NotCachedError: If the Hub is out of reach and the cache has no copy.
        """

        def build(stored: Stored) -> MultiTaskVector:
            parts = {
                task: TaskPart(deltas, told["factor"], {key: value for key, value in told.items() if key != "factor"})
                for task, deltas, told in stored.parts
            }
            return cls(stored.combine, stored.shared, parts, stored.info)  # type: ignore[arg-type]  # it is checked

        access = HubAccess.of(hub)
        return read_artefact(source, build, revision=revision, access=access, verify=verify)

    def __repr__(self) -> str:
        tasks = listed(self.tasks, room=120)
        return f"MultiTaskVector({self.info.label!r}, {len(self.parts)} tasks: {tasks}; {self.share:.2f} of one vector)"


def _masked(shared: PackedDeltas, own: TaskPart, name: str) -> Tensor:
    """The shared delta where the task's bits are set, times its factor."""
    delta = shared[name].where(own.deltas.items_packed[name].bits_set(), 0)
    return delta if own.factor == 1 else delta * own.factor


def _sum(shared: PackedDeltas, own: TaskPart, name: str) -> Tensor:
    """The shared delta plus the task's own."""
    return own.deltas[name] if name not in shared else shared[name] + own.deltas[name]


def _span(shared: PackedDeltas, own: TaskPart, name: str) -> Tensor:
    """The task's combination of the shared atoms (M, …) of a parameter."""
    atoms = shared[name]
    delta: Tensor = torch.tensordot(own.deltas[COEFFICIENTS].to(atoms.dtype), atoms, dims=1)
    return delta


_COMBINED: Mapping[str, Callable[[PackedDeltas, TaskPart, str], Tensor]] = {
    "masked": _masked,
    "sum": _sum,
    "span": _span,
}


def task_names_of(infos: Sequence[VectorInfo]) -> list[str]:
    """The task of each vector.

    Raises:
        ValueError: If one tells none, or two tell the same.

    Example:
        >>> task_names_of([VectorInfo(task="mnist")])
        ['mnist']
    """
    names = [info.task for info in infos]
    for index, name in enumerate(names):
        if not name:
            raise ValueError(f"vector {index} does not tell its task; pass the vectors by name: {{task: vector}}")
        if name in names[:index]:
            raise ValueError(f"two vectors are of task {name!r}; pass them by name: {{task: vector}}")
    return [str(name) for name in names]
