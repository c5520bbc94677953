"""Handles of jobs elsewhere, on virtual time."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from raincheck import Retry, long_running, report
from raincheck.client import (
    DeadlineExceeded,
    FollowError,
    NoResponse,
    RemoteJob,
    SyncRemoteJob,
    Unreachable,
    submit,
    submit_sync,
)
from raincheck.testing import lifespan
from tests.client.servers import ByHand, client_of, events, pending, shown
from tests.support import Gate, app_of, gated, slow_route

pytestmark = pytest.mark.anyio

LINKS = {
    "self": "/status/1/status",
    "result": "/status/1",
    "cancel": "/status/1/cancel",
}
STREAMS = {**LINKS, "events": "/status/1/events"}


@pytest.fixture(params=[httpx2, httpx], ids=["httpx2", "httpx"])
def http(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


def ours(status: str, links: Any = LINKS, **more: Any) -> dict[str, Any]:
    return {"job_id": "1", "status": status, "links": links, **more}


def frame(document: Any, id: int) -> str:
    return f"retry: 2000\nid: {id}\nevent: status\ndata: {json.dumps(document)}\n\n"


def plain(http: ModuleType, app: Any, **settings: Any) -> Any:
    transport = http.ASGITransport(app)
    return http.AsyncClient(transport=transport, base_url="http://test", **settings)


async def seen(job: RemoteJob) -> list[Any]:
    return [document async for document in job.updates()]


# --- a server of ours --------------------------------------------------------------------------


@pytest.mark.parametrize("following", [False, True])
async def test_a_job_of_ours_from_its_202_to_its_response(
    http: ModuleType, following: bool
) -> None:
    @long_running
    async def work(request: Request) -> Response:
        for done in (1, 2):
            await anyio.sleep(5)
            report(done / 2, f"{done} of 2")
        await anyio.sleep(5)
        return JSONResponse({"body": (await request.body()).decode()}, 201)

    app = app_of(Route("/work", work, methods=["POST"]))
    client = (client_of if following else plain)(http, app)
    async with lifespan(app), client:
        job = await submit(client, client.build_request("POST", "/work", content=b"x"))
        assert job.status_url.startswith("http://test/jobs/")
        assert (await job.status())["status"] == "running"
        updates = await seen(job)
        assert [update["status"] for update in updates[-4:]] == [*["running"] * 3, "succeeded"]
        assert [update["message"] for update in updates[-2:]] == ["2 of 2"] * 2
        response = await job.response()
        assert (response.status_code, response.json()) == (201, {"body": "x"})
        for url in (job.status_url, job.status_url + "/status"):
            again = RemoteJob.from_url(client, url)
            assert (await again.status())["status"] == "succeeded"
            assert (await again.response()).json() == {"body": "x"}
            assert [update["status"] for update in await seen(again)] == ["succeeded"]
            assert again.status_url == job.status_url


async def test_a_job_of_ours_that_is_repeated_tells_when(http: ModuleType) -> None:
    runs = []

    async def answer(request: Request) -> Response:
        runs.append(1)
        return JSONResponse({}, 503 if len(runs) == 1 else 200)

    app = app_of(slow_route(answer, retry=Retry(backoff=lambda failure: 20)))
    client = plain(http, app)
    async with lifespan(app), client:
        job = await submit(client, client.build_request("POST", "/slow"))
        updates = await seen(job)
        (waits,) = [update for update in updates if "next_run_at" in update]
        assert (waits["status"], waits["runs"]) == ("queued", 1)
        assert (updates[-1]["status"], updates[-1]["runs"]) == ("succeeded", 2)
        assert (await job.response()).status_code == 200


async def test_a_job_of_ours_is_cancelled(http: ModuleType) -> None:
    gate = Gate()
    app = app_of(gated(gate))
    client = plain(http, app)
    async with lifespan(app), client:
        job = await submit(client, client.build_request("POST", "/slow"))
        assert (await job.cancel())["status"] in ("canceling", "canceled")
        assert (await seen(job))[-1]["status"] == "canceled"
        assert (await job.cancel())["status"] == "canceled"
        assert (await job.response()).status_code == 410
        assert gate.cleaned_up == 1
        other = RemoteJob.from_url(client, job.status_url)
        assert (await other.status())["status"] == "canceled"
        assert (await other.cancel())["status"] == "canceled"


async def test_the_response_is_that_of_the_handler_whatever_it_says(http: ModuleType) -> None:
    async def answer(request: Request) -> Response:
        await anyio.sleep(5)
        return RedirectResponse("/elsewhere", 303)

    app = app_of(slow_route(answer))
    async with lifespan(app):
        async with plain(http, app) as client:
            job = await submit(client, client.build_request("POST", "/slow"))
            assert (await seen(job))[-1]["status"] == "succeeded"
            assert (await job.response()).headers["location"] == "/elsewhere"
        async with client_of(http, app) as client:
            response = await client.post("/slow")
            assert (response.status_code, response.headers["location"]) == (303, "/elsewhere")


async def test_a_route_that_is_asynchronous_on_request_is_asked_to_be(http: ModuleType) -> None:
    gate = Gate()
    app = app_of(gated(gate, respond="preferred"))
    async with lifespan(app), plain(http, app) as client:
        job = await submit(client, client.build_request("GET", "/slow"))
        with pytest.raises(DeadlineExceeded, match="5 seconds") as caught:
            await job.response(deadline=5)
        assert isinstance(caught.value, http.TimeoutException)
        assert caught.value.status_url == job.status_url
        gate.open()
        assert (await job.response()).json() == {"path": "/slow"}


async def test_an_unknown_job_is_an_error(http: ModuleType) -> None:
    app = app_of(gated(Gate()))
    async with lifespan(app), plain(http, app) as client:
        job = RemoteJob.from_url(client, "/jobs/" + "x" * 30)
        for asked in (job.status(), seen(job), job.cancel()):
            with pytest.raises(NoResponse, match="No job has this id") as caught:
                await asked
            assert isinstance(caught.value, http.RequestError)
        assert (await job.response()).status_code == 404


# --- others ------------------------------------------------------------------------------------


async def test_what_is_answered_at_once_is_a_job_that_has_ended(http: ModuleType) -> None:
    server = ByHand()
    server.first = {}
    async with plain(http, server.app) as client:
        job = await submit(client, client.build_request("POST", "/work"))
        assert (await job.response()).json() == {"status": "accepted"}
        assert (await job.response()) is (await job.response())
    assert server.polls == []


async def test_a_server_by_hand_is_asked_as_it_says(http: ModuleType) -> None:
    server = ByHand(pending({"progress": 1}, retry_after="5"), pending({"progress": 1}), pending())
    server.first["retry-after"] = "9"
    async with plain(http, server.app) as client:
        job = await submit(client, client.build_request("POST", "/work"))
        begun = anyio.current_time()
        updates = await seen(job)
        assert 14 + 0.75 + 1.5 < anyio.current_time() - begun < 14 + 1.25 + 2.5
        assert [update["status"] for update in updates] == [
            "accepted", "running", "running", "succeeded",
        ]  # fmt: skip
        assert (await job.response()).json() == {"done": True}
    request = server.submissions[0]
    assert request.headers["prefer"] == "respond-async"
    assert len(request.headers["idempotency-key"]) == 38


async def test_a_202_without_a_document_is_a_job(http: ModuleType) -> None:
    server = ByHand(Response("please wait", 202), Response("gone", 500))
    server.document = None
    async with plain(http, server.app) as client:
        job = await submit(client, client.build_request("POST", "/work"))
        updates = await seen(job)
    assert [update["status"] for update in updates] == ["running", "failed"]
    assert updates[-1]["response"]["status"] == 500


async def test_preferences_and_keys_of_the_request_stay(http: ModuleType) -> None:
    server = ByHand()
    async with plain(http, server.app) as client:
        for prefer, sent in (("wait=3", "wait=3, respond-async"), ("Respond-Async, wait=3",) * 2):
            headers = {"prefer": prefer, "idempotency-key": "mine"}
            request = client.build_request("POST", "/work", headers=headers)
            await submit(client, request)
            assert request.headers["prefer"] == prefer
            assert server.submissions[-1].headers["prefer"] == sent
            assert server.submissions[-1].headers["idempotency-key"] == "mine"


async def test_an_azure_style_operation_is_resumed_by_its_url(http: ModuleType) -> None:
    done = shown("Succeeded", resourceLocation="/result")
    server = ByHand(shown("Running"), shown("Running", percent=50), done, done)
    async with plain(http, server.app) as client:
        job = RemoteJob.from_url(client, "/status/1")
        updates = await seen(job)
        assert [update["status"] for update in updates] == ["Running", "Running", "Succeeded"]
        assert (await job.response()).json() == {"from": "the result"}


async def test_events_are_followed_over_streams_that_end(http: ModuleType) -> None:
    server = ByHand(
        events(frame(ours("running", STREAMS, progress=0.1), 1), ": nothing\n\n"),
        Response(status_code=503),
        events(frame(ours("running", STREAMS, progress=0.1), 1), "event: other\ndata: {}\n\n"),
        events(frame(ours("succeeded", STREAMS), 2), "data: never read\n\n"),
    )
    server.document = ours("queued", STREAMS)
    async with plain(http, server.app) as client:
        job = await submit(client, client.build_request("POST", "/work"))
        begun = anyio.current_time()
        updates = await seen(job)
        assert 4.7 < anyio.current_time() - begun < 5.3  # twice what `retry` says, and a backoff
    assert [update["status"] for update in updates] == ["queued", "running", "succeeded"]
    assert server.asked() == [("GET", "/status/1/events")] * 4
    assert [poll.headers.get("last-event-id") for poll in server.polls] == [None, "1", "1", "1"]
    assert {poll.headers["accept"] for poll in server.polls} == {"text/event-stream"}


@pytest.mark.parametrize(
    "answer",
    [
        Response("no such thing", 404),
        JSONResponse({"status": "running"}),
        Response(status_code=204),
        events(),
    ],
)
async def test_where_there_are_no_events_polls_wait(http: ModuleType, answer: Response) -> None:
    async def changed(request: Request) -> Response:
        await anyio.sleep(3)
        assert request.headers["prefer"] == "wait=20"
        return JSONResponse(ours("running", STREAMS, progress=0.5))

    server = ByHand(answer, changed, JSONResponse(ours("succeeded", STREAMS)))
    server.document = ours("queued", STREAMS)
    async with plain(http, server.app) as client:
        job = await submit(client, client.build_request("POST", "/work"))
        updates = await seen(job)
    assert [update["status"] for update in updates] == ["queued", "running", "succeeded"]
    assert server.asked() == [("GET", "/status/1/events")] + [("GET", "/status/1/status")] * 2


async def test_a_job_is_cancelled_as_its_server_has_it(http: ModuleType) -> None:
    server = ByHand(JSONResponse(ours("canceling"), 202), Response(status_code=409))
    server.script.append(JSONResponse(ours("succeeded")))
    server.document = ours("running")
    async with plain(http, server.app) as client:
        job = await submit(client, client.build_request("POST", "/work"))
        assert (await job.cancel())["status"] == "canceling"
        assert (await job.cancel())["status"] == "succeeded"  # it was too late
        assert server.polls[0].headers["content-type"] == "application/json"
        assert server.asked()[:2] == [("POST", "/status/1/cancel")] * 2
        server.script = [pending(), Response(status_code=202), pending(), Response("no", 405)]
        job = RemoteJob.from_url(client, "/status/2")  # as FHIR has it
        assert (await job.cancel())["status"] == "canceling"
        assert server.asked()[-1] == ("DELETE", "/status/2")
        with pytest.raises(FollowError, match=r"could not be cancelled: HTTP 405"):
            await job.cancel()


async def test_a_server_that_stays_away_is_an_error(http: ModuleType) -> None:
    server = ByHand(*[http.ConnectError("refused")] * 40)
    async with plain(http, server.app) as client:
        with pytest.raises(Unreachable, match="refused") as caught:
            await RemoteJob.from_url(client, "/status/1").status()
    assert isinstance(caught.value, http.TransportError)
    assert isinstance(caught.value.__cause__, http.ConnectError)


async def test_a_lost_202_is_asked_for_again_under_its_key(http: ModuleType) -> None:
    server = ByHand()
    lost = [http.ReadError("lost"), http.RemoteProtocolError("lost")]

    async def answer(request: Any) -> Any:
        response = await inner.handle_async_request(request)
        await response.aread()
        if lost:
            raise lost.pop()
        return response

    inner = http.ASGITransport(server.app)
    async with http.AsyncClient(transport=http.MockTransport(answer)) as client:
        job = await submit(client, client.build_request("POST", "http://test/work", json={}))
        assert (await job.response()).json() == {"done": True}
    assert len(server.submissions) == 3
    assert len({request.headers["idempotency-key"] for request in server.submissions}) == 1


async def test_credentials_of_the_client_stay_with_their_origin(http: ModuleType) -> None:
    server = ByHand(pending(set_cookie="there=1"))
    server.first = {"location": "http://other/status/1"}
    client = plain(
        http,
        server.app,
        auth=("user", "password"),
        headers={"x-api-key": "secret"},
        cookies={"session": "1"},
    )
    async with client:
        job = await submit(client, client.build_request("POST", "/work"))
        assert server.submissions[0].headers["authorization"].startswith("Basic")
        await seen(job)
        assert (await job.response()).json() == {"done": True}
        await job.status()
        await job.cancel()
        assert len(server.polls) > 3
        for poll in server.polls:
            assert not {"authorization", "x-api-key"} & {*poll.headers}
            assert poll.headers.get("cookie") in (None, "there=1")
        server.polls.clear()
        await RemoteJob.from_url(client, "/status/2").status()
        assert server.polls[0].headers["authorization"].startswith("Basic")
        assert server.polls[0].headers["cookie"] == "session=1"


# httpx and early httpx2 leave their own generators to the collector, which trio tells of.
@pytest.mark.filterwarnings(r"ignore:Async generator 'httpx2?\.:ResourceWarning")
async def test_leaving_the_updates_leaves_their_stream(http: ModuleType) -> None:
    closed: list[bool] = []

    class Endless(http.AsyncByteStream):  # type: ignore[name-defined,misc] # the module's own
        async def __aiter__(self) -> Any:
            while True:
                await anyio.sleep(1)
                yield frame(ours("running", STREAMS), 1).encode()

        async def aclose(self) -> None:
            closed.append(True)

    async def answer(request: Any) -> Any:
        if request.url.path == "/work":
            return http.Response(202, json=ours("queued", STREAMS), headers={"location": "/1"})
        fields = {"content-type": "text/event-stream"}
        return http.Response(200, headers=fields, stream=Endless())

    async with http.AsyncClient(transport=http.MockTransport(answer)) as client:
        job = await submit(client, client.build_request("POST", "http://test/work"))
        updates = job.updates()
        assert (await anext(updates))["status"] == "queued"
        assert (await anext(updates))["status"] == "running"
        assert closed == []
        await updates.aclose()  # type: ignore[attr-defined] # it is a generator
        assert closed == [True]


# --- the sync twins ----------------------------------------------------------------------------


def test_the_synchronous_twins_do_the_same(http: ModuleType) -> None:
    stream = frame(ours("running", STREAMS), 1) + frame(ours("succeeded", STREAMS), 2)
    asked: list[str] = []

    def answer(request: Any) -> Any:
        path = request.url.path
        asked.append(f"{request.method} {path}")
        if path == "/work":
            return http.Response(202, json=ours("queued", STREAMS), headers={"location": "/s/1"})
        if path == "/status/1/events":
            return http.Response(200, text=stream, headers={"content-type": "text/event-stream"})
        if path == "/status/1/cancel":
            return http.Response(202, json=ours("canceling", STREAMS))
        if path == "/status/1/status":
            return http.Response(200, json=ours("running", STREAMS))
        return http.Response(200, text="done", headers={"job-status": "succeeded"})

    with http.Client(transport=http.MockTransport(answer), base_url="http://test") as client:
        job = submit_sync(client, client.build_request("POST", "/work"))
        assert job.status()["status"] == "running"
        assert [update["status"] for update in job.updates()][-2:] == ["running", "succeeded"]
        assert job.cancel()["status"] == "canceling"
        assert job.response(deadline=5).text == "done"
        assert job.response() is job.response()
        again = SyncRemoteJob.from_url(client, job.status_url)
        assert again.status()["status"] == "succeeded"
        assert again.response().text == "done"
    assert asked[:4] == [
        "POST /work", "GET /status/1/status", "GET /status/1/events", "POST /status/1/cancel",
    ]  # fmt: skip


def test_what_is_no_client_is_refused() -> None:
    with pytest.raises(TypeError, match="no client of httpx2 or httpx"):
        SyncRemoteJob.from_url(object(), "http://test/")
