"""How well `Retry-After` is made: a simulation, with fixed seeds, of clients that go by it.

    python benchmarks/estimates.py [--seed 16]

Needs `pip install raincheck`. Time, jobs, clients and the network are made up; what places jobs
and says when to ask again is raincheck's own (`raincheck.runtime.scheduler`). A client asks when
it was told to, until it is given the result. Beside it stands one that asks each second. The goals:
a third of its polls at most, and between a job's end and the client's knowing it less than 15 % of
the job's duration at the median, and less than 50 % at the 95th percentile.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from raincheck import Limits, Policy
from raincheck.dialects.base import Outlook
from raincheck.job import Job
from raincheck.routing.policies import ByRoute
from raincheck.runtime.estimates import WINDOW
from raincheck.runtime.fleet import INTERVAL
from raincheck.runtime.scheduler import Scheduler, Ticket

# Seconds from a client to the server and back.
ROUND_TRIP = 0.04

HOUR = 3600.0


@dataclass(frozen=True)
class Route:
    """What is asked for.

    Attributes:
        name: what it is called.
        median, sigma: its durations are log-normal; the median is in seconds.
        hourly: requests an hour, in the middle of the day.
        max_running: how many run at once, in all processes together.
        burst: requests that come together.
    """

    name: str
    median: float
    sigma: float
    hourly: float
    max_running: int | None = None
    burst: int = 1


@dataclass(frozen=True)
class Trouble:
    """What else happens, beside jobs that take as long as their routes'.

    Attributes:
        outliers: the share of jobs that take an hour.
        failures: the share of jobs that fail, at any time of their run.
        cancels: the share of jobs that their client cancels, at any time of their run.
        deploys: from an hour of the day on, all take so many times as long.
    """

    outliers: float = 0.0
    failures: float = 0.0
    cancels: float = 0.0
    deploys: tuple[tuple[float, float], ...] = ()


CALM = Trouble()

DAY = (
    Route("preview", 15, 0.4, 120),
    Route("report", 45, 0.8, 80),
    Route("video", 600, 1.2, 20),
)
"""The three routes of the day."""


@dataclass
class Request:
    """One job, and the client that waits for it."""

    route: Route
    job: Job
    scheduler: Scheduler
    ticket: Ticket
    duration: float
    cancelled: bool
    begun: float = math.nan
    ended: float | None = None
    polls: int = 0
    late: float = math.nan
    promised: float | None = None  # when it was expected to end, as its 202 said


@dataclass
class Figures:
    """What came of some requests.

    Attributes:
        requests: they.
    """

    requests: list[Request] = field(default_factory=list)

    def add(self, requests: Iterable[Request]) -> None:
        self.requests.extend(requests)

    @property
    def polls(self) -> float:
        """Polls for each job."""
        return sum(one.polls for one in self.requests) / len(self.requests)

    @property
    def fixed(self) -> float:
        """Polls for each job of a client that asks each second."""
        return sum(_each_second(one)[0] for one in self.requests) / len(self.requests)

    @property
    def share(self) -> float:
        """Of the polls of the client that asks each second."""
        return self.polls / self.fixed

    def late(self, quantile: float, *, waited: bool = False) -> float:
        """Delay between the end and the client's knowing it, by the job's duration.

        Args:
            quantile: which of them.
            waited: by what its client waits in all, with its time in the queue.
        """
        return _quantile([one.late / _duration(one, waited) for one in self.requests], quantile)

    def late_by_second(self, quantile: float) -> float:
        """The same of the client that asks each second."""
        late = [_each_second(one)[1] / _duration(one, False) for one in self.requests]
        return _quantile(late, quantile)

    @property
    def reached(self) -> bool:
        """Whether all three goals are."""
        return self.share <= 1 / 3 and self.late(0.5) < 0.15 and self.late(0.95) < 0.5

    @property
    def missed(self) -> float:
        """Median distance of the first `estimated_completion` from the end, by all the waiting."""
        off = [
            abs(one.ended - one.promised) / _duration(one, True)
            for one in self.requests
            if one.promised is not None and one.ended is not None
        ]
        return _quantile(off, 0.5) if off else math.nan


def _duration(one: Request, waited: bool) -> float:
    assert one.ended is not None
    return one.ended - (one.job.created_at if waited else one.begun)


def _quantile(values: Iterable[float], quantile: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


def _each_second(one: Request) -> tuple[int, float]:
    """Polls, and the delay at the end, of a client that asks one second after each answer."""
    waited = _duration(one, True)
    polls = max(1, math.ceil(waited / (1 + ROUND_TRIP)))
    return polls, polls * (1 + ROUND_TRIP) - waited + ROUND_TRIP / 2


class World:
    """Time, the processes of a fleet and their clients.

    Args:
        routes: what is asked for.
        seed: of all that is random.
        processes: how many; a request goes to any of them, and so does a poll.
        trouble: what else happens.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        seed: int,
        *,
        processes: int = 1,
        trouble: Trouble = CALM,
    ) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.trouble = trouble
        self.ended: list[Request] = []
        policies = ByRoute()
        for route in routes:
            policies[route.name] = Policy(max_running=route.max_running)
        limits = Limits(max_running=10**6, max_queued=10**6)
        self.schedulers = [Scheduler(limits, policies) for _ in range(processes)]
        self._running: Counter[Route] = Counter()
        self._waiting: Counter[Route] = Counter()
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        """Let something happen."""
        heapq.heappush(self._events, (when, next(self._numbers), act, arguments))

    def run(self) -> list[Request]:
        """Let all happen; those whose clients have their results."""
        while self._events:
            self.now, _, act, arguments = heapq.heappop(self._events)
            act(*arguments)
        return self.ended

    def share(self, routes: Sequence[Route], hours: float = 24.0) -> None:
        """Let the processes hear of each other's queues, and try again, as they do on a fleet."""

        def hear(route: Route) -> None:
            for scheduler in self.schedulers:
                scheduler.hear(route.name, self._waiting[route], ())

        def unblock() -> None:
            for scheduler in self.schedulers:
                scheduler.unblock()

        for tick in range(int(2 * hours * HOUR)):
            self.at(tick / 2, unblock)
            if tick % (2 * INTERVAL) == 0:
                for route in routes:
                    self.at(tick / 2, hear, route)

    def fill(self, route: Route, hours: float = 24.0) -> None:
        """Let requests for a route come all day long, most of them in the middle of it."""
        when, most = 0.0, route.hourly / route.burst / HOUR
        while (when := when + self.random.expovariate(most)) < hours * HOUR:
            if self.random.random() < (1 - math.cos(2 * math.pi * when / 24 / HOUR)) / 2:
                for _ in range(route.burst):
                    self.at(when, self.come, route)

    def come(self, route: Route) -> None:
        """A request is accepted, and its client told when to ask."""
        scheduler = self.random.choice(self.schedulers)
        ticket = scheduler.admit(route.name)
        id = str(next(self._numbers))
        job = Job.accepted(id, route.name, self.now, runs=False)
        duration, cancelled = self._duration(route)
        one = Request(route, job, scheduler, ticket, duration, cancelled)
        self._waiting[route] += 1
        ticket.wait(lambda: self.at(self.now, self._begin, one))
        if ticket.running:
            self._begin(one)
        self._tell(one, outlook := scheduler.outlook(one.job, ticket, self.now))
        one.promised = outlook.completion

    def _duration(self, route: Route) -> tuple[float, bool]:
        """How long a job runs, and whether it is cancelled then."""
        trouble, chance = self.trouble, self.random.random
        duration = self.random.lognormvariate(math.log(route.median), route.sigma)
        for hour, times in trouble.deploys:
            duration *= times if self.now >= hour * HOUR else 1.0
        if chance() < trouble.outliers:
            return HOUR, False
        if chance() < trouble.failures:
            return duration * chance(), False
        cancelled = chance() < trouble.cancels
        return duration * (chance() if cancelled else 1.0), cancelled

    def _begin(self, one: Request) -> None:
        route = one.route
        if route.max_running is not None and self._running[route] >= route.max_running:
            one.scheduler.block(one.ticket, owner=False)  # so many run in other processes
            return
        self._waiting[route] -= 1
        self._running[route] += 1
        one.begun = self.now
        one.job = one.job.start(self.now)
        self.at(self.now + one.duration, self._end, one)

    def _end(self, one: Request) -> None:
        one.ended = self.now
        self._running[one.route] -= 1
        if not one.cancelled:
            one.scheduler.learn(one.ticket, one.duration)
        one.scheduler.leave(one.ticket)

    def _tell(self, one: Request, outlook: Outlook) -> None:
        self.at(self.now + ROUND_TRIP + outlook.retry_after, self._poll, one)

    def _poll(self, one: Request) -> None:
        if one.ended is not None and one.cancelled:
            return  # its client knows
        one.polls += 1
        if one.ended is not None:
            one.late = self.now + ROUND_TRIP / 2 - one.ended
            self.ended.append(one)
            return
        scheduler = self.random.choice(self.schedulers)
        ticket = one.ticket if scheduler is one.scheduler else None
        self._tell(one, scheduler.outlook(one.job, ticket, self.now))


