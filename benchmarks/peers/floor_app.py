"""The floor: the least that an accepted job can cost, and one duty after the other on top of it.

At the bottom is raincheck's architecture with nothing else: the real request runs in a task of its
own, is detached at the handler's entry, its response is recorded, and the client has raincheck's
own 202. Each duty of `DUTIES` is added by the lines that end with its name: `# +NAME` are there
from that step on, `# -NAME` until then. `build()` makes the app of the lines of a step, so that a
duty which is not there costs nothing. All are written as by hand, in one place, with no port that
has no second user here. The last two steps are no duties, but what it costs to write them
otherwise: each owner an object of its own, and a call from one to the next. What a poll alone has
to do is in `POLL_DUTIES`, in the same way, and comes on top of the duties of an accepted job.

Rare cases are looked for, and not handled: they raise `NotImplementedError`.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import secrets
import sys
import time
import zlib
from base64 import urlsafe_b64encode
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import Context, ContextVar, copy_context
from functools import lru_cache, partial
from itertools import chain, count
from threading import get_ident
from typing import Any, NamedTuple
from urllib.parse import quote as quoted_path

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
    "routes": "the app's routes are read, and anew when there are more; paths below a prefix",
    "loop": "what runs belongs to one event loop, and is made anew on another; forks, too",
    "carried": "`state` as it came, extensions that go past us, the app that we stand in",
    "settings": "what a policy may say further: sizes, runs, retries, waits, queues, callbacks",
    "turns": "places in line: who waits goes first, by owners in turn, and a route may be blocked",
    "blocks": "who is stopped is a block of a task that knows it, and whether its loop is there",
    "parts": "the request's body part by part, kept for a replay until nobody needs it",
    "moves": "a table of what may become of a job, and the fields of those that wait or run again",
    "live": "a response that is large or followed is kept as it comes",
    "lists": "jobs are listed, as they came and as they ended, with keys, leases and messages",
    "rest": "what has ended lies apart, as plain values",
    "told": "observers are told of each move, may follow a run, and of what holds the loop up",
    "newest": "the newest durations instead of a mean: when so many have ended, and the half",
    "outlook": "and by a policy, a timeout, what a handler reports, and a time not to begin before",
    "dialect": "the document with all of its fields and links, below any prefix, and safe in JSON",
    "rare": "what else may be: a path rule, entered before, a key, a bound, a lease, a late end",
    "owners": "an object for each that owns something: body, stop, run, recorder, gate, values",
    "rooms": "as many calls from room to room as raincheck makes",
}
"""The duties in the order in which they are added; the last two are no duties, but a house."""

POLL_DUTIES: Mapping[str, str] = {
    "mounted": "status routes mounted by hand, an app's own pages beside them, lists of jobs",
    "opened": "what is here belongs to this event loop, and is opened by the first request",
    "place": "what stands behind an id, and what each method does there; a query",
    "prefix": "URLs below any prefix",
    "asked": "long polls, parts, conditions and browsers: fields that an answer depends on",
    "whole": "record and small body in one answer, and a body that is not whole is not served",
    "values": "what lies apart as plain values is a record again",
    "gone": "what has expired is gone, swept or not",
    "foreseen": "what to expect by all that is known: a place in line, a timeout, a report",
    "full": "the document with all of its fields and links, safe in JSON",
    "kept": "what has been said of a job is kept as long as it stays true",
    "served": "`Job-Status`, a `Cache-Control` for its owner alone, a 202 that was stored",
    "length": "a length that is true, whatever the response said of it",
    "ranges": "parts that may be asked for, and an `ETag` of this run and version",
    "head": "no body to a HEAD",
    "failing": "a store or a record that fails is told as 503, or breaks off what has begun",
    "objects": "an object for each: place, what is found, what is expected, reply",
    "calls": "as many calls from room to room as raincheck makes",
}
"""What a poll has to do besides, in the same way; the last two are its house."""

POLLED = 37
"""So many duties of an accepted job lie below them: the others do not touch a poll."""

EAGER = sys.version_info >= (3, 12)
TTL, TOMBSTONE = 3600.0, 86400.0
FAR, PIECE = 365 * 86400.0, 256 * 1024
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
quote = json.encoder.encode_basestring_ascii
FULL = (  # all that raincheck's own has
    '{"job_id": "%s", "status": "%s", "created_at": "%s", "progress": %s, "message": %s, '
    '"queue_position": %s, "estimated_completion": %s, "retry_after": %d, "runs": %d, '
    '"links": {"self": "%s/status", "result": "%s", "events": "%s/events", "stream": "%s/stream", '
    '"cancel": "%s/cancel"}}'
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
    orphaned_at: float | None = None  # +moves
    synchronous: bool = False  # +moves
    not_before: float | None = None  # +moves
    begin_by: float | None = None  # +moves
    trace: Any = None  # +moves
    delivery: Any = None  # +moves
    extra: Any = None  # +moves


class Policy(NamedTuple):
    """What a route's author may set."""

    respond: str = "always"
    wait: float = 0.0
    idempotency: str | None = "optional"
    max_running: int | None = None
    timeout: float | None = None
    ttl: float = TTL  # +settings
    max_request_size: int = MAX_REQUEST  # +settings
    max_response_size: int = MAX_RESPONSE  # +settings
    max_running_per_owner: int | None = None  # +settings
    max_stored: int | None = None  # +settings
    retry_after: int | None = None  # +settings
    coalesce: bool = False  # +settings
    hold: bool = False  # +settings
    max_runs: int = 1  # +settings
    retry: Any = None  # +settings
    max_wait_queued: float | None = None  # +settings
    queue: str | None = None  # +settings
    live: bool = False  # +settings
    callback: Any = None  # +settings


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
state |= {"pid": 0, "loop": None, "number": 0, "waiting": 0, "watching": False}
DONE: list[asyncio.Future[None]] = []
SEEN: list[tuple[Any, int]] = []
NEAR = ("/jobs/", "/orders", "/never", "/reports")
TABLE = {path: [(1, frozenset({"POST"}), path[1:])] for path in NEAR[1:]}
LEASE, CALLBACKS, SALT = None, None, b"/jobs"
EVENTS = b"text/event-stream"
CANDIDATE: tuple[Any, bool] = (None, True)
MOUNTED, HIDES, LISTED, SMALL = False, False, False, 64 * 1024
EMBEDS = 0
MOVES = {
    "queued": frozenset({"running", "cancelled", "failed"}),
    "running": frozenset({"queued", "cancelling", "cancelled", "succeeded", "failed"}),
    "cancelling": frozenset({"cancelled", "succeeded", "failed"}),
    "succeeded": frozenset[str](),
    "failed": frozenset[str](),
    "cancelled": frozenset[str](),
}
WORDS = {word: word.replace("ll", "l") for word in MOVES}
observers: dict[str, list[Any]] = {word: [] for word in MOVES}
spans: list[Any] = []
turns: dict[str, Line] = {}
blocked: set[Line] = set()
at_rest: dict[str, tuple[Any, ...]] = {}
said: dict[str, Any] = {}
order_of: list[str] = []
ended_of: list[str] = []
leases: dict[str, float] = {}
names: dict[str, list[str]] = {}
requests: dict[str, Any] = {}
heads: dict[str, Any] = {}
owed: dict[str, float] = {}
counted: set[str] = set()
came: set[str] = set()
newest: dict[str, tuple[deque[float], list[float]]] = {}
NONE: tuple[deque[float], list[float]] = (deque(), [])


