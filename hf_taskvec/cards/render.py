"""Renders cards."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_taskvec.cards import text
from hf_taskvec.cards.metadata import (
    base_metadata,
    model_metadata,
    multi_task_metadata,
    task_names,
    vector_metadata,
)
from hf_taskvec.errors import is_finite_number
from hf_taskvec.evaluation.report import Report, percent
from hf_taskvec.hub.access import is_repo_id
from hf_taskvec.hub.client import COMMIT
from hf_taskvec.merging.registry import METHODS
from hf_taskvec.models.base import EMBEDDED, KINDS
from hf_taskvec.models.layouts import BACKBONES
from hf_taskvec.multitask.methods import METHODS as PACK_METHODS
from hf_taskvec.multitask.value import MultiTaskVector
from hf_taskvec.tasks import TASKS
from hf_taskvec.vectors.info import VectorInfo


def render_vector_card(
    info: VectorInfo,
    report: Report | None = None,
    *,
    repo_id: str,
    epochs: Sequence[float] = (),
    picture: str | None = None,
) -> str:
    """The card of a task vector.

    Args:
        info: Its configuration.
        report: How the base with this vector does.
        repo_id: Where the card stands.
        epochs: The epochs that the repository also holds, one folder each.
        picture: File beside the card that shows accuracies against the scaling.

    Example:
        >>> card = render_vector_card(VectorInfo(task="digits", base=EMBEDDED), repo_id="user/digits")
        >>> 'TaskVector.from_pretrained("user/digits"' in card
        True
    """
    return render(
        "vector.md.j2",
        metadata=vector_metadata(info, report, repo_id=repo_id),
        info=info,
        report=report,
        repo_id=repo_id,
        epochs=[f"{epoch:g}" for epoch in epochs],
        facts=facts_of(info),
        tasks=task_names(info),
        picture=picture,
        can_evaluate=all(map(_is_registered, _trained(info))),
        measured=_data_of(info),
        own_tasks=_own_tasks(info),
    )


def _trained(info: VectorInfo) -> list[VectorInfo]:
    """The vectors that a merge goes back to, or the vector itself."""
    return [one for one in info.lineage() if not one.parents]


def _is_registered(info: VectorInfo) -> bool:
    """Whether `get_tasks` gives the very data of a vector's task."""
    task = TASKS.get(info.task or "")
    return task is not None and task.dataset == info.dataset


def _own_tasks(info: VectorInfo) -> list[VectorInfo]:
    """Those of the trained vectors whose classes a reader finds nowhere else."""
    return [one for one in _trained(info) if one.class_names and not _is_registered(one)]


def _data_of(info: VectorInfo) -> str:
    """Where the images of a vector's own tasks are, if it knows classes and prompts; `Task.from_info` needs them."""
    infos = info.parents or (info,)
    if not all(one.task and one.class_names and one.templates and not one.parents for one in infos):
        return "unknown"
    on_hub = all(is_repo_id(one.dataset or "") and not one.data_settings.get("local") for one in infos)
    return "on the Hub" if on_hub else "unknown" if info.parents else "elsewhere"


def _labels(info: VectorInfo) -> list[str]:
    """A few names to tell apart, of the vector's first task that has any."""
    own = {one.task: one.class_names for one in reversed([*info.lineage()]) if one.class_names}
    for name in task_names(info):
        if names := own.get(name) or (TASKS[name].class_names if name in TASKS else ()):
            return list(names[:10])
    return ["cat", "dog"]


def _prompt(info: VectorInfo) -> str:
    """A prompt of the vector's first task that has any."""
    prompts = (one.templates[0] for one in info.lineage() if one.templates)
    return next((prompt for prompt in prompts if prompt.count("{}") == 1), "a photo of a {}.")


def render_model_card(info: VectorInfo, report: Report | None = None, *, repo_id: str, scaling: float) -> str:
    """The card of a checkpoint: a base with `scaling` times a vector added.

    Example:
        >>> card = render_model_card(VectorInfo(task="digits", base=EMBEDDED), repo_id="user/model", scaling=0.5)
        >>> 'CLIPModel.from_pretrained("user/model"' in card
        True
    """
    return render(
        "model.md.j2",
        metadata=model_metadata(info, report, repo_id=repo_id),
        info=info,
        report=report,
        repo_id=repo_id,
        scaling=scaling,
        facts=facts_of(info),
        tasks=task_names(info),
        own_tasks=_own_tasks(info),
        labels=_labels(info),
        prompt=_prompt(info),
    )


def render_base_card(config: Mapping[str, Any], report: Report | None = None, *, repo_id: str) -> str:
    """The card of a pretrained base.

    Args:
        config: `description`, `license`, `facts` (name to value), `data` (one mapping with `name`, `license` and
            `pairs` per source), `command`, `retrieval` (name to fraction) and `limits` (sentences).
        report: Its zero-shot accuracies.
        repo_id: Where the card stands.

    Example:
        >>> config = {"description": "A tiny CLIP.", "license": "mit", "facts": {}, "data": [], "command": ""}
        >>> config |= {"limits": [], "retrieval": {}}
        >>> "A tiny CLIP." in render_base_card(config, repo_id="user/clip")
        True
    """
    metadata = base_metadata(dict(config), report, repo_id=repo_id)
    return render("base.md.j2", metadata=metadata, config=config, report=report, repo_id=repo_id)


