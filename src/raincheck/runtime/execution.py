"""The detached half of a request: what its app sends is recorded, how it ends is decided once."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from contextvars import Context
from enum import Enum
from functools import partial
from typing import Protocol

import anyio
from starlette.types import Message

from raincheck.errors import (
    ANSWER_NOT_KEPT,
    CRASHED,
    NOT_KEPT,
    LeaseLost,
    Problem,
    Release,
    StoreFull,
    crashed,
    invalid_response,
    is_release,
    response_too_large,
    timed_out,
)
from raincheck.job import Job, Progress, State
from raincheck.messages import CapturedResponse
from raincheck.policy import Policy, seconds
from raincheck.runtime.recorder import ProtocolError, Recorder, TooLarge
from raincheck.runtime.scheduler import Ticket
from raincheck.runtime.stopping import Reason, Stopping
from raincheck.stores.base import Store
from raincheck.tasks import Gate, Tasks

logger = logging.getLogger("raincheck")

# Seconds between writes of one job's progress.
_PROGRESS_INTERVAL = 0.1


class Stage(Enum):
    """Where what the app sends goes."""

    OPEN = "to the client; the handler has not been entered"
    PLAIN = "to the client; this request is synchronous"
    COPYING = "to the client, and to the store: it is synchronous, and has a key"
    RECORDING = "to the store"
    CLOSED = "nowhere: the outcome is decided, or the request was released"


# Asked for with every message: a class is slow to look its members up.
OPEN, PLAIN, COPYING, RECORDING, CLOSED = Stage


class Conductor(Protocol):
    """What an app in a task of its own needs of the one who owns the jobs.

    Attributes:
        store: where the jobs are.
        tasks: the tasks that the app's is one of.
        limiter: the threads for synchronous handlers.
        cancel_grace: seconds that cleanup code has before it is cancelled again.
    """

    store: Store
    tasks: Tasks
    limiter: anyio.CapacityLimiter
    cancel_grace: float

    def waits(self, id: str) -> bool:
        """Whether a job waits for its turn here, or has it and has not begun."""

    async def begin(self, detached: Execution) -> bool:
        """Record that a job which waited runs now; False if it was cancelled meanwhile.

        Raises NoRoom if it waits on, since so many run elsewhere.
        """

    async def keep(self, detached: Execution, offset: int, piece: bytes) -> None:
        """Keep a piece of the response body. Raises LeaseLost, or StoreFull."""

    async def keep_once(self, detached: Execution, offset: int, piece: bytes) -> None:
        """The same, but the store is asked only once. Raises what it raises."""

    async def finish(
        self,
        detached: Execution,
        state: State,
        response: CapturedResponse | None,
        error: Problem | None,
        tail: bytes,
    ) -> None:
        """Record the outcome. Never raises an Exception."""

    def finish_aside(
        self,
        detached: Execution,
        state: State,
        response: CapturedResponse | None,
        error: Problem | None,
        tail: bytes,
    ) -> None:
        """The same, in a task of its own."""

    async def interrupted(self, detached: Execution) -> None:
        """Record that the server stopped, or that the job is to run again."""

    async def settled(self, detached: Execution) -> None:
        """Return when nothing of the outcome is on its way into the store any more."""

    async def progressed(self, detached: Execution) -> None:
        """Record the newest report."""

    def ended(self, detached: Execution) -> None:
        """Nothing of the job runs any more."""


class Execution:
    """An app whose client does not wait for it any more, once its request is accepted.

    What it sends is recorded. It ends by its response, by itself without one, by its timeout or by
    being stopped: whatever comes first is the outcome.

    Args:
        conductor: who owns the jobs.
        route: the route's name, if it is known.
        policy: the policy that it runs under.

    Attributes:
        route: the route's name, once it is known.
        policy: the policy it runs under; before the entry, the one it will probably meet.
        job: the newest version known here.
        ticket: its place.
        progress: the handler's newest report.
    """

    __slots__ = (
        "_complete",
        "_decided",
        "_flushing",
        "_recorder",
        "_stage",
        "_stopping",
        "_timed_out",
        "conductor",
        "job",
        "policy",
        "progress",
        "route",
        "ticket",
    )

    def __init__(
        self,
        conductor: Conductor,
        route: str | None,
        policy: Policy,
        job: Job | None = None,
        ticket: Ticket | None = None,
    ) -> None:
        self.conductor = conductor
        self.route = route
        self.policy = policy
        self.job = job
        self.ticket = ticket
        self.progress: Progress | None = None
        self._stage = OPEN
        self._stopping = Stopping(conductor.tasks, conductor.cancel_grace)
        self._recorder: Recorder | None = None
        self._complete = False  # the response is recorded to its end
        self._decided = False  # the outcome is on its way into the store
        self._flushing = False
        self._timed_out: Gate | None = None  # opens when its timeout is recorded

    def became(self, job: Job) -> None:
        """Hear of a newer version of its job."""
        self.job = job

    @property
    def known(self) -> Job | None:
        """See `decorator.Entrance.known`."""
        job = self.job
        if job is None or job.state is not State.RUNNING:
            return job
        cancelled = self._stopping.reason is Reason.CANCELLED
        return job._replace(state=State.CANCELLING) if cancelled else job

    @property
    def decided(self) -> bool:
        """Whether the outcome is on its way into the store, or nobody's business here."""
        return self._decided

    def inside(self) -> AbstractContextManager[object]:
        """See `decorator.Entrance.inside`."""
        return self._stopping.inside()

    @property
    def limiter(self) -> anyio.CapacityLimiter | None:
        """See `decorator.Entrance.limiter`."""
        return None if self.conductor.tasks.remote() else self.conductor.limiter

    def _start_recording(self, method: str) -> None:
        """From now on what the app sends goes to the store, and its time is running."""
        self._stage = RECORDING
        self._recorder = Recorder(self._keep, method, self.policy.max_response_size)
        self._watch_time()

    def _start_copying(self, method: str) -> None:
        """From now on what the client is sent goes to the store as well."""
        self._stage = COPYING
        self._recorder = Recorder(self._keep_once, method, self.policy.max_response_size)

    def _come_under(self, policy: Policy) -> None:
        """Another policy than it began to run under."""
        assert self._recorder is not None
        untimed, self.policy = self.policy.timeout is None, policy
        self._recorder.allow(policy.max_response_size)
        if untimed:
            self._watch_time()

    # --- the outcome ---------------------------------------------------------------------------

    async def _record(self, message: Message) -> None:
        """Take what the app sends, while it is recorded and after that."""
        if self._stage is CLOSED:
            if self._complete:
                raise RuntimeError("the handler sent something after its response was complete")
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self._stopping.disconnect()
            return
        assert self._recorder is not None
        try:
            response = await self._recorder.take(message)
        except TooLarge:
            problem = response_too_large(self.policy.max_response_size)
            await self._decide(State.FAILED, error=problem)
            raise Release from None  # unwinds the handler, which has nothing left to say
        except StoreFull:
            await self._decide(State.FAILED, error=NOT_KEPT)
            raise Release from None
        except LeaseLost:
            self.lose()
            raise Release from None
        except ProtocolError as error:
            await self._decide(State.FAILED, error=invalid_response(_sentence(error)))
            raise
        if response is None:
            return
        self._complete = True
        self._stopping.spare()
        if response.status < 400:
            await self._decide(State.SUCCEEDED, response=response)
        elif self._stopping.reason is None:
            await self._decide(State.FAILED, response=response)
        else:  # what an error handler made of the stop is no outcome of its own
            await self._decide_stopped(self._stopping.reason)
        # As servers do. Litestar's streams end when they hear of it, and not before.
        self._stopping.disconnect()

    async def _copy(self, message: Message) -> None:
        """Take what the client has been sent; it has its answer, whatever becomes of the copy."""
        if self._stage is not COPYING:
            return
        assert self._recorder is not None
        try:
            response = await self._recorder.take(message)
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
                self._stopping.spare()
                state = State.SUCCEEDED if response.status < 400 else State.FAILED
                self._decide_aside(state, response=response)

    async def _keep(self, offset: int, piece: bytes) -> None:
        await self.conductor.keep(self, offset, piece)

    async def _keep_once(self, offset: int, piece: bytes) -> None:
        await self.conductor.keep_once(self, offset, piece)

    def _decide_aside(
        self,
        state: State,
        *,
        response: CapturedResponse | None = None,
        error: Problem | None = None,
    ) -> None:
        """Record the outcome while the client is answered: it does not wait for the store."""
        self._close()
        tail = b"" if response is None or self._recorder is None else self._recorder.tail
        self.conductor.finish_aside(self, state, response, error, tail)

    async def _decide(
        self,
        state: State,
        *,
        response: CapturedResponse | None = None,
        error: Problem | None = None,
    ) -> None:
        """Record the outcome; what the app sends from here on goes nowhere."""
        if not self._decided:
            self._close()
            tail = b"" if response is None or self._recorder is None else self._recorder.tail
            await self.conductor.finish(self, state, response, error, tail)

    def _close(self) -> None:
        self._decided = True
        self._stage = CLOSED

    async def _finish(self, error: BaseException | None) -> None:
        """The app of an accepted request has ended: by this error, or by returning."""
        assert self.job is not None
        told = self.job.synchronous or isinstance(error, ProtocolError)  # by the server, or already
        if error is not None and not told:
            self._tell_of(error)
        if self._stopping.reason is not None:
            await self._stopping.stopped()
        if not self._decided:
            await self._decide_unanswered(raised=error is not None)
        if self._timed_out is not None:
            await self._timed_out.wait()
        await self.conductor.settled(self)
        self._recorder = None  # which refers back to this: no garbage for the collector to find
        self.conductor.ended(self)

    async def _decide_unanswered(self, *, raised: bool) -> None:
        """The app has ended, and its response is not complete."""
        if self._stopping.reason is not None:
            await self._decide_stopped(self._stopping.reason)
        elif raised:
            await self._decide(State.FAILED, error=crashed())
        else:
            started = self._recorder is not None and self._recorder.started
            reason = "returned before its response was complete" if started else "sent no response"
            await self._decide(State.FAILED, error=invalid_response(f"The handler {reason}."))

    async def _decide_stopped(self, reason: Reason) -> None:
        if reason is Reason.INTERRUPTED:
            await self.interrupt()
        elif reason is Reason.LOST:
            self._close()
        else:
            await self._decide(State.CANCELLED)

    def _is_our_doing(self, error: BaseException) -> bool:
        """Whether what has come out of the app is how it was stopped or released."""
        if isinstance(error, anyio.get_cancelled_exc_class()):
            if self.conductor.tasks.cancelled():
                self._stopping.stop(Reason.INTERRUPTED)
            return self._stopping.reason is not None
        return is_release(error)

    def _tell_of(self, error: BaseException) -> None:
        """Leave what the app raised in the log."""
        assert self.job is not None
        told = {"job": self.job.id, "route": self.route, "reason": CRASHED}
        logger.error("job %s on %s raised", self.job.id, self.route, exc_info=error, extra=told)

    # --- stopping ------------------------------------------------------------------------------

    def stop(self, reason: Reason) -> None:
        """Ask the app to stop. If it succeeds all the same, it finished first."""
        self._stopping.stop(reason)

    async def interrupt(self) -> None:
        """Record that the server did not wait for the handler's end."""
        if not self._decided:
            self._close()
            await self.conductor.interrupted(self)

    def lose(self, *, deleted: bool = False) -> None:
        """Another process runs the job now, or nobody: stop, and record nothing.

        Args:
            deleted: whether its client has deleted it, for certain.
        """
        if self._decided:
            return
        assert self.job is not None
        # Of a synchronous one the client is answered here all the same.
        what = "its answer is not kept" if self.job.synchronous else "it stops here"
        logger.log(
            logging.INFO if deleted else logging.WARNING,
            "job %s (%s) was taken over by another process, or deleted; %s",
            self.job.id,
            self.route,
            what,
        )
        self._close()
        if not self.job.synchronous:
            self.stop(Reason.LOST)

    def _watch_time(self) -> None:
        if self.policy.timeout is not None:
            self._stopping.after(seconds(self.policy.timeout), self._out_of_time)

    def _out_of_time(self) -> None:
        """Stop it at once, however long the store takes to hear of it."""
        if not self._decided:
            self._close()
            self._timed_out = self.conductor.tasks.gate()
            self.conductor.tasks.spawn(partial(self._time_out, self._timed_out), Context())
        self.stop(Reason.TIMEOUT)

    async def _time_out(self, recorded: Gate) -> None:
        assert self.policy.timeout is not None
        problem = timed_out(seconds(self.policy.timeout))
        try:
            await self.conductor.finish(self, State.FAILED, None, problem, b"")
        finally:
            recorded.open()

    # --- progress ------------------------------------------------------------------------------

    def report(self, progress: Progress) -> None:
        """Note how far the handler is. Never blocks; from any thread."""
        self.progress = progress.after(self.progress)
        if not self._flushing and self._stage is RECORDING:
            self._flushing = True
            self.conductor.tasks.call_soon(self._start_flushing)

    def _start_flushing(self) -> None:
        self.conductor.tasks.spawn(self._flush, Context())

    async def _flush(self) -> None:
        """Write the newest report, at most once an interval, until there is nothing new."""
        written = None
        while self._stage is RECORDING and self.progress is not written:
            written = self.progress
            await self.conductor.progressed(self)
            await anyio.sleep(_PROGRESS_INTERVAL)
        self._flushing = False


def _sentence(error: Exception) -> str:
    """What raincheck itself says of a response, for its client."""
    said = str(error)
    return f"{said[0].upper()}{said[1:]}."
