"""The fleet: what the jobs of other processes say of those that somebody asks for here."""

from __future__ import annotations

from contextvars import Context

import anyio
import anyio.lowlevel

from raincheck.job import Job, State
from raincheck.runtime.environment import Environment
from raincheck.runtime.estimates import FEW, WINDOW
from raincheck.runtime.scheduler import Scheduler
from raincheck.stores.availability import Availability
from raincheck.stores.base import Total
from raincheck.tasks import Tasks

# Seconds between questions to the store, while anybody asks what it knows, and between those about
# how long the jobs of one route took.
INTERVAL, _RARELY = 10.0, 60.0

_RAN = State.SUCCEEDED, State.FAILED

# Jobs of a route are looked at that were accepted so many of their usual durations ago: of the
# newest only the quick ones have ended.
_SETTLED = 4.0


class Fleet:
    """Asks a store that processes share about the queues of routes, and how long their jobs took.

    Never while a request waits for it: who asks for the outlook of a job only says of which route
    more should be known, and a task of its own asks, seldom.

    Args:
        environment: whose store.
        scheduler: is told.
        tasks: the tasks of the event loop.
    """

    def __init__(self, environment: Environment, scheduler: Scheduler, tasks: Tasks) -> None:
        self._environment = environment
        self._scheduler = scheduler
        self._tasks = tasks
        # Of its own: a store that fails here alone, as one that counts too slowly does, is not
        # away. While it seems to be, nobody takes over what dead processes had (see `Recovery`).
        self._availability = Availability("the store's account of all jobs")
        self._asking = False
        self._wanted: set[str] = set()  # of these somebody asks for an outlook
        self._listed: dict[str, float] = {}  # when those of a route may be listed again

    def concern(self, job: Job) -> None:
        """Somebody asks for the outlook of a job."""
        if job.state is State.QUEUED or not self._scheduler.knows(job.route):
            self._wanted.add(job.route)
            if not self._asking:
                self._asking = True
                self._tasks.spawn(self._ask, Context())

    async def _ask(self) -> None:
        """Ask the store as long as anybody wants to know."""
        await anyio.lowlevel.checkpoint()  # a task may begin within the call that starts it
        availability = self._availability
        while self._wanted:
            wanted, self._wanted = self._wanted, set()
            try:
                totals = await self._environment.store.totals()
                for route in wanted:
                    await self._tell(route, totals)
            except Exception as error:
                if not self._environment.availability.away:  # else the log has it
                    availability.failed(error)
            else:
                if availability.away:
                    availability.answered()
            await anyio.sleep(INTERVAL)
            for route in wanted - self._wanted:  # what is known of its queue is not true for long
                self._scheduler.hear(route, 0, ())
        self._asking = False

    async def _tell(self, route: str, totals: dict[tuple[str, State], Total]) -> None:
        scheduler, now = self._scheduler, anyio.current_time()
        queued = totals.get((route, State.QUEUED))
        durations: list[float] = []
        if not scheduler.knows(route) and now >= self._listed.get(route, now):
            ran = [total for state in _RAN if (total := totals.get((route, state)))]
            durations = await self._durations(route, ran)
            if len(durations) >= FEW:
                self._listed[route] = now + _RARELY
        scheduler.hear(route, 0 if queued is None else queued.count, durations)

    async def _durations(self, route: str, ran: list[Total]) -> list[float]:
        """How long the newest jobs of a route took, of those that could end by now."""
        if not (count := sum(total.count for total in ran)):
            return []
        settled = _SETTLED * sum(total.seconds for total in ran) / count
        store, now = self._environment.store, self._environment.clock()
        page = await store.list(states=_RAN, route=route, until=now - settled, limit=WINDOW)
        jobs = page.jobs or (await store.list(states=_RAN, route=route, limit=WINDOW)).jobs
        return [took for job in reversed(jobs) if (took := _took(job)) is not None]


def _took(job: Job) -> float | None:
    """How long a job that has ended ran the last time; None if it did not."""
    if job.started_at is None or job.finished_at is None:
        return None
    return max(0.0, job.finished_at - job.started_at)  # the clock may have been put back
