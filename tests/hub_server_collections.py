"""Collections of the test Hub."""

from __future__ import annotations

import re
import uuid

from tests.hub_server_api import Api, Request, Response, as_json, route
from tests.hub_server_store import HubError

SLUG = r"(?P<slug>[^/]+/[^/]+)"


@route("GET POST", r"/api/collections")
def collections(api: Api, request: Request) -> Response:
    if request.method == "GET":
        owners = request.query.get("owner", [])
        matching = [c for c in api.collections.values() if not owners or c["owner"]["name"] in owners]
        return as_json([{key: value for key, value in c.items() if key != "position"} for c in matching])
    values = request.json()
    api.check_write(request, values["namespace"])
    name = re.sub(r"\W+", "-", values["title"].lower()).strip("-")
    for slug, known in api.collections.items():
        if known["title"] == values["title"] and known["owner"]["name"] == values["namespace"]:
            return as_json({"slug": slug, "error": "This collection already exists"}, status=409)
    slug = f"{values['namespace']}/{name}-{uuid.uuid4().hex[:24]}"
    api.collections[slug] = {
        "slug": slug,
        "title": values["title"],
        "description": values.get("description"),
        "position": 0,
        "upvotes": 0,
        "owner": {"name": values["namespace"]},
        "items": [],
        "private": bool(values["private"]),
        "theme": "blue",
        "lastUpdated": "2026-01-01T00:00:00.000Z",
    }
    return as_json(api.collections[slug])


@route("GET", rf"/api/collections/{SLUG}")
def collection(api: Api, request: Request, slug: str) -> Response:
    if slug not in api.collections:
        raise HubError(404, "Collection not found")
    return as_json(api.collections[slug])


@route("POST", rf"/api/collections/{SLUG}/items")
def add_item(api: Api, request: Request, slug: str) -> Response:
    collection = api.collections.get(slug)
    if collection is None:
        raise HubError(404, "Collection not found")
    api.check_write(request, collection["owner"]["name"])
    values = request.json()
    item = values["item"]
    api.repo(request, item["type"] + "s", item["id"])
    if any((known["id"], known["type"]) == (item["id"], item["type"]) for known in collection["items"]):
        raise HubError(409, "This item is already in the collection")
    note = {"note": {"text": values["note"]}} if "note" in values else {}
    collection["items"].append({"_id": uuid.uuid4().hex[:24], **item, "position": len(collection["items"]), **note})
    return as_json(collection)
