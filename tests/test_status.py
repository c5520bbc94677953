"""The status routes: the tables of the wire contract.

With 2,000 long polls at once instead of 500: `RAINCHECK_STATUS=long pytest tests/test_status.py`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urljoin

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from raincheck import (
    ConfigurationError,
    Jobs,
    Limits,
    LongRunningMiddleware,
    Policy,
    long_running,
    report,
)
from raincheck.testing import follow, lifespan
from tests.conftest import long, virtual_jobs
from tests.support import Gate, RawRequest, app_of, client_of, gated, running, settled, slow_route

pytestmark = pytest.mark.anyio


async def crash(request: Request) -> None:
    raise ValueError("a secret")


async def test_a_job_that_is_not_finished() -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        accepted = await client.post("/slow")
        url = accepted.headers["location"]
        poll = await client.get(url, headers={"prefer": "respond-async"})
        assert poll.status_code == 202
        assert poll.headers["location"] == url
        assert poll.headers["retry-after"] == "1"
        assert poll.headers["cache-control"] == "no-store"
        assert "preference-applied" not in poll.headers
        monitor = await client.get(url + "/status")
        assert monitor.status_code == 200
        assert monitor.headers["retry-after"] == "1"
        assert monitor.json() == poll.json() == accepted.json()
        gate.open()


async def test_a_job_that_succeeded() -> None:
    gate = Gate()
    gate.open()
    async with running(app_of(gated(gate, ttl=60))) as client:
        accepted = await client.post("/slow")
        url = accepted.headers["location"]
        response = await follow(client, accepted)
        assert response.headers["job-status"] == "succeeded"
        assert response.headers["cache-control"] == "no-store"
        monitor = await client.get(url + "/status")
        document = monitor.json()
        assert monitor.status_code == 200
        assert "retry-after" not in monitor.headers
        assert document["status"] == "succeeded"
        assert document["finished_at"] < document["expires_at"]
        assert document["resourceLocation"] == url
        assert document["response"] == {
            "status": 200,
            "content_type": "application/json",
            "size": len(response.content),
        }


async def test_a_handlers_own_cache_control_is_left_alone() -> None:
    async def answer(request: Request) -> Response:
        return Response(headers={"cache-control": "max-age=60"})

    async with running(app_of(slow_route(answer))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.headers.get_list("cache-control") == ["max-age=60"]


async def test_a_job_that_failed_with_a_response() -> None:
    async def answer(request: Request) -> Response:
        return JSONResponse({"why": "not"}, status_code=409)

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        response = await follow(client, accepted)
        assert (response.status_code, response.json()) == (409, {"why": "not"})
        assert response.headers["job-status"] == "failed"
        document = (await client.get(accepted.json()["links"]["self"])).json()
        assert (document["status"], document["response"]["status"]) == ("failed", 409)


async def test_a_job_that_failed_without_a_response(caplog: pytest.LogCaptureFixture) -> None:
    inside = Starlette(
        routes=[slow_route(crash)],
        middleware=[Middleware(LongRunningMiddleware, jobs=virtual_jobs())],
    )
    async with running(inside) as client:
        accepted = await client.post("/slow")
        response = await follow(client, accepted)
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json() == {
            "type": "urn:raincheck:problem:crashed",
            "title": "The handler failed",
            "status": 500,
            "detail": "The handler ended with an error.",
        }
        document = (await client.get(accepted.json()["links"]["self"])).json()
        assert document["status"] == response.headers["job-status"] == "failed"
        error = {"code": "crashed", "message": "The handler ended with an error."}
        assert document["error"] == error | response.json()
        assert "secret" not in response.text
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert accepted.json()["job_id"] in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "a secret"


async def test_the_apps_own_error_handling_comes_first() -> None:
    async def sorry(request: Request, error: Exception) -> Response:
        return PlainTextResponse("sorry", status_code=500)

    inner = Starlette(routes=[slow_route(crash)], exception_handlers={Exception: sorry})
    async with running(LongRunningMiddleware(inner, jobs=virtual_jobs())) as client:
        response = await follow(client, await client.post("/slow"))
        assert (response.status_code, response.text) == (500, "sorry")


async def test_a_cancelled_job() -> None:
    async with running(app_of(gated(Gate()))) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        await client.post(links["cancel"])
        await settled()
        response = await client.get(links["result"])
        assert (response.status_code, response.headers["content-type"]) == (
            410,
            "application/problem+json",
        )
        assert response.json()["type"] == "urn:raincheck:problem:cancelled"
        monitor = await client.get(links["self"])
        assert (monitor.status_code, monitor.json()["status"]) == (200, "canceled")
        again = await client.post(links["cancel"])
        assert (again.status_code, again.json()["status"]) == (200, "canceled")


async def test_head_is_get_without_the_body() -> None:
    gate = Gate()
    async with running(app_of(gated(gate))) as client:
        links = (await client.post("/slow")).json()["links"]
        for finished in (False, True):
            for url in (links["result"], links["self"]):
                get, head = await client.get(url), await client.head(url)
                assert head.status_code == get.status_code
                assert head.headers == get.headers
                assert head.content == b""
            if not finished:
                gate.open()
                await settled()


@pytest.mark.parametrize(
    ("route", "method", "allow"),
    [
        ("", "POST", "DELETE, GET, HEAD"),
        ("", "OPTIONS", "DELETE, GET, HEAD"),
        ("/status", "DELETE", "GET, HEAD"),
        ("/events", "POST", "GET, HEAD"),
        ("/cancel", "GET", "POST"),
    ],
)
async def test_other_methods_are_405_with_allow(route: str, method: str, allow: str) -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        url = (await client.post("/slow")).headers["location"]
        response = await client.request(method, url + route)
        assert (response.status_code, response.headers["allow"]) == (405, allow)
        gate.open()


async def test_what_is_not_there_is_one_and_the_same_404() -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        url = (await client.post("/slow")).headers["location"]
        answers = {
            (response.status_code, response.content, response.headers["content-type"])
            for path in (
                "/jobs/",
                "/jobs/unknown",
                "/jobs/unknown/status",
                "/jobs/unknown/events",
                "/jobs/" + "x" * 30,
                "/jobs/" + "x" * 5000,
                "/jobs/%00",
                "/jobs/%F0%9F%92%A9",
                url + "/",
                url + "/nowhere",
                url + "/status/",
                url + "/status/x",
            )
            for response in [await client.get(path)]
        }
        ((status, body, content_type),) = answers
        assert (status, content_type) == (404, "application/problem+json")
        assert b"urn:raincheck:problem:not-found" in body
        gate.open()


@pytest.mark.parametrize("id", ["../a", "a\x00b", "a" * 100_000, "\udcff", "é", "%", "a/../b"])
async def test_a_raw_path_with_a_bad_id_is_404(id: str) -> None:
    app = app_of(gated(Gate()))
    async with lifespan(app):
        request = RawRequest("/")
        request.scope |= {"path": f"/jobs/{id}", "method": "GET"}
        await request.run(app)
        assert request.status == 404


async def pages(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that cannot be looked into, with pages everywhere, and one slow endpoint."""
    if scope["type"] == "http" and scope["path"].endswith("/import"):
        await imports(scope, receive, send)
    elif scope["type"] == "http":
        await PlainTextResponse(f"{scope['method']} of its own")(scope, receive, send)


