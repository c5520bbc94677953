"""A 202 is followed, whatever server says it: the flow over both modules, on virtual time."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from email.utils import formatdate
from types import ModuleType
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from raincheck.client import (
    DeadlineExceeded,
    FollowError,
    Following,
    NoResponse,
    RemoteJob,
    Unreachable,
    follow,
)
from raincheck.client.errors import error_of
from tests.client.servers import ByHand, client_of, pending, shown

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[httpx2, httpx], ids=["httpx2", "httpx"])
def http(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


def test_what_is_no_module_to_follow_with_is_said() -> None:
    wrong: Any
    for wrong in "httpx2", pickle, httpx2.Client:
        with pytest.raises(
            TypeError, match=r"takes the module httpx2 or httpx, like follow\(httpx2\)"
        ):
            follow(wrong)


async def test_a_202_is_followed_to_the_response(http: ModuleType) -> None:
    server = ByHand(pending(), pending(retry_after="7"))
    async with client_of(http, server.app) as client:
        begun = anyio.current_time()
        response = await client.post("/work", json={"n": 1})
        assert (response.status_code, response.json()) == (200, {"done": True})
        assert 8.5 < anyio.current_time() - begun < 12  # 1 and 2 seconds with jitter, and 7
        assert len(server.submissions) == 1


async def test_a_date_to_ask_again_is_honoured(http: ModuleType) -> None:
    import time

    server = ByHand(pending(retry_after=formatdate(time.time() + 100, usegmt=True)))
    async with client_of(http, server.app) as client:
        begun = anyio.current_time()
        await client.post("/work")
        assert 99 < anyio.current_time() - begun < 103


async def test_pauses_double_up_to_half_a_minute(http: ModuleType) -> None:
    server = ByHand(*[pending() for _ in range(9)])
    async with client_of(http, server.app) as client:
        begun = anyio.current_time()
        await client.post("/work")
        assert 0.74 * 181 < anyio.current_time() - begun < 1.26 * 181


async def test_a_server_that_answers_long_polls_is_not_left_to_wait(http: ModuleType) -> None:
    answer = pending(preference_applied="wait=20")

    async def waited(request: Request) -> Response:
        await anyio.sleep(20)
        return answer

    server = ByHand(pending(), answer, *[waited] * 5)
    async with client_of(http, server.app) as client:
        begun = anyio.current_time()
        await client.post("/work")
        assert 100 < anyio.current_time() - begun < 110  # two to five of pauses, and the polls
        assert {poll.headers["prefer"] for poll in server.polls} == {"wait=20"}


async def test_what_is_no_job_is_an_answer(http: ModuleType) -> None:
    server = ByHand()
    server.first = {}
    async with client_of(http, server.app) as client:
        assert (await client.post("/work")).status_code == 202
        assert server.polls == []


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_what_passes_is_waited_out(http: ModuleType, status: int) -> None:
    server = ByHand(Response(status_code=status), Response(status_code=status))
    async with client_of(http, server.app) as client:
        assert (await client.post("/work")).json() == {"done": True}


async def test_a_503_of_the_job_itself_is_final(http: ModuleType) -> None:
    server = ByHand(Response("interrupted", 503, {"job-status": "failed"}))
    async with client_of(http, server.app) as client:
        response = await client.post("/work")
        assert (response.status_code, response.text) == (503, "interrupted")


async def test_a_server_that_stays_away_is_given_up(http: ModuleType) -> None:
    server = ByHand(*[Response("away", 503, {"retry-after": "10"}) for _ in range(50)])
    async with client_of(http, server.app) as client:
        begun = anyio.current_time()
        with pytest.raises(Unreachable, match="HTTP 503") as caught:
            await client.post("/work")
        assert isinstance(caught.value, http.TransportError)
        assert caught.value.status_url == "http://test/status/1"
        assert 119 < anyio.current_time() - begun < 140
        assert len(server.submissions) == 1


async def test_a_server_that_comes_and_goes_is_not(http: ModuleType) -> None:
    away = [Response("away", 503, {"retry-after": "60"}) for _ in range(2)]
    server = ByHand(*away, pending(), *away, pending(), *away)
    async with client_of(http, server.app) as client:
        assert (await client.post("/work")).json() == {"done": True}


async def test_connection_errors_while_polling_are_waited_out(http: ModuleType) -> None:
    server = ByHand(http.ReadError("reset"), http.ConnectError("refused"))
    async with client_of(http, server.app) as client:
        assert (await client.post("/work")).json() == {"done": True}
        assert len(server.submissions) == 1


async def test_the_deadline_leaves_the_job_to_be_followed_again(http: ModuleType) -> None:
    server = ByHand(*[pending(retry_after="10", location="/status/1") for _ in range(4)])
    async with client_of(http, server.app, deadline=25) as client:
        begun = anyio.current_time()
        with pytest.raises(DeadlineExceeded, match="25 seconds") as caught:
            await client.post("/work")
        assert anyio.current_time() - begun == pytest.approx(25, abs=0.1)
        assert isinstance(caught.value, http.TimeoutException)
        url = caught.value.status_url
        assert url == "http://test/status/1"
        response = await RemoteJob.from_url(client, url).response()
        assert response.json() == {"done": True}
        assert len(server.submissions) == 1


async def test_an_unsafe_request_gets_a_key_and_a_safe_one_none(http: ModuleType) -> None:
    server = ByHand()
    async with client_of(http, server.app) as client:
        await client.post("/work")
        await client.get("/work")
        await client.post("/work", headers={"idempotency-key": '"mine"'})
    keys = [request.headers.get("idempotency-key") for request in server.submissions]
    assert keys[0] is not None
    assert len(keys[0]) == 38
    assert keys[1:] == [None, '"mine"']


class Losing:
    """Loses the answers of the first requests, after they were done."""

    def __init__(self, http: ModuleType, inner: Any, times: int) -> None:
        self.http, self.inner, self.times = http, inner, times
        self.sent = 0

    def made(self) -> Any:
        outer = self

        class Transport(self.http.AsyncBaseTransport):  # type: ignore[name-defined,misc] # the module's own
            async def handle_async_request(self, request: Any) -> Any:
                outer.sent += 1
                response = await outer.inner.handle_async_request(request)
                if outer.sent <= outer.times:
                    await response.aread()
                    raise outer.http.ReadError("the answer was lost")
                return response

        return Transport()


async def test_a_lost_202_is_asked_for_again_under_its_key(http: ModuleType) -> None:
    server = ByHand()
    losing = Losing(http, http.ASGITransport(server.app), 2)
    transport = follow(http).AsyncFollowTransport(losing.made())
    async with http.AsyncClient(transport=transport, base_url="http://test") as client:
        assert (await client.post("/work", content=b"x")).json() == {"done": True}
    keys = {request.headers["idempotency-key"] for request in server.submissions}
    assert (len(server.submissions), len(keys)) == (3, 1)


async def test_without_a_key_nothing_is_sent_twice(http: ModuleType) -> None:
    server = ByHand()
    losing = Losing(http, http.ASGITransport(server.app), 1)
    transport = follow(http).AsyncFollowTransport(losing.made())
    async with http.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(http.ReadError):
            await client.get("/work")
    assert len(server.submissions) == 1


async def test_a_body_that_cannot_be_sent_again_is_not(http: ModuleType) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"x"

    server = ByHand()
    losing = Losing(http, http.ASGITransport(server.app), 1)
    transport = follow(http).AsyncFollowTransport(losing.made())
    async with http.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(http.ReadError):
            await client.post("/work", content=stream())


@pytest.mark.parametrize(
    "location",
    ["/status/2", "status/2", "http://test/status/2", "//test/status/2", "./there/../status/2"],
)
async def test_relative_urls_are_the_requests_own(http: ModuleType, location: str) -> None:
    server = ByHand()
    server.first = {"location": location}
    async with client_of(http, server.app) as client:
        assert (await client.post("/work", params={"go": "1"})).json() == {"done": True}
    assert server.asked() == [("GET", "/status/2")]


async def test_redirects_of_the_status_url_are_followed(http: ModuleType) -> None:
    server = ByHand(
        RedirectResponse("/elsewhere/1", 307), pending(), RedirectResponse("/result", 303)
    )
    async with client_of(http, server.app) as client:
        assert (await client.post("/work")).json() == {"from": "the result"}


async def test_redirects_without_an_end_are_an_error(http: ModuleType) -> None:
    server = ByHand(*[RedirectResponse("/status/1") for _ in range(20)])
    async with client_of(http, server.app) as client:
        with pytest.raises(Unreachable, match="redirects"):
            await client.post("/work")
    assert len(server.polls) == 11


CREDENTIALS = {"authorization": "Bearer secret", "cookie": "session=1", "x-api-key": "secret"}


async def test_credentials_go_with_every_poll(http: ModuleType) -> None:
    server = ByHand(pending(set_cookie="sticky=b; Path=/"), pending())
    async with client_of(http, server.app) as client:
        await client.post("/work", headers=CREDENTIALS, json={})
    for poll in server.polls:
        for name in ("authorization", "x-api-key"):
            assert poll.headers[name] == CREDENTIALS[name]
        assert "content-type" not in poll.headers
        assert "idempotency-key" not in poll.headers
    assert [poll.headers["cookie"] for poll in server.polls] == [
        "session=1",
        "session=1; sticky=b",
        "session=1; sticky=b",
    ]


@pytest.mark.parametrize("origin", ["http://other", "https://test", "http://test:81"])
async def test_credentials_stay_with_their_origin(http: ModuleType, origin: str) -> None:
    server = ByHand(pending())
    server.first = {"location": f"{origin}/status/1", "set-cookie": "own=1"}
    async with client_of(http, server.app) as client:
        await client.post("/work", headers={**CREDENTIALS, "accept-language": "de"})
    for poll in server.polls:
        assert "session" not in poll.headers.get("cookie", "")
        assert "authorization" not in poll.headers
        assert "x-api-key" not in poll.headers
        assert poll.headers["accept-language"] == "de"


async def test_cookies_of_an_origin_stay_there(http: ModuleType) -> None:
    server = ByHand(pending(set_cookie="there=1"), RedirectResponse("http://test/status/2"))
    server.first = {"location": "http://test:81/status/1", "set-cookie": "here=1"}
    async with client_of(http, server.app) as client:
        await client.post("/work")
    cookies = [poll.headers.get("cookie") for poll in server.polls]
    assert cookies == [None, "there=1", "here=1"]


async def test_another_origin_sets_no_cookie_in_this_ones_name(http: ModuleType) -> None:
    server = ByHand()
    for origin, kept in (("http://other", {}), ("http://test", {"late": "1"})):
        server.first = {"location": f"{origin}/result"}
        async with client_of(http, server.app) as client:
            assert (await client.post("/work")).json() == {"from": "the result"}
            assert dict(client.cookies) == kept


async def test_an_azure_style_operation_is_followed_to_its_resource(http: ModuleType) -> None:
    server = ByHand(shown("Running"), shown("Succeeded", resourceLocation="/result"))
    server.first = {"operation-location": "/status/1"}
    async with client_of(http, server.app) as client:
        assert (await client.post("/work")).json() == {"from": "the result"}


@pytest.mark.parametrize(
    ("method", "location", "result"),
    [
        ("POST", {"location": "/result"}, {"from": "the result"}),
        ("PUT", {"location": "/result"}, {"from": "the request's own URL"}),
        ("POST", {}, {"status": "Succeeded", "size": 4}),
    ],
)
async def test_an_azure_style_result_is_where_azures_clients_look(
    http: ModuleType, method: str, location: dict[str, str], result: Any
) -> None:
    server = ByHand(shown("NotStarted"), shown("Succeeded", size=4))
    server.first = {"operation-location": "/status/1", **location}
    async with client_of(http, server.app) as client:
        assert (await client.request(method, "/work")).json() == result
    assert server.asked() == [("GET", "/status/1")] * 2


@pytest.mark.parametrize("status", ["Failed", "Canceled"])
async def test_an_azure_style_operation_that_fails_is_an_error(
    http: ModuleType, status: str
) -> None:
    server = ByHand(shown(status, error={"code": "Oops", "message": "The disk is full."}))
    server.first = {"operation-location": "/status/1", "location": "/result"}
    async with client_of(http, server.app) as client:
        with pytest.raises(NoResponse, match="The disk is full") as caught:
            await client.post("/work")
    assert isinstance(caught.value, http.RequestError)
    assert caught.value.status_url == "http://test/status/1"


async def test_what_is_no_operation_is_the_response(http: ModuleType) -> None:
    server = ByHand(JSONResponse({"rows": 3}))
    server.first = {"operation-location": "/status/1"}
    async with client_of(http, server.app) as client:
        assert (await client.post("/work")).json() == {"rows": 3}


async def test_a_result_with_a_status_is_a_result(http: ModuleType) -> None:
    server = ByHand(pending(), JSONResponse({"status": "running", "id": "vm-1"}))
    async with client_of(http, server.app) as client:
        assert (await client.post("/work")).json() == {"status": "running", "id": "vm-1"}


async def test_a_fhir_style_status_is_followed(http: ModuleType) -> None:
    server = ByHand(pending(), pending())
    server.first = {"content-location": "http://test/status/1"}
    async with client_of(http, server.app) as client:
        assert (await client.get("/work")).json() == {"done": True}


async def test_updates_are_told_once_each(http: ModuleType) -> None:
    told: list[Any] = []
    server = ByHand(
        *[JSONResponse({"progress": n}, 202) for n in (0.1, 0.1, 0.5)], pending(), pending()
    )
    async with client_of(http, server.app, on_update=told.append) as client:
        await client.post("/work")
    assert [document.get("progress") for document in told] == [None, 0.1, 0.5, None]
    assert [document["status"] for document in told] == [
        "accepted",
        "running",
        "running",
        "running",
    ]


LINKS = {"self": "/status/1/status", "result": "/status/1", "cancel": "/status/1/cancel"}


async def test_where_there_is_a_monitor_it_is_asked_for_updates(http: ModuleType) -> None:
    told: list[Any] = []

    async def changed(request: Request) -> Response:
        await anyio.sleep(3)
        assert request.headers["prefer"] == "wait=20"
        return shown("running", progress=0.5, job_id="1", links=LINKS)

    server = ByHand(changed, shown("succeeded", job_id="1", links=LINKS))
    server.document = {"status": "queued", "job_id": "1", "links": LINKS}
    async with client_of(http, server.app, on_update=told.append) as client:
        assert (await client.post("/work")).json() == {"done": True}
    assert server.asked() == [("GET", "/status/1/status")] * 2 + [("GET", "/status/1")]
    assert [document["status"] for document in told] == ["queued", "running", "succeeded"]


async def test_a_server_of_ours_answers_polls_that_wait_from_the_first_on(
    http: ModuleType,
) -> None:
    async def waited(request: Request) -> Response:
        await anyio.sleep(20)
        return pending(server.document, retry_after="30")

    server = ByHand(waited, waited)
    server.first["retry-after"] = "30"
    server.document = {"status": "running", "job_id": "1", "links": LINKS}
    async with client_of(http, server.app) as client:
        begun = anyio.current_time()
        await client.post("/work")
        assert anyio.current_time() - begun == pytest.approx(40, abs=0.5)


async def test_polls_that_ought_to_have_waited_and_have_not_are_slowed_down(
    http: ModuleType,
) -> None:
    server = ByHand()
    server.first["retry-after"] = "5"
    server.document = {"status": "running", "job_id": "1", "links": LINKS}
    server.script = [pending(server.document, retry_after="5") for _ in range(4)]
    async with client_of(http, server.app) as client:
        begun = anyio.current_time()
        await client.post("/work")
        assert anyio.current_time() - begun == pytest.approx(20, abs=0.5)


async def test_no_poll_waits_where_the_client_will_not(http: ModuleType) -> None:
    server = ByHand(pending(preference_applied="wait=20"), pending())
    async with client_of(http, server.app, wait=0) as client:
        await client.post("/work")
    assert all("prefer" not in poll.headers for poll in server.polls)


async def test_a_poll_waits_no_longer_than_the_deadline(http: ModuleType) -> None:
    async def long(request: Request) -> Response:
        await anyio.sleep(int(request.headers.get("prefer", "wait=0").removeprefix("wait=")))
        return pending(preference_applied="wait")

    server = ByHand(*[long] * 9)
    async with client_of(http, server.app, deadline=30) as client:
        begun = anyio.current_time()
        with pytest.raises(DeadlineExceeded):
            await client.post("/work")
        assert anyio.current_time() - begun == pytest.approx(30, abs=0.1)
    asked = [int(poll.headers.get("prefer", "wait=0")[5:]) for poll in server.polls]
    assert asked[0] == 20
    assert 7 < asked[1] < 10


async def test_cancelling_the_wait_cancels_the_job_where_that_is_wanted(http: ModuleType) -> None:
    for wanted in (True, False):
        for links, asked in ((LINKS, ("POST", "/status/1/cancel")), ({}, ("DELETE", "/status/1"))):
            server = ByHand(*[pending(retry_after="10") for _ in range(9)])
            server.document = {"status": "running", "job_id": "1", "links": links}
            async with client_of(http, server.app, cancel=wanted, wait=0) as client:
                with anyio.move_on_after(15):
                    await client.post("/work", headers={"authorization": "Bearer secret"})
            assert (asked in server.asked()) is wanted
            assert ("DELETE" in dict(server.asked())) is (wanted and not links)
            if wanted:
                assert server.polls[-1].headers["authorization"] == "Bearer secret"


async def test_a_cancel_that_does_not_arrive_hides_nothing(http: ModuleType) -> None:
    server = ByHand(pending(retry_after="10"), http.ReadError("away"))
    async with client_of(http, server.app, cancel=True) as client:
        with anyio.move_on_after(5) as scope:
            with pytest.raises(anyio.get_cancelled_exc_class()) as caught:
                await client.post("/work")
            raise caught.value
    assert scope.cancelled_caught
    assert "could not be cancelled: ReadError" in caught.value.__notes__[0]


async def test_a_deadline_cancels_nothing(http: ModuleType) -> None:
    server = ByHand(*[pending(retry_after="10") for _ in range(9)])
    async with client_of(http, server.app, cancel=True, deadline=5) as client:
        with pytest.raises(DeadlineExceeded):
            await client.post("/work")
    assert {method for method, _ in server.asked()} <= {"GET"}


async def test_without_keys_nothing_unsafe_is_sent_twice(http: ModuleType) -> None:
    server = ByHand()
    losing = Losing(http, http.ASGITransport(server.app), 1)
    transport = follow(http).AsyncFollowTransport(losing.made(), keys=False)
    async with http.AsyncClient(transport=transport, base_url="http://test") as client:
        with pytest.raises(http.ReadError):
            await client.post("/work", content=b"x")
        await client.post("/work", content=b"x")
    assert [request.headers.get("idempotency-key") for request in server.submissions] == [None] * 2


async def test_a_request_that_an_auth_sends_again_is_the_same_one(http: ModuleType) -> None:
    class Refreshing(http.Auth):  # type: ignore[name-defined,misc] # the module's own
        def auth_flow(self, request: Any) -> Any:
            request.headers["authorization"] = "Bearer old"
            response = yield request
            if response.status_code == 401:
                request.headers["authorization"] = "Bearer new"
                yield request

    server = ByHand(pending(), Response(status_code=401), pending())
    async with client_of(http, server.app) as client:
        assert (await client.post("/work", auth=Refreshing())).json() == {"done": True}
    assert len(server.submissions) == 2
    assert len({each.headers["idempotency-key"] for each in server.submissions}) == 1
    tokens = [poll.headers["authorization"] for poll in server.polls]
    assert tokens == ["Bearer old"] * 2 + ["Bearer new"] * 2


async def test_a_request_that_nobody_took_is_not_sent_again(http: ModuleType) -> None:
    sent = []

    async def refuse(request: Any) -> Any:
        sent.append(request)
        raise http.ConnectError("refused")

    transport = follow(http).AsyncFollowTransport(http.MockTransport(refuse))
    async with http.AsyncClient(transport=transport) as client:
        with pytest.raises(http.ConnectError):
            await client.post("http://test/work")
    assert len(sent) == 1


async def test_an_answer_that_a_gateway_lost_is_asked_for_again(http: ModuleType) -> None:
    statuses = [502, 504, 200]

    async def answer(request: Any) -> Any:
        return http.Response(statuses.pop(0), text=request.headers["idempotency-key"])

    transport = follow(http).AsyncFollowTransport(http.MockTransport(answer))
    async with http.AsyncClient(transport=transport) as client:
        assert (await client.post("http://test/work")).status_code == 200
        statuses[:] = [502, 502, 502]
        assert (await client.post("http://test/work")).status_code == 502
        statuses[:] = [503]
        assert (await client.post("http://test/work")).status_code == 503


async def test_a_202_whose_body_is_cut_off_is_a_202(http: ModuleType) -> None:
    class Cut(http.AsyncByteStream):  # type: ignore[name-defined,misc] # the module's own
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"{"
            raise http.ReadError("reset")

    answers = [
        http.Response(202, headers={"location": "/status/1"}, stream=Cut()),
        http.Response(202, headers={"location": "/status/1"}, stream=Cut()),
        http.Response(200, text="done"),
    ]

    async def answer(request: Any) -> Any:
        return answers.pop(0)

    transport = follow(http).AsyncFollowTransport(http.MockTransport(answer))
    async with http.AsyncClient(transport=transport) as client:
        assert (await client.post("http://test/work")).text == "done"


async def test_the_response_is_left_for_the_caller_to_read(http: ModuleType) -> None:
    reads: list[bytes] = []

    class Body(http.AsyncByteStream):  # type: ignore[name-defined,misc] # the module's own
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in (b"one", b"two"):
                reads.append(piece)
                yield piece

    answers = [
        http.Response(202, headers={"location": "/status/1"}),
        http.Response(200, stream=Body()),
    ]

    async def answer(request: Any) -> Any:
        return answers.pop(0)

    transport = follow(http).AsyncFollowTransport(http.MockTransport(answer))
    client = http.AsyncClient(transport=transport)
    async with client, client.stream("POST", "http://test/work") as response:
        assert reads == []
        assert [piece async for piece in response.aiter_bytes()] == [b"one", b"two"]


class Time:
    """A clock that the sleep beside it moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_synchronous_client_follows_as_well(http: ModuleType) -> None:
    time, told = Time(), list[Any]()
    answers: list[Any] = [
        http.Response(202, json={}, headers={"location": "/s", "retry-after": "4"}),
        http.ReadError("reset"),
        http.Response(202, json={"progress": 1}),
        http.Response(201, text="done"),
    ]

    def answer(request: Any) -> Any:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    transport = follow(http).FollowTransport(
        http.MockTransport(answer), clock=time.clock, sleep=time.sleep, on_update=told.append
    )
    with http.Client(transport=transport) as client:
        response = client.post("http://test/work")
        assert (response.status_code, response.text) == (201, "done")
    assert told == [{"status": "running"}, {"progress": 1, "status": "running"}]
    assert 4 + 0.75 + 1.5 <= time.now <= 4 + 1.25 + 2.5


