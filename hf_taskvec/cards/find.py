"""Task vectors on the Hub, found and listed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFolder

from hf_taskvec.cards.metadata import task_tag
from hf_taskvec.hub.client import LIBRARY, hub_errors

_EPOCH = re.compile(r"epoch-(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class PublishedVector:
    """A task vector found on the Hub.

    Attributes:
        repo_id: Its repository, for `TaskVector.from_pretrained`.
        base: Hub id of its base.
        tasks: Its tasks.
        commit: The head commit.
    """

    repo_id: str
    base: str | None
    tasks: tuple[str, ...]
    commit: str | None


def list_vectors(
    *,
    base_model: str | None = None,
    task: str | None = None,
    author: str | None = None,
    token: str | bool | None = None,
) -> list[PublishedVector]:
    """The task vectors on the Hub, by the tags of their cards.

    Args:
        base_model: Only those of this base.
        task: Only those of this task, alone or merged with others.
        author: Only those of this user or organisation.
        token: An access token, to see private ones.

    Raises:
        NotCachedError, HubError: If the Hub is out of reach or fails.
    """
    tags = [LIBRARY, "task-vector"]
    tags += [f"base_model:{base_model}"] if base_model else []
    tags += [task_tag(task)] if task else []
    with hub_errors("the Hub's list", "reading"):
        found = list(HfApi(token=token).list_models(filter=tags, author=author, full=True))
    return [
        PublishedVector(info.id, _tag(info.tags, "base_model:"), tuple(_tags(info.tags, "task:")), info.sha)
        for info in found
    ]


def _tags(tags: Sequence[str] | None, prefix: str) -> list[str]:
    return [tag.removeprefix(prefix) for tag in tags or [] if tag.startswith(prefix)]


def _tag(tags: Sequence[str] | None, prefix: str) -> str | None:
    return next(iter(_tags(tags, prefix)), None)


def epoch_folder(epochs: float) -> str:
    """The folder of a series' vector after `epochs` epochs."""
    return f"epoch-{epochs:g}"


def list_epochs(repo_id: str, *, revision: str | None = None, token: str | bool | None = None) -> list[float]:
    """The epochs of a published series, in order; empty if it holds a single vector."""
    where = repo_id if revision is None else f"{repo_id} at revision {revision!r}"
    with hub_errors(where, "reading"):
        items = list(HfApi(token=token).list_repo_tree(repo_id, revision=revision))
    matches = [_EPOCH.fullmatch(item.path) for item in items if isinstance(item, RepoFolder)]
    return sorted(float(match[1]) for match in matches if match)
