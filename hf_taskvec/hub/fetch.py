"""Folders by Hub id or path: downloaded or from the cache, and checked."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

from hf_taskvec.errors import CheckpointError, HubError, NotCachedError, TaskVecError
from hf_taskvec.hub.access import HubAccess, check_revision
from hf_taskvec.hub.client import Download, commit_of, hub_errors, is_clear, translated, with_retries
from hf_taskvec.text import listed
from hf_taskvec.weights.folders import check_inside, check_relative, write_text

logger = logging.getLogger(__name__)
MAX_SIDE_BYTES = 64 << 20
MAX_THREADS = 8
WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")
SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
PICKLED = (
    "has no model.safetensors. Pickled weights (pytorch_model.bin) are refused, since loading them can run code: "
    "load them where you trust them and save_pretrained() them again."
)

INSTEAD = {  # what a folder without a model may hold, by a file of it
    "adapter_config.json": "holds a peft adapter, not a whole model; use TaskVector.from_adapter",
    "task_vector_config.json": "holds a task vector, not a model; use TaskVector.from_pretrained",
}


@dataclass(frozen=True)
class Wanted:
    """Which files of a repository are fetched.

    Attributes:
        patterns: Globs of the files wanted; none of them looks into folders.
        required: Globs of which each must fit a file; if left out, one of `patterns`.
        missing: What the error says if they do not.
        instead: What it says where a file of this name is there.
        checked_later: Glob of files whose content the caller checks, by a faster hash than the Hub's.
    """

    patterns: Sequence[str]
    required: Sequence[str] = ()
    missing: str = "has no such files"
    checked_later: str = ""
    instead: Mapping[str, str] = field(default_factory=dict)

    def fits(self, name: str) -> bool:
        """Whether a file of the folder is wanted."""
        return _fits(name, self.patterns)

    def check(self, names: Iterable[str], where: str) -> None:
        """Raises a `CheckpointError` if what is required is not among the names of a folder's files."""
        present = list(names)
        needs: list[Sequence[str]] = [(glob,) for glob in self.required] or [self.patterns]
        if not all(any(_fits(name, globs) for name in present) for globs in needs):
            raise CheckpointError(
                f"{where} {next((text for name, text in self.instead.items() if name in present), self.missing)}"
            )


def _fits(name: str, globs: Sequence[str]) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in globs)


CHECKPOINT = Wanted((*WEIGHTS, *SIDE_FILES), required=WEIGHTS[:1], missing=PICKLED, instead=INSTEAD)


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

    @contextmanager
    def being_read(self) -> Iterator[None]:
        """Around the reading: files that are found damaged, and became so on their way, are told to fetch again."""
        try:
            yield
        except CheckpointError:
            for download in self.unchecked:
                download.check()
            raise


@dataclass(frozen=True)
class RemoteFile:
    """A file on the Hub: its size in bytes, and its SHA-256 or, for small files, git's hash."""

    size: int
    hash: str


@dataclass(frozen=True)
class _Repository:
    """What is asked for: a repository at a revision, and how it is reached."""

    id: str
    revision: str | None
    subfolder: str
    access: HubAccess

    @property
    def where(self) -> str:
        return self.id if self.revision is None else f"{self.id} at revision {self.revision!r}"

    @property
    def inside(self) -> str:
        return f"{self.subfolder}/" if self.subfolder else ""

    @property
    def cache(self) -> Path | None:
        return None if self.access.cache_dir is None else Path(self.access.cache_dir)


@dataclass(frozen=True)
class _Listing:
    """The wanted files of one commit on the Hub, or why they could not be listed."""

    commit: str = ""
    files: Mapping[str, RemoteFile] = field(default_factory=dict)
    trouble: Exception | None = None


