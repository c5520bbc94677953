"""The app's own handler for errors answers for crashed jobs, wherever it stands."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import anyio
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from raincheck import Limits, LongRunningMiddleware, MemoryStore, Policy, long_running
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.processes import LEASE
from tests.doubles.stores import Line
from tests.support import running, settled, slow_route

pytestmark = pytest.mark.anyio

ANSWER = {"error": "E500"}


class Told:
    """A handler for errors, and what it was told."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.scopes: list[Scope] = []

    async def __call__(self, request: Request, error: Exception) -> Response:
        self.errors.append(repr(error))
        self.scopes.append(request.scope)
        return JSONResponse(ANSWER, 500)

    def in_a_thread(self, request: Request, error: Exception) -> Response:
        self.errors.append(repr(error))
        return JSONResponse(ANSWER, 500)


async def crashes(request: Request) -> None:
    await anyio.sleep(1)
    raise LookupError(request.url.path)


def around(app: Starlette, **settings: Any) -> Any:
    return LongRunningMiddleware(app, jobs=virtual_jobs(), **settings)


def added(app: Starlette, **settings: Any) -> Any:
    app.add_middleware(LongRunningMiddleware, jobs=virtual_jobs(), **settings)
    return app


PLACES = [pytest.param(around, id="around"), pytest.param(added, id="added")]
Place = Callable[..., Any]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("key", [Exception, 500])
@pytest.mark.parametrize("framework", [Starlette, FastAPI])
async def test_it_writes_the_response_of_a_crashed_job_and_is_called_once(
    framework: type[Starlette], key: Any, place: Place
) -> None:
    app = framework(routes=[slow_route(crashes, max_running=1)])
    app.add_exception_handler(key, told := Told())
    async with running(place(app)) as client:
        for accepted in [await client.post("/slow") for _ in range(3)]:
            response = await follow(client, accepted)
            assert (response.status_code, response.json()) == (500, ANSWER)
            assert response.headers["job-status"] == "failed"
        await settled()
    assert told.errors == ["LookupError('/slow')"] * 3
    assert all(scope["path_params"] == {} for scope in told.scopes)  # the app's own scope


@pytest.mark.real  # it is called in a thread
@pytest.mark.parametrize("place", PLACES)
async def test_a_def_does_so_too(place: Place) -> None:
    @long_running
    async def slow(request: Request) -> Response:
        raise LookupError

    app = Starlette(routes=[Route("/slow", slow)])
    told = Told()
    app.add_exception_handler(Exception, told.in_a_thread)
    async with running(place(app)) as client:
        response = await follow(client, await client.get("/slow"))
        assert response.json() == ANSWER
    assert told.errors == ["LookupError()"]


