"""`SQLiteStore` on an event loop: what is to be written there, and who waits for changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import current_token

from raincheck.stores._sqlite_calls import Call
from raincheck.stores._sqlite_changes import Changes
from raincheck.stores._sqlite_file import File
from raincheck.stores.watchers import Watchers

T = TypeVar("T")


class Batch:
    """Calls that share a transaction, and those who wait for it."""

    __slots__ = ("calls", "done")

    def __init__(self) -> None:
        self.calls: list[Call[Any]] = []
        self.done = anyio.Event()


class Use:
    """The use of a file from one event loop: what is to be written, and who waits for changes.

    Its state is the event loop's. While one batch is committed, the next gathers: so many callers
    as there are share one transaction, and nobody waits for more to come.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.token = current_token()
        # How a thread calls back: here asyncio and trio differ.
        loop: Any = self.token.native_token
        self._call_soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        self._gathering: Batch | None = None
        self._committing: Batch | None = None
        self.waiting = Watchers()
        self._watching = False

    async def write(self, change: Callable[[Changes], T]) -> T:
        """The result of a change, once it is in the file."""
        call = Call(change)
        batch = self._gathering = self._gathering or Batch()
        batch.calls.append(call)
        self.proceed()
        await batch.done.wait()
        return call.outcome(self.file.path)

    async def read(self, sql: str, parameters: tuple[object, ...]) -> list[Any]:
        """The rows, as a thread has read them."""

        def run(db: sqlite3.Connection) -> list[Any]:
            return db.execute(sql, parameters).fetchall()

        call, done = Call(run), anyio.Event()
        self._in_thread(self.file.reading, lambda _: done.set(), self.file.read, call)
        await done.wait()
        return call.outcome(self.file.path)

    def proceed(self) -> None:
        """Give the writing thread what there is to do: a batch, or else the watch."""
        if self._committing is not None:
            return
        if self._gathering is not None:
            batch, self._gathering = self._gathering, None
            self._committing = batch
            self.file.stir.set()
            self._in_thread(
                self.file.writing, self._committed, self.file.commit, batch.calls, self.waiting
            )
        elif self.waiting and not self._watching:
            self._watching = True
            self.file.stir.clear()
            self._in_thread(self.file.writing, self._watched, self.file.watch, self.waiting)

    async def close(self) -> None:
        """Close the file, when all is written. Those who wait for changes open it again."""
        with anyio.CancelScope(shield=True):
            while batch := self._gathering or self._committing:
                await batch.done.wait()
            self.waiting.wake_all()
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
        self.waiting.wake(changed.result())
        self.proceed()

    def _watched(self, changed: Future[list[str]]) -> None:
        self._watching = False
        self.waiting.wake(changed.result())
        self.proceed()

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

        threads.submit(Context().run, run, *arguments).add_done_callback(tell)
