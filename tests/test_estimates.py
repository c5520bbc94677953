"""Estimates: when to look again, and when a job is likely to end; tried by a simulated day."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable
from datetime import datetime
from itertools import pairwise

import anyio
import httpx
import pytest
from benchmarks.estimates import Route, Trouble, beginnings, day
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from raincheck import Jobs, Limits, LongRunningMiddleware
from raincheck.errors import StoreError
from raincheck.runtime.estimates import FEW, WINDOW, Durations, by_progress
from raincheck.runtime.fleet import INTERVAL
from raincheck.stores.base import Store
from raincheck.testing import follow
from tests.conftest import Clock, virtual_jobs
from tests.doubles.processes import fleet
from tests.doubles.stores import (
    REFUSED,
    Line,
    SharedMemory,
    TrickyStore,
    failing,
    no_trick,
    taking,
)
from tests.support import Gate, app_of, gated, running, settled, slow_route


def learned(durations: Iterable[float]) -> Durations:
    found = Durations()
    for seconds in durations:
        found.learn(seconds)
    return found


def looks(durations: Durations, until: float) -> list[float]:
    """When somebody looks who goes by the pauses, none of them shorter than a second."""
    elapsed, found = 0.0, list[float]()
    while elapsed < until:
        elapsed += max(1.0, durations.running(elapsed)[0])
        found.append(elapsed)
    return found


def around(median: float, sigma: float = 0.8, many: int = WINDOW) -> list[float]:
    """Durations that spread evenly as log-normal ones do, in no order."""
    draw = random.Random(16)
    return [draw.lognormvariate(math.log(median), sigma) for _ in range(many)]


# --- what is expected --------------------------------------------------------------------------


def test_of_nothing_nothing_is_expected() -> None:
    nothing = Durations()
    assert (nothing.mean, nothing.few) == (None, True)
    assert nothing.running(10.0) == (5.0, None)
    assert nothing.queued(3.0, 1, 10.0) == (5.0, None)


def test_half_of_those_that_have_run_so_long_have_ended_when_it_is_expected_to() -> None:
    durations = learned([1.0, 2.0, 3.0, 4.0, 100.0, 104.0, 108.0, 112.0])
    remaining = [durations.running(elapsed)[1] for elapsed in (0.0, 1.5, 4.0, 100.0, 112.0)]
    assert remaining == [100.0, 98.5, 104.0, 8.0, None]


def test_beyond_what_nearly_all_took_nothing_is_known() -> None:
    durations = learned([3.0] * 63 + [3600.0])
    assert durations.running(2.0)[1] == 1.0
    assert durations.running(4.0) == (2.0, None)


def test_an_outlier_moves_nothing() -> None:
    usual, other = learned(around(3.0)), learned([*around(3.0)[:-1], 3600.0])
    for elapsed in (0.0, 1.0, 3.0):
        assert other.running(elapsed) == pytest.approx(usual.running(elapsed), rel=0.3)
    assert usual.mean is not None
    assert other.mean == pytest.approx(usual.mean, rel=0.3)


def test_what_is_remembered_is_bounded() -> None:
    durations = learned(around(3.0, many=WINDOW))
    before = sys.getsizeof(durations._sorted) + sys.getsizeof(durations._recent)
    for seconds in around(9.0, many=10_000):
        durations.learn(seconds)
    assert len(durations._sorted) == len(durations._recent) == WINDOW
    assert sys.getsizeof(durations._sorted) + sys.getsizeof(durations._recent) <= 2 * before


@given(st.lists(st.floats(-10, 1e6, allow_nan=False), min_size=1, max_size=3 * WINDOW))
@settings(max_examples=60, deadline=None)
def test_the_newest_are_remembered_in_order(durations: list[float]) -> None:
    found = learned(durations)
    assert found._sorted == sorted(durations[-WINDOW:])


# --- when to look again ------------------------------------------------------------------------


@given(
    st.lists(st.floats(0, 1e5, allow_nan=False), max_size=2 * WINDOW),
    st.floats(0, 1e6),
    st.floats(0, 1, exclude_min=True),
)
@settings(max_examples=200, deadline=None)
def test_no_pause_is_longer_than_half_of_the_run_once_jobs_have_ended(
    durations: list[float], elapsed: float, fraction: float
) -> None:
    found = learned(durations)
    pause, _ = found.running(elapsed)
    soonest = min(durations[-WINDOW:], default=0.0)
    for each in (pause, by_progress(pause, elapsed, fraction)[0]):
        assert each >= 0
        assert each <= 0.5 * elapsed or (durations and elapsed < soonest)


def test_looks_come_closer_where_jobs_end() -> None:
    durations = around(300.0, 0.4)
    found = looks(learned(durations), max(durations))
    pauses = [later - earlier for earlier, later in pairwise([0.0, *found])]
    assert found[0] > 100.0
    assert max(pauses[1:-4]) < found[0] / 2
    assert len(found) < 20


def test_a_few_jobs_do_not_say_how_much_they_differ() -> None:
    """After one job the first look comes well before the next is expected to end."""
    found = [learned([100.0] * many).running(0.0) for many in range(1, FEW + 1)]
    assert {remaining for _, remaining in found} == {100.0}
    pauses = [pause for pause, _ in found]
    assert pauses == sorted(pauses)
    assert pauses[0] < 30.0
    assert pauses[-1] == 100.0


def test_a_job_that_takes_for_ever_is_looked_at_ever_more_rarely() -> None:
    found = looks(learned(around(3.0)), 86400.0)
    assert len(found) < 40
    assert all(later <= 1.5 * earlier + 1.0 for earlier, later in pairwise(found))


@pytest.mark.parametrize(
    ("elapsed", "fraction", "pause", "remaining"),
    [
        pytest.param(10.0, 0.5, 10.0, 10.0, id="sooner than others"),
        pytest.param(10.0, 0.95, 0.8, 0.5 / 0.95, id="almost there: not too often"),
        pytest.param(10.0, 1.0, 0.8, 0.0, id="it has only to end"),
        pytest.param(110.0, 0.75, 110 / 3, 110 / 3, id="later than others"),
        pytest.param(110.0, 0.1, 38.5, 990.0, id="much later, as far as one can trust it"),
    ],
)
def test_what_a_handler_reports_counts_more_than_what_others_took(
    elapsed: float, fraction: float, pause: float, remaining: float
) -> None:
    durations = learned([100.0] * 32 + [120.0] * 32)
    durations = learned([100.0] * WINDOW) if elapsed < 100 else durations
    others, _ = durations.running(elapsed)
    assert by_progress(others, elapsed, fraction) == pytest.approx((pause, remaining))


# --- a queue -----------------------------------------------------------------------------------


def test_the_wait_for_a_turn_adds_up_and_its_uncertainty_does_not() -> None:
    durations = learned(around(60.0))
    mean = durations.mean
    assert mean is not None
    usual = durations.running(0.0)[1]
    assert usual is not None
    for turns, width in ((1, 1), (4, 2), (30, 1)):
        pause, left = durations.queued(turns, width, 0.0)
        assert left == pytest.approx(turns * mean / width + usual)
        assert left is not None
        assert left / 20 < pause < left
    shares = [durations.queued(turns, 1, 0.0) for turns in (1, 10, 100)]
    parts = [pause / (left or 0.0) for pause, left in shares]
    assert parts == sorted(parts)
    assert parts[-1] > 0.8


def test_a_queue_that_stands_still_is_looked_at_ever_more_rarely() -> None:
    durations = learned([1.0] * WINDOW)
    assert durations.queued(1, 1, 1000.0)[0] == pytest.approx(80.0)


# --- a simulated day ---------------------------------------------------------------------------


SHORT = 12.0
"""Hours of the simulated day that are tried here: from its quiet beginning to its middle."""


@pytest.mark.parametrize("seed", [16, 17])
def test_a_day_reaches_the_goals(seed: int) -> None:
    """At most a third of the polls, late by less than 15 % at the median and 50 % at 95 %."""
    for figures in day(seed=seed, hours=SHORT).values():
        assert len(figures.requests) > 20
        assert figures.reached, (figures.share, figures.late(0.5), figures.late(0.95))


@pytest.mark.parametrize("told", [False, True], ids=["alone", "on a fleet"])
def test_the_first_jobs_of_a_process_do_nearly(told: bool) -> None:
    for figures in beginnings(FEW, 10, 16, told=told).values():
        assert figures.share < 0.4
        assert figures.late(0.5) < 0.2
        assert figures.late(0.95) < (0.5 if told else 0.7)


def test_a_troubled_day_does_too() -> None:
    trouble = Trouble(outliers=0.01, failures=0.02, cancels=0.05, deploys=((8, 4.0), (10, 0.1)))
    for figures in day(hours=SHORT, trouble=trouble).values():
        assert figures.share <= 1 / 3
        assert figures.late(0.5) < 0.15


def test_a_queue_does_too_by_what_its_clients_wait() -> None:
    queues = [Route("report", 45, 0.8, 50, max_running=1)]
    found = day(queues, hours=SHORT)["report"]
    assert found.share <= 1 / 3
    assert found.late(0.5, waited=True) < 0.15
    assert found.late(0.95, waited=True) < 0.5
    assert found.missed < 0.5


# --- what counts -------------------------------------------------------------------------------


async def work(request: Request) -> dict[str, str]:
    await anyio.sleep(float(request.query_params.get("seconds", 12)))
    return {}


async def crash(request: Request) -> dict[str, str]:
    await anyio.sleep(3)
    raise RuntimeError("it cannot go on")


async def fail(request: Request) -> Response:
    await anyio.sleep(3)
    return Response(status_code=500)


def expected(response: httpx.Response) -> float | None:
    """Seconds from the acceptance of a job to its end, as a document expects them."""
    document = response.json()
    found = [document[name] for name in ("created_at", "estimated_completion")]
    if None in found:
        return None
    created, completion = map(datetime.fromisoformat, found)
    return (completion - created).total_seconds()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "route",
    [
        pytest.param(slow_route(crash), id="it crashes"),
        pytest.param(slow_route(fail), id="its response is an error"),
        pytest.param(slow_route(work, timeout=3), id="its time is over"),
    ],
)
async def test_a_job_that_fails_by_itself_counts(
    route: StarletteRoute,
) -> None:
    async with running(app_of(route)) as client:
        await follow(client, await client.post("/slow"))
        assert expected(await client.post("/slow")) == pytest.approx(3.0, abs=1.0)


@pytest.mark.anyio
async def test_law_1_an_outcome_is_in_the_store_before_anything_is_learned_of_it(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    """Whatever is wrong with an estimate, the job is not lost."""

    def fails(self: Durations, seconds: float) -> None:
        raise ArithmeticError("no such duration")

    monkeypatch.setattr(Durations, "learn", fails)
    async with running(app_of(slow_route(work), jobs=Jobs(clock=clock))) as client:
        response = await follow(client, await client.post("/slow"))
        assert (response.status_code, response.headers["job-status"]) == (200, "succeeded")


@pytest.mark.anyio
async def test_law_1_a_clock_may_give_whole_seconds() -> None:
    clock = Clock()
    async with running(app_of(slow_route(work), jobs=Jobs(clock=lambda: int(clock())))) as client:
        with anyio.fail_after(60):
            response = await follow(client, await client.post("/slow"))
        assert response.headers["job-status"] == "succeeded"
        assert expected(await client.post("/slow")) == pytest.approx(12.0, abs=1.0)


@pytest.mark.anyio
async def test_a_job_that_is_cancelled_does_not_count() -> None:
    async with running(app_of(slow_route(work))) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(3)
        await client.post(accepted.headers["location"] + "/cancel")
        await settled()
        assert expected(await client.post("/slow")) is None


# --- on a fleet --------------------------------------------------------------------------------


class Asked:
    """What a store is asked for the sake of estimates, and when."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []

    async def __call__(self, call: str, /, *arguments: object, **more: object) -> None:
        if call in ("totals", "list"):
            self.calls.append((call, anyio.current_time()))

    def of(self, call: str) -> list[float]:
        return [when for name, when in self.calls if name == call]


