"""Jobs in an SQLite file: durable, and shared by the processes of one machine."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Generic, Literal, TypeVar

import anyio
from anyio.lowlevel import current_token

from raincheck.errors import ConfigurationError, StoreError, StoreFull
from raincheck.job import Job, State
from raincheck.messages import CapturedRequest
from raincheck.records import dump, dump_request, load, load_request
from raincheck.stores.base import Store

APPLICATION_ID = int.from_bytes(b"rain")
"""Marks a file as ours (SQLite's `PRAGMA application_id`)."""

SCHEMA_VERSION = 1
"""What this version makes (`PRAGMA user_version`). It opens no other."""

# A number stands for a job in the other tables, so that what comes together lies together, and not
# where a random id would put it. `unfinished` is the state of a job until it has ended; `keys` are
# those that it has, as JSON.
SCHEMA = f"""
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    version INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    unfinished TEXT,
    replayable INTEGER NOT NULL,
    keys TEXT,
    lease_until REAL,
    due REAL,
    record TEXT NOT NULL
);
CREATE INDEX leased ON jobs (lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX due ON jobs (due) WHERE due IS NOT NULL;
CREATE TABLE keys (key TEXT PRIMARY KEY, job INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE requests (job INTEGER PRIMARY KEY, record BLOB NOT NULL);
CREATE TABLE bodies (
    job INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    start INTEGER NOT NULL,
    piece BLOB NOT NULL,
    PRIMARY KEY (job, attempt, start)
);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

# Seconds since the epoch by SQLite's own clock, to the millisecond: the same for every process of
# the machine, whatever Python's clock says in one.
CLOCK = "SELECT (julianday('now') - 2440587.5) * 86400.0"

PIECE = 256 * 1024
"""Bytes of a body in one row, which SQLite reads as a whole."""

SMALL = 64 * 1024
"""Bytes of a row that is read on the event loop, in some ten microseconds."""

SWEPT = 400
"""Rows that a sweep changes in one transaction, or a few more: some milliseconds, in which nobody
else writes, or some ten if they are pieces of bodies."""

VACUUMED = 1024
"""Pages given back to the disk in one transaction: some milliseconds, too."""

LOG_KEPT = 16 * 1024 * 1024
"""Bytes of the write-ahead log that stay on the disk after a rush."""

LOOK_EVERY = 0.01
"""Seconds between two looks for changes by other processes, of which SQLite does not tell. Nobody
looks when nobody waits; else it takes about a hundredth of a core, however many wait."""

LOOKS = 100
"""Looks after which the event loop has to ask for more: it may have ended."""

READ_TIMEOUT = 0.1
"""Seconds that a read on the event loop may wait for others. None does, as a rule; but somebody has
to mend the log of a process that crashed."""

CURES = {
    sqlite3.SQLITE_BUSY: "; another process writes to it, and did not let go in time",
    sqlite3.SQLITE_CANTOPEN: "; its directory has to exist, and both have to be writable",
    sqlite3.SQLITE_READONLY: "; it has to be writable, and to stay where it is",
}

T = TypeVar("T")


class SQLiteStore(Store):
    """Jobs in an SQLite file: they outlive the process, and those of one machine can share it.

    Two more files stand beside it while it is in use, `-wal` and `-shm`, and belong to it. They
    need a local disk: on a network file system SQLite cannot keep processes apart.

    What expires makes room in the file for what comes. After a sweep that left more than half of
    it empty it shrinks.

    Leases go by the machine's clock: whoever sets it ends them early, or late.

    Args:
        path: the file; made when it is first used, in a directory that is there.
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
        if os.fspath(path) in ("", ":memory:"):
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
        self._timeout = timeout
        self._use: _Use | None = None

    async def create(
        self, job: Job, request: CapturedRequest | None = None, *, lease: float | None = None
    ) -> Job:
        there = await self._here().write(lambda changes: changes.create(job, request, lease))
        return job if there is None else load(there)

    async def get(self, id: str) -> Job | None:
        rows = await self._read("SELECT record FROM jobs WHERE id = ?", id)
        return load(rows[0][0]) if rows else None

    async def find(self, key: str) -> Job | None:
        rows = await self._read(
            "SELECT record FROM keys JOIN jobs ON number = job WHERE key = ?", key
        )
        return load(rows[0][0]) if rows else None

    async def request(self, id: str) -> CapturedRequest | None:
        rows = await self._read_large(
            "SELECT requests.record FROM jobs JOIN requests ON job = number WHERE id = ?", id
        )
        return load_request(rows[0][0]) if rows else None

    async def replace(self, job: Job, *, tail: bytes = b"", lease: float | None = None) -> bool:
        return await self._here().write(lambda changes: changes.replace(job, tail, lease))

    async def append_body(self, id: str, attempt: int, offset: int, chunk: bytes) -> bool:
        return await self._here().write(
            lambda changes: changes.append_body(id, attempt, offset, chunk)
        )

    async def read_body(self, id: str, offset: int = 0) -> AsyncIterator[bytes]:
        first: int | None = None
        while pieces := await self._read(
            "SELECT bodies.attempt, start, length(piece) FROM jobs JOIN bodies"
            " ON job = number AND bodies.attempt = jobs.attempt"
            " WHERE id = ? AND start <= ? ORDER BY start DESC LIMIT 1",
            id,
            offset,
        ):
            ((attempt, start, size),) = pieces
            first = attempt if first is None else first
            if attempt != first:
                raise StoreError(f"job {id}: a newer attempt has taken the place of this body")
            if offset >= start + size:
                return
            read = self._read if size <= SMALL else self._read_large
            rows = await read(
                "SELECT piece FROM jobs JOIN bodies ON job = number"
                " WHERE id = ? AND bodies.attempt = ? AND start = ?",
                id,
                attempt,
                start,
            )
            if not rows:  # it was dropped meanwhile
                return
            yield rows[0][0][offset - start :]
            offset = start + size

    async def changed(self, id: str, after_version: int) -> Job | None:
        while True:
            use = self._here()
            with use.waiting(id, after_version) as event:  # before it looks, not to miss a change
                job = await self.get(id)
                if job is None or job.version > after_version:
                    return job
                use.proceed()
                await event.wait()

    async def renew(self, attempts: Mapping[str, int], lease: float) -> dict[str, State]:
        return await self._here().write(lambda changes: changes.renew(attempts, lease))

    async def abandoned(self) -> AsyncIterator[Job]:
        ((now,),) = await self._read(CLOCK)
        last = (-math.inf, 0)
        while rows := await self._read(
            "SELECT lease_until, number, record FROM jobs"
            " WHERE (lease_until, number) > (?, ?) AND lease_until <= ?"
            " ORDER BY lease_until, number LIMIT 100",
            *last,
            now,
        ):
            for _, _, record in rows:
                yield load(record)
            last = rows[-1][:2]

    async def sweep(self, now: float) -> bool:
        while await self._here().write(lambda changes: changes.sweep(now)):
            pass
        while await self._here().write(lambda changes: changes.vacuum()):
            pass
        return bool(await self._read("SELECT 1 FROM jobs LIMIT 1"))

    async def aclose(self) -> None:
        use, self._use = self._use, None
        if use is not None and use.file.inherited():
            use.file.disinherit()
        elif use is not None:
            await (use if use.token == current_token() else _Use(use.file)).close()

    def _here(self) -> _Use:
        """The use of the file from this event loop."""
        if self._use is not None and self._use.file.inherited():
            self._use.file.disinherit()
            self._use = None
        if self._use is None:
            self._use = _Use(_File(self._path, self._synchronous, self._timeout))
        elif self._use.token != current_token():  # the last loop has ended, the threads have not
            self._use = _Use(self._use.file)
        return self._use

    async def _read(self, sql: str, *parameters: object) -> list[Any]:
        """Read small rows, on the event loop.

        A thread would answer after a tenth of a millisecond, of which reading takes less than a
        tenth: such rows come out of memory, as a rule, and who reads waits for nobody who writes.
        """
        reader = self._reader() or await self._opened()
        try:
            return reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _explained(self._path, error) from error

    async def _read_large(self, sql: str, *parameters: object) -> list[Any]:
        """Read rows of any size, in a thread."""
        await self._opened()
        return await self._here().read(sql, parameters)

    async def _opened(self) -> sqlite3.Connection:
        while (reader := self._reader()) is None:
            await self._here().write(lambda changes: None)  # opens the file
        return reader

    def _reader(self) -> sqlite3.Connection | None:
        return None if self._use is None or self._use.file.inherited() else self._use.file.reader


class _Changes:
    """What may be done in a transaction, which may be repeated in another.

    Attributes:
        ids: of the jobs that have a new version.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        self.ids: list[str] = []
        self._db = db
        self._execute = db.execute

    def create(self, job: Job, request: CapturedRequest | None, lease: float | None) -> str | None:
        """Insert a job; the record that is there instead."""
        for key in job.keys:
            there = self._execute(
                "SELECT record FROM jobs WHERE id = ? UNION ALL"
                " SELECT record FROM keys JOIN jobs ON number = job WHERE key = ?",
                (job.id, key),
            ).fetchone()
            if there is not None:
                return str(there[0])
        inserted = self._execute(
            "INSERT INTO jobs (id, version, attempt, unfinished, replayable, keys, due, record,"
            " lease_until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
            (job.id, *_columns(job), self._from_now(lease)),
        )
        if not inserted.rowcount:
            ((record,),) = self._execute("SELECT record FROM jobs WHERE id = ?", (job.id,))
            return str(record)
        number = inserted.lastrowid
        if job.keys:
            keys = [(key, number) for key in {*job.keys}]
            self._db.executemany("INSERT INTO keys VALUES (?, ?)", keys)
        if request is not None and job.replayable:
            self._execute("INSERT INTO requests VALUES (?, ?)", (number, dump_request(request)))
        return None

    def replace(self, job: Job, tail: bytes, lease: float | None) -> bool:
        old = self._execute(
            "SELECT number, attempt, replayable, keys FROM jobs WHERE id = ? AND version = ?",
            (job.id, job.version - 1),
        ).fetchone()
        if old is None:
            return False
        number, attempt, replayable, keys = old
        if keys is not None or job.keys:
            had, has = set(json.loads(keys or "[]")), set(job.keys)
            freed, taken = ([(key, number) for key in some] for some in (had - has, has - had))
            self._db.executemany("DELETE FROM keys WHERE key = ? AND job = ?", freed)
            self._db.executemany("INSERT OR REPLACE INTO keys VALUES (?, ?)", taken)
        if replayable and not job.replayable:
            self._execute("DELETE FROM requests WHERE job = ?", (number,))
        if job.gone or job.attempt != attempt:
            self._execute("DELETE FROM bodies WHERE job = ?", (number,))
        if tail:
            self._append(number, job.attempt, tail)
        self._execute(
            "UPDATE jobs SET version = ?, attempt = ?, unfinished = ?, replayable = ?, keys = ?,"
            " due = ?, record = ?, lease_until = CASE WHEN ? THEN NULL"
            " ELSE coalesce(?, lease_until) END WHERE number = ?",
            (*_columns(job), job.finished or job.gone, self._from_now(lease), number),
        )
        self.ids.append(job.id)
        return True

    def append_body(self, id: str, attempt: int, offset: int, chunk: bytes) -> bool:
        row = self._execute(
            "SELECT number FROM jobs WHERE id = ? AND attempt = ? AND unfinished IS NOT NULL",
            (id, attempt),
        ).fetchone()
        if row is not None:
            self._append(row[0], attempt, chunk, offset)
        return row is not None

    def renew(self, attempts: Mapping[str, int], lease: float) -> dict[str, State]:
        held = self._execute(
            "SELECT number, jobs.id, unfinished FROM json_each(?) JOIN jobs ON jobs.id = key"
            " WHERE attempt = value AND unfinished IS NOT NULL",
            (json.dumps(dict(attempts)),),
        ).fetchall()
        until = self._from_now(lease)
        self._db.executemany(
            "UPDATE jobs SET lease_until = ? WHERE number = ?",
            [(until, number) for number, _, _ in held],
        )
        return {id: State(state) for _, id, state in held}

    def sweep(self, now: float) -> bool:
        """Bury or forget some jobs; whether there were any."""
        due = self._execute(
            "SELECT number, record FROM jobs WHERE due <= ? ORDER BY due LIMIT ?", (now, SWEPT)
        ).fetchall()
        end = self._db.total_changes + SWEPT
        for number, record in due:
            job = load(record)
            if job.gone:
                self._execute("DELETE FROM jobs WHERE number = ?", (number,))
            else:
                self.replace(job.tombstone(now), b"", None)
            if self._db.total_changes >= end:
                break
        return bool(due)

    def vacuum(self) -> bool:
        """Give back some of the pages that are free, if most are; whether that was of use."""
        ((pages,),) = self._execute("PRAGMA page_count")
        ((free,),) = self._execute("PRAGMA freelist_count")
        if free <= pages // 2:
            return False
        # A page with every row that is fetched.
        self._execute(f"PRAGMA incremental_vacuum({VACUUMED})").fetchall()
        ((left,),) = self._execute("PRAGMA page_count")
        return bool(left < pages)

    def _append(self, number: int, attempt: int, chunk: bytes, offset: int | None = None) -> None:
        """Put a chunk at the end of a body, unless another place is its."""
        last = self._execute(
            "SELECT start + length(piece) FROM bodies WHERE job = ? AND attempt = ?"
            " ORDER BY start DESC LIMIT 1",
            (number, attempt),
        ).fetchone()
        end = last[0] if last is not None else 0
        if offset not in (None, end):
            return
        for start in range(0, len(chunk), PIECE):
            self._execute(
                "INSERT INTO bodies VALUES (?, ?, ?, ?)",
                (number, attempt, end + start, chunk[start : start + PIECE]),
            )

    def _from_now(self, lease: float | None) -> float | None:
        if lease is None:
            return None
        ((now,),) = self._execute(CLOCK)
        return float(now + lease)


def _columns(job: Job) -> tuple[object, ...]:
    return (
        job.version,
        job.attempt,
        None if job.finished or job.gone else job.state,
        job.replayable,
        json.dumps(job.keys) if job.keys else None,
        job.purge_at if job.gone else job.expires_at,
        dump(job).decode(),
    )


# --- on the event loop -----------------------------------------------------------------------


class _Call(Generic[T]):
    """Something that a thread does, and what came of it."""

    __slots__ = ("error", "result", "run")

    def __init__(self, run: Callable[[Any], T]) -> None:
        self.run = run
        self.result: T
        self.error: Exception | None = None

    def outcome(self, path: str) -> T:
        if self.error is None:
            return self.result
        if isinstance(self.error, sqlite3.Error | StoreError):
            raise _explained(path, self.error) from self.error
        raise self.error


class _Batch:
    """Calls that share a transaction, and those who wait for it."""

    __slots__ = ("calls", "done")

    def __init__(self) -> None:
        self.calls: list[_Call[Any]] = []
        self.done = anyio.Event()


class _Waiting:
    """Those who wait for one job to be newer than this version."""

    __slots__ = ("event", "tasks", "version")

    def __init__(self, version: int) -> None:
        self.event = anyio.Event()
        self.tasks = 0
        self.version = version


class _Use:
    """The use of a file from one event loop: what is to be written, and who waits for changes.

    Its state is the event loop's. While one batch is committed, the next gathers: so many callers
    as there are share one transaction, and nobody waits for more to come.
    """

    def __init__(self, file: _File) -> None:
        self.file = file
        self.token = current_token()
        # How a thread calls back: here asyncio and trio differ.
        loop: Any = self.token.native_token
        self._call_soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        self._gathering: _Batch | None = None
        self._committing: _Batch | None = None
        self._waiting: dict[str, _Waiting] = {}
        self._watching = False

    async def write(self, change: Callable[[_Changes], T]) -> T:
        """The result of a change, once it is in the file."""
        call = _Call(change)
        batch = self._gathering = self._gathering or _Batch()
        batch.calls.append(call)
        self.proceed()
        await batch.done.wait()
        return call.outcome(self.file.path)

    async def read(self, sql: str, parameters: tuple[object, ...]) -> list[Any]:
        """The rows, as a thread has read them."""

        def run(db: sqlite3.Connection) -> list[Any]:
            return db.execute(sql, parameters).fetchall()

        call, done = _Call(run), anyio.Event()
        self._in_thread(self.file.reading, lambda _: done.set(), self.file.read, call)
        await done.wait()
        return call.outcome(self.file.path)

    @contextmanager
    def waiting(self, id: str, version: int) -> Iterator[anyio.Event]:
        """An event that is set when the job is newer than this version, if `proceed` was called."""
        waiting = self._waiting.get(id)
        if waiting is None:
            waiting = self._waiting[id] = _Waiting(version)
        waiting.version = min(waiting.version, version)
        waiting.tasks += 1
        try:
            yield waiting.event
        finally:
            waiting.tasks -= 1
            if not waiting.tasks and self._waiting.get(id) is waiting:
                del self._waiting[id]

    def proceed(self) -> None:
        """Give the writing thread what there is to do: a batch, or else the watch."""
        if self._committing is not None:
            return
        if self._gathering is not None:
            batch, self._gathering = self._gathering, None
            self._committing = batch
            self.file.stir.set()
            self._in_thread(
                self.file.writing, self._committed, self.file.commit, batch.calls, self._waiting
            )
        elif self._waiting and not self._watching:
            self._watching = True
            self.file.stir.clear()
            self._in_thread(self.file.writing, self._watched, self.file.watch, self._waiting)

    async def close(self) -> None:
        """Close the file, when all is written. Those who wait for changes open it again."""
        with anyio.CancelScope(shield=True):
            while batch := self._gathering or self._committing:
                await batch.done.wait()
            self._wake(list(self._waiting))
            # Where it is used. It is not the last connection, whose end takes its time.
            if self.file.reader is not None:
                self.file.reader.close()
            closed = anyio.Event()
            self._in_thread(self.file.writing, lambda _: closed.set(), self.file.close)
            await closed.wait()
            self.file.writing.shutdown()

    def _committed(self, changed: Future[list[str]]) -> None:
        batch, self._committing = self._committing, None
        assert batch is not None
        batch.done.set()
        self._wake(changed.result())
        self.proceed()

    def _watched(self, changed: Future[list[str]]) -> None:
        self._watching = False
        self._wake(changed.result())
        self.proceed()

    def _wake(self, changed: list[str]) -> None:
        for id in changed:
            if waiting := self._waiting.pop(id, None):
                waiting.event.set()

    def _in_thread(
        self,
        threads: ThreadPoolExecutor,
        then: Callable[[Future[T]], None],
        run: Callable[..., T],
        *arguments: object,
    ) -> None:
        """Run something in a thread, and then something here."""

        def tell(future: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has ended: nobody is left to be told
                self._call_soon(then, future)

        threads.submit(run, *arguments).add_done_callback(tell)


# --- in the threads --------------------------------------------------------------------------


class _File:
    """An open file: its connections, and the threads that wait for its disk."""

    def __init__(self, path: str, synchronous: str, timeout: float) -> None:
        self.path = path
        # One thread for all writing, since SQLite has one writer at a time, and one to read what
        # is large. Of executors, since they end with the interpreter if nobody closes the store.
        self.writing = ThreadPoolExecutor(1, "raincheck-sqlite-writing")
        self.reading = ThreadPoolExecutor(1, "raincheck-sqlite-reading")
        self.stir = threading.Event()  # there is something to write: the watch gives way
        self.reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._large_reader: sqlite3.Connection | None = None
        self._synchronous = synchronous
        self._timeout = timeout
        self._opened: tuple[int, int] | None = None
        self._seen: int | None = None
        self._look_at = 0.0
        self._pid = os.getpid()
        self._at_work: set[str] = set()

    def commit(self, calls: list[_Call[Any]], waiting: Mapping[str, _Waiting]) -> list[str]:
        """Make changes, all in one transaction; the ids of the jobs that have changed."""
        with self._work("writing"):
            changed = self._commit(calls)
        return changed + self.look(waiting)

    def _commit(self, calls: list[_Call[Any]]) -> list[str]:
        try:
            db = self._writer or self._open()
            if self._identity() != self._opened:  # SQLite would write to what nobody finds again
                raise StoreError(f"{self.path}: the file was moved or deleted; restart to go on")
            db.execute("BEGIN IMMEDIATE")  # now waits for other writers; a later write could not
        except (sqlite3.Error, StoreError) as error:
            for call in calls:
                call.error = error
            return []
        changes = _Changes(db)
        try:
            for call in calls:
                call.result = call.run(changes)
            db.execute("COMMIT")
        except Exception as error:  # whose it is raises it
            with suppress(sqlite3.Error):  # some errors have rolled back already
                db.execute("ROLLBACK")
            if len(calls) > 1:  # the others are not to suffer: to each a transaction of its own
                return [id for call in calls for id in self._commit([call])]
            calls[0].error = error
            return []
        return changes.ids

    def watch(self, waiting: Mapping[str, _Waiting]) -> list[str]:
        """Look for changes by others until there are some, or something else is to be done."""
        changed: list[str] = []
        for _ in range(LOOKS):
            if not waiting or changed or self.stir.wait(LOOK_EVERY):
                break
            changed = self.look(waiting)
        return changed

    def look(self, waiting: Mapping[str, _Waiting]) -> list[str]:
        """The ids of jobs waited for that others have changed, if it is time to look again."""
        now = time.monotonic()
        if not waiting or self._writer is None or now < self._look_at:
            return []
        self._look_at = now + LOOK_EVERY
        with self._work("writing"):
            try:
                ((version,),) = self._writer.execute("PRAGMA data_version")
                if version == self._seen:
                    return []
                self._seen = version
                # Who waits is asked after that: whoever comes later has yet to look at his job,
                # and sees the change. The copy is one step, which no other thread comes into.
                versions = {id: each.version for id, each in dict(waiting).items()}
                rows = self._writer.execute(
                    "SELECT key FROM json_each(?) LEFT JOIN jobs ON jobs.id = key"
                    " WHERE version IS NULL OR version > value",
                    (json.dumps(versions),),
                )
                return [id for (id,) in rows]
            except sqlite3.Error:  # all look for themselves, and are told
                return list(dict(waiting))

    def read(self, call: _Call[Any]) -> None:
        """Read what is large."""
        with self._work("reading"):
            try:
                if self._large_reader is None:
                    self._large_reader = self._connect(self._timeout)
                call.result = call.run(self._large_reader)
            except Exception as error:  # whose it is raises it
                call.error = error

    def close(self) -> None:
        """Close what the threads use, when they have done what there was."""
        self.reading.shutdown()
        for db in (self._large_reader, self._writer):
            if db is not None:
                db.close()

    def inherited(self) -> bool:
        """Whether it was opened by a process that has then forked into this one."""
        return self._pid != os.getpid()

    def disinherit(self) -> None:
        """Close in a forked child what its parent has opened.

        SQLite keeps a process's locks on a file in memory. It would find those of the parent there
        and take none, and others, who see nobody, could take away from under the child what it
        writes.

        Raises:
            StoreError: a thread was using it, which the child does not have: it cannot be closed.
        """
        if self._at_work:
            raise StoreError(
                f"{self.path}: this process was forked while the file was in use, and cannot use "
                "it any more; fork before the store is used, or spawn"
            )
        for db in (self.reader, self._large_reader, self._writer):
            if db is not None:
                db.close()

    @contextmanager
    def _work(self, what: str) -> Iterator[None]:
        self._at_work.add(what)
        try:
            yield
        finally:
            self._at_work.discard(what)

    def _open(self) -> sqlite3.Connection:
        db = self._connect(self._timeout)
        try:
            self._prepare(db)
            if self.reader is None:
                self.reader = self._connect(READ_TIMEOUT)
        except BaseException:
            db.close()
            raise
        self._writer = db
        self._opened = self._identity()
        return db

    def _identity(self) -> tuple[int, int] | None:
        """Which file the path leads to now."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    def _connect(self, timeout: float) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path, timeout=timeout, isolation_level=None, check_same_thread=False
        )

    def _prepare(self, db: sqlite3.Connection) -> None:
        """See whose file it is before changing it, then make it ours."""
        db.execute("BEGIN")  # one look, though others may be making it theirs
        new = self._is_new(db)
        db.execute("COMMIT")
        if new:
            # Free pages can be given back, and a body of 100 MB goes in 5 ms, not in 100: its pages
            # are listed. Only possible before there is any table.
            self._insist(db, "PRAGMA auto_vacuum = INCREMENTAL")
        # Readers and the writer do not wait for one another, and a commit is one write to a log.
        self._insist(db, "PRAGMA journal_mode = WAL")
        # FULL waits for the disk with every commit, NORMAL only when the log goes into the file.
        db.execute(f"PRAGMA synchronous = {self._synchronous}")
        # Some builds write zeros over all that is deleted: over a second for 100 MB. This does so
        # only in pages that are written anyway.
        db.execute("PRAGMA secure_delete = FAST")
        db.execute(f"PRAGMA journal_size_limit = {LOG_KEPT}")  # else a log stays as long as it was
        if new:
            db.execute("BEGIN IMMEDIATE")
            if self._is_new(db):  # still
                for statement in SCHEMA.split(";"):
                    db.execute(statement)
            db.execute("COMMIT")

    def _is_new(self, db: sqlite3.Connection) -> bool:
        ((application,),) = db.execute("PRAGMA application_id")
        ((version,),) = db.execute("PRAGMA user_version")
        ((tables,),) = db.execute("SELECT count(*) FROM sqlite_master")
        if not (application or version or tables):
            return True
        if application != APPLICATION_ID:
            raise StoreError(f"{self.path}: this is the database of another application")
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"{self.path}: this file has schema {version}, and this version of raincheck knows "
                f"{SCHEMA_VERSION}: run one version, or give each a file of its own"
            )
        return False

    def _insist(self, db: sqlite3.Connection, pragma: str) -> None:
        """Of several that switch at once SQLite lets all but one fail, and some without a wait."""
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                db.execute(pragma)
                return
            except sqlite3.OperationalError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(0.01)


def _explained(path: str, error: Exception) -> StoreError:
    """What a caller is told of an error."""
    if isinstance(error, StoreError):
        return type(error)(*error.args)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without its extension
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"{path}: the disk is full")
    return StoreError(f"{path}: {error}{CURES.get(code, '')}")
