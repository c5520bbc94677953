"""The floor of an engine: the least with which a worker runs the request that was accepted.

The app runs as far as the handler's entry, the request is kept with its record, and its id goes to
the broker; a worker takes both, feeds the request to the same app, and keeps what that sends. Three
round trips before the handler and one after it; the 202 is short.

Each duty of `DUTIES` is added by the lines that end with its name, as in `floor_app`, and rare
cases are looked for, and not handled. `floor_engine_app` makes an app of the lines of a step.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from contextvars import Context, ContextVar, copy_context
from functools import lru_cache
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from redis.asyncio import Redis
from starlette.types import Message, Receive, Scope, Send
from taskiq_redis import ListQueueBroker

from peers.orders import Order
from peers.work import fill

DUTIES: Mapping[str, str] = {
    "record": "a record with a version and a fence; each change is compared with what is there",
    "lease": "whoever runs it holds a lease by the server's clock, renewed as long as it runs",
    "lists": "which jobs are due, which wait or run on a route, and which are in a state, by time",
    "told": "whoever waits for a change is told of it",
    "times": "when it was accepted, began and ended",
    "in_time": "every call of store and broker ends in time, and fails clearly",
    "handoff": "the request in a task of its own, released at the handler's entry, our exact 202",
    "asked": "whose it is, what the client prefers, keys, how large the body may be",
    "pending": "the document of a job that has not ended: where, since when, what to expect",
    "replay": "a task of its own with an empty context, which can be cancelled, and a place",
    "drain": "a run ends when the drain of its worker does, whatever the handler does",
    "checks": "a response that a server could send, and fields for whoever is sent it",
    "settle": "the outcome in a task of its own: a cancellation does not leave it unknown",
    "progress": "what the handler reports goes with the outcome",
}
"""The duties in the order in which they are added."""

REDIS = os.environ.get("REDIS_URL", "redis://")
TTL, TOMBSTONE, LEASE, BEAT, TIMEOUT = 3600.0, 86400.0, 30.0, 0.5, 10.0
MAX_REQUEST, MAX_RESPONSE, MAX_RUNNING = 2**20, 2**20, 1000
HEARD = frozenset({b"prefer", b"content-length", b"idempotency-key", b"accept", b"sec-fetch-mode"})
HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"te", b"transfer-encoding", b"upgrade"})
CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
DOCUMENT = (
    '{"job_id": "%s", "status": "%s", "created_at": "%s", "progress": null, "message": null, '
    '"queue_position": null, "estimated_completion": %s, "retry_after": %d, "runs": %d, '
    '"links": {"self": "/jobs/%s/status", "result": "/jobs/%s", "cancel": "/jobs/%s/cancel"}}'
)
FIELDS = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-type", b"application/json"),
]

LISTS = """
local function list(id, was, now, created, took)
  if was then
    redis.call('ZREM', 'busy', was .. id)
    redis.call('ZREM', 'listed:' .. was, id)
  end
  redis.call('HSETNX', 'totals', now, 0)
  redis.call('ZADD', 'listed:' .. now, created, id)
  redis.call('HSET', 'listed', id, now)
  if took then
    redis.call('HINCRBYFLOAT', 'totals', now, took)
  else
    redis.call('ZADD', 'busy', 0, now .. id)
  end