def test_a_synchronous_deadline_and_an_interrupted_wait(http: ModuleType) -> None:
    time, asked = Time(), list[str]()
    interrupt = False

    def answer(request: Any) -> Any:
        asked.append(request.method)
        if interrupt and request.method == "GET":
            raise KeyboardInterrupt
        return http.Response(202, headers={"location": "/s", "retry-after": "4"})

    def client(**settings: Any) -> Any:
        transport = follow(http).FollowTransport(
            http.MockTransport(answer), clock=time.clock, sleep=time.sleep, **settings
        )
        return http.Client(transport=transport)

    with client(deadline=10) as each, pytest.raises(DeadlineExceeded):
        each.post("http://test/work")
    assert time.now == 10
    interrupt = True
    for cancel in (True, False):
        asked.clear()
        with client(cancel=cancel) as each, pytest.raises(KeyboardInterrupt):
            each.post("http://test/work")
        assert asked == ["POST", "GET", *["DELETE"] * cancel]


def test_timeouts_are_the_requests_own_and_end_by_the_deadline(http: ModuleType) -> None:
    time, timeouts = Time(), list[Any]()

    def answer(request: Any) -> Any:
        timeouts.append(request.extensions["timeout"])
        time.sleep(2)
        return http.Response(202, headers={"location": "/s", "preference-applied": "wait"})

    transport = follow(http).FollowTransport(
        http.MockTransport(answer), clock=time.clock, sleep=time.sleep, deadline=60
    )
    with http.Client(transport=transport, timeout=5) as client, pytest.raises(DeadlineExceeded):
        client.post("http://test/work")
    assert [timeouts[0][name] for name in ("connect", "read", "write", "pool")] == [5] * 4
    assert timeouts[1]["read"] == 25
    assert max(timeouts[-1].values()) <= 2


