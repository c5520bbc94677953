"""Which request meets which policy: path rules, and the decorated endpoints of readable apps."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.routing import BaseRoute, Host, Match, compile_path
from starlette.types import ASGIApp, Scope

from raincheck.decorator import Mark
from raincheck.errors import ConfigurationError
from raincheck.ids import is_id
from raincheck.policy import Policy
from raincheck.routing.discovery import (
    ANYTHING,
    METHODS,
    Found,
    Methods,
    called_plainly,
    root_path_of,
    router_of,
    walk,
)

_RULE = re.compile(r"(?:(?P<method>[A-Za-z-]+) +)?(?P<path>/\S*)")
_NO_PATH = re.compile(r"[?#*]")

# Those that the registry has (RFC 9110 §16.1.1), QUERY, and what caches and devices speak: another
# word is a slip, and the rule would never match.
_KNOWN = frozenset(
    """
    ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK MERGE
    MKACTIVITY MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE OPTIONS ORDERPATCH PATCH POST PRI
    PROPFIND PROPPATCH PUT REBIND REPORT SEARCH TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UPDATE
    UPDATEREDIRECTREF VERSION-CONTROL QUERY M-SEARCH NOTIFY PURGE SUBSCRIBE UNSUBSCRIBE
    """.split()  # noqa: SIM905 - to be read, and not on a line for each
)

_PARAMETER = re.compile(r"{[^{}:]*(:[^{}]*)?}")

# Texts that Starlette's convertors accept, to try a rule against the app's routes.
_SAMPLES = ("1", "x", "1.5", "00000000-0000-4000-8000-000000000000")


@dataclass(frozen=True, slots=True)
class Rule:
    """A path rule: the policy of a route of an app whose code is not touched.

    Attributes:
        name: the key it was written under, e.g. `"POST /videos"`.
        methods: those it is for.
        path: in Starlette's path syntax.
        pattern: what the path matches.
        policy: how the route behaves.
    """

    name: str
    methods: frozenset[str]
    path: str
    pattern: re.Pattern[str]
    policy: Policy

    @classmethod
    def parse(cls, key: object, policy: object) -> Rule:
        """Read one item of `routes=`.

        Raises:
            ConfigurationError: the key is no path rule, or its value no policy.
        """
        match = _RULE.fullmatch(key) if isinstance(key, str) else None
        if match is None:
            raise ConfigurationError(
                f'routes={{{key!r}: ...}}: a key is a path or a method and a path, like "/reports" '
                'or "POST /videos/{id:int}"'
            )
        if not isinstance(policy, Policy):
            raise ConfigurationError(f"routes={{{key!r}: {policy!r}}}: a value is a Policy")
        method = match["method"] and match["method"].upper()
        if method and method not in _KNOWN:
            close = difflib.get_close_matches(method, METHODS, n=1, cutoff=0.7)
            cure = f"; do you mean {close[0]}?" if close else ""
            raise ConfigurationError(f"routes={{{key!r}: ...}}: there is no method {method}{cure}")
        if _NO_PATH.search(match["path"]):
            raise ConfigurationError(
                f"routes={{{key!r}: ...}}: a path has no query and no wildcard; parameters are "
                'written "/videos/{id}", and what remains of the path "/videos/{rest:path}"'
            )
        try:
            pattern = compile_path(match["path"])[0]
        except (AssertionError, KeyError, ValueError) as error:
            raise ConfigurationError(f"routes={{{key!r}: ...}}: {error}") from error
        methods = (method,) if method else METHODS
        return cls(match[0], frozenset(methods), match["path"], pattern, policy)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of a request before its handler is entered.

    Attributes:
        policy: the policy that it will probably meet.
        rule: the path rule that it meets for certain; None for a decorated endpoint.
        certain: whether the app's routes say that a decorated endpoint is there.
    """

    policy: Policy
    rule: Rule | None = None
    certain: bool = True


def route_path(path: str, root_path: str) -> str:
    """A path below `root_path`, as Starlette's routing sees it."""
    if root_path and path.startswith(root_path):
        rest = path[len(root_path) :]
        if not rest or rest[0] == "/":
            return rest
    return path


