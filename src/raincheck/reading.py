"""Reading an app's routes, as far as they can be read: which paths lead to marked endpoints."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.endpoints import HTTPEndpoint
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from raincheck.errors import ConfigurationError
from raincheck.marking import Mark, mark_of

Methods = frozenset[str] | None
"""Methods of a route; None for all."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""The methods that a path rule without one means: not HEAD, OPTIONS and the like."""

BOUNDARY = "__raincheck_boundary__"
"""An attribute of apps whose routes are another middleware's."""

ANYTHING = "/{rest_of_the_path:path}"
"""The path of all that lies below an app which cannot be looked into."""


@dataclass(frozen=True, slots=True)
class Found:
    """A path of an app.

    Attributes:
        path: in Starlette's path syntax.
        methods: those that reach it, or None for all.
        marks: the marks on it with their methods; None if it cannot be looked into.
    """

    path: str
    methods: Methods
    marks: Sequence[tuple[Methods, Mark]] | None


def walk(app: ASGIApp, prefix: str, seen: list[tuple[Sequence[BaseRoute], int]]) -> Iterator[Found]:
    """What is found in an app.

    Args:
        app: the app.
        prefix: where it is mounted.
        seen: takes the lists of routes that were read, each with its length then.

    Raises:
        ConfigurationError: a decorated websocket route.
    """
    if isinstance(app, StaticFiles) or _bounded(app):
        return
    router = router_of(app)
    if router is None:
        yield Found(prefix + ANYTHING, None, None)
        return
    seen.append((router.routes, len(router.routes)))
    default = getattr(getattr(router, "router", router), "default", None)
    if default is not None and getattr(default, "__func__", None) is not Router.not_found:
        yield from walk(default, prefix, seen)
    for route in _routes(router):
        kind = getattr(route, "original_route", route)
        if isinstance(kind, WebSocketRoute):
            if mark_of(kind.endpoint):
                raise ConfigurationError(
                    f"@long_running marks the websocket route {prefix + kind.path!r}; a websocket "
                    "has no response to detach, so take the decorator away"
                )
        elif isinstance(kind, Mount):
            path = prefix + (getattr(route, "path", None) or "")
            yield Found(path + "/", None, ())
            yield from walk(kind.app, path, seen)
        elif isinstance(kind, Host):
            yield from walk(kind.app, prefix, seen)
        elif isinstance(kind, Route):
            methods = getattr(route, "methods", None)
            yield _endpoint(prefix + route.path, methods and frozenset(methods), route.endpoint)
        else:
            yield Found(prefix + ANYTHING, None, None)


def _endpoint(path: str, methods: Methods, endpoint: Any) -> Found:
    if mark := mark_of(endpoint):
        return Found(path, methods, [(methods, mark)])
    if inspect.isclass(endpoint) and issubclass(endpoint, HTTPEndpoint):
        marks: list[tuple[Methods, Mark]] = []
        for method in (*METHODS, "OPTIONS", "QUERY", "HEAD"):
            name = "get" if method == "HEAD" and not hasattr(endpoint, "head") else method.lower()
            if mark := mark_of(getattr(endpoint, name, None)):
                marks.append((frozenset({method}), mark))
        return Found(path, methods, marks)
    plain = endpoint
    while isinstance(plain, functools.partial):
        plain = plain.func
    # A function without a mark has none; any other object is an ASGI app that may hide one.
    return Found(path, methods, () if inspect.isroutine(plain) else None)


def _routes(router: Any) -> Iterable[Any]:
    """The routes of a router.

    FastAPI's included routers are seen through its public iterator; it is never imported for that.
    """
    routes: Iterable[Any] = router.routes
    contexts = getattr(sys.modules.get("fastapi.routing"), "iter_route_contexts", None)
    return routes if contexts is None else iter(contexts(routes))


def router_of(app: Any) -> Any:
    """The first app below middleware that has Starlette routes; None if none is to be seen."""
    while app is not None and not _bounded(app):
        routes = getattr(app, "routes", None)
        if isinstance(routes, list) and all(isinstance(route, BaseRoute) for route in routes):
            return app
        app = getattr(app, "app", None)
    return None


def _bounded(app: Any) -> bool:
    while app is not None:
        if getattr(app, BOUNDARY, False):
            return True
        app = None if hasattr(app, "routes") else getattr(app, "app", None)
    return False
