"""Checkpoints of one base merged into a checkpoint, in one pass over their files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from hf_taskvec.errors import CheckpointError
from hf_taskvec.hub.access import AnyPath, HubAccess
from hf_taskvec.merging.engine import AheadDeltas, thread_pool
from hf_taskvec.merging.needs import StatisticsSource
from hf_taskvec.merging.run import finished, plan_merge
from hf_taskvec.merging.sources import Source
from hf_taskvec.vectors.applied import write_applied
from hf_taskvec.vectors.checkpoints import Checkpoint, check_checkpoint_folder, open_checkpoint
from hf_taskvec.vectors.differences import Coverage
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.vectors.opening import vector_from
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.fingerprint import fingerprint
from hf_taskvec.weights.processes import processes


def merge_checkpoints(
    base: AnyPath,
    checkpoints: Sequence[Source],
    method: str = "task_arithmetic",
    *,
    output_dir: str | os.PathLike[str],
    scaling: float = 1.0,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    allow_rounding: bool = False,
    revision: str | None = None,
    device: str | None = None,
    factors: Sequence[float] | None = None,
    statistics: Sequence[StatisticsSource] | None = None,
    **settings: Any,
) -> None:
    """Merges models that were made from one base into a model that `from_pretrained` loads, of any size.

    What `merge` of their vectors and `save_checkpoint` would give, without a vector on disk: weights are taken from
    the mapped files, a chunk at a time, and written once. Not all of a model is ever in memory, but for `opcm` and
    `nufilt`, which hold every parameter in float64. If the process is killed, the same call goes on after the last
    parameter that was written.

    Args:
        base: Hub id or folder of the checkpoint that all were made from. What no vector covers stays its own, and so do
            dtypes, configuration, tokenizer and other side files.
        checkpoints: Hub ids (with `@revision` if wanted) and folders of fine-tuned checkpoints, of vectors of this base
            or of LoRA adapters; vectors too.
        method: Merge method, as in `merge`.
        output_dir: A new folder, or one that this function or `save_checkpoint` wrote.
        scaling: Factor of the merged vector.
        include: As in `TaskVector.from_checkpoints`.
        exclude: As in `TaskVector.from_checkpoints`.
        allow_rounding: As in `TaskVector.from_checkpoints`.
        revision: Branch, tag or commit of the base.
        device: Where to compute.
        factors: As in `merge`.
        statistics: As in `merge`.
        **settings: Settings of the method.

    Raises:
        UnknownNameError, ValueError, IncompatibleVectorsError, NonFiniteError: As `merge`.
        BaseMismatchError: If a vector is of another base.
        CheckpointError: If something cannot be opened, or several processes call it together.
        OutputExistsError: If the folder holds something else.
        NoSpaceError: If the disk has less room than the result needs.

    Example:
        >>> from tempfile import mkdtemp
        >>> from transformers import AutoModel
        >>> pair = ["hf-taskvec/tiny-clip"] * 2
        >>> folder = mkdtemp()
        >>> merge_checkpoints("hf-taskvec/tiny-clip", pair, "average", output_dir=folder)
        >>> type(AutoModel.from_pretrained(folder)).__name__
        'CLIPModel'
    """
    if processes() is not None:
        raise CheckpointError(
            "checkpoints are merged by one process: over several, merge(vectors, output_dir=…, over_processes=True) "
            "writes the vector, and vector.save_checkpoint(base, folder) adds it"
        )
    check_checkpoint_folder(output_dir)
    coverage = Coverage(False, False, allow_rounding, include, exclude)
    before = open_checkpoint(base, revision=revision, access=HubAccess.of({}), whole=True)
    opened = [_opened(source, before, coverage) for source in checkpoints]
    plan = plan_merge(
        [vector for vector, _ in opened],
        method,
        scaling=scaling,
        device=device,
        factors=factors,
        statistics=statistics,
        settings=settings,
    )
    facts: dict[str, object] = {"base": before.stamp(), "merge": plan.key([stamp for _, stamp in opened])}
    facts |= {"factors": factors, "scaling": plan.scaling, "coverage": coverage.patterns}
    with thread_pool(plan.vector.device) as pool:
        ahead = AheadDeltas.of(finished(plan.vector, plan.scaling), pool)
        ours = dataclasses.replace(ahead.info, base=before.name, base_revision=before.commit)
        key = fingerprint({name: repr(value) for name, value in facts.items()})
        write_applied(TaskVector(ahead.deltas, ours), before, output_dir, key=key)


def _opened(source: Source, before: Checkpoint, coverage: Coverage) -> tuple[TaskVector, object]:
    """A vector, and what tells it from others."""
    if isinstance(source, TaskVector):
        return source, vector_fingerprint(source.deltas)
    return vector_from(source, before, coverage)
