"""Code that asks whether it is to stop, and work that computes in a process of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_process
import anyio.to_thread
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from raincheck import (
    Cancelled,
    LongRunningMiddleware,
    Policy,
    long_running,
    raise_if_cancelled,
)
from raincheck.stores.sqlite import SQLiteStore
from raincheck.testing import follow
from tests.doubles.computing import computes
from tests.support import app_of, running, said

pytestmark = [pytest.mark.anyio, pytest.mark.real]


async def until(there: Callable[[], Any]) -> None:
    with anyio.fail_after(20):
        while not there():  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.01)


async def pass_on(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


class Loop:
    """A handler that computes and asks each time round."""

    def __init__(self) -> None:
        self.rounds = 0
        self.swallowed = 0
        self.cleaned_up = threading.Event()

    def compute(self) -> None:
        deadline = time.monotonic() + 20
        try:
            while time.monotonic() < deadline:
                self.rounds += 1
                try:
                    raise_if_cancelled()
                except Exception:
                    self.swallowed += 1
                time.sleep(0.005)
        finally:
            self.cleaned_up.set()


class Session:
    def __init__(self) -> None:
        self.closed = 0


def plain(loop: Loop, session: Session) -> Any:
    def endpoint(request: Request) -> Response:
        loop.compute()
        return PlainTextResponse("to the end")

    return Starlette(routes=[Route("/slow", long_running(endpoint), methods=["POST"])])


def wrapped(loop: Loop, session: Session) -> Any:
    app = plain(loop, session)
    app.user_middleware = [Middleware(BaseHTTPMiddleware, dispatch=pass_on)] * 2
    return app


def catches_all(loop: Loop, session: Session) -> Any:
    async def handler(request: Request, error: Exception) -> Response:
        return PlainTextResponse("an answer to any error", 500)

    app = plain(loop, session)
    app.exception_handlers = {Exception: handler}
    return app


def in_fastapi(loop: Loop, session: Session) -> Any:
    app = FastAPI()

    async def opened() -> Any:
        try:
            yield session
        finally:
            await anyio.sleep(0.01)
            session.closed += 1

    @app.post("/slow")
    @long_running
    def endpoint(given: Session = Depends(opened)) -> str:
        loop.compute()
        return "to the end"

    return app


def asynchronous(loop: Loop, session: Session) -> Any:
    async def endpoint(request: Request) -> Response:
        await anyio.to_thread.run_sync(loop.compute)
        return PlainTextResponse("to the end")

    return Starlette(routes=[Route("/slow", long_running(endpoint), methods=["POST"])])


APPS = [plain, wrapped, catches_all, in_fastapi, asynchronous]


@pytest.mark.parametrize("make", APPS)
async def test_who_asks_stops_when_its_job_is_cancelled(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    loop, session = Loop(), Session()
    async with running(LongRunningMiddleware(make(loop, session))) as client:
        accepted = await client.post("/slow")
        await until(lambda: loop.rounds > 2)
        await client.post(accepted.json()["links"]["cancel"])
        with anyio.fail_after(10):
            response = await follow(client, accepted)
        assert (response.status_code, response.headers["job-status"]) == (410, "canceled")
        assert loop.cleaned_up.is_set()
        assert loop.swallowed == 0  # it is no `Exception`
        assert session.closed == (make is in_fastapi)
        assert said(caplog) == []


@pytest.mark.parametrize("middleware", [0, 2])
async def test_a_stream_that_stops_where_it_asks_is_no_response(middleware: int) -> None:
    """Law 2: `BaseHTTPMiddleware` inside sends the end of one that was cut short."""
    loop = Loop()

    def endpoint(request: Request) -> Response:
        def rows() -> Iterator[str]:
            yield "the first of many"
            loop.compute()
            yield "the last"

        return StreamingResponse(rows())

    app = Starlette(
        routes=[Route("/slow", long_running(endpoint), methods=["POST"])],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=pass_on)] * middleware,
    )
    async with running(LongRunningMiddleware(app)) as client:
        accepted = await client.post("/slow")
        await until(lambda: loop.rounds)
        await client.post(accepted.json()["links"]["cancel"])
        with anyio.fail_after(10):
            response = await follow(client, accepted)
        assert (response.status_code, response.headers["job-status"]) == (410, "canceled")


async def test_a_thread_that_asks_once_the_handler_has_unwound_stops_as_well() -> None:
    """The first one that asks ends a group of tasks, and so the app."""
    first, second = Loop(), Loop()

    def later() -> None:
        first.cleaned_up.wait(10)
        time.sleep(0.5)
        second.compute()

    async def endpoint(request: Request) -> Response:
        async with anyio.create_task_group() as group:
            for compute in (first.compute, later):
                group.start_soon(partial(anyio.to_thread.run_sync, compute, abandon_on_cancel=True))
        return PlainTextResponse("to the end")

    app = Starlette(routes=[Route("/slow", long_running(endpoint), methods=["POST"])])
    async with running(LongRunningMiddleware(app)) as client:
        accepted = await client.post("/slow")
        await until(lambda: first.rounds)
        await client.post(accepted.json()["links"]["cancel"])
        await until(second.cleaned_up.is_set)
        assert second.rounds == 1
        assert (await follow(client, accepted)).status_code == 410


@pytest.mark.one_loop
@pytest.mark.parametrize("make", APPS)
async def test_who_asks_stops_when_its_time_is_over(make: Callable[..., Any]) -> None:
    loop, session = Loop(), Session()
    app = LongRunningMiddleware(make(loop, session), policy=Policy(timeout=0.3))
    async with running(app) as client:
        accepted = await client.post("/slow")
        with anyio.fail_after(10):
            response = await follow(client, accepted)
        assert (response.status_code, response.headers["job-status"]) == (504, "failed")
        await until(loop.cleaned_up.is_set)


async def test_a_cancel_that_came_in_elsewhere_is_heard_of_within_a_second(tmp_path: Path) -> None:
    loops: list[Loop] = []

    def app() -> LongRunningMiddleware:
        loops.append(loop := Loop())
        return LongRunningMiddleware(
            plain(loop, Session()), store=SQLiteStore(tmp_path / "jobs.db")
        )

    async with running(app()) as here, running(app()) as there:
        accepted = await here.post("/slow")
        await until(lambda: loops[0].rounds)
        asked = time.monotonic()
        await there.post(accepted.json()["links"]["cancel"])
        await until(loops[0].cleaned_up.is_set)
        assert time.monotonic() - asked < 2
        assert (await follow(there, accepted)).status_code == 410


async def test_outside_a_job_it_does_nothing() -> None:
    raise_if_cancelled()


async def test_nor_once_the_response_is_complete() -> None:
    """What runs after it, as a background task does, has not been stopped."""
    after: list[bool] = []

    class Late(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await super().__call__(scope, receive, send)
            raise_if_cancelled()
            after.append(True)

    started, go = threading.Event(), threading.Event()

    def endpoint(request: Request) -> Response:
        started.set()
        go.wait(10)
        return Late("done")

    async with running(app_of(Route("/slow", long_running(endpoint), methods=["POST"]))) as client:
        accepted = await client.post("/slow")
        await until(started.is_set)
        await client.post(accepted.json()["links"]["cancel"])
        go.set()
        assert (await follow(client, accepted)).status_code == 200
        await until(lambda: after)


def test_it_is_raised_as_what_no_except_exception_catches() -> None:
    assert not issubclass(Cancelled, Exception)


# --- a process of its own ------------------------------------------------------------------------


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def computing(place: Path) -> Callable[[Request], Awaitable[Response]]:
    async def render(request: Request) -> Response:
        await anyio.to_process.run_sync(computes, str(place), cancellable=True)
        return PlainTextResponse("to the end")

    return render


@pytest.mark.one_loop
@pytest.mark.parametrize("how", ["cancel", "timeout"])
async def test_law_6_a_process_is_killed_before_its_job_is_said_to_have_stopped(
    how: str, tmp_path: Path
) -> None:
    """As docs/frameworks.md tells those whose work computes for minutes."""
    place = tmp_path / "pid"
    settings: dict[str, Any] = {"timeout": 6} if how == "timeout" else {}
    endpoint = long_running(**settings)(computing(place))
    async with running(app_of(Route("/slow", endpoint, methods=["POST"]))) as client:
        accepted = await client.post("/slow")
        await until(lambda: place.exists() and place.read_text())
        pid = int(place.read_text())
        assert lives(pid)
        if how == "cancel":
            await client.post(accepted.json()["links"]["cancel"])
        with anyio.fail_after(20):
            response = await follow(client, accepted)
        if how == "cancel":
            assert (response.status_code, response.headers["job-status"]) == (410, "canceled")
            assert not lives(pid)
        else:
            assert response.status_code == 504
            await until(lambda: not lives(pid))
