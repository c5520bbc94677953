"""The floor with all duties over a store that outlives the process: the least that each asks of it.

One table with a primary key, or one hash for each job; the record as JSON; a write when the job is
accepted and one when it ends, which is done only if the job is still at the version before. What a
store on a server has to do besides are the duties of `DUTIES`, added one by one: all columns,
indexes and keys of it, for a job that has neither an idempotency key nor a captured request.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol
from urllib.parse import urlsplit

from starlette.applications import Starlette

from peers import LEAN
from peers.floor_app import Job, module

DUTIES: Mapping[str, Mapping[str, str]] = {
    "postgres": {
        "together": "what comes while the server is busy goes there next, as one statement",
        "columns": "what a job is looked for by, beside its record; the deployment in every key",
        "lease": "a lease, and an index of those that have one",
        "expiry": "when it expires, and an index of that",
        "bounds": "an index of those that run or wait, by their route",
        "lists": "an index by route, state and time",
        "totals": "how many of a route have ended, and how long they ran",
        "body": "the response in a table of its own, that it may grow while it is read",
        "keys": "idempotency keys of the job are freed",
        "request": "a captured request of the job is dropped",
        "news": "who waits for a change is told, every hundredth of a second",
    },
    "redis": {
        "together": "what comes while the server is busy goes there next, in one piece",
        "script": "created by a script too: only if it is not there, with all that the end needs",
        "expiry": "when it expires, and when the server drops it if nobody does",
        "lease": "a lease, by the server's clock",
        "bounds": "those that run or wait, by their route",
        "lists": "by route, state and time",
        "totals": "how many of a route have ended, and how long they ran",
        "body": "the response under a key of its own, that it may grow while it is read",
        "request": "a captured request of the job is dropped",
        "kinds": "nothing is changed where a key is another application's",
        "news": "who waits for a change is told",
    },
}
"""By store, in the order in which they are added."""


class Floor(Protocol):
    """Keeps jobs."""

    async def open(self) -> None: ...

    async def create(self, job: Job) -> None: ...

    async def replace(self, job: Job, body: bytes) -> None: ...

    async def aclose(self) -> None: ...


def dump(job: Job) -> str:
    """The record, with what is bytes in it as text."""
    return json.dumps([*job], default=bytes.decode, check_circular=False)


class Together:
    """What comes while the server is busy goes there next, at once.

    Args:
        ask: asks the server some questions, and says whether what each wants was done.
    """

    def __init__(self, ask: Callable[[list[Any]], Awaitable[Sequence[bool]]]) -> None:
        self._ask = ask
        self._waiting: list[tuple[Any, asyncio.Future[bool]]] = []
        self._asking: asyncio.Task[None] | None = None

    async def do(self, question: Any) -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._waiting.append((question, future))
        if self._asking is None:
            self._asking = loop.create_task(self._serve())
        if not await future:
            raise NotImplementedError

    async def _serve(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            done = await self._ask([question for question, _ in batch])
            for (_, future), answer in zip(batch, done, strict=True):
                future.set_result(answer)
        self._asking = None


class OnRedis:
    """Hashes; the change is a script, as every comparison on Redis is."""

    def __init__(self, there: frozenset[str]) -> None:
        from hashlib import sha1

        self._there = there
        self._ending = _chosen(_ENDING, there)
        self._creating = _chosen(_CREATING, there)
        digests = (sha1(text.encode()).hexdigest() for text in (self._creating, self._ending))
        self._create, self._end = (digest.encode() for digest in digests)
        self._line = Together(self._exchange)

    async def open(self) -> None:
        from redis.asyncio import Redis

        self._redis = Redis.from_url(os.environ["REDIS_URL"])
        for text in (self._creating, self._ending):
            await self._redis.script_load(text)
        if "together" in self._there:
            parts = urlsplit(os.environ["REDIS_URL"])
            where = parts.hostname or "localhost", parts.port or 6379
            self._reader, self._writer = await asyncio.open_connection(*where)

    async def _exchange(self, commands: list[Sequence[bytes]]) -> Sequence[bool]:
        parts = []
        for words in commands:
            parts.append(b"*%d\r\n" % len(words))
            for word in words:
                parts += (b"$%d\r\n" % len(word), word, b"\r\n")
        self._writer.write(b"".join(parts))
        answers = b""
        while answers.count(b"\r\n") < len(commands):  # each is a number
            answers += await self._reader.read(1 << 16)
        if b"-" in answers:
            raise NotImplementedError
        return [answer != b":0" for answer in answers.split()]

    async def create(self, job: Job) -> None:
        fields = {"version": job.version, "record": dump(job)}
        key = f"job:{job.id}"
        if "together" not in self._there:
            if await self._redis.hset(key, mapping=fields) != len(fields):  # type: ignore[misc]
                raise NotImplementedError
        elif "script" not in self._there:
            words = [b"HSET", key.encode()]
            for name, value in fields.items():
                words += (name.encode(), str(value).encode())
            await self._line.do(words)
        else:
            times = b"%r" % job.created_at, b"60"
            await self._line.do(self._command(self._create, job, job.version, *times))

    async def replace(self, job: Job, body: bytes) -> None:
        if "together" not in self._there:
            given = [f"job:{job.id}", job.version - 1, job.version, dump(job), body, "", ""]
            if not await self._redis.evalsha(self._end.decode(), 1, *given):  # type: ignore[misc]
                raise NotImplementedError
            return
        ran = (job.finished_at or 0.0) - job.created_at
        times = b"%r" % job.created_at, b"%r" % job.expires_at, b"%r" % ran
        await self._line.do(self._command(self._end, job, job.version - 1, body, *times))

    async def aclose(self) -> None:
        await self._redis.aclose()
        if "together" in self._there:
            self._writer.close()

    def _command(self, script: bytes, job: Job, version: int, *rest: bytes) -> Sequence[bytes]:
        id = job.id.encode()
        keys: list[bytes] = [b"job:" + id]
        if "script" in self._there:
            keys += (b"request:" + id, b"body:" + id, b"due", b"leases", b"busy", b"listed")
        words = [b"EVALSHA", script, b"%d" % len(keys), *keys, b"%d" % version]
        if script == self._end:
            words.append(b"%d" % job.version)
        own = (id, job.route.encode(), job.state.encode()) if "script" in self._there else ()
        return [*words, dump(job).encode(), *rest, *own]


_CREATING = """
local job, _, _, due, leases, busy, listed = unpack(KEYS)
local version, record, created, lease, id, route, state = unpack(ARGV)
if redis.call('EXISTS', job) == 1 then return 0 end
for _, key in ipairs({due, leases, busy, listed}) do --kinds
  local kind = redis.call('TYPE', key).ok --kinds
  if kind ~= 'zset' and kind ~= 'hash' and kind ~= 'none' then error('kind') end --kinds
