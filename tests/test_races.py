"""What happens between two answers of a store that takes its time."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import TaskGroup
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from raincheck import Job, Limits, State, current_job
from raincheck.owners import header
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.stores import TrickyStore, failing, no_trick, taking
from tests.support import Gate, app_of, gated, running, settled, slow_route

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("delay", [0.0, 0.2, 0.6, 1.1, 1.6, 2.1, 2.6])
@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_a_cancel_at_any_moment_of_a_start_ends_the_job_and_frees_its_place(
    how: str, delay: float, hold: bool
) -> None:
    gates = [Gate(), Gate()]
    entered = iter(gates)

    async def answer(request: Request) -> dict[str, str]:
        await next(entered).wait()
        return {}

    jobs = virtual_jobs(
        store=TrickyStore(taking(get=0.5, request=0.5, replace=1), immediate=False),
        limits=Limits(max_running=1),
    )
    async with running(app_of(slow_route(answer, hold=hold), jobs=jobs)) as client:
        await client.post("/slow")
        second = await client.post("/slow")
        gates[0].open()
        await anyio.sleep(delay)
        if how == "cancel":
            response = await client.post(second.json()["links"]["cancel"])
        else:
            response = await client.delete(second.headers["location"])
        assert response.status_code < 300
        await anyio.sleep(20)
        job = await jobs.get(second.json()["job_id"])
        assert job is not None
        assert job.gone or (how, job.state) == ("cancel", State.CANCELLED)
        assert (jobs.statistics().running, jobs.statistics().queued) == (0, 0)
        gates[1].open()
        assert (await client.post("/slow")).status_code == 202


async def test_a_job_whose_turn_comes_while_it_is_recorded_runs_once() -> None:
    """Since Python 3.12 its replay begins within the call that starts it, before the 202."""
    gate, runs = Gate(), list[str]()

    async def answer(request: Request) -> str:
        runs.append(request.headers["x-name"])
        await (gate.wait() if runs == ["first"] else anyio.sleep(1))
        return runs[-1]

    store = TrickyStore(taking(create=1), immediate=False)
    jobs, second = virtual_jobs(store=store, limits=Limits(max_running=1)), list[httpx.Response]()
    async with running(app_of(slow_route(answer), jobs=jobs)) as client:

        async def ask() -> None:
            second.append(await client.post("/slow", headers={"x-name": "second"}))

        await client.post("/slow", headers={"x-name": "first"})
        await settled()
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.sleep(0.5)
            gate.open()
        assert (await follow(client, second[0])).json() == "second"
        await settled()
        assert runs == ["first", "second"]
        assert jobs.statistics().running == 0


AWAY = failing("get", "request", "replace", "sweep")


async def test_a_store_that_is_away_for_a_minute_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    store = TrickyStore()
    jobs = virtual_jobs(store=store, limits=Limits(max_running=1))
    async with running(app_of(gated(gate), jobs=jobs)) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        await settled()
        store.before = AWAY
        gate.open()
        await anyio.sleep(60)
        store.before = no_trick
        for response in accepted:
            assert (await follow(client, response)).status_code == 200
        await anyio.sleep(3 * 3600)
        assert len(store) == 0
    assert "the store answers again" in caplog.text


# --- a stop does not wait for the store ---------------------------------------------------------


def stall(store: TrickyStore) -> Gate:
    """Let nobody read or write it before the gate is open."""

    async def wait(call: str, /, *arguments: Any, **more: Any) -> None:
        if call in ("get", "replace"):
            await gate.wait()

    gate = Gate()
    store.before = wait
    return gate


class Handler:
    """Runs until it is stopped; notes when that was, and which job it saw then."""

    def __init__(self, after: Any = None) -> None:
        self.stopped_at: float | None = None
        self.saw: Job | None = None
        self._after = after

    async def __call__(self, request: Request) -> Response:
        try:
            await anyio.sleep(100)
        except anyio.get_cancelled_exc_class():
            self.stopped_at = anyio.current_time()
            self.saw = current_job()
            if self._after is None:
                raise
            return PlainTextResponse("done all the same", self._after)
        return PlainTextResponse("done")


async def into_the_background(
    client: httpx.AsyncClient, method: str, url: str, group: TaskGroup, answers: list[int]
) -> None:
    async def ask() -> None:
        answers.append((await client.request(method, url)).status_code)

    group.start_soon(ask)
    await settled()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("after", [None, 200, 500])
async def test_a_timeout_stops_the_handler_at_once_however_long_the_store_takes(
    shared: bool, after: int | None
) -> None:
    handler, store = Handler(after), TrickyStore(shared=shared, immediate=False)
    jobs = virtual_jobs(store=store, limits=Limits(store_timeout=60, lease=300))
    async with running(app_of(slow_route(handler, timeout=5, max_running=1), jobs=jobs)) as client:
        began = anyio.current_time()
        accepted = await client.post("/slow")
        await settled()
        stalled = stall(store)
        await anyio.sleep(20)
        assert handler.stopped_at == pytest.approx(began + 5, abs=0.1)
        assert stalled.entered
        stalled.open()
        response = await follow(client, accepted)
        assert (response.status_code, response.json()["type"][-7:]) == (504, "timeout")
        await settled()
        assert jobs.statistics().running == 0


@pytest.mark.parametrize("shared", [False, True])
async def test_a_response_that_is_complete_in_time_is_the_outcome_however_long_the_store_takes(
    shared: bool,
) -> None:
    store = TrickyStore(shared=shared, immediate=False)

    async def answer(request: Request) -> Response:
        await anyio.sleep(4)
        return PlainTextResponse("in time")

    jobs = virtual_jobs(store=store, limits=Limits(store_timeout=60, lease=300))
    async with running(app_of(slow_route(answer, timeout=5), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await settled()
        stalled = stall(store)
        await anyio.sleep(20)
        assert stalled.entered
        stalled.open()
        assert (await follow(client, accepted)).text == "in time"


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("method", "path"), [("POST", "/cancel"), ("DELETE", "")])
async def test_a_cancel_stops_the_handler_at_once_however_long_the_store_takes(
    shared: bool, method: str, path: str
) -> None:
    handler, store = Handler(), TrickyStore(shared=shared, immediate=False)
    jobs = virtual_jobs(store=store, limits=Limits(store_timeout=60, lease=300))
    async with running(app_of(slow_route(handler), jobs=jobs)) as client:
        accepted = await client.post("/slow")
        await settled()
        stalled = stall(store)
        asked, answers = anyio.current_time(), list[int]()
        async with anyio.create_task_group() as group:
            url = accepted.headers["location"] + path
            await into_the_background(client, method, url, group, answers)
            await anyio.sleep(20)
            assert handler.stopped_at == pytest.approx(asked, abs=0.1)
            assert handler.saw is not None
            assert handler.saw.state is State.CANCELLING
            assert (stalled.entered > 0, answers) == (True, [])
            stalled.open()
        assert answers in ([202], [200])
        await settled()
        assert (await client.get(accepted.headers["location"])).status_code == 410
        assert jobs.statistics().running == 0


async def test_a_cancel_that_the_store_fails_to_record_has_stopped_the_handler() -> None:
    """The client is told to ask again, and then hears how it ended."""
    handler, store = Handler(), TrickyStore()
    async with running(app_of(slow_route(handler), jobs=virtual_jobs(store=store))) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        store.before = AWAY
        assert (await client.post(links["cancel"])).status_code == 503
        await settled()
        assert handler.stopped_at is not None
        store.before = no_trick
        await anyio.sleep(10)
        assert (await client.post(links["cancel"])).status_code == 200
        assert (await client.get(links["result"])).status_code == 410


async def test_a_stranger_stops_nothing_by_being_faster_than_the_store() -> None:
    handler, store = Handler(), TrickyStore(immediate=False)
    jobs = virtual_jobs(store=store)
    app = app_of(slow_route(handler), jobs=jobs, owner=header("x-user", secret="s" * 32))
    async with running(app) as client:
        accepted = await client.post("/slow", headers={"x-user": "ann"})
        cancel = accepted.json()["links"]["cancel"]
        await settled()
        assert (await client.post(cancel, headers={"x-user": "bob"})).status_code == 404
        assert (await client.post(cancel)).status_code == 404
        await settled()
        assert handler.stopped_at is None
        assert (await client.post(cancel, headers={"x-user": "ann"})).status_code == 202


async def test_one_of_several_who_share_a_run_does_not_stop_it() -> None:
    handler = Handler()
    async with running(app_of(slow_route(handler, coalesce=True))) as client:
        first, second = await client.post("/slow"), await client.post("/slow")
        assert first.headers["location"] == second.headers["location"]
        await settled()
        assert (await client.post(first.json()["links"]["cancel"])).status_code == 202
        await settled()
        assert handler.stopped_at is None
        assert (await client.post(first.json()["links"]["cancel"])).status_code == 202
        await settled()
        assert handler.stopped_at is not None


async def test_a_job_that_was_deleted_while_its_handler_ends_is_gone() -> None:
    async def answer(request: Request) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)

    async with running(app_of(slow_route(answer))) as client:
        links = (await client.post("/slow")).json()["links"]
        await settled()
        assert (await client.delete(links["result"])).status_code == 202
        assert (await client.delete(links["result"])).status_code == 410
        assert (await client.post(links["cancel"])).status_code == 410
