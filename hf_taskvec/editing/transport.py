"""Transport: a vector of one base is brought to another base of the same architecture."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from hf_taskvec.editing.permutation import match_permutations, permuted
from hf_taskvec.editing.rotation import rotated
from hf_taskvec.errors import (
    CheckpointError,
    DataError,
    IncompatibleVectorsError,
    UnknownNameError,
    check_count,
    check_finite_number,
    check_known,
)
from hf_taskvec.evaluation.accuracy import Tasks, check_base
from hf_taskvec.models.base import Base, load_base
from hf_taskvec.tasks import Task, as_tasks
from hf_taskvec.tasks.subsets import subset
from hf_taskvec.text import listed, shortened
from hf_taskvec.theory.gradients import gradient_vector
from hf_taskvec.vectors.application import check_fits
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.arithmetic import dot
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.names import PROJECTION, differences, parameters_of, shapes_of

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Way:
    """What a vector is brought by.

    Attributes:
        vector: The vector.
        to: The new base.
        source: The vector's own base, where the method needs it.
        tasks: The tasks whose few images are looked at, where the method needs them.
    """

    vector: TaskVector
    to: Base
    source: Base | None = None
    tasks: tuple[Task, ...] = ()

    @property
    def origin(self) -> Base:
        """The vector's own base, of a method that needs it."""
        if self.source is None:
            raise ValueError("this method needs the vector's own base")
        return self.source


def transport(
    vector: TaskVector,
    *,
    to: Base,
    tasks: Tasks | None = None,
    method: str = "gradfix",
    source: Base | None = None,
    images_per_class: int | None = 2,
    seed: int = 0,
    **settings: Any,
) -> TaskVector:
    """Brings a vector to another base of the same architecture, where it is added as one of that base's own.

    - `gradfix` (arXiv 2510.09658) keeps the entries whose sign is that of the descent -∇L at the new base, as
      `gradient_vector` computes it from a few labelled images; the others are 0. `force=True` turns their sign instead.
      The paper's vote of the majority over images is not offered.
    - `orthogonal_shift` takes from each parameter `share` (1) of its part along the shift from the old base to the new.
      No images.
    - `theseus` (arXiv 2602.12952) rotates each parameter by the orthogonal maps that bring what the old base computes
      of some images, before and after that parameter, closest to what the new one does; labels are not used.
      Activations are centred, and whitened by the power `whitening` (0.4). Embeddings become 0. Directions that the
      images do not show are turned as little as the others allow, where the authors' code turns them at random.
    - `rebasin` (arXiv 2209.04836) permutes residual stream, MLP neurons, attention heads and the entries of each head
      so that the old base's weights are closest to the new one's. No images. CLIP towers only.

    Args:
        vector: The vector; it is left alone.
        to: The base to bring it to.
        tasks: Tasks whose training images are shown to `gradfix` and `theseus`; those of the vector's provenance if
            left out.
        method: One of the above.
        source: The vector's own base, for the methods other than `gradfix`; loaded by its name if left out.
        images_per_class: How many training images of each class are shown; `None` for all.
        seed: Which.
        **settings: Those of the method.

    Returns:
        A vector of the new base, unscaled: `choose_scaling` finds its factor. `info.transport` tells both bases.

    Raises:
        IncompatibleVectorsError: If the new base is of another architecture; the shapes are named.
        BaseMismatchError: If `source` is not the vector's base.
        DataError: If images are needed and no task is known.
        UnknownNameError: If there is no such method or setting.
        ValueError: If a setting is out of range, or the new base was edited.

    Example:
        >>> from hf_taskvec import get_task, gradient_vector
        >>> from hf_taskvec.tasks.subsets import subset
        >>> base = load_base()
        >>> vector = gradient_vector(base, subset(get_task("digits"), max_train=8), learning_rate=0.1)
        >>> brought = transport(vector, to=base, tasks="digits", images_per_class=1)
        >>> brought.info.transport["method"], brought.norm() < vector.norm()
        ('gradfix', True)
    """
    check_known("method of transport", method, METHODS)
    run = METHODS[method]
    chosen = _settings_of(run, method, settings)
    check_base(to)
    to.check_zero_shot("transport")
    to.check_not_linearized("transport")
    _check_target(vector, to)
    if images_per_class is not None:
        images_per_class = check_count("images_per_class", images_per_class)
    seed = check_count("seed", seed, least=0)
    few = _few(vector, tasks, images_per_class, seed) if run in (gradfix, theseus) else ()
    origin = None if run is gradfix else _source(vector, source, to)
    way = Way(vector, to, origin, few)
    deltas = dict(run(way, **chosen))
    told = {"method": method, **chosen}
    if few:
        told |= {"tasks": [task.name for task in few], "images_per_class": images_per_class, "seed": seed}
    return TaskVector(deltas, arrived(vector, to, told))


Deltas = Iterator[tuple[str, Tensor]]


def gradfix(way: Way, *, force: bool = False) -> Deltas:
    """The entries whose sign the descent at the new base has; see `transport`."""
    names = list(way.vector.deltas)
    descent = gradient_vector(
        way.to,
        way.tasks,
        learning_rate=1.0,
        include_projection=PROJECTION in names,
        trainable_parameters=names,
    )
    for name in names:
        delta = way.vector.deltas[name]
        downhill = descent.deltas[name].to(delta).sign()
        yield name, delta.abs() * downhill if force else delta * (delta.sign() == downhill)


