"""A 202 is followed over real sockets, from servers of ours and of others, and inside an SDK."""

from __future__ import annotations

import importlib
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from raincheck import LongRunningMiddleware, long_running, report
from raincheck.client import (
    DeadlineExceeded,
    FollowError,
    SyncRemoteJob,
    follow,
    submit,
    submit_sync,
)
from tests.client.servers import ByHand, pending, serving, shown

pytestmark = [pytest.mark.real, pytest.mark.anyio, pytest.mark.one_loop]


@pytest.fixture(params=[httpx2, httpx], ids=["httpx2", "httpx"])
def http(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


class Ours:
    """An app of ours.

    Attributes:
        runs: the times that a handler was started.
        cleaned_up, stopped: the times that one was stopped, and that it was.
    """

    def __init__(self, **settings: Any) -> None:
        self.runs = 0
        self.cleaned_up = 0
        self.stopped = threading.Event()
        routes = [
            Route("/slow", self.slow, methods=["GET", "POST"]),
            Route("/endless", self.endless, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/refused", self.refused, methods=["POST"]),
        ]
        self.app = LongRunningMiddleware(Starlette(routes=routes), **settings)

    @long_running
    async def slow(self, request: Request) -> Response:
        self.runs += 1
        await anyio.sleep(0.6)
        report(0.5, "half")
        await anyio.sleep(0.9)
        fields = {"x-method": request.method}
        return Response(await request.body() or b"nothing", 201, fields, "text/plain")

    @long_running
    async def endless(self, request: Request) -> Response:
        self.runs += 1
        try:
            await anyio.sleep(60)
        finally:
            self.cleaned_up += 1
            self.stopped.set()
        return Response()

    @long_running
    async def refused(self, request: Request) -> Response:
        await anyio.sleep(0.5)
        return Response("try another day", 503, {"retry-after": "1"})

    @long_running
    async def chat(self, request: Request) -> Response:
        self.runs += 1
        asked = await request.json()
        await anyio.sleep(1)
        return JSONResponse(
            {
                "id": "chat-1",
                "object": "chat.completion",
                "created": 1,
                "model": asked["model"],
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": "stop",
                        "message": {"role": "assistant", "content": "It has rained."},
                    }
                ],
            }
        )


@pytest.fixture
def ours() -> Ours:
    return Ours()


@pytest.fixture
def url(ours: Ours) -> Iterator[str]:
    with serving(ours.app) as url:
        yield url


# --- ours --------------------------------------------------------------------------------------


async def test_ours_is_followed(http: ModuleType, ours: Ours, url: str) -> None:
    told: list[Any] = []
    for settings in ({}, {"on_update": told.append}):
        transport = follow(http).AsyncFollowTransport(**settings)
        async with http.AsyncClient(transport=transport, base_url=url) as client:
            response = await client.post("/slow", content=b"x")
            assert (response.status_code, response.text) == (201, "x")
            assert response.headers["x-method"] == "POST"
            assert response.headers["job-status"] == "succeeded"
    assert [update["message"] for update in told] == [None, "half", "half"]
    assert ours.runs == 2


@pytest.mark.slow
def test_ours_is_followed_by_a_synchronous_client(http: ModuleType, url: str) -> None:
    with http.Client(transport=follow(http).FollowTransport(), base_url=url) as client:
        response = client.post("/slow", content=b"x")
        assert (response.status_code, response.text) == (201, "x")
        begun = time.monotonic()
        response = client.post("/refused")
        assert (response.status_code, response.text) == (503, "try another day")
        assert time.monotonic() - begun < 3  # it is final, and `Retry-After` is the handler's


async def test_handles_of_ours(http: ModuleType, url: str) -> None:
    async with http.AsyncClient(base_url=url) as client:
        job = await submit(client, client.build_request("POST", "/slow", content=b"x"))
        updates = [(update["status"], update["message"]) async for update in job.updates()]
        assert updates[0][0] in ("queued", "running")
        assert updates[-2:] == [("running", "half"), ("succeeded", "half")]
        assert (await job.response()).text == "x"


def test_synchronous_handles_of_ours(http: ModuleType, ours: Ours, url: str) -> None:
    with http.Client(base_url=url) as client:
        job = submit_sync(client, client.build_request("POST", "/endless"))
        assert job.status()["status"] == "running"
        updates = job.updates()
        next(updates)
        assert job.cancel()["status"] in ("canceling", "canceled")
        assert [update["status"] for update in updates][-1] == "canceled"
        assert job.response().status_code == 410
        assert ours.cleaned_up == 1


async def test_cancelling_the_wait_cancels_the_job(ours: Ours, url: str) -> None:
    transport = follow(httpx2).AsyncFollowTransport(cancel=True)
    async with httpx2.AsyncClient(transport=transport, base_url=url) as client:
        with anyio.move_on_after(1):
            await client.post("/endless")
        assert await anyio.to_thread.run_sync(ours.stopped.wait, 10)
    assert (ours.runs, ours.cleaned_up) == (1, 1)


