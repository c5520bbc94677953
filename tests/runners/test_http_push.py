"""Jobs that an engine brings by calling a URL; with real processes: `tests/e2e/test_push.py`."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import Message

from raincheck import Jobs, Limits, LongRunningMiddleware, Policy
from raincheck.errors import ConfigurationError
from raincheck.runners.base import Runner
from raincheck.runners.http_push import HttpPushRunner, Push
from raincheck.testing import RunnerContract, follow
from tests.conftest import virtual_jobs
from tests.doubles.stores import SharedMemory
from tests.support import Gate, RawRequest, app_of, client_of, running, said, settled, slow_route

pytestmark = pytest.mark.anyio

SECRET, OLDER = "a secret of sixteen", b"an older one of them"


class Pushed:
    """What was given to the engine, and a client of what it calls."""

    def __init__(self, **settings: Any) -> None:
        self.given: list[Push] = []
        settings = settings or {"secrets": [SECRET]}
        self.runner = HttpPushRunner(self._submit, **settings)

    async def _submit(self, push: Push) -> None:
        self.given.append(push)

    async def bring(self, body: bytes, **settings: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.runner.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
            return await client.post("/run", content=body, **settings)


@pytest.mark.anyio
class TestHttpPushRunner(RunnerContract):
    @pytest.fixture
    def runner(self) -> HttpPushRunner:
        self.pushes = Pushed()
        return self.pushes.runner

    @asynccontextmanager
    async def workers(self, runner: Runner) -> AsyncIterator[None]:
        async def bring_all() -> None:
            while True:
                while self.pushes.given:
                    group.start_soon(self.pushes.bring, self.pushes.given.pop().body)
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            group.start_soon(bring_all)
            yield
            group.cancel_scope.cancel()


class Site:
    """An app behind the runner.

    Attributes:
        runs: how often its handler began.
    """

    def __init__(self, pushed: Pushed, **limits: Any) -> None:
        self.runs = 0
        self.gate = Gate()
        self.pushed = pushed
        self.store = SharedMemory()
        jobs = virtual_jobs(store=self.store, runner=pushed.runner, limits=Limits(**limits))

        async def answer(request: Request) -> Any:
            self.runs += 1
            await self.gate.wait()
            return {"runs": self.runs}

        self.app: LongRunningMiddleware = app_of(
            slow_route(answer),
            slow_route(answer, "/rerun", on_interrupt="rerun", max_runs=3),
            slow_route(answer, "/one", max_running=1),
            jobs=jobs,
        )

    def cut_off(self, body: bytes) -> RawRequest:
        """A request of the engine that its platform is going to cut off."""
        request = RawRequest("/run")
        request.feed(body)
        return request


# --- what it answers ---------------------------------------------------------------------------


async def test_a_message_is_answered_when_the_run_has_ended_and_the_next_one_at_once() -> None:
    site = Site(pushed := Pushed())
    async with running(site.app) as client, anyio.create_task_group() as group:
        accepted = await client.post("/slow")
        assert (accepted.status_code, accepted.json()["status"]) == (202, "queued")
        (push,) = pushed.given
        answers: list[int] = []

        async def bring() -> None:
            answers.append((await pushed.bring(push.body)).status_code)

        group.start_soon(bring)
        await settled()
        assert answers == []
        held = await pushed.bring(push.body)  # twice at the same time
        assert (held.status_code, held.headers["retry-after"]) == (409, "10")
        site.gate.open()
        await settled()
        assert answers == [200]
        assert (await pushed.bring(push.body)).status_code == 200  # and once more
        assert (await follow(client, accepted)).json() == {"runs": 1}
        assert site.runs == 1


async def test_a_message_has_the_id_and_nothing_of_the_request() -> None:
    site = Site(pushed := Pushed())
    async with running(site.app) as client:
        headers = {"authorization": "s3cret", "cookie": "s3cret"}
        secret = await client.post("/slow?s3cret", content=b"s3cret" * 1000, headers=headers)
        plain = await client.post("/slow")
    first, second = pushed.given
    assert secret.json()["job_id"].encode() in first.body
    assert b"s3cret" not in first.body
    assert plain.json()["job_id"].encode() in second.body
    assert len(first.body) == len(second.body) < 500


async def test_an_unknown_job_and_a_deleted_one_are_done() -> None:
    site = Site(pushed := Pushed())
    async with running(site.app) as client:
        accepted = await client.post("/slow")
        await client.delete(accepted.headers["location"])
        assert (await pushed.bring(pushed.given[0].body)).status_code == 200
        await pushed.runner.submit("unknown")
        assert (await pushed.bring(pushed.given[1].body)).status_code == 200
        assert site.runs == 0


async def test_a_failed_run_has_ended_too() -> None:
    async def crash(request: Request) -> Any:
        raise ValueError("a bug")

    pushed = Pushed()
    jobs = virtual_jobs(store=SharedMemory(), runner=pushed.runner)
    async with running(app_of(slow_route(crash), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        assert (await pushed.bring(pushed.given[0].body)).status_code == 200
        assert (await follow(client, accepted)).status_code == 500


@pytest.mark.parametrize("path", ["/slow", "/one"])
async def test_where_there_is_no_room_it_does_not_wait(path: str) -> None:
    """The engine's clock is running: it brings it again, here or elsewhere."""
    limits = {"max_running": 1} if path == "/slow" else {}
    site = Site(pushed := Pushed(), **limits)
    async with running(site.app) as client, anyio.create_task_group() as group:
        first, second = await client.post(path), await client.post(path)
        group.start_soon(pushed.bring, pushed.given[0].body)
        await settled()
        full = await pushed.bring(pushed.given[1].body)
        assert (full.status_code, full.headers["retry-after"]) == (503, "5")
        statistics = site.app.jobs.statistics()
        assert (statistics.running, statistics.queued) == (1, 0)
        site.gate.open()
        await settled()
        assert (await pushed.bring(pushed.given[1].body)).status_code == 200
        for accepted in (first, second):
            assert (await follow(client, accepted)).status_code == 200
        assert site.runs == 2


