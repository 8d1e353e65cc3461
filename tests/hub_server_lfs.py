"""Uploads of large files: the batch endpoint, single and multipart uploads, completion and verification."""

from __future__ import annotations

import io
import math
import shutil
import uuid
from typing import Any

from tests.hub_server_api import Api, Request, Response, as_json, route
from tests.hub_server_store import HubError

REPO = r"/(?:(?P<kind>datasets|spaces)/)?(?P<id>[^/]+/[^/]+)\.git"


@route("POST", rf"{REPO}/info/lfs/objects/batch")
def batch(api: Api, request: Request, id: str, kind: str = "models") -> Response:
    api.repo(request, kind, id, write=True)
    objects = [
        upload_of(api, item, prefix="" if kind == "models" else f"{kind}/", id=id) for item in request.json()["objects"]
    ]
    transfer = "multipart" if any("chunk_size" in str(item) for item in objects) else "basic"
    return as_json({"transfer": transfer, "objects": objects})


def upload_of(api: Api, item: dict[str, Any], *, prefix: str, id: str) -> dict[str, Any]:
    """What the client must do for one object; nothing if it is here."""
    oid, size = item["oid"], item["size"]
    if api.store.blob(oid).is_file():
        return {"oid": oid, "size": size}
    key, header = uuid.uuid4().hex, {}
    href = f"{api.url}/lfs/{key}/{oid}"
    if size > api.multipart:
        api.parts[key] = {}
        count = math.ceil(size / api.multipart)
        header = {str(number): f"{api.url}/lfs/{key}/{oid}/{number}" for number in range(1, count + 1)}
        header["chunk_size"] = str(api.multipart)
    verify = {"href": f"{api.url}/{prefix}{id}.git/info/lfs/verify"}
    return {"oid": oid, "size": size, "actions": {"upload": {"href": href, "header": header}, "verify": verify}}


@route("PUT", r"/lfs/(?P<key>[0-9a-f]+)/(?P<oid>[0-9a-f]{64})")
def put(api: Api, request: Request, key: str, oid: str) -> Response:
    return Response(headers={"ETag": f'"{api.store.add_blob(request.body, expected=oid)}"'})


@route("PUT", r"/lfs/(?P<key>[0-9a-f]+)/(?P<oid>[0-9a-f]{64})/(?P<number>\d+)")
def put_part(api: Api, request: Request, key: str, oid: str, number: str) -> Response:
    api.parts[key][int(number)] = api.store.add_blob(request.body)
    return Response(headers={"ETag": f'"{api.parts[key][int(number)]}"'})


@route("POST", r"/lfs/(?P<key>[0-9a-f]+)/(?P<oid>[0-9a-f]{64})")
def complete(api: Api, request: Request, key: str, oid: str) -> Response:
    named = [upload["etag"].strip('"') for upload in request.json()["parts"]]
    if named != [sha256 for _, sha256 in sorted(api.parts.get(key, {}).items())]:
        raise HubError(400, "the parts are not those that were uploaded")
    whole = io.BytesIO()
    for sha256 in named:
        with open(api.store.blob(sha256), "rb") as file:
            shutil.copyfileobj(file, whole)
    whole.seek(0)
    api.store.add_blob(whole, expected=oid)
    return as_json({})


@route("POST", rf"{REPO}/info/lfs/verify")
def verify(api: Api, request: Request, id: str, kind: str = "models") -> Response:
    api.repo(request, kind, id, write=True)
    values = request.json()
    blob = api.store.blob(values["oid"])
    if not blob.is_file() or blob.stat().st_size != values["size"]:
        raise HubError(404, "the object was not uploaded")
    return as_json({})
