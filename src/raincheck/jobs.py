"""Jobs: those of one middleware, as whoever opens, asks for, cancels and drains them sees them."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from weakref import WeakValueDictionary

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck.bodies.base import Bodies
from raincheck.callbacks import Callbacks
from raincheck.dialects.base import Dialect, Outlook
from raincheck.dialects.plain import PlainDialect
from raincheck.errors import LOOP_ENDED, BodyLost, ConfigurationError, IllegalTransition
from raincheck.health import Health
from raincheck.ids import Ids, Origin
from raincheck.job import Job, State
from raincheck.messages import RawHeaders
from raincheck.owners import Owners
from raincheck.policy import Limits, Policy, require_kind
from raincheck.routing.policies import RoutePolicies
from raincheck.runners.base import Brought, Run, Runner
from raincheck.runners.local import LocalRunner
from raincheck.runtime.deliveries import Deliveries
from raincheck.runtime.environment import Environment
from raincheck.runtime.observers import Observers
from raincheck.runtime.run import Run as JobRun
from raincheck.session import Bound, Session
from raincheck.stores.availability import Availability
from raincheck.stores.base import Fetched, Page, Store, Total
from raincheck.stores.memory import MemoryStore
from raincheck.tasks import open_tasks
from raincheck.telemetry.base import Figures, Statistics, Telemetry
from raincheck.telemetry.logging import LoggingTelemetry

logger: logging.Logger = logging.getLogger("raincheck")

_MOST_LISTED = 1000

_USERS = WeakValueDictionary[int, "Jobs"]()
"""Who has opened each store that is for one alone, by the store's `id()`: who has it keeps it."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """The response of a job that has finished with one.

    Attributes:
        status: the handler's status code.
        headers: the handler's header fields in order, without the hop-by-hop ones.
        size: bytes of body.
        body: the body, in non-empty chunks; to be read once.
    """

    status: int
    headers: RawHeaders
    size: int
    body: AsyncIterator[bytes]

    async def read(self) -> bytes:
        """All of the body.

        Raises:
            BodyLost: it is not whole any more: the job went meanwhile.
            StoreError: whatever the store raises.
        """
        content = b"".join([chunk async for chunk in self.body])
        if len(content) != self.size:
            raise BodyLost(f"of {self.size} bytes of a stored response {len(content)} are there")
        return content


class Jobs:
    """The jobs of one `LongRunningMiddleware`.

    Make one yourself, and pass it as `jobs=`, to ask for jobs from code or to mount the status
    routes by hand: `Mount("/jobs", jobs.status_app)`.

    Args:
        store: where jobs are kept. Default: a `MemoryStore`.
        runner: where they run. Default: a `LocalRunner`.
        limits: what all routes together keep to.
        telemetry: told of what becomes of jobs: one, or several. Default: a `LoggingTelemetry`,
            which is to be among them if others are given and it is still wanted.
        callbacks: to whom the end of jobs may be told. Default: to nobody.
        bodies: where bodies of 256 KiB or more are kept, of requests that may still have to run and
            of responses, such as `FileBodies(directory)`. Default: where the store says, which is
            in files beside its own for a `SQLiteStore`, and in the store itself for others.
        clock: seconds since the epoch; tests pass one that goes with their event loop.

    Attributes:
        store: where they are.
        availability: whether the store answers.
        limits, callbacks: as given.
        policies: of the routes.
        clock: the clock.
        mounted: whether the status routes are mounted by hand.
        session: what there is on the newest event loop, from `open()` to `close()`.

    Raises:
        ConfigurationError: an argument of another kind, or a runner whose workers could not see the
            jobs of this store.
        ImportError: what callbacks need is not installed.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        runner: Runner | None = None,
        limits: Limits | None = None,
        telemetry: Telemetry | Sequence[Telemetry] | None = None,
        callbacks: Callbacks | None = None,
        bodies: Bodies | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        require_kind("store", store, Store, 'SQLiteStore("jobs.db")')
        require_kind("runner", runner, Runner, "TaskiqRunner(broker)")
        require_kind("limits", limits, Limits, "Limits(max_running=20)")
        require_kind("callbacks", callbacks, Callbacks, 'Callbacks(secrets=["whsec_..."])')
        require_kind("bodies", bodies, Bodies, 'FileBodies("/var/lib/shop/bodies")')
        if not callable(clock):
            raise ConfigurationError(f"clock={clock!r}: it is no function, like time.time")
        environment = self._environment = Environment(
            MemoryStore() if store is None else store,
            LocalRunner() if runner is None else runner,
            Limits() if limits is None else limits,
            clock,
            Observers(_telemetries(telemetry)),
            callbacks,
            bodies,
        )
        self.store: Store = environment.store
        self.availability: Availability = environment.availability
        self.limits: Limits = environment.limits
        self.callbacks: Callbacks | None = environment.callbacks
        self.policies: RoutePolicies = environment.policies
        self.clock = clock
        self.mounted: bool = False
        environment.runner.bind(self._run, self._stop, self._spawn)
        if store is not None and store.deployment is not None:
            environment.runner.belong(store.deployment)
        self._bound: Bound | None = None
        self.session: Session | None = None
        self._latest: Session | None = None  # the same, also when it is closed
        self._health = Health(self)
        self._asked_for_health = False
        environment.observers.bind(self)

    # --- the middleware's side -----------------------------------------------------------------

    def bind(
        self,
        app: ASGIApp,
        *,
        door: ASGIApp,
        status: ASGIApp,
        policy: Policy,
        rules: Mapping[str, Policy],
        read: Callable[[], None],
        complete: Callable[[], bool],
        owners: Owners,
        mount: str,
        dialect: Dialect,
        base_of: Callable[[Scope], str],
    ) -> None:
        """Take the app to run, the middleware itself, the status routes and the policies; once.

        Raises:
            ConfigurationError: another middleware has these jobs.
        """
        if self._bound is not None:
            raise ConfigurationError(
                "jobs=...: these Jobs belong to another LongRunningMiddleware; make one for each"
            )
        self._bound = Bound(
            app, status, read, owners, Ids(mount), lambda: self.mounted, dialect, base_of
        )
        self._environment.runner.attach(door)
        self.policies.bind(policy, rules, complete=complete)

    async def open(self, lifespan: Scope | None = None) -> Session:
        """Make ready for the running event loop, if that has not been done.

        Args:
            lifespan: the scope of the lifespan that it happens in, if there is one.

        Returns:
            What there is on it.

        Raises:
            ConfigurationError: the store can never work as it is set up, or is another's; or jobs
                run on another event loop.
        """
        if self.ready:
            return self._opened()
        assert self._bound is not None
        self._claim_loop()
        self._claim_store()
        self._bound.read()
        await self._open_store()
        if self.ready:  # somebody else was faster
            return self._opened()
        environment = self._environment
        # Of an event loop that has ended, and what ran on it with it.
        orphaned = [] if self._latest is None else self._latest.runs.ids()
        if lifespan is None:
            logger.warning(
                "no lifespan reached raincheck: at shutdown nothing will wait for running jobs"
            )
        # What an app finds in every request, and so in those that outlived their process.
        scope = lifespan or {}
        found = {key: scope[key] for key in ("app", "state") if key in scope}
        session = self.session = self._latest = Session(
            environment, self._bound, None if lifespan is None else found
        )
        await environment.runner.open()
        session.begin()
        if self._asked_for_health:
            session.counting.keep()
        if environment.lease is None:
            for id in orphaned:
                await self._end_orphaned(id)
        return session

    async def _end_orphaned(self, id: str) -> None:
        job, environment = await self.store.get(id), self._environment
        if job is not None and not (job.finished or job.gone):
            ttl = self.policies.ttl(job)
            await environment.ledger.finish(job, State.FAILED, ttl=ttl, error=LOOP_ENDED)

    def _claim_loop(self) -> None:
        session = self.session
        if session is None or self._environment.lease is not None:
            return
        if session.runs.ids() and session.tasks.live():
            raise ConfigurationError(
                "jobs run on another event loop, that of another thread, and would end if this one "
                "took over; serve an app on one event loop, or make one for each, over a store "
                "that processes share, such as SQLiteStore(...)"
            )

    def _claim_store(self) -> None:
        store = self._environment.inner
        if store.shared:
            return
        user = _USERS.setdefault(id(store), self)
        if user is not self and user.ready:
            raise ConfigurationError(
                f"two LongRunningMiddlewares have the same {type(store).__name__}: a cancel "
                "that came to one would not reach a handler that the other runs; give each its "
                "own, or both one that processes share, such as SQLiteStore(...)"
            )
        _USERS[id(store)] = self

    async def _open_store(self) -> None:
        """See whether the store can ever work; one that is merely away may come back."""
        self._environment.know_nothing()
        try:
            await self.store.open()
        except ConfigurationError:
            await self.store.aclose()
            raise
        except Exception as error:
            self.availability.failed(error)

    @property
    def ready(self) -> bool:
        """Whether `open()` has nothing to do."""
        session = self.session
        return session is not None and session.tasks.here()

    async def close(self) -> None:
        """Drain: refuse new jobs, wait for `drain_timeout`, and interrupt what is left.

        Not what belongs to the event loop of another thread, which closes that itself.
        """
        session = self.session
        if session is not None and (session.tasks.here() or not session.tasks.live()):
            await session.close()
            await self._environment.runner.aclose()
            await self.store.aclose()
            self.session = None

    def _opened(self) -> Session:
        if self._latest is None:
            raise RuntimeError("the jobs are not open: no lifespan has begun, and no request came")
        return self._latest

    async def _run(self, id: str) -> Brought:
        session = self.session
        if session is None:
            opens = self._latest is None and self._bound is not None
        else:
            opens = not session.tasks.here()
        if opens:
            await self.open()  # an engine has called before a lifespan or a request came
        return await (self._latest or self._opened()).run(id)

    def _stop(self, id: str) -> None:
        if self._latest is not None:
            self._latest.runs.stop(id)

    def _spawn(self, run: Run, id: str) -> None:
        self._opened().spawn(run, id)

    # --- for those who ask ---------------------------------------------------------------------

    @property
    def status_app(self) -> ASGIApp:
        """The status routes as an ASGI app, to be mounted where the middleware's `path` says.

        Asking for it hands the routes over to you: the middleware stops serving them itself, so
        that whatever you put around the mount, such as authentication, applies to each of them.
        """
        self.mounted = True
        return self._serve_status

    @property
    def health_app(self) -> ASGIApp:
        """Probes as an ASGI app, to be mounted where you like, or served on a port of their own.

        `GET /live` is 200 while the event loop turns. `GET /ready` is 200, or 503 while the server
        stops or the store is away. `GET /queue` is 200 with what waits in the whole deployment:
        `{"queued": 3, "running": 2, "oldest_queued_seconds": 1.2, "age_seconds": 0.4, "routes":
        [...]}`, or 503 while that is not known. Each is JSON. None of them waits for the store,
        which a process that has taken this is asked each second.
        """
        self._asked_for_health = True
        return self._health.app

    async def unready(self) -> str | None:
        """Why no request should come here now: `draining`, `stopped` or `store-away`; else None."""
        self._belong("health_app")
        session = self._latest
        elsewhere = session is not None and session.lives_elsewhere()
        if self.session is None and session is not None and (elsewhere or session.tasks.here()):
            return "stopped"
        if session is None or not (elsewhere or self.ready):
            session = await self.open()  # no lifespan has come, as for the first request
        if not elsewhere:
            session.counting.keep()
        if session.draining:
            return "draining"
        return "store-away" if self.availability.away else None

    def is_status_app(self, app: object) -> bool:
        """Whether an app is `status_app`."""
        return app == self._serve_status

    async def _serve_status(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._belong("status_app").status(scope, receive, send)

    def _belong(self, mounted: str) -> Bound:
        if self._bound is None:
            raise ConfigurationError(
                f"jobs.{mounted} is mounted, but no LongRunningMiddleware has these jobs; "
                "pass them to it: LongRunningMiddleware(app, jobs=jobs)"
            )
        return self._bound

    async def get(self, id: str) -> Job | None:
        """A job, or the tombstone of one; None if there is neither."""
        return self._aged(await self.store.get(id))

    async def list(
        self,
        *,
        states: Collection[State] = (),
        route: str | None = None,
        owner: str | None = None,
        since: float | None = None,
        until: float | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> Page:
        """Jobs of the whole deployment, those that were accepted last first.

        Args:
            states: any of these; none: any.
            route: of this route, by its name; None: of any.
            owner: of this owner; None: of any, or none.
            since: accepted then or later, in seconds since the epoch.
            until: accepted before, in seconds since the epoch.
            after: where the page before ended (`Page.after`); None: the first page.
            limit: how many at most, 1 to 1000.

        Raises:
            MalformedCursor: no page says this of its end.
            ValueError: `limit` is out of its bounds.
            StoreError: the store does not answer.
        """
        if not isinstance(limit, int) or not 1 <= limit <= _MOST_LISTED:
            raise ValueError(f"limit={limit!r}: a page has 1 to {_MOST_LISTED} jobs")
        page = await self.store.list(
            states=states,
            route=route,
            owner=owner,
            since=since,
            until=until,
            after=after,
            limit=limit,
        )
        now = self.clock()  # what has expired may not have been swept yet
        return Page([job for job in page.jobs if not job.expired(now)], page.after)

    async def totals(self) -> dict[tuple[str, State], Total]:
        """How many jobs there are in the whole deployment, by route and state.

        Those that have finished count until they expire.

        Raises:
            StoreError: the store does not answer.
        """
        return await self.store.totals()

    async def response(self, id: str) -> StoredResponse | None:
        """What a job has come to; None if it has no response, or not yet, or is not there.

        Raises:
            StoreError: the store does not answer.
        """
        found = await self.fetch(id)
        if found is None or found.job.response is None:
            return None
        response = found.job.response
        body = self.store.read_body(id) if found.body is None else _once(found.body)
        return StoredResponse(response.status, response.headers, response.size, body)

    async def fetch(self, id: str) -> Fetched | None:
        """A job as `get` has it, with the body of its response if that is small."""
        return self.aged(await self.store.fetch(id))

    def aged(self, found: Fetched | None) -> Fetched | None:
        """What a store has of a job, as it is by now: what has expired may not be swept yet."""
        if found is None or (job := found.job).expires_at is None:
            return found
        if not job.expired(now := self.clock()):
            return found
        return Fetched(job if job.gone else job.tombstone(now), None)

    def _aged(self, job: Job | None) -> Job | None:
        if job is not None and not job.gone and job.expired(now := self.clock()):
            return job.tombstone(now)
        return job

    def at_most(self, wait: float) -> AbstractContextManager[None]:
        """A block that waits for a client's sake: it is left after so many seconds.

        Or as soon as the server is known to stop.
        """
        return self._opened().waits.at_most(wait)

    async def until(self, job: Job, done: Callable[[Job], bool], wait: float) -> Job | None:
        """The newest version of a job, as soon as it is `done` or gone.

        Not later than after `wait` seconds, or when the server is known to stop.
        """
        newest: Job | None = job
        with self.at_most(wait):
            while newest is not None and not (newest.gone or done(newest)):
                newest = await self.store.changed(newest.id, newest.version)
            return self._aged(newest)
        return await self.get(job.id)

    async def finished(self, job: Job, wait: float) -> Job | None:
        """A job as it finished, if it does within `wait` seconds; else None.

        None as well when the server is known to stop.
        """
        newest: Job | None = job
        with self.at_most(wait):
            while newest is not None and not (newest.finished or newest.gone):
                newest = await self.store.changed(newest.id, newest.version)
            return newest
        return None

    async def cancel(self, id: str, *, found: Job | None = None) -> Job | None:
        """Ask a job to stop; a queued one stops before it starts.

        Args:
            id: the job's.
            found: the job, if it has just been looked up.

        Returns:
            The job afterwards: `cancelled`, `cancelling`, or as it ended before; None if there is
            no such job.
        """
        environment, run = self._environment, self._here(id)
        if run is not None and run.known_to_run:
            return await run.cancel() or await self._cancel_there(id, ran=True)
        job = await self.get(id) if found is None else found
        if job is None or job.gone or job.finished:
            return job
        run = self._here(id)
        if job.state is State.QUEUED and run is not None and run.waits:
            ended = await self._opened().runs.withdraw(run, State.CANCELLED, None)
            # Meanwhile it may have been deleted, or another process may have taken it over.
            return ended if ended.finished else await self.cancel(id)
        if job.state is State.QUEUED and environment.lease is not None:  # it waits elsewhere
            if not await environment.ledger.withdraw(job, self.policies.ttl(job)):
                return await self.cancel(id)
            return await self.get(id)
        with suppress(IllegalTransition):  # it ended or was cancelled meanwhile
            await (environment.ledger.cancelling(job) if run is None else run.cancelling(job))
        return await self._cancel_there(id, ran=job.state is State.RUNNING)

    async def _cancel_there(self, id: str, *, ran: bool) -> Job | None:
        """Ask a job to stop that is recorded to be asked, wherever it runs, if it still does.

        Args:
            id: the job's.
            ran: whether it ran when that was recorded, or tried to be.

        Returns:
            As `cancel()` does.
        """
        await self._environment.runner.cancel(id)
        newest = await self.get(id)
        if ran and newest is not None and newest.state is State.QUEUED:
            return await self.cancel(id)  # its run was over, and it waits for another one
        return newest

    def _here(self, id: str) -> JobRun | None:
        return None if self._latest is None else self._latest.runs.get(id)

    def alone(self, id: str) -> Job | None:
        """A job whose handler runs in this process, as last recorded, and that nobody shares.

        It need not be looked up.
        """
        run = self._alone(id)
        return None if run is None else run.job

    def _alone(self, id: str) -> JobRun | None:
        run = self._here(id)
        return None if run is None or not run.known_to_run or run.policy.coalesce else run

    async def leave(self, id: str, *, found: Job | None = None, forget: bool = False) -> Job | None:
        """One client of a job wants no more of it: the last one cancels it.

        Args:
            id: the job's.
            found: the job, if it has just been looked up.
            forget: whether it is forgotten by that as well.

        Returns:
            As `cancel()` does; a job that others still wait for goes on as it is.
        """
        if (run := self._alone(id)) is not None and not forget:
            return await run.cancel() or await self._cancel_there(id, ran=True)
        if run is None:
            found = await self.get(id) if found is None else found
            if found is None or found.gone:
                return found
            if found.joinable and (found.clients > 1 or self.policies.of(found).coalesce):
                left = await self._leave_shared(found)
                if left is None or left.joinable or not forget:
                    return left
                found = left
        return await (self.delete if forget else self.cancel)(id, found=found)

    async def _leave_shared(self, job: Job) -> Job | None:
        """As `leave()`. Meanwhile others may join the job: it goes on for them."""
        id, run, ledger = job.id, self._here(job.id), self._environment.ledger
        if job.clients == 1 and job.state is State.QUEUED:
            if not await ledger.withdraw(job, self.policies.ttl(job)):
                return await self.leave(id)
            if run is not None and run.waits:
                self._opened().runs.drop(run)
            return await self.get(id)
        try:
            left = await (ledger.leave if run is None else run.leave)(job)
        except IllegalTransition:  # it has ended, waits for another run, or was cancelled
            return await self.leave(id)
        if left.joinable:
            return left
        if run is None or not run.known_to_run:
            return await self._cancel_there(id, ran=True)
        self._opened().runs.stop(id)
        return left

    async def delete(self, id: str, *, found: Job | None = None) -> Job | None:
        """Forget a job, cancelling it first if it has not finished.

        Args:
            id: the job's.
            found: the job, if it has just been looked up.

        Returns:
            The job just before it was forgotten; None if there was none.
        """
        job = await self.cancel(id, found=found)
        if job is not None and not job.gone:
            await self._environment.ledger.bury(job, remember=True)
        return job

    async def redeliver(self, id: str) -> Job | None:
        """Have the end of a job told now, or once more, as if that had not been tried yet.

        Whoever delivers callbacks does it: this process, if it has `callbacks=`, or another one.

        Returns:
            The job afterwards; None if there is none.

        Raises:
            IllegalTransition: it has not ended, or has nobody to tell.
            StoreError: the store does not answer.
        """
        job = await self.get(id)
        if job is None or job.gone:
            return job
        return await self._environment.ledger.redeliver(job)

    async def deliver(self) -> None:
        """Deliver callbacks until it is cancelled, in a process that serves no app.

        One that has these jobs in a middleware does that by itself, workers of an engine included.
        Messages are spelt by the plain dialect.

        Raises:
            ConfigurationError: there are no callbacks, or the store can never work as it is set up.
        """
        environment = self._environment
        if environment.callbacks is None or environment.poster is None:
            raise ConfigurationError(
                "jobs.deliver() delivers callbacks, and there are none: give "
                "Jobs(callbacks=Callbacks(secrets=[...]))"
            )
        await self._open_store()
        tasks, post = open_tasks(), environment.poster()
        deliveries = Deliveries(environment, environment.callbacks, PlainDialect(), post, tasks)
        deliveries.begin()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.move_on_after(environment.cancel_grace, shield=True):
                await deliveries.close()
                await tasks.aclose()
                await self.store.aclose()

    async def settle(self, job: Job) -> None:
        """Have nobody told of a job's end: its client gets the response itself.

        If the store fails, it is told of if that takes longer than the client was to wait.
        """
        try:
            await self._environment.ledger.settle(job)
        except Exception as error:
            self.availability.failed(error)

    async def forget(self, job: Job) -> None:
        """Drop a job whose client has its response and was never told of a job.

        If the store fails, it goes when it expires.
        """
        try:
            await self._environment.ledger.bury(job, remember=False)
        except Exception as error:
            self.availability.failed(error)

    def outlook(self, job: Job) -> Outlook:
        """What to expect of an unfinished job."""
        session = self._latest or self._opened()
        return session.runs.outlook(job)

    def origin(self, id: str) -> Origin:
        """Who minted an id, to go by its marker."""
        return Origin.UNKNOWN if self._bound is None else self._bound.ids.origin(id)

    @property
    def figures(self) -> Figures | None:
        """The newest `totals()` at hand, a second or so old; None if nobody keeps them.

        They are kept for `health_app`, and for a telemetry that reads them.
        """
        return None if self._latest is None else self._latest.counting.newest

    def statistics(self) -> Statistics:
        """How much runs and waits now."""
        if self._latest is None:
            return Statistics(running=0, queued=0)
        occupancy = self._latest.runs.scheduler.occupancy
        return Statistics(running=occupancy.running, queued=occupancy.waiting)


def _telemetries(
    given: Telemetry | Sequence[Telemetry] | None,
) -> Sequence[Telemetry]:
    if given is None:
        return [LoggingTelemetry()]
    if not isinstance(given, Sequence):
        given = [given]
    for each in given:
        require_kind("telemetry", each, Telemetry, "[LoggingTelemetry(), PrometheusTelemetry()]")
    return given


async def _once(body: bytes) -> AsyncIterator[bytes]:
    if body:
        yield body
