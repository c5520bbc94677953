"""The floor with all duties over a store that outlives the process: the least that each asks of it.

One table with a primary key, or one hash for each job; the record as JSON; a write when the job is
accepted and one when it ends, which is done only if the job is still at the version before. No
lists, bounds, keys, captured requests, leases, fences or notifications.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from starlette.applications import Starlette

from peers.floor_app import LEAN, Job, module


class Floor(Protocol):
    """Keeps jobs."""

    async def open(self) -> None: ...

    async def create(self, job: Job) -> None: ...

    async def replace(self, job: Job, body: bytes) -> None: ...


def dump(job: Job) -> str:
    """The record, with what is bytes in it as text."""
    return json.dumps([*job], default=bytes.decode, check_circular=False)


class OnRedis:
    """Hashes; the change is a script, as every comparison on Redis is."""

    async def open(self) -> None:
        from redis.asyncio import Redis

        self._redis = Redis.from_url(os.environ["REDIS_URL"])
        self._replace = self._redis.register_script(
            "if redis.call('HGET', KEYS[1], 'version') ~= ARGV[1] then return 0 end "
            "redis.call('HSET', KEYS[1], 'version', ARGV[2], 'record', ARGV[3], 'body', ARGV[4]) "
            "redis.call('EXPIRE', KEYS[1], 3600) return 1"
        )

    async def create(self, job: Job) -> None:
        fields = {"version": job.version, "record": dump(job)}
        if await self._redis.hset(f"job:{job.id}", mapping=fields) != len(fields):  # type: ignore[misc]
            raise NotImplementedError

    async def replace(self, job: Job, body: bytes) -> None:
        given = [job.version - 1, job.version, dump(job), body]
        if not await self._replace(keys=[f"job:{job.id}"], args=given):
            raise NotImplementedError


class OnPostgres:
    """One table."""

    async def open(self) -> None:
        import asyncpg  # type: ignore[import-untyped]

        self._pool = await asyncpg.create_pool(os.environ["POSTGRES_URL"], max_size=10)
        await self._pool.execute(
            "CREATE TABLE IF NOT EXISTS floor "
            "(id text PRIMARY KEY, version integer, record text, body bytea)"
        )

    async def create(self, job: Job) -> None:
        statement = "INSERT INTO floor VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
        if await self._pool.execute(statement, job.id, job.version, dump(job)) != "INSERT 0 1":
            raise NotImplementedError

    async def replace(self, job: Job, body: bytes) -> None:
        statement = (
            "UPDATE floor SET version = $2, record = $3, body = $4 "
            "WHERE id = $1 AND version = $2 - 1"
        )
        given = job.id, job.version, dump(job), body
        if await self._pool.execute(statement, *given) != "UPDATE 1":
            raise NotImplementedError


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


STORES = {"redis": OnRedis, "postgres": OnPostgres, "sqlite": OnSQLite}


def build(store: str) -> Starlette:
    """The floor over one of them; polls are answered from memory."""
    names, there = module(LEAN), STORES[store]()
    settle, put = names["settle"], names["put"]

    async def create(job: Job) -> None:
        put(job)
        await there.create(job)

    async def replace(job: Job, body: bytes) -> None:
        settle(job, body)
        await there.replace(job, body)

    names |= {"create": create, "replace": replace}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await there.open()
        yield

    app: Starlette = names["make"](lifespan)
    return app
