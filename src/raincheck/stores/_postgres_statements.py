"""The statements of `PostgresStore`, and what they are given.

They name tables as in the schema `raincheck`, and jobs as those of the deployment 'deployment', so
that they can be tried in psql; both names are replaced by those of the store. Every change is one
statement, and so one round trip.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b
from typing import Any, NamedTuple

from raincheck.job import Bounds, Job, Key, State
from raincheck.serialization import dump

PIECE = 256 * 1024
"""Bytes of a response body that one row has at most."""

# What counts as one state: a handler that was asked to stop has not stopped yet.
_WAITING = [State.QUEUED.value]
_RUNNING = [State.RUNNING.value, State.CANCELLING.value]

# Keys are inserted in order, so that no two creators wait for each other. Who meets a key or an id
# that another transaction has inserted meanwhile fails as a whole (see `_RACES` in postgres.py).
_CREATING = """
WITH there AS (
    SELECT record FROM raincheck.jobs WHERE deployment = 'deployment' AND id = $1
    UNION ALL
    SELECT record FROM raincheck.jobs WHERE deployment = 'deployment' AND id = (
        SELECT id FROM raincheck.keys WHERE deployment = 'deployment' AND key = ANY ($8)
        ORDER BY array_position($8, key) LIMIT 1
    )
    {or_no_room}
    LIMIT 1
), job AS (
    INSERT INTO raincheck.jobs
        (deployment, id, version, fence, state, gone, due, record, route, owner, lease_until)
    SELECT
        'deployment', $1, $2, $3, $4, $5, $6, $7, $13, $14,
        clock_timestamp() + $11::float8 * interval '1 second'
    WHERE NOT EXISTS (SELECT FROM there)
    RETURNING id
), owned AS (
    INSERT INTO raincheck.keys (deployment, key, id, fingerprint, lasting)
    SELECT 'deployment', key, $1, fingerprint, lasting
    FROM unnest($8::text[], $9::text[], $10::boolean[]) AS new (key, fingerprint, lasting)
    WHERE EXISTS (SELECT FROM job) ORDER BY key
), kept AS (
    INSERT INTO raincheck.requests (deployment, id, request)
    SELECT 'deployment', $1, $12::bytea WHERE $12 IS NOT NULL AND EXISTS (SELECT FROM job)
)
SELECT record FROM there
"""

CREATE = _CREATING.format(or_no_room="")

# It takes its lock only if there is no earlier job, and before any row's, so that nobody who waits
# for it has what its holder waits for.
CREATE_WITHIN = _CREATING.format(
    or_no_room="""
    UNION ALL
    SELECT bound FROM raincheck.no_room(
        'deployment', $1, 0, $8, $15, $13, $14, $16, $17, $18
    ) AS bound
    WHERE bound IS NOT NULL
    """
)

GET = "SELECT record FROM raincheck.jobs WHERE deployment = 'deployment' AND id = $1"

FIND = """
SELECT record, fingerprint FROM raincheck.keys JOIN raincheck.jobs USING (deployment, id)
WHERE deployment = 'deployment' AND key = $1
"""

LEARN = """
INSERT INTO raincheck.varying SELECT 'deployment', $1, unnest($2::text[]) ON CONFLICT DO NOTHING
"""

LEARNED = "SELECT name FROM raincheck.varying WHERE deployment = 'deployment' AND route = $1"

REQUEST = "SELECT request FROM raincheck.requests WHERE deployment = 'deployment' AND id = $1"

_REPLACING = """
WITH {no_room} job AS (
    UPDATE raincheck.jobs SET
        version = $2, fence = $3, state = $4, gone = $5, due = $6, record = $7,
        lease_until = CASE
            WHEN $4::text IS NULL THEN NULL
            WHEN $11::float8 IS NULL THEN lease_until
            ELSE clock_timestamp() + $11 * interval '1 second'
        END
    WHERE deployment = 'deployment' AND id = $1 AND version = $2 - 1 AND NOT EXISTS (
        SELECT FROM raincheck.keys WHERE deployment = 'deployment' AND key = ANY ($8)
    ) {and_room}
    RETURNING id
), freed AS (
    DELETE FROM raincheck.keys
    WHERE deployment = 'deployment' AND id = $1 AND ($4 IS NULL OR $4 = 'cancelling')
        AND ($5 OR NOT lasting) AND EXISTS (SELECT FROM job)
), owned AS (
    INSERT INTO raincheck.keys (deployment, key, id, fingerprint, lasting)
    SELECT 'deployment', key, $1, fingerprint, lasting
    FROM unnest($8::text[], $9::text[], $10::boolean[]) AS new (key, fingerprint, lasting)
    WHERE EXISTS (SELECT FROM job) ORDER BY key
), forgotten AS (
    DELETE FROM raincheck.requests
    WHERE deployment = 'deployment' AND id = $1 AND NOT $12::boolean AND EXISTS (SELECT FROM job)
), dropped AS (
    DELETE FROM raincheck.chunks
    WHERE deployment = 'deployment' AND id = $1 AND (fence <> $3 OR NOT $13::boolean)
        AND EXISTS (SELECT FROM job)
), kept AS (
    INSERT INTO raincheck.chunks (deployment, id, fence, start, chunk)
    SELECT 'deployment', $1, $3, start + coalesce((
        SELECT start + length(chunk) FROM raincheck.chunks
        WHERE deployment = 'deployment' AND id = $1 AND fence = $3
        ORDER BY start DESC LIMIT 1
    ), 0), chunk
    FROM unnest($14::bigint[], $15::bytea[]) AS tail (start, chunk) WHERE EXISTS (SELECT FROM job)
)
SELECT 'replaced' FROM job {or_no_room}
"""

REPLACE = _REPLACING.format(no_room="", and_room="", or_no_room="")

REPLACE_WITHIN = _REPLACING.format(
    no_room="""
    no_room AS MATERIALIZED (
        SELECT bound FROM raincheck.jobs,
            raincheck.no_room(
                'deployment', id, version, NULL, $16, route, owner, $17, $18, $19
            ) AS bound
        WHERE deployment = 'deployment' AND id = $1 AND version = $2 - 1
            AND state <> ALL ($17) AND bound IS NOT NULL
    ),""",
    and_room="AND NOT EXISTS (SELECT FROM no_room)",
    or_no_room="UNION ALL SELECT bound FROM no_room",
)

ONCE = (REPLACE, REPLACE_WITHIN)
"""Those that would find their own version there, and say that it was not the next one."""

# The lock holds off whoever is about to replace the job until the chunk is there.
APPEND = """
WITH job AS (
    SELECT id FROM raincheck.jobs
    WHERE deployment = 'deployment' AND id = $1 AND fence = $2 AND state IS NOT NULL FOR SHARE
), kept AS (
    INSERT INTO raincheck.chunks (deployment, id, fence, start, chunk)
    SELECT 'deployment', $1, $2, start, chunk
    FROM unnest($3::bigint[], $4::bytea[]) AS new (start, chunk)
    WHERE EXISTS (SELECT FROM job) AND $3[1] = coalesce((
        SELECT start + length(chunk) FROM raincheck.chunks
        WHERE deployment = 'deployment' AND id = $1 AND fence = $2
        ORDER BY start DESC LIMIT 1
    ), 0)
    ON CONFLICT DO NOTHING
)
SELECT id FROM job
"""

# A few rows at a time, from the one on that has the byte, and how long the body is.
READ = """
SELECT jobs.fence, coalesce((
    SELECT start + length(chunk) FROM raincheck.chunks
    WHERE deployment = 'deployment' AND id = jobs.id AND fence = jobs.fence
    ORDER BY start DESC LIMIT 1
), 0) AS size, start, chunk
FROM raincheck.jobs LEFT JOIN LATERAL (
    SELECT start, chunk FROM raincheck.chunks
    WHERE deployment = 'deployment' AND id = jobs.id AND fence = jobs.fence
        AND start >= coalesce((
            SELECT start FROM raincheck.chunks
            WHERE deployment = 'deployment' AND id = jobs.id AND fence = jobs.fence
                AND start <= $2
            ORDER BY start DESC LIMIT 1
        ), 0)
    ORDER BY start LIMIT $3
) AS body ON true
WHERE deployment = 'deployment' AND id = $1 AND NOT gone
ORDER BY start
"""

RENEW = """
UPDATE raincheck.jobs SET lease_until = clock_timestamp() + $3::float8 * interval '1 second'
FROM unnest($1::text[], $2::integer[]) AS held (id, fence)
WHERE deployment = 'deployment' AND jobs.id = held.id AND jobs.fence = held.fence
    AND state IS NOT NULL
