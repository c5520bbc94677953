"""Bounds of a route and of its owners hold for all processes that share a store.

Simulated as in `test_recovery.py` and `test_engine.py`: two processes are two apps on virtual time.
"""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from starlette.responses import Response

from raincheck import (
    ConfigurationError,
    Jobs,
    Limits,
    LongRunningMiddleware,
    MemoryStore,
    Policy,
)
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.processes import LEASE, Broker, Engine, fleet, two
from tests.doubles.stores import SharedMemory
from tests.support import Gate, app_of, running, settled, slow_route

pytestmark = pytest.mark.anyio

ANN, BOB = {"x-user": "ann"}, {"x-user": "bob"}


class Several:
    """Two apps that share a store and have routes with bounds.

    Attributes:
        a, b: their clients.
        runs: the users whose jobs ran, in order.
        gate: where all handlers wait.
    """

    def __init__(self) -> None:
        self.store = SharedMemory()
        self.runs: list[str | None] = []
        self.gate = Gate()
        self.a: httpx.AsyncClient
        self.b: httpx.AsyncClient

    def app(self) -> Any:
        async def answer(request: Any) -> Any:
            self.runs.append(request.headers.get("x-user"))
            await self.gate.wait()
            return {}

        return app_of(
            slow_route(answer, "/mine", max_running_per_owner=1, max_queued_per_owner=1),
            slow_route(answer, "/ours", max_running=1, max_queued=2),
            jobs=virtual_jobs(store=self.store, limits=Limits(lease=LEASE)),
            owner=lambda connection: connection.headers.get("x-user"),
        )


@pytest.fixture
async def several() -> Any:
    both = Several()
    async with running(both.app()) as both.a, running(both.app()) as both.b:
        yield both
        both.gate.open()
        await settled()


# --- what is stored ----------------------------------------------------------------------------


def stores_of(body: bytes, store: MemoryStore, **settings: Any) -> LongRunningMiddleware:
    async def answer(request: Any) -> Response:
        return Response(body, headers={"x-a": "a" * 10_000})

    policy: dict[str, Any] = {"max_stored_bytes_per_owner": 20_000, "ttl": 100, **settings}
    return app_of(
        slow_route(answer, "/mine", **policy),
        slow_route(answer, "/other", **policy),
        jobs=virtual_jobs(store=store, limits=Limits(lease=LEASE)),
        owner=lambda connection: connection.headers.get("x-user"),
    )


@pytest.mark.parametrize("kind", [MemoryStore, SharedMemory])
async def test_an_owner_who_stores_as_much_as_may_be_is_429(kind: type[MemoryStore]) -> None:
    store = kind()
    async with running(stores_of(b"x" * 15_000, store)) as client:
        for _ in range(2):
            accepted = await client.post("/mine", headers=ANN)
            assert accepted.status_code == 202
            assert (await follow(client, accepted)).status_code == 200
            await settled()
        kept = len(store)
        key = {"idempotency-key": "k"}
        refused = await client.post("/mine", headers=ANN | key)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 100
        assert refused.json()["type"].endswith("stored-too-much")
        assert "20000 bytes" in refused.json()["detail"]
        assert len(store) == kept
        for path, headers in (("/mine", BOB), ("/other", ANN), ("/mine", {})):
            assert (await client.post(path, headers=headers)).status_code == 202

        url = accepted.headers["location"]
        assert (await client.get(url, headers=ANN)).status_code == 200  # results stay (law 9)
        assert (await client.delete(url, headers=ANN)).status_code == 204
        again = await client.post("/mine", headers=ANN | key)  # what is refused leaves its key free
        assert again.status_code == 202
        assert "idempotency-replayed" not in again.headers
        await settled()
        assert (await client.post("/mine", headers=ANN)).status_code == 429
        replayed = await client.post("/mine", headers=ANN | key)  # an earlier job comes first
        assert replayed.headers["location"] == again.headers["location"]
        await anyio.sleep(120)
        assert (await client.post("/mine", headers=ANN)).status_code == 202


async def test_who_would_have_to_wait_is_refused_as_well() -> None:
    store = SharedMemory()
    async with running(stores_of(b"x" * 20_000, store, max_running=1)) as client:
        for status in (202, 429):
            assert (await client.post("/mine", headers=ANN)).status_code == status
            await settled()


async def test_small_results_count_for_what_their_records_take() -> None:
    async with running(stores_of(b"", MemoryStore())) as client:
        statuses = []
        for _ in range(6):
            statuses.append((await client.post("/mine", headers=ANN)).status_code)
            await settled()
    assert statuses == [202] * 5 + [429]


async def test_what_another_process_stores_counts() -> None:
    store = SharedMemory()
    async with (
        running(stores_of(b"x" * 20_000, store)) as a,
        running(stores_of(b"x" * 20_000, store)) as b,
    ):
        assert (await a.post("/mine", headers=ANN)).status_code == 202
        await settled()
        assert (await b.post("/mine", headers=ANN)).status_code == 429


# --- how many run ------------------------------------------------------------------------------


async def test_a_job_waits_while_as_many_run_elsewhere_as_may() -> None:
    async with two() as both:
        first = await both.a.post("/one")
        second = await both.b.post("/one")
        assert (first.json()["status"], second.json()["status"]) == ("running", "queued")
        await anyio.sleep(3 * LEASE)
        assert both.runs == ["a"]
        both.gates["a"].open()
        await anyio.sleep(1)
        assert both.runs == ["a", "b"]
        both.gates["b"].open()
        assert (await follow(both.a, second)).json()["by"] == "b"


