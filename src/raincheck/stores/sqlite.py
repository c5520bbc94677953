"""Jobs in an SQLite file: durable, and shared by the processes of one machine."""

from __future__ import annotations

import builtins
import functools
import logging
import math
import os
import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import closing
from typing import Any, ClassVar, Literal

from anyio.lowlevel import current_token

from raincheck.bodies.files import FileBodies
from raincheck.errors import BodyLost, ConfigurationError
from raincheck.job import Bounds, Job, Key, State
from raincheck.messages import CapturedRequest, Head
from raincheck.serialization import dump_cursor, load, load_head, load_request, readable
from raincheck.stores._sqlite_calls import Unusable, explained
from raincheck.stores._sqlite_changes import NOW, Changes
from raincheck.stores._sqlite_file import File
from raincheck.stores._sqlite_loop import Use
from raincheck.stores._sqlite_queries import (
    BEHIND,
    DELIVERABLE,
    FETCH,
    PARTIAL,
    PIECES,
    ROUTES,
    TOTALS,
    listing,
)
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
    told,
)

logger: logging.Logger = logging.getLogger("raincheck")

ROWS = 100
"""Pieces of a body, at most, that are read on the event loop at once: a tenth of a millisecond."""


class SQLiteStore(Store):
    """Jobs in an SQLite file: they outlive the process, and those of one machine can share it.

    Two more files stand beside it while it is in use, `-wal` and `-shm`, and belong to it. They
    need a local disk: on a network file system SQLite cannot keep processes apart.

    What expires makes room in the file for what comes. After a sweep that left more than half of
    it empty it shrinks.

    Leases go by the machine's clock: whoever sets it ends them early, or late.

    Large bodies are files in a directory beside it, whose name ends in `-bodies`. Those of a class
    that inherits from this one are not: they are in the file, by way of its methods, unless it sets
    `bodies` itself or `Jobs` is given some.

    Args:
        path: the file; made when it is first used, in a directory that is there, and for nobody
            else to read (mode 0600). One that is there keeps its mode.
        synchronous: `"NORMAL"`: what was acknowledged outlives the process. `"FULL"`: it outlives
            the machine's crash and a power cut, too; each transaction then waits for the disk.
            Default `"NORMAL"`.
        timeout: seconds that a change may wait for other processes that write. Default 5.

    Raises:
        ConfigurationError: an argument cannot work.
    """

    shared: ClassVar[bool] = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        timeout: float = 5.0,
    ) -> None:
        if not isinstance(path, str | os.PathLike) or os.fspath(path) in ("", ":memory:"):
            raise ConfigurationError(
                f"SQLiteStore({path!r}): path is that of a file; for jobs in memory use "
                "MemoryStore()"
            )
        if synchronous not in ("NORMAL", "FULL"):
            raise ConfigurationError(
                f'SQLiteStore(synchronous={synchronous!r}): synchronous is "NORMAL" or "FULL"'
            )
        if not (isinstance(timeout, int | float) and 0 <= timeout < math.inf):
            raise ConfigurationError(
                f"SQLiteStore(timeout={timeout!r}): timeout is a number of seconds, at least 0"
            )
        self._path = os.path.abspath(path)  # wherever the process goes before it opens the file
        self._synchronous = synchronous
        self.durable: bool = synchronous == "FULL"
        # Beside the file, wherever a link leads to. What inherits from this may keep things
        # otherwise, encrypted for one, and nothing of it is to be in the clear beside that.
        place = f"{os.path.realpath(self._path)}-bodies"
        self.bodies: FileBodies | None = FileBodies(place) if type(self) is SQLiteStore else None
        self._timeout = timeout
        self._use: Use | None = None

    async def open(self) -> None:
        """Open the file, and see whose it is.

        Raises:
            ConfigurationError: it can never be used as it is set up: there is no such directory,
                it is one, it is another application's or another version's, or this process may
                not write there.
            StoreError: it cannot be used now.
        """
        try:
            await self._here().write(lambda changes: None)
        except Unusable as error:
            raise ConfigurationError(f"SQLiteStore: {error}") from error

    async def name(self) -> str:
        return str((await self._read("SELECT name FROM name"))[0][0])

    async def create(
        self,
        job: Job,
        request: CapturedRequest | None = None,
        *,
        keys: Collection[Key] = (),
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> Job:
        there = await self._here().write(
            lambda changes: changes.create(job, request, keys, lease, bounds)
        )
        return job if there is None else load(there)

    async def get(self, id: str) -> Job | None:
        rows = await self._read("SELECT record FROM jobs WHERE id = ?", id)
        return load(rows[0][0]) if rows else None

    async def fetch(self, id: str) -> Fetched | None:
        rows = await self._read(FETCH, id, SMALL, ROWS)
        if not rows:
            return None
        job = load(rows[0][0])
        if job.response is None:
            return Fetched(job, None)
        body = b"".join([piece for _, piece in rows if piece is not None])
        return Fetched(job, body if len(body) == job.response.size else None)

    async def find(self, name: str) -> Found | None:
        rows = await self._read(
            "SELECT record, fingerprint FROM keys JOIN jobs ON number = job WHERE name = ?", name
        )
        return Found(load(rows[0][0]), rows[0][1]) if rows else None

    async def learn(self, route: str, names: Collection[str]) -> None:
        await self._here().write(lambda changes: changes.learn(route, names))

    async def learned(self, route: str) -> frozenset[str]:
        rows = await self._read("SELECT name FROM varying WHERE route = ?", route)
        return frozenset(name for (name,) in rows)

    async def request(self, id: str) -> CapturedRequest | None:
        rows = await self._read_large(
            "SELECT requests.record FROM jobs JOIN requests ON job = number"
            " WHERE id = ? AND replayable = 1",
            id,
        )
        return load_request(rows[0][0]) if rows else None

    async def claim(
        self, id: str, *, routes: Collection[str], holder: str, now: float, lease: float | None
    ) -> Claim | None:
        return await self._here().write(
            lambda changes: changes.claim(id, routes, holder, now, lease)
        )

    async def replace(
        self,
        job: Job,
        *,
        keys: Collection[Key] = (),
        tail: bytes = b"",
        lease: float | None = None,
        bounds: Bounds | None = None,
    ) -> bool:
        return await self._here().write(
            lambda changes: changes.replace(job, keys, tail, lease, bounds)
        )

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, *, head: Head | None = None
    ) -> bool:
        return await self._here().write(
            lambda changes: changes.append_body(id, fence, offset, chunk, head)
        )

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        first: int | None = None
        more = True
        while more:
            fence, start, some, more = await self._pieces(id, offset)
            first = fence if first is None else first
            if fence != first:
                raise self._dropped(id)
            if some is None:
                rows = await self._read_large(
                    "SELECT piece FROM jobs JOIN bodies ON job = number"
                    " WHERE id = ? AND bodies.fence = ? AND start = ?",
                    *(id, fence, start),
                )
                if not rows:
                    raise self._dropped(id)
                some = rows[0][0]
            if len(some) > offset - start:
                yield some[offset - start :]
                offset = start + len(some)

    async def partial(self, id: str) -> Partial | None:
        rows = await self._read(PARTIAL, id)
        if not rows:
            return None
        record, head, size = rows[0]
        job = load(record)
        if job.stage is None:
            return told(job)
        return Partial(job, None if head is None else load_head(head), size)

    async def grown(self, known: Partial) -> Partial | None:
        id, size = known.job.id, known.size + (known.head is not None)
        while True:
            use = self._here()
            with use.waiting.newer(id, known.job.version, size) as event:
                found = await self.partial(id)
                if found is None or found.beyond(known):
                    return found
                use.proceed()
                await event.wait()

    async def changed(self, id: str, after_version: int) -> Job | None:
        while True:
            use = self._here()
            with use.waiting.newer(id, after_version) as event:  # before it looks, to miss nothing
                job = await self.get(id)
                if job is None or job.version > after_version:
                    return job
                use.proceed()
                await event.wait()

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
        await self._catch_up()
        routes = [route] if route is not None else [name for (name,) in await self._read(ROUTES)]
        sql, parameters = listing(states, routes, owner, since, until, after, limit)
        if not routes:
            return Page([], None)
        rows = await self._read_large(sql, *parameters)
        page = rows[:limit]
        jobs = [job for _, _, record in page if (job := readable(record)) is not None]
        return Page(jobs, dump_cursor(*page[-1][:2]) if len(rows) > limit else None)

    async def totals(self) -> dict[tuple[str, State], Total]:
        await self._catch_up()
        rows = await self._read_large(TOTALS)
        return {(route, State(state)): Total(*total) for route, state, *total in rows}

    async def renew(self, fences: Mapping[str, int], lease: float) -> dict[str, State]:
        return await self._here().write(lambda changes: changes.renew(fences, lease))

    async def abandoned(self) -> AsyncIterator[Abandoned]:
        ((now,),) = await self._read(f"SELECT {NOW}")
        last = (-math.inf, 0)
        while rows := await self._read(
            "SELECT lease_until, number, id, record FROM jobs"
            " WHERE (lease_until, number) > (?, ?) AND lease_until <= ?"
            " ORDER BY lease_until, number LIMIT 100",
            *last,
            now,
        ):
            for until, _, id, record in rows:
                yield Abandoned(id, readable(record), now - until)
            last = rows[-1][:2]

    async def discard(self, id: str) -> bool:
        return await self._here().write(lambda changes: changes.discard(id))

    async def claim_deliveries(self, now: float, lease: float, limit: int) -> Sequence[Job]:
        if not await self._read(DELIVERABLE, now):  # as a rule; and nobody else waits for that
            return []
        return await self._here().write(lambda changes: changes.claim_deliveries(now, lease, limit))

    async def sweep(self, now: float) -> bool:
        await self._catch_up()  # so that the first list need not, of many
        more = True
        while more:
            more, unread = await self._here().write(functools.partial(Changes.sweep, now=now))
            for id in unread:
                told = {"job": id}
                logger.warning("job %s has expired; its record could not be read", id, extra=told)
        while await self._here().write(lambda changes: changes.vacuum()):
            pass
        return bool(await self._read("SELECT 1 FROM jobs LIMIT 1"))

    async def aclose(self) -> None:
        use, self._use = self._use, None
        if use is not None and use.file.inherited():
            use.file.disinherit()
        elif use is not None:
            await (use if use.token == current_token() else Use(use.file)).close()

    def _here(self) -> Use:
        """The use of the file from this event loop."""
        if self._use is not None and self._use.file.inherited():
            self._use.file.disinherit()
            self._use = None
        if self._use is None:
            self._use = Use(File(self._path, self._synchronous, self._timeout))
        elif self._use.token != current_token():  # the last loop has ended, the threads have not
            self._use = Use(self._use.file)
        return self._use

    async def _catch_up(self) -> None:
        """See that what an older version of raincheck has written is listed and counted."""
        while await self._read(BEHIND):
            await self._here().write(Changes.catch_up)

    async def _read(self, sql: str, *parameters: object) -> builtins.list[Any]:
        """Read small rows, on the event loop.

        A thread would answer after a tenth of a millisecond, of which reading takes less than a
        tenth: such rows come out of memory, as a rule, and who reads waits for nobody who writes.
        """
        reader = self._reader() or await self._opened()
        try:
            return reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise explained(self._path, error) from error

    async def _pieces(self, id: str, offset: int) -> tuple[int | None, int, bytes | None, bool]:
        """Some pieces of a body, from the one on that has this byte, with one query.

        Returns:
            The fence that they are of, None if there is no body, where they start, what they
            hold (None: one that is too large to be read here), and whether there may be more.
        """
        reader = self._reader() or await self._opened()
        fence, begin, size, count = None, offset, 0, 0
        some: list[bytes] = []
        limit = ROWS + 1 if offset else ROWS  # the first of them is there already
        sought = {"id": id, "offset": offset, "small": SMALL, "rows": limit}
        try:
            with closing(reader.execute(PIECES, sought)) as rows:
                for fence, start, length, piece in rows:
                    count += 1
                    if start + length <= offset:
                        continue
                    begin = begin if some else start
                    if piece is not None:
                        some.append(piece)
                        size += len(piece)
                    if piece is None or size >= SMALL:
                        return fence, begin, b"".join(some) if some else None, True
        except sqlite3.Error as error:
            raise explained(self._path, error) from error
        return fence, begin, b"".join(some), count == limit

    def _dropped(self, id: str) -> BodyLost:
        return BodyLost(f"{self._path}: the body of job {id} was dropped while it was read")

    async def _read_large(self, sql: str, *parameters: object) -> builtins.list[Any]:
        """Read rows of any size, in a thread."""
        await self._opened()
        return await self._here().read(sql, parameters)

    async def _opened(self) -> sqlite3.Connection:
        while (reader := self._reader()) is None:
            await self._here().write(lambda changes: None)  # opens the file
        return reader

    def _reader(self) -> sqlite3.Connection | None:
        return None if self._use is None or self._use.file.inherited() else self._use.file.reader
