"""A model of the whole: clients, handlers, time and restarts in any order, against plain Python.

Hypothesis makes up sequences of steps. `World` says in plain Python what each of them must come
to; after each step everything that clients can see, and all capacity, is compared with it. Time
stands still but for the steps that let it pass. Nothing falls due at the same moment as anything
else: the spans are fractions of two that have no sums in common.

The default run is derandomized. The long one takes minutes, and other steps every time:

    RAINCHECK_MODEL=long pytest tests/test_model.py
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import anyio
import pytest
import trio
import trio.testing
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from raincheck import (
    Job,
    Jobs,
    Limits,
    LongRunningMiddleware,
    MemoryStore,
    Policy,
    State,
    current_job,
    long_running,
)
from raincheck.dialects.plain import WORDS
from raincheck.job import TRANSITIONS
from raincheck.runtime.expiry import SWEEP_INTERVAL
from raincheck.runtime.recorder import PIECE
from raincheck.stores.base import Abandoned
from raincheck.testing import lifespan
from tests.conftest import PHASES, AutojumpLoop, long
from tests.support import Numbers, RawRequest, unfinished

LONG = long("MODEL")

pytestmark = pytest.mark.timeout(7200 if LONG else 120)

T = TypeVar("T")

EPOCH = 1_800_000_000.0

TTL = 40.0
TOMBSTONE_TTL = 30.0
TIMEOUT = 4 + 2**-10
CLEANUP = 2 + 2**-12
DRAIN = 5 + 2**-14

LIMITS = Limits(
    max_running=3,
    max_queued=4,
    drain_timeout=DRAIN,
    cancel_grace=2 * CLEANUP,
    tombstone_ttl=TOMBSTONE_TTL,
    lease=1,
)

RULE = "/rule"
HELD = "/held"
POLICIES = {
    "/plain": Policy(ttl=TTL),
    "/single": Policy(ttl=TTL, max_running=1, max_queued=2),
    HELD: Policy(ttl=TTL, max_running=1, hold=True),
    "/timed": Policy(ttl=TTL, max_running=2, timeout=TIMEOUT),
    "/shared": Policy(ttl=TTL, max_running=1, coalesce=True),
    "/quota": Policy(ttl=TTL, max_running_per_owner=1, max_queued_per_owner=1),
    RULE: Policy(ttl=TTL, max_running=2, timeout=TIMEOUT),
}

OWNERS = [None, "ann", "bob"]

# What a handler does, as the body of its request says.
QUICK = b"answers at once"
SLOW = b"waits for its cue, and stops when it is told to"
CAREFUL = b"waits for its cue, and when it is told to stop cleans up before"
LATE = b"waits for its cue, and when it is told to stop answers all the same"

CRASH = 0
"""The cue to raise; all others are the status to answer with."""

LARGE = 202
"""The status of a response that is kept in pieces."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Handlers that crash are logged with their traces, thousands of times."""
    caplog.set_level(logging.CRITICAL, "raincheck")


# --- the model ---------------------------------------------------------------------------------


@dataclass(eq=False)
class Expected:
    """A job as it must be.

    Attributes:
        began: when its handler began; None if it never did.
        states: all it has been in, with the times.
        outcome: status and text, or status and the name of the problem.
        stops: when its handler, which was told to stop, ends.
        touched: how often clients have joined or left.
        awaited: until when the client that made it waits for its response.
        expires: from then on it is gone.
        purge: from then on it may be unknown, and soon must be.
        gone: deleted, or forgotten because nobody was told of it.
        unknown: its status URL was 404 once.
    """

    number: int
    path: str
    owner: str | None
    body: bytes
    keys: set[str]
    states: list[tuple[float, State]] = field(default_factory=list)
    began: float | None = None
    outcome: tuple[int, str] | None = None
    answered: bool = False
    clients: int = 1
    touched: int = 0
    stops: float | None = None
    interrupted: bool = False
    awaited: float = -math.inf
    expires: float = math.inf
    purge: float = math.inf
    gone: bool = False
    unknown: bool = False
    id: str = ""

    @property
    def state(self) -> State:
        return self.states[-1][1]

    @property
    def finished(self) -> bool:
        return not TRANSITIONS[self.state]

    @property
    def policy(self) -> Policy:
        return POLICIES[self.path]

    def state_at(self, moment: float) -> State:
        return [state for since, state in self.states if since <= moment][-1]