end
"""
CLOCK = """
local function clock()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end
"""

CREATE = (
    "local id, record, captured, created, lease, route = unpack(ARGV)\n"
    "if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end\n"
    "redis.call('HSET', KEYS[1], 'record', record, 'version', 1, 'fence', 1, 'state', 'queued')\n"
    "redis.call('SET', 'request:' .. id, captured)\n"
    "redis.call('ZADD', 'leases', clock() + lease, id)\n"  # +lease
    "list(id, false, 'queued ' .. route .. ' ', created)\n"  # +lists
    "redis.call('ZADD', 'due', '+inf', id)\n"  # +lists
    "return 1\n"
)

CLAIM = (
    "if redis.call('HGET', KEYS[1], 'state') ~= 'queued' then return false end\n"  # -record
    "redis.call('HSET', KEYS[1], 'state', 'running', 'started', ARGV[2])\n"  # -record
    "return redis.call('HGET', KEYS[1], 'request')\n"  # -record
    "local id, now, holder, lease, route = unpack(ARGV)\n"  # +record
    "local old = redis.call('HMGET', KEYS[1], 'record', 'version', 'fence', 'state')\n"  # +record
    "local captured = redis.call('GET', 'request:' .. id)\n"  # +record
    "if old[4] ~= 'queued' or not captured then return false end\n"  # +record
    "local record = old[1] .. '\\n[' .. now .. ',\"' .. holder .. '\"]'\n"  # +record
    "redis.call('HSET', KEYS[1], 'record', record, 'version', old[2] + 1, "  # +record
    "'fence', old[3] + 1, 'state', 'running')\n"  # +record
    "redis.call('ZADD', 'leases', clock() + lease, id)\n"  # +lease
    "list(id, 'queued ' .. route .. ' ', 'running ' .. route .. ' ', now)\n"  # +lists
    "redis.call('PUBLISH', 'changed', id)\n"  # +told
    "return {record, captured}\n"  # +record
)

FINISH = (
    "local id, before, fence, record, body, state, expires, took, route = unpack(ARGV)\n"
    "local old = redis.call('HMGET', KEYS[1], 'version', 'fence')\n"
    "if old[1] ~= before or old[2] ~= fence then return 0 end\n"
    "redis.call('HSET', KEYS[1], 'record', record, 'version', before + 1, 'state', state)\n"
    "redis.call('SET', 'body:' .. id, body, 'EX', 90000)\n"
    "redis.call('UNLINK', 'request:' .. id)\n"
    "redis.call('EXPIRE', KEYS[1], 90000)\n"
    "redis.call('ZREM', 'leases', id)\n"  # +lease
    "list(id, 'running ' .. route .. ' ', state .. ' ' .. route .. ' ', expires, took)\n"  # +lists
    "redis.call('ZADD', 'due', expires, id)\n"  # +lists
    "redis.call('PUBLISH', 'changed', id)\n"  # +told
    "return 1\n"
)

FETCH = (
    "local job = redis.call('HMGET', KEYS[1], 'record', 'state')\n"
    "local ended = job[2] ~= 'queued' and job[2] ~= 'running'\n"
    "return {job[1], job[2], ended and redis.call('GET', 'body:' .. ARGV[1])}\n"
)

RENEW = (
    "local ends = clock() + ARGV[1]\n"
    "for i = 2, #ARGV do redis.call('ZADD', 'leases', 'XX', ends, ARGV[i]) end\n"
)

SHARED = ""
SHARED += CLOCK  # +lease
SHARED += LISTS  # +lists

redis = Redis.from_url(REDIS)
broker = ListQueueBroker(os.environ.get("BROKER_URL", REDIS), socket_timeout=None)
create, claim = redis.register_script(SHARED + CREATE), redis.register_script(SHARED + CLAIM)
finish, fetch = redis.register_script(SHARED + FINISH), redis.register_script(FETCH)
renew = redis.register_script(CLOCK + RENEW)
holder = secrets.token_urlsafe(9)
replaying: ContextVar[bool] = ContextVar("replaying", default=False)
current: ContextVar[Any] = ContextVar("current", default=None)
running: dict[str, Any] = {}
tasks: set[Any] = set()
beating: list[asyncio.Task[None]] = []
drained: list[asyncio.Future[None]] = []
durations: dict[str, float] = {}

api = FastAPI()


@api.post("/orders")
async def create_order(order: Order, request: Request) -> Response:
    if not replaying.get():
        return await accept(request)
    return JSONResponse({**fill(order.model_dump()), "began": time.monotonic()})


async def in_time(call: Any) -> Any:
    """What a call gives, if that is in time."""
    async with asyncio.timeout(TIMEOUT):
        return await call


async def accept(request: Request) -> Response:
    """Keep the request, have it run, and say where its response will be."""
    id = secrets.token_urlsafe(22)
    now = 0.0
    now = time.time()  # +times
    scope, body = request.scope, await request.body()
    current.get().decide()  # +asked
    kept = [scope["method"], scope["path"], scope["query_string"], scope["headers"], body]
    fields = {"state": "queued", "created": time.time(), "request": dump(kept)}  # -record
    await redis.hset(f"job:{id}", mapping=fields)  # type: ignore[misc]  # -record
    record = dump([id, "create_order", "queued", now, 1, 1])  # +record
    words = [id, record, dump(kept), now, LEASE, "create_order"]  # +record
    created = create(keys=[f"job:{id}"], args=words)  # +record
    created = in_time(created)  # +in_time
    if not await created:  # +record
        raise NotImplementedError  # +record
    await run.kiq(id)  # -in_time
    await in_time(run.kiq(id))  # +in_time
    current.get().hand_over(id, now)  # +handoff
    return Response(status_code=202)  # +handoff
    content = {"job_id": id, "status": "queued"}
    return JSONResponse(content, 202, {"Location": f"/jobs/{id}", "Retry-After": "1"})


def dump(kept: Any) -> str:
    """As JSON, with what is bytes in it as text."""
    return json.dumps(kept, default=lambda each: each.decode("latin-1"), check_circular=False)


@lru_cache(maxsize=256)
def spell(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


# --- in the web process --------------------------------------------------------------------------


class Handoff:
    """One request, whose app runs in a task of its own."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = dict(scope)
        self.client_receive: Any = receive
        self.client_send: Any = send
        self.id = ""
        self.created_at = 0.0
        self.size = 0
        self.fields: Any = ()
        self.wait: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def decide(self) -> None:
        """What the client prefers, and what else is asked of a request."""
        found = self.fields = [each for each in self.scope["headers"] if each[0] in HEARD]
        for name, value in found:
            if name in (b"prefer", b"idempotency-key", b"sec-fetch-mode"):
                raise NotImplementedError
            if name == b"content-length" and int(value) > MAX_REQUEST:
                raise NotImplementedError
        if "user" in self.scope or self.size > MAX_REQUEST:
            raise NotImplementedError

    def hand_over(self, id: str, created_at: float) -> None:
        self.id, self.created_at = id, created_at
        self.client_receive = self.client_send = None
        self.wait.set_result(None)

    async def receive(self) -> Message:
        message: Message = await self.client_receive()
        self.size += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if self.client_send is not None:
            raise NotImplementedError

    async def conduct(self) -> None:
        current.set(self)
        await api(self.scope, self.receive, self.send)
        tasks.discard(self)


