"""Context variables and scope: a job's are those of its own request, there and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import Context, ContextVar
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raincheck import (
    Limits,
    LongRunningMiddleware,
    MemoryStore,
    Policy,
    current_job,
    long_running,
)
from raincheck.tasks import open_tasks
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.processes import LEASE, Broker, Engine
from tests.doubles.stores import Line, TrickyStore
from tests.support import Gate, app_of, client_of, running, settled, slow_route, unfinished

pytestmark = pytest.mark.anyio

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
seen_by: ContextVar[str] = ContextVar("seen_by", default="nobody")


def tenants(app: ASGIApp) -> ASGIApp:
    """Middleware outside that binds a context variable, as those for request ids do."""

    async def bound(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            tenant.set(dict(scope["headers"]).get(b"x-tenant", b"nobody").decode())
        await app(scope, receive, send)

    return bound


def of(name: str) -> dict[str, str]:
    return {"x-tenant": name}


async def whose(request: Request) -> dict[str, str]:
    await anyio.sleep(1)
    return {"tenant": tenant.get()}


async def whose_of(client: httpx.AsyncClient, accepted: httpx.Response) -> str:
    response = await follow(client, accepted)
    assert response.status_code == 200, response.text
    name: str = response.json()["tenant"]
    return name


# --- whose context variables -------------------------------------------------------------------


async def plainly(request: Request) -> Response:
    return JSONResponse(await whose(request))


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("ruled", [False, True])
async def test_what_waited_runs_in_the_context_of_its_own_request(ruled: bool, hold: bool) -> None:
    policy = Policy(max_running=1, hold=hold)
    if ruled:
        app = app_of(Route("/slow", plainly, methods=["POST"]), routes={"POST /slow": policy})
    else:
        app = app_of(slow_route(whose, max_running=1, hold=hold))
    async with running(tenants(app)) as client:
        names = ["ann", "bob", "cleo"]
        accepted = [await client.post("/slow", headers=of(name)) for name in names]
        assert [there.json()["status"] for there in accepted] == ["running", "queued", "queued"]
        assert [await whose_of(client, there) for there in accepted] == names


async def test_so_it_does_when_another_client_frees_the_place() -> None:
    app = app_of(slow_route(whose, max_running=1))
    async with running(tenants(app)) as client:
        first = await client.post("/slow", headers=of("ann"))
        waits = await client.post("/slow", headers=of("bob"))
        await client.post(first.json()["links"]["cancel"], headers=of("eve"))
        assert await whose_of(client, waits) == "bob"


async def test_what_another_process_left_runs_in_an_empty_context() -> None:
    store = MemoryStore()
    lines = [Line(store), Line(store)]
    apps = [
        tenants(
            app_of(
                slow_route(whose, on_interrupt="rerun", max_running=1),
                jobs=virtual_jobs(store=line, limits=Limits(lease=LEASE, store_timeout=2)),
            )
        )
        for line in lines
    ]
    async with running(apps[0]) as dies, running(apps[1]) as client:
        left = await dies.post("/slow", headers=of("ann"))
        lines[0].cut()
        await client.post("/slow", headers=of("bob"))
        assert await whose_of(client, left) == "nobody"
        lines[0].mend()


async def test_what_an_engine_brings_runs_in_a_context_of_its_own() -> None:
    """Its one task runs every job, and may be that of a request."""

    async def sees(request: Request) -> dict[str, str]:
        before = tenant.get()
        tenant.set("of an earlier job")
        return {"tenant": before}

    broker, store = Broker(), MemoryStore()

    def process(slots: int) -> ASGIApp:
        jobs = virtual_jobs(store=Line(store), runner=Engine(broker, slots))
        return tenants(app_of(slow_route(sees), jobs=jobs))

    async with running(process(0)) as client:
        accepted = [await client.post("/slow", headers=of("ann")) for _ in range(3)]
        worker = process(1)
        async with client_of(worker) as first:  # no lifespan: a request opens it, in its context
            await first.post("/slow", headers=of("eve"))
            assert [await whose_of(client, there) for there in accepted] == ["nobody"] * 3


async def test_what_raincheck_does_for_itself_runs_in_an_empty_context() -> None:
    """Also where a request opens it, since no lifespan did."""

    async def answer(request: Request) -> None:
        await anyio.sleep_forever()

    asked: dict[str, set[str]] = {}

    async def ask(call: str, /, *arguments: Any, **more: Any) -> None:
        """Note in whose context it is asked for what no request asks for."""
        if call in ("sweep", "renew", "abandoned"):
            asked.setdefault(call, set()).add(tenant.get())
        elif call == "replace" and arguments[0].finished:
            asked.setdefault("the outcome", set()).add(tenant.get())

    store = TrickyStore(ask, shared=True)
    app = tenants(app_of(slow_route(answer, timeout=5), jobs=virtual_jobs(store=store)))
    async with client_of(app) as client:
        accepted = await client.post("/slow", headers=of("ann"))
        tenant.set("nobody")  # the client's task is that of its requests, and polls
        assert (await follow(client, accepted)).status_code == 504
        await anyio.sleep(60)
    assert asked.keys() == {"sweep", "renew", "abandoned", "the outcome"}
    assert set().union(*asked.values()) == {"nobody"}


# --- what else a replay is given ---------------------------------------------------------------


@asynccontextmanager
async def two_passes(
    inner: Callable[[ASGIApp], ASGIApp], outside: Scope, **settings: Any
) -> AsyncIterator[httpx.Response]:
    """The response of a job that had to wait, with middleware inside, and a scope from outside."""
    gate = Gate()

    async def answer(request: Request) -> Any:
        await gate.wait()
        return {}

    app = Starlette(routes=[slow_route(answer, max_running=1, **settings)])
    wrapped = LongRunningMiddleware(inner(app), jobs=virtual_jobs())

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, **{key: dict(value) for key, value in outside.items()}}
        await wrapped(scope, receive, send)

    async with running(outer) as client:
        await client.post("/slow")
        waits = await client.post("/slow")
        gate.open()
        yield await follow(client, waits)


async def test_state_is_in_a_replay_what_it_was_before_the_first_pass() -> None:
    found: list[Any] = []

    def counting(app: ASGIApp) -> ASGIApp:
        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/slow":
                found.append((dict(scope["state"]), dict(scope["session"])))
                scope["state"]["closed"] = True
            await app(scope, receive, send)

        return counted

    outside = {"state": {"given": 1}, "session": {"user": "ann"}}
    async with two_passes(counting, outside) as response:
        assert response.status_code == 200
    assert found == [({"given": 1}, {"user": "ann"})] * 3


async def test_what_the_first_pass_writes_into_state_is_seen_outside() -> None:
    state: dict[str, Any] = {}

    async def answer(request: Request) -> dict[str, Any]:
        return {}

    def named(request: Request) -> None:
        request.state.user = "ann"

    @long_running
    async def marked(request: Request) -> Response:
        return Response()

    async def endpoint(request: Request) -> Response:
        named(request)
        return await marked(request)

    endpoint.__raincheck_mark__ = marked.__raincheck_mark__  # type: ignore[attr-defined]
    app = app_of(Route("/slow", endpoint, methods=["POST"]))

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, "state": state}, receive, send)

    async with running(app), client_of(outer) as client:
        assert (await client.post("/slow")).status_code == 202
        assert state == {"user": "ann"}


REPLAY = "raincheck.replay"


async def test_a_replay_is_known_by_its_scope() -> None:
    passes: list[Any] = []

    def noting(app: ASGIApp) -> ASGIApp:
        async def noted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] == "/slow":
                passes.append(scope.get(REPLAY))
            await app(scope, receive, send)

        return noted

    async with two_passes(noting, {}) as response:
        assert response.status_code == 200
    assert passes == [None, None, True]


async def test_one_that_is_held_has_one_pass() -> None:
    passes: list[Any] = []

    async def answer(request: Request) -> Any:
        passes.append(request.scope.get(REPLAY))
        return {}

    async with running(app_of(slow_route(answer, max_running=1, hold=True))) as client:
        both = [await client.post("/slow") for _ in range(2)]
        for accepted in both:
            await follow(client, accepted)
    assert passes == [None, None]


async def test_under_a_path_rule_the_first_pass_comes_after_the_queue() -> None:
    """What counts requests inside must not take it for one that was counted."""
    passes: list[Any] = []

    async def endpoint(request: Request) -> Response:
        passes.append(request.scope.get(REPLAY))
        await anyio.sleep(4 * LEASE)
        return Response()

    rules = {"/slow": Policy(max_running=1, on_interrupt="rerun")}
    store = MemoryStore()
    lines = [Line(store), Line(store)]
    apps = [
        app_of(
            Route("/slow", endpoint, methods=["POST"]),
            routes=rules,
            jobs=virtual_jobs(store=line, limits=Limits(lease=LEASE, store_timeout=2)),
        )
        for line in lines
    ]
    async with running(apps[0]) as dies, running(apps[1]) as client:
        await dies.post("/slow")
        waits = await dies.post("/slow")
        await anyio.sleep(5 * LEASE)
        assert passes == [None, None]
        lines[0].cut()
        assert (await follow(client, waits)).status_code == 200
        assert passes == [None, None, True]
        lines[0].mend()


# --- the way back ------------------------------------------------------------------------------


async def binds(request: Request) -> None:
    seen_by.set(f"whoever asked for {request.url.path}")


def binding(*routes: BaseRoute) -> ASGIApp:
    """An app that binds a context variable on its way to an endpoint."""
    inner = Starlette(routes=list(routes))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen_by.set("the app")
        await inner(scope, receive, send)

    app.routes = inner.routes  # type: ignore[attr-defined] # so that it can be read
    return app


class Outside:
    """What stands outside, and looks at what is there when the app is done with a request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.seen: list[Any] = []
        self.look: Callable[[Scope], Any] = lambda scope: seen_by.get()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        finally:
            if scope["type"] == "http" and not scope["path"].startswith("/jobs"):
                self.seen.append(self.look(scope))


