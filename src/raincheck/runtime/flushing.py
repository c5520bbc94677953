"""Flushing: what a handler sends goes to the store beside it, while it makes more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context

import anyio
from anyio.lowlevel import checkpoint

from raincheck.errors import LeaseLost, StoreError
from raincheck.runtime.recorder import PIECE, Recorder
from raincheck.tasks import Tasks

INTERVAL = 0.1
"""Seconds in which what comes goes to the store together. What nothing came before goes at once."""


class Flusher:
    """Has the response of one run kept while it is produced, beside its handler.

    One piece at a time is on its way, while the next comes together; a handler that is faster
    waits. What has become of a piece it hears with what it sends next. What is followed is kept as
    it comes, and not only when much has come.

    Args:
        recorder: takes it.
        keep: has a piece of it kept, or asks for it again if that was cancelled.
        lost: told that nobody wants it any more.
        tasks: the tasks of the event loop.
        beside: whether the handler goes on meanwhile. A store that answers at once is waited for.
    """

    def __init__(
        self,
        recorder: Recorder,
        keep: Callable[[int, bytes], Awaitable[None]],
        lost: Callable[[], None],
        tasks: Tasks,
        *,
        beside: bool,
    ) -> None:
        self._recorder = recorder
        self._keep = keep
        self._lost = lost
        self._tasks = tasks
        self._beside = beside
        self._away: anyio.Event | None = None  # while a piece is on its way; set after that
        self._scope = anyio.CancelScope()  # in which it is, if the handler has passed it on
        self._live = anyio.CancelScope()  # in which pieces are that are kept as they come
        self._error: Exception | None = None  # what has become of it
        self._runs = self._closed = False

    async def more(self) -> None:
        """Something has come; the handler waits if that is much, and so is what came before.

        Raises as `keep` does.
        """
        recorder, piece = self._recorder, self._recorder.piece
        if recorder.full or (piece and len(piece[1]) >= PIECE and self._away is None):
            await (self._pass_on() if self._beside else self._flush())
        elif recorder.live and not self._runs:
            self._runs, self._live = True, anyio.CancelScope()
            self._tasks.spawn(self._run, Context())

    async def close(self) -> None:
        """The end has come: what was begun is kept, the rest goes with the outcome.

        Raises as `keep` does.
        """
        self._closed = True
        await self._returned()
        await self._carry()

    async def stop(self) -> None:
        """No end will come: what is on its way is nobody's any more."""
        self._closed = True
        self._scope.cancel()
        self._live.cancel()
        while self._away is not None:
            await self._away.wait()

    async def _run(self) -> None:
        try:
            with self._live:
                while self._recorder.unkept and not self._closed:
                    await self._flush()
                    await anyio.sleep(INTERVAL)
                    await checkpoint()  # a handler that ends at the same moment comes first
        except LeaseLost:
            self._lost()
        except StoreError:
            pass  # the handler hears of it with what it sends next, if that cannot be kept either
        finally:
            self._runs = False

    async def _flush(self) -> None:
        """Keep what has come, once what came before is."""
        await self._returned()
        await self._carry()
        self._recorder.cut()
        await self._carry()

    async def _pass_on(self) -> None:
        """The same, beside the handler: it goes on as soon as it is its turn."""
        await self._returned()
        self._recorder.cut()
        self._away, self._scope = anyio.Event(), anyio.CancelScope()
        self._tasks.spawn(self._follow, Context())

    async def _follow(self) -> None:
        try:
            with self._scope:
                await self._carry()
        except LeaseLost:
            self._lost()
        except StoreError as error:
            self._error = error

    async def _returned(self) -> None:
        """Wait until nothing is on its way. Raises what became of it."""
        while self._away is not None:
            await self._away.wait()
        if self._error is not None:
            raise self._error

    async def _carry(self) -> None:
        """Keep the piece that is there, if there is one."""
        away = self._away = self._away or anyio.Event()
        try:
            if self._recorder.piece is not None:
                await self._keep(*self._recorder.piece)
        finally:
            self._away = None
            away.set()
