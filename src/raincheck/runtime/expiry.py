"""Expiry: what is due goes, as long as anything can be."""

from __future__ import annotations

from contextvars import Context

import anyio

from raincheck.runtime.environment import Environment
from raincheck.tasks import Tasks

# Seconds between sweeps, while there is anything that can expire.
SWEEP_INTERVAL = 10.0


class Sweeper:
    """Sweeps the store from time to time.

    Args:
        environment: whose store.
        tasks: the tasks of the event loop.

    Attributes:
        sweeping: whether it does now.
    """

    def __init__(self, environment: Environment, tasks: Tasks) -> None:
        self.sweeping: bool = False
        self._environment = environment
        self._tasks = tasks

    def keep_sweeping(self) -> None:
        """Sweep from now on until nothing is left that can expire; once more is no error."""
        if not self.sweeping:
            self.sweeping = True
            self._tasks.spawn(self._sweep, Context())

    async def _sweep(self) -> None:
        store, availability = self._environment.store, self._environment.availability
        left = True
        while left:
            await anyio.sleep(SWEEP_INTERVAL)
            try:
                left = await store.sweep(self._environment.clock())
            except Exception as error:
                availability.failed(error)
            else:
                if availability.away:
                    availability.answered()
        self.sweeping = False
