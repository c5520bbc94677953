"""The conductor: accepts, finds, cancels and drains the jobs of one middleware."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck.admission import Ticket
from raincheck.dialects.base import Outlook
from raincheck.errors import (
    INTERRUPTED,
    ConfigurationError,
    IllegalTransition,
    LeaseLost,
    NoRoom,
    OwnerUnknown,
    Problem,
    QueueFull,
    Refusal,
    RunnerUnavailable,
    ShuttingDown,
    StoreFull,
    StoreUnavailable,
)
from raincheck.handoff import Handoff
from raincheck.ids import Ids, Origin
from raincheck.job import Bounds, Job, State
from raincheck.leases import Leases
from raincheck.ledger import Ledger
from raincheck.marking import Mark
from raincheck.messages import CapturedResponse
from raincheck.owners import OwnerError, Owners
from raincheck.policies import Policies, bounds
from raincheck.policy import Limits, Policy, seconds
from raincheck.roster import Roster, Waiting
from raincheck.runners.base import Attempt, Runner
from raincheck.runners.local import LocalRunner
from raincheck.stopping import Reason
from raincheck.stores.base import Store
from raincheck.stores.bounded import BoundedStore
from raincheck.stores.memory import MemoryStore
from raincheck.tasks import Gate, Tasks, open_tasks
from raincheck.twins import Twins

logger = logging.getLogger("raincheck")

# Seconds between sweeps, while there is anything that can expire.
SWEEP_INTERVAL = 10.0

# Seconds between tries to begin a job of a route of which so many run elsewhere as may.
_UNBLOCK_INTERVAL = 0.5

# Seconds that a job waits after each interrupted run but the first, doubled each time, at most.
_LONGEST_BACKOFF = 60.0

# Leases after which a job that an engine was told of, and has not begun, is brought again, at most.
_MOST_LEASES = 16

# What belongs to HTTP in a scope, and is captured as bytes; the rest is what outer middleware and
# the lifespan have put there, and a replay in this process is given it again.
_CAPTURED = frozenset(
    {"type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"}
    | {"root_path", "headers", "client", "server"}
)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the jobs of one middleware are at, in this process.

    Attributes:
        running: handlers that run.
        queued: requests that wait for their turn.
    """

    running: int
    queued: int