class Line:
    """Who runs and who waits on a route."""

    __slots__ = ("blocked", "blocked_owners", "by_owner", "name", "running", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.running = 0
        self.waiting: list[int] = []
        self.by_owner: dict[str, int] = {}
        self.blocked = False
        self.blocked_owners: set[str] = set()


class Ticket:
    """A place in line."""

    __slots__ = ("line", "number", "owner", "rests", "running", "turn")

    def __init__(self, number: int, line: Line, owner: str | None) -> None:
        self.number = number
        self.line = line
        self.owner = owner
        self.running = True
        self.rests = False
        self.turn = None


class Block:
    """What is stopped, and by whose task."""

    __slots__ = ("cancels", "orphaned", "stack", "task")

    def __init__(self, stack: list[Any]) -> None:
        self.stack = stack
        self.orphaned = False
        self.cancels = 0
        self.task: Any = asyncio.current_task()
        stack.append(self)

    def left(self, error: BaseException | None) -> None:
        self.stack.remove(self)
        task, self.task = self.task, None
        if error is not None:
            self.orphaned = asyncio.current_task() is not task
        if self.cancels:
            raise NotImplementedError


def mint() -> str:
    if state["pid"] != os.getpid():  # +loop
        state["pid"] = os.getpid()  # +loop
    if not drawn:
        bits = secrets.token_bytes(64 * 16)
        drawn.extend(bits[at : at + 16] for at in range(0, 64 * 16, 16))
    unsigned = drawn.pop() + tag
    check = zlib.crc32(unsigned).to_bytes(4)[:3]  # -loop
    check = zlib.crc32(unsigned + SALT).to_bytes(4)[:3]  # +loop
    return urlsafe_b64encode(unsigned + check)[:30].decode()


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
    while jobs or at_rest:
        await asyncio.sleep(60.0)
        now = time.time()
        for id in [id for id, when in due.items() if when <= now]:
            jobs.pop(id, None)
            at_rest.pop(id, None)
            del due[id]
        order_of[:] = [id for id in order_of if id in due or id in jobs]
        ended_of.clear()
    state["sweeping"] = False


def watch() -> None:
    """Look whether the event loop is held up, as long as jobs run."""
    state["watching"] = True
    loop = asyncio.get_running_loop()
    state["look"] = loop.time() + 0.25
    loop.call_later(0.25, look, context=Context())


def look() -> None:
    if came and asyncio.get_running_loop().time() - state["look"] >= 1.0:
        raise NotImplementedError
    if came:
        came.clear()
        watch()
    else:
        state["watching"] = False


async def create(
    job: Job,
    request: Any = None,  # +rare
    keys: Any = (),  # +rare
    lease: Any = None,  # +rare
    bounds: Any = None,  # +rare
) -> None:
    if keys or bounds is not None or request is not None or lease is not None:  # +rare
        raise NotImplementedError  # +rare
    put(job)


async def replace(
    job: Job,
    body: bytes,
    keys: Any = (),  # +rare
    lease: Any = None,  # +rare
    bounds: Any = None,  # +rare
) -> None:
    if keys or bounds is not None or lease is not None:  # +rare
        raise NotImplementedError  # +rare
    settle(job, body)


def put(job: Job) -> None:
    if job.id in jobs:
        raise NotImplementedError
    if kept["bytes"] + 1024 > MAX_BYTES:  # +bound
        raise NotImplementedError  # +bound
    kept["bytes"] += 1024  # +bound
    if job.id in at_rest:  # +rest
        raise NotImplementedError  # +rest
    if job.delivery is not None or job.replayable or job.progress is not None:  # +lists
        raise NotImplementedError  # +lists
    order_of.append(job.id)  # +lists
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
    id = job.id  # +lists
    if id in names or id in requests or id in heads or id in owed or id in counted:  # +lists
        raise NotImplementedError  # +lists
    if old.response is not None or job.progress is not old.progress:  # +lists
        raise NotImplementedError  # +lists
    if job.delivery is not None or job.gone:  # +lists
        raise NotImplementedError  # +lists
    leases.pop(id, None)  # +lists
    ended_of.append(id)  # +lists
    jobs[job.id] = tuple(job)  # +wake -rest
    del jobs[id]  # +rest
    at_rest[id] = packed(job)  # +rest
    due[job.id] = job.expires_at  # +expiry
    for event in waiting.pop(job.id, ()):  # +wake
        event.set()  # +wake


class Stopping:
    """What asks an app to stop."""

    __slots__ = (
        *("asked", "disconnect", "disconnected", "done", "grace", "inside", "listeners", "noted"),
        *("reason", "spared", "stoppers", "tasks", "threads", "timers", "torn"),
    )

    def __init__(self, tasks: Any, grace: float) -> None:
        self.reason = self.timers = self.disconnect = self.threads = None
        self.torn = self.disconnected = self.asked = self.done = self.noted = self.spared = False
        self.tasks, self.grace, self.listeners = tasks, grace, 0
        self.stoppers: list[Any] = []
        self.inside = partial(Block, self.stoppers)


class Body:
    """The request's body."""

    __slots__ = (
        *("bodies", "chunks", "closing", "end", "file", "given", "keeps", "limit", "lost", "read"),
        *("size", "start", "told_end", "whole", "writing"),
    )

    def __init__(self, limit: int, bodies: Any) -> None:
        self.limit, self.bodies = limit, bodies
        self.size = self.read = self.given = self.start = self.end = 0
        self.whole = self.lost = self.told_end = self.closing = False
        self.file = self.writing = None
        self.keeps = True
        self.chunks: list[bytes] = []


class Gate:
    """A hand-over."""

    __slots__ = ("future", "is_open")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future = loop.create_future()
        self.is_open = False


class Run:
    """One run of a job."""

    __slots__ = (
        *("complete", "decided", "failed", "flusher", "flushing", "held", "home", "job", "method"),
        *("origin", "pause", "policy", "progress", "raised", "recorder", "settling", "span"),
        *("stopping", "ticket", "timed_out", "turn", "waits"),
    )

    def __init__(self, home: Any, job: Any, policy: Any, ticket: Any, stopping: Any) -> None:
        self.home, self.job, self.policy = home, job, policy
        self.ticket, self.stopping, self.waits = ticket, stopping, job.state == "queued"
        self.progress = self.span = self.turn = self.method = self.recorder = self.flusher = None
        self.failed = self.raised = self.pause = self.settling = self.timed_out = None
        self.complete = self.decided = self.flushing = self.held = False
        self.origin = None


class Recorder:
    """What records one response."""

    __slots__ = (
        *("gathered", "headed", "headers", "live", "max_size", "method", "passed_on", "piece"),
        *("size", "status"),
    )

    def __init__(self, method: str, max_size: int, live: bool) -> None:
        self.method, self.max_size, self.live = method, max_size, live
        self.piece = self.status = None
        self.headers: Any = ()
        self.size = self.passed_on = 0
        self.headed = False
        self.gathered: list[bytes] = []


class Captured(NamedTuple):
    """A response."""

    status: int
    headers: Any
    size: int


class Outlook(NamedTuple):
    """What is expected of a job."""

    retry_after: int
    position: int | None
    completion: float | None


class Reply(NamedTuple):
    """What is answered."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Place(NamedTuple):
    """What stands behind a path."""

    id: str
    actions: Mapping[str, str]


class Fetched(NamedTuple):
    """A job, and the body of its response."""

    job: Any
    body: bytes | None


def packed(job: Job) -> tuple[Any, ...]:
    """Plain values in a plain tuple, those of a response behind them."""
    fields: list[Any] = list(job)
    fields[2] = str(fields[2])
    if fields[15] is not None or fields[17] is not None:
        raise NotImplementedError
    if (response := fields[16]) is not None:
        status, headers, size = response
        fields[16] = b"\n".join(chain.from_iterable(headers))
        if fields[16].count(b"\n") != 2 * len(headers) - 1:
            raise NotImplementedError
        fields += status, size
    return tuple(fields)


@lru_cache(maxsize=1024)
def parted(joined: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The fields of a response that is packed."""
    parts = iter(joined.split(b"\n"))
    return tuple(zip(parts, parts, strict=True))


class Handoff:
    """One request."""

    __slots__ = (
        *("scope", "outer", "client_receive", "client_send", "id", "waiter", "message", "task"),
        *("status", "headers", "created_at", "job", "route", "policy", "fields", "chunks", "size"),
        *("owner", "wait", "inner", "context", "reason", "stoppers", "closed", "parts", "error"),
        *("progress", "reading", "refusal", "replayed", "answered", "vary", "started"),
        *("state", "around", "ticket", "read_so_far", "given", "whole", "told_end", "piece"),
        *("passed_on", "sent", "others", "accepted", "entered", "plain", "released", "recorded"),
        *("keyed", "made", "named", "runs", "seeks", "decided", "complete", "full", "left"),
        *("timed_out", "settling"),
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
        kept_state = scope.get("state")  # +carried
        self.state = dict(kept_state) if isinstance(kept_state, dict) else kept_state  # +carried
        if scope.get("extensions"):  # +carried
            raise NotImplementedError  # +carried
        self.around = scope.get("app")  # +carried
        self.ticket: Any = None  # +turns
        self.accepted: Any = None  # +rare
        self.entered = self.plain = self.released = self.recorded = self.keyed = False  # +rare
        self.made = self.named = self.runs = self.seeks = False  # +rare
        self.decided = self.complete = False  # +rare
        self.full: Any = None  # +rare
        self.left: Any = None  # +rare
        self.timed_out: Any = None  # +rare
        self.settling: Any = None  # +rare
        self.read_so_far = self.given = 0  # +parts
        self.whole = self.told_end = False  # +parts
        self.piece: Any = None  # +live
        self.passed_on = self.sent = 0  # +live
        self.others: Any = (  # +owners
            Stopping(state, 5.0),  # +owners
            Body(self.policy.max_request_size, None),  # +owners
        )  # +owners

    async def enter(self, name: str) -> bool:
        """Become a job: its client is answered, and the handler goes on."""
        if self.entered or self.plain or self.accepted is not None:  # +rare
            raise NotImplementedError  # +rare
        self.entered = True  # +rare
        if get_ident() != state["thread"]:  # +threads
            raise NotImplementedError  # +threads
        if self.id or self.answered:  # +answer
            raise NotImplementedError  # +answer
        self.route, self.policy = name, policies[name]  # +policy
        self.decide()  # +prefer
        for field, value in self.fields:  # +large +prefer
            if field == b"content-length" and int(value) > MAX_REQUEST:  # +large +prefer -settings
                raise NotImplementedError  # +large +prefer -settings
            if field == b"content-length" and exceeds(value, self.policy):  # +settings
                raise NotImplementedError  # +settings
        if state["closing"]:  # +drain
            raise NotImplementedError  # +drain
        if "user" in self.scope:  # +owner
            raise NotImplementedError  # +owner
        if self.policy.idempotency == "required":  # +key +policy
            raise NotImplementedError  # +key +policy
        for field, _ in self.fields:  # +key
            if field == b"idempotency-key":  # +key
                raise NotImplementedError  # +key
        if self.policy.coalesce or self.policy.hold:  # +settings
            raise NotImplementedError  # +settings
        self.message = await self.read()
        if self.message["more_body"]:  # -large
            raise NotImplementedError  # -large
        body = self.message.get("body", b"")  # +large
        self.size += len(body)  # +large
        self.chunks.append(bytes(body))  # +large
        if self.message.get("more_body", False) or self.size > MAX_REQUEST:  # +large -settings
            raise NotImplementedError  # +large -settings
        most = self.policy.max_request_size  # +settings
        if self.message.get("more_body", False) or self.size > most:  # +settings
            raise NotImplementedError  # +settings
        self.whole, self.message = True, None  # +parts
        self.admit("order")  # +ticket -policy
        asynchronous = self.policy.respond == "always"  # +rare
        self.named = self.policy.idempotency == "required"  # +rare
        if not (asynchronous or self.named):  # +rare
            raise NotImplementedError  # +rare
        if self.policy.coalesce or self.named or not self.whole:  # +rare
            raise NotImplementedError  # +rare
        self.admit(self.route)  # +ticket +policy
        await self.accept()
        if not asynchronous or not self.runs or self.reason is not None:  # +rare
            raise NotImplementedError  # +rare
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
        held = places.get(route, 0)  # -turns
        if places[""] >= MAX_RUNNING or (bound is not None and held >= bound):  # -turns
            raise NotImplementedError  # -turns
        line = turns.get(route)  # +turns
        if line is None:  # +turns
            line = turns[route] = Line(route)  # +turns
        held, owner = line.running, self.owner  # +turns
        quota = self.policy.max_running_per_owner  # +turns
        if places[""] >= MAX_RUNNING or (bound is not None and held >= bound):  # +turns
            raise NotImplementedError  # +turns
        if line.waiting or line.blocked or line.blocked_owners or quota is not None:  # +turns
            raise NotImplementedError  # +turns
        if owner is not None:  # +turns
            line.by_owner[owner] = line.by_owner.get(owner, 0) + 1  # +turns
        state["number"] += 1  # +turns
        self.ticket = Ticket(state["number"], line, owner)  # +turns
        line.running += 1  # +turns
        places[""] += 1
        places[route] = held + 1  # -turns

    async def accept(self) -> None:
        """Be visible before the 202 leaves."""
        self.id = f"{next(numbers):030}"  # -id
        self.id = mint()  # +id
        now = time.time()  # +times
        self.created_at = now  # +times
        policy = self.policy  # +settings
        again = LEASE is not None or policy.retry is not None  # +settings
        if (policy.max_runs if again else 1) > 1 or policy.max_wait_queued:  # +settings
            raise NotImplementedError  # +settings
        if CALLBACKS is not None or LEASE is not None or policy.max_stored:  # +settings
            raise NotImplementedError  # +settings
        self.job = Job(  # +record
            self.id,  # +record
            "order",  # +record -policy
            self.route,  # +record +policy
            "running",  # +record
            now,  # +record
            *(1, 1, 1, 1, False, None, None),  # +record -settings
            *(1, 1, 1, 1, False, state["pid"], policy.queue),  # +settings
            now,  # +record
            *(None, None, None, None, None, None, False),  # +record
            None,  # +record -owner
            self.owner,  # +owner
        )  # +record
        put(self.job)  # +record -port
        await create(self.job)  # +port
        there = jobs[self.id]  # +rare
        if there is not self.job and there.id != self.id:  # +rare
            raise NotImplementedError  # +rare
        waits = self.job.state == "queued"  # +rare
        if waits or self.job.begin_by is not None or self.job.synchronous:  # +rare
            raise NotImplementedError  # +rare
        self.made, self.keyed, self.runs = True, False, not waits  # +rare
        self.accepted = None if self.job.synchronous else self.job  # +rare
        self.recorded = self.runs and self.accepted is not None  # +rare
        running[self.id] = self  # +drain
        run = Run(running, self.job, self.policy, self.ticket, self.others[0])  # +owners
        self.others = (*self.others, run)  # +owners
        if observers["running"] or spans or self.policy.timeout is not None:  # +told
            raise NotImplementedError  # +told
        came.add(self.route)  # +told
        if not state["watching"]:  # +told
            watch()  # +told
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
        self.state = None  # +carried
        del self.chunks[: self.read_so_far]  # +parts
        self.read_so_far = 0  # +parts
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
        if self.message is not None:  # -parts
            message, self.message = self.message, None  # -parts
            return message  # -parts
        if self.read_so_far < len(self.chunks):  # +parts
            chunk = self.chunks[self.read_so_far]  # +parts
            if self.id:  # +parts
                self.chunks[self.read_so_far] = b""  # +parts
            self.read_so_far += 1  # +parts
            self.given += len(chunk)  # +parts
            self.told_end = self.whole and self.given == self.size  # +parts
            return {"type": "http.request", "body": chunk, "more_body": not self.told_end}  # +parts
        if self.client_receive is not None or not self.told_end:  # +parts
            raise NotImplementedError  # +parts
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
        if self.decided or not self.recorded or self.full is not None:  # +rare
            raise NotImplementedError  # +rare
        if self.closed:  # +stop
            raise NotImplementedError  # +stop
        found = self.take(message)
        if found is not None:  # +port
            self.complete = True  # +rare
            if self.reason is not None or self.error is not None:  # +rare
                raise NotImplementedError  # +rare
            self.decided = True  # +rare
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
            recorder = Recorder(self.scope["method"], MAX_RESPONSE, live=False)  # +owners
            self.others = (*self.others, recorder)  # +owners
            self.status = message["status"]
            if self.policy.live:  # +live
                raise NotImplementedError  # +live
            for name, value in self.headers:  # +live
                if len(name) == 12 and value[:17].lower() == EVENTS:  # +live
                    raise NotImplementedError  # +live
            return None
        if message["type"] != "http.response.body" or self.status is None:  # +checks
            raise NotImplementedError  # +checks
        body = message.get("body", b"")
        self.parts.append(bytes(body))  # +checks
        if message.get("more_body", False) or len(body) > MAX_RESPONSE:  # +checks -settings
            raise NotImplementedError  # +checks -settings
        most = self.policy.max_response_size  # +settings
        if message.get("more_body", False) or len(body) > most:  # +settings
            raise NotImplementedError  # +settings
        self.sent += len(body)  # +live
        if self.piece is not None or self.sent - self.passed_on >= PIECE:  # +live
            raise NotImplementedError  # +live
        body = b"".join(self.parts)  # +checks
        check_length(self.status, self.headers, len(body))  # +checks
        state = "succeeded" if self.status < 400 else "failed"
        if self.reason is not None:  # +stop
            raise NotImplementedError  # +stop
        if state == "failed" and self.policy.retry is not None:  # +settings
            raise NotImplementedError  # +settings
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
        if job.state != "running":  # -moves
            raise NotImplementedError  # -moves
        if MOVES[state] or state not in MOVES[job.state]:  # +moves
            raise NotImplementedError  # +moves
        ttl = TTL  # +expiry -settings
        ttl = self.policy.ttl  # +settings
        return Job(
            *job[:2],
            state,
            job.created_at,
            job.version + 1,
            *job[5:12],
            now,
            None,  # -expiry
            now + ttl,  # +expiry
            None,  # -expiry
            now + ttl + TOMBSTONE,  # +expiry
            None,  # -progress
            self.progress,  # +progress
            (self.status, self.headers, len(body)),  # -owners
            Captured(self.status, self.headers, len(body)),  # +owners
            *job[17:],
        )

    async def finish(self, done: Job, body: bytes) -> None:
        if self.policy.coalesce:  # +settings
            raise NotImplementedError  # +settings
        try:  # +told
            await replace(done, body)  # +told
        except Exception as error:  # +told
            raise NotImplementedError from error  # +told
        if observers[done.state]:  # +told
            raise NotImplementedError  # +told
        await replace(done, body)  # -told
        self.job = done
        self.learn("order", done)  # +estimate -policy
        self.learn(self.route, done)  # +estimate +policy

    def learn(self, route: str, done: Job) -> None:
        taken = done.finished_at - done.started_at  # type: ignore[operator]
        known = durations.get(route)  # -newest
        durations[route] = taken if known is None else known + 0.2 * (taken - known)  # -newest
        if route not in newest:  # +newest
            newest[route] = deque(), []  # +newest
        recent, lengths = newest[route]  # +newest
        recent.append(taken)  # +newest
        insort(lengths, taken)  # +newest
        if len(recent) > 64:  # +newest
            del lengths[bisect_left(lengths, recent.popleft())]  # +newest

    def leave(self, route: str) -> None:
        """Give the place back."""
        places[""] -= 1
        places[route] -= 1  # -turns
        ticket = self.ticket  # +turns
        line, ticket.running = ticket.line, False  # +turns
        line.running -= 1  # +turns
        if ticket.owner is not None or line in blocked or state["waiting"]:  # +turns
            raise NotImplementedError  # +turns

    async def run(self, app: ASGIApp) -> None:
        """The app, in a task of its own."""
        current.set(self)
        if self.job is not None or self.reason is not None:  # +rare
            raise NotImplementedError  # +rare
        error = None  # +raised
        self.stoppers.append(self)  # +stop -blocks
        block = Block(self.stoppers)  # +blocks
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:  # +stop
            if self.reason is None:  # +stop
                raise  # +stop
        except Exception as raised:
            error = raised  # +raised
            del raised  # -raised
        finally:  # +stop
            self.stoppers.pop()  # +stop -blocks
            block.left(error)  # +blocks
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
        if spans:  # +told
            raise NotImplementedError  # +told
        if self.reason is not None or not self.decided or self.released:  # +rare
            raise NotImplementedError  # +rare
        if self.timed_out is not None or self.settling is not None:  # +rare
            raise NotImplementedError  # +rare
        self.full = self.left = self.error = self.parts = self.headers = None  # +rare
        self.task = None


def exceeds(length: bytes, policy: Policy) -> bool:
    """Whether a Content-Length is more than may come, and a number at all."""
    digits = length.strip().lstrip(b"0")
    if not digits.isdigit():
        raise NotImplementedError
    return len(digits) > 18 or int(digits) > policy.max_request_size


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
        elif not self.near(scope):  # +routes
            await self.app(scope, receive, send)  # +routes
        elif scope["path"].startswith("/jobs/"):
            await poll(scope, send)  # -failing
            await polled(scope, send)  # +failing
        elif (scope["method"], scope["path"]) in self.marked:  # -routes
            await self.conduct(scope, receive, send)  # -routes
        elif self.find(scope["path"], scope["method"]) is not None:  # +routes
            await self.conduct(scope, receive, send)  # +routes
        else:
            await self.app(scope, receive, send)

    def near(self, scope: Scope) -> bool:
        """Whether the path of a request begins like one of ours."""
        for routes, known in SEEN:
            if len(routes) != known:
                raise NotImplementedError
        if scope.get("root_path"):
            raise NotImplementedError
        return bool(scope["path"].startswith(NEAR))

    def find(self, path: str, method: str) -> str | None:
        """The route of a request."""
        found, before = None, len(TABLE) + 1
        for number, methods, name in TABLE.get(path, ()):
            if number < before and method in methods:
                found = name
                break
        return found

    async def conduct(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        if not DONE:
            DONE.append(loop.create_future())
            DONE[0].set_result(None)
        if state["loop"] is not loop:  # +loop
            state["loop"] = loop  # +loop
        handoff = Handoff(scope, receive, send)
        context = None  # -context
        context = copy_context()  # +context
        handoff.context, handoff.inner = context, context.copy()  # +context
        rule, certain = CANDIDATE  # +rare
        if rule is not None or not certain:  # +rare
            raise NotImplementedError  # +rare
        context = handoff.inner  # +context
        if EAGER:
            options: Any = {"loop": loop, "eager_start": True, "context": context}
            handoff.task = asyncio.Task(handoff.run(self.app), **options)
        else:
            handoff.task = loop.create_task(handoff.run(self.app), context=context)
        if handoff.client_send is not None:
            handoff.waiter = loop.create_future()  # -owners
            gate = Gate(loop)  # +owners
            handoff.waiter = gate.future  # +owners
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
        if rule is not None or handoff.plain or handoff.seeks:  # +rare
            raise NotImplementedError  # +rare
        if not handoff.id:  # +answer
            if handoff.error is not None:  # +answer
                raise handoff.error  # +answer
            return  # +answer
        await answer(handoff, scope, send)


async def answer(handoff: Handoff, scope: Scope, send: Send) -> None:
    """The 202."""
    id, known, accepted_at = handoff.id, None, 0.0
    job = handoff.accepted  # +rare
    if job is None or job.synchronous or EMBEDS or handoff.reason is not None:  # +rare
        raise NotImplementedError  # +rare
    if job.id not in running or scope["method"] == "HEAD" or job.delivery is not None:  # +rare
        raise NotImplementedError  # +rare
    if MOVES[job.state] is MOVES["failed"] or handoff.left is not None:  # +rare
        raise NotImplementedError  # +rare
    accepted_at = handoff.created_at  # +times
    known = durations.get("order")  # +estimate -policy
    known = durations.get(handoff.route)  # +estimate +policy -newest
    known = newest.get(handoff.route, NONE)[1]  # +newest
    body, after = document(id, accepted_at, known)  # -outlook
    body, after = foreseen(handoff.job, handoff.policy, known)  # +outlook -dialect
    location = f"/jobs/{id}".encode()  # -dialect
    url = f"{mount_at(scope['root_path'] + '/jobs')}/{id}"  # +dialect
    body, after = foreseen(handoff.job, handoff.policy, known, url)  # +dialect
    location = url.encode()  # +dialect
    headers = [
        (b"location", location),
        (b"content-location", location),
        (b"link", f'</jobs/{id}/status>; rel="monitor"'.encode()),
        (b"retry-after", b"%d" % after),
        *FIELDS,
        (b"content-length", b"%d" % len(body)),
        (b"vary", b"Prefer"),
    ]
    _, headers, body = Reply(202, headers, body)  # +owners
    for room in ROOMS:  # +rooms
        room(handoff, scope)  # +rooms
    for waited in WAITED:  # +rooms
        await waited(handoff, scope)  # +rooms
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def room(one: Any, other: Any) -> Any:
    return one


async def waited(one: Any, other: Any) -> Any:
    return one


# So many functions, and so many coroutines, does raincheck call more than all of the above.
ROOMS = (room,) * 37
WAITED = (waited,) * 5


async def polled(scope: Scope, send: Send) -> None:
    """A poll, whatever fails on its way."""
    try:
        await poll(scope, send)
    except Exception as error:
        raise NotImplementedError from error


async def poll(scope: Scope, send: Send) -> None:
    """The document of a job that runs, or the response that it has ended with."""
    body: Any = None
    if MOUNTED or HIDES or LISTED:  # +mounted
        raise NotImplementedError  # +mounted
    if state["loop"] is not asyncio.get_running_loop():  # +opened
        raise NotImplementedError  # +opened
    id = scope["path"][6:]  # -place
    id, slash, route = scope["path"][6:].partition("/")  # +place
    actions = ACTIONS.get(slash + route)  # +place
    if actions is None or not id:  # +place
        raise NotImplementedError  # +place
    if actions.get(scope["method"]) != "result" or scope["query_string"]:  # +place
        raise NotImplementedError  # +place
    url = f"/jobs/{id}"  # -prefix
    mount = mount_at(scope.get("root_path", "") + "/jobs")  # +prefix
    url = f"{mount}/{id}"  # +prefix
    heard = []  # +asked
    for field in scope["headers"]:  # +asked
        if field[0] in ANSWERED:  # +asked
            heard.append(field)  # +asked
    if heard and heard != ANYTHING:  # +asked
        raise NotImplementedError  # +asked
    id, actions = tuple.__new__(Place, (id, actions))  # +objects
    job = jobs.get(id)  # -whole
    if job is None:  # +rest -whole
        job = at_rest.get(id)  # +rest -whole
    job, body = await fetch(id)  # +whole
    ended = job is not None  # -whole
    ended = job is not None and job[2] != "running"  # +record -whole
    ended = not MOVES[job[2]]  # +whole
    if "user" in scope or (job is not None and job[19] is not None):  # +owner +record
        raise NotImplementedError  # +owner +record
    if job.expires_at is not None and job.expires_at <= time.time():  # +gone
        raise NotImplementedError  # +gone
    if job.gone:  # +gone
        raise NotImplementedError  # +gone
    if ended:
        await serve(job, scope, send, body)
        return
    for name, _ in scope["headers"]:  # +prefer -asked
        if name == b"prefer":  # +prefer -asked
            raise NotImplementedError  # +prefer -asked
    known, at = None, time.time()  # -estimate
    known, at = durations.get("order"), time.time()  # +estimate -policy
    known, at = durations.get(job[1]), time.time()  # +estimate +policy -newest
    known, at = newest.get(job[1], NONE)[1], time.time()  # +newest -foreseen
    body, after = document(id, job[3] if isinstance(job, Job) else at, known)  # -foreseen
    after, position, completion = outlook(job)  # +foreseen
    body = text(job, url, after, position, completion)  # +foreseen -kept
    location = url.encode()  # -kept
    headers = [(b"location", location), (b"content-location", location)]  # -kept
    headers += ((b"retry-after", b"%d" % after), *FIELDS)  # -kept
    written = said.get(id)  # +kept
    if written is None or written[0] != (job, mount):  # +kept
        written = said[id] = (job, mount), standing(job, url)  # +kept
    where, before, behind = written[1]  # +kept
    second = None if completion is None else int(completion)  # +kept
    again, between = expecting(after, position, second)  # +kept
    body = before + between + behind  # +kept
    headers = [*where, again, *FIELDS]  # +kept
    headers.append((b"content-length", b"%d" % len(body)))
    _, headers, body = tuple.__new__(Reply, (202, headers, body))  # +objects
    for room in POLL_ROOMS:  # +calls
        room(scope, send)  # +calls
    for waited in PENDING_WAITED:  # +calls
        await waited(scope, send)  # +calls
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    if scope["method"] == "HEAD":  # +head
        body = b""  # +head
    await send({"type": "http.response.body", "body": body})


# As above, for each of the two polls.
POLL_ROOMS = (room,) * 8
PENDING_WAITED, FINISHED_WAITED = (waited,) * 2, (waited,)


async def fetch(id: str) -> tuple[Any, bytes | None]:
    """What is known of a job, and the body of its response if that is small."""
    if (job := jobs.get(id)) is not None:
        return job, None  # -objects
        return tuple.__new__(Fetched, (job, None))  # +objects
    if (packed := at_rest.get(id)) is None:
        raise NotImplementedError
    if packed[16] is None or (size := packed[-1]) > SMALL:
        raise NotImplementedError
    job = packed  # -values
    job = unpacked(packed)  # +values
    body = bodies.get(id, b"")
    if not isinstance(body, bytes) or len(body) != size:
        raise NotImplementedError
    return job, body  # -objects
    return tuple.__new__(Fetched, (job, body))  # +objects


def unpacked(packed: tuple[Any, ...]) -> Job:
    """The record that plain values are."""
    fields = list(packed)
    fields[2] = WORDED[packed[2]]
    if (joined := packed[16]) is not None:
        size, status = fields.pop(), fields.pop()
        fields[16] = Captured(status, parted(joined), size)
    if packed[15] is not None or packed[17] is not None or packed[26] is not None:
        raise NotImplementedError
    return tuple.__new__(Job, fields)


def outlook(job: Job) -> tuple[int, int | None, float | None]:
    """Seconds until it is worth asking again, a place in line, and when it is likely to end."""
    here, position, completion = running.get(job.id), None, None
    policy, known = policies[job.route], newest.get(job.route)
    if here is None or here.ticket.rests or job.state == "queued":
        raise NotImplementedError
    now = time.time()
    elapsed = max(0.0, now - (job.started_at or job.created_at))
    pause, half = 0.5 * elapsed, None
    if job.not_before is not None and job.not_before > now:
        raise NotImplementedError
    if known is not None:
        pause, half = expected(known[1], elapsed)
    if elapsed and job.progress is not None and job.progress.fraction:
        raise NotImplementedError
    if job.state == "cancelling" or policy.timeout is not None:
        raise NotImplementedError
    if half is not None and half < FAR:
        completion = now + half
    after = bounded(pause) if policy.retry_after is None else policy.retry_after
    return after, position, completion  # -objects
    return tuple.__new__(Outlook, (after, position, completion))  # +objects


def text(job: Job, url: str, after: int, position: Any, completion: Any) -> bytes:
    """The document of a job that runs."""
    ends = "null" if completion is None else f'"{spell(int(completion))}"'
    id, created, progress = job.id, spell(int(job.created_at)), job.progress
    return (DOCUMENT % (id, created, ends, after, id, id, id)).encode()  # -full
    url = quote(url)[1:-1]
    document = FULL % (
        *(id, WORDS[job.state], created),
        "null" if progress is None or progress.fraction is None else progress.fraction,
        "null" if progress is None or progress.message is None else quote(progress.message),
        "null" if position is None else position,
        *(ends, after, job.runs, url, url, url, url, url),
    )
    if job.delivery is not None or job.not_before is not None:
        raise NotImplementedError
    return document.encode()


def standing(job: Job, url: str) -> tuple[tuple[tuple[bytes, bytes], ...], bytes, bytes]:
    """Where a job is, and its document: before and behind what is expected of it."""
    if job.progress is not None or job.not_before is not None or job.delivery is not None:
        raise NotImplementedError
    location, link = url.encode(), quote(url)[1:-1]
    before, behind = FULL.split(EXPECTED)
    began = before % (job.id, WORDS[job.state], spell(int(job.created_at)), "null", "null")
    links = behind % (job.runs, link, link, link, link, link)
    where = ((b"location", location), (b"content-location", location))
    return where, began.encode(), links.encode()


@lru_cache(maxsize=1024)
def expecting(after: int, position: int | None, second: int | None) -> Any:
    """What is expected of a job: its field, and its part of the document."""
    ends = "null" if second is None else f'"{spell(second)}"'
    said = EXPECTED % ("null" if position is None else position, ends, after)
    return (b"retry-after", b"%d" % after), said.encode()


async def serve(job: Any, scope: Scope, send: Send, body: Any) -> None:
    """The response that a job has ended with."""
    id = scope["path"][6:]
    for name, _ in scope["headers"]:  # +checks -asked
        if name in ASKING:  # +checks -asked
            raise NotImplementedError  # +checks -asked
    status, headers, body = *job[1:3], job[3]  # -record
    status, headers, body = *job[16][:2], bodies[id]  # +record -rest -whole
    status, headers, body = job[-2], parted(job[16]), bodies[id]  # +rest -whole
    status, headers = job[-2], parted(job[16])  # +whole -values
    status, headers = job[16][:2]  # +values -served
    response = job.response  # +served
    if response is None or body is None:  # +served
        raise NotImplementedError  # +served
    status, headers = served(*response[:2], job.state, job.owner is not None)  # +served
    headers = servable(response, headers, scope["method"])  # +length -ranges
    fields = [*headers, *SERVED]  # -served
    if status != 200 or response.status != 200:  # +ranges
        raise NotImplementedError  # +ranges
    headers, etag = negotiable(response, headers, scope["method"])  # +ranges
    if etag is None:  # +ranges
        if job.delivery is not None:  # +ranges
            raise NotImplementedError  # +ranges
        etag = b'"%b.%d.%d"' % (id.encode(), job.fence, job.version)  # +ranges
        headers = (*headers, (b"etag", etag))  # +ranges
    fields = [*headers]  # +served
    fields.append((b"etag", b'"%b-%d"' % (id.encode(), job[4])))  # +record -ranges
    for room in POLL_ROOMS:  # +calls
        room(scope, send)  # +calls
    for waited in FINISHED_WAITED:  # +calls
        await waited(scope, send)  # +calls
    await send({"type": "http.response.start", "status": status, "headers": fields})
    if scope["method"] == "HEAD":  # +head
        body = b""  # +head
    await send({"type": "http.response.body", "body": body})


@lru_cache(maxsize=256)
def served(status: int, headers: Any, state: str, owned: bool) -> tuple[int, Any]:
    """Status and fields under which a response is served."""
    names = {name.lower() for name, _ in headers}
    if status == 202 or owned or names & {b"job-status", b"cache-control", b"referrer-policy"}:
        raise NotImplementedError
    return status, (*headers, *FIELDS[:2], (b"job-status", state.encode()))


@lru_cache(maxsize=256)
def servable(response: Any, headers: Any, method: str) -> Any:
    """The fields, with the length of what there is."""
    lengths = [value for name, value in response[1] if name.lower() == b"content-length"]
    if lengths != [b"%d" % response[2]]:
        raise NotImplementedError
    return headers


@lru_cache(maxsize=256)
def negotiable(response: Any, headers: Any, method: str) -> tuple[Any, bytes | None]:
    return offered(servable(response, headers, method), response.size)


def offered(headers: Any, size: int) -> tuple[Any, bytes | None]:
    """The fields with which parts may be asked for, and a response's own `ETag`."""
    if size > PIECE or {name.lower() for name, _ in headers} & {b"accept-ranges", b"etag"}:
        raise NotImplementedError
    return headers, None


def document(id: str, created_at: float, known: Any) -> tuple[bytes, int]:
    """What is said of a job that runs, and the seconds until it is worth asking again."""
    after, ends = 1, "null"
    if known is not None:  # +estimate -newest
        remaining = known - (time.time() - created_at)  # +estimate -newest
        after = min(30, max(1, round(remaining)))  # +estimate -newest
        ends = f'"{spell(int(created_at + known))}"'  # +estimate -newest
    now = time.time()  # +newest
    pause, half = expected(known, max(0.0, now - created_at))  # +newest
    after = bounded(pause)  # +newest
    if half is not None:  # +newest
        ends = f'"{spell(int(now + half))}"'  # +newest
    created = "2026-11-28T22:12:14Z"  # -times
    created = spell(int(created_at))  # +times
    return (DOCUMENT % (id, created, ends, after, id, id, id)).encode(), after


def expected(known: list[float], elapsed: float) -> tuple[float, float | None]:
    """Seconds until the next look, and until half of those have ended that have run so long."""
    ended = bisect_right(known, elapsed)
    left = len(known) - ended
    if left * 20 < len(known) or not left:
        return 0.5 * elapsed, None
    if not ended:
        return known[left // 20] - elapsed, known[left // 2] - elapsed
    pause = known[ended + left // 6] - elapsed
    return min(max(pause, 0.08 * elapsed), 0.35 * elapsed), known[ended + left // 2] - elapsed


def bounded(pause: float) -> int:
    return 1 if pause <= 1 else max(1, min(30, math.ceil(round(pause, 1))))


def foreseen(job: Job, policy: Policy, known: list[float], url: str = "") -> tuple[bytes, int]:
    """The same, by all that is known of a job."""
    now, ends, position = time.time(), "null", None
    elapsed = max(0.0, now - (job.started_at or job.created_at))
    if job.not_before is not None or job.state == "queued":
        raise NotImplementedError
    pause, half = expected(known, elapsed)
    if elapsed and job.progress is not None and job.progress.fraction:
        raise NotImplementedError
    if job.state == "cancelling" or policy.timeout is not None:
        raise NotImplementedError
    if half is not None and half < FAR:
        ends = f'"{spell(int(now + half))}"'
    after = bounded(pause) if policy.retry_after is None else policy.retry_after
    completion = None if half is None else now + half  # +owners
    after, position, completion = Outlook(after, position, completion)  # +owners
    created, id, progress = spell(int(job.created_at)), job.id, job.progress
    return (DOCUMENT % (id, created, ends, after, id, id, id)).encode(), after  # -dialect
    url = quote(url)[1:-1]  # +dialect
    document = FULL % (  # +dialect
        *(id, WORDS[job.state], created),  # +dialect
        "null" if progress is None or progress.fraction is None else progress.fraction,  # +dialect
        "null" if progress is None or progress.message is None else progress.message,  # +dialect
        "null" if position is None else position,  # +dialect
        *(ends, after, job.runs, url, url, url, url, url),  # +dialect
    )  # +dialect
    if job.delivery is not None or job.not_before is not None:  # +dialect
        raise NotImplementedError  # +dialect
    return document.encode(), after  # +dialect


@lru_cache(maxsize=1024)
def mount_at(prefix: str) -> str:
    """Where URLs begin that name no other host, whatever path a client has brought."""
    return quoted_path("/" + prefix.lstrip("/\\"), safe="/-._~!$&'()*+,;=:@")


ASKING = frozenset({b"if-match", b"if-none-match", b"if-range", b"range"})
ANSWERED = ASKING | {b"accept", b"prefer", b"sec-fetch-mode"}
ANYTHING = [(b"accept", b"*/*")]
EXPECTED = '%s, "estimated_completion": %s, "retry_after": %d'
WORDED = {word: word for word in MOVES}
ACTIONS: Mapping[str, Mapping[str, str]] = {
    "": {"GET": "result", "HEAD": "result", "DELETE": "delete"},
    "/status": {"GET": "monitor", "HEAD": "monitor"},
    "/events": {"GET": "events", "HEAD": "events"},
    "/stream": {"GET": "stream", "HEAD": "stream"},
    "/cancel": {"POST": "cancel"},
    "/delete": {"POST": "delete"},
}
SERVED = (FIELDS[0], FIELDS[1], (b"job-status", b"succeeded"))


def marked(name: str, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
    policies[name] = POLICY

    async def entered(*args: Any, **kwargs: Any) -> Any:
        handoff = current.get()
        if handoff is None:
            return await endpoint(*args, **kwargs)
        await handoff.enter(name)
        handoff.stoppers.append(handoff)  # +stop -blocks
        try:  # +stop -blocks
            return await endpoint(*args, **kwargs)  # +stop -blocks
        finally:  # +stop -blocks
            handoff.stoppers.pop()  # +stop -blocks
        block = Block(handoff.stoppers)  # +blocks
        try:  # +blocks
            result = await endpoint(*args, **kwargs)  # +blocks
        except BaseException as error:  # +blocks
            block.left(error)  # +blocks
            raise  # +blocks
        block.left(None)  # +blocks
        return result  # +blocks
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
    app = Starlette(routes=routes, middleware=[Middleware(Floor)], lifespan=lifespan)
    SEEN.append((app.routes, len(app.routes)))  # +routes
    return app


def module(duties: int | None = None, polls: int = 0) -> dict[str, Any]:
    """The names of this file with the first so many duties; None: with all of an accepted job."""
    there = [*DUTIES][:duties] + [*POLL_DUTIES][:polls]
    return lines.module(__file__, f"{__name__}_{duties}_{polls}", there)


def build(duties: int | None = None, polls: int = 0) -> Starlette:
    """The app with the first so many duties; None: with all of an accepted job."""
    made: Starlette = module(duties, polls)["make"]()
    return made
