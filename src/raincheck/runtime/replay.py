"""Replays: runs what waited here, what an engine brings, and what another process has left."""

from __future__ import annotations

import logging
from contextlib import suppress
from contextvars import Context
from functools import partial

import anyio
from starlette.types import ASGIApp, Scope

from raincheck.acceptance.decision import Acceptance
from raincheck.acceptance.handoff import Handoff
from raincheck.errors import (
    INTERRUPTED,
    LOST_WORKER,
    UNREADABLE,
    IllegalTransition,
    NoRoom,
    QueueFull,
    Refusal,
    UnreadableRecord,
)
from raincheck.job import Job, State
from raincheck.messages import CapturedRequest
from raincheck.policy import seconds
from raincheck.runtime.conductor import MOST_LEASES
from raincheck.runtime.roster import Waiting
from raincheck.runtime.stopping import Reason
from raincheck.stores.base import Abandoned

logger = logging.getLogger("raincheck")

# Seconds that a job waits after each interrupted run but the first, doubled each time, at most.
_LONGEST_BACKOFF = 60.0

REPLAY = "raincheck.replay"
"""The key that is true in the scope of a request which the app is given once more."""


class Replays:
    """Replays captured requests, each under an accepted handoff.

    Args:
        acceptance: what a replay's handlers meet at their entry.

    Attributes:
        app: the app that the requests are fed to.
        outer: what the lifespan's scope had that requests are to have as well.
    """

    def __init__(self, acceptance: Acceptance) -> None:
        self._acceptance = acceptance
        self._conductor = acceptance.conductor
        self.app: ASGIApp | None = None
        self.outer: Scope = {}

    def bind(self, app: ASGIApp) -> None:
        """Take the app."""
        self.app = app

    def live_in(self, outer: Scope) -> None:
        """Take what the lifespan's scope has."""
        self.outer = outer

    async def run(self, id: str) -> None:
        """Run a job to its end: one that waits here, or one that an engine has brought."""
        conductor = self._conductor
        waiting = conductor.roster.waiting.get(id) or await self._claim(id)
        while waiting is not None:  # else it was cancelled, deleted or is somebody else's by now
            try:
                await self._replay(waiting)
            except NoRoom:
                if not conductor.in_place:
                    waiting = await self._turn_of(waiting)
                    continue
            return

    async def _replay(self, waiting: Waiting) -> None:
        """Run a job that waits here to its end.

        Raises:
            NoRoom: it waits on, since so many run in other processes.
        """
        conductor = self._conductor
        id = waiting.job.id
        error = INTERRUPTED  # no request: another process has cancelled it or taken it over
        request = why = None
        try:
            request = await conductor.ledger.patiently(partial(conductor.store.request, id))
        except UnreadableRecord as unreadable:
            error, why = UNREADABLE, str(unreadable)
        if not conductor.roster.waits(waiting):
            return  # cancelled or deleted while the store was asked; its place was given back
        if request is None:
            await conductor.withdraw(waiting, State.FAILED, error, why)
            return
        assert self.app is not None
        scope = {**request.scope(), **waiting.outer}
        if waiting.job.runs or not conductor.policies.ruled(waiting.job.route):
            scope[REPLAY] = True
        handoff = Handoff(
            self._acceptance,
            self.app,
            scope,
            route=waiting.job.route,
            policy=conductor.policies.of(waiting.job),
            job=waiting.job,
            ticket=waiting.ticket,
        )
        if conductor.policies.knows(waiting.job.route) is None:
            await self._seek(waiting, handoff, request)
        elif await conductor.begin(handoff):
            handoff.replay(request)
            await self._run(handoff, waiting.context)
        else:
            conductor.ended(handoff)

    async def _seek(self, waiting: Waiting, handoff: Handoff, request: CapturedRequest) -> None:
        """Run a job whose route the app may not have; where it has not, nothing has happened.

        Raises:
            NoRoom: it waits on, since so many run in other processes.
        """
        conductor = self._conductor
        handoff.seek(request, seconds(conductor.limits.abandon_after))
        await self._run(handoff, waiting.context)
        if handoff.full is not None:
            raise handoff.full
        if handoff.seeks and conductor.roster.waits(waiting):
            conductor.drop(waiting)
            await self._give_back(waiting.job)

    async def _give_back(self, job: Job) -> None:
        """Leave a job to a process that has its route; unless it has moved on."""
        with suppress(IllegalTransition, UnreadableRecord):
            await self._conductor.give_back(job)

    async def _run(self, handoff: Handoff, context: Context) -> None:
        """Run the app to its end, in a context of its own."""
        tasks = self._conductor.tasks
        if self._conductor.in_place:  # so runs this task
            await handoff.run()
            return
        # The engine's task may have run other jobs, or be the request's of whoever submitted it.
        ended = tasks.gate()

        async def run() -> None:
            await handoff.run()
            ended.open()

        tasks.spawn(run, context)
        try:
            await ended.wait()
        except BaseException:  # the engine gives it up
            handoff.stop(Reason.INTERRUPTED)
            with anyio.CancelScope(shield=True):
                await ended.wait()
            raise

    async def _claim(self, id: str) -> Waiting | None:
        """Take a place for a job that an engine has brought, and wait for its turn.

        Returns:
            None if there is nothing to do: it runs, has ended, or waits here already.
        """
        conductor = self._conductor
        if conductor.in_place or id in conductor.roster.running:
            return None
        try:
            job = await conductor.ledger.patiently(partial(conductor.store.get, id))
        except UnreadableRecord as error:  # for a worker of another version to run, or for nobody
            logger.warning("job %s cannot run here: %s", id, error)
            return None
        if job is None or job.gone or job.state is not State.QUEUED or conductor.roster.has(id):
            return None
        if conductor.policies.knows(job.route) is False:
            await self._give_back(job)
            return None
        if conductor.closing:
            await conductor.submit_again(job)
            return None
        try:
            waiting = self._place(job)
        except Refusal:
            return None  # it will be brought again
        conductor.roster.waiting[id] = waiting
        return await self._turn_of(waiting)

    async def _turn_of(self, waiting: Waiting) -> Waiting | None:
        """Wait for the turn of a job that an engine has brought; None if it waits no more."""
        turn = self._conductor.tasks.gate()
        waiting.ticket.wait(turn.open)
        if not waiting.ticket.running:
            await turn.wait()
        return waiting if self._conductor.roster.waits(waiting) else None

    def _place(self, job: Job) -> Waiting:
        """A place for a job that was accepted elsewhere, or before a restart.

        Raises:
            Refusal: there is no room to wait.
        """
        conductor = self._conductor
        ticket = conductor.roster.scheduler.admit(job.route, job.owner, accepted=True)
        outer = dict(self.outer)
        if "state" in outer:
            outer["state"] = dict(outer["state"])  # as servers do for every request
        return Waiting(job, ticket, outer, Context(), None)

    async def lost(self, id: str) -> None:
        """A job seems not to be this process's any more: see whether that is so."""
        conductor = self._conductor
        roster = conductor.roster
        running, waiting = roster.running.get(id), roster.waiting.get(id)
        if running is None and waiting is None:
            return  # it is on its way out, or out
        deleted = False
        try:
            job = await conductor.store.get(id)
            deleted = job is None or job.gone
        except UnreadableRecord:  # a process of a newer version has it now, or nobody
            job = None
        if job is not None and job.holder == conductor.name and not (job.finished or job.gone):
            return  # it has begun in the meantime
        if running is not None and roster.running.get(id) is running:
            running.lose(deleted=deleted)
        elif waiting is not None and roster.waits(waiting):
            conductor.drop(waiting)

    async def take_over(self, found: Abandoned) -> None:
        """Bring a job whose process has died or hangs to its end."""
        conductor = self._conductor
        job = found.job
        if job is None:
            await self._give_up(found)
            return
        if conductor.closing or job.id in conductor.roster:
            return  # if it is this process that hung, it renews its lease now
        try:
            if job.state is State.CANCELLING:
                await conductor.ledger.finish(job, State.CANCELLED, ttl=conductor.policies.ttl(job))
            elif not job.replayable:
                ttl = conductor.policies.ttl(job)
                await conductor.ledger.finish(job, State.FAILED, ttl=ttl, error=LOST_WORKER)
            elif conductor.policies.knows(job.route) is False:
                if found.idle >= seconds(conductor.limits.abandon_after):
                    await conductor.give_up(job)
            elif job.state is State.RUNNING:
                backoff = 2.0 ** (job.runs - 2) if job.runs > 1 else 0.0
                job = await conductor.ledger.requeue(job, min(backoff, _LONGEST_BACKOFF))
                if not backoff:
                    await self._run_again(job)
            else:
                await self._run_again(job)
        except (IllegalTransition, QueueFull):
            pass  # it has moved on, or somebody else was faster, or has room
        except Exception as error:
            conductor.availability.failed(error)  # the job is found again

    async def _give_up(self, found: Abandoned) -> None:
        """Let go of a job that cannot be read, once nobody has come who can."""
        if found.idle < seconds(self._conductor.limits.abandon_after):
            return
        try:
            if await self._conductor.store.discard(found.id):
                logger.warning("job %s was given up: nobody could read its record", found.id)
        except Exception as error:
            self._conductor.availability.failed(error)

    async def _run_again(self, job: Job) -> None:
        """Let a job that waits for nobody wait here, or tell the engine of it once more.

        Raises:
            QueueFull: there is no room to wait here.
            IllegalTransition: somebody else was faster.
        """
        conductor = self._conductor
        if not conductor.in_place:
            job = await conductor.ledger.hold(job)
            if not await conductor.submit_again(job):
                return
            # Most likely the queue is just long, and must not grow each time by all that waits.
            # Of the changes of hands each run has three: it begins, is taken back and is brought.
            assert conductor.lease is not None
            calls = max(0, job.fence - 3 * job.runs - 1)
            lease = conductor.lease * min(2**calls, MOST_LEASES)
            await conductor.store.renew({job.id: job.fence}, lease)
            return
        waiting = self._place(job)
        try:
            waiting.became(await conductor.ledger.hold(job))
        except BaseException:
            conductor.roster.scheduler.leave(waiting.ticket)
            raise
        conductor.wait(waiting)
        assert conductor.leases is not None
        conductor.leases.keep(conductor.tasks)
