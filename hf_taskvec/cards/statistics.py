"""Statistics published beside their vector, so that others merge by them without the images."""

from __future__ import annotations

import dataclasses
from typing import Unpack

from huggingface_hub import HfApi, ModelCardData

from hf_taskvec.cards.folder import CARD_NAME
from hf_taskvec.cards.provenance import published_base, warn_of_base
from hf_taskvec.cards.publish import repository
from hf_taskvec.cards.render import render
from hf_taskvec.hub.access import PushKeywords, PushOptions, is_repo_id
from hf_taskvec.hub.client import LIBRARY, hub_errors, with_retries
from hf_taskvec.hub.push import push_folder
from hf_taskvec.merging.registry import list_methods
from hf_taskvec.statistics.value import STEM, Statistics, StatisticsInfo
from hf_taskvec.weights.folders import write_text


def push_statistics(statistics: Statistics, repo_id: str, **options: Unpack[PushKeywords]) -> str:
    """Publishes statistics in one commit: into the repository of their vector, or one of their own.

    `merge(vectors, method, statistics=[repo_id, …])` and `Statistics.from_pretrained(repo_id)` read them bit for bit. A
    card that is there stays as it is.

    Args:
        statistics: The statistics, as `collect_statistics` returns them.
        repo_id: The repository; it is created if need be.
        **options: `private`, `revision`, `create_pr`, `token`, `commit_message` and others; see `PushOptions`.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        TypeError: If they are no statistics.
        HubError: If the Hub refuses or fails, or another push came in between; the repository is as it was.
        NonFiniteError: If a tensor holds NaN or Inf.

    Example:
        >>> push_statistics(statistics, "mnist-vector", private=True)  # doctest: +SKIP
    """
    if not isinstance(statistics, Statistics):
        raise TypeError(f"Statistics are published, got {type(statistics).__name__}; see collect_statistics")
    chosen = PushOptions.of(options)
    message = chosen.commit_message or f"Add statistics of {statistics.info.label}"
    chosen = dataclasses.replace(chosen, commit_message=message)
    base, revision = published_base(statistics.info, chosen)
    info = dataclasses.replace(statistics.info, base=base, base_revision=revision, repo_id=None, repo_commit=None)
    with repository(repo_id, chosen) as (full_id, folder):
        Statistics(statistics.tensors, info).save_pretrained(folder)
        if not _has_card(full_id, chosen):
            write_text(folder / CARD_NAME, render_statistics_card(info, repo_id=full_id, licence=chosen.licence))
        url = push_folder(folder, full_id, chosen, replaces=[f"{STEM}*.safetensors*"])
    warn_of_base(info, chosen.token, what="statistics tell", its="their")
    return url


def render_statistics_card(info: StatisticsInfo, *, repo_id: str, licence: str | None = None) -> str:
    """The card of statistics that have a repository of their own.

    Example:
        >>> "64 images" in render_statistics_card(StatisticsInfo(num_images=64), repo_id="user/seen")
        True
    """
    metadata = ModelCardData(
        library_name=LIBRARY,
        license=licence,
        base_model=info.base if info.base and is_repo_id(info.base) else None,
        tags=["task-vector", "model-merging", "statistics"],
        model_name=repo_id.split("/")[-1],
    ).to_yaml()
    usable = [method.name for method in list_methods() if method.statistics and set(method.statistics) <= {*info.kinds}]
    facts = {name: str(value) for name, value in info.summary().items()}
    method = (usable or ["regmean"])[-1]
    return render("statistics.md.j2", metadata=metadata, info=info, facts=facts, repo_id=repo_id, method=method)


def _has_card(repo_id: str, options: PushOptions) -> bool:
    """Whether a repository has a card on the branch that is written to."""
    revision = None if options.create_pr else options.revision
    with hub_errors(repo_id, "pushing to"):
        api = HfApi(token=options.token, library_name=LIBRARY)
        return with_retries(lambda: api.file_exists(repo_id, CARD_NAME, revision=revision))
