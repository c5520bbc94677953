"""What the log says, and how often."""

from __future__ import annotations

import logging
import re

import anyio
import pytest

from raincheck import Limits, MemoryStore
from raincheck.testing import follow
from tests.conftest import virtual_jobs
from tests.support import Gate, app_of, gated, running, settled
from tests.test_recovery import LOST, REFUSED, Line

pytestmark = pytest.mark.anyio


def said(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[str]:
    """What raincheck's own log has at this level and above, without its numbers of seconds."""
    return [
        f"{record.levelname} {re.sub(r'[0-9.]+ seconds', 'N seconds', record.getMessage())}"
        for record in caplog.records
        if record.name == "raincheck" and record.levelno >= level
    ]


# --- a store that is away ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "why"), [(REFUSED, "connection refused"), (LOST, "it has not answered for N seconds")]
)
async def test_a_store_that_is_away_is_told_once_and_each_minute_and_when_it_is_back(
    how: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """However many ask it meanwhile: clients, handlers that end, leases, sweeps."""
    line = Line(MemoryStore())
    jobs = virtual_jobs(store=line, limits=Limits(max_running=20, store_timeout=2))
    async with running(app_of(gated(gate := Gate()), jobs=jobs)) as client:
        accepted = [await client.post("/slow") for _ in range(30)]
        await settled()
        line.cut(how)
        for _ in range(10):
            await anyio.sleep(14)
            gate.open()
            for answer in (
                await client.get(accepted[0].headers["location"]),
                await client.post("/slow"),
            ):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert line.cuts > 100
        line.mend()
        for response in accepted:
            assert (await follow(client, response)).status_code == 200
    assert said(caplog) == [
        f"ERROR the store fails, and is asked again: {why}",
        *[f"ERROR the store has failed for N seconds: {why}"] * 2,
        "WARNING the store answers again, after N seconds",
    ]
    assert [record.exc_info for record in caplog.records if record.levelno > logging.INFO] == [
        None
    ] * 4


async def test_a_store_that_comes_and_goes_is_told_once_a_minute_unless_it_stays_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    line = Line(MemoryStore())
    app = app_of(gated(gate := Gate()), jobs=virtual_jobs(store=line))
    async with running(app) as client:
        url = (await client.post("/slow")).headers["location"]
        for away in (0.1, 0.1, 0.1, 5.0):
            line.cut(REFUSED)
            assert (await client.get(url)).status_code == 503
            await anyio.sleep(away)
            line.mend()
            assert (await client.get(url)).status_code == 202
            await anyio.sleep(5)
        gate.open()
    fails = "ERROR the store fails, and is asked again: connection refused"
    assert said(caplog) == [fails, "WARNING the store answers again, after N seconds"] * 2


async def test_a_store_that_is_wrong_shows_where(caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(MemoryStore):
        shared = True

        async def get(self, id: str) -> None:
            raise KeyError(id)

    app = app_of(gated(gate := Gate()), jobs=virtual_jobs(store=Wrong()))
    async with running(app) as client:
        response = await client.get((await client.post("/slow")).headers["location"])
        assert response.status_code == 503
        gate.open()
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert record.exc_info[0] is KeyError
