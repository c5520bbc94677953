"""Jobs in a PostgreSQL database, for several processes and machines.

Beside it are rooms for its statements, its tables, its server, what it has open while an event loop
runs, and who waits there for changes.
"""

from __future__ import annotations

import asyncio
import builtins
import json
import logging
import math
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

try:
    import asyncpg  # type: ignore[import-untyped]  # it brings no types
except ImportError as _error:
    raise ImportError(
        "PostgresStore needs asyncpg. Install it with: pip install raincheck[postgres]"
    ) from _error

import raincheck.stores._postgres_statements as sql
from raincheck.errors import ConfigurationError, NoRoom, StoreError
from raincheck.job import Bounds, Job, Key, State
from raincheck.messages import CapturedRequest, Head
from raincheck.serialization import (
    STARTABLE,
    dump,
    dump_cursor,
    dump_head,
    dump_request,
    load,
    load_cursor,
    load_request,
    readable,
    started,
)
from raincheck.stores._postgres_batches import Batches
from raincheck.stores._postgres_changes import GROWTH, Known, partial
from raincheck.stores._postgres_server import FAILURES, Server
from raincheck.stores._postgres_session import Session
from raincheck.stores.base import (
    SMALL,
    Abandoned,
    Claim,
    Fetched,
    Found,
    Page,
    Partial,
    Store,
    Total,
    turns_to,
)
from raincheck.stores.servers import opening
from raincheck.tasks import TimeLimits

logger: logging.Logger = logging.getLogger("raincheck")

PAGE = 4
"""Rows of a response body that are read at once."""

BATCH = 500
"""Jobs that one transaction of a sweep turns to, so that none lasts long."""

BATCH_BYTES = 256 * 1024 * 1024
"""Bytes of their response bodies at most, but for the last of them."""

TOGETHER = 16 * 1024
"""Bytes of a request or of a response body, at most, of a job that is changed with others."""

LOCKED = "50ms"
"""How long a renewal of leases waits for somebody's lock on one of the jobs: no other is to be
taken for abandoned, or to wait for its end, because of that."""

ADDED_UP = 20_000
"""Rows of what has ended since the last sweep that one statement makes a sum of."""


