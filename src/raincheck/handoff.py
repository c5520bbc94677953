"""The handoff: detaches a response from its request, at the moment of acceptance."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, suppress
from enum import Enum
from typing import Any, Protocol

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck.admission import Ticket
from raincheck.errors import (
    LeaseLost,
    NoRoom,
    Problem,
    Refusal,
    Release,
    RequestTooLarge,
    crashed,
    is_release,
    response_too_large,
    timed_out,
)
from raincheck.job import Job, Progress, State
from raincheck.marking import Mark, current_handoff
from raincheck.messages import CapturedRequest, CapturedResponse, exceeds, first_header
from raincheck.policy import Limits, Policy, seconds
from raincheck.preferences import Decision, decide, parse
from raincheck.recording import ProtocolError, Recorder, TooLarge
from raincheck.stopping import Reason, Stopping
from raincheck.stores.base import Store
from raincheck.tasks import Tasks
from raincheck.uploads import Upload

logger = logging.getLogger("raincheck")

# Extensions with which an app could answer past `send` (ASGI HTTP, "Extensions").
_BYPASSING = frozenset(
    {
        "http.response.pathsend",
        "http.response.zerocopysend",
        "http.response.push",
        "http.response.trailers",
        "http.response.early_hint",
    }
)

VARY = (b"vary", b"Prefer")

# What routing below us writes into the scope, and tracing above us reads when the call is over.
_ROUTED = ("route", "endpoint", "path_params")

# The request's header fields that raincheck itself goes by: one pass over all of them is enough.
_HEARD = frozenset({b"prefer", b"content-length", b"idempotency-key", b"accept", b"sec-fetch-mode"})

# Seconds between writes of one job's progress.
_PROGRESS_INTERVAL = 0.1


class Stage(Enum):
    """Where what the app sends goes."""

    OPEN = "to the client; the handler has not been entered"
    PLAIN = "to the client; this request is synchronous"
    RECORDING = "to the store"
    CLOSED = "nowhere: the outcome is decided, or the request was released"


class Conductor(Protocol):
    """What a handoff needs of the one who owns the jobs."""

    store: Store
    tasks: Tasks
    limits: Limits
    limiter: anyio.CapacityLimiter

    def route_of(self, mark: Mark) -> tuple[str, Policy]:
        """The name of a decorated endpoint's route, and its policy."""

    async def accept(self, handoff: Handoff) -> None:
        """Make a job of the request, and give it a ticket. Raises Refusal."""

    async def begin(self, handoff: Handoff) -> bool:
        """Record that a job which waited runs now; False if it was cancelled meanwhile.

        Raises NoRoom if it waits on, since so many run elsewhere.
        """

    async def keep(self, handoff: Handoff, offset: int, chunk: bytes) -> None:
        """Keep a piece of the response body. Raises LeaseLost."""

    async def finish(
        self,
        handoff: Handoff,
        state: State,
        response: CapturedResponse | None,
        error: Problem | None,
        tail: bytes,
    ) -> None:
        """Record the outcome. Never raises an Exception."""

    async def interrupted(self, handoff: Handoff) -> None:
        """Record that the server stopped, or that the job is to run again."""

    async def settled(self, handoff: Handoff) -> None:
        """Return when nothing of the outcome is on its way into the store any more."""

    async def progressed(self, handoff: Handoff) -> None:
        """Record the newest report."""

    def ended(self, handoff: Handoff) -> None:
        """Nothing of the job runs any more."""


