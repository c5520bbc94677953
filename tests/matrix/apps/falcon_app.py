"""The matrix app in Falcon, under ASGI."""

# mypy: disallow-untyped-decorators=False
# (checked without Falcon installed, too)

from __future__ import annotations

from contextlib import suppress

import anyio
import falcon
import falcon.asgi
from falcon.asgi import Request, Response, WebSocket

from raincheck import Limits, LongRunningMiddleware, Policy, long_running
from tests.matrix.apps import work


async def checked(req: Request, resp: Response, resource: object, params: object) -> None:
    """A hook before the mark: what it raises is answered at once."""
    if problem := work.problem_of(await req.get_media()):
        raise falcon.HTTPUnprocessableEntity(description=problem)


class Plain:
    async def on_get(self, req: Request, resp: Response) -> None:
        resp.text = "plain"


class Orders:
    @falcon.before(checked)
    @long_running
    async def on_post(self, req: Request, resp: Response) -> None:
        order = await req.get_media()
        resp.media = {"item": order["item"], "total": await work.total(order["count"])}
        resp.status = falcon.HTTP_201


class Upload:
    @long_running
    async def on_post(self, req: Request, resp: Response) -> None:
        await anyio.sleep(0.2)
        resp.data = (await req.stream.read())[::-1]
        resp.content_type = "application/octet-stream"
        resp.set_cookie("a", "1", secure=False)
        resp.set_cookie("b", "2", secure=False)


class File:
    @long_running
    async def on_post(self, req: Request, resp: Response) -> None:
        await anyio.sleep(0.2)
        async for film in await req.get_media():
            resp.media = {"name": film.filename, "size": len(await film.stream.read())}


class Slow:
    @long_running(timeout=60)
    async def on_post(self, req: Request, resp: Response) -> None:
        resp.text = await work.slow(req.get_param("name"), req.get_param_as_float("seconds"))


class InThread:
    @long_running
    def on_post(self, req: Request, resp: Response) -> None:
        resp.text = work.in_thread()


class Stream:
    @long_running
    async def on_post(self, req: Request, resp: Response) -> None:
        resp.stream = work.chunks()
        resp.content_type = "text/csv"


class Meter:
    async def on_post(self, req: Request, resp: Response) -> None:
        resp.media = await work.meter(req.stream)


class Echo:
    async def on_websocket(self, req: Request, ws: WebSocket) -> None:
        await ws.accept()
        with suppress(falcon.WebSocketDisconnected):
            while True:
                await ws.send_text(await ws.receive_text())


class Videos:
    async def on_post(self, req: Request, resp: Response) -> None:
        resp.text = await work.slow("video", 0.2)


class Exports:
    async def on_post(self, req: Request, resp: Response) -> None:
        resp.text = await work.slow("export", 60)


falcon_app = falcon.asgi.App()
falcon_app.add_route("/plain", Plain())
falcon_app.add_route("/orders", Orders())
falcon_app.add_route("/upload", Upload())
falcon_app.add_route("/file", File())
falcon_app.add_route("/slow", Slow())
falcon_app.add_route("/in-thread", InThread())
falcon_app.add_route("/stream", Stream())
falcon_app.add_route("/meter", Meter())
falcon_app.add_route("/echo", Echo())
falcon_app.add_route("/videos", Videos())
falcon_app.add_route("/exports", Exports())

app = LongRunningMiddleware(
    falcon_app,
    routes={"POST /videos": Policy(timeout=3600), "POST /exports": Policy()},
    limits=Limits(drain_timeout=work.DRAIN),
)
