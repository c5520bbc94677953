"""What a `PostgresStore` has open while one event loop runs."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from operator import itemgetter
from typing import Any

import anyio
import asyncpg  # type: ignore[import-untyped]  # it brings no types

from raincheck.errors import StoreError
from raincheck.stores._postgres_batches import Batches, Change
from raincheck.stores._postgres_changes import Changes
from raincheck.stores._postgres_schema import migrate
from raincheck.stores._postgres_server import FAILURES, LOST, Server, spawn
from raincheck.stores._postgres_statements import CREATE_MANY, END_MANY, ONCE
from raincheck.tasks import limit

RESTED = 1.0
"""Seconds without use after which a connection is asked whether it is alive before it is given a
statement: the server may have ended it meanwhile."""

IDLE = 60.0
"""Seconds until a connection that nobody uses is not used again: a firewall may forget it."""

TRIES = 10
"""How often a statement that loses races is tried; the second try succeeds nearly always."""

# The statement lost a race and changed nothing: done again, it sees what it lost to.
_RACES = (
    asyncpg.UniqueViolationError,
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
)


class Session:
    """The connections of one event loop, and those who wait there for changes.

    Args:
        server: where they lead.
        connections: how many there are at most, besides the one that listens.
        migrates: whether it may make the tables, and bring them up to date.
    """

    def __init__(self, server: Server, connections: int, *, migrates: bool) -> None:
        self.loop = asyncio.get_running_loop()
        self.changes = Changes(server, self.connection)
        self.created = Batches(partial(self._many, CREATE_MANY))
        self.ended = Batches(partial(self._many, END_MANY))
        self._server = server
        self._migrates = migrates
        self._places = anyio.Semaphore(connections, fast_acquire=True)
        self._idle: deque[tuple[Any, float]] = deque()  # connections, each with its last use
        self._opening = asyncio.Lock()
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """See to the tables, at the first time, and begin to serve those who wait."""
        if self._serving is None:
            async with self._opening:
                if self._serving is None:
                    async with self.connection() as connection:
                        await migrate(self._server, connection, allowed=self._migrates)
                        self._serving = spawn(self._serve())

    async def rows(
        self,
        statement: str,
        *arguments: Any,
        isolation: str | None = None,
        tries: int = TRIES,
    ) -> list[Any]:
        """What a statement says; with `isolation`, in a transaction for it alone.

        Raises:
            StoreError: it has lost races in all of its `tries`; what else can happen is one of
                `FAILURES`.
        """
        own = self._server.in_schema(statement)
        until = self.loop.time() + self._server.timeout
        try:
            return await self._tried(own, arguments, isolation, tries, until)
        except LOST:
            if statement in ONCE:
                raise  # it may have been done
            self.forget()
        return await self._tried(own, arguments, isolation, tries, until)

    async def _tried(
        self,
        statement: str,
        arguments: tuple[Any, ...],
        isolation: str | None,
        tries: int,
        until: float,
    ) -> list[Any]:
        """The same on one connection, until it has lost no race."""
        connection, whole = self.at_hand(), False
        if connection is None:
            async with asyncio.timeout_at(until):
                await self.open()
                connection = await self.take()
        try:
            rows: list[Any]
            for _ in range(tries):
                with suppress(*_RACES):
                    if isolation is None:  # as a rule, and asyncpg's timeout is the cheaper one
                        left = until - self.loop.time()
                        rows = await connection.fetch(statement, *arguments, timeout=left)
                    else:
                        with limit(until - self.loop.time()):  # rolled back, it may hang again
                            async with connection.transaction(isolation=isolation):
                                rows = await connection.fetch(statement, *arguments)
                    whole = True
                    return rows
            whole = True
        finally:
            self.give_back(connection, whole=whole)
        raise StoreError(f"{self._server}: others were faster {tries} times")

    async def _many(self, statement: str, changes: list[Change], patience: float) -> set[str]:
        """The ids of the jobs that a statement has changed; of none if it has lost a race.

        In the order of their ids, as leases are renewed: no two statements wait for one another.
        """
        columns = zip(*sorted(changes, key=itemgetter(0)), strict=True)
        rows = await self.rows(statement, *columns, f"{patience * 1000:.0f}ms", tries=1)
        return {row[0] for row in rows}

    async def aclose(self) -> None:
        """Close the connections, as soon as the changes are told."""
        await self.changes.told()
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """One of the connections; waits for its turn."""
        connection, whole = await self.take(), False
        try:
            yield connection
            whole = True
        finally:
            self.give_back(connection, whole=whole)

    def at_hand(self) -> Any:
        """A connection for a statement, if one is free that was used just now; else None."""
        if not self._idle:
            return None
        connection, used = self._idle[-1]
        now = self.loop.time()
        if used <= now - RESTED or self._idle[0][1] < now - IDLE or connection.is_closed():
            return None
        try:
            self._places.acquire_nowait()
        except anyio.WouldBlock:
            return None
        self._idle.pop()
        return connection

    async def take(self) -> Any:
        """A connection, once it is its turn: whoever takes one gives it back."""
        await self._places.acquire()
        try:
            return await self._take()
        except BaseException:
            self._places.release()
            raise

    def give_back(self, connection: Any, *, whole: bool) -> None:
        """One is done with a connection.

        Args:
            connection: which.
            whole: whether it is for the next one; else it may be in the middle of a statement.
        """
        if not whole or self._serving is None or self._serving.done():  # the store was closed
            connection.terminate()
        else:
            self._idle.append((connection, self.loop.time()))
        self._places.release()

    def forget(self) -> None:
        """Use none of the connections again that are idle: one has died, and so may the others."""
        while self._idle:
            self._idle.pop()[0].terminate()

    async def _take(self) -> Any:
        while self._idle and self._idle[0][1] < self.loop.time() - IDLE:
            self._idle.popleft()[0].terminate()
        while self._idle:
            connection, used = self._idle.pop()
            if connection.is_closed():
                continue
            if used > self.loop.time() - RESTED or await _alive(connection):
                return connection
            self.forget()
        return await self._server.connect()

    async def _serve(self) -> None:
        try:
            await self.changes.serve()
        finally:  # it ends with the event loop, and so do the connections
            self.forget()


async def _alive(connection: Any) -> bool:
    try:
        await connection.execute("SELECT 1")
    except BaseException as error:
        connection.terminate()
        if not isinstance(error, FAILURES):
            raise
        return False
    return True
