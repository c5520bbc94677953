"""Changes of jobs that go to the server of a `PostgresStore` together, those that meet."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it brings no types

from raincheck.errors import StoreError
from raincheck.stores._postgres_server import LOST, spawn

MOST = 100
"""Jobs of one statement, at most."""

PATIENCE = 0.05
"""Seconds that changes wait for those before them, and for one among them that stands behind
somebody's lock."""

Change = tuple[Any, ...]


class Batches:
    """Changes of one kind: what comes while the server has others goes there next, together.

    The first goes at once, so that nobody waits who is alone. Under load a job is spared most of
    its round trip, of the work that each statement makes, and of a commit.

    Args:
        ask: has the server do some of them, in one statement, unless one of them has to wait so
            many seconds for a lock; says the ids of those it did.
    """

    def __init__(self, ask: Callable[[list[Change], float], Awaitable[set[str]]]) -> None:
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Change, asyncio.Future[bool]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def add(self, *change: Any) -> bool:
        """Have the server do it, with others.

        Args:
            change: begins with the id of its job.

        Returns:
            Whether it did. If not, one may ask why, by a statement for this job alone: the reason
            may also be another one among them.
        """
        future: asyncio.Future[bool] = self._loop.create_future()
        self._waiting.append((change, future))
        if self._sending is None:
            self._send()
        return await future

    def _send(self) -> None:
        self._sending = spawn(self._sent())

    async def _sent(self) -> None:
        """Send what there is until there is no more, or somebody else does."""
        mine = asyncio.current_task()
        try:
            while self._waiting and self._sending is mine:
                batch = self._next()
                slow = self._loop.call_later(PATIENCE, self._go_on, mine)
                try:
                    await self._answer(batch)
                finally:
                    slow.cancel()
                    for _, future in batch:  # of which none is left, unless the event loop ends
                        future.cancel()
        finally:  # if it ends, there may still be some who record that they do
            self._go_on(mine)

    def _next(self) -> list[tuple[Change, asyncio.Future[bool]]]:
        """Those that go next. Of several changes of one job the server may make one at most.

        Which of them would be its choice: the first goes, and the others have not been made.
        """
        some, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        batch = dict[str, tuple[Change, asyncio.Future[bool]]]()
        for change, future in some:
            if future.done():
                continue
            if batch.setdefault(change[0], (change, future))[1] is not future:
                future.set_result(False)
        return [*batch.values()]

    def _go_on(self, slow: asyncio.Task[None] | None) -> None:
        """Let nobody wait any longer for what goes slowly."""
        if self._sending is slow:
            self._sending = None
            if self._waiting:
                self._send()

    async def _answer(self, batch: list[tuple[Change, asyncio.Future[bool]]]) -> None:
        failure, done = None, set[str]()
        try:
            if batch:
                done = await self._ask([change for change, _ in batch], PATIENCE)
        except (StoreError, ValueError):  # nothing was done, perhaps for one of them
            pass
        except Exception as error:  # it goes to those who wait
            if not isinstance(error, asyncpg.PostgresError) or isinstance(error, LOST):
                failure = error
        for change, future in batch:
            if future.done():
                continue
            if failure is None:
                future.set_result(change[0] in done)
            else:
                future.set_exception(failure)