class Jobs:
    """The jobs of one `LongRunningMiddleware`.

    Make one yourself, and pass it as `jobs=`, to ask for jobs from code or to mount the status
    routes by hand: `Mount("/jobs", jobs.status_app)`.

    Args:
        store: where jobs are kept. Default: a `MemoryStore`.
        runner: where they run. Default: a `LocalRunner`.
        limits: what all routes together keep to.
        clock: seconds since the epoch; tests pass one that goes with their event loop.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        runner: Runner | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limits = Limits() if limits is None else limits
        self.clock = clock
        store = MemoryStore() if store is None else store
        timeout = seconds(self.limits.store_timeout)
        self.store: Store = BoundedStore(store, timeout) if store.shared else store
        self.mounted = False
        self.tasks: Tasks
        self.limiter: anyio.CapacityLimiter
        self._runner = LocalRunner() if runner is None else runner
        self._runner.bind(self._attempt, self._stop, self._spawn)
        self._in_place = self._runner.in_place
        self._app: ASGIApp | None = None
        self._status: ASGIApp | None = None
        self._policies = Policies(self._runner)
        self._owners = Owners(None)
        self._ids = Ids("")
        # Where no other process sees them nobody could take jobs over, and leases are spared.
        self._lease = seconds(self.limits.lease) if store.shared else None
        if not store.shared and not self._in_place:
            raise ConfigurationError(
                "runner=...: it runs jobs in other processes, which cannot see those of "
                f"{type(store).__name__}; give store=... one that they share"
            )
        self._name = secrets.token_urlsafe(9)
        self._ledger = Ledger(
            self.store,
            clock,
            seconds(self.limits.tombstone_ttl),
            holder=self._name,
            lease=self._lease,
        )
        self._outer: Scope = {}
        self._twins = Twins(self.store, self._ledger, clock)
        self._reset()

    def _reset(self) -> None:
        self._open = False
        self._closing = False
        self._roster = Roster(self.limits)
        self._settling: dict[Handoff, Gate] = {}
        self._sweeping = False
        self._unblocking = False
        self._leases: Leases | None = None
        if self._lease is not None:
            self._leases = Leases(
                self.store,
                self._lease,
                held=lambda: self._roster.attempts(waiting=self._in_place),
                lost=self._lost,
                cancelled=self._stop,
                abandoned=self._take_over,
            )

    # --- the middleware's side -----------------------------------------------------------------

    def bind(
        self,
        app: ASGIApp,
        *,
        door: ASGIApp,
        status: ASGIApp,
        policy: Policy,
        rules: Mapping[str, Policy],
        owners: Owners,
        deployment: str,
    ) -> None:
        """Take the app to run, the middleware itself, the status routes and the policies; once.

        Raises:
            ConfigurationError: another middleware has these jobs.
        """
        if self._app is not None:
            raise ConfigurationError(
                "jobs=...: these Jobs belong to another LongRunningMiddleware; make one for each"
            )
        self._app, self._status = app, status
        self._runner.attach(door)
        self._policies.bind(policy, rules)
        self._owners = owners
        self._ids = Ids(deployment)

    async def open(self, lifespan: Scope | None = None) -> None:
        """Make ready for the running event loop, if that has not been done.

        Args:
            lifespan: the scope of the lifespan that it happens in, if there is one.
        """
        if self.ready:
            return
        # Of an event loop that has ended, and what ran on it with it.
        orphaned = (*self._roster.running, *self._roster.waiting)
        self._reset()
        self.tasks = open_tasks()
        self.limiter = anyio.CapacityLimiter(self.limits.max_running)
        self._open = True
        if lifespan is None:
            logger.warning(
                "no lifespan reached raincheck: at shutdown nothing will wait for running jobs"
            )
        else:  # what an app finds in every request, and so in those that outlived their process
            self._outer = {key: lifespan[key] for key in ("app", "state") if key in lifespan}
        await self._runner.open()
        if self._leases is not None:
            self.tasks.spawn(self._leases.watch)
            self._keep_sweeping()
        for id in () if self._leases is not None else orphaned:
            job = await self.store.get(id)
            if job is not None and not (job.finished or job.gone):
                ttl = self._policies.ttl(job)
                await self._ledger.finish(job, State.FAILED, ttl=ttl, error=INTERRUPTED)

    @property
    def ready(self) -> bool:
        """Whether `open()` has nothing to do."""
        return self._open and self.tasks.here()

    async def close(self) -> None:
        """Drain: refuse new jobs, wait for `drain_timeout`, and interrupt what is left."""
        if not self._open:
            return
        self._closing = True
        with anyio.move_on_after(seconds(self.limits.drain_timeout)):
            await self._roster.until_idle()
        with anyio.move_on_after(seconds(self.limits.cancel_grace)):
            for waiting in list(self._roster.waiting.values()):
                if self._roster.waits(waiting):  # its turn has not come meanwhile
                    await self._interrupt_waiting(waiting)
        for handoff in list(self._roster.running.values()):
            handoff.stop(Reason.INTERRUPTED)
        with anyio.move_on_after(seconds(self.limits.cancel_grace)):
            await self._roster.until_idle()
        with anyio.move_on_after(seconds(self.limits.cancel_grace)):
            for handoff in list(self._roster.running.values()):
                await handoff.interrupt()
        with anyio.move_on_after(seconds(self.limits.cancel_grace)):
            await self.tasks.aclose()
        await self._runner.aclose()
        await self.store.aclose()
        self._open = False

    # --- for the handoff -----------------------------------------------------------------------

    def route_of(self, mark: Mark) -> tuple[str, Policy]:
        """See `Policies.of_mark`."""
        return self._policies.of_mark(mark)

    async def accept(self, handoff: Handoff, tries: int = 3) -> None:
        """Make a job of the request: take a place, and be visible before the 202 leaves (law 3).

        Raises:
            Refusal: nothing was stored (law 8).
        """
        assert handoff.route is not None
        if self._closing:
            raise ShuttingDown("It accepts nothing new.", retry_after=self._until_restart())
        policy = handoff.policy
        owner = None
        if not self._owners.nobody(handoff.scope):
            assert handoff.outer_scope is not None
            try:
                owner = await self._owners.at_acceptance(
                    handoff.scope, handoff.outer_scope, mounted=self.mounted
                )
            except OwnerError as error:
                raise OwnerUnknown("Nothing was accepted.") from error
        keys, mark = self._twins.keys(handoff, policy, owner)
        if keys:
            try:
                own = await self._twins.join(handoff, keys, mark)
            except Refusal:
                raise
            except Exception as error:
                raise _without_store(error) from error
            if own is None:
                return
            keys = own
        admission = self._roster.admission
        ticket = admission.admit(handoff.route, policy, owner) if self._in_place else None
        try:
            job = await self._create(handoff, ticket, owner, keys, mark)
        except BaseException:
            if ticket is not None:
                admission.leave(ticket)
            raise
        if job is None:  # its twin was faster
            if ticket is not None:
                admission.leave(ticket)
            if not tries:
                raise StoreUnavailable("It is of two minds.", retry_after=1)
            await self.accept(handoff, tries - 1)
            return
        if ticket is None:
            await self._submit(job)
        handoff.accepted = handoff.job = job
        handoff.ticket = ticket
        if ticket is None:
            pass
        elif job.state is State.RUNNING:
            self._roster.running[job.id] = handoff
        else:
            assert handoff.outer_scope is not None
            outer = {k: v for k, v in handoff.outer_scope.items() if k not in _CAPTURED}
            held = handoff if handoff.holds else None
            self._wait(Waiting(job, ticket, policy, {} if held else outer, held))
        if self._leases is not None:
            self._leases.keep(self.tasks)
        self._keep_sweeping()

    async def _create(
        self,
        handoff: Handoff,
        ticket: Ticket | None,
        owner: str | None,
        keys: tuple[str, ...],
        mark: str | None,
    ) -> Job | None:
        """A new job in the store; None if there is an earlier one under one of the keys.

        Raises:
            Refusal: it is not there, or is taken away again as soon as that can be done.
        """
        assert handoff.route is not None
        policy = handoff.policy
        runs = ticket is not None and ticket.running
        attempts = 1 if self._lease is None else policy.runs
        replayable = attempts > 1 if runs else not handoff.holds
        job = Job.accepted(
            self._ids.mint(),
            handoff.route,
            self.clock(),
            runs=runs,
            attempts=attempts,
            replayable=replayable,
            holder=None if ticket is None else self._name,
            queue=policy.queue,
            owner=owner,
            keys=keys,
            fingerprint=mark,
        )
        request = handoff.kept_request() if replayable else None
        within = self._bounds(policy, job.state)
        try:
            there = await self.store.create(job, request, lease=self._lease, bounds=within)
        except NoRoom as error:
            if ticket is None or not runs:
                raise self._roster.admission.full(job.route, policy, owner=error.owner) from error
            self._block(ticket, error)
            return await self._create(handoff, ticket, owner, keys, mark)  # it waits, then
        except BaseException as error:
            if not isinstance(error, StoreFull):  # it may be there all the same
                self.tasks.spawn(partial(self._undo, job))
            if isinstance(error, Exception):
                raise _without_store(error) from error
            raise
        return job if there is job or there.id == job.id else None

    def _bounds(self, policy: Policy, state: State) -> Bounds | None:
        """What the store is to count; a process that is alone with it counts for itself."""
        return None if self._lease is None else bounds(policy, state)

    def _block(self, ticket: Ticket, full: NoRoom) -> None:
        """So many run in other processes that one which has its turn here has to wait on."""
        self._roster.admission.block(ticket, owner=full.owner)
        if not self._unblocking:
            self._unblocking = True
            self.tasks.spawn(self._unblock)

    async def _unblock(self) -> None:
        """Let those who are blocked try again from time to time: nobody tells when they may."""
        while self._roster.admission.blocked:
            await anyio.sleep(_UNBLOCK_INTERVAL)
            self._roster.admission.unblock()
        self._unblocking = False

    async def _submit(self, job: Job) -> None:
        """Hand a new job to an engine that runs it elsewhere.

        Raises:
            RunnerUnavailable: it was not taken, and is withdrawn.
        """
        try:
            await self._bring(job)
        except BaseException as error:
            if not isinstance(error, Exception):
                self.tasks.spawn(partial(self._undo, job))
                raise
            if await self._withdrawn(job):
                logger.error("the runner took no job", exc_info=error)
                raise RunnerUnavailable("It does not answer.", retry_after=5) from error

    async def _withdrawn(self, job: Job) -> bool:
        """Take back a new job; False if somebody has begun it, and only the answer was lost."""
        try:
            withdrawn = await self._ledger.take_back(job)
        except Exception:  # it may come to that later
            self.tasks.spawn(partial(self._undo, job))
            return True
        self._keep_sweeping()
        return withdrawn

    async def _bring(self, job: Job) -> None:
        """Tell the engine of a job, in time. Raises whatever it raises."""
        with anyio.fail_after(seconds(self.limits.store_timeout)):
            await self._runner.submit(job.id, job.queue)

    def _wait(self, waiting: Waiting) -> None:
        """Let a job wait here for its turn, which may have come already."""
        id, ticket, held = waiting.job.id, waiting.ticket, waiting.held
        self._roster.waiting[id] = waiting
        ticket.turn = held.turn if held else partial(self._turn, id)
        if ticket.running:
            ticket.turn()

    def _turn(self, id: str) -> None:
        self.tasks.spawn(partial(self._runner.submit, id))

    async def begin(self, handoff: Handoff) -> bool:
        """Record that a job which waited runs now; False if it was cancelled meanwhile.

        Raises:
            NoRoom: it waits on, since so many run in other processes.
        """
        job, ticket = handoff.job, handoff.ticket
        assert job is not None
        assert ticket is not None
        roster = self._roster
        waiting = roster.waiting.pop(job.id, None)
        roster.running[job.id] = handoff
        within = self._bounds(handoff.policy, State.RUNNING)
        try:
            handoff.job = await self._ledger.start(job, within)
        except NoRoom as error:
            if waiting is None:  # it was cancelled as its turn came
                return False
            del roster.running[job.id]
            roster.waiting[job.id] = waiting
            self._block(ticket, error)
            raise
        except IllegalTransition:
            return False
        if self._leases is not None:
            self._leases.keep(self.tasks)
        return handoff.job.state is State.RUNNING

    async def finish(
        self,
        handoff: Handoff,
        state: State,
        response: CapturedResponse | None,
        error: Problem | None,
        tail: bytes,
    ) -> None:
        """Record an outcome."""
        job = handoff.job
        assert job is not None
        if response is not None and handoff.ticket is not None and job.started_at is not None:
            self._roster.admission.learn(handoff.ticket, self.clock() - job.started_at)
            if handoff.policy.coalesce is True:
                self._twins.learn(job.route, response.headers)
        write = self._ledger.finish(
            job,
            state,
            ttl=seconds(handoff.policy.ttl),
            tail=tail,
            response=response,
            error=error,
            progress=handoff.progress,
        )
        if self._leases is None:  # a store in memory answers at once
            handoff.job = await write
        else:
            await self._settle(handoff, write)

    async def interrupted(self, handoff: Handoff) -> None:
        """Record that the server stopped: the job runs again elsewhere if it may, or has failed."""
        job = handoff.job
        assert job is not None

        async def write() -> Job:
            if job.replayable:
                with suppress(IllegalTransition):
                    return await self._give_back(job)
            ttl = seconds(handoff.policy.ttl)
            return await self._ledger.finish(job, State.FAILED, ttl=ttl, error=INTERRUPTED)

        await self._settle(handoff, write())

    async def _give_back(self, job: Job) -> Job:
        """Let somebody else run a job again at once."""
        job = await self._ledger.requeue(job, 0.0)
        if not self._in_place:
            await self._submit_again(job)
        return job

    async def _submit_again(self, job: Job) -> None:
        try:
            await self._bring(job)
        except Exception:
            logger.exception("job %s waits until somebody finds it abandoned", job.id)

    async def _settle(self, handoff: Handoff, write: Awaitable[Job]) -> None:
        """Write an outcome in a task of its own: one that is cancelled would leave it unknown."""
        gate = self._settling[handoff] = self.tasks.gate()

        async def settle() -> None:
            try:
                handoff.job = await write
            except LeaseLost:
                logger.warning("job %s was taken over; its outcome here is dropped", _id(handoff))
            finally:
                del self._settling[handoff]
                gate.open()

        self.tasks.spawn(settle)
        await gate.wait()

    async def settled(self, handoff: Handoff) -> None:
        """Return when nothing of the outcome is on its way into the store any more."""
        if self._settling and (gate := self._settling.get(handoff)) is not None:
            await gate.wait()

    async def keep(self, handoff: Handoff, offset: int, chunk: bytes) -> None:
        """Keep a piece of the response body.

        Raises:
            LeaseLost: nobody wants it any more.
        """
        assert handoff.job is not None
        await self._ledger.append(handoff.job, offset, chunk)

    async def progressed(self, handoff: Handoff) -> None:
        """Record the newest report. A store that fails here is told again with the next one."""
        progress = handoff.progress
        assert handoff.job is not None
        assert progress is not None
        try:
            handoff.job = await self._ledger.progress(handoff.job, progress)
        except LeaseLost:
            handoff.lose()
        except Exception:
            logger.exception("the progress of job %s could not be stored", handoff.job.id)

    def ended(self, handoff: Handoff) -> None:
        """Give the capacity back."""
        self._roster.ended(handoff)

    # --- for the runner ------------------------------------------------------------------------

    def _spawn(self, attempt: Attempt, id: str) -> None:
        self.tasks.spawn(partial(attempt, id))

    async def _attempt(self, id: str) -> None:
        """Run a job to its end: one that waits here, or one that an engine has brought."""
        waiting = self._roster.waiting.get(id) or await self._claim(id)
        while waiting is not None:  # else it was cancelled, deleted or is somebody else's by now
            try:
                await self._replay(waiting)
            except NoRoom:
                if not self._in_place:
                    waiting = await self._turn_of(waiting)
                    continue
            return

    async def _replay(self, waiting: Waiting) -> None:
        """Run a job that waits here to its end.

        Raises:
            NoRoom: it waits on, since so many run in other processes.
        """
        id = waiting.job.id
        request = await self._ledger.patiently(partial(self.store.request, id))
        if not self._roster.waits(waiting):
            return  # cancelled or deleted while the store was asked; its place was given back
        if request is None:  # another process has cancelled it or taken it over
            await self._withdraw(waiting, State.FAILED, INTERRUPTED)
            return
        assert self._app is not None
        handoff = Handoff(
            self,
            self._app,
            {**request.scope(), **waiting.outer},
            route=waiting.job.route,
            policy=waiting.policy,
        )
        handoff.job, handoff.ticket = waiting.job, waiting.ticket
        if await self.begin(handoff):
            handoff.replay(request)
            await handoff.run()
        else:
            self.ended(handoff)

    async def _claim(self, id: str) -> Waiting | None:
        """Take a place for a job that an engine has brought, and wait for its turn.

        Returns:
            None if there is nothing to do: it runs, has ended, or waits here already.
        """
        if self._in_place or id in self._roster.running:
            return None
        job = await self._ledger.patiently(partial(self.store.get, id))
        if job is None or job.gone or job.state is not State.QUEUED or id in self._roster:
            return None
        if self._closing:
            await self._submit_again(job)
            return None
        try:
            waiting = self._place(job)
        except Refusal:
            return None  # it will be brought again
        self._roster.waiting[id] = waiting
        return await self._turn_of(waiting)

    async def _turn_of(self, waiting: Waiting) -> Waiting | None:
        """Wait for the turn of a job that an engine has brought; None if it waits no more."""
        turn = self.tasks.gate()
        waiting.ticket.turn = turn.open
        if not waiting.ticket.running:
            await turn.wait()
        return waiting if self._roster.waits(waiting) else None

    def _place(self, job: Job) -> Waiting:
        """A place for a job that was accepted elsewhere, or before a restart.

        Raises:
            Refusal: there is no room to wait.
        """
        policy = self._policies.of(job)
        ticket = self._roster.admission.admit(job.route, policy, job.owner, accepted=True)
        outer = dict(self._outer)
        if "state" in outer:
            outer["state"] = dict(outer["state"])  # as servers do for every request
        return Waiting(job, ticket, policy, outer, None)

    def _stop(self, id: str) -> None:
        if handoff := self._roster.running.get(id):
            handoff.stop(Reason.CANCELLED)

    # --- leases --------------------------------------------------------------------------------

    async def _lost(self, id: str) -> None:
        """A job seems not to be this process's any more: see whether that is so."""
        roster = self._roster
        handoff, waiting = roster.running.get(id), roster.waiting.get(id)
        job = await self.store.get(id)
        if job is not None and job.holder == self._name and not (job.finished or job.gone):
            return  # it has begun in the meantime
        if handoff is not None and roster.running.get(id) is handoff:
            handoff.lose()
        elif waiting is not None and roster.waits(waiting):
            self._drop(waiting)

    def _drop(self, waiting: Waiting) -> None:
        """A job does not wait here any more."""
        self._roster.drop(waiting)
        if not self._in_place and waiting.ticket.turn is not None:
            waiting.ticket.turn()  # the engine's task need not wait for it any more

    async def _take_over(self, job: Job) -> None:
        """Bring a job whose process has died or hangs to its end."""
        if self._closing or job.id in self._roster:
            return  # if it is this process that hung, it renews its lease now
        try:
            if job.state is State.CANCELLING:
                await self._ledger.finish(job, State.CANCELLED, ttl=self._policies.ttl(job))
            elif not job.replayable:
                ttl = self._policies.ttl(job)
                await self._ledger.finish(job, State.FAILED, ttl=ttl, error=INTERRUPTED)
            elif job.state is State.RUNNING:
                backoff = 2.0 ** (job.runs - 2) if job.runs > 1 else 0.0
                job = await self._ledger.requeue(job, min(backoff, _LONGEST_BACKOFF))
                if not backoff:
                    await self._run_again(job)
            else:
                await self._run_again(job)
        except (IllegalTransition, QueueFull):
            pass  # it has moved on, or somebody else was faster, or has room
        except Exception:
            logger.exception("job %s was abandoned, and could not be taken over", job.id)

    async def _run_again(self, job: Job) -> None:
        """Let a job that waits for nobody wait here, or tell the engine of it once more.

        Raises:
            QueueFull: there is no room to wait here.
            IllegalTransition: somebody else was faster.
        """
        if not self._in_place:
            job = await self._ledger.hold(job)
            await self._bring(job)
            # Most likely the queue is just long, and must not grow each time by all that waits.
            # Of the changes of hands each run has three: it begins, is taken back and is brought.
            assert self._lease is not None
            calls = max(0, job.attempt - 3 * job.runs - 1)
            lease = self._lease * min(2**calls, _MOST_LEASES)
            await self.store.renew({job.id: job.attempt}, lease)
            return
        waiting = self._place(job)
        try:
            waiting.job = await self._ledger.hold(job)
        except BaseException:
            self._roster.admission.leave(waiting.ticket)
            raise
        self._wait(waiting)
        assert self._leases is not None
        self._leases.keep(self.tasks)

    # --- for those who ask ---------------------------------------------------------------------

    @property
    def status_app(self) -> ASGIApp:
        """The status routes as an ASGI app, to be mounted where the middleware's `path` says.

        Asking for it hands the routes over to you: the middleware stops serving them itself, so
        that whatever you put around the mount, such as authentication, applies to each of them.
        """
        self.mounted = True
        return self._serve_status

    async def _serve_status(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._status is None:
            raise ConfigurationError(
                "jobs.status_app is mounted, but no LongRunningMiddleware has these jobs; "
                "pass them to it: LongRunningMiddleware(app, jobs=jobs)"
            )
        await self._status(scope, receive, send)

    async def get(self, id: str) -> Job | None:
        """A job, or the tombstone of one; None if there is neither."""
        job = await self.store.get(id)
        if job is not None and not job.gone and job.expired(now := self.clock()):
            return job.tombstone(now)
        return job

    async def changed(self, id: str, after_version: int, wait: float) -> Job | None:
        """The same, as soon as it is newer than `after_version`, or after `wait` seconds."""
        with anyio.move_on_after(wait):
            await self.store.changed(id, after_version)
        return await self.get(id)

    async def finished(self, job: Job, wait: float) -> Job | None:
        """A job as it finished, if it does within `wait` seconds; else None."""
        newest: Job | None = job
        with anyio.move_on_after(wait):
            while newest is not None and not newest.finished:
                newest = await self.store.changed(newest.id, newest.version)
            return newest
        return None

    async def cancel(self, id: str) -> Job | None:
        """Ask a job to stop; a queued one stops before it starts.

        Returns:
            The job afterwards: `cancelled`, `cancelling`, or as it ended before; None if there is
            no such job.
        """
        job = await self.get(id)
        if job is None or job.gone or job.finished:
            return job
        waiting = self._roster.waiting.get(id)
        if job.state is State.QUEUED and waiting is not None:
            return await self._withdraw(waiting, State.CANCELLED, None)
        if job.state is State.QUEUED and self._leases is not None:  # it waits elsewhere
            if not await self._ledger.withdraw(job, self._policies.ttl(job)):
                return await self.cancel(id)
            return await self.get(id)
        handoff = self._roster.running.get(id)
        known = job if handoff is None or handoff.job is None else handoff.job
        with suppress(IllegalTransition):  # it ended or was cancelled between these two lines
            changed = await self._ledger.cancelling(known)
            if handoff is not None:
                handoff.job = changed
        await self._runner.cancel(id)
        return await self.get(id)

    async def leave(self, id: str) -> Job | None:
        """One client of a job wants no more of it: the last one cancels it.

        Returns:
            As `cancel()` does; a job that others still wait for goes on as it is.
        """
        job = await self.get(id)
        if job is not None and not job.gone and job.clients > 1:
            with suppress(IllegalTransition):  # it is about to end by itself
                job = await self._ledger.shared(job, -1)
                if handoff := self._roster.running.get(id):
                    handoff.job = job
                return job
        return await self.cancel(id)

    async def delete(self, id: str) -> Job | None:
        """Forget a job, cancelling it first if it has not finished.

        Returns:
            The job just before it was forgotten; None if there was none.
        """
        job = await self.cancel(id)
        if job is not None and not job.gone:
            await self._ledger.bury(job, remember=True)
        return job

    async def forget(self, job: Job) -> None:
        """Drop a job whose client has its response and was never told of a job."""
        await self._ledger.bury(job, remember=False)

    def outlook(self, job: Job) -> Outlook:
        """What to expect of an unfinished job."""
        roster = self._roster
        waiting, handoff = roster.waiting.get(job.id), roster.running.get(job.id)
        ticket = waiting.ticket if waiting else handoff.ticket if handoff else None
        return roster.admission.outlook(job, ticket, self._policies.of(job), self.clock())

    def origin(self, id: str) -> Origin:
        """Who minted an id, to go by its marker."""
        return self._ids.origin(id)

    def statistics(self) -> Statistics:
        """How much runs and waits now."""
        occupancy = self._roster.admission.occupancy
        return Statistics(running=occupancy.running, queued=occupancy.waiting)

    async def _withdraw(self, waiting: Waiting, state: State, error: Problem | None) -> Job:
        """End a job that has not begun."""
        if waiting.held is not None:
            interrupted = state is State.FAILED
            waiting.held.stop(Reason.INTERRUPTED if interrupted else Reason.CANCELLED)
        self._drop(waiting)
        ttl = seconds(waiting.policy.ttl)
        try:
            return await self._ledger.finish(waiting.job, state, ttl=ttl, error=error)
        except LeaseLost:
            return waiting.job

    async def _interrupt_waiting(self, waiting: Waiting) -> None:
        """The server stops: leave a job that has not begun to others, or end it."""
        if self._leases is None or waiting.held is not None:
            await self._withdraw(waiting, State.FAILED, INTERRUPTED)
            return
        self._drop(waiting)
        if self._in_place:
            with suppress(IllegalTransition):
                await self._ledger.let_go(waiting.job)
        else:
            await self._submit_again(waiting.job)

    async def _undo(self, job: Job) -> None:
        """Take back a job that the store may have taken before it failed; as well as it can."""
        try:
            await self._ledger.bury(job, remember=False)
        except Exception:
            logger.exception("job %s was refused, and may be left in the store", job.id)
        self._keep_sweeping()

    def _until_restart(self) -> int:
        return max(1, round(seconds(self.limits.drain_timeout)))

    def _keep_sweeping(self) -> None:
        if not self._sweeping:
            self._sweeping = True
            self.tasks.spawn(self._sweep)

    async def _sweep(self) -> None:
        """Sweep while anything can expire; the next acceptance starts it anew."""
        left = True
        while left:
            await anyio.sleep(SWEEP_INTERVAL)
            try:
                left = await self.store.sweep(self.clock())
            except Exception:
                logger.exception("the store could not be swept; trying again")
        self._sweeping = False


def _id(handoff: Handoff) -> str:
    return "" if handoff.job is None else handoff.job.id


def _without_store(error: Exception) -> StoreUnavailable:
    """The refusal of what the store could not take, whatever the reason; clients learn no more."""
    if isinstance(error, StoreFull):
        return StoreUnavailable("It is full.", retry_after=5)
    logger.error("the store could not take a job", exc_info=error)
    return StoreUnavailable("It does not answer.", retry_after=5)