class Routing:
    """Says of each request whether it may meet a long-running route.

    Path rules decide; of decorated endpoints this is only a filter for speed, and the entry itself
    decides. Where an app's routes cannot be read, every request is a candidate.

    Args:
        app: the app below the middleware.
        rules: the path rules; of two that match, the first counts.
        policy: the middleware's own policy.
        route_of: the name and the policy of a decorated endpoint's route.
        path: the mount path of the status routes.
        is_status: whether an app is the one of the status routes, mounted by hand.
        lists: whether jobs are listed at the mount path itself.

    Attributes:
        rules: the path rules, as they were read.

    Raises:
        ConfigurationError: a rule that is malformed, or that no request can meet; or a marked view
            that is known by now to be called as a plain function.
    """

    def __init__(
        self,
        app: ASGIApp,
        rules: Mapping[str, Policy],
        *,
        policy: Policy,
        route_of: Callable[[Mark], tuple[str, Policy]],
        path: str,
        is_status: Callable[[object], bool] = lambda app: False,
        lists: bool = False,
    ) -> None:
        self._app = app
        self._is_status = is_status
        self._policy = policy
        self._route_of = route_of
        self._path = path
        self._lists = lists
        self.rules: list[Rule] = [Rule.parse(key, value) for key, value in rules.items()]
        self._by_rule = _Table()
        for rule in self.rules:
            self._check_rule(rule)
            self._by_rule.add(rule.path, rule.methods, Candidate(rule.policy, rule))
        self._by_mark = _Table()
        self._complete = False
        self.root_path: str = ""  # that the app itself gives its requests
        self.hides: bool = False  # whether the app has something that cannot be read
        self._near: tuple[str, ...] = ()
        # The route lists that were read, and their lengths: routes may be added later. At first
        # one that is never right, so that a request reads the app unless a lifespan did.
        self._seen: list[tuple[Sequence[BaseRoute], int]] = [((), -1)]
        _check_callers(load=False)

    def complete(self) -> bool:
        """Whether all endpoints of the app were read."""
        return self._complete

    def near(self, scope: Scope) -> str | None:
        """The path of a request, below `root_path`, if it begins like one of ours; else None.

        Most requests are told apart by this and cost no more.
        """
        for routes, count in self._seen:
            if len(routes) != count:
                self.read(mounted=False, check=False)
                break
        path: str = scope["path"]
        if root_path := self.root_path or scope.get("root_path"):
            path = route_path(path, root_path)
        return path if path.startswith(self._near) else None

    def find(self, path: str, method: str) -> Candidate | None:
        """The candidate that a request is, or None for one that is not ours."""
        if self.rules and (candidate := self._by_rule.find(path, method)) is not None:
            return candidate
        return self._by_mark.find(path, method)

    def is_apps(self, path: str, method: str, id: str) -> bool:
        """Whether a path below the mount path may be the app's own all the same.

        Where its routes cannot be read it may have pages there; what no job's id can be is theirs.

        Args:
            path: the path.
            method: the request's.
            id: what stands where a job's id would.
        """
        if is_id(id):
            return False
        there = self._by_mark.find(path, method)
        return there is not None and not there.certain

    def read(self, *, mounted: bool, check: bool = True) -> None:
        """Read the app's routes, as far as they can be read.

        Args:
            mounted: whether the status routes are mounted by hand.
            check: whether to look for mistakes as well.

        Raises:
            ConfigurationError: a mark that no request can enter, status routes where no client
                looks for them, or a path rule that matches none of the app's routes.
        """
        by_mark = _Table()
        seen: list[tuple[Sequence[BaseRoute], int]] = []
        found = list(walk(self._app, "", seen, self._is_status))
        for there in found:
            if there.marks is None:
                candidate = Candidate(self._policy, certain=False)
                by_mark.add(there.path, there.methods, candidate)
                continue
            for methods, mark in there.marks:
                by_mark.add(there.path, methods, Candidate(self._route_of(mark)[1]))
        status = self._path if self._lists else self._path + "/"
        self._near = _shortest({status, *self._by_rule.beginnings, *by_mark.beginnings})
        self._by_mark, self._seen = by_mark, seen
        self.root_path = root_path_of(self._app)
        self.hides = any(there.marks is None for there in found)
        # Of other frameworks than Starlette's own a mark may be missed, and a request shows it.
        self._complete = not (self.hides or any(there.foreign for there in found))
        if check:
            self._check_mount(found, mounted=mounted)
            _check_order(found)
            _check_callers(load=True)
            router = router_of(self._app)
            if router is not None:
                for rule in self.rules:
                    self._check_matches(rule, router, found)

    def _check_rule(self, rule: Rule) -> None:
        if rule.path.startswith(self._path + "/"):
            raise ConfigurationError(
                f"routes={{{rule.name!r}: ...}} lies below the status routes at {self._path}; give "
                'the middleware another path, e.g. path="/_jobs"'
            )
        for earlier in self.rules[: self.rules.index(rule)]:
            if earlier.path == rule.path and rule.methods <= earlier.methods:
                raise ConfigurationError(
                    f"routes={{{rule.name!r}: ...}} can never match: {earlier.name!r} comes first; "
                    "put the narrower rule before the wider one, or remove it"
                )

    def _check_mount(self, found: list[Found], *, mounted: bool) -> None:
        for there in found:
            if there.another and there.path == self._path:
                raise ConfigurationError(
                    f"path={self._path!r}: a LongRunningMiddleware stands around another one, and "
                    "both have their status routes there; take one of them away, or give it "
                    'another path, e.g. "/_jobs"'
                )
        places = [there.path for there in found if there.status]
        if places and self._path not in places:
            raise ConfigurationError(
                f"jobs.status_app is mounted at {places[0]!r}, and path={self._path!r}: clients "
                "would be sent there in vain; give both the same path"
            )
        ours = [there for there in found if not there.foreign]
        below = [there.path for there in ours if there.path.startswith(self._path + "/")]
        readable = all(there.marks is not None for there in found)
        if mounted and readable and not places and not below:
            raise ConfigurationError(
                f"jobs.status_app was taken, but the app has no mount at path={self._path!r}; "
                "mount it there, or tell the middleware where it is"
            )
        if not mounted and below:
            raise ConfigurationError(
                f"path={self._path!r}: the app's own route {below[0]!r} lies below the status "
                'routes and could not be reached; give the middleware another path, e.g. "/_jobs"'
            )
        if self._lists and not mounted and any(self._hidden_by_lists(there) for there in ours):
            raise ConfigurationError(
                f"path={self._path!r}: the app's own route there could not be reached, since "
                "pages=... has jobs listed there; give the middleware another path, e.g. "
                '"/_jobs"'
            )

    def _hidden_by_lists(self, there: Found) -> bool:
        return there.path == self._path and "GET" in (there.methods or {"GET"})

    def _check_matches(self, rule: Rule, router: Any, found: list[Found]) -> None:
        if any(isinstance(route, Host) for route in router.routes):
            return  # what matches depends on the host
        for there in found:
            if there.methods is None or there.methods & rule.methods:
                literal = "{" not in there.path
                if there.path == rule.path or (literal and rule.pattern.match(there.path)):
                    return
        for path, method in itertools.product(_samples(rule.path, rule.pattern), rule.methods):
            scope = {"type": "http", "method": method, "path": path, "headers": []}
            if any(route.matches(dict(scope))[0] is Match.FULL for route in router.routes):
                return
        raise ConfigurationError(
            f"routes={{{rule.name!r}: ...}} matches none of the app's routes; compare the method "
            "and the path, without the root_path, with the app's own"
        )


