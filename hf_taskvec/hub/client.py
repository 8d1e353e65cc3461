"""What every exchange with the Hub shares: its errors in this package's words, retries, and the check of a download."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
from huggingface_hub import ModelInfo, constants
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_taskvec.errors import CheckpointError, HubError, NotCachedError, TaskVecError
from hf_taskvec.hub.guard import LONGEST_WAIT, guarded, retry_after
from hf_taskvec.text import printable
from hf_taskvec.weights.folders import write_text

logger = logging.getLogger(__name__)
LIBRARY = "hf-taskvec"  # the name by which the Hub knows this library
ATTEMPTS = 3
COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
TRANSIENT = {408, 429, 500, 502, 503, 504}

Value = TypeVar("Value")


@contextmanager
def hub_errors(where: str, doing: str) -> Iterator[None]:
    """An exchange with the Hub: guarded, and its client's errors turned into this package's.

    Args:
        where: The repository, for the message.
        doing: What is being done, for the message: "reading", "listing", "pushing to" and the like.

    Raises:
        CheckpointError: If there is no such repository, revision or file, or access is refused.
        NotCachedError: If the Hub is out of reach and the cache has no copy.
        HubError: If the Hub, the connection or the disk failed, or the answer is none of a Hub.
    """
    try:
        with guarded():
            yield
    except TaskVecError:
        raise
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise translated(error, where, doing) from error
    except (LookupError, TypeError, AttributeError, AssertionError) as error:  # of a client that read an odd answer
        raise HubError(
            f"{doing} {where} failed: the answer of {constants.ENDPOINT} is not as a Hub's "
            f"({type(error).__name__}: {plain(error)})"
        ) from error


def translated(error: Exception, where: str, doing: str) -> TaskVecError:
    """This package's error for one of the Hub client's."""
    if isinstance(error, HFValidationError):
        return CheckpointError(f"{where!r} is neither a folder nor a Hub id (user/name)")
    if isinstance(error, LocalTokenNotFoundError):
        return HubError(f"{doing} {where} needs a token, and none is stored: log in (hf auth login) or pass token=")
    if isinstance(error, GatedRepoError):
        return CheckpointError(f"{where} is gated: accept its terms on the Hub and log in (hf auth login)")
    if isinstance(error, RepositoryNotFoundError) or _is_missing(error, doing):
        return CheckpointError(
            f"{where} is neither a folder nor a repository you can see; check the name, or log in (hf auth login)"
        )
    if isinstance(error, RevisionNotFoundError):
        return CheckpointError(f"{where} does not exist: the repository has no such revision")
    if isinstance(error, RemoteEntryNotFoundError):
        return CheckpointError(f"{where} lacks a file: {plain(error)}")
    if isinstance(error, HfHubHTTPError):
        return HubError(f"{doing} {where} failed: {reason(error)}")
    if isinstance(error.__cause__, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError):
        return translated(error.__cause__, where, doing)  # the client wraps what goes wrong in an upload
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled, httpx2.ConnectError)):
        return _out_of_reach(error, where, doing)
    if isinstance(error, httpx2.HTTPError):
        return HubError(f"{doing} {where} failed: the connection was lost or too slow ({error!r}); run it again")
    return HubError(f"{doing} {where} failed: {plain(error)}")


def _is_missing(error: Exception, doing: str) -> bool:
    """Whether the Hub says that there is nothing of a name, without saying what: a plain 404."""
    return doing == "reading" and type(error) is HfHubHTTPError and error.response.status_code == 404


def _out_of_reach(error: Exception, where: str, doing: str) -> TaskVecError:
    """The error where the Hub is not to be asked, or does not answer."""
    if constants.is_offline_mode():
        why = "HF_HUB_OFFLINE is set"
    elif isinstance(error, LocalEntryNotFoundError) and error.__cause__ is None:
        why = "local_files_only=True asks no Hub"
    else:
        cause = f" ({reason(error.__cause__)})" if isinstance(error.__cause__, HfHubHTTPError) else ""
        why = f"the Hub at {constants.ENDPOINT} is out of reach{cause}"
    if doing == "reading":
        repo = where.split(" ")[0]
        return NotCachedError(
            f"there is no folder {repo!r} here, {where} is not in the cache, and {why}; "
            f"fetch it while online: hf download {repo}"
        )
    kind = NotCachedError if doing == "listing" else HubError
    return kind(f"{doing} {where} needs the Hub, and {why}; do it again while online")


def plain(text: object) -> str:
    """What a server said, on one line of sane length and without control characters."""
    return printable(str(text)[:1000])


def reason(error: HfHubHTTPError) -> str:
    """What an HTTP error means, and the remedy."""
    status = error.response.status_code
    said = plain(error.server_message or f"status {status}").removesuffix(".")
    if status == 401:
        return f"{said}: the token is invalid or has expired; log in again (hf auth login)"
    if status == 403:
        return f"{said}: the token has no right to do this; use one with write access to the repository"
    if status in (409, 412):
        return f"{said}: another push came first and nothing of this one was kept; look at the repository, push again"
    if status == 429:
        wait = retry_after(error.response.headers)
        later = "later" if wait is None else f"in {wait:.0f} s"
        return f"the Hub limits the rate of requests (429); try again {later}"
    if status in (405, 501, 505):
        return f"{constants.ENDPOINT} does not offer this ({status}: {said}); is HF_ENDPOINT a Hub?"
    if status >= 500:
        return f"the Hub has trouble ({status}: {said}); try again later"
    return said


def commit_of(info: ModelInfo, where: str) -> str:
    """The commit that a Hub names; it becomes the name of a folder in the cache.

    Raises:
        HubError: If it is none.
    """
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise HubError(f"the Hub names {plain(info.sha)[:80]!r} as the commit of {where}, which is none")
    return info.sha


def is_clear(error: HfHubHTTPError) -> bool:
    """Whether an answer is a clear no, which no copy in the cache may hide, rather than trouble that passes."""
    status = error.response.status_code
    return 400 <= status < 500 and status not in TRANSIENT


def with_retries(
    call: Callable[[], Value],
    *,
    on: tuple[type[Exception], ...] = (httpx2.HTTPError, LocalEntryNotFoundError, FileMetadataError),
) -> Value:
    """The result of `call`, which is tried again after passing trouble; it must be safe to repeat.

    All waits together take at most `LONGEST_WAIT` seconds, and each is told.
    """
    left, attempt = LONGEST_WAIT, 1
    while True:
        try:
            return call()
        except on as error:
            wait = seconds_to_wait(error, attempt)
            if attempt == ATTEMPTS or wait is None or wait > left:
                raise
            logger.warning("The Hub has trouble (%s); trying again in %.0f s", trouble(error), wait)
            time.sleep(wait)
            left, attempt = left - wait, attempt + 1


def trouble(error: BaseException) -> str:
    """What went wrong, in a word or two."""
    if isinstance(error, HfHubHTTPError):
        return "limit on the rate of requests" if error.response.status_code == 429 else str(error.response.status_code)
    return type(error).__name__


def seconds_to_wait(error: BaseException, attempt: int) -> float | None:
    """How long to wait before trying again: as long as the server asks for; `None` if the trouble will not pass."""
    backoff = 0.5 * 4.0 ** (attempt - 1)
    if isinstance(error, LocalEntryNotFoundError):
        return seconds_to_wait(error.__cause__, attempt) if error.__cause__ else None
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in TRANSIENT:
            return None
        asked = retry_after(error.response.headers)
        return backoff if asked is None else asked
    passing = isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.ConnectError)
    return backoff if passing or isinstance(error, FileMetadataError) else None


@dataclass(frozen=True)
class Download:
    """A file in the Hub's cache whose content nobody has compared with its hash yet.

    A note beside the cache's `snapshots` says which files were compared. A file without one, because the process that
    fetched it was killed or was another program, is checked by the next that opens it.

    Attributes:
        path: The file, in the snapshot of a commit.
        note: Where to note that it was checked.
        stamp: Size, time and number of the file's content, for the note.
        announced: Its SHA-256 or git hash, if the Hub told it just now; else the one that names it in the cache counts.
    """

    path: Path
    note: Path
    stamp: str
    announced: str | None = None

    @classmethod
    def at(cls, path: Path, snapshot: Path, announced: str | None = None) -> Download:
        """The file at `path` in a snapshot's folder."""
        status = path.stat()
        note = snapshot.parent.parent / "checked" / snapshot.name / path.relative_to(snapshot)
        return cls(path, note, f"{status.st_size} {status.st_mtime_ns} {status.st_ino}", announced)

    @property
    def is_checked(self) -> bool:
        """Whether this very content was checked before."""
        return self.note.is_file() and self.note.read_text(encoding="utf-8") == self.stamp

    def note_checked(self) -> None:
        """Notes that the content is right; where the cache cannot be written, it is checked each time."""
        with suppress(OSError):
            write_text(self.note, self.stamp)

    def check(self) -> None:
        """Compares the file with its hash and notes it.

        Raises:
            HubError: If they differ; the file is removed from the cache, so that the next call fetches it again.
        """
        blob = self.path.resolve()
        expected = self.announced or blob.name
        if len(expected) == 64:
            digest = hashlib.sha256()
        elif len(expected) == 40:
            digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        else:
            return  # a cache without links keeps no hash
        with open(blob, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != expected:
            blob.unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            raise HubError(f"{self.path.name} was damaged on the way; it was removed from the cache: run it again")
        self.note_checked()
