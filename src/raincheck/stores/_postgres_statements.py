"""The statements of `PostgresStore`, and what they are given.

They name tables as in the schema `raincheck`, and jobs as those of the deployment 'deployment', so
that they can be tried in psql; both names are replaced by those of the store. Every change is one
statement, and so one round trip.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from raincheck.job import Bounds, Job, Key
from raincheck.serialization import dump

PIECE = 256 * 1024
"""Bytes of a response body that one row has at most."""

# Keys are inserted in order, so that no two creators wait for each other. Who meets a key or an id
# that another transaction has inserted meanwhile fails as a whole (see `TRIES`).
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
        (deployment, id, version, fence, state, gone, due, record, route, owner, lease_until,
        created_at, status, seconds, stored)
    SELECT
        'deployment', $1, $2, $3, $4, $5, $6, $7, $16, $17,
        clock_timestamp() + $14::float8 * interval '1 second', $11, $12, $13, {stored}
    WHERE NOT EXISTS (SELECT FROM there)
    RETURNING id
), owned AS (
    INSERT INTO raincheck.keys (deployment, key, id, fingerprint, lasting)
    SELECT 'deployment', key, $1, fingerprint, lasting
    FROM unnest($8::text[], $9::text[], $10::boolean[]) AS new (key, fingerprint, lasting)
    WHERE EXISTS (SELECT FROM job) ORDER BY key
), kept AS (
    INSERT INTO raincheck.requests (deployment, id, request)
    SELECT 'deployment', $1, $15::bytea WHERE $15 IS NOT NULL AND EXISTS (SELECT FROM job)
){owed}
SELECT record FROM there
"""

# Jobs that nothing bounds, with neither keys nor messages, as most are. If there is one already, of
# any of them, none is created; nor if one of them has to wait for long for somebody's lock, so that
# it alone waits for that.
CREATE_MANY = """
WITH new AS MATERIALIZED (
    SELECT new.* FROM set_config('lock_timeout', $12, true), unnest(
        $1::text[], $2::integer[], $3::integer[], $4::text[], $5::float8[], $6::text[],
        $7::float8[], $8::float8[], $9::bytea[], $10::bytea[], $11::bytea[]
    ) AS new (id, version, fence, state, due, record, created_at, lease, route, owner, request)
), kept AS (
    INSERT INTO raincheck.requests (deployment, id, request)
    SELECT 'deployment', id, request FROM new WHERE request IS NOT NULL
)
INSERT INTO raincheck.jobs
    (deployment, id, version, fence, state, gone, due, record, created_at, status, lease_until,
    route, owner)
SELECT 'deployment', id, version, fence, state, false, due, record, created_at, state,
    clock_timestamp() + lease * interval '1 second', route, owner
FROM new RETURNING id
"""

# When somebody turns to the message of a job; NULL: it has none any more. Who delivers it has it
# also when the job expires meanwhile.
_OWED = """, owed AS (
    INSERT INTO raincheck.deliveries (deployment, id, due)
    SELECT 'deployment', $1, ${n}::float8 WHERE ${n} IS NOT NULL AND EXISTS (SELECT FROM job)
    ON CONFLICT (deployment, id) DO UPDATE SET
        due = excluded.due, lease_until = CASE WHEN $5::boolean THEN deliveries.lease_until END
), settled AS (
    DELETE FROM raincheck.deliveries
    WHERE deployment = 'deployment' AND id = $1 AND ${n} IS NULL AND EXISTS (SELECT FROM job)
)"""

CREATE = _CREATING.format(or_no_room="", stored="NULL", owed="")
CREATE_OWED = _CREATING.format(or_no_room="", stored="NULL", owed=_OWED.format(n=18))

# It takes its lock only if there is no earlier job, and before any row's, so that nobody who waits
# for it has what its holder waits for.
_STORED = "CASE WHEN $22::bigint IS NOT NULL THEN 0 END"
_OR_NO_ROOM = """
    UNION ALL
    SELECT 'stored' WHERE $22::bigint <= (
        SELECT coalesce(sum(stored), 0) FROM raincheck.jobs
        WHERE deployment = 'deployment' AND route = $16 AND owner = $17
            AND stored > 0 AND NOT gone
    )
    UNION ALL
    SELECT bound FROM raincheck.no_room(
        'deployment', $1, 0, $8, $18, $16, $17, $19, $20, $21
    ) AS bound
    WHERE bound IS NOT NULL AND ($20 IS NOT NULL OR $21 IS NOT NULL)
    """
