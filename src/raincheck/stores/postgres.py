"""Jobs in a PostgreSQL database, for several processes and machines.

A statement here names tables as in the schema `raincheck`, so that it can be tried in psql; for a
store in another schema that name is replaced. Every change is one statement, and so one round trip.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import Context
from math import ceil
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from raincheck.errors import ConfigurationError, StoreError, StoreFull
from raincheck.job import Job, State
from raincheck.messages import CapturedRequest
from raincheck.records import dump, dump_request, load, load_request
from raincheck.stores.base import Store

try:
    import asyncpg  # type: ignore[import-untyped]  # it brings no types
except ImportError as error:
    raise ImportError(
        "PostgresStore needs asyncpg. Install it with: pip install raincheck[postgres]"
    ) from error

T = TypeVar("T")

PIECE = 256 * 1024
"""Bytes of a response body that one row has at most."""

PAGE = 4
"""Rows of a response body that are read at once."""

BATCH = 500
"""Jobs that one transaction of a sweep turns to, so that none lasts long."""

BATCH_BYTES = 256 * 1024 * 1024
"""Bytes of their response bodies at most, but for the last of them."""

LOOK = 1.0
"""Seconds between two looks for changes that nobody told of."""

TRIES = 10
"""How often a statement that loses races is tried; the second try succeeds nearly always."""

RETRY = 0.1
"""Seconds until another try to reach a server that went away while somebody waits."""

IDLE = 60.0
"""Seconds until a connection that nobody uses is not used again: a firewall may forget it."""

# What a call raises: what the server says, what asyncpg says, and what the network does.
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

# The statement lost a race and changed nothing: done again, it sees what it lost to.
_RACES = (
    asyncpg.UniqueViolationError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
)

# What becomes of a prepared statement that is executed on another connection.
_POOLED = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)

# For each connection. A prepared statement keeps its plan, and while tables are new and small that
# is to read them as a whole: a thousand jobs later it would be slow, until the server analyzes them
# again. And what nobody waits for any more ends, lest it keeps its locks and its connection.
_SETTINGS = """
SET enable_seqscan = off; SET jit = off; SET default_transaction_isolation = 'read committed';
SET statement_timeout = {0}; SET idle_in_transaction_session_timeout = {0}
"""

MIGRATIONS = (
    # Collation "C" compares bytes: it is the fastest, and no upgrade of the system's C library
    # leaves its indexes out of order. What is compressed already need not be compressed by TOAST.
    """
    CREATE TABLE raincheck.version (number integer NOT NULL);
    INSERT INTO raincheck.version VALUES (0);

    CREATE TABLE raincheck.jobs (
        id text COLLATE "C" PRIMARY KEY,
        version integer NOT NULL,
        attempt integer NOT NULL,
        state text,                 -- of a job that is unfinished
        gone boolean NOT NULL,      -- whether it is a tombstone
        due double precision,       -- when it expires, or the tombstone goes: seconds, epoch
        lease_until timestamptz,    -- by this server's clock
        record text NOT NULL        -- the job itself, as JSON
    );
    CREATE INDEX ON raincheck.jobs (lease_until, id) WHERE lease_until IS NOT NULL;
    CREATE INDEX ON raincheck.jobs (due) WHERE due IS NOT NULL AND NOT gone;
    CREATE INDEX ON raincheck.jobs (due) WHERE gone;

    CREATE TABLE raincheck.keys (
        key text COLLATE "C" PRIMARY KEY,
        id text COLLATE "C" NOT NULL
    );
    CREATE INDEX ON raincheck.keys (id);

    CREATE TABLE raincheck.requests (
        id text COLLATE "C" PRIMARY KEY,
        request bytea NOT NULL
    );
    ALTER TABLE raincheck.requests ALTER request SET STORAGE EXTERNAL;

    CREATE TABLE raincheck.chunks (
        id text COLLATE "C",
        attempt integer,
        start bigint,               -- its place in the response body, in bytes
        chunk bytea NOT NULL,
        PRIMARY KEY (id, attempt, start)
    );
    ALTER TABLE raincheck.chunks ALTER chunk SET STORAGE EXTERNAL;
    """,
)
"""Each makes of the schema what the next version of this module needs. Only ever append."""

# Keys are inserted in order, so that no two creators wait for each other. Who meets a key or an id
# that another transaction has inserted meanwhile fails as a whole (see `_RACES`).
_CREATE = """
WITH there AS (
    SELECT record FROM raincheck.jobs WHERE id = $1
    UNION ALL
    SELECT record FROM raincheck.jobs WHERE id = (
        SELECT id FROM raincheck.keys WHERE key = ANY ($8) ORDER BY array_position($8, key) LIMIT 1
    )
    LIMIT 1
), job AS (
    INSERT INTO raincheck.jobs (id, version, attempt, state, gone, due, record, lease_until)
    SELECT $1, $2, $3, $4, $5, $6, $7, clock_timestamp() + $9::float8 * interval '1 second'
    WHERE NOT EXISTS (SELECT FROM there)
    RETURNING id
), owned AS (
    INSERT INTO raincheck.keys (key, id)
    SELECT DISTINCT key, $1 FROM unnest($8::text[]) AS key
    WHERE EXISTS (SELECT FROM job) ORDER BY key
), kept AS (
    INSERT INTO raincheck.requests (id, request)
    SELECT $1, $10::bytea WHERE $10 IS NOT NULL AND EXISTS (SELECT FROM job)
)
SELECT record FROM there
"""

_GET = "SELECT record FROM raincheck.jobs WHERE id = $1"

_FIND = "SELECT record FROM raincheck.keys JOIN raincheck.jobs USING (id) WHERE key = $1"

_REQUEST = "SELECT request FROM raincheck.requests WHERE id = $1"

_REPLACE = """
WITH job AS (
    UPDATE raincheck.jobs SET
        version = $2, attempt = $3, state = $4, gone = $5, due = $6, record = $7,
        lease_until = CASE
            WHEN $4::text IS NULL THEN NULL
            WHEN $9::float8 IS NULL THEN lease_until
            ELSE clock_timestamp() + $9 * interval '1 second'
        END
    WHERE id = $1 AND version = $2 - 1
    RETURNING id
), freed AS (
    DELETE FROM raincheck.keys
    WHERE id = $1 AND key <> ALL ($8::text[]) AND EXISTS (SELECT FROM job)
), owned AS (
    INSERT INTO raincheck.keys (key, id)
    SELECT key, $1 FROM (
        SELECT unnest($8) AS key EXCEPT SELECT key FROM raincheck.keys WHERE id = $1 ORDER BY key
    ) AS new WHERE EXISTS (SELECT FROM job)
    ON CONFLICT (key) DO UPDATE SET id = excluded.id
), forgotten AS (
    DELETE FROM raincheck.requests WHERE id = $1 AND NOT $10::boolean AND EXISTS (SELECT FROM job)
), dropped AS (
    DELETE FROM raincheck.chunks
    WHERE id = $1 AND (attempt <> $3 OR $5) AND EXISTS (SELECT FROM job)
), kept AS (
    INSERT INTO raincheck.chunks (id, attempt, start, chunk)
    SELECT $1, $3, start + coalesce((
        SELECT start + length(chunk) FROM raincheck.chunks WHERE id = $1 AND attempt = $3
        ORDER BY start DESC LIMIT 1
    ), 0), chunk
    FROM unnest($11::bigint[], $12::bytea[]) AS tail (start, chunk) WHERE EXISTS (SELECT FROM job)
)
SELECT id FROM job
"""

# The lock holds off whoever is about to replace the job until the chunk is there.
_APPEND = """
WITH job AS (
    SELECT id FROM raincheck.jobs WHERE id = $1 AND attempt = $2 AND state IS NOT NULL FOR SHARE
), kept AS (
    INSERT INTO raincheck.chunks (id, attempt, start, chunk)
    SELECT $1, $2, start, chunk FROM unnest($3::bigint[], $4::bytea[]) AS new (start, chunk)
    WHERE EXISTS (SELECT FROM job) AND $3[1] = coalesce((
        SELECT start + length(chunk) FROM raincheck.chunks WHERE id = $1 AND attempt = $2
        ORDER BY start DESC LIMIT 1
    ), 0)
    ON CONFLICT DO NOTHING
)
SELECT id FROM job
"""

# A few rows at a time, from the one on that has the byte.
_READ = """
SELECT jobs.attempt, start, chunk
FROM raincheck.jobs LEFT JOIN LATERAL (
    SELECT start, chunk FROM raincheck.chunks
    WHERE id = jobs.id AND attempt = jobs.attempt AND start >= coalesce((
        SELECT start FROM raincheck.chunks
        WHERE id = jobs.id AND attempt = jobs.attempt AND start <= $2 ORDER BY start DESC LIMIT 1
    ), 0)
    ORDER BY start LIMIT $3
) AS body ON true
WHERE id = $1 AND NOT gone
ORDER BY start
"""

_RENEW = """
UPDATE raincheck.jobs SET lease_until = clock_timestamp() + $3::float8 * interval '1 second'
FROM unnest($1::text[], $2::integer[]) AS held (id, attempt)
WHERE jobs.id = held.id AND jobs.attempt = held.attempt AND state IS NOT NULL
RETURNING jobs.id, state
"""

_ABANDONED = """
SELECT lease_until, id, record FROM raincheck.jobs
WHERE lease_until <= now() AND (lease_until, id) > (coalesce($1::timestamptz, '-infinity'), $2)
ORDER BY lease_until, id LIMIT 50
"""

# Rows that are locked are being buried by another process.
_EXPIRED = """
SELECT record FROM raincheck.jobs WHERE due <= $1 AND NOT gone
ORDER BY due LIMIT $2 FOR UPDATE SKIP LOCKED
"""

_BURY = """
WITH job AS (
    UPDATE raincheck.jobs SET
        version = tombstone.version, state = NULL, gone = true, due = tombstone.due,
        lease_until = NULL, record = tombstone.record
    FROM unnest($1::text[], $2::integer[], $3::float8[], $4::text[])
        AS tombstone (id, version, due, record)
    WHERE jobs.id = tombstone.id
), freed AS (
    DELETE FROM raincheck.keys WHERE id = ANY ($1)
), forgotten AS (
    DELETE FROM raincheck.requests WHERE id = ANY ($1)
)
DELETE FROM raincheck.chunks WHERE id = ANY ($1)
"""

# A chunk can be left over if it was appended while its job was being replaced.
_PURGE = """
WITH purged AS (
    DELETE FROM raincheck.jobs WHERE id = ANY (ARRAY (
        SELECT id FROM raincheck.jobs WHERE due <= $1 AND gone
        ORDER BY due LIMIT $2 FOR UPDATE SKIP LOCKED
    ))
    RETURNING id
), dropped AS (
    DELETE FROM raincheck.chunks WHERE id IN (SELECT id FROM purged)
)
SELECT count(*) FROM purged
"""

_ANY = "SELECT EXISTS (SELECT FROM raincheck.jobs)"

_NEWER = """
SELECT id, record FROM unnest($1::text[], $2::integer[]) AS known (id, after)
LEFT JOIN raincheck.jobs USING (id) WHERE version IS NULL OR version > after
"""

_ANNOUNCE = "SELECT pg_notify($1, id) FROM unnest($2::text[]) AS id"

_LOCK = "SELECT pg_advisory_xact_lock(hashtext('raincheck'), hashtext($1))"

_STATE = """
SELECT current_user, to_regnamespace($1) IS NOT NULL, to_regclass($1 || '.version') IS NOT NULL
"""

_VERSION = "SELECT number FROM raincheck.version"

_MIGRATED = "UPDATE raincheck.version SET number = $1"


class PostgresStore(Store):
    """Jobs in a PostgreSQL database, for several processes and machines.

    It makes its tables itself, and brings those of an older version up to date. The role needs to
    be allowed to create the schema, or else somebody who may has to do it once:
    `CREATE SCHEMA raincheck AUTHORIZATION role`. How durable a commit is stays the server's
    setting, `synchronous_commit`. It runs on asyncio only, as asyncpg does.

    Who waits for a change hears of it by LISTEN, on one connection besides the others, and looks
    once a second for what nobody told of, as when a process ended between the change and telling.

    Through a proxy that gives every transaction another connection, as PgBouncer does with
    `pool_mode = transaction`, set `listen`: it works without prepared statements then, at the cost
    of another round trip for each.

    Args:
        dsn: e.g. `"postgresql://user:password@host:5432/database"`, with whatever else asyncpg
            takes there, such as `?sslmode=verify-full`.
        schema: where its tables are, and the channel of its notifications.
        timeout: seconds until a call that the server does not answer fails, up to 86,400.
        connections: how many it opens at most, besides the one that it listens on. Calls beyond
            that wait for one, up to `timeout`.
        listen: True if `dsn` leads to the server itself. If it leads to a proxy of the kind above:
            a DSN that leads around it, or False if there is none; changes are noticed within a
            second then.

    Raises:
        ConfigurationError: one of them cannot work.
    """

    shared: ClassVar[bool] = True

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "raincheck",
        timeout: float = 10.0,
        connections: int = 10,
        listen: bool | str = True,
    ) -> None:
        self._server = _server(dsn, "dsn")
        if not schema or len(schema.encode()) > 63 or "\0" in schema:
            raise ConfigurationError(f"schema={schema!r}: a name has 1 to 63 bytes")
        if not 0 < timeout <= 86400:
            raise ConfigurationError(f"timeout={timeout!r}: give seconds, more than 0, up to a day")
        if not isinstance(connections, int) or connections < 1:
            raise ConfigurationError(f"connections={connections!r}: it needs at least 1")
        if not isinstance(listen, bool):
            _server(listen, "listen")
        self._dsn = dsn
        self._schema = schema
        self._timeout = timeout
        self._connections = connections
        self._listen = listen
        self._session: _Session | None = None

    async def create(
        self, job: Job, request: CapturedRequest | None = None, *, lease: float | None = None
    ) -> Job:
        kept = dump_request(request) if request is not None and job.replayable else None
        there = await self._value(_CREATE, *_columns(job), lease, kept)
        return job if there is None else load(there)

    async def get(self, id: str) -> Job | None:
        if "\0" in id:  # a client may ask about anything, and no text of PostgreSQL's has that
            return None
        record = await self._value(_GET, id)
        return None if record is None else load(record)

    async def find(self, key: str) -> Job | None:
        record = await self._value(_FIND, key)
        return None if record is None else load(record)

    async def request(self, id: str) -> CapturedRequest | None:
        record = await self._value(_REQUEST, id)
        return None if record is None else load_request(record)

    async def replace(self, job: Job, *, tail: bytes = b"", lease: float | None = None) -> bool:
        columns = _columns(job)
        replaced = await self._value(_REPLACE, *columns, lease, job.replayable, *_pieces(tail))
        if replaced is None:
            return False
        self._announce([job.id])
        return True

    async def append_body(self, id: str, attempt: int, offset: int, chunk: bytes) -> bool:
        return await self._value(_APPEND, id, attempt, *_pieces(chunk, offset)) is not None

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        attempt = None
        while True:
            rows = await self._rows(_READ, id, offset, PAGE)
            if attempt is None and rows:
                attempt = rows[0]["attempt"]
            elif attempt is not None and (not rows or rows[0]["attempt"] != attempt):
                raise StoreError(f"the response body of job {id} was dropped while it was read")
            for _, start, chunk in rows:
                if chunk is not None and offset < start + len(chunk):
                    yield chunk[offset - start :]
                    offset = start + len(chunk)
            if len(rows) < PAGE:
                return

    async def changed(self, id: str, after_version: int) -> Job | None:
        async with self._opened() as session:
            pass
        return await session.newer(id, after_version)

    async def renew(self, attempts: Mapping[str, int], lease: float) -> dict[str, State]:
        if not attempts:
            return {}
        rows = await self._rows(_RENEW, [*attempts], [*attempts.values()], lease)
        return {row["id"]: State(row["state"]) for row in rows}

    async def abandoned(self) -> AsyncIterator[Job]:
        since, id = None, ""
        while rows := await self._rows(_ABANDONED, since, id):
            for row in rows:
                yield load(row["record"])
            since, id = rows[-1]["lease_until"], rows[-1]["id"]

    async def sweep(self, now: float) -> bool:
        while await self._bury(now):
            pass
        while await self._value(_PURGE, now, BATCH) == BATCH:
            pass
        return bool(await self._value(_ANY))

    async def _bury(self, now: float) -> bool:
        """Turn some jobs that have expired into tombstones; whether there were any."""
        tombstones: list[Job] = []
        size = 0
        async with (
            self._opened() as session,
            session.connection() as connection,
            connection.transaction(isolation="read_committed"),
        ):
            for row in await connection.fetch(self._in_schema(_EXPIRED), now, BATCH):
                job = load(row["record"])
                tombstones.append(job.tombstone(now))
                size += 0 if job.response is None else job.response.size
                if size > BATCH_BYTES:
                    break
            if not tombstones:
                return False
            ids = [job.id for job in tombstones]
            await connection.execute(
                self._in_schema(_BURY),
                ids,
                [job.version for job in tombstones],
                [job.purge_at for job in tombstones],
                [dump(job).decode() for job in tombstones],
            )
        self._announce(ids)
        return True

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None and session.loop is _running_loop():
            await session.aclose()

    def _announce(self, ids: list[str]) -> None:
        if self._session is not None:  # it may have been closed meanwhile
            self._session.announce(ids)

    async def _value(self, statement: str, *arguments: Any) -> Any:
        """What the statement says in its only row; None if it has no row."""
        rows = await self._rows(statement, *arguments)
        return rows[0][0] if rows else None

    async def _rows(self, statement: str, *arguments: Any) -> list[Any]:
        statement = self._in_schema(statement)
        async with self._opened() as session, session.connection() as connection:
            for _ in range(TRIES):
                with suppress(*_RACES):
                    rows: list[Any] = await connection.fetch(statement, *arguments)
                    return rows
        raise StoreError(f"{self._server}: others were faster {TRIES} times")

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[_Session]:
        """What is open in this event loop; what fails or takes too long is a `StoreError`."""
        loop = _running_loop()
        if loop is None:
            raise ConfigurationError(
                "PostgresStore runs on asyncio only, as asyncpg does: on trio, use SQLiteStore"
            )
        session = self._session
        if session is None or session.loop is not loop:
            session = self._session = _Session(self)
        try:
            async with asyncio.timeout(self._timeout):
                await session.open()
                yield session
        except _FAILURES as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> StoreError:
        if isinstance(error, TimeoutError):
            return StoreError(f"{self._server} did not answer within {self._timeout:g} seconds")
        said = str(error) or type(error).__name__
        if isinstance(error, _POOLED):
            said = "it seems to be a proxy that pools transactions: set `listen`"
        text = f"{self._server}: {said}"
        return StoreFull(text) if isinstance(error, asyncpg.DiskFullError) else StoreError(text)

    def _in_schema(self, statement: str) -> str:
        return statement.replace("raincheck.", _quoted(self._schema) + ".")


class _Session:
    """What a store has open while one event loop runs, and who waits there."""

    def __init__(self, store: PostgresStore) -> None:
        self.loop = asyncio.get_running_loop()
        self._store = store
        self._places = asyncio.Semaphore(store._connections)
        self._idle: deque[tuple[Any, float]] = deque()  # connections, each with its last use
        self._opening = asyncio.Lock()
        self._serving: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._news: set[str] = set()  # jobs that were changed here, which nobody was told yet
        # Who waits for each job, and for a version newer than which.
        self._waiting: dict[str, dict[asyncio.Future[Job | None], int]] = {}
        self._suspects: set[str] = set()  # among these jobs, those that may have changed
        self._suspicion = asyncio.Event()
        self._next_look = 0.0
        self._last_waited = 0.0

    async def open(self) -> None:
        if self._serving is None:
            async with self._opening:
                if self._serving is None:
                    async with self.connection() as connection:
                        await self._migrate(connection)
                        self._serving = _spawn(self._serve())

    async def aclose(self) -> None:
        if self._telling is not None:
            await asyncio.wait([self._telling])
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])

    # --- connections ------------------------------------------------------------------------

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """One of the connections; waits for its turn."""
        async with self._places:
            connection = await self._take()
            try:
                yield connection
            except BaseException:  # it may be in the middle of a statement
                connection.terminate()
                raise
            if self._serving is None or self._serving.done():  # the store was closed
                connection.terminate()
            else:
                self._idle.append((connection, self.loop.time()))

    async def _take(self) -> Any:
        while self._idle and self._idle[0][1] < self.loop.time() - IDLE:
            self._idle.popleft()[0].terminate()
        while self._idle:
            connection, _ = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self._connect(self._store._dsn)

    async def _connect(self, dsn: str) -> Any:
        """A new connection; if it stands when nobody wants it any more, it is closed.

        `asyncpg.connect` itself is not cancelled: at some of its steps that would leave a future
        with an exception that nobody retrieves. It ends by its own timeout.
        """
        connecting = _spawn(
            _connected(dsn, self._store._timeout, pooled=self._store._listen is not True)
        )
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_discard)
            raise

    async def _migrate(self, connection: Any) -> None:
        """Make the tables, or bring them up to date."""
        store = self._store
        schema = _quoted(store._schema)
        async with connection.transaction(isolation="read_committed"):
            await connection.execute(_LOCK, schema)
            role, there, versioned = await connection.fetchrow(_STATE, schema)
            number = await connection.fetchval(store._in_schema(_VERSION)) if versioned else 0
            if number > len(MIGRATIONS):
                raise StoreError(
                    f"{store._server}: the tables in schema {schema} have version {number}, and "
                    f"this version of raincheck knows {len(MIGRATIONS)}: install a newer one"
                )
            try:
                if not there:
                    await connection.execute(f"CREATE SCHEMA {schema}")
                for migration in MIGRATIONS[number:]:
                    number += 1
                    await connection.execute(store._in_schema(migration))
                    await connection.execute(store._in_schema(_MIGRATED), number)
            except asyncpg.InsufficientPrivilegeError as error:
                raise StoreError(
                    f"{store._server}: {error}; the store needs a schema that belongs to its role:"
                    f" let somebody run CREATE SCHEMA {schema} AUTHORIZATION {_quoted(role)}"
                ) from error

    # --- changes ----------------------------------------------------------------------------

    def announce(self, ids: list[str]) -> None:
        """Tell every process that these jobs have changed.

        It comes after the change, since a server commits transactions that notify one after the
        other, each with its own wait for the disk. So it may be lost: hence the look every second.
        """
        self._news.update(ids)
        if self._news and (self._telling is None or self._telling.done()):
            self._telling = _spawn(self._tell())

    async def _tell(self) -> None:
        while self._news:
            ids, self._news = [*self._news], set()
            with suppress(*_FAILURES):  # the change itself is done, and seen at the next look
                async with asyncio.timeout(self._store._timeout), self.connection() as connection:
                    await connection.execute(_ANNOUNCE, self._store._schema, ids)

    async def newer(self, id: str, version: int) -> Job | None:
        """The job, once it is newer than this version; None once it is not there."""
        future: asyncio.Future[Job | None] = self.loop.create_future()
        waiting = self._waiting.setdefault(id, {})
        waiting[future] = version
        self._suspect([id])
        try:
            return await future
        finally:
            del waiting[future]
            if not waiting:
                del self._waiting[id]

    async def _serve(self) -> None:
        """Answer those who wait; end with the event loop, and all connections with it."""
        until: float | None = 0.0  # when the server has been away too long; None while it is there
        try:
            while True:
                await self._suspicion.wait()
                self._suspicion.clear()
                try:
                    async with self._listening() as connection:
                        self._suspect(self._waiting)  # whatever happened before it listened
                        while not connection.is_closed():
                            await self._look(connection)
                            until = None
                            if self._last_waited < self.loop.time() - IDLE:
                                break
                            with suppress(TimeoutError):
                                async with asyncio.timeout_at(self._next_look):
                                    await self._suspicion.wait()
                except Exception as error:  # it goes to those who wait
                    if until is None:
                        until = self.loop.time() + self._store._timeout
                    if self.loop.time() < until:
                        await asyncio.sleep(RETRY)
                        self._suspect(self._waiting)
                    else:
                        self._give_up(error)
        finally:
            self._give_up(asyncpg.InterfaceError("the store was closed"))
            for connection, _ in self._idle:
                connection.terminate()

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[Any]:
        store = self._store
        dsn = store._listen if isinstance(store._listen, str) else store._dsn
        connection = await self._connect(dsn)
        try:
            connection.add_termination_listener(lambda *_: self._suspect(self._waiting))
            if store._listen:
                await connection.add_listener(store._schema, self._hear)
            yield connection
        finally:
            connection.terminate()

    def _hear(self, connection: Any, process: int, channel: str, id: str) -> None:
        self._suspect([id])

    def _suspect(self, ids: Iterable[str]) -> None:
        suspects = self._waiting.keys() & ids
        if suspects:
            self._suspects |= suspects
            self._suspicion.set()

    async def _look(self, connection: Any) -> None:
        """Answer those whose job has changed: of the suspects or, once a second, of all."""
        ids, self._suspects = self._suspects, set()
        self._suspicion.clear()
        if self._next_look <= self.loop.time():
            self._next_look = self.loop.time() + LOOK
            ids = set(self._waiting)
        known = {}
        for id in ids & self._waiting.keys():
            if versions := [v for future, v in self._waiting[id].items() if not future.done()]:
                known[id] = min(versions)
        if not known:
            return
        self._last_waited = self.loop.time()
        arguments = [*known], [*known.values()]
        newer = self._store._in_schema(_NEWER)
        for id, record in await connection.fetch(newer, *arguments, timeout=self._store._timeout):
            try:
                job = None if record is None else load(record)
            except Exception as error:  # it goes to those who wait for this job
                self._refuse(id, error)
                continue
            for future, version in self._waiting.get(id, {}).items():
                if not future.done() and (job is None or job.version > version):
                    future.set_result(job)

    def _give_up(self, error: Exception) -> None:
        failure = self._store._failure(error)
        failure.__cause__ = error
        for id in self._waiting:
            self._refuse(id, failure)

    def _refuse(self, id: str, error: Exception) -> None:
        for future in self._waiting.get(id, {}):
            if not future.done():
                future.set_exception(error)


def _columns(job: Job) -> tuple[Any, ...]:
    """What `_CREATE` and `_REPLACE` begin with."""
    state = None if job.finished or job.gone else job.state.value
    due = job.purge_at if job.gone else job.expires_at
    record = dump(job).decode()
    return job.id, job.version, job.attempt, state, job.gone, due, record, job.keys


def _pieces(chunk: bytes, start: int = 0) -> tuple[list[int], list[memoryview]]:
    """Where the pieces of a chunk begin, and the pieces."""
    places = range(0, len(chunk), PIECE)
    view = memoryview(chunk)
    return [start + place for place in places], [view[place : place + PIECE] for place in places]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # there is none, or it is trio's
        return None


def _server(dsn: str, argument: str) -> str:
    """The server and the database in a DSN, as they may appear in messages."""
    parts = urlsplit(dsn)
    rest = parts.path + parts.query + parts.fragment
    if parts.scheme not in ("postgresql", "postgres") or "@" in rest:
        raise ConfigurationError(
            f"{argument} begins with postgresql://, and what is special in a password, such as @, "
            "/, ? and #, is percent-encoded there"
        )
    return parts.netloc.rpartition("@")[2] + parts.path or "PostgreSQL"


def _spawn(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task in a context of its own, not in that of the first who needs it."""
    return asyncio.get_running_loop().create_task(work, context=Context())


async def _connected(dsn: str, timeout: float, *, pooled: bool) -> Any:
    cached = 0 if pooled else 100
    try:
        connection = await asyncpg.connect(dsn, timeout=timeout, statement_cache_size=cached)
    except ValueError as error:
        raise ConfigurationError(f"dsn or listen: {error}") from error
    if not pooled:
        try:
            await connection.execute(_SETTINGS.format(ceil(timeout * 1000)), timeout=timeout)
        except BaseException:
            connection.terminate()
            raise
    return connection


def _discard(connecting: asyncio.Task[Any]) -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()