def render_multi_task_card(packed: MultiTaskVector, report: Report | None = None, *, repo_id: str) -> str:
    """The card of vectors of several tasks that are kept as one artefact.

    Args:
        packed: The artefact.
        report: How the base does with each task's own vector.
        repo_id: Where the card stands.

    Example:
        >>> import torch
        >>> from hf_taskvec import TaskVector
        >>> from hf_taskvec.multitask import pack
        >>> packed = pack([TaskVector({"w": torch.ones(2)}, VectorInfo(task="digits"))], "emr")
        >>> 'packed.for_task("digits")' in render_multi_task_card(packed, repo_id="user/packed")
        True
    """
    costs = [accuracy_cost(own.told.get("accuracy")).removeprefix("; ") for own in packed.parts.values()]
    return render(
        "multi_task.md.j2",
        metadata=multi_task_metadata(packed.info, report, repo_id=repo_id),
        info=packed.info,
        packed=packed,
        report=report,
        repo_id=repo_id,
        facts=facts_of(packed.info),
        costs=costs,
        own_tasks=_own_tasks(packed.info),
        paper=PACK_METHODS[packed.info.method].paper if packed.info.method in PACK_METHODS else None,
    )


def facts_of(info: VectorInfo) -> dict[str, object]:
    """What is known about how a vector was made, in a reader's words."""
    tower = "vision tower and visual projection" if info.include_projection else "vision tower"
    tower = f"model ({info.architecture})" if info.architecture else "model" if "include" in info.settings else tower
    entries = "" if info.num_entries is None else f"{info.num_entries:,} entries"
    tensors = f"{len(info.base_hashes)} tensors" if info.base_hashes else ""
    covered = " with ".join(filter(None, (tensors, entries)))
    facts = {
        "kind": info.kind,
        "base": info.base,
        "base revision": info.base_revision,
        "covers": f"{covered} of the {tower}" if covered else f"the {tower}",
        _FINGERPRINT: info.base_fingerprint,
        "made from": " at ".join(filter(None, (info.finetuned, info.finetuned_revision))),
        "left out": f"{info.left_out} parameters that the training changed too" if info.left_out else None,
        "task": info.task,
        "method": info.method,
        "dataset": " ".join(filter(None, (info.dataset, info.dataset_config))),
        _HASH if _IS_HASH.fullmatch(info.dataset_revision or "") else "dataset revision": info.dataset_revision,
        "images per epoch": info.num_images,
        "epochs": info.epochs,
        "steps": info.steps,
        "batch size": info.batch_size,
        "optimiser": info.optimizer,
        "learning rate": info.learning_rate,
        "weight decay": info.weight_decay,
        "seed": info.seed,
        "scaling already applied": None if info.scaling == 1 else info.scaling,
        "compression": _compression(info.compression),
        "forgetting": forgetting_words(info.forgetting),
        "brought here": transport_words(info.transport),
        "rounding error": info.rounding_error,
        "looked at": "; ".join(map(_looked_at, info.statistics)),
        **{f"setting {key}": value for key, value in sorted(info.settings.items())},
        "time": None if info.seconds is None else f"{info.seconds:.0f} s",
        "versions": ", ".join(f"{name} {version}" for name, version in info.versions.items()),
    }
    return {name: value for name, value in facts.items() if value not in (None, "", (), [])}


def _compression(told: Mapping[str, Any] | None) -> str | None:
    """What a compression left and lost, in words."""
    if told is None:
        return None
    share, error = (told.get(key) for key in ("share", "error"))
    if not is_finite_number(share) or not is_finite_number(error):  # a stranger's
        return str(told.get("method"))
    text = f"{told.get('method')}, {share:.1%} of the bytes of float32, error {error:.2g} of the norm"
    return f"{text}{accuracy_cost(told.get('accuracy'))}"


def forgetting_words(told: object) -> str | None:
    """What a receipt of forgetting says, in words; nothing if there is none, or a stranger's cannot be read.

    Example:
        >>> target = {"task": "digits", "before": 0.88, "after": 0.12, "chance": 0.1}
        >>> forgetting_words({"strength": 0.5, "target": target, "control": {"kept": 0.99, "kept_low": 0.97}})
        'digits 88.0 % before, 12.0 % after, chance 10.0 %; control tasks keep 99.0 %, at least 97.0 %'
    """
    target, control = (told.get(key) if isinstance(told, Mapping) else None for key in ("target", "control"))
    if not isinstance(told, Mapping) or not isinstance(target, Mapping) or not isinstance(control, Mapping):
        return None
    shares = [target.get("before"), target.get("after"), target.get("chance")]
    shares += [control.get("kept"), control.get("kept_low")]
    if not all(map(is_finite_number, shares)):
        return None
    before, after, chance, kept, low = (f"{100 * float(share):.1f} %" for share in shares if is_finite_number(share))
    words = f"{target.get('task')} {before} before, {after} after, chance {chance}"
    words += f"; control tasks keep {kept}, at least {low}"
    membership, relearning = told.get("membership"), told.get("relearning")
    left = membership.get("forgotten") if isinstance(membership, Mapping) else None
    if isinstance(left, Mapping) and is_finite_number(left.get("auc")):
        words += f"; its training images are told from others with an area under the curve of {left['auc']:.3f}"
    if isinstance(relearning, Mapping):
        steps = relearning.get("steps")
        words += "; not relearned" if steps is None else f"; relearned after {steps} steps of fine-tuning"
    return words


