"""An app whose responses are followed; nothing stands between raincheck and the server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from raincheck import LongRunningMiddleware, long_running


async def plain(request: Request) -> Response:
    return PlainTextResponse("plain")


@long_running
async def talk(request: Request) -> Response:
    count = int(request.query_params["count"])

    async def tokens() -> AsyncIterator[bytes]:
        for number in range(count):
            yield b"data: token %d\n\n" % number
            await anyio.sleep(0.05)

    return StreamingResponse(tokens(), media_type="text/event-stream")


app = LongRunningMiddleware(
    Starlette(routes=[Route("/plain", plain), Route("/talk", talk, methods=["POST"])])
)
