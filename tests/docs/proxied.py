"""The app that proxies stand in front of: what is slow, what streams, and what is large."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running, report


@long_running
async def slow(request: Request) -> Response:
    size = len(await request.body())
    report(0.5, "half")
    await asyncio.sleep(1.5)
    return JSONResponse({"size": size})


async def lines(last: str | None) -> AsyncIterator[str]:
    yield "first\n"
    await asyncio.sleep(1.5)
    if last is None:
        raise OSError("broken")
    yield last


@long_running(live=True)
async def live(request: Request) -> Response:
    return StreamingResponse(lines("last\n"), media_type="text/plain")


@long_running(live=True)
async def breaks(request: Request) -> Response:
    return StreamingResponse(lines(None), media_type="text/plain")


@long_running
async def large(request: Request) -> Response:
    return Response(bytes(range(256)) * 8192, media_type="application/octet-stream")


routes = [
    Route(f"/{each.__name__}", each, methods=["POST"]) for each in (slow, live, breaks, large)
]
app = LongRunningMiddleware(Starlette(routes=routes))
