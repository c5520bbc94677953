"""What every app of the matrix does, in no framework: slow work, and a log of how it went."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path
from typing import Any

import anyio

from raincheck import report

LOG = Path(os.environ.get("RAINCHECK_TEST_LOG", os.devnull))
DRAIN = 10.0


def note(line: str) -> None:
    with LOG.open("a") as log:
        log.write(line + "\n")


async def slow(name: str, seconds: float) -> str:
    """Work that notes when it begins and how it ends."""
    note(f"{name} began")
    try:
        for step in range(10):
            report(step / 10)
            await anyio.sleep(seconds / 10)
    except anyio.get_cancelled_exc_class():
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.05)
        note(f"{name} cancelled")
        raise
    note(f"{name} finished")
    return f"{name} is done"


async def total(count: int, seconds: float = 0.2) -> int:
    await anyio.sleep(seconds)
    return count * 2


def in_thread() -> str:
    time.sleep(0.3)
    report(1.0)
    return "from a thread"


async def chunks() -> AsyncIterator[bytes]:
    for number in range(20):
        await anyio.sleep(0.01)
        yield b"%d," % number


def problem_of(order: object) -> str | None:
    """What is wrong with an order; None if nothing is."""
    if not isinstance(order, dict) or not isinstance(order.get("item"), str):
        return "an order has an item"
    if not isinstance(order.get("count"), int):
        return "an order has a count"
    return None


def compute(name: str) -> str:
    """Work in a thread, which nothing stops."""
    note(f"{name} began")
    time.sleep(2)
    note(f"{name} returned")
    return f"{name} is done"


async def meter(parts: AsyncIterable[bytes]) -> dict[str, Any]:
    """Look at the parts of an unmarked upload as they come."""
    digest, size = hashlib.sha256(), 0
    async for part in parts:
        if part and not size:
            note("first part")
        digest.update(part)
        size += len(part)
    return {"size": size, "digest": digest.hexdigest()}
