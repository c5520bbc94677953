"""Figures: what the store counts, at hand for those who may neither wait nor ask it."""

from __future__ import annotations

from contextvars import Context

import anyio

from raincheck.runtime.environment import Environment
from raincheck.stores.availability import Availability
from raincheck.tasks import Tasks
from raincheck.telemetry.base import Figures

# Seconds between questions to the store.
INTERVAL = 1.0

# No job has this id: it says nothing, and has no marker.
_NOBODY = "nobody"


class Counting:
    """Asks the store for its totals each second, from when anybody wants to know them.

    Thereby a process that has nothing to do finds out whether the store is there as well.

    Args:
        environment: whose store.
        tasks: the tasks of the event loop.

    Attributes:
        newest: what it said last; None before the first answer.
    """

    def __init__(self, environment: Environment, tasks: Tasks) -> None:
        self.newest: Figures | None = None
        self._environment = environment
        self._tasks = tasks
        # Of its own: a store that counts too slowly is not away (see `Fleet`).
        self._availability = Availability("the store's account of all jobs")
        self._counts = False

    def keep(self) -> None:
        """Ask from now on until the jobs close; once more is no error."""
        if not self._counts:
            self._counts = True
            self._tasks.spawn(self._count, Context())

    async def _count(self) -> None:
        environment = self._environment
        while True:
            try:
                totals = await environment.store.totals()
            except Exception as error:
                await self._failed(error)
            else:
                self.newest = Figures(totals, environment.clock())
                for availability in (self._availability, environment.availability):
                    if availability.away:
                        availability.answered()
            await anyio.sleep(INTERVAL)

    async def _failed(self, error: Exception) -> None:
        """See whether it is the store that is away, or only its account."""
        try:
            await self._environment.store.get(_NOBODY)
        except Exception as away:
            self._environment.availability.failed(away)
        else:
            self._availability.failed(error)
