"""The ledger: how a job's changes get into the store, whatever else happens to it meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio

from raincheck.errors import IllegalTransition
from raincheck.job import Job, Progress, State
from raincheck.stores.base import Store

logger = logging.getLogger("raincheck")

T = TypeVar("T")

# Seconds between tries to tell the store what it must not miss, at first and at most.
_FIRST_RETRY, _LAST_RETRY = 0.1, 5.0


class Ledger:
    """Changes jobs in a store.

    Args:
        store: where they are.
        clock: seconds since the epoch.
        tombstone_ttl: seconds that an expired or deleted job is remembered.
    """

    def __init__(self, store: Store, clock: Callable[[], float], tombstone_ttl: float) -> None:
        self._store = store
        self._clock = clock
        self._tombstone_ttl = tombstone_ttl

    async def start(self, job: Job) -> Job:
        """Record that it runs.

        Raises:
            IllegalTransition: it was cancelled in the meantime.
        """
        now = self._clock()

        def start(job: Job) -> Job:
            if job.state is State.RUNNING and job.started_at == now:
                return job  # our own write, whose acknowledgement was lost
            return job.start(now)

        return await self.patiently(partial(self._advance, job, start))

    async def progress(self, job: Job, progress: Progress) -> Job:
        """Record a report. Raises what the store raises: the next report is as good."""
        return await self._advance(
            job, lambda job: job if job.finished else job.with_progress(progress)
        )

    async def shared(
        self, job: Job, clients: int, keys: tuple[str, ...] = (), mark: str | None = None
    ) -> Job:
        """Record one client more or less, and the keys and the fingerprint that it brings.

        Raises:
            IllegalTransition: it is too late to join the job, or to leave it to others.
            StoreError: whatever the store raises; nothing has changed then.
        """
        return await self._advance(job, lambda job: job.shared(clients, keys, mark))

    async def cancelling(self, job: Job) -> Job:
        """Record that it was asked to stop.

        Raises:
            IllegalTransition: it has ended, or was asked before.
            StoreError: whatever the store raises; nothing has changed then.
        """
        return await self._advance(job, lambda job: job.cancelling())

    async def finish(self, job: Job, state: State, *, ttl: float, **outcome: Any) -> Job:
        """Record its outcome. A job that is terminal already stays what it is (law 5)."""

        def finish(job: Job) -> Job:
            return job.finish(
                state, self._clock(), ttl=ttl, tombstone_ttl=self._tombstone_ttl, **outcome
            )

        try:
            done = finish(job)
            try:  # the common case, spared the patience
                if await self._store.replace(done):
                    return done
            except Exception:
                logger.exception("the outcome of job %s was not stored; trying again", job.id)
            return await self.patiently(partial(self._advance, job, finish))
        except IllegalTransition:
            return job

    async def bury(self, job: Job, *, remember: bool) -> None:
        """Leave a tombstone in its place, or, if nobody ever knew of it, one that goes at once."""
        now = self._clock()
        ttl = self._tombstone_ttl if remember else 0.0
        await self._advance(job, lambda job: job if job.gone else job.tombstone(now, ttl))

    async def patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the store until it answers: an accepted job must come to its end (law 1)."""
        delay = _FIRST_RETRY
        while True:
            try:
                return await ask()
            except IllegalTransition:
                raise
            except Exception:
                logger.exception("the store failed; trying again in %.1f s", delay)
            await anyio.sleep(delay)
            delay = min(2 * delay, _LAST_RETRY)

    async def _advance(self, job: Job, change: Callable[[Job], Job]) -> Job:
        """Put the next version in place, whoever else changes the job meanwhile.

        Args:
            job: the version known here.
            change: makes the next version of the one that is there; the same one to leave it.
        """
        while True:
            changed = change(job)
            if changed is job or await self._store.replace(changed):
                return changed
            newest = await self._store.get(job.id)
            if newest is None or newest.gone:
                return job  # deleted: nobody can ask for it any more
            job = newest
