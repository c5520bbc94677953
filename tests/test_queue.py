"""Capacity: who runs, who waits, and what waits.

With 500 that wait at once instead of 100: `RAINCHECK_QUEUE=long pytest tests/test_queue.py`.
"""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from raincheck import (
    Jobs,
    Limits,
    LongRunningMiddleware,
    Policy,
    State,
    current_job,
    long_running,
)
from raincheck.testing import follow
from tests.conftest import long, virtual_jobs
from tests.support import Gate, app_of, gated, running, settled, slow_route, unfinished

pytestmark = pytest.mark.anyio


async def test_a_route_runs_as_many_handlers_as_its_policy_says() -> None:
    app = app_of(gated(a := Gate(), "/a", max_running=2), gated(b := Gate(), "/b"))
    async with running(app) as client:
        for path in ("/a", "/a", "/a", "/b", "/b", "/b"):
            assert (await client.post(path)).status_code == 202
        await settled()
        assert (a.entered, b.entered) == (2, 3)
        a.open()
        await settled()
        assert a.entered == 3
        b.open()


async def test_the_middleware_runs_as_many_handlers_as_its_limits_say() -> None:
    jobs = virtual_jobs(limits=Limits(max_running=2))
    app = app_of(gated(a := Gate(), "/a"), gated(b := Gate(), "/b"), jobs=jobs)
    async with running(app) as client:
        for path in ("/a", "/b", "/a", "/b"):
            await client.post(path)
        await settled()
        assert (a.entered, b.entered) == (1, 1)
        assert (jobs.statistics().running, jobs.statistics().queued) == (2, 2)
        b.open()
        await settled()
        assert (a.entered, b.entered) == (2, 1)
        a.open()
        await settled()
        assert (jobs.statistics().running, jobs.statistics().queued) == (0, 0)


async def test_a_queued_job_says_its_position_and_moves_up() -> None:
    gates = [Gate() for _ in range(4)]
    order = []

    async def answer(request: Request) -> dict[str, str]:
        number = int((await request.body()).decode())
        order.append(number)
        await gates[number].wait()
        return {}

    async with running(app_of(slow_route(answer, max_running=1))) as client:
        accepted = [await client.post("/slow", content=str(number)) for number in range(4)]
        assert [r.json()["status"] for r in accepted] == ["running"] + ["queued"] * 3
        assert [r.json()["queue_position"] for r in accepted] == [None, 1, 2, 3]
        monitors = [r.json()["links"]["self"] for r in accepted]
        gates[0].open()
        await settled()
        positions = [(await client.get(url)).json().get("queue_position") for url in monitors]
        assert positions == [None, None, 1, 2]
        await client.post(accepted[2].json()["links"]["cancel"])
        assert (await client.get(monitors[3])).json()["queue_position"] == 1
        for gate in gates:
            gate.open()
        await settled()
        assert order == [0, 1, 3]


async def test_a_full_queue_is_refused_before_anything_is_stored() -> None:
    jobs = virtual_jobs()
    app = app_of(gated(gate := Gate(), max_running=1, max_queued=1), jobs=jobs)
    async with running(app) as client:
        assert [(await client.post("/slow")).status_code for _ in range(3)] == [202, 202, 503]
        assert len(await unfinished(jobs.store)) == 2
        gate.open()


class Connection:
    """What a dependency holds."""


async def test_law_11_a_queued_job_holds_bytes_only() -> None:
    connections: list[weakref.ref[Connection]] = []
    opened = closed = 0
    gate = Gate()
    app = FastAPI()

    async def connection() -> Any:
        nonlocal opened, closed
        there = Connection()
        connections.append(weakref.ref(there))
        opened += 1
        try:
            yield there
        finally:
            await anyio.sleep(0.001)  # cleanup code may await
            closed += 1

    @app.post("/slow")
    @long_running(max_running=1)
    async def slow(request: Request, there: Connection = Depends(connection)) -> str:
        await gate.wait()
        return (await request.body()).decode()

    jobs = virtual_jobs()
    async with running(LongRunningMiddleware(app, jobs=jobs)) as client:
        accepted = [await client.post("/slow", content=str(n)) for n in range(20)]
        await anyio.sleep(1)
        gc.collect()
        assert (opened, closed, jobs.statistics().queued) == (20, 19, 19)
        assert [ref() is None for ref in connections] == [False] + [True] * 19
        gate.open()
        results = [(await follow(client, response)).json() for response in accepted]
        assert results == [str(n) for n in range(20)]
        await anyio.sleep(1)
        assert (opened, closed) == (39, 39)