class World:
    """What must be true."""

    def __init__(self, shared: bool) -> None:
        self.shared = shared
        self.now = 0.0
        self.jobs: list[Expected] = []
        self.active: list[Expected] = []  # those whose handlers run
        self.queue: list[Expected] = []  # in the order in which they came
        self.left: list[Expected] = []  # those that wait for another process
        self.turns: dict[str, list[str | None]] = {path: [] for path in POLICIES}
        self.drained: float | None = None  # when shutdown will have waited long enough
        self.closed = False
        self.sweeps = self._started()  # since when the store is swept

    # --- what clients do -----------------------------------------------------------------------

    def submit(
        self, path: str, owner: str | None, body: bytes, key: str | None, wait: float
    ) -> int | Expected:
        """The job that the request is, new or not; or the status that refuses it."""
        if self.drained is not None:
            return 503
        if key is not None and (known := self.keyed(path, owner, key)):
            return known if known.body == body else 422
        keys = set() if key is None else {key}
        policy = POLICIES[path]
        if policy.coalesce:
            for twin in self.active + self.queue:
                same = (twin.path, twin.owner, twin.body) == (path, owner, body)
                if same and not twin.gone and twin.state in (State.QUEUED, State.RUNNING):
                    twin.clients += 1
                    twin.touched += 1
                    twin.keys |= keys
                    return twin
        someone = self._next_on(path) is not None
        runs = len(self.active) < LIMITS.max_running and self._free(path, owner) and not someone
        waiting = [job for job in self.queue if job.path == path]
        if not runs:
            quota, bound = policy.max_queued_per_owner, policy.max_queued
            mine = [job for job in waiting if job.owner == owner]
            if owner is not None and quota is not None and len(mine) >= quota:
                return 429
            if bound is not None and len(waiting) >= bound:
                return 503
            if len(self.queue) >= LIMITS.max_queued:
                return 503
        job = Expected(len(self.jobs), path, owner, body, keys)
        self.jobs.append(job)
        self.sweeps = min(self.sweeps, self.now)
        if wait:
            job.awaited = self.now + wait
        if runs:
            self._begin(job)
        else:
            job.states.append((self.now, State.QUEUED))
            self.queue.append(job)
            if owner not in self.turns[path]:
                self.turns[path].append(owner)
        return job

    def keyed(self, path: str, owner: str | None, key: str) -> Expected | None:
        for job in self.jobs:
            scope = job.path, job.owner
            if scope == (path, owner) and key in job.keys and not self.buried(job):
                return job
        return None

    def cancel(self, job: Expected) -> None:
        if job.finished or job.state is State.CANCELLING:
            return
        job.touched += 1
        if job.clients > 1:
            job.clients -= 1
        elif job in self.queue:
            self._dequeue(job)
            self._record(job, State.CANCELLED)
        else:
            self._record(job, State.CANCELLING)
            self._stop(job)

    def delete(self, job: Expected) -> None:
        alone = job.clients == 1
        self.cancel(job)
        if alone:
            self._forget(job, TOMBSTONE_TTL)

    # --- what handlers and servers do ----------------------------------------------------------

    def end(self, job: Expected, status: int) -> None:
        """The handler answers, or crashes."""
        crash = status == CRASH
        status, text = (500, "Internal Server Error") if crash else (status, said(job.body, status))
        self._record(job, State.SUCCEEDED if status < 400 else State.FAILED, (status, text))
        self._leave(job)

    def shut_down(self) -> None:
        self.drained = self.now + DRAIN
        for job in self.jobs:  # nobody waits for its response any more
            job.awaited = min(job.awaited, self.now)
        self._close()

    def restart(self) -> None:
        self.drained, self.closed, self.sweeps = None, False, self._started()

    def advance(self, until: float) -> None:
        """Let time pass, and everything happen that falls due."""
        while True:
            due = [self._due(job) for job in self.active]
            if self.drained is not None and self.drained > self.now:
                due.append((self.drained, self._interrupt))
            moment, happens = min(due, key=lambda pair: pair[0], default=(math.inf, self._close))
            if moment > until:
                break
            self.now = moment
            happens()
        self.now = until

    # --- what is asked -------------------------------------------------------------------------

    def buried(self, job: Expected) -> bool:
        return job.gone or job.expires <= self.now

    def forgotten(self, job: Expected) -> bool | None:
        """Whether nothing is left of it; None if it is not due yet."""
        if self.now < job.purge:
            return False
        # A sweep buries what has expired, and the next one forgets it.
        return True if max(job.purge, self.sweeps) + 2 * SWEEP_INTERVAL < self.now else None

    def position(self, job: Expected) -> int | None:
        """How many turns until this one's, the owners on its route taking theirs."""
        if job not in self.queue:
            return None
        turns = list(self.turns[job.path])
        queue = [other for other in self.queue if other.path == job.path]
        ahead = 0
        while True:
            owner = turns.pop(0)
            first = next(other for other in queue if other.owner == owner)
            if first is job:
                break
            ahead += 1
            queue.remove(first)
            if any(other.owner == owner for other in queue):
                turns.append(owner)
        for path in POLICIES.keys() - {job.path}:
            if self._next_on(path):
                ahead += sum(o.path == path and o.number < job.number for o in self.queue)
        return ahead + 1

    # --- how it goes on ------------------------------------------------------------------------

    def _free(self, path: str, owner: str | None) -> bool:
        policy = POLICIES[path]
        running = [job for job in self.active if job.path == path]
        mine = [job for job in running if job.owner == owner]
        each = policy.max_running_per_owner
        if owner is not None and each is not None and len(mine) >= each:
            return False
        return policy.max_running is None or len(running) < policy.max_running

    def _next_on(self, path: str) -> Expected | None:
        for owner in self.turns[path]:
            if self._free(path, owner):
                return next(job for job in self.queue if (job.path, job.owner) == (path, owner))
        return None

    def _begin(self, job: Expected) -> None:
        job.began = self.now
        self.active.append(job)
        self._record(job, State.RUNNING)
        if job.body == QUICK:
            self.end(job, 200)

    def _leave(self, job: Expected) -> None:
        self.active.remove(job)
        heads = [head for path in POLICIES if (head := self._next_on(path))]
        if heads and len(self.active) < LIMITS.max_running:
            head = min(heads, key=lambda job: job.number)
            self._dequeue(head)
            if head.owner in (turns := self.turns[head.path]):
                turns.remove(head.owner)
                turns.append(head.owner)
            self._begin(head)
        self._close()

    def _dequeue(self, job: Expected) -> None:
        self.queue.remove(job)
        if not any((o.path, o.owner) == (job.path, job.owner) for o in self.queue):
            self.turns[job.path].remove(job.owner)

    def _record(
        self, job: Expected, state: State, outcome: tuple[int, str] | None = None, name: str = ""
    ) -> None:
        if job.states and job.finished:
            return
        job.states.append((self.now, state))
        if job.gone or not job.finished:
            return
        job.outcome, job.answered = outcome, outcome is not None and not name
        job.expires = self.now + TTL
        job.purge = job.expires + TOMBSTONE_TTL
        keyless = not job.keys and not job.policy.coalesce
        if outcome is not None and keyless and self.now < job.awaited:
            self._forget(job, 0)  # its client has the response, and was never told of a job

    def _fail(self, job: Expected, status: int, name: str) -> None:
        self._record(job, State.FAILED, (status, name), name)

    def _forget(self, job: Expected, tombstone: float) -> None:
        job.gone = True
        job.purge = self.now + tombstone

    def _due(self, job: Expected) -> tuple[float, Callable[[], None]]:
        """What happens to a running handler next."""
        timeout = job.policy.timeout
        if job.stops is None or job.state is State.CANCELLING or job.interrupted:
            assert job.began is not None
            ends = job.began + (timeout if isinstance(timeout, float) else math.inf)
            if not job.finished and ends < (math.inf if job.stops is None else job.stops):
                return ends, partial(self._time_out, job)
        return math.inf if job.stops is None else job.stops, partial(self._stopped, job)

    def _time_out(self, job: Expected) -> None:
        self._fail(job, 504, "timeout")
        self._stop(job)

    def _stop(self, job: Expected) -> None:
        if job.body == SLOW:
            self._stopped(job)
        elif job.stops is None:
            job.stops = self.now + CLEANUP

    def _stopped(self, job: Expected) -> None:
        if job.body == LATE:
            self.end(job, 200)
            return
        if job.interrupted:
            self._fail(job, 503, "interrupted")
        else:
            self._record(job, State.CANCELLED)
        self._leave(job)

    def _started(self) -> float:
        """When sweeping begins: what others have left may be there at once."""
        return self.now if self.shared else math.inf

    def _interrupt(self) -> None:
        for job in self.queue:
            if self.shared and job.path != HELD:
                self.left.append(job)
                job.touched += 1
            else:
                self._fail(job, 503, "interrupted")
        self.queue.clear()
        self.turns = {path: [] for path in POLICIES}
        for job in tuple(self.active):
            job.interrupted = True
            self._stop(job)
        self._close()

    def _close(self) -> None:
        if self.drained is not None and not self.active and not self.queue:
            self.closed = True


