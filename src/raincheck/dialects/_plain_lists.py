"""What the plain dialect reads in the query of a list, and writes of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode

from raincheck.dialects.base import Census, Selection
from raincheck.errors import Problem
from raincheck.job import State

MOST = 200
"""Jobs that one answer has at most, however many are asked for."""

_ONCE = ("route", "owner", "created_since", "created_before", "limit", "cursor")


def selection(query: str, words: Mapping[State, str]) -> Selection | Problem:
    """Which jobs a query asks for, or what is wrong with it.

    A parameter without a value is as if it were not there, as in a form that was left empty. What
    is not known is passed over.
    """
    try:
        found = [each for each in parse_qsl(query, max_num_fields=100) if each[1]]
        return _selection(found, {word: state for state, word in words.items()})
    except ValueError as error:
        return malformed(str(error))


def malformed(detail: str) -> Problem:
    """A query of a list that cannot be read."""
    return Problem("malformed-query", 400, "The query cannot be read", detail)


def _selection(found: Sequence[tuple[str, str]], states: Mapping[str, State]) -> Selection:
    once: dict[str, str] = {}
    wanted: list[State] = []
    for name, value in found:
        if name == "status":
            for word in value.split(","):
                if (state := states.get(word.strip())) is None:
                    raise ValueError(f"No job has this status; they have: {', '.join(states)}.")
                wanted.append(state)
        elif name in _ONCE and once.setdefault(name, value) != value:
            raise ValueError(f"The parameter {name} is given twice.")
    return Selection(
        states=tuple(dict.fromkeys(wanted)),
        route=once.get("route"),
        owner=once.get("owner"),
        since=_moment(once, "created_since"),
        until=_moment(once, "created_before"),
        after=once.get("cursor"),
        limit=_limit(once.get("limit")),
    )


def _moment(once: Mapping[str, str], name: str) -> float | None:
    if (value := once.get(name)) is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(
            f"The parameter {name} is a time as in RFC 3339, like 2026-11-21T12:00:00Z; "
            "in a URL a plus is %2B."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _limit(value: str | None) -> int:
    if value is None:
        return Selection().limit
    if not (value.isascii() and value.isdecimal() and int(value[:9]) > 0):
        raise ValueError(f"The parameter limit is a whole number, 1 to {MOST}.")
    return min(int(value[:9]), MOST)


def following(query: str, after: str) -> str:
    """The same query, for the page behind the one that ended there."""
    kept = [each for each in parse_qsl(query) if each[1] and each[0] != "cursor"]
    return urlencode([*kept, ("cursor", after)])


def totals(
    census: Census,
    words: Mapping[State, str],
    timestamp: Callable[[float | None], str | None],
) -> dict[str, Any]:
    """The document of all totals."""
    everything: dict[str, Any] = {}
    oldest: list[float] = []
    rows = []
    for route, of in census.by_route().items():
        counts = {word: of[state][0] if state in of else 0 for state, word in words.items()}
        for word, count in counts.items():
            everything[word] = everything.get(word, 0) + count
        waiting = of.get(State.QUEUED, (0, None, 0.0))[1]
        oldest += [] if waiting is None else [waiting]
        succeeded, _, seconds = of.get(State.SUCCEEDED, (0, None, 0.0))
        mean = round(seconds / succeeded, 3) if succeeded else None
        since = timestamp(waiting)
        rows.append({"route": route, **counts, "oldest_queued_at": since, "mean_seconds": mean})
    workers = [{"name": name, "running": count} for name, count in census.workers.items()]
    return {
        **(dict.fromkeys(words.values(), 0) | everything),
        "oldest_queued_at": timestamp(min(oldest, default=None)),
        "workers": workers,
        "routes": rows,
    }
