"""Task vectors, series of them and merged models published in one commit each; what is published is collected."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Unpack

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id

from hf_taskvec.cards import CARD_NAME, REPORT_NAME, render_model_card, render_vector_card
from hf_taskvec.cards.find import epoch_folder
from hf_taskvec.errors import CheckpointError
from hf_taskvec.evaluation.report import Report
from hf_taskvec.hub.access import HubAccess, PushKeywords, PushOptions
from hf_taskvec.hub.client import hub_errors, with_retries
from hf_taskvec.hub.push import push_folder
from hf_taskvec.models.base import EMBEDDED, TINY_CLIP
from hf_taskvec.vectors.checkpoints import write_checkpoint
from hf_taskvec.vectors.files import read_info, save_vector
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import write_text


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
    """
    chosen = _options(options, f"Add task vector {vector.info.label}")
    with _repository_folder(repo_id) as folder:
        digests = write_repository(vector, folder, repo_id=repo_id, report=report)
        return push_folder(folder, repo_id, chosen, digests=digests, replaces=["task_vector*"])


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
        ValueError: If a vector does not tell its epochs, or two tell the same.
        HubError: As in `push_to_hub`.
    """
    if not vectors or any(vector.info.epochs is None for vector in vectors):
        raise ValueError("a series needs vectors whose info.epochs is known")
    ordered = sorted(vectors, key=lambda vector: vector.info.epochs or 0.0)
    epochs = [vector.info.epochs or 0.0 for vector in ordered]
    if len({epoch_folder(epoch) for epoch in epochs}) < len(epochs):
        raise ValueError(f"two vectors of the series have the same epochs: {epochs}")
    chosen = _options(options, f"Add {len(ordered)} task vectors of {ordered[-1].info.label}")
    with _repository_folder(repo_id) as folder:
        write_repository(ordered[-1], folder, repo_id=repo_id, report=report, epochs=epochs)
        for vector in ordered:
            save_vector(vector, folder / epoch_folder(vector.info.epochs or 0.0))
        return push_folder(folder, repo_id, chosen, replaces=["task_vector*", "epoch-*/task_vector*"])


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
    """Publishes base plus vector as a checkpoint that `CLIPModel.from_pretrained` loads; see `write_checkpoint`.

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
    """
    chosen = _options(options, f"Add {vector.info.label} at scaling {scaling}")
    at = vector.info.base_revision if base is None else None
    base = base or (TINY_CLIP if vector.info.base == EMBEDDED else vector.info.base)
    if base is None:
        raise CheckpointError("the vector does not tell its base; pass base=")
    with _repository_folder(repo_id) as folder:
        write_checkpoint(
            vector, base, folder, scaling=scaling, revision=at, allow_other_base=allow_other_base,
            access=HubAccess(token=chosen.token),
        )  # fmt: skip
        write_text(folder / CARD_NAME, render_model_card(vector.info, report, repo_id=repo_id, scaling=scaling))
        if report is not None:
            report.save(folder / REPORT_NAME)
        return push_folder(folder, repo_id, chosen, replaces=["model*.safetensors*"])


def write_repository(
    vector: TaskVector,
    folder: str | os.PathLike[str],
    *,
    repo_id: str,
    report: Report | None = None,
    epochs: Sequence[float] = (),
) -> dict[str, str]:
    """Writes the files of a vector's repository: weights, configuration, card, and the report if there is one.

    Returns:
        The SHA-256 of each weight file, taken on another core while it was written; the Hub asks for it.
    """
    digests: dict[str, str] = {}
    save_vector(vector, folder, digests=digests, layer_norms=True)
    card = render_vector_card(read_info(Path(folder)), report, repo_id=repo_id, epochs=epochs)
    write_text(Path(folder) / CARD_NAME, card)
    if report is not None:
        report.save(Path(folder) / REPORT_NAME)
    return digests


def _options(keywords: PushKeywords, message: str) -> PushOptions:
    """The options, with a commit message."""
    options = PushOptions.of(keywords)
    return dataclasses.replace(options, commit_message=options.commit_message or message)


@contextmanager
def _repository_folder(repo_id: str) -> Iterator[Path]:
    """A folder to prepare a repository in; a bad id is an error before the work."""
    with hub_errors(repo_id, "pushing to"):
        validate_repo_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="hf-taskvec-") as folder:
        yield Path(folder) / "repository"


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

    Returns:
        The collection's URL.

    Raises:
        HubError: If the Hub refuses or fails.
    """
    api = HfApi(token=token)

    def create() -> str:
        collection = api.create_collection(
            title, namespace=namespace, description=description, private=private, exists_ok=True
        )
        for repo_id in repo_ids:
            collection = api.add_collection_item(collection.slug, repo_id, "model", exists_ok=True)
        return collection.url

    with hub_errors(f"the collection {title!r}", "writing"):
        return with_retries(create)
