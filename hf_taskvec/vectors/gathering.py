"""The vector of a model whose parameters are sharded over processes, as FSDP2 and tensor parallelism leave them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_taskvec.errors import IncompatibleVectorsError
from hf_taskvec.hub.access import AnyPath
from hf_taskvec.text import listed
from hf_taskvec.vectors.application import body_of
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.vectors.differences import Coverage, changed_outside, check_floating
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.rounding import is_narrower
from hf_taskvec.vectors.sharing import share_of, write_vector_together
from hf_taskvec.weights.arithmetic import subtract
from hf_taskvec.weights.deltas import LazyDeltas, TensorDeltas
from hf_taskvec.weights.names import PROJECTION, aligned_names, differences, is_clip, parameters_of, shapes_of
from hf_taskvec.weights.processes import processes

if TYPE_CHECKING:
    from accelerate import PartialState

logger = logging.getLogger(__name__)
CPU = torch.device("cpu")


def gather_vector(
    base: AnyPath,
    model: nn.Module,
    output_dir: str | os.PathLike[str],
    *,
    revision: str | None = None,
    include_projection: bool = False,
    vision_only: bool = False,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    task: str | None = None,
) -> None:
    """Writes the vector of a model that FSDP2 (`fully_shard`) or `accelerate` shards; called by all processes.

    Each parameter is gathered by itself; the process that it is dealt to keeps its delta and writes it. So a process
    holds its share of the deltas and one parameter at most, never a whole model.

    Args:
        base: Hub id or folder of the checkpoint before fine-tuning, which all processes see.
        model: The fine-tuned model; parameters that are not sharded do too.
        output_dir: A folder that all processes see, as in `TaskVector.save_pretrained`.
        revision: Branch, tag or commit of the base.
        include_projection: As in `TaskVector.from_checkpoints`.
        vision_only: As in `TaskVector.from_checkpoints`.
        include: As in `TaskVector.from_checkpoints`.
        exclude: As in `TaskVector.from_checkpoints`.
        task: Name of the task, for the provenance.

    Raises:
        ValueError: If this process is alone: `TaskVector.from_models` needs no launcher.
        CheckpointError: If weights are quantised.
        IncompatibleVectorsError: If names or shapes are not the base's, or weights changed that are not covered.
        NonFiniteError: If a weight holds NaN or Inf.
        TaskVecError: If another process failed.
    """
    group = processes()
    if group is None:
        raise ValueError("gather_vector is for the processes of a launcher; alone, TaskVector.from_models does")
    before = open_checkpoint(base, revision=revision)
    weights = parameters_of(model)
    names = aligned_names(weights, before.tensors, [body_of(model), before.body])
    coverage = Coverage(include_projection, vision_only, include=include, exclude=exclude)
    covers = coverage.rule(before.tensors, names.values())
    ours = {name: weight for name, weight in before.tensors.items() if covers(name)}
    named = {names[name]: weight for name, weight in weights.items()}
    theirs = {name: weight for name, weight in named.items() if covers(name)}
    lines = differences(shapes_of(ours), shapes_of(theirs), left_name="the base", right_name="the model")
    if lines or not ours:
        raise IncompatibleVectorsError(f"base and model differ: {listed(lines, separator='; ')}", details=lines)
    check_floating(ours, "the base")
    check_floating(theirs, "the model")
    gathered = LazyDeltas(shapes_of(named), lambda name: _whole(named[name]), torch.float32, CPU)
    left_out = changed_outside(before.tensors, gathered, ours, coverage, told=group.is_main_process)
    if group.is_main_process:
        _tell_of_rounding(ours, theirs)
    clip = is_clip(before.tensors)
    info = VectorInfo(
        base=before.name,
        base_revision=before.commit,
        base_hashes=before.hashes(ours) if group.is_main_process else {},
        architecture=None if clip else before.architecture,
        include_projection=PROJECTION in ours,
        settings=coverage.patterns,
        task=task,
        left_out=len(left_out) or None,
    )
    write_gathered(output_dir, ours, {name: theirs[name] for name in ours}, info, group)


def write_gathered(
    output_dir: str | os.PathLike[str],
    base: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    info: VectorInfo,
    group: PartialState,
) -> None:
    """Writes the vector from a base's weights to a model's, sharded or not; called by all processes.

    Args:
        output_dir: A folder that all processes see.
        base: The weights before fine-tuning, those of each name whole.
        weights: Those after it, under the same names.
        info: Provenance.
        group: The processes.

    Raises:
        NonFiniteError: If a weight holds NaN or Inf.
        TaskVecError: If another process failed.
    """
    doubles = [name for name in weights if torch.float64 in (weights[name].dtype, base[name].dtype)]
    dtype = torch.float64 if doubles else torch.float32
    plan = LazyDeltas(shapes_of(weights), lambda name: weights[name], dtype, CPU)
    mine = set(share_of(plan, group))
    wholes = ((name, _whole(weight)) for name, weight in weights.items())  # all processes take all, in one order
    kept = {name: subtract(whole, base[name]) for name, whole in wholes if name in mine}
    write_vector_together(output_dir, plan, TensorDeltas(kept), info, dtype=dtype, group=group)


def _tell_of_rounding(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    if narrow := [theirs[name].dtype for name in ours if is_narrower(theirs[name], ours[name])]:
        logger.warning(
            "the model is in %s, narrower than the base: its rounding is part of the vector. Train in the base's dtype",
            narrow[0],
        )


def _whole(weight: Tensor) -> Tensor:
    """A parameter on the CPU, gathered by all processes if it is sharded."""
    weight = weight.detach()
    return (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).to(CPU)
