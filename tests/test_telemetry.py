"""Telemetry: what is told of jobs, to whom, and that nobody who is told can change one."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Collection
from typing import Any

import anyio
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from starlette.requests import HTTPConnection, Request
from starlette.types import Scope

from raincheck import ConfigurationError, Job, Jobs, Limits, MemoryStore, State
from raincheck.errors import StoreError
from raincheck.job import Trace
from raincheck.telemetry.base import Span, Telemetry, Transition
from raincheck.telemetry.logging import LoggingTelemetry
from raincheck.telemetry.prometheus import PrometheusTelemetry
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.processes import LEASE, two
from tests.doubles.stores import REFUSED, Line, TrickyStore, failing, no_trick
from tests.support import Gate, app_of, gated, running, said, settled, slow_route

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]


async def ok(request: Request) -> Any:
    await anyio.sleep(2)
    return "ok"


async def raises(request: Request) -> Any:
    raise LookupError("no such user")


async def never(request: Request) -> Any:
    await anyio.sleep_forever()


def by_header(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-owner")


# --- who is told, and what comes of it -----------------------------------------------------------


class Notes(Telemetry):
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def transition(self, change: Transition) -> None:
        self.heard.append(f"{change.before} -> {change.job.state}" + " gone" * change.job.gone)


class BrokenSpan(Span):
    def enter(self) -> None:
        raise ValueError("enter")

    def end(self, job: Job | None, error: BaseException | None = None) -> None:
        raise ValueError("end")


class Broken(Telemetry):
    """Raises, whatever it is told."""

    def transition(self, change: Transition) -> None:
        raise ValueError("transition")

    def raised(self, job: Job, error: BaseException, now: float) -> None:
        raise ValueError("raised")

    def repeats(self, job: Job, reason: str) -> None:
        raise ValueError("repeats")

    def lost(self, job: Job, now: float, *, ended: bool, deleted: bool) -> None:
        raise ValueError("lost")

    def held(self, seconds: float, routes: Collection[str]) -> None:
        raise ValueError("held")

    def accepting(self, route: str, scope: Scope) -> Span | None:
        return BrokenSpan()

    def running(self, job: Job) -> Span | None:
        return BrokenSpan()


class BrokenEarlier(Broken):
    def accepting(self, route: str, scope: Scope) -> Span | None:
        raise ValueError("accepting")

    def running(self, job: Job) -> Span | None:
        raise ValueError("running")


async def test_a_telemetry_of_ones_own_hears_of_every_transition() -> None:
    jobs = virtual_jobs(telemetry=(notes := Notes()), limits=Limits(max_running=1))
    async with running(app_of(slow_route(ok), jobs=jobs)) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        for each in accepted:
            await follow(client, each)
        await client.delete(accepted[0].headers["location"])
    assert sorted(notes.heard) == [
        "None -> queued",
        "None -> running",
        "queued -> running",
        "running -> succeeded",
        "running -> succeeded",
        "succeeded -> succeeded gone",
    ]


@pytest.mark.parametrize("broken", [Broken, BrokenEarlier])
async def test_law_5_a_telemetry_that_fails_changes_no_job_and_is_logged(
    broken: type[Broken], caplog: pytest.LogCaptureFixture
) -> None:
    notes = Notes()
    jobs = virtual_jobs(telemetry=[broken(), notes], limits=Limits(max_running=1))
    app = app_of(slow_route(ok), slow_route(raises, "/raises"), jobs=jobs)
    async with running(app) as client:
        accepted = [await client.post(path) for path in ("/slow", "/slow", "/raises")]
        assert [each.status_code for each in accepted] == [202] * 3
        told = [(await follow(client, each)).status_code for each in accepted]
    assert told == [200, 200, 500]
    assert notes.heard.count("running -> succeeded") == 2
    lines = [record for record in caplog.records if record.getMessage().startswith("an observer")]
    raised = {str(record.exc_info[1]) for record in lines if record.exc_info}
    spans = {"enter", "end"} if broken is Broken else {"accepting", "running"}
    assert raised == {"transition", "raised"} | spans


class Untraceable(BrokenSpan):
    @property
    def trace(self) -> Trace | None:  # type: ignore[override]
        raise ValueError("trace")


async def later() -> None: ...


def raises_cancelled() -> Any:
    raise asyncio.CancelledError


def raises_bare() -> Any:
    raise BaseException


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize("give", [Untraceable, later, str, raises_cancelled, raises_bare])
async def test_law_5_whatever_a_telemetry_gives_or_raises_the_job_is_what_it_is(
    give: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(Notes):
        def accepting(self, route: str, scope: Scope) -> Span | None:
            return give()  # type: ignore[no-any-return]

        def running(self, job: Job) -> Span | None:
            return give()  # type: ignore[no-any-return]

    jobs = virtual_jobs(telemetry=(odd := Odd()), limits=Limits(max_running=1))
    async with running(app_of(slow_route(ok), jobs=jobs)) as client:
        with anyio.fail_after(10):
            accepted = [await client.post("/slow") for _ in range(2)]
        assert [(await follow(client, each)).status_code for each in accepted] == [200, 200]
    assert odd.heard.count("running -> succeeded") == 2
    assert len(said(caplog)) >= 4


async def test_several_are_told_and_what_is_given_takes_the_place_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for telemetry, lines in (
        (None, 1),
        ([Notes(), LoggingTelemetry()], 1),
        (Notes(), 0),
        ((), 0),
    ):
        caplog.clear()
        jobs = virtual_jobs(telemetry=telemetry)
        async with running(app_of(slow_route(never, timeout=1), jobs=jobs)) as client:
            assert (await follow(client, await client.post("/slow"))).status_code == 504
        assert len(said(caplog)) == lines


@pytest.mark.parametrize("given", [LoggingTelemetry, "log", [print], object()])
def test_what_is_no_telemetry_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="telemetry="):
        Jobs(telemetry=given)


def test_a_job_that_nobody_waits_to_hear_of_costs_nothing() -> None:
    observers = Jobs()._environment.observers
    assert [state for state, told in observers.of.items() if told] == [State.FAILED]
    assert not observers.follow
    assert not observers.figures


# --- the log -------------------------------------------------------------------------------------


async def test_a_line_about_a_job_says_whose_run_it_was_and_how_long(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = app_of(
        slow_route(raises, "/raises"),
        slow_route(never, "/late", timeout=3),
        gated(Gate(), "/held", max_running=1),
        jobs=virtual_jobs(limits=Limits(drain_timeout=1)),
        owner=by_header,
    )
    async with running(app) as client:
        client.headers["x-owner"] = "ann@example.org"
        for path in ("/raises", "/late"):
            await follow(client, await client.post(path))
        del client.headers["x-owner"]
        for _ in range(2):
            await client.post("/held")
    hashed = hashlib.sha256(b"ann@example.org").hexdigest()[:16]
    names = ("route", "owner", "state", "run", "seconds", "reason")
    told = [
        tuple(vars(record)[name] for name in names)
        for record in caplog.records
        if hasattr(record, "job")
    ]
    seconds = [found[4] for found in told]
    assert [found[:4] + found[5:] for found in told] == [
        ("raises", hashed, "failed", 1, "crashed"),  # Starlette has answered for it
        ("late", hashed, "failed", 1, "timeout"),
        ("held", None, "failed", 0, "interrupted"),
        ("held", None, "failed", 1, "interrupted"),
    ]
    assert seconds[1] == pytest.approx(3, abs=0.1)
    assert seconds[2] is None
    assert "ann@" not in caplog.text


async def test_a_job_that_is_taken_over_says_so_where_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two() as both:
        await both.a.post("/rerun")
        await settled()
        both.line.cut()
        await anyio.sleep(2 * LEASE)
        both.gates["b"].open()
        both.line.mend()
        await anyio.sleep(5)
    (lost,) = [record for record in caplog.records if "was taken over" in record.getMessage()]
    found = {name: vars(lost)[name] for name in ("route", "state", "run", "reason")}
    assert found == {"route": "rerun", "state": "running", "run": 1, "reason": "taken-over"}


# --- the event loop ------------------------------------------------------------------------------


@pytest.mark.one_loop
@pytest.mark.real
@pytest.mark.parametrize("last", [True, False], ids=["and ends with it", "and goes on"])
async def test_a_handler_that_holds_the_event_loop_is_told_of(
    last: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def computes(request: Request) -> Any:
        time.sleep(1.4)  # noqa: ASYNC251 - as a handler does that computes
        if not last:
            await anyio.sleep(1)
        return "done"

    app = app_of(slow_route(computes, name="reports.make"), gated(gate := Gate()), jobs=Jobs())
    async with running(app) as client:
        await client.post("/slow")
        await anyio.sleep(0.5)
        gate.open()
    (line,) = [record for record in said(caplog) if "held" in record.getMessage()]
    assert line.levelno == logging.WARNING
    assert vars(line)["routes"] == ["reports.make"]
    assert 1.0 <= vars(line)["seconds"] < 2.0
    assert "while jobs of these routes ran: reports.make; " in line.getMessage()


@pytest.mark.one_loop
@pytest.mark.real
async def test_what_holds_it_shortly_or_while_no_job_runs_is_not_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = app_of(gated(gate := Gate()), jobs=Jobs())
    async with running(app) as client:
        await client.post("/slow")
        time.sleep(0.7)  # noqa: ASYNC251
        await anyio.sleep(0.3)
        gate.open()
        await anyio.sleep(0.6)
        time.sleep(1.4)  # noqa: ASYNC251
        await anyio.sleep(0.3)
    assert said(caplog) == []


# --- Prometheus ----------------------------------------------------------------------------------


class Prometheus:
    """A registry, and what it says."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.telemetry = PrometheusTelemetry(registry=self.registry)

    def __call__(self, name: str, **labels: str) -> float | None:
        found: float | None = self.registry.get_sample_value(name, labels)
        return found

    def text(self) -> str:
        return str(generate_latest(self.registry).decode())