async def run_some(store: Store, *seconds: float) -> None:
    """Let another process run jobs that take so long."""
    async with running(app_of(slow_route(work), jobs=virtual_jobs(store=store))) as client:
        for each in seconds:
            await follow(client, await client.post(f"/slow?seconds={each}"))


@pytest.mark.one_loop
@pytest.mark.anyio
async def test_a_process_that_has_run_nothing_goes_by_what_others_ran() -> None:
    """And by their median: one of them took much longer."""
    store = SharedMemory()
    await run_some(store, *[12.0] * 20, 900.0)
    async with running(app_of(slow_route(work), jobs=virtual_jobs(store=store))) as client:
        first = await client.post("/slow?seconds=30")
        assert first.json()["estimated_completion"] is None
        await settled()
        second = await client.post("/slow?seconds=30")
        assert expected(second) == pytest.approx(12.0, abs=2.0)
        assert second.headers["retry-after"] == "12"


@pytest.mark.one_loop
@pytest.mark.anyio
async def test_of_a_busy_route_not_only_the_quick_ones_count(clock: Clock) -> None:
    """Most of the newest have ended at once; of those that were accepted before, half took long."""
    store, limits = SharedMemory(), Limits(max_running=1000)

    def process() -> LongRunningMiddleware:
        return app_of(slow_route(work), jobs=Jobs(clock=clock, store=store, limits=limits))

    async with running(process()) as client, running(process()) as other:
        for each in range(480):
            await client.post(f"/slow?seconds={60 if each % 2 else 1}")
            await anyio.sleep(0.25)
        await other.post("/slow")
        await settled()
        accepted = await other.post("/slow?seconds=60")
        await anyio.sleep(5)
        pending = await other.get(accepted.headers["location"])
    assert pending.headers["retry-after"] == "2"
    assert expected(pending) == pytest.approx(60.0, abs=2.0)


