"""What the tests of a whole app share: an app, a client, a server, and a raw request."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck import Job, Jobs, LongRunningMiddleware, State, long_running
from raincheck.job import TRANSITIONS
from raincheck.stores.base import Store
from raincheck.testing import lifespan
from tests.conftest import virtual_jobs
from tests.documented import watch


class Gate:
    """A handler that waits until the test lets it go on."""

    def __init__(self) -> None:
        self.entered = 0
        self.cleaned_up = 0
        self._open = anyio.Event()

    def open(self) -> None:
        self._open.set()

    async def wait(self) -> None:
        self.entered += 1
        try:
            await self._open.wait()
        finally:
            self.cleaned_up += 1


def client_of(app: ASGIApp, **settings: Any) -> httpx.AsyncClient:
    """A client of an app, which sees to it that all answers are documented."""
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(app, **settings),
        base_url="http://test",
        timeout=None,
        event_hooks={"response": [watch(app)]},
    )


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app whose lifespan runs."""
    async with lifespan(app), client_of(app) as client:
        yield client


def app_of(*routes: BaseRoute, jobs: Jobs | None = None, **settings: Any) -> LongRunningMiddleware:
    """A Starlette app with these routes, in the middleware, on virtual time."""
    jobs = virtual_jobs() if jobs is None else jobs
    return LongRunningMiddleware(Starlette(routes=list(routes)), jobs=jobs, **settings)


def hidden(app: ASGIApp) -> ASGIApp:
    """An app whose routes cannot be read."""

    async def hide(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return hide


def slow_route(
    answer: Callable[[Request], Any], path: str = "/slow", *, methods: Any = None, **settings: Any
) -> Route:
    """A route whose long-running endpoint awaits `answer(request)`.

    It is called by its path, as all that are made here have one qualified name.
    """
    settings.setdefault("name", re.sub(r"\W+", ".", path).strip("."))

    @long_running(**settings)
    async def endpoint(request: Request) -> Response:
        result = await answer(request)
        return result if isinstance(result, Response) else JSONResponse(result)

    return Route(path, endpoint, methods=methods or ["GET", "POST"])


def gated(gate: Gate, path: str = "/slow", **settings: Any) -> Route:
    """A route whose long-running endpoint waits at a gate."""

    async def answer(request: Request) -> Any:
        await gate.wait()
        return {"path": request.url.path}

    return slow_route(answer, path, **settings)


async def unfinished(store: Store) -> list[Job]:
    """The jobs that have not ended, whoever holds them; newest first."""
    page = await store.list(states=[state for state in State if TRANSITIONS[state]])
    assert page.after is None  # it is the only one
    return [*page.jobs]


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What raincheck itself has logged."""
    return [record for record in caplog.records if record.name == "raincheck"]


async def settled() -> None:
    """Let everything run that can."""
    await anyio.wait_all_tasks_blocked()


class Numbers:
    """Gives each request a number, wherever it can have one, and sees whose its handler finds.

    Attributes:
        wrong: what must never happen.
    """

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._given = itertools.count(1)
        self._number: ContextVar[str] = ContextVar("number", default="")
        self._past_the_entry: ContextVar[bool] = ContextVar("past_the_entry", default=False)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The app, with middleware outside that gives the numbers."""

        async def numbered(scope: Scope, receive: Receive, send: Send) -> None:
            detached = False

            async def watched(message: Message) -> None:
                nonlocal detached
                if message["type"] == "http.response.start":
                    # Not by the status: a handler may say 202 as well, in time.
                    detached = b"content-location" in dict(message.get("headers", ()))
                await send(message)

            if scope["type"] == "http":
                own = str(next(self._given))
                self._number.set(own)
                self._past_the_entry.set(False)
                headers = [*scope["headers"], (b"x-number", own.encode())]
                scope = {**scope, "headers": headers, "number": own, "state": {"number": own}}
            await app(scope, receive, watched)
            if detached and self._past_the_entry.get():
                self.wrong.append("what a handler set in its context was seen outside")

        return numbered

    def check(self, request: Request) -> None:
        """Asked by a handler of a job: all is its request's, or none where a process left it."""
        own = request.headers["x-number"]
        state = request.scope.get("state", {}).get("number", "")
        there = (self._number.get(), request.scope.get("number", ""), state)
        if there not in {(own, own, own), ("", "", "")}:
            self.wrong.append(f"the handler of request {own} ran as {there}")
        self._past_the_entry.set(True)


class Metrics:
    """Counts by status, and takes a call that sends none for a 500, as exporters do."""

    def __init__(self, app: ASGIApp, counted: list[int]) -> None:
        self.app = app
        self.counted = counted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            self.counted.append(status)


class RawRequest:
    """One request at the level of ASGI, for what no HTTP client can be made to do."""

    def __init__(self, path: str = "/slow", method: str = "POST", **headers: str) -> None:
        fields = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("latin-1", "replace"),
            "query_string": b"",
            "root_path": "",
            "headers": fields,
            "client": ("127.0.0.1", 1),
            "server": ("test", 80),
        }
        self.sent: list[Message] = []
        self._to_app, self._from_client = anyio.create_memory_object_stream[Message](100)

    def feed(self, body: bytes = b"", *, more: bool = False) -> None:
        message = {"type": "http.request", "body": body, "more_body": more}
        self._to_app.send_nowait(message)

    def leave(self) -> None:
        self._to_app.send_nowait({"type": "http.disconnect"})

    async def run(self, app: ASGIApp) -> None:
        with self._to_app, self._from_client:
            await app(self.scope, self._from_client.receive, self._send)

    async def run_with(self, receive: Receive, app: ASGIApp) -> None:
        """Send it from a client that does not just send what it was fed."""
        with self._to_app, self._from_client:
            await app(self.scope, receive, self._send)

    async def _send(self, message: Message) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])