async def refuses(request: Request) -> Response:
    raise HTTPException(422)


async def breaks(request: Request) -> Response:
    raise LookupError


@pytest.mark.parametrize(
    ("path", "status"),
    [("/slow", 202), ("/preferred", 200), ("/refused", 413), ("/missing", 404), ("/broken", 500)],
)
async def test_context_variables_that_the_app_sets_are_seen_outside(path: str, status: int) -> None:
    async def answer(request: Request) -> dict[str, str]:
        return {}

    routes = [
        slow_route(answer, methods=["POST"]),
        slow_route(answer, "/preferred", respond="preferred"),
        slow_route(answer, "/refused", max_request_size=1),
        Route("/broken", breaks, methods=["POST"]),
    ]
    # Not to be read, so that every request is a candidate.
    outside = Outside(LongRunningMiddleware(lambda *a: binding(*routes)(*a), jobs=virtual_jobs()))
    async with client_of(outside, raise_app_exceptions=False) as client:
        seen_by.set("nobody")
        assert (await client.post(path, content=b"xx")).status_code == status
        assert outside.seen == ["the app"]
        assert current_job() is None


async def test_those_of_a_request_that_waits_are_seen_too() -> None:
    app = binding(slow_route(whose, max_running=1))
    outside = Outside(LongRunningMiddleware(app, jobs=virtual_jobs()))
    async with running(outside) as client:
        for _ in range(2):
            seen_by.set("nobody")
            await client.post("/slow")
        assert outside.seen == ["the app"] * 2


