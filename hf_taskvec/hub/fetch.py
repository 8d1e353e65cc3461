"""Folders by Hub id or path: downloaded or from the cache, and checked."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RevisionNotFoundError,
)

from hf_taskvec.errors import CheckpointError
from hf_taskvec.hub.client import Download, hub_errors, with_retries
from hf_taskvec.weights.folders import check_inside, check_relative

logger = logging.getLogger(__name__)
MAX_SIDE_BYTES = 64 << 20


@dataclass(frozen=True)
class Folder:
    """Files of a repository on this machine.

    Attributes:
        path: Their folder.
        name: The name to quote.
        commit: The Hub commit, if there is one.
        unchecked: Files from the Hub whose content the caller is to check.
    """

    path: Path
    name: str
    commit: str | None
    unchecked: tuple[Download, ...] = ()


def fetch_folder(
    source: str | os.PathLike[str],
    *,
    patterns: Sequence[str],
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    missing: str = "has no such files",
    checked_later: str = "",
) -> Folder:
    """A local folder as it is, or the matching files of a Hub repository, downloaded or from the cache.

    Sizes are checked before the download and hashes after it, once. If the Hub is out of reach, the cache serves.

    Args:
        source: Folder or Hub id.
        patterns: Globs of the files wanted; none of them looks into folders.
        subfolder: Folder inside the repository.
        missing: What the error says if the repository has none of the files.
        checked_later: Glob of files whose content the caller checks, by a faster hash than the Hub's.

    Raises:
        CheckpointError: If there is no such folder, repository or revision, or access is refused.
        NotCachedError: If the Hub is out of reach and the cache has no copy.
        HubError: If the download failed or is damaged; what arrived whole is kept.
    """
    if subfolder:
        check_relative(subfolder, "subfolder")
    if os.path.isdir(source):
        path = Path(source) / subfolder
        if not path.is_dir():
            raise CheckpointError(f"{source} has no folder {subfolder!r}")
        check_inside(path, Path(source))
        return Folder(path, Path(source).resolve().name, None)
    repo = os.fspath(source)
    where = repo if revision is None else f"{repo} at revision {revision!r}"
    wanted = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in patterns]
    cache = None if cache_dir is None else Path(cache_dir)
    hashes: dict[str, str] = {}
    trouble: Exception | None = None
    snapshot: str | Path | None = None
    with hub_errors(where, "reading"):
        if not local_files_only:
            try:
                commit, files = with_retries(lambda: _remote_files(repo, revision=revision, token=token))
                hashes = _matching(files, wanted, where=where, missing=missing)
                wanted = [glob.escape(name) for name in hashes]
                if not force_download:
                    snapshot = _cached_snapshot(repo, hashes, commit, revision, cache)
                    if snapshot is None and (large := _only_large({name: files[name].size for name in hashes})):
                        hf_hub_download(repo, large, revision=commit, token=token, cache_dir=cache)
            except (GatedRepoError, RevisionNotFoundError):
                raise
            except (HfHubHTTPError, httpx2.TransportError, OfflineModeIsEnabled) as error:
                trouble = error
        try:
            snapshot = snapshot or with_retries(
                lambda: snapshot_download(
                    repo, revision=revision, allow_patterns=wanted, token=token, cache_dir=cache,
                    local_files_only=local_files_only or trouble is not None, force_download=force_download,
                ),
                on=(LocalEntryNotFoundError,),  # the rest it tries again by itself
            )  # fmt: skip
        except LocalEntryNotFoundError as error:
            raise trouble or error from None
    if trouble is not None:
        logger.warning("The Hub is out of reach (%s); %s comes from the cache", type(trouble).__name__, where)
    path = Path(snapshot) / subfolder
    if not path.is_dir():
        raise CheckpointError(f"{where} has no folder {subfolder!r}" if subfolder else f"{where} {missing}")
    later = []
    for file in sorted(file for file in path.iterdir() if file.is_file() and _fits(file.name, patterns)):
        name = file.relative_to(snapshot).as_posix()
        download = Download.at(file, Path(snapshot), hashes.get(name))
        if download.is_checked:
            continue
        if fnmatch(file.name, checked_later):
            later.append(download)
        else:
            download.check()
    return Folder(path, repo, Path(snapshot).name, tuple(later))


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub: its size in bytes, and its SHA-256 or, for small files, git's hash."""

    size: int
    hash: str


def _remote_files(repo: str, *, revision: str | None, token: str | bool | None) -> tuple[str, dict[str, RemoteFile]]:
    """The commit of a repository on the Hub, and its files."""
    info = HfApi(token=token).model_info(
        repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    return info.sha or "", {
        file.rfilename: RemoteFile(file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in info.siblings or []
    }


def _cached_snapshot(
    repo: str, names: Iterable[str], commit: str, revision: str | None, cache: Path | None
) -> Path | None:
    """The folder of a commit if the cache has all the files and knows that the revision is this commit."""
    folder = None
    for name in names:
        path = try_to_load_from_cache(repo, name, cache_dir=cache, revision=revision)
        folder = Path(path).parents[name.count("/")] if isinstance(path, str) else None
        if folder is None or folder.name != commit:
            return None
    return folder


def _only_large(sizes: Mapping[str, int]) -> str | None:
    """The one file that is large, if it is one: a thread of its own would only slow its download down."""
    large = [name for name, size in sizes.items() if size > MAX_SIDE_BYTES]
    return large[0] if len(large) == 1 else None


def _fits(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatch(name, pattern) and name.count("/") == pattern.count("/") for pattern in globs)


def _matching(files: Mapping[str, RemoteFile], globs: Sequence[str], *, where: str, missing: str) -> dict[str, str]:
    """The hashes of the files that match, each file of a sane size and in the folder of its glob."""
    names = [name for name in files if _fits(name, globs)]
    if not names:
        raise CheckpointError(f"{where} {missing}")
    for name in names:
        check_relative(name, where)
        if not name.endswith(".safetensors") and files[name].size > MAX_SIDE_BYTES:
            size = files[name].size
            raise CheckpointError(f"{where}: {name[:200]!r} has {size} bytes, which is no configuration or card")
    return {name: files[name].hash for name in names}