def _check_order(found: list[Found]) -> None:
    used = {mark for there in found for _, mark in there.marks or ()}
    for there in found:
        if there.above and used.isdisjoint(there.above):
            name = there.above[0].name
            at = "" if there.marks is None else f" of {there.path!r}"
            raise ConfigurationError(
                f"@long_running stands above the route decorator{at}, which has registered {name} "
                "without it; put it below, right above the function: @app.post(...), then "
                "@long_running, then def"
            )


def _check_callers(*, load: bool) -> None:
    for mark in called_plainly(load=load):
        raise ConfigurationError(
            f"{mark.name} is marked long-running, and Django REST framework calls it without "
            "awaiting it; put @long_running above @api_view, or around the view: "
            "long_running(View.as_view()), or use a path rule (routes=...)"
        )


_Pattern = tuple[int, re.Pattern[str], Methods, Candidate]


class _Table:
    """Candidates by path and method, of which the first that was added counts.

    Literal paths are found in a dict, so that only the patterns ahead of them are tried; and of
    these only those with the same first segment, or with a parameter in it.
    """

    def __init__(self) -> None:
        self._added = 0
        self.beginnings: set[str] = set()  # of all paths, up to the first parameter
        self.literal: dict[str, list[tuple[int, Methods, Candidate]]] = {}
        self.patterns: dict[str, list[_Pattern]] = {}
        self.anywhere: list[_Pattern] = []
        self.rest: tuple[int, Candidate] | None = None  # which every path matches

    def add(self, path: str, methods: Methods, candidate: Candidate) -> None:
        self._added += 1
        if path == ANYTHING and methods is None:
            self.beginnings.add("")
            self.rest = self.rest or (self._added, candidate)
            return
        self.beginnings.add(path.partition("{")[0])
        if "{" not in path:
            self.literal.setdefault(path, []).append((self._added, methods, candidate))
            return
        pattern = (self._added, _pattern(path), methods, candidate)
        beginning = _beginning(path)
        if "{" not in beginning:
            self.patterns.setdefault(beginning, [*self.anywhere]).append(pattern)
        else:
            for patterns in (self.anywhere, *self.patterns.values()):
                patterns.append(pattern)

    def find(self, path: str, method: str) -> Candidate | None:
        before, found = self.rest or (self._added + 1, None)
        for number, methods, candidate in self.literal.get(path, ()):
            if number < before and (methods is None or method in methods):
                before, found = number, candidate
                break
        if not self.patterns and not self.anywhere:
            return found
        patterns = self.patterns.get(_beginning(path), self.anywhere)
        for number, pattern, methods, candidate in patterns:
            if number > before:
                break
            if (methods is None or method in methods) and pattern.match(path):
                return candidate
        return found


