"""A release is no error: what stands inside sees an answer like any other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    SimpleUser,
    requires,
)
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import LongRunningMiddleware, long_running
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.support import Gate, Metrics, RawRequest, running

pytestmark = pytest.mark.anyio


class Everybody(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        return AuthCredentials(["authenticated"]), SimpleUser("ann")


async def settled() -> None:
    """Let everything run that can: a second of virtual time, for the tasks below a middleware."""
    await anyio.sleep(1)


async def catch_all(request: Request, call_next: Any) -> Response:
    """Middleware that lets no error pass."""
    try:
        response: Response = await call_next(request)
    except BaseException as error:
        if not isinstance(error, Exception):
            request.app.state.caught.append(error)
            raise
        request.app.state.caught.append(error)
        return JSONResponse({"error": repr(error)}, 500)
    return response


# --- apps --------------------------------------------------------------------------------------


@long_running(max_running=1, max_queued=1)
async def slow(request: Request) -> Response:
    return JSONResponse(await request.app.state.work())


@long_running(max_running=1, max_queued=1)
async def slow_of_fastapi(request: Request) -> Any:
    return await request.app.state.work()


class Slow(HTTPEndpoint):
    @long_running(max_running=1, max_queued=1)
    async def post(self, request: Request) -> Response:
        return JSONResponse(await request.app.state.work())


class SlowByGet(HTTPEndpoint):
    @long_running(max_running=1, max_queued=1)
    async def get(self, request: Request) -> Response:
        return JSONResponse(await request.app.state.work())


class Views:
    @long_running(max_running=1, max_queued=1)
    async def slow(self, request: Request) -> Response:
        return JSONResponse(await request.app.state.work())


async def work_of(text: str, request: Request) -> Response:
    return JSONResponse(await request.app.state.work())


@requires("authenticated")
@long_running(max_running=1, max_queued=1)
async def slow_for_some(request: Request) -> Response:
    return JSONResponse(await request.app.state.work())


bound = long_running(max_running=1, max_queued=1)(functools.partial(work_of, "a"))
taken = functools.partial(long_running(max_running=1, max_queued=1)(work_of), "a")


def of_fastapi(how: str) -> FastAPI:
    app = FastAPI()
    router = APIRouter(prefix="/v1")
    (app if how == "an endpoint" else router).post("/slow")(slow_of_fastapi)
    app.include_router(router, prefix="/api")
    return app


APPS: dict[str, tuple[str, str, Callable[[], Starlette]]] = {
    name: ("POST", "/slow", lambda endpoint=endpoint: _routed(endpoint))
    for name, endpoint in {
        "a function": slow,
        "a class": Slow,
        "a method": Views().slow,
        "a partial": bound,
        "a partial of a marked one": taken,
        "a function below requires": slow_for_some,
    }.items()
} | {
    "the GET of a class": ("HEAD", "/slow", lambda: _routed(SlowByGet)),
    "a mount": ("POST", "/v1/slow", lambda: Starlette(routes=[Mount("/v1", _routed(slow))])),
    "FastAPI": ("POST", "/slow", lambda: of_fastapi("an endpoint")),
    "FastAPI, included": ("POST", "/api/v1/slow", lambda: of_fastapi("a router")),
}


def _routed(endpoint: Any) -> Starlette:
    methods = None if isinstance(endpoint, type) else ["POST"]
    return Starlette(routes=[Route("/slow", endpoint, methods=methods)])


class Seen:
    """An app with middleware inside, and what that has seen."""

    def __init__(self, app: Starlette) -> None:
        self.gate = Gate()
        self.counted: list[int] = []
        self.caught: list[BaseException] = []
        for there in (app, *(r.app for r in app.routes if isinstance(r, Mount))):
            assert isinstance(there, Starlette)
            there.state.work, there.state.caught = self.work, self.caught
        app.add_middleware(AuthenticationMiddleware, backend=Everybody())
        app.add_middleware(BaseHTTPMiddleware, dispatch=catch_all)
        app.add_middleware(Metrics, counted=self.counted)
        self.app = LongRunningMiddleware(app, jobs=virtual_jobs())

    async def work(self) -> dict[str, int]:
        await self.gate.wait()
        return {"answer": 42}


@pytest.mark.parametrize("case", APPS)
async def test_what_stands_inside_sees_the_answer_that_the_client_gets(case: str) -> None:
    method, path, make = APPS[case]
    seen = Seen(make())
    async with running(seen.app) as client:
        sent = [await client.request(method, path) for _ in range(3)]
        assert [response.status_code for response in sent] == [202, 202, 503]
        await settled()
        assert seen.counted == [202, 503]
        seen.gate.open()
        for accepted in sent[:2]:
            response = await follow(client, accepted)
            assert response.status_code == 200
            assert method == "HEAD" or response.json() == {"answer": 42}
        await settled()
        assert seen.counted == [202, 503, 200, 200]
        assert seen.caught == []


@pytest.mark.parametrize(
    ("settings", "headers", "statuses"),
    [
        ({"max_request_size": 1}, {}, [413]),
        ({"idempotency": "required"}, {}, [400]),
        ({"max_running": 1}, {"idempotency-key": "k"}, [202, 202, 202]),
    ],
    ids=["too large", "without its key", "known by its key"],
)
async def test_the_same_holds_for_refusals_and_for_jobs_that_are_there(
    settings: Any, headers: dict[str, str], statuses: list[int]
) -> None:
    @long_running(**settings)
    async def endpoint(request: Request) -> Response:
        return JSONResponse(await request.app.state.work())

    seen = Seen(_routed(endpoint))
    async with running(seen.app) as client:
        for status in statuses:
            response = await client.post("/slow", content=b"xx", headers=headers)
            assert response.status_code == status
        await settled()
        # The first of those with a key runs; the others are it.
        assert seen.counted == (statuses[1:] if "max_running" in settings else statuses)
        assert seen.caught == []
        seen.gate.open()


async def test_a_client_that_leaves_is_none_that_is_answered() -> None:
    seen = Seen(_routed(slow))
    request = RawRequest()
    request.feed(b"x", more=True)
    request.leave()
    async with running(seen.app):
        await request.run(seen.app)
        assert request.sent == []
        await settled()
        assert seen.counted == [500]  # as where a handler cannot read its body


async def test_the_answer_for_what_stands_inside_goes_nowhere() -> None:
    seen = Seen(_routed(slow))
    async with running(seen.app) as client:
        await client.post("/slow")
        request = RawRequest()
        request.feed()
        await request.run(seen.app)
        assert [message["type"] for message in request.sent] == [
            "http.response.start",
            "http.response.body",
        ]
        assert b'"queued"' in request.body
        seen.gate.open()


async def test_what_listens_for_the_end_inside_hears_of_it() -> None:
    """Else it would stay, with all that it holds, for as long as the job waits."""
    ended: list[str] = []

    class Listening:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await self.app(scope, receive, send)
            if scope["type"] == "http":
                while (await receive())["type"] != "http.disconnect":
                    pass
                ended.append(scope["path"])

    gate = Gate()
    app = _routed(slow)
    app.state.work = gate.wait
    app.add_middleware(Listening)
    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        for _ in range(3):
            await client.post("/slow")
        await settled()
        assert ended == ["/slow"] * 2
        gate.open()


# --- what FastAPI does with a response ---------------------------------------------------------


class Receipt(BaseModel):
    answer: int


async def test_dependencies_end_in_both_passes_as_after_any_answer() -> None:
    """Their code after `yield` runs, with awaits, and no exception comes to them."""
    events: list[str] = []

    async def session() -> Any:
        try:
            yield
            events.append("committed")
        except BaseException as error:
            events.append(f"rolled back by {type(error).__name__}")
            raise
        finally:
            await anyio.sleep(0.5)
            events.append("closed")

    app = FastAPI()

    @app.post("/slow", dependencies=[Depends(session)])
    @long_running(max_running=1)
    async def endpoint(request: Request) -> Any:
        return await request.app.state.work()

    seen = Seen(app)
    async with running(seen.app) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        await anyio.sleep(1)
        assert events == ["committed", "closed"]
        seen.gate.open()
        for there in accepted:
            assert (await follow(client, there)).json() == {"answer": 42}
        await anyio.sleep(1)
        assert sorted(events) == ["closed"] * 3 + ["committed"] * 3


async def test_background_tasks_of_dependencies_wait_for_the_handler() -> None:
    ran: list[str] = []

    def note(what: str) -> None:
        ran.append(what)

    async def noting(tasks: BackgroundTasks, request: Request) -> None:
        async def add() -> None:
            note(request.headers["x-name"])

        tasks.add_task(add)

    app = FastAPI()

    @app.post("/slow", dependencies=[Depends(noting)])
    @long_running(max_running=1)
    async def endpoint(request: Request) -> Any:
        return await request.app.state.work()

    seen = Seen(app)
    async with running(seen.app) as client:
        for name in ("first", "second"):
            await client.post("/slow", headers={"x-name": name})
        await settled()
        assert ran == []
        seen.gate.open()
        await anyio.sleep(1)
        assert ran == ["first", "second"]


async def test_the_answer_need_not_be_what_the_endpoint_declares() -> None:
    def headed(response: Response) -> None:
        response.headers["x-dependency"] = "its"
        response.status_code = 203

    app = FastAPI()

    @app.post("/slow", status_code=201, response_model=Receipt, dependencies=[Depends(headed)])
    @long_running(max_running=1)
    async def endpoint(request: Request) -> Any:
        return await request.app.state.work()

    seen = Seen(app)
    async with running(seen.app) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        await settled()
        assert (seen.counted, seen.caught) == ([202], [])
        seen.gate.open()
        for there in accepted:
            response = await follow(client, there)
            assert (response.status_code, response.headers["x-dependency"]) == (203, "its")


# --- where nobody takes a response for the value ------------------------------------------------


async def test_a_decorator_above_never_sees_a_value_that_the_handler_did_not_return() -> None:
    """It may keep it, or put it into something else: the release passes through it instead."""
    values: list[Any] = []
    cleaned: list[str] = []

    def cached(endpoint: Any) -> Any:
        @functools.wraps(endpoint)
        async def caching(request: Request) -> Response:
            try:
                value = await endpoint(request)
            finally:
                await anyio.sleep(0.5)  # cleanup code may await
                cleaned.append("up")
            values.append(value)
            return JSONResponse(value)

        return caching

    @cached
    @long_running(max_running=1)
    async def endpoint(request: Request) -> Any:
        return await request.app.state.work()

    app = _routed(endpoint)
    app.state.work = Gate().wait
    seen = Seen(app)
    async with running(seen.app) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        assert [response.status_code for response in accepted] == [202, 202]
        await anyio.sleep(1)
        assert (values, cleaned) == ([], ["up"])
        seen.gate.open()
        for there in accepted:
            assert (await follow(client, there)).json() == {"answer": 42}
        assert values == [{"answer": 42}] * 2


async def test_a_marked_function_that_an_endpoint_calls_does_not_answer_for_it() -> None:
    values: list[Any] = []

    async def calling(request: Request) -> Response:
        values.append(await slow(request))
        return JSONResponse(len(values))

    calling.__raincheck_mark__ = slow.__raincheck_mark__  # type: ignore[attr-defined] # as a wrapper
    seen = Seen(_routed(calling))
    async with running(seen.app) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        assert [response.status_code for response in accepted] == [202, 202]
        assert values == []
        seen.gate.open()
        for there in accepted:
            assert (await follow(client, there)).status_code == 200
        assert [value.status_code for value in values] == [200, 200]


async def test_an_app_without_such_a_value_is_unwound() -> None:
    """Its frames pass a `BaseException` on, and their cleanup may await."""
    unwound: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        try:
            response = await endpoint(request)
        except BaseException as error:
            await anyio.sleep(0.5)
            unwound.append(type(error).__name__)
            raise
        await response(scope, receive, send)

    gate = Gate()

    @long_running(max_running=1)
    async def endpoint(request: Request) -> Response:
        await gate.wait()
        return Response("done")

    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        await anyio.sleep(1)
        assert unwound == ["Release"]
        gate.open()
        for there in accepted:
            assert (await follow(client, there)).text == "done"
