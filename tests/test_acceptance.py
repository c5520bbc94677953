"""Acceptance at the handler's entry, and by path rule."""

from __future__ import annotations

import functools
import hashlib
import logging
import random
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import httpx
import pytest
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    AuthenticationError,
    SimpleUser,
    requires,
)
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Message, Receive, Scope, Send

from raincheck import (
    ConfigurationError,
    Jobs,
    Limits,
    LongRunningMiddleware,
    MemoryStore,
    Policy,
    current_job,
    long_running,
    report,
)
from raincheck.errors import StoreError
from raincheck.testing import follow, lifespan
from tests.conftest import virtual_jobs
from tests.doubles.stores import TrickyStore
from tests.support import (
    Gate,
    RawRequest,
    app_of,
    client_of,
    gated,
    running,
    said,
    settled,
    slow_route,
)

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


async def echo(request: Request) -> dict[str, Any]:
    return {"body": (await request.body()).decode(), "path": request.url.path}


async def test_the_202_carries_what_the_contract_says() -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        response = await client.post("/slow", headers={"prefer": "respond-async"})
        document = response.json()
        id = document["job_id"]
        assert response.status_code == 202
        assert response.headers["location"] == f"/jobs/{id}"
        assert response.headers["link"] == f'</jobs/{id}/status>; rel="monitor"'
        assert response.headers["retry-after"] == "1"
        assert response.headers["preference-applied"] == "respond-async"
        assert response.headers["vary"] == "Prefer"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["content-type"] == "application/json"
        assert "operation-location" not in response.headers
        assert document["status"] == "running"
        assert document["created_at"].endswith("Z")
        assert {key: document[key] for key in ("progress", "message", "queue_position")} == {
            "progress": None,
            "message": None,
            "queue_position": None,
        }
        assert document["links"] == {
            "self": f"/jobs/{id}/status",
            "result": f"/jobs/{id}",
            "events": f"/jobs/{id}/events",
            "stream": f"/jobs/{id}/stream",
            "cancel": f"/jobs/{id}/cancel",
        }
        gate.open()


async def test_base_url_makes_every_url_absolute() -> None:
    app = app_of(gated(gate := Gate()), base_url="https://api.example.org/v1/")
    async with running(app) as client:
        response = await client.post("/slow")
        id = response.json()["job_id"]
        url = f"https://api.example.org/v1/jobs/{id}"
        assert response.headers["location"] == url
        assert response.headers["operation-location"] == f"{url}/status"
        assert response.json()["links"]["cancel"] == f"{url}/cancel"
        gate.open()


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-mode": "navigate"},
        {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"},
    ],
)
async def test_a_browser_that_navigates_is_sent_to_the_status_url(headers: dict[str, str]) -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        response = await client.post("/slow", headers=headers)
        assert response.status_code == 303
        gate.open()
        await settled()
        assert (await client.get(response.headers["location"])).json() == {"path": "/slow"}


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> Any:
        if conn.headers.get("authorization") == "bad":
            raise AuthenticationError("no")
        if name := conn.headers.get("authorization"):
            return AuthCredentials(["authenticated"]), SimpleUser(name)
        return None


def reads_first(endpoint: Any) -> Any:
    """A decorator that reads the body before the entry, as FastAPI does."""

    @functools.wraps(endpoint)
    async def reading(request: Request) -> Any:
        await request.body()
        return await endpoint(request)

    return reading


async def test_what_the_app_answers_before_the_entry_comes_back_at_once() -> None:
    async def answer(request: Request) -> dict[str, str]:
        return {"user": request.user.display_name}

    secret = requires("authenticated")(slow_route(answer).endpoint)
    limited = Route(
        "/limited", reads_first(slow_route(echo, name="limited").endpoint), methods=["POST"]
    )
    body_limit = pytest.importorskip("starlette.middleware.body_limit")  # of Starlette 1
    limited.app = body_limit.RequestBodyLimitMiddleware(limited.app, max_body_size=5)
    store = MemoryStore()
    app = app_of(
        Mount(
            "/in",
            routes=[Route("/slow", secret, methods=["POST"]), limited],
            middleware=[Middleware(AuthenticationMiddleware, backend=Backend())],
        ),
        jobs=virtual_jobs(store=store),
    )
    async with running(app) as client:
        assert (await client.post("/in/slow")).status_code == 403
        assert (await client.post("/in/slow", headers={"authorization": "bad"})).status_code == 400
        assert (await client.post("/in/nowhere")).status_code == 404
        assert (await client.get("/in/slow")).status_code == 405
        assert (await client.post("/in/limited", content=b"x" * 6)).status_code == 413
        assert len(store) == 0
        accepted = await client.post("/in/slow", headers={"authorization": "ann"})
        assert accepted.status_code == 202
        assert (await follow(client, accepted)).json() == {"user": "ann"}