end --kinds
redis.call('HSET', job, 'version', version, 'record', record, 'fence', 1, 'stage', state,
  'size', 0, 'counted', route .. id)
redis.call('ZADD', due, 'inf', id) --expiry
local time = redis.call('TIME') --lease
redis.call('ZADD', leases, time[1] + time[2] / 1000000 + lease, id) --lease
redis.call('ZADD', busy, 0, 'running ' .. route .. id) --bounds
redis.call('ZADD', listed .. ':' .. state .. ' ' .. route, created, id) --lists
redis.call('HSET', listed, id, cmsgpack.pack(state .. ' ' .. route)) --lists
redis.call('HSETNX', listed .. ':totals', state .. ' ' .. route, 0) --totals
return 1
"""

_ENDING = """
local job, request, its, due, leases, busy, listed = unpack(KEYS)
local before, version, record, body, created, expires, ran, id, route, state = unpack(ARGV)
local old = redis.call('HMGET', job, 'version') ---script
local old = redis.call('HMGET', job, 'version', 'fence', 'size', 'counted', --script
  'keyed', 'stage', 'not_before', 'head', 'stores') --script
if old[1] ~= before then return 0 end
for _, key in ipairs({its, due, leases, busy, listed}) do --kinds
  local kind = redis.call('TYPE', key).ok --kinds
  if kind == 'list' or kind == 'set' then error('kind') end --kinds
