"""Documents: dict → dict, and FastAPI's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from itertools import chain, count
from typing import Any

from starlette.types import ASGIApp

from raincheck.dialects.plain import PlainDialect
from raincheck.errors import ConfigurationError
from raincheck.openapi.operations import Door, Operations, doors, layers, mounts_of, template
from raincheck.openapi.plain import (
    HEADERS,
    JOB_ID,
    SCHEMAS,
    Node,
    accepted,
    callbacks,
    parameters,
    refusals,
    status_routes,
)
from raincheck.policy import Policy

METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace", "query")

LINKED = ("result", "monitor", "events", "stream", "cancel", "delete")
"""What the 202 of an operation links to."""

_OURS: Mapping[str, Mapping[str, Node]] = {"schemas": SCHEMAS, "headers": HEADERS}
_REFERENCE = re.compile(r"#/components/(schemas|headers)/(.+)")
_Targets = dict[str, tuple[str, str, list[str]]]
"""Operations by name: the id of each, its parameter for the job's id, and others in its path."""

_NAME = re.compile(r"{([^{}:]*)[^{}]*}")


def document(schema: Mapping[str, Any], app: ASGIApp, *, mounted: str = "") -> dict[str, Any]:
    """An app's OpenAPI document, with what its long-running operations really answer.

    Those get the 202 with its header fields, its document and its links, the problems, and what a
    request can say (`Prefer`, `Idempotency-Key`); the status routes are added. What is there stays:
    where both say something of the same, the author's counts, and of two contents either may come.
    A document that has it all comes back as it is.

    Args:
        schema: the document, of OpenAPI 3.1 or 3.2, as a dict; it is not changed.
        app: the middleware, or the app that has it inside or around what it mounts.
        mounted: where the document's app is mounted in `app`, like `"/v1"`. Default: nowhere.

    Raises:
        ConfigurationError: it is no such document, or the app has no `LongRunningMiddleware`.
    """
    _check(schema)
    if mounted and not mounted.startswith("/"):
        raise ConfigurationError(f'document(mounted={mounted!r}): it begins with a slash, as "/v1"')
    return _Writer(schema, [*doors(app)], mounted).written()


def install(app: ASGIApp) -> None:
    """Have FastAPI say in its own document what its long-running operations really answer.

    Of all FastAPI apps inside, those that it mounts included: `app.openapi()`, and so
    `/openapi.json` and its pages. Middleware, routes and mounts may be added before or after, and
    it is made again when that happens. Doing so twice changes nothing.

    Args:
        app: the FastAPI app, or the middleware around it.

    Raises:
        ConfigurationError: no FastAPI app is to be seen in it.
    """
    found = [*_fastapi(app)]
    if not found:
        raise ConfigurationError(
            f"install({app!r}): there is no FastAPI app in it; with another framework put what "
            "raincheck.openapi.document(schema, app) returns in the place of its document"
        )
    for mounted, inside in found:
        hook = inside.openapi
        plain = hook.plain if isinstance(hook, _Hook) else hook
        if not (isinstance(hook, _Hook) and hook.app is app):
            inside.openapi = _Hook(plain, app, mounted)


