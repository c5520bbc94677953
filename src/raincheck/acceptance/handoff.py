"""The handoff: detaches a response from its request, at the moment of acceptance."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, ContextVar
from threading import get_ident
from typing import Any, Protocol

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck.acceptance.request_body import RequestBody, StoredBody, no_room
from raincheck.bodies.base import LARGE, Bodies
from raincheck.crashes import Catchall
from raincheck.decorator import Mark, current_handoff
from raincheck.errors import (
    CRASHED,
    NoRoom,
    Refusal,
    Release,
    RequestTooLarge,
    is_release,
)
from raincheck.job import Job, Progress, Trace
from raincheck.messages import CapturedRequest, exceeds
from raincheck.policy import Policy
from raincheck.preferences import NO_PREFERENCE, Decision, decide, is_navigation, parse
from raincheck.runtime.observers import Spans
from raincheck.runtime.run import Run
from raincheck.runtime.stopping import Reason, Stopping
from raincheck.tasks import Gate, Stopper, Tasks

logger: logging.Logger = logging.getLogger("raincheck")

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

# What routing below us writes into the scope, and what counts and traces above us reads there; not
# `root_path`, which a mount makes longer for what is below it: our URLs begin with the outer one.
_ROUTED = ("route", "endpoint", "path_params", "router", "fastapi")

# What names a request's place in a trace (W3C Trace Context, §3.2 and §3.3).
_TRACING = frozenset({b"traceparent", b"tracestate"})

_UNSET = object()

_Change = tuple[ContextVar[Any], Any]

# The request's header fields that raincheck itself goes by: one pass over all of them is enough.
_HEARD = frozenset({b"prefer", b"content-length", b"idempotency-key", b"accept", b"sec-fetch-mode"})


class ClientLeft(Exception):
    """The client has left before its request was accepted."""


class Acceptor(Protocol):
    """What a handoff needs of the one who makes jobs of requests.

    Attributes:
        tasks: those of the event loop.
        bodies: where large bodies are kept; None: in the store.
        limiter: the threads for synchronous handlers.
        cancel_grace: seconds that cleanup code has before it is cancelled again.
        route_of: gives the name of a decorated endpoint's route, and its policy.
    """

    tasks: Tasks
    bodies: Bodies | None
    limiter: anyio.CapacityLimiter
    cancel_grace: float
    route_of: Callable[[Mark], tuple[str, Policy]]

    async def accept(self, handoff: Handoff) -> None:
        """Make a job of the request. Raises Refusal."""

    def raised(self, job: Job, error: BaseException) -> None:
        """The app has raised, and no run of the job is to tell of it."""


class Handoff:
    """One request under a policy, with the app in a task of its own.

    It stands in for the server, with a private `receive` and `send`. Until acceptance messages
    pass between app and client. From acceptance on the client is gone: the rest of the request
    comes from memory, and what the app sends is for the run of its job.

    Args:
        acceptor: makes jobs of requests.
        app: the app.
        scope: the request as it came.
        policy: the policy that the request will probably meet.
        route: the route's name, if it is known.
        receive: the server's; None for a replay.
        send: the server's; None for a replay.
        context: a copy of the context variables that it came with; None for a replay.
        inner: those of the app's task; None where they are not to be seen outside.
        vary: whether the route is known to be a marked one, whose answers depend on `Prefer`.
        run: the run of its job, for a replay.

    Attributes:
        route: the route's name, once it is known.
        policy: the policy it runs under; before the entry, the one it will probably meet.
        run: the run of its job, once it is accepted; an earlier request's job is none.
        scope: the request as the app sees it.
        outer_scope: the same as it came; None once the handoff is done.
        context: as given; None once the handoff is done.
        inner: as given; None once the handoff is done.
        state: the `state` in its scope as it came, before the app could write to it.
        stopping: stops the app.
        upload: the request body on its way to the app.
        fields: the header fields that have a say in it, in order, once it is decided.
        decision: what policy and preference came to.
        navigates: whether it is a browser that is going to show the answer as a page.
        named: whether an idempotency key means something to it, and it has one or should.
        vary: as given; true as well once it has met a marked route.
        accepted: the job as it was accepted, be it by this request or by an earlier one.
        made: whether that is a new one, and its own.
        runs: whether it was accepted with capacity, and goes on where it is; a replay may have
            begun its job since.
        replayed: whether its idempotency key named a job that was there.
        keyed: whether others can come to its job by a key.
        refusal: why it was refused.
        error: what the app raised without having been accepted.
        handed_over: opens with acceptance, or with the app's end.
        seeks: whether the endpoint of the job's route is looked for, and has not been entered.
        full: why the job could not begin when it was.
    """

    __slots__ = (
        "_acceptor",
        "_answered",
        "_app",
        "_around",
        "_changed",
        "_client_receive",
        "_client_send",
        "_entered",
        "_left",
        "_plain",
        "_read_by_another",
        "_reading",
        "_recorded",
        "_released",
        "accepted",
        "context",
        "decision",
        "error",
        "fields",
        "full",
        "handed_over",
        "inner",
        "keyed",
        "made",
        "named",
        "navigates",
        "outer_scope",
        "policy",
        "refusal",
        "replayed",
        "route",
        "run",
        "runs",
        "scope",
        "seeks",
        "state",
        "stopping",
        "upload",
        "vary",
    )

    def __init__(
        self,
        acceptor: Acceptor,
        app: ASGIApp,
        scope: Scope,
        policy: Policy,
        route: str | None = None,
        receive: Receive | None = None,
        send: Send | None = None,
        context: Context | None = None,
        inner: Context | None = None,
        vary: bool = False,
        *,
        run: Run | None = None,
    ) -> None:
        self.route = route
        self.policy: Policy = policy
        self.run = run
        self.outer_scope: Scope | None = scope
        self.scope: Scope = {**scope}
        if scope.get("extensions"):
            self.scope["extensions"] = _sendable(scope["extensions"])
        self.context = context
        self.inner = inner
        state = scope.get("state")
        self.state: Any = {**state} if isinstance(state, dict) else state
        stopping = None if run is None else run.stopping
        self.stopping: Stopping = stopping or Stopping(acceptor.tasks, acceptor.cancel_grace)
        self.upload: RequestBody = RequestBody(policy.max_request_size, acceptor.bodies)
        self.fields: Sequence[tuple[bytes, bytes]] = ()
        self.decision: Decision | None = None
        self.navigates: bool = False
        self.vary: bool = vary
        self.accepted: Job | None = None
        self.made: bool = False
        self.runs: bool = False
        self.named: bool = False
        self.replayed: bool = False
        self.keyed: bool = False
        self.refusal: Refusal | None = None
        self.error: BaseException | None = None
        self.handed_over: Gate = acceptor.tasks.gate()
        self.seeks: bool = False
        self.full: NoRoom | None = None
        self._acceptor = acceptor
        self._app = app
        self._changed: Sequence[_Change] = ()  # of the context variables, by the app
        self._around = scope.get("app")  # the app that we stand in, if it is one that says so
        self._client_receive = receive
        self._client_send = send
        self._recorded = False  # what the app sends is its run's from now on
        self._plain = False  # it is synchronous, and has no job
        self._reading = False
        self._read_by_another: anyio.Event | None = None
        self._entered = False
        self._released = False  # the job waits without this request, and a replay will run it
        self._answered = False  # something of a response has gone to the client
        self._left: OSError | None = None  # what the server said when the client had left

    # --- what handlers see ---------------------------------------------------------------------

    @property
    def job(self) -> Job | None:
        """See `decorator.Entrance.job`."""
        return None if self.run is None else self.run.job

    @property
    def known(self) -> Job | None:
        """See `decorator.Entrance.known`."""
        return None if self.run is None else self.run.known

    @property
    def stops(self) -> bool:
        """See `decorator.Entrance.stops`."""
        return self.stopping.wanted

    def unwind(self) -> None:
        """See `decorator.Entrance.unwind`."""
        if self.run is not None and self.run.started:
            self.stopping.tear()

    @property
    def limiter(self) -> anyio.CapacityLimiter | None:
        """See `decorator.Entrance.limiter`."""
        acceptor = self._acceptor
        return None if acceptor.tasks.remote() else acceptor.limiter

    def report(self, progress: Progress) -> None:
        """See `decorator.Entrance.report`."""
        if self.run is not None and not self._released:
            self.run.report(progress)

    def raised(self, error: Exception) -> None:
        """See `decorator.Entrance.raised`."""
        if self.run is not None:
            self.run.raised(error)

    # --- acceptance ----------------------------------------------------------------------------

    async def enter(self, mark: Mark) -> Stopper | None:
        """See `decorator.Entrance.enter`."""
        if self._entered or self._plain:
            return None
        tasks = self._acceptor.tasks
        if get_ident() != tasks.thread and tasks.remote():  # the store and the client are there
            return await self._enter_remotely(mark)
        self._entered = True
        if self.run is not None:  # a path rule or a replay: accepted before it began
            if self.seeks:
                await self._found(mark)
            self._learn_policy(mark)
            plain = not self._recorded or self.run.decided or self.run.job.synchronous
            return None if plain else self.stopping.inside()
        if self._answered:
            logger.warning("%s was entered after its response began; it is synchronous", mark.name)
            return None
        self.route, self.policy = self._acceptor.route_of(mark)
        asynchronous = self.prefers_async()
        if not (asynchronous or self.named):
            self._plain = True
            return None
        await self.accept()
        run = self.run
        if run is not None and not asynchronous:
            self.copy()
            return None
        if not self.runs:
            self._hand_over()
            if run is None or not run.held:
                self._released = self.made
                raise Release(self._answer())
            if not await run.until_begun():
                raise Release
            self.record()
        return self.stopping.inside()

    async def _enter_remotely(self, mark: Mark) -> Stopper | None:
        async def enter() -> bool:
            block = await self.enter(mark)
            if block is not None:  # that of another task than the one that asks
                block.left(None)
            return block is not None

        runs = await self._acceptor.tasks.call(enter)
        if runs and self.run is not None and self.run.span is not None:
            self.run.span.enter()  # in the context variables that are the handler's
        return self.stopping.inside_remotely() if runs else None

    def _answer(self) -> int | None:
        """The status that the client is answered now; None if it has left."""
        if self.refusal is not None:
            return self.refusal.status
        return None if self.accepted is None else 202

    def _learn_policy(self, mark: Mark) -> None:
        """A replay in another process may have begun before the endpoint was ever seen there."""
        route, policy = self._acceptor.route_of(mark)
        if route == self.route and policy is not self.policy and self._recorded:
            self.policy = policy
            assert self.run is not None
            self.run.come_under(policy)

    def prefers_async(self) -> bool:
        """Decide by the policy and the client's preference."""
        fields = self.fields = []
        for field in self.scope["headers"]:  # no comprehension, which is a call
            if field[0] in _HEARD:
                fields.append(field)
        given, meaning = dict(fields), self.policy.idempotency
        preference = parse(fields) if b"prefer" in given else NO_PREFERENCE
        self.decision = decide(self.policy, preference)
        self.navigates = is_navigation(fields)
        keyed = meaning == "optional" and b"idempotency-key" in given
        self.named = keyed or meaning == "required"
        self.vary = True
        return self.decision.asynchronous

    @property
    def in_place(self) -> bool:
        """Whether it has a job, and its client is answered in place all the same."""
        return self.run is not None and self.run.job.synchronous

    @contextmanager
    def synchronous(self) -> Iterator[None]:
        """The block in which the app runs for a client that waits for it."""
        self._plain = True
        token = current_handoff.set(self)
        try:
            yield
        finally:
            current_handoff.reset(token)

    async def accept(self) -> None:
        """Become a job, unless the client leaves before, or it is refused: nothing was stored."""
        try:
            for name, value in self.fields:
                if name == b"content-length" and exceeds(value, self.policy.max_request_size):
                    raise self._too_large()
            await self._acceptor.accept(self)
        except ClientLeft:
            pass
        except Refusal as refusal:
            self.refusal = refusal

    def become(self, run: Run, keyed: bool) -> None:
        """Have a new job from now on; its client waits for a synchronous one."""
        self.made, self.run, self.keyed = True, run, keyed
        self.runs = not run.waits
        self.accepted = None if run.job.synchronous else run.job
        if self.runs and self.accepted is not None:  # its run records it already
            self._detach(run)

    def become_elsewhere(self, job: Job, *, keyed: bool) -> None:
        """Have a new job that others run."""
        self.made, self.accepted, self.keyed = True, job, keyed

    def join(self, job: Job, *, replayed: bool = False) -> None:
        """Be one with an earlier job."""
        self.accepted, self.replayed = job, replayed

    async def drain(self) -> None:
        """Read the rest of the body.

        Raises:
            RequestTooLarge: it is larger than the policy allows.
            StoreUnavailable: there is no room for it.
            ClientLeft: it will never be here.
        """
        body, limit = self.upload, self.policy.max_request_size
        while not body.whole and body.size <= limit:
            message = await self._read()
            if message is None:
                continue
            if message["type"] == "http.disconnect":
                raise ClientLeft
            if body.arrive(message) and not await body.spill():
                raise no_room()
        if body.size > limit:
            raise self._too_large()

    def _too_large(self) -> RequestTooLarge:
        limit = self.policy.max_request_size
        return RequestTooLarge(f"The request body may have {limit} bytes.")

    @property
    def interrupted(self) -> bool:
        """Whether the server stopped before anything was answered."""
        return self.stopping.reason is Reason.INTERRUPTED and not self._answered

    @property
    def holds(self) -> bool:
        """Whether the live request stays while it waits for its turn."""
        return self.policy.hold and self._entered

    async def capture(self) -> CapturedRequest:
        """The request as bytes, once it is drained; a large body apart if such bodies are.

        Raises:
            RequestTooLarge: more of it was read before the entry than is kept.
        """
        if self.upload.lost:
            raise RequestTooLarge(
                "More of the request body was read before the handler than is kept, and this "
                "request needs all of it."
            )
        apart = None if self.upload.size < LARGE else self.upload.apart
        body = await self.upload.body() if apart is None else b""
        assert self.outer_scope is not None
        return CapturedRequest.of(self.outer_scope, body, apart)

    async def kept_request(self) -> CapturedRequest:
        """What of the request may be kept for a replay. Raises as `capture()` does."""
        return (await self.capture()).without(self.policy.drop_headers)

    def record(self) -> None:
        """Go on in the background: from now on what the app sends goes to the store."""
        assert self.run is not None
        self.run.record(self.scope["method"])
        self._detach(self.run)

    def _detach(self, run: Run) -> None:
        self._recorded = True
        self._hand_over()
        if run.span is not None:
            self._follow(run.span)

    def _follow(self, span: Spans) -> None:
        if self._entered:  # by the running task, which is the app's
            span.enter()
        elif span.trace is not None:
            self.retrace(span.trace)

    def retrace(self, trace: Trace | None) -> None:
        """Let the app, which has not begun, find this place in a trace, and not its client's.

        What is kept of the request stays as it is.
        """
        fields = [field for field in self.scope["headers"] if field[0] not in _TRACING]
        if trace is not None:
            fields.append((b"traceparent", trace.parent.encode()))
            if trace.state:
                fields.append((b"tracestate", trace.state.encode()))
        self.scope["headers"] = fields

    def copy(self, inner: Context | None = None) -> None:
        """Go on in place: the client is answered, and its answer goes to the store as well.

        Args:
            inner: the context variables of the app's task, if it has not begun.
        """
        assert self.run is not None
        self.inner = self.inner if inner is None else inner  # which is false if it is empty
        self.upload.let_go()
        self.run.copy(self.scope["method"])
        self._recorded = True

    def replay(self, request: CapturedRequest) -> None:
        """Go on in the background with the body of a captured request."""
        apart = request.apart
        self.upload = RequestBody.of(request.body) if apart is None else StoredBody(apart)
        self.record()

    def seek(self, request: CapturedRequest, patience: float) -> None:
        """Look for the endpoint of the job's route: nobody here has seen it.

        What the app sends goes nowhere until it is entered, and then the job begins.

        Args:
            request: the captured request.
            patience: seconds until the app is stopped if it has not been entered.
        """
        apart = request.apart
        self.upload = RequestBody.of(request.body) if apart is None else StoredBody(apart)
        self.seeks = self._released = True
        self._hand_over()
        self.stopping.after(patience, self._seek_no_longer)

    def _seek_no_longer(self) -> None:
        if self.seeks:
            self.stopping.stop(Reason.LOST)

    async def _found(self, mark: Mark) -> None:
        """Begin, if this is the endpoint that is looked for.

        Raises:
            Release: it is another one; or the job may not begin, or not yet.
        """
        route, policy = self._acceptor.route_of(mark)
        run = self.run
        assert run is not None
        if route != self.route or not run.waits:
            raise Release(202)
        self.policy = policy
        run.come_under(policy)
        self.seeks = self._released = False
        try:
            with self.stopping.noted():
                begun = await run.begin()
        except NoRoom as full:
            self.full, self._released = full, True
            raise Release(202) from None
        if not begun:
            run.give_up()  # there is nothing to record: it has ended, or is somebody else's
        if not begun or self.stopping.reason is not None:
            raise Release(202)
        self.record()

    def _hand_over(self) -> None:
        self.show_route(self.outer_scope)
        if self.inner is not None:  # what comes now is the job's own
            self._changed, self.inner = changes(self.inner, self.context), None
        self.upload.let_go()
        # A running job keeps nothing of the connection that it came by.
        self._client_receive = self._client_send = self.outer_scope = None
        self.context = self.state = None
        self.fields = ()
        self.handed_over.open()

    def bring_back(self) -> None:
        """Let what the app has changed of the context variables be seen outside."""
        if self.inner is not None:  # it leads back here: no garbage to collect
            self._changed, self.inner = changes(self.inner, self.context), None
        if self._changed:
            bring_back(self._changed)

    def show_route(self, outer: Scope | None) -> None:
        """Write what routing has found into the scope as it came, if that is there."""
        if outer is not None:
            scope = self.scope
            for key in _ROUTED:
                if key in scope:
                    outer[key] = scope[key]

    # --- the app's side ------------------------------------------------------------------------

    async def conduct(self) -> None:
        """Run the app to its end, in a task of its own.

        Raises:
            BaseException: the event loop was thrown away.
        """
        current_handoff.set(self)
        if self.run is not None and self.run.span is not None:
            self.run.span.enter()
        stopping = self.stopping
        ended: BaseException | None = None
        if stopping.reason is None:  # else cancelled while its start was being recorded
            block = stopping.inside()
            try:
                await self._app(self.scope, self.receive, self.send)
            except BaseException as error:  # for the client's task, or for the record
                ended = await self._ended_by(error, block)
            else:
                block.left(None)
        stopping.end()
        run = self.run
        if not self._recorded or self.upload.file is not None:
            self.upload.close()
        if run is None or run.job.synchronous:
            self.error = ended
            self.show_route(self.outer_scope)
            self.handed_over.open()
        if run is not None and not self._released:
            await run.end(ended)
        elif ended is not None and self._released:
            job = self.job or self.accepted
            assert job is not None
            self._acceptor.raised(job, ended)
        self._acceptor.tasks.release(self)

    async def _ended_by(self, error: BaseException, block: Stopper) -> BaseException | None:
        """What the app has ended with; None if that is how it was stopped or released."""
        try:
            with block:
                if isinstance(error, Exception):
                    await self._let_answer(error)
                raise error
        except BaseException as ended:
            if block.orphaned:
                raise
            self.stopping.end()
            return None if self._is_our_doing(ended) else ended

    def _is_our_doing(self, error: BaseException) -> bool:
        """Whether what has come out of the app is how it was stopped or released."""
        if isinstance(error, anyio.get_cancelled_exc_class()):
            if self._acceptor.tasks.cancelled():
                self.stopping.stop(Reason.INTERRUPTED)
            return self.stopping.reason is not None
        return is_release(error)

    async def _let_answer(self, error: Exception) -> None:
        """Let the app's own handler answer for a crash, as it does for those of other requests."""
        catchall, run = Catchall.around(self._around), self.run
        if catchall is None or run is None or self._released or self.stopping.reason:
            return
        if not self._acceptor.tasks.here():
            return  # the event loop was thrown away
        try:
            await catchall.answer(error, self.scope, self.receive, self.send, begun=run.started)
        except Exception as raised:
            told = {"job": run.job.id, "route": run.job.route, "reason": CRASHED}
            logger.error(
                "job %s: the handler for errors raised", run.job.id, exc_info=raised, extra=told
            )

    async def receive(self) -> Message:
        """ASGI `receive` for the app."""
        while True:
            if (part := await self.upload.next()) is not None:
                return part
            if self._client_receive is None:
                break
            message = await self._read()
            if message is None:
                continue
            if message["type"] == "http.request":
                await self.upload.passed(message)
                return message
            if self._client_receive is not None:
                return message
            # The client has gone, but the request was accepted in the meantime (law 10).
        # Nothing more comes. An answer here would end a streaming response: under ASGI 2.3 it
        # watches for one beside its own sending. So this blocks until the app is to stop.
        await self.stopping.disconnected()
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

    def send(self, message: Message) -> Awaitable[None]:
        """ASGI `send` for the app."""
        client, run = self._client_send, self.run
        if client is None:
            if run is not None and self._recorded:
                return run.take(message)
            return self._send_nowhere(message)
        if not self._answered:
            self._answered = True
            self.show_route(self.outer_scope)
        if self.vary and message["type"] == "http.response.start":
            message = {**message, "headers": with_vary(message.get("headers", ()))}
        if run is not None and self._recorded and run.copies:
            return self._send_and_copy(client, run, message)
        return client(message)

    async def _send_nowhere(self, message: Message) -> None:
        """Take what is for nobody: the request was refused, or its job waits."""
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.stopping.disconnect()

    async def _send_and_copy(self, send: Send, run: Run, message: Message) -> None:
        if self._left is None:
            try:
                await send(message)
            except OSError as error:  # as servers say that the client has left (ASGI HTTP, 2.4)
                self._left = error
        # The handler has done its work: whoever sends the key again is given its answer.
        await run.take_copy(message)
        if self._left is not None and not run.complete and not run.copies:
            raise self._left  # nobody wants the rest


def _sendable(extensions: Mapping[str, Any]) -> dict[str, Any]:
    """Those that do not bypass the private `send`."""
    return {key: value for key, value in extensions.items() if key not in _BYPASSING}


def changes(inner: Context, outer: Context | None) -> Sequence[_Change]:
    """What an app has changed of the context variables.

    Args:
        inner: those of the app's task.
        outer: as they were.
    """
    assert outer is not None
    changed: Sequence[_Change] = ()
    for variable, value in inner.items():
        if variable is not current_handoff and outer.get(variable, _UNSET) is not value:
            changed = (*changed, (variable, value))
    return changed


def bring_back(changed: Sequence[_Change]) -> None:
    """Set what an app has changed, as if it had run in the running task.

    Context changes do not come back from a task by themselves; what stands outside of us goes by
    them all the same, such as an access log by what a dependency has bound.
    """
    for variable, value in changed:
        variable.set(value)


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
