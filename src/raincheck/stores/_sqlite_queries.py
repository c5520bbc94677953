"""What `SQLiteStore` asks of its tables, where that is not said in a line."""

from __future__ import annotations

from collections.abc import Collection

from raincheck.job import State
from raincheck.serialization import load_cursor
from raincheck.stores._sqlite_changes import NOW

# The pieces from the one on that has the byte before this one: it tells an end from a body that is
# not there any more. What was read and what is large stays where it is: `length` does not read it.
PIECES = """
SELECT bodies.fence, start, length(piece),
    CASE WHEN length(piece) <= :small AND start + length(piece) > :offset THEN piece END
FROM jobs JOIN bodies ON job = number AND bodies.fence = jobs.fence
WHERE id = :id AND start >= coalesce((
    SELECT max(start) FROM bodies
    WHERE job = number AND bodies.fence = jobs.fence AND start < :offset
), 0)
ORDER BY start LIMIT :rows
"""

# With the body of a response that is complete, if it is in few and small pieces.
FETCH = """
SELECT record, piece FROM jobs LEFT JOIN bodies
    ON job = number AND bodies.fence = jobs.fence AND unfinished IS NULL
    AND start < ?2 AND start + length(piece) <= ?2
WHERE id = ?1 ORDER BY start LIMIT ?3
"""

# Of a response that is not complete: its head, and how much there is of its body.
_HEAD = "(SELECT piece FROM bodies WHERE job = number AND bodies.fence = ~jobs.fence)"
_SIZE = """coalesce((
    SELECT start + length(piece) FROM bodies WHERE job = number AND bodies.fence = jobs.fence
    ORDER BY start DESC LIMIT 1
), 0)"""

PARTIAL = """
SELECT record, HEAD, SIZE FROM jobs WHERE id = ?
""".replace("HEAD", _HEAD).replace("SIZE", _SIZE)

# Of jobs by id, each with the version that is known and, unless it is null, the size of what is
# known of its response: those of which there is more. A head counts for a byte.
NEWS = """
SELECT key FROM json_each(?) LEFT JOIN jobs ON jobs.id = key
WHERE version IS NULL OR version > json_extract(value, '$[0]')
    OR CASE WHEN json_extract(value, '$[1]') IS NOT NULL
        THEN SIZE + (HEAD IS NOT NULL) > json_extract(value, '$[1]') END
""".replace("HEAD", _HEAD).replace("SIZE", _SIZE)

DELIVERABLE = """
SELECT 1 FROM deliveries WHERE due <= ? AND coalesce(lease_until <= NOW, true) LIMIT 1
""".replace("NOW", NOW)
"""Whether there is a message for `Changes.claim_deliveries`: nobody writes to find that out."""

BEHIND = "SELECT 1 FROM jobs WHERE as_of IS NOT version LIMIT 1"
"""Whether there are jobs that are not listed as they are, since an older version wrote them."""

ROUTES = """
WITH RECURSIVE named AS (
    SELECT min(route) AS route FROM jobs WHERE state IS NOT NULL
    UNION ALL
    SELECT (SELECT min(route) FROM jobs WHERE state IS NOT NULL AND route > named.route)
    FROM named WHERE named.route IS NOT NULL
)
SELECT route FROM named WHERE route IS NOT NULL
"""
"""Those that jobs are listed of: the index is asked for the next one as long as there is one."""

# From the index alone, until it is known which: of few jobs the records are read. Of each route and
# state as many as a page has, and of all these the newest.
_LIST = """
SELECT created_at, id, record FROM jobs WHERE number IN (
    SELECT number FROM ({}) ORDER BY created_at DESC, id DESC LIMIT ?1
) ORDER BY created_at DESC, id DESC
"""
_NEWEST = """
SELECT * FROM (
    SELECT number, created_at, id FROM jobs WHERE {} ORDER BY created_at DESC, id DESC LIMIT ?1
)
"""

MOST = 500
"""Parts of a query at most, as SQLite has it (`SQLITE_MAX_COMPOUND_SELECT`)."""

TOTALS = """
SELECT route, state, jobs, (
    SELECT created_at FROM jobs WHERE route = totals.route AND state = totals.state
    ORDER BY created_at LIMIT 1
), max(seconds, 0) FROM totals WHERE jobs > 0
"""


def listing(
    states: Collection[State],
    routes: Collection[str],
    owner: str | None,
    since: float | None,
    until: float | None,
    after: str | None,
    limit: int,
) -> tuple[str, list[object]]:
    """What to ask for a page, and with which parameters: see `Store.list`.

    Of those routes that there are, or the one that is asked for. One row more than a page has tells
    that there is another page.

    Raises:
        MalformedCursor: no page says `after` of its end.
    """
    parameters: list[object] = [limit + 1]
    conditions: list[str] = []

    def name(*values: object) -> str:
        parameters.extend(values)
        return ", ".join(f"?{len(parameters) - len(values) + n}" for n in range(1, len(values) + 1))

    if owner is not None:
        conditions.append(f"owner = {name(owner)}")
    if since is not None:
        conditions.append(f"created_at >= {name(since)}")
    if until is not None:
        conditions.append(f"created_at < {name(until)}")
    if after is not None:
        conditions.append(f"(created_at, id) < ({name(*load_cursor(after))})")
    wanted = [name(str(state)) for state in states or State]
    if len(routes) * len(wanted) <= MOST:
        groups = [f"route = {name(route)} AND state = {s}" for route in routes for s in wanted]
    else:
        groups = [f"state IN ({', '.join(wanted)})"]
    parts = [_NEWEST.format(" AND ".join([group, *conditions])) for group in groups]
    return _LIST.format("UNION ALL".join(parts)), parameters