def _fastapi(app: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The FastAPI apps in an app, each with where it is mounted; FastAPI is never imported."""
    kind = getattr(sys.modules.get("fastapi"), "FastAPI", None)
    for layer in layers(app):
        if kind is not None and isinstance(layer, kind):
            yield prefix, layer
        for path, mounted in mounts_of(layer):
            yield from _fastapi(mounted, prefix + path)


class _Hook:
    """Stands in the place of an app's `openapi()`."""

    def __init__(self, plain: Callable[[], dict[str, Any]], app: Any, mounted: str) -> None:
        self.plain = plain
        self.app = app
        self._mounted = mounted
        self._of: tuple[dict[str, Any], list[Door]] | None = None
        self._kept: dict[str, Any] = {}

    def __call__(self) -> dict[str, Any]:
        """The whole document; made anew when FastAPI has made its own anew."""
        schema, found = self.plain(), [*doors(self.app)]
        if self._of is None or self._of[0] is not schema or self._of[1] != found:
            _check(schema)
            self._kept = _Writer(schema, found, self._mounted).written()
            self._of = schema, found
        return self._kept


def _check(schema: Mapping[str, Any]) -> None:
    version = schema.get("openapi") if isinstance(schema, Mapping) else None
    if not isinstance(version, str) or not version.startswith(("3.1", "3.2")):
        raise ConfigurationError(
            f"document(schema): it says openapi={version!r}; give one of OpenAPI 3.1 or 3.2, as a "
            "dict"
        )
    components = schema.get("components", {})
    paths = schema.get("paths", {})
    parts = {"paths": paths, "components": components}
    for holder in (paths, components):
        if isinstance(holder, Mapping):
            parts |= {name: each for name, each in holder.items() if not _is_extension(name)}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            raise ConfigurationError(
                f"document(schema): its {name} is {part!r}, and no dict; leave out what is empty"
            )


def _is_extension(name: object) -> bool:
    return str(name).startswith("x-")


class _Writer:
    """Writes one document.

    Args:
        schema: the document as it was.
        found: the middlewares, from the outside in.
        mounted: where its app is mounted.
    """

    def __init__(self, schema: Mapping[str, Any], found: list[Door], mounted: str) -> None:
        if not found:
            raise ConfigurationError(
                "raincheck.openapi: the app has no LongRunningMiddleware; give the middleware "
                "itself if it stands around the app"
            )
        self._document: dict[str, Any] = _renamed(schema, "")
        self._doors = found
        self._mounted = mounted.rstrip("/")
        self._paths: Node = self._document.setdefault("paths", {})
        self._prefix = self._free_prefix()
        self._ids: set[str] = {
            operation["operationId"]
            for path in self._paths
            if not _is_extension(path)
            for _, operation in self._operations(path)
            if "operationId" in operation
        }

    def written(self) -> dict[str, Any]:
        """The whole document."""
        for door, marked in self._claimed():
            plain = issubclass(door.setup.dialect, PlainDialect)
            if not (marked or door.prefix == self._mounted):
                continue
            links = self._add_status_routes(door, self._security(door, marked)) if plain else {}
            for path, operation, policy in marked:
                self._add_parameters(path, operation, policy)
                if plain:
                    self._add_responses(path, operation, door, policy, links)
                    self._add_callbacks(operation, door, policy)
                else:
                    spelt = f"As raincheck's {door.setup.dialect.__name__} spells it."
                    operation.setdefault("responses", {}).setdefault(
                        "default", {"description": spelt}
                    )
        self._add_components()
        return self._document

    # --- what there is -------------------------------------------------------------------------

    def _operations(self, path: str) -> Iterator[tuple[str, Node]]:
        """The methods of a path, each with its operation."""
        item = self._paths[path]
        if "$ref" in item:
            item = {**self._resolved(item), **{k: v for k, v in item.items() if k != "$ref"}}
            self._paths[path] = item
        for method in METHODS:
            if isinstance(item.get(method), dict):
                yield method, item[method]

    def _resolved(self, node: Node) -> Node:
        """What a reference within the document leads to; a copy. What leads elsewhere stays."""
        seen: set[str] = set()
        while (reference := node.get("$ref")) and reference.startswith("#/"):
            found: Any = None if reference in seen else self._document
            seen.add(reference)
            for step in reference[2:].split("/"):
                step = step.replace("~1", "/").replace("~0", "~")
                found = found.get(step) if isinstance(found, dict) else None
            if not isinstance(found, dict):
                return node
            node = deepcopy(found)
        return node

    def _claimed(self) -> list[tuple[Door, list[tuple[str, Node, Policy]]]]:
        """The operations that each middleware makes long-running; the outermost comes first."""
        paths = {path: self._mounted + path for path in self._paths if path.startswith("/")}
        by_door = [Operations(door, list(paths.values())) for door in self._doors]
        marked: list[list[tuple[str, Node, Policy]]] = [[] for _ in self._doors]
        for path, full in paths.items():
            for method, operation in self._operations(path):
                for number, operations in enumerate(by_door):
                    if (policy := operations.policy(full, method.upper())) is not None:
                        marked[number].append((path, operation, policy))
                        break
        return list(zip(self._doors, marked, strict=True))

    def _security(self, door: Door, marked: list[tuple[str, Node, Policy]]) -> list[Node] | None:
        """What a status route asks for: what any of the operations does; None for the document's.

        Where nothing tells the middleware whose a request is, nothing may be needed.
        """
        everyones = self._document.get("security")
        if all("security" not in operation for _, operation, _ in marked):
            return None
        found: list[Node] = []
        for _, operation, _ in marked:
            for requirement in operation.get("security", everyones) or [{}]:
                if requirement not in found:
                    found.append(requirement)
        asked = door.setup.owned or door.setup.mounted
        return found if asked or {} in found else [*found, {}]

    # --- the status routes ---------------------------------------------------------------------

    def _add_status_routes(self, door: Door, security: list[Node] | None) -> _Targets:
        """Add them, and give what can be linked to."""
        targets: _Targets = {}
        each = "schema" if self._document["openapi"].startswith("3.1") else "itemSchema"
        for below, methods in status_routes(door.setup, each=each).items():
            path = self._path_of(door, below)
            names = _NAME.findall(path)
            id = names.pop() if "{" in below else None
            for method, (name, operation) in methods.items():
                there = self._paths[path].get(method)
                if there is None:
                    given = [_in_path(each) for each in names]
                    given += [] if id is None else [_in_path(id, JOB_ID)]
                    there = self._status_operation(door, name, given, operation, security)
                    self._paths[path][method] = there
                if name in LINKED and id is not None and "operationId" in there:
                    targets[name] = there["operationId"], id, names
        return targets

    def _place(self, door: Door) -> tuple[str, bool]:
        """The path of its status routes, and whether they lie where the document's app does."""
        path = _NAME.sub(r"{\1}", door.path)
        inside = path.startswith(self._mounted + "/")
        return path.removeprefix(self._mounted) if inside else path, inside

    def _path_of(self, door: Door, below: str) -> str:
        """The document's path of a status route, which has been added unless it was there."""
        place, inside = self._place(door)
        path = place + below
        for known in self._paths:
            if template(known) == template(path):
                return known
        self._paths[path] = {} if inside else {"servers": [{"url": door.root or "/"}]}
        return path

    def _status_operation(
        self,
        door: Door,
        name: str,
        in_path: list[Node],
        operation: Node,
        security: list[Node] | None,
    ) -> Node:
        group = re.sub(r"[^A-Za-z0-9]+", "_", self._place(door)[0]).strip("_")
        more = {} if security is None else {"security": deepcopy(security)}
        named = {"tags": [group], "operationId": self._new_id(f"{group}_{name}")}
        given = [*in_path, *operation.get("parameters", ())]
        return {**named, **self._own({**operation, "parameters": given}), **more}

    def _new_id(self, id: str) -> str:
        free = (id if number == 1 else f"{id}_{number}" for number in count(1))
        found = next(each for each in free if each not in self._ids)
        self._ids.add(found)
        return found

    # --- the operations ------------------------------------------------------------------------

    def _add_parameters(self, path: str, operation: Node, policy: Policy) -> None:
        there = [
            self._resolved(parameter)
            for holder in (self._paths[path], operation)
            for parameter in holder.get("parameters", ())
        ]
        known = {(each.get("in"), str(each.get("name")).lower()) for each in there}
        added = [
            each for each in parameters(policy) if ("header", each["name"].lower()) not in known
        ]
        if added:
            operation["parameters"] = [*operation.get("parameters", ()), *self._own(added)]

    def _add_responses(
        self, path: str, operation: Node, door: Door, policy: Policy, links: _Targets
    ) -> None:
        responses: Node = operation.setdefault("responses", {})
        ours = {"202": {**accepted(door.setup, policy), "links": _links(links, path)}}
        for status, response in {**ours, **refusals(door.setup, policy)}.items():
            own = self._own(response)
            if status not in responses:
                responses[status] = own
                continue
            theirs = self._resolved(responses[status])
            if "$ref" not in theirs:
                responses[status] = self._merged(theirs, own)

    def _add_callbacks(self, operation: Node, door: Door, policy: Policy) -> None:
        """Say who is told of the end of its jobs, where that is turned on."""
        jobs = door.setup.jobs
        permitted = None if jobs is None else jobs.callbacks
        if permitted is not None:
            ours = self._own(callbacks(policy.callback, asked=bool(permitted.allow)))
            if ours:
                operation["callbacks"] = {**ours, **operation.get("callbacks", {})}

    def _merged(self, theirs: Node, ours: Node) -> Node:
        """A response that the author has described, and that may be ours as well."""
        named = {name.lower() for name in theirs.get("headers", {})}
        added = {
            name: self._optional(header)
            for name, header in ours["headers"].items()
            if name.lower() not in named
        }
        content = {**ours.get("content", {}), **theirs.get("content", {})}
        for media in ours.get("content", {}).keys() & theirs.get("content", {}).keys():
            content[media] = _either(theirs["content"][media], ours["content"][media])
        found = {
            "headers": {**added, **theirs.get("headers", {})},
            "content": content,
            "links": {**ours.get("links", {}), **theirs.get("links", {})},
        }
        return {**theirs, **{key: value for key, value in found.items() if value}}

    def _optional(self, header: Node) -> Node:
        """A header field that is only on what is ours."""
        (_, name), *_ = _references(header)
        component = HEADERS[name.removeprefix(self._prefix)]
        if "required" not in component:
            return header
        return {key: value for key, value in component.items() if key != "required"}

    # --- components ----------------------------------------------------------------------------

    def _free_prefix(self) -> str:
        """What the names of our components begin with: none is that of another one."""
        there = self._document.get("components", {})
        return next(
            prefix
            for prefix in chain(("", "Raincheck"), map("Raincheck{}".format, count(2)))
            if all(
                there.get(kind, {}).get(prefix + name, own) == own
                for kind, components in _OURS.items()
                for name, component in components.items()
                for own in [_renamed(component, prefix)]
            )
        )

    def _own(self, node: Any) -> Any:
        """A part of ours, with the names that our components have in this document; a copy."""
        return _renamed(node, self._prefix)

    def _add_components(self) -> None:
        """Add those of ours that are used."""
        used = [*_references(self._document)]
        while used:
            kind, name = used.pop()
            component = _OURS[kind].get(name.removeprefix(self._prefix))
            there = self._document.setdefault("components", {}).setdefault(kind, {})
            if component is not None and name not in there:
                there[name] = self._own(component)
                used += _references(there[name])


def _in_path(name: str, kind: Node | None = None) -> Node:
    return {"name": name, "in": "path", "required": True, "schema": kind or {"type": "string"}}


def _links(targets: _Targets, path: str) -> dict[str, Node]:
    """The links from an operation at this path; what both paths have in common is the same."""
    shared = set(_NAME.findall(path))
    found = {}
    for name, (operation, id, names) in targets.items():
        given = {each: f"$request.path.{each}" for each in names if each in shared}
        found[name] = {
            "operationId": operation,
            "parameters": given | {id: "$response.body#/job_id"},
        }
    return found


def _renamed(node: Any, prefix: str) -> Any:
    """A part of a document, with other names for what it refers to; a copy.

    All names are strings, as they are in JSON: those of statuses may be numbers before.
    """
    if isinstance(node, Mapping):
        return {str(key): _renamed(value, prefix) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_renamed(value, prefix) for value in node]
    if isinstance(node, str) and (match := _REFERENCE.fullmatch(node)):
        return f"#/components/{match[1]}/{prefix}{match[2]}"
    return node


def _references(node: Any) -> Iterator[tuple[str, str]]:
    """The components that a part of a document refers to, each as its kind and name."""
    if isinstance(node, Mapping):
        node = node.values()
    elif isinstance(node, str):
        if match := _REFERENCE.fullmatch(node):
            yield match[1], match[2]
        return
    elif not isinstance(node, list | tuple):
        return
    for each in node:
        yield from _references(each)


def _either(theirs: Node, ours: Node) -> Node:
    """A content that may be either."""
    if "schema" not in theirs or theirs["schema"] == ours["schema"]:
        return theirs
    known = theirs["schema"].get("anyOf", ()) if isinstance(theirs["schema"], dict) else ()
    if ours["schema"] in known:
        return theirs
    return {**theirs, "schema": {"anyOf": [theirs["schema"], ours["schema"]]}}
