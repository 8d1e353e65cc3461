"""Task vectors, series of them and merged models published in one commit each; what is published is collected."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Unpack

from huggingface_hub import HfApi

from hf_taskvec.cards.find import epoch_folder
from hf_taskvec.cards.folder import CARD_NAME, PICTURE_NAME, REPORT_NAME
from hf_taskvec.cards.provenance import published_info, warn_of_base
from hf_taskvec.cards.render import render_model_card, render_vector_card
from hf_taskvec.evaluation.report import Report
from hf_taskvec.hub.access import PushKeywords, PushOptions
from hf_taskvec.hub.client import hub_errors, with_retries
from hf_taskvec.hub.push import full_repo_id, push_folder
from hf_taskvec.text import listed
from hf_taskvec.vectors.compatibility import check_not_zero
from hf_taskvec.vectors.files import write_vector
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import write_text
from hf_taskvec.weights.temporary import clear_stale, new_temporary

# What an earlier push of this library left and this one may not have: a series, a report, a picture.
OLD = ("task_vector*", "epoch-*/task_vector*", REPORT_NAME, PICTURE_NAME)
logger = logging.getLogger(__name__)


def push_to_hub(
    vector: TaskVector, repo_id: str, *, report: Report | None = None, **options: Unpack[PushKeywords]
) -> str:
    """Publishes a vector: weights, configuration, card and report in one commit.

    Args:
        vector: The vector.
        repo_id: The repository; it is created if need be.
        report: Its results, for the card.
        **options: `private`, `revision`, `create_pr`, `token`, `commit_message` and others; see `PushOptions`.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        HubError: If the Hub refuses or fails, or another push came in between; the repository is as it was.
        NonFiniteError: If the vector holds NaN or Inf.
        IncompatibleVectorsError: If the vector changes nothing and `allow_zero` is not set.

    Example:
        >>> push_to_hub(vector, "mnist-vector", report=report, private=True)  # doctest: +SKIP
    """
    _check_kinds([vector], report)
    chosen = _options(options, f"Add task vector {vector.info.label}")
    (published,) = _published([vector], chosen)
    with repository(repo_id, chosen) as (full_id, folder):
        digests = write_repository(published, folder, repo_id=full_id, report=report)
        url = push_folder(folder, full_id, chosen, digests=digests, replaces=OLD)
    warn_of_base(published.info, chosen.token)
    return url


def push_series_to_hub(
    vectors: Sequence[TaskVector], repo_id: str, *, report: Report | None = None, **options: Unpack[PushKeywords]
) -> str:
    """Publishes the vectors of one run, one per epoch, as one repository in one commit.

    The last vector stands at the root, so that the repository is used like any other; every vector also stands in its
    folder `epoch-<epochs>`, for `TaskVector.from_pretrained(repo_id, subfolder="epoch-2")`. Folders keep the series in
    one commit, where one revision per epoch could be half there; `list_epochs` tells them. The Hub keeps equal files
    once.

    Args:
        vectors: Vectors whose provenance tells different `epochs`.
        repo_id: The repository; it is created if need be.
        report: Results of the last vector.
        **options: As in `push_to_hub`.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        ValueError: If a vector does not tell its epochs, two tell the same, or they are of several tasks or bases.
        HubError: As in `push_to_hub`.

    Example:
        >>> push_series_to_hub(trainer.task_vectors(), "mnist-series")  # doctest: +SKIP
    """
    _check_kinds(vectors, report)
    if not vectors or any(vector.info.epochs is None for vector in vectors):
        raise ValueError("a series needs vectors whose info.epochs is known")
    ordered = sorted(vectors, key=lambda vector: vector.info.epochs or 0.0)
    epochs = [vector.info.epochs or 0.0 for vector in ordered]
    if len({epoch_folder(epoch) for epoch in epochs}) < len(epochs):
        raise ValueError(f"two vectors of the series have the same epochs: {listed(epochs)}")
    for field in ("task", "base", "dataset_revision"):
        if len(values := {str(getattr(vector.info, field)) for vector in ordered}) > 1:
            raise ValueError(
                f"a series is of one run, but its vectors differ in {field}: {listed(sorted(values), room=150)}; "
                "publish each by push_to_hub"
            )
    chosen = _options(options, f"Add {len(ordered)} task vectors of {ordered[-1].info.label}")
    series = _published(ordered, chosen)
    with repository(repo_id, chosen) as (full_id, folder):
        write_repository(series[-1], folder, repo_id=full_id, report=report, epochs=epochs)
        for vector in series:
            vector.save_pretrained(folder / epoch_folder(vector.info.epochs or 0.0))
        url = push_folder(folder, full_id, chosen, replaces=OLD)
    warn_of_base(series[-1].info, chosen.token)
    return url


def push_model_to_hub(
    vector: TaskVector,
    repo_id: str,
    *,
    scaling: float,
    base: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    allow_other_base: bool = False,
    **options: Unpack[PushKeywords],
) -> str:
    """Publishes base plus vector as a checkpoint that `from_pretrained` of Transformers loads; see `save_checkpoint`.

    Args:
        vector: The vector to add.
        repo_id: The repository; it is created if need be.
        scaling: The factor of the vector.
        base: Hub id or folder of the base; by default the one the vector names.
        report: The model's results, for the card.
        allow_other_base: Whether to add the vector to weights other than those it was made from; recorded.
        **options: As in `push_to_hub`; the token also reads the base.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        CheckpointError: If the vector names no base and none is given.
        BaseMismatchError, HubError: As in `apply_to` and `push_to_hub`.

    Example:
        >>> push_model_to_hub(vector, "mnist-clip", scaling=0.5)  # doctest: +SKIP
    """
    _check_kinds([vector], report)
    chosen = _options(options, f"Add {vector.info.label} at scaling {scaling}")
    (published,) = _published([vector], chosen, keep_source=True)
    with repository(repo_id, chosen) as (full_id, folder):
        published.save_checkpoint(base, folder, scaling=scaling, allow_other_base=allow_other_base, token=chosen.token)
        write_text(folder / CARD_NAME, render_model_card(published.info, report, repo_id=full_id, scaling=scaling))
        if report is not None:
            report.save(folder / REPORT_NAME)
        url = push_folder(folder, full_id, chosen, replaces=["model*.safetensors*", REPORT_NAME])
    warn_of_base(published.info, chosen.token)
    return url


def write_repository(
    vector: TaskVector,
    folder: str | os.PathLike[str],
    *,
    repo_id: str,
    report: Report | None = None,
    epochs: Sequence[float] = (),
) -> Mapping[str, str]:
    """Writes the files of a vector's repository: weights, configuration, card, and the report if there is one.

    Returns:
        The SHA-256 of each weight file, taken on another core while it was written; the Hub asks for it.
    """
    info = dataclasses.replace(vector.info, num_entries=vector.num_entries)
    written = write_vector(folder, vector.deltas, info, layer_norms=True, hashed=True)
    card = render_vector_card(written.info, report, repo_id=repo_id, epochs=epochs)
    write_text(Path(folder) / CARD_NAME, card)
    if report is not None:
        report.save(Path(folder) / REPORT_NAME)
    return written.digests


def _check_kinds(vectors: Sequence[object], report: object) -> None:
    """Raises a `TypeError` for the natural mistakes: a path for a vector, a number or a list for a report."""
    for vector in vectors:
        if not isinstance(vector, TaskVector):
            raise TypeError(
                f"a TaskVector is published, got {type(vector).__name__}; open a saved one with "
                "TaskVector.from_pretrained"
            )
    if report is not None and not isinstance(report, Report):
        raise TypeError(f"report must be a Report, as evaluate returns, got {type(report).__name__}")


def _options(keywords: PushKeywords, message: str) -> PushOptions:
    """The options, with a commit message."""
    options = PushOptions.of(keywords)
    return dataclasses.replace(options, commit_message=options.commit_message or message)


def _published(vectors: Sequence[TaskVector], options: PushOptions, *, keep_source: bool = False) -> list[TaskVector]:
    """The vectors with the provenance that the options give them, and without the repository they came from.

    Raises:
        IncompatibleVectorsError: If one changes nothing, unless that is allowed.
    """
    check_not_zero(vectors, allow_zero=options.allow_zero)
    infos = [published_info(vector.info, options, keep_source=keep_source) for vector in vectors]
    return [dataclasses.replace(vector, info=info) for vector, info in zip(vectors, infos, strict=True)]


@contextmanager
def repository(repo_id: str, options: PushOptions) -> Iterator[tuple[str, Path]]:
    """The full name of a repository, and a folder to prepare it in; a bad name is an error before the work."""
    full_id = full_repo_id(repo_id, token=options.token)
    place = Path(tempfile.gettempdir()) / "hf-taskvec-push"
    clear_stale(place)  # of pushes that were killed
    with new_temporary(place, folder=True) as folder:
        folder.chmod(0o700)
        yield full_id, folder / "repository"


def create_collection(
    title: str,
    repo_ids: Sequence[str],
    *,
    namespace: str | None = None,
    description: str | None = None,
    private: bool = False,
    token: str | bool | None = None,
) -> str:
    """Collects published vectors, such as those of a suite, under one title; adds to a collection that exists.

    Args:
        title: Title of the collection.
        repo_ids: The vectors' repositories.
        namespace: User or organisation of a new collection; by default the token's user.
        description: A sentence on a new collection.
        private: Whether a new collection is private.
        token: An access token with the right to write.

    Returns:
        The collection's URL.

    Raises:
        CheckpointError: If a repository does not exist; nothing is made then.
        HubError: If the Hub refuses or fails.
    """
    api = HfApi(token=token)
    repo_ids = [full_repo_id(repo_id, token=token) for repo_id in repo_ids]

    def create() -> str:
        collection = api.create_collection(
            title, namespace=namespace, description=description, private=private, exists_ok=True
        )
        for repo_id in repo_ids:
            collection = api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
        return collection.url

    for repo_id in repo_ids:
        with hub_errors(repo_id, "collecting"):
            with_retries(partial(api.model_info, repo_id))
    with hub_errors(f"the collection {title!r}", "writing"):
        return with_retries(create)