def said(body: bytes, status: int) -> str:
    text = f"{status} from a handler that {body.decode()}"
    return text * (2 * PIECE // len(text)) if status == LARGE else text


# --- the app -----------------------------------------------------------------------------------


class Watched(MemoryStore):
    """A store that notes what must never happen."""

    def __init__(self) -> None:
        super().__init__()
        self.created: list[str] = []
        self.leased: set[str] = set()
        self.wrong: list[str] = []

    async def create(
        self, job: Job, *more: Any, lease: float | None = None, **settings: Any
    ) -> Job:
        there = await super().create(job, *more, lease=lease, **settings)
        if there is job:
            self.created.append(job.id)
            self._note(job, lease)
        return there

    def _note(self, job: Job, lease: float | None) -> None:
        if lease is not None:
            self.leased.add(job.id)
        if job.finished or job.gone:
            self.leased.discard(job.id)

    async def replace(self, job: Job, *, lease: float | None = None, **settings: Any) -> bool:
        old = await self.get(job.id)
        replaced = await super().replace(job, lease=lease, **settings)
        if replaced and old is not None:
            self._note(job, lease)
            moves = job.state is not old.state and not job.gone
            if moves and job.state not in TRANSITIONS[old.state]:
                self.wrong.append(f"{old.state} became {job.state}")
            if moves and job.state is State.QUEUED:
                self.wrong.append("it was interrupted, and waits again")
            if old.finished and not job.gone:
                self.wrong.append(f"{old.state} changed")
        return replaced

    async def append_body(
        self, id: str, fence: int, offset: int, chunk: bytes, **more: Any
    ) -> bool:
        kept = await super().append_body(id, fence, offset, chunk, **more)
        if len(chunk) < PIECE:
            self.wrong.append(f"{len(chunk)} bytes were kept by themselves")
        return kept


class SharedWatched(Watched):
    """The same, as if other processes saw it too."""

    shared = True


class Stage:
    """The handlers, each held until it gets its cue."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.inside: set[str] = set()
        self.numbers = Numbers()
        self._cues: dict[str, tuple[anyio.Event, list[int]]] = {}

    def give(self, id: str, status: int) -> None:
        cue, said = self._cues[id]
        said.append(status)
        cue.set()

    async def answer(self, request: Request) -> Response:
        job = current_job()
        assert job is not None
        self.entered.append(job.id)
        self.inside.add(job.id)
        self.numbers.check(request)
        try:
            body = await request.body()
            status = 200 if body == QUICK else await self._play(job.id, body)
            text = said(body, status)
            if status != LARGE:
                return PlainTextResponse(text, status_code=status)
            return StreamingResponse(in_parts(text.encode()), status_code=status)
        finally:
            self.inside.discard(job.id)

    async def _play(self, id: str, body: bytes) -> int:
        cue, status = self._cues[id] = anyio.Event(), []
        try:
            await cue.wait()
        except anyio.get_cancelled_exc_class():
            if body != SLOW:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(CLEANUP)
            if body != LATE:
                raise
            return 200
        if status[0] == CRASH:
            raise RuntimeError("the cue to crash")
        return status[0]


async def in_parts(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1000):
        yield body[start : start + 1000]


def by_header(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


def app_of(stage: Stage, jobs: Jobs) -> ASGIApp:
    def endpoint_of(path: str, policy: Policy) -> Any:
        async def endpoint(request: Request) -> Response:
            return await stage.answer(request)

        if path == RULE:
            return endpoint
        fields = {name: getattr(policy, name) for name in policy.__dataclass_fields__}
        return long_running(name=path.strip("/"), **fields)(endpoint)

    routes = [
        Route(path, endpoint_of(path, policy), methods=["POST"])
        for path, policy in POLICIES.items()
    ]
    rules = {f"POST {RULE}": POLICIES[RULE]}
    inner = Starlette(routes=routes)
    app = LongRunningMiddleware(inner, jobs=jobs, owner=by_header, routes=rules)
    return stage.numbers.around(app)


class StandingLoop(AutojumpLoop):
    """An asyncio loop whose time jumps only where it is told to."""

    passes = False

    def _run_once(self) -> None:
        if self.passes:
            super()._run_once()
        else:
            asyncio.SelectorEventLoop._run_once(self)  # type: ignore[attr-defined] # asyncio's own

    async def settle(self) -> None:
        """Let everything run that can: `wait_all_tasks_blocked()` would wait for time to pass."""
        await asyncio.sleep(0)
        while self._ready:  # type: ignore[attr-defined] # noqa: ASYNC110 - asyncio's own
            await asyncio.sleep(0)


def standing_loop() -> StandingLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, StandingLoop)
    return loop


class Server:
    """The app on an event loop in a thread of its own."""

    def __init__(self, backend: str, shared: bool) -> None:
        self.stage = Stage()
        self.store = SharedWatched() if shared else Watched()
        self.jobs = Jobs(
            store=self.store, limits=LIMITS, clock=lambda: EPOCH + anyio.current_time()
        )
        self._app = app_of(self.stage, self.jobs)
        self._trio = trio.testing.MockClock() if backend == "trio" else None
        options = {"clock": self._trio} if self._trio else {"loop_factory": StandingLoop}
        self._stack = ExitStack()
        self.portal = self._stack.enter_context(start_blocking_portal(backend, options))
        self.running: Future[None] | None = None
        self._begun: list[Future[None]] = []
        self.start()

    def call(self, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step, and let everything run that can."""

        async def taken() -> T:
            result = await step()
            await self.settled()
            return result

        return self.portal.call(taken)

    async def settled(self) -> None:
        """Let everything run that can, in no time."""
        if self._trio is not None:
            await anyio.wait_all_tasks_blocked()
        else:
            await standing_loop().settle()

    def begin(self, request: RawRequest) -> Future[None]:
        """Send a request whose answer may take its time."""
        future = self.portal.start_task_soon(request.run, self._app)
        self._begun.append(future)
        self.portal.call(self.settled)
        return future

    async def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        request = RawRequest(path, method, **headers)
        request.feed()
        await request.run(self._app)
        return Answer.to(request)

    def pass_time(self, seconds: float) -> None:
        async def sleep() -> None:
            self._let_pass(True)
            await anyio.sleep(seconds)
            self._let_pass(False)

        self.call(sleep)

    def _let_pass(self, passes: bool) -> None:
        if self._trio is not None:
            self._trio.autojump_threshold = 0 if passes else math.inf
        else:
            standing_loop().passes = passes

    def start(self) -> None:
        started = Future[None]()

        async def live() -> None:
            self._stop = anyio.Event()
            async with lifespan(self._app):
                started.set_result(None)
                await self._stop.wait()

        self.running = self.portal.start_task_soon(live)
        self._begun.append(self.running)
        started.result(10)

    def stop(self) -> None:
        self.portal.call(self._stop.set)
        self.portal.call(self.settled)

    def leave(self) -> None:
        """End, whatever still runs."""
        self.portal.call(self._let_pass, True)
        for future in self._begun:
            future.cancel()
        self._stack.close()


@dataclass(frozen=True)
class Answer:
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def to(cls, request: RawRequest) -> Answer:
        assert request.status is not None
        fields = request.sent[0]["headers"]
        headers = {name.decode(): value.decode() for name, value in fields}
        return cls(request.status, headers, request.body)

    @property
    def document(self) -> Any:
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        assert self.document["status"] == self.status
        return str(self.document["type"]).rpartition(":")[2]


@dataclass
class Pending:
    """A request that waits for its response, or a long poll of the status URL or the monitor."""

    request: RawRequest
    future: Future[None]
    job: Expected
    kind: Literal["submission", "result", "monitor"]
    asked: float
    until: float
    since: int  # how many states the job had been in
    touched: int
    replayed: bool = False

    def due(self, now: float) -> bool:
        """Whether it must have been answered."""
        job = self.job
        if now >= self.until or (job.gone and self.kind != "submission"):
            return True
        if self.kind == "submission":
            return (job.finished and not job.gone) or job.answered
        changed = len(job.states) > self.since and now >= self.asked + 1
        return job.finished or (changed and self.kind == "monitor")


# --- the machine -------------------------------------------------------------------------------

picks = st.integers(0, 2) | st.integers(0, 30)  # mostly among the newest
paths = st.sets(st.sampled_from(sorted(POLICIES)), min_size=1, max_size=3)
owners = st.sampled_from(OWNERS)
strangers = st.sampled_from([None, None, None, "ann", "bob"])
bodies = st.sampled_from([SLOW, SLOW, QUICK, CAREFUL, LATE])
keys = st.sampled_from([None, None, None, "k", "l"])
waits = st.sampled_from([0, 0, 0, 0, 3, 20])


class Conversation(RuleBasedStateMachine):
    """Clients, handlers, time and restarts."""

    backend: ClassVar[str]
    shared: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.shared)
        self.server = Server(self.backend, self.shared)
        self.pending: list[Pending] = []
        self.started_with = 0  # jobs there were at the last start

    # --- steps ---------------------------------------------------------------------------------

    def is_up(self) -> bool:
        return not self.world.closed

    def has_lived(self) -> bool:
        return len(self.world.jobs) >= self.started_with + 10

    def has_jobs(self) -> bool:
        return not self.world.closed and bool(self.shown())

    def has_held(self) -> bool:
        return not self.world.closed and bool(self.held())

    def shown(self) -> list[Expected]:
        """Jobs whose clients know of them, the newest first."""
        return [job for job in reversed(self.world.jobs) if not job.unknown][:20]

    def held(self) -> list[Expected]:
        return [job for job in self.world.active if job.stops is None]

    def pick(self, among: list[Expected], number: int) -> Expected:
        return among[number % len(among)]

    @initialize(paths=paths)
    def meet(self, paths: set[str]) -> None:
        """Few routes at a time, so that they fill."""
        self.paths = sorted(paths)

    @precondition(is_up)
    @rule(
        route=st.integers(0, 2),
        owner=owners,
        body=bodies,
        key=keys,
        wait=waits,
        times=st.integers(1, 4),
    )
    def submit(
        self, route: int, owner: str | None, body: bytes, key: str | None, wait: int, times: int
    ) -> None:
        for _ in range(times):
            self.submit_once(self.paths[route % len(self.paths)], owner, body, key, wait)

    @precondition(has_jobs)
    @rule(number=picks, key=keys, wait=waits)
    def submit_again(self, number: int, key: str | None, wait: int) -> None:
        """As clients do that have lost the answer, or ask for the same."""
        job = self.pick(self.shown(), number)
        key = min(job.keys, default=key)
        self.submit_once(job.path, job.owner, job.body, key, wait)

    @precondition(has_jobs)
    @rule(number=picks)
    def change_ones_mind(self, number: int) -> None:
        """Cancel, and ask anew: of a job that is about to end nobody can be a client."""
        job = self.pick(self.shown(), number)
        self.cancel_as(job, job.owner)
        if self.world.closed:  # this was the last job that it waited for
            return
        self.submit_once(job.path, job.owner, job.body, None, 0)

    def submit_once(
        self, path: str, owner: str | None, body: bytes, key: str | None, wait: int
    ) -> None:
        world, before = self.world, len(self.world.jobs)
        replayed = key is not None and world.keyed(path, owner, key) is not None
        expected = world.submit(path, owner, body, key, wait)
        request = RawRequest(path, "POST", **self.fields(owner, key, wait))
        request.feed(body)
        future = self.server.begin(request)
        created = self.server.store.created
        if isinstance(expected, int):
            answer = self.answer_of(request, future)
            assert answer.status == expected
            assert answer.problem in REFUSALS[expected]
            assert int(answer.headers.get("retry-after", "1")) >= 1
            assert ("retry-after" in answer.headers) == (expected != 422)
            assert len(created) == before  # nothing was stored
            event(f"refused {answer.problem}")
            return
        job, new = expected, len(world.jobs) > before
        assert len(created) == before + new
        if new:
            job.id = created[-1]
        if wait:
            since = len(job.states) - (job.finished and new)
            until = world.now + wait
            waits = Pending(
                request, future, job, "submission", world.now, until, since, job.touched, replayed
            )
            self.pending.append(waits)
            return
        answer = self.answer_of(request, future)
        assert answer.status == 202
        assert answer.headers["location"] == f"/jobs/{job.id}"
        assert ("idempotency-replayed" in answer.headers) == replayed
        state = job.states[0][1] if new else job.state
        assert answer.document["job_id"] == job.id
        assert answer.document["status"] == WORDS[state]
        assert answer.document.get("queue_position") == world.position(job)
        event(f"accepted {state}" if new else f"the same job, replayed: {replayed}")

    @precondition(has_held)
    @rule(number=picks, status=st.sampled_from([200, 200, 202, 404, 422, 503, CRASH]))
    def cue(self, number: int, status: int) -> None:
        job = self.pick(self.held(), number)
        self.server.portal.call(self.server.stage.give, job.id, status)
        self.server.portal.call(self.server.settled)
        self.world.end(job, status)

    @precondition(has_jobs)
    @rule(number=picks, monitor=st.booleans(), wait=st.sampled_from([1, 3, 20]))
    def long_poll(self, number: int, monitor: bool, wait: int) -> None:
        job = self.pick(self.shown(), number)
        path = f"/jobs/{job.id}" + "/status" * monitor
        request = RawRequest(path, "GET", **self.fields(job.owner, wait=wait))
        request.feed()
        future = self.server.begin(request)
        now = self.world.now
        stops = self.world.drained is not None
        until = now + (0 if job.finished or self.world.buried(job) or stops else wait)
        kind: Literal["monitor", "result"] = "monitor" if monitor else "result"
        since = len(job.states)
        self.pending.append(Pending(request, future, job, kind, now, until, since, job.touched))

    @precondition(has_jobs)
    @rule(number=picks, stranger=strangers)
    def cancel(self, number: int, stranger: str | None) -> None:
        job = self.pick(self.shown(), number)
        self.cancel_as(job, stranger or job.owner)

    def cancel_as(self, job: Expected, owner: str | None) -> None:
        answer = self.ask(job, "/cancel", "POST", as_=owner)
        if not self.opens(job, owner):
            assert (answer.status, answer.problem) == (404, "not-found")
            return
        if self.is_gone(job, answer):
            return
        shared = not job.finished and job.clients > 1
        before = job.state
        self.world.cancel(job)
        if before is State.SUCCEEDED or before is State.FAILED:
            assert (answer.status, answer.problem) == (409, "finished")
        elif shared:
            assert (answer.status, answer.document["status"]) == (202, WORDS[before])
        elif before is State.QUEUED or before is State.CANCELLED:
            assert (answer.status, answer.document["status"]) == (200, "canceled")
        else:
            assert (answer.status, answer.document["status"]) == (202, "canceling")
        event(f"cancel {before}, shared: {shared}")

    @precondition(has_jobs)
    @rule(number=picks, stranger=strangers)
    def delete(self, number: int, stranger: str | None) -> None:
        job = self.pick(self.shown(), number)
        answer = self.ask(job, "", "DELETE", as_=stranger or job.owner)
        if not self.opens(job, stranger or job.owner):
            assert (answer.status, answer.problem) == (404, "not-found")
            return
        if self.is_gone(job, answer):
            return
        assert answer.status == (204 if job.finished else 202)
        event(f"delete {job.state}")
        self.world.delete(job)

    @rule(seconds=st.sampled_from([1, 1, 3, 10, 37, 60]))
    def advance(self, seconds: int) -> None:
        self.server.pass_time(seconds)
        self.world.advance(self.world.now + seconds)

    def may_stop(self) -> bool:
        """In which order jobs are taken over is nobody's promise: see `test_recovery.py`."""
        waits = self.shared and any(job.path != HELD for job in self.world.queue)
        return self.world.drained is None and self.has_lived() and not waits

    @precondition(may_stop)
    @rule()
    def shut_down(self) -> None:
        running, queued = len(self.world.active), len(self.world.queue)
        event(f"shut down, running: {running > 0}, queued: {queued > 0}")
        self.stop()

    def stop(self) -> None:
        self.server.stop()
        self.world.shut_down()
        for waits in self.pending:  # whoever waits is answered
            waits.until = min(waits.until, self.world.now)

    @precondition(lambda self: self.world.closed)
    @rule()
    def restart(self) -> None:
        self.server.start()
        self.world.restart()
        self.started_with = len(self.world.jobs)

    # --- laws ----------------------------------------------------------------------------------

    @invariant()
    def capacity_is_the_models(self) -> None:
        world, server = self.world, self.server
        statistics = server.jobs.statistics()
        assert (statistics.running, statistics.queued) == (len(world.active), len(world.queue))
        assert statistics.running <= LIMITS.max_running
        assert statistics.queued <= LIMITS.max_queued
        assert server.stage.inside == {job.id for job in world.active}
        waits = {job.id for job in (*world.queue, *world.left) if job.path != HELD}
        assert server.call(self.replayable) == waits
        leased = {job.id for job in world.jobs if not (job.finished or job.gone)}
        assert server.store.leased == (leased if self.shared else set())
        ran = [job.id for job in world.jobs if job.began is not None]
        assert sorted(server.stage.entered) == sorted(ran)  # each of them once

    @invariant()
    def leases_are_renewed_in_time(self) -> None:
        if self.shared and not self.world.left:
            assert self.server.call(self.abandoned) == []

    async def replayable(self) -> set[str]:
        """Those jobs of all there ever were whose requests are kept."""
        store = self.server.store
        return {id for id in store.created if await store.request(id) is not None}

    async def abandoned(self) -> list[Abandoned]:
        return [each async for each in self.server.store.abandoned()]

    @invariant()
    def the_store_saw_nothing_wrong(self) -> None:
        assert self.server.store.wrong == []
        assert self.server.stage.numbers.wrong == []

    @invariant()
    def the_server_runs_as_long_as_it_should(self) -> None:
        assert self.server.running is not None
        assert self.server.running.done() == self.world.closed
        if self.world.closed:
            self.server.running.result()
            assert all(job.finished or job in self.world.left for job in self.world.jobs)

    @invariant()
    def whoever_waits_is_answered_in_time(self) -> None:
        left = []
        for waits in self.pending:
            job, submission = waits.job, waits.kind == "submission"
            due = waits.due(self.world.now)
            may = due or (submission and (job.touched > waits.touched or job.gone))
            assert waits.future.done() if due else may or not waits.future.done()
            if not waits.future.done():
                left.append(waits)
            elif submission:
                self.check_response(waits)
            else:
                self.check_poll(waits)
        self.pending = left

    def check_poll(self, waits: Pending) -> None:
        answer, job = self.answer_of(waits.request, waits.future), waits.job
        if answer.status in (404, 410) and self.world.buried(job):
            return
        known, *new = job.states[waits.since - 1 :]
        allowed = [state for since, state in new if since <= waits.until]
        if not any(since < waits.until for since, _ in new):  # what comes at its end may be late
            allowed.append(known[1])
        if job.finished and job.state in allowed and not self.server_document(answer):
            self.check_result(job, answer)
        else:
            assert answer.document["status"] in {WORDS[state] for state in allowed}
        event(f"long poll {answer.status}")

    def server_document(self, answer: Answer) -> bool:
        return b'"job_id"' in answer.body

    def check_response(self, waits: Pending) -> None:
        """Of a request that waited for its response."""
        answer, job = self.answer_of(waits.request, waits.future), waits.job
        in_time = job.finished and job.states[-1][0] <= waits.until and job.outcome is not None
        if in_time and job.outcome is not None:
            status, text = job.outcome
            assert answer.status == status
            assert answer.body.decode() == text if job.answered else answer.problem == text
            told = waits.replayed and not job.answered
            assert ("job-status" in answer.headers) == told
        else:
            assert answer.status == 202
            assert answer.headers["location"] == f"/jobs/{job.id}"
            seen = [state for since, state in job.states if since <= waits.until]
            assert answer.document["status"] in {WORDS[state] for state in seen}
        assert ("idempotency-replayed" in answer.headers) == waits.replayed
        event(f"waited for the response, in time: {in_time}")

    @invariant()
    def clients_see_what_the_model_says(self) -> None:
        if self.world.closed:
            return
        shown = [job for job in self.world.jobs if not job.unknown or job.number % 5 == 0]
        answers = self.server.call(partial(self.look_at, shown))
        for job, (result, monitor, foreign) in zip(shown, answers, strict=True):
            if foreign is not None:
                assert (foreign.status, foreign.problem) == (404, "not-found")
            if self.is_gone(job, result):
                self.is_gone(job, monitor)
                continue
            assert monitor.status == 200
            self.check_monitor(job, monitor.document)
            if job.finished:
                self.check_result(job, result)
            else:
                assert result.status == 202
                assert result.headers["location"] == f"/jobs/{job.id}"
                assert int(result.headers["retry-after"]) >= 1
                assert result.document == monitor.document

    async def look_at(self, jobs: list[Expected]) -> list[tuple[Answer, Answer, Answer | None]]:
        answers = []
        strangers = itertools.cycle([{}, {"x_user": "cy"}])
        for job in jobs:
            own = self.fields(job.owner)
            url = f"/jobs/{job.id}"
            result = await self.server.ask(url, **own)
            monitor = await self.server.ask(url + "/status", **own)
            foreign = None
            if job.owner is not None:
                foreign = await self.server.ask(url, **next(strangers))
            answers.append((result, monitor, foreign))
        return answers

    def check_monitor(self, job: Expected, document: Any) -> None:
        assert document["job_id"] == job.id
        assert document["status"] == WORDS[job.state]
        assert document.get("queue_position") == self.world.position(job)
        assert ("finished_at" in document) == job.finished
        if job.answered and job.outcome is not None:
            status, text = job.outcome
            assert document["response"]["status"] == status
            assert document["response"]["size"] == len(text)
            error = {"code": "handler-response", "message": f"The response has status {status}."}
            assert document.get("error") == (error if status >= 400 else None)
        elif job.outcome is not None:
            status, name = job.outcome
            assert document["error"]["status"] == status
            assert document["error"]["type"].endswith(f":{name}")
            assert document["error"]["code"] == name
            assert document["error"]["message"] == document["error"]["detail"]
            assert "response" not in document

    def check_result(self, job: Expected, answer: Answer) -> None:
        assert answer.headers["job-status"] == WORDS[job.state]
        if job.outcome is None:
            assert (answer.status, answer.problem) == (410, "cancelled")
        elif not job.answered:
            assert (answer.status, answer.problem) == job.outcome
        else:
            status, text = job.outcome
            assert answer.status == (200 if status == 202 else status)
            assert answer.headers.get("job-response-status") == ("202" if status == 202 else None)
            assert answer.body.decode() == text

    def is_gone(self, job: Expected, answer: Answer) -> bool:
        """Whether there must be nothing left to show of a job; if so, the answer says that."""
        if not self.world.buried(job):
            return False
        forgotten = self.world.forgotten(job)
        if forgotten is None:  # a sweep may have come or not, but what is unknown stays so
            forgotten = job.unknown or answer.status == 404
        told = (404, "not-found") if forgotten else (410, "expired")
        assert (answer.status, answer.problem) == told
        job.unknown = answer.status == 404
        event(f"gone {answer.status}")
        return True

    # --- between them --------------------------------------------------------------------------

    def fields(
        self, owner: str | None = None, key: str | None = None, wait: int = 0
    ) -> dict[str, str]:
        fields = {"x_user": owner, "idempotency_key": key, "prefer": f"wait={wait}" * (wait > 0)}
        return {name: value for name, value in fields.items() if value}

    def opens(self, job: Expected, owner: str | None) -> bool:
        return job.owner in (None, owner)

    def ask(self, job: Expected, tail: str, method: str, as_: str | None) -> Answer:
        path = f"/jobs/{job.id}{tail}"
        return self.server.call(partial(self.server.ask, path, method, **self.fields(as_)))

    def answer_of(self, request: RawRequest, future: Future[None]) -> Answer:
        assert future.done()
        future.result()
        return Answer.to(request)

    def teardown(self) -> None:
        """Whatever was accepted ends, and gives its place back."""
        try:
            failed = sys.exception() is not None
            if self.world.drained is None:
                self.stop()
            for seconds in (6, 100):  # drained, but not cleaned up; all over
                self.server.pass_time(seconds)
                self.world.advance(self.world.now + seconds)
                if not failed:  # else say what failed first
                    self.capacity_is_the_models()
            if failed:
                return
            self.the_server_runs_as_long_as_it_should()
            self.whoever_waits_is_answered_in_time()
            assert self.pending == []
            left = {job.id for job in self.server.call(partial(unfinished, self.server.store))}
            assert left == {job.id for job in self.world.left}
        finally:
            self.server.leave()