CREATE_WITHIN = _CREATING.format(or_no_room=_OR_NO_ROOM, stored=_STORED, owed="")
CREATE_OWED_WITHIN = _CREATING.format(
    or_no_room=_OR_NO_ROOM, stored=_STORED, owed=_OWED.format(n=23)
)

GET = "SELECT record FROM raincheck.jobs WHERE deployment = 'deployment' AND id = $1"

# A body that is longer than $2 is left to `READ`, by what its last row says.
FETCH = """
SELECT record, body FROM raincheck.jobs LEFT JOIN LATERAL (
    SELECT string_agg(chunk, ''::bytea ORDER BY start) AS body FROM raincheck.chunks
    WHERE deployment = 'deployment' AND id = jobs.id AND fence = jobs.fence AND $2::bigint >= (
        SELECT start + length(chunk) FROM raincheck.chunks
        WHERE deployment = 'deployment' AND id = jobs.id AND fence = jobs.fence
        ORDER BY start DESC LIMIT 1
    )
) AS small ON state IS NULL AND NOT gone
WHERE deployment = 'deployment' AND id = $1
"""

FIND = """
SELECT record, fingerprint FROM raincheck.keys JOIN raincheck.jobs USING (deployment, id)
WHERE deployment = 'deployment' AND key = $1
"""

LEARN = """
INSERT INTO raincheck.varying SELECT 'deployment', $1, unnest($2::text[]) ON CONFLICT DO NOTHING
"""

LEARNED = "SELECT name FROM raincheck.varying WHERE deployment = 'deployment' AND route = $1"

REQUEST = """
SELECT request, record FROM raincheck.requests JOIN raincheck.jobs USING (deployment, id)
WHERE deployment = 'deployment' AND id = $1
"""

# The lock comes first, so that whoever loses a race says what became of the job. The start is
# appended to the record, and is still its end when the same holder asks again.
CLAIM = """
WITH there AS MATERIALIZED (
    SELECT record, right(record, length($6)) = $6::text AS again, coalesce(
        state = 'queued' AND route = ANY ($2::bytea[]) AND starts_with(record, $5)
            AND coalesce(raincheck.time_in(record, 'not_before') <= $3::float8, true)
            AND EXISTS (
                SELECT FROM raincheck.requests WHERE deployment = 'deployment' AND id = $1
            ),
        false
    ) AS ready
    FROM raincheck.jobs WHERE deployment = 'deployment' AND id = $1 AND NOT gone FOR NO KEY UPDATE
), begun AS (
    UPDATE raincheck.jobs SET
        version = version + 1, fence = fence + 1, state = 'running', record = jobs.record || $6,
        status = CASE WHEN status IS NOT NULL THEN 'running' END,
        lease_until = CASE
            WHEN $4::float8 IS NULL THEN lease_until
            ELSE clock_timestamp() + $4 * interval '1 second'
        END
    FROM there WHERE deployment = 'deployment' AND id = $1 AND ready
)
SELECT CASE WHEN ready THEN record || $6 ELSE record END, request
FROM there LEFT JOIN raincheck.requests
    ON (ready OR again) AND deployment = 'deployment' AND id = $1
"""

_REPLACING = """
WITH {no_room} job AS (
    UPDATE raincheck.jobs SET
        version = $2, fence = $3, state = $4, gone = $5, due = $6, record = $7,
        created_at = $11, status = $12, seconds = $13,
        stored = CASE WHEN stored IS NOT NULL THEN $19::bigint END,
        lease_until = CASE
            WHEN $4::text IS NULL THEN NULL
            WHEN $14::float8 IS NULL THEN lease_until
            ELSE clock_timestamp() + $14 * interval '1 second'
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
    WHERE deployment = 'deployment' AND id = $1 AND NOT $15::boolean AND EXISTS (SELECT FROM job)
), dropped AS (
    DELETE FROM raincheck.chunks
    WHERE deployment = 'deployment' AND id = $1 AND (fence <> $3 OR NOT $16::boolean)
        AND EXISTS (SELECT FROM job)
), kept AS (
    INSERT INTO raincheck.chunks (deployment, id, fence, start, chunk)
    SELECT 'deployment', $1, $3, start + coalesce((
        SELECT start + length(chunk) FROM raincheck.chunks
        WHERE deployment = 'deployment' AND id = $1 AND fence = $3
        ORDER BY start DESC LIMIT 1
    ), 0), chunk
    FROM unnest($17::bigint[], $18::bytea[]) AS tail (start, chunk) WHERE EXISTS (SELECT FROM job)
    ON CONFLICT (deployment, id, fence, start) DO UPDATE SET chunk = excluded.chunk
        WHERE length(chunks.chunk) = 0
){owed}
SELECT 'replaced' FROM job {or_no_room}
"""

