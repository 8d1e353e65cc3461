"""Which vectors come under the sliders: those that come with the package, a user's own, and what is added by id."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hf_taskvec.cards.find import epoch_folder, list_epochs
from hf_taskvec.errors import BaseMismatchError, CheckpointError, DataError, IncompatibleVectorsError, NotCachedError
from hf_taskvec.hub.access import is_repo_id, split_revision
from hf_taskvec.hub.fetch import Folder, Wanted, fetch_folder
from hf_taskvec.models.base import Base
from hf_taskvec.multitask.files import CONFIG_NAME as PACKED_NAME
from hf_taskvec.multitask.files import artefact_info
from hf_taskvec.multitask.value import MultiTaskVector
from hf_taskvec.studio.bank import Bank, Lever, Moment
from hf_taskvec.studio.edits import analogy_lever, carried_lever
from hf_taskvec.studio.setting import Analogy, way_of
from hf_taskvec.tasks import Task
from hf_taskvec.text import listed
from hf_taskvec.vectors.adapter_config import CONFIG as ADAPTER_NAME
from hf_taskvec.vectors.adapter_config import parse_config
from hf_taskvec.vectors.files import CONFIG_NAME, read_info
from hf_taskvec.vectors.info import VectorInfo
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.fingerprint import tensor_hashes
from hf_taskvec.weights.folders import read_json
from hf_taskvec.weights.names import differences, parameters_of

VECTORS = Path(__file__).parent / "vectors"
_FRACTIONS = {"fraction-0.25": "¼", "fraction-0.5": "½", "fraction-0.75": "¾"}
_RUNS = ("vectors", "run/vectors")  # where training leaves the moments of a vector, seen from beside it
MOST_EPOCHS = 8  # of a series on the Hub, each of which is fetched


def embedded_vectors() -> list[str]:
    """The folders of the vectors that come with the package, of the embedded base.

    Example:
        >>> [Path(folder).parent.name for folder in embedded_vectors()][:3]
        ['arrows', 'counts', 'digits']
    """
    return sorted(str(path.parent) for path in VECTORS.glob(f"*/vector/{CONFIG_NAME}"))


def open_bank(
    base: Base,
    sources: Sequence[str] = (),
    *,
    added: Sequence[str] = (),
    room: int | None = None,
    tasks: Sequence[Task] = (),
) -> Bank:
    """The levers of some vectors.

    Args:
        base: Their base.
        sources: Hub ids (with `@revision` if wanted) or folders of vectors, LoRA adapters, series of epochs or vectors
            of several tasks; those that come with the package if there are none.
        added: Further ones, also of another base as `way:source` (`way_of`), and analogies (`Analogy.source`).
        room: How many levers the further ones may have; as many as they like if left out.
        tasks: Whose training images show how a vector of another base is brought here.

    Raises:
        BaseMismatchError: If one is of another base.
        CheckpointError: If there is no vector, or it is damaged.
        DataError: If there is no room for so many.

    Example:
        >>> from hf_taskvec import load_base
        >>> len(open_bank(load_base()).levers)
        8
    """
    chosen = sources or embedded_vectors()
    if not chosen:
        raise CheckpointError(f"there are no vectors to open, not even in {VECTORS}; name some")
    levers = [lever for source in chosen for lever in open_levers(base, source)]
    more = list[Lever]()
    for source in added:
        more += _added(base, source, [*levers, *more], tasks)
    if room is not None and len(more) > room:
        raise DataError(
            f"{added[-1]} would make it {len(more)} vectors that were added, and there is room for {room}; start the "
            f"studio with it: hf-taskvec studio {added[-1]}"
        )
    names, unique = Counter[str](), []
    for lever in (*levers, *more):
        names[lever.name] += 1
        again = names[lever.name] > 1
        unique.append(replace(lever, name=f"{lever.name} ({names[lever.name]})") if again else lever)
    return Bank(unique)


def _added(base: Base, source: str, levers: Sequence[Lever], tasks: Sequence[Task]) -> list[Lever]:
    way, place = way_of(source)
    if (wanted := Analogy.of(source)) is not None:
        return [analogy_lever(wanted, levers)]
    return open_levers(base, source) if way is None else [carried_lever(place, way, base, tasks)]


def open_levers(base: Base, source: str) -> list[Lever]:
    """The lever of a vector, with the moments of its training where they were recorded, or those of several tasks.

    Provenance is read, and its base checked, before any weights are fetched.

    Raises:
        BaseMismatchError: If it is of another base.
        CheckpointError: If there is no vector, LoRA adapter or artefact of several tasks, or it is damaged.
        HubError, NotCachedError: If the Hub fails.

    Example:
        >>> from hf_taskvec import load_base
        >>> (lever,) = open_levers(load_base(), str(VECTORS / "faces" / "vector"))
        >>> [moment.label for moment in lever.moments]
        ['gradient', '¼', '½', '1', '2', '4', '8']
    """
    place, revision = split_revision(source)
    folder = fetch_folder(place, Wanted((CONFIG_NAME, ADAPTER_NAME, PACKED_NAME)), revision=revision)
    revision = folder.commit or revision
    exact = str(source) if folder.commit is None else f"{place}@{folder.commit}"
    if (folder.path / CONFIG_NAME).is_file():
        check_base_of(base, read_info(folder.path), source)
        vector = TaskVector.from_pretrained(place, revision=revision)
        check_shapes(base, vector, source)
        moments = (
            _published(base, place, folder, vector) if folder.commit else _recorded(base, Path(place), vector.info)
        )
        name = vector.info.task or (str(place) if folder.commit else vector.info.label)
        return [Lever(name, (*moments, Moment(label_of(vector.info), exact, vector)))]
    if (folder.path / PACKED_NAME).is_file():
        check_base_of(base, artefact_info(folder.path), source)
        return _packed(base, MultiTaskVector.from_pretrained(place, revision=revision), str(place), revision)
    if (folder.path / ADAPTER_NAME).is_file():
        _check_adapter(base, folder, source)
        vector = TaskVector.from_adapter(place, revision=revision, vision_only=True)
        check_shapes(base, vector, source)
        code = f"TaskVector.from_adapter({_call(place, revision)}, vision_only=True)"
        return [Lever(Path(str(place)).name, (Moment(label_of(vector.info), exact, vector, code),))]
    if os.path.isdir(place) and (moments := _moments(base, Path(place).glob("*"))):
        times = {(one.vector.info.task, _when(one)) for one in moments}
        if len({task for task, _ in times}) > 1 or len(times) < len(moments):
            others = listed(one.source for one in moments)
            raise CheckpointError(
                f"{source} holds vectors that are not the epochs of one run; name those you want: {others}"
            )
        return [Lever(moments[-1].vector.info.label, tuple(moments))]
    TaskVector.from_pretrained(place, revision=revision)  # tells what is missing
    raise CheckpointError(f"{source} holds no vector")


def _packed(base: Base, packed: MultiTaskVector, place: str, revision: str | None) -> list[Lever]:
    """A lever for each task of an artefact."""
    levers = []
    for task in packed.tasks:
        vector = packed.for_task(task)
        check_shapes(base, vector, place)
        code = f"MultiTaskVector.from_pretrained({_call(place, revision)}).for_task({task!r})"
        levers.append(Lever(task, (Moment(label_of(vector.info), f"{task} of {place}", vector, code),)))
    return levers


def _published(base: Base, place: str | os.PathLike[str], folder: Folder, last: TaskVector) -> list[Moment]:
    """The earlier epochs of a series on the Hub, `MOST_EPOCHS` at most, evenly chosen."""
    try:
        epochs = list_epochs(str(place), revision=folder.commit)
    except NotCachedError:  # the Hub is out of reach, which was told; the cache has the vector itself
        return []
    epochs = [epoch for epoch in epochs if epoch < (last.info.epochs or 0.0)]
    few = min(len(epochs), MOST_EPOCHS)
    moments = []
    for epoch in (epochs[number * (len(epochs) - 1) // max(1, few - 1)] for number in range(few)):
        name = epoch_folder(epoch)
        vector = TaskVector.from_pretrained(place, revision=folder.commit, subfolder=name)
        check_base_of(base, vector.info, f"{place}/{name}")
        code = f"TaskVector.from_pretrained({_call(place, folder.commit)}, subfolder={name!r})"
        moments.append(Moment(label_of(vector.info), f"{name} of {place}", vector, code))
    return moments


def _call(place: str | os.PathLike[str], revision: str | None) -> str:
    """The arguments that open it."""
    return repr(str(place)) + (f", revision={revision!r}" if revision else "")


def _check_adapter(base: Base, folder: Folder, source: str) -> None:
    """Raises unless the base that an adapter names is this one; a folder of another machine tells nothing."""
    named = parse_config(read_json(folder.path / ADAPTER_NAME), str(source)).base
    if named is not None and is_repo_id(named) and "/" in named and named != base.name:
        raise BaseMismatchError(f"{source} is an adapter of {named}, and this studio has {base.name}")


def check_shapes(base: Base, vector: TaskVector, source: str) -> None:
    """Raises an `IncompatibleVectorsError` unless the base has the parameters of a vector, in their shapes.

    Example:
        >>> from hf_taskvec import load_base
        >>> base = load_base()
        >>> check_shapes(base, TaskVector.from_models(base.model, base.model), "user/vector")
    """
    theirs = {name: value.shape for name, value in parameters_of(base.model).items() if name in vector.deltas}
    if lines := differences(vector.deltas.shapes, theirs, left_name=str(source), right_name=base.name):
        raise IncompatibleVectorsError(f"{source} does not fit {base.name}: {listed(lines)}", details=lines)


def check_base_of(base: Base, info: VectorInfo, source: str) -> None:
    """Raises a `BaseMismatchError` unless a vector is of the base, by its hashes or, where it has none, by name.

    Example:
        >>> from hf_taskvec import load_base
        >>> check_base_of(load_base(), VectorInfo(base="hf-taskvec/tiny-clip"), "user/vector")
    """
    weights = parameters_of(base.model)
    lacking = [name for name in info.base_hashes if name not in weights]
    hashes = tensor_hashes({name: weights[name] for name in info.base_hashes if name in weights})
    other = [*lacking, *(name for name, value in hashes.items() if value != info.base_hashes[name])]
    if other or (not info.base_hashes and info.base != base.name):
        which = f"{len(other)} of its parameters have other values" if other else "it tells no fingerprint of it"
        raise BaseMismatchError(
            f"{source} was made from {info.base or 'an unknown base'}, and this studio has {base.name}: {which}. Start "
            "another with --base",
            details=other,
        )


def _recorded(base: Base, folder: Path, last: VectorInfo) -> list[Moment]:
    """The earlier moments of a vector's training, as its run recorded them beside it, or a series holds them."""
    paths = [path for run in _RUNS for path in (folder.parent / run).glob("*")] + list(folder.glob("epoch-*"))
    moments = [one for one in _moments(base, paths) if one.vector.info.task == last.task]
    return [one for one in moments if _when(one)[0] == 0 or _when(one)[1] < (last.epochs or 0.0)]


def _moments(base: Base, paths: Iterable[Path]) -> list[Moment]:
    """The vectors in some folders by their epochs, the gradient first."""
    moments = []
    for path in (path for path in paths if (path / CONFIG_NAME).is_file()):
        vector = TaskVector.from_pretrained(path)
        check_base_of(base, vector.info, str(path))
        moments.append(Moment(_FRACTIONS.get(path.name) or label_of(vector.info), str(path), vector))
    return sorted(moments, key=_when)


def _when(moment: Moment) -> tuple[bool, float]:
    """What moments are sorted by."""
    info = moment.vector.info
    return info.kind != "gradient", info.epochs or 0.0


def label_of(info: VectorInfo) -> str:
    """A moment in a few letters.

    Example:
        >>> label_of(VectorInfo(epochs=8)), label_of(VectorInfo(kind="gradient"))
        ('8', 'gradient')
    """
    if info.kind == "gradient":
        return "gradient"
    return "end" if info.epochs is None else f"{info.epochs:.2g}"
