"""Flushing: a response that is followed is kept as it comes, and not only when much has come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import Context

import anyio

from raincheck.errors import LeaseLost, StoreError
from raincheck.runtime.recorder import Recorder
from raincheck.tasks import Tasks

INTERVAL = 0.1
"""Seconds in which what comes goes to the store together. What nothing came before goes at once."""


class Flusher:
    """Has the response of one run kept while it is produced, beside its handler.

    Args:
        recorder: takes it.
        keep: has a piece of it kept, or asks for it again if that was cancelled.
        lost: told that nobody wants it any more.
        tasks: the tasks of the event loop.
    """

    def __init__(
        self,
        recorder: Recorder,
        keep: Callable[[int, bytes], Awaitable[None]],
        lost: Callable[[], None],
        tasks: Tasks,
    ) -> None:
        self._recorder = recorder
        self._keep = keep
        self._lost = lost
        self._tasks = tasks
        self._one = anyio.Lock()  # piece after piece, whoever has them kept
        self._runs = self._closed = False

    async def more(self) -> None:
        """Something has come; the handler waits only if that is much. Raises as `keep` does."""
        if self._recorder.full:
            await self._flush()
        elif not self._runs:
            self._runs = True
            self._tasks.spawn(self._run, Context())

    async def close(self) -> None:
        """The end has come: what was begun is kept, the rest goes with the outcome.

        Raises as `keep` does.
        """
        self._closed = True
        async with self._one:
            await self._keep_piece()

    async def _run(self) -> None:
        try:
            while self._recorder.unkept and not self._closed:
                await self._flush()
                await anyio.sleep(INTERVAL)
        except LeaseLost:
            self._lost()
        except StoreError:
            pass  # the handler hears of it with what it sends next, if that cannot be kept either
        finally:
            self._runs = False

    async def _flush(self) -> None:
        async with self._one:
            await self._keep_piece()
            self._recorder.cut()
            await self._keep_piece()

    async def _keep_piece(self) -> None:
        if self._recorder.piece is not None:
            await self._keep(*self._recorder.piece)
