"""What the plain dialect reads in the query of a list, and writes of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raincheck.dialects.base import Census, Selection
from raincheck.dialects.documents import (
    limit_of,
    malformed,
    moment_of,
    once,
    parameters,
    states_of,
    timestamp,
)
from raincheck.errors import Problem
from raincheck.job import State

_ONCE = ("route", "owner", "created_since", "created_before", "limit", "cursor")


def selection(query: str, words: Mapping[State, str]) -> Selection | Problem:
    """Which jobs a query asks for, or what is wrong with it.

    A parameter without a value is as if it were not there, as in a form that was left empty. What
    is not known is passed over.
    """
    try:
        found = parameters(query)
        given = once(found, _ONCE)
        return Selection(
            states=states_of(found, "status", {word: (state,) for state, word in words.items()}),
            route=given.get("route"),
            owner=given.get("owner"),
            since=moment_of("created_since", given.get("created_since")),
            until=moment_of("created_before", given.get("created_before")),
            after=given.get("cursor"),
            limit=limit_of("limit", given.get("limit"), Selection().limit),
        )
    except ValueError as error:
        return malformed(str(error))


def totals(census: Census, words: Mapping[State, str]) -> dict[str, Any]:
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
