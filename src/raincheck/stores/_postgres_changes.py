"""How a `PostgresStore` tells other processes what has changed, and hears it from them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, NamedTuple

import asyncpg  # type: ignore[import-untyped]  # it brings no types

from raincheck.serialization import load, load_head
from raincheck.stores._postgres_server import FAILURES, Server, spawn
from raincheck.stores._postgres_statements import ANNOUNCE, NEWER
from raincheck.stores.base import Partial, told

LOOK = 1.0
"""Seconds between two looks for changes that nobody told of."""

PAUSE = 0.01
"""Seconds after an announcement in which changes come together for the next. One that nothing came
before is announced at once; under load a job is spared a third of its round trips."""

RETRY = 0.1
"""Seconds until another try to reach a server that went away while somebody waits."""

LINGER = 60.0
"""Seconds until the connection on which nobody waits any more is closed."""

GROWTH = "+"
"""What an announcement begins with that is for those only who follow the response."""


class Known(NamedTuple):
    """What somebody has who waits for more.

    Attributes:
        version: of the job.
        kept: how much of a response, if that is followed: bytes of its body, and 1 for its head.
    """

    version: int
    kept: int | None = None

    @classmethod
    def of(cls, there: Partial) -> Known:
        """All there is."""
        return cls(there.job.version, _kept(there))

    def passed(self, there: Partial) -> bool:
        """Whether there is more."""
        grown = self.kept is not None and _kept(there) > self.kept
        return grown or there.job.version > self.version


def _kept(there: Partial) -> int:
    return there.size + (there.head is not None)


class Changes:
    """Who waits for a change of which job, and which changes nobody was told of yet.

    Args:
        server: where the jobs are.
        connection: gives one of the store's connections.
    """

    def __init__(
        self, server: Server, connection: Callable[[], AbstractAsyncContextManager[Any]]
    ) -> None:
        self._server = server
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._telling: asyncio.Task[None] | None = None
        self._news: set[str] = set()  # what has changed here, of which nobody was told yet
        # Who waits for each job, and for more than what.
        self._waiting: dict[str, dict[asyncio.Future[Partial | None], Known]] = {}
        self._suspects: set[str] = set()  # among these jobs, those that may have changed
        self._suspicion = asyncio.Event()
        self._next_look = 0.0
        self._last_waited = 0.0

    def announce(self, ids: list[str]) -> None:
        """Tell every process that these jobs have changed, or with `GROWTH` before, their bodies.

        It comes after the change, since a server commits transactions that notify one after the
        other, each with its own wait for the disk. So it may be lost: hence the look every second.
        """
        self._news.update(ids)
        if self._news and (self._telling is None or self._telling.done()):
            self._telling = spawn(self._tell())

    async def _tell(self) -> None:
        while self._news:
            ids, self._news = [*self._news], set()
            with suppress(*FAILURES):  # the change itself is done, and seen at the next look
                async with asyncio.timeout(self._server.timeout), self._connection() as connection:
                    await connection.execute(ANNOUNCE, self._server.channel, ids)
            await asyncio.sleep(PAUSE)

    async def told(self) -> None:
        """Wait until nobody is left to be told."""
        if self._telling is not None:
            await asyncio.wait([self._telling])

    async def more(self, id: str, known: Known) -> Partial | None:
        """What there is, once that is more; None once the job is not there."""
        future: asyncio.Future[Partial | None] = self._loop.create_future()
        waiting = self._waiting.setdefault(id, {})
        waiting[future] = known
        self._suspect([id])
        try:
            return await future
        finally:
            del waiting[future]
            if not waiting:
                del self._waiting[id]

    async def serve(self) -> None:
        """Answer those who wait, for as long as the event loop runs."""
        until: float | None = 0.0  # when the server has been away too long; None while it is there
        try:
            while True:
                await self._suspicion.wait()
                self._suspicion.clear()
                try:
                    async with self._listening() as connection:
                        until = until or self._loop.time() + self._server.timeout  # it was there
                        self._suspect(self._waiting)  # whatever happened before it listened
                        while not connection.is_closed():
                            await self._look(connection)
                            until = None
                            if self._last_waited < self._loop.time() - LINGER:
                                break
                            with suppress(TimeoutError):
                                async with asyncio.timeout_at(self._next_look):
                                    await self._suspicion.wait()
                except Exception as error:  # it goes to those who wait
                    if until is None:
                        until = self._loop.time() + self._server.timeout
                    if self._loop.time() < until:
                        await asyncio.sleep(RETRY)
                        self._suspect(self._waiting)
                    else:
                        self._give_up(error)
        finally:
            self._give_up(asyncpg.InterfaceError("the store was closed"))

    @asynccontextmanager
    async def _listening(self) -> AsyncIterator[Any]:
        server = self._server
        connection = await server.connect(server.listen if isinstance(server.listen, str) else None)
        try:
            connection.add_termination_listener(lambda *_: self._suspect(self._waiting))
            if server.listen:
                async with asyncio.timeout(server.timeout):
                    await connection.add_listener(server.channel, self._hear)
            yield connection
        finally:
            connection.terminate()

    def _hear(self, connection: Any, process: int, channel: str, news: str) -> None:
        id = news.removeprefix(GROWTH)
        if id == news or any(
            known.kept is not None for known in self._waiting.get(id, {}).values()
        ):
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
        if self._next_look <= self._loop.time():
            self._next_look = self._loop.time() + LOOK
            ids = set(self._waiting)
        known = {}
        for id in ids & self._waiting.keys():
            if of := [each for future, each in self._waiting[id].items() if not future.done()]:
                kept = [each.kept for each in of if each.kept is not None]
                known[id] = min(each.version for each in of), min(kept, default=None)
        if not known:
            return
        self._last_waited = self._loop.time()
        arguments = [*known], *([each[n] for each in known.values()] for n in range(2))
        newer = self._server.in_schema(NEWER)
        for id, *row in await connection.fetch(newer, *arguments, timeout=self._server.timeout):
            try:
                there = partial(*row)
            except Exception as error:  # it goes to those who wait for this job
                self._refuse(id, error)
                continue
            for future, each in self._waiting.get(id, {}).items():
                if not future.done() and (there is None or each.passed(there)):
                    future.set_result(there)

    def _give_up(self, error: Exception) -> None:
        failure = self._server.failure(error)
        failure.__cause__ = error
        for id in self._waiting:
            self._refuse(id, failure)

    def _refuse(self, id: str, error: Exception) -> None:
        for future in self._waiting.get(id, {}):
            if not future.done():
                future.set_exception(error)


def partial(record: str | None, head: str | None, size: int | None) -> Partial | None:
    """What there is of a response, of what `NEWER` says besides the id; None: no such job."""
    if record is None:
        return None
    job = load(record)
    if job.stage is None:
        return told(job)
    return Partial(job, None if head is None else load_head(head), size or 0)
