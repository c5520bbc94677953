"""Jobs: those of one middleware, as whoever opens, asks for, cancels and drains them sees them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from functools import partial

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck.acceptance.decision import Acceptance
from raincheck.dialects.base import Outlook
from raincheck.errors import INTERRUPTED, ConfigurationError, IllegalTransition
from raincheck.ids import Ids, Origin
from raincheck.job import Job, State
from raincheck.owners import Owners
from raincheck.policy import Limits, Policy, require_kind, seconds
from raincheck.runners.base import Run, Runner
from raincheck.runners.local import LocalRunner
from raincheck.runtime.conductor import Conductor
from raincheck.runtime.replay import Replays
from raincheck.runtime.stopping import Reason
from raincheck.shutdown import Waits
from raincheck.stores.base import Store
from raincheck.stores.memory import MemoryStore
from raincheck.tasks import Tasks

logger = logging.getLogger("raincheck")


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

    Attributes:
        acceptance: makes jobs of requests.
        store: where they are.
        availability: whether the store answers.
        clock: the clock.

    Raises:
        ConfigurationError: an argument of another kind, or a runner whose workers could not see the
            jobs of this store.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        runner: Runner | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        require_kind("store", store, Store, 'SQLiteStore("jobs.db")')
        require_kind("runner", runner, Runner, "TaskiqRunner(broker)")
        require_kind("limits", limits, Limits, "Limits(max_running=20)")
        if not callable(clock):
            raise ConfigurationError(f"clock={clock!r}: it is no function, like time.time")
        self._conductor = Conductor(
            MemoryStore() if store is None else store,
            LocalRunner() if runner is None else runner,
            Limits() if limits is None else limits,
            clock,
        )
        self.store = self._conductor.store
        self.availability = self._conductor.availability
        self.clock = clock
        self.acceptance = Acceptance(self._conductor)
        self._replays = Replays(self.acceptance)
        self._conductor.runner.bind(self._replays.run, self._conductor.stop, self._spawn)
        if store is not None and store.deployment is not None:
            self._conductor.runner.belong(store.deployment)
        self._status: ASGIApp | None = None
        self._waits: Waits  # since `open()`
        self._open = False

    # --- the middleware's side -----------------------------------------------------------------

    def bind(
        self,
        app: ASGIApp,
        *,
        door: ASGIApp,
        status: ASGIApp,
        policy: Policy,
        rules: Mapping[str, Policy],
        complete: Callable[[], bool],
        owners: Owners,
        mount: str,
    ) -> None:
        """Take the app to run, the middleware itself, the status routes and the policies; once.

        Raises:
            ConfigurationError: another middleware has these jobs.
        """
        if self._status is not None:
            raise ConfigurationError(
                "jobs=...: these Jobs belong to another LongRunningMiddleware; make one for each"
            )
        self._status = status
        self._replays.bind(app)
        self._conductor.runner.attach(door)
        self._conductor.policies.bind(policy, rules, complete=complete)
        self.acceptance.bind(owners, Ids(mount))

    async def open(self, lifespan: Scope | None = None) -> None:
        """Make ready for the running event loop, if that has not been done.

        Args:
            lifespan: the scope of the lifespan that it happens in, if there is one.

        Raises:
            ConfigurationError: the store can never work as it is set up.
        """
        if self.ready:
            return
        await self._open_store()
        if self.ready:  # somebody else was faster
            return
        conductor = self._conductor
        # Of an event loop that has ended, and what ran on it with it.
        orphaned = (*conductor.roster.running, *conductor.roster.waiting)
        conductor.open()
        self._waits = Waits(conductor.tasks)
        self._open = True
        if lifespan is None:
            logger.warning(
                "no lifespan reached raincheck: at shutdown nothing will wait for running jobs"
            )
        else:  # what an app finds in every request, and so in those that outlived their process
            found = {key: lifespan[key] for key in ("app", "state") if key in lifespan}
            self._replays.live_in(found)
        await conductor.runner.open()
        if conductor.lease is not None:
            conductor.hold(self._replays.lost, self._replays.take_over)
            return
        for id in orphaned:
            job = await self.store.get(id)
            if job is not None and not (job.finished or job.gone):
                ttl = conductor.policies.ttl(job)
                await conductor.ledger.finish(job, State.FAILED, ttl=ttl, error=INTERRUPTED)

    async def _open_store(self) -> None:
        """See whether the store can ever work; one that is merely away may come back."""
        self._conductor.know_nothing()
        try:
            await self._conductor.store.open()
        except ConfigurationError:
            await self._conductor.store.aclose()
            raise
        except Exception as error:
            self.availability.failed(error)

    @property
    def ready(self) -> bool:
        """Whether `open()` has nothing to do."""
        return self._open and self._conductor.tasks.here()

    @property
    def tasks(self) -> Tasks:
        """The tasks that apps run in, since `open()`."""
        return self._conductor.tasks

    async def close(self) -> None:
        """Drain: refuse new jobs, wait for `drain_timeout`, and interrupt what is left."""
        if not self._open:
            return
        conductor = self._conductor
        roster, grace = conductor.roster, conductor.cancel_grace
        conductor.close()
        self._waits.end()
        drain = seconds(conductor.limits.drain_timeout)
        if roster.running or roster.waiting or roster.leaving:
            logger.warning(
                "the server stops when its jobs have ended, in %g seconds at most: %d run, %d wait",
                *(drain, len(roster.running), len(roster.waiting)),
            )
        with anyio.move_on_after(drain):
            await roster.until_idle()
        with anyio.move_on_after(grace):
            for waiting in list(roster.waiting.values()):
                if roster.waits(waiting):  # its turn has not come meanwhile
                    await conductor.interrupt_waiting(waiting)
        for running in list(roster.running.values()):
            running.stop(Reason.INTERRUPTED)
        with anyio.move_on_after(grace):
            await roster.until_idle()
        with anyio.move_on_after(grace):
            for running in list(roster.running.values()):
                await running.interrupt()
        with anyio.move_on_after(grace):
            await conductor.tasks.aclose()
        await conductor.runner.aclose()
        await self.store.aclose()
        self._open = False

    def _spawn(self, run: Run, id: str) -> None:
        waiting = self._conductor.roster.waiting.get(id)
        context = Context() if waiting is None else waiting.context.copy()
        self._conductor.tasks.spawn(partial(run, id), context)

    # --- for those who ask ---------------------------------------------------------------------

    @property
    def mounted(self) -> bool:
        """Whether the status routes are mounted by hand."""
        return self.acceptance.mounted

    @property
    def status_app(self) -> ASGIApp:
        """The status routes as an ASGI app, to be mounted where the middleware's `path` says.

        Asking for it hands the routes over to you: the middleware stops serving them itself, so
        that whatever you put around the mount, such as authentication, applies to each of them.
        """
        self.acceptance.mount()
        return self._serve_status

    def is_status_app(self, app: object) -> bool:
        """Whether an app is `status_app`."""
        return app == self._serve_status

    async def _serve_status(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._status is None:
            raise ConfigurationError(
                "jobs.status_app is mounted, but no LongRunningMiddleware has these jobs; "
                "pass them to it: LongRunningMiddleware(app, jobs=jobs)"
            )
        await self._status(scope, receive, send)

    async def get(self, id: str) -> Job | None:
        """A job, or the tombstone of one; None if there is neither."""
        return self._aged(await self.store.get(id))

    def _aged(self, job: Job | None) -> Job | None:
        if job is not None and not job.gone and job.expired(now := self.clock()):
            return job.tombstone(now)
        return job

    async def until(self, job: Job, done: Callable[[Job], bool], wait: float) -> Job | None:
        """The newest version of a job, as soon as it is `done` or gone.

        Not later than after `wait` seconds, or when the server is known to stop.
        """
        newest: Job | None = job
        with self._waits.at_most(wait):
            while newest is not None and not (newest.gone or done(newest)):
                newest = await self.store.changed(newest.id, newest.version)
            return self._aged(newest)
        return await self.get(job.id)

    async def finished(self, job: Job, wait: float) -> Job | None:
        """A job as it finished, if it does within `wait` seconds; else None.

        None as well when the server is known to stop.
        """
        newest: Job | None = job
        with self._waits.at_most(wait):
            while newest is not None and not (newest.finished or newest.gone):
                newest = await self.store.changed(newest.id, newest.version)
            return newest
        return None

    async def cancel(self, id: str) -> Job | None:
        """Ask a job to stop; a queued one stops before it starts.

        Returns:
            The job afterwards: `cancelled`, `cancelling`, or as it ended before; None if there is
            no such job.
        """
        conductor = self._conductor
        if (job := self.here(id)) is not None:
            conductor.stop(id)  # first: the store may take its time
            return await self._record_cancel(job)
        job = await self.get(id)
        if job is None or job.gone or job.finished:
            return job
        waiting = conductor.roster.waiting.get(id)
        if job.state is State.QUEUED and waiting is not None:
            return await conductor.withdraw(waiting, State.CANCELLED, None)
        if job.state is State.QUEUED and conductor.leases is not None:  # it waits elsewhere
            if not await conductor.ledger.withdraw(job, conductor.policies.ttl(job)):
                return await self.cancel(id)
            return await self.get(id)
        running = conductor.roster.running.get(id)
        return await self._record_cancel(job if running is None else running.job or job)

    async def _record_cancel(self, job: Job) -> Job | None:
        conductor = self._conductor
        with suppress(IllegalTransition):  # it ended or was cancelled meanwhile
            changed = await conductor.ledger.cancelling(job)
            if running := conductor.roster.running.get(job.id):
                running.became(changed)
        await conductor.runner.cancel(job.id)
        return await self.get(job.id)

    def here(self, id: str) -> Job | None:
        """A job whose handler runs in this process, as last recorded: it need not be looked up."""
        running = self._conductor.roster.running.get(id)
        if running is None or running.decided or running.job is None:
            return None
        return None if running.job.state is State.QUEUED else running.job

    def alone(self, id: str) -> Job | None:
        """The same, if it is certain that nobody shares it."""
        job = self.here(id)
        return None if job is None or self._conductor.policies.of(job).coalesce else job

    async def leave(self, id: str) -> Job | None:
        """One client of a job wants no more of it: the last one cancels it.

        Returns:
            As `cancel()` does; a job that others still wait for goes on as it is.
        """
        job = None if self.alone(id) else await self.get(id)
        if job is not None and not job.gone and job.clients > 1:
            with suppress(IllegalTransition):  # it is about to end by itself
                job = await self._conductor.ledger.leave(job)
                if running := self._conductor.roster.running.get(id):
                    running.became(job)
                return job
        return await self.cancel(id)

    async def delete(self, id: str) -> Job | None:
        """Forget a job, cancelling it first if it has not finished.

        Returns:
            The job just before it was forgotten; None if there was none.
        """
        job = await self.cancel(id)
        if job is not None and not job.gone:
            await self._conductor.ledger.bury(job, remember=True)
        return job

    async def forget(self, job: Job) -> None:
        """Drop a job whose client has its response and was never told of a job.

        If the store fails, it goes when it expires.
        """
        try:
            await self._conductor.ledger.bury(job, remember=False)
        except Exception as error:
            self.availability.failed(error)

    def outlook(self, job: Job) -> Outlook:
        """What to expect of an unfinished job."""
        roster = self._conductor.roster
        waiting, running = roster.waiting.get(job.id), roster.running.get(job.id)
        ticket = waiting.ticket if waiting else running.ticket if running else None
        return roster.scheduler.outlook(job, ticket, self.clock())

    def origin(self, id: str) -> Origin:
        """Who minted an id, to go by its marker."""
        return self.acceptance.ids.origin(id)

    def statistics(self) -> Statistics:
        """How much runs and waits now."""
        occupancy = self._conductor.roster.scheduler.occupancy
        return Statistics(running=occupancy.running, queued=occupancy.waiting)
