"""The conductor: who runs and who waits in this process, and how each job ends."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial

import anyio

from raincheck.errors import (
    INTERRUPTED,
    UNKNOWN_ROUTE,
    ConfigurationError,
    IllegalTransition,
    LeaseLost,
    NoRoom,
    Problem,
    UnreadableRecord,
)
from raincheck.job import Bounds, Job, State
from raincheck.messages import CapturedResponse
from raincheck.policy import Limits, Policy, seconds
from raincheck.routing.policies import RoutePolicies, bounds
from raincheck.runners.base import Runner
from raincheck.runtime.execution import Execution
from raincheck.runtime.leases import Leases
from raincheck.runtime.ledger import Ledger
from raincheck.runtime.roster import Roster, Waiting
from raincheck.runtime.scheduler import Ticket
from raincheck.runtime.stopping import Reason
from raincheck.stores.availability import Availability
from raincheck.stores.base import Abandoned, Store
from raincheck.stores.bounded import BoundedStore
from raincheck.tasks import Gate, Tasks, open_tasks

logger = logging.getLogger("raincheck")

# Seconds between sweeps, while there is anything that can expire.
SWEEP_INTERVAL = 10.0

# Seconds after which other processes are told that a job is accepted, if they have not heard of it.
_CONFIRMED_WITHIN = 0.05

# How many refused jobs are taken back at once: an outage may have left thousands.
_TOGETHER = 16

# Leases after which a job that waits for others is brought again, or looked for, at most.
MOST_LEASES = 16

# Seconds between tries to begin a job of a route of which so many run elsewhere as may.
_UNBLOCK_INTERVAL = 0.5


class Conductor:
    """Conducts the jobs of one middleware in this process: their places, and how they end.

    Args:
        store: where jobs are kept.
        runner: where they run.
        limits: what all routes together keep to.
        clock: seconds since the epoch.

    Attributes:
        store: the store; calls to one that processes share are bounded in time.
        availability, engine: whether the store answers, and the runner's engine.
        runner, limits, clock: as given.
        in_place: whether accepted handlers go on where they are.
        name: of this process, as the holder of its jobs.
        lease: seconds that a job is its own without renewal; None where no other could take it.
        ledger: how jobs change.
        policies: of the routes.
        tasks, limiter: the tasks, and the threads for handlers, since `open()`.
        roster, leases: the jobs that are here, and the hold on them; anew with each `open()`.
        closing: whether it accepts nothing new.

    Raises:
        ConfigurationError: the runner's workers could not see the jobs of this store.
    """

    def __init__(
        self, store: Store, runner: Runner, limits: Limits, clock: Callable[[], float]
    ) -> None:
        if not store.shared and not runner.in_place:
            raise ConfigurationError(
                "runner=...: it runs jobs in other processes, which cannot see those of "
                f"{type(store).__name__}; give store=... one that they share"
            )
        timeout = seconds(limits.store_timeout)
        self.availability = Availability("the store")
        self.engine = Availability("the engine that runs jobs")
        self.store = BoundedStore(store, timeout, self.availability) if store.shared else store
        self.runner = runner
        self.in_place = runner.in_place
        self.limits = limits
        self.clock = clock
        self.cancel_grace = seconds(limits.cancel_grace)
        self.name = secrets.token_urlsafe(9)
        # Where no other process sees them nobody could take jobs over, and leases are spared.
        self.lease = seconds(limits.lease) if store.shared else None
        self.ledger = Ledger(
            self.store,
            clock,
            seconds(limits.tombstone_ttl),
            availability=self.availability,
            holder=self.name,
            lease=self.lease,
        )
        self.policies = RoutePolicies(runner, store)
        self.tasks: Tasks
        self.limiter: anyio.CapacityLimiter
        self.leases: Leases | None = None
        self._reset()

    def _reset(self) -> None:
        self.closing = False
        self.roster = Roster(self.limits, self.policies.by_route)
        self._settling: dict[Execution, Gate] = {}
        self._undoing: anyio.CapacityLimiter | None = None
        self._confirming: set[str] = set()
        self._sweeping = False
        self._unblocking = False
        self._foreign: set[str] = set()

    def open(self) -> None:
        """Begin on the running event loop with no jobs here: another that they ran on has ended."""
        self._reset()
        self.tasks = open_tasks()
        self.limiter = anyio.CapacityLimiter(self.limits.max_running)

    def hold(
        self,
        lost: Callable[[str], Awaitable[None]],
        abandoned: Callable[[Abandoned], Awaitable[None]],
    ) -> None:
        """Hold on to the jobs that are here, and look for those that nobody holds any more.

        Args:
            lost: called with the id of a job that seems not to be this process's any more.
            abandoned: called with each that nobody holds.
        """
        assert self.lease is not None
        self.leases = Leases(
            self.store,
            self.availability,
            self.lease,
            held=lambda: self.roster.fences(waiting=self.in_place),
            lost=lost,
            cancelled=self.stop,
            abandoned=abandoned,
        )
        self.tasks.spawn(self.leases.watch, Context())
        self.keep_sweeping()

    def close(self) -> None:
        """Accept nothing new."""
        self.closing = True

    def know_nothing(self) -> None:
        """Forget whether store and engine answered: that was on another event loop, if ever."""
        self.availability.reset()
        self.engine.reset()

    # --- places --------------------------------------------------------------------------------

    def bounds(self, policy: Policy, state: State) -> Bounds | None:
        """What the store is to count; a process that is alone with it counts for itself."""
        return None if self.lease is None else bounds(policy, state)

    def block(self, ticket: Ticket, full: NoRoom) -> None:
        """So many run in other processes that one which has its turn here has to wait on."""
        self.roster.scheduler.block(ticket, owner=full.owner)
        if not self._unblocking:
            self._unblocking = True
            self.tasks.spawn(self._unblock, Context())

    async def _unblock(self) -> None:
        """Let those who are blocked try again from time to time: nobody tells when they may."""
        while self.roster.scheduler.blocked:
            await anyio.sleep(_UNBLOCK_INTERVAL)
            self.roster.scheduler.unblock()
        self._unblocking = False

    async def bring(self, job: Job) -> None:
        """Tell the engine of a job, in time. Raises whatever it raises."""
        with anyio.fail_after(seconds(self.limits.store_timeout)):
            await self.runner.submit(job.id, job.queue)
        if self.engine.away:
            self.engine.answered()

    async def submit_again(self, job: Job) -> bool:
        """Tell the engine of a job once more, in time; if that fails, it is found abandoned."""
        try:
            await self.bring(job)
        except Exception as error:
            self.engine.failed(error)
            return False
        return True

    def wait(self, waiting: Waiting) -> None:
        """Let a job wait here for its turn, which may have come already."""
        id, ticket, held = waiting.job.id, waiting.ticket, waiting.held
        self.roster.waiting[id] = waiting
        turn = held.turn if held else partial(self._turn, id)
        ticket.wait(turn)
        if ticket.running:
            turn()

    def _turn(self, id: str) -> None:
        self.tasks.spawn(partial(self.runner.submit, id), Context())

    def drop(self, waiting: Waiting) -> None:
        """A job does not wait here any more."""
        self.roster.drop(waiting)
        if not self.in_place and waiting.ticket.turn is not None:
            waiting.ticket.turn()  # the engine's task need not wait for it any more

    async def withdraw(
        self, waiting: Waiting, state: State, error: Problem | None, why: str | None = None
    ) -> Job:
        """End a job that has not begun.

        Args:
            waiting: the job.
            state: how it ends.
            error: what its client is told of a failure.
            why: what the log has of it, if that is more.
        """
        if waiting.held is not None:
            interrupted = state is State.FAILED
            waiting.held.stop(Reason.INTERRUPTED if interrupted else Reason.CANCELLED)
        self.drop(waiting)
        ttl = self.policies.ttl(waiting.job)
        self.roster.leave(waiting.job)
        try:
            return await self.ledger.finish(waiting.job, state, ttl=ttl, error=error, why=why)
        except LeaseLost:
            return waiting.job
        finally:
            self.roster.left(waiting.job)

    async def interrupt_waiting(self, waiting: Waiting) -> None:
        """The server stops: leave a job that has not begun to others, or end it."""
        if self.leases is None or waiting.held is not None:
            await self.withdraw(waiting, State.FAILED, INTERRUPTED)
            return
        self.drop(waiting)
        if self.in_place:
            with suppress(IllegalTransition):
                await self.ledger.let_go(waiting.job)
        else:
            await self.submit_again(waiting.job)

    def waits(self, id: str) -> bool:
        """Whether a job waits for its turn here, or has it and has not begun."""
        return id in self.roster.waiting

    async def give_back(self, job: Job) -> None:
        """Leave a job whose route this process does not have to one that has it.

        Once none has come for `Limits.abandon_after`, it has failed.

        Raises:
            IllegalTransition: it has moved on.
        """
        assert self.lease is not None
        waited = 0.0 if job.orphaned_at is None else max(0.0, self.clock() - job.orphaned_at)
        left = seconds(self.limits.abandon_after) - waited
        if left <= 0:
            await self.give_up(job)
            return
        # Ever more rarely: the others may be many, and it is a new start of the app each time.
        lease = min(max(self.lease, waited), MOST_LEASES * self.lease, left)
        await self.ledger.give_back(job, lease)
        if job.route not in self._foreign:
            self._foreign.add(job.route)
            logger.info("jobs of %s are left to processes that have that route", job.route)

    async def give_up(self, job: Job) -> None:
        """End a job for which no process has come that has its route. Raises as the ledger does."""
        ttl = self.policies.ttl(job)
        why = "no process has that route"
        await self.ledger.finish(job, State.FAILED, ttl=ttl, error=UNKNOWN_ROUTE, why=why)

    # --- for those who run ---------------------------------------------------------------------

    async def begin(self, detached: Execution) -> bool:
        """Record that a job which waited runs now; False if it was cancelled meanwhile.

        Raises:
            NoRoom: it waits on, since so many run in other processes.
        """
        job, ticket = detached.job, detached.ticket
        assert job is not None
        assert ticket is not None
        roster = self.roster
        waiting = roster.waiting.pop(job.id, None)
        roster.running[job.id] = detached
        within = self.bounds(self.policies.of(job), State.RUNNING)
        try:
            begun = await self.ledger.start(job, within)
        except NoRoom as error:
            if waiting is None:  # it was cancelled as its turn came
                return False
            del roster.running[job.id]
            roster.waiting[job.id] = waiting
            self.block(ticket, error)
            raise
        except IllegalTransition:
            return False
        detached.became(begun)
        if self.leases is not None:
            self.leases.keep(self.tasks)
        return begun.state is State.RUNNING

    async def finish(
        self,
        detached: Execution,
        state: State,
        response: CapturedResponse | None,
        error: Problem | None,
        tail: bytes,
    ) -> None:
        """Record an outcome."""
        job = detached.job
        assert job is not None
        if response is not None and detached.ticket is not None and job.started_at is not None:
            self.roster.scheduler.learn(detached.ticket, self.clock() - job.started_at)
        write = partial(
            self.ledger.finish,
            job,
            state,
            ttl=seconds(self.policies.by_route[job.route].ttl),
            tail=tail,
            response=response,
            error=error,
            progress=detached.progress,
        )
        if response is not None and detached.policy.coalesce is True:
            write = partial(self._learn_first, job.route, response, write)
        if self.store.immediate:
            detached.became(await write())
        else:
            await self._settle(detached, write)

    def finish_aside(
        self,
        detached: Execution,
        state: State,
        response: CapturedResponse | None,
        error: Problem | None,
        tail: bytes,
    ) -> None:
        """Record an outcome that nobody is to wait for."""
        job = detached.job
        assert job is not None
        self.roster.leave(job)

        async def write() -> None:
            try:
                await self.finish(detached, state, response, error, tail)
            finally:
                self.roster.left(job)

        self.tasks.spawn(write, Context())

    async def _learn_first(
        self, route: str, response: CapturedResponse, write: Callable[[], Awaitable[Job]]
    ) -> Job:
        await self.ledger.learn(route, response.headers)
        return await write()

    async def interrupted(self, detached: Execution) -> None:
        """Record that the server stopped: the job runs again elsewhere if it may, or has failed."""
        job = detached.job
        assert job is not None

        async def write() -> Job:
            if job.replayable:
                with suppress(IllegalTransition):
                    return await self._give_back(job)
            ttl = self.policies.ttl(job)
            return await self.ledger.finish(job, State.FAILED, ttl=ttl, error=INTERRUPTED)

        await self._settle(detached, write)

    async def _give_back(self, job: Job) -> Job:
        """Let somebody else run a job again at once."""
        job = await self.ledger.requeue(job, 0.0)
        if not self.in_place:
            await self.submit_again(job)
        return job

    async def _settle(self, detached: Execution, write: Callable[[], Awaitable[Job]]) -> None:
        """Write an outcome in a task of its own: one that is cancelled would leave it unknown."""
        gate = self._settling[detached] = self.tasks.gate()
        job = detached.job
        assert job is not None
        self.roster.leave(job)

        async def settle() -> None:
            try:
                detached.became(await write())
            except LeaseLost:
                logger.warning(
                    "job %s (%s) was taken over; its outcome here is dropped", job.id, job.route
                )
            finally:
                del self._settling[detached]
                self.roster.left(job)
                gate.open()

        self.tasks.spawn(settle, Context())
        await gate.wait()

    async def settled(self, detached: Execution) -> None:
        """Return when nothing of the outcome is on its way into the store any more."""
        if self._settling and (gate := self._settling.get(detached)) is not None:
            await gate.wait()

    async def keep(self, detached: Execution, offset: int, piece: bytes) -> None:
        """Keep a piece of the response body.

        Raises:
            LeaseLost: nobody wants it any more.
            StoreFull: there is no room for it.
        """
        assert detached.job is not None
        await self.ledger.append(detached.job, offset, piece)

    async def keep_once(self, detached: Execution, offset: int, piece: bytes) -> None:
        """The same, asking the store only once: somebody waits for what comes after that.

        Raises:
            LeaseLost: nobody wants it any more.
            StoreError: whatever the store raises.
        """
        job = detached.job
        assert job is not None
        try:
            kept = await self.store.append_body(job.id, job.fence, offset, piece)
        except Exception as error:
            self.availability.failed(error)
            raise
        if not kept:
            raise LeaseLost("the job has changed hands")

    async def progressed(self, detached: Execution) -> None:
        """Record the newest report. A store that fails here is told again with the next one."""
        progress = detached.progress
        assert detached.job is not None
        assert progress is not None
        try:
            detached.became(await self.ledger.progress(detached.job, progress))
        except LeaseLost:
            detached.lose()
        except Exception as error:
            self.availability.failed(error)

    def ended(self, detached: Execution) -> None:
        """Give the capacity back."""
        self.roster.ended(detached)

    def stop(self, id: str) -> None:
        """Ask a job to stop because it was cancelled, if it runs here."""
        if running := self.roster.running.get(id):
            running.stop(Reason.CANCELLED)

    # --- who is accepted ------------------------------------------------------------------------

    def sure_of(self, job: Job) -> bool:
        """Whether a job that was found in the store is known to be accepted."""
        return job.confirmed or self.roster.has(job.id) or job.id in self._confirming

    def confirm(self, job: Job) -> None:
        """Let other processes know soon that a job which other requests may be is accepted.

        Most have a second version by then anyway.
        """
        self._confirming.add(job.id)
        self.tasks.spawn(partial(self._confirm, job), Context())

    async def _confirm(self, job: Job) -> None:
        try:
            await anyio.sleep(_CONFIRMED_WITHIN)
            if self.in_place and not self.roster.has(job.id):
                return  # it has ended
            confirmed = await self.ledger.confirm(job)
        except UnreadableRecord:
            return  # a process of another version has it
        finally:
            self._confirming.discard(job.id)
        for here in (self.roster.running.get(job.id), self.roster.waiting.get(job.id)):
            if here is not None and here.job is not None and not here.job.confirmed:
                here.became(confirmed)

    def hold_on(self, job: Job) -> None:
        """Renew the lease of a job that is neither accepted nor refused, or refused in vain."""
        self.roster.leave(job)
        if self.leases is not None:
            self.leases.keep(self.tasks)

    # --- what goes ------------------------------------------------------------------------------

    def undo(self, job: Job) -> None:
        """Take back a new job that is refused, and that the store may have all the same (law 15).

        In a task of its own, for as long as the store takes. Until then the job's lease is renewed,
        so that nobody begins it.
        """
        self.hold_on(job)
        self.tasks.spawn(partial(self._undo, job), Context())

    async def _undo(self, job: Job) -> None:
        if self._undoing is None:
            self._undoing = anyio.CapacityLimiter(_TOGETHER)
        try:
            async with self._undoing:
                await self.ledger.patiently(partial(self.ledger.take_back, job))
        except UnreadableRecord:
            pass  # a process of another version has taken it over
        finally:
            self.roster.left(job)
        self.keep_sweeping()

    def keep_sweeping(self) -> None:
        """Sweep from time to time, from now on until nothing is left."""
        if not self._sweeping:
            self._sweeping = True
            self.tasks.spawn(self._sweep, Context())

    async def _sweep(self) -> None:
        """Sweep while anything can expire; the next acceptance starts it anew."""
        left = True
        while left:
            await anyio.sleep(SWEEP_INTERVAL)
            try:
                left = await self.store.sweep(self.clock())
            except Exception as error:
                self.availability.failed(error)
            else:
                if self.availability.away:
                    self.availability.answered()
        self._sweeping = False
