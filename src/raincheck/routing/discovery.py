"""Reading an app's routes, as far as they can be read: which paths lead to marked endpoints."""

from __future__ import annotations

import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.endpoints import HTTPEndpoint
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from raincheck.decorator import Mark, mark_of, marked_above
from raincheck.errors import ConfigurationError
from raincheck.routing.frameworks import foreign_routes

logger: logging.Logger = logging.getLogger("raincheck")

Methods = frozenset[str] | None
"""Methods of a route; None for all."""

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""The methods that a path rule without one means: not HEAD, OPTIONS and the like."""

BOUNDARY = "__raincheck_boundary__"
"""An attribute of apps whose routes are another middleware's: where its status routes are."""

ANYTHING = "/{rest_of_the_path:path}"
"""The path of all that lies below an app which cannot be looked into."""


@dataclass(frozen=True, slots=True)
class Found:
    """A path of an app.

    Attributes:
        path: in Starlette's path syntax.
        methods: those that reach it, or None for all.
        marks: the marks on it with their methods; None if it cannot be looked into.
        above: the marks of what was made of its endpoint, if that is registered as it was before.
        status: whether the status routes are mounted there.
        another: whether those of another middleware are.
        foreign: whether it is one of another framework than Starlette.
    """

    path: str
    methods: Methods
    marks: Sequence[tuple[Methods, Mark]] | None
    above: Sequence[Mark] = ()
    status: bool = False
    another: bool = False
    foreign: bool = False


def walk(
    app: ASGIApp,
    prefix: str,
    seen: list[tuple[Sequence[BaseRoute], int]],
    is_status: Callable[[object], bool],
) -> Iterator[Found]:
    """What is found in an app.

    Args:
        app: the app.
        prefix: where it is mounted.
        seen: takes the lists of routes that were read, each with its length then.
        is_status: whether an app is the one of the status routes.

    Raises:
        ConfigurationError: a decorated websocket route.
    """
    if any(isinstance(layer, StaticFiles) for layer in _layers(app)):
        return
    if any(is_status(layer) for layer in _layers(app)):
        yield Found(prefix, None, (), status=True)
        return
    if others := [*_others(app)]:
        yield from (Found(prefix + path, None, (), another=True) for path in others)
        return
    router = router_of(app)
    if router is None:
        yield from _foreign(app, prefix)
        return
    seen.append((router.routes, len(router.routes)))
    default = getattr(getattr(router, "router", router), "default", None)
    if default is not None and getattr(default, "__func__", None) is not Router.not_found:
        yield from walk(default, prefix, seen, is_status)
    for route in routes_of(router):
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
            yield from walk(kind.app, path, seen, is_status)
        elif isinstance(kind, Host):
            yield from walk(kind.app, prefix, seen, is_status)
        elif isinstance(kind, Route):
            methods = getattr(route, "methods", None)
            yield _endpoint(prefix + route.path, methods and frozenset(methods), route.endpoint)
        else:
            yield Found(prefix + ANYTHING, None, None)


def found_in(app: Any) -> list[Found]:
    """What is found in an app, of ASGI or of WSGI, that no middleware of ours is around yet."""
    return list(walk(app, "", [], lambda layer: False))


def _foreign(app: ASGIApp, prefix: str) -> Iterator[Found]:
    """What is found in an app that is not Starlette's."""
    above, routes = _above_of_functions(app), foreign_routes(app)
    if routes is None:
        yield Found(prefix + ANYTHING, None, None, above, foreign=True)
        return
    yield Found(prefix + "/", frozenset(), (), above, foreign=True)
    for path, methods, marks in routes:
        marked = None if marks is None else [(methods, mark) for mark in marks]
        yield Found(prefix + path, methods, marked, foreign=True)


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
    if inspect.isroutine(plain):
        return Found(path, methods, (), marked_above(plain))
    return Found(path, methods, None)


def _above_of_functions(app: ASGIApp) -> Sequence[Mark]:
    """The marks above the functions of an app that keeps them by name, as Quart does."""
    functions = getattr(getattr(app, "__self__", app), "view_functions", None)
    if not isinstance(functions, dict):
        return ()
    used = {mark_of(function) for function in functions.values()}
    every = map(marked_above, functions.values())
    return next((marks for marks in every if marks and used.isdisjoint(marks)), ())


def routes_of(router: Any) -> Iterable[Any]:
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


def root_path_of(app: Any) -> str:
    """The `root_path` that an app gives each of its requests, as FastAPI's does; `""` if none."""
    found = getattr(router_of(app), "root_path", "")
    return found.rstrip("/") if isinstance(found, str) else ""


def _bounded(app: Any) -> bool:
    return any(getattr(layer, BOUNDARY, None) for layer in _layers(app))


def _others(app: Any) -> Iterator[str]:
    """Where the middlewares that an app wraps, or is going to, have their status routes."""
    for layer in _layers(app):
        if path := getattr(layer, BOUNDARY, None):
            yield path
        for middleware in getattr(layer, "user_middleware", ()):  # of a stack that is built later
            if path := getattr(middleware.cls, BOUNDARY, None):
                yield middleware.kwargs.get("path", path)


def _layers(app: Any) -> Iterator[Any]:
    """An app and what it wraps, down to the first that has routes."""
    while app is not None:
        yield app
        app = None if hasattr(app, "routes") else getattr(app, "app", None)


def called_plainly(*, load: bool) -> Iterator[Mark]:
    """The marks on views of Django REST framework, which calls them and awaits nothing.

    Args:
        load: whether Django may be asked for its URLs, which imports them; else those are looked
            at that a module has by now.
    """
    rest, settings = sys.modules.get("rest_framework.views"), sys.modules.get("django.conf")
    urls = sys.modules.get("django.urls")
    if rest is None or settings is None or urls is None:
        return
    try:
        root = settings.settings.ROOT_URLCONF
        found = urls.get_resolver() if load else sys.modules.get(root, root)
        views = list(_views(getattr(found, "url_patterns" if load else "urlpatterns", ())))
    except Exception as error:  # Django says so itself, when a request needs them
        logger.debug("the URLs of Django cannot be read: %r", error)
        return
    for view in views:
        kind = getattr(view, "cls", None)
        if mark_of(view) is None and getattr(kind, "dispatch", 0) is rest.APIView.dispatch:
            yield from _marks_of_class(kind)


def _views(patterns: Iterable[Any]) -> Iterator[Any]:
    for pattern in patterns:
        yield getattr(pattern, "callback", None)
        yield from _views(getattr(pattern, "url_patterns", ()))


def _marks_of_class(kind: Any) -> Iterator[Mark]:
    for _, member in inspect.getmembers_static(kind, inspect.isfunction):
        # `@api_view` makes methods that call the view, which they have from around them.
        for function in (member, *inspect.getclosurevars(member).nonlocals.values()):
            if (mark := mark_of(function)) is not None:
                yield mark