async def test_what_runs_before_the_handler_runs_twice_for_a_job_that_waited() -> None:
    before: list[str] = []

    async def counting(request: Request, call_next: Any) -> Response:
        before.append(request.url.path)
        response: Response = await call_next(request)
        return response

    gate = Gate()
    inner = Starlette(
        routes=[gated(gate, max_running=1)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=counting)] * 2,
    )
    async with running(LongRunningMiddleware(inner, jobs=virtual_jobs())) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        assert [r.status_code for r in accepted] == [202, 202]
        gate.open()
        for response in accepted:
            assert (await follow(client, response)).status_code == 200
    assert len(before) == 2 * (1 + 2)


async def test_an_answer_by_itself_in_the_replay_is_the_stored_response() -> None:
    gate = Gate()
    inner = Starlette(routes=[gated(gate, max_running=1)])
    seen = 0

    async def token_expires(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal seen
        if scope["type"] == "http":
            seen += 1
            if seen > 2:
                await PlainTextResponse("expired", status_code=401)(scope, receive, send)
                return
        await inner(scope, receive, send)

    async with running(LongRunningMiddleware(token_expires, jobs=virtual_jobs())) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        gate.open()
        response = await follow(client, accepted[1])
        assert (response.status_code, response.text) == (401, "expired")
        assert response.headers["job-status"] == "failed"


async def test_hold_keeps_the_live_request_and_runs_everything_once() -> None:
    opened = 0
    gate = Gate()
    app = FastAPI()

    async def connection() -> Any:
        nonlocal opened
        opened += 1
        yield

    @app.post("/slow", dependencies=[Depends(connection)])
    @long_running(max_running=1, hold=True)
    async def slow() -> str:
        await gate.wait()
        return "done"

    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        accepted = [await client.post("/slow") for _ in range(3)]
        assert [r.json()["status"] for r in accepted] == ["running", "queued", "queued"]
        assert [r.json()["queue_position"] for r in accepted] == [None, 1, 2]
        gate.open()
        for response in accepted:
            assert (await follow(client, response)).json() == "done"
        assert opened == 3


async def test_a_held_job_can_be_cancelled_and_its_dependencies_clean_up() -> None:
    cleaned_up = 0
    gate = Gate()
    app = FastAPI()

    async def connection() -> Any:
        nonlocal cleaned_up
        try:
            yield
        finally:
            await anyio.sleep(1)
            cleaned_up += 1

    @app.post("/slow", dependencies=[Depends(connection)])
    @long_running(max_running=1, hold=True)
    async def slow() -> str:
        await gate.wait()
        return "done"

    jobs = virtual_jobs()
    async with running(LongRunningMiddleware(app, jobs=jobs)) as client:
        await client.post("/slow")
        links = (await client.post("/slow")).json()["links"]
        response = await client.post(links["cancel"])
        assert (response.status_code, response.json()["status"]) == (200, "canceled")
        await anyio.sleep(2)
        assert cleaned_up == 1
        assert (jobs.statistics().running, jobs.statistics().queued) == (1, 0)
        gate.open()
        await anyio.sleep(2)
        assert jobs.statistics().running == 0
    assert (gate.entered, cleaned_up) == (1, 2)


async def test_a_path_rule_queues_bytes_even_with_hold() -> None:
    gate = Gate()

    async def endpoint(request: Request) -> Response:
        await gate.wait()
        return JSONResponse((await request.body()).decode())

    app = app_of(
        Route("/slow", endpoint, methods=["POST"]),
        routes={"/slow": Policy(max_running=1, hold=True)},
    )
    async with running(app) as client:
        accepted = [await client.post("/slow", content=str(n)) for n in range(2)]
        gate.open()
        assert [(await follow(client, r)).json() for r in accepted] == ["0", "1"]


async def test_what_outer_middleware_put_into_the_scope_reaches_a_replay() -> None:
    gate = Gate()

    async def answer(request: Request) -> dict[str, Any]:
        await gate.wait()
        return {"user": request.scope["user"], "state": request.state.pool}

    inner = app_of(slow_route(answer, max_running=1))

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["user"] = "ann"
        scope["state"] = {"pool": "p"}
        await inner(scope, receive, send)

    async with running(outer) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        gate.open()
        for response in accepted:
            assert (await follow(client, response)).json() == {"user": "ann", "state": "p"}


class Pool:
    """As many connections as it says; whoever wants one more waits."""

    def __init__(self, size: int) -> None:
        self._limiter = anyio.CapacityLimiter(size)

    @asynccontextmanager
    async def connection(self) -> Any:
        async with self._limiter:
            yield self


async def test_many_submissions_over_5_connections_and_3_handlers_all_succeed() -> None:
    many = 500 if long("QUEUE") else 100
    pool: Pool
    app = FastAPI()

    async def connection() -> Any:
        async with pool.connection() as there:
            yield there

    @app.post("/slow")
    @long_running(max_running=3)
    async def slow(request: Request, there: Pool = Depends(connection)) -> int:
        await anyio.sleep(1)
        return int(await request.body())

    async with running(LongRunningMiddleware(app, jobs=virtual_jobs())) as client:
        pool = Pool(5)
        results: dict[int, int] = {}

        async def submit(number: int) -> None:
            accepted = await client.post("/slow", content=str(number))
            assert accepted.status_code == 202
            results[number] = (await follow(client, accepted)).json()

        async with anyio.create_task_group() as group:
            for number in range(many):
                group.start_soon(submit, number)
        assert results == {number: number for number in range(many)}


@pytest.mark.one_loop
async def test_a_long_queue_of_handlers_that_never_wait_comes_to_its_end() -> None:
    """Since Python 3.12 each could begin within the end of the one before."""
    first = Gate()

    async def answer(request: Request) -> str:
        if not first.entered:
            await first.wait()
        return "done"

    jobs = virtual_jobs(limits=Limits(max_running=1))
    async with running(app_of(slow_route(answer), jobs=jobs)) as client:
        accepted = [await client.post("/slow") for _ in range(200)]
        await settled()
        first.open()
        await settled()
        assert await unfinished(jobs.store) == []
        assert {(await follow(client, each)).status_code for each in accepted} == {200}
        assert jobs.statistics().running == 0


@pytest.mark.real
async def test_200_blocked_sync_jobs_do_not_starve_an_unmarked_def_route() -> None:
    release = threading.Event()
    started = threading.Semaphore(0)

    @long_running
    def blocked(request: Request) -> Response:
        started.release()
        release.wait(30)
        return PlainTextResponse("done")

    def health(request: Request) -> Response:
        return PlainTextResponse("healthy")

    jobs = Jobs(limits=Limits(max_running=200))
    app = app_of(Route("/slow", blocked, methods=["POST"]), Route("/health", health), jobs=jobs)
    async with running(app) as client:
        accepted = [await client.post("/slow") for _ in range(200)]
        for _ in range(200):
            assert await anyio.to_thread.run_sync(started.acquire, True, 30)
        with anyio.fail_after(10):
            assert (await client.get("/health")).text == "healthy"
        release.set()
        for response in accepted:
            assert (await follow(client, response)).text == "done"


async def test_a_queued_job_is_cancelled_before_it_starts() -> None:
    app = app_of(gated(gate := Gate(), max_running=1))
    async with running(app) as client:
        await client.post("/slow")
        links = (await client.post("/slow")).json()["links"]
        for _ in range(2):
            response = await client.post(links["cancel"])
            assert (response.status_code, response.json()["status"]) == (200, "canceled")
        gate.open()
        await settled()
        assert gate.entered == 1
        assert (await client.get(links["result"])).status_code == 410


async def test_queued_jobs_that_shutdown_does_not_reach_are_interrupted() -> None:
    jobs = virtual_jobs(limits=Limits(max_running=1, drain_timeout=1))
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        ids = [(await client.post("/slow")).json()["job_id"] for _ in range(3)]
    for id in ids:
        job = await jobs.get(id)
        assert job is not None
        assert job.state is State.FAILED
        assert job.error is not None
        assert job.error.name == "interrupted"
    assert gate.entered == 1


async def test_retry_after_is_estimated_from_what_jobs_took_before() -> None:
    async def answer(request: Request) -> dict[str, str]:
        await anyio.sleep(12)
        return {}

    async with running(app_of(slow_route(answer, max_running=1))) as client:
        first = await client.post("/slow")
        assert first.json()["estimated_completion"] is None
        await follow(client, first)
        for _ in range(7):
            await follow(client, await client.post("/slow"))
        second, third = [await client.post("/slow") for _ in range(2)]
        assert second.headers["retry-after"] == "12"
        assert second.json()["estimated_completion"] is not None
        assert third.headers["retry-after"] == "24"
        await anyio.sleep(5)
        assert (await client.get(second.headers["location"])).headers["retry-after"] == "7"


async def test_a_fixed_retry_after_is_sent_as_it_is() -> None:
    async with running(app_of(gated(gate := Gate(), retry_after=7))) as client:
        accepted = await client.post("/slow")
        assert accepted.headers["retry-after"] == "7"
        await anyio.sleep(100)
        assert (await client.get(accepted.headers["location"])).headers["retry-after"] == "7"
        gate.open()


async def test_a_job_knows_itself() -> None:
    async def answer(request: Request) -> dict[str, Any]:
        job = current_job()
        return {"id": job and job.id}

    async with running(app_of(slow_route(answer))) as client:
        accepted = await client.post("/slow")
        assert (await follow(client, accepted)).json()["id"] == accepted.json()["job_id"]
    assert current_job() is None
