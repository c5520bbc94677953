"""What the log says, and how often."""

from __future__ import annotations

import logging
import re
from typing import Any

import anyio
import pytest
from starlette.requests import Request
from starlette.responses import Response

from raincheck import Limits, LongRunningMiddleware, MemoryStore, Policy
from raincheck.errors import StoreError, StoreFull
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.processes import LEASE, fleet, two
from tests.doubles.stores import LOST, REFUSED, Line, SharedMemory, TrickyStore, failing
from tests.support import Gate, app_of, gated, running, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """What raincheck's own log has at this level and above, without its numbers of seconds."""
    return [
        f"{record.levelname} {re.sub(r'[0-9.]+ seconds', 'N seconds', record.getMessage())}"
        for record in caplog.records
        if record.name == "raincheck" and record.levelno >= level
    ]


# --- a store that is away ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "why"), [(REFUSED, "connection refused"), (LOST, "it has not answered for N seconds")]
)
async def test_a_store_that_is_away_is_told_once_and_each_minute_and_when_it_is_back(
    how: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However many ask it meanwhile: clients, handlers that end, leases, sweeps."""
    line = Line(MemoryStore())
    jobs = virtual_jobs(store=line, limits=Limits(max_running=20, store_timeout=2))
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        accepted = [await client.post("/slow") for _ in range(30)]
        await settled()
        line.cut(how)
        for _ in range(10):
            await anyio.sleep(14)
            gate.open()
            for answer in (
                await client.get(accepted[0].headers["location"]),
                await client.post("/slow"),
            ):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert line.cuts > 100
        line.mend()
        for response in accepted:
            assert (await follow(client, response)).status_code == 200
    assert said(caplog) == [
        f"ERROR the store fails, and is asked again: {why}",
        *[f"ERROR the store has failed for N seconds: {why}"] * 2,
        "WARNING the store answers again, after N seconds",
    ]
    assert [record.exc_info for record in caplog.records if record.levelno > logging.INFO] == [
        None
    ] * 4


async def test_a_store_that_comes_and_goes_is_told_once_a_minute_unless_it_stays_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    line = Line(MemoryStore())
    app = app_of(gated(gate := Gate()), jobs=virtual_jobs(store=line))
    async with running(app) as client:
        url = (await client.post("/slow")).headers["location"]
        for away in (0.1, 0.1, 0.1, 5.0):
            line.cut(REFUSED)
            assert (await client.get(url)).status_code == 503
            await anyio.sleep(away)
            line.mend()
            assert (await client.get(url)).status_code == 202
            await anyio.sleep(5)
        gate.open()
        await settled()
    fails = "ERROR the store fails, and is asked again: connection refused"
    assert said(caplog) == [fails, "WARNING the store answers again, after N seconds"] * 2


async def test_a_store_that_is_wrong_shows_where(caplog: pytest.LogCaptureFixture) -> None:
    store = TrickyStore(failing("fetch", error=KeyError("a")), shared=True)
    app = app_of(gated(gate := Gate()), jobs=virtual_jobs(store=store))
    async with running(app) as client:
        response = await client.get((await client.post("/slow")).headers["location"])
        assert response.status_code == 503
        gate.open()
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError


# --- jobs that fail ------------------------------------------------------------------------------


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, ...]]:
    """Level, job, route and reason of each line about a job."""
    return [
        (record.levelname, *(str(vars(record)[name]) for name in ("job", "route", "reason")))
        for record in caplog.records
        if hasattr(record, "job")
    ]


class Broken(Response):
    """Sends a body before its response has begun."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.body"})


