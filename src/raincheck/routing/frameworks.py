"""Reading the routes of frameworks that are not Starlette, each by its own public way.

Nothing here imports a framework: an app of one is there only if somebody else has. What cannot be
read, for whatever reason, is given up: then every request may meet a marked endpoint, and the entry
alone decides.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from raincheck.decorator import Mark, mark_of

logger: logging.Logger = logging.getLogger("raincheck")

DEPTH = 8
"""How many functions inside one another are looked through for a mark."""


class ForeignRoute(NamedTuple):
    """A route of such an app.

    Attributes:
        path: in Starlette's path syntax; a pattern may match more than the framework's does.
        methods: those that reach it, or None for all.
        marks: the marks on it; None if it cannot be looked into.
    """

    path: str
    methods: frozenset[str] | None
    marks: Sequence[Mark] | None


def foreign_routes(app: Any) -> list[ForeignRoute] | None:
    """The routes of an app, if it is one of a framework that is known here; else None."""
    app = getattr(app, "__self__", app)  # Quart's `app.asgi_app`, say
    for module, name, read in _READERS:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and isinstance(app, kind):
            try:
                return [*_either_way(read(app))]
            except Exception as error:  # another version of it, or an app that is not whole yet
                logger.debug("the routes of %s cannot be read: %r", type(app).__name__, error)
                return None
    return None


def _litestar(app: Any) -> Iterator[ForeignRoute]:
    for route in app.routes:
        handlers = getattr(route, "route_handlers", None)
        if handlers is None:  # an ASGI app that is mounted, or websockets
            kind = type(route).__name__
            if kind != "WebSocketRoute":
                yield ForeignRoute(_path(route.path.rstrip("/") + "/{rest:path}"), None, None)
                yield ForeignRoute(_path(route.path), None, None)
            continue
        for handler in handlers:
            yield ForeignRoute(
                _path(route.path), frozenset(handler.http_methods), _marks(handler.fn)
            )


def _werkzeug(app: Any) -> Iterator[ForeignRoute]:
    for rule in app.url_map.iter_rules():
        if rule.websocket:
            continue
        path = re.sub(r"<(?:([^:<>]*):)?[^<>]*>", _converter, rule.rule)
        methods = None if rule.methods is None else frozenset(rule.methods)
        yield ForeignRoute(path, methods, _marks(app.view_functions.get(rule.endpoint)))


def _falcon(app: Any) -> Iterator[ForeignRoute]:
    look = importlib.import_module("falcon.inspect")  # which Falcon does not import by itself
    if look.inspect_sinks(app):
        yield ForeignRoute("/{rest:path}", None, None)
    for route in look.inspect_routes(app):
        resource = _class(route.class_name, route.source_info.rpartition(":")[0])
        for method in route.methods:
            if method.internal:
                continue
            responder = getattr(resource, method.function_name, None)
            found = None if responder is None else _marks(responder)
            yield ForeignRoute(_path(route.path), frozenset({method.method}), found)


def _class(name: str, file: str) -> Any:
    """The class of this name that a file defines; None if it is not to be found there."""
    for module in [*sys.modules.values()]:
        if getattr(module, "__file__", None) == file:
            return getattr(module, name, None)
    return None


def _django(app: Any) -> Iterator[ForeignRoute]:
    urls = sys.modules["django.urls"]
    yield from _patterns(urls.get_resolver().url_patterns, "/")


def _patterns(patterns: Iterable[Any], prefix: str) -> Iterator[ForeignRoute]:
    for pattern in patterns:
        text = str(pattern.pattern)
        regular = type(pattern.pattern).__name__ != "RoutePattern"
        path = prefix + re.sub(r"<(?:([^:<>]*):)?[^<>]*>", _converter, text)
        if regular:  # a regular expression, or a prefix by language
            yield ForeignRoute(prefix + "{rest:path}", None, None)
        elif (inner := getattr(pattern, "url_patterns", None)) is not None:
            yield from _patterns(inner, path)
        else:
            yield ForeignRoute(path, None, _marks(pattern.callback))


_READERS: tuple[tuple[str, str, Callable[[Any], Iterator[ForeignRoute]]], ...] = (
    ("litestar.app", "Litestar", _litestar),
    ("quart.app", "Quart", _werkzeug),
    ("falcon.asgi.app", "App", _falcon),
    ("django.core.handlers.asgi", "ASGIHandler", _django),
    # Of WSGI: their routes are shown, and nobody looks for marks there.
    ("flask.app", "Flask", _werkzeug),
    ("django.core.handlers.wsgi", "WSGIHandler", _django),
)


_FRAMEWORKS = {module.partition(".")[0] for module, _, _ in _READERS}


def _either_way(routes: Iterable[ForeignRoute]) -> Iterator[ForeignRoute]:
    """With a slash at the end and without: most of them take either, or can be told to."""
    for route in routes:
        yield route
        if not route.path.endswith(":path}"):
            other = route.path.rstrip("/") or "/"
            yield route._replace(path=other if other != route.path else route.path + "/")


def _path(path: str) -> str:
    """A path in Starlette's syntax: what kind a parameter has matters only if it spans slashes."""
    return re.sub(r"{(?:[^{}:]*)(?::([^{}()]*)[^{}]*)?}", _converter, path) or "/"


def _converter(match: re.Match[str]) -> str:
    plain = match[1] in (None, "", "str", "string", "int", "float", "uuid", "slug", "decimal", "dt")
    return "{p}" if plain else "{p:path}"


def _marks(function: Any) -> Sequence[Mark] | None:
    """The marks on a handler, or in what it is made of; None if it cannot be looked into."""
    kind = getattr(function, "view_class", None) or getattr(function, "cls", None)
    if inspect.isclass(kind):
        members = [member for _, member in inspect.getmembers_static(kind, inspect.isfunction)]
        found = [mark for member in (function, *members) for mark in _inside(member, DEPTH)]
        return [*dict.fromkeys(mark for mark in found if mark is not None)]
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        return None
    found = [*dict.fromkeys(_inside(function, DEPTH))]
    marks = [mark for mark in found if mark is not None]
    return None if found and not marks else marks


def _inside(function: Any, depth: int) -> Iterator[Mark | None]:
    """The marks on a function, and on those that it has from around it, as decorators' have.

    Among them is None if it has something else from there that may hide one, as Django Ninja's
    views have the object that calls the endpoint.
    """
    if (mark := mark_of(function)) is not None:
        yield mark
    elif not depth:
        yield None
    elif callable(function):
        wrapped = getattr(function, "__wrapped__", None)
        cells = getattr(inspect.unwrap(function), "__closure__", None) or ()
        outer = getattr(function, "__closure__", None) or ()
        for cell in (*outer, *cells):
            try:
                content = cell.cell_contents
            except ValueError:  # it is empty yet
                continue
            if inspect.isroutine(content) and content is not function:
                yield from _inside(content, depth - 1)
            elif inspect.isclass(content):
                yield from filter(None, map(mark_of, vars(content).values()))
            elif content is not function and not _hides_nothing(content):
                yield None
        if wrapped is not None:
            yield from _inside(wrapped, depth - 1)


def _hides_nothing(content: Any) -> bool:
    if isinstance(content, dict):
        content = [*content, *content.values()]
    if isinstance(content, list | tuple | set | frozenset):
        return all(_hides_nothing(each) for each in content)
    of = type(content).__module__.partition(".")[0]
    simple = content is None or isinstance(content, str | bytes | int | float | re.Pattern)
    return simple or inspect.ismodule(content) or of in _FRAMEWORKS