REFUSALS = {
    422: ["idempotency-key-reused"],
    429: ["over-quota"],
    503: ["queue-full", "shutting-down"],
}


class OnAsyncio(Conversation):
    backend = "asyncio"


class OnTrio(Conversation):
    backend = "trio"


class SharedOnAsyncio(Conversation):
    """With leases, calls that are bounded, and outcomes that are written in tasks of their own."""

    backend = "asyncio"
    shared = True


class SharedOnTrio(Conversation):
    backend = "trio"
    shared = True


def modelled(*, default: int, most: int) -> settings:
    return settings(
        max_examples=most if LONG else default,
        stateful_step_count=80 if LONG else 40,
        derandomize=not LONG,
        deadline=None,
        database=None,
        print_blob=True,
        phases=PHASES,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


TestOnAsyncio = pytest.mark.slow(OnAsyncio.TestCase)
TestOnAsyncio.settings = modelled(default=30, most=2000)
TestOnTrio = OnTrio.TestCase
TestOnTrio.settings = modelled(default=8, most=200)
TestSharedOnAsyncio = SharedOnAsyncio.TestCase
TestSharedOnAsyncio.settings = modelled(default=15, most=1000)
TestSharedOnTrio = pytest.mark.slow(SharedOnTrio.TestCase)
TestSharedOnTrio.settings = modelled(default=4, most=100)