async def test_an_answer_before_the_entry_names_prefer_in_vary() -> None:
    """RFC 7240 §2: on every answer of a route that depends on Prefer."""

    def refuse(endpoint: Any) -> Any:
        @functools.wraps(endpoint)
        async def refusing(request: Request) -> Response:
            return JSONResponse({}, status_code=422, headers={"vary": request.headers["vary-as"]})

        return refusing

    route = Route("/slow", refuse(slow_route(echo).endpoint), methods=["POST"])
    async with running(app_of(route)) as client:
        for given, expected in (("Accept", "Accept, Prefer"), ("prefer", "prefer"), ("*", "*")):
            response = await client.post("/slow", headers={"vary-as": given})
            assert (response.status_code, response.headers["vary"]) == (422, expected)


async def test_the_rest_of_the_body_is_drained_and_stays_readable() -> None:
    gate = Gate()

    async def answer(request: Request) -> dict[str, Any]:
        stream = request.stream()
        first = await anext(stream)
        await gate.wait()
        return {"first": first.decode(), "rest": "".join([c.decode() async for c in stream])}

    app = app_of(slow_route(answer))
    async with lifespan(app), client_of(app) as client:
        request = RawRequest()
        async with anyio.create_task_group() as group:
            group.start_soon(request.run, app)
            for chunk in (b"a", b"b", b"c"):
                await settled()
                assert request.sent == []
                request.feed(chunk, more=True)
            request.feed()
        assert request.status == 202
        gate.open()
        url = dict(request.sent[0]["headers"])[b"location"].decode()
        response = await client.get(url, headers={"prefer": "wait=5"})
        assert response.json() == {"first": "a", "rest": "bc"}


async def test_a_body_that_middleware_has_read_can_be_read_again() -> None:
    async def read_first(request: Request, call_next: Any) -> Response:
        await request.body()
        response: Response = await call_next(request)
        return response

    inner = Starlette(
        routes=[slow_route(echo)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=read_first)],
    )
    async with running(LongRunningMiddleware(inner, jobs=virtual_jobs())) as client:
        response = await follow(client, await client.post("/slow", content=b"hello"))
        assert response.json()["body"] == "hello"


@pytest.mark.parametrize("declared", [True, False])
async def test_413_before_acceptance_also_for_chunked_bodies(declared: bool) -> None:
    store = MemoryStore()
    app = app_of(slow_route(echo, max_request_size=100), jobs=virtual_jobs(store=store))
    async with lifespan(app):
        request = RawRequest(**({"content_length": "101"} if declared else {}))
        for _ in range(3):
            request.feed(b"x" * 50, more=True)
        await request.run(app)
        assert request.status == 413
        assert b"100 bytes" in request.body
    assert len(store) == 0


async def test_a_body_at_the_bound_is_accepted() -> None:
    async with running(app_of(slow_route(echo, max_request_size=100))) as client:
        response = await client.post("/slow", content=b"x" * 100)
        assert (await follow(client, response)).json()["body"] == "x" * 100


class Reports(HTTPEndpoint):
    @long_running
    async def post(self, request: Request) -> Response:
        return JSONResponse({"job": current_job() is not None})

    async def get(self, request: Request) -> Response:
        return PlainTextResponse("plain")


@long_running
def in_thread(request: Request) -> Response:
    return JSONResponse({"job": current_job() is not None})


@pytest.mark.real
@pytest.mark.parametrize("path", ["/class", "/sync", "/partial"])
async def test_every_kind_of_endpoint_can_be_marked(path: str) -> None:
    @long_running
    async def takes_two(request: Request, kind: str) -> Response:
        return JSONResponse({"job": current_job() is not None})

    routes = [
        Route("/class", Reports),
        Route("/sync", in_thread, methods=["POST"]),
        Route("/partial", functools.partial(takes_two, kind="x"), methods=["POST"]),
    ]
    async with running(app_of(*routes)) as client:
        accepted = await client.post(path)
        assert accepted.status_code == 202
        assert (await follow(client, accepted)).json() == {"job": True}
        if path == "/class":
            assert (await client.get(path)).text == "plain"


