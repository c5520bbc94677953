"""Jobs that an engine runs: a web process and two workers over one store, on virtual time.

The engine is a list of ids in memory, which may be lost, late or doubled: a simulation. Real
engines, brokers and processes are in `tests/e2e/test_distributed.py` and `benchmarks/fleet.py`.
"""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest

from raincheck import State
from raincheck.runtime.leases import BEAT
from raincheck.testing import follow
from tests.doubles.processes import LEASE, fleet
from tests.support import settled

pytestmark = pytest.mark.anyio


def refused(response: httpx.Response) -> bool:
    return response.status_code == 503 and response.headers["retry-after"] == "5"


# --- acceptance --------------------------------------------------------------------------------


async def test_a_job_runs_in_a_worker_and_its_response_is_read_at_the_web() -> None:
    async with fleet("a") as one:
        accepted = await one.web.post("/fail", content=b"x")
        assert (accepted.status_code, accepted.json()["status"]) == (202, "queued")
        await anyio.sleep(1)
        assert await one.state(accepted) == "running"
        one.gates["a"].open()
        response = await follow(one.web, accepted)
        assert response.json() == {"by": "a", "body": "x"}
        assert one.runs == ["a"]


async def test_a_synchronous_request_is_answered_at_the_web_and_its_answer_kept_there() -> None:
    async with fleet("a") as one:
        one.gates["web"].open()
        key = {"idempotency-key": "k"}
        for _ in range(2):
            answer = await one.web.post("/in-place", content=b"x", headers=key)
            assert answer.json() == {"by": "web", "body": "x"}
        assert answer.headers["idempotency-replayed"] == "true"
        assert (one.broker.ids, one.runs) == ([], ["web"])


async def test_a_job_that_the_broker_does_not_take_is_refused_and_withdrawn() -> None:
    async with fleet("a") as one:
        one.broker.up = False
        key = {"idempotency-key": "k"}
        assert refused(await one.web.post("/fail", headers=key))
        one.broker.up = True
        await settled()
        accepted = await one.web.post("/fail", headers=key)
        assert (accepted.status_code, "idempotency-replayed" in accepted.headers) == (202, False)
        one.gates["a"].open()
        assert (await follow(one.web, accepted)).status_code == 200
        assert one.runs == ["a"]


async def test_one_that_it_takes_without_an_answer_does_not_run_later() -> None:
    async with fleet() as one:
        one.broker.hangs = True
        assert refused(await one.web.post("/fail"))
        assert len(one.broker.ids) == 1
        await one.start("a")
        one.gates["a"].open()
        await anyio.sleep(2 * LEASE)
        assert (one.broker.ids, one.runs) == ([], [])
        assert [job async for job in one.store.abandoned()] == []


async def test_one_that_runs_by_then_is_accepted() -> None:
    async with fleet("a") as one:
        one.broker.hangs = True
        accepted = await one.web.post("/fail")
        assert accepted.status_code == 202
        one.gates["a"].open()
        assert (await follow(one.web, accepted)).status_code == 200
        assert one.runs == ["a"]


async def test_one_that_is_found_abandoned_by_then_is_refused_all_the_same() -> None:
    async with fleet(lease=1.0) as one:
        one.broker.hangs = True
        assert refused(await one.web.post("/fail"))
        one.broker.hangs = False
        one.broker.ids.clear()
        await anyio.sleep(LEASE)
        assert one.broker.ids == []


async def test_law_15_one_that_cannot_be_taken_back_is_not_refused() -> None:
    """The store has it for certain, and the engine perhaps: what is refused must not run later."""
    async with fleet("a") as one:
        original = one.broker.give

        async def give(id: str) -> None:
            await original(id)
            one.lines["web"].cut()
            raise ConnectionError("it has taken it, and gone")

        one.broker.give = give  # type: ignore[method-assign] # the store goes with the broker
        one.gates["a"].open()
        accepted = await one.web.post("/fail")
        assert one.lines["web"].cuts > 0
        assert accepted.status_code == 202
        assert one.runs == ["a"]
        one.lines["web"].mend()
        assert (await follow(one.web, accepted)).status_code == 200


