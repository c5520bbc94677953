"""Retries in one process: what is repeated, when, and what its client sees meanwhile.

With other processes and engines: `tests/test_retry_elsewhere.py`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from raincheck import (
    ConfigurationError,
    Failure,
    Job,
    Jobs,
    Limits,
    LongRunningMiddleware,
    Pages,
    Policy,
    Retry,
    long_running,
    report,
)
from raincheck.cli.settings import read
from raincheck.errors import BrokenOff
from raincheck.telemetry.base import Telemetry
from raincheck.telemetry.logging import LoggingTelemetry
from raincheck.telemetry.prometheus import PrometheusTelemetry
from raincheck.testing import follow
from tests.conftest import Clock, virtual_jobs
from tests.doubles.stores import TrickyStore, taking
from tests.event_stream import Reader
from tests.support import Gate, app_of, gated, running, said, settled, slow_route

pytestmark = pytest.mark.anyio

ALWAYS = Retry(on=lambda failure: True, backoff=lambda failure: 10)


class Flaky:
    """A handler whose runs come to one outcome after the other; to the last again and again.

    Attributes:
        began: when each run did, by the event loop's clock.
    """

    def __init__(self, *outcomes: Any) -> None:
        self._outcomes = outcomes
        self.began: list[float] = []

    async def __call__(self, request: Request) -> Any:
        self.began.append(anyio.current_time())
        outcome = self._outcomes[min(len(self.began), len(self._outcomes)) - 1]
        if isinstance(outcome, BaseException):
            raise outcome
        if callable(outcome) and not isinstance(outcome, Response):
            outcome = await outcome()
        if isinstance(outcome, int):
            return Response(f"run {len(self.began)}", outcome)
        return outcome

    @property
    def runs(self) -> int:
        return len(self.began)

    @property
    def pauses(self) -> list[float]:
        return [round(after - before, 1) for before, after in pairwise(self.began)]


async def document_of(client: httpx.AsyncClient, response: httpx.Response) -> dict[str, Any]:
    answer = await client.get(response.headers["location"] + "/status")
    document: dict[str, Any] = answer.json()
    return document


# --- what is repeated ----------------------------------------------------------------------------


async def test_a_response_of_a_named_status_is_thrown_away_and_the_job_runs_again() -> None:
    flaky = Flaky(503, 502, {"done": True})
    async with running(app_of(slow_route(flaky, retry=Retry()))) as client:
        response = await follow(client, await client.post("/slow"))
        assert (response.status_code, response.json()) == (200, {"done": True})
    assert flaky.runs == 3
    first, second = flaky.pauses
    assert 1.0 <= first <= 1.6
    assert 2.0 <= second <= 2.9


async def test_while_it_waits_its_document_says_when_it_runs_again() -> None:
    flaky = Flaky(503, {})
    retry = Retry(backoff=lambda failure: 10)
    jobs = virtual_jobs()
    async with running(app_of(slow_route(flaky, retry=retry), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        assert "next_run_at" not in accepted.json()
        now = jobs.clock()
        await settled()
        poll = await client.get(accepted.headers["location"])
        document = poll.json()
        assert (poll.status_code, document["status"], document["runs"]) == (202, "queued", 1)
        assert (document["queue_position"], document["progress"]) == (None, None)
        again = datetime.fromisoformat(document["next_run_at"]).timestamp()
        assert now + 10 <= again <= now + 11
        assert int(poll.headers["retry-after"]) in (10, 11)
        assert "stream" in document["links"]
        assert await document_of(client, accepted) == document
        assert jobs.statistics().queued == 1
        await anyio.sleep(10.1)
        final = await document_of(client, accepted)
        assert (final["status"], final["runs"]) == ("succeeded", 2)
        assert "next_run_at" not in final


async def test_it_can_be_asked_about_when_its_time_has_come_by_another_clock() -> None:
    """A timer may be a little late, and the clock on the wall may be set."""
    clock, ahead, flaky = Clock(), [0.0], Flaky(503, {})
    jobs = Jobs(clock=lambda: clock() + ahead[0])
    async with running(app_of(slow_route(flaky, retry=ALWAYS), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(1)
        ahead[0] = 60
        answer = await client.get(accepted.headers["location"] + "/status")
        assert (answer.status_code, answer.json().get("status")) == (200, "queued")
        assert (await follow(client, accepted)).status_code == 200


async def test_when_its_runs_are_used_up_the_last_failure_is_the_outcome() -> None:
    flaky = Flaky(503)
    async with running(app_of(slow_route(flaky, retry=Retry(max_runs=4)))) as client:
        accepted = await client.post("/slow")
        response = await follow(client, accepted)
        assert (response.status_code, response.text) == (503, "run 4")
        assert response.headers["job-status"] == "failed"
        assert (await document_of(client, accepted))["runs"] == 4


@pytest.mark.parametrize("status", [200, 404, 422, 500, 504])
async def test_what_is_not_named_is_the_outcome_at_once(status: int) -> None:
    flaky = Flaky(status)
    async with running(app_of(slow_route(flaky, retry=Retry(on=503)))) as client:
        assert (await follow(client, await client.post("/slow"))).status_code == status
    assert flaky.runs == 1


async def test_the_outcome_of_a_status_that_is_not_named_waits_for_no_background_task() -> None:
    async def slow() -> None:
        await anyio.sleep(1000)

    flaky = Flaky(Response(status_code=404, background=BackgroundTask(slow)))
    async with running(app_of(slow_route(flaky, retry=Retry(on=503)))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == 404
        assert anyio.current_time() - flaky.began[0] < 1


async def test_the_next_run_waits_for_all_of_the_last_one() -> None:
    done: list[float] = []

    async def clean_up() -> None:
        await anyio.sleep(30)
        done.append(anyio.current_time())

    failed = Response(status_code=503, background=BackgroundTask(clean_up))
    flaky = Flaky(failed, {})
    async with running(app_of(slow_route(flaky, retry=Retry(backoff=0)))) as client:
        assert (await follow(client, await client.post("/slow"))).status_code == 200
    assert len(done) == 1
    assert flaky.began[1] >= done[0]


class Away(Exception):
    pass


@pytest.mark.parametrize(
    ("on", "runs"),
    [
        (Away, 2),
        ((503, Away), 2),
        (Exception, 2),
        (500, 2),
        ((502, 503, 504), 1),
        (LookupError, 1),
        (lambda failure: isinstance(failure.exception, Away), 2),
    ],
)
async def test_what_a_handler_raises_is_repeated_by_its_type(on: Any, runs: int) -> None:
    flaky = Flaky(Away("upstream"), {})
    async with running(app_of(slow_route(flaky, retry=Retry(on=on)))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == (200 if runs == 2 else 500)
    assert flaky.runs == runs


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        answer: Response = await call_next(request)
        return answer


async def unavailable(request: Request, error: Exception) -> Response:
    return Response("upstream is away", 503)


@pytest.mark.parametrize("around", [[], [Middleware(Passing), Middleware(Passing)]])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("handled", [True, False])
async def test_whatever_the_app_makes_of_what_a_decorated_handler_raises(
    handled: bool, inside: bool, around: list[Middleware]
) -> None:
    flaky = Flaky(Away(), {"done": 1})
    route = slow_route(flaky, retry=Retry(on=Away))
    handlers: Any = {Away: unavailable} if handled else {Exception: unavailable}
    jobs = virtual_jobs()
    if inside:
        own = [Middleware(LongRunningMiddleware, jobs=jobs), *around]
        app: ASGIApp = Starlette(routes=[route], middleware=own, exception_handlers=handlers)
    else:
        inner = Starlette(routes=[route], middleware=around, exception_handlers=handlers)
        app = LongRunningMiddleware(inner, jobs=jobs)
    async with running(app) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json() == {"done": 1}
    assert flaky.runs == 2


@pytest.mark.parametrize("failure", [Away(), HTTPException(503)])
async def test_a_path_rule_repeats_what_comes_out_of_the_app(failure: Exception) -> None:
    flaky = Flaky(failure, {"done": 1})

    async def endpoint(request: Request) -> Response:
        return JSONResponse(await flaky(request))

    inner = Starlette(routes=[Route("/slow", endpoint, methods=["POST"])])
    rules = {"POST /slow": Policy(retry=Retry(on=(503, Away)))}
    app = LongRunningMiddleware(inner, routes=rules, jobs=virtual_jobs())
    async with running(app) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json() == {"done": 1}
    assert flaky.runs == 2


async def test_a_background_task_that_raises_repeats_nothing() -> None:
    async def fails() -> None:
        raise Away

    flaky = Flaky(Response(status_code=404, background=BackgroundTask(fails)), {})
    async with running(app_of(slow_route(flaky, retry=Retry(on=Away)))) as client:
        assert (await follow(client, await client.post("/slow"))).status_code == 404
    assert flaky.runs == 1


async def test_a_function_is_given_the_failure() -> None:
    seen: list[Failure] = []

    def wanted(failure: Failure) -> bool:
        seen.append(failure)
        return True

    def pause(failure: Failure) -> float | timedelta:
        given = dict(failure.headers).get(b"retry-after")
        return timedelta(seconds=5) if given is None else float(given)

    failed = Response(status_code=429, headers={"retry-after": "40"})
    flaky = Flaky(failed, error := Away(), {})
    retry = Retry(on=wanted, backoff=pause)
    async with running(app_of(slow_route(flaky, retry=retry))) as client:
        assert (await follow(client, await client.post("/slow"))).status_code == 200
    assert [(each.status, each.exception, each.runs) for each in seen] == [
        (429, None, 1),
        (500, error, 2),
    ]
    assert (b"retry-after", b"40") in seen[0].headers
    assert [round(pause) for pause in flaky.pauses] == [40, 5]


def raises(failure: Failure) -> Any:
    raise KeyError("a bug")


@pytest.mark.parametrize(
    "retry",
    [
        Retry(on=raises),
        Retry(on=503, backoff=raises),
        Retry(on=503, backoff=lambda failure: -1),
        Retry(on=503, backoff=lambda failure: None),  # type: ignore[arg-type, return-value] # wrong
        Retry(on=lambda failure: anyio.lowlevel.checkpoint()),  # type: ignore[arg-type, return-value] # wrong
        Retry(on=503, backoff=lambda failure: anyio.lowlevel.checkpoint()),  # type: ignore[arg-type, return-value] # wrong
    ],
)
async def test_a_function_that_fails_is_logged_and_the_failure_is_the_outcome(
    retry: Retry, caplog: pytest.LogCaptureFixture
) -> None:
    flaky = Flaky(503, {})
    async with running(app_of(slow_route(flaky, retry=retry))) as client:
        assert (await follow(client, await client.post("/slow"))).status_code == 503
    (record,) = [each for each in said(caplog) if "whether it is repeated" in each.message]
    assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)
    assert flaky.runs == 1


async def test_a_def_handler_is_repeated_too() -> None:
    runs = []

    @long_running(name="sync", retry=Retry(on=Away))
    def endpoint(request: Request) -> Response:
        runs.append(1)
        if len(runs) < 3:
            raise Away
        return JSONResponse(len(runs))

    app = app_of(Route("/slow", endpoint, methods=["POST"]))
    async with running(app) as client:
        assert (await follow(client, await client.post("/slow"))).json() == 3


async def test_a_response_that_is_too_large_is_not_repeated() -> None:
    flaky = Flaky(Response(b"x" * 11, 503))
    retry = Retry(on=lambda failure: True)
    async with running(app_of(slow_route(flaky, retry=retry, max_response_size=10))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json()["type"].endswith("response-too-large")
    assert flaky.runs == 1


# --- time-outs and cancels -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "runs"),
    [
        ((500, 502, 503, 504), 1),
        ((503, OSError), 2),  # of which TimeoutError is one
        (TimeoutError, 2),
        (lambda failure: failure.status is None, 2),
        (lambda failure: failure.status == 504, 1),
    ],
)
async def test_what_runs_out_of_time_is_repeated_only_if_that_is_named(on: Any, runs: int) -> None:
    flaky = Flaky(anyio.sleep_forever, {})
    async with running(app_of(slow_route(flaky, timeout=60, retry=Retry(on=on)))) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.status_code == (200 if runs == 2 else 504)
    assert flaky.runs == runs


async def test_its_next_run_waits_until_the_last_one_has_stopped() -> None:
    stopped: list[float] = []

    async def lingers() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(4)
            stopped.append(anyio.current_time())

    flaky = Flaky(lingers, {})
    retry = Retry(on=TimeoutError, backoff=0)
    async with running(app_of(slow_route(flaky, timeout=60, retry=retry))) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(62)
        assert (await document_of(client, accepted))["status"] == "running"
        assert (await follow(client, accepted)).status_code == 200
    assert flaky.began[1] >= stopped[0]


async def test_the_last_run_that_takes_too_long_fails_in_time() -> None:
    flaky = Flaky(anyio.sleep_forever)
    retry = Retry(on=TimeoutError, max_runs=2)
    async with running(app_of(slow_route(flaky, timeout=60, retry=retry))) as client:
        response = await follow(client, await client.post("/slow"))
        assert (response.status_code, response.json()["title"]) == (
            504,
            "The handler took too long",
        )
    assert flaky.runs == 2


async def test_a_cancelled_run_is_not_repeated() -> None:
    gate = Gate()
    async with running(app_of(gated(gate, retry=ALWAYS))) as client:
        accepted = await client.post("/slow")
        await settled()
        await client.post(accepted.headers["location"] + "/cancel")
        await settled()
        assert (await document_of(client, accepted))["status"] == "canceled"
    assert gate.entered == 1


async def test_a_job_that_waits_for_its_next_run_is_cancelled_at_once() -> None:
    flaky = Flaky(503, {})
    async with running(app_of(slow_route(flaky, retry=ALWAYS))) as client:
        accepted = await client.post("/slow")
        await settled()
        answer = await client.post(accepted.headers["location"] + "/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
        await anyio.sleep(60)
    assert flaky.runs == 1


async def test_so_is_one_that_is_deleted() -> None:
    flaky, jobs = Flaky(503, {}), virtual_jobs()
    async with running(app_of(slow_route(flaky, retry=ALWAYS), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await settled()
        assert (await client.delete(accepted.headers["location"])).status_code == 202
        assert (await client.get(accepted.headers["location"])).status_code == 410
        await anyio.sleep(60)
        assert jobs.statistics().queued == 0
    assert flaky.runs == 1


@pytest.mark.parametrize("before", [0.0, 0.05, 0.1, 0.15, 0.2, 0.3])
async def test_a_cancel_that_meets_the_end_of_a_run_is_not_lost(before: float) -> None:
    """The store takes its time, so that the cancel comes anywhere between end and requeue."""
    store = TrickyStore(
        shared=True, before=taking(replace=0.1, get=0.02), after=taking(replace=0.1)
    )

    async def fails() -> int:
        await anyio.sleep(1)
        return 503

    flaky, jobs = Flaky(fails, {}), virtual_jobs(store=store)
    async with running(app_of(slow_route(flaky, retry=ALWAYS), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(1 + before)
        await client.post(accepted.headers["location"] + "/cancel")
        await anyio.sleep(60)
        assert (await document_of(client, accepted))["status"] == "canceled"
    assert flaky.runs == 1


# --- what its client sees ------------------------------------------------------------------------


async def test_a_stream_that_is_followed_begins_anew_under_another_etag() -> None:
    go_on = anyio.Event()

    def streamed(status_piece: bytes, then: BaseException | bytes) -> Callable[[], Any]:
        async def body() -> AsyncIterator[bytes]:
            yield status_piece
            await go_on.wait()
            if isinstance(then, BaseException):
                raise then
            yield then

        async def answer() -> Response:
            return StreamingResponse(body(), media_type="text/plain")

        return answer

    flaky = Flaky(streamed(b"half", Away()), streamed(b"whole ", b"body"))
    retry = Retry(on=Away, backoff=lambda failure: 10)
    async with running(app_of(slow_route(flaky, live=True, retry=retry))) as client:
        accepted = await client.post("/slow")
        stream = accepted.headers["location"] + "/stream"

        async def broken_off() -> None:
            with pytest.raises(BrokenOff, match="begun anew"):
                await client.get(stream)

        async with anyio.create_task_group() as group:
            group.start_soon(broken_off)
            await anyio.sleep(1)
            tag = (await client.head(stream)).headers["etag"]
            go_on.set()
        rest = await client.get(stream, headers={"range": "bytes=2-", "if-range": tag})
        assert (rest.status_code, rest.content) == (200, b"whole body")
        assert rest.headers["etag"] != tag


async def test_a_long_poll_of_the_monitor_tells_of_another_run() -> None:
    flaky = Flaky(503, 503, 503, {})
    retry = Retry(max_runs=4, backoff=lambda failure: 5)
    async with running(app_of(slow_route(flaky, retry=retry))) as client:
        accepted = await client.post("/slow")
        await settled()
        began = anyio.current_time()
        wait = {"prefer": "wait=20"}
        told = await client.get(accepted.headers["location"] + "/status", headers=wait)
        assert told.json()["runs"] == 2
        assert 4 < anyio.current_time() - began < 7


async def test_events_tell_of_it() -> None:
    flaky = Flaky(503, {})
    async with running(app_of(slow_route(flaky, retry=ALWAYS))) as client:
        accepted = await client.post("/slow")
        answer = await client.get(accepted.headers["location"] + "/events")
        told = [each.document for each in Reader().feed(answer.content)]
    states = [(each["status"], each["runs"], "next_run_at" in each) for each in told]
    assert ("queued", 1, True) in states
    assert states[-1] == ("succeeded", 2, False)


async def test_lists_tell_of_it_and_the_page_does_too() -> None:
    flaky = Flaky(503, {})
    pages = Pages(operator=lambda connection: True)
    async with running(app_of(slow_route(flaky, retry=ALWAYS), pages=pages)) as client:
        accepted = await client.post("/slow")
        await settled()
        (listed,) = (await client.get("/jobs")).json()["jobs"]
        assert (listed["status"], "next_run_at" in listed) == ("queued", True)
        browser = {"sec-fetch-mode": "navigate", "accept": "text/html"}
        page = await client.get(accepted.headers["location"], headers=browser)
        assert "<noscript><p >Tried again at " in page.text
        whole = await client.get("/jobs", headers=browser)
        assert re.search(r'data-of="message"[^>]*>Tried again at [\d-]+ [\d:]+ UTC<', whole.text)


async def test_a_client_that_waits_for_the_response_waits_through_the_retries() -> None:
    flaky = Flaky(503, {"done": 1})
    retry = Retry(backoff=lambda failure: 2)
    async with running(app_of(slow_route(flaky, wait=5, retry=retry))) as client:
        response = await client.post("/slow")
        assert (response.status_code, response.json()) == (200, {"done": 1})
        answered = await client.post("/slow", headers={"prefer": "wait=0"})
        assert answered.status_code in (200, 202)


async def test_a_key_names_the_same_job_while_it_waits() -> None:
    flaky = Flaky(503, {})
    key = {"idempotency-key": "k"}
    async with running(app_of(slow_route(flaky, retry=ALWAYS))) as client:
        accepted = await client.post("/slow", headers=key)
        await settled()
        again = await client.post("/slow", headers=key)
        assert again.headers["idempotency-replayed"] == "true"
        assert again.json()["job_id"] == accepted.json()["job_id"]
        assert (again.json()["status"], "next_run_at" in again.json()) == ("queued", True)
        await follow(client, again)
    assert flaky.runs == 2


async def test_others_join_a_run_that_is_still_to_come() -> None:
    flaky = Flaky(503, {})
    async with running(app_of(slow_route(flaky, coalesce=True, retry=ALWAYS))) as client:
        accepted = await client.post("/slow")
        await settled()
        twin = await client.post("/slow")
        assert twin.headers["location"] == accepted.headers["location"]
        await follow(client, twin)
    assert flaky.runs == 2


async def test_a_synchronous_answer_is_not_repeated() -> None:
    flaky = Flaky(503, {})
    async with running(app_of(slow_route(flaky, respond="preferred", retry=ALWAYS))) as client:
        for _ in range(2):
            answer = await client.post("/slow", headers={"idempotency-key": "k"})
            assert (answer.status_code, answer.text) == (503, "run 1")


# --- whose run it is -----------------------------------------------------------------------------

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


async def test_each_run_is_the_same_request_again() -> None:
    seen: list[Any] = []

    async def outer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            tenant.set(scope["path"])
            scope = {**scope, "state": {"pool": 1}}
        await app(scope, receive, send)

    async def answer(request: Request) -> Any:
        body = (await request.body()).decode()
        seen.append((tenant.get(), dict(request.scope["state"]), body, request.query_params["a"]))
        request.scope["state"]["touched"] = True
        tenant.set("changed")
        report(0.5)
        return Response(status_code=503) if len(seen) < 3 else {}

    app = app_of(slow_route(answer, retry=Retry()))
    async with running(outer) as client:
        await follow(client, await client.post("/slow?a=b", content=b"body"))
    assert seen == [("/slow", {"pool": 1}, "body", "b")] * 3


async def test_what_answers_before_the_handler_is_judged_as_well() -> None:
    answers = [200, 503, 200]

    class Guard:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            status = answers.pop(0) if scope["path"] == "/slow" else 200
            if status == 200:
                await self.app(scope, receive, send)
            else:
                await Response("the pool is empty", status)(scope, receive, send)

    flaky = Flaky(502, {"done": 1})
    inner = Starlette(routes=[slow_route(flaky, retry=Retry())], middleware=[Middleware(Guard)])
    async with running(LongRunningMiddleware(inner, jobs=virtual_jobs())) as client:
        response = await follow(client, await client.post("/slow"))
        assert response.json() == {"done": 1}
    assert (flaky.runs, answers) == (2, [])


# --- places --------------------------------------------------------------------------------------


async def test_its_place_is_free_while_it_waits_and_the_queue_counts_it() -> None:
    flaky, gate = Flaky(503, {"by": "flaky"}), Gate()
    limits = Limits(max_running=1, max_queued=1)
    jobs = virtual_jobs(limits=limits)
    app = app_of(slow_route(flaky, "/flaky", retry=ALWAYS), gated(gate, "/gated"), jobs=jobs)
    async with running(app) as client:
        waits = await client.post("/flaky")
        await settled()
        other = await client.post("/gated")
        assert other.json()["status"] == "running"
        assert (await client.post("/gated")).status_code == 503
        await anyio.sleep(20)
        document = await document_of(client, waits)  # it is due, and has no place
        assert (document["status"], document["queue_position"]) == ("queued", 1)
        gate.open()
        assert (await follow(client, waits)).json() == {"by": "flaky"}


@pytest.mark.parametrize("bound", ["max_queued", "max_queued_per_owner"])
async def test_the_bounds_of_its_route_count_it_and_never_refuse_it(bound: str) -> None:
    flaky = Flaky(503, anyio.sleep_forever)
    settings: Any = {"max_running": 1, bound: 1, "retry": ALWAYS}
    app = app_of(slow_route(flaky, **settings), owner=lambda connection: "ann")
    async with running(app) as client:
        await client.post("/slow")  # it waits for its second run
        await settled()
        await client.post("/slow")  # it runs
        refused = await client.post("/slow")
        assert refused.status_code == (503 if bound == "max_queued" else 429)
        await anyio.sleep(11)


# --- the end of the server -----------------------------------------------------------------------


async def test_in_memory_what_fails_as_the_server_stops_is_the_outcome() -> None:
    gate = Gate()

    async def fails() -> int:
        await gate.wait()
        return 503

    flaky, jobs = Flaky(fails), virtual_jobs()
    app = app_of(slow_route(flaky, retry=ALWAYS), jobs=jobs)
    async with anyio.create_task_group() as group:

        async def later() -> None:
            await anyio.sleep(5)
            gate.open()

        async with running(app) as client:
            accepted = await client.post("/slow")
            await settled()
            group.start_soon(later)
        job = await jobs.store.get(accepted.json()["job_id"])
    assert job is not None
    assert job.response is not None
    assert (job.state, job.response.status, flaky.runs) == ("failed", 503, 1)


async def test_in_memory_what_is_interrupted_has_failed() -> None:
    jobs = virtual_jobs(limits=Limits(drain_timeout=1))
    async with running(app_of(gated(Gate(), retry=ALWAYS), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await settled()
    job = await jobs.store.get(accepted.json()["job_id"])
    assert job is not None
    assert job.error is not None
    assert (job.state, job.error.name) == ("failed", "interrupted")


async def test_a_job_that_is_due_in_time_runs_before_the_server_has_stopped() -> None:
    flaky, jobs = Flaky(503, {}), virtual_jobs()
    async with running(app_of(slow_route(flaky, retry=ALWAYS), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await settled()
    job = await jobs.store.get(accepted.json()["job_id"])
    assert job is not None
    assert (job.state, flaky.runs) == ("succeeded", 2)


async def test_one_that_is_not_holds_nothing_up() -> None:
    flaky, jobs = Flaky(503, {}), virtual_jobs()
    retry = Retry(backoff=lambda failure: 600)
    async with running(app_of(slow_route(flaky, retry=retry), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await settled()
        began = anyio.current_time()
    assert anyio.current_time() - began < 1
    job = await jobs.store.get(accepted.json()["job_id"])
    assert job is not None
    assert job.error is not None
    assert (job.state, job.error.name) == ("failed", "interrupted")


async def test_one_that_is_cancelled_as_the_server_stops_stops_nothing_else() -> None:
    stops = anyio.Event()

    async def takes_time(call: str, /, *arguments: Any, **more: Any) -> None:
        if stops.is_set() and call == "replace":
            await anyio.sleep(2)

    async def cancel(id: str) -> None:
        await anyio.sleep(1)  # the first is on its way to others
        await jobs.cancel(id)

    flaky, store = Flaky(503), TrickyStore(shared=True, after=takes_time)
    jobs = virtual_jobs(store=store, limits=Limits(drain_timeout=5))
    retry = Retry(backoff=lambda failure: 600)
    app = app_of(slow_route(flaky, retry=retry), jobs=jobs)
    async with anyio.create_task_group() as group, running(app) as client:
        first, second = [(await client.post("/slow")).json()["job_id"] for _ in "ab"]
        await settled()
        stops.set()
        group.start_soon(cancel, second)
    found = [await store.get(id) for id in (first, second)]
    assert [job and job.state for job in found] == ["queued", "cancelled"]


# --- who is told ---------------------------------------------------------------------------------


class Notes(Telemetry):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def repeats(self, job: Job, reason: str) -> None:
        self.heard.append((job.runs, reason, str(job.state)))


async def test_telemetry_hears_of_each(caplog: pytest.LogCaptureFixture) -> None:
    registry, notes = CollectorRegistry(), Notes()
    told = [notes, PrometheusTelemetry(registry=registry), LoggingTelemetry()]
    flaky = Flaky(503, Away(), anyio.sleep_forever, {})
    retry = Retry(on=lambda failure: True, max_runs=4)
    jobs = virtual_jobs(telemetry=told)
    route = slow_route(flaky, timeout=60, retry=retry)
    app = Starlette(routes=[route], middleware=[Middleware(LongRunningMiddleware, jobs=jobs)])
    async with running(app) as client:
        await follow(client, await client.post("/slow"))
    reasons = ["handler-response", "crashed", "timeout"]
    assert notes.heard == [(n + 1, reason, "queued") for n, reason in enumerate(reasons)]
    text = generate_latest(registry).decode()
    for reason in reasons:
        assert f'raincheck_repeated_total{{reason="{reason}",route="slow"}} 1.0' in text
    lines = [each for each in said(caplog) if "is repeated" in each.message]
    assert [(each.run, each.reason) for each in lines] == [  # type: ignore[attr-defined] # ours
        (n + 1, reason) for n, reason in enumerate(reasons)
    ]
    assert "run 1 of 4 has failed (handler-response)" in lines[0].message


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_runs": 2}, "max_runs=2): max_runs is not given with retry"),
        ({"max_runs": 2, "on_interrupt": "rerun"}, "max_runs is not given with retry"),
        ({"hold": True}, "hold=True): hold keeps what cannot run twice"),
        ({"on_interrupt": "fail"}, "on_interrupt='fail'): on_interrupt is not 'fail' with retry"),
    ],
)
def test_what_does_not_go_with_a_retry_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Policy(**settings, retry=Retry())
    assert message in str(raised.value)


@pytest.mark.parametrize("field", ["on", "backoff"])
def test_a_function_that_would_have_to_be_awaited_is_refused(field: str) -> None:
    async def ask(failure: Failure) -> Any: ...

    settings: Any = {field: ask}
    with pytest.raises(ConfigurationError, match="nothing waits for it"):
        Retry(**settings)


def test_the_runs_of_a_retry_are_those_of_its_policy() -> None:
    assert Policy(retry=Retry(max_runs=7)).runs == 7
    assert Policy(retry=Retry(), on_interrupt="rerun").runs == 3
    assert Policy(retry=Retry()).reruns
    assert not Policy().reruns


@pytest.mark.parametrize("on", [503, OSError, [503, OSError], {503}, frozenset({OSError})])
def test_on_is_one_or_several_statuses_and_types(on: Any) -> None:
    kept: Any = Retry(on=on).on
    assert isinstance(kept, tuple)
    assert hash(Retry(on=on)) == hash(Retry(on=on))


def test_a_backoff_has_an_end() -> None:
    failure = Failure(503, (), None, 1)
    found = [Retry().pause(failure._replace(runs=runs)) or 0.0 for runs in (1, 2, 5, 9, 10, 5000)]
    for pause, least in zip(found, [1, 2, 16, 256, 512, 600], strict=True):
        assert least <= pause <= 1.25 * least
    assert Retry(backoff=0).pause(failure) == 0
    assert Retry().pause(failure._replace(status=404)) is None


async def test_the_settings_of_a_file_have_it(tmp_path: Any) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        '[routes."POST /slow"]\nmax_wait_queued = 60\n'
        '[routes."POST /slow".retry]\non = [429, 503]\nmax_runs = 5\n'
    )
    policy = read(file).rules()["POST /slow"]
    assert policy.retry == Retry(on=(429, 503), max_runs=5)
    assert policy.max_wait_queued == 60
    file.write_text('[routes."POST /slow".retry]\nruns = 5\n')
    with pytest.raises(ConfigurationError, match="there is no runs"):
        read(file)


# --- off by default ------------------------------------------------------------------------------


async def test_without_it_a_failure_is_the_outcome() -> None:
    flaky = Flaky(503, {})
    async with running(app_of(slow_route(flaky))) as client:
        assert (await follow(client, await client.post("/slow"))).status_code == 503
        assert json.dumps((await client.get("/jobs/x")).json())
    assert flaky.runs == 1