class PostgresStore(Store):
    """Jobs in a PostgreSQL database, for several processes and machines.

    It makes its tables itself, and brings those of an older version up to date. The role needs to
    be allowed to create the schema, or else somebody who may has to do it once:
    `CREATE SCHEMA raincheck AUTHORIZATION role`. Or somebody else does all of it, with
    `python -m raincheck.stores.postgres migrate`, which can also print the SQL. How durable a
    commit is stays the server's setting, `synchronous_commit`. It runs on asyncio only, as asyncpg
    does.

    Who waits for a change hears of it by LISTEN, on one connection besides the others, and looks
    once a second for what nobody told of, as when a process ended between the change and telling.

    Through a proxy that gives every transaction another connection, as PgBouncer does with
    `pool_mode = transaction`, set `listen`: it works without prepared statements then, at the cost
    of another round trip for each, and of two more for each that keeps to bounds.

    Args:
        dsn: e.g. `"postgresql://user:password@host:5432/database"`, with whatever else asyncpg
            takes there, such as `?sslmode=verify-full`.
        deployment: what all processes that share these jobs have in common, e.g. `"shop"`. Others
            in the same schema, each under a name of its own, neither see nor run them.
        schema: where its tables are.
        timeout: seconds until a call that the server does not answer fails, up to 86,400.
        connections: how many it opens at most, besides the one that it listens on. Calls beyond
            that wait for one, up to `timeout`.
        listen: True if `dsn` leads to the server itself. If it leads to a proxy of the kind above:
            a DSN that leads around it, or False if there is none; changes are noticed within a
            second then.
        migrate: whether it may make its tables, and bring them up to date. If not, the start fails
            while they are behind.

    Raises:
        ConfigurationError: one of them cannot work.
    """

    shared: ClassVar[bool] = True

    def __init__(
        self,
        dsn: str,
        *,
        deployment: str,
        schema: str = "raincheck",
        timeout: float = 10.0,
        connections: int = 10,
        listen: bool | str = True,
        migrate: bool = True,
    ) -> None:
        if not isinstance(connections, int) or connections < 1:
            raise ConfigurationError(f"connections={connections!r}: it needs at least 1")
        self._server = Server(dsn, deployment, schema, timeout, listen)
        self.deployment: str = self._server.deployment
        self._in_time = TimeLimits(self._server.timeout)
        self._connections = connections
        self._migrates = migrate
        self._session: Session | None = None

    async def open(self) -> None:
        with opening():
            async with self._opened():
                pass

    async def create(
        self,
        job: Job,
        request: CapturedRequest | None = None,
        *,
        keys: Collection[Key] = (),
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        kept = dump_request(request) if request is not None and job.replayable else None
        route = sql.digest(job.counts_for)
        owner = None if job.owner is None else sql.digest(job.owner)
        owed = () if job.delivery is None else (job.deliver_at,)
        most = sql.most(job, bounds)
        plain = job.stage is not None and most is None and not (keys or owed)
        if plain and len(kept or b"") <= TOGETHER:
            new = sql.beginning(job, lease, kept)
            if await self._among(self._here().created, new):
                return job
        arguments = [*sql.columns(job, keys), lease, kept, route, owner]
        if most is None:
            there = await self._value(sql.CREATE_OWED if owed else sql.CREATE, *arguments, *owed)
        else:
            create = sql.CREATE_OWED_WITHIN if owed else sql.CREATE_WITHIN
            there = await self._value_within(most, create, *arguments, owed=owed)
        return job if there is None else load(there)

    async def get(self, id: str) -> Job | None:
        if "\0" in id:  # a client may ask about anything, and no text of PostgreSQL's has that
            return None
        record = await self._value(sql.GET, id)
        return None if record is None else load(record)

    async def fetch(self, id: str) -> Fetched | None:
        if "\0" in id:
            return None
        rows = await self._rows(sql.FETCH, id, SMALL)
        if not rows:
            return None
        job, body = load(rows[0]["record"]), rows[0]["body"] or b""
        whole = job.response is not None and job.response.size == len(body)
        return Fetched(job, body if whole else None)

    async def find(self, name: str) -> Found | None:
        rows = await self._rows(sql.FIND, name)
        return Found(load(rows[0]["record"]), rows[0]["fingerprint"]) if rows else None

    async def learn(self, route: str, names: Collection[str]) -> None:
        await self._rows(sql.LEARN, sql.digest(route), sorted(names))

    async def learned(self, route: str) -> frozenset[str]:
        rows = await self._rows(sql.LEARNED, sql.digest(route))
        return frozenset(row["name"] for row in rows)

    async def request(self, id: str) -> CapturedRequest | None:
        rows = await self._rows(sql.REQUEST, id)
        if not rows:
            return None
        job = readable(rows[0]["record"])  # whose last run may have just been claimed
        kept = job is None or job.replayable
        return load_request(rows[0]["request"]) if kept else None

    async def claim(
        self, id: str, *, routes: Collection[str], holder: str, now: float, lease: float | None
    ) -> Claim | None:
        if "\0" in id:
            return None
        start = started(now, holder).decode()
        of_these = [sql.digest(route) for route in routes]
        rows = await self._rows(sql.CLAIM, id, of_these, now, lease, STARTABLE.decode(), start)
        if not rows:
            return None
        record, request = rows[0]
        job = load(record)
        if request is None:
            return Claim(job, None, False)
        self._announce([id])
        return Claim(job, load_request(request), True)

    async def replace(
        self,
        job: Job,
        *,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        if not keys and _ends_with(job, tail):
            last = sql.ending(job, tail)
            if await self._among(self._here().ended, last):
                self._announce([job.id])
                return True
        arguments = [
            *sql.columns(job, keys),
            lease,
            job.replayable,
            job.bodied,
            *sql.pieces(tail),
            job.stored,
        ]
        if job.delivery is not None and job.stage is None:  # nothing bounds what has ended
            replaced = await self._value(sql.REPLACE_OWED, *arguments, job.deliver_at)
        elif (most := sql.most(job, bounds)) is None:
            replaced = await self._value(sql.REPLACE, *arguments)
        else:
            replaced = await self._value_within(most[:3], sql.REPLACE_WITHIN, *arguments)
        if replaced is None:
            return False
        self._announce([job.id])
        return True

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        starts, pieces = sql.pieces(chunk, offset)
        if head is not None and not (chunk or offset):
            starts, pieces = [0], [memoryview(chunk)]  # the head alone, for now
        kept = None if head is None else dump_head(head).decode()
        if await self._value(sql.APPEND, id, fence, starts, pieces, kept) is None:
            return False
        self._announce([GROWTH + id])
        return True

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        reading = end = None
        while end is None or offset < end:
            rows = await self._rows(sql.READ, id, offset, PAGE)
            if end is None:
                if not rows or rows[0]["size"] <= offset:
                    return
                reading, end = rows[0]["fence"], rows[0]["size"]
            before = offset
            for fence, _, start, chunk in rows:
                if fence != reading or start is None:
                    break
                if 0 <= offset - start < min(len(chunk), end - start):
                    piece = chunk[offset - start : end - start]
                    offset += len(piece)
                    yield piece
            if offset == before:
                raise StoreError(f"the body of job {id} was dropped while it was read")

    async def partial(self, id: str) -> Partial | None:
        if "\0" in id:
            return None
        ((_, *there),) = await self._rows(sql.NEWER, [id], [0], [0])
        return partial(*there)

    async def grown(self, known: Partial) -> Partial | None:
        there = await self.partial(known.job.id)  # nobody waits for what cannot be read
        if there is None or there.beyond(known):
            return there
        async with self._opened() as session:
            pass
        return await session.changes.more(known.job.id, Known.of(known))

    async def changed(self, id: str, after_version: int) -> Job | None:
        async with self._opened() as session:
            pass
        there = await session.changes.more(id, Known(after_version))
        return None if there is None else there.job

    async def list(
        self,
        *,
        states: Collection[State] = (),
        route: str | None = None,
        owner: str | None = None,
        since: float | None = None,
        until: float | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        end = (math.inf, "") if until is None else (until, "")
        if after is not None:
            end = min(end, load_cursor(after))
        narrowed = [sql.digest(name) for name in (route, owner) if name is not None]
        rows = await self._rows(
            sql.LIST[route is not None, owner is not None],
            [*(states or State)],
            -math.inf if since is None else since,
            *end,
            limit + 1,
            *narrowed,
        )
        jobs = [readable(row["record"]) for row in rows[:limit]]
        last = rows[limit - 1] if len(rows) > limit else None
        return Page(
            [job for job in jobs if job is not None],
            None if last is None else dump_cursor(last["created_at"], last["id"]),
        )

    async def totals(self) -> dict[tuple[str, State], Total]:
        return {
            (json.loads(name), State(state)): Total(*counted)
            for name, state, *counted in await self._rows(sql.TOTALS)
            if name is not None
        }

    async def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        if not fences:
            return {}
        ids = sorted(fences)  # see `Session._many`
        held = ids, [fences[id] for id in ids], lease
        try:
            rows = await self._rows(sql.RENEW, *held, LOCKED)
        except StoreError as error:
            if not isinstance(error.__cause__, asyncpg.LockNotAvailableError):
                raise
            rows = await self._rows(sql.RENEW_FREE, *held)
        return {row["id"]: State(row["state"]) for row in rows}

    async def abandoned(self) -> AsyncIterator[Abandoned]:
        since, id = None, ""
        while rows := await self._rows(sql.ABANDONED, since, id):
            for row in rows:
                yield Abandoned(row["id"], readable(row["record"]), row["idle"])
            since, id = rows[-1]["lease_until"], rows[-1]["id"]

    async def claim_deliveries(self, now: float, lease: float, limit: int) -> Sequence[Job]:
        if not await self._value(sql.DELIVERABLE, now):  # as a rule
            return []
        taken: builtins.list[Job] = []
        leased: builtins.list[str] = []
        settled: builtins.list[str] = []
        later: dict[str, float] = {}
        async with self._changing() as connection:
            for id, record in await connection.fetch(self._server.in_schema(sql.OWED), now, limit):
                job = readable(record or "")
                if record is None or (job is not None and job.deliver_at is None):
                    settled.append(id)
                elif job is not None and (at := turns_to(job, now)) is not None:
                    later[id] = at
                else:
                    leased.append(id)
                    taken += [] if job is None else [job]
            for statement, *words in (
                (sql.LEASE_DELIVERIES, leased, lease),
                (sql.SETTLE, settled),
                (sql.TURN_TO, [*later], [*later.values()]),
            ):
                if words[0]:
                    await connection.execute(self._server.in_schema(statement), *words)
        return taken

    async def sweep(self, now: float) -> bool:
        while await self._bury(now):
            pass
        while await self._value(sql.PURGE, now, BATCH) == BATCH:
            pass
        await self._rows(sql.UNOWED)
        while await self._value(sql.DESCRIBE, BATCH, sql.digest("")) == BATCH:
            pass
        while await self._value(sql.ADD_UP, ADDED_UP) == ADDED_UP:
            pass
        return bool(await self._value(sql.ANY))

    async def discard(self, id: str) -> bool:
        async with self._changing() as connection:
            record = await connection.fetchval(self._server.in_schema(sql.LAPSED), id)
            if record is None or readable(record) is not None:
                return False
            await connection.execute(self._server.in_schema(sql.DROP), [id])
        self._announce([id])
        return True

    async def _bury(self, now: float) -> bool:
        """Turn some jobs that have expired into tombstones; whether there were any."""
        tombstones: builtins.list[Job] = []
        unreadable: builtins.list[str] = []
        size = 0
        async with self._changing() as connection:
            for row in await connection.fetch(self._server.in_schema(sql.EXPIRED), now, BATCH):
                if (job := readable(row["record"])) is None:
                    unreadable.append(row["id"])
                    continue
                tombstones.append(job.tombstone(now))
                size += 0 if job.response is None else job.response.size
                if size > BATCH_BYTES:
                    break
            if not tombstones and not unreadable:
                return False
            if unreadable:
                await connection.execute(self._server.in_schema(sql.DROP), unreadable)
            ids = [job.id for job in tombstones]
            await connection.execute(
                self._server.in_schema(sql.BURY),
                ids,
                [job.version for job in tombstones],
                [job.purge_at for job in tombstones],
                [dump(job).decode() for job in tombstones],
            )
        for id in unreadable:
            told = {"job": id}
            logger.warning("job %s has expired; its record could not be read", id, extra=told)
        self._announce(ids + unreadable)
        return True

    async def aclose(self) -> None:
        session, self._session = self._session, None
        if session is not None and session.loop is _running_loop():
            await session.aclose()

    def _announce(self, ids: builtins.list[str]) -> None:
        if self._session is not None:  # it may have been closed meanwhile
            self._session.changes.announce(ids)

    async def _among(self, batches: Batches, change: tuple[Any, ...]) -> bool:
        """Whether a change was made with others; else there may be a reason."""
        try:
            return await batches.add(*change)
        except FAILURES as error:
            raise self._server.failure(error) from error

    async def _value(self, statement: str, *arguments: Any) -> Any:
        """What the statement says in its only row; None if it has no row."""
        rows = await self._rows(statement, *arguments)
        return rows[0][0] if rows else None

    async def _value_within(
        self,
        most: Sequence[Any],
        statement: str,
        *arguments: Any,
        owed: tuple[float | None, ...] = (),
    ) -> Any:
        """The same, of a statement that may say which bound leaves no room."""
        # In another isolation, which only a proxy's connections may have, it would count what was
        # there before it had its lock.
        isolation = "read_committed" if self._server.pooled else None
        arguments = *arguments, self._server.schema, *most, *owed
        rows = await self._rows(statement, *arguments, isolation=isolation)
        value = rows[0][0] if rows else None
        if value in ("owner", "route", "stored"):
            raise NoRoom(owner=value != "route", stored=value == "stored")
        return value

    async def _rows(
        self, statement: str, *arguments: Any, isolation: str | None = None
    ) -> builtins.list[Any]:
        """What the statement says; with `isolation`, in a transaction for it alone."""
        try:
            return await self._here().rows(statement, *arguments, isolation=isolation)
        except FAILURES as error:
            raise self._server.failure(error) from error

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[Any]:
        """A connection, in a transaction of several statements."""
        async with (
            self._opened() as session,
            session.connection() as connection,
            connection.transaction(isolation="read_committed"),
        ):
            yield connection

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Session]:
        """What is open in this event loop; what fails or takes too long is a `StoreError`."""
        session = self._here()
        try:
            with self._in_time():
                await session.open()
                yield session
        except FAILURES as error:
            raise self._server.failure(error) from error

    def _here(self) -> Session:
        """What there is in this event loop, be it open or not."""
        loop = _running_loop()
        if loop is None:
            raise ConfigurationError(
                "PostgresStore runs on asyncio only, as asyncpg does: on trio, use SQLiteStore"
            )
        session = self._session
        if session is None or session.loop is not loop:
            session = self._session = Session(
                self._server, self._connections, migrates=self._migrates
            )
        return session


def _ends_with(job: Job, tail: bytes) -> bool:
    """Whether a version is the end of a plain job, with all there is of its response."""
    size = 0 if job.response is None else job.response.size
    plain = job.finished and not (job.gone or job.replayable or job.delivery is not None)
    return plain and size == len(tail) <= TOGETHER


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:  # there is none, or it is trio's
        return None


if __name__ == "__main__":
    from raincheck.stores._postgres_command import main

    main()
