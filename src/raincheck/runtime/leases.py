"""Leases: a process holds on to its jobs, hears what others want of them, and takes over."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context

import anyio

from raincheck.job import State
from raincheck.stores.availability import Availability
from raincheck.stores.base import Abandoned, Store
from raincheck.tasks import Tasks

logger = logging.getLogger("raincheck")

# Seconds between renewals, which also bring what other processes want: a cancel reaches its
# handler within that time.
BEAT = 0.5

# How often in the time of a lease abandoned jobs are looked for.
_LOOKS = 3

# How many abandoned jobs are taken over at once. One after the other each would wait for the store
# alone; a process that died may have left hundreds.
_TOGETHER = 16


class Leases:
    """Keeps the leases of the jobs of one process, on a store that it shares with others.

    Args:
        store: the store.
        availability: of the store.
        lease: seconds that a job stays this process's own without renewal.
        held: the jobs of this process, by id, each with its fence.
        lost: called with a job that this process seems not to hold any more.
        cancelled: called with a job that is to stop, again and again.
        abandoned: called with a job whose process has died or hangs.
    """

    def __init__(
        self,
        store: Store,
        availability: Availability,
        lease: float,
        *,
        held: Callable[[], Mapping[str, int]],
        lost: Callable[[str], Awaitable[None]],
        cancelled: Callable[[str], None],
        abandoned: Callable[[Abandoned], Awaitable[None]],
    ) -> None:
        self._store = store
        self._availability = availability
        self._lease = lease
        self._held = held
        self._lost = lost
        self._cancelled = cancelled
        self._abandoned = abandoned
        self._beating = False
        self._unreadable: set[str] = set()  # those that the last look found

    def keep(self, tasks: Tasks) -> None:
        """Renew leases as long as there is anything to hold."""
        if not self._beating:
            self._beating = True
            tasks.spawn(self._beat, Context())

    async def _beat(self) -> None:
        beat = min(BEAT, self._lease / _LOOKS)
        await anyio.sleep(beat)
        while self._held():
            await self._availability.patiently(self._renew, first=beat, last=beat, permanent=())
            await anyio.sleep(beat)
        self._beating = False

    async def _renew(self) -> None:
        held = self._held()
        if not held:
            return
        states = await self._store.renew(held, self._lease)
        for id in held:
            state = states.get(id)
            if state is None:
                await self._lost(id)
            elif state is State.CANCELLING:
                self._cancelled(id)

    async def watch(self) -> None:
        """Look for abandoned jobs, at once and from time to time; for ever."""
        while True:
            await self._look()
            await anyio.sleep(self._lease / _LOOKS)

    async def _look(self) -> None:
        room = anyio.Semaphore(_TOGETHER)
        unreadable = set[str]()
        async with anyio.create_task_group() as group:
            try:
                async for found in self._store.abandoned():
                    if found.job is None:
                        unreadable.add(found.id)
                        self._tell(found.id)
                    # While the store was away nobody could renew: whoever lives does that first.
                    if self._availability.back_for() >= self._lease / _LOOKS:
                        await room.acquire()
                        group.start_soon(self._take, found, room)
            except Exception as error:
                self._availability.failed(error)
                return
        self._unreadable = unreadable

    def _tell(self, id: str) -> None:
        """Say that a job cannot be read, once."""
        if id not in self._unreadable:
            self._unreadable.add(id)
            logger.warning(
                "job %s cannot be taken over: its record is damaged, or of another version of "
                "raincheck, whose processes still may",
                id,
            )

    async def _take(self, found: Abandoned, room: anyio.Semaphore) -> None:
        try:
            await self._abandoned(found)
        finally:
            room.release()