REPLACE = _REPLACING.format(no_room="", and_room="", or_no_room="", owed="")
REPLACE_OWED = _REPLACING.format(no_room="", and_room="", or_no_room="", owed=_OWED.format(n=20))

REPLACE_WITHIN = _REPLACING.format(
    no_room="""
    no_room AS MATERIALIZED (
        SELECT bound FROM raincheck.jobs,
            raincheck.no_room(
                'deployment', id, version, NULL, $20, route, owner, $21, $22, $23
            ) AS bound
        WHERE deployment = 'deployment' AND id = $1 AND version = $2 - 1
            AND state <> ALL ($21) AND bound IS NOT NULL
    ),""",
    and_room="AND NOT EXISTS (SELECT FROM no_room)",
    or_no_room="UNION ALL SELECT bound FROM no_room",
    owed="",
)

# Jobs that end, each with all of its response body or none. What ends here is counted here, and not
# by the trigger: one row for all of a route that end alike. Also the deployment is a column of what
# is given, and of the state nothing is said that an index has: else a plan that was made while the
# table was small would look at all jobs for each of these. Of locks the same is true as above.
END_MANY = """
WITH new AS MATERIALIZED (
    SELECT text 'deployment' AS deployment, new.*
    FROM set_config('lock_timeout', $11, true), unnest(
        $1::text[], $2::integer[], $3::integer[], $4::float8[], $5::text[], $6::float8[],
        $7::text[], $8::float8[], $9::bigint[], $10::bytea[]
    ) AS new (id, version, fence, due, record, created_at, status, seconds, size, body)
), job AS (
    UPDATE raincheck.jobs SET
        version = new.version, fence = new.fence, state = NULL, due = new.due,
        record = new.record, created_at = new.created_at, status = new.status,
        seconds = new.seconds, lease_until = NULL, counted = true,
        stored = CASE WHEN stored IS NOT NULL THEN new.size END
    FROM new
    WHERE jobs.deployment = new.deployment AND jobs.id = new.id
        AND jobs.version = new.version - 1 AND coalesce(state, '') <> ''
    RETURNING
        new.deployment, new.id, new.fence, route, new.created_at, new.status, new.seconds, body
), counted AS (
    INSERT INTO raincheck.ended
    SELECT deployment, route, status, count(*), coalesce(sum(seconds), 0)
    FROM job WHERE created_at IS NOT NULL GROUP BY deployment, route, status
), freed AS (
    DELETE FROM raincheck.keys USING job
    WHERE keys.deployment = job.deployment AND keys.id = job.id AND NOT lasting
), forgotten AS (
    DELETE FROM raincheck.requests USING job
    WHERE requests.deployment = job.deployment AND requests.id = job.id
), dropped AS (
    DELETE FROM raincheck.chunks USING job
    WHERE chunks.deployment = job.deployment AND chunks.id = job.id
        AND (chunks.fence <> job.fence OR body IS NULL)
), kept AS (
    INSERT INTO raincheck.chunks (deployment, id, fence, start, chunk)
    SELECT deployment, id, fence, 0, body FROM job WHERE body IS NOT NULL
)
SELECT id FROM job
"""

ONCE = (REPLACE, REPLACE_OWED, REPLACE_WITHIN, END_MANY)
"""Those that would find their own version there, and say that it was not the next one."""

