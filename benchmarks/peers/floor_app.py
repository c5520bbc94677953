"""The floor: the least that an accepted job can cost, and one duty after the other on top of it.

At the bottom is raincheck's architecture with nothing else: the real request runs in a task of its
own, is detached at the handler's entry, its response is recorded, and the client has raincheck's
own 202. Each duty of `DUTIES` is added by the lines that end with its name: `# +NAME` are there
from that step on, `# -NAME` until then. `build()` makes the app of the lines of a step, so that a
duty which is not there costs nothing. All are written as by hand, in one place, with no port that
has no second user here: what raincheck takes beyond the last step is how it is built.

Rare cases are looked for, and not handled: they raise `NotImplementedError`.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import sys
import time
import zlib
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar, copy_context
from functools import lru_cache
from itertools import count
from threading import get_ident
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peers import lines
from peers.work import REPORT, fill

DUTIES: Mapping[str, str] = {
    "id": "an id of 128 random bits, marked with who minted it",
    "times": "when it was accepted, began and ended, in the document",
    "record": "a record with a version, which is written anew and compared at the end",
    "bound": "bytes of the store counted, and refused when they are too many",
    "expiry": "when it expires, and a task that sweeps",
    "port": "the store is awaited, since others are on a network",
    "wake": "whoever waits for its end is woken; at rest it is spared by the collector",
    "owner": "whose it is",
    "ticket": "a place on its route and in the process, or a refusal",
    "estimate": "how long jobs of its route take, and when this one is likely to end",
    "drain": "what runs is known, and nothing is accepted while the server stops",
    "large": "a body that is too large is refused, the rest of one read first",
    "prefer": "preferences of the client, and whether a browser asks",
    "key": "an idempotency key is looked for",
    "policy": "the route of the entered endpoint and its policy",
    "context": "context variables copied, and brought back with what routing has found",
    "stop": "a block that can be cancelled, a reason for it, `http.disconnect` at the end",
    "checks": "a response that a server could send: order, status, fields, length, size",
    "raised": "what the app raises or leaves out is an outcome",
    "progress": "what the handler reports goes with the outcome",
    "threads": "entered from another thread, or read by two tasks",
    "answer": "an answer in time, an earlier job's, a refusal or the app's own instead of the 202",
}
"""The duties in the order in which they are added."""

EAGER = sys.version_info >= (3, 12)
TTL, TOMBSTONE = 3600.0, 86400.0
MAX_BYTES, MAX_REQUEST, MAX_RESPONSE, MAX_RUNNING = 16 * 1024**3, 2**20, 2**20, 1000
HEARD = frozenset({b"prefer", b"content-length", b"idempotency-key", b"accept", b"sec-fetch-mode"})
ROUTED = frozenset({"route", "endpoint", "path_params", "router", "fastapi"})
HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"})
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
DOCUMENT = (
    '{"job_id": "%s", "status": "running", "created_at": "%s", "progress": null, "message": null, '
    '"queue_position": null, "estimated_completion": %s, "retry_after": %d, "runs": 1, '
    '"links": {"self": "/jobs/%s/status", "result": "/jobs/%s", "cancel": "/jobs/%s/cancel"}}'
)
FIELDS = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-type", b"application/json"),
]


class Job(NamedTuple):
    """The record."""

    id: str
    route: str
    state: str
    created_at: float
    version: int
    fence: int
    runs: int
    max_runs: int
    replayable: bool
    holder: str | None
    queue: str | None
    started_at: float | None
    finished_at: float | None
    expires_at: float | None
    purge_at: float | None
    progress: Any
    response: Any
    error: Any
    gone: bool
    owner: str | None
    clients: int = 1


class Policy(NamedTuple):
    """What a route's author may set."""

    respond: str = "always"
    wait: float = 0.0
    idempotency: str | None = "optional"
    max_running: int | None = None
    timeout: float | None = None


