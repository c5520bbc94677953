"""Which of an app's routes the path rules match, before anybody asks for one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from raincheck.routing.discovery import Found, Methods
from raincheck.routing.table import Rule, meets


class Match(NamedTuple):
    """A rule, and what it matches.

    Attributes:
        rule: the rule, as it is written.
        routes: the routes, as the app has them.
    """

    rule: str
    routes: Sequence[str]


class Checked(NamedTuple):
    """What is known of an app's rules.

    Attributes:
        matches: each rule with its routes.
        marked: the routes that no rule matches, and that `@long_running` marks.
        others: those that are neither.
        unread: whether the app has routes that cannot be read, so that a rule may match one.
        hides: whether a route may be marked, or long-running otherwise, where that is not seen.
    """

    matches: Sequence[Match]
    marked: Sequence[str]
    others: Sequence[str]
    unread: bool
    hides: bool


def check(rules: Sequence[Rule], found: Sequence[Found]) -> Checked:
    """Compare rules with what an app has."""
    paths = {there.path for there in found}
    routes = [
        there
        for there in found
        if not _unread(there)
        and (there.methods is None or there.methods - _UNASKED)
        # Where a slash at the end makes no difference it is one route.
        and not (there.foreign and there.path[-1] == "/" and there.path[:-1] in paths)
    ]
    met = [[there for there in routes if meets(rule, there)] for rule in rules]
    others = [there for there in routes if not any(there in each for each in met)]
    matches = [Match(rule.name, _shown(each)) for rule, each in zip(rules, met, strict=True)]
    hides = any(there.marks is None or there.another for there in found)
    return Checked(matches, _marked(others), _plain(others), any(map(_unread, found)), hides)


_UNASKED = frozenset({"HEAD", "OPTIONS"})
"""Methods that frameworks add by themselves."""


def _unread(there: Found) -> bool:
    """Whether it stands for whatever is below a path."""
    return there.marks is None and there.methods is None and there.path.endswith(":path}")


def _shown(routes: Sequence[Found]) -> list[str]:
    return _lines((there.path, there.methods) for there in routes)


def _marked(routes: Sequence[Found]) -> list[str]:
    return _lines((there.path, methods) for there in routes for methods, _ in there.marks or ())


def _plain(routes: Sequence[Found]) -> list[str]:
    """What no mark is on: of a class it may be some of its methods."""
    found: list[str] = []
    for there in routes:
        left = _unmarked(there)
        if left is None and there.marks:
            found.append(f"any other method {there.path}")
        elif left is None or left:
            found.append(_line(there.path, left))
    return list(dict.fromkeys(found))


def _unmarked(there: Found) -> Methods:
    marks = there.marks or ()
    if any(methods is None or methods == there.methods for methods, _ in marks):
        return frozenset()
    if there.methods is None:
        return None
    return (there.methods - _UNASKED).difference(*(methods or () for methods, _ in marks))


def _lines(routes: Iterable[tuple[str, Methods]]) -> list[str]:
    return list(dict.fromkeys(_line(path, methods) for path, methods in routes))


def _line(path: str, methods: Methods) -> str:
    if methods is None:
        return f"any method {path}"
    return f"{', '.join(sorted(methods - _UNASKED))} {path}"
