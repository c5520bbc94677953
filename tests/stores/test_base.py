"""What a store does that has no better way: the defaults of the port."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from raincheck import Job, MemoryStore
from raincheck.job import Progress
from raincheck.messages import Head
from raincheck.stores.base import Claim, Fetched, Partial, Store
from raincheck.testing import StoreContract
from raincheck.testing.samples import claim, finished, job, request, waiting, with_body

pytestmark = pytest.mark.anyio


class Plain(MemoryStore):
    """Has the defaults of the port."""

    fetch = Store.fetch
    claim = Store.claim
    partial = Store.partial
    grown = Store.grown


@pytest.fixture
def store() -> Plain:
    return Plain()


@pytest.mark.one_loop
class TestPlainStore(StoreContract):
    @pytest.fixture
    def store(self) -> Plain:
        return Plain()


async def test_a_job_is_claimed_in_several_steps(store: Plain) -> None:
    new = waiting(max_runs=2)
    await store.create(new, request(), lease=0.0)
    assert await claim(store, routes=()) == Claim(new, None, False)
    runs = new.start(1001.5, "here")
    for _ in range(2):
        assert await claim(store, lease=60.0) == Claim(runs, request(), True)
    assert await store.get("a") == runs
    assert [each async for each in store.abandoned()] == []
    assert await claim(store, holder="there") == Claim(runs, None, False)
    assert await claim(store, "unknown") is None
    await store.replace(runs.tombstone(1002.0, 60.0))
    assert await claim(store) is None


async def test_the_request_of_the_last_run_goes_with_the_answer(store: Plain) -> None:
    await store.create(waiting(), request())
    runs = waiting().start(1001.5, "here")
    assert await claim(store) == Claim(runs, request(), True)
    assert await claim(store) == Claim(runs, None, False)


async def test_who_comes_second_is_told_so() -> None:
    class Overtaken(Plain):
        async def replace(self, job: Job, **more: Any) -> bool:
            if job.holder == "here":
                assert await super().replace(waiting().start(1001.0, "there"))
            return await super().replace(job, **more)

    store = Overtaken()
    await store.create(waiting(), request())
    assert await claim(store) == Claim(waiting().start(1001.0, "there"), None, False)


async def test_a_body_is_left_to_who_reads_it(store: Plain) -> None:
    done = await with_body(store, "a", [b"one"])
    assert await store.fetch("a") == Fetched(done, None)
    assert await store.fetch("unknown") is None


async def test_of_a_response_that_grows_only_its_end_is_seen(store: Plain) -> None:
    assert await store.partial("a") is None
    assert await store.grown(Partial(job(), None, 0)) is None
    await store.create(job())
    await store.append_body("a", 1, 0, b"one", head=Head(201, ()))
    assert await store.partial("a") == Partial(job(), None, 0)
    seen: list[Partial | None] = []

    async def follow() -> None:
        known: Partial | None = Partial(job(), None, 0)
        while known is not None and not known.job.finished:
            known = await store.grown(known)
            seen.append(known)

    reported = job().with_progress(Progress(0.5))
    done = finished(reported, size=3)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await anyio.wait_all_tasks_blocked()
            await store.replace(reported)
            await anyio.wait_all_tasks_blocked()
            await store.replace(done)
    assert seen == [Partial(reported, None, 0), Partial(done, Head(200, ()), 3)]


async def test_what_nobody_tells_of_is_looked_for_again(
    store: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that knows its bodies' sizes, and does not wake who waits for more."""
    monkeypatch.setattr("raincheck.stores.base.PAUSE", 0.01)

    class Silent(Plain):
        partial = MemoryStore.partial

        async def changed(self, id: str, after_version: int) -> Job | None:
            await anyio.sleep_forever()
            raise AssertionError

    silent = Silent()
    await silent.create(job())
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            group.start_soon(silent.grown, Partial(job(), None, 0))
            await anyio.sleep(0.05)
            await silent.append_body("a", 1, 0, b"one")
