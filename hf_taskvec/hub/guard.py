"""Bounds on every exchange with a Hub: where tokens go, how long it may take, and how much an answer may hold.

The Hub's client follows what a server names: links to the next page, addresses for uploads, seconds to wait. It is
right for the Hub, whom it trusts; a mirror named by `HF_ENDPOINT` need not be so well behaved.
"""

from __future__ import annotations

import email.utils
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx2
from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status, parse_ratelimit_headers

from hf_taskvec.errors import HubError

LONGEST_WAIT = 60.0  # seconds that one exchange waits in all; a Hub that asks for more is reported instead
ANSWER_TIMEOUT = 60.0  # seconds without a byte, where the client sets no limit of its own
MAX_ANSWER_BYTES = 64 << 20  # of JSON; the list of files of a large repository has a few MB
MAX_ANSWERS = 1000  # to questions of one exchange, so that pages that link to each other come to an end

_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)
_PORTS = {"http": 80, "https": 443}
_LOCK = threading.Lock()


class Guard:
    """What one exchange has used up so far; its methods are hooks of the HTTP client."""

    def __init__(self) -> None:
        self.answers = 0
        self.first_wait: float | None = None
        self.home = origin(constants.ENDPOINT)

    def on_request(self, request: httpx2.Request) -> None:
        """Keeps the token at home, and sets a limit of time where there is none."""
        if origin(str(request.url)) != self.home and request.headers.get("Authorization", "").startswith("Bearer "):
            del request.headers["Authorization"]
        limits = request.extensions.get("timeout") or {}
        if not any(limits.values()):
            patience = ANSWER_TIMEOUT if request.method in ("GET", "HEAD") else 5 * ANSWER_TIMEOUT  # commits take long
            request.extensions["timeout"] = {"connect": 10.0, "read": patience, "write": patience, "pool": patience}

    def on_response(self, response: httpx2.Response) -> None:
        """Refuses answers that are too many or too large, and waits that are too long; makes links whole."""
        if response.status_code in (408, 429, 503):
            now = time.monotonic()
            self.first_wait = now if self.first_wait is None else self.first_wait
            if now + (retry_after(response.headers) or 0.0) - self.first_wait > LONGEST_WAIT:
                response.read()
                hf_raise_for_status(response)
        path = response.url.path
        if not (path.startswith("/api/") or "/info/lfs/" in path) or "/resolve-cache/" in path:  # the last are files
            return
        self.answers += response.request.method == "GET"
        if self.answers > MAX_ANSWERS:
            raise HubError(f"{self.home[1]} answers page after page without an end; check HF_ENDPOINT")
        read_bounded(response)
        if link := response.headers.get("Link"):
            response.headers["Link"] = re.sub(r"<([^>]*)>", lambda m: f"<{urljoin(str(response.url), m[1])}>", link)


def read_bounded(response: httpx2.Response) -> None:
    """Reads an answer, which must not be larger than any sane one, also once it is unpacked."""
    chunks, size = [], 0
    for chunk in response.iter_bytes():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_ANSWER_BYTES:
            raise HubError(f"{response.url.host} answers with more than {MAX_ANSWER_BYTES >> 20} MB of JSON")
    response._content = b"".join(chunks)  # what `response.read` would set


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that a server asks to wait, as a number or a date; `None` if it asks for nothing sane."""
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    text = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


@contextmanager
def guarded() -> Iterator[None]:
    """Puts a guard on the client that all exchanges share, for the length of the block."""
    guard, client = Guard(), get_session()
    hooks: dict[str, Callable[..., Any]] = {"request": guard.on_request, "response": guard.on_response}
    with _LOCK:
        client.event_hooks = {kind: [*client.event_hooks[kind], hook] for kind, hook in hooks.items()}
    try:
        yield
    finally:
        with _LOCK:
            others = {kind: [one for one in client.event_hooks[kind] if one != hook] for kind, hook in hooks.items()}
            client.event_hooks = others
