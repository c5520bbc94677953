"""What clients and handlers should not do: a clear answer, and nothing is lost."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from raincheck import (
    ConfigurationError,
    Jobs,
    LongRunningMiddleware,
    MemoryStore,
    Policy,
    long_running,
)
from raincheck.policy import PolicySettings
from raincheck.runners.base import Run, Runner, Stop
from raincheck.runners.local import LocalRunner
from raincheck.testing import follow, lifespan
from tests.conftest import virtual_jobs
from tests.doubles.stores import SharedMemory, TrickyStore, failing, taking
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
    unfinished,
)

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


@pytest.mark.parametrize("rule", [False, True])
async def test_a_client_that_leaves_during_its_upload_leaves_nothing_behind(rule: bool) -> None:
    store = MemoryStore()
    jobs = virtual_jobs(store=store)
    app: Any
    if rule:
        app = LongRunningMiddleware(opaque("ok"), routes={"/slow": Policy()}, jobs=jobs)
    else:
        app = app_of(gated(Gate()), jobs=jobs)
    async with lifespan(app):
        request = RawRequest(content_length="100")
        request.feed(b"x" * 50, more=True)
        request.leave()
        await request.run(app)
        await settled()
        assert request.sent == []
        assert len(store) == 0
        assert jobs.statistics().running == 0


async def test_a_body_that_never_ends_is_refused_when_it_is_too_large() -> None:
    store = MemoryStore()
    app = app_of(gated(Gate(), max_request_size=1000), jobs=virtual_jobs(store=store))
    async with lifespan(app):
        request = RawRequest()
        for _ in range(100):
            request.feed(b"x" * 100, more=True)
        await request.run(app)
        assert request.status == 413
        assert len(store) == 0


@pytest.mark.parametrize(
    ("length", "status"),
    [("1", 202), ("99", 202), ("-1", 202), ("x", 202), ("1000", 413), ("9" * 5000, 413)],
)
async def test_a_content_length_that_lies_does_no_harm(length: str, status: int) -> None:
    async def answer(request: Request) -> int:
        return len(await request.body())

    app = app_of(slow_route(answer, max_request_size=100))
    async with lifespan(app), client_of(app) as client:
        request = RawRequest(content_length=length)
        request.feed(b"x" * 10)
        await request.run(app)
        assert request.status == status
        if status == 202:
            url = dict(request.sent[0]["headers"])[b"location"].decode()
            await settled()
            assert (await client.get(url)).json() == 10


def opaque(kind: str) -> Any:
    """An app that misbehaves in this way."""
    start = {"type": "http.response.start", "status": 200, "headers": []}
    end = {"type": "http.response.body", "body": b"ok"}
    odd: dict[str, list[dict[str, Any]]] = {
        "ok": [start, end],
        "no response": [],
        "no end": [start, {**end, "more_body": True}],
        "no body": [start],
        "starts twice": [start, start, end],
        "body first": [end],
        "after the end": [start, end, end],
        "wrong type": [{"type": "websocket.send", "text": "x"}],
        "too short": [{**start, "headers": [(b"content-length", b"3")]}, end],
        "too long": [{**start, "headers": [(b"content-length", b"1")]}, end],
        "no number": [{**start, "headers": [(b"content-length", b"two")]}, end],
        "bad header": [{**start, "headers": [(b"x-a", b"1\r\nx-b: 2")]}, end],
        "bad name": [{**start, "headers": [(b"x a", b"1")]}, end],
        "blank": [{**start, "headers": [(b"x-a", b"1 ")]}, end],
        "text": [{**start, "headers": [("x-a", "1")]}, end],
        "two lengths": [
            {**start, "headers": [(b"content-length", b"2"), (b"content-length", b"3")]},
            end,
        ],
        "early": [{**start, "status": 103}, end],
        "beyond": [{**start, "status": 600}, end],
        "status text": [{**start, "status": "200"}, end],
        "no status": [{"type": "http.response.start"}, end],
        "bodiless": [{**start, "status": 204}, end],
        "unknown extension": [start, {"type": "http.response.debug", "info": {}}, end],
    }

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for message in odd[kind]:
                await send(message)

    return app


@pytest.mark.parametrize(
    ("kind", "status", "said"),
    [
        ("ok", 200, None),
        ("no response", 500, "sent no response"),
        ("no end", 500, "returned before its response was complete"),
        ("no body", 500, "returned before its response was complete"),
        ("starts twice", 500, "started its response twice"),
        ("body first", 500, "sent a body before the start"),
        ("after the end", 200, "after its response was complete"),
        ("wrong type", 500, "websocket.send"),
        ("too short", 500, "Content-Length says 3, the body has 2"),
        ("too long", 500, "Content-Length says 1, the body has 2"),
        ("no number", 500, "Content-Length is no number but 'two'"),
        ("bad header", 500, "'x-a' has a control character in its value"),
        ("bad name", 500, "'x a' has a name that is no token"),
        ("blank", 500, "'x-a' has a blank at an end of its value"),
        ("text", 500, "a header field is no pair of byte strings"),
        ("two lengths", 500, "Content-Length says 3, the body has 2"),
        ("early", 500, "its status is none of 200 to 599"),
        ("beyond", 500, "its status is none of 200 to 599"),
        ("status text", 500, "its status is none of 200 to 599"),
        ("no status", 500, "its status is none of 200 to 599"),
        ("bodiless", 500, "a 204 response has no body"),
        ("unknown extension", 200, None),
    ],
)
async def test_a_handler_that_breaks_the_protocol_fails_its_job_clearly(
    kind: str, status: int, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """After the end the job is terminal: there the log alone can tell."""
    app = LongRunningMiddleware(opaque(kind), routes={"/slow": Policy()}, jobs=virtual_jobs())
    async with running(app) as client:
        accepted = await client.post("/slow")
        response = await follow(client, accepted)
        assert response.status_code == status
        if said is not None:
            assert said in caplog.text
            assert accepted.json()["job_id"] in caplog.text
            if status == 500:
                assert response.json()["type"].endswith(":invalid-response")
                assert said in response.json()["detail"]
                assert response.json()["detail"].startswith("The handler")
        else:
            assert response.content == b"ok"


class Killed(BaseException):
    pass


KILLERS = [Killed, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]


@pytest.mark.parametrize("error", KILLERS)
@pytest.mark.parametrize("at_once", [False, True])
async def test_whatever_a_handler_raises_its_job_has_failed_and_its_place_is_free(
    error: type[BaseException], at_once: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def answer(request: Request) -> None:
        if not at_once:
            await anyio.sleep(1)
        raise error

    jobs = virtual_jobs()
    async with running(app_of(slow_route(answer, max_running=1), jobs=jobs)) as client:
        for accepted in [await client.post("/slow") for _ in range(3)]:
            response = await follow(client, accepted)
            assert response.status_code == 500
            assert response.json()["type"].endswith("crashed")
        await settled()
        assert (jobs.statistics().running, jobs.statistics().queued) == (0, 0)
    assert error.__name__ in caplog.text


@pytest.mark.real
@pytest.mark.parametrize("error", KILLERS)
async def test_whatever_a_handler_raises_in_its_thread_too(error: type[BaseException]) -> None:
    @long_running
    def slow(request: Request) -> None:
        raise error

    jobs = Jobs()
    async with running(app_of(Route("/slow", slow), jobs=jobs)) as client:
        response = await follow(client, await client.get("/slow"))
        assert response.json()["type"].endswith("crashed")
        await settled()
        assert jobs.statistics().running == 0


async def test_what_is_left_on_the_way_from_a_killed_handler_may_await() -> None:
    cleaned: list[str] = []

    async def session() -> Any:
        try:
            yield
        finally:
            await anyio.sleep(1)
            cleaned.append("up")

    app = FastAPI()

    @app.post("/slow")
    @long_running
    async def slow(there: None = Depends(session)) -> None:
        raise GeneratorExit

    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json()["type"].endswith("crashed")
    assert cleaned == ["up"]


async def test_without_a_job_it_is_the_servers() -> None:
    async def answer(request: Request) -> None:
        raise GeneratorExit

    async with running(app_of(slow_route(answer, respond="preferred"))) as client:
        with pytest.raises(GeneratorExit):
            await client.post("/slow")


async def test_a_store_that_cannot_take_a_job_is_503(caplog: pytest.LogCaptureFixture) -> None:
    jobs = virtual_jobs(store=TrickyStore(failing("create")))
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        response = await client.post("/slow")
        assert response.status_code == 503
        assert response.json()["type"].endswith("store-unavailable")
        assert "disk" not in response.text
        assert "retry-after" in response.headers
        assert (gate.entered, jobs.statistics().running) == (0, 0)
    assert "the disk is away" in caplog.text


async def test_a_request_cancelled_during_acceptance_leaves_no_place_taken() -> None:
    jobs = virtual_jobs(store=TrickyStore(taking(create=10)))
    app = app_of(gated(gate := Gate()), jobs=jobs)
    async with lifespan(app):
        request = RawRequest()
        request.feed()
        with anyio.move_on_after(5) as scope:
            await request.run(app)
        assert scope.cancelled_caught
        await anyio.sleep(10)
        assert (gate.entered, jobs.statistics().running) == (0, 0)
        assert await unfinished(jobs.store) == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"path": "jobs"}, "path='jobs'"),
        ({"path": "/"}, "path='/'"),
        ({"path": "/jobs/"}, "path='/jobs/'"),
        ({"path": "/{id}"}, "path="),
        ({"base_url": "api.example.org"}, "base_url="),
        ({"base_url": "ftp://x"}, "base_url="),
        ({"base_url": "https://x?y"}, "base_url="),
        ({"base_url": "https://x\n"}, r"base_url='https://x\n': "),
        ({"base_url": "https://x y"}, "base_url="),
        ({"base_url": "https://\u043f.example"}, "in ASCII"),
        ({"base_url": "https://x:y"}, "base_url="),
        ({"base_url": "https://[::1"}, "base_url="),
        ({"routes": {"videos": Policy()}}, "routes="),
        ({"routes": {"/videos": {}}}, "routes="),
        ({"routes": {"/videos/{id:nothing}": Policy()}}, "routes="),
        ({"routes": {"/jobs/mine": Policy()}}, "status routes"),
        ({"routes": {"/a": Policy(), "GET /a": Policy()}}, "can never match"),
        ({"jobs": Jobs(), "store": MemoryStore()}, "jobs="),
        ({"path": None}, "path=None"),
        ({"base_url": 5}, "base_url=5"),
        ({"base_url": b"https://x"}, "base_url=b'https://x'"),
        ({"store": "jobs.db"}, "store='jobs.db': it is no Store; give one, like SQLiteStore("),
        ({"store": MemoryStore}, "store=<class 'raincheck.stores.memory.MemoryStore'>: it is the "),
        ({"runner": "taskiq"}, "runner='taskiq': it is no Runner"),
        ({"limits": Policy()}, "it is no Limits; give one, like Limits(max_running=20)"),
        ({"policy": {}}, "policy={}: it is no Policy"),
        ({"policy": Policy}, "it is the class and no Policy; give an instance, like Policy("),
        ({"routes": ["POST /b"]}, "routes=['POST /b']: it is no Mapping"),
        ({"routes": "POST /b"}, "routes='POST /b': it is no Mapping"),
        ({"owner": "x-api-key"}, "owner='x-api-key': it is no function"),
        ({"dialect": "ogc"}, "dialect='ogc': it is no Dialect"),
        ({"jobs": MemoryStore()}, "it is no Jobs; give one, like Jobs()"),
        ({"app": None}, "app=None: it is no ASGI app"),
        ({"app": "myapp:app"}, "app='myapp:app': it is no ASGI app"),
    ],
)
def test_a_setting_that_cannot_work_is_an_error_at_construction(
    settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        LongRunningMiddleware(**{"app": opaque("ok"), **settings})
    assert named in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"store": "jobs.db"}, "store='jobs.db': it is no Store"),
        ({"runner": LocalRunner}, "it is the class and no Runner"),
        ({"limits": 20}, "limits=20: it is no Limits"),
        ({"clock": 5}, "clock=5: it is no function, like time.time"),
    ],
)
def test_jobs_are_told_of_the_same_mistakes(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        Jobs(**settings)


def test_jobs_serve_one_middleware() -> None:
    jobs = Jobs()
    LongRunningMiddleware(opaque("ok"), jobs=jobs)
    with pytest.raises(ConfigurationError, match="another"):
        LongRunningMiddleware(opaque("ok"), jobs=jobs)


class Elsewhere(Runner):
    """Runs jobs in other processes, in one queue."""

    in_place = False

    def bind(self, run: Run, stop: Stop, spawn: Callable[[Run, str], None]) -> None:
        """Nothing runs here."""

    def check(self, queue: str) -> None:
        if queue != "videos":
            raise ConfigurationError(f"queue={queue!r}: there is only 'videos'")

    async def submit(self, id: str, queue: str | None = None) -> None:
        """Somebody takes it."""

    async def cancel(self, id: str) -> None:
        """Nothing runs here."""


@pytest.mark.parametrize(
    ("store", "name"),
    [(None, "MemoryStore"), (MemoryStore(), "MemoryStore"), (TrickyStore(), "TrickyStore")],
)
def test_a_runner_elsewhere_needs_a_store_that_is_seen_there(
    store: MemoryStore | None, name: str
) -> None:
    message = f"runner=.*cannot see those of {name}; give store="
    with pytest.raises(ConfigurationError, match=message):
        Jobs(store=store, runner=Elsewhere())
    with pytest.raises(ConfigurationError, match=message):
        LongRunningMiddleware(opaque("ok"), store=store, runner=Elsewhere())
    LongRunningMiddleware(opaque("ok"), store=SharedMemory(), runner=Elsewhere())


async def starting() -> Message:
    return {"type": "lifespan.startup"}


async def ignore(message: Message) -> None:
    """Whoever starts the app hears of the error as well."""


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({"hold": True}, "hold=True keeps a live request waiting, and runner=... .*take one"),
        ({"queue": "photos"}, "queue='photos': there is only 'videos'"),
    ],
)
async def test_a_policy_that_a_runner_cannot_keep_is_refused_by_the_routes_name(
    settings: PolicySettings, cure: str
) -> None:
    def jobs() -> Jobs:
        return Jobs(store=SharedMemory(), runner=Elsewhere())

    rules = {"GET /good": Policy(queue="videos"), "POST /videos": Policy(**settings)}
    with pytest.raises(ConfigurationError, match=f"^POST /videos: {cure}"):
        LongRunningMiddleware(opaque("ok"), routes=rules, jobs=jobs())
    # A decorated endpoint is known when the app is complete, whoever set it.
    decorated = LongRunningMiddleware(
        Starlette(routes=[gated(Gate(), **settings)]), jobs=jobs(), policy=Policy(queue="videos")
    )
    inherited = LongRunningMiddleware(
        Starlette(routes=[gated(Gate())]), jobs=jobs(), policy=Policy(**settings)
    )
    for app in decorated, inherited:
        with pytest.raises(ConfigurationError, match=f"slow: {cure}"):
            await app({"type": "lifespan"}, starting, ignore)
    app = LongRunningMiddleware(Starlette(routes=[gated(Gate(), queue="videos")]), jobs=jobs())
    async with lifespan(app):
        pass


@pytest.mark.parametrize(
    ("settings", "store", "told"),
    [
        ({"on_interrupt": "rerun"}, MemoryStore, "on_interrupt='rerun' has no effect"),
        ({"on_interrupt": "rerun"}, SharedMemory, None),
        ({"queue": "videos"}, MemoryStore, "queue='videos' has no effect"),
        ({"queue": "videos"}, SharedMemory, "queue='videos' has no effect"),
        ({}, MemoryStore, None),
    ],
)
async def test_a_setting_without_effect_is_told_once_at_the_start(
    settings: PolicySettings,
    store: type[MemoryStore],
    told: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is no error: the same app may be tried out on memory and deployed on something else."""
    routes = [gated(Gate(), path, **settings) for path in ("/a", "/b")]
    rules = {"POST /c": Policy(**settings)}
    inner = Starlette(routes=[*routes, Route("/c", opaque("ok"), methods=["POST"])])
    app = LongRunningMiddleware(inner, store=store(), routes=rules)
    async with lifespan(app):
        pass
    warnings = [record.getMessage() for record in said(caplog)]
    assert len(warnings) == (told is not None)
    assert told is None or f"POST /c: {told}" in warnings[0]


async def test_a_large_prefer_header_is_no_attack() -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        gate.open()
        for header in (
            '"' * 50_000,
            "a;" * 20_000 + "@",
            "a=" * 20_000,
            ";  " * 20_000,
            "\\" * 9999,
        ):
            response = await client.post("/slow", headers={"prefer": header})
            assert response.status_code == 202


async def test_the_default_error_of_an_app_is_not_ours() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({"detail": "own"}, status_code=404)(scope, receive, send)

    async with client_of(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        response = await client.get("/nowhere")
        assert (response.status_code, response.json()) == (404, {"detail": "own"})