async def test_what_the_handler_sets_is_its_own() -> None:
    """From the hand-over on nobody waits for it outside, and nothing there waits for it."""
    changed, answered = anyio.Event(), anyio.Event()

    async def answer(request: Request) -> dict[str, str]:
        seen_by.set("the handler")
        changed.set()
        await answered.wait()
        return {"seen": seen_by.get()}

    inner = LongRunningMiddleware(binding(slow_route(answer)), jobs=virtual_jobs())

    async def waiting(scope: Scope, receive: Receive, send: Send) -> None:
        await inner(scope, receive, send)
        if scope["type"] == "http" and scope["path"] == "/slow":
            await changed.wait()
            assert seen_by.get() == "the app"
            seen_by.set("what is outside")
            answered.set()

    async with running(waiting) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json() == {"seen": "the handler"}


@pytest.mark.parametrize("ruled", [False, True])
async def test_a_response_in_time_is_as_if_nothing_had_happened(ruled: bool) -> None:
    async def endpoint(request: Request) -> Response:
        await anyio.sleep(1)
        seen_by.set("the handler")
        return PlainTextResponse("done")

    marked = endpoint if ruled else long_running(wait=5)(endpoint)
    route = Route("/slow", marked, methods=["POST"])
    rules = {"POST /slow": Policy(wait=5)} if ruled else {}
    app = LongRunningMiddleware(binding(route), routes=rules, jobs=virtual_jobs())
    outside = Outside(app)
    outside.look = lambda scope: (seen_by.get(), scope.get("endpoint"))
    async with running(outside) as client:
        seen_by.set("nobody")
        assert (await client.post("/slow")).text == "done"
        assert outside.seen == [("the handler", marked)]
        assert current_job() is None