def _shortest(beginnings: set[str]) -> tuple[str, ...]:
    """Those that none of the others is a beginning of."""
    found: tuple[str, ...] = ()
    for beginning in sorted(beginnings):
        if not beginning.startswith(found):
            found = (*found, beginning)
    return found


def _beginning(path: str) -> str:
    """The first segment of a path."""
    return path[1:].partition("/")[0]


def _pattern(path: str) -> re.Pattern[str]:
    """What matches a path in Starlette's syntax, whatever its parameters are called.

    A mount and a route below it may call theirs the same.
    """
    numbers = itertools.count()
    unnamed = _PARAMETER.sub(lambda match: f"{{p{next(numbers)}{match[1] or ''}}}", path)
    return compile_path(unnamed)[0]


def meets(rule: Rule, there: Found) -> bool:
    """Whether there are requests that a path rule and a route of the app both match."""
    if there.methods is not None and not there.methods & rule.methods:
        return False
    theirs = _pattern(there.path)
    return any(theirs.match(path) for path in _samples(rule.path, rule.pattern)) or any(
        rule.pattern.match(path) for path in _samples(there.path, theirs)
    )


def _samples(template: str, pattern: re.Pattern[str]) -> Iterator[str]:
    """Paths that a template matches, so that at least one is one that another takes too."""
    names = [match[0] for match in _PARAMETER.finditer(template)]
    for values in itertools.product(_SAMPLES, repeat=min(len(names), 4)):
        sample = template
        for name, value in itertools.zip_longest(names, values, fillvalue="1"):
            sample = sample.replace(name, value, 1)
        if pattern.match(sample):
            yield sample