async def test_what_came_while_a_route_was_blocked_goes_in_its_order() -> None:
    async with two() as both:
        await both.a.post("/one")
        waiting = [await both.b.post("/one", content=str(n)) for n in range(3)]
        both.gates["b"].open()
        both.gates["a"].open()
        await anyio.sleep(2)
        bodies = [(await follow(both.b, accepted)).json()["body"] for accepted in waiting]
        assert bodies == ["0", "1", "2"]
        found = [await both.store.get(r.headers["location"].rpartition("/")[2]) for r in waiting]
        started = [job.started_at for job in found if job is not None]
        assert len(started) == 3
        assert started == sorted(started)  # type: ignore[type-var] # all have started


async def test_a_held_request_waits_with_those_elsewhere_too() -> None:
    async with two() as both:
        await both.a.post("/held")
        held = await both.b.post("/held")
        assert held.json()["status"] == "queued"
        await anyio.sleep(5)
        assert both.runs == ["a"]
        both.gates["a"].open()
        both.gates["b"].open()
        assert (await follow(both.a, held)).json()["by"] == "b"
        assert both.runs == ["a", "b"]


async def test_a_blocked_route_does_not_hold_up_the_others() -> None:
    async with two(max_running=1) as both:
        await both.a.post("/one")
        await both.b.post("/one")
        other = await both.b.post("/rerun")
        assert other.json()["status"] == "running"


async def test_a_blocked_job_is_cancelled_before_it_starts() -> None:
    async with two() as both:
        await both.a.post("/one")
        waiting = await both.b.post("/one")
        answer = await both.a.post(waiting.headers["location"] + "/cancel")
        assert answer.json()["status"] == "canceled"
        both.gates["a"].open()
        await anyio.sleep(3)
        assert both.runs == ["a"]


async def test_a_blocked_job_is_left_to_others_when_the_server_stops() -> None:
    async with two(drain_timeout=1) as both:
        await both.b.post("/one")
        waiting = await both.a.post("/one")
        assert waiting.json()["status"] == "queued"
        await both.stop("a")
        both.gates["b"].open()
        assert (await follow(both.b, waiting)).json()["by"] == "b"


async def test_what_a_dead_process_ran_counts_until_its_lease_has_ended() -> None:
    async with two() as both:
        await both.a.post("/one")
        await settled()
        both.line.cut()
        waiting = await both.b.post("/one")
        both.gates["b"].open()
        await anyio.sleep(LEASE / 2)
        assert await both.status(waiting) == "queued"
        assert (await follow(both.b, waiting)).json()["by"] == "b"


async def test_an_owner_has_so_many_in_all_processes(several: Several) -> None:
    first = await several.a.post("/mine", headers=ANN)
    second = await several.b.post("/mine", headers=ANN)
    other = await several.b.post("/mine", headers=BOB)
    states = [response.json()["status"] for response in (first, second, other)]
    assert states == ["running", "queued", "running"]
    several.gate.open()
    await anyio.sleep(1)
    assert several.runs == ["ann", "bob", "ann"]


# --- how many wait -----------------------------------------------------------------------------


async def test_the_queue_of_a_route_is_one_for_all_processes(several: Several) -> None:
    for client in (several.a, several.a, several.b):
        assert (await client.post("/ours")).status_code == 202
    for client in (several.a, several.b):
        refused = await client.post("/ours")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["detail"] == "2 requests wait for this route already."
        assert refused.json()["type"] == "urn:raincheck:problem:queue-full"
    assert len(several.store) == 3


@pytest.mark.one_loop
async def test_an_owner_has_one_quota_for_all_processes(several: Several) -> None:
    for client in (several.a, several.b):
        assert (await client.post("/mine", headers=ANN)).status_code == 202
    refused = await several.b.post("/mine", headers=ANN)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["detail"] == "1 of your requests wait for this route already."
    assert (await several.b.post("/mine", headers=BOB)).status_code == 202


# --- with an engine ----------------------------------------------------------------------------


async def test_a_route_runs_so_many_in_all_workers() -> None:
    async with fleet("a", slots=1) as one:
        both = [await one.web.post("/one")]
        await anyio.sleep(1)
        await one.start("b")
        both.append(await one.web.post("/one"))
        await anyio.sleep(LEASE / 2)
        assert one.runs == ["a"]
        one.gates["a"].open()
        one.gates["b"].open()
        for accepted in both:
            assert (await follow(one.web, accepted)).status_code == 200
        assert one.runs == ["a", "b"]


async def test_the_queue_of_a_route_is_bounded_at_the_web() -> None:
    async with fleet() as one:
        accepted = [await one.web.post("/one") for _ in range(3)]
        assert [response.status_code for response in accepted] == [202, 202, 503]
        assert one.broker.brought == [
            r.headers["location"].rpartition("/")[2] for r in accepted[:2]
        ]


@pytest.mark.parametrize(
    ("policy", "bound"),
    [
        (Policy(max_queued=0), "max_queued"),
        (Policy(max_queued_per_owner=0), "max_queued_per_owner"),
    ],
)
def test_a_queue_that_may_never_hold_anything_is_an_error(policy: Policy, bound: str) -> None:
    routes = {"POST /videos": policy}
    jobs = Jobs(store=SharedMemory(), runner=Engine(Broker()))
    with pytest.raises(ConfigurationError, match=f"POST /videos: {bound}=0 .*; give at least 1"):
        LongRunningMiddleware(app_of(), routes=routes, jobs=jobs)
