"""Shared runs: which requests are one, whichever process they come to (law 13)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from raincheck import MemoryStore
from raincheck.errors import StoreError
from raincheck.stores.base import Store
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.doubles.stores import SharedMemory, TrickyStore, taking
from tests.support import app_of, running, settled, slow_route

pytestmark = pytest.mark.anyio


async def by_tenant(request: Request) -> Response:
    await anyio.sleep(5)
    tenant = request.headers.get("x-tenant")
    return JSONResponse({"tenant": tenant}, headers={"vary": "Accept-Encoding, X-Tenant"})


@asynccontextmanager
async def processes(store: Store, *names: str) -> AsyncIterator[Any]:
    """Clients of several apps with one store, each as if in a process of its own."""
    async with anyio.create_task_group() as group:
        clients, done = {}, anyio.Event()

        async def serve(name: str, *, task_status: Any) -> None:
            route = slow_route(by_tenant, coalesce=True, name="report")
            async with running(app_of(route, jobs=virtual_jobs(store=store))) as client:
                clients[name] = client
                task_status.started()
                await done.wait()

        for name in names:
            await group.start(serve, name)
        yield [clients[name] for name in names]
        done.set()


async def as_tenant(client: httpx.AsyncClient, tenant: str) -> httpx.Response:
    return await client.post("/slow", headers={"x-tenant": tenant})


async def test_what_responses_vary_by_is_known_in_every_process() -> None:
    async with processes(SharedMemory(), "ran it", "never ran any") as (one, other):
        await follow(one, await as_tenant(one, "warm-up"))
        a, b, again = [await as_tenant(other, tenant) for tenant in "aba"]
        assert a.headers["location"] == again.headers["location"]
        assert (await follow(other, a)).json() == {"tenant": "a"}
        assert (await follow(other, b)).json() == {"tenant": "b"}


async def test_nobody_comes_after_a_run_without_knowing_what_it_varied_by() -> None:
    """Until the store has learned it the run lasts, and is joined by those who came before it."""
    until, failed = anyio.current_time() + 20.0, 0

    async def fail(call: str, /, *arguments: Any, **more: Any) -> None:
        nonlocal failed
        if call == "learn" and anyio.current_time() < until:
            failed += 1
            raise StoreError("it does not answer")

    store = TrickyStore(fail, shared=True)
    async with processes(store, "one", "other") as (one, other):
        first = await as_tenant(one, "a")
        await anyio.sleep(15.0)
        assert failed
        assert (await other.get(first.headers["location"])).status_code == 202
        await follow(one, first)
        assert await store.learned("report") == {"x-tenant"}
        a, b = [await as_tenant(other, tenant) for tenant in "ab"]
        assert a.headers["location"] != b.headers["location"]


async def varied(vary: str, times: int = 2) -> set[str]:
    """Where requests go that come after a response with this `Vary`, to a route of its own."""

    async def answer(request: Request) -> Response:
        await anyio.sleep(5)
        return Response(headers={"vary": vary})

    async with running(app_of(slow_route(answer, coalesce=True))) as client:
        await follow(client, await client.post("/slow"))
        return {(await client.post("/slow")).headers["location"] for _ in range(times)}


async def test_a_response_that_varies_by_anything_is_shared_no_more() -> None:
    assert len(await varied("X-Tenant")) == 1
    assert len(await varied("*")) == 2
    assert len(await varied("Accept, *")) == 2


@pytest.mark.parametrize(
    "vary", [", ".join(f"x-{number}" for number in range(1000)), "x-" + "y" * 1000]
)
async def test_what_is_remembered_of_a_route_is_bounded(vary: str) -> None:
    """Whose responses name more than that runs each request by itself: nothing was forgotten."""
    store = SharedMemory()

    async def answer(request: Request) -> Response:
        return Response(headers={"vary": vary})

    route = slow_route(answer, coalesce=True, name="report")
    async with running(app_of(route, jobs=virtual_jobs(store=store))) as client:
        for _ in range(3):
            await follow(client, await client.post("/slow"))
    assert await store.learned("report") == {"*"}
    assert len(await varied(vary)) == 2


async def test_the_store_is_told_once_and_asked_for_each_request_what_a_route_varies_by() -> None:
    told, asked = [], []

    async def note(call: str, /, *arguments: Any, **more: Any) -> None:
        if call == "learn":
            told.append(set(arguments[1]))
        elif call == "learned":
            asked.append(arguments[0])

    async with processes(TrickyStore(note, shared=True), "one", "other") as clients:
        for client in clients * 3:
            await follow(client, await as_tenant(client, "a"))
    assert told == [{"x-tenant"}]
    assert len(asked) == 2 * 3 + 2  # and once by each process before it would tell


async def test_nobody_deletes_what_others_share() -> None:
    """Which of them asks cannot be told: all can read it until its time is over."""
    async with running(app_of(slow_route(by_tenant, coalesce=True, ttl=600))) as client:
        first, second = [await client.post("/slow") for _ in range(2)]
        url = first.headers["location"]
        assert second.headers["location"] == url
        await follow(client, first)
        for _ in range(3):
            assert (await client.delete(url)).status_code == 204
        for _ in range(2):
            assert (await client.get(url)).json() == {"tenant": None}
        await anyio.sleep(600)
        assert (await client.get(url)).status_code == 410


async def test_who_is_left_alone_with_a_run_deletes_it() -> None:
    async with running(app_of(slow_route(by_tenant, coalesce=True))) as client:
        responses = [await client.post("/slow") for _ in range(3)]
        url = responses[0].headers["location"]
        assert (await client.post(url + "/cancel")).status_code == 202
        assert (await client.delete(url)).status_code == 202
        assert (await follow(client, responses[0])).status_code == 200
        assert (await client.delete(url)).status_code == 204
        assert (await client.get(url)).status_code == 410


async def test_when_all_leave_at_once_the_last_of_them_cancels_it() -> None:
    """Each finds that others share it."""
    store = TrickyStore(taking(get=1.0))
    route = slow_route(by_tenant, coalesce=True)
    async with running(app_of(route, jobs=virtual_jobs(store=store))) as client:
        responses = [await client.post("/slow") for _ in range(3)]
        async with anyio.create_task_group() as group:
            for response in responses:
                group.start_soon(client.post, response.headers["location"] + "/cancel")
        assert (await follow(client, responses[0])).json()["status"] == 410


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_who_joins_while_the_only_one_leaves_keeps_the_run(
    method: str, waits: bool, elsewhere: bool
) -> None:
    held = anyio.Event()
    held.set()

    async def hold_first(call: str, /, *arguments: Any, **more: Any) -> None:
        nonlocal held
        if call == "replace" and not held.is_set():
            waited, held = held, anyio.Event()
            held.set()
            await waited.wait()

    store = TrickyStore(hold_first, shared=True)
    apps = [
        app_of(
            slow_route(by_tenant, coalesce=True, name="report", max_running=1),
            jobs=virtual_jobs(store=store),
        )
        for _ in range(2)
    ]
    async with running(apps[0]) as one, running(apps[1]) as two, anyio.create_task_group() as group:
        if waits:
            await one.post("/slow?another")
        first = await as_tenant(one, "a")
        assert first.json()["status"] == ("queued" if waits else "running")
        held = leaving = anyio.Event()
        url = first.headers["location"] + ("/cancel" if method == "POST" else "")
        group.start_soon((two if elsewhere else one).request, method, url)
        await settled()
        second = await as_tenant(two, "a")
        assert second.headers["location"] == first.headers["location"]
        leaving.set()
        assert (await follow(two, second)).status_code == 200


async def test_a_full_store_refuses_whoever_brings_another_key() -> None:
    store = MemoryStore(max_bytes=2100)
    route = slow_route(by_tenant, coalesce=True)
    async with running(app_of(route, jobs=virtual_jobs(store=store))) as client:
        first = await client.post("/slow")
        statuses = [
            (await client.post("/slow", headers={"idempotency-key": f"k{number}"})).status_code
            for number in range(4)
        ]
        assert statuses == [202, 503, 503, 503]
        joined = await client.post("/slow")
        assert (joined.status_code, joined.headers["location"]) == (202, first.headers["location"])