# The lock holds off whoever is about to replace the job until the chunk is there. A head may have
# come before the first chunk, in a row without any.
APPEND = """
WITH job AS (
    SELECT id FROM raincheck.jobs
    WHERE deployment = 'deployment' AND id = $1 AND fence = $2 AND state IS NOT NULL FOR SHARE
), kept AS (
    INSERT INTO raincheck.chunks (deployment, id, fence, start, chunk, head)
    SELECT 'deployment', $1, $2, start, chunk, CASE WHEN start = 0 THEN $5::text END
    FROM unnest($3::bigint[], $4::bytea[]) AS new (start, chunk)
    WHERE EXISTS (SELECT FROM job) AND $3[1] = coalesce((
        SELECT start + length(chunk) FROM raincheck.chunks
        WHERE deployment = 'deployment' AND id = $1 AND fence = $2
        ORDER BY start DESC LIMIT 1
    ), 0)
    ON CONFLICT (deployment, id, fence, start) DO UPDATE SET chunk = excluded.chunk
        WHERE length(chunks.chunk) = 0
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

# Of each route and state as many as a page has, from the index in their order, and of all those the
# newest. Routes are few: the index is asked for the next of them as long as there is one.
_LISTING = """
WITH RECURSIVE named AS ({routes}), page AS (
    SELECT created_at, id FROM named, unnest($1::text[]) AS wanted (status), LATERAL (
        SELECT created_at, id FROM raincheck.jobs
        WHERE deployment = 'deployment' AND NOT gone {owned} AND route = named.route
            AND status = wanted.status AND created_at >= $2 AND (created_at, id) < ($3, $4)
        ORDER BY created_at DESC, id DESC LIMIT $5
    ) AS newest
    ORDER BY created_at DESC, id DESC LIMIT $5
)
SELECT page.created_at, id, record FROM page JOIN raincheck.jobs USING (id)
WHERE deployment = 'deployment' ORDER BY page.created_at DESC, id DESC
"""

_ROUTES = """
    (
        SELECT route FROM raincheck.jobs
        WHERE deployment = 'deployment' AND NOT gone {owned} AND created_at IS NOT NULL
        ORDER BY route LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT route FROM raincheck.jobs
        WHERE deployment = 'deployment' AND NOT gone {owned} AND created_at IS NOT NULL
            AND route > named.route
        ORDER BY route LIMIT 1
    ) FROM named WHERE named.route IS NOT NULL
"""

LIST = {
    (False, False): _LISTING.format(routes=_ROUTES.format(owned=""), owned=""),
    (True, False): _LISTING.format(routes="SELECT $6::bytea AS route", owned=""),
    (False, True): _LISTING.format(
        routes=_ROUTES.format(owned="AND owner = $6"), owned="AND owner = $6"
    ),
    (True, True): _LISTING.format(routes="SELECT $6::bytea AS route", owned="AND owner = $7"),
}
"""By whether the jobs of one route are asked for, and those of one owner."""

# Those that have ended are counted when they do; the first of each route and state is that of the
# index.
TOTALS = r"""
WITH counted AS (
    SELECT route, status, sum(jobs)::bigint AS jobs, sum(seconds) AS seconds FROM raincheck.ended
    WHERE deployment = 'deployment'
    GROUP BY route, status
    UNION ALL
    SELECT route, status, count(*), 0 FROM raincheck.jobs
    WHERE deployment = 'deployment' AND state IS NOT NULL AND NOT gone
        AND created_at IS NOT NULL AND status IS NOT NULL
    GROUP BY route, status
), total AS (
    SELECT route, status, sum(jobs)::bigint AS jobs, greatest(sum(seconds), 0) AS seconds
    FROM counted GROUP BY route, status HAVING sum(jobs) > 0
)
SELECT (
    SELECT substring(record FROM '"route":("(?:[^"\\]|\\.)*")') AS name FROM raincheck.jobs
    WHERE deployment = 'deployment' AND NOT gone AND created_at IS NOT NULL
        AND route = total.route AND status = total.status
        AND record LIKE '%"route":"%'
    ORDER BY created_at LIMIT 1
), status, jobs, (
    SELECT created_at FROM raincheck.jobs
    WHERE deployment = 'deployment' AND NOT gone AND created_at IS NOT NULL
        AND route = total.route AND status = total.status
    ORDER BY created_at LIMIT 1
) AS oldest, seconds
FROM total
"""

# Rows that are added are never changed, so that only those who do the same can have taken them.
ADD_UP = """
WITH old AS (
    DELETE FROM raincheck.ended WHERE ctid = ANY (ARRAY (
        SELECT ctid FROM raincheck.ended WHERE deployment = 'deployment'
        LIMIT $1 FOR UPDATE SKIP LOCKED
    ))
    RETURNING route, status, jobs, seconds
), new AS (
    INSERT INTO raincheck.ended
    SELECT 'deployment', route, status, sum(jobs), sum(seconds) FROM old
    GROUP BY route, status HAVING sum(jobs) <> 0 OR sum(seconds) <> 0
)
SELECT count(*) FROM old
"""

# In the order in which they are given, as `END_MANY` has them, and for the same reasons so written.
RENEW = """
WITH held AS MATERIALIZED (
    SELECT text 'deployment' AS deployment, held.*
    FROM set_config('lock_timeout', $4, true),
        unnest($1::text[], $2::integer[]) AS held (id, fence)
)
UPDATE raincheck.jobs SET lease_until = clock_timestamp() + $3::float8 * interval '1 second'
FROM held
WHERE jobs.deployment = held.deployment AND jobs.id = held.id AND jobs.fence = held.fence
    AND coalesce(state, '') <> ''
