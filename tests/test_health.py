"""Health: what probes and autoscalers are told, and that they wait for nothing."""

from __future__ import annotations

import signal
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from raincheck import ConfigurationError, Jobs, Limits, LongRunningMiddleware, MemoryStore, Policy
from raincheck.testing import follow, lifespan
from tests.conftest import virtual_jobs
from tests.doubles.servers import Uvicorn
from tests.doubles.stores import LOST, REFUSED, Line, TrickyStore
from tests.support import Gate, app_of, client_of, gated, running, settled

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


def house(jobs: Jobs, *routes: Any) -> LongRunningMiddleware:
    """An app with its probes at /health."""
    return app_of(*routes, Mount("/health", jobs.health_app), jobs=jobs)


async def test_a_process_that_serves_is_alive_and_ready() -> None:
    jobs = virtual_jobs(limits=Limits(max_running=1))
    async with running(house(jobs, gated(gate := Gate()))) as client:
        for _ in range(3):
            await client.post("/slow")
        live, ready = await client.get("/health/live"), await client.get("/health/ready")
        assert (live.status_code, live.json()) == (200, {"status": "alive"})
        told = {"status": "ready", "running": 1, "queued": 2}
        assert (ready.status_code, ready.json()) == (200, told)
        assert ready.headers["cache-control"] == "no-store"
        assert (await client.head("/health/ready")).status_code == 200
        assert (await client.post("/health/ready")).status_code == 405
        assert (await client.get("/health/other")).status_code == 404
        gate.open()


async def test_how_much_waits_and_how_long_is_a_number_for_autoscalers() -> None:
    jobs = virtual_jobs(limits=Limits(max_running=2))
    routes = [gated(gate := Gate(), "/a", max_running=1), gated(gate, "/b")]
    async with running(house(jobs, *routes)) as client:
        await settled()
        idle = (await client.get("/health/queue")).json()
        nothing = {"queued": 0, "running": 0, "oldest_queued_seconds": 0.0}
        assert idle.items() >= nothing.items()
        assert idle["routes"] == [
            {"route": each} | nothing for each in "ab"
        ]  # where one is asked for
        for path in ("/a", "/a", "/a", "/b"):
            await client.post(path)
        await anyio.sleep(10)
        response = await client.get("/health/queue")
        found = response.json()
        assert response.status_code == 200
        assert (found["status"], found["queued"], found["running"]) == ("known", 2, 2)
        assert found["oldest_queued_seconds"] == pytest.approx(10, abs=0.2)
        assert 0 <= found["age_seconds"] <= 1.05
        a, b = found["routes"]
        assert (a["route"], a["queued"], a["running"]) == ("a", 2, 1)
        assert a["oldest_queued_seconds"] == pytest.approx(10, abs=0.2)
        assert b == {"route": "b", "queued": 0, "running": 1, "oldest_queued_seconds": 0.0}
        gate.open()


@pytest.mark.parametrize("how", [REFUSED, LOST])
async def test_a_process_whose_store_is_away_is_not_ready_though_nobody_asks_it(how: str) -> None:
    line = Line(MemoryStore())
    jobs = virtual_jobs(store=line, limits=Limits(store_timeout=2))
    async with running(house(jobs, gated(Gate()))) as client:
        await anyio.sleep(3)
        assert (await client.get("/health/ready")).status_code == 200
        line.cut(how)
        await anyio.sleep(6)
        start = anyio.current_time()
        response = await client.get("/health/ready")
        assert (response.status_code, response.json()["status"]) == (503, "store-away")
        assert (await client.get("/health/live")).status_code == 200
        assert anyio.current_time() - start < 0.1
        assert (await client.get("/health/queue")).status_code == 200  # it was so a moment ago
        await anyio.sleep(10)
        queue = await client.get("/health/queue")
        assert (queue.status_code, queue.json()["status"]) == (503, "unknown")
        assert "queued" not in queue.json()
        line.mend()
        await anyio.sleep(6)  # a call that hangs has its time
        assert (await client.get("/health/ready")).status_code == 200
        assert (await client.get("/health/queue")).status_code == 200


