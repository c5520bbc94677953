"""Which jobs `SQLiteStore` lists, and how it counts them."""

from __future__ import annotations

from collections.abc import Collection

from raincheck.job import State
from raincheck.serialization import load_cursor

BEHIND = "SELECT 1 FROM jobs WHERE as_of IS NOT version LIMIT 1"
"""Whether there are jobs that are not listed as they are, since an older version wrote them."""

# From the index alone, until it is known which: it is read from where the newest of each route and
# state are, and of few jobs the records are read.
_LIST = """
SELECT created_at, id, record FROM jobs WHERE number IN (
    SELECT number FROM jobs WHERE {} ORDER BY created_at DESC, id DESC LIMIT ?
) ORDER BY created_at DESC, id DESC
"""

TOTALS = """
SELECT route, state, count(*), min(created_at), total(seconds) FROM jobs
WHERE state IS NOT NULL GROUP BY route, state
"""


def listing(
    states: Collection[State],
    route: str | None,
    owner: str | None,
    since: float | None,
    until: float | None,
    after: str | None,
    limit: int,
) -> tuple[str, list[object]]:
    """What to ask for a page, and with which parameters: see `Store.list`.

    One row more than a page has tells that there is another page.

    Raises:
        MalformedCursor: no page says `after` of its end.
    """
    conditions, parameters = ["state IS NOT NULL"], list[object]()

    def add(condition: str, *values: object) -> None:
        conditions.append(condition)
        parameters.extend(values)

    if states:
        add(f"state IN ({', '.join('?' * len(states))})", *states)
    if route is not None:
        add("route = ?", route)
    if owner is not None:
        add("owner = ?", owner)
    if since is not None:
        add("created_at >= ?", since)
    if until is not None:
        add("created_at < ?", until)
    if after is not None:
        add("(created_at, id) < (?, ?)", *load_cursor(after))
    return _LIST.format(" AND ".join(conditions)), [*parameters, limit + 1]