@pytest.fixture
def prometheus() -> Prometheus:
    return Prometheus()


async def test_what_waits_runs_and_has_ended_is_counted(prometheus: Prometheus) -> None:
    limits = Limits(max_running=1)
    jobs = virtual_jobs(telemetry=prometheus.telemetry, limits=limits)
    app = app_of(slow_route(ok), slow_route(raises, "/raises"), jobs=jobs, owner=by_header)
    async with running(app) as client:
        client.headers["x-owner"] = "ann@example.org"
        accepted = [await client.post("/slow") for _ in range(3)]
        await anyio.sleep(1.1)
        assert (prometheus("raincheck_running"), prometheus("raincheck_waiting")) == (1, 2)
        assert prometheus("raincheck_jobs", route="slow", state="queued") == 2
        assert prometheus("raincheck_jobs", route="slow", state="failed") == 0
        oldest = prometheus("raincheck_oldest_queued_seconds", route="slow")
        assert oldest == pytest.approx(1.1, abs=0.2)
        assert await client.post(accepted[2].headers["location"] + "/cancel")
        accepted.append(await client.post("/raises"))
        for each in accepted:
            await follow(client, each)
        await anyio.sleep(1.1)
        assert prometheus("raincheck_oldest_queued_seconds", route="slow") == 0
        text = prometheus.text()
    assert prometheus("raincheck_accepted_total", route="slow") == 3
    ended = {"succeeded": ("", 2), "cancelled": ("", 1)}
    for outcome, (reason, count) in ended.items():
        name = "raincheck_finished_total"
        assert prometheus(name, route="slow", outcome=outcome, reason=reason) == count
    failed = {"route": "raises", "outcome": "failed", "reason": "handler-response"}
    assert prometheus("raincheck_finished_total", **failed) == 1
    assert prometheus("raincheck_run_seconds_count", route="slow", outcome="succeeded") == 2
    assert (
        prometheus("raincheck_run_seconds_bucket", route="slow", outcome="succeeded", le="1.0") == 0
    )
    assert prometheus("raincheck_wait_seconds_count", route="slow") == 2
    assert "ann" not in text
    assert not any(each.json()["job_id"] in text for each in accepted if each.status_code == 202)


