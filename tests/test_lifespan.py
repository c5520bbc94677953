"""Lifespan: the jobs open with it, drain with it, and do without it."""

from __future__ import annotations

import asyncio
import gc
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
import trio
from fastapi import FastAPI, WebSocket
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.types import Message, Receive, Scope, Send

from raincheck import (
    ConfigurationError,
    Jobs,
    Limits,
    LongRunningMiddleware,
    MemoryStore,
    Policy,
    Retry,
    State,
    long_running,
)
from raincheck.errors import StoreError
from raincheck.testing import follow, lifespan
from tests.conftest import virtual_jobs
from tests.support import Gate, app_of, client_of, gated, hidden, running, settled, slow_route

pytestmark = pytest.mark.anyio


async def test_jobs_are_drained_before_the_app_shuts_down() -> None:
    events = []

    @asynccontextmanager
    async def pool(app: Any) -> Any:
        events.append("opened")
        yield {"pool": "p"}
        events.append("closed")

    async def answer(request: Request) -> dict[str, str]:
        await anyio.sleep(5)
        events.append(f"used {request.state.pool}")
        return {}

    inner = Starlette(routes=[slow_route(answer, max_running=1)], lifespan=pool)
    app = LongRunningMiddleware(inner, jobs=virtual_jobs())
    async with lifespan(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = dict(state)  # as servers do for every request
            await app(scope, receive, send)

        async with client_of(with_state) as client:
            for _ in range(2):
                await client.post("/slow")
    assert events == ["opened", "used p", "used p", "closed"]


async def test_a_drain_ends_when_its_time_is_over() -> None:
    jobs = virtual_jobs(limits=Limits(drain_timeout=20))
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        await client.post("/slow")
        await settled()
        start = anyio.current_time()
    assert anyio.current_time() - start == pytest.approx(20, abs=0.5)
    assert gate.cleaned_up == 1


async def test_a_handler_that_ignores_shutdown_is_recorded_as_interrupted() -> None:
    jobs = virtual_jobs(limits=Limits(drain_timeout=1, cancel_grace=2))

    async def answer(request: Request) -> None:
        with anyio.CancelScope(shield=True):
            for _ in range(10):
                with suppress(anyio.get_cancelled_exc_class()):
                    await anyio.sleep(3)

    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        id = (await client.post("/slow")).json()["job_id"]
        await settled()
    job = await jobs.get(id)
    assert job is not None
    assert (job.state, job.error and job.error.status) == (State.FAILED, 503)


async def test_a_middleware_may_live_twice() -> None:
    app = app_of(gated(gate := Gate()))
    gate.open()
    for _ in range(2):
        async with running(app) as client:
            assert (await follow(client, await client.post("/slow"))).status_code == 200


async def test_inside_starlette_the_middleware_sees_the_lifespan() -> None:
    jobs = virtual_jobs()
    inner = Starlette(routes=[slow_route(_sleep(5))])
    inner.add_middleware(LongRunningMiddleware, jobs=jobs)
    async with running(inner) as client:
        id = (await client.post("/slow")).json()["job_id"]
    job = await jobs.get(id)
    assert job is not None
    assert job.state is State.SUCCEEDED


def _sleep(seconds: float) -> Any:
    async def answer(request: Request) -> dict[str, str]:
        await anyio.sleep(seconds)
        return {}

    return answer


async def no_lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "http"
    await anyio.sleep(5)
    await PlainTextResponse("done")(scope, receive, send)


async def returns_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await no_lifespan(scope, receive, send)


async def reads_then_raises(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        raise NotImplementedError
    await no_lifespan(scope, receive, send)


async def answers_http(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await PlainTextResponse("whatever")(scope, receive, send)
    await no_lifespan(scope, receive, send)


async def starts_and_returns(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
    else:
        await no_lifespan(scope, receive, send)


@pytest.mark.parametrize(
    "app", [no_lifespan, returns_at_once, reads_then_raises, answers_http, starts_and_returns]
)
async def test_an_app_without_a_lifespan_is_drained_all_the_same(app: Any) -> None:
    jobs = virtual_jobs()
    wrapped = LongRunningMiddleware(app, routes={"/slow": Policy()}, jobs=jobs)
    async with running(wrapped) as client:
        id = (await client.post("/slow")).json()["job_id"]
    job = await jobs.get(id)
    assert job is not None
    assert job.state is State.SUCCEEDED


async def test_an_app_that_fails_to_start_fails_to_start() -> None:
    @asynccontextmanager
    async def broken(app: Any) -> Any:
        raise ValueError("no database")
        yield

    app = LongRunningMiddleware(Starlette(lifespan=broken), jobs=virtual_jobs())
    with pytest.raises(ValueError, match="no database"):
        async with lifespan(app):
            raise AssertionError("it has started")


async def test_an_app_that_fails_to_shut_down_says_so() -> None:
    @asynccontextmanager
    async def broken(app: Any) -> Any:
        yield
        raise ValueError("not closed")

    app = LongRunningMiddleware(Starlette(lifespan=broken), jobs=virtual_jobs())
    with pytest.raises(ValueError, match="not closed"):
        async with lifespan(app):
            pass


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
async def test_an_app_may_fail_without_raising_anything(phase: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for asked in "startup", "shutdown":
            assert (await receive())["type"] == f"lifespan.{asked}"
            how = "failed" if asked == phase else "complete"
            await send({"type": f"lifespan.{asked}.{how}", "message": "no database"})

    with pytest.raises(RuntimeError, match=rf"lifespan\.{phase}\.failed: no database"):
        async with lifespan(app):
            pass


async def test_an_app_that_ends_without_an_answer_has_failed() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()

    with pytest.raises(RuntimeError, match="no answer"):
        async with lifespan(app):
            raise AssertionError("it has started")


async def test_an_app_that_goes_on_after_it_has_failed_is_not_waited_for_long() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        await anyio.sleep_forever()

    with anyio.fail_after(10), pytest.raises(RuntimeError, match="no database"):
        async with lifespan(app):
            raise AssertionError("it has started")


async def test_an_app_that_raises_when_it_has_shut_down_is_heard() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for phase in "startup", "shutdown":
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})
        await anyio.sleep(3)
        raise ValueError("not closed")

    with pytest.raises(ValueError, match="not closed"):
        async with lifespan(app):
            pass


async def test_a_lifespan_may_end_in_another_task_than_it_began() -> None:
    # As a fixture of pytest-asyncio does, and `enterAsyncContext` of unittest.
    async def answer(request: Request) -> Response:
        return Response("late")

    app = LongRunningMiddleware(Starlette(routes=[slow_route(answer)]), jobs=virtual_jobs())
    opened = lifespan(app)
    async with anyio.create_task_group() as group:
        group.start_soon(opened.__aenter__)
    async with client_of(app) as client:
        assert (await follow(client, await client.post("/slow"))).text == "late"

    async def close() -> None:
        await opened.__aexit__(None, None, None)

    async with anyio.create_task_group() as group:
        group.start_soon(close)


async def test_an_app_whose_lifespan_breaks_off_is_heard_at_the_end() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise ValueError("it broke")

    with pytest.raises(ValueError, match="it broke"):
        async with lifespan(app):
            await anyio.sleep(0.1)


@long_running
async def marked_socket(websocket: WebSocket) -> None:
    await websocket.close()


async def plain(request: Request) -> Response:
    return PlainTextResponse("plain")


def fastapi_with_socket() -> FastAPI:
    app = FastAPI()
    app.websocket("/ws")(marked_socket)
    return app


def fastapi_with_a_mark_above() -> FastAPI:
    app = FastAPI()

    @long_running
    @app.post("/slow")
    async def slow() -> None: ...

    return app


def made(path: str, **settings: Any) -> Any:
    @long_running(**settings)
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(path)

    return endpoint


def fastapi_with_a_middleware() -> FastAPI:
    app = FastAPI()
    app.add_middleware(LongRunningMiddleware)
    return app


MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "websocket": (Starlette(routes=[WebSocketRoute("/ws", marked_socket)]), {}, "take the deco"),
    "fastapi websocket": (fastapi_with_socket(), {}, "take the decorator away"),
    "collision": (Starlette(routes=[Route("/jobs/{id}", plain)]), {}, "another path"),
    "mounted there": (Starlette(routes=[Mount("/jobs", routes=[])]), {}, "another path"),
    "rule": (
        Starlette(routes=[Route("/videos", plain)]),
        {"routes": {"POST /videos": Policy()}},
        "none of the app's routes",
    ),
    "a factory's": (
        Starlette(routes=[Route(path, made(path)) for path in ("/a", "/b")]),
        {},
        r"made.<locals>.endpoint, by which .* @long_running\(name=...\)",
    ),
    "a name for two": (
        Starlette(routes=[Route(path, made(path, name="x")) for path in ("/a", "/b")]),
        {},
        "two endpoints are called x",
    ),
    "settings of both": (
        Starlette(routes=[Route("/a", made("/a", name="x", retry=Retry()))]),
        {"policy": Policy(on_interrupt="fail")},
        r"x: Policy\(on_interrupt='fail'\): .* leave one out",
    ),
    "mark above": (fastapi_with_a_mark_above(), {}, "put it below"),
    "around itself": (LongRunningMiddleware(Starlette()), {}, "take one of them away"),
    "around one added": (fastapi_with_a_middleware(), {}, "take one of them away"),
    "around others, one added": (
        LongRunningMiddleware(GZipMiddleware(fastapi_with_a_middleware()), path="/_jobs"),
        {},
        "take one of them away",
    ),
    "mounted at the root": (
        Starlette(routes=[Mount("", LongRunningMiddleware(Starlette()))]),
        {},
        "take one of them away",
    ),
    "below the other's": (LongRunningMiddleware(Starlette(), path="/jobs/x"), {}, "another path"),
}


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_is_an_error_at_start_up_that_names_the_cure(name: str) -> None:
    app, settings, cure = MISTAKES[name]
    wrapped = LongRunningMiddleware(app, jobs=virtual_jobs(), **settings)
    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        said.append(message)

    with pytest.raises(ConfigurationError, match=cure):
        await wrapped({"type": "lifespan", "state": {}}, receive, send)
    (failed,) = said
    assert failed["type"] == "lifespan.startup.failed"
    assert re.search(cure, failed["message"])
    assert "Traceback" not in failed["message"]


async def test_a_mistake_that_an_app_makes_inside_is_one_too() -> None:
    """As when a framework makes its middleware with the first scope that it is given."""
    inner = FastAPI()
    inner.add_middleware(LongRunningMiddleware, path="jobs")
    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        said.append(message)

    with pytest.raises(ConfigurationError, match="path='jobs'"):
        await LongRunningMiddleware(inner)({"type": "lifespan", "state": {}}, receive, send)
    (failed,) = said
    assert failed["type"] == "lifespan.startup.failed"
    assert "path='jobs'" in failed["message"]


@pytest.mark.parametrize("names", [("a", "b"), (None, "b"), ("a", None)])
async def test_what_a_factory_makes_has_a_name_for_each(names: tuple[str | None, ...]) -> None:
    paths = [("/a", names[0]), ("/b", names[1])]
    app = app_of(*(Route(path, made(path, name=name)) for path, name in paths))
    async with running(app) as client:
        for path, _ in paths:
            assert (await follow(client, await client.get(path))).text == path


async def test_one_endpoint_at_two_paths_is_one_route() -> None:
    endpoint = made("/x")
    async with running(app_of(Route("/a", endpoint), Route("/b", endpoint))) as client:
        for path in "/a", "/b":
            assert (await follow(client, await client.get(path))).text == "/x"


async def test_two_of_one_name_are_told_when_the_second_is_met_if_they_cannot_be_read() -> None:
    """The first goes on: none of its jobs can be taken for one of the other."""
    inner = Starlette(routes=[Route(path, made(path)) for path in ("/a", "/b")])

    app = LongRunningMiddleware(hidden(inner), jobs=virtual_jobs())
    async with running(app) as client:
        for _ in range(2):
            assert (await follow(client, await client.get("/a"))).text == "/a"
            with pytest.raises(ConfigurationError, match="two endpoints are called"):
                await client.get("/b")


async def test_two_of_one_app_with_different_paths_serve_it_both() -> None:
    async def answer(request: Request) -> Response:
        return PlainTextResponse("done")

    inner = app_of(slow_route(answer), Route("/videos", plain, methods=["POST"]))
    app = LongRunningMiddleware(
        inner, path="/_jobs", routes={"POST /videos": Policy()}, jobs=virtual_jobs()
    )
    async with running(app) as client:
        for path, place, body in (("/slow", "/jobs", "done"), ("/videos", "/_jobs", "plain")):
            accepted = await client.post(path)
            assert accepted.headers["location"].startswith(f"{place}/")
            assert (await follow(client, accepted)).text == body


async def test_an_app_and_one_that_it_mounts_may_have_a_middleware_each() -> None:
    async def answer(request: Request) -> Response:
        return PlainTextResponse(request.url.path)

    sub = app_of(slow_route(answer))
    app = app_of(slow_route(answer), Mount("/sub", sub))
    async with running(app) as client:
        for prefix in "", "/sub":
            accepted = await client.post(f"{prefix}/slow")
            assert accepted.headers["location"].startswith(f"{prefix}/jobs/")
            assert (await follow(client, accepted)).text == f"{prefix}/slow"


async def test_a_mistake_over_an_app_without_lifespan_is_one_too() -> None:
    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        said.append(message)

    router = Starlette(routes=[Route("/jobs/{id}", plain)]).router

    class Deaf:
        routes = router.routes

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            assert scope["type"] == "http"

    with pytest.raises(ConfigurationError):
        await LongRunningMiddleware(Deaf(), jobs=virtual_jobs())(
            {"type": "lifespan"}, receive, send
        )
    assert [message["type"] for message in said] == ["lifespan.startup.failed"]


async def test_without_a_lifespan_a_mistake_shows_at_the_first_request() -> None:
    app = app_of(Route("/jobs/{id}", plain), gated(Gate()))
    async with client_of(app) as client:
        with pytest.raises(ConfigurationError, match="another path"):
            await client.post("/slow")


class Opening(MemoryStore):
    """A store that says something when it is opened.

    Args:
        error: what it raises then; None: nothing.
        takes: seconds that it takes.

    Attributes:
        opened: how often it was opened.
        closed: how often it was closed.
    """

    shared = True

    def __init__(self, error: Exception | None, *, takes: float = 1.0) -> None:
        super().__init__()
        self.error = error
        self._takes = takes
        self.opened = 0
        self.closed = 0

    async def open(self) -> None:
        self.opened += 1
        await anyio.sleep(self._takes)
        if self.error is not None:
            raise self.error

    async def aclose(self) -> None:
        self.closed += 1


NEVER = ConfigurationError("there is no such folder: make it")


@pytest.mark.parametrize("inside", [False, True])
async def test_a_store_that_can_never_work_fails_the_start_up(inside: bool) -> None:
    store = Opening(NEVER)
    jobs = virtual_jobs(store=store)
    app: Any = Starlette(routes=[gated(Gate())])
    if inside:
        app.add_middleware(LongRunningMiddleware, jobs=jobs)
    else:
        app = LongRunningMiddleware(app, jobs=jobs)
    said: list[Message] = []

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        said.append(message)

    with pytest.raises(ConfigurationError, match="no such folder"):
        await app({"type": "lifespan", "state": {}}, receive, send)
    assert [message["type"] for message in said] == ["lifespan.startup.failed"]
    assert "make it" in said[0]["message"]
    assert (store.opened, store.closed) == (1, 1)


async def test_without_a_lifespan_it_is_said_to_every_request_until_it_is_mended() -> None:
    store = Opening(NEVER)
    app = app_of(slow_route(_sleep(0)), jobs=virtual_jobs(store=store))
    async with client_of(app) as client:
        for method, path in (("POST", "/slow"), ("GET", "/jobs/a"), ("POST", "/slow")):
            with pytest.raises(ConfigurationError, match="no such folder"):
                await client.request(method, path)
        assert (await client.get("/elsewhere")).status_code == 404  # the app's own
        store.error = None
        assert (await follow(client, await client.post("/slow"))).status_code == 200
        await app.jobs.close()


async def test_a_store_that_is_away_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    store = Opening(StoreError("nobody answers"))
    async with running(app_of(slow_route(_sleep(0)), jobs=virtual_jobs(store=store))) as client:
        (told,) = [each for each in caplog.records if "nobody answers" in each.getMessage()]
        assert told.exc_info is None
        assert (await follow(client, await client.post("/slow"))).status_code == 200
    assert (store.opened, store.closed) == (1, 1)


async def test_a_store_that_hangs_when_it_is_opened_holds_up_the_start_for_so_long() -> None:
    jobs = virtual_jobs(store=Opening(None, takes=100), limits=Limits(store_timeout=3))
    start = anyio.current_time()
    async with running(app_of(slow_route(_sleep(0)), jobs=jobs)) as client:
        assert anyio.current_time() - start == pytest.approx(3, abs=0.5)
        assert (await follow(client, await client.post("/slow"))).status_code == 200


async def test_requests_that_open_the_jobs_at_once_open_them_once() -> None:
    gate = Gate()
    app = app_of(gated(gate), jobs=virtual_jobs(store=Opening(None)))
    accepted: list[str] = []

    async with client_of(app) as client:

        async def post() -> None:
            accepted.append((await client.post("/slow")).headers["location"])

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(post)
        assert app.jobs.statistics().running == 3  # none was forgotten by a later opening
        gate.open()
        await app.jobs.close()
        for url in accepted:
            assert (await client.get(url)).status_code == 200
        await app.jobs.close()


async def test_websockets_pass_through() -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await LongRunningMiddleware(app, jobs=virtual_jobs())(
        {"type": "websocket", "path": "/jobs/x"}, _nothing, _ignore
    )
    assert seen == ["websocket"]


async def _nothing() -> Message:
    return {"type": "websocket.connect"}


async def _ignore(message: Message) -> None:
    pass


def test_jobs_whose_event_loop_has_ended_are_interrupted() -> None:
    """As in a test suite, where every test has a loop of its own and the app is global."""
    store = MemoryStore()
    app = app_of(slow_route(_forever), jobs=Jobs(store=store))

    async def submit() -> str:
        async with client_of(app) as client:
            return str((await client.post("/slow")).json()["job_id"])

    async def look(id: str) -> None:
        async with client_of(app) as client:
            response = await client.get(f"/jobs/{id}")
            assert response.status_code == 503
            assert response.json()["type"].endswith("interrupted")

    asyncio.run(look(asyncio.run(submit())))
    trio.run(look, trio.run(submit))
    asyncio.run(look(trio.run(submit)))


async def test_another_threads_event_loop_ends_no_jobs_that_run_here() -> None:
    """As when two servers in one process have the same app."""
    gate = Gate()
    app = app_of(gated(gate))

    async def look(url: str) -> None:
        with pytest.raises(ConfigurationError, match="on another event loop"):
            await client_of(app).get(url)
        with pytest.raises(ConfigurationError, match="on another event loop"):
            async with lifespan(app):
                raise AssertionError("it has started")

    async with running(app) as client:
        url = (await client.post("/slow")).headers["location"]
        with ThreadPoolExecutor() as threads:
            threads.submit(lambda: asyncio.run(look(url))).result()
            threads.submit(trio.run, look, url).result()
        gate.open()
        await settled()
        assert (await client.get(url)).status_code == 200


def test_an_event_loop_that_is_thrown_away_is_no_error_of_its_jobs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = app_of(slow_route(_forever))

    async def submit() -> str:
        async with client_of(app) as client:
            return str((await client.post("/slow")).json()["job_id"])

    async def look(id: str) -> None:
        async with client_of(app) as client:
            await client.post("/slow")  # opens the jobs here, and nobody holds the old tasks now
            gc.collect()
            response = await client.get(f"/jobs/{id}")
            assert response.json()["type"].endswith("interrupted")

    loop = asyncio.new_event_loop()
    id = loop.run_until_complete(submit())
    loop.close()
    asyncio.run(look(id))
    assert "GeneratorExit" not in caplog.text


async def _forever(request: Request) -> None:
    await anyio.sleep_forever()
