"""Durable stores under real processes: killed, paused, and several at once.

Shorter forms of `benchmarks/crash.py` and `benchmarks/shared.py`.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import statistics
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from raincheck.errors import LOST_WORKER
from tests.e2e.crashes import Crashes, striking
from tests.e2e.durable import Answer, Deployment, Line, until
from tests.e2e.sharing import Sharing
from tests.stores.valkey import Valkey, valkey_server

__all__ = ["valkey_server"]  # a fixture

pytestmark = pytest.mark.real

Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Deploy]:
    deployments: list[Deployment] = []

    def start(store: str | None = None, **settings: Any) -> Deployment:
        url = str(tmp_path / "jobs.db") if store is None else store
        deployments.append(Deployment(tmp_path, url, **settings))
        deployments[-1].start()
        return deployments[-1]

    yield start
    for deployment in deployments:
        deployment.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "kills"), [(signal.SIGKILL, 3), (signal.SIGTERM, 2)], ids=["kill", "term"]
)
def test_what_a_202_promised_comes_true_though_the_server_dies(
    number: int, kills: int, deploy: Deploy, tmp_path: Path
) -> None:
    deployment = deploy(RAINCHECK_TEST_LEASE="1", RAINCHECK_TEST_DRAIN="0.1")
    chance = random.Random(5)
    strike = striking(deployment, number)
    crashes = Crashes(deployment, strike, chance, jobs=60, kills=kills, patience=50)

    async def crash() -> None:
        await deployment.answering()
        await crashes.run()

    asyncio.run(crash())
    assert crashes.violations == []
    assert crashes.figures.accepted == 60
    assert crashes.figures.repeated > 0
    deployment.kill()
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_processes_share_their_jobs(deploy: Deploy, valkey: Valkey) -> None:
    """Submitted in one, and polled, waited for, cancelled and deleted in another."""
    deployment = deploy(valkey.url, workers=2, RAINCHECK_TEST_LEASE="30")
    sharing = Sharing(deployment, random.Random(5))

    async def share() -> None:
        await deployment.answering()
        await sharing.run(jobs=60, in_flight=10)

    asyncio.run(share())
    assert sharing.violations == []
    assert len(sharing.cancel_delays) > 3
    assert statistics.median(sharing.cancel_delays) < 1


@pytest.mark.slow
def test_a_process_that_was_paused_cannot_overwrite_the_newer_outcome(
    deploy: Deploy, valkey: Valkey
) -> None:
    """SIGSTOP while handlers run, past the lease, and SIGCONT while they run again elsewhere.

    Not on SQLite: a process that is stopped in the middle of a transaction lets nobody write.
    """
    paused = deploy(valkey.url, RAINCHECK_TEST_LEASE="0.6")
    other = deploy(valkey.url, RAINCHECK_TEST_LEASE="0.6", RAINCHECK_TEST_LATER="1.5")
    routes = ("rerun", "stream", "once")

    async def outcome(line: Line, url: str) -> Answer:
        while (answer := await line.ask("GET", url, prefer="wait=10")).status == 202:
            pass
        return answer

    async def pause() -> list[tuple[Answer, Answer]]:
        await asyncio.gather(paused.answering(), other.answering())
        (here,), (there,) = paused.pids(), other.pids()

        def noted(pid: int, *what: str) -> int:
            return sum(note.by == pid and note.what in what for note in paused.notes())

        async with Line(paused.port) as line, Line(other.port) as elsewhere:
            urls = []
            for route in routes:
                order = json.dumps({"nonce": route, "seconds": 1.0}).encode()
                accepted = await line.ask("POST", f"/{route}", order)
                urls.append(accepted.headers["location"])
            await until(lambda: noted(here, "begun") == 3)
            paused.strike(signal.SIGSTOP, here)
            try:
                await asyncio.sleep(1.0)  # its handlers end as soon as it goes on
                await outcome(elsewhere, urls[-1])
                await until(lambda: noted(there, "begun") == 2)
            finally:
                paused.strike(signal.SIGCONT, here)
            await until(lambda: noted(here, "ended", "stopped") == 3)
            newer = [await outcome(elsewhere, url) for url in urls]
            at_last = [await outcome(line, url) for url in urls]
            return list(zip(newer, at_last, strict=True))

    for route, (newer, at_last) in zip(routes, asyncio.run(pause()), strict=True):
        assert (at_last.status, at_last.body) == (newer.status, newer.body)
        if route == "once":
            assert (newer.status, newer.document()["title"]) == (502, LOST_WORKER.title)
        else:
            assert json.loads(newer.body.partition(b"}")[0] + b"}")["by"] == newer.by
            assert newer.by != at_last.by
