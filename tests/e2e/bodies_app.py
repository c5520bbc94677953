"""An app with large bodies, whose jobs are in SQLite and in the files beside it."""

import asyncio
import os
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from raincheck import Limits, LongRunningMiddleware, long_running
from raincheck.stores.sqlite import SQLiteStore

CHUNK = 64 * 1024
HUGE = 1 << 40


def part(number: int) -> bytes:
    """The same bytes for the same number, and others for any other."""
    return number.to_bytes(4) * (CHUNK // 4)


@long_running(max_response_size=HUGE)
async def fill(request: Request) -> Response:
    """So many chunks, and a gate in the middle if there is one: a file that has to go."""
    count, gate = int(request.query_params["chunks"]), request.query_params.get("gate")

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(count):
            if gate and number == count // 2:
                await gone(gate)
            yield part(number)

    return StreamingResponse(chunks())


@long_running(live=True)
async def tail(request: Request) -> Response:
    """A chunk for each file in a folder, as they come, until there is one that is called end."""
    folder = request.query_params["folder"]

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(1000):
            while not os.path.exists(f"{folder}/{number}"):  # noqa: ASYNC240
                if os.path.exists(f"{folder}/end"):  # noqa: ASYNC240
                    return
                await asyncio.sleep(0.01)
            yield part(number)

    return StreamingResponse(chunks())


@long_running(max_request_size=HUGE)
async def measure(request: Request) -> Response:
    size, crc = 0, 0
    async for chunk in request.stream():
        size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return JSONResponse({"size": size, "crc": crc})


@long_running
async def busy(request: Request) -> Response:
    await gone(request.query_params["gate"])
    return Response()


async def gone(gate: str) -> None:
    while os.path.exists(gate):  # noqa: ASYNC110, ASYNC240
        await asyncio.sleep(0.01)


async def plain(request: Request) -> Response:
    return PlainTextResponse("plain")


app = LongRunningMiddleware(
    Starlette(
        routes=[
            Route("/plain", plain),
            *[
                Route(f"/{endpoint.__name__}", endpoint, methods=["POST"])
                for endpoint in (fill, tail, measure, busy)
            ],
        ]
    ),
    store=SQLiteStore(Path(os.environ.get("RAINCHECK_TEST_FILE", "jobs.db"))),
    limits=Limits(max_running=1, lease=3, drain_timeout=1),
)