end --kinds
redis.call('PUBLISH', 'changed', id) --news
redis.call('HSET', job, 'version', version, 'record', record, 'body', body) ---body
redis.call('HSET', job, 'version', version, 'record', record, 'fence', 1, 'stage', 'ended', --body
  'size', #body, 'counted', '') --body
redis.call('APPEND', its, body) --body
redis.call('EXPIRE', its, 90000) --body
redis.call('EXPIRE', job, 3600) ---expiry
redis.call('EXPIRE', job, 90000) --expiry
redis.call('ZADD', due, expires, id) --expiry
redis.call('ZREM', leases, id) --lease
redis.call('ZREM', busy, 'running ' .. route .. id) --bounds
local was, is = cmsgpack.unpack(redis.call('HGET', listed, id)), state .. ' ' .. route --lists
redis.call('ZREM', listed .. ':' .. was, id) --lists
redis.call('ZADD', listed .. ':' .. is, created, id) --lists
redis.call('HSET', listed, id, cmsgpack.pack(is, ran)) --lists
redis.call('HINCRBYFLOAT', listed .. ':totals', is, ran) --totals
redis.call('UNLINK', request) --request
return 1
"""


def _chosen(text: str, there: frozenset[str]) -> str:
    """The lines of these duties: `--NAME` ends those of one, `---NAME` those that it replaces."""
    lines = []
    for line in text.splitlines():
        code, _, mark = line.partition("--")
        if not mark or (mark[1:] not in there if mark[0] == "-" else mark in there):
            lines.append(code)
    return "\n".join(lines)


class OnPostgres:
    """One table, and from some duty on others."""

    def __init__(self, there: frozenset[str]) -> None:
        self._there = there
        self._table = f"floor{len(there)}"
        self._creating, self._ending = Together(self._create), Together(self._end)
        self._create_sql = _sql(_CREATE_MANY, there, self._table)
        self._end_sql = _sql(_END_MANY, there, self._table)
        self._news: list[str] = []
        self._telling: asyncio.Task[None] | None = None

    async def open(self) -> None:
        import asyncpg  # type: ignore[import-untyped]

        together = "together" in self._there
        self._pool = await asyncpg.create_pool(
            os.environ["POSTGRES_URL"],
            min_size=1 if together else 10,
            max_size=10,
            server_settings=_SETTINGS if together else {},
        )
        await self._pool.execute(_sql(_TABLES, self._there, self._table))

    async def create(self, job: Job) -> None:
        if "together" in self._there:
            await self._creating.do(job)
            return
        statement = f"INSERT INTO {self._table} VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
        if await self._pool.execute(statement, job.id, job.version, dump(job)) != "INSERT 0 1":
            raise NotImplementedError

    async def replace(self, job: Job, body: bytes) -> None:
        if "together" in self._there:
            await self._ending.do((job, body))
            if "news" in self._there:
                self._tell(job.id)
            return
        statement = (
            f"UPDATE {self._table} SET version = $2, record = $3, body = $4 "
            "WHERE id = $1 AND version = $2 - 1"
        )
        given = job.id, job.version, dump(job), body
        if await self._pool.execute(statement, *given) != "UPDATE 1":
            raise NotImplementedError

    async def aclose(self) -> None:
        if self._telling is not None:
            await self._telling
        await self._pool.close()

    async def _create(self, jobs: list[Job]) -> Sequence[bool]:
        columns: list[Any] = [[job.id for job in jobs], [job.version for job in jobs]]
        columns.append([dump(job) for job in jobs])
        if "columns" in self._there:
            columns.append([job.fence for job in jobs])
            columns.append([job.state for job in jobs])
            columns.append([job.route.encode() for job in jobs])
            columns.append([job.created_at for job in jobs])
            columns.append([job.owner for job in jobs])
        await self._pool.fetch(self._create_sql, *columns)
        return [True] * len(jobs)

    async def _end(self, ended: list[tuple[Job, bytes]]) -> Sequence[bool]:
        jobs = [job for job, _ in ended]
        columns: list[Any] = [[job.id for job in jobs], [job.version for job in jobs]]
        columns += [dump(job) for job in jobs], [body for _, body in ended]
        if "columns" in self._there:
            columns.append([job.fence for job in jobs])
            columns.append([job.state for job in jobs])
            columns.append([job.expires_at for job in jobs])
            columns.append([(job.finished_at or 0.0) - job.created_at for job in jobs])
        done = {row[0] for row in await self._pool.fetch(self._end_sql, *columns)}
        return [job.id in done for job in jobs]

    def _tell(self, id: str) -> None:
        self._news.append(id)
        if self._telling is None:
            self._telling = asyncio.get_running_loop().create_task(self._told())

    async def _told(self) -> None:
        while self._news:
            news, self._news = self._news, []
            statement = "SELECT pg_notify($1, id) FROM unnest($2::text[]) AS id"
            await self._pool.execute(statement, self._table, news)
            await asyncio.sleep(0.01)
        self._telling = None


_SETTINGS = {
    **dict.fromkeys(("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "jit"), "off"),
    "plan_cache_mode": "force_generic_plan",
}

# With `--NAME` as on Redis.
_TABLES = """
CREATE TABLE IF NOT EXISTS floor (
    id text COLLATE "C",
    version integer, record text, body bytea, fence integer, state text COLLATE "C", route bytea,
    owner text, created_at float8, seconds float8, lease_until timestamptz, due float8,
    live boolean, deployment text COLLATE "C",
    PRIMARY KEY (id) ---columns
    PRIMARY KEY (deployment, id) --columns
);
CREATE INDEX ON floor (deployment, lease_until, id) WHERE lease_until IS NOT NULL; --lease
CREATE INDEX ON floor (deployment, due) WHERE due IS NOT NULL; --expiry
CREATE INDEX ON floor (deployment, route, state, owner) WHERE live; --bounds
CREATE INDEX ON floor (deployment, route, state, created_at, id) INCLUDE (seconds); --lists
CREATE TABLE floor_ended (deployment text, route bytea, state text, --totals
    jobs bigint, seconds float8); --totals
CREATE TABLE floor_chunks (deployment text COLLATE "C", id text COLLATE "C", fence integer, --body
    start bigint, chunk bytea, PRIMARY KEY (deployment, id, fence, start)); --body
CREATE TABLE floor_keys (deployment text COLLATE "C", id text COLLATE "C", key text); --keys
CREATE INDEX ON floor_keys (deployment, id); --keys
CREATE TABLE floor_requests (deployment text COLLATE "C", id text COLLATE "C", --request
    request bytea, PRIMARY KEY (deployment, id)); --request
"""

_CREATE_MANY = """
INSERT INTO floor
    (id, version, record
    , deployment, fence, state, route, created_at, owner --columns
    , lease_until --lease
    , live) --columns
    ) ---columns
