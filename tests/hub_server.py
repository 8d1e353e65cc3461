"""A small Hub over real HTTP, for tests and for trying push and pull offline.

    python -m tests.hub_server

It prints the line that points another shell at it. It speaks the endpoints that `huggingface_hub` and `datasets` use:
create, commit, large files, resolve with ranges, trees, infos, refs, lists, collections, tokens, private and gated
repositories. Everything is lost when it stops.
"""

from __future__ import annotations

import argparse
import io
import re
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests import hub_server_collections, hub_server_lfs  # noqa: F401 (they register their endpoints)
from tests.hub_server_api import Api, Request, Response, Token, as_json
from tests.hub_server_store import HubError, Store


@dataclass
class Fault:
    """Something that goes wrong with requests whose `METHOD /path` matches a pattern.

    Attributes:
        match: Regular expression, searched in `METHOD /path`.
        times: How often it happens; then the server is well again.
        skip: How many matching requests are served before.
        status: Answer with this status instead.
        headers: Headers to add to the answer, or to replace in it.
        cut: Close the connection after this many bytes of the body, of the answer or (`PUT`, `POST`) of the request.
        body: Answer with this JSON, or these bytes, instead.
        replace: A text to replace in the answer, and by what.
        delay: Seconds to wait before the answer.
        corrupt: Flip a bit in the middle of the answer's body.
        lose: Do what was asked, then close the connection without an answer.
        call: Something to do first, such as deleting the repository.
    """

    match: str
    times: int = 1
    skip: int = 0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    body: Any = None
    replace: tuple[str, str] | None = None
    delay: float = 0.0
    corrupt: bool = False
    lose: bool = False
    call: Callable[[], object] | None = None

    def strikes(self, line: str) -> bool:
        """Whether it happens to this request; counts."""
        if self.times <= 0 or not re.search(self.match, line):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Cut(Exception):  # noqa: N818
    """The connection is to be closed at once."""