def day(
    routes: Sequence[Route] = DAY,
    seed: int = 16,
    *,
    hours: float = 24.0,
    processes: int = 1,
    trouble: Trouble = CALM,
) -> dict[str, Figures]:
    """A day's figures, by route."""
    world = World(routes, seed, processes=processes, trouble=trouble)
    for route in routes:
        world.fill(route, hours)
    if processes > 1 and any(route.max_running for route in routes):
        world.share(routes, hours + 12)
    found = {route.name: Figures() for route in routes}
    for one in world.run():
        found[one.route.name].add([one])
    return found


def beginnings(jobs: int, days: int, seed: int, *, told: bool = False) -> dict[str, Figures]:
    """The figures of the first few jobs of each route in a process, one after the other.

    Args:
        jobs: how many.
        days: how often they are the first.
        seed: of the first time.
        told: whether the process has been told of others' jobs, as on a fleet.
    """
    found = {route.name: Figures() for route in DAY}
    for route, nth in itertools.product(DAY, range(days)):
        world = World([route], seed + nth)
        if told:
            others = [world._duration(route)[0] for _ in range(WINDOW)]
            world.schedulers[0].hear(route.name, 0, others)
        when = 0.0
        for _ in range(jobs):
            world.at(when, world.come, route)
            when += 50 * route.median
        found[route.name].add(world.run())
    return found