def fetch_folder(
    source: str | os.PathLike[str],
    wanted: Wanted,
    *,
    revision: str | None = None,
    subfolder: str = "",
    access: HubAccess | None = None,
) -> Folder:
    """A local folder as it is, or the wanted files of a Hub repository, downloaded or from the cache.

    Sizes are checked before the download and hashes after it, once. If the Hub is out of reach, the cache serves.

    Args:
        source: Folder or Hub id.
        wanted: The files.
        revision: Branch, tag or commit.
        subfolder: Folder inside the repository.
        access: How the Hub is reached.

    Raises:
        CheckpointError: If there is no such folder, repository or revision, or access is refused.
        NotCachedError: If the Hub is out of reach and the cache has no copy.
        HubError: If the download failed or is damaged; what arrived whole is kept.
    """
    if subfolder:
        check_relative(subfolder, "subfolder")
    if os.path.isdir(source):
        return _local(Path(source), subfolder, wanted)
    if os.path.exists(source):
        raise CheckpointError(f"{os.fspath(source)} is a file; pass the folder that holds it, or a Hub id")
    check_revision(revision)
    repository = _Repository(os.fspath(source), revision, subfolder, access or HubAccess())
    with hub_errors(repository.where, "reading"):
        listing = _list(repository, wanted)
        if not listing.files:
            snapshot = _offline(repository, wanted, listing)
        else:
            snapshot = _cached(repository, listing) or _download(repository, listing)
    if listing.trouble is not None:
        kind = type(listing.trouble).__name__
        logger.warning("The Hub is out of reach (%s); %s comes from the cache", kind, repository.where)
    return _checked(repository, wanted, snapshot, listing)


def _local(source: Path, subfolder: str, wanted: Wanted) -> Folder:
    path = source / subfolder
    if not path.is_dir():
        raise CheckpointError(f"{source} has no folder {subfolder!r}")
    check_inside(path, source)
    if wanted.required:
        try:
            wanted.check(_names_in(path), str(path))
        except CheckpointError as error:
            raise _elsewhere(error, path, wanted) from None
    return Folder(path, source.resolve().name, None)


def _names_in(folder: Path) -> list[str]:
    """What a folder holds; one that another replaced while it was listed was being emptied, and is listed again."""
    while True:
        before = folder.stat()
        names = os.listdir(folder)
        if os.path.samestat(before, folder.stat()):
            return names


def _elsewhere(error: CheckpointError, path: Path, wanted: Wanted) -> CheckpointError:
    """The error, with the folders inside that hold what is wanted."""
    places = []
    for inside in sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        with suppress(CheckpointError, OSError):
            wanted.check(os.listdir(inside), str(inside))
            places.append(inside)
    return CheckpointError(f"{path} holds none itself; did you mean {listed(places, room=200)}?") if places else error


def _list(repository: _Repository, wanted: Wanted) -> _Listing:
    """The wanted files, as the Hub has them now; nothing if the Hub is not to be asked or is out of reach."""
    access = repository.access
    if access.local_files_only:
        return _Listing()
    try:
        commit, files = with_retries(lambda: _remote_files(repository))
        return _Listing(commit, _matching(files, repository, wanted))
    except HfHubHTTPError as error:
        if is_clear(error):
            raise _refused(error, repository) from error
        return _Listing(trouble=error)
    except (httpx2.TransportError, OfflineModeIsEnabled) as error:
        return _Listing(trouble=error)


def _refused(error: HfHubHTTPError, repository: _Repository) -> TaskVecError:
    """The error for a clear no of the Hub, which tells of a copy in the cache and does not use it."""
    refusal = translated(error, repository.where, "reading")
    try:
        _snapshot(repository, [])
    except (OSError, ValueError):
        return refusal
    return type(refusal)(f"{refusal}. An earlier copy is in the cache: local_files_only=True reads it")


