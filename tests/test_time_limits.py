"""Blocks that end in time, on either event loop, with one timer for many of them on asyncio."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import anyio
import pytest

from raincheck.tasks import AsyncioTimeLimits, TimeLimits, limit

pytestmark = pytest.mark.anyio

DELAY = 10.0

Made = Callable[[], AbstractContextManager[object]]


@pytest.fixture(params=["one", "many"])
def limited(request: pytest.FixtureRequest) -> Made:
    return TimeLimits(DELAY) if request.param == "many" else lambda: limit(DELAY)


async def test_a_block_that_hangs_ends_in_time(limited: Made) -> None:
    start = anyio.current_time()
    with pytest.raises(TimeoutError), limited():
        await anyio.sleep_forever()
    assert anyio.current_time() - start == pytest.approx(DELAY, abs=0.01)
    await anyio.sleep(100)  # and nothing of it is left


async def test_blocks_within_their_time_come_through(limited: Made) -> None:
    for _ in range(5):
        with limited():
            await anyio.sleep(DELAY - 1)
        await anyio.sleep(DELAY / 3)


async def test_each_of_many_ends_in_its_own_time(limited: Made) -> None:
    ended: list[tuple[int, float]] = []
    start = anyio.current_time()

    async def hang(number: int) -> None:
        await anyio.sleep(number)
        try:
            with limited():
                await (anyio.sleep(5) if number % 2 else anyio.sleep_forever())
        except TimeoutError:
            ended.append((number, round(anyio.current_time() - start - number, 2)))

    async with anyio.create_task_group() as group:
        for number in range(25):
            group.start_soon(hang, number)
    assert ended == [(number, DELAY) for number in range(0, 25, 2)]


async def test_the_error_of_a_block_comes_through(limited: Made) -> None:
    error = LookupError()
    with pytest.raises(LookupError) as raised, limited():
        raise error
    assert raised.value is error


async def test_one_in_another_ends_alone(limited: Made) -> None:
    with limited():
        with pytest.raises(TimeoutError), limit(DELAY / 2):
            await anyio.sleep_forever()
        await anyio.sleep(DELAY / 4)


# --- asyncio ---------------------------------------------------------------------------------


class Counting(asyncio.SelectorEventLoop):
    """Counts the timers that were set."""

    def __init__(self) -> None:
        super().__init__()
        self.timers = 0

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
        self.timers += 1
        return super().call_at(when, callback, *args, context=context)


def on_asyncio(run: Callable[[Counting], Any]) -> None:
    loop = Counting()
    try:
        loop.run_until_complete(run(loop))
    finally:
        loop.close()


def test_many_blocks_have_one_timer() -> None:
    async def run(loop: Counting) -> None:
        limits = TimeLimits(0.2)

        async def briefly() -> None:
            with limits():
                await asyncio.sleep(0)

        for _ in range(10):
            await asyncio.gather(*(briefly() for _ in range(100)))
        assert loop.timers == 1
        await asyncio.sleep(0.3)
        assert loop.timers == 2  # that of the sleep: with no block there is none

    on_asyncio(run)


def test_a_single_one_leaves_no_timer() -> None:
    async def run(loop: Counting) -> None:
        with limit(1000):
            assert [timer.cancelled() for timer in loop._scheduled] == [False]  # type: ignore[attr-defined]
        assert all(timer.cancelled() for timer in loop._scheduled)  # type: ignore[attr-defined]

    on_asyncio(run)


def test_one_whose_time_begins_anew_ends_later() -> None:
    async def run(loop: Counting) -> None:
        limits, ended = AsyncioTimeLimits(loop, 0.2), list[str]()

        async def renewed() -> None:
            with limits.limit() as one:
                await asyncio.sleep(0.15)
                limits.renew(one)
                await asyncio.sleep(0.15)
                ended.append("renewed")
                await asyncio.sleep(60)

        async def other() -> None:
            await asyncio.sleep(0.05)
            try:
                with limits.limit():
                    await asyncio.sleep(60)
            except TimeoutError:
                ended.append("other")

        with pytest.raises(TimeoutError):
            await asyncio.gather(renewed(), other())
        assert ended == ["other", "renewed"]

    on_asyncio(run)


def test_every_event_loop_has_its_own() -> None:
    limits = TimeLimits(0.02)

    async def run(loop: Counting) -> None:
        with pytest.raises(TimeoutError), limits():
            await asyncio.sleep(60)
        asking = asyncio.ensure_future(asyncio.sleep(60))

        async def hang() -> None:
            with limits():
                await asyncio.wait([asking])

        hanging = loop.create_task(hang())
        await asyncio.sleep(0)
        await asyncio.to_thread(on_asyncio, elsewhere)
        with pytest.raises(TimeoutError):
            await hanging
        asking.cancel()

    async def elsewhere(loop: Counting) -> None:
        with pytest.raises(TimeoutError), limits():
            await asyncio.sleep(60)

    on_asyncio(run)


def test_blocks_leave_nothing_for_the_collector() -> None:
    async def run(loop: Counting) -> None:
        limits = TimeLimits(60)
        with limits():
            pass
        gc.collect()
        for _ in range(100):
            with limits():
                await asyncio.sleep(0)
        assert gc.collect() == 0

    on_asyncio(run)
