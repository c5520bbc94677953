"""What `SQLiteStore` asks of its tables, where that is not said in a line."""

from __future__ import annotations

from collections.abc import Collection

from raincheck.job import State
from raincheck.serialization import load_cursor

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