async def test_the_figures_are_a_second_old_at_most_and_a_scrape_asks_nobody(
    prometheus: Prometheus,
) -> None:
    asked: list[float] = []

    async def note(call: str, /, *arguments: Any, **more: Any) -> None:
        if call == "totals":
            asked.append(anyio.current_time())

    store = TrickyStore(note, shared=True)
    jobs = virtual_jobs(telemetry=prometheus.telemetry, store=store)
    async with running(app_of(gated(Gate()), jobs=jobs)):
        for _ in range(100):
            await anyio.sleep(0.1)
            age = prometheus("raincheck_figures_age_seconds")
            assert age is not None
            assert age <= 1.05
    assert 9 <= len(asked) <= 12


async def test_while_the_store_is_away_the_figures_stay_and_say_how_old_they_are(
    prometheus: Prometheus, caplog: pytest.LogCaptureFixture
) -> None:
    line = Line(MemoryStore())
    jobs = virtual_jobs(telemetry=prometheus.telemetry, store=line)
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        await client.post("/slow")
        await anyio.sleep(1.1)
        line.cut(REFUSED)
        await anyio.sleep(60)
        assert prometheus("raincheck_jobs", route="slow", state="running") == 1
        assert prometheus("raincheck_figures_age_seconds") == pytest.approx(60, abs=1.1)
        line.mend()
        await anyio.sleep(5)
        age = prometheus("raincheck_figures_age_seconds")
        assert age is not None
        assert age <= 1.05
        gate.open()
    assert jobs.availability.away is False


