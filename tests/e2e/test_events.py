"""Event streams over real sockets: many, across processes, and through stops and outages."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import socket
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.routing import BaseRoute

from raincheck import Jobs, report
from raincheck.status import events
from tests.e2e.conftest import Server
from tests.e2e.durable import Deployment, Line, until
from tests.e2e.listeners import Listener, many
from tests.event_stream import Reader
from tests.stores.postgres import Postgres
from tests.stores.valkey import Valkey, valkey_server
from tests.support import Gate, app_of, gated, slow_route

__all__ = ["valkey_server"]  # a fixture

pytestmark = pytest.mark.real

Serve = Callable[..., Server]
Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Deploy]:
    deployments: list[Deployment] = []

    def start(store: str | None = None, **settings: Any) -> Deployment:
        url = str(tmp_path / "jobs.db") if store is None else store
        deployments.append(Deployment(tmp_path, url, **settings))
        deployments[-1].start()
        return deployments[-1]

    yield start
    for deployment in deployments:
        deployment.kill()


async def submit(line: Line, steps: int, seconds: float) -> dict[str, str]:
    """The links of a job that goes step by step, once it is told to."""
    order = json.dumps({"steps": steps, "seconds": seconds}).encode()
    links: dict[str, str] = (await line.ask("POST", "/steps", order)).document()["links"]
    return links


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("gzip", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_a_stream_is_read_while_the_job_goes_on(standing: Serve, http: str, gzip: str) -> None:
    environment = {"RAINCHECK_TEST_GZIP": gzip} if gzip else {}
    server = standing(f"--http={http}", **environment)
    links = server.client.post("/slow?seconds=2").json()["links"]
    reader, told, times = Reader(), [], []
    asks = {"accept-encoding": "gzip"}
    with server.client.stream("GET", links["events"], headers=asks) as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert "content-encoding" not in stream.headers
        for chunk in stream.iter_raw():
            for event in reader.feed(chunk):
                told.append(event)
                times.append(time.monotonic())
    assert told[-1].document["status"] == "succeeded"
    shown = [event.document["progress"] for event in told]
    assert shown[-3:] == [0.8, 0.9, 0.9]
    assert times[-1] - times[0] > 1  # not all at the end
    headers = {"last-event-id": reader.id}
    assert server.client.get(links["events"], headers=headers).status_code == 204
    assert server.client.head(links["events"]).content == b""
    assert "Traceback" not in server.said()


@pytest.mark.slow
@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_sigterm_ends_streams_cleanly_and_their_clients_come_back(
    serve: Serve, tmp_path: Path, http: str
) -> None:
    """uvicorn tells the lifespan when all responses have ended, and not before."""
    store = {"RAINCHECK_TEST_FILE": str(tmp_path / "jobs.db"), "RAINCHECK_TEST_DRAIN": "0.5"}
    server = serve(f"--http={http}", **store)
    links = server.client.post("/slow?seconds=60").json()["links"]
    server.client.close()

    async def listen() -> tuple[str, float]:
        listeners = await many(server.port, *[links["events"]] * 50)
        await asyncio.sleep(0.5)
        start = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        for listener in listeners:
            await listener.end()
        assert time.monotonic() - start < 4  # 1 and what a busy machine takes
        assert all(listener.whole for listener in listeners)
        assert {listener.statuses[-1] for listener in listeners} == {"running"}
        return listeners[0].reader.id, start

    async def come_back(port: int, seen: str) -> Listener:
        listener = await Listener.open(port, links["events"], seen=seen)
        await listener.end()
        return listener

    seen, start = asyncio.run(listen())
    server.process.wait(60)
    assert time.monotonic() - start < 10
    assert server.notes() == ["cancelled"]  # in its drain
    assert "Traceback" not in server.output.read_text()
    assert "ERROR" not in server.output.read_text()
    other = serve(f"--http={http}", **store)
    back = asyncio.run(come_back(other.port, seen))
    ((_, event),) = back.events
    assert event.document["error"]["code"] == "interrupted"
    assert back.whole
    last = other.client.get(links["events"], headers={"last-event-id": back.reader.id})
    assert last.status_code == 204


@pytest.mark.parametrize("kind", ["sqlite", "redis", "postgres"])
def test_what_one_process_does_is_told_in_another(
    kind: str, deploy: Deploy, request: pytest.FixtureRequest
) -> None:
    url = None
    if kind == "redis":
        url = request.getfixturevalue("valkey").url
    elif kind == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.url
    here, there = deploy(url), deploy(url)

    async def follow() -> list[float]:
        await asyncio.gather(here.answering(), there.answering())
        async with Line(here.port) as line:
            links = await submit(line, 5, 0.4)
            listeners = await many(there.port, *[links["events"]] * 20)
            await line.ask("POST", "/go")
            for listener in listeners:
                await listener.end()
        for listener in listeners:
            assert listener.whole
            assert listener.statuses[-1] == "succeeded"
            shown = [event.document["progress"] for _, event in listener.events]
            assert shown == sorted(shown, key=lambda progress: progress or 0.0)
            assert {0.4, 0.6, 0.8, 1.0} <= {*shown}
        return [
            at - float(event.document["message"])
            for listener in listeners
            for at, event in listener.events[1:-1]
        ]

    assert statistics.median(asyncio.run(follow())) < 1


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while_is_waited_for(deploy: Deploy, tmp_path: Path) -> None:
    store = Valkey(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    store.start()
    try:
        here, there = deploy(store.url), deploy(store.url)

        async def follow() -> Listener:
            await asyncio.gather(here.answering(), there.answering())
            async with Line(here.port) as line:
                links = await submit(line, 40, 0.1)
                listener = await Listener.open(there.port, links["events"])
                await listener.has(1)
                store.kill()
                await line.ask("POST", "/go")
                await asyncio.sleep(1)
                assert listener.whole is None
                store.start()
                await listener.end()
                return listener

        listener = asyncio.run(follow())
    finally:
        store.kill()
    assert listener.whole
    assert listener.statuses[-1] == "succeeded"


@pytest.mark.slow
def test_two_thousand_streams_of_one_process(deploy: Deploy) -> None:
    """Each hears of each change, and is woken once for it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2_500:
        pytest.skip(f"this user may have {hard} files open at once")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2_500), hard))
    deployment = deploy()

    async def follow() -> list[Listener]:
        await deployment.answering()
        async with Line(deployment.port) as line:
            links = await submit(line, 3, 1.0)
            listeners = await many(deployment.port, *[links["events"]] * 2_000)
            await line.ask("POST", "/go")
            for listener in listeners:
                await listener.end()
        return listeners

    try:
        listeners = asyncio.run(follow())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert {listener.status for listener in listeners} == {200}
    ended = [listener for listener in listeners if listener.statuses[-1] == "succeeded"]
    assert len(ended) == 2_000
    ids = {tuple(event.id for _, event in listener.events) for listener in listeners}
    assert len(ids) == 1
    # One for each event, unless the machine was so busy that a comment was due.
    assert all(
        listener.chunks == len(listener.events) + listener.reader.comments for listener in listeners
    )


