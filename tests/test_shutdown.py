"""A server that is going to stop, as long polls see it before the lifespan does."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from starlette.requests import Request

from raincheck import Limits
from raincheck.testing import lifespan
from tests.conftest import virtual_jobs
from tests.doubles.servers import Uvicorn
from tests.support import Gate, app_of, client_of, gated, running, slow_route

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Uvicorn:
    """A server whose method handles SIGTERM; the test's own handlers stay as they are."""
    server = Uvicorn()
    monkeypatch.setattr(signal, "getsignal", lambda number: server.handle_exit)
    return server


@pytest.mark.parametrize("how", ["poll", "monitor", "submission"])
async def test_whoever_waits_is_answered_when_the_server_means_to_exit(
    server: Uvicorn, how: str
) -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        links = (await client.post("/slow")).json()["links"]
        method, url = {
            "poll": ("GET", links["result"]),
            "monitor": ("GET", links["self"]),
            "submission": ("POST", "/slow"),
        }[how]
        start = anyio.current_time()

        async def stop() -> None:
            await anyio.sleep(5)
            server.handle_exit(signal.SIGTERM, None)

        async with anyio.create_task_group() as group:
            group.start_soon(stop)
            answer = await client.request(method, url, headers={"prefer": "wait=20"})
            assert 5 <= anyio.current_time() - start <= 6.1
        # As at the end of its time.
        assert answer.status_code == (200 if how == "monitor" else 202)
        assert answer.json()["status"] == "running"
        assert int(answer.headers["retry-after"]) >= 1
        again = anyio.current_time()
        await client.request(method, url, headers={"prefer": "wait=20"})
        assert anyio.current_time() - again < 0.1
        gate.open()


async def test_all_that_wait_are_answered_and_one_looks_for_them(
    server: Uvicorn, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0

    def getsignal(number: int) -> Any:
        nonlocal looks
        looks += 1
        return server.handle_exit

    monkeypatch.setattr(signal, "getsignal", getsignal)
    async with running(app_of(gated(gate := Gate()))) as client:
        url = (await client.post("/slow")).headers["location"]
        statuses = []

        async def poll() -> None:
            statuses.append((await client.get(url, headers={"prefer": "wait=20"})).status_code)

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(poll)
            await anyio.sleep(9.5)
            assert 9 <= looks <= 11
            server.should_exit = True
            await anyio.sleep(1.1)
            assert statuses == [202] * 100
        seen = looks
        await anyio.sleep(30)
        assert looks == seen  # nobody waits: nobody looks
        gate.open()


class Bad:
    @property
    def should_exit(self) -> bool:
        raise RuntimeError("not to be asked")

    def handle(self, number: int, frame: object) -> None: ...


def unknown(number: int) -> Any:
    raise ValueError("no such signal here")


@pytest.mark.parametrize(
    "getsignal",
    [
        pytest.param(lambda number: None, id="not Python's"),
        pytest.param(lambda number: signal.SIG_DFL, id="the default"),
        pytest.param(lambda number: lambda number, frame: None, id="a function"),
        pytest.param(lambda number: [].append, id="of a builtin"),
        pytest.param(lambda number: Bad().handle, id="of an object that raises"),
        pytest.param(unknown, id="no SIGTERM"),
    ],
)
async def test_where_nothing_can_be_known_a_poll_takes_its_time(
    getsignal: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "getsignal", getsignal)
    async with running(app_of(gated(gate := Gate()))) as client:
        url = (await client.post("/slow")).headers["location"]
        start = anyio.current_time()
        answer = await client.get(url, headers={"prefer": "wait=3600"})
        assert answer.status_code == 202
        assert anyio.current_time() - start == pytest.approx(25, abs=0.2)
        gate.open()


async def test_no_handler_is_put_in_the_servers_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a signal handler was replaced")

    with monkeypatch.context() as watched:
        watched.setattr(signal, "signal", refuse)
        watched.setattr(signal, "set_wakeup_fd", refuse)
        async with running(app_of(gated(gate := Gate()))) as client:
            url = (await client.post("/slow")).headers["location"]
            assert (await client.get(url, headers={"prefer": "wait=3"})).status_code == 202
            gate.open()


async def test_the_drain_finds_nobody_waiting() -> None:
    """A server that tells the lifespan while requests are open."""
    jobs = virtual_jobs(limits=Limits(drain_timeout=10))
    app = app_of(gated(gate := Gate()), jobs=jobs)
    answered: list[float] = []
    async with anyio.create_task_group() as group:
        async with lifespan(app):
            client = client_of(app)
            url = (await client.post("/slow")).headers["location"]

            async def poll(url: str, wait: str) -> None:
                answer = await client.get(url, headers={"prefer": wait})
                assert answer.status_code in (200, 202)
                answered.append(anyio.current_time())

            group.start_soon(poll, url, "wait=20")
            group.start_soon(poll, url + "/status", "wait=20")
            await anyio.sleep(0.5)
            start = anyio.current_time()
        assert anyio.current_time() - start >= 10  # the drain
        assert max(answered) - start < 0.1
        assert len(answered) == 2
        await client.aclose()
        gate.open()


async def test_the_next_lifespan_begins_anew() -> None:
    async def answer(request: Request) -> None:
        await anyio.sleep(5)

    app = app_of(slow_route(answer))
    for _ in range(2):
        async with running(app) as client:
            url = (await client.post("/slow")).headers["location"]
            start = anyio.current_time()
            await client.get(url, headers={"prefer": "wait=3"})
            assert anyio.current_time() - start == pytest.approx(3, abs=0.2)
