"""The matrix app in Starlette."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from raincheck import Limits, LongRunningMiddleware, Policy, long_running
from tests.matrix.apps import work

Endpoint = Callable[[Request], Awaitable[Response]]


def checked(endpoint: Endpoint) -> Endpoint:
    """A decorator on top of the mark: what it answers is answered at once."""

    @functools.wraps(endpoint)
    async def check(request: Request) -> Response:
        if problem := work.problem_of(await request.json()):
            return JSONResponse({"detail": problem}, 422)
        return await endpoint(request)

    return check


async def plain(request: Request) -> Response:
    return PlainTextResponse("plain")


@checked
@long_running
async def order(request: Request) -> Response:
    order = await request.json()
    return JSONResponse({"item": order["item"], "total": await work.total(order["count"])}, 201)


@long_running
async def upload(request: Request) -> Response:
    await anyio.sleep(0.2)
    response = Response((await request.body())[::-1], media_type="application/octet-stream")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@long_running
async def file(request: Request) -> Response:
    await anyio.sleep(0.2)
    async with request.form() as form:
        film = form["film"]
        assert not isinstance(film, str)
        return JSONResponse({"name": film.filename, "size": len(await film.read())})


@long_running(timeout=60)
async def slow(request: Request) -> Response:
    query = request.query_params
    return PlainTextResponse(await work.slow(query["name"], float(query["seconds"])))


@long_running
def in_thread(request: Request) -> Response:
    return PlainTextResponse(work.in_thread())


@long_running
async def stream(request: Request) -> Response:
    return StreamingResponse(work.chunks(), media_type="text/csv")


async def meter(request: Request) -> Response:
    return JSONResponse(await work.meter(request.stream()))


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def videos(request: Request) -> Response:
    return PlainTextResponse(await work.slow("video", 0.2))


async def exports(request: Request) -> Response:
    return PlainTextResponse(await work.slow("export", 60))


app = Starlette(
    routes=[
        Route("/plain", plain),
        Route("/orders", order, methods=["POST"]),
        Route("/upload", upload, methods=["POST"]),
        Route("/file", file, methods=["POST"]),
        Route("/slow", slow, methods=["POST"]),
        Route("/in-thread", in_thread, methods=["POST"]),
        Route("/stream", stream, methods=["POST"]),
        Route("/meter", meter, methods=["POST"]),
        WebSocketRoute("/echo", echo),
        Route("/videos", videos, methods=["POST"]),
        Route("/exports", exports, methods=["POST"]),
    ],
    middleware=[
        Middleware(
            LongRunningMiddleware,
            routes={"POST /videos": Policy(timeout=3600), "POST /exports": Policy()},
            limits=Limits(drain_timeout=work.DRAIN),
        )
    ],
)