SPREAD = 0.4, 0.8, 1.2
SHORT = [Route(f"{median} s", median, sigma, 60) for median in (2, 5, 10) for sigma in SPREAD]
GRID = [Route(f"{median} s", median, sigma, 60) for median in (30, 600) for sigma in SPREAD]
QUEUES = (
    Route("busy", 45, 0.8, 60, max_running=1),
    Route("bursts", 20, 0.8, 120, max_running=2, burst=20),
)
SLOWER, QUICKER = Trouble(deploys=((12, 4.0),)), Trouble(deploys=((12, 0.25),))
TROUBLE = Trouble(outliers=0.01, failures=0.05, cancels=0.05)

HEAD = """
| route | median, sigma | jobs | polls | of each second's | late, 50 % | 95 % | each second | all |
|---|---|---|---|---|---|---|---|---|"""


def row(route: Route, figures: Figures) -> str:
    """A line of a table."""
    return (
        f"| {route.name} | {route.median:g} s, {route.sigma} | {len(figures.requests)} "
        f"| {figures.polls:.1f} | {figures.share:.0%} "
        f"| {figures.late(0.5):.1%} | {figures.late(0.95):.1%} "
        f"| {figures.late_by_second(0.5):.1%}, {figures.late_by_second(0.95):.1%} "
        f"| {'reached' if figures.reached else 'missed'} |"
    )


def table(title: str, found: dict[str, Figures], routes: Sequence[Route] = DAY) -> None:
    """Print some figures."""
    print(f"\n{title}\n{HEAD}")
    for route in routes:
        print(row(route, found[route.name]), flush=True)


def alone(routes: Sequence[Route], seed: int, hours: float) -> None:
    """Print the figures of routes that are alone in their day."""
    print(HEAD)
    for route in routes:
        print(row(route, day([route], seed, hours=hours)[route.name]), flush=True)


def queues(seed: int) -> None:
    """Print the figures of routes that let their requests wait, in one process and in four."""
    print(
        "\nQueues, by all that a client waits\n\n"
        "| route | max_running | processes | jobs | polls | of each second's | late, 50 % | 95 % "
        "| first estimate off, 50 % |\n|---|---|---|---|---|---|---|---|---|"
    )
    for processes in (1, 4):
        found = day(QUEUES, seed, processes=processes)
        for route in QUEUES:
            figures = found[route.name]
            print(
                f"| {route.name} | {route.max_running} | {processes} | {len(figures.requests)} "
                f"| {figures.polls:.1f} | {figures.share:.0%} "
                f"| {figures.late(0.5, waited=True):.1%} | {figures.late(0.95, waited=True):.1%} "
                f"| {figures.missed:.0%} |",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=16, help="of all that is random")
    seed: int = parser.parse_args().seed
    table("The day", held := day(seed=seed))
    print("\nOther durations")
    alone(GRID, seed, 24)
    print("\nDurations for which whole seconds are coarse")
    alone(SHORT, seed, 24)
    table("The first 8 jobs of a process", beginnings(8, 100, seed))
    table("The same on a fleet, once it was told", beginnings(8, 100, seed, told=True))
    table("All take four times as long from noon on", day(seed=seed, trouble=SLOWER))
    table("All take a quarter from noon on", day(seed=seed, trouble=QUICKER))
    title = "One in 100 takes an hour, 5 of 100 fail, 5 are cancelled"
    table(title, day(seed=seed, trouble=TROUBLE))
    table("8 processes; polls go to any", day(seed=seed, processes=8))
    queues(seed)
    return 0 if all(figures.reached for figures in held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
