"""Holds answers to what the OpenAPI document says of them.

Each client that `tests.support` makes is watched by this: so every answer of a status route, in
whatever test, is one that the document has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property, lru_cache
from typing import Any

import httpx
from jsonschema_rs import Draft202012Validator
from starlette.types import ASGIApp

from raincheck import Policy
from raincheck.dialects.plain import PlainDialect
from raincheck.openapi.operations import Door, doors, template
from raincheck.openapi.plain import HEADERS, SCHEMAS, accepted, status_routes
from tests.event_stream import Reader

Node = Mapping[str, Any]
COMPONENTS = {"schemas": SCHEMAS, "headers": HEADERS}


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator({**json.loads(schema), "components": COMPONENTS})


def validate(value: object, schema: Node) -> None:
    """Raise unless a value is as a schema of ours has it, what strings contain included."""
    _validator(json.dumps(schema)).validate(value)


async def conforms(response: httpx.Response, described: Node) -> None:
    """Raise unless an answer is as it is described."""
    for name, header in described.get("headers", {}).items():
        header = HEADERS[header["$ref"].rpartition("/")[2]]
        values = response.headers.get_list(name)
        assert values or not header.get("required"), f"there is no {name}"
        for value in values:
            whole = header["schema"].get("type") == "integer"
            validate(int(value) if whole and value.isdigit() else value, header["schema"])
    content = described.get("content")
    if content is None or response.request.method == "HEAD" or "*/*" in content:
        return
    kind = response.headers.get("content-type", "").partition(";")[0]
    assert kind in content, f"{kind!r} is none of {[*content]}"
    schema = content[kind]["schema"]
    await response.aread()
    if kind.endswith("json"):
        validate(response.json(), schema)
    elif kind == "text/event-stream":
        for event in Reader().feed(response.content):
            validate(event.document, SCHEMAS["JobStatus"])
            validate({"event": event.type, "id": event.id, "data": event.data}, schema)


class Documented:
    """The status routes of one middleware, as the document has them.

    Attributes:
        seen: each operation and status that came, by names.
        described: each that the document has.
    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self.seen: set[tuple[str, str]] = set()

    @cached_property
    def _accepted(self) -> Node:
        return accepted(self._door.setup, Policy())

    @cached_property
    def _operations(self) -> dict[tuple[str, str], tuple[str, Node]]:
        found: dict[tuple[str, str], tuple[str, Node]] = {}
        for below, methods in status_routes(self._door.setup).items():
            path = re.escape(template(below)).replace(r"\{\}", "[A-Za-z0-9_-]{30}")
            for method, (name, operation) in methods.items():
                found[path, method.upper()] = name, operation["responses"]
        return found

    @property
    def described(self) -> set[tuple[str, str]]:
        return {
            (name, status) for name, responses in self._operations.values() for status in responses
        }

    async def check(self, response: httpx.Response) -> None:
        """Raise unless an answer is one that the document has."""
        path = response.request.url.path
        if (below := _below(path, self._door.path)) is not None:
            for (pattern, method), (name, responses) in self._operations.items():
                if method == response.request.method and re.fullmatch(pattern, below):
                    status = str(response.status_code)
                    ranged = status if status in responses else f"{status[0]}XX"
                    status = ranged if ranged in responses else "default"
                    self.seen.add((name, status))
                    await conforms(response, responses[status])
        elif response.status_code == 202 and "content-location" in response.headers:
            await conforms(response, self._accepted)


def _below(path: str, mount: str) -> str | None:
    """What stands behind the mount path, which may have a prefix of its own."""
    before, found, below = path.partition(mount)
    return below if found and before.count("/") <= 2 and below[:1] in ("", "/") else None


def watch(app: ASGIApp) -> Callable[[httpx.Response], Awaitable[None]]:
    """Something that a client calls with each answer, to see whether it is documented."""
    ours = [door for door in doors(app) if door.setup.dialect is PlainDialect]
    documented = [Documented(door) for door in ours]

    async def check(response: httpx.Response) -> None:
        if "referrer-policy" in response.headers:  # else somebody else has answered
            for each in documented:
                await each.check(response)

    return check
