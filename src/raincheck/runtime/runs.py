"""The jobs of this process: who runs here, who waits here, and who is on the way out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
from starlette.types import Scope

from raincheck.dialects.base import Outlook
from raincheck.errors import (
    INTERRUPTED,
    LOOP_ENDED,
    WAITED_TOO_LONG,
    IllegalTransition,
    LeaseLost,
    NoRoom,
    Problem,
    UnreadableRecord,
)
from raincheck.job import Job, State
from raincheck.runtime.deadlines import Deadlines
from raincheck.runtime.environment import Environment
from raincheck.runtime.fleet import Fleet
from raincheck.runtime.leases import Leases
from raincheck.runtime.loop_watch import LoopWatch
from raincheck.runtime.run import Origin, Run
from raincheck.runtime.scheduler import Scheduler, Ticket
from raincheck.runtime.stopping import Reason
from raincheck.tasks import Tasks

# Leases after which a job that waits for others is brought again, or looked for, at most.
MOST_LEASES = 16

# Seconds between tries to begin a job of a route of which so many run elsewhere as may.
_UNBLOCK_INTERVAL = 0.5


class Runs:
    """The jobs that this process has on one event loop.

    Args:
        environment: what is fixed.
        tasks: those of the event loop.
        lifespan: what the lifespan's scope has that requests are to have as well: those that are
            replayed here and came in elsewhere; None where no lifespan has come.

    Attributes:
        environment, tasks: as given.
        interruption: what clients are told of those that the end of the server stops.
        scheduler: gives them their places.
        limiter: the threads for synchronous handlers.
    """

    def __init__(self, environment: Environment, tasks: Tasks, lifespan: Scope | None) -> None:
        self.environment = environment
        self.tasks = tasks
        self.scheduler: Scheduler = Scheduler(environment.limits, environment.policies.by_route)
        self.limiter: anyio.CapacityLimiter = anyio.CapacityLimiter(environment.limits.max_running)
        self.interruption: Problem = LOOP_ENDED if lifespan is None else INTERRUPTED
        self._lifespan = lifespan or {}
        self._here: dict[str, Run] = {}  # those that run and those that wait
        # Those of which the store has not heard the last word from here yet, each with its fence.
        # That they end, wait elsewhere or were refused is decided.
        self._leaving: dict[str, int] = {}
        self._idle: anyio.Event | None = None
        self._unblocking = False
        self._closing = False
        # Of those that wait here, until they do not; and of those that wait for an engine, of which
        # nobody tells here that they have begun.
        self._deadlines = Deadlines(tasks, self._has_to_have_begun)
        self._engines_deadlines = Deadlines(tasks, self._has_to_have_begun)
        self._came: set[str] = set()  # routes of which jobs came since `_ran` was asked
        self._loop = LoopWatch(tasks, environment.observers, self._ran)
        self._leases: Leases | None = None
        self._fleet: Fleet | None = None
        if environment.lease is not None:
            self._fleet = Fleet(environment, self.scheduler, tasks)
            self._leases = Leases(
                environment.store,
                environment.availability,
                environment.lease,
                held=self._fences,
                lost=self._lost,
                cancelled=self.stop,
            )

    def __contains__(self, id: str) -> bool:
        return id in self._here or id in self._leaving

    def get(self, id: str) -> Run | None:
        """The run of a job that was accepted here, or begun here, and has not ended."""
        return self._here.get(id)

    def running(self) -> list[Run]:
        """Those that run."""
        return [run for run in self._here.values() if not run.waits]

    def waiting(self) -> list[Run]:
        """Those that wait for their turn."""
        return [run for run in self._here.values() if run.waits]

    def _ran(self) -> Collection[str]:
        """The routes of the jobs that have run here since this was asked last."""
        came, self._came = self._came, set()
        return came.union(run.job.route for run in self._here.values() if not run.waits)

    def ids(self) -> list[str]:
        """The ids of both."""
        return [*self._here]

    @property
    def busy(self) -> bool:
        """Whether anything runs or waits here, or is on its way into the store."""
        return bool(self._here or self._leaving)

    # --- coming --------------------------------------------------------------------------------

    def add(self, run: Run) -> None:
        """A job runs here from now on, or is about to wait."""
        job = run.job
        self._here[job.id] = run
        self._came.add(job.route)
        if not self._loop.watching:
            self._loop.watch()
        if self._leases is not None:
            self._leases.keep(self.tasks)

    def wait(self, run: Run) -> None:
        """Let a job wait here for its turn, which may have come already."""
        assert run.ticket is not None
        self.add(run)
        if run.job.begin_by is not None:
            self.expect(run.job)
        turn: Callable[[], None] = run.turn if run.held else partial(self._turn, run.job.id)
        run.ticket.wait(turn)
        if run.ticket.running:
            turn()

    def _turn(self, id: str) -> None:
        self.tasks.spawn(partial(self._submit, id), Context())

    async def _submit(self, id: str) -> None:
        # A task may begin within the call that starts it: here within that of whoever has given
        # the place back. A queue of quick handlers would go as deep as it is long.
        await anyio.lowlevel.checkpoint()
        await self.environment.runner.submit(id)

    def place(self, job: Job, ticket: Ticket | None = None) -> Run:
        """A place for a job that was accepted elsewhere, or before a restart.

        Args:
            job: the job.
            ticket: its place, if it has one.

        Raises:
            Refusal: there is no room to wait.
        """
        if ticket is None:
            ticket = self.scheduler.admit(job.route, job.owner, accepted=True)
        policy = self.environment.policies.of(job)
        return Run(self, job, policy, ticket, origin=Origin(dict(self._lifespan), Context()))

    def outlook(self, job: Job) -> Outlook:
        """What to expect of an unfinished job."""
        run = self._here.get(job.id)
        ticket = None if run is None else run.ticket
        if self._fleet is not None:
            self._fleet.concern(job)
        return self.scheduler.outlook(job, ticket, self.environment.clock())

    # --- waiting for another run -----------------------------------------------------------------

    @property
    def goes_on(self) -> bool:
        """See `run.Home.goes_on`: in a process that stops, only what another one can take over."""
        return not self._closing or self.environment.lease is not None

    async def repeat(self, run: Run, pause: float) -> Job:
        """Record that a job waits for another run, and see to that. Raises as the ledger does.

        Here, where jobs go on in place; else its engine is told when the time has come. If this
        process is no more by then, it is found as all that is abandoned.
        """
        environment = self.environment
        here = environment.in_place and not self._closing
        lease = environment.lease if here or environment.lease is None else pause
        not_before = environment.clock() + pause
        job = await environment.ledger.requeue(run.job, lease, not_before=not_before, here=here)
        if job.stage is not State.QUEUED:
            return job  # it was deleted meanwhile
        if here:
            self._rest(run, job)
        else:
            self.tasks.call_later(pause, partial(self._spawn, partial(self._bring_due, job)))
        return job

    def _rest(self, earlier: Run, job: Job) -> None:
        assert job.not_before is not None
        ticket = self.scheduler.rest(job.route, job.owner)
        origin = earlier.origin or Origin(dict(self._lifespan), Context())
        run = Run(self, job, earlier.policy, ticket, origin=origin)
        ticket.wait(partial(self._turn, job.id))
        self.add(run)
        pause = max(0.0, job.not_before - self.environment.clock())
        self.tasks.call_later(pause, partial(self._wake, job.id))

    def _wake(self, id: str) -> None:
        run = self._here.get(id)
        if run is not None and run.waits and run.ticket is not None and run.ticket.rests:
            self.scheduler.wake(run.ticket)

    async def _bring_due(self, job: Job) -> None:
        try:
            await self.bring_again(job)
        except IllegalTransition:
            pass  # it was cancelled, or somebody else has brought it
        except Exception as error:
            self.environment.availability.failed(error)  # it is found abandoned

    async def bring_again(self, job: Job) -> None:
        """Tell the engine of a job that waits once more.

        Raises:
            IllegalTransition: it does not wait any more, or somebody else was faster.
            StoreError: whatever the store raises.
        """
        environment = self.environment
        job = await environment.ledger.hold(job)
        if not await environment.bring_again(job):
            return
        # Most likely the queue is just long, and must not grow each time by all that waits.
        # Of the changes of hands each run has three: it begins, is taken back and is brought.
        assert environment.lease is not None
        calls = max(0, job.fence - 3 * job.runs - 1)
        lease = environment.lease * min(2**calls, MOST_LEASES)
        if job.begin_by is not None and not job.runs:
            lease = min(lease, max(0.0, job.begin_by - environment.clock()))
        await environment.store.renew({job.id: job.fence}, lease)

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if not self._closing:  # else others do it, and here nobody waits for it
            self.tasks.spawn(work, Context())

    # --- waiting too long ------------------------------------------------------------------------

    def expect(self, job: Job) -> None:
        """End a job that waits if it has not begun by its `begin_by`."""
        assert job.begin_by is not None
        left = max(0.0, job.begin_by - self.environment.clock())
        deadlines = self._deadlines if job.id in self._here else self._engines_deadlines
        deadlines.add(job.id, job.begin_by, left)  # keeps no more of it

    def _has_to_have_begun(self, id: str, begin_by: float) -> None:
        self._spawn(partial(self._end_if_overdue, id, begin_by))

    async def _end_if_overdue(self, id: str, begin_by: float) -> None:
        """End it if it waits still, wherever that is. If the store fails, it is found again."""
        run = self._here.get(id)
        if run is not None and not (run.waits and run.job.overdue(begin_by)):
            return  # it has begun once, though it may wait for another run
        try:
            if run is not None:
                await self.end_overdue(run.job)
            elif not self.environment.in_place:
                newest = await self.environment.store.get(id)
                if newest is not None and newest.overdue(begin_by):
                    await self.end_overdue(newest)
        except IllegalTransition:
            pass  # it has begun
        except Exception as error:
            self.environment.availability.failed(error)

    async def end_overdue(self, job: Job) -> None:
        """End a job that has waited too long to begin.

        Raises:
            IllegalTransition: it has begun, or is somebody else's.
        """
        run, environment = self._here.get(job.id), self.environment
        if run is not None and run.waits:
            await self.withdraw(run, State.FAILED, WAITED_TOO_LONG)
            return
        ttl = environment.policies.ttl(job)
        await environment.ledger.finish(job, State.FAILED, ttl=ttl, error=WAITED_TOO_LONG)

    # --- waiting on ----------------------------------------------------------------------------

    def block(self, ticket: Ticket, full: NoRoom) -> None:
        """So many run in other processes that one which has its turn here has to wait on."""
        self.scheduler.block(ticket, owner=full.owner)
        if not self._unblocking:
            self._unblocking = True
            self.tasks.spawn(self._unblock, Context())

    async def _unblock(self) -> None:
        """Let those who are blocked try again from time to time: nobody tells when they may."""
        while self.scheduler.blocked:
            await anyio.sleep(_UNBLOCK_INTERVAL)
            self.scheduler.unblock()
        self._unblocking = False

    # --- going ---------------------------------------------------------------------------------

    def drop(self, run: Run) -> None:
        """A job does not wait here any more. From now on nobody begins it here."""
        ticket = run.ticket
        assert ticket is not None
        run.drop()
        del self._here[run.job.id]
        if self._deadlines.known:
            self._deadlines.discard(run.job.id)
        self._tell_idle()
        if run.held:  # it gives its place back when it has unwound
            run.stop(Reason.CANCELLED)
        else:
            self.scheduler.leave(ticket)
        if not self.environment.in_place and ticket.turn is not None:
            ticket.turn()  # the engine's task need not wait for it any more

    def give_up(self, run: Run) -> None:
        """The engine's task that was to begin a job is cancelled: it is brought again, or found."""
        if run.waits:
            self.drop(run)
        elif run.job.state is State.QUEUED:  # it may have begun, as the store knows alone
            run.give_up()
            self.ended(run)

    async def withdraw(
        self, run: Run, state: State, error: Problem | None, why: str | None = None
    ) -> Job:
        """End a job that has not begun.

        Args:
            run: the job's.
            state: how it ends.
            error: what its client is told of a failure.
            why: what the log has of it, if that is more.
        """
        if run.held:
            run.stop(Reason.INTERRUPTED if state is State.FAILED else Reason.CANCELLED)
        self.drop(run)
        job, environment = run.job, self.environment
        self.leave(job)
        try:
            ttl = environment.policies.ttl(job)
            return await environment.ledger.finish(job, state, ttl=ttl, error=error, why=why)
        except LeaseLost:
            return job
        finally:
            self.left(job)

    def close(self, within: float) -> list[Run]:
        """The server stops: from now on nothing that fails waits here for another run.

        Args:
            within: seconds that it waits for its jobs.

        Returns:
            Those that wait for a run which would come too late.
        """
        self._closing = True
        last = self.environment.clock() + within
        return [run for run in self.waiting() if (run.job.next_run_at or 0.0) > last]

    async def interrupt_waiting(self, run: Run) -> None:
        """The server stops: leave a job that has not begun to others, or end it."""
        environment = self.environment
        if environment.lease is None or run.held:
            await self.withdraw(run, State.FAILED, self.interruption)
            return
        self.drop(run)
        if environment.in_place:
            with suppress(IllegalTransition):
                await environment.ledger.let_go(run.job)
        else:
            await environment.bring_again(run.job)

    def stop(self, id: str) -> None:
        """Ask a job to stop because it was cancelled, if it runs here."""
        run = self._here.get(id)
        if run is not None and not run.waits:
            run.stop(Reason.CANCELLED)

    def ended(self, run: Run) -> None:
        """A handler has ended, or will not begin: its place is free."""
        id = run.job.id
        if self._here.get(id) is run:
            del self._here[id]
            if self._deadlines.known:
                self._deadlines.discard(id)
        if self._idle is not None:
            self._tell_idle()
        if run.ticket is not None:  # a synchronous request has none
            self.scheduler.leave(run.ticket)

    def leave(self, job: Job) -> None:
        """The last word on a job is on its way into the store. Until then nobody else has it."""
        self._leaving[job.id] = job.fence

    def left(self, job: Job) -> None:
        """It is there."""
        self._leaving.pop(job.id, None)
        self._tell_idle()

    async def until_idle(self) -> None:
        """Return when nothing runs or waits here, and the store knows of all that."""
        while self.busy:
            self._idle = anyio.Event()
            await self._idle.wait()

    def _tell_idle(self) -> None:
        if self._idle is not None and not self.busy:
            self._idle.set()

    # --- leases --------------------------------------------------------------------------------

    def keep_leases(self) -> None:
        """Renew leases as long as there is anything to hold."""
        if self._leases is not None:
            self._leases.keep(self.tasks)

    def hold_on(self, job: Job) -> None:
        """Renew the lease of a job that is neither accepted nor refused, or refused in vain."""
        self.leave(job)
        self.keep_leases()

    def _fences(self) -> dict[str, int]:
        """The jobs whose leases are to be renewed, by id, each with its fence.

        What waits for an engine is nobody's, until it has begun: it is brought again if that
        forgets it, and changes hands by that.
        """
        waiting = self.environment.in_place
        found = {
            id: run.job.fence
            for id, run in self._here.items()
            if not run.decided and (waiting or run.job.state is not State.QUEUED)
        }
        return found | self._leaving

    async def _lost(self, id: str) -> None:
        """A job seems not to be this process's any more: see whether that is so."""
        run = self._here.get(id)
        if run is None:
            return  # it is on its way out, or out
        waited, deleted = run.waits, False
        try:
            job = await self.environment.store.get(id)
            deleted = job is None or job.gone
        except UnreadableRecord:  # a process of a newer version has it now, or nobody
            job = None
        mine = job is not None and job.holder == self.environment.name
        if job is not None and mine and not (job.finished or job.gone):
            return  # it has begun in the meantime
        if self._here.get(id) is not run or run.waits is not waited:
            return
        if waited:
            self.drop(run)
        else:
            run.lose(deleted=deleted)
