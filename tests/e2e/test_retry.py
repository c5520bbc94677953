"""Retries under real processes that die or stop while a job waits for its next run."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.durable import Answer, Broken, Deployment, Line
from tests.e2e.pushing import Engine

pytestmark = pytest.mark.real

Deploy = Callable[..., Deployment]

BACKOFF = 2.0
"""As in the app."""


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Deploy]:
    deployments: list[Deployment] = []

    def start(**settings: Any) -> Deployment:
        settings = {"RAINCHECK_TEST_LEASE": "1", **settings}
        deployments.append(Deployment(tmp_path, str(tmp_path / "jobs.db"), **settings))
        deployments[-1].start()
        return deployments[-1]

    yield start
    for deployment in deployments:
        deployment.kill()


async def accepted(line: Line) -> str:
    order = json.dumps({"nonce": "flaky", "seconds": 0.1}).encode()
    answer = await line.ask("POST", "/flaky", order)
    assert answer.status == 202, answer
    return answer.headers["location"]


async def waiting(line: Line, url: str) -> dict[str, Any]:
    """Its document, as soon as it waits for its second run."""
    while True:
        document: dict[str, Any] = (await line.ask("GET", url + "/status")).document()
        if document["status"] == "queued" and document["runs"] == 1:
            return document
        await asyncio.sleep(0.02)


async def outcome(line: Line, url: str) -> Answer:
    while True:
        with suppress(Broken):
            answer = await line.ask("GET", url, prefer="wait=5")
            if answer.status != 202 and "job-status" in answer.headers:
                return answer
        await asyncio.sleep(0.05)


def check(deployment: Deployment, answer: Answer) -> list[int]:
    """Two runs, the second in its time; by which processes."""
    assert (answer.status, answer.document()["nonce"]) == (200, "flaky")
    first, second = [note for note in deployment.notes() if note.what == "begun"]
    # Who is found abandoned is looked for three times in a lease; a machine may be busy.
    assert BACKOFF <= second.at - first.at <= BACKOFF + 5
    return [first.by, second.by]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_a_process_that_goes_leaves_it_to_another_one(number: int, deploy: Deploy) -> None:
    going, staying = deploy(), deploy()

    async def go() -> Answer:
        await asyncio.gather(going.answering(), staying.answering())
        async with Line(going.port) as line:
            url = await accepted(line)
            assert (await waiting(line, url))["next_run_at"]
        (pid,) = going.pids()
        going.strike(number, pid)
        async with Line(staying.port) as line:
            assert (await waiting(line, url))["next_run_at"]
            return await outcome(line, url)

    here, there = check(going, asyncio.run(go()))
    assert here != there


@pytest.mark.slow
def test_the_next_process_runs_what_the_last_one_left(deploy: Deploy) -> None:
    server = deploy()

    async def go() -> Answer:
        await server.answering()
        async with Line(server.port) as line:
            url = await accepted(line)
            await waiting(line, url)
            (pid,) = server.pids()
            server.strike(signal.SIGKILL, pid)
            server.kill()
            server.start()
            await server.answering()
            return await outcome(line, url)

    check(server, asyncio.run(go()))


def test_a_server_alone_runs_it_itself(deploy: Deploy) -> None:
    server = deploy(RAINCHECK_TEST_LEASE="30")

    async def go() -> Answer:
        await server.answering()
        async with Line(server.port) as line:
            return await outcome(line, await accepted(line))

    here, there = check(server, asyncio.run(go()))
    assert here == there


@pytest.mark.slow
@pytest.mark.parametrize("dies", [False, True])
def test_an_engine_that_calls_a_url_is_told_again(
    dies: bool, deploy: Deploy, tmp_path: Path
) -> None:
    engine = Engine(tmp_path / "engine")
    server = deploy(RAINCHECK_TEST_PUSH=f"{engine.url}/queue")
    engine.target = f"http://127.0.0.1:{server.port}/internal/run"

    async def go() -> Answer:
        await server.answering()
        async with Line(server.port) as line:
            url = await accepted(line)
            await waiting(line, url)
            if dies:
                server.kill()
                server.start()
                await server.answering()
            return await outcome(line, url)

    try:
        engine.start()
        check(server, asyncio.run(go()))
        assert "given up" not in engine.counts()
    finally:
        engine.kill()


@pytest.mark.slow
def test_what_nobody_brings_in_time_never_begins(deploy: Deploy, tmp_path: Path) -> None:
    """The engine takes it, and calls nobody: it has the wrong address."""
    engine = Engine(tmp_path / "engine")
    server = deploy(RAINCHECK_TEST_PUSH=f"{engine.url}/queue", RAINCHECK_TEST_WAIT="1.5")
    engine.target = f"http://127.0.0.1:{server.port}/plain"

    async def go() -> Answer:
        await server.answering()
        async with Line(server.port) as line:
            return await outcome(line, await accepted(line))

    try:
        engine.start()
        answer = asyncio.run(go())
    finally:
        engine.kill()
    assert (answer.status, answer.document()["type"].rpartition(":")[2]) == (503, "waited-too-long")
    assert server.notes() == []