async def test_what_a_keyed_request_sets_is_seen_where_nothing_was_set_before() -> None:
    """As in a server whose requests begin in an empty context."""

    async def endpoint(request: Request) -> Response:
        seen_by.set("the handler")
        return PlainTextResponse("done")

    route = Route("/slow", endpoint, methods=["POST"])
    rules = {"POST /slow": Policy(respond="preferred")}
    outside = Outside(LongRunningMiddleware(binding(route), routes=rules, jobs=virtual_jobs()))

    async def emptied(scope: Scope, receive: Receive, send: Send) -> None:
        tasks = open_tasks()
        ended = tasks.gate()

        async def run() -> None:
            await outside(scope, receive, send)
            ended.open()

        tasks.spawn(run, Context())
        await ended.wait()

    async with running(outside), client_of(emptied) as client:
        response = await client.post("/slow", headers={"idempotency-key": '"a"'})
        assert response.text == "done"
        assert outside.seen == ["the handler"]


async def test_a_job_that_is_cancelled_while_its_client_waits_shows_nothing_outside() -> None:
    async def endpoint(request: Request) -> Response:
        seen_by.set("the handler")
        await anyio.sleep_forever()
        return PlainTextResponse("done")

    jobs = virtual_jobs()
    route = Route("/slow", long_running(wait=5)(endpoint), methods=["POST"])
    outside = Outside(LongRunningMiddleware(binding(route), jobs=jobs))
    outside.look = lambda scope: seen_by.get()
    async with running(outside) as client, anyio.create_task_group() as group:
        seen_by.set("nobody")

        async def cancel() -> None:
            await anyio.sleep(1)
            (job,) = await unfinished(jobs.store)
            await jobs.cancel(job.id)

        group.start_soon(cancel)
        assert (await client.post("/slow")).status_code == 202
        assert outside.seen == ["the app"]


async def test_what_routing_found_is_seen_outside() -> None:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("done")

    inside = slow_route(answer, "/slow/{number:int}")
    plain = slow_route(answer, "/plain/{number:int}", respond="preferred")
    app = Starlette(routes=[Mount("/v1", Router([inside, plain]))])
    outside = Outside(LongRunningMiddleware(app, jobs=virtual_jobs()))
    found = ("endpoint", "router", "path_params")
    outside.look = lambda scope: {key: scope.get(key) for key in found}
    async with running(outside) as client:
        for path in ("/v1/slow/7", "/v1/plain/7"):
            response = await client.post(path)
            assert response.headers.get("location", "/jobs/").startswith("/jobs/")
    for seen, route in zip(outside.seen, (inside, plain), strict=True):
        params = {"number": 7}
        assert seen == {"endpoint": route.endpoint, "router": app.router, "path_params": params}


async def test_it_is_seen_by_the_time_that_the_response_begins() -> None:
    """Where it is looked for by those who count in `send`."""
    begun: list[Any] = []

    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse("done")

    route = slow_route(answer, respond="preferred")
    app = app_of(route)

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                begun.append(scope.get("endpoint"))
            await send(message)

        await app(scope, receive, counting)

    async with running(app), client_of(outer) as client:
        assert (await client.post("/slow")).status_code == 200
        assert (await client.post("/slow", headers={"prefer": "respond-async"})).status_code == 202
        await settled()
    assert begun == [route.endpoint] * 2
