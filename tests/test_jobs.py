"""Jobs, asked from code: those of all processes, how many there are, and what they have come to."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from raincheck import Jobs, Limits, State
from raincheck.errors import BodyLost, MalformedCursor
from raincheck.stores.base import Total
from raincheck.telemetry.base import Statistics
from tests.conftest import virtual_jobs
from tests.support import Gate, app_of, gated, running, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

LARGE = bytes(range(256)) * 1024


async def small(request: Request) -> Response:
    return Response(b"small", 201, {"x-a": "1"}, "text/plain")


async def empty(request: Request) -> Response:
    return Response(None, 204)


async def large(request: Request) -> Response:
    async def chunks() -> Any:
        for start in range(0, len(LARGE), 10_000):
            yield LARGE[start : start + 10_000]

    return StreamingResponse(chunks())


def id_of(response: Any) -> str:
    return str(response.headers["location"].rpartition("/")[2])


def house(jobs: Jobs, gate: Gate) -> Any:
    routes = [slow_route(each, f"/{each.__name__}", ttl=60) for each in (small, empty, large)]
    return app_of(gated(gate), *routes, jobs=jobs)


async def test_jobs_are_listed_page_by_page() -> None:
    jobs = virtual_jobs()
    async with running(house(jobs, gate := Gate())) as client:
        ids = []
        for path in ("/slow", "/small", "/small", "/slow"):
            ids.append(id_of(await client.post(path)))
            await anyio.sleep(1)
        page = await jobs.list(limit=3)
        assert [job.id for job in page.jobs] == ids[:0:-1]
        rest = await jobs.list(limit=3, after=page.after)
        assert ([job.id for job in rest.jobs], rest.after) == (ids[:1], None)
        of = await jobs.list(states=[State.SUCCEEDED])
        assert [job.id for job in of.jobs] == [ids[2], ids[1]]
        totals = await jobs.totals()
        assert {total.count for total in totals.values()} == {2}
        assert {state for _, state in totals} == {State.RUNNING, State.SUCCEEDED}
        assert all(isinstance(total, Total) for total in totals.values())
        gate.open()


async def test_what_has_expired_is_not_listed_though_no_sweep_has_come_yet() -> None:
    jobs = virtual_jobs()
    async with running(house(jobs, Gate())) as client:
        await client.post("/small")
        await settled()
        await anyio.sleep(59)
        assert len((await jobs.list()).jobs) == 1
        await anyio.sleep(1.5)
        assert (await jobs.list()).jobs == []


@pytest.mark.parametrize("limit", [0, -1, 1001, "10", None])
async def test_a_limit_out_of_its_bounds_is_named(limit: Any) -> None:
    with pytest.raises(ValueError, match=r"limit=.*1 to 1000"):
        await virtual_jobs().list(limit=limit)


async def test_a_cursor_that_is_none_is_told_of() -> None:
    with pytest.raises(MalformedCursor):
        await virtual_jobs().list(after="nowhere")


@pytest.mark.parametrize(
    ("path", "status", "content"),
    [("/small", 201, b"small"), ("/empty", 204, b""), ("/large", 200, LARGE)],
)
async def test_a_response_is_read(path: str, status: int, content: bytes) -> None:
    jobs = virtual_jobs()
    async with running(house(jobs, Gate())) as client:
        id = id_of(await client.post(path))
        await settled()
        response = await jobs.response(id)
        assert response is not None
        assert (response.status, response.size) == (status, len(content))
        assert await response.read() == content
        if path == "/small":
            assert (b"x-a", b"1") in response.headers
        again = await jobs.response(id)
        assert again is not None
        assert b"".join([chunk async for chunk in again.body]) == content


async def test_a_body_that_went_meanwhile_is_not_read_as_whole() -> None:
    jobs = virtual_jobs()
    async with running(house(jobs, Gate())) as client:
        id = id_of(await client.post("/large"))
        await settled()
        response = await jobs.response(id)
        assert response is not None
        await jobs.delete(id)
        with pytest.raises(BodyLost):
            await response.read()


async def test_what_has_no_response_has_none() -> None:
    jobs = virtual_jobs()
    async with running(house(jobs, gate := Gate())) as client:
        pending = id_of(await client.post("/slow"))
        done = id_of(await client.post("/small"))
        await settled()
        await jobs.delete(done)
        for id in (pending, done, "unknown"):
            assert await jobs.response(id) is None
        gate.open()


async def test_what_is_asked_after_the_end_is_answered() -> None:
    """A server may still answer when the lifespan has ended."""
    jobs = virtual_jobs(limits=Limits(drain_timeout=0))
    async with running(house(jobs, Gate())) as client:
        id = id_of(await client.post("/slow"))
        job = await jobs.get(id)
        assert job is not None
    assert jobs.outlook(job).retry_after >= 1
    newest = await jobs.until(job, lambda job: job.finished, 1.0)
    assert newest is not None
    assert newest.state is State.FAILED
    assert jobs.statistics() == Statistics(running=0, queued=0)