RETURNING jobs.id, state
"""

ABANDONED = """
SELECT lease_until, id, record, extract(epoch FROM now() - lease_until)::float8 AS idle
FROM raincheck.jobs
WHERE deployment = 'deployment' AND lease_until <= now()
    AND (lease_until, id) > (coalesce($1::timestamptz, '-infinity'), $2)
ORDER BY lease_until, id LIMIT 50
"""

# Rows that are locked are being buried by another process.
EXPIRED = """
SELECT id, record FROM raincheck.jobs WHERE deployment = 'deployment' AND due <= $1 AND NOT gone
ORDER BY due LIMIT $2 FOR UPDATE SKIP LOCKED
"""

BURY = """
WITH job AS (
    UPDATE raincheck.jobs SET
        version = tombstone.version, state = NULL, gone = true, due = tombstone.due,
        lease_until = NULL, record = tombstone.record
    FROM unnest($1::text[], $2::integer[], $3::float8[], $4::text[])
        AS tombstone (id, version, due, record)
    WHERE deployment = 'deployment' AND jobs.id = tombstone.id
), freed AS (
    DELETE FROM raincheck.keys WHERE deployment = 'deployment' AND id = ANY ($1)
), forgotten AS (
    DELETE FROM raincheck.requests WHERE deployment = 'deployment' AND id = ANY ($1)
)
DELETE FROM raincheck.chunks WHERE deployment = 'deployment' AND id = ANY ($1)
"""

LAPSED = """
SELECT record FROM raincheck.jobs
WHERE deployment = 'deployment' AND id = $1 AND lease_until <= now() FOR UPDATE
"""

DROP = """
WITH job AS (
    DELETE FROM raincheck.jobs WHERE deployment = 'deployment' AND id = ANY ($1)
), freed AS (
    DELETE FROM raincheck.keys WHERE deployment = 'deployment' AND id = ANY ($1)
), forgotten AS (
    DELETE FROM raincheck.requests WHERE deployment = 'deployment' AND id = ANY ($1)
)
DELETE FROM raincheck.chunks WHERE deployment = 'deployment' AND id = ANY ($1)
"""

# A chunk can be left over if it was appended while its job was being replaced.
PURGE = """
WITH purged AS (
    DELETE FROM raincheck.jobs WHERE deployment = 'deployment' AND id = ANY (ARRAY (
        SELECT id FROM raincheck.jobs WHERE deployment = 'deployment' AND due <= $1 AND gone
        ORDER BY due LIMIT $2 FOR UPDATE SKIP LOCKED
    ))
    RETURNING id
), dropped AS (
    DELETE FROM raincheck.chunks
    WHERE deployment = 'deployment' AND id IN (SELECT id FROM purged)
)
SELECT count(*) FROM purged
"""

ANY = "SELECT EXISTS (SELECT FROM raincheck.jobs WHERE deployment = 'deployment')"

NEWER = """
SELECT known.id, record FROM unnest($1::text[], $2::integer[]) AS known (id, after)
LEFT JOIN raincheck.jobs ON deployment = 'deployment' AND jobs.id = known.id
WHERE version IS NULL OR version > after
"""

ANNOUNCE = "SELECT pg_notify($1, id) FROM unnest($2::text[]) AS id"


def columns(job: Job, keys: Collection[Key]) -> tuple[Any, ...]:
    """What `CREATE` and `REPLACE` begin with."""
    state = None if job.finished or job.gone else job.state.value
    due = job.purge_at if job.gone else job.expires_at
    record = dump(job).decode()
    row = job.id, job.version, job.fence, state, job.gone, due, record
    return *row, *([key[column] for key in keys] for column in range(len(Key._fields)))


class Most(NamedTuple):
    """How many may be in these states (see `Bounds`)."""

    states: list[str]
    route: int | None
    owner: int | None


def most(job: Job, bounds: Bounds | None) -> Most | None:
    """The bounds that there are for a job; None: there are none."""
    if bounds is None or job.finished or job.gone:
        return None
    owner = None if job.owner is None else bounds.owner
    if bounds.route is None and owner is None:
        return None
    states = _WAITING if job.state is State.QUEUED else _RUNNING
    return Most(states, bounds.route, owner)


def digest(name: str) -> bytes:
    """What stands for a name of any length and any letters."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pieces(chunk: bytes, start: int = 0) -> tuple[list[int], list[memoryview]]:
    """Where the pieces of a chunk begin, and the pieces."""
    places = range(0, len(chunk), PIECE)
    view = memoryview(chunk)
    return [start + place for place in places], [view[place : place + PIECE] for place in places]