RETURNING jobs.id, state
"""

# The same but for those on which somebody has a lock, and may have it for long: of them it only
# says that they are held, and what became of them is seen the next time.
RENEW_FREE = """
WITH held AS MATERIALIZED (
    SELECT text 'deployment' AS deployment, *
    FROM unnest($1::text[], $2::integer[]) AS held (id, fence)
), free AS MATERIALIZED (
    SELECT jobs.deployment, jobs.id FROM held, raincheck.jobs
    WHERE jobs.deployment = held.deployment AND jobs.id = held.id AND jobs.fence = held.fence
        AND coalesce(state, '') <> ''
    FOR NO KEY UPDATE OF jobs SKIP LOCKED
), renewed AS (
    UPDATE raincheck.jobs SET lease_until = clock_timestamp() + $3::float8 * interval '1 second'
    FROM free WHERE jobs.deployment = free.deployment AND jobs.id = free.id
)
SELECT jobs.id, state FROM held, raincheck.jobs
WHERE jobs.deployment = held.deployment AND jobs.id = held.id AND jobs.fence = held.fence
    AND coalesce(state, '') <> ''
"""

ABANDONED = """
SELECT lease_until, id, record, extract(epoch FROM now() - lease_until)::float8 AS idle
FROM raincheck.jobs
WHERE deployment = 'deployment' AND lease_until <= now()
    AND (lease_until, id) > (coalesce($1::timestamptz, '-infinity'), $2)
ORDER BY lease_until, id LIMIT 50
"""

DELIVERABLE = """
SELECT EXISTS (
    SELECT FROM raincheck.deliveries WHERE deployment = 'deployment' AND due <= $1
        AND coalesce(lease_until <= now(), true)
)
"""

OWED = """
SELECT owed.id, record FROM raincheck.deliveries AS owed
    LEFT JOIN raincheck.jobs ON jobs.deployment = 'deployment' AND jobs.id = owed.id
WHERE owed.deployment = 'deployment' AND owed.due <= $1
    AND coalesce(owed.lease_until <= now(), true)
ORDER BY owed.due LIMIT $2 FOR UPDATE OF owed SKIP LOCKED
"""

LEASE_DELIVERIES = """
UPDATE raincheck.deliveries SET
    lease_until = clock_timestamp() + $2::float8 * interval '1 second'
