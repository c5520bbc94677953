"""Recovery: what a process that died or hangs has left is taken over, or given up at last."""

from __future__ import annotations

import logging

import anyio

from raincheck.errors import (
    LOST_WORKER,
    UNKNOWN_ROUTE,
    IllegalTransition,
    QueueFull,
    UnreadableRecord,
)
from raincheck.job import Job, State
from raincheck.policy import seconds
from raincheck.runtime.environment import Environment
from raincheck.runtime.leases import LOOKS
from raincheck.runtime.runs import MOST_LEASES, Runs
from raincheck.stores.base import Abandoned

logger: logging.Logger = logging.getLogger("raincheck")

# How many abandoned jobs are taken over at once. One after the other each would wait for the store
# alone; a process that died may have left hundreds.
_TOGETHER = 16

# Seconds that a job waits after each interrupted run but the first, doubled each time, at most.
_LONGEST_BACKOFF = 60.0


class Recovery:
    """Takes over the jobs that nobody holds, on a store that processes share.

    Args:
        environment: what is fixed.
        runs: the jobs that are here.
    """

    def __init__(self, environment: Environment, runs: Runs) -> None:
        self._environment = environment
        self._runs = runs
        self._closing = False
        self._hung = 0  # looks, the last ones, for which the store stood still
        self._unreadable: set[str] = set()  # those that the last look found
        self._foreign: set[str] = set()  # routes that the log was told of

    def close(self) -> None:
        """Take over nothing more."""
        self._closing = True

    async def watch(self) -> None:
        """Look for abandoned jobs, at once and from time to time; for ever."""
        assert self._environment.lease is not None
        while True:
            await self._look(self._environment.lease / LOOKS)
            await anyio.sleep(self._environment.lease / LOOKS)

    async def _look(self, beat: float) -> None:
        room = anyio.Semaphore(_TOGETHER)
        availability, unreadable = self._environment.availability, set[str]()
        asked: float | None = anyio.current_time()
        hung, self._hung = self._hung, 0
        async with anyio.create_task_group() as group:
            try:
                async for found in self._environment.store.abandoned():
                    if asked is not None:
                        if hung < LOOKS and anyio.current_time() - asked > beat:
                            self._hung = hung + 1  # or it is just slow, each time
                        asked = None
                    if found.job is None:
                        unreadable.add(found.id)
                        self._tell(found.id)
                    # While the store was away nobody could renew: whoever lives does that first.
                    if availability.back_for() >= beat and not self._hung:
                        await room.acquire()
                        group.start_soon(self._take, found, room)
            except Exception as error:
                availability.failed(error)
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
                extra={"job": id},
            )

    async def _take(self, found: Abandoned, room: anyio.Semaphore) -> None:
        try:
            await (self._give_up_unread(found) if found.job is None else self._take_over(found))
        except (IllegalTransition, QueueFull):
            pass  # it has moved on, or somebody else was faster, or has room
        except Exception as error:
            self._environment.availability.failed(error)  # the job is found again
        finally:
            room.release()

    async def _take_over(self, found: Abandoned) -> None:
        """Bring a job whose process has died or hangs to its end.

        Raises:
            IllegalTransition: it has moved on, or somebody else was faster.
            QueueFull: there is no room to wait here.
            StoreError: whatever the store raises.
        """
        environment, job = self._environment, found.job
        assert job is not None
        if self._closing or job.id in self._runs:
            return  # if it is this process that hung, it renews its lease now
        ledger, policies = environment.ledger, environment.policies
        if job.state is State.CANCELLING:
            await ledger.finish(job, State.CANCELLED, ttl=policies.ttl(job))
        elif job.overdue(now := environment.clock()):
            await self._runs.end_overdue(job)
        elif not job.replayable:
            await ledger.finish(job, State.FAILED, ttl=policies.ttl(job), error=LOST_WORKER)
        elif policies.knows(job.route) is False:
            if found.idle >= seconds(environment.limits.abandon_after):
                await self._give_up(job)
        elif job.state is State.RUNNING:
            backoff = min(2.0 ** (job.runs - 2), _LONGEST_BACKOFF) if job.runs > 1 else 0.0
            due = now + backoff if backoff else None
            job = await ledger.requeue(job, backoff, not_before=due)
            if not backoff:
                await self._run_again(job)
        elif (early := (job.not_before or now) - now) > 0:  # who had it has died
            await environment.store.renew({job.id: job.fence}, early)
        else:
            await self._run_again(job)

    async def _run_again(self, job: Job) -> None:
        """Let a job that waits for nobody wait here, or tell the engine of it once more."""
        if not self._environment.in_place:
            await self._runs.bring_again(job)
            return
        run = self._runs.place(job)
        try:
            await run.hold()
        except BaseException:
            assert run.ticket is not None
            self._runs.scheduler.leave(run.ticket)
            raise
        self._runs.wait(run)

    # --- what cannot run here ------------------------------------------------------------------

    async def give_back(self, job: Job) -> None:
        """Leave a job whose route this process does not have to one that has it.

        Once none has come for `Limits.abandon_after`, it has failed. Unless it has moved on.
        """
        environment = self._environment
        assert environment.lease is not None
        waited = 0.0 if job.orphaned_at is None else max(0.0, environment.clock() - job.orphaned_at)
        left = seconds(environment.limits.abandon_after) - waited
        try:
            if left <= 0:
                await self._give_up(job)
                return
            # Ever more rarely: the others may be many, and each time it is a new start of the app.
            lease = min(max(environment.lease, waited), MOST_LEASES * environment.lease, left)
            await environment.ledger.give_back(job, lease)
        except (IllegalTransition, UnreadableRecord):
            return
        if job.route not in self._foreign:
            self._foreign.add(job.route)
            logger.info("jobs of %s are left to processes that have that route", job.route)

    async def _give_up(self, job: Job) -> None:
        """End a job for which no process has come that has its route. Raises as the ledger does."""
        environment = self._environment
        ttl, why = environment.policies.ttl(job), "no process has that route"
        await environment.ledger.finish(job, State.FAILED, ttl=ttl, error=UNKNOWN_ROUTE, why=why)

    async def _give_up_unread(self, found: Abandoned) -> None:
        """Let go of a job that cannot be read, once nobody has come who can."""
        if found.idle < seconds(self._environment.limits.abandon_after):
            return
        if await self._environment.store.discard(found.id):
            told = {"job": found.id}
            logger.warning(
                "job %s was given up: nobody could read its record", found.id, extra=told
            )
