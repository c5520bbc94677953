"""Apps that the commands are tried on, in this process and in others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import Limits, LongRunningMiddleware, Pages, Retry, long_running, report

HOSTILE = "[bold red]page[/] \x1b[31m{n}\x1b[0m of \x1b]0;owned\x07{all}\x9b2J\u202e!"
"""What a handler may say, and no terminal may obey."""

SHOWN = "[bold red]page[/] {n} of {all}!"


@long_running(name="report")
async def make_report(request: Request) -> Response:
    """Write pages, as many as are asked for, and answer with the status that is asked for."""
    asked = request.query_params
    pages, pause = int(asked.get("pages", 2)), float(asked.get("pause", 0.3))
    for page in range(1, pages + 1):
        report(page / pages, HOSTILE.format(n=page, all=pages))
        await anyio.sleep(pause)
    body = await request.body()
    return Response(body or b"\0\xffreport", int(asked.get("status", 201)))


@long_running(name="broken")
async def broken(request: Request) -> Response:
    raise RuntimeError("the printer is on fire")


@long_running(name="flaky", retry=Retry(on=503, backoff=600))
async def flaky(request: Request) -> Response:
    return PlainTextResponse("not yet", 503)


@long_running(name="large")
async def large(request: Request) -> Response:
    return StreamingResponse(iter([b"x" * 65536] * 64))


@long_running(name="polite", respond="preferred")
async def polite(request: Request) -> Response:
    return PlainTextResponse("done")


async def echo(request: Request) -> Response:
    body = await request.body()
    fields = [[name.decode(), value.decode()] for name, value in request.headers.raw]
    return JSONResponse({"method": request.method, "fields": fields, "body": body.decode()})


async def private(request: Request) -> Response:
    return PlainTextResponse("no", 401)


def operator(connection: HTTPConnection) -> bool:
    return connection.headers.get("authorization") != "Bearer nobody"


def marked(**settings: Any) -> ASGIApp:
    """An app of ours, whose operator is nearly everybody."""
    routes = [
        Route("/reports", make_report, methods=["GET", "POST"]),
        Route("/broken", broken),
        Route("/flaky", flaky, methods=["POST"]),
        Route("/large", large),
        Route("/polite", polite),
        Route("/echo", echo, methods=["GET", "POST", "PUT"]),
        Route("/private", private),
    ]
    settings = {"pages": Pages(operator=operator), "limits": Limits(drain_timeout=0.2), **settings}
    return Starlette(routes=routes, middleware=[Middleware(LongRunningMiddleware, **settings)])


# --- apps that know nothing of raincheck --------------------------------------------------------


async def transcode(request: Request) -> Response:
    video = await request.body()
    await anyio.sleep(0.3)
    return JSONResponse({"bytes": len(video)}, 201)


async def health(request: Request) -> Response:
    return JSONResponse({"ok": True})


plain = Starlette(
    routes=[
        Route("/videos", transcode, methods=["POST"]),
        Route("/reports/{id:int}", health),
        Route("/health", health),
    ]
)
number = 7


def make_plain() -> ASGIApp:
    return plain


def make_nothing() -> int:
    return 7


def make_trouble() -> ASGIApp:
    raise ValueError("no settings")


async def unreadable(scope: Scope, receive: Receive, send: Send) -> None:
    await plain(scope, receive, send)


class Reports(HTTPEndpoint):
    """Marked in one of its methods."""

    @long_running
    async def post(self, request: Request) -> Response:
        return Response()

    async def get(self, request: Request) -> Response:
        return Response()


by_hand = Starlette(
    routes=[
        Route("/videos", make_report, methods=["POST"]),
        Route("/reports", Reports),
        Route("/health", health),
    ]
)


Started = Callable[[str, list[tuple[str, str]]], object]

calls: list[str] = []
"""What became of the threads of the app of WSGI: `begun`, `ended`."""

go_on = threading.Event()


def of_wsgi(environ: dict[str, Any], start_response: Started) -> Iterable[bytes]:
    """An app of WSGI: `/slow` takes a moment, `/stuck` as long as the test likes."""
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.3)
    if environ["PATH_INFO"] == "/stuck":
        calls.append("begun")
        go_on.wait(20)
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "a=1")])
    yield b"got " + body
    for _ in range(20):  # more than fit into a queue that nobody empties
        yield b"."
    calls.append("ended")
