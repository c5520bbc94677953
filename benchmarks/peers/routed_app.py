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
    """A Litestar app."""
    from litestar import Litestar, get, post

    @get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    async def work() -> None:
        return None

    app = Litestar([hello, post("/work0")(long_running(work) if raincheck else work)])
    return LongRunningMiddleware(app, store=store()) if raincheck else app


class FalconHello:
    """A resource."""

    async def on_get(self, request: Any, response: Any) -> None:
        response.media = {"hello": "world"}


async def _falcon_work(self: Any, request: Any, response: Any) -> None:
    response.media = None


class FalconWork:
    """One that works."""

    on_post = _falcon_work


class FalconSlowWork:
    """The same, long-running."""

    on_post = long_running(_falcon_work)


def falcon(raincheck: bool) -> Any:
    """A Falcon app."""
    import falcon.asgi

    app = falcon.asgi.App()
    app.add_route("/hello", FalconHello())
    app.add_route("/work0", FalconSlowWork() if raincheck else FalconWork())
    return LongRunningMiddleware(app, store=store()) if raincheck else app


def quart(raincheck: bool) -> Any:
    """A Quart app."""
    from quart import Quart

    app = Quart("routed")

    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    async def work() -> str:
        return ""

    app.add_url_rule("/hello", view_func=hello)
    app.add_url_rule(
        "/work0", view_func=long_running(work) if raincheck else work, methods=["POST"]
    )
    return LongRunningMiddleware(app, store=store()) if raincheck else app


def django(raincheck: bool) -> Any:
    """A Django app, with no middleware of its own; one of them would count the length."""
    import sys
    from types import ModuleType

    import django
    from django.conf import settings
    from django.core.asgi import get_asgi_application
    from django.http import HttpRequest, JsonResponse
    from django.urls import path

    async def hello(request: HttpRequest) -> JsonResponse:
        return JsonResponse({"hello": "world"}, headers={"Content-Length": "18"})

    async def work(request: HttpRequest) -> JsonResponse:
        return JsonResponse({})

    urls = sys.modules["routed_urls"] = ModuleType("routed_urls")
    slow = long_running(work) if raincheck else work
    vars(urls)["urlpatterns"] = [path("hello", hello), path("work0", slow)]
    settings.configure(ROOT_URLCONF="routed_urls", ALLOWED_HOSTS=["*"], SECRET_KEY="x")
    django.setup()
    app = get_asgi_application()
    return LongRunningMiddleware(app, store=store()) if raincheck else app
