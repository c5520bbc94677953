"""raincheck: the same routes as the peers, and those that only raincheck is measured by."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from peers.work import REPORT, fill, id_of
from raincheck import Job, Limits, LongRunningMiddleware, MemoryStore, State, long_running
from raincheck.messages import CapturedResponse
from raincheck.stores.base import Store

GIB = 1024**3

VIDEO_SIZE = 50 * 1024**2
"""Bytes of the large response."""

_BLOCK = random.Random(7).randbytes(1024**2)
_CHUNK = 64 * 1024


def open_store(kind: str) -> Store:
    """A store, where the environment says that it is."""
    if kind == "sqlite":
        from raincheck.stores.sqlite import SQLiteStore

        return SQLiteStore(os.path.join(os.environ["FOLDER"], "jobs.db"))
    if kind == "redis":
        from raincheck.stores.redis import RedisStore

        return RedisStore(os.environ["REDIS_URL"], deployment="benchmark")
    if kind == "postgres":
        from raincheck.stores.postgres import PostgresStore

        return PostgresStore(os.environ["POSTGRES_URL"], deployment="benchmark")
    return MemoryStore(max_bytes=16 * GIB)


# --- jobs that are there from the start --------------------------------------------------------


async def fill_store(store: Store, count: int, body: bytes) -> None:
    """Put finished jobs into a store, unless it has them."""
    if not count or await store.get(id_of(count - 1)) is not None:
        return
    now = time.time()
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            job = Job(
                id=id_of(number),
                route="report",
                state=State.RUNNING,
                created_at=now,
                started_at=now,
                fence=1,
            )
            await store.create(job)
            length = (b"content-length", b"%d" % len(body))
            headers = (length, (b"content-type", b"application/json"))
            response = CapturedResponse(200, headers, len(body))
            done = job.finish(
                State.SUCCEEDED, now, ttl=86400.0, tombstone_ttl=60.0, response=response
            )
            await store.replace(done, tail=bytes(memoryview(body)))  # each has a body of its own

    async with anyio.create_task_group() as group:  # so that what can be batched is
        for _ in range(1 if isinstance(store, MemoryStore) else 64):
            group.start_soon(some)


# --- endpoints ---------------------------------------------------------------------------------


async def hello(request: Request) -> Response:
    return JSONResponse({"hello": "world"})


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


async def video(request: Request) -> Response:
    """A large response in small pieces, each of them new bytes as a file's would be."""

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(VIDEO_SIZE // _CHUNK):
            start = number * 4099 % (len(_BLOCK) - _CHUNK)
            yield _BLOCK[start : start + _CHUNK]

    return StreamingResponse(chunks(), headers={"content-length": str(VIDEO_SIZE)})


class Held:
    """Jobs that end one after the other when they are told to."""

    def __init__(self) -> None:
        self._turns: list[asyncio.Event] = []
        self._releasing: asyncio.Task[None] | None = None

    async def hold(self, request: Request) -> Response:
        turn = asyncio.Event()
        self._turns.append(turn)
        await turn.wait()
        return JSONResponse({"finished": time.monotonic()})

    async def release(self, request: Request) -> Response:
        over = float(request.query_params["over"])
        turns, self._turns = self._turns, []

        async def release() -> None:
            began = time.monotonic()
            for number, turn in enumerate(turns):
                if over:
                    when = began + over * number / len(turns)
                    await asyncio.sleep(max(0.0, when - time.monotonic()))
                turn.set()

        self._releasing = asyncio.create_task(release())
        return JSONResponse(len(turns))


def owner(connection: HTTPConnection) -> str | None:
    """Whose a request is."""
    return connection.headers.get("x-owner")


async def settle(request: Request) -> Response:
    """Give back what is not in use: an idle process does not do it by itself."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    return JSONResponse(None)


def build(
    store: str = "memory", jobs: int = 0, max_running: int = 100, owners: bool = False
) -> Starlette:
    """The app.

    Args:
        store: `"memory"`, `"sqlite"`, `"redis"` or `"postgres"`.
        jobs: how many finished ones it has from the start, each with 1 KB of body.
        max_running: handlers at once.
        owners: whether jobs belong to whom the request's `X-Owner` names.
    """
    kept = open_store(store)
    held = Held()
    body = JSONResponse(REPORT).body

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await fill_store(kept, jobs, bytes(body))
        yield

    def marked(path: str, endpoint: Any, **settings: Any) -> Route:
        return Route(path, long_running(**settings)(endpoint), methods=["POST"])

    return Starlette(
        routes=[
            marked("/orders", order),
            marked("/reports", report),
            marked("/never", never),
            Route("/hello", hello),
            marked("/queued", never, name="queued", max_running=1),
            marked("/held", held.hold),
            Route("/release", held.release, methods=["POST"]),
            marked("/videos", video),
            Route("/settle", settle),
        ],
        middleware=[
            Middleware(
                LongRunningMiddleware,
                store=kept,
                limits=Limits(max_running=max_running, max_queued=1_000_000),
                owner=owner if owners else None,
            )
        ],
        lifespan=lifespan,
    )


plain = Starlette(routes=[Route("/hello", hello), Route("/videos", video)])
"""(f) The same without raincheck."""