def transport_words(told: object) -> str | None:
    """Where a vector was brought from to its base, and how, in words; nothing if it was not.

    Example:
        >>> transport_words({"method": "gradfix", "base": "user/a", "tasks": ["mnist"], "images_per_class": 2})
        'from user/a by gradfix, with 2 training images a class of mnist'
    """
    if not isinstance(told, Mapping):
        return None
    words = f"from {told.get('base') or 'an unknown base'}"
    if told.get("base_revision"):
        words += f" at {told['base_revision']}"
    words += f" by {told.get('method')}"
    if isinstance(names := told.get("tasks"), (list, tuple)):
        count = told.get("images_per_class")
        images = "all training images" if count is None else f"{count} training images a class"
        words += f", with {images} of {', '.join(map(str, names))}"
    if earlier := transport_words(told.get("earlier")):
        words += f"; before that {earlier}"
    return words


def accuracy_cost(told: object) -> str:
    """What a compression cost in accuracy, in words; nothing if that was not measured.

    Example:
        >>> accuracy_cost({"task": "mnist", "split": "test", "difference": -0.002, "low": -0.01, "high": 0.006})
        '; accuracy on mnist (test) -0.2 points [-1.0, 0.6]'
    """
    if not isinstance(told, Mapping):
        return ""
    points = [told.get(key) for key in ("difference", "low", "high")]
    if not all(map(is_finite_number, points)):
        return ""
    mean, low, high = (100 * float(point) for point in points if is_finite_number(point))
    return f"; accuracy on {told.get('task')} ({told.get('split')}) {mean:+.1f} points [{low:.1f}, {high:.1f}]"


def _looked_at(statistics: Mapping[str, Any]) -> str:
    """Whose images a merge saw of one vector, in words."""
    images = f"{statistics.get('num_images', 'some')} {statistics.get('split', '')} images"
    return f"{images} of {statistics.get('images_of', 'an unknown task')}"


_FINGERPRINT, _HASH = "base fingerprint, of the covered tensors", "hash of the dataset's files"
_IS_HASH = re.compile("[0-9a-f]{32}")  # a commit is longer
_NAMES = {
    "base",
    "base revision",
    "made from",
    _FINGERPRINT,
    "task",
    "method",
    "dataset",
    "dataset revision",
    _HASH,
    "optimiser",
}


def fact(value: object, name: str) -> str:
    """A cell of the table of facts: names and settings as code, numbers and words as they are."""
    return text.code(value) if name in _NAMES or name.startswith("setting ") else text.markdown(value)


def source(info: VectorInfo) -> str:
    """A vector's label, with a link to where on the Hub it was pulled from."""
    repo, commit = info.repo_id or "", info.repo_commit or ""
    label = text.markdown(info.label)
    return (
        f"[{label}](https://huggingface.co/{repo}/tree/{commit})"
        if is_repo_id(repo) and COMMIT.fullmatch(commit)
        else label
    )


def weights(info: VectorInfo) -> list[float]:
    """The weight of each parent in a sum, if it had any."""
    given = info.settings.get("weights")
    if not isinstance(given, list) or len(given) != len(info.parents):
        return []
    return given if all(isinstance(weight, int | float) for weight in given) else []


def codes(values: Sequence[str], *, most: int = 30) -> str:
    """The first of some names as code, and how many more there are."""
    more = f" and {len(values) - most} more, in the configuration" if len(values) > most else ""
    return ", ".join(map(text.code, values[:most])) + more


def render(template: str, **values: Any) -> str:
    """A card from one of the templates."""
    card = _environment().get_template(template).render(**values)
    return re.sub(r"\n{3,}", "\n\n", card).rstrip() + "\n"


@functools.cache
def _environment() -> Environment:
    """The templates, compiled once."""
    environment = Environment(
        loader=PackageLoader("hf_taskvec.cards"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {
        "md": text.markdown,
        "code": text.code,
        "py": text.literal,
        "fence": text.fence,
        "bars": text.bars,
        "percent": percent,
        "fact": fact,
        "source": source,
        "weights": weights,
        "codes": codes,
        "capitalised": text.capitalised,
    }
    environment.globals |= {"methods": METHODS, "embedded": EMBEDDED}
    environment.globals |= {"backbones": BACKBONES, "bases": {*KINDS, *BACKBONES}}
    return environment