RESUME = """
import sys

import httpx2

from raincheck.client import SyncRemoteJob

with httpx2.Client() as client:
    response = SyncRemoteJob.from_url(client, sys.argv[1]).response(deadline=30)
    print(response.status_code, response.text)
"""


@pytest.mark.slow
async def test_another_process_waits_on_after_the_deadline(ours: Ours, url: str) -> None:
    transport = follow(httpx2).AsyncFollowTransport(deadline=1)
    async with httpx2.AsyncClient(transport=transport, base_url=url) as client:
        begun = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            await client.post("/slow", content=b"x")
        assert time.monotonic() - begun < 1.8
    command = [sys.executable, "-c", RESUME, caught.value.status_url]
    done = await anyio.run_process(command, check=False)
    assert (done.stdout.decode(), done.stderr.decode()) == ("201 x\n", "")
    assert ours.runs == 1


# --- a connection that is cut ------------------------------------------------------------------


@contextmanager
def cutting(url: str, times: int) -> Iterator[str]:
    """A way to a server that loses the first answers: it cuts off as soon as one begins."""
    target = httpx2.URL(url)
    left = times

    def carry(client: socket.socket) -> None:
        nonlocal left
        with client, socket.create_connection((target.host, target.port)) as server:
            client.settimeout(30)
            server.settimeout(30)
            threading.Thread(target=pump, args=(client, server), daemon=True).start()
            try:
                while piece := server.recv(65_536):
                    if left:
                        left -= 1
                        client.shutdown(socket.SHUT_RDWR)
                        return
                    client.sendall(piece)
            except OSError:
                return

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while piece := source.recv(65_536):
                sink.sendall(piece)
        except OSError:
            return

    def listen() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=carry, args=(client,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


async def test_a_202_that_was_lost_makes_no_second_job(
    http: ModuleType, ours: Ours, url: str
) -> None:
    with cutting(url, 2) as way:
        transport = follow(http).AsyncFollowTransport()
        async with http.AsyncClient(transport=transport, base_url=way) as client:
            response = await client.post("/slow", content=b"x")
            assert (response.status_code, response.text) == (201, "x")
    assert ours.runs == 1


@pytest.mark.slow
async def test_without_a_key_a_202_that_was_lost_is_an_error(ours: Ours, url: str) -> None:
    with cutting(url, 1) as way:
        transport = follow(httpx2).AsyncFollowTransport(keys=False)
        async with httpx2.AsyncClient(transport=transport, base_url=way) as client:
            with pytest.raises((httpx2.ReadError, httpx2.RemoteProtocolError)):
                await client.post("/slow", content=b"x")
    assert ours.runs == 1


# --- others ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "script", "result"),
    [
        ({"location": "status/1"}, [pending(retry_after="1")], {"done": True}),
        ({"content-location": "/status/1"}, [pending(retry_after="1")], {"done": True}),
        (
            {"operation-location": "/status/1"},
            [shown("Running"), shown("Succeeded", resourceLocation="/result")],
            {"from": "the result"},
        ),
    ],
    ids=["by hand", "FHIR", "Azure"],
)
async def test_other_servers_are_followed(
    first: dict[str, str], script: list[Any], result: Any
) -> None:
    server = ByHand(*script)
    server.first = {**first, "retry-after": "1"}
    with serving(server.app) as url:
        transport = follow(httpx2).AsyncFollowTransport()
        async with httpx2.AsyncClient(transport=transport) as client:
            assert (await client.post(f"{url}/work")).json() == result
        server.script = []
        with httpx.Client(transport=follow(httpx).FollowTransport()) as client:
            response = await anyio.to_thread.run_sync(client.post, f"{url}/work")
            assert response.json() == {"done": True}


@pytest.mark.slow
async def test_credentials_stay_with_their_origin() -> None:
    here, there = ByHand(), ByHand(pending(retry_after="1"))
    with serving(here.app) as url, serving(there.app) as elsewhere:
        here.first = {"location": f"{elsewhere}/status/1", "set-cookie": "own=1; Path=/"}
        async with httpx2.AsyncClient(
            transport=follow(httpx2).AsyncFollowTransport(),
            base_url=url,
            auth=("user", "password"),
            headers={"x-api-key": "secret", "accept-language": "de"},
            cookies={"session": "1"},
        ) as client:
            assert (await client.post("/work")).json() == {"done": True}
        assert here.submissions[0].headers["x-api-key"] == "secret"
        assert len(there.polls) == 2
        for poll in there.polls:
            assert not {"authorization", "x-api-key", "cookie"} & {*poll.headers}
            assert poll.headers["accept-language"] == "de"