@long_running
async def imports(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("imported")(scope, receive, send)


NO_IDS = ["", "all", "all/status", "x" * 29, "x" * 31, "x" * 29 + ".", "x" * 29 + "é", "x/nowhere"]


@pytest.mark.parametrize("mounted", ["around", "in a mount"])
@pytest.mark.parametrize("page", NO_IDS)
async def test_an_app_that_cannot_be_read_keeps_its_pages_below_the_mount_path(
    page: str, mounted: str
) -> None:
    app: Any = pages if mounted == "around" else Starlette(routes=[Mount("/", pages)])
    async with client_of(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        for method in ("GET", "POST", "DELETE"):
            answer = await client.request(method, f"/jobs/{page}")
            assert answer.text == f"{method} of its own"
        for tail in ("", "/status", "/nowhere"):  # a job could have this id
            missing = await client.get("/jobs/" + "x" * 30 + tail)
            assert missing.json()["type"] == "urn:raincheck:problem:not-found"
        accepted = await client.post("/jobs/import")
        assert accepted.status_code == 202
        assert (await follow(client, accepted)).text == "imported"


@pytest.mark.parametrize("page", NO_IDS)
async def test_an_app_that_can_be_read_has_none_there(page: str) -> None:
    """Also where something else in it cannot be read: that could not answer for it."""
    for routes in ([gated(Gate())], [gated(Gate()), Mount("/elsewhere", pages)]):
        async with client_of(app_of(*routes)) as client:
            missing = await client.get(f"/jobs/{page}")
            assert missing.status_code == 404
            assert missing.json()["type"] == "urn:raincheck:problem:not-found"


async def test_the_mount_path_itself_is_the_apps() -> None:
    async def listing(request: Request) -> Response:
        return PlainTextResponse("the app's own")

    async with running(app_of(Route("/jobs", listing), gated(Gate()))) as client:
        assert (await client.get("/jobs")).text == "the app's own"


async def test_a_tombstone_answers_410_for_a_while_and_then_404() -> None:
    gate = Gate()
    gate.open()
    jobs = virtual_jobs(limits=Limits(tombstone_ttl=100))
    async with running(app_of(gated(gate, ttl=50), jobs=jobs)) as client:
        url = (await client.post("/slow")).headers["location"]
        await anyio.sleep(49)
        assert (await client.get(url)).status_code == 200
        await anyio.sleep(2)  # the clock of asyncio's loop is a little ahead of what it skipped
        response = await client.get(url)
        assert (response.status_code, response.json()["type"]) == (
            410,
            "urn:raincheck:problem:expired",
        )
        await anyio.sleep(90)
        assert (await client.get(url)).status_code == 410
        await anyio.sleep(30)
        assert (await client.get(url)).status_code == 404
        assert len(jobs.store) == 0  # type: ignore[arg-type] # a MemoryStore


async def in_steps(request: Request) -> dict[str, str]:
    """After 10 seconds a report, and after 10 more the end."""
    await anyio.sleep(10)
    report(0.5, "half")
    await anyio.sleep(10)
    return {"done": "yes"}


@asynccontextmanager
async def timed(wait: str = "wait=25, respond-async") -> AsyncIterator[Any]:
    """Sends requests, and gives each answer with the seconds since the start."""
    routes = slow_route(in_steps), gated(gate := Gate(), "/gated", max_running=1)
    shared = slow_route(in_steps, "/shared", coalesce=True)
    async with running(app_of(*routes, shared)) as client:
        start = anyio.current_time()

        async def ask(url: str, method: str = "GET") -> tuple[httpx.Response, float]:
            response = await client.request(method, url, headers={"prefer": wait})
            return response, round(anyio.current_time() - start)

        yield client, ask
        gate.open()


async def test_a_long_poll_of_the_status_url_answers_when_the_job_has_finished() -> None:
    async with timed() as (client, ask):
        url = (await client.post("/slow")).headers["location"]
        response, moment = await ask(url)
        assert (response.status_code, response.json(), moment) == (200, {"done": "yes"}, 20)
        assert (await ask(url))[1] == 20


async def test_a_long_poll_of_the_monitor_answers_when_state_or_progress_changes() -> None:
    async with timed() as (client, ask):
        url = (await client.post("/slow")).headers["location"] + "/status"
        response, moment = await ask(url)
        assert (response.json()["progress"], moment) == (0.5, 10)
        response, moment = await ask(url)
        assert (response.json()["status"], moment) == ("succeeded", 20)


async def test_a_long_poll_of_the_monitor_is_no_answer_a_moment_for_what_changes_all_the_time() -> (
    None
):
    async def busy(request: Request) -> None:
        for step in range(40):
            report(step / 40)
            await anyio.sleep(0.1)

    async with running(app_of(slow_route(busy))) as client:
        url = (await client.post("/slow")).headers["location"] + "/status"
        answers, status = 0, "running"
        while status == "running":
            answer = await client.get(url, headers={"prefer": "wait=25"})
            answers, status = answers + 1, answer.json()["status"]
        assert answers <= 5
        assert status == "succeeded"


async def test_a_long_poll_of_the_monitor_answers_at_once_when_the_job_ends() -> None:
    async def quick(request: Request) -> None:
        await anyio.sleep(0.3)

    async with running(app_of(slow_route(quick))) as client:
        url = (await client.post("/slow")).headers["location"]
        start = anyio.current_time()
        monitor = await client.get(url + "/status", headers={"prefer": "wait=25"})
        assert monitor.json()["status"] == "succeeded"
        assert anyio.current_time() - start < 0.9


async def test_a_queue_position_and_who_joins_a_run_wake_nobody() -> None:
    async with timed() as (client, ask):
        queued = [(await client.post("/gated")).json()["links"] for _ in range(3)]
        await client.post("/shared")
        shared = (await client.post("/shared")).json()["links"]
        async with anyio.create_task_group() as group:

            async def poll(url: str, seconds: float) -> None:
                response, moment = await ask(url)
                assert (response.status_code, moment) == (200, seconds)

            group.start_soon(poll, queued[2]["self"], 25)
            group.start_soon(poll, shared["self"], 10)  # the report
            await anyio.sleep(5)
            assert (await client.post(queued[1]["cancel"])).json()["status"] == "canceled"
            assert (await client.post(shared["cancel"])).json()["status"] == "running"


@pytest.mark.parametrize(
    ("prefer", "seconds"), [("wait=3", 3), ("wait=3600", 25), ("wait", 25), ("wait=x", 0), ("", 0)]
)
async def test_a_long_poll_ends_when_the_time_has_passed(prefer: str, seconds: int) -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        url = (await client.post("/slow")).headers["location"]
        for route in (url, url + "/status"):
            start = anyio.current_time()
            response = await client.get(route, headers={"prefer": prefer})
            assert response.json()["status"] == "running"
            assert anyio.current_time() - start == pytest.approx(seconds, abs=0.2)
        gate.open()


async def test_a_middleware_may_bound_long_polls_further() -> None:
    app = app_of(gated(gate := Gate()), policy=Policy(max_wait=7))
    async with running(app) as client:
        url = (await client.post("/slow")).headers["location"]
        start = anyio.current_time()
        await client.get(url, headers={"prefer": "wait"})
        assert anyio.current_time() - start == pytest.approx(7, abs=0.2)
        gate.open()


async def test_a_long_poll_sees_a_delete() -> None:
    async with running(app_of(gated(Gate()))) as client:
        url = (await client.post("/slow")).headers["location"]
        await settled()
        async with anyio.create_task_group() as group:

            async def poll() -> None:
                response = await client.get(url + "/status", headers={"prefer": "wait=30"})
                assert response.status_code == 410

            group.start_soon(poll)
            await settled()
            await client.delete(url)


@pytest.mark.one_loop
async def test_many_long_polls_wake_when_their_job_ends() -> None:
    many = 2000 if long("STATUS") else 500
    async with running(app_of(gated(gate := Gate()))) as client:
        url = (await client.post("/slow")).headers["location"]
        statuses = []

        async def poll() -> None:
            statuses.append((await client.get(url, headers={"prefer": "wait=30"})).status_code)

        async with anyio.create_task_group() as group:
            for _ in range(many):
                group.start_soon(poll)
            await settled()
            assert statuses == []
            gate.open()
        assert statuses == [200] * many


@pytest.mark.parametrize("root_path", ["/api", "/api/v1"])
async def test_root_path_prefixes_every_url(root_path: str) -> None:
    """As a server passes it on behind a proxy that adds a prefix."""
    app = app_of(gated(gate := Gate()))
    async with lifespan(app), client_of(app, root_path=root_path) as client:
        accepted = await client.post(f"{root_path}/slow")
        id = accepted.json()["job_id"]
        assert accepted.headers["location"] == f"{root_path}/jobs/{id}"
        poll = await client.get(accepted.headers["location"])
        assert poll.json()["links"] == accepted.json()["links"]
        assert (await client.post(poll.json()["links"]["cancel"])).status_code == 202
        gate.open()


@pytest.mark.parametrize("tenant", ["a\r\nset-cookie: evil=1", 'a"b', "<b>", "ü", "\udcff", "a b"])
async def test_what_clients_put_into_a_path_stays_a_path(tenant: str) -> None:
    """A mount with a parameter makes part of the prefix theirs."""
    mounted = Starlette(routes=[Mount("/{tenant}", app_of(gated(gate := Gate())))])
    request = RawRequest("/")
    request.scope["path"] = f"/{tenant}/slow"
    request.feed()
    await request.run(mounted)
    assert request.status == 202
    headers = dict(request.sent[0]["headers"])
    for name in (b"location", b"link"):
        assert headers[name].isascii()
        assert not set(headers[name].partition(b"; ")[0][1:-1]) & set(b'\r\n "<')
    gate.open()
    await settled()


@pytest.mark.parametrize("navigates", [False, True])
@pytest.mark.parametrize(
    "path", ["//evil.example/a/slow", "///evil.example/slow", "/\\evil.example/slow", "/\\/a/slow"]
)
async def test_no_url_names_another_host(path: str, navigates: bool) -> None:
    """A URL that begins with two slashes would, and to browsers a backslash is one."""
    mounted = Starlette(routes=[Mount("/{folders:path}", app_of(gated(gate := Gate())))])
    request = RawRequest("/", **({"sec_fetch_mode": "navigate"} if navigates else {}))
    request.scope |= {"path": path, "raw_path": path.encode()}
    request.feed()
    await request.run(mounted)
    assert request.status == (303 if navigates else 202)
    headers = {name.decode(): value.decode() for name, value in request.sent[0]["headers"]}
    links = {} if navigates else json.loads(request.body)["links"]
    for url in (headers["location"], headers.get("content-location", "/"), *links.values()):
        assert urljoin("https://test/", url).startswith("https://test/")
        assert url[0] == "/"
        assert url[1:2] not in ("/", "\\")
    gate.open()
    await settled()


async def test_below_a_mount_the_urls_carry_its_path() -> None:
    mounted = Starlette(routes=[Mount("/sub", app_of(gated(gate := Gate())))])
    async with client_of(mounted) as client:
        accepted = await client.post("/sub/slow")
        assert accepted.headers["location"].startswith("/sub/jobs/")
        gate.open()
        assert (await follow(client, accepted)).json() == {"path": "/sub/slow"}


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> Any:
        if "authorization" in conn.headers:
            return AuthCredentials(["authenticated"]), SimpleUser("ann")
        return None


async def test_routes_mounted_by_hand_have_the_users_middleware_around_them() -> None:
    jobs = virtual_jobs()

    class OnlyUsers:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["user"].is_authenticated:
                await self.app(scope, receive, send)
            else:
                await PlainTextResponse("no", status_code=401)(scope, receive, send)

    inner = Starlette(
        routes=[
            gated(gate := Gate()),
            Mount(
                "/own/jobs",
                jobs.status_app,
                middleware=[
                    Middleware(AuthenticationMiddleware, backend=Backend()),
                    Middleware(OnlyUsers),
                ],
            ),
        ]
    )
    app = LongRunningMiddleware(inner, path="/own/jobs", jobs=jobs)
    async with running(app) as client:
        accepted = await client.post("/slow")
        url = accepted.headers["location"]
        assert url.startswith("/own/jobs/")
        assert (await client.get(url)).status_code == 401
        known = {"authorization": "ann"}
        poll = await client.get(url, headers=known)
        assert (poll.status_code, poll.json()["links"]) == (202, accepted.json()["links"])
        gate.open()
        await settled()
        assert (await client.get(url, headers=known)).json() == {"path": "/slow"}
        assert (await client.get("/own/jobs/unknown", headers=known)).status_code == 404


async def test_status_routes_mounted_without_a_middleware_say_what_is_missing() -> None:
    app = Starlette(routes=[Mount("/jobs", Jobs().status_app)])
    async with client_of(app) as client:
        with pytest.raises(ConfigurationError, match="LongRunningMiddleware"):
            await client.get("/jobs/x")


async def test_status_routes_mounted_elsewhere_fail_the_start() -> None:
    jobs = virtual_jobs()
    inner = Starlette(routes=[gated(Gate()), Mount("/tasks", jobs.status_app)])
    app = LongRunningMiddleware(inner, jobs=jobs)
    with pytest.raises(ConfigurationError, match="is mounted at '/tasks', and path='/jobs'"):
        async with running(app):
            raise AssertionError("it has started")


async def test_an_id_of_another_process_is_told_from_an_unknown_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several workers, each with a memory store: simulated by another process id."""
    app, other = app_of(gated(gate := Gate())), app_of(gated(gate))
    async with running(app) as client, running(other) as elsewhere:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            url = (await elsewhere.post("/slow")).headers["location"]
        for _ in range(2):
            response = await client.get(url)
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            for cause in ("beside this one", "one that has ended", "shared store"):
                assert cause in response.json()["detail"]
        assert (await client.get(url[:-1] + "!")).status_code == 404
        gate.open()
    (record,) = [r for r in caplog.records if "shared store" in r.message]
    assert record.levelno == logging.ERROR
    assert "one that has ended" in record.message
