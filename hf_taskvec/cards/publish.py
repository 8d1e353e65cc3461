"""The Hub: task vectors, series of them and merged models published in one commit each, found, listed and collected."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.utils import validate_repo_id

from hf_taskvec.cards import CARD_NAME, REPORT_NAME, render_model_card, render_vector_card
from hf_taskvec.cards.find import epoch_folder
from hf_taskvec.cards.metadata import LIBRARY
from hf_taskvec.cards.text import clean
from hf_taskvec.errors import CheckpointError, HubError
from hf_taskvec.evaluation.report import Report
from hf_taskvec.hub.client import hub_errors, with_retries
from hf_taskvec.models.base import EMBEDDED, TINY_CLIP
from hf_taskvec.vectors.checkpoints import write_checkpoint
from hf_taskvec.vectors.files import read_info, save_vector
from hf_taskvec.vectors.vector import TaskVector
from hf_taskvec.weights.folders import write_text

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


# -- publishing -------------------------------------------------------------------------------------------------------


def push_to_hub(
    vector: TaskVector,
    repo_id: str,
    *,
    report: Report | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Publishes a vector: weights, configuration, card and report in one commit.

    Args:
        vector: The vector.
        repo_id: The repository; it is created if need be.
        report: Its results, for the card.
        private: Whether a new repository is private.
        revision: The branch to commit on; it is created if need be.
        create_pr: Whether to open a pull request instead of committing on the branch.
        token: An access token with the right to write.
        commit_message: The commit's title.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        HubError: If the Hub refuses or fails, or another push came in between; the repository is as it was.
        NonFiniteError: If the vector holds NaN or Inf.
    """
    with _repository_folder(repo_id) as folder:
        digests = write_repository(vector, folder, repo_id=repo_id, report=report)
        return push_folder(
            folder, repo_id, private=private, revision=revision, create_pr=create_pr, token=token, digests=digests,
            commit_message=commit_message or f"Add task vector {vector.info.label}", replaces=["task_vector*"],
        )  # fmt: skip


def push_series_to_hub(
    vectors: Sequence[TaskVector],
    repo_id: str,
    *,
    report: Report | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Publishes the vectors of one run, one per epoch, as one repository in one commit.

    The last vector stands at the root, so that the repository is used like any other; every vector also stands in its
    folder `epoch-<epochs>`, for `TaskVector.from_pretrained(repo_id, subfolder="epoch-2")`. Folders keep the series in
    one commit, where one revision per epoch could be half there; `list_epochs` tells them. The Hub keeps equal files
    once.

    Args:
        vectors: Vectors whose provenance tells different `epochs`.
        report: Results of the last vector.
        private, revision, create_pr, token, commit_message: As in `push_to_hub`.

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
    with _repository_folder(repo_id) as folder:
        write_repository(ordered[-1], folder, repo_id=repo_id, report=report, epochs=epochs)
        for vector in ordered:
            save_vector(vector, folder / epoch_folder(vector.info.epochs or 0.0))
        return push_folder(
            folder, repo_id, private=private, revision=revision, create_pr=create_pr, token=token,
            commit_message=commit_message or f"Add {len(ordered)} task vectors of {ordered[-1].info.label}",
            replaces=["task_vector*", "epoch-*/task_vector*"],
        )  # fmt: skip


def push_model_to_hub(
    vector: TaskVector,
    repo_id: str,
    *,
    scaling: float,
    base: str | os.PathLike[str] | None = None,
    report: Report | None = None,
    allow_other_base: bool = False,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str | None = None,
) -> str:
    """Publishes base plus vector as a checkpoint that `CLIPModel.from_pretrained` loads; see `write_checkpoint`.

    Args:
        vector: The vector to add.
        repo_id: The repository; it is created if need be.
        scaling: The factor of the vector.
        base: Hub id or folder of the base; by default the one the vector names.
        report: The model's results, for the card.
        allow_other_base: Whether to add the vector to weights other than those it was made from; recorded.
        private, revision, create_pr, token, commit_message: As in `push_to_hub`.

    Raises:
        CheckpointError: If the vector names no base and none is given.
        BaseMismatchError, HubError: As in `apply_to` and `push_to_hub`.
    """
    at = vector.info.base_revision if base is None else None
    base = base or (TINY_CLIP if vector.info.base == EMBEDDED else vector.info.base)
    if base is None:
        raise CheckpointError("the vector does not tell its base; pass base=")
    with _repository_folder(repo_id) as folder:
        write_checkpoint(vector, base, folder, scaling=scaling, revision=at, allow_other_base=allow_other_base)
        write_text(folder / CARD_NAME, render_model_card(vector.info, report, repo_id=repo_id, scaling=scaling))
        if report is not None:
            report.save(folder / REPORT_NAME)
        return push_folder(
            folder, repo_id, private=private, revision=revision, create_pr=create_pr, token=token,
            commit_message=commit_message or f"Add {vector.info.label} at scaling {scaling}",
            replaces=["model*.safetensors*"],
        )  # fmt: skip


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


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
    commit_message: str,
    replaces: Sequence[str] = (),
    digests: Mapping[str, str] | None = None,
) -> str:
    """Publishes a folder as it is, in one commit that nothing may come in between.

    Args:
        folder: The folder.
        replaces: Globs of files that go from the repository unless the folder has them.
        digests: SHA-256 of files where it is known, by name.
        private, revision, create_pr, token, commit_message: As in `push_to_hub`.

    Raises:
        HubError: As in `push_to_hub`.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    _check_no_token([path for path in files.values() if path.suffix in (".json", ".md")], token)
    api = HfApi(token=token, library_name=LIBRARY)

    def push() -> str:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.model_info(repo_id, revision=revision)
        if private and info.private is False:
            raise HubError(
                f"{repo_id} exists and is public; make it private on the Hub first, or leave out private=True"
            )
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(sibling.rfilename)
            for sibling in info.siblings or []
            if sibling.rfilename not in files and any(_matches(sibling.rfilename, pattern) for pattern in replaces)
        ]
        for name, path in files.items():
            operations.append(addition := CommitOperationAdd(name, path))
            if digests and name in digests:
                addition.upload_info.sha256 = bytes.fromhex(digests[name])
        commit = api.create_commit(
            repo_id, operations, commit_message=clean(commit_message), revision=revision, create_pr=create_pr,
            parent_commit=info.sha,
        )  # fmt: skip
        return commit.pr_url or commit.commit_url

    with hub_errors(repo_id, "pushing to"):
        return with_retries(push)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def _check_no_token(paths: Sequence[Path], token: str | bool | None) -> None:
    """Raises if a text file to be published holds an access token."""
    used = token if isinstance(token, str) else get_token()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if _TOKEN.search(text) or (used and len(used) >= 8 and used in text):
            raise HubError(f"{path.name} holds an access token, so nothing was pushed; remove it from the provenance")


@contextmanager
def _repository_folder(repo_id: str) -> Iterator[Path]:
    """A folder to prepare a repository in; a bad id is an error before the work."""
    with hub_errors(repo_id, "pushing to"):
        validate_repo_id(repo_id)
    with tempfile.TemporaryDirectory(prefix="hf-taskvec-") as folder:
        yield Path(folder) / "repository"


# -- finding ----------------------------------------------------------------------------------------------------------


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