def _remote_files(repository: _Repository) -> tuple[str, dict[str, RemoteFile]]:
    """The commit of a repository on the Hub, and its files."""
    info = HfApi(token=repository.access.token).model_info(
        repository.id, revision=repository.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
    )
    return commit_of(info, repository.where), {
        file.rfilename: RemoteFile(file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in info.siblings or []
    }


def _matching(files: Mapping[str, RemoteFile], repository: _Repository, wanted: Wanted) -> dict[str, RemoteFile]:
    """The files that are wanted, each of a sane size and name."""
    folder = repository.inside
    result = {
        name: file for name, file in files.items() if name.startswith(folder) and wanted.fits(name.removeprefix(folder))
    }
    place = f"the folder {repository.subfolder!r} of {repository.where}" if folder else repository.where
    wanted.check((name.removeprefix(folder) for name in result), place)
    for name, file in result.items():
        check_relative(name, repository.where)
        if not name.endswith(".safetensors") and file.size > MAX_SIDE_BYTES:
            raise CheckpointError(
                f"{repository.where}: {name[:200]!r} has {file.size} bytes, which is no configuration or card"
            )
    return result


def _cached(repository: _Repository, listing: _Listing) -> Path | None:
    """The folder of the commit if the cache has all the files and knows that the revision is this commit."""
    if repository.access.force_download:
        return None
    folder = None
    for name in listing.files:
        path = try_to_load_from_cache(repository.id, name, cache_dir=repository.cache, revision=repository.revision)
        folder = Path(path).parents[name.count("/")] if isinstance(path, str) else None
        if folder is None or folder.name != listing.commit:
            return None
    return folder


def _download(repository: _Repository, listing: _Listing) -> Path:
    """The folder of the listed commit with its files downloaded.

    They are asked for by the commit, and the cache learns which commit the revision is once all of them are there: what
    a server says in between changes neither.
    """

    def fetch(name: str) -> Path:
        path = with_retries(
            lambda: hf_hub_download(
                repository.id,
                name,
                revision=listing.commit,
                token=repository.access.token,
                cache_dir=repository.cache,
                force_download=repository.access.force_download,
            ),
            on=(LocalEntryNotFoundError,),  # the rest it tries again by itself
        )
        return Path(path).parents[name.count("/")]

    with ThreadPoolExecutor(min(len(listing.files), MAX_THREADS)) as pool:
        (folder, *others) = dict.fromkeys(pool.map(fetch, listing.files))
    if others or folder.name != listing.commit:
        raise HubError(f"the Hub gives files of another commit of {repository.where} than it named; try again")
    revision = repository.revision or constants.DEFAULT_REVISION
    if revision != listing.commit:
        with suppress(OSError):  # a cache that cannot be written
            write_text(folder.parent.parent / "refs" / revision, listing.commit)
    return folder


def _offline(repository: _Repository, wanted: Wanted, listing: _Listing) -> Path:
    """The folder of whatever commit the cache has, if it has all that is wanted."""
    try:
        snapshot = _snapshot(repository, [repository.inside + pattern for pattern in wanted.patterns])
    except LocalEntryNotFoundError as error:
        raise listing.trouble or error from None
    path = snapshot / repository.subfolder
    names = [file.name for file in path.iterdir()] if path.is_dir() else []
    try:
        wanted.check(names, repository.where)
    except CheckpointError as error:
        raise NotCachedError(
            f"the cache has only a part of {repository.where}; fetch the rest while online: hf download {repository.id}"
        ) from error
    return snapshot


def _snapshot(repository: _Repository, patterns: list[str]) -> Path:
    """The cache's folder of the commit that it knows the revision as."""
    return Path(
        snapshot_download(
            repository.id,
            revision=repository.revision,
            cache_dir=repository.cache,
            local_files_only=True,
            allow_patterns=patterns,
        )
    )


def _checked(repository: _Repository, wanted: Wanted, snapshot: Path, listing: _Listing) -> Folder:
    """The folder in a snapshot, each file compared with its hash unless it was before or the caller does."""
    path = snapshot / repository.subfolder
    later = []
    for file in sorted(file for file in path.iterdir() if file.is_file() and wanted.fits(file.name)):
        announced = listing.files.get(file.relative_to(snapshot).as_posix())
        download = Download.at(file, snapshot, announced.hash if announced else None)
        if download.is_checked:
            continue
        if fnmatch(file.name, wanted.checked_later):
            later.append(download)
        else:
            download.check()
    return Folder(path, repository.id, snapshot.name, tuple(later))