@pytest.mark.real
@pytest.mark.parametrize("path", ["/class", "/sync"])
async def test_without_the_middleware_a_marked_endpoint_is_a_plain_one(path: str) -> None:
    routes = [Route("/class", Reports), Route("/sync", in_thread, methods=["POST"])]
    async with client_of(Starlette(routes=routes)) as client:
        response = await client.post(path)
        assert (response.status_code, response.json()) == (200, {"job": False})


async def test_a_marked_endpoint_calls_another_one_as_a_plain_function() -> None:
    @long_running
    async def inner(request: Request) -> dict[str, str]:
        return {"from": "inner"}

    async with running(app_of(slow_route(inner))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json() == {"from": "inner"}


async def test_a_handler_may_call_its_own_app() -> None:
    app: Any = None

    async def outer(request: Request) -> dict[str, Any]:
        async with client_of(app) as client:
            plain = await client.get("/plain")
            marked = await follow(client, await client.post("/marked"))
            return {"plain": plain.text, "marked": marked.json()}

    async def plain(request: Request) -> Response:
        return PlainTextResponse("plain")

    app = app_of(slow_route(outer), slow_route(echo, "/marked"), Route("/plain", plain))
    async with running(app) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json()["plain"] == "plain"
        assert response.json()["marked"]["path"] == "/marked"


async def test_a_path_rule_marks_a_route_of_an_app_that_is_not_touched() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        response = JSONResponse(await echo(Request(scope, receive)))
        await response(scope, receive, send)

    wrapped = LongRunningMiddleware(
        app,
        routes={"POST /videos": Policy(), "/reports/{id:int}": Policy()},
        jobs=virtual_jobs(),
    )
    async with running(wrapped) as client:
        for method, path, status in (
            ("POST", "/videos", 202),
            ("GET", "/videos", 200),
            ("GET", "/reports/7", 202),
            ("PUT", "/reports/7", 202),
            ("OPTIONS", "/reports/7", 200),
            ("HEAD", "/reports/7", 200),
            ("GET", "/reports/seven", 200),
        ):
            response = await client.request(method, path, content=b"in")
            assert (method, path, response.status_code) == (method, path, status)
            if status == 202:
                result = await follow(client, response)
                assert result.json() == {"body": "in", "path": path}


async def test_a_path_rule_beats_the_decorator_and_accepts_once() -> None:
    store = MemoryStore()
    app = app_of(
        slow_route(echo, ttl=10), jobs=virtual_jobs(store=store), routes={"/slow": Policy(ttl=100)}
    )
    async with running(app) as client:
        accepted = await client.post("/slow")
        await follow(client, accepted)
        assert len(store) == 1
        await anyio.sleep(50)
        assert (await client.get(accepted.headers["location"])).status_code == 200


async def test_a_decorated_endpoint_is_synchronous_where_a_path_rule_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It has been entered with a middleware around it: there is nothing to be warned of."""

    async def answer(request: Request) -> dict[str, bool]:
        report(0.5)
        return {"job": current_job() is not None}

    app = app_of(slow_route(answer), routes={"/slow": Policy(respond="preferred")})
    async with running(app) as client:
        response = await client.post("/slow")
        assert (response.status_code, response.json()) == (200, {"job": False})
        accepted = await client.post("/slow", headers={"prefer": "respond-async"})
        assert (await follow(client, accepted)).json() == {"job": True}
    assert said(caplog) == []


async def test_an_endpoint_that_no_request_was_expected_to_enter_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @long_running
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("done")

    async def hidden(request: Request) -> Response:
        return await endpoint(request)

    async with running(app_of(Route("/slow", hidden))) as client:
        assert [(await client.get("/slow")).status_code for _ in range(2)] == [200, 200]
    (record,) = said(caplog)
    assert "was entered without a LongRunningMiddleware" in record.getMessage()


async def test_a_path_rule_refuses_a_large_body() -> None:
    rule = {"/slow": Policy(max_request_size=3)}
    app = LongRunningMiddleware(
        Starlette(routes=[Route("/slow", echo_endpoint, methods=["POST"])]),
        routes=rule,
        jobs=virtual_jobs(),
    )
    async with running(app) as client:
        assert (await client.post("/slow", content=b"1234")).status_code == 413
        assert (await client.post("/slow", content=b"123")).status_code == 202


async def echo_endpoint(request: Request) -> Response:
    return JSONResponse(await echo(request))


def slowly(seconds: float, status: int = 200) -> Any:
    async def answer(request: Request) -> Response:
        await anyio.sleep(seconds)
        response = JSONResponse({"after": seconds}, status_code=status)
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    return answer


@pytest.mark.parametrize("rule", [False, True])
async def test_a_response_in_time_is_returned_as_if_nothing_had_happened(rule: bool) -> None:
    store = MemoryStore()
    jobs = virtual_jobs(store=store)
    endpoint = slowly(2, status=404)
    if rule:
        route = Route("/slow", endpoint, methods=["POST"])
        app = app_of(route, jobs=jobs, routes={"POST /slow": Policy(wait=5)})
    else:
        app = app_of(slow_route(endpoint, wait=5), jobs=jobs)
    async with running(app) as client:
        response = await client.post("/slow")
        assert (response.status_code, response.json()) == (404, {"after": 2})
        assert len(response.headers.get_list("set-cookie")) == 2
        assert "job-status" not in response.headers
        assert response.headers["vary"] == "Prefer"
        await anyio.sleep(20)  # a sweep later nothing is left of the job that nobody knows of
        assert len(store) == 0


@pytest.mark.parametrize("rule", [False, True])
async def test_a_response_that_comes_too_late_follows_a_202(rule: bool) -> None:
    endpoint = slowly(6)
    route = Route("/slow", endpoint, methods=["POST"])
    if rule:
        app = app_of(route, routes={"POST /slow": Policy(wait=5)})
    else:
        app = app_of(slow_route(endpoint, wait=5))
    async with running(app) as client:
        before = anyio.current_time()
        response = await client.post("/slow")
        assert response.status_code == 202
        assert 5 <= anyio.current_time() - before < 5.5
        assert (await follow(client, response)).json() == {"after": 6}


async def test_a_crash_in_time_is_a_synchronous_500() -> None:
    async def answer(request: Request) -> None:
        raise ValueError("a secret")

    async with running(app_of(slow_route(answer, wait=5))) as client:
        assert (await client.post("/slow")).status_code == 500


@pytest.mark.parametrize(
    ("respond", "prefer", "seconds", "status"),
    [
        ("always", None, 1, 202),
        ("always", "respond-async", 1, 202),
        ("always", "wait=5", 1, 200),
        ("always", "wait=5", 6, 202),
        ("always", "respond-async, wait=5", 1, 200),
        ("always", "Respond-Async; x=1, WAIT=5", 6, 202),
        ("always", "wait", 29, 200),
        ("always", "wait=3600", 31, 202),
        ("always", "wait=-1, respond-async", 1, 202),
        ("always", ";;;,,,=\x00", 1, 202),
        ("preferred", None, 100, 200),
        ("preferred", "wait=5", 100, 200),
        ("preferred", "respond-async", 1, 202),
        ("preferred", "respond-async, wait=5", 1, 200),
        ("preferred", "respond-async, wait=5", 6, 202),
    ],
)
@pytest.mark.parametrize("rule", [False, True])
async def test_prefer(
    rule: bool, respond: Any, prefer: str | None, seconds: int, status: int
) -> None:
    policy: dict[str, Any] = {"respond": respond}
    endpoint = slowly(seconds)
    if rule:
        route = Route("/slow", endpoint, methods=["POST"])
        app = app_of(route, routes={"POST /slow": Policy(**policy)})
    else:
        app = app_of(slow_route(endpoint, **policy))
    headers = [] if prefer is None else [(b"prefer", prefer.encode())]
    async with lifespan(app), client_of(app) as client:
        response = await client.post("/slow", headers=headers)
        assert response.status_code == status
        assert response.headers["vary"] == "Prefer"
        asked = prefer is not None and "respond-async" in prefer.lower() and status == 202
        assert response.headers.get("preference-applied") == ("respond-async" if asked else None)


async def test_prefer_comes_on_several_lines() -> None:
    async with running(app_of(slow_route(slowly(1), respond="preferred"))) as client:
        headers = [
            ("prefer", "handling=lenient"),
            ("prefer", "wait=5"),
            ("prefer", "respond-async"),
        ]
        assert (await client.post("/slow", headers=headers)).status_code == 200
        headers = [("prefer", "respond-async"), ("prefer", "wait=0, wait=5")]
        assert (await client.post("/slow", headers=headers)).status_code == 202


class FailsAt:
    """A store fails at its n-th call of one kind; each piece of a body is a call, and its end."""

    def __init__(self, name: str, n: int = 1) -> None:
        self._name = name
        self._left = n

    @property
    def has_failed(self) -> bool:
        return self._left <= 0

    async def __call__(self, call: str, /, *arguments: Any, **more: Any) -> None:
        forgets = call == "replace" and arguments[0].gone
        if self._name == ("forget" if forgets else call):
            self._left -= 1
            if not self._left:
                raise StoreError("connection reset")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["changed", "read_body"])
async def test_law_1_a_store_that_fails_while_one_waits_costs_the_early_answer_not_the_202(
    name: str, shared: bool
) -> None:
    trick = FailsAt(name)
    store = TrickyStore(trick, shared=shared)
    async with running(app_of(slow_route(echo, wait=5), jobs=virtual_jobs(store=store))) as client:
        accepted = await client.post("/slow", content=b"x")
        assert trick.has_failed
        assert accepted.status_code == 202
        response = await follow(client, accepted)
        assert response.json() == {"body": "x", "path": "/slow"}


async def test_a_body_that_breaks_off_while_one_waits_breaks_the_connection_off() -> None:
    trick = FailsAt("read_body", 2)
    store = TrickyStore(trick)
    app = app_of(slow_route(echo, wait=5), jobs=virtual_jobs(store=store))
    async with lifespan(app):
        request = RawRequest()
        request.feed(b"x")
        with pytest.raises(StoreError):  # what makes a server close the connection
            await request.run(app)
        assert trick.has_failed
        assert request.status == 200
        assert all(message.get("more_body", True) for message in request.sent)


async def test_a_job_that_cannot_be_forgotten_right_after_its_response_is_forgotten_later() -> None:
    trick = FailsAt("forget")
    store = TrickyStore(trick)
    app = app_of(slow_route(echo, wait=5, ttl=60), jobs=virtual_jobs(store=store))
    async with running(app) as client:
        assert (await client.post("/slow", content=b"x")).status_code == 200
        assert trick.has_failed
        await anyio.sleep(2 * 3600)
        assert len(store) == 0


async def test_what_the_author_waits_is_no_more_than_a_client_may_ask_for() -> None:
    with pytest.raises(ConfigurationError, match="wait is at most max_wait"):
        Policy(wait=60, max_wait=30)


async def test_an_unmarked_route_is_passed_through_untouched() -> None:
    seen: list[Scope] = []

    async def plain(request: Request) -> Response:
        seen.append(request.scope)
        return PlainTextResponse("plain")

    app = app_of(Route("/plain", plain), slow_route(echo))
    async with lifespan(app):
        request = RawRequest("/plain", "GET")
        request.feed()
        await request.run(app)
        assert request.status == 200
        assert seen == [request.scope]
        assert seen[0] is request.scope


async def test_an_app_whose_routes_cannot_be_read_works_all_the_same() -> None:
    inner = Starlette(routes=[slow_route(echo), Route("/plain", echo_endpoint, methods=["POST"])])

    async def opaque(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, receive, send)

    async with running(LongRunningMiddleware(opaque, jobs=virtual_jobs())) as client:
        response = await client.post("/plain", content=b"in")
        assert (response.status_code, response.json()["body"]) == (200, "in")
        assert "vary" not in response.headers
        accepted = await client.post("/slow", content=b"in")
        assert accepted.status_code == 202
        assert (await follow(client, accepted)).json()["body"] == "in"


def opaque_app(*routes: BaseRoute, jobs: Jobs, limit: int) -> LongRunningMiddleware:
    """An app that cannot be read, and that reads the body before any endpoint is entered."""
    inner = Starlette(routes=list(routes))

    async def opaque(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        more = scope["type"] == "http"
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        waiting = [{"type": "http.request", "body": body, "more_body": False}]
        await inner(scope, _chain(waiting, receive), send)

    return LongRunningMiddleware(opaque, policy=Policy(max_request_size=limit), jobs=jobs)


async def test_what_was_read_before_the_entry_is_kept_up_to_the_middlewares_own_bound() -> None:
    """Beyond it a request runs where it is, but cannot wait, or be told from another by its key."""
    jobs = virtual_jobs(limits=Limits(max_running=1))
    gate = Gate()

    async def held(request: Request) -> dict[str, int]:
        await gate.wait()
        return {"size": len(await request.body())}

    slow = slow_route(held, max_request_size=1000, idempotency="optional")
    plain = Route("/plain", echo_endpoint, methods=["POST"])
    app = opaque_app(slow, plain, jobs=jobs, limit=10)
    async with running(app) as client:
        assert (await client.post("/plain", content=b"x" * 500)).json()["body"] == "x" * 500
        keyed = await client.post("/slow", content=b"x" * 11, headers={"idempotency-key": "a"})
        assert (keyed.status_code, keyed.json()["title"]) == (413, "The request body is too large")
        accepted = await client.post("/slow", content=b"x" * 11)
        assert accepted.status_code == 202
        await settled()
        refused = await client.post("/slow", content=b"x" * 11)
        assert (refused.status_code, "cannot wait" in refused.text) == (503, True)
        assert (await client.post("/slow", content=b"x" * 10)).status_code == 202
        assert (await client.post("/slow", content=b"x" * 1001)).status_code == 413
        gate.open()
        assert (await follow(client, accepted)).json() == {"size": 11}


@pytest.mark.real
async def test_a_large_body_that_was_read_before_the_entry_waits_whole() -> None:
    """More than is kept in memory of it goes through a temporary file."""
    jobs = Jobs(limits=Limits(max_running=1))
    gate = Gate()

    async def held(request: Request) -> Response:
        await gate.wait()
        return Response(hashlib.sha256(await request.body()).hexdigest())

    app = opaque_app(slow_route(held), jobs=jobs, limit=16 * MIB)
    large = random.Random(7).randbytes(5 * MIB + 7)
    async with running(app) as client:
        accepted = [await client.post("/slow", content=in_pieces(large)) for _ in range(2)]
        assert [response.status_code for response in accepted] == [202, 202]
        gate.open()
        for response in accepted:
            done = await follow(client, response)
            assert done.text == hashlib.sha256(large).hexdigest()


@pytest.mark.real
@pytest.mark.parametrize("room", [1, 2])
async def test_an_app_may_read_the_body_beside_the_endpoint_that_is_entered(room: int) -> None:
    """Quart does: the entry comes while parts of the body are on their way to a file."""
    jobs = Jobs(limits=Limits(max_running=room))
    inner = Starlette(routes=[slow_route(digest)])

    async def beside(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        parts: list[Message] = []
        come = anyio.Event()

        async def read() -> None:
            while True:
                parts.append(await receive())
                come.set()
                if not parts[-1].get("more_body"):
                    return

        async def read_parts() -> Message:
            nonlocal come
            while not parts:
                come = anyio.Event()
                await come.wait()
            return parts.pop(0)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await come.wait()
            await inner(scope, read_parts, send)

    async def ends_at_once() -> AsyncIterator[bytes]:
        yield large[:5]
        await settled()  # the app waits for more, and so does the entry
        yield large[5:]

    app = LongRunningMiddleware(beside, jobs=jobs)
    large = random.Random(7).randbytes(6 * MIB)
    threads = anyio.to_thread.current_default_thread_limiter()
    borrowers = [object() for _ in range(int(threads.total_tokens))]
    async with running(app) as client:
        for borrower in borrowers:  # so that the write begins when the entry has passed
            await threads.acquire_on_behalf_of(borrower)
        accepted = [await client.post("/slow", content=ends_at_once()) for _ in range(room)]
        for borrower in borrowers:
            threads.release_on_behalf_of(borrower)
        accepted += [await client.post("/slow", content=ends_at_once()) for _ in range(room)]
        for response in accepted:
            done = await follow(client, response)
            assert done.text == hashlib.sha256(large).hexdigest()


async def digest(request: Request) -> Response:
    return Response(hashlib.sha256(await request.body()).hexdigest())


async def in_pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 65536):
        yield body[start : start + 65536]


@pytest.mark.real
async def test_uploads_that_never_come_to_an_entry_are_not_kept_in_memory() -> None:
    gates, all_there = Gate(), anyio.Event()
    taken: list[int] = []

    async def streams(scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            size, more = size + len(message["body"]), message["more_body"]
        taken.append(size)
        if len(taken) == 8:
            all_there.set()
        await gates.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def upload(app: LongRunningMiddleware) -> None:
        left = [12 * MIB]

        async def receive() -> Message:
            left[0] -= 65536
            return {"type": "http.request", "body": bytes(65536), "more_body": left[0] > 0}

        request = RawRequest("/upload")
        await request.run_with(receive, app)
        assert request.status == 200

    app = LongRunningMiddleware(streams)
    async with lifespan(app):
        tracemalloc.start()
        try:
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(upload, app)
                await all_there.wait()
                assert tracemalloc.get_traced_memory()[0] < 8 * 2 * MIB
                gates.open()
        finally:
            tracemalloc.stop()
    assert taken == [12 * MIB] * 8


async def test_a_full_queue_refuses_before_the_rest_of_the_body_is_read() -> None:
    jobs = virtual_jobs(limits=Limits(max_running=1, max_queued=0))
    app = app_of(gated(gate := Gate()), jobs=jobs)
    async with running(app) as client:
        await client.post("/slow")
        await settled()
        request = RawRequest()
        request.feed(b"x", more=True)  # and no more comes
        with anyio.fail_after(60):
            await request.run(app)
        assert request.status == 503
        gate.open()


async def test_a_quota_refuses_before_the_rest_of_the_body_is_read() -> None:
    settings: Any = {"max_running_per_owner": 1, "max_queued_per_owner": 0}
    app = app_of(gated(gate := Gate(), **settings), owner=lambda connection: "ann")
    async with running(app) as client:
        await client.post("/slow")
        await settled()
        request = RawRequest()
        request.feed(b"x", more=True)
        with anyio.fail_after(60):
            await request.run(app)
        assert request.status == 429
        gate.open()


@pytest.mark.parametrize("reason", ["size", "capacity"])
async def test_a_path_rule_refuses_before_anything_is_read(reason: str) -> None:
    """So that a client that waits for `100 Continue` never sends its body (RFC 9110 §10.1.1)."""
    jobs = virtual_jobs(limits=Limits(max_running=1, max_queued=0))
    gate = Gate()

    async def held(request: Request) -> Response:
        await gate.wait()
        return Response()

    inner = Starlette(routes=[Route("/slow", held, methods=["POST"])])
    rule = {"POST /slow": Policy(max_request_size=10)}
    app = LongRunningMiddleware(inner, routes=rule, jobs=jobs)
    async with running(app) as client:
        if reason == "capacity":
            await client.post("/slow")
            await settled()
        request = RawRequest(content_length="11" if reason == "size" else "5")

        async def receive() -> Message:
            raise AssertionError("the body was asked for")

        await request.run_with(receive, app)
        assert request.status == (413 if reason == "size" else 503)
        gate.open()


async def test_a_known_key_comes_before_a_full_queue() -> None:
    jobs = virtual_jobs(limits=Limits(max_running=1, max_queued=0))
    app = app_of(gated(gate := Gate()), jobs=jobs)
    async with running(app) as client:
        key = {"idempotency-key": "order-7"}
        first = await client.post("/slow", content=b"x", headers=key)
        again = await client.post("/slow", content=b"x", headers=key)
        assert again.status_code == 202
        assert again.headers["location"] == first.headers["location"]
        assert (await client.post("/slow", content=b"x")).status_code == 503
        gate.open()


def _chain(waiting: list[Any], receive: Receive) -> Receive:
    async def chained() -> Any:
        return waiting.pop(0) if waiting else await receive()

    return chained


async def test_an_exception_before_the_entry_is_the_servers_as_ever() -> None:
    def broken(endpoint: Any) -> Any:
        @functools.wraps(endpoint)
        async def breaking(request: Request) -> Response:
            raise ValueError("before")

        return breaking

    app = app_of(Route("/slow", broken(slow_route(echo).endpoint), methods=["POST"]))
    async with lifespan(app):
        request = RawRequest()
        request.feed()
        with pytest.raises(ValueError, match="before"):
            await request.run(app)
        assert request.status == 500  # the app's own


async def test_what_routing_found_is_shown_to_outer_middleware() -> None:
    def broken(endpoint: Any) -> Any:
        @functools.wraps(endpoint)
        async def answering(request: Request) -> Response:
            return PlainTextResponse("no", status_code=400)

        return answering

    route = Route("/slow/{id}", broken(slow_route(echo).endpoint), methods=["POST"])
    app = app_of(route)
    async with lifespan(app):
        request = RawRequest("/slow/7")
        request.feed()
        await request.run(app)
        assert request.scope["path_params"] == {"id": "7"}
        assert request.scope["endpoint"] is route.endpoint


async def test_an_entry_after_the_response_began_is_synchronous(
    caplog: pytest.LogCaptureFixture,
) -> None:
    endpoint = slow_route(echo).endpoint

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            response = await endpoint(Request(scope, receive))
            await send({"type": "http.response.body", "body": response.body})

    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        assert (await client.post("/x", content=b"in")).json()["body"] == "in"
    assert "after its response began" in caplog.text


async def test_extensions_that_bypass_send_are_not_offered() -> None:
    async def answer(request: Request) -> dict[str, Any]:
        return {"extensions": sorted(request.scope["extensions"])}

    app = app_of(slow_route(answer))
    async with lifespan(app), client_of(app) as client:
        request = RawRequest()
        request.scope["extensions"] = {"http.response.pathsend": {}, "tls": {}}
        request.feed()
        await request.run(app)
        assert request.scope["extensions"] == {"http.response.pathsend": {}, "tls": {}}
        url = dict(request.sent[0]["headers"])[b"location"].decode()
        assert (await client.get(url)).json() == {"extensions": ["tls"]}


async def test_two_middlewares_in_one_process_do_not_meet() -> None:
    inner = app_of(slow_route(echo), path="/inner-jobs")
    outer = app_of(Mount("/in", inner), slow_route(echo, "/out"))
    async with running(outer) as client:
        for path, jobs in (("/in/slow", "/in/inner-jobs/"), ("/out", "/jobs/")):
            accepted = await client.post(path)
            assert accepted.headers["location"].startswith(jobs)
            assert (await follow(client, accepted)).json()["path"] == path


async def test_context_variables_of_the_request_reach_the_handler() -> None:
    from contextvars import ContextVar

    trace: ContextVar[str] = ContextVar("trace")

    async def answer(request: Request) -> dict[str, str]:
        return {"trace": trace.get()}

    inner = app_of(slow_route(answer))

    async def tracing(scope: Scope, receive: Receive, send: Send) -> None:
        trace.set("t-1")
        await inner(scope, receive, send)

    async with running(tracing) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json() == {"trace": "t-1"}


@pytest.mark.parametrize("outside", [False, True])
async def test_compression_works_inside_and_outside(outside: bool) -> None:
    async def answer(request: Request) -> Response:
        return PlainTextResponse("x" * 10_000)

    if outside:
        app: Any = GZipMiddleware(app_of(slow_route(answer)))
    else:
        inner = Starlette(routes=[slow_route(answer)], middleware=[Middleware(GZipMiddleware)])
        app = LongRunningMiddleware(inner, jobs=virtual_jobs())
    async with running(app) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.headers["content-encoding"] == "gzip"
        assert response.text == "x" * 10_000


async def test_without_a_lifespan_jobs_run_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = app_of(slow_route(echo))
    async with client_of(app) as client:
        for _ in range(3):
            response = await follow(client, await client.post("/slow"))
            assert response.status_code == 200
    assert [r.levelno for r in caplog.records if "no lifespan" in r.message] == [logging.WARNING]


async def test_httpx_sees_no_difference(anyio_backend_name: str) -> None:
    """The store's body comes in as many messages as the handler sent; a client sees one body."""
    async with running(app_of(slow_route(echo))) as client:
        response = await follow(client, await client.post("/slow", content=b"x"))
        assert isinstance(response, httpx.Response)
        assert response.json()["body"] == "x"


@pytest.mark.parametrize("limits", [Limits(max_running=1, max_queued=0)])
async def test_a_refusal_says_vary_too(limits: Limits) -> None:
    app = app_of(gated(gate := Gate()), jobs=virtual_jobs(limits=limits))
    async with running(app) as client:
        await client.post("/slow")
        refused = await client.post("/slow")
        assert (refused.status_code, refused.headers["vary"]) == (503, "Prefer")
        gate.open()
