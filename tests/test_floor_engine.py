"""The floor of an engine, as `benchmarks/engine_floor.py` counts it: each step does its job."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import MutableMapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.stores.valkey import Valkey, valkey_server

__all__ = ["valkey_server"]

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

ORDER = b'{"customer": 1, "lines": [{"sku": "x", "n": 1}]}'


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return import_module("peers.floor_engine")


async def ask(app: Any, method: str, path: str, body: bytes = b"") -> tuple[int, Any, bytes]:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"x"), (b"accept", b"*/*"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    await app({**scope, "query_string": b"", "root_path": ""}, receive, send)
    start, end = sent
    return start["status"], dict(start["headers"]), end["body"]


@pytest.mark.real
def test_it_does_its_job_at_every_step(
    engine: Any, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = valkey.url.removesuffix("0") + "7"  # a database of its own
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.delenv("BROKER_URL", raising=False)
    lines = import_module("peers.lines")
    for duties in range(len(engine.DUTIES) + 1):
        there = [*engine.DUTIES][:duties]
        names = lines.module(engine.__file__, engine.__name__, there)
        asyncio.run(does_its_job(names, url))


async def does_its_job(names: dict[str, Any], server: str) -> None:
    app = names["app"]
    for _ in range(3):
        status, headers, _ = await ask(app, "POST", "/orders", ORDER)
        assert status == 202
        url = headers[b"location"].decode()
        assert (await ask(app, "GET", url))[0] == 202
        with redis.Redis.from_url(server) as client:
            ids: Any = json.loads(client.rpop("taskiq"))["args"]
        await asyncio.create_task(names["run"](*ids))  # whose context is not ours
        status, _, body = await ask(app, "GET", url)
        assert (status, json.loads(body)["lines"]) == (200, 1)
    for task in names["beating"]:
        task.cancel()
    await names["redis"].aclose()
    await names["broker"].shutdown()


def test_every_line_belongs_to_a_duty_that_there_is(engine: Any) -> None:
    ends = re.findall(r"  # ([+-].*)$", Path(engine.__file__).read_text(), re.M)
    assert {mark[1:] for end in ends for mark in end.split()} == engine.DUTIES.keys()