class Handoff:
    """One request under a policy, with the app in a task of its own.

    It stands in for the server, with a private `receive` and `send`. Until acceptance messages
    pass between app and client. From acceptance on the client is gone: the rest of the request
    comes from memory, and what the app sends is recorded.

    Attributes:
        route: the route's name, once it is known.
        policy: the policy it runs under; before the entry, the one it will probably meet.
        fields: the header fields that have a say in it, in order.
        decision: what policy and preference came to.
        vary: whether the route is known to be a marked one, whose answers depend on `Prefer`.
        accepted: the job as it was accepted, be it by this request or by an earlier one.
        replayed: whether its idempotency key named a job that was there.
        job: the newest version known here.
        ticket: its place.
        refusal: why it was refused.
        error: what the app raised without having been accepted.
        progress: the handler's newest report.
        handed_over: opens with acceptance, or with the app's end.
    """

    __slots__ = (
        "_answered",
        "_app",
        "_client_receive",
        "_client_send",
        "_complete",
        "_decided",
        "_entered",
        "_flushing",
        "_read_by_another",
        "_reading",
        "_recorder",
        "_released",
        "_stage",
        "_stopping",
        "_turn",
        "_upload",
        "accepted",
        "conductor",
        "decision",
        "error",
        "fields",
        "handed_over",
        "job",
        "outer_scope",
        "policy",
        "progress",
        "refusal",
        "replayed",
        "route",
        "scope",
        "ticket",
        "vary",
    )

    def __init__(
        self,
        conductor: Conductor,
        app: ASGIApp,
        scope: Scope,
        receive: Receive | None = None,
        send: Send | None = None,
        *,
        route: str | None = None,
        policy: Policy,
    ) -> None:
        self.conductor = conductor
        self.route = route
        self.policy = policy
        self.outer_scope: Scope | None = scope
        self.scope = _private(scope)
        self.fields = [field for field in scope["headers"] if field[0] in _HEARD]
        self.decision: Decision | None = None
        self.vary = False
        self.accepted: Job | None = None
        self.replayed = False
        self.job: Job | None = None
        self.ticket: Ticket | None = None
        self.refusal: Refusal | None = None
        self.error: BaseException | None = None
        self.progress: Progress | None = None
        self.handed_over = conductor.tasks.gate()
        self._app = app
        self._client_receive = receive
        self._client_send = send
        self._reading = False
        self._read_by_another: anyio.Event | None = None
        self._stage = Stage.OPEN
        self._upload = Upload(policy.max_request_size)
        self._stopping = Stopping(conductor.tasks, seconds(conductor.limits.cancel_grace))
        self._recorder: Recorder | None = None
        self._turn: anyio.Event | None = None
        self._entered = False
        self._released = False  # the job waits without this request, and a replay will run it
        self._answered = False  # something of a response has gone to the client
        self._complete = False  # the response is recorded to its end
        self._decided = False  # the outcome is on its way into the store
        self._flushing = False

    # --- acceptance ----------------------------------------------------------------------------

    async def enter(self, mark: Mark) -> bool:
        """See `marking.Entrance.enter`."""
        if self._entered or self._stage is Stage.PLAIN:
            return False
        self._entered = True
        if self.job is not None:  # a path rule or a replay: accepted before it began
            self._learn_policy(mark)
            return self._stage is Stage.RECORDING
        if self._answered:
            logger.warning("%s was entered after its response began; it is synchronous", mark.name)
            return False
        self.route, self.policy = self.conductor.route_of(mark)
        if not self.prefers_async():
            self._stage = Stage.PLAIN
            return False
        self._turn = anyio.Event() if self.holds else None
        try:
            await self.accept()
        except Refusal as refusal:
            self.refusal = refusal
        runs = self.runs
        if not runs:
            self._hand_over(Stage.CLOSED)
        if self.job is not None and not runs:
            if not self.holds:
                self._released = True
            else:
                runs = await self._held()
        if not runs:
            raise Release
        self.record()
        return True

    def _learn_policy(self, mark: Mark) -> None:
        """A replay in another process may have begun before the endpoint was ever seen there."""
        route, policy = self.conductor.route_of(mark)
        if route == self.route and policy is not self.policy and self._recorder is not None:
            untimed, self.policy = self.policy.timeout is None, policy
            self._recorder.max_size = policy.max_response_size
            if untimed:
                self._watch_time()

    def prefers_async(self) -> bool:
        """Decide by the policy and the client's preference."""
        self.decision = decide(self.policy, parse(self.fields))
        self.vary = True
        return self.decision.asynchronous

    async def accept(self) -> None:
        """Drain the body and become a job, unless the client leaves before.

        Raises:
            Refusal: nothing was stored.
        """
        limit = self._upload.limit = self.policy.max_request_size
        declared = first_header(self.fields, b"content-length")
        too_large = declared is not None and exceeds(declared, limit)
        while not (self._upload.whole or self._upload.too_large or too_large):
            message = await self._read()
            if message is None:
                continue
            if message["type"] == "http.disconnect":
                return
            self._upload.arrive(message)
        if too_large or self._upload.too_large:
            raise RequestTooLarge(f"The body may have {limit} bytes.")
        await self.conductor.accept(self)

    @property
    def runs(self) -> bool:
        """Whether it was accepted with capacity, and goes on where it is."""
        return self.job is not None and self.job.state is State.RUNNING

    @property
    def interrupted(self) -> bool:
        """Whether the server stopped while it was being accepted."""
        return self._stopping.reason is Reason.INTERRUPTED

    @property
    def holds(self) -> bool:
        """Whether the live request stays while it waits for its turn."""
        return self.policy.hold and self._entered

    def capture(self) -> CapturedRequest:
        """The request as bytes."""
        assert self.outer_scope is not None
        return CapturedRequest.of(self.outer_scope, self._upload.body())

    def kept_request(self) -> CapturedRequest:
        """What of the request may be kept for a replay."""
        return self.capture().without(self.policy.drop_headers)

    def record(self) -> None:
        """Go on in the background: from now on what the app sends goes to the store."""
        assert self.job is not None
        self._recorder = Recorder(self._keep, self.scope["method"], self.policy.max_response_size)
        self._upload.let_go()
        self._hand_over(Stage.RECORDING)
        self._watch_time()

    def _watch_time(self) -> None:
        if self.policy.timeout is not None:
            self._stopping.after(seconds(self.policy.timeout), self._out_of_time)

    def replay(self, request: CapturedRequest) -> None:
        """Go on in the background with the body of a captured request."""
        self._upload = Upload.of(request.body)
        self.record()

    def turn(self) -> None:
        """The turn of a held request has come."""
        assert self._turn is not None
        self._turn.set()

    async def _held(self) -> bool:
        while True:
            assert self._turn is not None
            with self._stopping.inside():
                await self._turn.wait()
            self._turn = anyio.Event()
            with suppress(NoRoom):  # its turn comes once more
                return await self.conductor.begin(self)

    def _hand_over(self, stage: Stage) -> None:
        self._stage = stage
        self._show_route()
        self.handed_over.open()
        # A running job keeps nothing of the connection that it came by.
        self._client_receive = self._client_send = self.outer_scope = None

    # --- the app's side ------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the app to its end, in a task of its own. Raises nothing but GeneratorExit."""
        current_handoff.set(self)
        error: BaseException | None = None
        try:
            if self._stopping.reason is None:  # cancelled while its start was being recorded
                with self._stopping.inside():
                    await self._app(self.scope, self.receive, self.send)
        except GeneratorExit:  # the event loop was thrown away; nothing can be awaited any more
            raise
        except BaseException as caught:
            # The task ends here: what it ended with goes to the client's task or to the record.
            error = caught
        await self._end(error)

    def inside(self) -> AbstractContextManager[object]:
        """See `marking.Entrance.inside`."""
        return self._stopping.inside()

    @property
    def limiter(self) -> anyio.CapacityLimiter:
        """The threads for synchronous handlers."""
        return self.conductor.limiter

    async def receive(self) -> Message:
        """ASGI `receive` for the app."""
        while True:
            if (part := self._upload.next()) is not None:
                return part
            if self._client_receive is None:
                break
            message = await self._read()
            if message is None:
                continue
            if message["type"] == "http.request":
                self._upload.passed(message)
                return message
            if self._client_receive is not None:
                return message
            # The client has gone, but the request was accepted in the meantime (law 10).
        # Nothing more comes. An answer here would end a streaming response: under ASGI 2.3 it
        # watches for one beside its own sending. So this blocks until the app is to stop.
        await self._stopping.disconnected()
        return {"type": "http.disconnect"}

    async def _read(self) -> Message | None:
        """Receive from the client, one task at a time; None if another task has just done so.

        Quart reads the body in a task beside the handler. Two that wait for the server at once
        would have parts of the body in the wrong order, or lose them.
        """
        if self._reading:
            if self._read_by_another is None:
                self._read_by_another = anyio.Event()
            await self._read_by_another.wait()
            return None
        assert self._client_receive is not None
        self._reading = True
        try:
            return await self._client_receive()
        finally:
            self._reading = False
            if self._read_by_another is not None:
                self._read_by_another.set()
                self._read_by_another = None

    async def send(self, message: Message) -> None:
        """ASGI `send` for the app."""
        if self._stage is Stage.RECORDING:
            await self._record(message)
        elif self._stage is Stage.CLOSED:
            if self._complete:
                raise self._broken("the handler sent something after its response was complete")
        else:
            assert self._client_send is not None
            self._answered = True
            if self.vary and message["type"] == "http.response.start":
                message = {**message, "headers": with_vary(message.get("headers", ()))}
            await self._client_send(message)

    # --- the outcome ---------------------------------------------------------------------------

    async def _record(self, message: Message) -> None:
        assert self._recorder is not None
        try:
            response = await self._recorder.take(message)
        except TooLarge:
            problem = response_too_large(self.policy.max_response_size)
            await self._decide(State.FAILED, error=problem)
            raise Release from None  # unwinds the handler, which has nothing left to say
        except LeaseLost:
            self.lose()
            raise Release from None
        except ProtocolError as error:
            problem = crashed(f"The response broke the protocol: {error}.")
            await self._decide(State.FAILED, error=problem)
            raise self._broken(str(error)) from error
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

    async def _keep(self, offset: int, piece: bytes) -> None:
        await self.conductor.keep(self, offset, piece)

    async def _decide(
        self,
        state: State,
        *,
        response: CapturedResponse | None = None,
        error: Problem | None = None,
    ) -> None:
        """Record the outcome; what the app sends from here on goes nowhere."""
        if not self._decided:
            self._decided = True
            self._stage = Stage.CLOSED
            tail = b"" if response is None or self._recorder is None else self._recorder.tail
            await self.conductor.finish(self, state, response, error, tail)

    async def _end(self, error: BaseException | None) -> None:
        self._stopping.end()
        if error is not None and self._is_our_doing(error):
            error = None
        if self.job is None:
            self.error = error
            self._show_route()
            self.handed_over.open()
            return
        if error is not None:
            logger.error("job %s on %s raised", self.job.id, self.route, exc_info=error)
        if self._released:
            return
        if not self._decided:
            await self._end_unanswered(raised=error is not None)
        await self.conductor.settled(self)
        self._recorder = None  # which refers back to this: no garbage for the collector to find
        self.conductor.ended(self)

    def _is_our_doing(self, error: BaseException) -> bool:
        if isinstance(error, anyio.get_cancelled_exc_class()):
            if self.conductor.tasks.cancelled():
                self._stopping.stop(Reason.INTERRUPTED)
            return self._stopping.reason is not None
        return is_release(error)

    async def _end_unanswered(self, *, raised: bool) -> None:
        """The app has ended, and its response is not complete."""
        if self._stopping.reason is not None:
            await self._decide_stopped(self._stopping.reason)
        elif raised:
            await self._decide(State.FAILED, error=crashed())
        else:
            started = self._recorder is not None and self._recorder.started
            reason = "returned before its response was complete" if started else "sent no response"
            self._broken(f"the handler {reason}")
            await self._decide(State.FAILED, error=crashed(f"The handler {reason}."))

    async def _decide_stopped(self, reason: Reason) -> None:
        if reason is Reason.INTERRUPTED:
            await self.interrupt()
        elif reason is Reason.LOST:
            self._decided = True
            self._stage = Stage.CLOSED
        else:
            await self._decide(State.CANCELLED)

    def _show_route(self) -> None:
        if self.outer_scope is not None:
            found = self.scope
            self.outer_scope.update((key, found[key]) for key in _ROUTED if key in found)

    def _broken(self, reason: str) -> RuntimeError:
        assert self.job is not None
        logger.error("job %s on %s: %s", self.job.id, self.route, reason)
        return RuntimeError(reason)

    # --- stopping ------------------------------------------------------------------------------

    def stop(self, reason: Reason) -> None:
        """Ask the app to stop. If it succeeds all the same, it finished first."""
        self._stopping.stop(reason)

    async def interrupt(self) -> None:
        """Record that the server did not wait for the handler's end."""
        if not self._decided:
            self._decided = True
            self._stage = Stage.CLOSED
            await self.conductor.interrupted(self)

    def lose(self) -> None:
        """Another process runs the job now: stop, and record nothing."""
        if not self._decided:
            logger.warning(
                "job %s was taken over by another process; it stops here", self.job and self.job.id
            )
            self._decided = True
            self._stage = Stage.CLOSED
            self.stop(Reason.LOST)

    @property
    def decided(self) -> bool:
        """Whether the outcome is on its way into the store, or nobody's business here."""
        return self._decided

    def _out_of_time(self) -> None:
        self.conductor.tasks.spawn(self._time_out)

    async def _time_out(self) -> None:
        assert self.policy.timeout is not None
        await self._decide(State.FAILED, error=timed_out(seconds(self.policy.timeout)))
        self.stop(Reason.TIMEOUT)

    # --- progress ------------------------------------------------------------------------------

    def report(self, progress: Progress) -> None:
        """Note how far the handler is. Never blocks; from any thread."""
        self.progress = progress
        if not self._flushing and self._stage is Stage.RECORDING:
            self._flushing = True
            self.conductor.tasks.call_soon(self._start_flushing)

    def _start_flushing(self) -> None:
        self.conductor.tasks.spawn(self._flush)

    async def _flush(self) -> None:
        """Write the newest report, at most once an interval, until there is nothing new."""
        written = None
        while self._stage is Stage.RECORDING and self.progress is not written:
            written = self.progress
            await self.conductor.progressed(self)
            await anyio.sleep(_PROGRESS_INTERVAL)
        self._flushing = False


def _private(scope: Scope) -> Scope:
    """The app's own scope, without the extensions that would bypass its private `send`."""
    private = dict(scope)
    if extensions := private.get("extensions"):
        private["extensions"] = {k: v for k, v in extensions.items() if k not in _BYPASSING}
    return private


def with_vary(headers: Any) -> list[tuple[bytes, bytes]]:
    """These header fields, and `Vary: Prefer` unless they say so already (RFC 7240 §2)."""
    fields = list(headers)
    for name, value in fields:
        if name.lower() == b"vary":
            named = {part.strip().lower() for part in value.split(b",")}
            if named & {b"*", b"prefer"}:
                return fields
    fields.append(VARY)
    return fields
