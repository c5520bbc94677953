"""Which of an app's routes the path rules match, before anybody asks for one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from raincheck.routing.discovery import Found
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
        others: the routes that no rule matches.
        unread: whether the app has routes that cannot be read, so that a rule may match one.
    """

    matches: Sequence[Match]
    others: Sequence[str]
    unread: bool


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
    return Checked(matches, _shown(others), any(map(_unread, found)))


_UNASKED = frozenset({"HEAD", "OPTIONS"})
"""Methods that frameworks add by themselves."""


def _unread(there: Found) -> bool:
    """Whether it stands for whatever is below a path."""
    return there.marks is None and there.methods is None and there.path.endswith(":path}")


def _shown(routes: Sequence[Found]) -> list[str]:
    return list(dict.fromkeys(map(_line, routes)))


def _line(there: Found) -> str:
    if there.methods is None:
        return f"any method {there.path}"
    return f"{', '.join(sorted(there.methods - _UNASKED))} {there.path}"
