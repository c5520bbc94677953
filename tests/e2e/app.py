"""The app that the end-to-end tests run under a real server."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from raincheck import Limits, LongRunningMiddleware, long_running, report
from raincheck.stores.sqlite import SQLiteStore

LOG = Path(os.environ["RAINCHECK_TEST_LOG"])
FILE = os.environ.get("RAINCHECK_TEST_FILE")
MEBIBYTE = 1024 * 1024


def note(line: str) -> None:
    with LOG.open("a") as log:
        log.write(line + "\n")


@long_running
async def slow(request: Request) -> Response:
    seconds = float(request.query_params.get("seconds", "0.3"))
    try:
        for step in range(10):
            report(step / 10)
            await asyncio.sleep(seconds / 10)
    except asyncio.CancelledError:
        await asyncio.sleep(0.05)
        note("cancelled")
        raise
    note("finished")
    return JSONResponse({"size": len(await request.body())})


@long_running
async def stream(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for number in range(20):
            await asyncio.sleep(0.01)
            yield b"%d," % number

    return StreamingResponse(chunks(), media_type="text/csv")


@long_running
async def talk(request: Request) -> Response:
    async def tokens() -> AsyncIterator[bytes]:
        for number in range(int(request.query_params.get("count", "60"))):
            yield b"data: token %d\n\n" % number
            await asyncio.sleep(0.05)

    return StreamingResponse(tokens(), media_type="text/event-stream")


@long_running
def in_thread(request: Request) -> Response:
    time.sleep(0.2)
    return PlainTextResponse("from a thread")


async def plain(request: Request) -> Response:
    return PlainTextResponse("plain")


@long_running
async def large(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(80):
            yield bytes(MEBIBYTE // 2)

    return StreamingResponse(chunks())


@long_running
async def table(request: Request) -> Response:
    rows = "".join(f"{number},{number * number}\n" for number in range(300_000))
    return PlainTextResponse(rows, media_type="text/csv")


app: ASGIApp = LongRunningMiddleware(
    Starlette(
        routes=[
            Route("/slow", slow, methods=["POST"]),
            Route("/stream", stream, methods=["POST"]),
            Route("/talk", talk, methods=["POST"]),
            Route("/in-thread", in_thread, methods=["POST"]),
            Route("/large", large, methods=["POST"]),
            Route("/table", table, methods=["POST"]),
            Route("/plain", plain),
        ]
    ),
    store=SQLiteStore(FILE) if FILE is not None else None,
    limits=Limits(drain_timeout=float(os.environ.get("RAINCHECK_TEST_DRAIN", "10"))),
)
if "RAINCHECK_TEST_GZIP" in os.environ:
    app = GZipMiddleware(app)
