"""The repositories of the test Hub: commits, refs and blobs, in a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

import yaml

RepoType = Literal["model", "dataset", "space"]
LFS_SUFFIXES = {".safetensors", ".parquet", ".arrow", ".bin", ".png", ".jpg", ".zip", ".gz", ".pt"}
CHUNK = 1 << 20


class HubError(Exception):
    """An answer other than success: status, the Hub's error code and a message."""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Entry:
    """One file of one commit."""

    oid: str
    size: int
    sha256: str
    lfs: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """One state of a repository."""

    id: str
    title: str
    author: str
    parent: str | None
    files: Mapping[str, Entry]
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z")


@dataclass
class Repo:
    """One repository; `refs` maps `refs/heads/main` and the like to commits."""

    type: RepoType
    id: str
    private: bool = False
    gated: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def head(self) -> Commit:
        return self.resolve("main")

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, tag, pull request or commit id."""
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        if revision in self.commits:
            return self.commits[revision]
        raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")

    def named(self, kind: str) -> dict[str, str]:
        """The refs of one kind (`heads`, `tags`, `pr`), by short name."""
        prefix = f"refs/{kind}/"
        return {ref.removeprefix(prefix): commit for ref, commit in self.refs.items() if ref.startswith(prefix)}


class Store:
    """All repositories and blobs; every change happens under `lock`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        (root / "blobs").mkdir(parents=True, exist_ok=True)

    # -- blobs --------------------------------------------------------------------------------------------------------

    def blob(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256

    def add_blob(self, stream: BinaryIO | bytes, *, expected: str | None = None) -> str:
        """Keeps a blob and returns its SHA-256; one that differs from `expected` is refused."""
        digest, temporary = hashlib.sha256(), self.root / f"upload-{uuid.uuid4().hex}"
        try:
            with open(temporary, "wb") as file:
                for chunk in [stream] if isinstance(stream, bytes) else iter(lambda: stream.read(CHUNK), b""):
                    digest.update(chunk)
                    file.write(chunk)
            name = digest.hexdigest()
            if expected is not None and name != expected:
                raise HubError(400, "The content does not match its SHA-256")
            os.replace(temporary, self.blob(name))
        finally:
            temporary.unlink(missing_ok=True)
        return name

    def entry(self, sha256: str, *, lfs: bool) -> Entry:
        """The entry of a blob that is here."""
        if not self.blob(sha256).is_file():
            raise HubError(400, f"LFS object {sha256} was not uploaded")
        size = self.blob(sha256).stat().st_size
        text = (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
            if lfs
            else self.blob(sha256).read_bytes()
        )
        return Entry(hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest(), size, sha256, lfs)

    # -- repositories -------------------------------------------------------------------------------------------------

    def create(self, type: RepoType, id: str, *, private: bool = False, author: str = "hub") -> Repo:
        with self.lock:
            if (type, id) in self.repos:
                raise HubError(409, "You already created this repo")
            repo = Repo(type, id, private)
            self.repos[type, id] = repo
            self.write(repo, {".gitattributes": self.entry(self.add_blob(b""), lfs=False)}, title="initial commit")
            return repo

    def write(
        self,
        repo: Repo,
        files: Mapping[str, Entry | None],
        *,
        title: str,
        ref: str = "refs/heads/main",
        author: str = "hub",
        parent: str | None = None,
        expected_parent: str | None = None,
    ) -> Commit:
        """Adds one commit on a ref; `None` removes a file, and a folder if the path ends with a slash."""
        with self.lock:
            parent = parent or repo.refs.get(ref)
            if expected_parent is not None and expected_parent != parent:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            new = dict(repo.commits[parent].files) if parent else {}
            for path, entry in files.items():
                check_path(path)
                if entry is not None:
                    new[path] = entry
                elif path.endswith("/"):
                    new = {name: value for name, value in new.items() if not name.startswith(path)}
                elif new.pop(path, None) is None:
                    raise HubError(404, f"A file with this name doesn't exist: {path}", code="EntryNotFound")
            commit = Commit(uuid.uuid4().hex + uuid.uuid4().hex[:8], title, author, parent, new)
            repo.commits[commit.id] = commit
            repo.refs[ref] = commit.id
            return commit

    def add_folder(
        self, type: RepoType, id: str, folder: Path, *, private: bool = False, only: Sequence[str] = ("**/*",)
    ) -> Repo:
        """Hosts a folder of this machine, without a client."""
        with self.lock:
            repo = self.repos.get((type, id)) or self.create(type, id, private=private)
            files: dict[str, Entry | None] = {}
            for path in sorted({path for glob in only for path in folder.glob(glob) if path.is_file()}):
                name = path.relative_to(folder).as_posix()
                with open(path, "rb") as file:
                    files[name] = self.entry(self.add_blob(file), lfs=is_lfs(name, path.stat().st_size, b""))
            self.write(repo, files, title=f"Add {folder.name}")
            return repo

    def get(self, type: str, id: str) -> Repo:
        if (repo := self.repos.get((type, id))) is None:
            raise HubError(404, "Repository not found", code="RepoNotFound")
        return repo

    def delete(self, type: str, id: str) -> None:
        self.get(type, id)
        del self.repos[type, id]

    def forget(self) -> None:
        """Removes every repository and blob."""
        self.repos.clear()
        for blob in (self.root / "blobs").iterdir():
            blob.unlink()

    def clear(self) -> None:
        """Removes the storage itself."""
        shutil.rmtree(self.root, ignore_errors=True)


def check_path(path: str) -> None:
    if path.startswith("/") or any(step in ("", ".", "..") for step in path.removesuffix("/").split("/")):
        raise HubError(400, f"Invalid path: {path}")


def is_lfs(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub keeps a file in its large file storage."""
    return size > 0 and (PurePosixPath(path).suffix in LFS_SUFFIXES or size > 10 << 20 or b"\0" in sample)


def card_data(store: Store, commit: Commit) -> dict[str, object]:
    """The metadata of a README; an empty mapping if there is none or it does not parse."""
    entry = commit.files.get("README.md")
    if entry is None:
        return {}
    parts = store.blob(entry.sha256).read_text("utf-8", "replace").split("---\n", 2)
    if len(parts) < 3 or parts[0]:
        return {}
    try:
        data = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def tags_of(data: Mapping[str, object]) -> list[str]:
    """The tags that the Hub derives from a card's metadata."""

    def values(key: str) -> list[str]:
        value = data.get(key) or []
        return [str(item) for item in value] if isinstance(value, list) else [str(value)]

    tags = [*values("library_name"), *values("tags"), *values("pipeline_tag")]
    tags += [f"dataset:{name}" for name in values("datasets")] + [f"license:{name}" for name in values("license")]
    for base in values("base_model"):
        tags += [f"base_model:{base}"]
        tags += [f"base_model:{relation}:{base}" for relation in values("base_model_relation")]
    return list(dict.fromkeys([*tags, "region:us"]))
