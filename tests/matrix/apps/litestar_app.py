"""The matrix app in Litestar."""

# mypy: disallow-untyped-decorators=False
# (checked without Litestar installed, too)

from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from litestar import Litestar, Request, Response, WebSocket, get, post, websocket
from litestar.datastructures import Cookie, UploadFile
from litestar.enums import RequestEncodingType
from litestar.exceptions import WebSocketDisconnect
from litestar.params import Body
from litestar.response import Stream

from raincheck import Limits, LongRunningMiddleware, Policy, long_running
from tests.matrix.apps import work


@dataclass
class Order:
    item: str
    count: int


@dataclass
class Receipt:
    item: str
    total: int


@get("/plain")
async def plain() -> str:
    return "plain"


@post("/orders")
@long_running
async def order(data: Order) -> Receipt:
    return Receipt(data.item, await work.total(data.count))


@post("/upload", status_code=200)
@long_running
async def upload(request: Request[Any, Any, Any]) -> Response[bytes]:
    await anyio.sleep(0.2)
    cookies = [Cookie("a", value="1"), Cookie("b", value="2")]
    body = (await request.body())[::-1]
    return Response(body, media_type="application/octet-stream", cookies=cookies)


@post("/file", status_code=200)
@long_running
async def file(
    data: Annotated[dict[str, UploadFile], Body(media_type=RequestEncodingType.MULTI_PART)],
) -> dict[str, Any]:
    await anyio.sleep(0.2)
    return {"name": data["film"].filename, "size": len(await data["film"].read())}


@post("/slow", status_code=200)
@long_running(timeout=60)
async def slow(name: str, seconds: float) -> str:
    return await work.slow(name, seconds)


@post("/in-thread", status_code=200)
@long_running
def in_thread() -> str:
    return work.in_thread()


@post("/stream", status_code=200)
@long_running
async def stream() -> Stream:
    return Stream(work.chunks(), media_type="text/csv")


@post("/meter", status_code=200)
async def meter(request: Request[Any, Any, Any]) -> dict[str, Any]:
    return await work.meter(request.stream())


@websocket("/echo")
async def echo(socket: WebSocket[Any, Any, Any]) -> None:
    await socket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await socket.send_text(await socket.receive_text())


@post("/videos", status_code=200)
async def videos() -> str:
    return await work.slow("video", 0.2)


@post("/exports", status_code=200)
async def exports() -> str:
    return await work.slow("export", 60)


app = LongRunningMiddleware(
    Litestar([plain, order, upload, file, slow, in_thread, stream, videos, exports, meter, echo]),
    routes={"POST /videos": Policy(timeout=3600), "POST /exports": Policy()},
    limits=Limits(drain_timeout=work.DRAIN),
)