async def test_one_that_nobody_has_taken_is_brought_again_when_it_is_accepted_all_the_same() -> (
    None
):
    async with fleet("a") as one:
        one.broker.up = False
        original = one.broker.give

        async def give(id: str) -> None:
            one.lines["web"].cut()
            await original(id)

        one.broker.give = give  # type: ignore[method-assign] # the store goes with the broker
        one.gates["a"].open()
        accepted = await one.web.post("/fail")
        assert accepted.status_code == 202
        one.broker.give, one.broker.up = original, True  # type: ignore[method-assign]
        one.lines["web"].mend()
        assert one.runs == []
        assert (await follow(one.web, accepted)).status_code == 200
        assert one.runs == ["a"]


# --- what an engine may do to a job ------------------------------------------------------------


async def test_law_1_a_job_that_the_broker_has_lost_is_brought_again() -> None:
    async with fleet() as one:
        accepted = await one.web.post("/fail")
        one.broker.ids.clear()
        await one.start("a")
        one.gates["a"].open()
        assert (await follow(one.web, accepted)).status_code == 200
        assert one.runs == ["a"]


async def test_a_worker_finds_it_when_the_web_is_gone() -> None:
    async with fleet("a") as one:
        one.broker.up = True
        accepted = await one.web.post("/fail")
        one.broker.ids.clear()
        one.lines["web"].cut()
        one.gates["a"].open()
        await anyio.sleep(2 * LEASE)
        assert one.runs == ["a"]
        one.lines["web"].mend()
        assert (await follow(one.web, accepted)).status_code == 200


async def test_law_4_a_job_that_is_brought_again_and_again_runs_once() -> None:
    async with fleet("a", "b") as one:
        accepted = await one.web.post("/rerun")
        id = accepted.json()["job_id"]
        for _ in range(5):
            one.broker.ids.append(id)
            await anyio.sleep(0.3)
        (by,) = one.runs
        one.gates[by].open()
        response = await follow(one.web, accepted)
        one.broker.ids.append(id)
        await anyio.sleep(1)
        assert one.runs == [by]
        assert (await one.web.get(accepted.headers["location"])).content == response.content


async def test_a_job_that_waits_in_a_worker_and_is_brought_again_waits_on() -> None:
    async with fleet("a") as one:
        both = [await one.web.post("/one") for _ in range(2)]
        await anyio.sleep(1)
        for _ in range(2):
            one.broker.ids.append(both[1].json()["job_id"])
        await anyio.sleep(1)
        assert one.occupied("a") == (1, 1)
        one.gates["a"].open()
        for accepted in both:
            assert (await follow(one.web, accepted)).status_code == 200
        await anyio.sleep(1)
        assert one.occupied("a") == (0, 0)
        assert one.runs == ["a", "a"]


@pytest.mark.parametrize("max_running", [1, 2])
async def test_a_place_is_free_again_when_the_engine_gives_up_what_has_not_begun(
    max_running: int,
) -> None:
    """While it waits for its turn, and while the store is asked to begin it."""

    async def begin(*job: Any, **settings: Any) -> bool:
        await anyio.sleep_forever()
        return False

    async with fleet("a", slots=1, max_running=max_running) as one:
        first = await one.web.post("/fail")
        await anyio.sleep(1)
        second = await one.web.post("/one")
        line = one.lines["a"]
        original, line.replace = line.replace, begin  # type: ignore[method-assign] # for a second
        with anyio.move_on_after(1):
            await one.bring("a", one.broker.ids.pop())
        line.replace = original  # type: ignore[method-assign]
        assert one.occupied("a") == (1, 0)
        one.gates["a"].open()
        for accepted in (first, second):
            assert (await follow(one.web, accepted)).status_code == 200
        assert one.runs == ["a", "a"]


