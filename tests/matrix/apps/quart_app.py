"""The matrix app in Quart."""

# mypy: disallow-untyped-decorators=False
# (checked without Quart installed, too)

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from quart import Quart, Response, request, websocket

from raincheck import Limits, LongRunningMiddleware, Policy, long_running
from tests.matrix.apps import work

app = Quart(__name__)
app.asgi_app = LongRunningMiddleware(
    app.asgi_app,
    routes={"POST /videos": Policy(timeout=3600), "POST /exports": Policy()},
    limits=Limits(drain_timeout=work.DRAIN),
)


def checked(endpoint: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
    """A decorator on top of the mark: what it answers is answered at once."""

    @functools.wraps(endpoint)
    async def check() -> Any:
        if problem := work.problem_of(await request.get_json()):
            return {"detail": problem}, 422
        return await endpoint()

    return check


@app.get("/plain")
async def plain() -> str:
    return "plain"


@app.post("/orders")
@checked
@long_running
async def order() -> Any:
    order = await request.get_json()
    return {"item": order["item"], "total": await work.total(order["count"])}, 201


@app.post("/upload")
@long_running
async def upload() -> Response:
    await anyio.sleep(0.2)
    body = await request.get_data()
    response = Response(body[::-1], content_type="application/octet-stream")
    response.set_cookie("a", "1")
    response.set_cookie("b", "2")
    return response


@app.post("/file")
@long_running
async def file() -> Any:
    await anyio.sleep(0.2)
    film = (await request.files)["film"]
    return {"name": film.filename, "size": len(film.read())}


@app.post("/slow")
@long_running(timeout=60)
async def slow() -> str:
    return await work.slow(request.args["name"], float(request.args["seconds"]))


@app.post("/in-thread")
@long_running
def in_thread() -> str:
    return work.in_thread()


@app.post("/stream")
@long_running
async def stream() -> Any:
    return work.chunks(), 200, {"content-type": "text/csv"}


@app.post("/meter")
async def meter() -> Any:
    return await work.meter(request.body)


@app.websocket("/echo")
async def echo() -> None:
    while True:
        await websocket.send(await websocket.receive())


@app.post("/videos")
async def videos() -> str:
    return await work.slow("video", 0.2)


@app.post("/exports")
async def exports() -> str:
    return await work.slow("export", 60)
