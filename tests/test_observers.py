"""Observers: the ledger tells them of every transition, and nothing that they do changes a job."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from raincheck.errors import IllegalTransition, NoRoom, Problem, StoreError
from raincheck.job import Bounds, Job, Key, State
from raincheck.messages import CapturedResponse
from raincheck.runtime.ledger import Ledger
from raincheck.runtime.observers import Observers
from raincheck.stores.availability import Availability
from raincheck.stores.base import Store
from raincheck.stores.memory import MemoryStore
from raincheck.telemetry.base import Telemetry, Transition
from raincheck.testing.samples import request
from tests.doubles.stores import TrickyStore

pytestmark = [pytest.mark.anyio, pytest.mark.one_loop]

Observer = Callable[[Transition], None]
Walk = Callable[[Ledger, Job], Awaitable[Any]]
OK = CapturedResponse(200, (), 0)
BROKEN = Problem("crashed", 500, "The handler failed", "It broke.")


class Telling(Telemetry):
    """Passes on what it is told of transitions."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def transition(self, change: Transition) -> None:
        self._observer(change)


def ledger_of(store: Store, *observers: Observer) -> Ledger:
    return Ledger(
        store,
        lambda: 1000.0,
        60.0,
        availability=Availability("the store"),
        holder="here",
        observers=Observers([Telling(observer) for observer in observers]),
    )


def new(*, runs: bool = True, id: str = "a") -> Job:
    return Job.accepted(id, "r", 999.0, runs=runs, max_runs=2, replayable=True)


async def started(ledger: Ledger, job: Job) -> None:
    await ledger.start(job)


async def claimed(ledger: Ledger, job: Job) -> None:
    assert await ledger.claim(job.id, ["r"])


async def ended(ledger: Ledger, job: Job) -> None:
    await ledger.finish(job, State.SUCCEEDED, ttl=60.0, response=OK)


async def failed(ledger: Ledger, job: Job) -> None:
    await ledger.finish(job, State.FAILED, ttl=60.0, error=BROKEN)


async def cancelled(ledger: Ledger, job: Job) -> None:
    job = await ledger.cancelling(job)
    await ledger.finish(job, State.CANCELLED, ttl=60.0)


async def interrupted(ledger: Ledger, job: Job) -> None:
    await ledger.requeue(job, 0.0)


async def withdrawn(ledger: Ledger, job: Job) -> None:
    assert await ledger.withdraw(job, 60.0)


async def deleted(ledger: Ledger, job: Job) -> None:
    await ledger.bury(job, remember=True)


async def taken_back(ledger: Ledger, job: Job) -> None:
    assert await ledger.take_back(job)


RUNS = State.RUNNING, False


@pytest.mark.parametrize(
    ("walk", "runs", "told"),
    [
        (started, False, [RUNS]),
        (claimed, False, [RUNS]),
        (ended, True, [(State.SUCCEEDED, False)]),
        (failed, True, [(State.FAILED, False)]),
        (cancelled, True, [(State.CANCELLING, False), (State.CANCELLED, False)]),
        (interrupted, True, [(State.QUEUED, False)]),
        (withdrawn, False, [(State.CANCELLED, False)]),
        (deleted, True, [(State.RUNNING, True)]),
        (taken_back, True, [(State.RUNNING, True)]),
    ],
)
async def test_every_transition_is_told_once_it_is_made(
    walk: Walk, runs: bool, told: list[tuple[State, bool]]
) -> None:
    store, seen = MemoryStore(), list[Transition]()
    ledger = ledger_of(store, seen.append)
    job = await ledger.create(new(runs=runs), request())
    assert seen == [Transition(job, None)]
    await walk(ledger, job)
    assert [(each.job.state, each.job.gone) for each in seen[1:]] == told
    # Each begins where the one before it ended, and the last is what the store has.
    assert [each.before for each in seen[1:]] == [each.job.state for each in seen[:-1]]
    assert await store.get("a") == seen[-1].job


async def test_what_is_no_transition_is_not_told() -> None:
    store, seen = MemoryStore(), list[Transition]()
    ledger = ledger_of(store, seen.append)
    job = await ledger.create(new(), request(), keys=(Key("k"),))
    seen.clear()
    there = await ledger.create(new(id="b"), request(), keys=(Key("k"),))
    assert there == job
    with pytest.raises(NoRoom):
        await ledger.create(new(id="c"), request(), bounds=Bounds(route=1))
    await ledger.leave(await ledger.join(job, ()))
    done = await ledger.finish(await ledger.confirm(job), State.SUCCEEDED, ttl=60.0, response=OK)
    assert [each.job for each in seen] == [done]
    seen.clear()
    assert await ledger.finish(done, State.FAILED, ttl=60.0, error=BROKEN) == done
    with pytest.raises(IllegalTransition):
        await ledger.cancelling(done)
    assert seen == []


@pytest.mark.parametrize("walk", [started, ended, failed])
async def test_a_lost_answer_is_told_as_one_transition(walk: Walk) -> None:
    async def lose(call: str, /, *arguments: Any, **more: Any) -> None:
        if call == "replace" and lost:
            lost.pop()
            raise StoreError("connection reset")

    lost = ["its answer"]
    store, seen = TrickyStore(after=lose), list[Transition]()
    ledger = ledger_of(store, seen.append)
    job = await ledger.create(new(runs=walk is not started), request())
    await walk(ledger, job)
    assert lost == []
    assert len(seen) == 2
    assert await store.get("a") == seen[-1].job


async def test_an_observer_that_raises_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def broken(transition: Transition) -> None:
        raise ValueError("the collector is away")

    store, seen = MemoryStore(), list[Transition]()
    ledger = ledger_of(store, broken, seen.append)
    job = await ledger.create(new(), request())
    done = await ledger.finish(job, State.SUCCEEDED, ttl=60.0, response=OK)
    assert done.state is State.SUCCEEDED
    assert await store.get("a") == done
    assert [each.job.state for each in seen] == [State.RUNNING, State.SUCCEEDED]
    logged = [record for record in caplog.records if record.exc_info]
    assert [record.levelno for record in logged] == [logging.ERROR] * 2
