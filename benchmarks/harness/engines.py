"""raincheck over taskiq's workers against FastAPI and taskiq by hand, over the same broker."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.absolutes import Trips
from harness.processes import Child, Failed
from harness.report import Goal, Row
from harness.rounds import BODY, Bench, Comparison, Running, Side

_WORKER = "-m taskiq worker {}:broker --workers 1 --log-level WARNING"

OURS = Side(
    "raincheck over taskiq",
    "peers.raincheck_taskiq_app:app",
    environment="engine",
    worker=_WORKER.format("peers.raincheck_taskiq_app"),
    service="redis",
)
BY_HAND = Side(
    "FastAPI and taskiq by hand",
    "peers.taskiq_list_app:app",
    environment="engine",
    worker=_WORKER.format("peers.taskiq_list_app"),
    service="redis",
)

FLOOR = Side(
    "the floor over taskiq",
    "peers.floor_engine_app:app",
    environment="engine",
    worker=_WORKER.format("peers.floor_engine_app"),
    service="redis",
)

LADEN = replace(FLOOR, name="the floor over taskiq, with all duties", variables={"DUTIES": "all"})


def engine_jobs(
    measure: str, title: str, goal: float | None, ours: Side = OURS, *, follow: bool = False
) -> Comparison:
    """The same job again and again, on both sides."""
    return Comparison(
        measure,
        title,
        ours,
        BY_HAND,
        None if goal is None else Goal(goal),
        method="POST",
        path="/orders",
        status=202,
        follow=follow,
    )


@dataclass
class Start:
    """From a client's request to the first line of the handler, one job after the other."""

    bench: Bench
    ours: Side = OURS
    samples: int = 100
    found: list[dict[str, float]] = field(default_factory=list)

    def round(self, number: int) -> None:
        with ExitStack() as stack:
            sides = []
            for side in (self.ours, BY_HAND):
                running = stack.enter_context(self.bench.serving(side))
                stack.enter_context(running.worker())
                running.server.start_job("/orders", BODY, finished=True)
                sides.append(running)
            delays: dict[str, list[float]] = {side.side.name: [] for side in sides}
            for turn in range(self.samples):
                for running in sides if (turn + number) % 2 else reversed(sides):
                    asked, began = begin(running)
                    delays[running.side.name].append(began - asked)
        self.found.append({name: 1000 * statistics.median(each) for name, each in delays.items()})

    def rows(self) -> Iterator[Row]:
        ours, theirs = ([each[side.name] for each in self.found] for side in (self.ours, BY_HAND))
        name = "request to handler, median, ms more than by hand"
        yield Row(
            "engine.start",
            f"engine: {name}" if self.ours is OURS else f"{self.ours.name}: {name}",
            [one - other for one, other in zip(ours, theirs, strict=True)],
            Goal(2.0, least=False, unit="ms") if self.ours is OURS else None,
            f"{statistics.median(ours):.2f} ms",
            f"{statistics.median(theirs):.2f} ms, {BY_HAND.name}",
            rounds=self.found,
        )


def begin(running: Running) -> tuple[float, float]:
    """Submit a job; when it was asked for and when its handler began, by the monotonic clock."""
    asked = time.monotonic()
    status, headers, body = running.server.ask("POST", "/orders", BODY)
    if status != 202:
        raise Failed(f"{running.side.app} answered {status}: {body!r}{running.server.said()}")
    until = asked + 10.0
    while time.monotonic() < until:
        time.sleep(0.02)  # not asked meanwhile: that is a round trip as well
        status, _, body = running.server.ask("GET", headers["location"])
        if status == 200:
            return asked, json.loads(body)["began"]
    raise Failed(f"{running.side.app}: no result{running.server.said()}")


def working_seconds(worker: Child) -> float:
    """Processor time of a worker: of the process that works, below the one that watches it."""
    total = 0.0
    for each in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split():
        user, system = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[11:13]
        total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


def trips_before(bench: Bench, jobs: int = 40) -> Iterator[Row]:
    """Round trips to store and broker from the request to the first line of the handler.

    The worker's own to the broker do not count: it has asked before there was a message.
    """
    with ExitStack() as stack:
        urls = [stack.enter_context(bench.service("redis")) for _ in range(2)]
        proxies = [stack.enter_context(Trips(bench, "redis", url)) for url in urls]
        store, broker = (proxy.url for proxy in proxies)
        running = stack.enter_context(bench.serving(OURS, REDIS_URL=store, BROKER_URL=broker))
        direct = replace(running, variables={**running.variables, "BROKER_URL": urls[1]})
        stack.enter_context(direct.worker())
        running.server.start_job("/orders", BODY, finished=True)
        counts = []
        for _ in range(jobs):
            asked, began = begin(running)
            counts.append([proxy.count(asked, began) for proxy in proxies])
    to_store, to_broker = (statistics.median(each) for each in zip(*counts, strict=True))
    yield Row(
        "engine.trips",
        "engine: round trips before the handler",
        [to_store + to_broker],
        Goal(3, least=False),
        f"store {to_store:g}, broker {to_broker:g}",
        rounds=[{"store": float(store), "broker": float(broker)} for store, broker in counts],
        form=".0f",
    )