class Cut(Response):
    """Ends before its body does."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def never(request: Request) -> Any:
    await anyio.sleep_forever()


async def raises(request: Request) -> Any:
    raise LookupError("no such user")


async def large(request: Request) -> Any:
    return Response(bytes(1_000_000))


async def broken(request: Request) -> Any:
    return Broken()


async def cut(request: Request) -> Any:
    return Cut()


REASONS = {
    "timeout": slow_route(never, timeout=1),
    "response-too-large": slow_route(large, max_response_size=1000),
    "invalid-response": slow_route(broken),
    "interrupted": slow_route(never),
}


@pytest.mark.parametrize("store_type", [MemoryStore, SharedMemory])
@pytest.mark.parametrize("reason", REASONS)
async def test_a_job_that_fails_for_a_reason_it_did_not_choose_leaves_one_line(
    reason: str, store_type: type[MemoryStore], caplog: pytest.LogCaptureFixture
) -> None:
    limits = Limits(drain_timeout=5, cancel_grace=1)
    app = app_of(REASONS[reason], jobs=virtual_jobs(store=store_type(), limits=limits))
    async with running(app) as client:
        id = (await client.post("/slow")).json()["job_id"]
        await anyio.sleep(3)
    assert told(caplog) == [("WARNING", id, "slow", reason)]
    (line,) = [line for line in said(caplog) if id in line]
    assert line.startswith(f"WARNING job {id} (slow) has failed: ")


@pytest.mark.parametrize(
    ("answer", "why"), [(cut, "returned before"), (broken, "before the start")]
)
async def test_the_line_says_what_is_wrong_with_a_response(
    answer: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(app_of(slow_route(answer))) as client:
        assert (await follow(client, await client.post("/slow"))).status_code == 500
    (line,) = said(caplog)
    assert why in line


async def test_a_response_that_is_not_kept_leaves_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def chunks(request: Request) -> Any:
        class InTwo(Response):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                for more in (True, False):
                    body = bytes(1_000_000)
                    await send({"type": "http.response.body", "body": body, "more_body": more})

        return InTwo()

    store = TrickyStore(failing("append_body", error=StoreFull("the disk is full")))
    async with running(app_of(slow_route(chunks), jobs=virtual_jobs(store=store))) as client:
        assert (await follow(client, await client.post("/slow"))).status_code == 500
    (line,) = said(caplog)
    assert line.endswith(
        "has failed: The response is too large. The job store has no room for the response."
    )


async def bare(scope: Any, receive: Any, send: Any) -> None:
    raise LookupError("no such user")


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(lambda: app_of(slow_route(raises)), id="with an answer of the framework's"),
        pytest.param(
            lambda: LongRunningMiddleware(
                bare, routes={"POST /slow": Policy()}, jobs=virtual_jobs()
            ),
            id="without an answer",
        ),
    ],
)
async def test_a_handler_that_raises_leaves_one_line_with_its_trace(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(app()) as client:
        accepted = await client.post("/slow")
        assert (await follow(client, accepted)).status_code == 500
    ((level, id, _, reason),) = told(caplog)
    assert (level, id, reason) == ("ERROR", accepted.json()["job_id"], "crashed")
    assert "no such user" in caplog.text
    assert len(said(caplog)) == 1


async def test_a_job_whose_process_dies_leaves_one_line_where_it_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two() as both:
        accepted = await both.a.post("/fail")
        await settled()
        both.line.cut()
        await anyio.sleep(2 * LEASE)
        ((level, id, _, reason),) = told(caplog)
        assert (level, id, reason) == ("WARNING", accepted.json()["job_id"], "lost-worker")


async def test_a_failure_whose_record_is_acknowledged_late_leaves_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = 0

    async def forget(call: str, /, *arguments: Any, **more: Any) -> None:
        nonlocal lost
        lost += call == "replace"
        if call == "replace" and lost == 1:
            raise StoreError("connection reset")

    store = TrickyStore(after=forget, shared=True)
    app = app_of(slow_route(never, timeout=1), jobs=virtual_jobs(store=store))
    async with running(app) as client:
        assert (await follow(client, await client.post("/slow"))).status_code == 504
    assert lost > 1
    assert len(told(caplog)) == 1


async def test_what_its_client_wants_leaves_no_line(caplog: pytest.LogCaptureFixture) -> None:
    async with two() as both:
        urls = [(await both.a.post("/fail")).headers["location"] for _ in range(2)]
        await settled()
        await both.b.post(urls[0] + "/cancel")
        await both.b.delete(urls[1])
        await anyio.sleep(5)
        assert both.gates["a"].cleaned_up == 2
    assert said(caplog) == []


# --- a server that stops -------------------------------------------------------------------------


async def test_a_server_that_stops_says_what_it_waits_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    jobs = virtual_jobs(limits=Limits(drain_timeout=20, max_running=2))
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        for _ in range(3):
            await client.post("/slow")
        await settled()
        async with anyio.create_task_group() as group:
            group.start_soon(jobs.close)
            await anyio.sleep(5)
            gate.open()
    line = "the server stops when its jobs have ended, in N seconds at most: 2 run, 1 wait"
    assert said(caplog) == [f"WARNING {line}"]
    assert "in 20 seconds" in caplog.text


async def test_one_that_has_nothing_to_wait_for_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(app_of(gated(gate := Gate()))) as client:
        gate.open()
        await follow(client, await client.post("/slow"))
    assert said(caplog) == []


async def test_an_engine_that_is_away_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with fleet("a") as one:
        one.broker.up = False
        for _ in range(20):
            assert (await one.web.post("/fail")).status_code == 503
            await anyio.sleep(1)
        one.broker.up = True
        assert (await one.web.post("/fail")).status_code == 202
        one.gates["a"].open()
        await anyio.sleep(1)
    assert said(caplog) == [
        "ERROR the engine that runs jobs fails, and is asked again: it is not there",
        "WARNING the engine that runs jobs answers again, after N seconds",
    ]