def orthogonal_shift(way: Way, *, share: float = 1.0) -> Deltas:
    """Each delta without `share` of its part along the shift of the base; see `transport`."""
    before, after = parameters_of(way.origin.model), parameters_of(way.to.model)
    for name in way.vector.deltas:
        delta = way.vector.deltas[name]
        shift = (after[name].double() - before[name].to(after[name].device).double()).to(delta.device)
        length = dot(shift, shift)
        along = dot(delta, shift) / length if length else 0.0
        yield name, (delta.double() - share * along * shift).to(delta.dtype)


def theseus(way: Way, *, whitening: float = 0.4) -> Deltas:
    """Each delta between the rotations of its inputs and outputs; see `transport`."""
    return rotated(way.vector.deltas, way.origin, way.to, way.tasks, whitening=whitening)


def rebasin(way: Way) -> Deltas:
    """Each delta permuted as the old base is to be closest to the new one; see `transport`."""
    permutations = match_permutations(way.origin, way.to)
    for name in way.vector.deltas:
        yield name, permuted(name, way.vector.deltas[name], permutations)


METHODS: dict[str, Callable[..., Deltas]] = {
    "gradfix": gradfix,
    "orthogonal_shift": orthogonal_shift,
    "theseus": theseus,
    "rebasin": rebasin,
}


def arrived(vector: TaskVector, to: Base, told: Mapping[str, Any]) -> VectorInfo:
    """Provenance of a vector that was brought to a base: that base's, and in `transport` where it comes from."""
    info, weights = vector.info, parameters_of(to.model)
    origin = {
        "base": info.base,
        "base_revision": info.base_revision,
        "base_fingerprint": info.base_fingerprint,
        "vector": info.repo_id,
        "vector_commit": info.repo_commit,
        "earlier": info.transport,
    }
    return dataclasses.replace(
        info,
        base=to.name,
        base_revision=to.revision,
        base_hashes=tensor_hashes({name: weights[name] for name in vector.deltas}),
        transport={**told, **{key: value for key, value in origin.items() if value is not None}},
        forgetting=None,
        layer_norms={},
        repo_id=None,
        repo_commit=None,
        command=None,
        seconds=None,
    )


def _settings_of(run: Callable[..., Deltas], method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method, with its defaults."""
    known = [value for value in inspect.signature(run).parameters.values() if value.kind is value.KEYWORD_ONLY]
    settings = {value.name: value.default for value in known}
    for name, value in given.items():
        if name not in settings:
            raise UnknownNameError(f"setting of {method}:", name, settings)
        if isinstance(settings[name], bool):
            if not isinstance(value, bool):
                raise ValueError(f"{name} of {method} must be true or false, got {value!r}")
        else:
            check_finite_number(name, value)
            if name == "whitening" and not 0 <= value <= 0.5:
                raise ValueError(f"whitening must be in [0, 0.5], got {value}")
        settings[name] = value
    return settings


def _check_target(vector: TaskVector, to: Base) -> None:
    """Raises unless the new base is as it was trained, and has the vector's parameters."""
    if to.edited:
        raise ValueError(f"a vector was added to {to.name!r} already: bring vectors to the base as it was")
    ours, theirs = vector.deltas.shapes, shapes_of(parameters_of(to.model))
    known = {name: shape for name, shape in theirs.items() if name in ours}
    if lines := differences(ours, known, left_name="the vector", right_name=repr(to.name)):
        raise IncompatibleVectorsError(
            f"a vector is brought to bases of its own architecture only, and {to.name!r} has another: "
            f"{listed(lines, separator='; ')}",
            details=lines,
        )
    vector.check_finite()


def _few(vector: TaskVector, tasks: Tasks | None, images_per_class: int | None, seed: int) -> tuple[Task, ...]:
    """The tasks on a few training images."""
    if tasks is None:
        trained = [info for info in vector.info.lineage() if not info.parents]
        try:
            chosen = [Task.from_info(info) for info in trained]
        except DataError as error:
            raise DataError(f"{shortened(str(error), 300)}; or name the tasks: transport(..., tasks=...)") from None
    else:
        chosen = as_tasks(tasks, needed_by="transport")
    return tuple(subset(task, max_train_per_class=images_per_class, train_seed=seed) for task in chosen)


def _source(vector: TaskVector, source: Base | None, to: Base) -> Base:
    """The vector's own base, given or loaded, of the new one's architecture."""
    info = vector.info
    if source is None:
        if info.base is None:
            raise ValueError("the vector does not tell its base: pass it as source=, or take method='gradfix'")
        try:
            source = load_base(info.base, revision=info.base_revision)
        except CheckpointError as error:
            raise CheckpointError(f"{shortened(str(error), 300)}. Pass the vector's own base as source=.") from error
    check_base(source)
    source.check_not_linearized("transport")
    weights = parameters_of(source.model)
    check_fits(vector, weights, allow_other_base=False, where=repr(source.name))
    if not info.base_hashes:
        logger.warning("the vector has no fingerprint of its base: that it is %r is taken from you", source.name)
    tower = {name: shape for name, shape in shapes_of(weights).items() if name.startswith("vision_model.")}
    other = {name: s for name, s in shapes_of(parameters_of(to.model)).items() if name.startswith("vision_model.")}
    lines = differences(tower, other, left_name=repr(source.name), right_name=repr(to.name))
    heads = [base.model.config.vision_config.num_attention_heads for base in (source, to)]
    if heads[0] != heads[1]:
        lines.append(f"{source.name!r} has {heads[0]} attention heads a layer and {to.name!r} {heads[1]}")
    if lines:
        raise IncompatibleVectorsError(
            f"a vector is brought to bases of its own architecture only: {listed(lines, separator='; ')}", details=lines
        )
    return source
