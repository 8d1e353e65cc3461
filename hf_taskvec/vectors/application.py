"""What a vector must fit to be added to it: the weights of its base, in a model or in a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_taskvec.errors import BaseMismatchError, CheckpointError, IncompatibleVectorsError
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import Parts
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.weights.arithmetic import added
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.names import aligned_names, differences, parameters_of

if TYPE_CHECKING:
    from hf_taskvec.models.base import Base

logger = logging.getLogger(__name__)


def module_of(model: nn.Module | Base) -> nn.Module:
    """The module of a model or a base.

    Raises:
        TypeError: If it is neither.

    Example:
        >>> module_of(nn.Linear(1, 1))
        Linear(in_features=1, out_features=1, bias=True)
    """
    if isinstance(model, nn.Module):
        return model
    if isinstance(model, (str, bytes)) or not hasattr(model, "model"):
        raise TypeError(
            f"expected a model or a Base, got {type(model).__name__}; load one with load_base, and pass weights by "
            "name to TaskVector.from_weights"
        )
    module: nn.Module = model.model
    return module


def body_of(module: nn.Module) -> str:
    """The attribute that holds the body of a model of Transformers, as `vit`; empty for other modules.

    Example:
        >>> body_of(nn.Linear(1, 1))
        ''
    """
    return str(getattr(module, "base_model_prefix", ""))


def named_as(vector: Parts, module: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model under the names that they have in a vector."""
    weights = parameters_of(module)
    names = aligned_names(weights, vector.deltas.shapes, [body_of(module)])
    return {names[name]: weight for name, weight in weights.items()}


def add_in_place(vector: Parts, module: nn.Module, scaling: float) -> None:
    """Adds `scaling` times a vector to the parameters of a model that fits it.

    Raises:
        CheckpointError: If the model holds a parameter in another form than its file, from which it is copied.
        NonFiniteError: If the result is not finite.
    """
    tell_of_tangent(vector.info, module)
    named = named_as(vector, module)
    memory = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    for name in vector.deltas.shapes:
        if named[name].untyped_storage().data_ptr() not in memory:
            raise CheckpointError(
                f"{name!r} is held in another form by the model in memory, where nothing can be added to it: write the "
                "checkpoint by save_checkpoint(base, folder) and load that"
            )
        with torch.no_grad():
            named[name].copy_(added(name, named[name], vector.deltas[name], scaling))


def tell_of_tangent(info: VectorInfo, module: nn.Module | None = None) -> None:
    """Warns if a vector of a tangent space is added to an ordinary model, or written as one."""
    if info.tangent and not getattr(getattr(module, "vision_model", None), "linearized", False):
        logger.warning(
            "the vector %r was trained in the tangent space of its base and is added to the ordinary model, where it "
            "does something else; add it to hf_taskvec.editing.linearize(base)",
            info.label,
        )


def check_fits(
    vector: Parts,
    weights: Mapping[str, Tensor],
    *,
    allow_other_base: bool,
    where: str,
    hashes: Callable[[Iterable[str]], Mapping[str, str]] | None = None,
) -> list[str]:
    """Raises unless `weights`, under canonical names, are those of the vector's base.

    Args:
        vector: The vector.
        weights: The weights.
        allow_other_base: Whether other values will do.
        where: Whose weights they are, for the message.
        hashes: Tells the hashes of some of the weights, where they are known.

    Returns:
        The parameters in which they differ from the base, if that is allowed.

    Raises:
        IncompatibleVectorsError: If names or shapes do not fit.
        BaseMismatchError: If the values are others.
    """
    ours = vector.deltas.shapes
    theirs = {name: weight.shape for name, weight in weights.items() if name in ours}
    if lines := differences(ours, theirs, left_name="the vector", right_name="the model"):
        raise IncompatibleVectorsError(f"vector and model differ: {listed(lines, separator='; ')}", details=lines)
    info, known = vector.info, vector.info.base_hashes
    names = [name for name in ours if name in known]
    values = tensor_hashes({name: weights[name] for name in names}) if hashes is None else hashes(names)
    other = [name for name, value in values.items() if known[name] != value]
    if other and not allow_other_base:
        dtype = weights[other[0]].dtype
        half = dtype in (torch.float16, torch.bfloat16)
        hint = f"If it is that base in {dtype}, which rounds, load it in float32. " if half else ""
        raise BaseMismatchError(
            f"the vector {info.label!r} was made from {info.base or 'another base'}, and {where} has other values in "
            f"{len(other)} of {len(values)} parameters, first {', '.join(map(repr, other[:2]))}. {hint}Load the base "
            "it was made from, bring the vector to this one by hf_taskvec.editing.transport(vector, to=base), or pass "
            "allow_other_base=True.",
            details=other,
        )
    return other