class Body(io.RawIOBase):
    """The body of a request, by length or in chunks; `cut` breaks it off."""

    def __init__(self, handler: BaseHTTPRequestHandler, cut: int | None) -> None:
        self.stream, self.cut = handler.rfile, cut
        self.chunked = "chunked" in handler.headers.get("Transfer-Encoding", "")
        self.left = 0 if self.chunked else int(handler.headers.get("Content-Length") or 0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.chunked and self.left == 0:
            self.left = int(self.stream.readline().split(b";")[0], 16)
            if self.left == 0:
                self.stream.readline()
                self.chunked = False
        data = self.stream.read(min(len(buffer), self.left))
        if len(data) < min(len(buffer), self.left):
            raise Cut  # the client went away
        self.left -= len(data)
        if self.chunked and self.left == 0:
            self.stream.readline()
        if self.cut is not None:
            self.cut -= len(data)
            if self.cut < 0:
                raise Cut
        buffer[: len(data)] = data
        return len(data)


class Handler(BaseHTTPRequestHandler):
    """One connection; keeps it alive between requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: HubServer

    def answer(self) -> None:
        parts = urlsplit(self.path)
        line = f"{self.command} {parts.path}"
        self.server.log.append(line)
        self.server.authorizations.append(self.headers.get("Authorization", ""))
        with self.server.api.store.lock:
            fault = next((fault for fault in self.server.faults if fault.strikes(line)), None)
        writing = self.command in ("PUT", "POST")
        body = io.BufferedReader(Body(self, fault.cut if fault and writing else None), 1 << 20)
        request = Request(self.command, parts.path, parse_qs(parts.query), self.headers, body)
        try:
            if fault and fault.call:
                fault.call()
            if fault and fault.status:
                body.read()
                response = as_json({"error": "something went wrong"}, status=fault.status)
            else:
                response = self.respond(request)
            if fault and fault.body is not None:
                text = fault.body if isinstance(fault.body, bytes) else as_json(fault.body).body
                response = Response(text, response.status, {**response.headers, "Content-Type": "application/json"})
            if fault and fault.replace:
                old, new = (text.encode() for text in fault.replace)
                response = Response(response.body.replace(old, new), response.status, response.headers)  # type: ignore[union-attr]
            body.read()
            if fault and fault.delay:
                threading.Event().wait(fault.delay)  # not time.sleep, which a test may have replaced
            if fault and fault.lose:
                raise Cut
            self.send(response, fault or Fault(""), cut=None if writing or not fault else fault.cut)
        except (Cut, ConnectionError):
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def respond(self, request: Request) -> Response:
        try:
            return self.server.api.dispatch(request)
        except HubError as error:
            code = {"X-Error-Code": error.code} if error.code else {}
            headers = {"X-Error-Message": error.message, **code}
            return as_json({"error": error.message}, status=error.status, headers=headers)

    def send(self, response: Response, fault: Fault, *, cut: int | None) -> None:
        body, status, headers = response.body, response.status, {**response.headers, **fault.headers}
        size = body.stat().st_size if isinstance(body, Path) else len(body)
        start, end = 0, size
        if isinstance(body, Path) and (match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            start, end = int(match[1]), min(size, int(match[2] or size) + 1)
            status = 206 if start < size else 416
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}" if status == 206 else f"bytes */{size}"
            start = min(start, end)
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(end - start)}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.flush()
        if self.command == "HEAD":
            return
        stop = end if cut is None else min(end, start + cut)
        if isinstance(body, Path) and not fault.corrupt:
            with open(body, "rb") as file:
                if stop > start:
                    self.connection.sendfile(file, start, stop - start)
        else:
            data = bytearray(body.read_bytes() if isinstance(body, Path) else body)
            if fault.corrupt:
                data[(start + stop) // 2] ^= 1
            self.wfile.write(data[start:stop])
        if stop < end:
            self.wfile.flush()
            raise Cut

    def log_message(self, format: str, *args: object) -> None:
        pass


class HubServer(ThreadingHTTPServer):
    """A Hub on a loopback port, with the users `user` and `other`; use it in a `with` block.

    Attributes:
        url: Its address, for `HF_ENDPOINT`.
        store: Its repositories.
        api: Tokens, grants, collections and settings.
        faults: What is to go wrong.
        log: `METHOD /path` of every request so far.
        authorizations: The `Authorization` of every request, empty where it had none.
    """

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.store = Store(Path(tempfile.mkdtemp(prefix="hub-")))
        self.api = Api(self.store, self.url)
        for user in ("user", "other"):
            self.api.tokens[f"write-{user}"] = Token(user)
            self.api.tokens[f"read-{user}"] = Token(user, write=False)
            self.api.tokens[f"expired-{user}"] = Token(user, expired=True)
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.authorizations: list[str] = []

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()
        self.store.clear()

    def reset(self) -> None:
        """Forgets repositories, blobs, collections, grants, faults and the log."""
        with self.store.lock:
            self.store.forget()
            self.api.collections.clear()
            self.api.granted.clear()
            self.api.multipart, self.api.bare = 1 << 40, False
            self.faults.clear()
            self.log.clear()
            self.authorizations.clear()

    def handle_error(self, request: Any, client_address: Any) -> None:
        with suppress(OSError):  # a client that went away is no error of the server
            request.close()
        if isinstance(error := sys.exc_info()[1], ConnectionError | Cut):
            self.log.append(f"lost {type(error).__name__}")
        else:
            super().handle_error(request, client_address)


def main() -> None:
    """Serves until interrupted, optionally with the dataset folders of `--datasets` as `user/<name>`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="a free one if left out")
    parser.add_argument("--datasets", type=Path, nargs="*", default=[], help="dataset folders to host")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # whoever stops it: the storage goes with it
    with HubServer(args.port) as server:
        for folder in args.datasets:
            server.store.add_folder("dataset", f"user/{folder.name}", folder)
        print(f"The Hub of user is at {server.url}; it forgets everything when it stops. In another shell:", flush=True)
        print(f"export HF_ENDPOINT={server.url} HF_TOKEN=write-user HF_HUB_DISABLE_XET=1", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
