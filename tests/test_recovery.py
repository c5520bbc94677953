"""Leases and recovery: two apps over one store, of which one is cut off from it.

The two stand for two processes, and the cut for one that died or was paused: a simulation, on
virtual time. Real processes are killed in `tests/e2e/test_durable.py` and `benchmarks/crash.py`.

By default each outage is tried on one of the two event loops, in turn; on both:

    RAINCHECK_RECOVERY=long pytest tests/test_recovery.py
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from raincheck import Limits, LongRunningMiddleware, MemoryStore, State, long_running
from raincheck.runtime.leases import BEAT
from raincheck.stores.base import Abandoned, Store
from raincheck.testing import follow
from tests.conftest import long, virtual_jobs
from tests.doubles.processes import LEASE, STORE_TIMEOUT, SURVIVED, Two, two
from tests.doubles.stores import DELAYED, FATES, REFUSED, Line, TrickyStore, taking
from tests.support import (
    Gate,
    app_of,
    client_of,
    gated,
    hidden,
    running,
    said,
    settled,
    slow_route,
)

LONG = long("RECOVERY")

pytestmark = pytest.mark.anyio


# --- what others see ---------------------------------------------------------------------------


async def test_a_job_of_another_process_is_seen_and_waited_for() -> None:
    async with two() as both:
        accepted = await both.a.post("/fail?report", content=b"x")
        assert (await both.b.get(accepted.headers["location"])).status_code == 202
        await anyio.sleep(1)
        document = (await both.b.get(accepted.headers["location"] + "/status")).json()
        assert (document["progress"], document["message"]) == (0.5, "by a")
        results = []

        async def wait() -> None:
            results.append(await follow(both.b, accepted))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await settled()
            both.gates["a"].open()
        assert results[0].json() == {"by": "a", "body": "x"}


async def test_a_cancel_in_another_process_reaches_the_handler_within_a_second() -> None:
    async with two() as both:
        accepted = await both.a.post("/fail")
        await settled()
        answer = await both.b.post(accepted.headers["location"] + "/cancel")
        assert (answer.status_code, answer.json()["status"]) == (202, "canceling")
        await anyio.sleep(1)
        assert await both.status(accepted) == "canceled"
        assert both.gates["a"].cleaned_up == 1


async def test_a_delete_in_another_process_does_too() -> None:
    async with two() as both:
        accepted = await both.a.post("/fail")
        await settled()
        assert (await both.b.delete(accepted.headers["location"])).status_code == 202
        assert (await both.b.get(accepted.headers["location"])).status_code == 410
        await anyio.sleep(1)
        assert both.gates["a"].cleaned_up == 1


@pytest.mark.parametrize("path", ["/one", "/held"])
async def test_a_job_that_waits_in_another_process_is_cancelled_before_it_starts(
    path: str,
) -> None:
    async with two() as both, anyio.create_task_group() as group:
        group.start_soon(both.a.post, path)
        await settled()
        waiting = await both.a.post(path)
        assert await both.status(waiting) == "queued"
        answer = await both.b.post(waiting.headers["location"] + "/cancel")
        assert (answer.status_code, answer.json()["status"]) == (200, "canceled")
        await anyio.sleep(2)
        both.gates["a"].open()
        await settled()
        assert both.runs == ["a"]
        third = await both.a.post(path)  # its place was given back
        assert (await follow(both.a, third)).status_code == 200


# --- what a process leaves when it dies --------------------------------------------------------


async def test_a_healthy_process_keeps_its_jobs_however_long_they_take() -> None:
    async with two() as both:
        running_one = await both.a.post("/rerun")
        await both.a.post("/one")
        queued = await both.a.post("/one")
        await anyio.sleep(20 * LEASE)
        assert both.runs == ["a", "a"]
        both.gates["a"].open()
        for accepted in (running_one, queued):
            assert (await follow(both.b, accepted)).json()["by"] == "a"


async def test_law_1_a_job_whose_process_dies_has_failed() -> None:
    async with two() as both:
        accepted = await both.a.post("/fail")
        await settled()
        both.line.cut()
        await anyio.sleep(2 * LEASE)
        response = await both.b.get(accepted.headers["location"])
        assert response.status_code == 502
        assert response.json()["type"] == "urn:raincheck:problem:lost-worker"
        assert await both.status(accepted) == "failed"
        assert both.runs == ["a"]


async def test_whose_answer_in_place_nobody_saw_is_not_run_again() -> None:
    """What its handler has done before its process went away is not known."""
    key = {"idempotency-key": "order-7"}
    async with two() as both, anyio.create_task_group() as group:
        group.start_soon(partial(both.a.post, "/in-place", headers=key))
        await settled()
        both.line.cut()
        await anyio.sleep(2 * LEASE)
        answer = await both.b.post("/in-place", headers=key)
        assert answer.status_code == 502
        assert answer.json()["type"].endswith("lost-worker")
        assert answer.headers["job-status"] == "failed"
        assert both.runs == ["a"]
        both.gates["a"].open()


async def test_a_process_that_was_only_paused_answers_its_client_all_the_same() -> None:
    key = {"idempotency-key": "order-7"}
    async with two() as both, anyio.create_task_group() as group:

        async def send() -> None:
            answers.append(await both.a.post("/in-place", headers=key))

        answers: list[httpx.Response] = []
        group.start_soon(send)
        await settled()
        both.line.cut()
        await anyio.sleep(2 * LEASE)
        both.line.mend()
        await anyio.sleep(LEASE)
        both.gates["a"].open()
        await settled()
        assert [answer.status_code for answer in answers] == [200]
        assert (await both.a.post("/in-place", headers=key)).status_code == 502
        assert both.runs == ["a"]


async def test_a_job_that_may_run_twice_runs_again_elsewhere() -> None:
    async with two() as both:
        accepted = await both.a.post("/rerun", content=b"x" * 5)
        await settled()
        both.line.cut()
        both.gates["b"].open()
        response = await follow(both.b, accepted)
        assert (response.status_code, response.json()) == (200, {"by": "b", "body": "xxxxx"})
        assert both.runs == ["a", "b"]


async def test_what_mounts_outside_have_matched_is_there_in_another_process() -> None:
    """And the URLs that a handler makes are those of the whole app."""
    store, gate = MemoryStore(), Gate()

    async def answer(request: Request) -> Any:
        await gate.wait()
        return {
            "path_params": {key: str(value) for key, value in request.path_params.items()},
            "base_url": str(request.base_url),
            "path": request.url.path,
        }

    def process(line: Line) -> Starlette:
        jobs = virtual_jobs(store=line, limits=Limits(lease=LEASE))
        inner = app_of(slow_route(answer, "/slow/{id:int}", on_interrupt="rerun"), jobs=jobs)
        return Starlette(routes=[Mount("/{tenant}", Starlette(routes=[Mount("/{n:int}", inner)]))])

    lines = [Line(store), Line(store)]
    async with (
        client_of(process(lines[0]), root_path="/v1") as a,
        client_of(process(lines[1])) as b,
    ):
        accepted = await a.post("/v1/ann/7/slow/5")
        await settled()
        lines[0].cut()
        assert (await b.get("/ann/7/jobs/x")).status_code == 404  # it is up now
        gate.open()
        url = accepted.headers["location"].removeprefix("/v1")
        while (response := await b.get(url, headers={"prefer": "wait=25"})).status_code == 202:
            pass
        assert gate.entered == 2
        assert response.json() == {
            "path_params": {"tenant": "ann", "n": "7", "id": "5"},
            "base_url": "http://test/v1/",
            "path": "/v1/ann/7/slow/5",
        }
        lines[0].mend()


async def test_law_4_a_process_that_was_only_paused_cannot_overwrite_the_newer_outcome() -> None:
    async with two() as both:
        accepted = await both.a.post("/streamed")
        await settled()
        both.line.cut()
        both.gates["b"].open()
        await follow(both.b, accepted)
        both.line.mend()
        both.gates["a"].open()
        await anyio.sleep(60)
        response = await both.b.get(accepted.headers["location"])
        assert response.content == b"b" * 600_000
        assert both.runs == ["a", "b"]


async def test_law_4_nor_write_into_the_newer_body() -> None:
    async with two() as both:
        accepted = await both.a.post("/streamed")
        await settled()
        both.line.cut()
        await anyio.sleep(2 * LEASE)
        assert both.runs == ["a", "b"]
        both.line.mend()
        both.gates["a"].open()
        await anyio.sleep(60)
        assert both.gates["a"].cleaned_up == 1
        both.gates["b"].open()
        assert (await follow(both.b, accepted)).content == b"b" * 600_000


async def test_law_4_a_cancel_asked_of_the_paused_process_is_the_newer_runs_to_record() -> None:
    async with two() as both:
        accepted = await both.a.post("/rerun")
        await settled()
        both.line.cut(REFUSED)
        await anyio.sleep(2 * LEASE + 0.1)  # not just when the newer one asks for news
        assert both.runs == ["a", "b"]
        both.line.mend()
        await both.apps["a"].jobs.cancel(id_of(accepted))
        await settled()
        assert (both.gates["a"].cleaned_up, both.gates["b"].cleaned_up) == (1, 0)
        assert await both.status(accepted) == "canceling"
        await anyio.sleep(1)
        assert await both.status(accepted) == "canceled"
        assert both.gates["b"].cleaned_up == 1


async def test_the_paused_process_stops_its_handler_when_it_hears() -> None:
    async with two() as both:
        await both.a.post("/rerun")
        await settled()
        both.line.cut()
        await anyio.sleep(2 * LEASE)
        both.line.mend()
        await anyio.sleep(10)
        assert both.gates["a"].cleaned_up == 1
        assert both.gates["b"].cleaned_up == 0
        assert both.apps["a"].jobs.statistics().running == 0


async def test_a_job_runs_no_more_often_than_it_may() -> None:
    async with two() as both:
        accepted = await both.a.post("/rerun")
        await settled()
        both.line.cut()
        await anyio.sleep(2 * LEASE)
        assert both.runs == ["a", "b"]
        both.lines["b"].cut()
        both.line.mend()
        await anyio.sleep(3 * LEASE)
        assert both.runs == ["a", "b"]
        assert (await both.a.get(accepted.headers["location"])).status_code == 502
        both.lines["b"].mend()


async def test_what_a_handler_raises_or_answers_is_an_outcome_and_is_not_run_again() -> None:
    runs: list[str] = []

    async def answer(request: Request) -> Any:
        runs.append(request.url.path)
        if request.url.path == "/raises":
            raise ConnectionError("the mail server is away")
        return JSONResponse({}, status_code=503)

    store = MemoryStore()
    store.shared = True  # type: ignore[misc] # of this one
    settings: dict[str, Any] = {"on_interrupt": "rerun", "max_runs": 3}
    app = app_of(
        slow_route(answer, "/raises", **settings),
        slow_route(answer, "/503", **settings),
        jobs=virtual_jobs(store=store, limits=Limits(lease=LEASE)),
    )
    async with running(app) as client:
        for path, status in (("/raises", 500), ("/503", 503)):
            accepted = await client.post(path)
            await anyio.sleep(10 * LEASE)
            assert (await client.get(accepted.headers["location"])).status_code == status
    assert runs == ["/raises", "/503"]


async def test_a_job_that_never_started_always_runs() -> None:
    async with two() as both:
        first = await both.a.post("/one")
        second = await both.a.post("/one", content=b"2")
        await settled()
        both.line.cut()
        both.gates["b"].open()
        assert (await follow(both.b, second)).json() == {"by": "b", "body": "2"}
        assert (await follow(both.b, first)).status_code == 502


async def test_a_live_request_that_waited_is_gone_with_its_process() -> None:
    async with two() as both, anyio.create_task_group() as group:
        group.start_soon(both.a.post, "/held")
        await settled()
        second = await both.a.post("/held")
        both.line.cut()
        await anyio.sleep(2 * LEASE)
        assert (await both.b.get(second.headers["location"])).status_code == 502
        both.line.mend()
        both.gates["a"].open()


async def test_a_job_that_was_being_cancelled_is_cancelled() -> None:
    async with two() as both:
        accepted = await both.a.post("/rerun")
        await settled()
        both.line.cut()
        await both.b.post(accepted.headers["location"] + "/cancel")
        assert await both.status(accepted) == "canceling"
        await anyio.sleep(2 * LEASE)
        assert await both.status(accepted) == "canceled"
        assert both.runs == ["a"]


async def test_one_of_many_takes_over() -> None:
    async with AsyncExitStack() as stack:
        store = MemoryStore()
        runs: list[int] = []

        async def answer(request: Request) -> Any:
            runs.append(1)
            await anyio.sleep(1)

        lines, clients = [], []
        for _ in range(6):
            lines.append(Line(store))
            jobs = virtual_jobs(store=lines[-1], limits=Limits(lease=LEASE))
            app = app_of(slow_route(answer, on_interrupt="rerun"), jobs=jobs)
            clients.append(await stack.enter_async_context(running(app)))
        accepted = [await clients[0].post("/slow") for _ in range(20)]
        lines[0].cut()
        for response in accepted:
            assert (await follow(clients[1], response)).status_code == 200
        assert len(runs) == 40
        lines[0].mend()


# --- a store that is away -----------------------------------------------------------------------


RUNNING = ("/fail", "/rerun", "/streamed")
"""Paths of jobs that all begin at once."""


async def survive(
    both: Two,
    lines: str,
    away: float,
    how: str,
    *,
    begin: float,
    end: float,
    paths: Sequence[str] = RUNNING,
) -> None:
    """Let handlers end while the store is away, or after that, and see how their jobs end.

    Args:
        both: two new processes; all happens in "a".
        lines: who cannot reach the store.
        away: for how many seconds.
        how: what becomes of calls meanwhile.
        begin: seconds until it begins.
        end: seconds from then until the handlers end.
        paths: of the jobs.
    """
    accepted = [await both.a.post(path) for path in paths]
    await settled()
    await anyio.sleep(begin)
    for name in lines:
        both.lines[name].cut(how)
    await anyio.sleep(min(end, away))
    if end < away:
        both.gates["a"].open()
        await anyio.sleep(away - end)
    assert all(both.lines[name].cuts > 0 for name in lines)  # it was away
    for name in lines:
        both.lines[name].mend()
    await anyio.sleep(max(0.0, end - away))
    both.gates["a"].open()
    for response in accepted:
        assert (await follow(both.b, response)).status_code == 200
    assert both.runs == ["a"] * len(paths)


async def look_out(store: Store, found: list[Abandoned]) -> None:
    """Look for jobs that nobody holds, all the time."""
    while True:
        found += [each async for each in store.abandoned()]
        await anyio.sleep(0.05)


def is_for(backend: str, number: int) -> bool:
    """Whether what has that number is tried on this event loop."""
    return LONG or number % 2 == ("asyncio", "trio").index(backend)


@pytest.mark.slow
@pytest.mark.parametrize("how", FATES)
async def test_law_1_an_outage_shorter_than_the_lease_changes_no_outcome(
    how: str, anyio_backend_name: str
) -> None:
    """Whenever it begins, and whenever within it or after it the handlers end."""
    for n in filter(lambda n: is_for(anyio_backend_name, n // 4), range(36)):
        away = (SURVIVED, SURVIVED, LEASE / 2, BEAT + 0.1)[n % 4]
        # Right after or before a renewal; the others look for abandoned jobs at another pace.
        begin = (3 + n) * BEAT + (BEAT - 0.01 if n % 2 else 0.01)
        end = away + STORE_TIMEOUT if n % 9 == 8 else away * (n % 9) / 8
        paths = (*RUNNING, "/one", "/one") if n % 2 else RUNNING  # the last one waits
        async with two() as both, anyio.create_task_group() as group:
            found: list[Abandoned] = []
            group.start_soon(look_out, both.store, found)
            await survive(both, "a", away, how, begin=begin, end=end, paths=paths)
            assert found == []  # others may look at any moment
            group.cancel_scope.cancel()


@pytest.mark.one_loop
@pytest.mark.parametrize("how", FATES)
async def test_when_nobody_could_renew_a_lease_those_who_live_do_so_first(
    how: str, anyio_backend_name: str
) -> None:
    """As after the restart of a store: for however long it was away, and whoever asks it first."""
    for n in filter(lambda n: is_for(anyio_backend_name, n // 2), range(12)):
        away = 3 * LEASE + n * LEASE / 3 / 12
        async with two() as both:
            end = away - 0.01 if n % 2 else away + LEASE
            await survive(both, "ab", away, how, begin=3 * BEAT, end=end)


async def test_they_do_so_too_where_it_hung_and_no_call_has_failed() -> None:
    for n in range(12):
        away = LEASE + n * LEASE / 12
        async with two(store_timeout=4 * LEASE) as both:
            await survive(both, "ba", away, DELAYED, begin=n * LEASE / 12, end=2 * away)


async def test_law_1_who_has_died_is_found_though_the_store_takes_its_time_each_time() -> None:
    async with AsyncExitStack() as stack:
        store, gate = TrickyStore(taking(abandoned=LEASE / 2), shared=True), Gate()
        lines, clients = [Line(store), Line(store)], []
        for line in lines:
            jobs = virtual_jobs(store=line, limits=Limits(lease=LEASE))
            app = LongRunningMiddleware(Starlette(routes=[gated(gate)]), jobs=jobs)
            clients.append(await stack.enter_async_context(running(app)))
        accepted = await clients[0].post("/slow")
        lines[0].cut()
        await anyio.sleep(6 * LEASE)
        response = await clients[1].get(accepted.headers["location"])
        lines[0].mend()
        gate.open()
        assert response.status_code == 502


async def test_what_waits_for_the_store_is_written_as_soon_as_it_answers_anybody() -> None:
    async with two() as both:
        accepted = await both.a.post("/fail")
        await settled()
        both.line.cut(REFUSED)
        both.gates["a"].open()
        await anyio.sleep(LEASE - BEAT)
        assert both.line.cuts > 0
        both.line.mend()
        await both.a.get(accepted.headers["location"])
        await settled()
        assert (await both.b.get(accepted.headers["location"])).status_code == 200


# --- what it leaves when it stops --------------------------------------------------------------


async def test_law_12_what_waits_when_a_server_stops_runs_elsewhere_at_once() -> None:
    async with two(drain_timeout=1, cancel_grace=1) as both:
        first = await both.a.post("/one")
        second = await both.a.post("/one")
        again = await both.a.post("/rerun")
        await settled()
        both.gates["b"].open()
        await both.stop("a")
        assert (await both.b.get(first.headers["location"])).status_code == 503
        with anyio.fail_after(LEASE):
            assert (await follow(both.b, second)).json()["by"] == "b"
            assert (await follow(both.b, again)).json()["by"] == "b"


async def test_the_next_start_takes_over() -> None:
    async with AsyncExitStack() as stack:
        both = Two(stack, {"drain_timeout": 1, "cancel_grace": 1})
        await both.start("a")
        accepted = [await both.a.post("/one") for _ in range(3)]
        await settled()
        await both.stop("a")
        both.gates["b"].open()
        await both.start("b")
        for response, status in zip(accepted, (503, 200, 200), strict=True):
            assert (await follow(both.b, response)).status_code == status


async def test_the_policy_of_a_route_holds_though_its_jobs_were_there_before_its_endpoint() -> None:
    """After a restart, where nothing is known of a route before somebody has entered it."""
    async with AsyncExitStack() as stack:
        store, gates, clients, lines = MemoryStore(), [Gate(), Gate()], [], []
        for gate in gates:
            lines.append(Line(store))
            jobs = virtual_jobs(store=lines[-1], limits=Limits(lease=LEASE))
            routes = [gated(gate, max_running=1, max_queued=1)]
            app = LongRunningMiddleware(hidden(Starlette(routes=routes)), jobs=jobs)
            clients.append(await stack.enter_async_context(running(app)))
        first, second = [await clients[0].post("/slow") for _ in range(2)]
        await settled()
        lines[0].cut()
        await anyio.sleep(2 * LEASE)
        third, refused = [await clients[1].post("/slow") for _ in range(2)]
        entered = gates[1].entered
        lines[0].mend()
        for gate in gates:
            gate.open()
        answers = [await follow(clients[1], accepted) for accepted in (first, second, third)]
        assert [answer.status_code for answer in answers] == [502, 200, 200]
        assert (entered, refused.status_code) == (1, 503)
        assert "1 requests wait for this route" in refused.json()["detail"]


# --- the replay --------------------------------------------------------------------------------


@asynccontextmanager
async def recovered(
    endpoint: Callable[[Request], Awaitable[Response]], **settings: Any
) -> AsyncIterator[Callable[..., Awaitable[httpx.Response]]]:
    """Send a request that the process which accepted it never runs, and see what another does."""
    async with AsyncExitStack() as stack:
        store = MemoryStore()
        lines, clients = [], []

        @asynccontextmanager
        async def with_state(app: Starlette) -> AsyncIterator[dict[str, Any]]:
            yield {"pool": "the pool"}

        for _ in range(2):
            lines.append(Line(store))
            jobs = virtual_jobs(store=lines[-1], limits=Limits(max_running=1, lease=LEASE))
            app = Starlette(
                routes=[Route("/slow", long_running(**settings)(endpoint), methods=["POST"])],
                middleware=[Middleware(LongRunningMiddleware, jobs=jobs)],
                lifespan=with_state,
            )
            app.state.name = "the app"
            clients.append(await stack.enter_async_context(running(app)))

        async def send(**request: Any) -> httpx.Response:
            await clients[0].post("/slow?first")
            await settled()
            accepted = await clients[0].post("/slow", **request)
            lines[0].cut()
            response = await follow(clients[1], accepted)
            lines[0].mend()
            return response

        yield send


async def test_a_replay_elsewhere_has_the_app_and_its_state() -> None:
    async def endpoint(request: Request) -> Response:
        if "first" in request.query_params:
            await anyio.sleep(1000)
        return JSONResponse([request.app.state.name, request.state.pool])

    async with recovered(endpoint) as send:
        assert (await send()).json() == ["the app", "the pool"]


async def test_a_replay_has_every_header_but_those_that_are_dropped() -> None:
    async def endpoint(request: Request) -> Response:
        if "first" in request.query_params:
            await anyio.sleep(1000)
        return JSONResponse([request.headers.get(name) for name in ("x-a", "cookie", "x-b")])

    async with recovered(endpoint, drop_headers=("Cookie", "X-B")) as send:
        headers = {"x-a": "1", "cookie": "a=b", "x-b": "2"}
        assert (await send(headers=headers)).json() == ["1", None, None]


async def test_a_replay_elsewhere_is_under_the_routes_own_policy() -> None:
    async def endpoint(request: Request) -> Response:
        await anyio.sleep(1000 if "first" in request.query_params else 100)
        return Response()

    async with recovered(endpoint, timeout=50) as send:
        response = await send()
        assert (response.status_code, response.json()["title"]) == (
            504,
            "The handler took too long",
        )


# --- outcomes that take time to write ----------------------------------------------------------


def slow_store() -> TrickyStore:
    """Takes a second for every new version."""
    return TrickyStore(taking(replace=1), shared=True)


async def test_a_cancel_does_not_tear_an_outcome_that_is_being_written() -> None:
    async def answer(request: Request) -> Any:
        return {}

    async with running(app_of(slow_route(answer), jobs=virtual_jobs(store=slow_store()))) as client:
        accepted = await client.post("/slow")
        await anyio.sleep(0.5)
        await client.post(accepted.headers["location"] + "/cancel")
        response = await follow(client, accepted)
        assert response.status_code == 200


async def test_a_handler_that_gives_up_waiting_does_not_either() -> None:
    @long_running
    async def endpoint(request: Request) -> Response:
        class Impatient(Response):
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                with anyio.move_on_after(0.5):
                    await super().__call__(scope, receive, send)

        return Impatient(b"done")

    app = app_of(Route("/slow", endpoint), jobs=virtual_jobs(store=slow_store()))
    async with running(app) as client:
        accepted = await client.get("/slow")
        response = await follow(client, accepted)
        assert (response.status_code, response.content) == (200, b"done")
        await anyio.sleep(5)
        assert (await client.get(accepted.headers["location"])).content == b"done"


async def test_a_server_that_stops_waits_for_an_outcome_that_is_being_written() -> None:
    async def answer(request: Request) -> Any:
        return {}

    store = slow_store()
    async with running(app_of(slow_route(answer), jobs=virtual_jobs(store=store))) as client:
        accepted = await client.post("/slow")
    job = await store.get(accepted.json()["job_id"])
    assert job is not None
    assert job.state is State.SUCCEEDED


async def test_a_job_may_begin_while_another_that_waits_is_left_to_others() -> None:
    """The server stops: when the first has been let go of, the second does not wait any more."""

    async def answer(request: Request) -> Any:
        await anyio.sleep(10)
        return {}

    store = slow_store()
    jobs = virtual_jobs(store=store, limits=Limits(drain_timeout=0))
    route = slow_route(answer, max_running=1, on_interrupt="rerun")
    async with running(app_of(route, jobs=jobs)) as client:
        accepted = [(await client.post("/slow")).json() for _ in range(3)]
        await anyio.sleep(10.5)  # the first one's outcome is being written
    found = [await store.get(document["job_id"]) for document in accepted]
    assert [(job.state, job.holder) for job in found if job is not None] == [
        (State.SUCCEEDED, None),
        (State.QUEUED, None),
        (State.QUEUED, None),
    ]


# --- what cannot be read -----------------------------------------------------------------------


def id_of(response: httpx.Response) -> str:
    path: str = response.headers["location"]
    return path.rpartition("/")[2]


async def test_a_job_that_nobody_can_read_stops_no_take_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two() as both:
        accepted = [await both.a.post("/fail"), await both.a.post("/fail")]
        await settled()
        both.store.unreadable.add(id_of(accepted[0]))
        both.line.cut()
        await anyio.sleep(4 * LEASE)
        assert await both.status(accepted[1]) == "failed"
        told = [each for each in caplog.records if id_of(accepted[0]) in each.getMessage()]
        assert [each.levelname for each in told] == ["WARNING"]  # though b has looked many times


@pytest.mark.one_loop
async def test_a_job_that_nobody_can_read_is_given_up_in_the_end() -> None:
    async with two(abandon_after=600) as both:
        unread = await both.a.post("/one")
        await settled()
        both.store.unreadable.add(id_of(unread))
        both.line.cut()
        both.gates["b"].open()
        await anyio.sleep(500)
        later = await both.b.post("/one")
        await anyio.sleep(50)
        assert await both.status(later) == "queued"  # a process that can read it may come
        assert (await both.b.get(unread.headers["location"])).status_code == 503
        await anyio.sleep(100)
        assert (await follow(both.b, later)).json()["by"] == "b"
        assert (await both.b.get(unread.headers["location"])).status_code == 404


async def test_an_unreadable_record_is_no_store_that_is_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with two() as both:
        keyed = {"idempotency-key": "k"}
        unread = await both.a.post("/fail", headers=keyed)
        await settled()
        both.store.unreadable.add(id_of(unread))
        for _ in range(3):
            for suffix in ("", "/status"):
                response = await both.b.get(unread.headers["location"] + suffix)
                assert response.status_code == 503
                assert "retry-after" in response.headers
        assert (await both.b.post("/fail", headers=keyed)).status_code == 503
        (told,) = said(caplog)
        assert (told.levelname, told.exc_info) == ("WARNING", None)
        assert id_of(unread) in told.getMessage()


async def test_law_1_a_job_whose_captured_request_cannot_be_read_has_failed() -> None:
    async with two() as both:
        first, unread, third = [await both.a.post("/one") for _ in range(3)]
        await settled()
        both.store.unreadable_requests.add(id_of(unread))
        both.gates["a"].open()
        with anyio.fail_after(LEASE):
            assert (await follow(both.a, first)).status_code == 200
            assert (await follow(both.a, third)).status_code == 200  # its place was given on
            response = await follow(both.a, unread)
        assert response.status_code == 500
        assert response.json()["type"] == "urn:raincheck:problem:unreadable"
        assert both.runs == ["a", "a"]


async def test_a_job_that_a_newer_version_has_changed_is_left_to_it() -> None:
    async with two() as both:
        unread, beside = [await both.a.post(path) for path in ("/one", "/fail")]
        await settled()
        await both.b.post(unread.headers["location"] + "/cancel")
        both.store.unreadable.add(id_of(unread))
        both.gates["a"].open()
        assert (await follow(both.a, beside)).status_code == 200
        await both.stop("a")  # nothing waits here for what nobody here can read
        both.store.unreadable.clear()
        await anyio.sleep(2 * LEASE)
        assert await both.status(unread) == "canceled"


async def test_one_that_a_newer_version_has_changed_as_soon_as_it_was_there_is_too() -> None:
    async with two() as both:
        keyed = await both.a.post("/fail", headers={"idempotency-key": "k"})
        job = await both.store.get(id_of(keyed))
        assert job is not None
        assert await both.store.replace(job.confirm())
        both.store.unreadable.add(id_of(keyed))
        await anyio.sleep(1)  # here it is confirmed, too, in a task that must not raise
        both.store.unreadable.clear()
        both.gates["a"].open()
        assert (await follow(both.a, keyed)).status_code == 200
