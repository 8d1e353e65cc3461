"""How the Hub is reached, and how something is published there: the keywords that many functions share, as values."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

from hf_taskvec.errors import CheckpointError, UnknownNameError

# Git's rules for the name of a branch or tag, and what a cache of files can bear besides.
_BAD_REVISION = re.compile(r"^[-/]|[/.]$|\.lock(/|$)|(^|/)\.|\.\.|//|@\{|[\x00-\x20\x7f~^:?*\[\\]")
_MAX_REVISION = 250
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}", re.ASCII)

AnyPath = str | os.PathLike[str]
Value = TypeVar("Value")


class HubKeywords(TypedDict, total=False):
    """The keywords of every function that reads from the Hub; see `HubAccess`."""

    token: str | bool | None
    cache_dir: AnyPath | None
    local_files_only: bool
    force_download: bool


class PushKeywords(TypedDict, total=False):
    """The keywords of every function that publishes; see `PushOptions`."""

    private: bool | None
    revision: str | None
    create_pr: bool
    token: str | bool | None
    commit_message: str | None
    licence: str | None
    tags: str | Iterable[str]
    language: str | Iterable[str]
    base_name: str | None
    allow_zero: bool


@dataclass(frozen=True)
class HubAccess:
    """How files are fetched from the Hub, in the words of Transformers' `from_pretrained`.

    Attributes:
        token: An access token; `True` for that of `hf auth login`, which also counts if left out; `False` for none.
        cache_dir: The cache, instead of that of `HF_HOME`.
        local_files_only: Whether to read from the cache alone.
        force_download: Whether to download what the cache has.

    Example:
        >>> HubAccess.of({"local_files_only": True}).local_files_only
        True
    """

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: AnyPath | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> HubAccess:
        """The access that a function's keywords describe.

        Raises:
            UnknownNameError: If a keyword is none of them.
            TypeError: If a value is of another type.
        """
        access = from_keywords(cls, keywords)
        _check_type("token", access.token, str, bool, type(None))
        _check_type("cache_dir", access.cache_dir, str, os.PathLike, type(None))
        _check_type("local_files_only", access.local_files_only, bool)
        _check_type("force_download", access.force_download, bool)
        return access


@dataclass(frozen=True)
class PushOptions:
    """How something is published.

    Attributes:
        private: Whether a new repository is private.
        revision: The branch to commit on, which is created if need be, or the pull request, as in "refs/pr/1".
        create_pr: Whether to open a pull request instead of committing on the branch.
        token: An access token with the right to write; by default that of `hf auth login`.
        commit_message: The commit's title.
        licence: Licence of what is published, by the Hub's name for it, as in "apache-2.0".
        tags: Further tags of the card.
        language: Languages of the class names and prompts, by their codes, as in "en".
        base_name: Hub id of the base, where the vector knows only a folder of it.
        allow_zero: Whether a vector may be published that changes nothing.

    Example:
        >>> PushOptions.of({"licence": "mit", "tags": ["birds"]}).tags
        ('birds',)
    """

    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    token: str | bool | None = field(default=None, repr=False)
    commit_message: str | None = None
    licence: str | None = None
    tags: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    base_name: str | None = None
    allow_zero: bool = False

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> PushOptions:
        """The options that a function's keywords describe.

        Raises:
            UnknownNameError: If a keyword is none of them.
            TypeError: If a value is of another type.
            CheckpointError: If `revision` is no name of a branch, or `base_name` no Hub id.
        """
        options = from_keywords(cls, keywords)
        for name in ("revision", "commit_message", "licence", "base_name"):
            _check_type(name, getattr(options, name), str, type(None))
        for name in ("create_pr", "allow_zero"):
            _check_type(name, getattr(options, name), bool)
        _check_type("private", options.private, bool, type(None))
        _check_type("token", options.token, str, bool, type(None))
        check_revision(options.revision)
        if options.base_name is not None and not is_repo_id(options.base_name):
            raise CheckpointError(f"base_name must be a Hub id (user/name), got {options.base_name!r}")
        return dataclasses.replace(
            options, tags=_texts("tags", options.tags), language=_texts("language", options.language)
        )


def from_keywords(kind: type[Value], keywords: Mapping[str, Any]) -> Value:
    """A dataclass from a function's keywords.

    Raises:
        UnknownNameError: If a keyword is no field; the nearest one is offered.
    """
    known = [spec.name for spec in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in keywords:
        if name not in known:
            raise UnknownNameError("keyword", name, known)
    return kind(**keywords)


def is_repo_id(text: str) -> bool:
    """Whether a text has the form of a Hub id, user/name.

    Example:
        >>> is_repo_id("openai/clip-vit-base-patch32"), is_repo_id("out/eight/mnist")
        (True, False)
    """
    return _REPO_ID.fullmatch(text) is not None and ".." not in text


def split_revision(source: AnyPath) -> tuple[AnyPath, str | None]:
    """A folder, or a Hub id and the revision that stands behind an `@`.

    Example:
        >>> split_revision("user/gtsrb@main")
        ('user/gtsrb', 'main')
    """
    if isinstance(source, os.PathLike) or os.path.exists(source):
        return source, None
    repo, _, revision = source.partition("@")
    return repo, revision or None


def check_revision(revision: str | None) -> None:
    """Raises a `CheckpointError` unless a revision can be the name of a branch, tag, pull request or commit.

    It names a file in the cache, so it must not lead elsewhere; it can come from a recipe in someone's provenance.
    """
    if revision is None:
        return
    _check_type("revision", revision, str)
    if not 0 < len(revision) <= _MAX_REVISION or _BAD_REVISION.search(revision) or not revision.isprintable():
        raise CheckpointError(
            f"revision must be the name of a branch or tag, refs/pr/<number> or a commit, got {revision[:80]!r}"
        )


def _check_type(name: str, value: object, *kinds: type) -> None:
    if not isinstance(value, kinds):
        words = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        raise TypeError(f"{name} must be {words}, got {type(value).__name__}")


def _texts(name: str, value: object) -> tuple[str, ...]:
    """One text or several, as a tuple."""
    items = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    if not all(isinstance(item, str) and item.strip() for item in items):
        raise TypeError(f"{name} must be a list of texts, got {value!r:.200}")
    return items
