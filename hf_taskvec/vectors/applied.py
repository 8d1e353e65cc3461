"""A checkpoint plus a vector, written as a checkpoint."""

from __future__ import annotations

from torch import Tensor

from hf_taskvec.hub.access import AnyPath
from hf_taskvec.vectors.application import check_fits, tell_of_tangent
from hf_taskvec.vectors.checkpoints import Checkpoint, write_checkpoint
from hf_taskvec.vectors.compatibility import Parts
from hf_taskvec.vectors.files import vector_fingerprint
from hf_taskvec.weights.arithmetic import added
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes


def write_applied(
    vector: Parts,
    checkpoint: Checkpoint,
    output_dir: AnyPath,
    *,
    scaling: float = 1.0,
    allow_other_base: bool = False,
    key: str | None = None,
) -> None:
    """Writes a checkpoint plus a vector, each delta of which is taken once, in the order of the weights.

    Raises:
        BaseMismatchError, IncompatibleVectorsError, NonFiniteError: If the vector does not fit or the sum overflows.
        OutputExistsError, NoSpaceError: As `write_checkpoint`, which has `key` too.
    """
    names = checkpoint.names_onto(vector.deltas.shapes)
    own = {theirs: name for name, theirs in names.items()}
    other = check_fits(
        vector,
        {names[name]: weight for name, weight in checkpoint.tensors.items()},
        allow_other_base=allow_other_base,
        where=repr(checkpoint.name),
        hashes=lambda wanted: {names[n]: value for n, value in checkpoint.hashes(own[w] for w in wanted).items()},
    )

    tell_of_tangent(vector.info)

    def edit(name: str, weight: Tensor) -> Tensor:
        delta = vector.deltas.get(names[name])
        return weight if delta is None else added(name, weight, delta, scaling)

    applied = {
        "base": checkpoint.name,
        "base_revision": checkpoint.commit,
        "scaling": scaling,
        "other_base": bool(other),
        "vector": {key: value for key, value in vector.info.to_dict().items() if key != "base_hashes"},
    }
    write_checkpoint(checkpoint, output_dir, edit, applied=applied, key=key)


def applied_key(vector: Parts, checkpoint: Checkpoint, scaling: float) -> str:
    """One hash over all that a checkpoint plus a vector depends on."""
    base = checkpoint.stamp() or tensor_hashes(dict(checkpoint.weights))
    return fingerprint({"vector": vector_fingerprint(vector.deltas), "base": repr(base), "scaling": repr(scaling)})