@pytest.mark.parametrize(
    ("path", "status", "runs"), [("/slow", 503, 1), ("/rerun", 200, 2)], ids=["once", "rerun"]
)
async def test_a_request_that_is_cut_off_is_an_interrupted_run(
    path: str, status: int, runs: int
) -> None:
    site = Site(pushed := Pushed())
    async with running(site.app) as client, anyio.create_task_group() as group:
        accepted = await client.post(path)
        cut = site.cut_off(pushed.given[0].body)
        group.start_soon(cut.run, pushed.runner.app)
        await settled()
        assert site.runs == 1
        cut.leave()
        await settled()
        assert cut.sent == []
        assert site.gate.cleaned_up == 1
        site.gate.open()
        assert len(pushed.given) == runs  # it was submitted again, or has failed
        for push in pushed.given[1:]:
            assert (await pushed.bring(push.body)).status_code == 200
        assert (await follow(client, accepted)).status_code == status
        assert site.runs == runs


async def test_an_engine_that_does_not_take_it_refuses_the_request() -> None:
    async def away(push: Push) -> None:
        raise ConnectionError("the engine is away")

    jobs = virtual_jobs(store=SharedMemory(), runner=HttpPushRunner(away, secrets=[SECRET]))

    async def answer(request: Request) -> Any:
        raise AssertionError("it has run")

    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        refused = await client.post("/slow")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")


async def test_one_that_goes_wrong_is_brought_again(caplog: pytest.LogCaptureFixture) -> None:
    pushed = Pushed()

    async def run(id: str) -> None:
        raise RuntimeError("ours")

    pushed.runner.bind(run, lambda _: None, lambda *_: None)
    await pushed.runner.submit("a")
    assert (await pushed.bring(pushed.given[0].body)).status_code == 503
    assert [record.levelname for record in said(caplog)] == ["ERROR"]


async def test_the_first_request_of_a_process_may_be_the_engines() -> None:
    """As docs/serverless.md has it: no lifespan reaches what is mounted."""
    store = SharedMemory()

    async def answer(request: Request) -> Any:
        return "done"

    def process() -> tuple[Pushed, Starlette, Jobs]:
        pushed = Pushed()
        jobs = virtual_jobs(store=store, runner=pushed.runner)
        marked = app_of(slow_route(answer), jobs=jobs)
        return pushed, Starlette(routes=[Mount("/run", pushed.runner.app), Mount("", marked)]), jobs

    pushed, first, accepting = process()
    _, second, fresh = process()
    try:
        async with client_of(first) as client, client_of(second) as engine:
            accepted = await client.post("/slow")
            brought = await engine.post("/run/", content=pushed.given[0].body)
            assert brought.status_code == 200
            assert (await follow(client, accepted)).json() == "done"
    finally:
        await accepting.close()
        await fresh.close()