@pytest.mark.parametrize("shared", [True, False])
async def test_a_store_that_only_counts_too_slowly_is_not_away(
    shared: bool, prometheus: Prometheus, caplog: pytest.LogCaptureFixture
) -> None:
    store = TrickyStore(failing("totals", error=StoreError("too many")), shared=shared)
    jobs = virtual_jobs(telemetry=prometheus.telemetry, store=store)
    async with running(app_of(gated(Gate()), jobs=jobs)):
        await anyio.sleep(10)
        assert jobs.availability.away is False
        assert prometheus("raincheck_figures_age_seconds") == float("inf")
        store.before = no_trick
        await anyio.sleep(2)
        assert prometheus("raincheck_figures_age_seconds") != float("inf")
    fails, answers = said(caplog)
    assert fails.getMessage().startswith("the store's account of all jobs fails")
    assert answers.getMessage().startswith("the store's account of all jobs answers again")


async def test_a_store_of_this_process_alone_that_is_back_is_told_of_as_well(
    prometheus: Prometheus, caplog: pytest.LogCaptureFixture
) -> None:
    store = TrickyStore(failing("totals", "get"))
    jobs = virtual_jobs(telemetry=prometheus.telemetry, store=store)
    async with running(app_of(gated(Gate()), jobs=jobs)):
        await anyio.sleep(10)
        assert jobs.availability.away is True
        store.before = no_trick
        await anyio.sleep(2)
        assert jobs.availability.away is False


async def test_figures_that_nobody_reads_are_not_asked_for() -> None:
    store = TrickyStore(failing("totals"), shared=True)
    async with running(app_of(gated(Gate()), jobs=virtual_jobs(store=store))):
        await anyio.sleep(100)  # it would be away
    jobs = virtual_jobs(store=MemoryStore())
    async with running(app_of(gated(Gate()), jobs=jobs)):
        await anyio.sleep(10)
        assert jobs.figures is None


async def test_an_answer_that_is_only_kept_is_not_counted(prometheus: Prometheus) -> None:
    jobs = virtual_jobs(telemetry=prometheus.telemetry)
    async with running(app_of(slow_route(ok, respond="preferred"), jobs=jobs)) as client:
        assert (await client.post("/slow", headers={"idempotency-key": "a"})).status_code == 200
    assert 'route="slow"' not in prometheus.text()


def test_two_middlewares_need_a_registry_each(prometheus: Prometheus) -> None:
    Jobs(telemetry=prometheus.telemetry)
    with pytest.raises(ConfigurationError, match=r"PrometheusTelemetry\(registry="):
        Jobs(telemetry=prometheus.telemetry)
    with pytest.raises(ConfigurationError, match=r"a registry of its own: registry=Coll.*Duplicat"):
        PrometheusTelemetry(registry=prometheus.registry)
