"""Servers that speak 202 in several ways, and what serves them over real sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from types import ModuleType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from raincheck.client import follow

Answer = Response | Exception | Callable[[Request], Awaitable[Response]]


class ByHand:
    """A hand-written 202: `Location`, and 202 until a number of polls have come.

    Attributes:
        submissions, polls: the requests that came.
        script: what each poll is answered with, in order; then the result.
        first: the fields of the 202.
        document: its body.
    """

    def __init__(self, *script: Answer) -> None:
        self.script = list(script)
        self.submissions: list[Request] = []
        self.polls: list[Request] = []
        self.first: dict[str, str] = {"location": "/status/1"}
        self.document: Any = {"status": "accepted"}
        self.app = Starlette(
            routes=[
                Route("/work", self.submit, methods=["GET", "POST", "PUT"]),
                Route("/status/{path:path}", self.poll, methods=["GET", "POST", "DELETE"]),
                Route("/elsewhere/{id}", self.poll),
                Route("/result", self.result),
            ]
        )

    async def submit(self, request: Request) -> Response:
        if request.method == "GET" and "PUT" in [each.method for each in self.submissions]:
            return JSONResponse({"from": "the request's own URL"})
        await request.body()
        self.submissions.append(request)
        return JSONResponse(self.document, 202, self.first)

    async def poll(self, request: Request) -> Response:
        await request.body()
        self.polls.append(request)
        if not self.script:
            return JSONResponse({"done": True})
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Response) else await answer(request)

    async def result(self, request: Request) -> Response:
        return JSONResponse({"from": "the result"}, headers={"set-cookie": "late=1"})

    def asked(self) -> list[tuple[str, str]]:
        """Method and path of each request for the job."""
        return [(request.method, request.url.path) for request in self.polls]


def pending(document: Any = None, **headers: str) -> Response:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse(document or {"status": "running"}, 202, fields)


def shown(status: str, **more: Any) -> Response:
    """A document, as Azure's operations and our monitors are shown."""
    return JSONResponse({"status": status, **more})


def events(*frames: str) -> Response:
    return Response("".join(frames), media_type="text/event-stream")


def client_of(http: ModuleType, app: ASGIApp, **settings: Any) -> Any:
    """An asynchronous client that follows, without a socket."""
    transport = follow(http).AsyncFollowTransport(http.ASGITransport(app), **settings)
    return http.AsyncClient(transport=transport, base_url="http://test", timeout=5)


@contextmanager
def serving(app: ASGIApp, listener: socket.socket | None = None) -> Iterator[str]:
    """A real uvicorn on a free port, in a thread of its own."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    with listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