# --- who may bring -----------------------------------------------------------------------------


def ran() -> tuple[Pushed, list[str]]:
    ids: list[str] = []
    pushed = Pushed(secrets=[SECRET, OLDER])

    async def run(id: str) -> None:
        ids.append(id)

    pushed.runner.bind(run, lambda _: None, lambda *_: None)
    return pushed, ids


def changed(**fields: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda message: json.dumps({**message, **fields}).encode()


FORGED = [
    pytest.param(changed(job="another"), id="another job"),
    pytest.param(changed(expires=2**40), id="for longer"),
    pytest.param(changed(expires="2000000000"), id="an expiry that is no number"),
    pytest.param(changed(expires=True), id="nor this"),
    pytest.param(changed(signature="0" * 64), id="another signature"),
    pytest.param(changed(signature="ü"), id="one that is no ASCII"),
    pytest.param(changed(signature=None), id="none"),
    pytest.param(changed(signature="\ud800"), id="one that is no text"),
    pytest.param(changed(job=["a"]), id="no job"),
    pytest.param(changed(job="\ud800"), id="a job that is no text"),
    pytest.param(lambda _: b"", id="nothing"),
    pytest.param(lambda _: b"\xff\xfe", id="no text"),
    pytest.param(lambda _: b"[1]", id="a list"),
    pytest.param(lambda _: b'{"message": {"data": 5}}', id="an envelope of a number"),
    pytest.param(lambda _: b'{"data": {"data": {"data": {}}}}', id="envelopes of nothing"),
    pytest.param(lambda _: b'{"data": ' * 900 + b"1" + b"}" * 900, id="a thousand envelopes"),
]


@pytest.mark.parametrize("forge", FORGED)
async def test_what_was_not_made_by_us_runs_nothing(
    forge: Callable[[dict[str, Any]], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    pushed, ids = ran()
    await pushed.runner.submit("a")
    answer = await pushed.bring(forge(json.loads(pushed.given[0].body)))
    assert (answer.status_code, answer.content, ids) == (403, b"", [])
    assert said(caplog) == []


async def test_what_has_expired_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pushed, ids = ran()
    await pushed.runner.submit("a")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7 * 24 * 3600 - 2)
    assert (await pushed.bring(pushed.given[0].body)).status_code == 200
    monkeypatch.setattr(time, "time", lambda: now + 7 * 24 * 3600 + 2)
    assert (await pushed.bring(pushed.given[0].body)).status_code == 403
    assert ids == ["a"]


async def test_a_secret_is_rotated_by_putting_the_new_one_first() -> None:
    pushed, ids = ran()
    older = Pushed(secrets=[OLDER])
    await older.runner.submit("a")
    assert (await pushed.bring(older.given[0].body)).status_code == 200
    await pushed.runner.submit("b")
    assert (await older.bring(pushed.given[0].body)).status_code == 403
    assert ids == ["a"]


def enveloped(how: str, body: bytes) -> bytes:
    data = base64.b64encode(body).decode()
    envelopes: dict[str, Any] = {
        "Pub/Sub": {"message": {"data": data, "messageId": "1"}, "subscription": "s"},
        "CloudEvents, structured": {"specversion": "1.0", "id": "1", "data": json.loads(body)},
        "CloudEvents, binary data": {"specversion": "1.0", "data_base64": data},
        "EventBridge": {"version": "0", "detail-type": "job", "detail": json.loads(body)},
        "Pub/Sub by Eventarc": {"data": {"message": {"data": data}}, "specversion": "1.0"},
        "JSON in a string": body.decode(),
    }
    return json.dumps(envelopes[how]).encode()


@pytest.mark.parametrize(
    "how",
    [
        "Pub/Sub",
        "CloudEvents, structured",
        "CloudEvents, binary data",
        "EventBridge",
        "Pub/Sub by Eventarc",
        "JSON in a string",
    ],
)
async def test_the_envelopes_of_engines_are_opened(how: str) -> None:
    pushed, ids = ran()
    await pushed.runner.submit("a")
    assert (await pushed.bring(enveloped(how, pushed.given[0].body))).status_code == 200
    assert ids == ["a"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_engine_may_be_known_by_its_token(asynchronous: bool) -> None:
    def known(request: Request) -> Any:
        true = request.headers.get("authorization") == "Bearer token"

        async def later() -> bool:
            return true

        return later() if asynchronous else true

    ids: list[str] = []

    async def run(id: str) -> None:
        ids.append(id)

    pushed = Pushed(authenticate=known)
    pushed.runner.bind(run, lambda _: None, lambda *_: None)
    await pushed.runner.submit("a")
    body = pushed.given[0].body
    assert json.loads(body) == {"job": "a"}
    assert (await pushed.bring(body)).status_code == 403
    headers = {"authorization": "Bearer token"}
    assert (await pushed.bring(body, headers=headers)).status_code == 200
    assert ids == ["a"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_where_a_token_cannot_be_read_nothing_runs(
    asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As libraries say of a token that it is none."""

    def verified(request: Request) -> Any:
        raise ValueError("no token")

    async def later(request: Request) -> Any:
        return verified(request)

    pushed = Pushed(authenticate=later if asynchronous else verified)
    await pushed.runner.submit("a")
    assert (await pushed.bring(pushed.given[0].body)).status_code == 403
    assert [record.levelname for record in said(caplog)] == ["ERROR"]


async def test_a_message_that_is_too_large_is_none() -> None:
    pushed, ids = ran()
    request = RawRequest("/run")
    request.feed(b" " * 40_000, more=True)
    request.feed(b" " * 40_000)
    await request.run(pushed.runner.app)
    assert (request.status, ids) == (413, [])


async def test_who_leaves_before_it_has_said_anything_is_let_go() -> None:
    pushed, ids = ran()
    request = RawRequest("/run")
    request.leave()
    await request.run(pushed.runner.app)
    assert (request.sent, ids) == ([], [])


async def test_other_methods_are_told_which_one() -> None:
    pushed, _ = ran()
    request = RawRequest("/run", "GET")
    request.feed()
    await request.run(pushed.runner.app)
    assert (request.status, dict(request.sent[0]["headers"])[b"allow"]) == (405, b"POST")


async def test_it_is_no_app_for_a_server_alone() -> None:
    pushed, _ = ran()

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    with pytest.raises(ConfigurationError, match="mount it"):
        await pushed.runner.app({"type": "lifespan"}, receive, send)


# --- settings ----------------------------------------------------------------------------------


async def nowhere(push: Push) -> None:
    raise AssertionError("nothing is submitted")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "anybody could run jobs"),
        ({"secrets": "a secret of sixteen"}, r"give several, like \[new, old\]"),
        ({"secrets": ["short"]}, "16 characters or bytes at least"),
        ({"secrets": [5]}, "16 characters or bytes at least"),
        ({"authenticate": True}, "authenticate=True"),
        ({"secrets": [SECRET], "queues": "videos"}, r"queues='videos'.*\['videos'\]"),
        ({"secrets": [SECRET], "queues": None}, r"queues=None: give several names"),
        ({"secrets": None}, r"give several, like \[new, old\]"),
        ({"secrets": [SECRET], "expires_after": 0}, "expires_after"),
        ({"secrets": [SECRET], "expires_after": None}, "expires_after=None: it is seconds"),
        ({"secrets": [SECRET], "expires_after": "7d"}, "expires_after='7d': it is seconds"),
        ({"secrets": [SECRET], "expires_after": float("inf")}, "expires_after=inf: it is seconds"),
        ({"secrets": [SECRET], "expires_after": 10**400}, "a hundred years at most"),
    ],
)
def test_what_cannot_work_says_so(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        HttpPushRunner(nowhere, **settings)


def test_what_submits_is_a_function() -> None:
    with pytest.raises(ConfigurationError, match="submit='https://engine'"):
        HttpPushRunner("https://engine", secrets=[SECRET])  # type: ignore[arg-type] # that is it


async def test_a_queue_travels_with_the_job() -> None:
    pushed = Pushed(secrets=[SECRET], queues=["videos"])
    await pushed.runner.submit("a", "videos")
    await pushed.runner.submit("b")
    assert [push.queue for push in pushed.given] == ["videos", None]
    with pytest.raises(ConfigurationError, match="sound"):
        await pushed.runner.submit("c", "sound")


def test_an_unknown_queue_is_told_at_once() -> None:
    pushed = Pushed()
    jobs = virtual_jobs(store=SharedMemory(), runner=pushed.runner)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("it is not called")

    with pytest.raises(ConfigurationError, match="queue='videos': HttpPushRunner has no such"):
        LongRunningMiddleware(app, routes={"POST /v": Policy(queue="videos")}, jobs=jobs)
