"""Task vectors on the Hub, found and listed."""

from __future__ import annotations

import itertools
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo, RepoFolder

from hf_taskvec.cards.metadata import task_tag
from hf_taskvec.errors import CheckpointError, check_known
from hf_taskvec.hub.access import check_revision, is_repo_id
from hf_taskvec.hub.client import COMMIT, LIBRARY, hub_errors

MAX_LISTED = 10_000
Kind = Literal["vector", "multi-task"]
_KINDS: dict[str, Kind] = {"task-vector": "vector", "multi-task-vector": "multi-task"}  # by the tags of their cards
_EPOCH = re.compile(r"epoch-(\d+(?:\.\d+)?(?:e[+-]?\d+)?)", re.ASCII)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedVector:
    """A task vector found on the Hub.

    Attributes:
        repo_id: Its repository, for `TaskVector.from_pretrained` or, of several tasks, `MultiTaskVector`'s.
        base: Hub id of its base.
        tasks: Its tasks.
        commit: The head commit.
        kind: Whether it is one vector, or those of several tasks as `pack` makes them.
    """

    repo_id: str
    base: str | None
    tasks: tuple[str, ...]
    commit: str | None
    kind: Kind = "vector"


def list_vectors(
    *,
    base_model: str | None = None,
    task: str | None = None,
    author: str | None = None,
    kind: Kind | Literal["any"] = "vector",
    token: str | bool | None = None,
) -> list[PublishedVector]:
    """The task vectors on the Hub, by the tags of their cards.

    Args:
        base_model: Only those of this base.
        task: Only those of this task, alone or merged with others.
        author: Only those of this user or organisation.
        kind: "vector", "multi-task" (vectors of several tasks as one artefact), or "any" of them.
        token: An access token, to see private ones.

    Returns:
        One entry per repository; one whose name is none is left out, and told.

    Raises:
        UnknownNameError: If there is no such kind.
        NotCachedError, HubError: If the Hub is out of reach or fails.

    Example:
        >>> for found in list_vectors(task="mnist"):  # doctest: +SKIP
        ...     print(found.repo_id, found.base)
        user/mnist-vector openai/clip-vit-base-patch32
    """
    check_known("kind", kind, (*_KINDS.values(), "any"))
    tags = [LIBRARY, *(tag for tag, name in _KINDS.items() if name == kind)]
    tags += [f"base_model:{base_model}"] if base_model else []
    tags += [task_tag(task)] if task else []
    with hub_errors("task vectors", "listing"):
        models = HfApi(token=token).list_models(filter=tags, author=author, full=True)
        infos = list(itertools.islice(models, MAX_LISTED + 1))
    if len(infos) > MAX_LISTED:
        logger.warning("The Hub has more than %d such vectors; only the first are listed", MAX_LISTED)
    infos = [info for info in infos[:MAX_LISTED] if _is_asked_for(info, base_model, task, author)]
    entries = [entry for entry in map(_published, infos) if entry is None or kind in ("any", entry.kind)]
    if odd := entries.count(None):
        logger.warning("%d entries of the Hub's list have no sane name and are left out", odd)
    return [entry for entry in entries if entry is not None]


def _is_asked_for(info: ModelInfo, base_model: str | None, task: str | None, author: str | None) -> bool:
    """Whether an entry fits; a Hub that does not know a filter lists everything."""
    tags = {tag for tag in info.tags or [] if isinstance(tag, str)}
    bases = {tag.split(":")[-1] for tag in tags if tag.startswith("base_model:")}
    return (
        LIBRARY in tags
        and not tags.isdisjoint(_KINDS)
        and (base_model is None or base_model in bases)
        and (task is None or task_tag(task) in tags)
        and (author is None or str(info.id).startswith(f"{author}/"))
    )


def _published(info: ModelInfo) -> PublishedVector | None:
    """One entry of the Hub's list; `None` if it names no repository."""
    if not isinstance(info.id, str) or not is_repo_id(info.id):
        return None
    tags = [tag for tag in info.tags or [] if isinstance(tag, str) and tag.isprintable()]
    bases = [base for base in _tags(tags, "base_model:") if is_repo_id(base)]  # others name the relation, too
    commit = info.sha if isinstance(info.sha, str) and COMMIT.fullmatch(info.sha) else None
    kind = next(name for tag, name in _KINDS.items() if tag in tags)
    return PublishedVector(info.id, bases[0] if bases else None, tuple(_tags(tags, "task:")), commit, kind)


def _tags(tags: Sequence[str], prefix: str) -> list[str]:
    return [tag.removeprefix(prefix) for tag in tags if tag.startswith(prefix)]


def epoch_folder(epochs: float) -> str:
    """The folder of a series' vector after `epochs` epochs.

    Example:
        >>> epoch_folder(2.0)
        'epoch-2'
    """
    return f"epoch-{epochs:g}"


def epochs_of(folders: Iterable[object]) -> list[float]:
    """The epochs that some names of folders stand for, in order; other names tell none.

    Example:
        >>> epochs_of(["epoch-10", "notes", "epoch-0.5", "epoch-last"])
        [0.5, 10.0]
    """
    matches = [_EPOCH.fullmatch(name) for name in folders if isinstance(name, str)]
    return sorted(epoch for match in matches if match and math.isfinite(epoch := float(match[1])))


def list_epochs(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> list[float]:
    """The epochs of a published series, in order; empty if it holds a single vector.

    Args:
        repo_id: The repository.
        revision: Branch, tag or commit.
        token: An access token, for a private repository.

    Raises:
        CheckpointError: If there is no such repository or revision, or access is refused.
        NotCachedError, HubError: If the Hub is out of reach or fails.

    Example:
        >>> list_epochs("user/mnist-series")  # doctest: +SKIP
        [1.0, 2.0, 3.0]
    """
    if not is_repo_id(repo_id):
        raise CheckpointError(f"{repo_id!r} is no Hub id (user/name)")
    check_revision(revision)
    where = repo_id if revision is None else f"{repo_id} at revision {revision!r}"
    with hub_errors(where, "listing the epochs of"):
        tree = HfApi(token=token).list_repo_tree(repo_id, revision=revision)
        return epochs_of([item.path for item in itertools.islice(tree, MAX_LISTED) if isinstance(item, RepoFolder)])