@pytest.mark.one_loop
@pytest.mark.anyio
async def test_no_request_waits_for_an_estimate_and_the_store_is_asked_seldom() -> None:
    asked = Asked()
    store = TrickyStore(asked, taking(totals=3.0), shared=True)
    await run_some(store, *[12.0] * FEW)
    asked.calls.clear()
    async with running(app_of(gated(gate := Gate()), jobs=virtual_jobs(store=store))) as client:
        began = anyio.current_time()
        accepted = await client.post("/slow")
        assert anyio.current_time() == pytest.approx(began, abs=0.5)
        for _ in range(100):
            before = anyio.current_time()
            await client.get(accepted.headers["location"])
            assert anyio.current_time() == pytest.approx(before, abs=0.5)
            await anyio.sleep(1)
        took = anyio.current_time() - began
        assert 5 <= len(asked.of("totals")) <= took / INTERVAL + 1
        assert len(asked.of("list")) <= 2 * (took / 60 + 1)
        gate.open()
        await anyio.sleep(2 * INTERVAL)
        asked.calls.clear()
        await anyio.sleep(60 * INTERVAL)
        assert asked.calls == []


@pytest.mark.anyio
async def test_of_a_route_that_runs_here_the_store_is_not_asked() -> None:
    store = TrickyStore(asked := Asked(), shared=True)
    async with running(app_of(slow_route(work), jobs=virtual_jobs(store=store))) as client:
        for _ in range(FEW):
            await follow(client, await client.post("/slow"))
        await anyio.sleep(2 * INTERVAL)
        asked.calls.clear()
        for _ in range(5):
            await follow(client, await client.post("/slow"))
        assert asked.calls == []


