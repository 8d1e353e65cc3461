"""A folder published on the Hub in one commit that nothing may come in between."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelInfo, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_taskvec.errors import CheckpointError, HubError, TaskVecError
from hf_taskvec.hub.access import PushOptions, is_repo_id
from hf_taskvec.hub.client import LIBRARY, commit_of, hub_errors, plain, with_retries
from hf_taskvec.weights.folders import check_inside

logger = logging.getLogger(__name__)
CARD_NAME = "README.md"
IGNORED = (".git", ".cache")  # what `huggingface_hub` leaves out, too
_TOKEN = re.compile(rb"(?:hf|api_org)_[A-Za-z0-9]{16,}")  # also within a word: a prefix must not hide it
_CHUNK = 8 << 20
_OVERLAP = 512  # bytes, more than a token has


def full_repo_id(repo_id: str, *, token: str | bool | None = None) -> str:
    """A repository's name with its namespace: that of the token's user if there is none, as everywhere on the Hub.

    Raises:
        CheckpointError: If it is no name of a repository.
        HubError: If the Hub does not tell the user.
    """
    if not isinstance(repo_id, str):
        raise TypeError(f"repo_id must be text (user/name), got {type(repo_id).__name__}")
    with hub_errors(repo_id, "pushing to"):
        validate_repo_id(repo_id)
        if "/" not in repo_id:
            if token is False:
                raise HubError(
                    f"{repo_id!r} has no namespace, and without a token (hf auth login) there is none to take"
                )
            user = with_retries(lambda: HfApi(token=token).whoami()["name"])
            repo_id = f"{user}/{repo_id}"
    if not is_repo_id(repo_id):
        raise CheckpointError(f"{repo_id!r} is no Hub id (user/name)")
    return repo_id


def push_folder(
    folder: str | os.PathLike[str],
    repo_id: str,
    options: PushOptions,
    *,
    replaces: Sequence[str] = (),
    digests: Mapping[str, str] | None = None,
) -> str:
    """Publishes a folder as it is, in one commit.

    Args:
        folder: The folder.
        repo_id: The repository; it is created if need be.
        options: How it is published; the commit message is among them.
        replaces: Globs of files that go from the repository unless the folder has them.
        digests: SHA-256 of files where it is known, by name.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        CheckpointError: If the folder holds a link that leaves it, or something that is no file.
        HubError: If a file holds an access token, the Hub refuses or fails, or another push came in between; the
            repository is as it was.
    """
    files = files_of(Path(folder))
    _check_no_token({**files, "the commit message": (options.commit_message or "").encode()}, options.token)
    repo_id = full_repo_id(repo_id, token=options.token)
    push = _Push(
        repo_id, options, files, tuple(replaces), digests or {}, HfApi(token=options.token, library_name=LIBRARY)
    )
    try:
        with hub_errors(repo_id, "pushing to"):
            return with_retries(push.run)
    except TaskVecError as error:
        if not push.created:
            raise
        raise type(error)(f"{error}. The new repository {repo_id} is still empty: push again, or delete it") from error


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a folder by their path in it; hidden ones of version control and caches are left out.

    Raises:
        CheckpointError: If one is a link that leaves the folder, a folder behind a link, or no regular file.
    """
    result = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in IGNORED:
            continue
        if path.is_symlink():
            check_inside(path, folder)
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file():
            raise CheckpointError(f"{name!r} in {folder} is no regular file, so nothing was pushed; remove it")
        result[name] = path
    return result


@dataclass
class _Push:
    """One push; `run` may be repeated.

    Attributes:
        created: Whether it made the repository, and nothing is in it yet.
    """

    repo_id: str
    options: PushOptions
    files: Mapping[str, Path]
    replaces: Sequence[str]
    digests: Mapping[str, str]
    api: HfApi
    created: bool = False

    def run(self) -> str:
        """Makes the repository and the branch where they lack, and the commit."""
        options = self.options
        info = self.repository()
        if options.revision is not None and not options.create_pr and not options.revision.startswith("refs/"):
            self.api.create_branch(self.repo_id, branch=options.revision, exist_ok=True)
        if options.revision is not None:
            info = self.api.model_info(self.repo_id, revision=options.revision)
        message = " ".join(plain(options.commit_message or "Add files").split())
        commit = self.api.create_commit(
            self.repo_id,
            self.operations(info),
            commit_message=message,
            revision=options.revision,
            create_pr=options.create_pr,
            parent_commit=commit_of(info, self.repo_id),
        )
        self.created = False
        return commit.pr_url or commit.commit_url

    def repository(self) -> ModelInfo:
        """The repository as it is; made if there is none, once nothing speaks against the push."""
        private = self.options.private
        try:
            info = self.api.model_info(self.repo_id)
        except RepositoryNotFoundError:
            self.check_card()
            self.api.create_repo(self.repo_id, private=private, exist_ok=True)
            self.created = True
            return self.api.model_info(self.repo_id)
        if private and info.private is False:
            raise HubError(
                f"{self.repo_id} exists and is public; make it private on the Hub first, or leave out private=True"
            )
        if private is False and info.private:
            logger.warning("%s exists and stays private; make it public on the Hub", self.repo_id)
        return info

    def check_card(self) -> None:
        """Raises a `HubError` if the Hub would refuse the card, whose licence or tags may be none that it knows."""
        if CARD_NAME not in self.files:
            return
        try:
            ModelCard(self.files[CARD_NAME].read_text(encoding="utf-8")).validate()
        except HfHubHTTPError as error:  # a Hub without this check may take it
            logger.debug("the card is not checked: %s", error)
        except ValueError as error:
            raise HubError(f"the Hub refuses the card, so nothing was pushed: {plain(error)}") from error

    def operations(self, info: ModelInfo) -> list[CommitOperationAdd | CommitOperationDelete]:
        """Every file of the folder, and the old ones that it replaces."""
        names = [sibling.rfilename for sibling in info.siblings or []]
        result: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationDelete(name)
            for name in names
            if name not in self.files and any(_matches(name, pattern) for pattern in self.replaces)
        ]
        for name, path in self.files.items():
            result.append(addition := CommitOperationAdd(name, path))
            if name in self.digests:
                addition.upload_info.sha256 = bytes.fromhex(self.digests[name])
        return result


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and name.count("/") == pattern.count("/")


def _check_no_token(contents: Mapping[str, Path | bytes], token: str | bool | None) -> None:
    """Raises if anything to be published holds an access token: any text, of whatever encoding, and file headers."""
    used = (token if isinstance(token, str) else get_token()) or ""
    for name, content in contents.items():
        for chunk in _chunks(content):
            if _TOKEN.search(chunk) or (len(used) >= 8 and used.encode() in chunk):
                raise HubError(f"{name} holds an access token, so nothing was pushed; remove it from the provenance")


def _chunks(content: Path | bytes) -> Iterator[bytes]:
    """The content piece by piece without NUL bytes, as in UTF-16; of weights the header alone."""
    if isinstance(content, bytes):
        yield content
        return
    with open(content, "rb") as file:
        if content.suffix == ".safetensors":
            yield file.read(min(int.from_bytes(file.read(8), "little"), 16 << 20))
            return
        tail = b""
        while piece := file.read(_CHUNK):
            chunk = tail + piece.replace(b"\0", b"")
            yield chunk
            tail = chunk[-_OVERLAP:]
