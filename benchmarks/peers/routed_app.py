"""(f) Apps with as many routes as one likes, with raincheck and without.

One route in ten, and at least one, is long-running. Every second one has a parameter in its path.
The first of all is `/hello`: the one that costs the app itself least, so that it shows best what
raincheck adds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import LongRunningMiddleware, MemoryStore, long_running


def paths(prefix: str, count: int) -> Iterator[str]:
    """Different paths, every second one with a parameter."""
    for number in range(count):
        yield f"/{prefix}{number}/{{id}}" if number % 2 else f"/{prefix}{number}"


def store() -> MemoryStore:
    return MemoryStore(max_bytes=16 * 1024**3)


async def hello(request: Request) -> Response:
    return JSONResponse({"hello": "world"})


async def work(request: Request) -> Response:
    return JSONResponse(None)


class Idle:
    """A middleware that does nothing: what any costs."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def starlette(routes: int, raincheck: bool, idle: bool = False) -> Any:
    """A Starlette app with so many unmarked routes."""
    endpoint = long_running(work) if raincheck else work
    app = Starlette(
        routes=[
            Route("/hello", hello),
            *(Route(p, endpoint, methods=["POST"]) for p in paths("work", max(1, routes // 10))),
            *(Route(path, hello) for path in paths("things", routes - 1)),
        ]
    )
    if raincheck:
        app.add_middleware(LongRunningMiddleware, store=store())
    if idle:
        app.add_middleware(Idle)
    return app


def fastapi(routes: int, raincheck: bool) -> Any:
    """A FastAPI app with so many unmarked routes, in a router."""
    from fastapi import APIRouter, FastAPI

    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    async def thing() -> dict[str, str]:
        return {"hello": "world"}

    async def work() -> None:
        return None

    endpoint = long_running(work) if raincheck else work
    app, router = FastAPI(), APIRouter()
    router.get("/hello")(hello)
    for path in paths("work", max(1, routes // 10)):
        router.post(path)(endpoint)
    for path in paths("things", routes - 1):
        router.get(path)(thing)
    app.include_router(router)
    if raincheck:
        app.add_middleware(LongRunningMiddleware, store=store())
    return app


def litestar(raincheck: bool) -> Any:
    """A Litestar app, whose routes raincheck cannot read."""
    from litestar import Litestar, get, post

    @get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    async def work() -> None:
        return None

    app = Litestar([hello, post("/work0")(long_running(work) if raincheck else work)])
    return LongRunningMiddleware(app, store=store()) if raincheck else app


def falcon(raincheck: bool) -> Any:
    """A Falcon app, whose routes raincheck cannot read."""
    import falcon.asgi

    class Hello:
        async def on_get(self, request: Any, response: Any) -> None:
            response.media = {"hello": "world"}

    async def on_post(self: Any, request: Any, response: Any) -> None:
        response.media = None

    class Work:
        pass

    Work.on_post = long_running(on_post) if raincheck else on_post  # type: ignore[attr-defined]
    app = falcon.asgi.App()
    app.add_route("/hello", Hello())
    app.add_route("/work0", Work())
    return LongRunningMiddleware(app, store=store()) if raincheck else app
