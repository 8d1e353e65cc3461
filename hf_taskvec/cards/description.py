"""What is known about a task vector or a checkpoint, for a terminal: its card's facts, and what its weights tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hf_taskvec.cards.render import facts_of
from hf_taskvec.hub.access import AnyPath, split_revision
from hf_taskvec.models.embedded import EMBEDDED_BASES
from hf_taskvec.vectors.application import check_fits
from hf_taskvec.vectors.checkpoints import open_checkpoint
from hf_taskvec.vectors.opening import Weights, open_weights
from hf_taskvec.vectors.spectrum import Spectrum, spectra
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import check_finite, dot
from hf_taskvec.weights.fingerprint import fingerprint, tensor_hashes
from hf_taskvec.weights.names import layer_of


@dataclass(frozen=True)
class Layer:
    """One layer of a description.

    Attributes:
        entries: Its entries.
        norm: Their norm.
        spectra: The spectrum of each of its matrices, if asked for.
    """

    entries: int
    norm: float
    spectra: Mapping[str, Spectrum]

    @property
    def root_mean_square(self) -> float:
        """The size of an entry, which compares layers of different sizes."""
        return self.norm / math.sqrt(self.entries) if self.entries else 0.0


@dataclass(frozen=True)
class Description:
    """What `describe` found.

    Attributes:
        facts: Facts by name, in a reader's words.
        layers: Each layer.
    """

    facts: Mapping[str, object]
    layers: Mapping[str, Layer]


def describe(source: AnyPath, *, base: AnyPath | None = None, spectrum: bool = False) -> Description:
    """Describes a task vector, an adapter or a checkpoint.

    Args:
        source: Hub id (with `@revision` if wanted), folder or `.safetensors` file.
        base: The base to check a vector against; an embedded one is taken by itself where the vector names it.
        spectrum: Whether to look at the singular values of every matrix, which takes a second per ten million entries.

    Raises:
        CheckpointError: If there is nothing of the kind.
        NonFiniteError: If it holds NaN or Inf.

    Example:
        >>> describe("hf-taskvec/tiny-clip").facts["what"]
        'checkpoint'
    """
    weights = open_weights(source)
    for name, tensor in weights.tensors.items():
        check_finite(name, tensor)
    layers = _layers(weights, spectra(weights.tensors) if spectrum else {})
    entries = sum(layer.entries for layer in layers.values())
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights.tensors.values())
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.tensors.values()})
    facts: dict[str, object] = {
        "what": weights.kind,
        "parameters": len(weights.tensors),
        "entries": f"{entries:,}",
        "size": f"{size / 1e6:,.1f} MB",
        "dtype": ", ".join(dtypes),
        "norm": f"{math.hypot(*(layer.norm for layer in layers.values())):.6g}",
    }
    vector = weights.vector
    if vector is None:
        own = {"commit": weights.commit, "fingerprint": fingerprint(tensor_hashes(weights.tensors))}
        return Description({**facts, **own}, layers)
    told: dict[str, object] = {"repository": " at ".join(filter(None, (vector.info.repo_id, vector.info.repo_commit)))}
    told |= {"test images used": "yes" if vector.info.transductive else None}
    checked = {"base check": check_base_of(vector, base), "command": vector.info.command}
    return Description({**facts, **facts_of(vector.info), **told, **checked}, layers)


def check_base_of(vector: TaskVector, base: AnyPath | None) -> str:
    """Whether a base is the one that a vector was made from, in words; no model is built.

    Args:
        vector: The vector.
        base: Hub id or folder; if left out, the embedded base where the vector names one.

    Raises:
        IncompatibleVectorsError: If names or shapes do not fit.

    Example:
        >>> vector = TaskVector.from_checkpoints("hf-taskvec/tiny-clip", "hf-taskvec/tiny-clip")
        >>> check_base_of(vector, None)
        "the weights of 'hf-taskvec/tiny-clip' are those it was made from"
    """
    named = vector.info.base if vector.info.base in EMBEDDED_BASES else None
    if (base := base or named) is None:
        return "not made: pass a base to compare with"
    place, revision = split_revision(base)
    checkpoint = open_checkpoint(place, revision=revision)
    if not vector.info.base_hashes:
        return "not possible: the vector holds no fingerprint of its base"
    other = check_fits(vector, checkpoint.tensors, allow_other_base=True, where=repr(checkpoint.name))
    if other:
        return f"{checkpoint.name!r} is another base: {len(other)} of {len(vector)} parameters differ"
    return f"the weights of {checkpoint.name!r} are those it was made from"


def _layers(weights: Weights, found_spectra: Mapping[str, Spectrum]) -> dict[str, Layer]:
    by_layer: dict[str, list[str]] = {}
    for name in weights.tensors:
        by_layer.setdefault(layer_of(name), []).append(name)
    layers = {}
    for layer, names in by_layer.items():
        tensors = [weights.tensors[name] for name in names]
        norm = math.sqrt(math.fsum(dot(tensor, tensor) for tensor in tensors))
        own = {name: found_spectra[name] for name in names if name in found_spectra}
        layers[layer] = Layer(sum(tensor.numel() for tensor in tensors), norm, own)
    return layers
