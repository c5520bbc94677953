"""What happens between two answers of a store that takes its time."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from starlette.requests import Request

from raincheck import Job, Limits, MemoryStore, State
from raincheck.messages import CapturedRequest
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.support import Gate, app_of, gated, running, settled, slow_route

pytestmark = pytest.mark.anyio


class SlowStore(MemoryStore):
    """Takes a second for every write, and half of one for every look."""

    async def get(self, id: str) -> Job | None:
        await anyio.sleep(0.5)
        return await super().get(id)

    async def request(self, id: str) -> CapturedRequest | None:
        await anyio.sleep(0.5)
        return await super().request(id)

    async def replace(self, job: Job, **more: Any) -> bool:
        await anyio.sleep(1)
        return await super().replace(job, **more)


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

    jobs = virtual_jobs(store=SlowStore(), limits=Limits(max_running=1))
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


class Unreliable(MemoryStore):
    """Fails as long as it is told to."""

    down = False

    async def _check(self) -> None:
        if self.down:
            raise OSError("the disk is away")

    async def get(self, id: str) -> Job | None:
        await self._check()
        return await super().get(id)

    async def request(self, id: str) -> CapturedRequest | None:
        await self._check()
        return await super().request(id)

    async def replace(self, job: Job, **more: Any) -> bool:
        await self._check()
        return await super().replace(job, **more)

    async def sweep(self, now: float) -> bool:
        await self._check()
        return await super().sweep(now)


async def test_a_store_that_is_away_for_a_minute_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = Gate()
    store = Unreliable()
    jobs = virtual_jobs(store=store, limits=Limits(max_running=1))
    async with running(app_of(gated(gate), jobs=jobs)) as client:
        accepted = [await client.post("/slow") for _ in range(2)]
        await settled()
        store.down = True
        gate.open()
        await anyio.sleep(60)
        store.down = False
        for response in accepted:
            assert (await follow(client, response)).status_code == 200
        await anyio.sleep(3 * 3600)
        assert len(store) == 0
    assert "the store answers again" in caplog.text
