"""Replays: runs what waited here, and what an engine brings."""

from __future__ import annotations

import logging
from contextlib import suppress
from contextvars import Context
from functools import partial

import anyio
from starlette.types import ASGIApp

from raincheck.acceptance.decision import Acceptance
from raincheck.acceptance.handoff import Handoff
from raincheck.errors import (
    INTERRUPTED,
    UNREADABLE,
    IllegalTransition,
    NoRoom,
    Refusal,
    UnreadableRecord,
)
from raincheck.job import State
from raincheck.messages import CapturedRequest
from raincheck.policy import seconds
from raincheck.runners.base import Brought
from raincheck.runtime.environment import Environment
from raincheck.runtime.recovery import Recovery
from raincheck.runtime.run import Run
from raincheck.runtime.runs import Runs
from raincheck.runtime.stopping import Reason, Stopping

logger: logging.Logger = logging.getLogger("raincheck")

# Seconds that a job may be brought before its time, as where the clocks of machines differ.
_EARLY = 5.0

REPLAY = "raincheck.replay"
"""The key that is true in the scope of a request which the app is given once more."""


class Replays:
    """Replays captured requests, each under an accepted handoff, on one event loop.

    Args:
        environment: what is fixed.
        runs: the jobs that are here, and their places.
        acceptance: what a replay's handlers meet at their entry.
        recovery: takes what cannot run here.
        app: the app that the requests are fed to.
    """

    def __init__(
        self,
        environment: Environment,
        runs: Runs,
        acceptance: Acceptance,
        recovery: Recovery,
        app: ASGIApp,
    ) -> None:
        self._environment = environment
        self._runs = runs
        self._acceptance = acceptance
        self._recovery = recovery
        self._app = app
        self._closing = False
        self._brought: set[str] = set()  # what engines bring twice is run, or waits, once

    def close(self) -> None:
        """Begin nothing new that an engine brings."""
        self._closing = True

    async def run(self, id: str) -> Brought:
        """Run a job to its end: one that waits here, or one that an engine has brought."""
        if self._environment.in_place:
            run = self._runs.get(id)
            if run is not None and run.waits:  # else it was cancelled, deleted or is another's
                with suppress(NoRoom):  # its turn comes once more
                    await self._replay(run)
        elif id in self._brought:
            return Brought.HELD
        else:
            self._brought.add(id)
            try:
                return await self._run_brought(id)
            except BaseException:  # the engine gives it up
                if (run := self._runs.get(id)) is not None:
                    self._runs.give_up(run)
                raise
            finally:
                self._brought.discard(id)
        return Brought.ENDED

    async def _replay(self, run: Run) -> None:
        """Run a job that waits here to its end.

        Raises:
            NoRoom: it waits on, since so many run in other processes.
        """
        environment, job = self._environment, run.job
        if job.begin_by is not None and job.overdue(environment.clock()):
            await self._runs.end_overdue(job)
            return
        known, policy = environment.policies.knows(job.route), environment.policies.of(job)
        bounded = environment.bounds(policy, State.RUNNING) is not None
        run.attend(Stopping(self._runs.tasks, environment.cancel_grace), policy)
        if known and not bounded:
            with suppress(UnreadableRecord):  # what cannot be read is found out again
                request = await run.claim()
                if request is not None:
                    await self._replay_begun(run, request)
                if not run.waits:
                    return
        error = INTERRUPTED  # no request: another process has cancelled it or taken it over
        request = why = None
        try:
            ask = partial(environment.store.request, job.id)
            request = await environment.ledger.patiently(ask)
            if request is not None and request.apart is not None and request.apart.read is None:
                raise UnreadableRecord("its body is in files, and this process has no bodies=...")
        except UnreadableRecord as unreadable:
            error, why = UNREADABLE, str(unreadable)
        if not run.waits:
            return  # cancelled or deleted while the store was asked; its place was given back
        if request is None:
            await self._runs.withdraw(run, State.FAILED, error, why)
        elif known is None:
            await self._seek(run, self._handoff(run, request), request)
        elif await run.begin():
            await self._replay_begun(run, request)
        else:
            self._runs.ended(run)

    async def _replay_begun(self, run: Run, request: CapturedRequest) -> None:
        if request.apart is not None and request.apart.read is None:  # not in this process
            await run.fail_unread()
            return
        handoff = self._handoff(run, request)
        handoff.replay(request)
        await self._conduct(run, handoff)

    def _handoff(self, run: Run, request: CapturedRequest) -> Handoff:
        assert run.origin is not None
        job, policies = run.job, self._environment.policies
        scope = {**request.scope(), **run.origin.outer}
        if isinstance(state := scope.get("state"), dict):
            scope["state"] = dict(state)  # as servers do for every request: it may be repeated
        earlier = job.runs - (job.state is State.RUNNING)
        if earlier or not policies.ruled(job.route):
            scope[REPLAY] = True
        route, policy = job.route, run.policy
        return Handoff(self._acceptance, self._app, scope, policy, route, run=run)

    async def _seek(self, run: Run, handoff: Handoff, request: CapturedRequest) -> None:
        """Run a job whose route the app may not have; where it has not, nothing has happened.

        Raises:
            NoRoom: it waits on, since so many run in other processes.
        """
        if self._environment.observers.follow:
            handoff.retrace(None)  # its place will be known when the endpoint is found
        handoff.seek(request, seconds(self._environment.limits.abandon_after))
        await self._conduct(run, handoff)
        if handoff.full is not None:
            raise handoff.full
        if handoff.seeks and run.waits:
            self._runs.drop(run)
            await self._recovery.give_back(run.job)

    async def _conduct(self, run: Run, handoff: Handoff) -> None:
        """Run the app to its end, in a context of its own."""
        if self._environment.in_place:  # so runs this task
            await handoff.conduct()
            return
        # The engine's task may have run other jobs, or be the request's of whoever submitted it.
        ended = self._runs.tasks.gate()

        async def conduct() -> None:
            await handoff.conduct()
            ended.open()

        assert run.origin is not None
        self._runs.tasks.spawn(conduct, run.origin.context, handoff)  # which releases it
        try:
            await ended.wait()
        except BaseException:  # the engine gives it up
            handoff.stopping.stop(Reason.INTERRUPTED)
            with anyio.CancelScope(shield=True):
                await ended.wait()
            raise

    # --- what an engine brings -----------------------------------------------------------------

    async def _run_brought(self, id: str) -> Brought:
        run = await self._take_in(id)
        while isinstance(run, Run) and run.waits:  # else it was cancelled, deleted or is another's
            try:
                await self._replay(run)
            except NoRoom:
                run = await self._turn_or_not(run)
            else:
                return Brought.ENDED if run.job.finished else Brought.HELD
        return run if isinstance(run, Brought) else Brought.ENDED

    async def _take_in(self, id: str) -> Run | Brought:
        """Take a place for a job that an engine has brought, and wait for its turn.

        Returns:
            What has become of it, if there is nothing more to do.
        """
        environment = self._environment
        try:
            if (run := await self._run_at_once(id)) is not None:
                return Brought.ENDED if run.job.finished else Brought.HELD
            job = await environment.ledger.patiently(partial(environment.store.get, id))
        except UnreadableRecord as error:  # for a worker of another version to run, or for nobody
            logger.warning("job %s cannot run here: %s", id, error, extra={"job": id})
            return Brought.HELD
        if job is None or job.gone or job.finished:
            return Brought.ENDED
        if job.state is not State.QUEUED or self._runs.get(id):
            return Brought.HELD
        if environment.policies.knows(job.route) is False:
            await self._recovery.give_back(job)
            return Brought.HELD
        if self._closing:
            await environment.bring_again(job)
            return Brought.BUSY
        now = environment.clock()
        if job.overdue(now):
            with suppress(IllegalTransition):  # it has begun elsewhere
                await self._runs.end_overdue(job)
            return Brought.ENDED
        if (early := (job.not_before or now) - now) > 0:
            if early > _EARLY:
                return Brought.HELD  # it is brought again in time
            await anyio.sleep(early)
        try:
            run = self._runs.place(job)
        except Refusal:
            return Brought.BUSY  # it will be brought again
        self._runs.add(run)
        if job.begin_by is not None:
            self._runs.expect(job)
        return await self._turn_or_not(run)

    async def _run_at_once(self, id: str) -> Run | None:
        """Run a job to its end, if it can be begun without a look at it: by a single call.

        There has to be capacity whatever its route is, and no bound of that route to keep to.

        Raises:
            UnreadableRecord: its record.
        """
        environment, scheduler = self._environment, self._runs.scheduler
        free = None if self._closing else scheduler.take_any()
        if free is None:
            return None
        try:
            claimed = await environment.ledger.claim(id, environment.policies.unbounded())
        except BaseException as error:
            scheduler.leave(free)
            if isinstance(error, UnreadableRecord):
                return None  # perhaps only its request, of which its client has to be told
            raise
        if claimed is None or not claimed.begun:
            scheduler.leave(free)
            return None
        job = claimed.job
        run = self._runs.place(job, scheduler.move(free, job.route, job.owner))
        run.attend(Stopping(self._runs.tasks, environment.cancel_grace), run.policy)
        self._runs.add(run)
        if claimed.request is None:
            await run.fail_unread()
        else:
            await self._replay_begun(run, claimed.request)
        return run

    async def _turn_or_not(self, run: Run) -> Run | Brought:
        assert run.ticket is not None
        if self._environment.runner.patient or run.ticket.running:
            return await self._turn_of(run)
        self._runs.give_up(run)
        return Brought.BUSY

    async def _turn_of(self, run: Run) -> Run:
        """Wait for the turn of a job that an engine has brought; it may wait no more by then."""
        turn = self._runs.tasks.gate()
        assert run.ticket is not None
        run.ticket.wait(turn.open)
        if not run.ticket.running:
            await turn.wait()
        return run

    def context_of(self, id: str) -> Context:
        """The context variables that a job is replayed in."""
        run = self._runs.get(id)
        return Context() if run is None or run.origin is None else run.origin.context.copy()