async def test_a_job_nobody_knows_is_nothing() -> None:
    async with fleet("a") as one:
        one.broker.ids.append("unknown")
        await anyio.sleep(1)
        assert one.runs == []


async def test_a_job_that_waits_long_is_brought_ever_more_rarely() -> None:
    async with fleet() as one:
        accepted = await one.web.post("/fail")
        await anyio.sleep(100 * LEASE)
        # After 1, 2, 4, 8, 16 leases and then each 16: else a backlog would feed itself.
        assert 5 <= len(one.broker.brought) <= 12
        await one.start("a")
        one.gates["a"].open()
        assert (await follow(one.web, accepted)).status_code == 200
        assert one.runs == ["a"]


@pytest.mark.one_loop
async def test_however_long_the_broker_was_away_jobs_are_brought_soon_after() -> None:
    async with fleet("a") as one:
        one.gates["a"].open()
        waiting = [await one.web.post("/fail") for _ in range(3)]
        one.broker.ids.clear()
        one.broker.up = False
        await anyio.sleep(20 * LEASE)
        assert one.runs == []
        one.broker.up = True
        await anyio.sleep(1.5 * LEASE)
        assert one.runs == ["a"] * 3
        assert {await one.state(accepted) for accepted in waiting} == {"succeeded"}


async def test_a_job_for_which_a_worker_has_no_room_is_brought_again() -> None:
    async with fleet("a", max_running=1, max_queued=0) as one:
        both = [await one.web.post("/fail") for _ in range(2)]
        await anyio.sleep(1)
        assert (one.runs, one.broker.ids) == (["a"], [])
        assert {await one.state(accepted) for accepted in both} == {"running", "queued"}
        one.gates["a"].open()
        for accepted in both:
            assert (await follow(one.web, accepted)).status_code == 200


async def test_a_cancel_reaches_a_job_that_waits_in_the_broker() -> None:
    async with fleet() as one:
        accepted = await one.web.post("/fail")
        answer = await one.web.post(accepted.headers["location"] + "/cancel")
        assert answer.json()["status"] == "canceled"
        await one.start("a")
        await anyio.sleep(2 * LEASE)
        assert one.runs == []


async def test_a_cancel_reaches_a_job_that_waits_in_a_worker() -> None:
    async with fleet("a", max_running=1) as one:
        await one.web.post("/fail")
        await anyio.sleep(1)
        waiting = await one.web.post("/fail")
        await anyio.sleep(1)
        answer = await one.web.post(waiting.headers["location"] + "/cancel")
        assert answer.json()["status"] == "canceled"
        one.gates["a"].open()
        await anyio.sleep(1)
        assert one.runs == ["a"]


async def test_a_cancel_asked_where_a_job_waits_reaches_the_worker_that_runs_it() -> None:
    async with fleet("a", slots=2, max_running=1) as one:  # none is left to take it again
        await one.web.post("/fail")
        await anyio.sleep(1)
        waiting = await one.web.post("/fail")
        await anyio.sleep(1)
        assert one.broker.ids == []
        await one.start("b")
        await anyio.sleep(2 * LEASE)
        assert (one.runs, one.occupied("a")) == (["a", "b"], (1, 1))
        job = await one.apps["a"].jobs.cancel(waiting.json()["job_id"])
        assert job is not None
        assert job.state is State.CANCELLING
        await anyio.sleep(1)
        assert await one.state(waiting) == "canceled"
        assert one.gates["b"].cleaned_up == 1


async def test_a_cancel_reaches_a_running_job_within_a_second() -> None:
    async with fleet("a") as one:
        accepted = await one.web.post("/fail")
        await anyio.sleep(1)
        answer = await one.web.post(accepted.headers["location"] + "/cancel")
        assert answer.json()["status"] == "canceling"
        await anyio.sleep(1)
        assert await one.state(accepted) == "canceled"
        assert one.gates["a"].cleaned_up == 1


# --- limits ------------------------------------------------------------------------------------


