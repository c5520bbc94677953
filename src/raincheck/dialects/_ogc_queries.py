"""What the OGC dialect reads in the query of a list: requirements class "Job list"."""

from __future__ import annotations

from collections.abc import Mapping

from raincheck.dialects.base import Selection
from raincheck.dialects.documents import (
    limit_of,
    malformed,
    moment_of,
    once,
    parameters,
    states_of,
)
from raincheck.errors import Problem
from raincheck.job import State

_ONCE = ("type", "processID", "datetime", "limit", "cursor")


def selection(
    query: str, words: Mapping[State, str], routes: Mapping[str, str]
) -> Selection | Problem:
    """Which jobs a query asks for, or what is wrong with it.

    Args:
        query: of a URL.
        words: how the states are spelt.
        routes: by the id of a process, the route that it is.
    """
    states = {word: [s for s in State if words[s] == word] for word in words.values()}
    try:
        found = parameters(query)
        given = once(found, _ONCE)
        if set(given.get("type", "process").split(",")) != {"process"}:
            raise ValueError("Jobs here are of the type process.")
        if any(name in ("minDuration", "maxDuration") for name, _ in found):
            raise ValueError("Jobs are not selected by their duration here.")
        process = given.get("processID")
        if process is not None and "," in process:
            raise ValueError("Jobs are selected by one processID at a time here.")
        since, until = _interval(given.get("datetime"))
        return Selection(
            states=states_of(found, "status", states),
            route=None if process is None else routes.get(process, process),
            since=since,
            until=until,
            after=given.get("cursor"),
            limit=limit_of("limit", given.get("limit"), 10),
        )
    except ValueError as error:
        return malformed(str(error))


def _interval(value: str | None) -> tuple[float | None, float | None]:
    """A time, or an interval of times with both its ends; `created` is told in whole seconds."""
    if value is None:
        return None, None
    start, slash, end = value.partition("/")
    since = moment_of("datetime", None if start in ("", "..") else start)
    until = moment_of("datetime", None if end in ("", "..") else end) if slash else since
    if since is None and until is None:
        raise ValueError("The parameter datetime has no time in it.")
    return since, None if until is None else until // 1 + 1