@pytest.mark.parametrize("settings", [{"deadline": -1}, {"wait": -0.1}, {"wait": float("nan")}])
def test_settings_are_checked(settings: Any) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        Following(**settings)


def test_errors_go_to_other_processes(http: ModuleType) -> None:
    for kind in (DeadlineExceeded, Unreachable, NoResponse, FollowError):
        error = kind("late", "http://test/s")
        if kind is not FollowError:
            error = error_of(http, kind, "late", "http://test/s")
            assert isinstance(error, http.HTTPError)
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.status_url) == (kind, "late", "http://test/s")


@pytest.mark.parametrize(
    "link",
    [
        "http://h:x/",
        "/\x1b]0;title\x07",
        "http://xn--\xe9.-x/",
        "http://a..b/",
        "ftp://h/",
        "javascript:1",
    ],
)
async def test_a_link_that_is_no_url_is_no_link(http: ModuleType, link: str) -> None:
    server = ByHand(shown("Succeeded", resourceLocation=link))
    server.first = {"location": link}
    async with client_of(http, server.app) as client:
        assert (await client.post("/work")).status_code == 202  # no job that is known
        server.first = {"operation-location": link, "location": "/status/1"}
        server.document = {"links": {"self": link, "cancel": link, "events": link}}
        assert (await client.post("/work")).json()["status"] == "Succeeded"
        server.first = {"operation-location": "/status/1", "location": link}
        server.script = [shown("Succeeded", resourceLocation=link)]
        assert (await client.post("/work")).json()["status"] == "Succeeded"


def test_a_coding_that_is_none_passes_like_an_answer_cut_off(http: ModuleType) -> None:
    broken = {"content-encoding": "gzip", "location": "/status"}
    answers = [
        http.Response(202, headers=broken, stream=http.ByteStream(b"plain")),
        http.Response(502, headers=broken, stream=http.ByteStream(b"plain")),
        http.Response(200, text="done"),
    ]
    work = http.MockTransport(lambda request: answers.pop(0))
    transport = follow(http).FollowTransport(work, sleep=lambda seconds: None)
    with http.Client(transport=transport) as client:
        assert client.post("http://test/work").text == "done"


def test_a_deadline_may_be_far_away(http: ModuleType) -> None:
    seen: list[float] = []

    def work(request: Any) -> Any:
        seen.extend(request.extensions["timeout"].values())
        return http.Response(200)

    for deadline in 40 * 86400.0, float("inf"):
        transport = follow(http).FollowTransport(http.MockTransport(work), deadline=deadline)
        with http.Client(transport=transport, timeout=None) as client:
            client.get("http://test/")
    assert max(seen) * 1000 < 2**31  # what poll(2) takes
