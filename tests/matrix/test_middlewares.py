"""Starlette's own middleware, outside of `LongRunningMiddleware` and inside."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import Jobs, LongRunningMiddleware
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.matrix.conftest import check_installed
from tests.support import Gate, gated, running, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

TEXT = "as compressible as can be " * 100


class Tagging(BaseHTTPMiddleware):
    """Puts a number on every response that passes."""

    def __init__(self, app: ASGIApp, seen: list[str]) -> None:
        super().__init__(app)
        self.seen = seen

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        self.seen.append(request.url.path)
        response = await call_next(request)
        response.headers["x-tag"] = str(len(self.seen))
        return response


class Ann(AuthenticationBackend):
    """Knows everybody by a header, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
        self.asked += 1
        name = conn.headers.get("authorization")
        return None if name is None else (AuthCredentials(["authenticated"]), SimpleUser(name))


def sessions() -> Middleware:
    from starlette.middleware.sessions import SessionMiddleware

    return Middleware(SessionMiddleware, secret_key="x")


def spans() -> tuple[Middleware, Any]:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from starlette.middleware.opentelemetry import OpenTelemetryMiddleware

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Middleware(OpenTelemetryMiddleware, tracer_provider=provider), exporter


@dataclass(frozen=True)
class Case:
    make: Callable[[], Middleware]
    needs: str = "starlette"


