"""The floor that `benchmarks/floor.py` measures: with whatever duties, it does its job."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, MutableMapping
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.stores.postgres import Postgres
from tests.stores.valkey import Valkey, valkey_server  # noqa: F401 # a fixture

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def floor(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return import_module("peers.floor_app")


async def ask(app: Any, method: str, path: str) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b'{"lines": [1, 2]}', "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"x"), (b"accept", b"*/*")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await app({**scope, "query_string": b"", "root_path": ""}, receive, send)
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


async def does_its_job(app: Any) -> None:
    for _ in range(3):
        status, headers, _ = await ask(app, "POST", "/orders")
        assert status == 202
        for _ in range(10):
            await asyncio.sleep(0)
        done = await ask(app, "GET", headers[b"location"].decode())
        assert done[0] == 200
        assert done[2] == b'{"lines":2}'


def test_it_does_its_job_at_every_step(floor: Any) -> None:
    for duties in range(len(floor.DUTIES) + 1):
        asyncio.run(does_its_job(floor.build(duties)))


async def answers_polls(app: Any) -> None:
    """Of a job that runs, and of one that has ended."""
    await does_its_job(app)
    status, headers, document = await ask(app, "POST", "/never")
    assert status == 202
    for _ in range(2):  # the second time from what is known of the first
        pending = await ask(app, "GET", headers[b"location"].decode())
        assert pending[0] == 202
        assert pending[1][b"retry-after"] == headers[b"retry-after"]
        said, asked = json.loads(document), json.loads(pending[2])
        assert asked.pop("links").items() <= said.pop("links").items()
        assert asked == said


def test_it_answers_polls_at_every_step(floor: Any) -> None:
    for polls in range(len(floor.POLL_DUTIES) + 1):
        asyncio.run(answers_polls(floor.build(floor.POLLED, polls)))


def test_every_line_belongs_to_a_duty_that_there_is(floor: Any) -> None:
    ends = re.findall(r"  # ([+-].*)$", (BENCHMARKS / "peers/floor_app.py").read_text(), re.M)
    duties = floor.DUTIES.keys() | floor.POLL_DUTIES.keys()
    assert {mark[1:] for end in ends for mark in end.split()} == duties


# --- over a store ------------------------------------------------------------------------------


async def ends_its_jobs(app: Any, ended: Callable[[str], bool]) -> None:
    """Each becomes the second version of itself in the store."""
    async with app.router.lifespan_context(app):
        for _ in range(3):
            status, headers, _ = await ask(app, "POST", "/orders")
            assert status == 202
            id = headers[b"location"].decode().removeprefix("/jobs/")
            with anyio.fail_after(30):
                while not ended(id):  # noqa: ASYNC110 # there is no event of it
                    await anyio.sleep(0.01)


@pytest.mark.real
def test_it_does_its_job_over_postgresql_at_every_step(
    floor: Any, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_URL", postgres.url)
    stores = import_module("peers.floor_stores")
    for duties in range(len(stores.DUTIES["postgres"]) + 1):

        def ended(id: str, table: str = f"floor{duties}") -> bool:
            return postgres.ask(f"SELECT version FROM {table} WHERE id = '{id}'") == "2"

        asyncio.run(ends_its_jobs(stores.build("postgres", duties), ended))


@pytest.mark.real
def test_it_does_its_job_over_redis_at_every_step(
    floor: Any, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", valkey.url)
    stores = import_module("peers.floor_stores")

    def ended(id: str) -> bool:
        return bool(valkey.ask("HGET", f"job:{id}", "version") == b"2")

    for duties in range(len(stores.DUTIES["redis"]) + 1):
        asyncio.run(ends_its_jobs(stores.build("redis", duties), ended))
