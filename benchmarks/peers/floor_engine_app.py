"""The floor of an engine: the least with which a worker runs the request that was accepted.

The app runs as far as the handler's entry, the request is kept with its record, and its id goes to
the broker; a worker takes both, feeds the request to the same app, and keeps what that sends. Three
round trips before the handler and one after it. No leases, fences, keys, bounds, lists, owners,
progress or checks, and the 202 is short.

    python -m taskiq worker peers.floor_engine_app:broker
"""

from __future__ import annotations

import json
import os
import secrets
import time
from contextvars import ContextVar
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from redis.asyncio import Redis
from starlette.types import Message, Receive, Scope, Send
from taskiq_redis import ListQueueBroker

from peers.orders import Order
from peers.work import fill

REDIS = os.environ["REDIS_URL"]

redis = Redis.from_url(REDIS)
broker = ListQueueBroker(os.environ.get("BROKER_URL", REDIS), socket_timeout=None)
replaying: ContextVar[bool] = ContextVar("replaying", default=False)
claim = redis.register_script(
    "if redis.call('HGET', KEYS[1], 'state') ~= 'queued' then return false end "
    "redis.call('HSET', KEYS[1], 'state', 'running', 'started', ARGV[1]) "
    "return redis.call('HGET', KEYS[1], 'request')"
)

api = FastAPI()


@api.post("/orders")
async def create_order(order: Order, request: Request) -> Response:
    if not replaying.get():
        return await accept(request)
    return JSONResponse({**fill(order.model_dump()), "began": time.monotonic()})


async def accept(request: Request) -> Response:
    """Keep the request, have it run, and say where its response will be."""
    id = secrets.token_urlsafe(22)
    scope, body = request.scope, await request.body()
    kept = [scope["method"], scope["path"], scope["query_string"], scope["headers"], body]
    fields = {"state": "queued", "created": time.time(), "request": dump(kept)}
    await redis.hset(f"job:{id}", mapping=fields)  # type: ignore[misc]
    await run.kiq(id)
    content = {"job_id": id, "status": "queued"}
    return JSONResponse(content, 202, {"Location": f"/jobs/{id}", "Retry-After": "1"})


def dump(kept: Any) -> str:
    """As JSON, with what is bytes in it as text."""
    return json.dumps(kept, default=lambda each: each.decode("latin-1"), check_circular=False)


@broker.task
async def run(id: str) -> None:
    kept = await claim(keys=[f"job:{id}"], args=[time.time()])
    if kept is None:
        raise NotImplementedError
    method, path, query, headers, body = json.loads(kept)
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode("latin-1"),
        "root_path": "",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body.encode("latin-1"), "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    replaying.set(True)
    await api(scope, receive, send)
    start, end = sent
    response = dump([start["status"], [*start["headers"]]])
    fields = {"state": "succeeded", "response": response, "body": end["body"]}
    await redis.hset(f"job:{id}", mapping=fields)  # type: ignore[misc]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve polls, and leave the rest to the app."""
    if scope["type"] != "http" or not scope["path"].startswith("/jobs/"):
        await api(scope, receive, send)
        return
    response, body = await redis.hmget("job:" + scope["path"][6:], "response", "body")  # type: ignore[misc]
    if response is None:
        start: Message = {"type": "http.response.start", "status": 202}
        start["headers"], body = [(b"content-length", b"2"), (b"retry-after", b"1")], b"{}"
    else:
        status, headers = json.loads(response)
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        start = {"type": "http.response.start", "status": status, "headers": fields}
    await send(start)
    await send({"type": "http.response.body", "body": body})
