"""The endpoints of the test Hub: each turns a request into a response."""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, quote, unquote

from tests.hub_server_card import card_errors
from tests.hub_server_store import Commit, Entry, HubError, Repo, Store, card_data, is_lfs, tags_of


@dataclass(frozen=True)
class Token:
    """An access token: its user and what it may do."""

    user: str
    write: bool = True
    expired: bool = False


@dataclass
class Request:
    """A request with its body unread."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Any
    body: BinaryIO
    token: Token | None = None

    def json(self) -> Any:
        return json.loads(self.body.read() or b"null")

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")


@dataclass(frozen=True)
class Response:
    """An answer; a `Path` body is sent as a file, with ranges."""

    body: bytes | Path = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})


Handler = Callable[..., Response]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []
REPO = r"(?P<kind>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
FILE = r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)"


def route(methods: str, pattern: str) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        ROUTES.append((methods, re.compile(pattern), handler))
        return handler

    return register


@dataclass
class Api:
    """What the endpoints share."""

    store: Store
    url: str = ""
    tokens: dict[str, Token] = field(default_factory=dict)
    granted: set[tuple[str, str]] = field(default_factory=set)
    collections: dict[str, dict[str, Any]] = field(default_factory=dict)
    multipart: int = 1 << 40
    bare: bool = False  # whether what is optional is left out, as another implementation may
    page: int = 100
    parts: dict[str, dict[int, str]] = field(default_factory=dict)

    def dispatch(self, request: Request) -> Response:
        """Answers a request."""
        authorization = request.headers.get("Authorization", "")
        if authorization:
            request.token = self.tokens.get(authorization.removeprefix("Bearer ").strip())
            if request.token is None or request.token.expired:
                raise HubError(401, "Invalid credentials in Authorization header")
        for methods, pattern, handler in ROUTES:
            if request.method in methods.split() and (match := pattern.fullmatch(request.path)):
                groups = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                return handler(self, request, **groups)
        raise HubError(404, f"no such endpoint: {request.method} {request.path}")

    def repo(self, request: Request, kind: str, id: str, *, write: bool = False, content: bool = False) -> Repo:
        """The repository, if the token may do that with it."""
        key = (kind.removesuffix("s"), id)
        repo = self.store.repos.get(key)
        owns = request.token is not None and repo is not None and request.token.user == repo.namespace
        if repo is None or (repo.private and not owns):
            raise HubError(401 if request.token is None else 404, "Repository not found", code="RepoNotFound")
        if (
            content
            and repo.gated
            and not owns
            and (request.token is None or (request.token.user, id) not in self.granted)
        ):
            message = f"Access to {repo.type} {id} is restricted. You must have access to it and be authenticated."
            raise HubError(401 if request.token is None else 403, message, code="GatedRepo")
        proposes = request.flag("create_pr") and request.token is not None and request.token.write
        if write and not proposes:  # whoever may write somewhere may open a pull request anywhere
            self.check_write(request, repo.namespace)
        return repo

    def check_write(self, request: Request, namespace: str) -> None:
        if request.token is None:
            raise HubError(401, "Invalid username or password.")
        if not request.token.write or request.token.user != namespace:
            raise HubError(403, f"Forbidden: you must use a write token to upload to {namespace}")


# -- users and repositories -------------------------------------------------------------------------------------------


@route("GET", r"/api/whoami-v2")
def whoami(api: Api, request: Request) -> Response:
    if request.token is None:
        raise HubError(401, "Invalid username or password.")
    role = "write" if request.token.write else "read"
    token = {"accessToken": {"displayName": "test", "role": role}}
    return as_json({"type": "user", "name": request.token.user, "orgs": [], "auth": token})


@route("POST", r"/api/validate-yaml")
def validate_yaml(api: Api, request: Request) -> Response:
    errors = card_errors(request.json()["content"])
    messages = [{"message": error} for error in errors]
    return as_json({"errors": messages, "warnings": []}, status=400 if errors else 200)


@route("POST DELETE", r"/api/repos/(?:create|delete)")
def create_or_delete(api: Api, request: Request) -> Response:
    values = request.json()
    owner = values.get("organization") or (request.token.user if request.token else "")
    api.check_write(request, owner)
    type, id = values.get("type") or "model", f"{owner}/{values['name']}"
    if request.method == "DELETE":
        api.store.delete(type, id)
        return as_json({})
    prefix = "" if type == "model" else f"{type}s/"
    url = {"url": f"{api.url}/{prefix}{id}", "name": id}
    try:
        api.store.create(type, id, private=values.get("visibility") == "private")
    except HubError as error:
        return as_json({**url, "error": error.message}, status=error.status)
    return as_json(url)


@route("POST", r"/api/repos/move")
def move(api: Api, request: Request) -> Response:
    values = request.json()
    repo = api.repo(request, values["type"] + "s", values["fromRepo"], write=True)
    with api.store.lock:
        del api.store.repos[repo.type, repo.id]
        repo.id = values["toRepo"]
        api.store.repos[repo.type, repo.id] = repo
    return as_json({})


@route("PUT", rf"/api/{REPO}/settings")
def settings(api: Api, request: Request, kind: str, id: str) -> Response:
    repo, values = api.repo(request, kind, id, write=True), request.json()
    if "visibility" in values:
        repo.private = values["visibility"] == "private"
    if "gated" in values:
        repo.gated = bool(values["gated"])
    return as_json(values)


# -- reading ----------------------------------------------------------------------------------------------------------


def info_of(api: Api, repo: Repo, commit: Commit, *, blobs: bool = False) -> dict[str, Any]:
    data = card_data(api.store, commit)
    if api.bare:
        files = [{"rfilename": path} for path in sorted(commit.files)]
        return {"id": repo.id, "sha": commit.id, "siblings": files, "tags": tags_of(data)}
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
    if blobs:
        siblings = [{"rfilename": p, **file_info(p, e), "blobId": e.oid} for p, e in sorted(commit.files.items())]
    return {
        "_id": repo.id,
        "id": repo.id,
        "author": repo.namespace,
        "sha": commit.id,
        "lastModified": commit.date,
        "createdAt": commit.date,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": tags_of(data),
        "cardData": data,
        "library_name": data.get("library_name"),
        "pipeline_tag": data.get("pipeline_tag"),
        "siblings": siblings,
    }


def file_info(path: str, entry: Entry) -> dict[str, Any]:
    lfs = {"lfs": {"oid": entry.sha256, "sha256": entry.sha256, "size": entry.size, "pointerSize": 134}}
    return {"type": "file", "oid": entry.oid, "size": entry.size, "path": path, **(lfs if entry.lfs else {})}


@route("GET", r"/api/(?P<kind>models|datasets)")
def list_repos(api: Api, request: Request, kind: str) -> Response:
    query = {key: values[0] for key, values in request.query.items()}
    start, limit = int(query.get("cursor", 0)), min(int(query.get("limit", api.page)), api.page)
    infos = []
    for repo in sorted((r for r in api.store.repos.values() if f"{r.type}s" == kind), key=lambda r: r.id):
        info = info_of(api, repo, repo.head)
        hidden = repo.private and (request.token is None or request.token.user != repo.namespace)
        fits = query.get("author", repo.namespace) == repo.namespace and query.get("search", "") in repo.id
        if api.bare or (not hidden and fits and set(request.query.get("filter", [])) <= set(info["tags"])):
            infos.append(info)
    headers = {}
    if start + limit < len(infos) and "limit" not in query:
        pairs = [(key, value) for key, values in request.query.items() if key != "cursor" for value in values]
        text = "&".join(f"{key}={quote(value, safe='')}" for key, value in [*pairs, ("cursor", str(start + limit))])
        headers["Link"] = f'<{api.url}/api/{kind}?{text}>; rel="next"'
    return as_json(infos[start : start + limit], headers=headers)


@route("GET", rf"/api/{REPO}(?:/revision/(?P<revision>[^/]+))?")
def repo_info(api: Api, request: Request, kind: str, id: str, revision: str = "main") -> Response:
    repo = api.repo(request, kind, id)
    return as_json(info_of(api, repo, repo.resolve(revision), blobs=request.flag("blobs")))


@route("GET", rf"/api/{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
def tree(api: Api, request: Request, kind: str, id: str, revision: str, path: str = "") -> Response:
    commit = api.repo(request, kind, id).resolve(revision)
    prefix = f"{path.rstrip('/')}/" if path else ""
    inside = {name: entry for name, entry in commit.files.items() if name.startswith(prefix)}
    if path and not inside:
        raise HubError(404, f"{path} does not exist on {revision}", code="EntryNotFound")
    return as_json(listing(inside, prefix, recursive=request.flag("recursive"), commit=commit))


def listing(files: dict[str, Entry], prefix: str, *, recursive: bool, commit: Commit) -> list[dict[str, Any]]:
    folders: dict[str, None] = {}
    result = []
    for name, entry in sorted(files.items()):
        parents = name.removeprefix(prefix).split("/")[:-1]
        for depth in range(len(parents) if recursive else min(1, len(parents))):
            folders[prefix + "/".join(parents[: depth + 1])] = None
        if recursive or not parents:
            result.append(file_info(name, entry))
    last = {"lastCommit": {"id": commit.id, "title": commit.title, "date": commit.date}}
    result += [{"type": "directory", "oid": "0" * 40, "size": 0, "path": folder} for folder in folders]
    return [{**item, **last} for item in result]


@route("POST", rf"/api/{REPO}/paths-info/(?P<revision>[^/]+)")
def paths_info(api: Api, request: Request, kind: str, id: str, revision: str) -> Response:
    commit = api.repo(request, kind, id).resolve(revision)
    raw = request.body.read().decode()
    paths = json.loads(raw)["paths"] if raw.startswith("{") else parse_qs(raw).get("paths", [])
    items = {item["path"]: item for item in listing(dict(commit.files), "", recursive=True, commit=commit)}
    return as_json([items[path] for path in paths if path in items])


@route("GET", rf"/api/{REPO}/refs")
def refs(api: Api, request: Request, kind: str, id: str) -> Response:
    repo = api.repo(request, kind, id)

    def named(group: str) -> list[dict[str, str]]:
        items = repo.named(group).items()
        return [{"name": name, "ref": f"refs/{group}/{name}", "targetCommit": commit} for name, commit in items]

    return as_json({"branches": named("heads"), "tags": named("tags"), "converts": [], "pullRequests": named("pr")})


@route("GET", rf"/api/{REPO}/commits/(?P<revision>[^/]+)")
def commits(api: Api, request: Request, kind: str, id: str, revision: str) -> Response:
    repo = api.repo(request, kind, id)
    result, commit = [], repo.resolve(revision)
    while True:
        user = [{"user": commit.author}]
        result.append({"id": commit.id, "title": commit.title, "message": "", "authors": user, "date": commit.date})
        if commit.parent is None:
            return as_json(result)
        commit = repo.commits[commit.parent]


@route("GET HEAD", rf"{FILE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(api: Api, request: Request, id: str, revision: str, path: str, kind: str = "models") -> Response:
    commit = api.repo(request, kind, id, content=True).resolve(revision)
    headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
    if (entry := commit.files.get(path)) is None:
        error = {"error": "Entry not found"}
        return as_json(error, status=404, headers={**headers, "X-Error-Code": "EntryNotFound"})
    headers["ETag"] = f'"{entry.etag}"'
    if entry.lfs and not api.bare:  # the content lies on another host, under a signed address that needs no token
        elsewhere = api.url.replace("127.0.0.1", "localhost")
        headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        return Response(
            b"", 302, {**headers, "Location": f"{elsewhere}/cdn/{entry.sha256}?signature={uuid.uuid4().hex}"}
        )
    return Response(api.store.blob(entry.sha256), 200, headers)


@route("GET HEAD", r"/cdn/(?P<sha256>[0-9a-f]{64})")
def cdn(api: Api, request: Request, sha256: str) -> Response:
    if request.token is not None:
        raise HubError(400, "a token was sent to a host that must not see it")
    if "signature" not in request.query or not api.store.blob(sha256).is_file():
        raise HubError(403, "AccessDenied")
    return Response(api.store.blob(sha256), 200, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


# -- writing ----------------------------------------------------------------------------------------------------------


@route("POST DELETE", rf"/api/{REPO}/branch/(?P<name>[^/]+)")
def branch(api: Api, request: Request, kind: str, id: str, name: str) -> Response:
    repo, ref = api.repo(request, kind, id, write=True), f"refs/heads/{name}"
    if request.method == "DELETE":
        if repo.refs.pop(ref, None) is None:
            raise HubError(404, f"no branch {name}", code="RevisionNotFound")
    elif ref in repo.refs:
        raise HubError(409, f"Reference already exists: {ref}")
    else:
        repo.refs[ref] = repo.resolve((request.json() or {}).get("startingPoint", "main")).id
    return as_json({})


@route("POST DELETE", rf"/api/{REPO}/tag/(?P<name>[^/]+)")
def tag(api: Api, request: Request, kind: str, id: str, name: str) -> Response:
    repo = api.repo(request, kind, id, write=True)
    if request.method == "DELETE":
        if repo.refs.pop(f"refs/tags/{name}", None) is None:
            raise HubError(404, f"no tag {name}", code="RevisionNotFound")
        return as_json({})
    ref = f"refs/tags/{request.json()['tag']}"
    if ref in repo.refs:
        raise HubError(409, f"Reference already exists: {ref}")
    repo.refs[ref] = repo.resolve(name).id
    return as_json({})


@route("POST", rf"/api/{REPO}/preupload/(?P<revision>[^/]+)")
def preupload(api: Api, request: Request, kind: str, id: str, revision: str) -> Response:
    commit = api.repo(request, kind, id, write=True).resolve(revision)
    files = []
    for file in request.json()["files"]:
        lfs = is_lfs(file["path"], file["size"], base64.b64decode(file["sample"]))
        old = commit.files.get(file["path"])
        oid = {"oid": old.etag} if old else {}
        files.append({"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, **oid})
    return as_json({"files": files, "commitOid": commit.id})


@route("POST", rf"/api/{REPO}/commit/(?P<revision>[^/]+)")
def commit(api: Api, request: Request, kind: str, id: str, revision: str) -> Response:
    repo = api.repo(request, kind, id, write=True)
    header, files = {}, {}
    for line in request.body.read().splitlines():
        item = json.loads(line)
        value = item["value"]
        match item["key"]:
            case "header":
                header = value
            case "file":
                files[value["path"]] = api.store.entry(
                    api.store.add_blob(base64.b64decode(value["content"])), lfs=False
                )
            case "lfsFile":
                files[value["path"]] = api.store.entry(value["oid"], lfs=True)
            case "deletedFile":
                files[value["path"]] = None
            case "deletedFolder":
                files[value["path"].rstrip("/") + "/"] = None
    parent, ref = repo.resolve(revision).id, revision if revision in repo.refs else f"refs/heads/{revision}"
    pull = {}
    if request.flag("create_pr"):
        number = len(repo.named("pr")) + 1
        ref, pull = f"refs/pr/{number}", {"pullRequestUrl": f"{api.url}/{id}/discussions/{number}"}
    elif ref not in repo.refs:
        raise HubError(400, f"{revision} is no branch")
    author = request.token.user if request.token else ""
    new = api.store.write(
        repo,
        files,
        title=header["summary"],
        ref=ref,
        author=author,
        parent=parent if pull else None,
        expected_parent=header.get("parentCommit"),
    )
    prefix = "" if kind == "models" else f"{kind}/"
    return as_json(
        {"success": True, "commitOid": new.id, "commitUrl": f"{api.url}/{prefix}{id}/commit/{new.id}", **pull}
    )
