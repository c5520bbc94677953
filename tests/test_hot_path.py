"""What the hot paths cost, in calls of raincheck's own functions: steady, unlike seconds.

The bounds stand a tenth above what was counted when they were written. A change that raises a count
on purpose raises its bound with it, and says why; `benchmarks/core.py` shows what it is in time.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import raincheck
from raincheck import Jobs, LongRunningMiddleware, long_running
from raincheck.testing import lifespan
from tests.support import RawRequest

HOUSE = str(Path(raincheck.__file__).parent)
JOBS = 50


@long_running
async def report(request: Request) -> Response:
    return JSONResponse({"rows": len(await request.body())})


async def plain(request: Request) -> Response:
    return Response("plain")


class Calls:
    """How many of raincheck's functions were called."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(HOUSE):
            self.count += 1


@contextmanager
def counted() -> Iterator[Calls]:
    calls = Calls()
    before = sys.getprofile()
    sys.setprofile(calls.note)
    try:
        yield calls
    finally:
        sys.setprofile(before)


def app() -> LongRunningMiddleware:
    routes = [Route("/report", report, methods=["POST"]), Route("/plain", plain)]
    return LongRunningMiddleware(Starlette(routes=routes), jobs=Jobs())


async def send(to: LongRunningMiddleware, path: str, method: str = "GET") -> RawRequest:
    request = RawRequest(path, method, accept="*/*", content_type="application/json")
    request.feed(b"x" * 100)
    await request.run(to)
    return request


async def accept(to: LongRunningMiddleware) -> str:
    request = await send(to, "/report", "POST")
    assert request.status == 202
    await asyncio.sleep(0)
    location: bytes = dict(request.sent[0]["headers"])[b"location"]
    return location.decode()


def in_a_server(work: Callable[[LongRunningMiddleware], Awaitable[Any]]) -> Any:
    """Run something in an app that has been up for a while."""

    async def run() -> Any:
        served = app()
        async with lifespan(served):
            for _ in range(5):
                await send(served, await accept(served))
                await send(served, "/plain")
            return await work(served)

    return asyncio.run(run())


def calls_of(work: Callable[[LongRunningMiddleware], Awaitable[Any]], times: int) -> float:
    async def count(served: LongRunningMiddleware) -> float:
        with counted() as calls:
            await work(served)
        return calls.count / times

    found: float = in_a_server(count)
    return found


async def accept_many(served: LongRunningMiddleware) -> None:
    for _ in range(JOBS):
        await accept(served)


async def poll_many(served: LongRunningMiddleware) -> None:
    location = await accept(served)
    for _ in range(JOBS):
        assert (await send(served, location)).status == 200


async def plain_many(served: LongRunningMiddleware) -> None:
    for _ in range(JOBS):
        assert (await send(served, "/plain")).status == 200


@pytest.mark.parametrize(
    ("work", "bound"),
    [
        pytest.param(accept_many, 102, id="a job, from its request to its outcome"),
        pytest.param(poll_many, 20, id="a poll of a finished job"),
        pytest.param(plain_many, 3, id="a route that is not marked"),
    ],
)
def test_the_hot_paths_are_no_longer_than_they_were(
    work: Callable[[LongRunningMiddleware], Awaitable[Any]], bound: int
) -> None:
    found = calls_of(work, JOBS)
    assert bound / 2 < found <= bound


def test_a_job_leaves_nothing_for_the_garbage_collector() -> None:
    async def collect(served: LongRunningMiddleware) -> int:
        gc.collect()
        gc.disable()
        try:
            await accept_many(served)
            await asyncio.sleep(0)
            return gc.collect()
        finally:
            gc.enable()

    assert in_a_server(collect) < JOBS


def test_a_job_that_has_ended_is_one_more_thing_for_the_garbage_collector_until_it_looks() -> None:
    async def count(served: LongRunningMiddleware) -> list[int]:
        gc.collect()
        found = [len(gc.get_objects())]
        gc.disable()
        try:
            await accept_many(served)
            await asyncio.sleep(0)
            found.append(len(gc.get_objects()))
            gc.collect()
            found.append(len(gc.get_objects()))
        finally:
            gc.enable()
        return found

    before, ended, seen = in_a_server(count)
    assert ended - before < 1.5 * JOBS
    assert seen - before < 0.5 * JOBS