@asynccontextmanager
async def served(*routes: BaseRoute) -> AsyncIterator[tuple[int, Jobs]]:
    """A real uvicorn in this very process, which can be looked into: its port, and its jobs."""
    jobs = Jobs()
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # of each connection
        bound.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app_of(*routes, jobs=jobs), log_level="error"))
        serving = asyncio.create_task(server.serve([bound]))
        await until(lambda: server.started)
        try:
            yield bound.getsockname()[1], jobs
        finally:
            server.should_exit = True
            await serving


def open_streams(jobs: Jobs) -> tuple[int, int]:
    """How many streams are open, and of how many jobs."""
    session = jobs.session
    assert session is not None
    return len(session.waits._open), len(session.feeds)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_clients_that_leave_a_real_server_free_everything() -> None:
    async with served(gated(gate := Gate())) as (port, jobs), Line(port) as line:
        links = (await line.ask("POST", "/slow")).document()["links"]
        listeners = await many(port, *[links["events"]] * 50)
        assert open_streams(jobs) == (50, 1)
        for listener in listeners:
            listener.leave()
        async with asyncio.timeout(10):
            await until(lambda: open_streams(jobs) == (0, 0))
        gate.open()
        answer = await line.ask("GET", links["result"], prefer="wait=10")
        assert answer.status == 200


def chunks_of(body: bytes) -> Iterator[bytes]:
    """The chunks of a body (RFC 9112 §7.1)."""
    while size := int(body.partition(b"\r\n")[0], 16):
        _, _, body = body.partition(b"\r\n")
        yield body[:size]
        body = body[size + 2 :]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_client_that_stops_reading_is_let_go_of_and_can_read_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "_LONGEST", 3.0)

    async def answer(request: Request) -> None:
        for step in range(1000):
            report(step / 1000, "ü" * 2048)  # 12 KiB, as JSON has it
            await asyncio.sleep(0.01)

    async with served(slow_route(answer)) as (port, jobs), Line(port) as line:
        links = (await line.ask("POST", "/slow")).document()["links"]
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            connection.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(connection, ("127.0.0.1", port))
            head = f"GET {links['events']} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
            await loop.sock_sendall(connection, head.encode())
            async with asyncio.timeout(10):
                await until(lambda: open_streams(jobs) == (1, 1))
                await until(lambda: open_streams(jobs) == (0, 0))
            got = b""
            async with asyncio.timeout(10):
                while some := await loop.sock_recv(connection, 65_536):
                    got += some
        assert got.endswith(b"\n\n\r\n0\r\n\r\n")  # a frame, and the end that is due
        frames = Reader().events(chunks_of(got.partition(b"\r\n\r\n")[2]))
        assert 3 < len(frames) < 25  # of thirty: nothing was kept for it
        assert {len(frame.document["message"] or "") for frame in frames[1:]} == {2048}
        await line.ask("DELETE", links["result"])
