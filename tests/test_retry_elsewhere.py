"""Retries over several processes and engines, and how long a job may wait to begin.

Processes and engines are simulations on virtual time: see `tests/doubles/processes.py`. Real ones
are killed in `tests/e2e/test_retry.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import anyio
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from raincheck import Jobs, Limits, MemoryStore, Retry, State
from raincheck.runtime.leases import LOOKS
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.processes import LEASE, Broker, Engine, fleet, two
from tests.doubles.stores import FATES, Line, SharedMemory, TrickyStore
from tests.support import Gate, app_of, gated, running, settled, slow_route

pytestmark = pytest.mark.anyio

LOOK = LEASE / LOOKS


def pause(failure: Any) -> float:
    return 40.0


class Log:
    """Runs of a handler that has failed so often before it succeeds.

    Attributes:
        runs: the name of the process and the time of each.
    """

    def __init__(self, failures: int = 1, **settings: Any) -> None:
        self._failures = failures
        self._settings = settings or {"retry": Retry(backoff=pause)}
        self.runs: list[tuple[str, float]] = []

    def routes(self, name: str) -> Iterable[BaseRoute]:
        async def answer(request: Request) -> Any:
            self.runs.append((name, anyio.current_time()))
            if len(self.runs) <= self._failures:
                return Response("away", 503)
            return {"by": name, "body": (await request.body()).decode()}

        return [slow_route(answer, "/retry", **self._settings)]

    @property
    def by(self) -> str:
        return "".join(name for name, _ in self.runs)

    @property
    def passed(self) -> float:
        """Seconds between the first run and the last, to the microsecond: they are summed up."""
        return round(self.runs[-1][1] - self.runs[0][1], 6)


async def document_of(client: httpx.AsyncClient, accepted: httpx.Response) -> dict[str, Any]:
    answer = await client.get(accepted.headers["location"] + "/status")
    document: dict[str, Any] = answer.json()
    return document


# --- two processes -------------------------------------------------------------------------------


async def test_it_runs_again_where_it_was_and_others_leave_it_alone() -> None:
    log = Log(failures=2)
    async with two(more=log.routes) as both:
        accepted = await both.a.post("/retry", content=b"x")
        await anyio.sleep(5)
        document = await document_of(both.b, accepted)
        assert (document["status"], document["runs"]) == ("queued", 1)
        assert 25 <= document["retry_after"] <= 36
        assert document["next_run_at"]
        response = await follow(both.b, accepted)
        assert response.json() == {"by": "a", "body": "x"}
    assert log.by == "aaa"
    assert 80 <= log.passed < 81


async def test_one_whose_process_dies_while_it_waits_runs_elsewhere_and_not_before_its_time() -> (
    None
):
    log = Log()
    async with two(more=log.routes) as both:
        accepted = await both.a.post("/retry", content=b"x")
        await anyio.sleep(5)
        both.line.cut()
        await anyio.sleep(20)  # its lease has ended
        assert log.by == "a"
        response = await follow(both.b, accepted)
        assert response.json() == {"by": "b", "body": "x"}
        assert 40 <= log.passed <= 41 + LOOK
        both.line.mend()
        await anyio.sleep(60)
    assert log.by == "ab"


async def test_one_whose_process_stops_while_it_waits_does_too() -> None:
    log = Log(retry=Retry(backoff=pause))
    async with two(more=log.routes, drain_timeout=5) as both:
        accepted = await both.a.post("/retry")
        await anyio.sleep(5)
        began = anyio.current_time()
        await both.stop("a")
        assert anyio.current_time() - began < 1
        assert (await document_of(both.b, accepted))["status"] == "queued"
        assert (await follow(both.b, accepted)).json()["by"] == "b"
    assert 40 <= log.passed <= 41 + LOOK


async def test_one_that_fails_as_its_process_stops_runs_elsewhere_in_time() -> None:
    gate = Gate()
    runs = []

    def routes(name: str) -> Iterable[BaseRoute]:
        async def answer(request: Request) -> Any:
            runs.append((name, anyio.current_time()))
            if len(runs) == 1:
                await gate.wait()
                return Response(status_code=503)
            return name

        return [slow_route(answer, "/retry", retry=Retry(backoff=pause))]

    async with two(more=routes) as both, anyio.create_task_group() as group:
        accepted = await both.a.post("/retry")
        await settled()
        group.start_soon(both.stop, "a")
        await anyio.sleep(5)
        gate.open()
        assert (await follow(both.b, accepted)).json() == "b"
    assert runs[1][1] - runs[0][1] >= 45


async def test_a_cancel_elsewhere_ends_it_while_it_waits() -> None:
    log = Log()
    async with two(more=log.routes) as both:
        accepted = await both.a.post("/retry")
        await anyio.sleep(5)
        answer = await both.b.post(accepted.headers["location"] + "/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
        await anyio.sleep(100)
        assert both.apps["a"].jobs.statistics().queued == 0
    assert log.by == "a"


@pytest.mark.parametrize("after", [0.0, 0.5, 1.0, 1.5, 2.0])
async def test_a_delete_elsewhere_as_its_run_ends_is_the_last_word(after: float) -> None:
    gate, runs = Gate(), []

    def routes(name: str) -> Iterable[BaseRoute]:
        async def answer(request: Request) -> Any:
            runs.append(name)
            await gate.wait()
            return Response(status_code=503)

        return [slow_route(answer, "/retry", retry=Retry(backoff=pause))]

    async with two(more=routes) as both:
        accepted = await both.a.post("/retry")
        await settled()
        both.line.cut()  # what it says comes late
        gate.open()
        await anyio.sleep(after)
        await both.b.delete(accepted.headers["location"])
        both.line.mend()
        await anyio.sleep(100)
        assert (await both.b.get(accepted.headers["location"])).status_code == 410
        assert both.apps["a"].jobs.statistics().queued == 0
    assert runs == ["a"]


async def test_interrupted_runs_count() -> None:
    log = Log(failures=9, retry=Retry(max_runs=2, backoff=pause))
    async with two(more=log.routes) as both:
        accepted = await both.a.post("/retry")
        await anyio.sleep(5)
        both.line.cut()
        response = await follow(both.b, accepted)
        assert (response.status_code, response.text) == (503, "away")
    assert log.by == "ab"


async def test_a_run_that_is_interrupted_is_repeated_with_no_other_setting() -> None:
    gates = {"a": Gate(), "b": Gate()}
    gates["b"].open()

    def routes(name: str) -> Iterable[BaseRoute]:
        return [gated(gates[name], "/retry", retry=Retry(max_runs=2))]

    async with two(more=routes) as both:
        accepted = await both.a.post("/retry")
        await settled()
        both.line.cut()
        assert (await follow(both.b, accepted)).status_code == 200
        assert (await document_of(both.b, accepted))["runs"] == 2
        gates["a"].open()


async def test_a_run_that_may_not_be_repeated_never_is() -> None:
    """It was accepted before its route had a retry."""
    store, log = SharedMemory(), Log(failures=9)
    plain = virtual_jobs(store=store, limits=Limits(max_running=1, lease=LEASE))
    gate = Gate()
    async with running(app_of(gated(gate, "/retry"), jobs=plain)) as client:
        accepted = await client.post("/retry")
        waiting = await client.post("/retry")
        await settled()
        job = await store.get(waiting.json()["job_id"])
        assert job is not None
        assert job.max_runs == 1
        line = Line(store)
        later = virtual_jobs(store=line, limits=Limits(lease=LEASE))
        assert await store.replace(job.held_by(None), lease=0.0)
        async with running(app_of(*log.routes("b"), jobs=later)) as other:
            assert (await follow(other, waiting)).status_code == 503
        gate.open()
        del accepted
    assert log.by == "b"


@pytest.mark.parametrize("fate", FATES)
async def test_a_store_that_is_away_as_a_run_ends_loses_nothing(fate: str) -> None:
    gate, log = Gate(), Log()

    def routes(name: str) -> Iterable[BaseRoute]:
        async def answer(request: Request) -> Any:
            log.runs.append((name, anyio.current_time()))
            if len(log.runs) == 1:
                await gate.wait()
                return Response(status_code=503)
            return name

        return [slow_route(answer, "/retry", retry=Retry(backoff=pause))]

    async with two(more=routes) as both:
        accepted = await both.a.post("/retry")
        await settled()
        both.line.cut(fate)
        gate.open()
        await anyio.sleep(5)
        both.line.mend()
        assert (await follow(both.b, accepted)).status_code == 200
        await anyio.sleep(100)
        assert (await document_of(both.b, accepted))["runs"] == 2
    assert len(log.runs) == 2
    assert log.passed >= 40


async def test_a_lost_answer_as_a_run_ends_costs_no_time() -> None:
    lost: list[str] = []

    async def lose(call: str, /, *arguments: Any, **more: Any) -> None:
        if call == "replace" and arguments[0].state is State.QUEUED and not lost:
            lost.append(arguments[0].id)
            raise OSError("connection reset")

    log, store = Log(), TrickyStore(shared=True, after=lose)
    jobs = virtual_jobs(store=store, limits=Limits(lease=LEASE))
    async with running(app_of(*log.routes("a"), jobs=jobs)) as client:
        accepted = await client.post("/retry")
        assert (await follow(client, accepted)).status_code == 200
    assert len(lost) == 1
    assert log.by == "aa"
    assert 40 <= log.passed < 41


# --- engines -------------------------------------------------------------------------------------


async def test_its_engine_is_told_again_when_it_is_due() -> None:
    log = Log(failures=2)
    async with fleet("a", more=log.routes) as one:
        accepted = await one.web.post("/retry", content=b"x")
        await anyio.sleep(20)
        assert (log.by, one.broker.ids) == ("a", [])
        assert (await document_of(one.web, accepted))["next_run_at"]
        assert one.occupied("a") == (0, 0)
        response = await follow(one.web, accepted)
        assert response.json() == {"by": "a", "body": "x"}
    assert log.by == "aaa"
    assert 80 <= log.passed < 82
    assert len(one.broker.brought) == 3


async def test_it_is_told_by_others_if_the_worker_has_died() -> None:
    log = Log()
    async with fleet("a", more=log.routes) as one:
        accepted = await one.web.post("/retry")
        await anyio.sleep(5)
        one.kill("a")
        await one.start("b")
        await anyio.sleep(20)
        assert log.by == "a"
        assert (await follow(one.web, accepted)).status_code == 200
    assert log.by == "ab"
    assert 40 <= log.passed <= 41 + LOOK


async def test_what_is_brought_before_its_time_does_not_run() -> None:
    log = Log()
    async with fleet("a", more=log.routes) as one:
        accepted = await one.web.post("/retry")
        await anyio.sleep(5)
        for _ in range(3):
            one.broker.ids.append(accepted.json()["job_id"])
            await anyio.sleep(10)
        assert log.by == "a"
        await anyio.sleep(3)
        one.broker.ids.append(accepted.json()["job_id"])  # by a clock that is a little late
        assert (await follow(one.web, accepted)).status_code == 200
    assert 39.9 <= log.passed < 42


async def test_a_broker_that_is_away_when_it_is_due_is_told_later() -> None:
    log = Log()
    async with fleet("a", more=log.routes) as one:
        accepted = await one.web.post("/retry")
        await anyio.sleep(5)
        one.broker.up = False
        await anyio.sleep(60)
        one.broker.up = True
        assert (await follow(one.web, accepted)).status_code == 200
    assert log.by == "aa"


async def test_one_that_waits_for_its_engine_again_is_cancelled_at_once() -> None:
    log = Log()
    async with fleet("a", more=log.routes) as one:
        accepted = await one.web.post("/retry")
        await anyio.sleep(5)
        answer = await one.web.post(accepted.headers["location"] + "/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
        await anyio.sleep(100)
    assert (log.by, len(one.broker.brought)) == ("a", 1)


async def test_a_worker_that_stops_leaves_it_to_others() -> None:
    log = Log()
    async with fleet("a", "b", slots=1, more=log.routes) as one:
        accepted = await one.web.post("/retry")
        await anyio.sleep(5)
        await one.stop(log.by)
        assert (await follow(one.web, accepted)).status_code == 200
    assert len(set(log.by)) == 2
    assert 40 <= log.passed <= 41 + LOOK


# --- how long a job may wait ---------------------------------------------------------------------


def waited_too_long(response: httpx.Response) -> bool:
    return (
        response.status_code == 503
        and response.json()["type"] == "urn:raincheck:problem:waited-too-long"
        and response.headers["job-status"] == "failed"
        and "retry-after" not in response.headers
    )


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("hold", [True, False])
async def test_a_job_that_has_waited_too_long_never_begins(hold: bool, shared: bool) -> None:
    gate, jobs = Gate(), virtual_jobs(store=SharedMemory() if shared else MemoryStore())
    route = gated(gate, max_running=1, max_wait_queued=20, hold=hold)
    async with running(app_of(route, jobs=jobs)) as client, anyio.create_task_group() as group:
        first = await client.post("/slow")
        answers: list[httpx.Response] = []

        async def post() -> None:
            answers.append(await client.post("/slow"))

        group.start_soon(post)
        await anyio.sleep(19)
        (waits,) = answers
        assert (await document_of(client, waits))["status"] == "queued"
        await anyio.sleep(1.5)
        assert waited_too_long(await client.get(waits.headers["location"]))
        assert jobs.statistics().queued == 0
        gate.open()
        assert (await follow(client, first)).status_code == 200
        assert (await document_of(client, waits))["runs"] == 0
        assert (await follow(client, await client.post("/slow"))).status_code == 200
    assert gate.entered == 2


async def test_one_that_has_begun_by_then_may_take_its_time() -> None:
    gate = Gate()
    async with running(app_of(gated(gate, max_running=1, max_wait_queued=20))) as client:
        first = await client.post("/slow")
        second = await client.post("/slow")
        await anyio.sleep(10)
        gate.open()
        for each in (first, second):
            assert (await follow(client, each)).status_code == 200
        await anyio.sleep(60)
        assert (await document_of(client, second))["status"] == "succeeded"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_of_one_that_has_begun_by_then_nothing_is_kept_for_that() -> None:
    gate = Gate()
    route = gated(gate, max_running=1, max_wait_queued=86_400)
    async with running(app_of(route, jobs=virtual_jobs())) as client:
        accepted = [await client.post("/slow") for _ in range(5)]
        gate.open()
        for each in accepted:
            await follow(client, each)
        loop: Any = asyncio.get_running_loop()
        left = [each.when() - loop.time() for each in loop._scheduled if not each.cancelled()]
        assert max(left, default=0) < 80_000
    assert gate.entered == 5


async def test_a_next_run_may_wait_longer() -> None:
    settings: Any = {"max_running": 1, "max_wait_queued": 20, "retry": Retry(backoff=pause)}
    log = Log(**settings)
    async with running(app_of(*log.routes("a"))) as client:
        assert (await follow(client, await client.post("/retry"))).status_code == 200


async def test_so_may_that_of_one_which_waited_for_its_first_one_here() -> None:
    runs: list[float] = []

    async def answer(request: Request) -> Response:
        runs.append(anyio.current_time())
        await anyio.sleep(9)
        return Response(status_code=503 if len(runs) == 2 else 200)

    retry = Retry(on=503, backoff=lambda failure: 60)
    route = slow_route(answer, max_running=1, max_wait_queued=20, retry=retry)
    async with running(app_of(route, jobs=virtual_jobs())) as client:
        first = await client.post("/slow")
        second = await client.post("/slow")
        for each in (first, second):
            assert (await follow(client, each)).status_code == 200
        assert (await document_of(client, second))["runs"] == 2
    assert [round(each - runs[0]) for each in runs] == [0, 9, 78]


async def test_another_process_ends_what_waited_too_long_in_one_that_died() -> None:
    gate = Gate()

    def routes(name: str) -> Iterable[BaseRoute]:
        return [gated(gate, "/retry", max_running=1, max_wait_queued=60)]

    async with two(more=routes) as both:
        await both.b.post("/retry")
        waits = await both.a.post("/retry")
        await anyio.sleep(1)
        both.line.cut()
        await anyio.sleep(58)
        assert await both.status(waits) == "queued"
        await anyio.sleep(2)
        answer = await both.b.get(waits.headers["location"])
        assert waited_too_long(answer)
        gate.open()
    assert gate.entered == 1


def bounded(waiting: float) -> Callable[[str], Iterable[BaseRoute]]:
    return Log(failures=0, max_wait_queued=waiting).routes


async def test_a_queue_that_nobody_serves_is_ended_by_who_accepted_it() -> None:
    async with fleet(more=bounded(5)) as one:
        accepted = await one.web.post("/retry")
        await anyio.sleep(4)
        assert await one.state(accepted) == "queued"
        await anyio.sleep(1.5)
        assert waited_too_long(await one.web.get(accepted.headers["location"]))


@pytest.mark.parametrize("waiting", [5.0, 200.0])
async def test_or_by_any_other_process(waiting: float) -> None:
    """Those who accepted it have died, and so have all who could run it."""
    async with fleet(more=bounded(waiting)) as one:
        accepted = await one.web.post("/retry")
        one.lines["web"].cut()
        other = Engine(Broker())  # one that takes what nobody brings
        jobs = Jobs(
            store=Line(one.store), runner=other, clock=one.clock, limits=Limits(lease=LEASE)
        )
        async with running(app_of(*bounded(waiting)("c"), jobs=jobs)) as client:
            await anyio.sleep(waiting - 1)
            assert (await document_of(client, accepted))["status"] == "queued"
            await anyio.sleep(1 + LOOK)
            assert waited_too_long(await client.get(accepted.headers["location"]))


async def test_a_worker_that_is_brought_one_too_late_does_not_run_it() -> None:
    log = Log(failures=0, max_wait_queued=5)
    async with fleet(more=log.routes) as one:
        accepted = await one.web.post("/retry")
        (id,) = one.broker.ids
        one.broker.ids.clear()
        one.lines["web"].cut()  # nobody sees that it is too old
        await anyio.sleep(4.5)
        worker = await one.start("a")
        await anyio.sleep(1)
        await one.bring("a", id)
        assert waited_too_long(await worker.get(accepted.headers["location"]))
    assert log.runs == []


async def test_one_that_waits_in_a_worker_is_ended_there() -> None:
    gate = Gate()

    def routes(name: str) -> Iterable[BaseRoute]:
        return [gated(gate, "/retry", max_running=1, max_wait_queued=20)]

    async with fleet("a", more=routes) as one:
        await one.web.post("/retry")
        await anyio.sleep(1)
        waits = await one.web.post("/retry")
        await anyio.sleep(1)
        assert one.occupied("a") == (1, 1)
        one.lines["web"].cut()
        await anyio.sleep(21)
        assert one.occupied("a") == (1, 0)
        one.lines["web"].mend()
        assert waited_too_long(await one.web.get(waits.headers["location"]))
        gate.open()
    assert gate.entered == 1