WHERE deployment = 'deployment' AND id = ANY ($1)
"""

TURN_TO = """
UPDATE raincheck.deliveries SET due = later.due
FROM unnest($1::text[], $2::float8[]) AS later (id, due)
WHERE deployment = 'deployment' AND deliveries.id = later.id
"""

SETTLE = "DELETE FROM raincheck.deliveries WHERE deployment = 'deployment' AND id = ANY ($1)"

UNOWED = """
DELETE FROM raincheck.deliveries AS owed
WHERE deployment = 'deployment' AND NOT EXISTS (
    SELECT FROM raincheck.jobs WHERE deployment = 'deployment' AND id = owed.id
)
"""

# Rows that are locked are being buried by another process.
EXPIRED = """
SELECT id, record FROM raincheck.jobs WHERE deployment = 'deployment' AND due <= $1 AND NOT gone
ORDER BY due LIMIT $2 FOR UPDATE SKIP LOCKED
"""

BURY = """
WITH job AS (
    UPDATE raincheck.jobs SET
        version = tombstone.version, state = NULL, gone = true, due = tombstone.due, stored = NULL,
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

# What a process of an older version has written is listed as it was before, until this is done.
DESCRIBE = """
WITH job AS (
    UPDATE raincheck.jobs SET
        created_at = CASE WHEN route <> $2 THEN raincheck.time_in(record, 'created_at') END,
        status = coalesce(state, substring(record FROM '"state":"([a-z]+)"')),
        seconds = CASE WHEN state IS NULL
            THEN raincheck.time_in(record, 'finished_at') - raincheck.time_in(record, 'started_at')
        END
    WHERE deployment = 'deployment' AND id = ANY (ARRAY (
        SELECT id FROM raincheck.jobs
        WHERE deployment = 'deployment' AND NOT gone AND (
            status IS NULL OR state <> status
            OR state IS NULL AND status IN ('queued', 'running', 'cancelling')
        )
        LIMIT $1 FOR UPDATE SKIP LOCKED
    ))
    RETURNING id
)
SELECT count(*) FROM job
"""

ANY = "SELECT EXISTS (SELECT FROM raincheck.jobs WHERE deployment = 'deployment')"

# What there is of a response comes with those jobs of which it may be more than what is known, and
# not if the job itself says so.
NEWER = """
SELECT known.id, record, head, size
FROM unnest($1::text[], $2::integer[], $3::bigint[]) AS known (id, after, kept)
LEFT JOIN raincheck.jobs ON deployment = 'deployment' AND jobs.id = known.id
LEFT JOIN LATERAL (
    SELECT (
        SELECT head FROM raincheck.chunks
        WHERE deployment = 'deployment' AND id = jobs.id AND fence = jobs.fence AND start = 0
    ) AS head, coalesce((
        SELECT start + length(chunk) FROM raincheck.chunks
        WHERE deployment = 'deployment' AND id = jobs.id AND fence = jobs.fence
        ORDER BY start DESC LIMIT 1
    ), 0) AS size
) AS response ON kept IS NOT NULL AND state IS NOT NULL
WHERE version IS NULL OR version > after OR size + (head IS NOT NULL)::integer > kept
"""

ANNOUNCE = "SELECT pg_notify($1, id) FROM unnest($2::text[]) AS id"


_NO_KEYS = (None,) * len(Key._fields)  # in the place of empty arrays, which take longer


def columns(job: Job, keys: Collection[Key]) -> tuple[Any, ...]:
    """What `CREATE` and `REPLACE` begin with."""
    record = dump(job).decode()
    row = job.id, job.version, job.fence, job.stage, job.gone, job.due_at, record
    owned: Iterable[Any] = zip(*keys, strict=True) if keys else _NO_KEYS
    return *row, *owned, _listed(job), job.state, _ran(job)


def beginning(job: Job, lease: float | None, request: bytes | None) -> tuple[Any, ...]:
    """What `CREATE_MANY` is given of a job."""
    row = job.id, job.version, job.fence, job.state, job.due_at, dump(job).decode()
    owner = None if job.owner is None else digest(job.owner)
    return *row, _listed(job), lease, digest(job.counts_for), owner, request


def ending(job: Job, body: bytes) -> tuple[Any, ...]:
    """What `END_MANY` is given of a job."""
    row = job.id, job.version, job.fence, job.due_at, dump(job).decode()
    return *row, _listed(job), job.state, _ran(job), job.stored, body or None


def _listed(job: Job) -> float | None:
    return None if job.synchronous else job.created_at


def _ran(job: Job) -> float | None:
    if job.started_at is None or job.finished_at is None:
        return None
    return job.finished_at - job.started_at


class Most(NamedTuple):
    """How many may be in these states, and what may be stored (see `Bounds`)."""

    states: list[str]
    route: int | None
    owner: int | None
    stored: int | None


def most(job: Job, bounds: Bounds | None) -> Most | None:
    """The bounds that there are for a job; None: there are none."""
    if bounds is None or not job.counts_with:
        return None
    owner, stored = (None, None) if job.owner is None else (bounds.owner, bounds.stored)
    if bounds.route is None and owner is None and stored is None:
        return None
    return Most([*job.counts_with], bounds.route, owner, stored)


@lru_cache(maxsize=1024)  # few routes, and owners who come again
def digest(name: str) -> bytes:
    """What stands for a name of any length and any letters."""
    return blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def pieces(chunk: bytes, start: int = 0) -> tuple[list[int], list[memoryview]]:
    """Where the pieces of a chunk begin, and the pieces."""
    places = range(0, len(chunk), PIECE)
    view = memoryview(chunk)
    return [start + place for place in places], [view[place : place + PIECE] for place in places]
