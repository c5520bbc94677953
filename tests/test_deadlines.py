"""Deadlines: one timer, whoever has to have begun by when."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable

import anyio
import pytest

from raincheck.runtime.deadlines import Deadlines
from raincheck.tasks import Tasks, open_tasks
from tests.support import settled

pytestmark = pytest.mark.anyio


class Timed:
    """Deadlines, and what they have told, each with the seconds since it was made.

    Attributes:
        timers: those that are set now.
    """

    def __init__(self, tasks: Tasks) -> None:
        self.time = tasks.time
        self.since = self.time()
        self.told: list[tuple[str, float, float]] = []
        self.timers = 0
        self._call_later = tasks.call_later
        tasks.call_later = self._counted  # type: ignore[method-assign]
        self.deadlines = Deadlines(tasks, self._passed)

    def _counted(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        def rung() -> None:
            self.timers -= 1
            callback()

        def call_off() -> None:
            self.timers -= 1
            cancel()

        self.timers += 1
        cancel = self._call_later(delay, rung)
        return call_off

    def _passed(self, id: str, by: float) -> None:
        self.told.append((id, by, round(self.time() - self.since, 2)))


@pytest.fixture
async def timed() -> Timed:
    return Timed(open_tasks())


async def test_each_is_told_of_in_its_time_by_one_timer(timed: Timed) -> None:
    for id, left in (("c", 30), ("a", 10), ("b", 20), ("b2", 20), ("d", 0)):
        timed.deadlines.add(id, 1000.0 + left, left)
        assert timed.timers == 1
    await anyio.sleep(60)
    assert timed.told == [
        ("d", 1000.0, 0.0),
        ("a", 1010.0, 10.0),
        ("b", 1020.0, 20.0),
        ("b2", 1020.0, 20.0),
        ("c", 1030.0, 30.0),
    ]
    assert (len(timed.deadlines.known), timed.timers) == (0, 0)


async def test_who_has_begun_is_not_told_of(timed: Timed) -> None:
    for number in range(100):
        timed.deadlines.add(f"{number}", 1000.0, 10 + number)
    for number in range(100):
        if number != 42:
            timed.deadlines.discard(f"{number}")
    timed.deadlines.discard("42nd")
    await anyio.sleep(200)
    assert timed.told == [("42", 1000.0, 52.0)]


async def test_one_that_comes_back_is_told_of_in_its_newest_time(timed: Timed) -> None:
    timed.deadlines.add("another", 9000.0, 9000)  # for which all are kept
    timed.deadlines.add("a", 1010.0, 10)
    timed.deadlines.discard("a")
    timed.deadlines.add("a", 1030.0, 30)
    await anyio.sleep(40)
    assert timed.told == [("a", 1030.0, 30.0)]


async def test_of_none_that_is_left_there_is_no_timer(timed: Timed) -> None:
    timed.deadlines.add("a", 1000.0, 10)
    timed.deadlines.discard("a")
    await settled()
    assert timed.timers == 0
    timed.deadlines.add("b", 1001.0, 10)
    await anyio.sleep(20)
    assert timed.told == [("b", 1001.0, 10.0)]


async def test_one_that_waits_for_an_engine_takes_little(timed: Timed) -> None:
    ids = [f"{number:030}" for number in range(10_000)]
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number, id in enumerate(ids):
        timed.deadlines.add(id, 1000.0 + number, 3600 + number)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (after - before) / len(ids) < 300  # a timer for each took 700
    for id in ids:
        timed.deadlines.discard(id)