POLICY = Policy()
current: ContextVar[Handoff | None] = ContextVar("current", default=None)
jobs: dict[str, Any] = {}
kept: dict[str, int] = {"bytes": 0}
bodies: dict[str, bytes] = {}
due: dict[str, float] = {}
waiting: dict[str, list[asyncio.Event]] = {}
running: dict[str, Handoff] = {}
places: dict[str, int] = {"": 0}
durations: dict[str, float] = {}
policies: dict[str, Policy] = {}
told: list[Any] = []
drawn: list[bytes] = []
numbers = count()
tag = secrets.token_bytes(4)
state: dict[str, Any] = {"closing": False, "sweeping": False, "thread": get_ident()}
DONE: list[asyncio.Future[None]] = []


def mint() -> str:
    if not drawn:
        bits = secrets.token_bytes(64 * 16)
        drawn.extend(bits[at : at + 16] for at in range(0, 64 * 16, 16))
    unsigned = drawn.pop() + tag
    return urlsafe_b64encode(unsigned + zlib.crc32(unsigned).to_bytes(4)[:3])[:30].decode()


@lru_cache(maxsize=256)
def spell(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


@lru_cache(maxsize=1024)
def kind(name: bytes) -> int:
    """2 for Content-Length, 1 for what goes no further, 0 for the rest."""
    if TOKEN.fullmatch(name) is None:
        raise NotImplementedError
    lower = name.lower()
    return 2 if lower == b"content-length" else 1 if lower in HOP_BY_HOP else 0


async def sweep() -> None:
    while jobs:
        await asyncio.sleep(60.0)
        now = time.time()
        for id in [id for id, when in due.items() if when <= now]:
            del jobs[id], due[id]
    state["sweeping"] = False


async def create(job: Job) -> None:
    put(job)


async def replace(job: Job, body: bytes) -> None:
    settle(job, body)


def put(job: Job) -> None:
    if job.id in jobs:
        raise NotImplementedError
    if kept["bytes"] + 1024 > MAX_BYTES:  # +bound
        raise NotImplementedError  # +bound
    kept["bytes"] += 1024  # +bound
    jobs[job.id] = job


def settle(job: Job, body: bytes) -> None:
    old = jobs.get(job.id)
    if old is None or old.version + 1 != job.version or old.fence != job.fence:
        raise NotImplementedError
    cost = len(body)  # +bound
    for name, value in job.response[1]:  # +bound
        cost += len(name) + len(value)  # +bound
    if kept["bytes"] + cost > MAX_BYTES:  # +bound
        raise NotImplementedError  # +bound
    kept["bytes"] += cost  # +bound
    bodies[job.id] = body
    jobs[job.id] = job  # -wake
    jobs[job.id] = tuple(job)  # +wake
    due[job.id] = job.expires_at  # +expiry
    for event in waiting.pop(job.id, ()):  # +wake
        event.set()  # +wake


class Handoff:
    """One request."""

    __slots__ = (
        *("scope", "outer", "client_receive", "client_send", "id", "waiter", "message", "task"),
        *("status", "headers", "created_at", "job", "route", "policy", "fields", "chunks", "size"),
        *("owner", "wait", "inner", "context", "reason", "stoppers", "closed", "parts", "error"),
        *("progress", "reading", "refusal", "replayed", "answered", "vary", "started"),
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = dict(scope)
        self.client_receive: Any = receive
        self.client_send: Any = send
        self.id = ""
        self.waiter: Any = None
        self.message: Any = None
        self.task: Any = None
        self.job: Any = None  # +record
        self.owner = None  # +owner
        self.chunks: list[bytes] = []  # +large
        self.size = 0  # +large
        self.fields: Any = ()  # +prefer
        self.wait = 0.0  # +prefer
        self.vary = False  # +prefer
        self.route = ""  # +policy
        self.policy = POLICY  # +policy
        self.outer: Any = scope  # +context
        self.context: Any = None  # +context
        self.inner: Any = None  # +context
        self.reason = None  # +stop
        self.stoppers: list[Handoff] = []  # +stop
        self.closed = False  # +stop
        self.status: Any = None  # +checks
        self.parts: list[bytes] = []  # +checks
        self.error: Any = None  # +raised
        self.progress = None  # +progress
        self.reading = False  # +threads
        self.refusal = None  # +answer
        self.replayed = self.answered = False  # +answer

    async def enter(self, name: str) -> bool:
        """Become a job: its client is answered, and the handler goes on."""
        if get_ident() != state["thread"]:  # +threads
            raise NotImplementedError  # +threads
        if self.id or self.answered:  # +answer
            raise NotImplementedError  # +answer
        self.route, self.policy = name, policies[name]  # +policy
        self.decide()  # +prefer
        for field, value in self.fields:  # +large +prefer
            if field == b"content-length" and int(value) > MAX_REQUEST:  # +large +prefer
                raise NotImplementedError  # +large +prefer
        if state["closing"]:  # +drain
            raise NotImplementedError  # +drain
        if "user" in self.scope:  # +owner
            raise NotImplementedError  # +owner
        if self.policy.idempotency == "required":  # +key +policy
            raise NotImplementedError  # +key +policy
        for field, _ in self.fields:  # +key
            if field == b"idempotency-key":  # +key
                raise NotImplementedError  # +key
        self.message = await self.read()
        if self.message["more_body"]:  # -large
            raise NotImplementedError  # -large
        body = self.message.get("body", b"")  # +large
        self.size += len(body)  # +large
        self.chunks.append(bytes(body))  # +large
        if self.message.get("more_body", False) or self.size > MAX_REQUEST:  # +large
            raise NotImplementedError  # +large
        self.admit("order")  # +ticket -policy
        self.admit(self.route)  # +ticket +policy
        await self.accept()
        self.hand_over()
        return True

    def decide(self) -> None:
        """What the client prefers, and whether it is a browser's navigation."""
        found = self.fields = [each for each in self.scope["headers"] if each[0] in HEARD]
        for name, value in found:
            if name == b"prefer" or name == b"sec-fetch-mode":
                raise NotImplementedError
            if name == b"accept" and b"text/html" in value:
                raise NotImplementedError
        self.vary = True
        self.wait = 0.0  # -policy
        self.wait = self.policy.wait  # +policy
        if self.policy.respond != "always":  # +policy
            raise NotImplementedError  # +policy

    def admit(self, route: str) -> None:
        """Take a place."""
        bound = None  # -policy
        bound = self.policy.max_running  # +policy
        held = places.get(route, 0)
        if places[""] >= MAX_RUNNING or (bound is not None and held >= bound):
            raise NotImplementedError
        places[""] += 1
        places[route] = held + 1

    async def accept(self) -> None:
        """Be visible before the 202 leaves."""
        self.id = f"{next(numbers):030}"  # -id
        self.id = mint()  # +id
        now = time.time()  # +times
        self.created_at = now  # +times
        self.job = Job(  # +record
            self.id,  # +record
            "order",  # +record -policy
            self.route,  # +record +policy
            "running",  # +record
            now,  # +record
            *(1, 1, 1, 1, False, None, None),  # +record
            now,  # +record
            *(None, None, None, None, None, None, False),  # +record
            None,  # +record -owner
            self.owner,  # +owner
        )  # +record
        put(self.job)  # +record -port
        await create(self.job)  # +port
        running[self.id] = self  # +drain
        if not state["sweeping"]:  # +expiry
            state["sweeping"] = True  # +expiry
            loop = asyncio.get_running_loop()  # +expiry
            told.append(loop.create_task(sweep(), context=Context()))  # +expiry

    def hand_over(self) -> None:
        """The client's task goes on; what comes now is the job's own."""
        if self.outer is not None:  # +context
            for key in ROUTED & self.scope.keys():  # +context
                self.outer[key] = self.scope[key]  # +context
        self.inner = self.inner.copy()  # +context
        self.client_receive = self.client_send = None
        self.outer = self.context = None  # +context
        if self.waiter is not None:
            self.waiter.set_result(None)

    async def read(self) -> Message:
        if self.reading:  # +threads
            raise NotImplementedError  # +threads
        self.reading = True  # +threads
        try:  # +threads
            return await self.client_receive()  # +threads
        finally:  # +threads
            self.reading = False  # +threads
        return await self.client_receive()  # -threads

    async def receive(self) -> Message:
        if self.message is not None:
            message, self.message = self.message, None
            return message
        await asyncio.Event().wait()
        raise NotImplementedError

    def send(self, message: Message) -> Any:
        if self.client_send is not None:
            self.answered = True  # +answer
            return self.client_send(message)
        return self.record(message)  # +port
        self.take(message)  # -port
        return DONE[0]  # -port

    async def record(self, message: Message) -> None:
        """Take what the app sends."""
        if self.closed:  # +stop
            raise NotImplementedError  # +stop
        found = self.take(message)
        if found is not None:  # +port
            await self.finish(*found)  # +port
            self.closed = True  # +stop

    def take(self, message: Message) -> Any:
        """One message; the body and the state with the last one."""
        if message["type"] == "http.response.start":
            if self.status is not None:  # +checks
                raise NotImplementedError  # +checks
            code = message["status"]  # +checks
            if not isinstance(code, int) or not 200 <= code <= 599:  # +checks
                raise NotImplementedError  # +checks
            self.headers = clean(message["headers"])  # +checks
            self.headers = tuple(message["headers"])  # -checks
            self.status = message["status"]
            return None
        if message["type"] != "http.response.body" or self.status is None:  # +checks
            raise NotImplementedError  # +checks
        body = message.get("body", b"")
        self.parts.append(bytes(body))  # +checks
        if message.get("more_body", False) or len(body) > MAX_RESPONSE:  # +checks
            raise NotImplementedError  # +checks
        body = b"".join(self.parts)  # +checks
        check_length(self.status, self.headers, len(body))  # +checks
        state = "succeeded" if self.status < 400 else "failed"
        if self.reason is not None:  # +stop
            raise NotImplementedError  # +stop
        now = time.time()  # +times
        ended = (state, self.status, self.headers, body)  # -record
        ended = (*ended, self.created_at, now)  # +times -record
        jobs[self.id] = ended  # -record
        done = self.done(state, now, body)  # +record
        settle(done, body)  # +record -port
        return done, body  # +port
        return None  # -port

    def done(self, state: str, now: float, body: bytes) -> Job:
        """The next version of the record."""
        job = self.job
        if job.state != "running":
            raise NotImplementedError
        return Job(
            *job[:2],
            state,
            job.created_at,
            job.version + 1,
            *job[5:12],
            now,
            None,  # -expiry
            now + TTL,  # +expiry
            None,  # -expiry
            now + TTL + TOMBSTONE,  # +expiry
            None,  # -progress
            self.progress,  # +progress
            (self.status, self.headers, len(body)),
            *job[17:],
        )

    async def finish(self, done: Job, body: bytes) -> None:
        await replace(done, body)
        self.job = done
        self.learn("order", done)  # +estimate -policy
        self.learn(self.route, done)  # +estimate +policy

    def learn(self, route: str, done: Job) -> None:
        taken = done.finished_at - done.started_at  # type: ignore[operator]
        known = durations.get(route)
        durations[route] = taken if known is None else known + 0.2 * (taken - known)

    def leave(self, route: str) -> None:
        """Give the place back."""
        places[""] -= 1
        places[route] -= 1

    async def run(self, app: ASGIApp) -> None:
        """The app, in a task of its own."""
        current.set(self)
        error = None  # +raised
        self.stoppers.append(self)  # +stop
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:  # +stop
            if self.reason is None:  # +stop
                raise  # +stop
        except Exception as raised:
            error = raised  # +raised
            del raised  # -raised
        finally:  # +stop
            self.stoppers.pop()  # +stop
        if error is not None:  # +raised
            self.error = error  # +raised
            told.append(error)  # +raised
        if self.id and self.id not in bodies:  # +raised +record
            raise NotImplementedError  # +raised +record
        if not self.id and self.waiter is not None:  # +answer
            self.waiter.set_result(None)  # +answer
        del running[self.id]  # +drain
        self.leave("order")  # +ticket -policy
        self.leave(self.route)  # +ticket +policy
        self.task = None


def clean(headers: Any) -> tuple[tuple[bytes, bytes], ...]:
    """The fields that may be stored."""
    found = []
    for name, value in headers:
        if type(name) is not bytes or type(value) is not bytes:
            raise NotImplementedError
        if kind(name) == 1:
            continue
        if CONTROL.search(value) or value.strip(b" \t") != value:
            raise NotImplementedError
        found.append((name, value))
    return tuple(found)


def check_length(status: int, headers: Any, size: int) -> None:
    if size and status in (204, 304):
        raise NotImplementedError
    for name, value in headers:
        if kind(name) == 2 and int(value) != size:
            raise NotImplementedError


class Floor:
    """The middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.marked = {("POST", "/orders"), ("POST", "/never"), ("POST", "/reports")}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"].startswith("/jobs/"):
            await poll(scope, send)
        elif (scope["method"], scope["path"]) in self.marked:
            await self.conduct(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def conduct(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        if not DONE:
            DONE.append(loop.create_future())
            DONE[0].set_result(None)
        handoff = Handoff(scope, receive, send)
        context = None  # -context
        context = copy_context()  # +context
        handoff.context, handoff.inner = context, context.copy()  # +context
        context = handoff.inner  # +context
        if EAGER:
            options: Any = {"loop": loop, "eager_start": True, "context": context}
            handoff.task = asyncio.Task(handoff.run(self.app), **options)
        else:
            handoff.task = loop.create_task(handoff.run(self.app), context=context)
        if handoff.client_send is not None:
            handoff.waiter = loop.create_future()
            try:  # +stop
                await handoff.waiter  # +stop
            except BaseException:  # +stop
                handoff.reason = "cancelled"  # +stop
                handoff.task.cancel()  # +stop
                raise  # +stop
            await handoff.waiter  # -stop
        inner, handoff.inner = handoff.inner, None  # +context
        for variable, value in inner.items():  # +context
            if variable is not current and variable.get(None) is not value:  # +context
                variable.set(value)  # +context
        if handoff.refusal is not None or handoff.replayed or handoff.wait:  # +answer
            raise NotImplementedError  # +answer
        if not handoff.id:  # +answer
            if handoff.error is not None:  # +answer
                raise handoff.error  # +answer
            return  # +answer
        await answer(handoff, scope, send)


async def answer(handoff: Handoff, scope: Scope, send: Send) -> None:
    """The 202."""
    id, known, accepted_at = handoff.id, None, 0.0
    accepted_at = handoff.created_at  # +times
    known = durations.get("order")  # +estimate -policy
    known = durations.get(handoff.route)  # +estimate +policy
    body, after = document(id, accepted_at, known)
    location = f"/jobs/{id}".encode()
    headers = [
        (b"location", location),
        (b"content-location", location),
        (b"link", f'</jobs/{id}/status>; rel="monitor"'.encode()),
        (b"retry-after", b"%d" % after),
        *FIELDS,
        (b"content-length", b"%d" % len(body)),
        (b"vary", b"Prefer"),
    ]
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def poll(scope: Scope, send: Send) -> None:
    """The document of a job that runs, or the response that it has ended with."""
    id = scope["path"][6:]
    job = jobs.get(id)
    ended = job is not None
    ended = job is not None and job[2] != "running"  # +record
    if "user" in scope or (job is not None and job[19] is not None):  # +owner +record
        raise NotImplementedError  # +owner +record
    if ended:
        await serve(job, scope, send)
        return
    for name, _ in scope["headers"]:  # +prefer
        if name == b"prefer":  # +prefer
            raise NotImplementedError  # +prefer
    known, at = None, time.time()  # -estimate
    known, at = durations.get("order"), time.time()  # +estimate -policy
    known, at = durations.get(job[1]), time.time()  # +estimate +policy
    body, after = document(id, job[3] if isinstance(job, Job) else at, known)
    location = b"/jobs/%b" % id.encode()
    headers = [(b"location", location), (b"content-location", location)]
    headers += ((b"retry-after", b"%d" % after), *FIELDS, (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def serve(job: Any, scope: Scope, send: Send) -> None:
    """The response that a job has ended with."""
    id = scope["path"][6:]
    for name, _ in scope["headers"]:  # +checks
        if name in ASKING:  # +checks
            raise NotImplementedError  # +checks
    status, headers, body = *job[1:3], job[3]  # -record
    status, headers, body = *job[16][:2], bodies[id]  # +record
    fields = [*headers, *SERVED]
    fields.append((b"etag", b'"%b-%d"' % (id.encode(), job[4])))  # +record
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def document(id: str, created_at: float, known: float | None) -> tuple[bytes, int]:
    """What is said of a job that runs, and the seconds until it is worth asking again."""
    after, ends = 1, "null"
    if known is not None:  # +estimate
        remaining = known - (time.time() - created_at)  # +estimate
        after = min(30, max(1, round(remaining)))  # +estimate
        ends = f'"{spell(int(created_at + known))}"'  # +estimate
    created = "2026-11-28T22:12:14Z"  # -times
    created = spell(int(created_at))  # +times
    return (DOCUMENT % (id, created, ends, after, id, id, id)).encode(), after


ASKING = frozenset({b"if-match", b"if-none-match", b"if-range", b"range"})
SERVED = (FIELDS[0], FIELDS[1], (b"job-status", b"succeeded"))


def marked(name: str, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
    policies[name] = POLICY

    async def entered(*args: Any, **kwargs: Any) -> Any:
        handoff = current.get()
        if handoff is None:
            return await endpoint(*args, **kwargs)
        await handoff.enter(name)
        handoff.stoppers.append(handoff)  # +stop
        try:  # +stop
            return await endpoint(*args, **kwargs)  # +stop
        finally:  # +stop
            handoff.stoppers.pop()  # +stop
        return await endpoint(*args, **kwargs)  # -stop

    return entered


async def order(request: Request) -> Response:
    order = await request.json()
    await asyncio.sleep(0)
    return JSONResponse(fill(order))


async def report(request: Request) -> Response:
    await request.json()
    return JSONResponse(REPORT)


async def never(request: Request) -> Response:
    await asyncio.Event().wait()
    return JSONResponse(None)


def make(lifespan: Any = None) -> Starlette:
    """The app of the lines that are here."""
    ways = {"order": order, "report": report, "never": never}
    paths = {"order": "/orders", "report": "/reports", "never": "/never"}
    routes = [Route(paths[n], marked(n, way), methods=["POST"]) for n, way in ways.items()]
    return Starlette(routes=routes, middleware=[Middleware(Floor)], lifespan=lifespan)


def module(duties: int | None = None) -> dict[str, Any]:
    """The names of this file with the first so many duties; None: with all."""
    return lines.module(__file__, f"{__name__}_{duties}", [*DUTIES][:duties])


def build(duties: int | None = None) -> Starlette:
    """The app with the first so many duties; None: with all."""
    made: Starlette = module(duties)["make"]()
    return made
