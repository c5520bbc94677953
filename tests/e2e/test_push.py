"""Jobs that an engine brings by calling a URL: real web processes that are killed, over real HTTP.

The engine is a test double (`push_engine`): it loses answers and brings messages twice.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.crashes import Crashes, striking
from tests.e2e.durable import Deployment
from tests.e2e.pushing import Engine

pytestmark = pytest.mark.real


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[tuple[Deployment, Engine]]:
    """Web processes on a store, and an engine that brings them their jobs."""
    engine = Engine(tmp_path / "engine")
    settings: dict[str, Any] = {"RAINCHECK_TEST_LEASE": "1", "RAINCHECK_TEST_DRAIN": "0.1"}
    settings["RAINCHECK_TEST_PUSH"] = f"{engine.url}/queue"
    deployment = Deployment(tmp_path, str(tmp_path / "jobs.db"), **settings)
    engine.target = f"http://127.0.0.1:{deployment.port}/internal/run"
    try:
        engine.start()
        deployment.start()
        yield deployment, engine
    finally:
        deployment.kill()
        engine.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "kills"), [(signal.SIGKILL, 3), (signal.SIGTERM, 2)], ids=["kill", "term"]
)
def test_what_a_202_promised_comes_true_though_web_processes_die(
    number: int, kills: int, standing: tuple[Deployment, Engine]
) -> None:
    deployment, engine = standing
    crashes = Crashes(
        deployment,
        striking(deployment, number),
        random.Random(5),
        jobs=60,
        kills=kills,
        patience=50,
    )

    async def crash() -> None:
        await deployment.answering()
        await crashes.run()

    asyncio.run(crash())
    assert crashes.violations == []
    assert crashes.figures.accepted == 60
    # Told to stop, a server waits for its requests, and here these are the runs.
    assert (crashes.figures.repeated > 0) == (number == signal.SIGKILL)
    counts = engine.counts()
    assert counts["200"] > 60  # some came twice, and of some answers it did not hear
    assert "given up" not in counts