async def conduct(scope: Scope, receive: Receive, send: Send) -> None:
    """Run the app as far as the handler's entry, and answer for it."""
    handoff = Handoff(scope, receive, send)
    context = copy_context()
    inner = context.copy()
    tasks.add(handoff)
    task = asyncio.get_running_loop().create_task(handoff.conduct(), context=inner)
    try:
        await handoff.wait
    except BaseException:
        task.cancel()
        raise
    for variable, value in inner.items():
        if variable is not current and variable.get(None) is not value:
            variable.set(value)
    body, after = document(handoff.id, "queued", handoff.created_at, 0)
    await send_document(handoff.id, body, after, send, first=True)


def document(id: str, state: str, created_at: float, runs: int) -> tuple[bytes, int]:
    """What is said of a job that has not ended, and the seconds until it is worth asking again."""
    known, after, ends = durations.get("create_order"), 1, "null"
    if known is not None:
        after = min(30, max(1, round(known - (time.time() - created_at))))
        ends = f'"{spell(int(created_at + known))}"'
    told = DOCUMENT % (id, state, spell(int(created_at)), ends, after, runs, id, id, id)
    return told.encode(), after


async def send_document(id: str, body: bytes, after: int, send: Send, *, first: bool) -> None:
    location = b"/jobs/%b" % id.encode()
    headers = [(b"location", location), (b"content-location", location)]
    if first:
        headers.append((b"link", b'</jobs/%b/status>; rel="monitor"' % id.encode()))
        headers.append((b"vary", b"Prefer"))
    headers += ((b"retry-after", b"%d" % after), *FIELDS, (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": 202, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve polls, and leave the rest to the app."""
    if scope["type"] != "http" or not scope["path"].startswith("/jobs/"):
        if scope["type"] == "http" and scope["path"] == "/orders":  # +handoff
            await conduct(scope, receive, send)  # +handoff
            return  # +handoff
        await api(scope, receive, send)
        return
    id = scope["path"][6:]
    response, body = await redis.hmget(f"job:{id}", "response", "body")  # type: ignore[misc]  # -record
    asked = fetch(keys=[f"job:{id}"], args=[id])  # +record
    asked = in_time(asked)  # +in_time
    record, state, body = await asked  # +record
    kept = json.loads(record.partition(b"\n")[0])  # +record
    response = None if body is None else kept[6]  # +record
    for name, _ in scope["headers"]:  # +asked
        if name in HEARD - {b"accept"}:  # +asked
            raise NotImplementedError  # +asked
    if response is None:
        said, after = document(id, state.decode(), kept[3], 0)  # +pending
        await send_document(id, said, after, send, first=False)  # +pending
        return  # +pending
        headers, body = [(b"content-length", b"2"), (b"retry-after", b"1")], b"{}"
        await send({"type": "http.response.start", "status": 202, "headers": headers})
        await send({"type": "http.response.body", "body": body})
        return
    status, texts = json.loads(response)  # -record
    status, texts = response  # +record
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in texts]
    fields += (FIELDS[0], FIELDS[1], (b"job-status", b"succeeded"))  # +checks
    fields.append((b"etag", b'"%b-%d"' % (id.encode(), kept[4])))  # +checks
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


# --- in the worker -------------------------------------------------------------------------------


@broker.task
async def run(id: str) -> None:
    await conduct_run(id)  # -drain
    task = asyncio.get_running_loop().create_task(conduct_run(id), context=Context())  # +drain
    if not drained:  # +drain
        drained.append(asyncio.get_running_loop().create_future())  # +drain
    ends = (task, drained[0])  # +drain
    try:  # +drain
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)  # +drain
    finally:  # +drain
        task.cancel()  # +drain


