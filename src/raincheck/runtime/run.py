"""One run of a job in this process: it waits for its turn, is recorded, and ends once."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import NamedTuple, Protocol

import anyio
from starlette.types import Message, Scope

from raincheck.errors import (
    ANSWER_NOT_KEPT,
    NOT_KEPT,
    RESPONSE_LOST,
    UNREADABLE,
    BodyLost,
    IllegalTransition,
    LeaseLost,
    NoRoom,
    Problem,
    Release,
    StoreFull,
    UnreadableRecord,
    crashed,
    invalid_response,
    response_too_large,
    timed_out,
)
from raincheck.job import Job, Progress, State
from raincheck.messages import CapturedRequest, CapturedResponse
from raincheck.policy import Failure, Policy, Seconds, seconds
from raincheck.runtime.environment import Environment
from raincheck.runtime.flushing import Flusher
from raincheck.runtime.observers import Spans
from raincheck.runtime.recorder import ProtocolError, Recorder, TooLarge
from raincheck.runtime.scheduler import Scheduler, Ticket
from raincheck.runtime.stopping import Reason, Stopping
from raincheck.tasks import Gate, Tasks

logger: logging.Logger = logging.getLogger("raincheck")

# Named here, for every job: as attributes of their class each of them is a call on Python 3.11.
_QUEUED, _SUCCEEDED, _FAILED, _CANCELLED = (
    State.QUEUED,
    State.SUCCEEDED,
    State.FAILED,
    State.CANCELLED,
)

# Seconds between writes of one job's progress.
_PROGRESS_INTERVAL = 0.1


class Origin(NamedTuple):
    """Where a request that waits came from: what its replay has besides what is in the store.

    Attributes:
        outer: what goes into its scope.
        context: the context variables that it is replayed in.
    """

    outer: Scope
    context: Context


class Home(Protocol):
    """What a run needs of the one who has all of them.

    Attributes:
        environment: what is fixed.
        tasks: those of the event loop.
        scheduler: gives them their places.
        interruption: what clients are told of those that the end of the server stops.
        goes_on: whether what runs here may run again.
    """

    environment: Environment
    tasks: Tasks
    scheduler: Scheduler
    interruption: Problem

    @property
    def goes_on(self) -> bool: ...

    def block(self, ticket: Ticket, full: NoRoom) -> None:
        """So many run in other processes that one which has its turn here has to wait on."""

    def keep_leases(self) -> None:
        """A run may need its lease renewed."""

    def leave(self, job: Job) -> None:
        """The last word on a job is on its way into the store."""

    def left(self, job: Job) -> None:
        """It is there."""

    async def repeat(self, run: Run, pause: float) -> Job:
        """Record that its job waits for another run, and see to that. Raises as the ledger does."""

    def ended(self, run: Run) -> None:
        """Nothing of it runs any more."""


class Run:
    """A job in this process, from its acceptance, or from when it was taken over, to its end here.

    While it waits there is nothing but this, unless its live request waits with it. From its start
    on what the app sends is recorded. It ends by its response, by itself without one, by its
    timeout or by being stopped: whatever comes first is the outcome. Nobody else changes its job.

    Args:
        home: who has it.
        job: the job as it was accepted, or is waiting.
        policy: the policy that it runs under.
        ticket: its place; a synchronous request has none.
        stopping: stops its app, if that is here already.
        method: of its request, if its app goes on here at once: from now on it is recorded.
        held: whether its live request waits with it.
        origin: where its request came from, if the app is to be given it again.

    Attributes:
        job: the newest version known here.
        policy, ticket, stopping, held, origin: as given; another policy once its endpoint is known.
        waits: whether it still waits here: it has neither begun nor been cancelled or taken over.
        progress: the handler's newest report.
        span: follows the run of its job, if anybody does.
    """

    __slots__ = (
        "_complete",
        "_decided",
        "_failed",
        "_flusher",
        "_flushing",
        "_home",
        "_method",
        "_pause",
        "_raised",
        "_recorder",
        "_settling",
        "_timed_out",
        "_turn",
        "held",
        "job",
        "origin",
        "policy",
        "progress",
        "span",
        "stopping",
        "ticket",
        "waits",
    )

    def __init__(
        self,
        home: Home,
        job: Job,
        policy: Policy,
        ticket: Ticket | None,
        stopping: Stopping | None = None,
        method: str | None = None,
        held: bool = False,
        origin: Origin | None = None,
    ) -> None:
        self.job: Job = job
        self.policy: Policy = policy
        self.ticket: Ticket | None = ticket
        self.held: bool = held
        self.origin: Origin | None = origin
        self.waits: bool = job.state is _QUEUED
        self.progress: Progress | None = None
        self.span: Spans | None = None
        self._home = home
        self.stopping = stopping
        self._turn = anyio.Event() if held else None
        self._method: str | None = None  # of the request, once what the app sends is kept
        self._recorder: Recorder | None = None  # since the first message
        self._flusher: Flusher | None = None  # if anything is kept before the response's end
        self._complete = False  # the response is recorded to its end
        # How it has failed, if it may be repeated: to be decided when nothing of it runs any more.
        self._failed: CapturedResponse | Problem | None = None
        self._raised: Exception | None = None  # by its handler
        self._pause: float | None = None  # seconds until the next run, if it ran out of time
        self._decided = False  # the outcome is on its way into the store
        self._flushing = False
        self._settling: Gate | None = None  # opens when the outcome is in the store
        self._timed_out: Gate | None = None  # opens when its timeout is recorded
        if method is not None:
            self.record(method)

    @property
    def decided(self) -> bool:
        """Whether the outcome is on its way into the store, or nobody's business here."""
        return self._decided

    @property
    def known_to_run(self) -> bool:
        """Whether its handler runs, and has not come to its end."""
        return not self._decided and self.job.state is not State.QUEUED

    @property
    def known(self) -> Job:
        """The job, `cancelling` as soon as its handler is asked to stop because of that."""
        job, stopping = self.job, self.stopping
        if stopping is None or job.state is not State.RUNNING:
            return job
        cancelled = stopping.reason is Reason.CANCELLED
        return job._replace(state=State.CANCELLING) if cancelled else job

    # --- waiting -------------------------------------------------------------------------------

    def turn(self) -> None:
        """The turn of one that is held has come."""
        assert self._turn is not None
        self._turn.set()

    async def until_begun(self) -> bool:
        """Wait, together with the live request, for its turn; whether it has begun then."""
        assert self.stopping is not None
        while True:
            assert self._turn is not None
            with self.stopping.inside():
                await self._turn.wait()
            self._turn = anyio.Event()
            with suppress(NoRoom):  # its turn comes once more
                return await self.begin()

    async def begin(self) -> bool:
        """Record that it runs now; False if it was cancelled meanwhile, or is somebody else's.

        Raises:
            NoRoom: it waits on, since so many run in other processes.
        """
        if not self.waits:
            return False
        environment, ticket = self._home.environment, self.ticket
        assert ticket is not None
        self.waits = False
        within = environment.bounds(self.policy, State.RUNNING)
        try:
            begun = await environment.ledger.start(self.job, within)
        except NoRoom as full:
            self.waits = True
            self._home.block(ticket, full)
            raise
        except IllegalTransition:
            return False
        self._became(begun)
        self._home.keep_leases()
        return begun.state is State.RUNNING

    async def claim(self) -> CapturedRequest | None:
        """Begin, and take the captured request, in one step; None if that is not to be had so.

        Then it waits still, and `begin` says why; or its request cannot be read, and it has failed.
        The bounds on its route are not looked at.

        Raises:
            UnreadableRecord: it, or its captured request.
        """
        self.waits = False
        try:
            claimed = await self._home.environment.ledger.claim(self.job.id, (self.job.route,))
        except UnreadableRecord:
            self.waits = True
            raise
        if claimed is None or not claimed.begun:
            self.waits = True
            return None
        self._became(claimed.job)
        self._home.keep_leases()
        if claimed.request is None:
            await self.fail_unread()
        return claimed.request

    async def fail_unread(self) -> None:
        """End one that has begun, and whose captured request cannot be read."""
        try:
            await self._decide(State.FAILED, error=UNREADABLE)
        finally:
            self._home.ended(self)

    def drop(self) -> None:
        """It does not wait here any more, and nobody begins it here."""
        self.waits = False

    async def hold(self) -> None:
        """Record that one which nobody held waits here.

        Raises:
            IllegalTransition: it does not wait any more, or somebody else was faster.
            StoreError: whatever the store raises.
        """
        self._became(await self._home.environment.ledger.hold(self.job))

    # --- what others make of the job -------------------------------------------------------------

    async def cancel(self) -> Job | None:
        """Ask its handler to stop, and record that: a store takes its time.

        Returns:
            The job; None if the handler has come to its end meanwhile, or was asked before.
        """
        self.stop(Reason.CANCELLED)
        try:
            job = await self.cancelling(self.job)
        except IllegalTransition:
            return None
        return job if self.known_to_run else None

    async def cancelling(self, known: Job) -> Job:
        """Record that it was asked to stop. Raises as the ledger does.

        Args:
            known: the job, as it was read last: it may have begun, here or elsewhere.
        """
        newest = known if known.version > self.job.version else self.job
        return self._heard(await self._home.environment.ledger.cancelling(newest))

    async def leave(self, known: Job) -> Job:
        """Record that one of its clients, or the last, wants no more of it. Raises as the ledger.

        Args:
            known: the job, as it was read last: nobody tells here of those who join it.
        """
        newest = known if known.version > self.job.version else self.job
        return self._heard(await self._home.environment.ledger.leave(newest))

    async def confirm(self) -> None:
        """Record that it is accepted, if nothing else says so. Raises as the ledger does."""
        self._heard(await self._home.environment.ledger.confirm(self.job))

    def _heard(self, job: Job) -> Job:
        if job.fence == self.job.fence:  # else others run it, and write by that one
            self._became(job)
        return job

    def _became(self, job: Job) -> None:
        if job.version > self.job.version:  # answers may overtake each other
            self.job = job

    # --- recording -----------------------------------------------------------------------------

    def attend(self, stopping: Stopping, policy: Policy) -> None:
        """Its app is here, under this policy, and this stops it."""
        self.stopping, self.policy = stopping, policy

    def record(self, method: str) -> None:
        """From now on what the app sends is kept, and its time is running."""
        self._method = method
        observers = self._home.environment.observers
        if observers.follow:
            self.span = observers.running(self.job)
        if self.policy.timeout is not None:
            self._watch_time(self.policy.timeout)

    def copy(self, method: str) -> None:
        """From now on what its client is sent is kept as well; nothing bounds its time."""
        self._method = method

    def come_under(self, policy: Policy) -> None:
        """Run under another policy than it began under: its endpoint was not known before."""
        earlier, self.policy = self.policy, policy
        if self._recorder is not None:
            self._recorder.allow(policy.max_response_size)
        timed = self._method is not None and not self.job.synchronous
        if timed and earlier.timeout is None and policy.timeout is not None:
            self._watch_time(policy.timeout)

    @property
    def started(self) -> bool:
        """Whether a response has begun, or what the app sends goes nowhere anyway."""
        if self._method is None or self._decided:
            return True
        return self._recorder is not None and self._recorder.started

    @property
    def copies(self) -> bool:
        """Whether what the client is sent is still kept."""
        return self._method is not None and not self._decided

    def _begin_recording(self, method: str) -> Recorder:
        policy = self.policy  # by position, as with all that is made for every job
        self._recorder = Recorder(method, policy.max_response_size, policy.live)
        return self._recorder

    async def take(self, message: Message) -> None:
        """Take what the app sends, while it is recorded and after that."""
        stopping = self.stopping
        assert stopping is not None
        if self._decided or self._method is None or self._failed is not None:
            if self._complete:
                raise RuntimeError("the handler sent something after its response was complete")
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                stopping.disconnect()
            return
        recorder = self._recorder or self._begin_recording(self._method)
        try:
            response = recorder.take(message)
            if recorder.piece is not None or recorder.live:
                await self._keep_beside(recorder, ended=response is not None)
        except TooLarge:
            problem = response_too_large(self.policy.max_response_size)
            await self._decide(State.FAILED, error=problem)
            raise Release from None  # unwinds the handler, which has nothing left to say
        except StoreFull:
            await self._decide(State.FAILED, error=NOT_KEPT)
            raise Release from None
        except BodyLost:
            await self._decide(State.FAILED, error=RESPONSE_LOST)
            raise Release from None
        except LeaseLost:
            self.lose()
            raise Release from None
        except ProtocolError as error:
            await self._decide(State.FAILED, error=invalid_response(_sentence(error)))
            raise
        if response is None:
            return
        self._complete, status = True, response.status
        state = _SUCCEEDED if status < 400 else _FAILED
        if (reason := stopping.reason) is None:
            if status >= 400 and self._may_repeat(status):
                self._failed = response
            else:
                await self._decide(state, response)
        elif not stopping.torn:  # else that is the end that middleware has put to it
            stopping.spare()
            if state is _SUCCEEDED:
                await self._decide(state, response)
            else:  # what an error handler made of the stop is no outcome of its own
                await self._decide_stopped(reason)
        # As servers do. Litestar's streams end when they hear of it, and not before.
        stopping.disconnect()

    async def take_copy(self, message: Message) -> None:
        """Take what the client has been sent; it has its answer, whatever becomes of the copy."""
        stopping = self.stopping
        if self._decided or self._method is None:
            return
        assert stopping is not None
        recorder = self._recorder or self._begin_recording(self._method)
        try:
            if recorder.piece is not None:
                await self._keep_once(recorder, *recorder.piece)
            response = recorder.take(message)
            if recorder.piece is not None:
                await self._keep_once(recorder, *recorder.piece)
        except TooLarge:
            too_large = response_too_large(self.policy.max_response_size)
            self._decide_aside(State.FAILED, error=too_large)
        except LeaseLost:
            self.lose()
        except ProtocolError as error:
            self._decide_aside(State.FAILED, error=invalid_response(_sentence(error)))
        except Exception:  # the store's, which has been told of
            self._decide_aside(State.FAILED, error=ANSWER_NOT_KEPT)
        else:
            if response is not None:
                self._complete = True
                stopping.spare()
                state = State.SUCCEEDED if response.status < 400 else State.FAILED
                self._decide_aside(state, response)

    @property
    def complete(self) -> bool:
        """Whether the response is here to its end."""
        return self._complete

    async def _keep(self, recorder: Recorder, offset: int, piece: bytes) -> None:
        """Have a piece of the body kept. Raises LeaseLost, StoreFull, or BodyLost."""
        if self._decided:  # meanwhile: nobody wants it any more
            raise LeaseLost("the job has ended")
        head = None if offset else recorder.head
        await self._home.environment.ledger.append(self.job, offset, piece, head)
        recorder.kept()

    async def _keep_beside(self, recorder: Recorder, *, ended: bool) -> None:
        """Have what has come kept in time. Raises as `_keep` does."""
        if self._flusher is None:
            keep, home = partial(self._keep, recorder), self._home
            beside = not home.environment.store.immediate
            self._flusher = Flusher(recorder, keep, self.lose, home.tasks, beside=beside)
        if ended:
            await self._flusher.close()
        else:
            await self._flusher.more()

    async def _keep_once(self, recorder: Recorder, offset: int, piece: bytes) -> None:
        """The same, asking the store only once: somebody waits for what comes after that.

        Raises:
            LeaseLost: nobody wants it any more.
            StoreError: whatever the store raises.
        """
        head = None if offset else recorder.head
        await self._home.environment.ledger.append_once(self.job, offset, piece, head)
        recorder.kept()

    # --- the outcome ---------------------------------------------------------------------------

    def _decide(
        self, state: State, response: CapturedResponse | None = None, error: Problem | None = None
    ) -> Awaitable[None]:
        """Record the outcome; what the app sends from here on goes nowhere."""
        if self._decided:
            return _nothing()
        self._decided = True
        tail = b"" if response is None or self._recorder is None else self._recorder.tail
        return self._write(state, response, error, tail)

    def _decide_aside(
        self, state: State, response: CapturedResponse | None = None, error: Problem | None = None
    ) -> None:
        """Record the outcome while the client is answered: it does not wait for the store."""
        self._decided = True
        job = self.job
        tail = b"" if response is None or self._recorder is None else self._recorder.tail
        self._home.leave(job)

        async def write() -> None:
            try:
                await self._write(state, response, error, tail)
            finally:
                self._home.left(job)

        self._home.tasks.spawn(write, Context())

    async def _write(
        self, state: State, response: CapturedResponse | None, error: Problem | None, tail: bytes
    ) -> None:
        """Write the outcome into the store. Never raises an Exception."""
        policy, environment = self.policy, self._home.environment
        outcome = (self.job, state, seconds(policy.ttl), tail, response, error, self.progress)
        learns = response is not None and policy.coalesce is True
        if environment.store.immediate and not learns:
            self._recorded(await environment.ledger.finish(*outcome))
            return
        finish = partial(environment.ledger.finish, *outcome)
        if learns:
            assert response is not None
            finish = partial(self._learn_first, response, finish)
        if environment.store.immediate:
            self._recorded(await finish())
        else:
            await self._settle(finish)

    def _recorded(self, job: Job) -> None:
        """The outcome is in the store: only now, what the next ones may take goes by it."""
        if job.version > self.job.version:  # as in `_became`, a call less
            self.job = job
        began, ended, ticket = job.started_at, job.finished_at, self.ticket
        if began is None or ended is None or job.state is _CANCELLED:
            return
        if ticket is not None and self.stopping is not None:
            self._home.scheduler.learn(ticket, ended - began)

    async def _learn_first(
        self, response: CapturedResponse, finish: Callable[[], Awaitable[Job]]
    ) -> Job:
        await self._home.environment.ledger.learn(self.job.route, response.headers)
        return await finish()

    async def _settle(self, write: Callable[[], Awaitable[Job]]) -> None:
        """Write an outcome in a task of its own: one that is cancelled would leave it unknown."""
        home, job = self._home, self.job
        gate = self._settling = home.tasks.gate()
        home.leave(job)

        async def settle() -> None:
            try:
                self._recorded(await write())
            except LeaseLost:
                home.environment.observers.lost(job, home.environment.clock(), ended=True)
            finally:
                home.left(job)
                gate.open()
                home.tasks.release(gate)

        home.tasks.spawn(settle, Context(), gate)
        await gate.wait()

    async def end(self, error: BaseException | None) -> None:
        """The app has ended: by this error, or by returning."""
        stopping = self.stopping
        assert stopping is not None
        if error is not None and not (self.job.synchronous or isinstance(error, ProtocolError)):
            environment = self._home.environment  # else the server tells of it, or it is told of
            environment.observers.raised(self.job, error, environment.clock())
        if stopping.reason is not None:
            await stopping.stopped()
        if self._flusher is not None and not self._complete:
            await self._flusher.stop()
        if not self._decided:
            await self._decide_ended(error)
        if self._timed_out is not None:
            await self._timed_out.wait()
        if self._settling is not None:
            await self._settling.wait()
        if self.span is not None:
            self.span.end(self.job, error)
        self._method = self._recorder = self._flusher = self._failed = self._raised = None
        self._home.ended(self)

    async def _decide_ended(self, error: BaseException | None) -> None:
        """The app has ended, and its response is not complete, or may be none after all."""
        assert self.stopping is not None
        stop, failed = self.stopping.reason, self._failed
        if stop is not None and (failed is None or stop is Reason.CANCELLED):
            await self._decide_stopped(stop)
        elif failed is not None:
            await self._decide_failed(failed, error)
        elif error is not None:
            await self._decide_failed(crashed(), error)
        else:
            started = self._recorder is not None and self._recorder.started
            reason = "returned before its response was complete" if started else "sent no response"
            await self._decide(State.FAILED, error=invalid_response(f"The handler {reason}."))

    async def _decide_stopped(self, reason: Reason) -> None:
        if reason is Reason.INTERRUPTED:
            await self.interrupt()
        elif reason is Reason.LOST:
            self._decided = True
        else:
            await self._decide(State.CANCELLED)

    # --- another run ---------------------------------------------------------------------------

    def raised(self, error: Exception) -> None:
        """Note what its handler raises, whatever is made of it further out."""
        if self.policy.retry is not None:
            self._raised = error

    def _may_repeat(self, status: int | None) -> bool:
        """Whether there may be another run after this one, by its status (see `Failure`)."""
        retry, job = self.policy.retry, self.job
        return retry is not None and job.replayable and retry.may_repeat(status)

    def _pause_after(self, status: int | None, error: BaseException | None) -> float | None:
        """Seconds until the next run; None if there is none.

        Args:
            status: see `Failure`.
            error: what has come out of the app, or `TimeoutError`.
        """
        if not self._may_repeat(status):
            return None
        retry, job, failed = self.policy.retry, self.job, self._failed
        assert retry is not None
        headers = failed.headers if isinstance(failed, CapturedResponse) else ()
        try:
            return retry.pause(Failure(status, headers, error, job.runs))
        except Exception:
            told = {"job": job.id, "route": job.route}
            logger.exception("job %s: whether it is repeated cannot be told", job.id, extra=told)
            return None

    async def _decide_failed(
        self, failed: CapturedResponse | Problem, error: BaseException | None
    ) -> None:
        """Its run has failed and is over: the job waits for another one, or has failed."""
        response = failed if isinstance(failed, CapturedResponse) else None
        problem = None if isinstance(failed, CapturedResponse) else failed
        pause = self._pause
        if pause is None:
            if failed.status < 500:  # it was no answer to that, but to something else
                error = None
            pause = self._pause_after(failed.status, self._raised or error)
        if pause is None or not self._home.goes_on:
            await self._decide(State.FAILED, response, problem)
            return
        self._decided = True
        why = "handler-response" if problem is None else problem.name
        await self._settle(partial(self._repeat, pause, why))

    async def _repeat(self, pause: float, why: str) -> Job:
        home, environment = self._home, self._home.environment
        try:
            job = await home.repeat(self, pause)
        except LeaseLost:
            raise
        except IllegalTransition:  # it was cancelled meanwhile
            ttl = seconds(self.policy.ttl)
            return await environment.ledger.finish(self.job, State.CANCELLED, ttl=ttl)
        if job.stage is State.QUEUED:  # else it was deleted meanwhile
            environment.observers.repeats(job, why)
        return job

    # --- stopping ------------------------------------------------------------------------------

    def stop(self, reason: Reason) -> None:
        """Ask the app to stop, if there is one. If it succeeds all the same, it finished first."""
        if self.stopping is not None:
            self.stopping.stop(reason)

    def give_up(self) -> None:
        """There is nothing to record: the job has ended, or is somebody else's."""
        self._decided = True

    async def interrupt(self) -> None:
        """Record that the server stopped: the job runs again elsewhere if it may, or has failed."""
        if not self._decided:
            self._decided = True
            await self._settle(self._interrupted)

    async def _interrupted(self) -> Job:
        home, job = self._home, self.job
        environment = home.environment
        if job.replayable and environment.lease is not None:
            with suppress(IllegalTransition):
                job = await environment.ledger.requeue(job, 0.0)
                if not environment.in_place:
                    await environment.bring_again(job)
                return job
        ttl = seconds(self.policy.ttl)
        return await environment.ledger.finish(job, State.FAILED, ttl=ttl, error=home.interruption)

    def lose(self, *, deleted: bool = False) -> None:
        """Another process runs the job now, or nobody: stop, and record nothing.

        Args:
            deleted: whether its client has deleted it, for certain.
        """
        if self._decided:
            return
        job, environment = self.job, self._home.environment
        environment.observers.lost(job, environment.clock(), deleted=deleted)
        self._decided = True
        if not job.synchronous:
            self.stop(Reason.LOST)

    def _watch_time(self, timeout: Seconds) -> None:
        assert self.stopping is not None
        self.stopping.after(seconds(timeout), self._out_of_time)

    def _out_of_time(self) -> None:
        """Stop it at once, however long the store takes to hear of it."""
        if not self._decided and self._failed is None:
            assert self.policy.timeout is not None
            problem = timed_out(seconds(self.policy.timeout))
            self._pause = self._pause_after(None, TimeoutError(problem.detail))
            if self._pause is not None:
                self._failed = problem
            else:
                self._decided = True
                self._timed_out = self._home.tasks.gate()
                time_out = partial(self._time_out, problem, self._timed_out)
                self._home.tasks.spawn(time_out, Context())
        self.stop(Reason.TIMEOUT)

    async def _time_out(self, problem: Problem, recorded: Gate) -> None:
        try:
            await self._write(State.FAILED, None, problem, b"")
        finally:
            recorded.open()

    # --- progress ------------------------------------------------------------------------------

    def report(self, progress: Progress) -> None:
        """Note how far the handler is. Never blocks; from any thread."""
        self.progress = progress.after(self.progress)
        self._see_to_flushing()

    def _see_to_flushing(self) -> None:
        if not self._flushing and self.copies:
            self._flushing = True
            self._home.tasks.call_soon(self._start_flushing)

    def _start_flushing(self) -> None:
        self._home.tasks.spawn(self._flush, Context())

    async def _flush(self) -> None:
        """Write the newest report, at most once an interval, until there is nothing new."""
        written = None
        while self.copies and self.progress is not written:
            written = await self._write_progress()
            await anyio.sleep(_PROGRESS_INTERVAL)
        self._flushing = False
        if self.progress is not written:  # a thread has reported meanwhile
            self._see_to_flushing()

    async def _write_progress(self) -> Progress | None:
        """Record the newest report, which may be the last for hours; gives it.

        A store that fails here is asked again, with what is the newest then.
        """
        ledger = self._home.environment.ledger

        async def write() -> Progress | None:
            progress = self.progress
            if progress is not None and self.copies:
                self._became(await ledger.progress(self.job, progress))
            return progress

        try:
            return await ledger.patiently(write)
        except LeaseLost:
            self.lose()
        except (IllegalTransition, UnreadableRecord):  # the next report may fare better
            pass
        return self.progress


async def _nothing() -> None:
    pass


def _sentence(error: Exception) -> str:
    """What raincheck itself says of a response, for its client."""
    said = str(error)
    return f"{said[0].upper()}{said[1:]}."