SELECT id, version, record
    , 'deployment', fence, state, route, created_at, owner --columns
    , clock_timestamp() + 60 * interval '1 second' --lease
    , true --columns
FROM unnest($1::text[], $2::integer[], $3::text[]
    , $4::integer[], $5::text[], $6::bytea[], $7::float8[], $8::text[] --columns
) AS new (id, version, record
    , fence, state, route, created_at, owner --columns
) RETURNING id
"""

_END_MANY = """
WITH new AS MATERIALIZED (
    SELECT text 'deployment' AS deployment, * FROM unnest(
        $1::text[], $2::integer[], $3::text[], $4::bytea[]
        , $5::integer[], $6::text[], $7::float8[], $8::float8[] --columns
    ) AS new (id, version, record, body
        , fence, state, due, seconds --columns
    )
), job AS (
    UPDATE floor SET version = new.version, record = new.record
        , body = new.body ---body
        , fence = new.fence, state = new.state, seconds = new.seconds, live = NULL --columns
        , lease_until = NULL --lease
        , due = new.due --expiry
    FROM new WHERE floor.id = new.id AND floor.version = new.version - 1
        AND floor.deployment = new.deployment --columns
    RETURNING floor.id
        , new.deployment --columns
        , floor.fence, route, floor.state, floor.seconds --columns
        , new.body --body
)
, counted AS ( --totals
    INSERT INTO floor_ended --totals
    SELECT 'deployment', route, state, count(*), sum(seconds) FROM job --totals
    GROUP BY route, state --totals
) --totals
, dropped AS ( --body
    DELETE FROM floor_chunks USING job --body
    WHERE floor_chunks.deployment = job.deployment AND floor_chunks.id = job.id --body
        AND floor_chunks.fence <> job.fence --body
), kept AS ( --body
    INSERT INTO floor_chunks SELECT 'deployment', id, fence, 0, body FROM job --body
) --body
, freed AS ( --keys
    DELETE FROM floor_keys USING job --keys
    WHERE floor_keys.deployment = job.deployment AND floor_keys.id = job.id --keys
) --keys
, forgotten AS ( --request
    DELETE FROM floor_requests USING job --request
    WHERE floor_requests.deployment = job.deployment AND floor_requests.id = job.id --request
) --request
SELECT id FROM job
"""


def _sql(text: str, there: frozenset[str], table: str) -> str:
    return re.sub(r"\bfloor(?=\b|_)", table, _chosen(text, there))


class OnSQLite:
    """One table; a thread commits together what has come meanwhile."""

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changes: SimpleQueue[tuple[str, tuple[Any, ...], asyncio.Future[int]]] = SimpleQueue()
        Thread(target=self._write, daemon=True).start()

    def _write(self) -> None:
        db = sqlite3.connect(os.path.join(os.environ["FOLDER"], "floor.db"), isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE jobs (id TEXT PRIMARY KEY, version, record, body) WITHOUT ROWID")
        while True:
            changes = [self._changes.get()]
            while not self._changes.empty():
                changes.append(self._changes.get())
            db.execute("BEGIN IMMEDIATE")
            done = [(future, db.execute(sql, given).rowcount) for sql, given, future in changes]
            db.execute("COMMIT")
            self._loop.call_soon_threadsafe(self._tell, done)

    def _tell(self, done: list[tuple[asyncio.Future[int], int]]) -> None:
        for future, count in done:
            future.set_result(count)

    async def _change(self, sql: str, *given: Any) -> None:
        future = self._loop.create_future()
        self._changes.put((sql, given, future))
        if await future != 1:
            raise NotImplementedError

    async def create(self, job: Job) -> None:
        sql = "INSERT INTO jobs VALUES (?, ?, ?, NULL)"
        await self._change(sql, job.id, job.version, dump(job))

    async def replace(self, job: Job, body: bytes) -> None:
        sql = "UPDATE jobs SET version = ?, record = ?, body = ? WHERE id = ? AND version = ?"
        await self._change(sql, job.version, dump(job), body, job.id, job.version - 1)

    async def aclose(self) -> None:
        """Its thread ends with the process."""


STORES: Mapping[str, Callable[[frozenset[str]], Floor]] = {
    "redis": OnRedis,
    "postgres": OnPostgres,
    "sqlite": lambda there: OnSQLite(),
}


def build(store: str, duties: int = 0) -> Starlette:
    """The floor over one of them, with the first so many duties; polls are answered from memory."""
    there = frozenset([*DUTIES.get(store, ())][:duties])
    names, kept = module(LEAN), STORES[store](there)
    settle, put = names["settle"], names["put"]

    async def create(job: Job) -> None:
        put(job)
        await kept.create(job)

    async def replace(job: Job, body: bytes) -> None:
        settle(job, body)
        await kept.replace(job, body)

    names |= {"create": create, "replace": replace}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await kept.open()
        yield
        await kept.aclose()

    app: Starlette = names["make"](lifespan)
    return app
