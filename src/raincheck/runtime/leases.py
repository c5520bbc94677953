"""Leases: a process holds on to its jobs, and hears what others want of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context

import anyio

from raincheck.job import State
from raincheck.stores.availability import Availability
from raincheck.stores.base import Store
from raincheck.tasks import Tasks

# Seconds between renewals, which also bring what other processes want: a cancel reaches its
# handler within that time.
BEAT = 0.5

LOOKS = 3
"""How often in the time of a lease it is renewed at least, and abandoned jobs are looked for."""


class Leases:
    """Keeps the leases of the jobs of one process, on a store that it shares with others.

    Args:
        store: the store.
        availability: of the store.
        lease: seconds that a job stays this process's own without renewal.
        held: the jobs of this process, by id, each with its fence.
        lost: called with a job that this process seems not to hold any more.
        cancelled: called with a job that is to stop, again and again.
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
    ) -> None:
        self._store = store
        self._availability = availability
        self._lease = lease
        self._held = held
        self._lost = lost
        self._cancelled = cancelled
        self._beating = False

    def keep(self, tasks: Tasks) -> None:
        """Renew leases as long as there is anything to hold."""
        if not self._beating:
            self._beating = True
            tasks.spawn(self._beat, Context())

    async def _beat(self) -> None:
        beat = min(BEAT, self._lease / LOOKS)
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
