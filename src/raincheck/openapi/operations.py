"""Which operations of a document are long-running, and by which middleware.

The middlewares of an app are found where it has them: around it, in a list of its own that is built
later, and in what it mounts. Which of its endpoints are marked is what `routing` finds.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from starlette.routing import Host, Mount
from starlette.types import ASGIApp

from raincheck.middleware import LongRunningMiddleware, Setup
from raincheck.policy import Policy
from raincheck.routing.discovery import Methods, root_path_of, router_of, routes_of, walk
from raincheck.routing.table import Rule

_PARAMETER = re.compile(r"{[^{}]*}")

# Texts that one kind of parameter or another takes: the document does not say of which kind it is.
_SAMPLES = ("1", "x", "1.5", "00000000-0000-4000-8000-000000000000")
_MOST_VARIED = 3


class Door(NamedTuple):
    """A middleware as an app has it.

    Attributes:
        prefix: the path at which it is mounted; `""` for the root.
        root: the `root_path` that the app inside gives its requests.
        setup: what it was given.
        inside: the app whose endpoints it can see.
    """

    prefix: str
    root: str
    setup: Setup
    inside: ASGIApp | None

    @property
    def path(self) -> str:
        """Where its status routes are, below the root."""
        return self.prefix + self.setup.path


def doors(app: Any, prefix: str = "") -> Iterator[Door]:
    """The middlewares of an app, from the outside in.

    Args:
        app: the app, whatever stands around it, or a middleware.
        prefix: where it is mounted.
    """
    root = root_path_of(app)
    for layer in layers(app):
        if isinstance(layer, LongRunningMiddleware):
            yield Door(prefix, root_path_of(layer.app), layer.setup, layer.app)
        own = [each for each in getattr(layer, "user_middleware", ()) if _is_ours(each.cls)]
        for number, middleware in enumerate(own, start=1):
            # A middleware that stands around another one does not see into the app.
            inside = layer.router if number == len(own) else None
            yield Door(prefix, root, Setup.of(**middleware.kwargs), inside)
        for path, mounted in mounts_of(layer):
            yield from doors(mounted, prefix + path)


def layers(app: Any) -> Iterator[Any]:
    """An app and what it wraps, down to the first that has routes or is known to have nothing.

    Of Quart, what it has in place of itself, `app.asgi_app`, comes next.
    """
    seen: list[Any] = []
    while app is not None and not any(app is layer for layer in seen):
        seen.append(app)
        yield app
        following = getattr(app, "asgi_app", None)
        if following is None and not hasattr(app, "routes"):
            following = getattr(app, "app", None)
        app = following


def mounts_of(layer: Any) -> Iterator[tuple[str, Any]]:
    """The apps that one with Starlette's routes mounts, each with its path there."""
    if not hasattr(layer, "routes") or router_of(layer) is not layer:
        return
    for route in routes_of(layer):
        kind = getattr(route, "original_route", route)
        if isinstance(kind, Mount):
            yield getattr(route, "path", None) or "", kind.app
        elif isinstance(kind, Host):
            yield "", kind.app


def _is_ours(kind: object) -> bool:
    return inspect.isclass(kind) and issubclass(kind, LongRunningMiddleware)


class Operations:
    """Says of the operations of a document under which policy one middleware has them.

    Args:
        door: the middleware.
        paths: all paths of the document, as requests have them below the root.

    Raises:
        ConfigurationError: the app has a mark that cannot work.
    """

    def __init__(self, door: Door, paths: list[str]) -> None:
        self._door = door
        self._templates = {template(path) for path in paths}
        self._found: dict[str, list[tuple[Methods, Policy | None]]] = {}
        if door.inside is None:
            return
        jobs, policy = door.setup.jobs, door.setup.policy
        is_status = jobs.is_status_app if jobs is not None else lambda app: False
        for there in walk(door.inside, door.prefix, [], is_status):
            at = self._found.setdefault(template(there.path), [])
            at += [
                (methods, policy.with_settings(mark.settings))
                for methods, mark in there.marks or ()
            ]
            at.append((there.methods, None))

    def policy(self, path: str, method: str) -> Policy | None:
        """The policy of an operation; None if it is not long-running, or nobody can tell.

        Args:
            path: its path, below the root.
            method: in upper case.
        """
        below = path.removeprefix(self._door.prefix)
        if path.startswith(self._door.prefix + "/"):
            for rule in self._door.setup.rules:
                if method in rule.methods and self._meets(rule, below):
                    return rule.policy
        for methods, policy in self._found.get(template(path), ()):
            if methods is None or method in methods:
                return policy
        return None

    def _meets(self, rule: Rule, path: str) -> bool:
        """Whether requests for a path of the document meet a rule, at least some of them."""
        if template(rule.path) == template(path):
            return True
        if any(rule.pattern.match(sample) for sample in _samples(path)):
            return True
        if template(self._door.prefix + rule.path) in self._templates:
            return False
        pattern = "[^/]+".join(map(re.escape, _PARAMETER.split(path)))
        return any(re.fullmatch(pattern, sample) for sample in _samples(rule.path))


def template(path: str) -> str:
    """A path whose parameters have neither names nor kinds."""
    return _PARAMETER.sub("{}", path)


def _samples(path: str) -> Iterator[str]:
    """Paths that requests for this one may have."""
    literals = _PARAMETER.split(path)
    count = len(literals) - 1
    varied = itertools.product(_SAMPLES, repeat=min(count, _MOST_VARIED))
    for values in varied:
        filled = [*values, *itertools.repeat("1", count - len(values)), ""]
        yield "".join(itertools.chain(*zip(literals, filled, strict=True)))