async def test_a_process_that_drains_is_not_ready_and_lives() -> None:
    jobs = virtual_jobs(limits=Limits(drain_timeout=20))
    app = house(jobs, gated(gate := Gate()))
    async with lifespan(app), client_of(app) as client:
        await client.post("/slow")
        await settled()
        async with anyio.create_task_group() as group:
            group.start_soon(jobs.close)
            await anyio.sleep(1.5)
            response = await client.get("/health/ready")
            assert (response.status_code, response.json()["status"]) == (503, "draining")
            assert response.json()["running"] == 1
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.get("/health/queue")).json()["running"] == 1  # for the others
            gate.open()
        response = await client.get("/health/ready")
        assert (response.status_code, response.json()["status"]) == (503, "stopped")
        assert (await client.get("/health/queue")).status_code == 503


async def test_a_server_that_means_to_exit_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Uvicorn()
    monkeypatch.setattr(signal, "getsignal", lambda number: server.handle_exit)
    async with running(house(virtual_jobs(), gated(Gate()))) as client:
        assert (await client.get("/health/ready")).status_code == 200
        server.handle_exit(signal.SIGTERM, None)
        response = await client.get("/health/ready")
        assert (response.status_code, response.json()["status"]) == (503, "draining")


async def test_without_a_lifespan_the_first_probe_opens_the_jobs() -> None:
    jobs = virtual_jobs()
    async with client_of(house(jobs, gated(gate := Gate()))) as client:
        assert (await client.get("/health/ready")).status_code == 200
        assert jobs.ready
        assert (await client.post("/slow")).status_code == 202
        gate.open()
    await jobs.close()


async def test_such_a_probe_finds_the_mistakes_that_a_start_would() -> None:
    jobs = virtual_jobs()
    app = Starlette(routes=[Mount("/health", jobs.health_app)])
    rules = {"POST /reports": Policy()}  # the app has no such route
    async with client_of(LongRunningMiddleware(app, routes=rules, jobs=jobs)) as client:
        with pytest.raises(ConfigurationError, match="POST /reports"):
            await client.get("/health/ready")


async def test_it_can_be_served_by_itself_and_taken_when_the_jobs_are_open() -> None:
    jobs = virtual_jobs()
    async with running(app_of(gated(Gate()), jobs=jobs)):
        await anyio.sleep(5)
        assert jobs.figures is None  # nobody has asked
        async with running(jobs.health_app) as client:  # by a second server, on its own port
            assert (await client.get("/ready")).status_code == 200
            await anyio.sleep(0.1)
            assert (await client.get("/queue")).json()["queued"] == 0


async def test_probes_on_the_event_loop_of_another_thread_leave_the_jobs_where_they_are() -> None:
    """A server of their own in a thread: the jobs that run here are nobody's to take."""
    jobs = virtual_jobs()

    async def probed() -> list[httpx.Response]:
        async with client_of(jobs.health_app) as client:
            return [await client.get(path) for path in ("/ready", "/live", "/ready")]

    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        accepted, session = await client.post("/slow"), jobs.session
        for backend in ("asyncio", "trio"):
            told = await anyio.to_thread.run_sync(partial(anyio.run, probed, backend=backend))
            assert [each.status_code for each in told] == [200] * 3
            assert told[0].json() == {"status": "ready", "running": 1, "queued": 0}
        await settled()
        assert jobs.figures is not None  # kept here, by this loop
        assert jobs.session is session
        gate.open()
        assert (await follow(client, accepted)).status_code == 200
    told = await anyio.to_thread.run_sync(anyio.run, probed)
    assert (told[0].status_code, told[0].json()["status"]) == (503, "stopped")


async def test_a_probe_asks_the_store_nothing_and_a_request_costs_no_more() -> None:
    asked: list[str] = []

    async def note(call: str, /, *arguments: Any, **more: Any) -> None:
        asked.append(call)

    jobs = virtual_jobs(store=TrickyStore(note, shared=True))
    async with running(house(jobs, gated(gate := Gate()))) as client:
        await anyio.sleep(0.5)
        before = len(asked)
        for _ in range(50):
            for probe in ("live", "ready", "queue"):
                assert (await client.get(f"/health/{probe}")).status_code == 200
        assert len(asked) == before
        gate.open()


async def test_probes_of_jobs_that_no_middleware_has_say_so() -> None:
    jobs = virtual_jobs()
    app = Starlette(routes=[Mount("/health", jobs.health_app)])
    async with client_of(app) as client:
        assert (await client.get("/health/live")).status_code == 200
        with pytest.raises(ConfigurationError, match=r"LongRunningMiddleware\(app, jobs=jobs\)"):
            await client.get("/health/ready")