async def test_the_limit_of_all_routes_holds_in_each_worker() -> None:
    async with fleet("a", "b", slots=3, max_running=2) as one:
        for _ in range(10):
            await one.web.post("/fail")
        await anyio.sleep(5)
        assert sorted(one.runs) == ["a", "a", "b", "b"]


async def test_what_waits_for_all_routes_is_not_bounded_at_the_web() -> None:
    async with fleet(max_running=1, max_queued=0) as one:
        accepted = [await one.web.post("/fail") for _ in range(20)]
        assert {response.status_code for response in accepted} == {202}


# --- workers that die, hang and stop -----------------------------------------------------------


async def test_another_worker_runs_the_job_of_one_that_died() -> None:
    async with fleet("a", slots=1) as one:  # no slot is left that could take it away from b
        accepted = await one.web.post("/rerun", content=b"x")
        await anyio.sleep(1)
        one.lines["a"].cut()
        await one.start("b")
        one.gates["b"].open()
        assert (await follow(one.web, accepted)).json() == {"by": "b", "body": "x"}
        assert one.runs == ["a", "b"]
        one.gates["a"].open()  # it was only paused, and comes back with an outcome of its own
        one.lines["a"].mend()
        await anyio.sleep(60)
        assert (await one.web.get(accepted.headers["location"])).json()["by"] == "b"


async def test_a_job_that_may_run_once_fails_with_its_worker() -> None:
    async with fleet("a") as one:
        accepted = await one.web.post("/fail")
        await anyio.sleep(1)
        one.lines["a"].cut()
        await one.start("b")
        response = await follow(one.web, accepted)
        assert response.json()["type"] == "urn:raincheck:problem:lost-worker"
        assert one.runs == ["a"]


async def test_a_job_that_was_brought_again_while_it_waited_may_take_its_time_to_begin() -> None:
    async with fleet("a", max_running=1) as one:
        await one.web.post("/fail")
        await anyio.sleep(1)
        waiting = await one.web.post("/fail")
        await anyio.sleep(2 * LEASE)
        assert one.broker.brought.count(waiting.json()["job_id"]) > 1
        line = one.lines["a"]
        claim = line.claim

        async def slow(*job: Any, **settings: Any) -> Any:
            await anyio.sleep(3 * BEAT)
            return await claim(*job, **settings)

        line.claim = slow  # type: ignore[method-assign]
        one.gates["a"].open()
        assert (await follow(one.web, waiting)).status_code == 200
        assert one.runs == ["a", "a"]


@pytest.mark.slow
async def test_a_job_that_waits_in_a_worker_that_hangs_runs_elsewhere() -> None:
    async with fleet("a", max_running=1) as one:
        await one.web.post("/fail")
        await anyio.sleep(1)
        waiting = await one.web.post("/fail")
        await anyio.sleep(1)
        assert one.broker.ids == []
        one.lines["a"].cut()
        await one.start("b")
        one.gates["b"].open()
        assert (await follow(one.web, waiting)).json()["by"] == "b"


async def test_law_12_a_worker_that_stops_gives_back_what_it_does_not_finish() -> None:
    async with fleet("a", "b", max_running=1, drain_timeout=1, cancel_grace=1) as one:
        one.gates["b"].open()
        await one.stop("b")
        accepted = [await one.web.post("/rerun", content=b"0")]
        await anyio.sleep(1)
        accepted += [await one.web.post("/rerun", content=b"%d" % n) for n in (1, 2)]
        waiting = await one.web.post("/fail")
        await anyio.sleep(1)
        assert one.runs == ["a"]
        await one.stop("a")
        assert one.gates["a"].cleaned_up == 1
        given_back = {each.json()["job_id"] for each in (*accepted, waiting)}
        assert set(one.broker.ids) == given_back
        await one.start("b")
        start = anyio.current_time()
        for number, each in enumerate(accepted):
            response = await follow(one.web, each)
            assert response.json() == {"by": "b", "body": str(number)}
        assert (await follow(one.web, waiting)).json()["by"] == "b"  # it had not begun
        assert anyio.current_time() - start < LEASE