@pytest.mark.anyio
async def test_a_store_that_nobody_shares_is_never_asked() -> None:
    store = TrickyStore(asked := Asked())
    async with running(app_of(slow_route(work), jobs=virtual_jobs(store=store))) as client:
        await follow(client, await client.post("/slow"))
        await anyio.sleep(100)
    assert asked.calls == []


@pytest.mark.anyio
async def test_a_store_that_is_away_is_asked_again_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = TrickyStore(shared=True)
    await run_some(store, *[12.0] * FEW)
    store.before = failing("totals")
    async with running(app_of(gated(gate := Gate()), jobs=virtual_jobs(store=store))) as client:
        accepted = await client.post("/slow")
        await settled()
        pending = await client.get(accepted.headers["location"])
        assert pending.json()["estimated_completion"] is None
        assert any("the store's account of all jobs fails" in each for each in caplog.messages)
        store.before = no_trick
        await anyio.sleep(INTERVAL)
        await settled()
        pending = await client.get(accepted.headers["location"])
        assert expected(pending) == pytest.approx(12.0, abs=2.0)
        gate.open()


@pytest.mark.one_loop
@pytest.mark.anyio
@pytest.mark.parametrize("call", ["totals", "list"])
async def test_law_1_a_question_that_fails_keeps_nobody_from_what_a_dead_process_had(
    call: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Their clients are those who ask; and whatever else is asked for, the store answers."""
    store = TrickyStore(shared=True)
    await run_some(store, 1.0)
    dead, gate = Line(store), Gate()
    apps = [app_of(gated(gate), jobs=virtual_jobs(store=each)) for each in (dead, store)]
    async with running(apps[0]) as one, running(apps[1]) as other:
        location = (await one.post("/slow")).headers["location"]
        dead.cut(REFUSED)
        await anyio.sleep(5)  # between two looks for what nobody holds
        store.before = failing(call, error=StoreError("it has not answered for 5 seconds"))
        for _ in range(120):
            await anyio.sleep(1)
            found = await other.get(location)
        dead.mend()
        gate.open()
    assert found.status_code == 502
    assert 1 <= sum("has not answered for 5 seconds" in each for each in caplog.messages) <= 2


@pytest.mark.anyio
async def test_a_position_counts_what_waits_in_other_processes() -> None:
    """And not for longer than somebody asks: what is known of a queue is soon not true any more."""
    store, gates = SharedMemory(), [Gate()]

    async def answer(request: Request) -> dict[str, str]:
        await gates[-1].wait()
        return {}

    apps = [
        app_of(slow_route(answer, max_running=1), jobs=virtual_jobs(store=store)) for _ in range(2)
    ]
    async with running(apps[0]) as one, running(apps[1]) as other:
        for _ in range(10):
            await one.post("/slow")
        here = [await other.post("/slow") for _ in range(3)]
        assert here[0].json()["queue_position"] == 1
        await settled()
        for each in here:
            await other.get(each.headers["location"])
        await anyio.sleep(INTERVAL + 1.2)
        found = [await other.get(each.headers["location"]) for each in here]
        positions = [each.json()["queue_position"] for each in found]
        assert positions == pytest.approx([2, 6, 10], abs=1)
        gates[0].open()
        await anyio.sleep(4 * INTERVAL)
        gates.append(Gate())
        here = [await other.post("/slow") for _ in range(3)]
        assert [each.json()["queue_position"] for each in here] == [None, 1, 2]
        gates[-1].open()


@pytest.mark.one_loop
@pytest.mark.anyio
async def test_a_web_server_goes_by_what_its_workers_ran() -> None:
    async with fleet("a") as one:
        for _ in range(FEW):
            one.gates["a"] = Gate()
            accepted = await one.web.post("/fail")
            await anyio.sleep(5)
            one.gates["a"].open()
            await follow(one.web, accepted)
        await anyio.sleep(70)
        await one.web.post("/fail")
        await settled()
        found = await one.web.post("/fail")
        assert (found.json()["status"], found.json()["queue_position"]) == ("queued", None)
        assert expected(found) == pytest.approx(5.0, abs=2.0)
        assert found.headers["retry-after"] in ("5", "6")
