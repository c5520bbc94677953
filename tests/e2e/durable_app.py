"""The app that is killed, paused and shared by several processes, over a durable store.

Its handlers note each run, and how it ended, in a file that every process appends to. An order is
JSON: a `nonce` that comes back in the response, and how many `seconds` it takes.
"""

import asyncio
import json
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck import (
    Limits,
    LongRunningMiddleware,
    Retry,
    current_job,
    long_running,
    report,
)
from raincheck.runners.http_push import HttpPushRunner, Push
from raincheck.stores.base import Store

NOTES = os.open(os.environ["RAINCHECK_TEST_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

LATER = float(os.environ.get("RAINCHECK_TEST_LATER", "0"))
"""Seconds that every handler takes longer in this process."""

PIECES = 20
"""Parts of a streamed response, of 16 KiB each: a few go to the store before the last one."""


def note(what: str, nonce: str, run: str) -> None:
    line = {"at": time.time(), "by": os.getpid(), "what": what, "nonce": nonce, "run": run}
    os.write(NOTES, json.dumps(line).encode() + b"\n")


@contextmanager
def noted(nonce: str) -> Iterator[str]:
    """Note that a run begins, and how it ends; gives its name."""
    run = secrets.token_hex(8)
    note("begun", nonce, run)
    try:
        yield run
    except asyncio.CancelledError:
        note("stopped", nonce, run)
        raise
    note("ended", nonce, run)


async def work(request: Request) -> Response:
    order = await request.json()
    with noted(order["nonce"]) as run:
        await asyncio.sleep(order["seconds"] + LATER)
    return JSONResponse({"nonce": order["nonce"], "run": run, "by": os.getpid()})


@long_running(on_interrupt="rerun", max_runs=100)
async def rerun(request: Request) -> Response:
    return await work(request)


@long_running(on_interrupt="rerun", max_runs=100, max_running=4)
async def narrow(request: Request) -> Response:
    return await work(request)


BACKOFF = 2.0
"""Seconds between the first run of `flaky`, which fails, and its second."""

WAIT = float(os.environ.get("RAINCHECK_TEST_WAIT", "60"))
"""Seconds within which it has to begin."""


@long_running(retry=Retry(on=503, backoff=lambda failure: BACKOFF), max_wait_queued=WAIT)
async def flaky(request: Request) -> Response:
    job = current_job()
    response = await work(request)
    if job is not None and job.runs == 1:
        return PlainTextResponse("upstream is away", 503)
    return response


@long_running
async def once(request: Request) -> Response:
    return await work(request)


@long_running(on_interrupt="rerun", max_runs=100)
async def stream(request: Request) -> Response:
    order = await request.json()

    async def pieces() -> AsyncIterator[str]:
        with noted(order["nonce"]) as run:
            yield json.dumps({"nonce": order["nonce"], "run": run, "by": os.getpid()})
            for _ in range(PIECES):
                await asyncio.sleep((order["seconds"] + LATER) / PIECES)
                yield run * 1024

    return StreamingResponse(pieces(), media_type="text/plain")


GO = asyncio.Event()
"""What handlers wait for that go step by step."""


@long_running(on_interrupt="rerun", max_runs=100)
async def steps(request: Request) -> Response:
    """As many steps as the order says, `seconds` apart; each reports when it was."""
    order = await request.json()
    await GO.wait()
    for step in range(1, order["steps"] + 1):
        report(step / order["steps"], repr(time.time()))
        await asyncio.sleep(order["seconds"])
    return PlainTextResponse("done")


async def go(request: Request) -> Response:
    GO.set()
    return PlainTextResponse("go")


async def plain(request: Request) -> Response:
    return PlainTextResponse("plain")


def opened(url: str) -> Store:
    """The store at a URL of Redis or PostgreSQL, or in an SQLite file."""
    if url.startswith("redis:"):
        from raincheck.stores.redis import RedisStore

        return RedisStore(url, deployment="orders")
    if url.startswith("postgresql:"):
        from raincheck.stores.postgres import PostgresStore

        return PostgresStore(url, deployment="orders")
    from raincheck.stores.sqlite import SQLiteStore

    return SQLiteStore(url)


def pushing(url: str) -> HttpPushRunner:
    """Hands jobs to the engine at a URL (`push_engine`)."""
    client = httpx.AsyncClient(timeout=5)

    async def submit(push: Push) -> None:
        (await client.post(url, content=push.body)).raise_for_status()

    return HttpPushRunner(submit, secrets=["a secret for the tests alone"])


class Signed:
    """Says in every response which process it is from."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sign(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields = [*message.get("headers", ()), (b"served-by", b"%d" % os.getpid())]
                message = {**message, "headers": fields}
            await send(message)

        await self._app(scope, receive, sign if scope["type"] == "http" else send)


ENGINE = os.environ.get("RAINCHECK_TEST_PUSH")
runner = pushing(ENGINE) if ENGINE else None

served: ASGIApp = LongRunningMiddleware(
    Starlette(
        routes=[
            Route("/rerun", rerun, methods=["POST"]),
            Route("/narrow", narrow, methods=["POST"]),
            Route("/flaky", flaky, methods=["POST"]),
            Route("/once", once, methods=["POST"]),
            Route("/stream", stream, methods=["POST"]),
            Route("/steps", steps, methods=["POST"]),
            Route("/go", go, methods=["POST"]),
            Route("/plain", plain),
        ]
    ),
    store=opened(os.environ["RAINCHECK_TEST_STORE"]),
    runner=runner,
    limits=Limits(
        max_running=int(os.environ.get("RAINCHECK_TEST_RUNNING", "200")),
        max_queued=10_000,
        lease=float(os.environ.get("RAINCHECK_TEST_LEASE", "2")),
        drain_timeout=float(os.environ.get("RAINCHECK_TEST_DRAIN", "0.3")),
        cancel_grace=1,
    ),
)


class Fork:
    """What the engine calls stands outside of what users call."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engines = runner is not None and scope.get("path") == "/internal/run"
        await (runner.app if runner is not None and engines else served)(scope, receive, send)


app = Signed(Fork())