CASES = {
    "base": Case(lambda: Middleware(Tagging, seen=[])),
    "gzip": Case(lambda: Middleware(GZipMiddleware, minimum_size=1)),
    "cors": Case(lambda: Middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"])),
    "session": Case(sessions, needs="itsdangerous"),
    "authentication": Case(lambda: Middleware(AuthenticationMiddleware, backend=Ann())),
    "opentelemetry": Case(lambda: spans()[0], needs="opentelemetry.sdk"),
}

Place = str
PLACES = ("outside", "inside")


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Place:
    return str(request.param)


@pytest.fixture(params=CASES)
def middleware(request: pytest.FixtureRequest) -> Middleware:
    case = CASES[request.param]
    check_installed(request.config, case.needs)
    return case.make()


def app_with(middleware: Middleware, place: Place, *routes: BaseRoute) -> tuple[Starlette, Jobs]:
    """A Starlette app with another middleware on either side of ours."""
    jobs = virtual_jobs()
    ours = Middleware(LongRunningMiddleware, jobs=jobs)
    stack = [middleware, ours] if place == "outside" else [ours, middleware]
    return Starlette(routes=list(routes), middleware=stack), jobs


async def settled() -> None:
    """Let everything run that can: a second of virtual time, for the tasks below a middleware."""
    await anyio.sleep(1)


async def text(request: Request) -> Response:
    return PlainTextResponse(TEXT)


# --- all of them -------------------------------------------------------------------------------


async def test_a_job_from_its_202_to_its_response(middleware: Middleware, place: Place) -> None:
    app, jobs = app_with(middleware, place, gated(gate := Gate()))
    async with running(app) as client:
        accepted = await client.post("/slow")
        assert accepted.status_code == 202
        assert accepted.json()["status"] == "running"
        assert (await client.get(accepted.headers["location"])).status_code == 202
        gate.open()
        response = await follow(client, accepted)
        assert (response.status_code, response.json()) == (200, {"path": "/slow"})
        await settled()
        assert jobs.statistics().running == 0


async def test_a_streamed_response(middleware: Middleware, place: Place) -> None:
    async def parts() -> Any:
        for number in range(20):
            yield b"%d," % number

    async def answer(request: Request) -> Response:
        return StreamingResponse(parts(), media_type="text/csv")

    app, jobs = app_with(middleware, place, slow_route(answer))
    async with running(app) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.text == "".join(f"{number}," for number in range(20))
        await settled()
        assert jobs.statistics().running == 0


async def test_cancel_reaches_the_handler(middleware: Middleware, place: Place) -> None:
    app, jobs = app_with(middleware, place, gated(gate := Gate()))
    async with running(app) as client:
        accepted = await client.post("/slow")
        await settled()
        links = accepted.json()["links"]
        assert (await client.post(links["cancel"])).status_code == 202
        await settled()
        assert gate.cleaned_up == 1
        assert (await client.get(links["self"])).json()["status"] == "canceled"
        assert jobs.statistics().running == 0


async def test_a_queued_request_is_released_and_replayed(
    middleware: Middleware, place: Place
) -> None:
    app, jobs = app_with(middleware, place, gated(gate := Gate(), max_running=1))
    async with running(app) as client:
        accepted = [await client.post("/slow") for _ in range(3)]
        assert [a.status_code for a in accepted] == [202] * 3
        assert [a.json()["status"] for a in accepted] == ["running", "queued", "queued"]
        await settled()
        assert gate.entered == 1
        cancel = accepted[1].json()["links"]["cancel"]
        assert (await client.post(cancel)).json()["status"] == "canceled"
        gate.open()
        for there in (accepted[0], accepted[2]):
            assert (await follow(client, there)).json() == {"path": "/slow"}
        await settled()
        assert gate.entered == 2
        assert (jobs.statistics().running, jobs.statistics().queued) == (0, 0)


# --- one by one --------------------------------------------------------------------------------


async def test_base_http_middleware_outside_sees_the_202_and_each_poll() -> None:
    seen: list[str] = []
    app, _ = app_with(Middleware(Tagging, seen=seen), "outside", slow_route(text))
    async with running(app) as client:
        accepted = await client.post("/slow")
        assert accepted.headers["x-tag"] == "1"
        response = await follow(client, accepted)
        assert response.headers["x-tag"] == str(len(seen))
        assert seen[:2] == ["/slow", accepted.headers["location"]]


async def test_base_http_middleware_inside_sees_the_response_itself() -> None:
    seen: list[str] = []
    app, _ = app_with(Middleware(Tagging, seen=seen), "inside", slow_route(text))
    async with running(app) as client:
        accepted = await client.post("/slow")
        assert "x-tag" not in accepted.headers
        assert (await follow(client, accepted)).headers["x-tag"] == "1"
        assert seen == ["/slow"]


async def test_base_http_middleware_inside_runs_again_for_a_request_that_waited() -> None:
    seen: list[str] = []
    route = gated(gate := Gate(), max_running=1)
    app, _ = app_with(Middleware(Tagging, seen=seen), "inside", route)
    async with running(app) as client:
        await client.post("/slow")
        waited = await client.post("/slow")
        assert seen == ["/slow"] * 2
        gate.open()
        assert (await follow(client, waited)).headers["x-tag"] == "3"


async def test_gzip_outside_compresses_for_the_one_who_polls() -> None:
    app, _ = app_with(CASES["gzip"].make(), "outside", slow_route(text))
    async with running(app) as client:
        plain = {"accept-encoding": "identity"}
        url = (await client.post("/slow", headers=plain)).headers["location"]
        await settled()
        response = await client.get(url, headers=plain)
        assert "content-encoding" not in response.headers
        assert response.text == TEXT
        response = await client.get(url, headers={"accept-encoding": "gzip"})
        assert response.headers["content-encoding"] == "gzip"
        assert response.text == TEXT


async def test_gzip_inside_compresses_for_the_one_who_submitted() -> None:
    """The stored response is the handler's own, so a poll cannot negotiate it again."""
    app, _ = app_with(CASES["gzip"].make(), "inside", slow_route(text))
    async with running(app) as client:
        url = (await client.post("/slow", headers={"accept-encoding": "gzip"})).headers["location"]
        await settled()
        request = client.build_request("GET", url, headers={"accept-encoding": "identity"})
        response = await client.send(request, stream=True)
        raw = b"".join([chunk async for chunk in response.aiter_raw()])
        assert response.headers["content-encoding"] == "gzip"
        assert gzip.decompress(raw).decode() == TEXT


ORIGIN = {"origin": "https://example.org"}


def allowed(response: httpx.Response) -> bool:
    return "access-control-allow-origin" in response.headers


async def test_cors_outside_covers_the_status_routes() -> None:
    app, _ = app_with(CASES["cors"].make(), "outside", gated(gate := Gate()))
    async with running(app) as client:
        accepted = await client.post("/slow", headers=ORIGIN)
        assert allowed(accepted)
        url = accepted.headers["location"]
        assert allowed(await client.get(url, headers=ORIGIN))
        asks = {**ORIGIN, "access-control-request-method": "DELETE"}
        preflight = await client.options(url, headers=asks)
        assert preflight.headers["access-control-allow-origin"] == "*"
        gate.open()
        await settled()
        response = await client.get(url, headers=ORIGIN)
        assert response.status_code == 200
        assert allowed(response)


async def test_cors_inside_covers_the_stored_response_and_nothing_else() -> None:
    """A browser of another origin cannot read the 202, nor its `Location`."""
    app, _ = app_with(CASES["cors"].make(), "inside", gated(gate := Gate()))
    async with running(app) as client:
        accepted = await client.post("/slow", headers=ORIGIN)
        assert not allowed(accepted)
        url = accepted.headers["location"]
        assert not allowed(await client.get(url, headers=ORIGIN))
        asks = {**ORIGIN, "access-control-request-method": "POST"}
        preflight = await client.options("/slow", headers=asks)
        assert preflight.status_code == 200
        gate.open()
        await settled()
        assert allowed(await client.get(url, headers=ORIGIN))


async def counted(request: Request) -> Response:
    request.session["count"] = request.session.get("count", 0) + 1
    return JSONResponse(request.session)


async def test_session_inside_keeps_what_the_handler_writes(request: pytest.FixtureRequest) -> None:
    check_installed(request.config, "itsdangerous")
    app, _ = app_with(sessions(), "inside", slow_route(counted))
    async with running(app) as client:
        accepted = await client.post("/slow")
        assert "set-cookie" not in accepted.headers
        response = await follow(client, accepted)
        assert response.json() == {"count": 1}
        assert "session=" in response.headers["set-cookie"]
        assert (await follow(client, await client.post("/slow"))).json() == {"count": 2}


async def test_session_outside_is_written_with_the_202_and_not_later(
    request: pytest.FixtureRequest,
) -> None:
    """The handler can read the session, but its cookie has left when the handler writes."""
    check_installed(request.config, "itsdangerous")
    gate = Gate()

    async def after_the_202(request: Request) -> Response:
        await gate.wait()
        return await counted(request)

    app, _ = app_with(sessions(), "outside", slow_route(after_the_202))
    async with running(app) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        gate.open()
        for there in accepted:
            response = await follow(client, there)
            assert response.json() == {"count": 1}
            assert "set-cookie" not in response.headers
        assert not client.cookies


async def whoami(request: Request) -> Response:
    return PlainTextResponse(request.user.display_name)


@pytest.mark.parametrize(("place", "asked"), [("outside", 4), ("inside", 3)])
async def test_the_user_is_there_in_a_replay(place: Place, asked: int) -> None:
    """Outside: asked for two requests and two polls. Inside: two requests, one of them twice."""
    gate = Gate()

    async def answer(request: Request) -> Response:
        await gate.wait()
        return await whoami(request)

    backend = Ann()
    there = Middleware(AuthenticationMiddleware, backend=backend)
    app, _ = app_with(there, place, slow_route(answer, max_running=1))
    async with running(app) as client:
        urls = {}
        for name in ("ann", "bob"):
            accepted = await client.post("/slow", headers={"authorization": name})
            urls[name] = accepted.headers["location"]
        gate.open()
        await settled()
        for name, url in urls.items():
            assert (await client.get(url, headers={"authorization": name})).text == name
        assert backend.asked == asked


async def test_opentelemetry_outside_has_a_span_until_the_202(
    request: pytest.FixtureRequest,
) -> None:
    check_installed(request.config, "opentelemetry.sdk")
    middleware, exporter = spans()
    app, _ = app_with(middleware, "outside", gated(gate := Gate()))
    async with running(app) as client:
        await client.post("/slow")
        (span,) = exporter.get_finished_spans()
        assert span.attributes["http.response.status_code"] == 202
        gate.open()
        await settled()
        assert len(exporter.get_finished_spans()) == 1


async def test_opentelemetry_inside_has_a_span_until_the_response(
    request: pytest.FixtureRequest,
) -> None:
    check_installed(request.config, "opentelemetry.sdk")
    middleware, exporter = spans()
    app, _ = app_with(middleware, "inside", gated(gate := Gate()))
    async with running(app) as client:
        await client.post("/slow")
        assert exporter.get_finished_spans() == ()
        gate.open()
        await settled()
        (span,) = exporter.get_finished_spans()
        assert span.name == "POST /slow"
        assert span.attributes["http.response.status_code"] == 200


async def test_opentelemetry_inside_has_two_spans_for_a_request_that_waited(
    request: pytest.FixtureRequest,
) -> None:
    """One until the release, which is a 202 like any other, and one of the replay."""
    check_installed(request.config, "opentelemetry.sdk")
    middleware, exporter = spans()
    app, _ = app_with(middleware, "inside", gated(gate := Gate(), max_running=1))
    async with running(app) as client:
        for _ in range(2):
            await client.post("/slow")
        await settled()
        (released,) = exporter.get_finished_spans()
        assert released.status.is_unset
        assert released.attributes["http.response.status_code"] == 202
        assert released.attributes["http.route"] == "/slow"
        gate.open()
        await settled()
        statuses = [
            span.attributes["http.response.status_code"]
            for span in exporter.get_finished_spans()[1:]
        ]
        assert statuses == [200, 200]


class Unprefixed:
    """Takes a prefix off the path, and says so to nobody."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["path"].removeprefix("/v2")}
        await self.app(scope, receive, send)


@pytest.mark.parametrize(("place", "status"), [("outside", 202), ("inside", 200)])
async def test_a_path_rewritten_inside_hides_a_decorated_route(place: Place, status: int) -> None:
    """What may meet a decorated endpoint is read from the app's routes, by the path outside."""
    app, _ = app_with(Middleware(Unprefixed), place, slow_route(text))
    async with running(app) as client:
        assert (await client.post("/v2/slow")).status_code == status
        assert (await client.post("/slow")).status_code == 202
