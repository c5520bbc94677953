"""The conductor: accepts, finds, cancels and drains the jobs of one middleware."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck.admission import Admission, Ticket
from raincheck.dialects.base import Outlook
from raincheck.errors import (
    INTERRUPTED,
    ConfigurationError,
    IllegalTransition,
    OwnerUnknown,
    Problem,
    Refusal,
    ShuttingDown,
    StoreFull,
    StoreUnavailable,
)
from raincheck.handoff import Handoff
from raincheck.ids import Ids, Origin
from raincheck.job import Job, State
from raincheck.ledger import Ledger
from raincheck.marking import Mark
from raincheck.messages import CapturedResponse
from raincheck.owners import OwnerError, Owners
from raincheck.policy import Limits, Policy, seconds
from raincheck.runners.base import Attempt, Runner
from raincheck.runners.local import LocalRunner
from raincheck.stopping import Reason
from raincheck.stores.base import Store
from raincheck.stores.memory import MemoryStore
from raincheck.tasks import Tasks, open_tasks
from raincheck.twins import Twins

logger = logging.getLogger("raincheck")

# Seconds between sweeps, while there is anything that can expire.
SWEEP_INTERVAL = 10.0

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


@dataclass(slots=True)
class _Waiting:
    """A job that waits for its turn: its place, and what a replay needs besides the store."""

    job: Job
    ticket: Ticket
    policy: Policy
    outer: Scope
    held: Handoff | None


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
        self.store: Store = MemoryStore() if store is None else store
        self.limits = Limits() if limits is None else limits
        self.clock = clock
        self.mounted = False
        self.tasks: Tasks
        self.limiter: anyio.CapacityLimiter
        self._runner = LocalRunner() if runner is None else runner
        self._runner.bind(self._attempt, self._stop, self._spawn)
        self._app: ASGIApp | None = None
        self._status: ASGIApp | None = None
        self._policy = Policy()
        self._policies: dict[str, Policy] = {}
        self._marks: dict[Mark, tuple[str, Policy]] = {}
        self._owners = Owners(None)
        self._ids = Ids("")
        self._ledger = Ledger(self.store, clock, seconds(self.limits.tombstone_ttl))
        self._twins = Twins(self.store, self._ledger, clock)
        self._reset()

    def _reset(self) -> None:
        self._open = False
        self._closing = False
        self._admission = Admission(self.limits)
        self._running: dict[str, Handoff] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._idle: anyio.Event | None = None
        self._sweeping = False

    # --- the middleware's side -----------------------------------------------------------------

    def bind(
        self,
        app: ASGIApp,
        *,
        status: ASGIApp,
        policy: Policy,
        owners: Owners,
        deployment: str,
    ) -> None:
        """Take the app to run, the status routes, the default policy and the owners; once.

        Raises:
            ConfigurationError: another middleware has these jobs.
        """
        if self._app is not None:
            raise ConfigurationError(
                "jobs=...: these Jobs belong to another LongRunningMiddleware; make one for each"
            )
        self._app, self._status, self._policy = app, status, policy
        self._owners = owners
        self._ids = Ids(deployment)

    async def open(self, *, under_lifespan: bool = False) -> None:
        """Make ready for the running event loop, if that has not been done."""
        if self.ready:
            return
        orphaned = self._open  # by an event loop that has ended, and what ran on it with it
        self._reset()
        self.tasks = open_tasks()
        self.limiter = anyio.CapacityLimiter(self.limits.max_running)
        self._open = True
        if not under_lifespan:
            logger.warning(
                "no lifespan reached raincheck: at shutdown nothing will wait for running jobs"
            )
        if orphaned and not self.store.shared:
            async for job in self.store.unfinished():
                await self._ledger.finish(
                    job, State.FAILED, ttl=seconds(self._policy.ttl), error=INTERRUPTED
                )

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
            await self._until_idle()
        with anyio.move_on_after(seconds(self.limits.cancel_grace)):
            for waiting in list(self._waiting.values()):
                await self._withdraw(waiting, State.FAILED, INTERRUPTED)
        for handoff in list(self._running.values()):
            handoff.stop(Reason.INTERRUPTED)
        with anyio.move_on_after(seconds(self.limits.cancel_grace)):
            await self._until_idle()
        with anyio.move_on_after(seconds(self.limits.cancel_grace)):
            for handoff in list(self._running.values()):
                await handoff.interrupt()
        with anyio.move_on_after(seconds(self.limits.cancel_grace)):
            await self.tasks.aclose()
        await self.store.aclose()
        self._open = False

    async def _until_idle(self) -> None:
        while self._running or self._waiting:
            self._idle = anyio.Event()
            await self._idle.wait()

    # --- for the handoff -----------------------------------------------------------------------

    def route_of(self, mark: Mark) -> tuple[str, Policy]:
        """The name of a decorated endpoint's route, and the policy that it comes to.

        Endpoints that a factory makes share one qualified name, but no capacity.
        """
        found = self._marks.get(mark)
        if found is None:
            namesakes = sum(other.name == mark.name for other in self._marks)
            name = f"{mark.name}#{namesakes + 1}" if namesakes else mark.name
            found = self._marks[mark] = name, self._policy.with_settings(mark.settings)
        return found

    async def accept(self, handoff: Handoff, tries: int = 3) -> None:
        """Make a job of the request: take a place, and be visible before the 202 leaves (law 3).

        Raises:
            Refusal: nothing was stored (law 8).
        """
        assert handoff.route is not None
        if self._closing:
            raise ShuttingDown("It accepts nothing new.", retry_after=self._until_restart())
        policy = self._policies.setdefault(handoff.route, handoff.policy)
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
        ticket = self._admission.admit(handoff.route, policy, owner)
        now = self.clock()
        runs = ticket.running
        job = Job(
            id=self._ids.mint(),
            route=handoff.route,
            state=State.RUNNING if runs else State.QUEUED,
            created_at=now,
            started_at=now if runs else None,
            request=None if runs or handoff.holds else handoff.capture(),
            owner=owner,
            keys=keys,
            fingerprint=mark,
        )
        try:
            there = await self.store.create(job)
        except BaseException as error:
            self._admission.leave(ticket)
            if not isinstance(error, StoreFull):  # it may be there all the same
                self.tasks.spawn(partial(self._undo, job))
            if isinstance(error, Exception):
                raise _without_store(error) from error
            raise
        if there is not job and there.id != job.id:  # its twin was faster
            self._admission.leave(ticket)
            if not tries:
                raise StoreUnavailable("It is of two minds.", retry_after=1)
            await self.accept(handoff, tries - 1)
            return
        handoff.accepted = handoff.job = job
        handoff.ticket = ticket
        if runs:
            self._running[job.id] = handoff
        else:
            self._wait(job, handoff, ticket)
            if ticket.running and ticket.turn is not None:
                ticket.turn()  # it came while the store was asked
        self._keep_sweeping()

    def _wait(self, job: Job, handoff: Handoff, ticket: Ticket) -> None:
        policy = handoff.policy
        assert handoff.outer_scope is not None
        outer = {k: v for k, v in handoff.outer_scope.items() if k not in _CAPTURED}
        held = handoff if handoff.holds else None
        self._waiting[job.id] = _Waiting(job, ticket, policy, {} if held else outer, held)
        ticket.turn = held.turn if held else partial(self._turn, job.id)

    def _turn(self, id: str) -> None:
        self.tasks.spawn(partial(self._runner.submit, id))

    async def begin(self, handoff: Handoff) -> bool:
        """Record that a job which waited runs now; False if it was cancelled meanwhile."""
        job = handoff.job
        assert job is not None
        self._waiting.pop(job.id, None)
        self._running[job.id] = handoff
        try:
            handoff.job = await self._ledger.start(job)
        except IllegalTransition:
            return False
        return handoff.job.state is State.RUNNING

    async def finish(
        self,
        handoff: Handoff,
        state: State,
        response: CapturedResponse | None,
        error: Problem | None,
    ) -> None:
        """Record an outcome."""
        job = handoff.job
        assert job is not None
        if response is not None and handoff.ticket is not None and job.started_at is not None:
            self._admission.learn(handoff.ticket, self.clock() - job.started_at)
            if handoff.policy.coalesce is True:
                self._twins.learn(job.route, response.headers)
        handoff.job = await self._ledger.finish(
            job,
            state,
            ttl=seconds(handoff.policy.ttl),
            response=response,
            error=error,
            progress=handoff.progress,
        )

    async def progressed(self, handoff: Handoff) -> None:
        """Record the newest report. A store that fails here is told again with the next one."""
        progress = handoff.progress
        assert handoff.job is not None
        assert progress is not None
        try:
            handoff.job = await self._ledger.progress(handoff.job, progress)
        except Exception:
            logger.exception("the progress of job %s could not be stored", handoff.job.id)

    def ended(self, handoff: Handoff) -> None:
        """Give the capacity back."""
        assert handoff.job is not None
        assert handoff.ticket is not None
        self._running.pop(handoff.job.id, None)
        self._waiting.pop(handoff.job.id, None)
        self._admission.leave(handoff.ticket)
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self._idle is not None and not self._running and not self._waiting:
            self._idle.set()

    # --- for the runner ------------------------------------------------------------------------

    def _spawn(self, attempt: Attempt, id: str) -> None:
        self.tasks.spawn(partial(attempt, id))

    async def _attempt(self, id: str) -> None:
        waiting = self._waiting.get(id)
        if waiting is None:
            return  # cancelled or deleted in the meantime; its place has been given back
        job = await self._ledger.patiently(partial(self.store.get, id))
        assert self._app is not None
        if job is None or job.request is None:  # cancelled or deleted while the store was asked
            return
        handoff = Handoff(
            self,
            self._app,
            {**job.request.scope(), **waiting.outer},
            route=job.route,
            policy=waiting.policy,
        )
        handoff.job, handoff.ticket = job, waiting.ticket
        if await self.begin(handoff):
            handoff.replay(job.request)
            await handoff.run()
        else:
            self.ended(handoff)

    def _stop(self, id: str) -> None:
        if handoff := self._running.get(id):
            handoff.stop(Reason.CANCELLED)

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
        waiting = self._waiting.get(id)
        if job.state is State.QUEUED and waiting is not None:
            return await self._withdraw(waiting, State.CANCELLED, None)
        handoff = self._running.get(id)
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
                if handoff := self._running.get(id):
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
        waiting, handoff = self._waiting.get(job.id), self._running.get(job.id)
        ticket = waiting.ticket if waiting else handoff.ticket if handoff else None
        policy = self._policies.get(job.route, self._policy)
        return self._admission.outlook(job, ticket, policy, self.clock())

    def origin(self, id: str) -> Origin:
        """Who minted an id, to go by its marker."""
        return self._ids.origin(id)

    def statistics(self) -> Statistics:
        """How much runs and waits now."""
        occupancy = self._admission.occupancy
        return Statistics(running=occupancy.running, queued=occupancy.waiting)

    async def _withdraw(self, waiting: _Waiting, state: State, error: Problem | None) -> Job:
        """End a job that has not begun."""
        del self._waiting[waiting.job.id]  # from here on nobody else begins it
        if waiting.held is not None:
            interrupted = state is State.FAILED
            waiting.held.stop(Reason.INTERRUPTED if interrupted else Reason.CANCELLED)
        else:
            self._admission.leave(waiting.ticket)
        ttl = seconds(waiting.policy.ttl)
        job = await self._ledger.finish(waiting.job, state, ttl=ttl, error=error)
        self._tell_idle()
        return job

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


def _without_store(error: Exception) -> StoreUnavailable:
    """The refusal of what the store could not take, whatever the reason; clients learn no more."""
    if isinstance(error, StoreFull):
        return StoreUnavailable("It is full.", retry_after=5)
    logger.error("the store could not take a job", exc_info=error)
    return StoreUnavailable("It does not answer.", retry_after=5)