@pytest.mark.parametrize("place", PLACES)
async def test_without_one_the_failure_is_ours_to_write(place: Place) -> None:
    app = Starlette(routes=[slow_route(crashes)])
    app.add_exception_handler(LookupError, told := Told())  # of which it is not the catch-all
    app.add_exception_handler(HTTPException, Told())
    async with running(place(app)) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json() == ANSWER
    assert told.errors == ["LookupError('/slow')"]

    async with running(added(Starlette(routes=[slow_route(crashes)]))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json()["type"].endswith("crashed")


@pytest.mark.parametrize("place", PLACES)
async def test_an_error_before_the_entry_is_told_once_as_ever(place: Place) -> None:
    async def answer(request: Request) -> None:
        raise LookupError

    app = Starlette(routes=[slow_route(answer, respond="preferred")])
    app.add_exception_handler(Exception, told := Told())
    async with running(place(app)) as client:
        with pytest.raises(LookupError):  # as servers are to hear of it
            await client.post("/slow")
    assert told.errors == ["LookupError()"]


@pytest.mark.parametrize("place", PLACES)
async def test_a_response_that_has_begun_is_not_another_one(place: Place) -> None:
    async def answer(request: Request) -> Response:
        async def chunks() -> Any:
            yield b"half"
            raise LookupError

        return StreamingResponse(chunks())

    app = Starlette(routes=[slow_route(answer)])
    app.add_exception_handler(Exception, told := Told())
    async with running(place(app)) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json()["type"].endswith("crashed")
    assert len(told.errors) == 1


@pytest.mark.parametrize("place", PLACES)
async def test_a_crash_after_the_response_is_told_and_changes_nothing(place: Place) -> None:
    async def fail() -> None:
        raise LookupError

    async def answer(request: Request) -> Response:
        return JSONResponse({}, background=BackgroundTask(fail))

    app = Starlette(routes=[slow_route(answer)])
    app.add_exception_handler(Exception, told := Told())
    async with running(place(app)) as client:
        response = await follow(client, await client.post("/slow"))
        assert (response.status_code, response.json()) == (200, {})
        await settled()
    assert told.errors == ["LookupError()"]


@pytest.mark.parametrize("place", PLACES)
async def test_a_handler_for_errors_that_fails_leaves_the_job_failed(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async def worse(request: Request, error: Exception) -> Response:
        raise ZeroDivisionError

    app = Starlette(routes=[slow_route(crashes)])
    app.add_exception_handler(Exception, worse)
    async with running(place(app)) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json()["type"].endswith("crashed")
    assert "ZeroDivisionError" in caplog.text
    assert "LookupError" in caplog.text


@pytest.mark.parametrize("by", ["cancel", "timeout"])
async def test_one_that_hangs_is_stopped_as_the_job_is(by: str) -> None:
    async def hangs(request: Request, error: Exception) -> Response:
        await anyio.sleep_forever()
        return Response()

    jobs = virtual_jobs()
    app = Starlette(routes=[slow_route(crashes, timeout=10 if by == "timeout" else None)])
    app.add_exception_handler(Exception, hangs)
    app.add_middleware(LongRunningMiddleware, jobs=jobs)
    async with running(app) as client:
        links = (await client.post("/slow")).json()["links"]
        await anyio.sleep(5)
        if by == "cancel":
            await client.post(links["cancel"])
        await anyio.sleep(6)
        document = (await client.get(links["self"])).json()
        assert document["status"] == ("canceled" if by == "cancel" else "failed")
        assert jobs.statistics().running == 0


async def test_what_a_cancelled_handler_makes_of_it_is_told_to_nobody() -> None:
    async def answer(request: Request) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError

    app = Starlette(routes=[slow_route(answer)])
    app.add_exception_handler(Exception, told := Told())
    async with running(added(app)) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        await client.post(links["cancel"])
        await settled()
        assert (await client.get(links["self"])).json()["status"] == "canceled"
    assert told.errors == []


async def test_under_a_path_rule_it_is_the_same() -> None:
    async def plain(request: Request) -> Response:
        raise LookupError

    app = Starlette(routes=[Route("/slow", plain, methods=["POST"])])
    app.add_exception_handler(Exception, told := Told())
    async with running(added(app, routes={"POST /slow": Policy()})) as client:
        assert (await follow(client, await client.post("/slow"))).json() == ANSWER
    assert told.errors == ["LookupError()"]


async def test_of_two_apps_each_is_told_once_and_the_inner_one_answers() -> None:
    """As without us: what an app has answered for, it passes on."""
    inner = Starlette(routes=[slow_route(crashes)])
    inner.add_exception_handler(Exception, inside := Told())
    outer = Starlette(routes=[Mount("/v1", inner)])
    outer.add_exception_handler(Exception, outside := Told())
    async with running(added(outer)) as client:
        assert (await follow(client, await client.post("/v1/slow"))).json() == ANSWER
        await settled()
    assert inside.errors == outside.errors == ["LookupError('/v1/slow')"]


async def test_a_job_that_another_process_left_is_answered_for_too() -> None:
    told = Told()
    store = MemoryStore()
    lines = [Line(store), Line(store)]

    def process(line: Line, answer: Any) -> Starlette:
        app = Starlette(routes=[slow_route(answer, on_interrupt="rerun")])
        app.add_exception_handler(Exception, told)
        jobs = virtual_jobs(store=line, limits=Limits(lease=LEASE, store_timeout=2))
        app.add_middleware(LongRunningMiddleware, jobs=jobs)
        return app

    async def hangs(request: Request) -> None:
        await anyio.sleep_forever()

    async with running(process(lines[0], hangs)) as dies:
        left = await dies.post("/slow")
        lines[0].cut()
        async with running(process(lines[1], crashes)) as client:
            assert (await follow(client, left)).json() == ANSWER
        lines[0].mend()
    assert told.errors == ["LookupError('/slow')"]


async def test_what_is_no_app_of_starlettes_has_no_such_handler() -> None:
    """Others keep theirs under the same name, and call them otherwise."""

    class Other:
        exception_handlers: ClassVar[Any] = {Exception: Told()}

    app = LongRunningMiddleware(Starlette(routes=[slow_route(crashes)]), jobs=virtual_jobs())

    async def other(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "app": Other()}, receive, send)

    async with running(other) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == 500
        assert Other.exception_handlers[Exception].errors == []


def test_nothing_is_logged_twice(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        app = Starlette(routes=[slow_route(crashes)])
        app.add_exception_handler(Exception, Told())
        async with running(added(app)) as client:
            await follow(client, await client.post("/slow"))
            await settled()

    with caplog.at_level(logging.ERROR, "raincheck"):
        anyio.run(run)
    assert caplog.text.count("Traceback") == 1