async def conduct_run(id: str) -> None:
    now = time.time()
    claimed = claim(keys=[f"job:{id}"], args=[id, now, holder, LEASE, "create_order"])
    claimed = in_time(claimed)  # +in_time
    kept: Any = await claimed
    if kept is None:
        raise NotImplementedError
    record, kept = kept  # +record
    kept, body = json.loads(kept), b""
    queued, _, started = record.partition(b"\n")  # +record
    job = [*json.loads(queued), *json.loads(started)]  # +record
    one = Replay(id, kept)
    if len(running) >= MAX_RUNNING:  # +replay
        raise NotImplementedError  # +replay
    running[id] = one
    keep_leases()  # +lease
    replaying.set(True)  # -replay
    await one.conduct()  # -replay
    task = asyncio.get_running_loop().create_task(one.conduct(), context=Context())  # +replay
    one.task = task  # +replay
    try:  # +replay
        await one.ended  # +replay
    except BaseException:  # +replay
        task.cancel()  # +replay
        raise  # +replay
    response, body = one.response()
    fields = {"state": "succeeded", "response": dump(response), "body": body}  # -record
    await redis.hset(f"job:{id}", mapping=fields)  # type: ignore[misc]  # -record
    await one.settle(job, response, body)  # +record -settle
    gate = asyncio.get_running_loop().create_future()  # +settle
    settling = one.settle(job, response, body, gate)  # +settle
    tasks.add(asyncio.get_running_loop().create_task(settling, context=Context()))  # +settle
    await gate  # +settle
    del running[id]


class Replay:
    """One run of a captured request."""

    def __init__(self, id: str, kept: Any) -> None:
        method, path, query, headers, body = kept
        self.id, self.body = id, body
        self.sent: list[Message] = []
        self.task: Any = None
        self.progress: Any = None
        self.reason: Any = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": [(name.encode("latin-1"), text.encode("latin-1")) for name, text in headers],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "state": {},
        }

    async def receive(self) -> Message:
        body, self.body = self.body, None
        if body is None:  # +replay
            await asyncio.Event().wait()  # +replay
        return {"type": "http.request", "body": body.encode("latin-1"), "more_body": False}

    async def send(self, message: Message) -> None:
        self.check(message)  # +checks
        self.sent.append(message)

    def check(self, message: Message) -> None:
        """What no server could send is no outcome."""
        if message["type"] == "http.response.start":
            if self.sent or not 200 <= message["status"] <= 599:
                raise NotImplementedError
            found = []
            for name, value in message["headers"]:
                if type(name) is not bytes or type(value) is not bytes or CONTROL.search(value):
                    raise NotImplementedError
                if name.lower() not in HOP_BY_HOP:
                    found.append((name, value))
            message["headers"] = found
            return
        if message["type"] != "http.response.body" or message.get("more_body", False):
            raise NotImplementedError
        for name, value in self.sent[0]["headers"]:
            if name.lower() == b"content-length" and int(value) != len(message["body"]):
                raise NotImplementedError
        if len(message["body"]) > MAX_RESPONSE:
            raise NotImplementedError

    async def conduct(self) -> None:
        replaying.set(True)
        try:  # +replay
            await api(self.scope, self.receive, self.send)  # +replay
        except asyncio.CancelledError:  # +replay
            if self.reason is None:  # +replay
                raise  # +replay
        self.ended.set_result(None)  # +replay
        await api(self.scope, self.receive, self.send)  # -replay

    def response(self) -> tuple[Any, bytes]:
        start, end = self.sent
        return [start["status"], [*start["headers"]]], end["body"]

    async def settle(self, job: Any, response: Any, body: bytes, gate: Any = None) -> None:
        """The outcome, if nobody else has the job."""
        now = time.time()
        route, created, version, fence = job[1], job[3], job[4] + 1, job[5] + 1
        done = [self.id, route, "succeeded", created, version + 1, fence, response]
        done += [now, now + TTL, now + TTL + TOMBSTONE]  # +times
        done += [self.progress]  # +progress
        took = now - job[6]
        words = [self.id, version, fence, dump(done), body, "succeeded", now + TTL, took, route]
        finished = finish(keys=[f"job:{self.id}"], args=words)
        finished = in_time(finished)  # +in_time
        if not await finished:
            raise NotImplementedError
        known = durations.get(route)  # +pending
        durations[route] = took if known is None else known + 0.2 * (took - known)  # +pending
        if gate is not None:
            tasks.discard(asyncio.current_task())
            gate.set_result(None)


def keep_leases() -> None:
    """Renew what runs here, as long as anything does."""
    if not beating:
        beating.append(asyncio.get_running_loop().create_task(beat(), context=Context()))


async def beat() -> None:
    await asyncio.sleep(BEAT)
    while running:
        await renew(keys=[], args=[LEASE, *running])
        await asyncio.sleep(BEAT)
    beating.clear()