# --- inside an SDK -----------------------------------------------------------------------------


@pytest.fixture
def openai() -> Any:
    """Imported where it is used: that takes a second."""
    return importlib.import_module("openai")


QUESTION: Any = {"model": "rain-1", "messages": [{"role": "user", "content": "Has it rained?"}]}


def test_an_sdk_gets_its_answer_from_a_slow_route(openai: Any, ours: Ours, url: str) -> None:
    transport = follow(httpx2).FollowTransport()
    with openai.OpenAI(
        api_key="secret", base_url=f"{url}/v1", http_client=httpx2.Client(transport=transport)
    ) as sdk:
        answer = sdk.chat.completions.create(**QUESTION)
    assert answer.choices[0].message.content == "It has rained."
    assert ours.runs == 1


async def test_an_asynchronous_sdk_does(openai: Any, ours: Ours, url: str) -> None:
    client = httpx2.AsyncClient(transport=follow(httpx2).AsyncFollowTransport())
    async with openai.AsyncOpenAI(
        api_key="secret", base_url=f"{url}/v1", http_client=client
    ) as sdk:
        answer = await sdk.chat.completions.create(**QUESTION)
    assert answer.choices[0].message.content == "It has rained."
    assert ours.runs == 1


def test_the_deadline_comes_out_of_an_sdk(openai: Any, ours: Ours, url: str) -> None:
    transport = follow(httpx2).FollowTransport(deadline=0.5)
    with (
        openai.OpenAI(
            api_key="secret",
            base_url=f"{url}/v1",
            http_client=httpx2.Client(transport=transport),
            max_retries=0,
        ) as sdk,
        pytest.raises(openai.APITimeoutError) as caught,
    ):
        sdk.chat.completions.create(**QUESTION)
    late = caught.value.__cause__
    assert isinstance(late, FollowError)
    with httpx2.Client() as client:
        response = SyncRemoteJob.from_url(client, late.status_url).response()
    assert response.json()["id"] == "chat-1"
    assert ours.runs == 1


# --- answers that do not end ---------------------------------------------------------------------


def without_an_end(piece: bytes, pause: float) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield piece
            await anyio.sleep(pause)

    return StreamingResponse(pieces(), 202, {"retry-after": "1"})


# Whoever breaks a body off on trio, httpcore leaves generators of its own behind.
broken_off = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <async_generator object .*(Stream|_body)"
    ":pytest.PytestUnraisableExceptionWarning"
)


@contextmanager
def endless(piece: bytes, pause: float) -> Iterator[tuple[str, list[int]]]:
    """A server whose 202 and whose first poll never end; and how much of them it has sent."""
    sent: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            sent.append(len(message.get("body", b"")))
            await send(message)

        if scope["type"] == "lifespan":
            return
        number = len(asked)
        asked.append(scope["path"])
        if number > 1:
            await JSONResponse({"whole": True})(scope, receive, send)
            return
        response = without_an_end(piece, pause)
        response.headers["location"] = "/status/1"
        await response(scope, receive, counted)

    asked: list[str] = []
    with serving(app) as url:
        yield url, sent


def test_of_an_answer_without_an_end_no_more_is_read_than_a_document_has(http: ModuleType) -> None:
    with endless(b" " * 65_536, 0) as (url, sent):
        transport, _ = follow(http)
        with http.Client(transport=transport()) as client:
            assert client.post(f"{url}/work").json() == {"whole": True}
        assert sum(sent) < 32 * 1024 * 1024  # with what is on the way


@pytest.mark.slow
@broken_off
async def test_nor_by_an_asynchronous_client(http: ModuleType) -> None:
    with endless(b" " * 65_536, 0) as (url, sent):
        _, transport = follow(http)
        async with http.AsyncClient(transport=transport()) as client:
            assert (await client.post(f"{url}/work")).json() == {"whole": True}
        assert sum(sent) < 32 * 1024 * 1024


def test_the_deadline_holds_for_an_answer_that_comes_byte_by_byte(http: ModuleType) -> None:
    with endless(b" ", 0.05) as (url, _):
        transport, _ = follow(http)
        start = time.monotonic()
        client = http.Client(transport=transport(deadline=1))
        with client, pytest.raises(DeadlineExceeded) as caught:
            client.post(f"{url}/work")
        assert time.monotonic() - start < 5
        assert caught.value.status_url == f"{url}/status/1"


@pytest.mark.slow
@broken_off
async def test_so_does_that_of_an_asynchronous_client(http: ModuleType) -> None:
    with endless(b" ", 0.05) as (url, _):
        _, transport = follow(http)
        with anyio.fail_after(5):
            async with http.AsyncClient(transport=transport(deadline=1)) as client:
                with pytest.raises(DeadlineExceeded):
                    await client.post(f"{url}/work")
