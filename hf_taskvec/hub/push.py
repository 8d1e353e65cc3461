"""A folder published on the Hub in one commit that nothing may come in between."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

from hf_taskvec.errors import HubError
from hf_taskvec.hub.access import PushOptions
from hf_taskvec.hub.client import LIBRARY, commit_of, hub_errors, plain, with_retries

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


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
        HubError: If the Hub refuses or fails, or another push came in between; the repository is as it was.
    """
    files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    _check_no_token([path for path in files.values() if path.suffix in (".json", ".md")], options.token)
    api = HfApi(token=options.token, library_name=LIBRARY)

    def push() -> str:
        api.create_repo(repo_id, private=options.private, exist_ok=True)
        if options.revision is not None and not options.create_pr:
            api.create_branch(repo_id, branch=options.revision, exist_ok=True)
        info = api.model_info(repo_id, revision=options.revision)
        if options.private and info.private is False:
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
        message = " ".join(plain(options.commit_message or f"Add {Path(folder).name}").split())
        commit = api.create_commit(
            repo_id, operations, commit_message=message, revision=options.revision, create_pr=options.create_pr,
            parent_commit=commit_of(info, repo_id),
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
